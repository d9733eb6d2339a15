"""Service: what stands behind the HTTP surface of one router: model files, fleet, dispatcher."""

from __future__ import annotations

import asyncio
import secrets
import time
import uuid
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from rtp_llm.autoscaling.figures import RouterFigures
from rtp_llm.config import Config, Pool
from rtp_llm.directory import ROUTER, Member, Membership
from rtp_llm.errors import (
    AbortedError,
    ConfigError,
    DeadlineError,
    DeadlineUnreachableError,
    InvalidRequestError,
    OverloadedError,
    PromptTooLongError,
    RtpLlmError,
)
from rtp_llm.metrics import RouterMetrics, exposition, merged, new_registry
from rtp_llm.model.answer_text import AnswerText, Delta, named_by_id
from rtp_llm.model.parts import AnswerParts, PartsAsked
from rtp_llm.pool_state import ApplicationState
from rtp_llm.request import Request
from rtp_llm.router import status
from rtp_llm.router.access import Access
from rtp_llm.router.account import current_account
from rtp_llm.router.admission import Admission, PromptSize
from rtp_llm.router.answers import Question
from rtp_llm.router.body_process import BodyProcess
from rtp_llm.router.dispatcher import Dispatcher
from rtp_llm.router.fleet import WORKER_STATES, Fleet
from rtp_llm.router.placement import policy_of, watches_caches
from rtp_llm.router.pool_control import PoolControl
from rtp_llm.router.prompt_hashes import PromptHashes
from rtp_llm.router.reading import Asked, BodyReader
from rtp_llm.router.response_store import Memory, ResponseStore
from rtp_llm.router.schemas import Body, BodyT
from rtp_llm.router.steps_seen import StepsSeen
from rtp_llm.router.terms import NO_TERMS, Terms
from rtp_llm.router.token_bodies import TokenBody
from rtp_llm.sampling_params import FIELDS, SamplingParams
from rtp_llm.tracing import Tracing
from rtp_llm.wire.credentials import Credentials
from rtp_llm.wire.session import ROUTER_SERVICE, SessionServer, SessionTiming, ended_workers_method, metrics_method

# Sections of the configuration that hold no secret.
SHOWN_SETTINGS = {"model", "engine", "transfer", "handover", "prefill", "decode", "autoscaling", "router"}
ABORTED = "abort"  # vLLM's finish reason
SMALL_BODY_BYTES = 4 << 10  # what is no larger is read on the loop, in at most 3 ms: a thread's turn takes 0.2
FEW_PROMPTS = 16  # of such a body: a template takes its time for each
LARGE_BODY_BYTES = 32 << 10  # what is larger is read in a process of its own
MEMORY_BYTES = 64 << 20  # that process may take beyond what it begins with: these, and so many of the largest bodies
MEMORY_BODIES = 16


@dataclass(frozen=True)
class TokenizedPrompt:
    """One prompt in token ids, ready to be answered `num_choices` times."""

    tokens: Sequence[int]
    sampling: SamplingParams
    number: int
    service: Service
    asked: Asked
    terms: Terms
    parts: PartsAsked | None
    hashes: PromptHashes | None  # None: no worker has come that says how

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def token_ids(self) -> Sequence[int]:
        return self.tokens

    @property
    def num_choices(self) -> int:
        return self.sampling.n

    @property
    def logprobs(self) -> bool:
        return self.sampling.logprobs is not None

    async def answer(self, request_id: str, choice: int) -> AsyncGenerator[Delta, None]:
        """One choice's text as it grows. Ends early, and cancels, at a stop string. Where nobody said how long it may be, time
        is a limit as the context is: what is there at the deadline is the answer.
        """
        outcome, num_tokens = "cancelled", 0
        whole = current_account()
        account = whole.answer(self.number, choice)
        request = Request(
            request_id=request_id,
            prompt=self.tokens,
            sampling=self.sampling,
            choice=choice,
            cache_salt=self.asked.cache_salt,
            priority=self.terms.priority,
            traceparent="" if whole.trace is None else whole.trace.traceparent,
            tracestate="" if whole.trace is None else whole.trace.tracestate,
        )
        asked = self.parts
        parts = AnswerParts(asked) if asked is not None else None
        text = AnswerText(
            self.service.reader.tokenizer, self.sampling, self.tokens, kept=asked.marks if asked is not None else ()
        )
        try:
            async with aclosing(
                self.service.dispatcher.generate(request, self.number, account, self.terms, self.hashes)
            ) as batches:
                async for batch in batches:
                    delta = text.take(batch)
                    if self.asked.tokens_as_ids:
                        delta = named_by_id(delta)
                    num_tokens += delta.num_tokens
                    if delta.finish_reason is not None:
                        outcome, account.end = "finished", delta.finish_reason
                    yield delta if parts is None else parts.take(delta)
                    if delta.finish_reason is not None:
                        return
        except DeadlineError as error:
            if self.asked.limit_field is not None or not num_tokens:
                outcome, account.end = "failed", type(error).__name__
                raise
            cut = text.cut()
            outcome, account.end = "finished", cut.finish_reason or ""
            yield cut if parts is None else parts.take(cut)
        except AbortedError:
            outcome, account.end = "aborted", ABORTED
            cut = text.cut(ABORTED)
            yield cut if parts is None else parts.take(cut)
        except RtpLlmError as error:
            outcome, account.end = "failed", type(error).__name__
            if isinstance(error, OverloadedError):
                self.service.count_refusal(error)
            if isinstance(error, InvalidRequestError):
                raise self._in_terms_of_the_body(error) from error
            raise
        finally:
            self.service.count_answer(outcome, num_tokens)

    def _in_terms_of_the_body(self, error: InvalidRequestError) -> InvalidRequestError:
        """A worker names fields of the Request that it got: the prompt is one of messages, a limit may be nobody's."""
        param = self.asked.field
        if error.param == "max_tokens":
            param = self.asked.limit_field or param
        elif error.param is not None and error.param in FIELDS:
            param = error.param
        message = error.message if param in error.message else f"{param}: {error.message}"
        return type(error)(message, param=param)


class Service:
    """REQUIRES: made on the event loop that serves."""

    def __init__(self, config: Config, membership: Membership) -> None:
        policy = policy_of(config)
        self.config = self._deployed = config
        self.access = Access.of(config.http)
        self._check_tenants(config)
        credentials = Credentials.of(config.worker)
        self.reader = BodyReader(config)
        self.bodies = BodyProcess(
            config,
            timeout_s=config.router.body_timeout_s,
            memory_bytes=MEMORY_BODIES * config.router.max_body_bytes + MEMORY_BYTES,
        )
        self.responses = ResponseStore(config.http.stored_responses, config.http.stored_responses_bytes)
        self._reading = 0
        self.registry = new_registry()
        self.metrics_here = RouterMetrics(self.registry)
        self.fleet = Fleet(
            membership,
            model=config.served_name,
            router_id=f"router-{uuid.uuid4().hex[:12]}",
            router_epoch=secrets.randbits(63) + 1,
            timing=SessionTiming.of(config.handover),
            metrics=self.metrics_here,
            credentials=credentials,
            max_model_len=self.reader.context,
            watches_caches=watches_caches(policy),
            state=ApplicationState(base=config.model.path),
        )
        self.pools = PoolControl(self.fleet, pause_timeout_s=config.worker.drain_timeout_s)
        self.dispatcher = Dispatcher(self.fleet, policy, config.router, self.metrics_here)
        self.tracing = Tracing.of(config.otel, {"service.instance.id": self.fleet.router_id, "rtp_llm.pool": ROUTER})
        self._server = SessionServer(config.worker.host, config.worker.advertise_host, credentials)
        self._server.add(
            ROUTER_SERVICE,
            {
                "Metrics": metrics_method(self.own_metrics),
                "EndedWorkers": ended_workers_method(self.dispatcher.ended_workers),
            },
        )
        self._admission = Admission(
            policy, lambda: self.fleet.snapshot, self.dispatcher.tokens_ahead, lambda: self.config.router
        )
        if config.is_autoscaled:
            self.dispatcher.steps_seen = StepsSeen()

    def _check_tenants(self, config: Config) -> None:
        for name in config.router.tenant_weights:
            if name not in self.access.tenants:
                where = config.http.api_keys_file or "http.api_keys_file, which is not set"
                raise ConfigError(f"router.tenant_weights: {name!r} is the name of no key in {where}")

    def reconfigure(self, router: Mapping[str, Any]) -> None:
        """Take over these settings; what isn't among them is as it was deployed. Answers under way keep their deadlines.

        Raises:
            ConfigError: one is wrong, or not for a running router. All stay as they were.
        """
        config = self._deployed.reconfigured(router)
        self._check_tenants(config)
        self.config = config
        self.dispatcher.reconfigure(config.router)

    def start(self) -> None:
        self.fleet.start()
        self.bodies.start()

    async def listen(self) -> Member:
        """Answer the other routers that ask for this one's metrics; returns what they find it by.

        Raises:
            UnavailableError: worker.host can't be listened on.
        """
        await self._server.start()
        return self.member()

    def member(self) -> Member:
        """As it is now. REQUIRES: listen()."""
        return Member(
            id=self.fleet.router_id,
            epoch=self.fleet.router_epoch,
            pool=ROUTER,
            address=self._server.address,
            state=self.fleet.state,
        )

    async def close(self) -> None:
        await self.pools.close()
        await self.bodies.close()
        await self._server.stop()
        await self.fleet.close()
        if self.tracing is not None:
            await asyncio.to_thread(self.tracing.close)

    def check_health(self) -> None:
        """
        Raises:
            TaskError: a task that must go on has ended.
        """
        self.fleet.check_health()

    def autoscaling_figures(self) -> RouterFigures:
        """What autoscaling sees of this router."""
        costs = {} if self.dispatcher.steps_seen is None else self.dispatcher.steps_seen.costs()
        return RouterFigures(
            waiting=self.dispatcher.num_waiting, waiting_tokens=self.dispatcher.tokens_waiting, **costs
        )

    # --- Backend of the HTTP surface.

    @property
    def model_name(self) -> str:
        return self.reader.model_name

    @property
    def model_names(self) -> Sequence[str]:
        return self.reader.model_names

    @property
    def max_model_len(self) -> int:
        """Tokens of the longest request, prompt and answer: what the context and the workers' KV pools leave."""
        held = self.fleet.longest_request()
        return self.reader.context if held is None else min(self.reader.context, held)

    def _limit(self, tokens: int) -> str:
        if tokens == self.reader.context:
            return f"the context: this model's maximum context length is {tokens} tokens"  # words that clients look for
        return f"the {tokens} tokens that the workers' KV pools hold (the model's context is {self.reader.context})"

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
    def session_header(self) -> str:
        return self.config.router.session_header

    @property
    def cors_origins(self) -> list[str]:
        return [origin.strip() for origin in self.config.http.cors_origins.split(",") if origin.strip()]

    @property
    def least_workers(self) -> int:
        """With which this router is ready: with none where all may be gone, for its queue brings them back."""
        return 1 if any(self.config.sizes_of(pool).least for pool in Pool) else 0

    async def wait_ready(self, timeout_s: float, num_workers: int) -> bool:
        return await self.fleet.wait_ready(timeout_s, num_workers)

    async def metrics(self) -> bytes:
        own, workers, routers = self.own_metrics(), self.fleet.metrics_texts(), self.fleet.router_texts()
        texts: list[tuple[dict[str, str], str]] = [({"router": self.fleet.router_id}, own.decode())]
        texts += [({"router": router}, text) for router, text in (await routers).items()]
        texts += [({"pool": pool, "worker": worker}, text) for (pool, worker), text in (await workers).items()]
        return merged({"model": self.model_name}, texts)

    def worker_status(self) -> dict[str, Any]:
        now = asyncio.get_running_loop().time()
        return self._status([status.worker_row(worker, now) for worker in self.fleet.workers()])

    async def cache_status(self) -> dict[str, Any]:
        texts = {worker: text for (_, worker), text in (await self.fleet.metrics_texts()).items()}
        return self._status([status.cache_row(worker, texts.get(worker.member.id)) for worker in self.fleet.workers()])

    def _status(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {"model": self.model_name, "router": self.fleet.router_id, "workers": rows}

    def own_metrics(self) -> bytes:
        """This router's alone."""
        self._count_workers()
        self.metrics_here.stored_responses.set(len(self.responses))
        self.metrics_here.stored_responses_bytes.set(self.responses.num_bytes)
        return exposition(self.registry)

    def _count_workers(self) -> None:
        states = self.fleet.states()
        for pool in Pool:
            for state in WORKER_STATES:
                self.metrics_here.workers.labels(pool.value, state).set(states[pool.value, state])

    def count_answer(self, outcome: str, num_tokens: int) -> None:
        """How an answer of the request that is handled here has ended: finished, failed, cancelled or aborted, with so many
        tokens."""
        account = current_account()
        if account.tenant:
            self.metrics_here.tenant_output_tokens.labels(account.tenant).inc(num_tokens)
        seconds = time.monotonic() - account.arrived
        self.metrics_here.request_duration.labels(outcome).observe(seconds)

    def count_refusal(self, error: OverloadedError) -> None:
        """Of the request that is handled here."""
        cause = "deadline" if isinstance(error, DeadlineUnreachableError) else "queue"
        self.metrics_here.tenant_refusals.labels(current_account().tenant, cause).inc()

    def count(self, endpoint: str, status: int) -> None:
        self.metrics_here.requests.labels(endpoint, str(status)).inc()

    @contextmanager
    def admission(self) -> Iterator[None]:
        """Around the reading of a request.

        Raises:
            OverloadedError: with those that wait for a worker, too many are being read.
        """
        waiting, limit = self.dispatcher.num_waiting + self._reading, self.config.router.max_waiting
        if waiting >= limit:
            error = OverloadedError(f"{waiting} requests are being read or wait for a worker, the limit is {limit}")
            self.count_refusal(error)
            raise error
        self._reading += 1
        try:
            yield
        finally:
            self._reading -= 1

    async def ask(self, kind: type[Body], body: bytes | bytearray, terms: Terms) -> Question:
        memory = self._memory(body, terms.tenant)
        try:
            typed, size = self._typed(kind, body, memory)
            if typed is None:
                self._check_deadline(terms, [PromptSize(1)])
                return self._question(await self.bodies.read(kind, body, memory.recall), terms, memory)
            prompts = list(map(PromptSize, self.reader.least_tokens(typed)))
            self._check_deadline(terms.joined(typed.terms()), prompts)
            if size <= SMALL_BODY_BYTES and len(prompts) <= FEW_PROMPTS:
                return self._question(self.reader.asked(typed), terms, memory)
            return self._question(await asyncio.to_thread(self.reader.asked, typed), terms, memory)
        except OverloadedError as error:
            self.count_refusal(error)
            raise

    async def tell(self, kind: type[TokenBody], body: bytes | bytearray, tenant: str = "") -> bytes:
        """The JSON that a TokenBody gets."""
        memory = self._memory(body, tenant)
        typed, size = self._typed(kind, body, memory)
        if typed is None:
            return await self.bodies.read(kind, body, memory.recall)
        if size <= SMALL_BODY_BYTES:
            return typed.told(self.reader)
        return await asyncio.to_thread(typed.told, self.reader)

    def _memory(self, body: bytes | bytearray, tenant: str) -> Memory:
        """What it recalls counts against the largest body."""
        return Memory(self.responses, tenant, self.max_body_bytes - len(body))

    def _typed(self, kind: type[BodyT], body: bytes | bytearray, memory: Memory) -> tuple[BodyT | None, int]:
        """Typed, and how much that was; None: it is to be read in a process of its own."""
        if len(body) > LARGE_BODY_BYTES:
            return None, len(body)
        content = self.reader.content(body)
        recalled = memory.recall(kind.references(content))
        size = len(body) + len(recalled)
        return (self.reader.typed(kind, content, recalled) if size <= LARGE_BODY_BYTES else None), size

    @property
    def num_answers(self) -> int:
        return self.dispatcher.num_live

    def server_info(self) -> dict[str, Any]:
        settings = self.config.model_dump(mode="json", include=SHOWN_SETTINGS)
        return {"model": self.model_name, "max_model_len": self.max_model_len, "config": settings}

    def ask_typed(self, body: Body, terms: Terms = NO_TERMS) -> Question:
        return self._question(self.reader.asked(body), terms)

    def _check_deadline(self, terms: Terms, prompts: Sequence[PromptSize]) -> None:
        self._admission.check(terms, prompts, time.monotonic() - current_account().arrived)

    def _question(self, asked: Asked, terms: Terms, memory: Memory | None = None) -> Question:
        terms = terms.joined(asked.terms)
        each = zip_longest(asked.prompts, asked.parts)
        prompts = [self._prompt(asked, tokens, parts, terms) for tokens, parts in each]
        self._check_deadline(terms, [PromptSize(prompt.num_tokens, prompt.hashes) for prompt in prompts])
        return Question.of(prompts, asked, memory)

    def _prompt(self, asked: Asked, tokens: Sequence[int], parts: PartsAsked | None, terms: Terms) -> TokenizedPrompt:
        """Where nobody asked for a number of tokens, it may be what the context leaves, if that is less."""
        sampling, param = asked.sampling, asked.field
        if not tokens:
            raise InvalidRequestError(f"{param}: the prompt has no tokens", param=param)
        longest = self.max_model_len
        if sampling.truncate_prompt_tokens == -1:  # the reader knows of no KV pools
            tokens = sampling.truncated(tokens, longest)
        room = longest - len(tokens)
        if room < 1:
            raise PromptTooLongError(
                f"{param}: {len(tokens)} prompt tokens and one more for the answer exceed {self._limit(longest)}",
                param=param,
                value=len(tokens),
            )
        wanted = room if sampling.max_tokens is None else sampling.max_tokens
        if asked.limit_field is None or asked.cuts_limit:
            wanted = min(wanted, room)
        elif wanted > room:
            raise PromptTooLongError(
                f"{asked.limit_field}: {wanted} and {len(tokens)} prompt tokens exceed {self._limit(longest)}, "
                f"which leaves {room}",
                param=asked.limit_field,
                value=wanted,
            )
        if sampling.min_tokens > wanted:
            raise PromptTooLongError(
                f"min_tokens: {sampling.min_tokens} and {len(tokens)} prompt tokens exceed {self._limit(longest)}, "
                f"which leaves {room}",
                param="min_tokens",
                value=sampling.min_tokens,
            )
        complete = sampling.complete(max_tokens=wanted)
        number = self.dispatcher.next_request()
        digest = self.fleet.model_digest
        hashes = None if digest is None else PromptHashes(tokens, digest, asked.cache_salt)
        return TokenizedPrompt(tokens, complete, number, self, asked, terms, parts, hashes)
