"""A scripted router whose answers are a function of their prompts, and whose accounts know what workers would have said."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from rtp_llm.request import FinishReason, Request, TokenOutput
from rtp_llm.router.account import AnswerAccount
from tests.router.scripted_service import ScriptedService

CACHED = 2  # tokens of each prompt


class Spoken(ScriptedService):
    """`speak(prompt, choice)`: the answer's text; `asked`: each answer's request, in the order in which they began."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        self.anew()

    def anew(self) -> None:
        self.asked: list[Request] = []
        self.speak: Callable[[str, int], str] = lambda prompt, choice: f"said {choice}"
        self.error: Exception | None = None  # before the first token

    async def _generate(self, request: Request, *rest: object) -> AsyncIterator[list[TokenOutput]]:
        """A token a step."""
        self.asked.append(request)
        if self.error is not None:
            raise self.error
        account = rest[1]
        assert isinstance(account, AnswerAccount)
        account.workers.append(["prefill-0", "decode-0"])
        account.prompt_tokens, account.cached_tokens = len(request.prompt), CACHED
        account.asked = account.placed = account.first_token = time.monotonic()
        tokenizer = self.service.reader.tokenizer
        prompt = tokenizer.decode(request.prompt, skip_special_tokens=False)
        tokens = tokenizer.encode(self.speak(prompt, request.choice), add_special_tokens=False)
        limit = request.sampling.max_tokens
        for position, token in enumerate(tokens[:limit]):
            finish = FinishReason.LENGTH if position + 1 in (limit, len(tokens)) else FinishReason.NONE
            yield [TokenOutput(position, token, -0.5, [], finish, CACHED if position == 0 else 0)]
