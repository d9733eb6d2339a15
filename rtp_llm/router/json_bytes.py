"""JSON as it goes out, put together from pieces that are JSON already: what is large is encoded once."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any


def json_of(body: Any) -> bytes:
    """
    Raises:
        ValueError: JSON can't hold it: half a character, or no number.
    """
    return json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def with_fields(head: bytes, **fields: bytes) -> bytes:
    """An object with `fields` behind those of the object `head`, which has some."""
    return head[:-1] + b"".join(b',"%b":%b' % (name.encode(), text) for name, text in fields.items()) + b"}"


def listed(texts: Iterable[bytes]) -> bytes:
    return b"[" + b",".join(texts) + b"]"
