"""Trains every demo model on one or two GPUs: `python tools/demo_model/train_all.py --out DIR --phase 1`, then 2 (and 3).

Each phase stays below ten minutes. With two GPUs: chat beside MoE and embedding, then draft beside adapter. With one:
chat; draft, adapter and embedding; MoE. Logs go to DIR/logs, the models to DIR as they lie in rtp_llm/demo.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import torch

HERE = Path(__file__).resolve().parent
# name → (script, folder below --out, seconds of training at most, whether it needs the chat model)
MODELS: dict[str, tuple[str, str, int, bool]] = {
    "chat": ("train.py", ".", 420, False),
    "moe": ("moe.py", "moe", 300, False),
    "embedding": ("embedding.py", "embedding", 90, False),
    "draft": ("draft.py", "draft", 270, True),
    "adapter": ("adapter.py", "adapters/capitals", 90, True),
}
# phase → a lane per GPU → its models, one after the other
TWO_GPUS = {1: [["chat"], ["moe", "embedding"]], 2: [["draft"], ["adapter"]]}
ONE_GPU = {1: [["chat"]], 2: [["draft", "adapter", "embedding"]], 3: [["moe"]]}
TAIL_LINES = 30


def command(name: str, args: argparse.Namespace, num_lanes: int) -> list[str]:
    script, folder, max_seconds, needs_chat = MODELS[name]
    workers = max(1, (os.cpu_count() or 2) // num_lanes - 3)
    line = [sys.executable, str(HERE / script), "--out", str(args.out / folder), "--seed", str(args.seed)]
    line += ["--max-seconds", str(max_seconds), "--prompts", str(args.prompts), "--workers", str(workers)]
    if needs_chat:
        line += ["--chat", str(args.out)]
    if args.steps:
        line += ["--steps", str(args.steps)]
    return line + (["--tokens-per-batch", str(args.tokens_per_batch)] if args.tokens_per_batch else [])


def run_lane(names: list[str], gpu: int, args: argparse.Namespace, num_lanes: int, seconds: dict[str, float]) -> None:
    """Fills `seconds`; a model that fails is missing there, and the next one still runs."""
    for name in names:
        begin = time.monotonic()
        with (args.out / "logs" / f"{name}.log").open("w") as log:
            line = command(name, args, num_lanes)
            environment = {**os.environ, "CUDA_VISIBLE_DEVICES": str(gpu), "TRANSFORMERS_VERBOSITY": "error"}
            done = subprocess.run(line, stdout=log, stderr=subprocess.STDOUT, env=environment, check=False)
        if done.returncode == 0:
            seconds[name] = time.monotonic() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--phase", type=int, required=True, choices=(1, 2, 3))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prompts", type=int, default=200, help="held-out prompts per skill")
    parser.add_argument("--steps", type=int, help="for a trial: steps of every model")
    parser.add_argument("--tokens-per-batch", type=int, help="for a trial")
    args = parser.parse_args()
    lanes = (TWO_GPUS if torch.cuda.device_count() > 1 else ONE_GPU).get(args.phase, [])
    (args.out / "logs").mkdir(parents=True, exist_ok=True)
    seconds: dict[str, float] = {}
    threads = [Thread(target=run_lane, args=(names, gpu, args, len(lanes), seconds)) for gpu, names in enumerate(lanes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = [name for lane in lanes for name in lane]
    for name in names:
        lines = (args.out / "logs" / f"{name}.log").read_text().splitlines()
        print(f"== {name}", *lines[-TAIL_LINES:], sep="\n")
    print("\n| model | seconds | bytes of the weights |\n| --- | ---: | ---: |")
    for name in names:
        size = sum(path.stat().st_size for path in (args.out / MODELS[name][1]).glob("*.safetensors"))
        print(f"| {name} | {f'{seconds[name]:.0f}' if name in seconds else 'FAILED'} | {size} |")
    sys.exit(len(seconds) < len(names))


if __name__ == "__main__":
    main()
