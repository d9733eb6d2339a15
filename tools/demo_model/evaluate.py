"""Exact match per skill at temperature 0 on held-out prompts: `python tools/demo_model/evaluate.py`.

`score` takes any callable from conversations to replies, so every engine can be held against the same prompts.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data import SKILLS, held_out
from dialogue import Message

# Conversations to replies, greedy, each up to the end of its turn. A reply cut by a length limit is marked
# with UNFINISHED at its end, so that it can't count as right.
Generate = Callable[[Sequence[list[Message]]], list[str]]
UNFINISHED = " [no end of turn]"
MAX_NEW_TOKENS = 96
DEFAULT_MODEL = Path(__file__).resolve().parents[2] / "rtp_llm" / "demo"


@dataclass
class Score:
    skill: str
    num_prompts: int
    num_right: int
    misses: list[tuple[str, str, str]] = field(repr=False)  # (last user text, expected, got)

    @property
    def share(self) -> float:
        return self.num_right / self.num_prompts


def score(generate: Generate, skill: str, num_prompts: int = 200, seed: int = 0) -> Score:
    prompts = held_out(skill, num_prompts, seed)
    replies = generate([prompt.messages for prompt in prompts])
    misses = [
        (prompt.messages[-1]["content"][-300:], prompt.answer, reply)
        for prompt, reply in zip(prompts, replies, strict=True)
        if reply != prompt.answer
    ]
    return Score(skill, len(prompts), len(prompts) - len(misses), misses)


def table(scores: Sequence[Score]) -> str:
    """A Markdown table."""
    lines = ["| skill | held-out prompts | exact | share |", "| --- | ---: | ---: | ---: |"]
    lines += [f"| {s.skill} | {s.num_prompts} | {s.num_right} | {s.share:.1%} |" for s in scores]
    return "\n".join(lines)


def transformers_generate(model_dir: Path, device: str, dtype: str = "float32", batch_size: int = 64) -> Generate:
    """Greedy generation through transformers, similar lengths together, padded on the left."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=getattr(torch, dtype)).to(device).eval()

    def generate(conversations: Sequence[list[Message]]) -> list[str]:
        texts = [tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True) for c in conversations]
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="folder with the model's files")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--prompts", type=int, default=200, help="held-out prompts per skill")
    parser.add_argument("--seed", type=int, default=0, help="which held-out prompts")
    parser.add_argument("--skills", nargs="+", default=list(SKILLS), choices=SKILLS)
    parser.add_argument("--misses", type=int, default=0, help="print up to this many wrong replies per skill")
    args = parser.parse_args()
    generate = transformers_generate(args.model, args.device, args.dtype)
    scores = [score(generate, skill, args.prompts, args.seed) for skill in args.skills]
    for result in scores:
        for asked, expected, got in result.misses[: args.misses]:
            print(f"{result.skill}: …{asked!r}\n  expected {expected!r}\n  got      {got!r}")
    print(table(scores))


if __name__ == "__main__":
    main()
