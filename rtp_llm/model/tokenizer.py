"""Tokenizer of a model directory: text to ids, ids to text."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from rtp_llm.errors import InvalidRequestError, ModelLoadError
from rtp_llm.model.detokenizer import ByteLevelDetokenizer, Detokenizer, WindowDetokenizer, bytes_of_token
from rtp_llm.model.files import read_json
from rtp_llm.model.special_tokens import special_tokens

CHARS_PER_TOKEN = 6  # a text that has no more than these a token of the context is encoded without being counted before
PIECE_CHARS = 32 << 10
_BYTE_NAME = re.compile(r"<0x([0-9A-F]{2})>")


class Tokenizer:
    """Thread-safe; one instance serves a process."""

    def __init__(self, backend: tokenizers.Tokenizer, decoder: Any, special_tokens: Mapping[str, str]) -> None:
        """`decoder`: tokenizer.json's."""
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._byte_level = _is_byte_level(decoder)
        self._space = next(_spaces(decoder), None)  # the character that stands for one in tokens' names
        self._special_ids = {id for id, token in backend.get_added_tokens_decoder().items() if token.special}
        self._token_bytes: dict[int, bytes] = {}
        self.special_tokens = special_tokens

    @classmethod
    def load(cls, directory: str | Path) -> Tokenizer:
        """From `directory`/tokenizer.json; tokenizers in older formats are converted through the extra `hf`.

        Raises:
            ModelLoadError: there is no tokenizer, or its file is unreadable.
        """
        path = Path(directory) / "tokenizer.json"
        special = special_tokens(directory)
        if not path.exists():
            backend = _converted(Path(directory))
            return cls(backend, _decoder_of(backend), special)
        decoder = read_json(path).get("decoder")
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises Exception itself
            raise ModelLoadError(f"{path}: {error}") from error
        return cls(backend, decoder, special)

    @cached_property
    def vocab_size(self) -> int:
        """Ids are below this, added tokens included."""
        return max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def special_ids_of(self, texts: Iterable[str]) -> tuple[int, ...]:
        """The special tokens among `texts`."""
        return tuple(id for text in texts if (id := self._backend.token_to_id(text)) in self._special_ids)

    @cached_property
    def max_token_bytes(self) -> int:
        """No token stands for more bytes of text."""
        return max((len(name.encode()) for name in self._backend.get_vocab(with_added_tokens=True)), default=0)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`. A rendered chat template has its special tokens already: add_special_tokens=False.

        Raises:
            InvalidRequestError: `text` is not valid Unicode (a lone surrogate).
        """
        _check_unicode(text)
        return self._ids(text, add_special_tokens)

    def encode_with_offsets(
        self, text: str, *, add_special_tokens: bool = True
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """`encode`, and where in `text` each token stands: [begin, end) in characters.

        Raises:
            InvalidRequestError: as `encode`.
        """
        _check_unicode(text)
        [encoding] = self._backend.encode_batch([text], add_special_tokens=add_special_tokens)
        return encoding.ids, encoding.offsets

    def has_more_tokens(self, text: str, limit: int) -> bool:
        """Whether `text` has more than `limit` tokens for sure, at the cost of little more than so many. False: it may have.

        A token that a cut between two pieces breaks becomes at most as many as it has bytes.

        Raises:
            InvalidRequestError: as `encode`.
        """
        _check_unicode(text)
        if len(text) <= limit * CHARS_PER_TOKEN:
            return False
        count = 0
        for at in range(0, len(text), PIECE_CHARS):
            count += len(self._ids(text[at : at + PIECE_CHARS], False)) - self.max_token_bytes
            if count > limit:
                return True
        return False

    def _ids(self, text: str, add_special_tokens: bool) -> list[int]:
        # A batch of one: unlike encode() it leaves other threads running.
        [encoding] = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = encoding.ids
        return ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of all `ids` at once."""
        return str(self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def detokenizer(
        self, *, skip_special_tokens: bool = True, kept: Collection[int] = (), prompt: Sequence[int] = ()
    ) -> Detokenizer:
        """For one answer, as its tokens come. `kept`: special tokens that are not skipped. `prompt`: ids before it; they decide
        whether it begins with a space."""
        skipped = self._special_ids.difference(kept) if skip_special_tokens else frozenset()
        if self._byte_level:
            return ByteLevelDetokenizer(self, skipped)
        return WindowDetokenizer(self, skipped, prompt)

    def token_text(self, token: int) -> str:
        """How a single token reads, for lists of logprobs. One that is no whole character reads as its bytes, as OpenAI
        writes them: bytes:\\xe2\\x98."""
        raw = self.token_bytes(token)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for; none for an id that the vocabulary doesn't have."""
        known = self._token_bytes.get(token)
        if known is None:
            name = self._backend.id_to_token(token)
            known = (
                b"" if name is None else bytes_of_token(name) if self._byte_level else self._plain_bytes(name, token)
            )
            self._token_bytes[token] = known
        return known

    def _plain_bytes(self, name: str, token: int) -> bytes:
        """Of a vocabulary that isn't byte-level. SentencePiece's names say what a token is wherever it stands: decoded alone it
        would lose the space before a word."""
        if self._space is not None and token not in self._special_ids:
            byte = _BYTE_NAME.fullmatch(name)
            return bytes([int(byte[1], 16)]) if byte else name.replace(self._space, " ").encode()
        return self.decode([token], skip_special_tokens=False).encode()


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(f"text is not valid Unicode: {error.reason} at character {error.start}") from error


def _is_byte_level(decoder: Any) -> bool:
    """Whether tokens are bytes in GPT-2's alphabet and nothing else happens to them."""
    if not isinstance(decoder, dict):
        return False
    if decoder.get("type") == "Sequence":
        steps = decoder.get("decoders") or []
        return len(steps) == 1 and _is_byte_level(steps[0])
    return decoder.get("type") == "ByteLevel"


def _spaces(decoder: Any) -> Iterator[str]:
    """What SentencePiece's kind of decoders turn into spaces."""
    if not isinstance(decoder, dict):
        return
    for step in decoder.get("decoders") or [decoder]:
        if step.get("type") == "Metaspace" and step.get("replacement"):
            yield step["replacement"]
        elif step.get("type") == "Replace" and step.get("content") == " " and "String" in (step.get("pattern") or {}):
            yield step["pattern"]["String"]


def _decoder_of(backend: tokenizers.Tokenizer) -> Any:
    return json.loads(backend.to_str()).get("decoder")


def _converted(directory: Path) -> tokenizers.Tokenizer:
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ModelLoadError(
            f"{directory}: no tokenizer.json; other formats need transformers: pip install 'rtp-llm[hf]'"
        ) from error
    try:
        backend: tokenizers.Tokenizer = AutoTokenizer.from_pretrained(
            str(directory), local_files_only=True
        ).backend_tokenizer
    except Exception as error:  # whatever its many formats raise
        raise ModelLoadError(f"{directory}: no tokenizer.json, and transformers can't make one: {error}") from error
    return backend
