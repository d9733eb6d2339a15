"""A tiny random model's engine, configurations with short times, and a scripted router."""

from __future__ import annotations

import array
import asyncio
import contextlib
import math
import random
from collections.abc import AsyncIterator, Sequence
from typing import Any

from rtp_llm._native import _engine
from rtp_llm.config import Config, load_config
from rtp_llm.engine import NativeEngine
from rtp_llm.errors import EngineError
from rtp_llm.request import Request, TokenOutput
from rtp_llm.sampling_params import SamplingParams
from rtp_llm.wire import convert
from rtp_llm.wire.credentials import NO_CREDENTIALS, Credentials
from rtp_llm.wire.key import RequestKey, WorkerKey
from rtp_llm.wire.session import SessionTiming, WorkerSession
from rtp_llm.wire.v1 import router_pb2 as pb
from rtp_llm.worker.worker import Worker

VOCAB = 64
MODEL = {
    "architecture": "LlamaForCausalLM",
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "dtype": "float32",
}


def tiny_config(**settings: Any) -> Config:
    """Settings by path with __ for the dot: tiny_config(handover__router_expiry_s=1)."""
    overrides: dict[str, Any] = {
        "model.served_name": "tiny",
        "engine.num_kv_blocks": 64,
        "engine.kv_cache_bytes": 0,
        "engine.block_tokens": 8,
        "engine.layers_per_message": 2,
        "engine.isa": "generic",
        "transfer.mode": "tcp",
        "handover.router_expiry_s": 1.0,
    }
    overrides |= {path.replace("__", "."): value for path, value in settings.items()}
    return load_config(overrides=overrides, environ={})


def write_weights(weights: Any, nan_token: int) -> None:
    """Random values, but the embedding of `nan_token` is NaN: after it no logit is a number."""
    generator = random.Random(7)
    for tensor in weights.expected():
        rows, width = tensor.shape[0], math.prod(tensor.shape[1:])
        values = array.array("f", (generator.gauss(1.0 if width == 1 else 0.0, 0.1) for _ in range(rows * width)))
        if tensor.name == "model.embed_tokens.weight":
            values[nan_token * width : (nan_token + 1) * width] = array.array("f", [math.nan] * width)
        weights.write(tensor.name, 0, rows, width, "float32", values)


def tiny_engine(
    config: Config,
    *,
    block_tokens: int | None = None,
    nan_token: int | None = None,
    max_model_len: int = 512,
    num_kv_blocks: int | None = None,
) -> NativeEngine:
    """Equal weights each time."""
    settings = config.engine
    device = _engine.open_device("cpu", num_threads=1, isa=settings.isa)
    weights = _engine.Weights(device, _engine.ModelConfig(**MODEL))
    if nan_token is None:
        weights.write_random(7)
    else:
        write_weights(weights, nan_token)
    weights.finish()
    decoder = _engine.Decoder(device, weights)
    native = _engine.Engine(
        device,
        decoder,
        _engine.EngineConfig(
            max_num_batched_tokens=settings.max_num_batched_tokens,
            max_num_seqs=8,
            max_model_len=max_model_len,
            block_tokens=block_tokens or settings.block_tokens,
            kv_pool_bytes=0,
            num_kv_blocks=num_kv_blocks or settings.num_kv_blocks,
            kv_dtype="float32",
            enable_prefix_caching=True,
            layers_per_message=settings.layers_per_message,
            itl_target_s=0.05,
            eos_token_ids=[],
        ),
    )
    return NativeEngine(device=device, native=native, weights=weights, dtype="float32")


@contextlib.asynccontextmanager
async def tiny_worker(
    pool: str, config: Config | None = None, engine: NativeEngine | None = None
) -> AsyncIterator[Worker]:
    config = config or tiny_config()
    worker = Worker(config, pool, f"{pool}-0", engine or tiny_engine(config))
    await worker.start()
    try:
        yield worker
    finally:
        await worker.stop()


async def idle(worker: Worker, timeout_s: float = 10.0) -> None:
    """Until nothing runs, nothing is in flight and nothing is left over."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    while True:
        try:
            return worker.check_idle()
        except EngineError:
            if asyncio.get_running_loop().time() > deadline:
                raise
        await asyncio.sleep(0.01)


async def acknowledged(worker: Worker) -> None:
    """Until `worker` has heard all routers acknowledge that it drains."""
    while True:
        if worker._routers.is_draining and not worker._routers.unacknowledged:
            return
        await asyncio.sleep(0.001)


class ScriptedRouter:
    """A router's sessions, told what to do by the test. Collects what workers say, by key."""

    def __init__(
        self, epoch: int = 77, timing: SessionTiming | None = None, credentials: Credentials = NO_CREDENTIALS
    ) -> None:
        self.epoch = epoch
        self.credentials = credentials
        self.timing = timing or SessionTiming()
        self.ends: dict[str, RouterEnd] = {}
        self.outputs: dict[RequestKey, dict[int, TokenOutput]] = {}
        self.notices: list[tuple[str, str, Any]] = []  # (worker, kind, message)
        self.changed = asyncio.Condition()

    async def connect(self, key: WorkerKey, address: str) -> RouterEnd:
        end = RouterEnd(self, key, address)
        self.ends[key.id] = end
        end.session.start()
        await self.until(lambda: end.session.is_connected)
        return end

    def key(self, request: int, attempt: int = 0) -> RequestKey:
        return RequestKey(self.epoch, request, 0, attempt)

    def tokens(self, key: RequestKey) -> list[int]:
        return [output.token for _, output in sorted(self.outputs.get(key, {}).items())]

    def kinds(self, kind: str) -> list[Any]:
        return [message for _, found, message in self.notices if found == kind]

    async def until(self, condition: Any, timeout_s: float = 20.0) -> None:
        async def wait() -> None:
            async with self.changed:
                await self.changed.wait_for(condition)

        try:
            await asyncio.wait_for(wait(), timeout_s)
        except asyncio.TimeoutError:
            raise AssertionError(f"never came; heard {self.notices}, {self.outputs}") from None

    async def finished(self, key: RequestKey, timeout_s: float = 20.0) -> list[int]:
        """The tokens of an answer, when its last has come."""

        def over() -> bool:
            outputs = self.outputs.get(key, {})
            return any(o.finish_reason for o in outputs.values()) and min(outputs) + len(outputs) - 1 == max(outputs)

        await self.until(over, timeout_s)
        return self.tokens(key)

    async def close(self) -> None:
        for end in self.ends.values():
            await end.session.close()

    def heard(self) -> None:
        async def notify() -> None:
            async with self.changed:
                self.changed.notify_all()

        task = asyncio.ensure_future(notify())
        task.add_done_callback(lambda _: None)


class RouterEnd:
    """The router's end of one session: SessionEvents."""

    def __init__(self, router: ScriptedRouter, key: WorkerKey, address: str) -> None:
        self.router, self.id = router, key.id
        self.load: pb.Load | None = None
        self.hello: pb.WorkerHello | None = None
        self.lives: list[str] = []
        self.session = WorkerSession(
            key,
            address,
            router_id=f"r{router.epoch}",
            router_epoch=router.epoch,
            events=self,
            timing=router.timing,
            credentials=router.credentials,
        )

    def submit(
        self,
        key: RequestKey,
        prompt: Sequence[int],
        max_tokens: int = 8,
        *,
        output: Sequence[int] = (),
        receiver: tuple[WorkerKey, str] | None = None,
        **sampling: Any,
    ) -> None:
        params = SamplingParams(**{"temperature": 0.0, "seed": 1, "max_tokens": max_tokens, **sampling})
        message = pb.Submit(
            key=convert.key_message(key),
            request=convert.request_message(Request(request_id="t", prompt=prompt, sampling=params)),
            output=output,
            alone=receiver is None,
        )
        if receiver is not None:
            message.receiver.CopyFrom(convert.worker_message(receiver[0]))
            message.receiver_address = receiver[1]
        assert self.session.send(pb.RouterMessage(submit=message))

    def cancel(self, key: RequestKey) -> None:
        assert self.session.send(pb.RouterMessage(cancel=pb.Cancel(key=convert.key_message(key))))

    def fence(self, key: RequestKey) -> None:
        assert self.session.send(pb.RouterMessage(fence=pb.Fence(key=convert.key_message(key))))

    def attach(self, *entries: tuple[RequestKey, int, int]) -> None:
        """(key, next position, role)"""
        attach = pb.Attach(
            entries=[pb.AttachEntry(key=convert.key_message(k), next_position=n, role=r) for k, n, r in entries]
        )
        assert self.session.send(pb.RouterMessage(attach=attach))

    def connected(self, hello: pb.WorkerMessage, *, resumed: bool) -> None:
        self.hello = hello.hello
        self.lives.append("resumed" if resumed else "connected")
        self.router.heard()

    def message(self, message: pb.WorkerMessage) -> None:
        kind = message.WhichOneof("message")
        if kind == "load":
            self.load = message.load
        elif kind == "outputs":
            for key, output in convert.outputs_of(message.outputs, self.router.epoch):
                self.router.outputs.setdefault(key, {})[output.position] = output
        else:
            self.router.notices.append((self.id, str(kind), getattr(message, str(kind))))
            if kind == "draining":
                self.session.send(
                    pb.RouterMessage(draining_acknowledged=pb.DrainingAcknowledged(round=message.draining.round))
                )
        self.router.heard()

    def broken(self, reason: str) -> None:
        self.lives.append("broken")
        self.router.heard()

    def lost(self, reason: str) -> None:
        self.lives.append("lost")
        self.router.heard()

    def refused(self, reason: str) -> None:
        self.lives.append("refused")
        self.router.heard()
