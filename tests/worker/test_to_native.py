"""Wire messages as the native machines take them."""

from __future__ import annotations

import pytest

from rtp_llm.errors import ProtocolError
from rtp_llm.request import Request
from rtp_llm.sampling_params import SamplingParams
from rtp_llm.wire import convert
from rtp_llm.wire.key import RequestKey
from rtp_llm.wire.v1 import router_pb2 as pb
from rtp_llm.worker import to_native, to_wire

KEY = RequestKey(2**64 - 1, 5, 3, 2)


def test_a_submit_brings_what_the_engine_needs() -> None:
    sampling = SamplingParams(
        temperature=0.5, top_p=0.25, top_k=-1, seed=-1, max_tokens=7, min_tokens=2, stop_token_ids=[3], logprobs=0
    )
    request = Request(request_id="x", prompt=[1, 2], sampling=sampling, cache_salt="s", priority=-7)
    submit = pb.Submit(key=convert.key_message(KEY), request=convert.request_message(request), output=[9], alone=True)
    spec = to_native.from_router(pb.RouterMessage(submit=submit)).spec
    assert (spec.key, list(spec.prompt), list(spec.output), spec.cache_salt) == (
        to_native.key(submit.key),
        [1, 2],
        [9],
        "s",
    )
    assert spec.priority == to_wire.request(spec).priority == -7  # a Reserve takes it along
    native = spec.sampling
    assert (native.seed, native.top_k, native.logprobs) == (2**64 - 1, 0, 0)
    assert (native.temperature, native.top_p, list(native.stop_token_ids)) == (0.5, 0.25, [3])
    assert (native.max_tokens, native.min_tokens, native.ignore_eos) == (7, 2, False)


def test_a_value_that_no_native_field_holds_is_refused_by_the_name_of_its_message() -> None:
    entry = pb.AttachEntry(key=convert.key_message(KEY), next_position=2**32 - 1)
    with pytest.raises(ProtocolError, match="attach: "):
        to_native.from_router(pb.RouterMessage(attach=pb.Attach(entries=[entry])))
