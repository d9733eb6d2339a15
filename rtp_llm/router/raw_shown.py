"""RawShown: how one of RTP-LLM's raw requests wants its answer to look."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RawShown:
    batch: bool = False  # of several prompts, in a list
    sequences: bool = False  # a prompt's answers in a list
    incremental: bool = False
    aux_info: bool = True
    input_ids: bool = False
    output_ids: bool = False
    announces_end: bool = True  # of a stream, by an event of its own
