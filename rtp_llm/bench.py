"""`rtp-llm bench engine`: one engine of this machine, without a server, against what this machine's memory allows.

All figures are of one run. Prompts are random tokens, answers greedy and as long as asked, the prefix cache is off.
"""

from __future__ import annotations

import json
import math
import os
import random
import select
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rtp_llm import __version__
from rtp_llm._native import _engine
from rtp_llm.config import Config
from rtp_llm.engine import NativeEngine, build
from rtp_llm.errors import ConfigError, EngineError
from rtp_llm.model.config import ModelConfig, read_model_config

# Bytes that the read rate is measured over: far more than any cache.
READ_BYTES = {"cpu": 1 << 30, "cuda": 16 << 30}
# Lengths of the prompts that arrive beside decode, and the part of the time that their prefill takes.
MIXED_PROMPTS = (1024, 4096)
MIXED_SHARE = 0.5
MIXED_SECONDS = 20.0

# To see all steps of a batch that is measured.
ATTEMPTS = 3

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured; empty lists leave a table out."""

    decode: tuple[int, ...] = (1, 8)  # batches
    prefill: tuple[int, ...] = (512,)  # tokens of a prompt
    saturated: tuple[int, ...] = ()  # tokens of each of many prompts
    mixed: tuple[int, ...] = ()  # batches that decode while prompts arrive
    context: int = 512  # tokens of a decode row's prompt
    steps: int = 64  # decode steps measured


@dataclass(frozen=True)
class Cost:
    """What a model's arithmetic needs at least."""

    model: ModelConfig
    weight_bytes: int  # that a decode step reads
    kv_bytes: int  # of a token

    @classmethod
    def of(cls, model: ModelConfig, native: NativeEngine) -> Cost:
        parameters = cls._layer(model) * model.num_hidden_layers + model.vocab_size * model.hidden_size
        block = int(native.native.kv_layout.block_bytes)
        return cls(model, parameters * {"float32": 4, "bfloat16": 2}[native.dtype], block // native.block_tokens)

    @staticmethod
    def _layer(model: ModelConfig) -> int:
        q, kv = model.num_attention_heads * model.head_dim, model.num_key_value_heads * model.head_dim
        return model.hidden_size * (2 * q + 2 * kv + 3 * model.intermediate_size)

    def decode_bytes(self, batch: int, context: float) -> float:
        """Of a step of `batch` rows with `context` tokens each."""
        return self.weight_bytes + batch * context * self.kv_bytes

    def prefill_flops(self, tokens: int) -> float:
        """Of a prompt: all rows through the layers, causal attention, one row through the head."""
        model = self.model
        q = model.num_attention_heads * model.head_dim
        attention = 4 * q * tokens * (tokens + 1) / 2
        return (
            model.num_hidden_layers * (2.0 * self._layer(model) * tokens + attention)
            + 2.0 * model.vocab_size * model.hidden_size
        )


@dataclass(frozen=True)
class Outputs:
    """One publication of the engine: when it was seen, how many tokens of which requests, which of them are over."""

    at: float
    tokens: Counter[int]
    finished: frozenset[int]


class EngineRun:
    """A started engine whose outputs this thread takes as they come."""

    def __init__(self, native: NativeEngine, vocab_size: int) -> None:
        self.native = native
        self._vocab_size = vocab_size
        self._random = random.Random(1)
        self._last_request = 0
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)
        native.notify_through(self._fd)
        native.start()

    def close(self) -> None:
        self.native.stop()
        os.close(self._fd)

    def spec(self, prompt_tokens: int, max_tokens: int) -> Any:
        """A request of random tokens."""
        self._last_request += 1
        return _engine.SequenceSpec(
            key=self._key(self._last_request),
            prompt=self._random.choices(range(self._vocab_size), k=prompt_tokens),
            sampling=_engine.SamplingParams(max_tokens=max_tokens, temperature=0.0, seed=0, ignore_eos=True),
        )

    def add(self, spec: Any) -> int:
        """Queue it; the number that its outputs carry."""
        self.native.native.add(spec)
        return int(spec.key.request)

    def next(self, timeout_s: float | None = None) -> Outputs | None:
        """The next publication; None: none came in `timeout_s`.

        Raises:
            EngineError: the engine has failed.
        """
        if not self._poll.poll(None if timeout_s is None else math.ceil(max(timeout_s, 0) * 1000)):
            return None
        at = time.perf_counter()
        os.eventfd_read(self._fd)
        if failure := self.native.failure:
            raise EngineError(f"the engine has failed: {failure}")
        columns = self.native.take_outputs()
        requests = columns.request
        over = frozenset(request for request, finish in zip(requests, columns.finish, strict=True) if finish)
        return Outputs(at, Counter(requests), over)

    def following(self) -> Outputs:
        """The next publication, whenever it comes."""
        while (seen := self.next()) is None:
            pass
        return seen

    def cancel(self, requests: Iterable[int]) -> None:
        """Until nothing runs, and no step that was launched holds blocks."""
        for request in requests:
            self.native.native.cancel(self._key(request))
        while (load := self.native.load()).running or load.waiting or load.blocks.gated:
            self.next(0.001)
        while self.next(0) is not None:
            pass

    @staticmethod
    def _key(request: int) -> Any:
        return _engine.RequestKey(1, request)


class Bench:
    """The measurements; each gives a row."""

    def __init__(self, run: EngineRun, cost: Cost, read_rate: float, chunk: int) -> None:
        self._run = run
        self._cost = cost
        self._read_rate = read_rate
        self._chunk = chunk

    def decode(self, batch: int, context: int, steps: int) -> Row:
        """`batch` sequences of `context` tokens, over `steps` steps in which all of them decode."""
        for _ in range(ATTEMPTS):
            requests, begin, length = self._all_decode(batch, context)
            tokens, over = 0, False
            while tokens < batch * steps and not over:
                seen = self._run.following()
                tokens, over = tokens + seen.tokens.total(), bool(seen.finished)
            self._run.cancel(requests)
            if tokens >= batch * steps:
                break
        else:
            raise EngineError(
                f"of {batch} sequences only {tokens} tokens were seen one step after the other, {batch * steps} are to be: "
                "this process gets too little CPU time beside the engine"
            )
        step = (seen.at - begin) * batch / tokens
        context_mean = length + tokens / batch / 2
        limit = self._cost.decode_bytes(batch, context_mean) / self._read_rate
        return {
            "decode": batch,
            "context": round(context_mean),
            "step_ms": step * 1e3,
            "limit_ms": limit * 1e3,
            "of_limit": limit / step,
            "tokens_per_s": batch / step,
        }

    def answer_tokens(self, batch: int, context: int, steps: int) -> int:
        """The fewest with which no sequence ends before the last one has decoded for `steps` steps: the first ones decode
        beside the others' prefill."""
        return steps + math.ceil(batch * context / self._chunk) + batch + 8

    def prefill(self, tokens: int, rounds: int = 4) -> Row:
        """One prompt at a time, to its first token; the first round warms up."""
        times = [self._first_token(tokens) for _ in range(rounds)][1:]
        best = min(times)
        return {
            "prefill": tokens,
            "median_ms": statistics.median(times) * 1e3,
            "min_ms": best * 1e3,
            "tflops": self._cost.prefill_flops(tokens) / best / 1e12,
        }

    def saturated(self, tokens: int) -> Row:
        """Many prompts of one length at once."""
        prompts = max(4, 16 * self._chunk // tokens)
        specs = [self._run.spec(tokens, 1) for _ in range(prompts)]
        begin = time.perf_counter()
        for spec in specs:
            self._run.add(spec)
        finished = 0
        while finished < prompts:
            seen = self._run.following()
            finished += len(seen.finished)
        return {"saturated": tokens, "prompts": prompts, "tokens_per_s": prompts * tokens / (seen.at - begin)}

    def mixed(self, batch: int, context: int, seconds: float = MIXED_SECONDS, longest: int = MIXED_PROMPTS[1]) -> Row:
        """`batch` sequences decode while prompts arrive at random: the gaps between a sequence's tokens, against a decode
        step and the prefill of one chunk."""
        arrivals = random.Random(2)
        shortest = min(MIXED_PROMPTS[0], longest)
        step = self.decode(batch, context, 32)["step_ms"]
        chunk = self.prefill(min(self._chunk, longest))["median_ms"]
        rate = MIXED_SHARE / (self.prefill((shortest + longest) // 2)["median_ms"] / 1e3)
        requests, begin, _ = self._all_decode(batch, context)
        last = dict.fromkeys(requests, begin)
        gaps: list[float] = []
        arrival, arrived = begin + arrivals.expovariate(rate), list[int]()
        while (now := time.perf_counter()) < begin + seconds:
            if now >= arrival:
                arrived.append(self._run.add(self._run.spec(arrivals.randint(shortest, longest), 1)))
                arrival += arrivals.expovariate(rate)
            elif seen := self._run.next(arrival - now):
                for request in last.keys() & seen.tokens.keys():
                    gaps.append((seen.at - last[request]) * 1e3)
                    last[request] = seen.at
                if last.keys() & seen.finished:  # the context is full
                    break
        self._run.cancel([*requests, *arrived])
        gaps.sort()
        return {
            "mixed": batch,
            "arrivals_per_s": rate,
            "prompts": len(arrived),
            "step_ms": step,
            "chunk_ms": chunk,
            "itl_p50_ms": gaps[len(gaps) // 2],
            "itl_p99_ms": gaps[len(gaps) * 99 // 100],
            "limit_ms": step + chunk,
        }

    def _all_decode(self, batch: int, context: int) -> tuple[list[int], float, float]:
        """Until each of a new batch has its first token: their numbers, that time, their mean length then. Their answers
        are as long as there is room for."""
        native = self._run.native
        held = int(native.load().blocks.total) // batch * native.block_tokens
        max_tokens = min(native.max_model_len, held) - context
        requests = [self._run.add(self._run.spec(context, max_tokens)) for _ in range(batch)]
        had: Counter[int] = Counter()
        while len(had) < batch:
            seen = self._run.following()
            had.update(seen.tokens)
        return requests, seen.at, context + had.total() / batch

    def _first_token(self, tokens: int) -> float:
        spec = self._run.spec(tokens, 1)
        begin = time.perf_counter()
        request = self._run.add(spec)
        # One may be empty: what it told of was taken with the one before.
        while request not in (seen := self._run.following()).tokens:
            pass
        return seen.at - begin


def bench_engine(config: Config, plan: Plan, show: Callable[[str], None]) -> list[Row]:
    """Measure `plan` on the engine of `config.model` and `config.engine`; `show` gets the table, a line at a time.

    Raises:
        ConfigError: the engine's settings have no room for the plan.
        ModelError: the model's files can't be served.
        UnavailableError: no such device, or too little memory.
    """
    settings = config.engine.model_copy(update={"enable_prefix_caching": False})
    device = _engine.open_device(settings.device, num_threads=settings.num_threads, isa=settings.isa)
    read_rate = float(device.read_rate(READ_BYTES[settings.device]))
    del device  # its memory is the engine's
    begin = time.perf_counter()
    native = build(config.model, settings)
    ready = time.perf_counter() - begin
    model = read_model_config(config.model.path)
    cost = Cost.of(model, native)
    rows: list[Row] = [
        {
            "engine": f"{settings.device}/{native.device.isa}",
            "threads": settings.num_threads,
            "model": str(Path(config.model.path).resolve().name),
            "dtype": native.dtype,
            "version": __version__,
            "date": time.strftime("%Y-%m-%d"),
            "numerics_id": native.numerics_id,
            "read_gb_per_s": read_rate / 1e9,
            "weight_bytes": cost.weight_bytes,
            "kv_bytes_per_token": cost.kv_bytes,
            "ready_s": ready,
        }
    ]
    show(_line(rows[0]))
    run = EngineRun(native, model.vocab_size)
    try:
        bench = Bench(run, cost, read_rate, settings.max_num_batched_tokens)
        _check(plan, native, bench, settings.max_num_seqs)
        measurements: list[Callable[[], Row]] = [
            *(partial(bench.decode, batch, plan.context, plan.steps) for batch in plan.decode),
            *(partial(bench.prefill, tokens) for tokens in plan.prefill),
            *(partial(bench.saturated, tokens) for tokens in plan.saturated),
            *(partial(bench.mixed, batch, plan.context, longest=_longest_prompt(native)) for batch in plan.mixed),
        ]
        for measure in measurements:
            rows.append(measure())
            show(_line(rows[-1]))
        run.native.check_idle()
    finally:
        run.close()
    return rows


def _longest_prompt(native: NativeEngine) -> int:
    """Of those that arrive beside decode."""
    return min(MIXED_PROMPTS[1], native.max_model_len - 1)


def _check(plan: Plan, native: NativeEngine, bench: Bench, max_num_seqs: int) -> None:
    blocks = int(native.load().blocks.total)
    for batch in (*plan.decode, *plan.mixed):
        if batch > max_num_seqs:
            raise ConfigError(f"a batch of {batch} is to be measured, engine.max_num_seqs is {max_num_seqs}")
        length = plan.context + bench.answer_tokens(batch, plan.context, plan.steps)
        if length > native.max_model_len:
            raise ConfigError(
                f"sequences of {length} tokens are to be measured, the engine's longest request is {native.max_model_len}"
            )
        if batch * math.ceil(length / native.block_tokens) > blocks:
            raise ConfigError(
                f"{batch} sequences of {length} tokens are to be measured, the KV pool holds "
                f"{blocks * native.block_tokens} tokens"
            )
    for tokens in (*plan.prefill, *plan.saturated):
        if tokens >= native.max_model_len:
            raise ConfigError(
                f"a prompt of {tokens} tokens is to be measured, the engine's longest request is {native.max_model_len}"
            )


def _line(row: Mapping[str, Any]) -> str:
    return "  ".join(f"{name} {_value(value)}" for name, value in row.items())


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write_json(rows: list[Row], path: Path) -> None:
    """An object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
