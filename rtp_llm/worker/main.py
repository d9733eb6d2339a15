"""One worker as a plain process, without Ray: `python -m rtp_llm.worker --pool prefill --id p0 --set engine.num_threads=1`.

Prints one line of JSON when it listens: {"id", "epoch", "pool", "address"}. SIGTERM and SIGINT drain it; it leaves with 0 when
it had nothing left, else with 1. With `--parent-pipe`, the end of stdin ends it at once: no worker outlives what started it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from rtp_llm.config import Pool, load_config
from rtp_llm.errors import ConfigError, RtpLlmError
from rtp_llm.worker.worker import Worker

log = logging.getLogger("rtp_llm.worker")


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=options.log_level, format=f"%(asctime)s {options.id} %(levelname)s %(name)s: %(message)s")
    try:
        return asyncio.run(_run(options))
    except RtpLlmError as error:
        print(f"{type(error).__name__}: {error.message}", file=sys.stderr)
        return 2


async def _run(options: argparse.Namespace) -> int:
    config = load_config(options.config, dict(_setting(text) for text in options.set)).with_token_read()
    worker = await Worker.load(config, options.pool, options.id)
    await worker.start()
    print(
        json.dumps({"id": worker.key.id, "epoch": worker.key.epoch, "pool": options.pool, "address": worker.address}),
        flush=True,
    )
    drained = await _asked_to_drain(worker, options.parent_pipe) and await worker.drain()
    await worker.stop()
    if worker.must_be_killed:
        logging.shutdown()
        os._exit(1)
    return 0 if drained else 1


async def _asked_to_drain(worker: Worker, parent_pipe: bool) -> bool:
    """Waits for a signal, then True; or False: stdin has ended, nobody is left to work for, or the worker has failed."""
    loop = asyncio.get_running_loop()
    asked: asyncio.Future[bool] = loop.create_future()

    def ask(drain: bool) -> None:
        if not asked.done():
            asked.set_result(drain)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ask, True)
    failed = asyncio.ensure_future(worker.failed())
    failed.add_done_callback(lambda _: ask(False))
    if parent_pipe:
        loop.add_reader(sys.stdin.fileno(), ask, False)
    try:
        return await asked
    finally:
        failed.cancel()
        if parent_pipe:
            loop.remove_reader(sys.stdin.fileno())


def _setting(text: str) -> tuple[str, Any]:
    path, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--set {text}: expected section.setting=value")
    return path, value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m rtp_llm.worker", description="One worker as a plain process.")
    parser.add_argument("--pool", type=Pool, choices=list(Pool), required=True)
    parser.add_argument("--id", required=True, help="unique among live workers")
    parser.add_argument("--config", help="YAML file of settings")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.SETTING=VALUE")
    parser.add_argument("--parent-pipe", action="store_true", help="leave when stdin ends")
    parser.add_argument("--log-level", default="INFO")
    return parser
