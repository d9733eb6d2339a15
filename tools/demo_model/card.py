"""The model cards."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from loop import Outcome

NOT_EVALUATED = "Not evaluated."
SKILLS = """Exact match of the whole reply, greedy, fp32, through transformers. No held-out prompt can come from the training
generator (`tools/demo_model/split.py`), but for "newcomer", which was written by hand and is not kept apart.
"""

_TEXT = """---
license: apache-2.0
library_name: {library}
pipeline_tag: {task}
language: en
{more_front}---

# {title}

{about}
## Training

From scratch, on synthetic text of the seeded generator in `tools/demo_model`; no outside text.

| | |
| --- | --- |
| command | `{command}` |
| seed | {seed} |
| device | {device} |
| time | {seconds:.0f} s, {steps} steps, {tokens:.0f} M tokens (padding included) |
| final loss | {final_loss:.4f} ({loss}, mean of the last 50 steps) |

The tokenizer comes out byte for byte the same each time; the weights differ in rounding from run to run on a GPU.

## Evaluation

{evaluation}
"""


@dataclass(frozen=True)
class Card:
    title: str
    about: str  # paragraphs, each ending with a line end
    command: str
    seed: int
    device: str
    outcome: Outcome
    loss: str = "cross-entropy per answer token"
    library: str = "transformers"
    task: str = "text-generation"
    more_front: str = ""  # lines of the YAML head

    def publish(self, args: argparse.Namespace, evaluate: Callable[[], str]) -> None:
        """Writes the card, and once more with what `evaluate` found where prompts are asked for: if it fails, the rest is there."""
        self.write(args.out)
        if args.prompts:
            self.write(args.out, evaluate())
        tokens, seconds = self.outcome.num_tokens / 1e6, self.outcome.seconds
        print(f"final loss {self.outcome.final_loss:.4f}, {tokens:.0f} M tokens in {seconds:.0f} s")

    def write(self, folder: Path, evaluation: str = NOT_EVALUATED) -> None:
        text = _TEXT.format(
            title=self.title, about=self.about, command=self.command, seed=self.seed, device=self.device,
            seconds=self.outcome.seconds, steps=self.outcome.num_steps, tokens=self.outcome.num_tokens / 1e6,
            final_loss=self.outcome.final_loss, loss=self.loss, evaluation=evaluation.rstrip("\n"),
            library=self.library, task=self.task, more_front=self.more_front,
        )  # fmt: skip
        (folder / "README.md").write_text(text)
