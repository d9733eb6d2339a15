"""AnswerText: one answer's tokens as the text that may be shown: whole characters, ended by stop strings."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from rtp_llm.model.detokenizer import Detokenizer
from rtp_llm.model.stop_strings import StopStrings
from rtp_llm.model.tokenizer import Tokenizer
from rtp_llm.request import FinishReason, TokenOutput
from rtp_llm.sampling_params import SamplingParams

FINISH_REASONS = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length"}
LEAST_LOGPROB = -9999.0  # JSON has no -inf, which a token has that only a mask lets come; vLLM's value too


class NamedToken(NamedTuple):
    """A token as text and as the bytes that it stands for, both empty without a tokenizer."""

    token: str
    raw: bytes
    logprob: float
    id: int = -1


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token of the answer, its offset in the answer's text in characters, and the highest alternatives."""

    token: str
    raw: bytes
    logprob: float
    offset: int = 0
    top: Sequence[NamedToken] = ()
    id: int = -1


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function that the model wants called, or more of its arguments: then `id` and `name` are empty. `index` counts the
    answer's calls, `arguments` is JSON in a text."""

    index: int
    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Delta:
    """What an answer grew by: text that is safe to show, the tokens behind it, and why it ended (None: it goes on)."""

    text: str = ""
    logprobs: Sequence[TokenLogprob] = field(default=())
    finish_reason: str | None = None
    num_tokens: int = 0
    token_ids: Sequence[int] = ()  # the tokens that came
    num_cached_tokens: int = 0  # of the prompt, with the answer's first token
    stop_reason: int | str | None = None  # the stop id or string; None for EOS and length
    reasoning: str = ""
    num_reasoning_tokens: int = 0
    tool_calls: Sequence[ToolCall] = ()


def named_by_id(delta: Delta) -> Delta:
    """With the tokens of its logprobs named token_id:N, which no two share."""
    logprobs = [
        replace(
            each,
            token=f"token_id:{each.id}",
            top=[top._replace(token=f"token_id:{top.id}") for top in each.top],
        )
        for each in delta.logprobs
    ]
    return replace(delta, logprobs=logprobs)


class AnswerText:
    """REQUIRES: tokens come in order; after a Delta with a finish reason nothing more is taken."""

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        sampling: SamplingParams,
        prompt: Sequence[int] = (),
        eos_token_ids: Collection[int] = (),
        kept: Collection[int] = (),
    ) -> None:
        """Without a tokenizer there is no text; `sampling` has no stop strings then. `kept`: special tokens that are text
        though others aren't."""
        self._tokenizer = tokenizer
        self._detokenizer: Detokenizer | None = None
        if tokenizer is not None:
            self._detokenizer = tokenizer.detokenizer(
                skip_special_tokens=sampling.skip_special_tokens, kept=kept, prompt=prompt
            )
        self._stops = StopStrings(sampling.stop_strings, include_in_output=sampling.include_stop_str_in_output)
        self._wants_logprobs = sampling.logprobs is not None
        self._num_top = sampling.logprobs or 0
        self._shows_stop_token = sampling.include_stop_str_in_output
        self._stop_token_ids = set(sampling.stop_token_ids or ()).difference(eos_token_ids)
        self._min_tokens = sampling.min_tokens
        self._num_tokens = 0
        self._offset = 0  # of the next token in the answer's text

    def take(self, outputs: Sequence[TokenOutput]) -> Delta:
        """What the answer grows by. A stop string ends it within `outputs`: the tokens behind it don't count.

        Raises:
            EngineError: as TokenOutput.check().
        """
        texts: list[str] = []
        logprobs: list[TokenLogprob] = []
        finish = FinishReason.NONE
        stop_reason: int | str | None = None
        cached = 0
        token_ids: list[int] = []
        for output in outputs:
            finish = output.finish_reason
            if finish is not FinishReason.NONE:
                output.check()
            piece = self._piece(output)
            token_ids.append(output.token)
            if output.position == 0:
                cached = output.num_cached_tokens
            self._num_tokens += 1
            texts.append(self._stops.push(piece, may_end=self._num_tokens > self._min_tokens))
            if self._wants_logprobs:
                logprobs.append(self._logprob(output, piece))
            self._offset += len(piece)
            if self._stops.matched is not None:
                finish = FinishReason.STOP
            if finish is not FinishReason.NONE:
                texts.append(self._stops.finish())
                stop_reason = self._stop_reason(output)
                break
        return Delta(
            text="".join(texts),
            logprobs=logprobs,
            finish_reason=None if finish is FinishReason.NONE else FINISH_REASONS[finish],
            num_tokens=len(token_ids),
            token_ids=token_ids,
            num_cached_tokens=cached,
            stop_reason=stop_reason,
        )

    def cut(self, finish_reason: str = FINISH_REASONS[FinishReason.LENGTH]) -> Delta:
        """What was held back of an answer that ends here, by default for want of time."""
        rest = self._detokenizer.finish() if self._detokenizer is not None else ""
        text = self._stops.push(rest, may_end=False) + self._stops.finish()
        return Delta(text=text, finish_reason=finish_reason)

    def _stop_reason(self, last: TokenOutput) -> int | str | None:
        if self._stops.matched is not None:
            return self._stops.matched
        by_token = last.finish_reason is FinishReason.STOP and last.token in self._stop_token_ids
        return last.token if by_token else None

    def _piece(self, output: TokenOutput) -> str:
        """The text that is whole with this token. The token that stopped the answer has none."""
        if self._detokenizer is None:
            return ""
        shown = output.finish_reason is not FinishReason.STOP or self._shows_stop_token
        piece = self._detokenizer.push([output.token] if shown else [])
        if output.finish_reason is not FinishReason.NONE:
            piece += self._detokenizer.finish()
        return piece

    def _logprob(self, output: TokenOutput, piece: str) -> TokenLogprob:
        """`piece`: the text that is whole with this token; before the token's own it may hold a character that broke off."""
        top = [self._named(token, logprob) for token, logprob in output.top_logprobs[: self._num_top]]
        text, raw, logprob, id = self._named(output.token, float("nan") if output.logprob is None else output.logprob)
        before = len(piece) - len(text) if piece.endswith(text) else 0
        return TokenLogprob(text, raw, logprob, self._offset + before, top, id)

    def _named(self, token: int, logprob: float) -> NamedToken:
        logprob = max(LEAST_LOGPROB, logprob)
        if self._tokenizer is None:
            return NamedToken("", b"", logprob, token)
        return NamedToken(self._tokenizer.token_text(token), self._tokenizer.token_bytes(token), logprob, token)
