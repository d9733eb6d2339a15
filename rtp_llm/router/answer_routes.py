"""Endpoints that answer: what their bodies are and how they write."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from rtp_llm.router.anthropic_body import MessagesBody
from rtp_llm.router.anthropic_writer import MESSAGES
from rtp_llm.router.raw_body import BatchInferBody, RawBody
from rtp_llm.router.raw_writer import BATCH_INFER, RAW
from rtp_llm.router.responses import BATCHES, CHATS, COMPLETIONS
from rtp_llm.router.responses_body import ResponsesBody
from rtp_llm.router.responses_writer import RESPONSES
from rtp_llm.router.schemas import BatchChatBody, Body, ChatBody, CompletionBody
from rtp_llm.router.writer import Form


class AnswerRoute(NamedTuple):
    kind: type[Body]
    form: Form


ANSWER_ROUTES: Final[Mapping[str, AnswerRoute]] = MappingProxyType(
    {
        "/v1/completions": AnswerRoute(CompletionBody, COMPLETIONS),
        "/v1/chat/completions": AnswerRoute(ChatBody, CHATS),
        "/v1/chat/completions/batch": AnswerRoute(BatchChatBody, BATCHES),
        "/v1/messages": AnswerRoute(MessagesBody, MESSAGES),
        "/v1/responses": AnswerRoute(ResponsesBody, RESPONSES),
        "/": AnswerRoute(RawBody, RAW),
        "/batch_infer": AnswerRoute(BatchInferBody, BATCH_INFER),
    }
)
