"""Incremental detokenization: each new token gives the text that it settles, and never half a character.

Constant work a token: a byte-level vocabulary is decoded by its bytes; others by decoding a short window of tokens
twice, with and without the new ones.
"""

from __future__ import annotations

import codecs
from collections.abc import Container, Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rtp_llm.model.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"
_CONTEXT_TOKENS = 6  # of the prompt: enough for a tokenizer to see that text goes on
_MAX_PENDING_TOKENS = 8  # a character has at most 4 bytes, so at most 4 tokens: more will not complete it


class Detokenizer(Protocol):
    """One answer's text as it grows."""

    def push(self, tokens: Iterable[int]) -> str:
        """The text that is settled now and was not before."""
        ...

    def finish(self) -> str:
        """The rest: an incomplete character reads as U+FFFD."""
        ...


class ByteLevelDetokenizer:
    """For vocabularies whose tokens are bytes (GPT-2, Llama 3, Qwen). push and finish together equal `decode`."""

    def __init__(self, tokenizer: Tokenizer, skipped: Container[int]) -> None:
        self._tokenizer = tokenizer
        self._skipped = skipped
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, tokens: Iterable[int]) -> str:
        pieces = []
        for token in tokens:
            if token in self._skipped:
                continue
            pieces.append(self._tokenizer.token_bytes(token))
        return self._decoder.decode(b"".join(pieces))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class WindowDetokenizer:
    """For any other vocabulary. The window holds the tokens of the last settled text and those since.

    Source: the two-offset scheme of Hugging Face's text-generation-inference.
    """

    def __init__(self, tokenizer: Tokenizer, skipped: Container[int], prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._skipped = skipped
        self._window = list(prompt[-_CONTEXT_TOKENS:])
        self._settled = len(self._window)  # tokens of the window whose text is out

    def push(self, tokens: Iterable[int]) -> str:
        return "".join([self._push(token) for token in tokens])

    def finish(self) -> str:
        return self._take(self._text(self._window))

    def _push(self, token: int) -> str:
        if token in self._skipped:
            return ""
        self._window.append(token)
        text = self._text(self._window)
        pending = len(self._window) - self._settled
        if text.endswith(_REPLACEMENT) and pending <= _MAX_PENDING_TOKENS:
            return ""
        return self._take(text)

    def _take(self, text: str) -> str:
        """Settles the window, whose text is `text`; returns what was not out yet."""
        before = self._text(self._window[: self._settled])
        self._window = self._window[self._settled :] if len(text) > len(before) else self._window
        self._settled = len(self._window)
        return text[len(before) :]

    def _text(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(
            [token for token in tokens if token not in self._skipped], skip_special_tokens=False
        )


@cache
def byte_of_character() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others for characters from U+0100 on.

    Source: https://github.com/openai/gpt-2/blob/master/src/encoder.py, bytes_to_unicode.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    table |= {chr(0x100 + i): byte for i, byte in enumerate(others)}
    return table


def bytes_of_token(token: str) -> bytes:
    """As the ByteLevel decoder of `tokenizers` does it: a token with a character outside the alphabet is plain text."""
    table = byte_of_character()
    if all(character in table for character in token):
        return bytes(table[character] for character in token)
    return token.encode()
