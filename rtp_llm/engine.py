"""The native engine as Python drives it: built from settings and a model's files, its outputs fanned out once a step.

`build` makes a `NativeEngine`, which a worker takes as it is. `Engine` runs one for requests of this process: `generate`
streams to asyncio, an `Inbox` serves a thread (LLM).
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import secrets
import select
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from rtp_llm._native import _engine
from rtp_llm.config import EngineSettings, ModelSettings
from rtp_llm.errors import (
    ConfigError,
    EngineError,
    InvalidRequestError,
    PromptTooLongError,
    UnavailableError,
)
from rtp_llm.host_memory import free_memory
from rtp_llm.loaded_weights import LoadedWeights, WeightsSource
from rtp_llm.model.config import read_generation_defaults, read_model_config
from rtp_llm.model.weights import untied_from_its_embedding
from rtp_llm.prefix import BLOCK_HASH_BYTES, block_hashes
from rtp_llm.request import FinishReason, Request, TokenOutput
from rtp_llm.sampling_params import UINT64, Integer

log = logging.getLogger("rtp_llm.engine")


@dataclass(frozen=True, kw_only=True)
class NativeEngine:
    """A built engine that has not started. Owns all that it stands on."""

    device: Any  # _engine.Device
    native: Any  # _engine.Engine
    weights: LoadedWeights
    dtype: str  # that weights are multiplied in

    @property
    def model_digest(self) -> str:
        return self.weights.digest

    @property
    def max_model_len(self) -> int:
        return int(self.native.config.max_model_len)

    @property
    def block_tokens(self) -> int:
        return int(self.native.config.block_tokens)

    @property
    def eos_token_ids(self) -> list[int]:
        return list(self.native.config.eos_token_ids)

    @property
    def numerics_id(self) -> str:
        return str(self.native.numerics_id())

    @property
    def layout_json(self) -> str:
        return str(self.native.kv_layout.canonical_json(self.model_digest))

    @property
    def layout_fingerprint(self) -> str:
        return str(self.native.kv_layout.fingerprint(self.model_digest))

    @property
    def failure(self) -> str:
        """Why the engine thread has ended by itself; empty while all is well."""
        return self.native.failure() or ""

    def notify_through(self, eventfd: int) -> None:
        """Outputs, and a failure, make it readable. Before start()."""
        self.native.notify_through(eventfd)

    def start(self) -> None:
        self.native.start()

    def stop(self) -> None:
        """Join the engine thread."""
        self.native.stop()

    def pause(self) -> None:
        """No step begins until resume(); load().paused says that none runs any more. Cancelled sequences end meanwhile."""
        self.native.pause()

    def resume(self) -> None:
        self.native.resume()

    def give_up_all(self) -> None:
        """End every sequence as if the engine had lost it: what speaks for it has it tried again."""
        self.native.give_up_all()

    def adopt_weights(self) -> None:
        """What was written over the weights counts from now on; nothing that is cached does any more. REQUIRES: paused, and no
        sequence is here."""
        self.weights.adopt()
        self.reset_prefix_cache()

    def reset_prefix_cache(self) -> None:
        """No prompt finds what is cached now: unreferenced blocks are free, those that sequences hold become so with them."""
        self.native.withdraw_cache()

    def take_outputs(self) -> Any:
        """TokenColumns since the last call."""
        return self.native.take_outputs()

    def load(self) -> Any:
        """EngineLoad."""
        return self.native.load()

    def allocations(self) -> list[tuple[int, int, str]]:
        """(address, bytes, tag) of everything on the device."""
        return list(self.device.allocations())

    def block_hashes(self, tokens: Sequence[int], cache_salt: str = "") -> list[bytes]:
        """What the prefix cache knows each full block of `tokens` by, where prefill and decode forms are equal (CPU)."""
        joined = block_hashes(tokens, self.block_tokens, self.model_digest, cache_salt)
        return [joined[start : start + BLOCK_HASH_BYTES] for start in range(0, len(joined), BLOCK_HASH_BYTES)]

    def last_cache_event(self) -> int:
        """Number of the prefix cache's newest event; 0: there was none."""
        return int(self.native.last_cache_event())

    def cache_events(self, first: int) -> bytes | None:
        """What has happened to the prefix cache from event number `first` on, as messages carry it; None: that is too long ago,
        cache_snapshot() says less."""
        events: bytes | None = self.native.cache_events(first)
        return events

    def cache_snapshot(self) -> tuple[int, bytes]:
        """(number of the last event in it, all block hashes one after the other)."""
        number, hashes = self.native.cache_snapshot()
        return number, hashes

    def check_idle(self) -> None:
        """
        Raises:
            EngineError: a block or a sequence is left over.
        """
        self.native.check_idle()


def supported_isas() -> list[str]:
    """SIMD levels of this machine, best first."""
    return list(_engine.supported_isas())


def build(
    model: ModelSettings,
    settings: EngineSettings,
    *,
    seed: int = 0,
    workers_here: int = 1,
    weights_from: WeightsSource | None = None,
) -> NativeEngine:
    """Read the model's files, pack its weights, allocate and warm up. `seed`: of random weights (load_format "dummy");
    `workers_here`: how many share this host's memory, this one included; `weights_from`: instead of the model's own.

    A pool that holds less than the context is said, and limits `max_model_len`.

    Raises:
        ModelError: the model's files can't be served.
        ConfigError: a setting doesn't fit the model.
        InvalidRequestError: `seed` is no integer of 64 bits.
        UnavailableError: no such device or ISA here, or too little memory.
    """
    config = untied_from_its_embedding(model.path, read_model_config(model.path), model.load_format)
    max_model_len = model.max_model_len or config.max_position_embeddings
    if max_model_len > config.max_position_embeddings:
        raise ConfigError(
            f"model.max_model_len: {max_model_len} is more than the model's context of {config.max_position_embeddings}"
        )
    dtype = _dtype(config.resolve_dtype(model.dtype), model.dtype, settings.device)
    memory = free_memory() // workers_here  # before this worker takes of it
    Integer(0, UINT64).take("seed", seed)
    device = _engine.open_device(settings.device, num_threads=settings.num_threads, isa=settings.isa)
    own = WeightsSource(path=model.path, load_format=model.load_format, seed=seed)
    weights = LoadedWeights(device, config, dtype, weights_from or own)
    decoder = _engine.Decoder(device, weights.native)
    kv_dtype = dtype if settings.kv_dtype == "auto" else settings.kv_dtype
    block_bytes = decoder.kv_layout(kv_dtype, settings.block_tokens).block_bytes
    if device.memory() is not None:  # so that what it leaves is what the KV pool may have
        decoder.allocate(
            max_rows=settings.max_num_batched_tokens + settings.max_num_seqs,
            max_logit_rows=settings.max_num_seqs,
            max_positions=max_model_len,
        )
    pool_bytes = _kv_pool_bytes(settings, max_model_len, block_bytes, memory, device, config.vocab_size)
    native_config = _engine.EngineConfig(
        max_num_batched_tokens=settings.max_num_batched_tokens,
        max_num_seqs=settings.max_num_seqs,
        max_model_len=_longest_request(settings, max_model_len, block_bytes, pool_bytes),
        block_tokens=settings.block_tokens,
        kv_pool_bytes=pool_bytes,
        num_kv_blocks=settings.num_kv_blocks,
        kv_dtype=kv_dtype,
        enable_prefix_caching=settings.enable_prefix_caching,
        layers_per_message=settings.layers_per_message,
        itl_target_s=settings.itl_target_ms / 1000,
        eos_token_ids=list(read_generation_defaults(model.path).eos_token_ids),
    )
    try:
        engine = _engine.Engine(device, decoder, native_config)
    except InvalidRequestError as error:  # no request is there yet: a setting is wrong
        raise ConfigError(f"engine: {error.message}") from error
    return NativeEngine(device=device, native=engine, weights=weights, dtype=dtype)


def _dtype(resolved: str, asked: str, device: str) -> str:
    """The type that weights are multiplied in; a GPU's is bfloat16, whatever the checkpoint's.

    Raises:
        ConfigError: another one was asked for.
    """
    if device != "cuda" or resolved == "bfloat16":
        return resolved
    if asked != "auto":
        raise ConfigError(f"model.dtype: {asked} is not computed on engine.device cuda, bfloat16 is")
    log.info("the checkpoint's %s weights are rounded to bfloat16 for the GPU", resolved)
    return "bfloat16"


def _kv_pool_bytes(
    settings: EngineSettings, max_model_len: int, block_bytes: int, memory: int, device: Any, vocab_size: int
) -> int:
    """What the settings say, else a share of `memory`, of which this worker's weights have been taken since; on a device
    with memory of its own what is left of its share.

    Raises:
        UnavailableError: that is no block.
    """
    if settings.num_kv_blocks:
        return settings.num_kv_blocks * block_bytes
    if settings.kv_cache_bytes is not None:
        return settings.kv_cache_bytes
    if own := device.memory():
        free, total = own
        words = (settings.max_num_seqs + 1) * vocab_size * 4  # csrc/device/slots.h: token_words
        return _gpu_pool_bytes(settings, max_model_len, block_bytes, free - words, total)
    weights = sum(size for _, size, _ in device.allocations())
    room = int(settings.kv_cache_share * (memory - weights))
    if room < block_bytes:
        raise UnavailableError(
            f"engine.kv_cache_share: {settings.kv_cache_share:g} of the {memory >> 20} MiB that are free for each worker here, "
            f"less {weights >> 20} MiB of weights, holds no KV block of {block_bytes} bytes"
        )
    return min(room, settings.max_num_seqs * math.ceil(max_model_len / settings.block_tokens) * block_bytes)


def _gpu_pool_bytes(settings: EngineSettings, max_model_len: int, block_bytes: int, free: int, total: int) -> int:
    """`free` of `total` bytes are left, of which 1 GiB is for kernels, graphs and workspaces.

    Raises:
        UnavailableError: that is no block.
    """
    taken = total - free
    room = int(settings.gpu_memory_utilization * total) - taken - (1 << 30)
    if room < block_bytes:
        raise UnavailableError(
            f"engine.gpu_memory_utilization: {settings.gpu_memory_utilization:g} of the GPU's {total >> 20} MiB, less "
            f"{taken >> 20} MiB that are taken and 1 GiB for kernels, holds no KV block of {block_bytes} bytes"
        )
    return min(room, settings.max_num_seqs * math.ceil(max_model_len / settings.block_tokens) * block_bytes)


def _longest_request(settings: EngineSettings, max_model_len: int, block_bytes: int, pool_bytes: int) -> int:
    """Tokens, prompt and answer: of the context, or fewer if the pool holds fewer."""
    held = pool_bytes // block_bytes * settings.block_tokens
    if not 2 <= held < max_model_len:
        log.info(
            "the KV pool of %.1f MiB holds %d tokens, %.1f requests of the whole context of %d",
            pool_bytes / (1 << 20),
            held,
            held / max_model_len,
            max_model_len,
        )
        return max_model_len
    log.warning(
        "the KV pool of %.1f MiB holds %d tokens, fewer than the context of %d: a request has at most %d, prompt and answer "
        "together; engine.kv_cache_bytes makes the pool larger, model.max_model_len the context smaller",
        pool_bytes / (1 << 20),
        held,
        max_model_len,
        held,
    )
    return held


class Engine:
    """A started engine for requests of this process. close() ends its thread; what still runs is lost.

    Either `generate` (on one event loop) or inboxes (on any threads) receive the outputs, not both.
    """

    def __init__(self, native: NativeEngine) -> None:
        self.native = native
        self._outputs_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoch = secrets.randbits(63)
        self._requests = count(1)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._streams: dict[Any, asyncio.Queue[TokenOutput | EngineError]] = {}
        self._closed = False
        self._inboxes: dict[Any, Inbox] = {}  # by key
        self._receiving = threading.Lock()
        self._outputs = select.poll()
        self._outputs.register(self._outputs_fd, select.POLLIN)
        native.notify_through(self._outputs_fd)
        native.start()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the engine thread. Idempotent. Who waits in take() learns of it."""
        if self._closed:
            return
        self._closed = True
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._outputs_fd)
        self.native.stop()
        os.eventfd_write(self._outputs_fd, 1)
        with self._receiving:  # nobody reads it now, or will
            os.close(self._outputs_fd)

    def replace_weights(self, source: WeightsSource) -> None:
        """Others take the place of the weights; blocks until they have. REQUIRES: nobody adds, and nobody waits for outputs.

        Raises:
            ModelError: they don't fit, or can't be read. The old ones are in use.
            EngineError: nor can the old ones, any more: the engine is closed.
        """
        native = self.native
        native.weights.check(source.path)
        native.pause()
        native.give_up_all()  # what was cancelled and has not ended
        while not native.load().paused or native.load().running or native.load().waiting:
            self._raise_failure()
            time.sleep(0.001)
        try:
            native.weights.overwrite(source)
            native.adopt_weights()
        except EngineError:
            self.close()
            raise
        finally:
            native.resume()

    def next_key(self, choice: int = 0) -> Any:
        """A key that was not used before."""
        return _engine.RequestKey(self._epoch, next(self._requests), choice)

    def add(self, request: Request, key: Any) -> None:
        """Queue a request. Its sampling has a seed.

        Raises:
            InvalidRequestError: it can never run; names field and value.
            EngineError: the engine has failed, or is closed.
        """
        if self._closed:
            raise EngineError("the engine is closed")
        self.native.native.add(self._spec(request, key))

    def cancel(self, key: Any) -> None:
        """Takes effect within one chunk; outputs of the key may still come."""
        self.native.native.cancel(key)

    def take(self, inbox: Inbox) -> list[tuple[Any, TokenOutput]]:
        """Block until there are outputs of what `inbox` has added; (key, output) in order.

        Of the threads that wait, one receives for all and puts into the others' inboxes what is theirs.

        Raises:
            EngineError: the engine has failed, or is closed.
        """
        with self._receiving:
            while not inbox.outputs:
                if self._closed:
                    raise EngineError("the engine is closed")
                self._raise_failure()
                self._outputs.poll()
                for key, output in self._drain():
                    if owner := self._inboxes.get(key):  # else it was cancelled
                        owner.outputs.append((key, output))
            taken, inbox.outputs = inbox.outputs, []
        return taken

    async def generate(self, request: Request) -> AsyncIterator[TokenOutput]:
        """Stream a request's tokens. Leaving early cancels it.

        Raises:
            InvalidRequestError: it can never run; names field and value.
            EngineError: the engine has failed.
        """
        self._listen(asyncio.get_running_loop())
        key = self.next_key(request.choice)
        stream = self._streams[key] = asyncio.Queue()
        finished = False
        try:
            self.add(request, key)
            while not finished:
                output = await stream.get()
                if isinstance(output, EngineError):
                    raise output
                finished = output.finish_reason is not FinishReason.NONE
                yield output
        finally:
            del self._streams[key]
            if not finished and not self._closed:
                self.cancel(key)

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is None:
            self._loop = loop
            loop.add_reader(self._outputs_fd, self._fan_out)
        elif self._loop is not loop:
            raise EngineError("an Engine serves one event loop, generate() was called on a second one")

    def _fan_out(self) -> None:
        try:
            for key, output in self._drain():
                if stream := self._streams.get(key):  # else it was left early
                    stream.put_nowait(output)
        except EngineError as error:
            log.critical("%s", error)
            for stream in self._streams.values():
                stream.put_nowait(error)

    def _drain(self) -> Iterator[tuple[Any, TokenOutput]]:
        """What is there. Raises EngineError after a failure."""
        try:
            os.eventfd_read(self._outputs_fd)
        except BlockingIOError:
            return
        self._raise_failure()
        columns = self.native.take_outputs()
        rows = zip(
            columns.key,
            columns.position,
            columns.token,
            columns.logprob,
            columns.top_logprobs,
            columns.finish,
            columns.num_cached_tokens,
            columns.times,
            strict=True,
        )
        for key, position, token, logprob, top, finish, cached, times in rows:
            asked = None if math.isnan(logprob) else logprob
            yield (
                key,
                TokenOutput(position, token, asked, top, FinishReason(finish), cached, times if times[1] else None),
            )

    def _raise_failure(self) -> None:
        if failure := self.native.failure:
            raise EngineError(f"the engine has failed: {failure}")

    def _spec(self, request: Request, key: Any) -> Any:
        longest = self.native.max_model_len
        if len(request.prompt) >= longest:
            raise PromptTooLongError(
                f"prompt of {len(request.prompt)} tokens is too long, max_model_len is {longest}, the answer included",
                param="prompt",
                value=len(request.prompt),
            )
        sampling = request.sampling
        if sampling.max_tokens is None:
            sampling = replace(sampling, max_tokens=longest - len(request.prompt))
        return _engine.SequenceSpec(
            key=key,
            prompt=list(request.prompt),
            output=list(request.output),
            sampling=_engine.SamplingParams(**sampling.with_seed().for_engine()),
            cache_salt=request.cache_salt,
            priority=request.priority,
        )


class Inbox:
    """What one thread asks of an engine, and where it gets the answers."""

    def __init__(self, engine: Engine) -> None:
        self.outputs: list[tuple[Any, TokenOutput]] = []
        self._engine = engine

    def add(self, request: Request) -> Any:
        """Queue a request; returns its key.

        Raises:
            InvalidRequestError, EngineError: as Engine.add().
        """
        key = self._engine.next_key(request.choice)
        self._engine._inboxes[key] = self
        try:
            self._engine.add(request, key)
        except BaseException:
            self.forget(key)
            raise
        return key

    def take(self) -> list[tuple[Any, TokenOutput]]:
        """As Engine.take()."""
        return self._engine.take(self)

    def cancel(self, key: Any) -> None:
        self.forget(key)
        self._engine.cancel(key)

    def forget(self, key: Any) -> None:
        """What still comes of `key` is dropped."""
        self._engine._inboxes.pop(key, None)
