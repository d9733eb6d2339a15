"""`rtp-llm top`: what it makes of two readings, and of servers that aren't there."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from rtp_llm import cli
from rtp_llm.metrics import RouterMetrics, WorkerMetrics, exposition, merged, new_registry
from rtp_llm.top import Interval, Reading, table


class Fleet:
    """A router and two workers, as /metrics shows them."""

    def __init__(self) -> None:
        self.registries = {name: new_registry() for name in ("router", "prefill", "decode")}
        self.router = RouterMetrics(self.registries["router"])
        self.prefill, self.decode = (WorkerMetrics(self.registries[name]) for name in ("prefill", "decode"))

    def text(self) -> str:
        texts = [({"router": "r0"}, exposition(self.registries["router"]).decode())]
        for pool in ("prefill", "decode"):
            texts.append(({"pool": pool, "worker": f"{pool}-0"}, exposition(self.registries[pool]).decode()))
        return merged({"model": "demo"}, texts).decode()

    def reading(self, at: float) -> Reading:
        return Reading.of(self.text(), at)


def test_rates_levels_and_shares_of_an_interval() -> None:
    fleet = Fleet()
    fleet.decode.decode_tokens_computed.inc(1000)
    fleet.router.requests_running.set(3)
    before = fleet.reading(10.0)
    fleet.decode.decode_tokens_computed.inc(300)
    fleet.prefill.prompt_tokens_computed.inc(60)
    fleet.prefill.prefix_hit_tokens.inc(20)
    fleet.decode.kv_blocks.labels(state="free").set(30)
    fleet.decode.kv_blocks.labels(state="cached").set(20)
    fleet.decode.kv_blocks.labels(state="referenced").set(50)
    fleet.decode.transfer_bytes.labels(direction="received", transport="posix").inc(4_000_000)
    fleet.decode.transfers.labels(outcome="no_room").inc(2)
    fleet.router.requests.labels(endpoint="/v1/completions", status="200").inc(5)
    for seconds in (0.003, 0.02, 0.02, 100.0):
        fleet.router.time_to_first_token.observe(seconds)
    fleet.prefill.kv_blocks.labels(state="free").set(1)
    lines = table(Interval(before, fleet.reading(12.0)))
    assert lines == [
        "answers  3 running, 0 waiting for a worker; 2.5 requests/s, 0 tokens/s, 0.0 retries/s",
        "latency  first token p50 ≤ 25 ms p99 > 60 s, between tokens p50 - p99 -",
        "handover 0.0/s, 2 MB/s; 2 without room, 0 expired, 0 damaged",
        "",
        "ROUTER  RUN  WAIT",
        "r0        3     0",
        "",
        "POOL     WORKER     RUN  WAIT  QUEUED  KV USED  PROMPT/S  HIT  DECODE/S  STEPS/S  PREEMPTED/S",
        "decode   decode-0     0     0       0      50%         0    -       150        0          0.0",
        "prefill  prefill-0    0     0       0       0%        30  25%         0        0          0.0",
    ]


def test_a_worker_that_has_begun_anew_counts_from_zero() -> None:
    old, new = Fleet(), Fleet()
    old.decode.engine_steps.inc(1000)
    new.decode.engine_steps.inc(30)
    interval = Interval(old.reading(0.0), new.reading(10.0))
    assert interval.rate("engine_steps_total") == 3.0


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/route/metrics" else 404)
            self.end_headers()
            self.wfile.write(Fleet().text().encode())

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield found
        found.shutdown()


def test_once_shows_one_interval_and_ends(server: HTTPServer, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://127.0.0.1:{server.server_port}/route"
    assert cli.main(["top", "--once", "--every", "0.01", "--url", url]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{url}  demo  ") and "ROUTER" in said and "\x1b" not in said


@pytest.mark.parametrize(("path", "said"), [("", ": 404: "), ("/route/v2", ": 404: ")])
def test_what_is_no_server_of_ours_is_named(
    server: HTTPServer, capsys: pytest.CaptureFixture[str], path: str, said: str
) -> None:
    assert cli.main(["top", "--url", f"http://127.0.0.1:{server.server_port}{path}"]) == 1
    assert said in capsys.readouterr().err


def test_a_server_that_is_away_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["top", "--url", "http://127.0.0.1:1"]) == 1
    assert "http://127.0.0.1:1: " in capsys.readouterr().err
    assert cli.main(["top", "--url", "ftp://x"]) == 1
    assert "url must be http://" in capsys.readouterr().err
