"""What a router keeps of its responses: within its limits, by tenant, with what each goes on with."""

from __future__ import annotations

import pytest

from rtp_llm.router.response_store import (
    ITEM_BYTES,
    RESPONSE_BYTES,
    AskedResponse,
    HistoryTooLargeError,
    KeptResponse,
    Memory,
    PreviousNotFoundError,
    References,
    ResponseNotFoundError,
    ResponseStore,
)

SIZE = RESPONSE_BYTES + 2 + 2 * (ITEM_BYTES + 3) + len("in_a") + len("out_a")  # of one that `told` keeps


def store(max_responses: int = 100, max_bytes: int = 100 * SIZE) -> ResponseStore:
    return ResponseStore(max_responses, max_bytes)


def told(kept: ResponseStore, id: str, previous: str = "", tenant: str = "", text: bytes = b'"o"') -> None:
    """A response whose input and output are one item each."""
    memory = Memory(kept, tenant, 1 << 20)
    memory.recall(References(previous))
    asked = AskedResponse(shown=b"{}", input=[(f"in_{id}", b'"i"')], store=True)
    memory.keep(id, b"{}", asked, [(f"out_{id}", text)])


def ids(kept: ResponseStore, tenant: str = "") -> list[str]:
    return [id for id in "abcdefgh" if (tenant, id) in kept._kept]


def test_the_least_recently_used_go_first() -> None:
    kept = store(max_responses=3)
    for id in "abc":
        told(kept, id)
    kept.find("", "a")
    told(kept, "d", previous="c")
    assert ids(kept) == ["a", "c", "d"]
    told(kept, "e")
    assert ids(kept) == ["c", "d", "e"] and kept.item("", "out_a") is None


def test_bytes_are_limited_and_one_that_is_larger_than_all_drives_none_out() -> None:
    kept = store(max_bytes=2 * SIZE)
    told(kept, "a")
    assert kept.num_bytes == SIZE
    told(kept, "b")
    told(kept, "c", text=b"x" * (2 * SIZE))
    assert ids(kept) == ["a", "b"]
    told(kept, "d")
    assert ids(kept) == ["b", "d"] and kept.num_bytes == 2 * SIZE
    told(kept, "e", text=b"xxxx")
    assert ids(kept) == ["e"] and kept.num_bytes == SIZE + 1


def test_what_a_response_goes_on_with_stays_and_counts_as_long_as_it_does() -> None:
    kept = store(max_responses=2)
    told(kept, "a")
    told(kept, "b", previous="a")
    told(kept, "c", previous="b")
    assert ids(kept) == ["b", "c"] and kept.num_bytes == 3 * SIZE
    assert [id for id, _ in kept.find("", "c").answered] == ["in_a", "out_a", "in_b", "out_b", "in_c"]
    with pytest.raises(ResponseNotFoundError):
        kept.find("", "a")
    kept.delete("", "b")
    assert kept.num_bytes == 3 * SIZE and kept.item("", "out_b") is None
    kept.delete("", "c")
    assert kept.num_bytes == 0 and len(kept) == 0


def test_a_history_that_has_two_continuations_counts_once() -> None:
    kept = store()
    told(kept, "a")
    told(kept, "b", previous="a")
    told(kept, "c", previous="a")
    kept.delete("", "a")
    assert kept.num_bytes == 3 * SIZE
    kept.delete("", "b")
    assert kept.num_bytes == 2 * SIZE
    kept.delete("", "c")
    assert kept.num_bytes == 0


def test_what_was_dropped_while_it_was_gone_on_with_is_kept_again() -> None:
    kept = store()
    told(kept, "a")
    told(kept, "b", previous="a")
    memory = Memory(kept, "", 1 << 20)
    memory.recall(References("b"))
    kept.delete("", "a")
    kept.delete("", "b")
    assert kept.num_bytes == 0
    memory.keep("c", b"{}", AskedResponse(shown=b"{}", input=[("in_c", b'"i"')], store=True), [("out_c", b'"o"')])
    assert kept.num_bytes == 3 * SIZE and len(kept.find("", "c").answered) == 5


def test_a_long_chain_is_let_go_of() -> None:
    kept = store(max_responses=1, max_bytes=1 << 40)
    previous = None
    for number in range(20_000):
        previous = KeptResponse(f"r{number}", b"{}", [], [], previous)
        kept.keep("", previous)
    del previous
    assert len(kept) == 1 and kept.num_bytes == 20_000 * (RESPONSE_BYTES + 2)
    assert kept.find("", "r19999").answered == []
    kept.delete("", "r19999")
    assert kept.num_bytes == 0


def test_what_is_named_is_recalled_by_field() -> None:
    kept = store()
    told(kept, "a")
    told(kept, "b", previous="a")
    memory = Memory(kept, "", 1 << 20)
    assert memory.recall(References()) == b""
    assert memory.recall(References("b", ("out_a", "out_a"))) == (
        b'{"previous_response_id":["i","o","i","o"],"input":["o","o"]}'
    )


def test_a_tenant_recalls_its_own_alone() -> None:
    kept = store()
    told(kept, "a", tenant="alice")
    for tenant in ("", "bob"):
        memory = Memory(kept, tenant, 1 << 20)
        with pytest.raises(PreviousNotFoundError):
            memory.recall(References("a"))
        with pytest.raises(ResponseNotFoundError):
            memory.recall(References("", ("out_a",)))
        with pytest.raises(ResponseNotFoundError):
            kept.delete(tenant, "a")
    assert Memory(kept, "alice", 1 << 20).recall(References("a", ("out_a",)))


@pytest.mark.parametrize(
    ("names", "size", "field"),
    [
        (References("b"), 12, "previous_response_id"),
        (References("", ("out_a",) * 3), 9, "input"),
        (References("b", ("out_a",)), 15, "input"),
    ],
)
def test_no_more_is_recalled_than_a_body_may_have(names: References, size: int, field: str) -> None:
    kept = store()
    told(kept, "a")
    told(kept, "b", previous="a")
    assert Memory(kept, "", size).recall(names)
    with pytest.raises(HistoryTooLargeError) as refused:
        Memory(kept, "", size - 1).recall(names)
    assert refused.value.param == field


def test_a_response_is_what_it_was() -> None:
    response = KeptResponse("a", b'{"id":"a"}', [], [("o", b'{"x":1}'), ("p", b"{}")], None)
    assert response.body == b'{"id":"a","output":[{"x":1},{}]}'
