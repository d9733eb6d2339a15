"""Endpoints that tell token ids or texts: no worker computes for them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from rtp_llm.router import anthropic_writer, responses
from rtp_llm.router.anthropic_body import CountTokensBody
from rtp_llm.router.responses_body import InputTokensBody
from rtp_llm.router.token_bodies import DetokenizeBody, EncodeBody, RenderBody, TokenBody, TokenizeBody
from rtp_llm.router.writer import ErrorBody


class TokenRoute(NamedTuple):
    endpoint: str  # its name in metrics
    kind: type[TokenBody]
    error_body: ErrorBody = responses.error_body


TOKEN_ROUTES: Final[Mapping[str, TokenRoute]] = MappingProxyType(
    {
        "/tokenize": TokenRoute("tokenize", TokenizeBody),
        "/detokenize": TokenRoute("detokenize", DetokenizeBody),
        "/tokenizer/encode": TokenRoute("tokenizer_encode", EncodeBody),
        "/v1/chat/render": TokenRoute("chat_render", RenderBody),
        "/v1/messages/count_tokens": TokenRoute("count_tokens", CountTokensBody, anthropic_writer.error_body),
        "/v1/responses/input_tokens": TokenRoute("input_tokens", InputTokensBody),
        "/chat/render": TokenRoute("chat_render", RenderBody),
    }
)
