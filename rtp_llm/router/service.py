"""Service: what stands behind the HTTP surface of one router: model files, fleet, dispatcher."""

from __future__ import annotations

import asyncio
import logging
import secrets
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial

from rtp_llm.config import Config, Pool
from rtp_llm.directory import ROUTER, Member, Membership
from rtp_llm.errors import InvalidRequestError, PromptTooLongError, RtpLlmError, shortened
from rtp_llm.metrics import RouterMetrics, exposition, merged, new_registry
from rtp_llm.model import tool_calls
from rtp_llm.model.answer_text import AnswerText, Delta
from rtp_llm.model.chat_template import ChatTemplate
from rtp_llm.model.config import GenerationDefaults, read_generation_defaults, read_model_config
from rtp_llm.model.tokenizer import Tokenizer
from rtp_llm.model.tool_calls import ToolCallParser
from rtp_llm.request import Request
from rtp_llm.router.arrival import arrived
from rtp_llm.router.dispatcher import Dispatcher
from rtp_llm.router.fleet import WORKER_STATES, Fleet
from rtp_llm.router.policies import policy_named
from rtp_llm.router.schemas import ChatBody, CompletionBody
from rtp_llm.sampling_params import MAX_SUPPRESSED_TOKENS, SamplingParams
from rtp_llm.wire.session import ROUTER_SERVICE, SessionServer, SessionTiming, metrics_method

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenizedPrompt:
    """One prompt in token ids, ready to be answered `num_choices` times."""

    tokens: Sequence[int]
    sampling: SamplingParams
    number: int
    service: Service
    cache_salt: str = ""
    tool_calls: Callable[[], ToolCallParser] | None = None  # makes the reader of one answer's calls

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def num_choices(self) -> int:
        return self.sampling.n

    @property
    def logprobs(self) -> bool:
        return self.sampling.logprobs is not None

    async def answer(self, request_id: str, choice: int) -> AsyncGenerator[Delta, None]:
        """One choice's text as it grows. Ends early, and cancels, at a stop string."""
        outcome = "cancelled"
        request = Request(
            request_id=request_id, prompt=self.tokens, sampling=self.sampling, choice=choice, cache_salt=self.cache_salt
        )
        text = AnswerText(self.service.tokenizer, self.sampling, self.tokens)
        calls = self.tool_calls() if self.tool_calls is not None else None
        try:
            async with aclosing(self.service.dispatcher.generate(request, self.number)) as batches:
                async for batch in batches:
                    delta = text.take(batch)
                    if delta.finish_reason is not None:
                        outcome = "finished"
                    yield delta if calls is None else calls.take(delta)
                    if delta.finish_reason is not None:
                        return
        except RtpLlmError:
            outcome = "failed"
            raise
        finally:
            self.service.count_answer(outcome)


class Service:
    """REQUIRES: made on the event loop that serves."""

    def __init__(self, config: Config, membership: Membership) -> None:
        policy = policy_named(config.router.policy)
        self.config = config
        self.tokenizer = Tokenizer.load(config.model.path)
        self._chat_template = ChatTemplate.load(config.model.path)
        model = read_model_config(config.model.path)
        self._vocab_size = model.vocab_size
        self.context = config.model.max_model_len or model.max_position_embeddings
        if self.tokenizer.vocab_size > model.vocab_size:
            log.warning(
                "%s: the tokenizer has %d tokens, the model embeddings of %d: texts that need others are refused",
                config.model.path,
                self.tokenizer.vocab_size,
                model.vocab_size,
            )
        self._defaults: GenerationDefaults = read_generation_defaults(config.model.path)
        self.registry = new_registry()
        self.metrics_here = RouterMetrics(self.registry)
        self.fleet = Fleet(
            membership,
            model=config.served_name,
            router_id=f"router-{uuid.uuid4().hex[:12]}",
            router_epoch=secrets.randbits(63) + 1,
            timing=SessionTiming.of(config.handover),
            metrics=self.metrics_here,
            token=config.worker.token.get_secret_value(),
            max_model_len=self.context,
        )
        self._server = SessionServer(
            config.worker.host, config.worker.advertise_host, config.worker.token.get_secret_value()
        )
        self._server.add(ROUTER_SERVICE, {"Metrics": metrics_method(self.own_metrics)})
        self.dispatcher = Dispatcher(self.fleet, policy, config.router, self.metrics_here)

    def start(self) -> None:
        self.fleet.start()

    async def listen(self) -> Member:
        """Answer the other routers that ask for this one's metrics; returns what they find it by.

        Raises:
            UnavailableError: worker.host can't be listened on.
        """
        address = await self._server.start()
        return Member(id=self.fleet.router_id, epoch=self.fleet.router_epoch, pool=ROUTER, address=address)

    async def close(self) -> None:
        await self._server.stop()
        await self.fleet.close()

    def check_health(self) -> None:
        """
        Raises:
            TaskError: a task that must go on has ended.
        """
        self.fleet.check_health()

    # --- Backend of the HTTP surface.

    @property
    def model_name(self) -> str:
        return self.config.served_name

    @property
    def max_model_len(self) -> int:
        """Tokens of the longest request, prompt and answer: what the context and the workers' KV pools leave."""
        held = self.fleet.longest_request()
        return self.context if held is None else min(self.context, held)

    def _limit(self, tokens: int) -> str:
        if tokens == self.context:
            return f"the context: this model's maximum context length is {tokens} tokens"  # words that clients look for
        return f"the {tokens} tokens that the workers' KV pools hold (the model's context is {self.context})"

    @property
    def max_body_bytes(self) -> int:
        return self.config.router.max_body_bytes

    @property
    def upload_timeout_s(self) -> float:
        return self.config.router.upload_timeout_s

    @property
    def ping_s(self) -> float:
        return self.config.router.ping_s

    @property
    def cors_origins(self) -> list[str]:
        return [origin.strip() for origin in self.config.http.cors_origins.split(",") if origin.strip()]

    async def wait_ready(self, timeout_s: float, num_workers: int) -> bool:
        return await self.fleet.wait_ready(timeout_s, num_workers)

    async def metrics(self) -> bytes:
        own, workers, routers = self.own_metrics(), self.fleet.metrics_texts(), self.fleet.router_texts()
        texts: list[tuple[dict[str, str], str]] = [({"router": self.fleet.router_id}, own.decode())]
        texts += [({"router": router}, text) for router, text in (await routers).items()]
        texts += [({"pool": pool, "worker": worker}, text) for (pool, worker), text in (await workers).items()]
        return merged({"model": self.model_name}, texts)

    def own_metrics(self) -> bytes:
        """This router's alone."""
        self._count_workers()
        return exposition(self.registry)

    def _count_workers(self) -> None:
        states = self.fleet.states()
        for pool in Pool:
            for state in WORKER_STATES:
                self.metrics_here.workers.labels(pool.value, state).set(states[pool.value, state])

    def count_answer(self, outcome: str) -> None:
        """How an answer of the request that is handled here has ended: finished, failed or cancelled."""
        seconds = asyncio.get_running_loop().time() - arrived()
        self.metrics_here.request_duration.labels(outcome).observe(seconds)

    def count(self, endpoint: str, status: int) -> None:
        self.metrics_here.requests.labels(endpoint, str(status)).inc()

    async def complete(self, body: CompletionBody) -> Sequence[TokenizedPrompt]:
        sampling = self._sampling(body)
        prompts = body.prompts()
        if not prompts:
            raise InvalidRequestError("prompt must hold at least one prompt, got []", param="prompt", value=[])
        self._check_choices(len(prompts), sampling.n)
        special = body.add_special_tokens is not False
        tokens = await asyncio.to_thread(lambda: [self._tokens(each, special) for each in prompts])
        salt = body.cache_salt or ""
        return [self._prompt(each, sampling, "prompt", body.limit_field, salt) for each in tokens]

    async def chat(self, body: ChatBody) -> TokenizedPrompt:
        sampling = self._sampling(body)
        self._check_choices(1, sampling.n)
        parser = self._tool_call_parser(body)
        if parser is not None and self.tokenizer.is_special_text(tool_calls.OPEN):
            sampling = replace(sampling, skip_special_tokens=False)
        tokens = await asyncio.to_thread(self._chat_tokens, body)
        prompt = self._prompt(tokens, sampling, "messages", body.limit_field, body.cache_salt or "")
        return replace(prompt, tool_calls=parser)

    def _tool_call_parser(self, body: ChatBody) -> Callable[[], ToolCallParser] | None:
        """None where no tools are offered.

        Raises:
            InvalidRequestError: they are, and how this model writes its calls isn't known here.
        """
        if not body.offered_tools:
            return None
        if not tool_calls.is_read(self._chat_template.source_for(tools=True)):
            raise InvalidRequestError(
                f"tools are not supported for {self.model_name}: its chat template shows no form of calls that is read here; "
                "with tool_choice: none they are not offered",
                param="tools",
                value=body.tools,
            )
        return partial(ToolCallParser, parallel=body.parallel_tool_calls is not False)

    def _sampling(self, body: CompletionBody | ChatBody) -> SamplingParams:
        sampling = body.sampling(self._defaults.sampling)
        for token in sampling.stop_token_ids or []:
            self._check_token(token, "stop_token_ids")
        ending = {*self._defaults.eos_token_ids, *(sampling.stop_token_ids or [])}
        if sampling.min_tokens and len(ending) > MAX_SUPPRESSED_TOKENS:
            raise InvalidRequestError(
                f"stop_token_ids: with min_tokens they and the model's EOS ids are at most {MAX_SUPPRESSED_TOKENS}, "
                f"got {len(ending)}",
                param="stop_token_ids",
                value=len(ending),
            )
        return sampling

    def _check_choices(self, num_prompts: int, n: int) -> None:
        limit = self.config.router.max_choices
        if num_prompts * n > limit:
            param = "prompt" if num_prompts > 1 else "n"
            raise InvalidRequestError(
                f"{param}: {num_prompts} prompts times n {n} are {num_prompts * n} answers, one request may ask for {limit}",
                param=param,
                value=num_prompts * n,
            )

    # --- In a thread: takes as long as the text is.

    def _chat_tokens(self, body: ChatBody) -> Sequence[int]:
        text = self._chat_template.render(
            body.messages,
            tools=body.offered_tools,
            add_generation_prompt=body.add_generation_prompt is not False,
            **body.template_variables(),
        )
        return self._encode(text, "messages", bool(body.add_special_tokens))

    def _tokens(self, prompt: str | list[int], add_special_tokens: bool) -> Sequence[int]:
        if isinstance(prompt, str):
            return self._encode(prompt, "prompt", add_special_tokens)
        if len(prompt) < self.max_model_len:  # else it is refused for its length
            for token in prompt:
                self._check_token(token, "prompt")
        return prompt

    def _encode(self, text: str, param: str, add_special_tokens: bool) -> Sequence[int]:
        self._check_text(text, param)
        try:
            tokens = self.tokenizer.encode(text, add_special_tokens=add_special_tokens)
        except InvalidRequestError as error:
            raise InvalidRequestError(f"{param}: {error.message}", param=param) from error
        if self.tokenizer.vocab_size > self._vocab_size and tokens and max(tokens) >= self._vocab_size:
            unknown = next(token for token in tokens if token >= self._vocab_size)
            raise InvalidRequestError(
                f"{param}: {shortened(self.tokenizer.token_text(unknown))} is token {unknown} of the tokenizer, the model has "
                f"embeddings of {self._vocab_size}",
                param=param,
                value=unknown,
            )
        return tokens

    def _check_text(self, text: str, param: str) -> None:
        """Tokenizing takes seconds for megabytes; a text that has more tokens than the context by its size alone is spared."""
        longest = self.tokenizer.max_token_bytes
        size = len(text.encode(errors="surrogatepass"))
        if size > self.max_model_len * longest:
            raise PromptTooLongError(
                f"{param}: a text of {size} bytes exceeds {self._limit(self.max_model_len)}, which hold at most "
                f"{longest} bytes each",
                param=param,
                value=size,
            )

    def _check_token(self, token: int, param: str) -> None:
        if not 0 <= token < self._vocab_size:
            raise InvalidRequestError(
                f"{param}: token id {token} is out of range, the vocabulary has {self._vocab_size}",
                param=param,
                value=token,
            )

    # --- On the event loop again.

    def _prompt(
        self, tokens: Sequence[int], sampling: SamplingParams, param: str, limit_field: str | None, cache_salt: str
    ) -> TokenizedPrompt:
        """`limit_field` set sampling.max_tokens. None: nobody asked, so it may be what the context leaves, if that is less."""
        if not tokens:
            raise InvalidRequestError(f"{param}: the prompt has no tokens", param=param)
        longest = self.max_model_len
        room = longest - len(tokens)
        if room < 1:
            raise PromptTooLongError(
                f"{param}: {len(tokens)} prompt tokens and one more for the answer exceed {self._limit(longest)}",
                param=param,
                value=len(tokens),
            )
        wanted = room if sampling.max_tokens is None else sampling.max_tokens
        if limit_field is None:
            wanted = min(wanted, room)
        elif wanted > room:
            raise PromptTooLongError(
                f"{limit_field}: {wanted} and {len(tokens)} prompt tokens exceed {self._limit(longest)}, "
                f"which leaves {room}",
                param=limit_field,
                value=wanted,
            )
        complete = replace(sampling, max_tokens=wanted, min_tokens=min(sampling.min_tokens, wanted)).with_seed()
        return TokenizedPrompt(tokens, complete, self.dispatcher.next_request(), self, cache_salt)
