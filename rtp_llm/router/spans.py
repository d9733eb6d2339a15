"""Spans of a request at its router: one of the whole, and one a phase of each answer, from what its account knows."""

from __future__ import annotations

from rtp_llm.router.account import MAX_ANSWERS, AnswerAccount, RequestAccount
from rtp_llm.tracing import Attributes, Traced


def operation_of(endpoint: str) -> str:
    """By OpenTelemetry's names."""
    return "text_completion" if endpoint in ("completions", "raw", "batch_infer") else "chat"


def end(trace: Traced, account: RequestAccount, endpoint: str, model: str, status: int, error: str) -> None:
    """The request is over."""
    if not trace.is_recorded:
        return
    for answer in account.answers[:MAX_ANSWERS]:
        _tell(trace, answer)
    trace.end(
        {"rtp_llm.request_id": account.id, **_usage(account, endpoint, model), "http.response.status_code": status},
        (error or f"status {status}") if status >= 500 else "",
    )


def _usage(account: RequestAccount, endpoint: str, model: str) -> Attributes:
    """By the semantic conventions of generative AI; a prompt of several answers counts once."""
    answers = account.answers
    first = min((each.first_token for each in answers if each.first_token is not None), default=None)
    found: Attributes = {
        "gen_ai.operation.name": operation_of(endpoint),
        "gen_ai.provider.name": "rtp_llm",
        "gen_ai.request.model": model,
        "gen_ai.response.model": model,
        "gen_ai.response.finish_reasons": [each.end for each in answers],
        "gen_ai.usage.input_tokens": sum(each.prompt_tokens for each in answers if each.number[1] == 0),
        "gen_ai.usage.output_tokens": sum(each.tokens for each in answers),
        "gen_ai.usage.cache_read.input_tokens": sum(each.cached_tokens for each in answers if each.number[1] == 0),
    }
    if first is not None:
        found["gen_ai.response.time_to_first_chunk"] = first - account.arrived
    if account.tenant:
        found["rtp_llm.tenant"] = account.tenant
    return found


def _tell(trace: Traced, answer: AnswerAccount) -> None:
    """Its phases, one after the other; the worker that computes the prompt tells what of `first_token` was where."""
    prompt, choice = answer.number
    of: Attributes = {"rtp_llm.key": answer.key, "rtp_llm.prompt": prompt, "rtp_llm.choice": choice}
    if answer.asked is None:
        return
    trace.child("prepare", answer.arrived, answer.asked, of)
    if answer.placed is None:
        return
    trace.child("queue", answer.asked, answer.placed, of)
    if answer.first_token is None or answer.last_token is None:
        return
    workers = [">".join(each) for each in answer.workers]
    to_first = {**of, **_seconds(answer.to_first_token()), "rtp_llm.workers": workers}
    trace.child("first_token", answer.placed, answer.first_token, to_first)
    end: Attributes = {"gen_ai.usage.output_tokens": answer.tokens, "rtp_llm.end": answer.end}
    trace.child("decode", answer.first_token, answer.last_token, {**of, **_seconds(answer.of_handover()), **end})


def _seconds(phases: dict[str, float]) -> Attributes:
    return {f"rtp_llm.{phase}_s": seconds for phase, seconds in phases.items()}
