"""Bodies that ask for token ids or texts and for no answer. They get JSON, made where they are read: it may be large."""

from __future__ import annotations

from abc import abstractmethod
from types import MappingProxyType
from typing import Any, ClassVar

from rtp_llm.errors import InvalidRequestError
from rtp_llm.router.json_bytes import json_of
from rtp_llm.router.reading import BodyReader, naming
from rtp_llm.router.refused_fields import CHAT, TRUNCATION, Table
from rtp_llm.router.schemas import AnyBody, ChatBody, WholeNumbers


class TokenBody(AnyBody):
    """Of an endpoint of token_routes.py."""

    @abstractmethod
    def told(self, reader: BodyReader) -> bytes:
        """What it gets.

        Raises:
            InvalidRequestError: it can't be had.
        """


class RenderBody(ChatBody, TokenBody):
    """A chat whose prompt is wanted, all of it."""

    refused: ClassVar[Table] = MappingProxyType({**CHAT, **TRUNCATION})

    def told(self, reader: BodyReader) -> bytes:
        text = reader.rendered(self)
        with naming("messages"):
            ids = reader.tokenizer.encode(text, add_special_tokens=bool(self.add_special_tokens))
        return json_of({"prompt": text, "prompt_token_ids": ids, "count": len(ids)})


class TokenizeBody(ChatBody, TokenBody):
    """A text, or a chat's messages as the template renders them."""

    refused: ClassVar[Table] = MappingProxyType(
        {**{name: CHAT[name] for name in CHAT if name != "prompt"}, **TRUNCATION}
    )

    messages: list[Any] | None = None  # type: ignore[assignment]
    prompt: str | None = None
    return_token_strs: bool | None = None
    return_offsets_mapping: bool | None = None

    def told(self, reader: BodyReader) -> bytes:
        """As vLLM's /tokenize."""
        field, text, special = self._asked(reader)
        with naming(field):
            ids = reader.tokenizer.encode(text, add_special_tokens=special)
        names = [reader.tokenizer.token_text(token) for token in ids] if self.return_token_strs else None
        return json_of({"count": len(ids), "max_model_len": reader.context, "tokens": ids, "token_strs": names})

    def _asked(self, reader: BodyReader) -> tuple[str, str, bool]:
        """(the field that holds it, its text, whether special tokens are added)."""
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequestError("one of prompt and messages is wanted", param="prompt")
        if self.prompt is None:
            return "messages", reader.rendered(self), bool(self.add_special_tokens)
        return "prompt", self.prompt, self.add_special_tokens is not False


class EncodeBody(TokenizeBody):
    """The same, answered as RTP-LLM's /tokenizer/encode."""

    def told(self, reader: BodyReader) -> bytes:
        field, text, special = self._asked(reader)
        with naming(field):
            ids, offsets = reader.tokenizer.encode_with_offsets(text, add_special_tokens=special)
        answer: dict[str, Any] = {"token_ids": ids, "tokens": [reader.tokenizer.token_text(token) for token in ids]}
        if self.return_offsets_mapping:
            answer["offset_mapping"] = offsets
        return json_of(answer)


class DetokenizeBody(TokenBody):
    """As vLLM's /detokenize."""

    tokens: WholeNumbers

    def told(self, reader: BodyReader) -> bytes:
        for token in (min(self.tokens, default=0), max(self.tokens, default=0)):
            reader.check_token(token, "tokens")
        return json_of({"prompt": reader.tokenizer.decode(self.tokens, skip_special_tokens=False)})
