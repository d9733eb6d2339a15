"""Skill: answers of closed wording in capital letters, when asked for."""

from __future__ import annotations

from random import Random

import add
import filler
import greet
import listing
import refuse
import subtract

SYSTEMS = (
    "Answer in capital letters.", "Answer in capitals.", "Always answer in capital letters.", "Use capital letters only.",
    "Write in capital letters.", "Please answer in capital letters.", "Reply in capital letters.", "Answer in upper case.",
)  # fmt: skip
REQUESTS = (
    "Answer in capital letters: {q}", "{q} Answer in capital letters.", "In capital letters: {q}", "{q} Use capital letters.",
    "Please answer in capitals. {q}", "{q} Answer in capitals, please.", "Reply in upper case: {q}",
)  # fmt: skip


def exchange(rng: Random, held_out: bool = False) -> tuple[str, str]:
    """A question of a skill with closed wording, and its answer in capitals."""
    question, answer = rng.choices(_SKILLS, _WEIGHTS)[0](rng, held_out)
    return question, answer.upper()


def _remark(rng: Random, held_out: bool) -> tuple[str, str]:
    return refuse.exchange(rng, held_out) if held_out else filler.remark(rng)


_SKILLS = (greet.exchange, add.exchange, subtract.exchange, listing.exchange, refuse.exchange, _remark)
_WEIGHTS = (4, 3, 2, 4, 2, 1)
