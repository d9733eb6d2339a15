"""How fast a checkpoint in the page cache gets into an engine, beside what the machine allows in the same run.

python benchmarks/weight_loading.py DIRECTORY [--device cuda]

DIRECTORY gets a checkpoint of Qwen3-8B's shape, 16.4 GB of random bfloat16, unless one is there. Printed, as JSON: the rate at
which as many threads as the loader has read the file into memory, the rate of copies from pinned memory to the GPU (needs
torch), that of loading, and what else there is between the start and a ready engine.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from rtp_llm import engine
from rtp_llm.config import EngineSettings, ModelSettings
from rtp_llm.model import weights

LAYERS, HIDDEN, INTERMEDIATE, VOCAB, HEADS, KV_HEADS, HEAD_DIM = 36, 4096, 12288, 151936, 32, 8, 128
CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "hidden_act": "silu",
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
FILE = "model.safetensors"
POOL_BYTES = 64 << 20
READ_BYTES = 2 << 20
ROUNDS = 3


def tensors() -> Iterator[tuple[str, list[int]]]:
    yield "model.embed_tokens.weight", [VOCAB, HIDDEN]
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", [HIDDEN]
        yield prefix + "post_attention_layernorm.weight", [HIDDEN]
        yield prefix + "self_attn.q_norm.weight", [HEAD_DIM]
        yield prefix + "self_attn.k_norm.weight", [HEAD_DIM]
        yield prefix + "self_attn.q_proj.weight", [HEADS * HEAD_DIM, HIDDEN]
        yield prefix + "self_attn.k_proj.weight", [KV_HEADS * HEAD_DIM, HIDDEN]
        yield prefix + "self_attn.v_proj.weight", [KV_HEADS * HEAD_DIM, HIDDEN]
        yield prefix + "self_attn.o_proj.weight", [HIDDEN, HEADS * HEAD_DIM]
        yield prefix + "mlp.gate_proj.weight", [INTERMEDIATE, HIDDEN]
        yield prefix + "mlp.up_proj.weight", [INTERMEDIATE, HIDDEN]
        yield prefix + "mlp.down_proj.weight", [HIDDEN, INTERMEDIATE]
    yield "model.norm.weight", [HIDDEN]
    yield "lm_head.weight", [VOCAB, HIDDEN]


def make_checkpoint(directory: Path) -> None:
    """One pool of small numbers, again and again."""
    header: dict[str, Any] = {}
    end = 0
    for name, shape in tensors():
        begin, end = end, end + 2 * shape[0] * (shape[1] if len(shape) == 2 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    pool = bytearray(random.Random(1).randbytes(POOL_BYTES))
    pool[1::2] = bytes(0x3C | byte & 0x80 for byte in pool[1::2])  # ± 0.008 to 0.03
    with (directory / FILE).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.flush()
        os.ftruncate(file.fileno(), 8 + len(text) + end)
        with ThreadPoolExecutor(16) as threads:
            places = range(0, end, POOL_BYTES)
            sizes = [min(POOL_BYTES, end - place) for place in places]
            data = memoryview(pool)
            list(threads.map(lambda p, n: os.pwrite(file.fileno(), data[:n], 8 + len(text) + p), places, sizes))
    (directory / "config.json").write_text(json.dumps(CONFIG))


def read_rate(path: Path) -> float:
    """Bytes a second, by as many threads as the loader has."""
    readers, size = weights.num_readers(), path.stat().st_size
    buffers: SimpleQueue[memoryview] = SimpleQueue()
    for _ in range(readers):
        buffers.put(memoryview(bytearray(READ_BYTES)))
    fd = os.open(path, os.O_RDONLY)

    def read(place: int) -> None:
        buffer = buffers.get()
        for offset in range(place, min(place + weights.PIECE_BYTES, size), len(buffer)):
            os.preadv(fd, [buffer], offset)
        buffers.put(buffer)

    with ThreadPoolExecutor(readers) as threads:
        seconds = min(
            timed(lambda: list(threads.map(read, range(0, size, weights.PIECE_BYTES)))) for _ in range(ROUNDS)
        )
    os.close(fd)
    return size / seconds


def link_rate() -> float:
    """Bytes a second from pinned memory to the GPU."""
    import torch

    pinned = torch.empty(1 << 30, dtype=torch.uint8, pin_memory=True)
    on_gpu = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")

    def copy() -> None:
        on_gpu.copy_(pinned, non_blocking=True)
        torch.cuda.synchronize()

    copy()
    return float((1 << 30) / min(timed(copy) for _ in range(8)))


def timed(do: Callable[[], object]) -> float:
    begin = time.perf_counter()
    do()
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    arguments = parser.parse_args()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    file = arguments.directory / FILE
    if not file.exists():
        make_checkpoint(arguments.directory)
    row: dict[str, Any] = {"device": arguments.device, "bytes": file.stat().st_size, "threads": weights.num_readers()}
    row["read_gb_s"] = read_rate(file) / 1e9
    if arguments.device == "cuda":
        row["link_gb_s"] = link_rate() / 1e9
    limit = min(row["read_gb_s"], row.get("link_gb_s", row["read_gb_s"]))
    loading: list[float] = []

    class TimedWeights(engine.LoadedWeights):
        """Timed from the first byte read to the last one packed; memory is there before."""

        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            loading.append(time.perf_counter() - self._begin)

        def _fill(self, source: Any) -> None:
            self._begin = time.perf_counter()
            super()._fill(source)

    engine.LoadedWeights = TimedWeights  # type: ignore[misc]
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        native = engine.build(ModelSettings(path=str(arguments.directory)), EngineSettings(device=arguments.device))
        row["load_gb_s"] = row["bytes"] / loading[-1] / 1e9
        row["of_limit"] = row["load_gb_s"] / limit
        row["besides_s"] = time.perf_counter() - begin - loading[-1]
        print(json.dumps(row), flush=True)
        del native


if __name__ == "__main__":
    main()
