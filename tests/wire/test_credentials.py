"""TLS of sessions: who is let in, and what is said of files that are none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from rtp_llm.config import WorkerSettings
from rtp_llm.errors import ConfigError, UnavailableError
from rtp_llm.wire.credentials import NO_CREDENTIALS, Credentials
from rtp_llm.wire.session import WORKER_SERVICE, router_metrics
from rtp_llm.wire.v1.router_pb2 import MetricsReply, MetricsRequest
from tests.wire.authority import Authority
from tests.wire.test_session import served, session_to


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("stranger"))


def of(settings: dict[str, str], token: str = "") -> Credentials:
    return Credentials.of(WorkerSettings(**settings, token=token))


async def test_both_ends_show_a_certificate_of_one_authority_and_speak(authority: Authority) -> None:
    worker, router = of(authority.settings("worker"), "s3cret"), of(authority.settings("router"), "s3cret")
    async with (
        served(credentials=worker) as (_, proxy),
        session_to(proxy.address, credentials=router) as (session, events),
    ):
        await events.next("connected")
        assert "rtp_llm_x" in await session.metrics()


Ends = Callable[[Authority, Authority], tuple[Credentials, Credentials]]

REFUSED: dict[str, Ends] = {
    "the caller has none": lambda ours, _: (of(ours.settings()), NO_CREDENTIALS),
    "the server has none": lambda ours, _: (NO_CREDENTIALS, of(ours.settings())),
    "the caller's is a stranger's": lambda ours, other: (
        of(ours.settings()), of({**other.settings(), "tls_ca_file": ours.ca})),
    "the server's is a stranger's": lambda ours, other: (
        of({**other.settings(), "tls_ca_file": ours.ca}), of(ours.settings())),
    "the server's is for another name": lambda ours, _: (
        of(ours.settings("worker", dns="elsewhere")), of(ours.settings("router"))),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
async def test_no_session_stands_where(case: str, authority: Authority, stranger: Authority) -> None:
    at_worker, at_router = REFUSED[case](authority, stranger)
    async with (
        served(credentials=at_worker) as (worker, proxy),
        session_to(proxy.address, credentials=at_router) as (session, events),
    ):
        await events.next("lost", 10)
        assert "UNAVAILABLE" in session.failure
        assert (worker.events, events.kinds) == ([], ["lost"])


async def test_a_caller_who_checks_the_server_alone_is_not_let_in(authority: Authority) -> None:
    async with served(credentials=of(authority.settings())) as (worker, _):
        ours = of(authority.settings()).tls
        assert ours is not None
        shown = grpc.ssl_channel_credentials(ours.ca)
        name = [("grpc.ssl_target_name_override", "rtp-llm")]
        async with grpc.aio.secure_channel(worker.address, shown, options=name) as channel:
            path = f"/{WORKER_SERVICE}/Metrics"
            ask = channel.unary_unary(path, MetricsRequest.SerializeToString, MetricsReply.FromString)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await ask(MetricsRequest(), timeout=5)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_the_token_is_asked_for_with_tls_too(authority: Authority) -> None:
    with_token, without = of(authority.settings(), "s3cret"), of(authority.settings("other"))
    async with (
        served(credentials=with_token) as (_, proxy),
        session_to(proxy.address, credentials=without) as (_, events),
    ):
        assert "asks for worker.token" in await events.next("refused")


def test_tls_takes_three_files_or_none(authority: Authority) -> None:
    settings = authority.settings()
    assert of({}).tls is None
    for missing in settings:
        with pytest.raises(ConfigError, match=f"worker.{missing} is not set"):
            of({name: path for name, path in settings.items() if name != missing})


def test_a_file_that_is_not_what_it_must_be_is_named(authority: Authority, tmp_path: Path) -> None:
    settings, other = authority.settings(), authority.settings("other")
    (tmp_path / "text").write_text("no PEM")
    for name, path, named in (
        ("tls_ca_file", tmp_path / "text", "worker.tls_ca_file"),
        ("tls_cert_file", tmp_path / "text", "worker.tls_cert_file"),
        ("tls_key_file", tmp_path / "text", "worker.tls_cert_file"),
        ("tls_key_file", other["tls_key_file"], "worker.tls_cert_file"),  # another certificate's
        ("tls_key_file", tmp_path / "none", "worker.tls_key_file"),
    ):
        with pytest.raises(ConfigError) as wrong:
            of({**settings, name: str(path)})
        assert str(wrong.value).startswith(f"{named} ") and str(path) in str(wrong.value)


def test_neither_token_nor_key_is_in_what_is_printed(authority: Authority) -> None:
    found = of(authority.settings(), "s3cret")
    assert found.tls is not None and "PRIVATE" in found.tls.key.decode()
    assert "s3cret" not in repr(found) and "PRIVATE" not in repr(found)


async def test_routers_ask_each_other_for_metrics_over_tls(authority: Authority) -> None:
    async with served(credentials=of(authority.settings())) as (worker, _):
        with pytest.raises(UnavailableError, match="UNAVAILABLE"):
            await router_metrics("r", worker.address, NO_CREDENTIALS)
        with pytest.raises(UnavailableError, match="UNIMPLEMENTED"):  # it got through: a worker isn't a router
            await router_metrics("r", worker.address, of(authority.settings("router")))
