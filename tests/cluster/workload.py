"""Requests for a cluster, and what one undisturbed engine answers to each."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rtp_llm.config import DEMO_MODEL
from rtp_llm.llm import LLM
from rtp_llm.model.config import read_model_config
from rtp_llm.model.tokenizer import Tokenizer
from rtp_llm.sampling_params import SamplingParams
from tests.cluster.streams import AnswerStream

Body = dict[str, Any]
BLOCK_TOKENS = 16
# RTP_TEST_BACKEND=cuda: engines on a GPU, which all of them share.
BACKEND = os.environ.get("RTP_TEST_BACKEND") or "cpu"


def bodies(count: int, *, seed: int, prompt_tokens: Sequence[int], max_tokens: Sequence[int]) -> list[Body]:
    """Bodies of /v1/completions with prompts of random ids, greedy and seeded by turns; lengths are drawn from the given
    ones. Whatever the model says, an answer has max_tokens tokens."""
    draw = random.Random(seed)
    vocabulary = read_model_config(DEMO_MODEL).vocab_size
    made = []
    for number in range(count):
        body: Body = {
            "prompt": [draw.randrange(3, vocabulary) for _ in range(draw.choice(prompt_tokens))],
            "max_tokens": draw.choice(max_tokens),
            "ignore_eos": True,
            "temperature": 0.0,
            "logprobs": 1,
        }
        if number % 2:
            body |= {"temperature": 0.9, "top_k": 50, "top_p": 0.95, "seed": draw.getrandbits(62)}
        made.append(body)
    return made


def bytes_per_token() -> int:
    """Of the demo model's KV layout: layers, K and V, heads, head_dim, bf16."""
    config = read_model_config(DEMO_MODEL)
    return config.num_hidden_layers * 2 * config.num_key_value_heads * config.head_dim * 2


@dataclass(frozen=True)
class Answer:
    """What a client gets: each token as text with the bits of its logprob; the text; why it ended."""

    tokens: list[tuple[str, str]]
    text: str
    finish_reason: str | None

    @classmethod
    def of(cls, stream: AnswerStream) -> Answer:
        assert stream.error is None, stream.error
        return cls(stream.bits, stream.text, stream.finish_reason)


class Undivided:
    """One engine in this process, one prompt at a time."""

    def __init__(self, llm: LLM) -> None:
        self.llm = llm
        self.tokenizer = Tokenizer.load(DEMO_MODEL)

    @classmethod
    @contextmanager
    def engine(cls) -> Iterator[Undivided]:
        with LLM(
            model=DEMO_MODEL,
            device=BACKEND,
            block_size=BLOCK_TOKENS,
            num_threads=1,
            max_num_batched_tokens=512,
            kv_cache_memory_bytes=64 << 20,
        ) as llm:
            yield cls(llm)

    def answer(self, body: Body) -> Answer:
        names = ("max_tokens", "ignore_eos", "temperature", "top_k", "top_p", "seed", "logprobs")
        sampling = SamplingParams(**{name: body[name] for name in names if name in body})
        [result] = self.llm.generate({"prompt_token_ids": body["prompt"]}, sampling)
        [output] = result.outputs
        assert output.logprobs is not None
        tokens = [
            (self.tokenizer.token_text(token), float(logprobs[token].logprob).hex())
            for token, logprobs in zip(output.token_ids, output.logprobs, strict=True)
        ]
        return Answer(tokens, output.text, output.finish_reason)

    def answers(self, bodies: Sequence[Body]) -> list[Answer]:
        return [self.answer(body) for body in bodies]
