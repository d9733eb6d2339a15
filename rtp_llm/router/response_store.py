"""Responses that a router keeps in its memory, for who asks for them again and for requests that go on with them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from rtp_llm.errors import InvalidRequestError, shortened
from rtp_llm.router.json_bytes import listed, with_fields

Item: TypeAlias = tuple[str, bytes]  # its id, and it as JSON
RESPONSE_BYTES = 1 << 10  # that keeping one takes beside what it holds, about
ITEM_BYTES = 300


class ResponseNotFoundError(InvalidRequestError):
    """This router keeps no such response, or none of this tenant."""

    http_status = 404


class PreviousNotFoundError(ResponseNotFoundError):
    """One that a request goes on with."""

    code = "previous_response_not_found"


class HistoryTooLargeError(InvalidRequestError):
    """A body exceeds `router.max_body_bytes` with what it goes on with."""

    http_status = 413


class References(NamedTuple):
    """What a body names of what is kept."""

    response: str = ""  # that it goes on with
    items: tuple[str, ...] = ()


NO_REFERENCES = References()
# JSON of what References name, by field: `previous_response_id` is a list of items, `input` too; empty where nothing is named.
Recall: TypeAlias = Callable[[References], bytes]


@dataclass(frozen=True, kw_only=True)
class AskedResponse:
    """What a request leaves for its response."""

    shown: bytes  # fields that the response repeats, a JSON object
    input: Sequence[Item]  # its own; none where it won't be kept
    store: bool


@dataclass(eq=False, slots=True)
class KeptResponse:
    id: str
    head: bytes  # its JSON without `output`
    input: Sequence[Item]  # its own
    output: Sequence[Item]
    previous: KeptResponse | None = field(repr=False)  # which it goes on with
    num_bytes: int = field(init=False)
    users: int = 0  # the store, and those that go on with it

    def __post_init__(self) -> None:
        items = (*self.input, *self.output)
        held = sum(ITEM_BYTES + len(id) + len(text) for id, text in items)  # clients name items as they like
        self.num_bytes = RESPONSE_BYTES + len(self.head) + held

    @property
    def body(self) -> bytes:
        return with_fields(self.head, output=listed(text for _, text in self.output))

    @property
    def answered(self) -> list[Item]:
        """What it was made from, the oldest first."""
        turns = [self.input]
        earlier = self.previous
        while earlier is not None:
            turns += [earlier.output, earlier.input]
            earlier = earlier.previous
        return [item for turn in reversed(turns) for item in turn]


class ResponseStore:
    """Of one router. The least recently used go first. REQUIRES: one event loop."""

    def __init__(self, max_responses: int, max_bytes: int) -> None:
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._kept: OrderedDict[tuple[str, str], KeptResponse] = OrderedDict()  # by tenant and id
        self._items: dict[tuple[str, str], bytes] = {}  # of outputs
        self.num_bytes = 0  # of those that are kept, and of what they go on with

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def keeps(self) -> bool:
        return self._max_responses > 0 and self._max_bytes > 0

    def find(self, tenant: str, id: str) -> KeptResponse:
        """
        Raises:
            ResponseNotFoundError: it isn't kept here.
        """
        found = self._kept.get((tenant, id))
        if found is None:
            raise ResponseNotFoundError(f"response with id {_elsewhere(id)}")
        self._kept.move_to_end((tenant, id))
        return found

    def keep(self, tenant: str, response: KeptResponse) -> None:
        """Unless it is larger than all that may be kept."""
        if response.num_bytes > self._max_bytes:
            return
        self._kept[tenant, response.id] = response
        self._items.update({(tenant, id): text for id, text in response.output})
        self._hold(response)
        while len(self._kept) > self._max_responses or self.num_bytes > self._max_bytes:
            self._drop(*next(iter(self._kept)))

    def delete(self, tenant: str, id: str) -> None:
        """
        Raises:
            ResponseNotFoundError: as find.
        """
        self.find(tenant, id)
        self._drop(tenant, id)

    def item(self, tenant: str, id: str) -> bytes | None:
        """Of the output of a response."""
        return self._items.get((tenant, id))

    def _drop(self, tenant: str, id: str) -> None:
        response = self._kept.pop((tenant, id))
        for item, _ in response.output:
            del self._items[tenant, item]
        self._release(response)

    def _hold(self, response: KeptResponse | None) -> None:
        while response is not None:
            response.users += 1
            if response.users > 1:
                return
            self.num_bytes += response.num_bytes
            response = response.previous

    def _release(self, response: KeptResponse | None) -> None:
        while response is not None:
            response.users -= 1
            if response.users:
                return
            self.num_bytes -= response.num_bytes
            response = response.previous


class Memory:
    """What one request recalls of what is kept, and how its response is kept."""

    def __init__(self, store: ResponseStore, tenant: str, max_bytes: int) -> None:
        """`max_bytes`: what it may recall."""
        self._store = store
        self._tenant = tenant
        self._max_bytes = max_bytes
        self._previous: KeptResponse | None = None

    def recall(self, names: References) -> bytes:
        """A Recall.

        Raises:
            ResponseNotFoundError: something isn't kept here.
            HistoryTooLargeError: it is more than `max_bytes`.
        """
        if names == NO_REFERENCES:
            return b""
        if names.response:
            self._previous = self._found(names.response)
        previous = self._previous
        history = [] if previous is None else [text for _, text in (*previous.answered, *previous.output)]
        left = self._without("previous_response_id", history, self._max_bytes)
        referenced = [self._item(id) for id in names.items]
        self._without("input", referenced, left)
        return b'{"previous_response_id":%b,"input":%b}' % (listed(history), listed(referenced))

    @property
    def keeps(self) -> bool:
        return self._store.keeps

    def keep(self, id: str, head: bytes, asked: AskedResponse, output: Sequence[Item]) -> None:
        self._store.keep(self._tenant, KeptResponse(id, head, asked.input, output, self._previous))

    def _found(self, id: str) -> KeptResponse:
        try:
            return self._store.find(self._tenant, id)
        except ResponseNotFoundError:
            text = f"previous response with id {_elsewhere(id)}"
            raise PreviousNotFoundError(text, param="previous_response_id", value=id) from None

    def _item(self, id: str) -> bytes:
        if (text := self._store.item(self._tenant, id)) is None:
            raise ResponseNotFoundError(f"item with id {_elsewhere(id)}", param="input", value=id)
        return text

    @staticmethod
    def _without(field: str, texts: Sequence[bytes], room: int) -> int:
        """What of `room` they leave."""
        left = room - sum(map(len, texts))
        if left < 0:
            raise HistoryTooLargeError(
                f"{field}: what is kept under it has {room - left} bytes, the body leaves {room}", param=field
            )
        return left


def nothing_kept(names: References) -> bytes:
    """The Recall of who keeps nothing."""
    return Memory(ResponseStore(0, 0), "", 0).recall(names)


def _elsewhere(id: str) -> str:
    return (
        f"{shortened(id)} not found: each router keeps those that it made in its memory, and drops the least recently used "
        "(http.stored_responses, http.stored_responses_bytes)"
    )
