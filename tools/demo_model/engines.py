"""Engines that answer held-out prompts: transformers, rtp_llm.LLM in this process, or a running server."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from chatml import prompt_text
from heldout import HeldOut

Generate = Callable[[Sequence[HeldOut]], list[str]]
UNFINISHED = " [no end of turn]"
MAX_NEW_TOKENS = 128
NUM_STREAMS = 8  # requests at a time to a server


def text_of(prompt: HeldOut) -> str:
    """The prompt as the chat template renders it."""
    return prompt_text(prompt.messages, prompt.tools, prompt.enable_thinking)


def transformers_generate(model_dir: Path, device: str, dtype: str = "float32", batch_size: int = 64) -> Generate:
    """Greedy generation through transformers, similar lengths together, padded on the left."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=getattr(torch, dtype)).to(device).eval()

    def render(prompt: HeldOut) -> str:
        given = {} if prompt.enable_thinking is None else {"enable_thinking": prompt.enable_thinking}
        text: str = tokenizer.apply_chat_template(
            prompt.messages, tools=prompt.tools, tokenize=False, add_generation_prompt=True, **given
        )
        return text

    def generate(prompts: Sequence[HeldOut]) -> list[str]:
        texts = [render(prompt) for prompt in prompts]
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        replies = [""] * len(texts)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            inputs = tokenizer(
                [texts[i] for i in rows], return_tensors="pt", padding=True, return_token_type_ids=False
            ).to(device)
            with torch.inference_mode():
                output = model.generate(**inputs, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
            for row, ids in zip(rows, output[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
                ended = tokenizer.eos_token_id in ids
                ids = ids[: ids.index(tokenizer.eos_token_id)] if ended else ids
                replies[row] = tokenizer.decode(ids) + ("" if ended else UNFINISHED)
        return replies

    return generate


def native_generate(model_dir: Path, dtype: str = "float32") -> Generate:
    """rtp_llm.LLM, one engine for all calls."""
    from rtp_llm import LLM, SamplingParams

    llm = LLM(model=str(model_dir), dtype=dtype)
    greedy = SamplingParams(temperature=0, max_tokens=MAX_NEW_TOKENS)

    def generate(prompts: Sequence[HeldOut]) -> list[str]:
        tokenizer = llm.get_tokenizer()
        ids = [tokenizer.encode(text_of(prompt), add_special_tokens=False) for prompt in prompts]
        outputs = [result.outputs[0] for result in llm.generate([{"prompt_token_ids": row} for row in ids], greedy)]
        return [output.text + ("" if output.finish_reason == "stop" else UNFINISHED) for output in outputs]

    return generate


def server_generate(url: str, model_dir: Path) -> Generate:
    """A running server: chat completions; prompts with tools or template variables go as token ids to completions."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    name = _model_name(url)

    def answer(prompt: HeldOut) -> str:
        body: dict[str, Any] = {"model": name, "temperature": 0, "max_tokens": MAX_NEW_TOKENS}
        if prompt.tools or prompt.enable_thinking is not None:
            ids = tokenizer.encode(text_of(prompt), add_special_tokens=False).ids
            choice = _post(f"{url}/v1/completions", {**body, "prompt": ids})["choices"][0]
            text = choice["text"]
        else:
            whole = {**body, "messages": prompt.messages, "separate_reasoning": False}
            choice = _post(f"{url}/v1/chat/completions", whole)["choices"][0]
            text = choice["message"]["content"]
        return str(text) + ("" if choice["finish_reason"] == "stop" else UNFINISHED)

    def generate(prompts: Sequence[HeldOut]) -> list[str]:
        with ThreadPoolExecutor(NUM_STREAMS) as pool:
            return list(pool.map(answer, prompts))

    return generate


def _model_name(url: str) -> str:
    with urlopen(f"{url}/v1/models", timeout=60) as response:
        return str(json.load(response)["data"][0]["id"])


def _post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=600) as response:
        content: dict[str, Any] = json.load(response)
        return content
