"""Prefix hashes outside an engine: the same native code, for a router that wants to know what lies in whose prefix cache.

The native library is loaded when something of this is first used, by a policy that looks at caches when it is made: other
routers go without.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

BLOCK_HASH_BYTES = 16
CACHE_EVENT_BYTES = 17  # a kind, and a block hash


def block_hashes(tokens: Sequence[int], block_tokens: int, model_digest: str, cache_salt: str) -> bytes:
    """Of the full blocks of a prompt, one after the other: what engines of this model know them by."""
    engine = _native()
    joined: bytes = engine.block_hashes(engine.block_hash_salt(model_digest, cache_salt), tokens, block_tokens)
    return joined


def native_index() -> Any:
    """A PrefixIndex: csrc/kv/prefix_index.h."""
    return _native().PrefixIndex()


@cache
def _native() -> Any:
    from rtp_llm._native import _engine

    return _engine
