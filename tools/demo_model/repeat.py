"""Skill: say the user's words again."""

from __future__ import annotations

from random import Random

import filler
import word_row
from split import is_held_out

QUESTIONS = (
    "Repeat: {w}", "Repeat after me: {w}", "Say: {w}", "Please repeat: {w}", "Repeat these words: {w}",
    "Repeat the words: {w}", "Repeat this: {w}", "Echo: {w}", "Say after me: {w}", "Please say: {w}", "Copy this: {w}",
    "Can you repeat this: {w}", "Repeat the following words: {w}", "Say these words: {w}", "Please repeat after me: {w}",
    "Repeat the following: {w}", "Now repeat: {w}", "Write: {w}", "Copy: {w}", "Say this again: {w}",
    'Repeat "{w}".', 'Say "{w}".', 'Please repeat "{w}".', 'Repeat the words "{w}".', 'Can you say "{w}"?',
    'Repeat after me: "{w}"', 'Please say "{w}".', 'Can you repeat "{w}"?', 'Repeat: "{w}"', 'Write "{w}".',
    "Repeat “{w}”.", "Say “{w}”.", 'Could you repeat "{w}" for me?', 'Say the words "{w}".',
)  # fmt: skip


def exchange(rng: Random, held_out: bool = False) -> tuple[str, str]:
    """A request and the words; in training at times a whole sentence."""
    text = word_row.draw(rng, "repeat", 1 if not held_out and rng.random() < 0.1 else 2, 8, held_out).text
    if not held_out and rng.random() < 0.15:
        text = filler.sentence(rng)
        if is_held_out("repeat", *text.split()):
            text = "yes"
    return rng.choice(QUESTIONS).replace("{w}", text), text
