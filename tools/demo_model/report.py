"""Scores of a language model's folder for its card, with the first misses on standard output."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import card
from data import SKILLS
from evaluate import score, table, transformers_generate

MISSES = 6  # printed per skill


def skills(folder: Path, device: str, num_prompts: int, names: Sequence[str] = SKILLS) -> str:
    """The card's text: exact match per skill, a Markdown table. Prints it, too."""
    generate = transformers_generate(folder, device, batch_size=256 if device == "cuda" else 32)
    scores = [score(generate, skill, num_prompts) for skill in names]
    for result in scores:
        for asked, expected, got in result.misses[:MISSES]:
            print(f"{result.skill}: …{asked[-90:]!r}\n  expected {expected!r}\n  got      {got!r}")
    print(table(scores), flush=True)
    return f"{card.SKILLS}\n{table(scores)}"
