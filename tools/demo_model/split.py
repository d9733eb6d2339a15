"""Which material is kept for testing: a hash decides, so no seed can move an item across the border."""

from __future__ import annotations

from hashlib import sha256

HELD_OUT_SHARE = 10  # one key in ten


def is_held_out(*key: object) -> bool:
    """True when `key` belongs to the test side. The training generator rejects every such key."""
    digest = sha256("\x1f".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:8], "little") % HELD_OUT_SHARE == 0
