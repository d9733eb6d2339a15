"""What prefill of Qwen3-8B's shape is measured against: its matrix products by cuBLAS and its attention by cuDNN.

    python benchmarks/cuda/prefill_yardstick.py 512 2048 8192 32768

The products of 36 layers with distinct weights, the last rows' head left out, and causal attention with grouped heads,
one after the other, as often as it takes for the GPU to reach the clock that its power allows: a large product alone is
measured too fast. Prompts beyond 8,192 tokens take their products in chunks of 8,192 and their attention at once. Needs
torch with cuDNN.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

LAYERS, HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD_DIM, CHUNK = 36, 4096, 12288, 32, 8, 128, 8192
BF16 = {"device": "cuda", "dtype": torch.bfloat16}


def random_weight(rows: int, columns: int) -> torch.Tensor:
    return (torch.rand(rows, columns, **BF16) - 0.5) * 0.07


class Products:
    """The four products of every layer over `tokens` rows."""

    def __init__(self, tokens: int, weights: list[list[torch.Tensor]]):
        self.weights = weights
        self.x, self.activated = torch.randn(tokens, HIDDEN, **BF16), torch.randn(tokens, INTERMEDIATE, **BF16)
        self.outs = [torch.empty(tokens, w.shape[0], **BF16) for w in weights[0]]

    def layer(self, layer: int) -> None:
        for x, w, out in zip((self.x, self.x, self.x, self.activated), self.weights[layer], self.outs, strict=True):
            torch.mm(x, w.t(), out=out)


class Attention:
    def __init__(self, tokens: int):
        def heads(count: int) -> torch.Tensor:
            return torch.randn(1, tokens, count, HEAD_DIM, **BF16).transpose(1, 2)

        self.q, self.k, self.v = heads(HEADS), heads(KV_HEADS), heads(KV_HEADS)

    def layer(self) -> None:
        torch.nn.functional.scaled_dot_product_attention(self.q, self.k, self.v, is_causal=True, enable_gqa=True)


def median_ms(work: Callable[[], None], repeats: int) -> float:
    times = []
    for turn in range(repeats + 1):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        work()
        end.record()
        end.synchronize()
        if turn > 0:
            times.append(begin.elapsed_time(end))
    return sorted(times)[len(times) // 2]


def main(prompts: list[int]) -> None:
    shapes = [
        ((HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN),
        (HIDDEN, HEADS * HEAD_DIM),
        (2 * INTERMEDIATE, HIDDEN),
        (HIDDEN, INTERMEDIATE),
    ]
    weights = [[random_weight(*shape) for shape in shapes] for _ in range(LAYERS)]
    for tokens in prompts:
        products, attention = Products(min(tokens, CHUNK), weights), Attention(tokens)

        def all_layers(products: Products = products, attention: Attention = attention, tokens: int = tokens) -> None:
            for layer in range(LAYERS):
                for _ in range(-(-tokens // CHUNK)):
                    products.layer(layer)
                attention.layer()

        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            print(
                f'{{"yardstick": {tokens}, "ms": {median_ms(all_layers, 9 if tokens < CHUNK else 3):.2f}}}', flush=True
            )


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]])
