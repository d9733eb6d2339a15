"""Commands: serve, generate, chat, env. Flags are generated from the config tree."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rtp_llm.config import Config, load_config, settings
from rtp_llm.errors import RtpLlmError

SHORT_FLAGS = {
    "--host": "http.host",
    "--port": "http.port",
    "--prefill": "prefill.replicas",
    "--decode": "decode.replicas",
    "--served-model-name": "model.served_name",
    "--max-model-len": "model.max_model_len",
    "--dtype": "model.dtype",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status. An error of ours is one line on stderr and status 1."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options) or 0)
    except RtpLlmError as error:
        print(f"rtp-llm: {error.message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rtp-llm", description="A prefill/decode-disaggregated LLM server on Ray.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="serve a model over HTTP on a local Ray (or on RAY_ADDRESS's)")
    _add_config_flags(serve)
    serve.set_defaults(command=_serve)

    generate = commands.add_parser("generate", help="complete a prompt in this process, without a server")
    generate.add_argument("prompt", help="text to go on from; - reads it from standard input")
    generate.add_argument("--max-tokens", type=int, default=128)
    generate.add_argument("--temperature", type=float, default=0.0)
    generate.add_argument("--seed", type=int)
    _add_config_flags(generate, positional=False)
    generate.set_defaults(command=_generate)

    chat = commands.add_parser("chat", help="talk to a server in the terminal")
    chat.add_argument("--url", default="http://127.0.0.1:8000", help="base URL of the server")
    chat.add_argument("--system", help="system message")
    chat.add_argument("--temperature", type=float, default=0.0)
    chat.add_argument("--max-tokens", type=int)
    chat.set_defaults(command=_chat)

    env = commands.add_parser("env", help="print what a bug report needs")
    env.set_defaults(command=_env)
    return parser


def _add_config_flags(parser: argparse.ArgumentParser, positional: bool = True) -> None:
    flag = "model" if positional else "--model"
    kwargs: dict[str, Any] = {"nargs": "?"} if positional else {}
    parser.add_argument(flag, metavar="MODEL", help="model directory; default: the demo model", **kwargs)
    parser.add_argument("--config", metavar="FILE", help="YAML file with the config tree")
    for name, path in SHORT_FLAGS.items():
        parser.add_argument(name, dest=path, metavar="VALUE", help=settings()[path].description)
    group = parser.add_argument_group("all settings")
    for path, field in settings().items():
        text = f"{field.description} (default: {field.get_default(call_default_factory=True)!r})".replace("%", "%%")
        group.add_argument(f"--{path.replace('_', '-')}", dest=path, metavar="VALUE", help=text)


def _config(options: argparse.Namespace) -> Config:
    overrides = {path: value for path, value in vars(options).items() if path in settings() and value is not None}
    if options.model is not None:
        overrides["model.path"] = options.model
    return load_config(options.config, overrides)


def _serve(options: argparse.Namespace) -> int:
    config = _config(options)
    started = time.monotonic()

    def progress(text: str) -> None:
        print(f"[{time.monotonic() - started:5.1f} s] {text}", file=sys.stderr, flush=True)

    from rtp_llm.model.config import read_model_config

    read_model_config(config.model.path)  # a wrong model is said here, before Ray starts
    with contextlib.suppress(_Stopped), _stopped_by_signals():
        from rtp_llm.app import running

        with running(config, progress) as url:
            print(_ready_text(url, config.served_name), flush=True)
            threading.Event().wait()
    return 0


class _Stopped(BaseException):
    """The first SIGINT or SIGTERM: stop gracefully."""


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """The first signal raises _Stopped on the main thread; a second one ends this process at once, and Ray with it."""

    def stop(number: int, frame: Any) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, kill)
        raise _Stopped

    def kill(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, stop)
    yield


def _ready_text(url: str, model: str) -> str:
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "What is 23 + 58?"}], "temperature": 0})
    return f"ready at {url}\ncurl {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'"


def _generate(options: argparse.Namespace) -> int:
    from rtp_llm import LLM, SamplingParams

    config = _config(options)
    prompt = sys.stdin.read() if options.prompt == "-" else options.prompt
    params = SamplingParams(max_tokens=options.max_tokens, temperature=options.temperature, seed=options.seed)
    with LLM(model=config.model.path, dtype=config.model.dtype, max_model_len=config.model.max_model_len) as llm:
        print(llm.generate([prompt], params)[0].outputs[0].text)
    return 0


def _chat(options: argparse.Namespace) -> int:
    from rtp_llm.chat import converse

    return converse(options.url, options.system, options.temperature, options.max_tokens)


def _env(options: argparse.Namespace) -> int:
    from rtp_llm.engine import supported_isas

    print(f"python      {platform.python_version()} on {platform.platform()}")
    for name in ("rtp-llm", "ray", "grpcio", "protobuf", "tokenizers", "safetensors", "libucx-cu12"):
        try:
            print(f"{name:<11} {version(name)}")
        except PackageNotFoundError:
            print(f"{name:<11} not installed")
    print(f"cpus        {len(os.sched_getaffinity(0))}")
    print(f"isa levels  {', '.join(supported_isas())}")
    shm = os.statvfs("/dev/shm")
    print(f"/dev/shm    {shm.f_bavail * shm.f_frsize >> 20} MiB free")
    print(f"ulimit -n   {_open_files()}")
    return 0


def _open_files() -> int:
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


if __name__ == "__main__":
    sys.exit(main())
