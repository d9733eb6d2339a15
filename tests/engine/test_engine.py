"""rtp_llm/engine.py on the demo model: asyncio streams, cancel, errors, and what is equal bit for bit."""

import asyncio
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from rtp_llm.config import EngineSettings, ModelSettings
from rtp_llm.engine import Engine, Inbox, build
from rtp_llm.errors import (
    ConfigError,
    EngineError,
    InvalidRequestError,
    ModelLoadError,
    PromptTooLongError,
    UnavailableError,
)
from rtp_llm.request import FinishReason, Request, TokenOutput
from rtp_llm.sampling_params import SamplingParams
from tests.model.files import write_config

Bits = list[tuple[int, bytes]]


def make(dtype: str = "bfloat16", **settings: object) -> Engine:
    return Engine(build(ModelSettings(dtype=dtype, max_model_len=512), EngineSettings(**settings)))


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with make() as engine:
        yield engine


def request_of(number: int, max_tokens: int = 12, **sampling: object) -> Request:
    prompt = [(number * 37 + i * i) % 2000 + 10 for i in range(3 + 23 * number)]
    params = SamplingParams(
        temperature=1.0, seed=number, max_tokens=max_tokens, ignore_eos=True, logprobs=1, **sampling
    )
    return Request(request_id=str(number), prompt=prompt, sampling=params)


async def collect(engine: Engine, request: Request) -> list[TokenOutput]:
    return [output async for output in engine.generate(request)]


def bits(outputs: list[TokenOutput]) -> Bits:
    return [(output.token, struct.pack("<f", output.logprob)) for output in outputs]


async def one_by_one(engine: Engine, number: int) -> list[Bits]:
    return [bits(await collect(engine, request_of(i))) for i in range(number)]


async def test_streams_positions_from_zero_and_ends_with_a_reason() -> None:
    with make() as engine:
        outputs = await collect(engine, request_of(2, max_tokens=5))
        assert [output.position for output in outputs] == [0, 1, 2, 3, 4]
        assert [output.finish_reason for output in outputs] == [FinishReason.NONE] * 4 + [FinishReason.LENGTH]
        assert all(output.logprob is not None and len(output.top_logprobs) == 1 for output in outputs)
        engine.native.check_idle()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
async def test_eight_streams_at_once_have_the_bits_of_one_at_a_time(dtype: str) -> None:
    with make(dtype, enable_prefix_caching=False, max_num_seqs=1) as engine:
        expected = await one_by_one(engine, 8)
    with make(dtype, num_threads=2, max_num_batched_tokens=48, block_tokens=8) as engine:
        together = await asyncio.gather(*(collect(engine, request_of(i)) for i in range(8)))
        assert [bits(outputs) for outputs in together] == expected
        engine.native.check_idle()


async def test_an_answer_goes_on_from_tokens_so_far() -> None:
    with make() as engine:
        whole = await collect(engine, request_of(3))
        request = request_of(3)
        for done in (1, 7, 11):
            resumed = Request(
                request_id="resumed",
                prompt=request.prompt,
                sampling=request.sampling,
                output=[output.token for output in whole[:done]],
            )
            rest = await collect(engine, resumed)
            assert [output.position for output in rest] == list(range(done, 12))
            assert bits(rest) == bits(whole[done:])


async def test_leaving_a_stream_cancels_its_sequence() -> None:
    with make() as engine:
        stream = engine.generate(request_of(1, max_tokens=400))
        assert (await anext(stream)).position == 0
        await stream.aclose()
        await collect(engine, request_of(2, max_tokens=1))  # behind the cancel
        engine.native.check_idle()
        assert engine.native.load().decode_tokens_computed < 400


async def test_a_bad_request_is_refused_and_disturbs_nobody() -> None:
    with make() as engine:
        good = asyncio.create_task(collect(engine, request_of(4)))
        sampling = request_of(1).sampling
        with pytest.raises(InvalidRequestError, match=r"prompt\[1\] = 99999 is out of range, the vocabulary has 2560"):
            await collect(engine, Request(request_id="bad", prompt=[1, 99999], sampling=sampling))
        with pytest.raises(PromptTooLongError, match="prompt of 600 tokens is too long, max_model_len is 512"):
            await collect(engine, Request(request_id="bad", prompt=[1] * 600, sampling=sampling))
        assert len(await good) == 12
        engine.native.check_idle()


async def test_a_cached_block_that_is_replaced_changes_what_depends_on_it(cached_block: ModuleType) -> None:
    with make("float32") as engine:
        request = request_of(4)  # 95 tokens, 5 full blocks
        whole = await collect(engine, request)
        hashes = engine.native.block_hashes(request.prompt)
        native = engine.native.native
        kept = cached_block.read(native, hashes[2])
        assert len(hashes) == 5 and kept is not None and any(kept)
        assert cached_block.write(native, hashes[2], bytes(len(kept)))
        assert cached_block.read(native, hashes[2]) == bytes(len(kept))
        again = await collect(engine, request)
        assert again[0].num_cached_tokens == 80
        assert bits(again) != bits(whole)
        cached_block.write(native, hashes[2], kept)
        assert bits(await collect(engine, request)) == bits(whole)

        unknown = bytes(16)
        assert cached_block.read(native, unknown) is None
        assert not cached_block.write(native, unknown, kept)
        with pytest.raises(InvalidRequestError, match=f"3 bytes given, a block has {len(kept)}"):
            cached_block.write(native, hashes[2], b"abc")
        engine.native.check_idle()


class Broken:
    """A native engine that takes a request and then fails."""

    max_model_len = 64
    failure = ""

    def __init__(self) -> None:
        self.native = self
        self.eventfd = -1

    def notify_through(self, eventfd: int) -> None:
        self.eventfd = eventfd

    def start(self) -> None: ...
    def stop(self) -> None: ...

    def add(self, spec: object) -> None:
        self.failure = "block 812 out of range, pool has 640"
        os.eventfd_write(self.eventfd, 1)

    def cancel(self, key: object) -> None: ...


async def test_an_engine_that_fails_raises_in_every_stream_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    with Engine(Broken()) as engine:  # type: ignore[arg-type]
        streams = [asyncio.create_task(collect(engine, request_of(0))) for _ in range(2)]
        for ended in await asyncio.gather(*streams, return_exceptions=True):
            assert isinstance(ended, EngineError)
            assert "block 812 out of range" in str(ended)
        assert "block 812 out of range" in caplog.text


def test_an_engine_that_fails_raises_in_every_inbox() -> None:
    with Engine(Broken()) as engine:  # type: ignore[arg-type]
        inboxes = [Inbox(engine) for _ in range(2)]
        for inbox in inboxes:
            inbox.add(request_of(0))
        for inbox in inboxes:
            with pytest.raises(EngineError, match="block 812 out of range"):
                inbox.take()


def test_each_inbox_gets_what_it_asked_for_whichever_thread_receives() -> None:
    with make() as engine:
        one, other = Inbox(engine), Inbox(engine)
        mine, theirs = one.add(request_of(1, max_tokens=4)), other.add(request_of(2, max_tokens=30))
        left = other.add(request_of(3, max_tokens=400))
        other.cancel(left)
        received: list[tuple[object, TokenOutput]] = []
        while len(received) < 30:  # in the thread of `other` alone
            received += other.take()
        assert [(key, output.position) for key, output in received] == [(theirs, i) for i in range(30)]
        own: list[tuple[object, TokenOutput]] = []
        while len(own) < 4:
            own += one.take()
        assert [(key, output.position) for key, output in own] == [(mine, i) for i in range(4)]


def test_settings_that_do_not_fit_the_model_are_named() -> None:
    with pytest.raises(ConfigError, match="max_model_len: 5000 is more than the model's context of 2048"):
        build(ModelSettings(max_model_len=5000), EngineSettings())
    with pytest.raises(ConfigError, match="kv_pool_bytes 10 holds 0 KV blocks"):
        build(ModelSettings(), EngineSettings(kv_cache_bytes=10))


def test_a_configuration_that_cannot_be_computed_is_the_models_fault(tmp_path: Path) -> None:
    write_config(tmp_path, num_attention_heads=3, num_key_value_heads=2)
    with pytest.raises(ModelLoadError, match=r"config\.json: num_attention_heads must be a multiple of .* 2, got 3"):
        build(ModelSettings(path=str(tmp_path), load_format="dummy"), EngineSettings())


def test_every_allocation_is_listed_with_its_tag(engine: Engine) -> None:
    sizes: dict[str, int] = {}
    for _, size, tag in engine.native.allocations():
        sizes[tag] = sizes.get(tag, 0) + size
    assert sizes["kv_pool"] >= engine.native.native.kv_pool_bytes
    assert {"slots.seq_len", "step_inputs", "batch.sampled", "sample_workspace"} <= sizes.keys()


def test_numerics_id_says_backend_types_and_mode(engine: Engine) -> None:
    parts = engine.native.numerics_id.split("/")
    assert parts[0] == "cpu"
    assert parts[2:6] == ["bfloat16", "bfloat16", "tp1", "exact"]
    assert len(parts[6]) == 16


def test_an_automatic_pool_is_a_share_of_what_the_weights_leave_of_this_workers_memory(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    block = 16 * 3072
    model = ModelSettings(max_model_len=512)
    for workers in (1, 3):
        monkeypatch.setattr("rtp_llm.engine.free_memory", lambda: 96 << 20)
        engine = build(model, EngineSettings(), workers_here=workers)
        sizes = {tag: size for _, size, tag in engine.allocations()}
        weights = sum(size for tag, size in sizes.items() if tag.startswith(("model.", "lm_head", "weights.")))
        room = ((96 << 20) // workers - weights) // 2
        assert room - block < sizes["kv_pool"] - block <= room  # and the scratch block
        assert engine.max_model_len == 512
    monkeypatch.setattr("rtp_llm.engine.free_memory", lambda: 1 << 40)
    engine = build(model, EngineSettings(max_num_seqs=3))
    assert {tag: size for _, size, tag in engine.allocations()}["kv_pool"] == (3 * 512 // 16 + 1) * block
    monkeypatch.setattr("rtp_llm.engine.free_memory", lambda: 9 << 20)
    with pytest.raises(UnavailableError, match=r"kv_cache_share: 0.5 of the 4 MiB .* less 7 MiB of weights"):
        build(model, EngineSettings(), workers_here=2)


def test_a_pool_that_holds_less_than_the_context_is_said_and_limits_requests(caplog: pytest.LogCaptureFixture) -> None:
    with Engine(build(ModelSettings(max_model_len=512), EngineSettings(kv_cache_bytes=0, num_kv_blocks=8))) as engine:
        assert engine.native.max_model_len == 128
        [said] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert "holds 128 tokens, fewer than the context of 512" in said
        request = Request(
            request_id="r", prompt=[5] * 28, sampling=SamplingParams(seed=1, ignore_eos=True, max_tokens=None)
        )
        inbox = Inbox(engine)
        inbox.add(request)
        tokens = 0
        while tokens < 100:
            tokens += len(inbox.take())


def test_a_gpu_computes_bfloat16_only_and_says_so() -> None:
    with pytest.raises(ConfigError, match=r"model.dtype: float32 is not computed on engine.device cuda"):
        build(ModelSettings(dtype="float32"), EngineSettings(device="cuda"))


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is a GPU here")
def test_without_a_gpu_the_device_cuda_says_what_is_missing() -> None:
    with pytest.raises(UnavailableError, match=r"backend .cuda.*(not installed here|GPU|driver|device)"):
        build(ModelSettings(), EngineSettings(device="cuda"))
