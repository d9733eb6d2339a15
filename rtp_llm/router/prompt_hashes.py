"""PromptHashes: what engines know the blocks of one prompt by. Nothing is computed until a policy asks."""

from __future__ import annotations

from collections.abc import Sequence

from rtp_llm.prefix import block_hashes


class PromptHashes:
    def __init__(self, tokens: Sequence[int], model_digest: str, cache_salt: str) -> None:
        self._tokens, self._model_digest, self._cache_salt = tokens, model_digest, cache_salt
        self._known: dict[int, bytes] = {}  # by tokens of a block

    def are_of(self, num_tokens: int, model_digest: str) -> bool:
        return len(self._tokens) == num_tokens and self._model_digest == model_digest

    def __call__(self, block_tokens: int) -> bytes:
        """16 bytes for each full block of so many tokens, one after the other."""
        known = self._known.get(block_tokens)
        if known is None:
            known = block_hashes(self._tokens, block_tokens, self._model_digest, self._cache_salt)
            self._known[block_tokens] = known
        return known
