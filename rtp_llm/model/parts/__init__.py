"""Parts of an answer: reasoning, content and tool calls, read out of its text as it grows (docs/answer-parts.md)."""

from rtp_llm.model.parts.answer_parts import AnswerParts, PartsAsked
from rtp_llm.model.parts.registry import Parsers, parsers_of

__all__ = ["AnswerParts", "Parsers", "PartsAsked", "parsers_of"]
