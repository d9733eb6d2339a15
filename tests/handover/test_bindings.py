"""The machines through the bindings: what sessions post and drain."""

from __future__ import annotations

from typing import Any

import pytest

from rtp_llm._native import _engine as engine

ROUTER = 77


class NoPool:
    """A worker that grants nothing."""

    def grant(self, spec: Any) -> None:
        return None


class OnePool(NoPool):
    """Grants blocks 3 and 4, once."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def grant(self, spec: Any) -> tuple[list[int], int]:
        self.calls.append(f"grant {len(spec.prompt)}")
        return [3, 4], 1

    def join(self, blocks: list[int], prefix_blocks: int) -> None:
        self.calls.append(f"join {blocks} {prefix_blocks}")

    def quarantine(self, blocks: list[int], prefix_blocks: int) -> None:
        self.calls.append(f"quarantine {blocks} {prefix_blocks}")

    def free_quarantined(self, blocks: list[int], prefix_blocks: int) -> None:
        self.calls.append(f"free {blocks} {prefix_blocks}")


def key(attempt: int = 0) -> Any:
    return engine.RequestKey(ROUTER, 1, 0, attempt)


def spec(attempt: int = 0) -> Any:
    return engine.SequenceSpec(key=key(attempt), prompt=list(range(8)), sampling=engine.SamplingParams(max_tokens=4))


def handover(pool: Any) -> Any:
    config = engine.HandoverConfig(num_layers=2, layers_per_message=2, block_tokens=4, token_layer_bytes=10)
    machines = engine.Handover(engine.WorkerKey("w", 1), config, pool)
    machines.handle(engine.event.RouterConnected(router_epoch=ROUTER), 0.0)
    return machines


def test_a_struct_takes_keywords_shows_its_fields_and_refuses_others() -> None:
    released = engine.message.Released(key=key(), reason="no room")
    assert released.reason == "no room"
    assert "reason='no room'" in repr(released)
    with pytest.raises(TypeError, match="Released has no field reasons"):
        engine.message.Released(reasons="")


def test_a_submit_becomes_a_sequence_and_a_reserve_carries_it_whole() -> None:
    machines = handover(NoPool())
    receiver = engine.WorkerKey("r", 2)
    submit = engine.message.Submit(spec=spec(), receiver=receiver, receiver_address="there:1")
    meet, enqueue = machines.handle(engine.event.FromRouter(router_epoch=ROUTER, body=submit), 1.0)
    assert (meet.receiver, meet.address) == (receiver, "there:1")
    assert enqueue.role == engine.Role.SENDER
    scheduled = engine.event.Scheduled(key=key(), blocks=[0, 1], tokens=8)
    (reserve,) = machines.handle(scheduled, 1.5)
    assert reserve.receiver == receiver
    assert list(reserve.body.spec.prompt) == list(range(8))
    assert machines.next_deadline() == 2.5
    assert machines.sender_state(key()) == engine.SenderState.COMPUTE
    assert not machines.idle()


def test_a_pool_written_in_python_is_asked_and_told() -> None:
    pool = OnePool()
    machines = handover(pool)
    sender = engine.WorkerKey("s", 3)
    reserve = engine.event.FromSender(sender=sender, body=engine.message.Reserve(spec=spec()))
    (granted,) = machines.handle(reserve, 1.0)
    assert (granted.body.prefix_tokens, granted.body.lease) == (4, 5.0)
    header = engine.KvMessageHeader()
    header.num_layers, header.receiver_epoch, header.grant, header.first_token, header.tokens = 2, 1, 1, 4, 4
    destination, actions = machines.accept(sender, header, 80, 2.0)
    assert destination.blocks == [4]
    assert actions == []
    refusal, _ = machines.accept(engine.WorkerKey("s", 4), header, 80, 2.0)
    assert refusal == engine.Refusal.SENDER
    machines.handle(engine.event.SenderLost(sender=sender), 2.5)
    assert pool.calls == ["grant 8", "quarantine [3, 4] 1"]
    machines.handle(engine.event.ReceiveDone(grant=1, ok=False), 2.6)
    assert pool.calls[-1] == "free [3, 4] 1"
    assert machines.idle()


def test_a_broken_contract_is_an_error_that_names_the_grant() -> None:
    with pytest.raises(engine.ContractBroken, match="grant 5"):
        handover(NoPool()).handle(engine.event.ReceiveDone(grant=5), 1.0)
