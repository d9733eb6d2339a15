"""The command: a workload by its flags, run, reported."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

from rtp_llm.errors import InvalidRequestError, UnavailableError
from rtp_llm.http_client import text_at
from rtp_llm.load.client import Outcome, run
from rtp_llm.load.report import Objective, plot, summary, table, write_json
from rtp_llm.load.workload import FIRST_TOKEN_ID, Arrival, Trace, random_prompts


def bench_serve(options: argparse.Namespace, say: Callable[[str], None]) -> int:
    """Status 1 where a request failed.

    Raises:
        UnavailableError: the server can't be reached.
        ConfigError: the trace can't be read.
        InvalidRequestError: a flag is wrong; names it.
    """
    if options.vocabulary <= FIRST_TOKEN_ID:
        text = f"vocabulary must be greater than {FIRST_TOKEN_ID}, got {options.vocabulary}"
        raise InvalidRequestError(text, param="vocabulary", value=options.vocabulary)
    url = options.url.rstrip("/").removesuffix("/v1")
    model = options.served_model_name or _first_model(url)
    arrivals = list(_arrivals(options))
    done = 0

    def progress(outcome: Outcome) -> None:
        nonlocal done
        done += 1
        if done % max(len(arrivals) // 10, 1) == 0:
            say(f"{done} of {len(arrivals)} requests have ended, {outcome.ended:.1f} s")

    outcomes = asyncio.run(run(url, model, arrivals, options.concurrency, progress))
    objective = Objective(_seconds(options.first_token_ms), _seconds(options.token_ms))
    found = summary(outcomes, objective)
    for line in table(found):
        say(line)
    if options.json is not None:
        given = {
            name: _plain(value) for name, value in vars(options).items() if name not in ("command", "json", "plot")
        }
        write_json(options.json, {**given, "model": model}, found, outcomes)
    if options.plot is not None:
        plot(options.plot, outcomes)
    return int(found["failed"] > 0)


def _arrivals(options: argparse.Namespace) -> Iterator[Arrival]:
    if options.trace is not None:
        trace = Trace(options.trace, options.divide, options.longest, options.speed)
        return trace.arrivals(options.requests, options.vocabulary, options.seed)
    rate = options.rate or float("inf")
    lengths = options.prompt_tokens, options.output_tokens
    return random_prompts(options.requests, rate, *lengths, options.vocabulary, options.seed)


def _first_model(url: str) -> str:
    said = text_at(url, "/v1/models")
    try:
        return str(json.loads(said)["data"][0]["id"])
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise UnavailableError(f"{url}/v1/models names no model") from error


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, int | float | str) else str(value)
