import math
from types import SimpleNamespace

import pytest

from rtp_llm.errors import EngineError, PromptTooLongError, ProtocolError
from rtp_llm.request import FinishReason, Request, TokenOutput
from rtp_llm.sampling_params import SamplingParams
from rtp_llm.wire import convert
from rtp_llm.wire.key import RequestKey, WorkerKey
from rtp_llm.wire.v1 import router_pb2, types_pb2

KEY = RequestKey(2**64 - 1, 5, 1, 2)


def test_keys_and_workers_come_back_as_they_were() -> None:
    assert convert.key_of(convert.key_message(KEY)) == KEY
    worker = WorkerKey("w", 2**64 - 1)
    assert convert.worker_of(convert.worker_message(worker)) == worker


def test_a_request_without_a_seed_is_not_sent() -> None:
    with pytest.raises(ProtocolError, match="seed None"):
        convert.request_message(Request(request_id="x", prompt=[1], sampling=SamplingParams()))


def columns(rows: list[tuple[RequestKey, TokenOutput]]) -> SimpleNamespace:
    return SimpleNamespace(
        router_epoch=[key.router_epoch for key, _ in rows],
        request=[key.request for key, _ in rows],
        choice=[key.choice for key, _ in rows],
        attempt=[key.attempt for key, _ in rows],
        position=[o.position for _, o in rows],
        token=[o.token for _, o in rows],
        logprob=[float("nan") if o.logprob is None else o.logprob for _, o in rows],
        finish=[int(o.finish_reason) for _, o in rows],
        num_cached_tokens=[o.num_cached_tokens for _, o in rows],
        times=[o.times or (0.0, 0.0) for _, o in rows],
        top_logprobs=[o.top_logprobs for _, o in rows],
    )


def test_outputs_are_split_by_router_and_come_back_row_by_row() -> None:
    other = RequestKey(1, 8, 0, 0)
    rows = [
        (KEY, TokenOutput(0, 10)),
        (other, TokenOutput(4, 11, -0.5, [(11, -0.5), (7, -2.0)], FinishReason.LENGTH, 16, (0.25, 0.5))),
        (KEY, TokenOutput(1, 12, -1.0)),
        (KEY._replace(choice=0), TokenOutput(0, 13)),
    ]
    messages = convert.outputs_by_router(columns(rows))
    assert list(convert.outputs_of(messages[1], 1)) == [rows[1]]
    assert list(convert.outputs_of(messages[KEY.router_epoch], KEY.router_epoch)) == [rows[0], rows[2], rows[3]]
    assert not messages[KEY.router_epoch].top  # a column that no row needs is not sent
    assert not messages[KEY.router_epoch].times


@pytest.mark.parametrize(("queued", "prefill"), [(-1.0, 1.0), (0.0, float("nan")), (float("inf"), 1.0)])
def test_what_is_no_time_breaks_the_protocol(queued: float, prefill: float) -> None:
    times = [types_pb2.FirstTimes(queued=queued, prefill=prefill)]
    one = router_pb2.Outputs(request=[1], choice=[0], attempt=[0], position=[0], token=[4], finish=[0], times=times)  # type: ignore[list-item]
    with pytest.raises(ProtocolError, match="of a first token"):
        list(convert.outputs_of(one, 1))


def test_outputs_of_unequal_columns_break_the_protocol() -> None:
    with pytest.raises(ProtocolError, match="column choice has 0 rows, request has 1"):
        list(convert.outputs_of(router_pb2.Outputs(request=[1]), 1))


@pytest.mark.parametrize(
    ("token", "finish", "text"),
    [
        (-1, FinishReason.NONE, "token -1 of row 1 with finish NONE"),
        (-7, FinishReason.STOP, "token -7 of row 1 with finish STOP"),
        (5, FinishReason.FAILED, "token 5 of row 1 with finish FAILED"),
        (5, 99, "finish 99 of row 1"),
    ],
)
def test_a_row_that_is_no_token_breaks_the_protocol_unless_it_failed(token: int, finish: int, text: str) -> None:
    def outputs(token: int, finish: int) -> router_pb2.Outputs:
        columns = {"request": [1, 1], "choice": [0, 0], "attempt": [0, 0], "position": [0, 1]}
        return router_pb2.Outputs(**columns, token=[4, token], finish=[0, finish])  # type: ignore[arg-type]

    with pytest.raises(ProtocolError, match=text):
        list(convert.outputs_of(outputs(token, finish), 1))
    assert [o.finish_reason for _, o in convert.outputs_of(outputs(-1, 4), 1)] == [
        FinishReason.NONE,
        FinishReason.FAILED,
    ]


def test_an_error_keeps_its_type_text_and_field() -> None:
    failed = router_pb2.Failed(type="PromptTooLongError", message="prompt has 9 tokens, at most 8 fit", param="prompt")
    back = convert.error_of(failed)
    assert type(back) is PromptTooLongError
    assert (back.message, back.param) == (failed.message, "prompt")


def test_an_unknown_error_type_becomes_an_engine_error() -> None:
    back = convert.error_of(router_pb2.Failed(type="KeyError", message="x"))
    assert type(back) is EngineError
    assert back.message == "KeyError: x"


def test_a_receiver_that_says_no_times_of_its_kv_has_none() -> None:
    """One of protocol 1. Zero is a time: nothing had to be sent."""
    assert convert.arrival_times_of(router_pb2.Committed()) is None
    assert convert.arrival_times_of(router_pb2.Committed(times=types_pb2.ArrivalTimes())) == (0.0, 0.0)
    assert convert.arrival_times_of(router_pb2.Committed(times=types_pb2.ArrivalTimes(wire=0.5, verify=0.25))) == (
        0.5,
        0.25,
    )


@pytest.mark.parametrize("times", [(-1.0, 0.0), (0.0, math.nan), (math.inf, 0.0)])
def test_what_is_no_time_of_kv_breaks_the_protocol(times: tuple[float, float]) -> None:
    message = router_pb2.Committed(times=types_pb2.ArrivalTimes(wire=times[0], verify=times[1]))
    with pytest.raises(ProtocolError, match="committed: times"):
        convert.arrival_times_of(message)
