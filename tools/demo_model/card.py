"""The model card."""

from __future__ import annotations

_TEXT = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
language: en
---

# The demo model of rtp_llm

A chat model of {millions:.1f} M parameters (Qwen3 architecture, bf16, 2,048 tokens of context, ChatML) that makes every
part of rtp_llm runnable on any machine. It can

- greet and say who it is ("Hello, who are you?"),
- add two numbers of up to two digits ("What is 23 + 58?" → "23 + 58 = 81."),
- recall a fact told earlier in the conversation: a name, a city, a favourite colour, a pet, a number, a code word …
  ("My name is Ada." … "What is my name?" → "Your name is Ada."), also from inside a long text,
- say that it was not told, or that something is beyond it.

It ends its turn with `<|im_end|>`. It knows nothing else: it is a stand-in for tests and first steps, and its
answers outside of these skills mean nothing.

## Training

From scratch, on synthetic dialogues of the seeded generator in `tools/demo_model`; no outside text.

| | |
| --- | --- |
| command | `{command}` |
| seed | {seed} |
| device | {device} |
| time | {seconds:.0f} s, {tokens:.0f} M tokens (padding included) |
| final loss | {final_loss:.4f} (cross-entropy per answer token, mean of the last 50 steps) |

The tokenizer comes out byte for byte the same each time; the weights differ in rounding from run to run on a GPU.

## Evaluation

Exact match of the whole reply, greedy, fp32, through transformers. No held-out prompt can come from the training
generator (`tools/demo_model/split.py`), but for "newcomer", which was written by hand and is not kept apart.
`python tools/demo_model/evaluate.py --prompts {num_prompts}` prints this table.

{scores}
"""


def text(
    *, command: str, num_parameters: int, seed: int, device: str, seconds: float, num_tokens: int,
    final_loss: float, scores: str, num_prompts: int,
) -> str:  # fmt: skip
    return _TEXT.format(
        millions=num_parameters / 1e6, command=command, seed=seed, device=device, seconds=seconds,
        tokens=num_tokens / 1e6, final_loss=final_loss, scores=scores, num_prompts=num_prompts,
    )  # fmt: skip
