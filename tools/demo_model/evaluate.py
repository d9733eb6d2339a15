"""Exact match per skill at temperature 0 on held-out prompts: `python tools/demo_model/evaluate.py`.

`score` takes any callable from held-out prompts to replies, so every engine can be held against the same prompts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data import SKILLS, HeldOut, held_out
from engines import UNFINISHED, native_generate, server_generate, transformers_generate
from heldout import ALL_SKILLS

__all__ = ["UNFINISHED", "Generate", "Score", "main", "score", "table", "transformers_generate"]

# Prompts to replies, greedy, each up to the end of its turn. A reply cut by a length limit is marked with
# UNFINISHED at its end, so that it can't count as right.
Generate = Callable[[Sequence[HeldOut]], list[str]]
DEFAULT_MODEL = Path(__file__).resolve().parents[2] / "rtp_llm" / "demo"


@dataclass
class Score:
    skill: str
    num_prompts: int
    num_right: int
    misses: list[tuple[str, str, str]] = field(repr=False)  # (last text before the reply, expected, got)
    replies: list[str] = field(repr=False)

    @property
    def share(self) -> float:
        return self.num_right / self.num_prompts


def score(generate: Generate, skill: str, num_prompts: int = 200, seed: int = 0) -> Score:
    prompts = held_out(skill, num_prompts, seed)
    replies = generate(prompts)
    misses = [
        (prompt.messages[-1]["content"][-300:], prompt.answer, reply)
        for prompt, reply in zip(prompts, replies, strict=True)
        if reply != prompt.answer
    ]
    return Score(skill, len(prompts), len(prompts) - len(misses), misses, replies)


def table(scores: Sequence[Score]) -> str:
    """A Markdown table."""
    lines = ["| skill | held-out prompts | exact | share |", "| --- | ---: | ---: | ---: |"]
    lines += [f"| {s.skill} | {s.num_prompts} | {s.num_right} | {s.share:.1%} |" for s in scores]
    return "\n".join(lines)


def save(path: Path, scores: Sequence[Score]) -> None:
    """The replies, skill by skill, for `compare`."""
    path.write_text(json.dumps({s.skill: s.replies for s in scores}, ensure_ascii=False, indent=1) + "\n")


def compare(first: Path, second: Path) -> list[str]:
    """What differs between two files of replies, prompt by prompt; empty when nothing does."""
    a, b = json.loads(first.read_text()), json.loads(second.read_text())
    differences = [f"{skill}: only in one file" for skill in sorted(a.keys() ^ b.keys())]
    for skill in sorted(a.keys() & b.keys()):
        if len(a[skill]) != len(b[skill]):
            differences.append(f"{skill}: {len(a[skill])} and {len(b[skill])} replies")
        pairs = enumerate(zip(a[skill], b[skill], strict=False))
        differences += [f"{skill} {i}: {x!r} and {y!r}" for i, (x, y) in pairs if x != y]
    return differences


def _engine(args: argparse.Namespace) -> Generate:
    if args.engine == "transformers":
        return transformers_generate(args.model, args.device, args.dtype)
    if args.engine == "native":
        return native_generate(args.model, args.dtype)
    return server_generate(args.engine, args.model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="folder with the model's files")
    parser.add_argument(
        "--engine", default="transformers", help="transformers, native (rtp_llm.LLM here), or a server's URL"
    )
    parser.add_argument("--device", default="cpu", help="of transformers")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--prompts", type=int, default=200, help="held-out prompts per skill")
    parser.add_argument("--seed", type=int, default=0, help="which held-out prompts")
    parser.add_argument("--skills", nargs="+", default=list(SKILLS), choices=ALL_SKILLS)
    parser.add_argument("--misses", type=int, default=0, help="print up to this many wrong replies per skill")
    parser.add_argument("--save", type=Path, help="write all replies to this file")
    parser.add_argument("--compare", type=Path, nargs=2, help="compare two files of replies, and do nothing else")
    args = parser.parse_args()
    if args.compare:
        differences = compare(*args.compare)
        print("\n".join(differences) or "all replies are equal")
        raise SystemExit(bool(differences))
    generate = _engine(args)
    scores = [score(generate, skill, args.prompts, args.seed) for skill in args.skills]
    for result in scores:
        for asked, expected, got in result.misses[: args.misses]:
            print(f"{result.skill}: …{asked!r}\n  expected {expected!r}\n  got      {got!r}")
    if args.save:
        save(args.save, scores)
    print(table(scores))


if __name__ == "__main__":
    main()
