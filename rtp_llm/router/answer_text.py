"""AnswerText: one answer's tokens as the text that may be shown: whole characters, ended by stop strings."""

from __future__ import annotations

from collections.abc import Sequence

from rtp_llm.model.stop_strings import StopStrings
from rtp_llm.model.tokenizer import Tokenizer
from rtp_llm.request import FinishReason, SamplingParams, TokenOutput
from rtp_llm.router.responses import Delta, TokenLogprob

FINISH_REASONS = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length"}
LEAST_LOGPROB = -9999.0  # JSON has no -inf, which a token has that only a mask lets come; vLLM's value too


class AnswerText:
    """REQUIRES: tokens come in order; after a Delta with a finish reason nothing more is taken."""

    def __init__(self, tokenizer: Tokenizer, sampling: SamplingParams, prompt: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._detokenizer = tokenizer.detokenizer(skip_special_tokens=sampling.skip_special_tokens, prompt=prompt)
        self._stops = StopStrings(sampling.stop_strings, include_in_output=sampling.include_stop_str_in_output)
        self._wants_logprobs = sampling.logprobs is not None
        self._num_top = sampling.logprobs or 0
        self._shows_stop_token = sampling.include_stop_str_in_output
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
        taken = 0
        for output in outputs:
            output.check()
            piece = self._piece(output)
            taken += 1
            self._num_tokens += 1
            texts.append(self._stops.push(piece, may_end=self._num_tokens > self._min_tokens))
            if self._wants_logprobs:
                logprobs.append(self._logprob(output))
            self._offset += len(piece)
            finish = FinishReason.STOP if self._stops.matched is not None else output.finish_reason
            if finish is not FinishReason.NONE:
                texts.append(self._stops.finish())
                break
        return Delta(
            text="".join(texts),
            logprobs=logprobs,
            finish_reason=FINISH_REASONS.get(finish),
            num_tokens=taken,
            num_cached_tokens=sum(output.num_cached_tokens for output in outputs if output.position == 0),
        )

    def _piece(self, output: TokenOutput) -> str:
        """The text that is whole with this token. The token that stopped the answer has none."""
        shown = output.finish_reason is not FinishReason.STOP or self._shows_stop_token
        piece = self._detokenizer.push([output.token] if shown else [])
        if output.finish_reason is not FinishReason.NONE:
            piece += self._detokenizer.finish()
        return piece

    def _logprob(self, output: TokenOutput) -> TokenLogprob:
        def named(token: int) -> tuple[str, bytes]:
            return self._tokenizer.token_text(token), self._tokenizer.token_bytes(token)

        text, raw = named(output.token)
        top = [(*named(token), logprob) for token, logprob in output.top_logprobs[: self._num_top]]
        logprob = max(LEAST_LOGPROB, output.logprob) if output.logprob is not None else float("nan")
        return TokenLogprob(text, raw, logprob, self._offset, top)
