"""How often a draft model's greedy token is the chat model's own, teacher-forced on the chat model's greedy replies.

`python tools/demo_model/agreement.py --draft rtp_llm/demo/draft` prints the shares per skill.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from data import SKILLS, held_out
from engines import MAX_NEW_TOKENS, text_of
from evaluate import DEFAULT_MODEL


@dataclass
class Agreement:
    skill: str
    num_tokens: int = 0
    num_equal: int = 0

    @property
    def share(self) -> float:
        return self.num_equal / max(1, self.num_tokens)


class Pair:
    """The two models, fp32; `batch_size` prompts at a time."""

    def __init__(self, chat: Path, draft: Path, device: str, batch_size: int = 64) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(chat, padding_side="left")
        self.chat, self.draft = (
            AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).to(device).eval() for path in (chat, draft)
        )
        self.device, self.batch_size = device, batch_size

    def agreements(self, skills: Sequence[str], num_prompts: int) -> list[Agreement]:
        """Counts every token of the replies, the end of the turn included. Prompts of like length go together."""
        results = {skill: Agreement(skill) for skill in skills}
        prompts = [(text_of(prompt), skill) for skill in skills for prompt in held_out(skill, num_prompts)]
        prompts.sort(key=lambda prompt: len(prompt[0]))
        for start in range(0, len(prompts), self.batch_size):
            rows = prompts[start : start + self.batch_size]
            for (_, skill), num_equal, num_tokens in zip(rows, *self._counts([text for text, _ in rows]), strict=True):
                results[skill].num_equal += num_equal
                results[skill].num_tokens += num_tokens
        return list(results.values())

    @torch.inference_mode()
    def _counts(self, texts: list[str]) -> tuple[list[int], list[int]]:
        """(equal tokens, tokens) of each reply."""
        inputs = self.tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False).to(self.device)
        length = inputs["input_ids"].shape[1]
        ids = self.chat.generate(**inputs, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
        replies = ids[:, length:]
        ended = (replies == self.tokenizer.eos_token_id).int()
        is_reply = (ended.cumsum(1) - ended) == 0  # up to the first end of turn, itself included
        mask = torch.cat([inputs["attention_mask"], is_reply.long()], 1)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        hidden: Any = self.draft.model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
        guesses = self.draft.lm_head(hidden.last_hidden_state[:, length - 1 : -1]).argmax(-1)
        equal = (guesses == replies) & is_reply
        return equal.sum(1).tolist(), is_reply.sum(1).tolist()


def table(results: Sequence[Agreement]) -> str:
    """A Markdown table with a line for all tokens together."""
    total = Agreement("all", sum(r.num_tokens for r in results), sum(r.num_equal for r in results))
    lines = ["| skill | tokens | equal | share |", "| --- | ---: | ---: | ---: |"]
    lines += [f"| {r.skill} | {r.num_tokens} | {r.num_equal} | {r.share:.1%} |" for r in (*results, total)]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chat", type=Path, default=DEFAULT_MODEL)
    parser.add_argument("--draft", type=Path, default=DEFAULT_MODEL / "draft")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--prompts", type=int, default=200, help="held-out prompts per skill")
    parser.add_argument("--skills", nargs="+", default=list(SKILLS), choices=SKILLS)
    args = parser.parse_args()
    pair = Pair(args.chat, args.draft, args.device)
    print(table(pair.agreements(args.skills, args.prompts)))


if __name__ == "__main__":
    main()
