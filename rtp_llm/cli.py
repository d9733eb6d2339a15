"""Commands: serve, generate, chat, top, scale, bench, env. Flags are generated from the config tree."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import select
import signal
import sys
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

from rtp_llm import __version__
from rtp_llm.config import DEMO_MODEL, Config, load_config, settings
from rtp_llm.errors import RtpLlmError
from rtp_llm.http_client import KEY_VARIABLE

# flag: (setting, metavar)
SHORT_FLAGS = {
    "--host": ("http.host", "ADDRESS"),
    "--port": ("http.port", "PORT"),
    "--prefill": ("prefill.replicas", "N"),
    "--decode": ("decode.replicas", "N"),
    "--served-model-name": ("model.served_name", "NAME"),
    "--max-model-len": ("model.max_model_len", "N"),
    "--dtype": ("model.dtype", "TYPE"),
    "--otlp-traces-endpoint": ("otel.traces_endpoint", "URL"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status. A wrong flag is one line on stderr and status 2, an error of ours 1. As shells
    count signals, Ctrl-C is 130, and 141 that nobody reads stdout any more (`rtp-llm env | head -1`)."""
    try:
        try:
            return _run(arguments)
        finally:
            print(end="", flush=True)  # here, and not when Python ends
    except BrokenPipeError:
        if not _nobody_reads(sys.stdout.fileno()):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # takes what is still buffered
        return 128 + signal.SIGPIPE


def _run(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options) or 0)
    except RtpLlmError as error:
        print(f"rtp-llm: {error.message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _nobody_reads(pipe: int) -> bool:
    """The other end of `pipe` is closed."""
    poll = select.poll()
    poll.register(pipe, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


class _Parser(argparse.ArgumentParser):
    """One line for a wrong flag, no abbreviations."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="rtp-llm", description="A prefill/decode-disaggregated LLM server on Ray.")
    parser.add_argument("--version", action="version", version=f"rtp-llm {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    serve = commands.add_parser(
        "serve",
        help="serve a model over HTTP on a local Ray (or on RAY_ADDRESS's)",
        usage="rtp-llm serve [MODEL] [options]",
    )
    serve.add_argument(
        "--replace", action="store_true", help="take the place of the application of this name on RAY_ADDRESS's Ray"
    )
    _add_settings(serve)
    serve.set_defaults(command=_serve)

    generate = commands.add_parser("generate", help="complete a prompt in this process, without a server")
    generate.add_argument("prompt", help="text to go on from; - reads it from standard input")
    generate.add_argument(
        "--model",
        metavar="MODEL",
        default=DEMO_MODEL,
        help="model directory, or name in the hub's cache (default: the demo model)",
    )
    generate.add_argument("--chat", action="store_true", help="the prompt is a user's message to a chat model")
    generate.add_argument("--max-tokens", type=int, default=128, metavar="N", help="(default: 128)")
    generate.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 (default) is greedy")
    generate.add_argument("--seed", type=int, metavar="N", help="of the sampling noise")
    generate.add_argument("--dtype", default="auto", metavar="TYPE", help="auto (default), float32, bfloat16")
    generate.set_defaults(command=_generate)

    chat = commands.add_parser("chat", help="talk to a server in the terminal")
    chat.add_argument("--url", default="http://127.0.0.1:8000", help="base URL of the server (default: %(default)s)")
    chat.add_argument("--system", metavar="TEXT", help="system message")
    chat.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 (default) is greedy")
    chat.add_argument("--max-tokens", type=int, metavar="N", help="longest answer")
    chat.set_defaults(command=_chat)

    top = commands.add_parser("top", help="watch a server's pools, queues and rates in the terminal")
    top.add_argument("--url", default="http://127.0.0.1:8000", help="base URL of the server (default: %(default)s)")
    top.add_argument("--every", type=_positive_number, default=2.0, metavar="S", help="seconds (default: 2)")
    top.add_argument("--once", action="store_true", help="one interval, then end")
    top.set_defaults(command=_top)

    _add_scale(commands)
    _add_bench(commands)

    env = commands.add_parser("env", help="print what a bug report needs")
    env.set_defaults(command=_env)
    return parser


def _add_scale(commands: Any) -> None:
    scale = commands.add_parser("scale", help="what autoscaled pools would do with a trace, in simulated time")
    _add_trace(scale, required=True)
    scale.add_argument("--requests", type=_positive, metavar="N", help="the trace's first ones (default: all)")
    scale.add_argument("--seconds", type=_positive_number, metavar="S", help="its first seconds, after --speed")
    scale.add_argument("--machine", default="h200", metavar="NAME", help="whose steps were measured (default: h200)")
    scale.add_argument("--steps", type=Path, metavar="FILE", help="other steps: what `bench engine --json` has written")
    scale.add_argument(
        "--start-s", type=_positive_number, default=30.0, metavar="S", help="until a worker runs (default: 30)"
    )
    scale.add_argument("--fixed", action="store_true", help="beside pools of each fixed size within their limits")
    scale.add_argument("--json", type=Path, metavar="FILE", help="sizes, queue and requests over time")
    scale.add_argument("--plot", type=Path, metavar="FILE", help="a picture of them (needs matplotlib)")
    _add_settings(scale, {"engine", "worker", "prefill", "decode", "autoscaling", "router"})
    scale.set_defaults(command=_scale)


def _add_trace(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    parser.add_argument(
        "--trace",
        type=Path,
        required=required,
        metavar="FILE",
        help="lengths, times and shared prefixes of a Mooncake trace",
    )
    parser.add_argument("--divide", type=_positive, default=1, metavar="N", help="a trace's lengths by this")
    parser.add_argument(
        "--longest", type=_positive, default=1 << 20, metavar="N", help="tokens of a trace's prompt and answer"
    )
    parser.add_argument("--speed", type=_positive_number, default=1.0, metavar="X", help="a trace's rate times this")


def _add_bench(commands: Any) -> None:
    bench = commands.add_parser("bench", help="measure this machine").add_subparsers(
        required=True, metavar="WHAT", parser_class=_Parser
    )
    engine = bench.add_parser(
        "engine",
        help="one engine, without a server, against the rate that memory is read at",
        usage="rtp-llm bench engine [MODEL] [options]",
    )
    engine.add_argument("--decode", type=_numbers, default=(1, 8), metavar="N,…", help="batches (default: 1,8)")
    engine.add_argument("--prefill", type=_numbers, default=(512,), metavar="N,…", help="tokens (default: 512)")
    engine.add_argument("--saturated", type=_numbers, default=(), metavar="N,…", help="tokens of each of many prompts")
    engine.add_argument(
        "--mixed", type=_numbers, default=(), metavar="N,…", help="batches that decode while prompts arrive at random"
    )
    engine.add_argument("--context", type=_positive, default=512, metavar="N", help="of a decode row (default: 512)")
    engine.add_argument("--steps", type=_positive, default=64, metavar="N", help="decode steps (default: 64)")
    engine.add_argument("--json", type=Path, metavar="FILE", help="the rows, an object a line")
    _add_settings(engine, {"model", "engine"})
    engine.set_defaults(command=_bench_engine)

    serve = bench.add_parser("serve", help="an OpenAI-compatible server, by requests over HTTP")
    serve.add_argument("--url", default="http://127.0.0.1:8000", help="base URL of the server (default: %(default)s)")
    serve.add_argument("--served-model-name", metavar="NAME", help="default: the first that the server names")
    serve.add_argument("--requests", type=_positive, default=100, metavar="N", help="(default: 100)")
    serve.add_argument(
        "--rate", type=_positive_number, metavar="R", help="requests/s, Poisson arrivals (default: all at once)"
    )
    serve.add_argument(
        "--concurrency", type=_positive, metavar="N", help="at most so many at once (default: any number)"
    )
    serve.add_argument("--prompt-tokens", type=_lengths, default="128", metavar="N|A-B", help="(default: 128)")
    serve.add_argument("--output-tokens", type=_lengths, default="32", metavar="N|A-B", help="(default: 32)")
    _add_trace(serve)
    serve.add_argument(
        "--vocabulary", type=_positive, default=1000, metavar="N", help="ids are drawn below it (default: 1000)"
    )
    serve.add_argument("--seed", type=int, default=0, metavar="N", help="of lengths, ids and times")
    serve.add_argument("--first-token-ms", type=_positive_number, metavar="MS", help="objective, for goodput")
    serve.add_argument(
        "--token-ms", type=_positive_number, metavar="MS", help="objective: mean time of a token after the first"
    )
    serve.add_argument("--json", type=Path, metavar="FILE", help="workload, summary and each request's times")
    serve.add_argument("--plot", type=Path, metavar="FILE", help="a picture of them (needs matplotlib)")
    serve.set_defaults(command=_bench_serve)


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError
    return number


_positive.__name__ = "positive number"  # argparse: "invalid positive number value"


def _positive_number(text: str) -> float:
    if not 0 < (number := float(text)) < float("inf"):
        raise ValueError
    return number


_positive_number.__name__ = "positive number"


def _lengths(text: str) -> Any:
    from rtp_llm.load.workload import Lengths

    return Lengths.of(text)


_lengths.__name__ = "number of tokens, or range"


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(_positive(each) for each in text.split(",") if each)


_numbers.__name__ = "list of positive numbers"


def _add_settings(parser: argparse.ArgumentParser, sections: Collection[str] | None = None) -> None:
    """The model, a file, short flags, then every setting of the config tree by its path, a group a section; of `sections`
    only, if given."""
    if sections is None or "model" in sections:
        parser.add_argument(
            "model",
            nargs="?",
            metavar="MODEL",
            help="model directory, or name in the hub's cache (default: the demo model)",
        )
    parser.add_argument("--config", metavar="FILE", help="YAML file with the config tree")
    for flag, (path, metavar) in SHORT_FLAGS.items():
        if sections is None or path.partition(".")[0] in sections:
            parser.add_argument(flag, dest=path, metavar=metavar, help=_setting_help(path))
    section, group = "", None
    for path in settings():
        if sections is not None and path.partition(".")[0] not in sections:
            continue
        if not path.startswith(f"{section}."):
            section = path.partition(".")[0]
            group = parser.add_argument_group(f"settings: {section}")
        assert group is not None
        group.add_argument(f"--{path.replace('_', '-')}", dest=path, metavar="VALUE", help=_setting_help(path))


def _setting_help(path: str) -> str:
    field = settings()[path]
    default = field.get_default(call_default_factory=True)
    said = "default:" in field.description or str(default) in ("None", "", "{}")
    return (field.description if said else f"{field.description} (default: {default})").replace("%", "%%")


def _config(options: argparse.Namespace) -> Config:
    overrides = {path: value for path, value in vars(options).items() if path in settings() and value is not None}
    if getattr(options, "model", None) is not None:
        overrides["model.path"] = options.model
    return load_config(options.config, overrides).with_model_found()


def _serve(options: argparse.Namespace) -> int:
    from rtp_llm.model.config import read_model_config

    config = _config(options)
    read_model_config(config.model.path)  # a wrong model is said here, before Ray starts
    started = time.monotonic()

    def progress(text: str) -> None:
        print(f"[{time.monotonic() - started:5.1f} s] {text}", file=sys.stderr, flush=True)

    from rtp_llm.app import running

    served = running(config, progress, replace=options.replace)
    with contextlib.suppress(_Stopped), _stopped_by_signals(), served as url:
        print(_ready_text(url, config.served_name, bool(config.http.api_keys_file)), flush=True)
        threading.Event().wait()
    return 0


class _Stopped(BaseException):
    """The first SIGINT or SIGTERM: stop gracefully."""


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """The first signal raises _Stopped on the main thread; a second one kills this process and all that it has started.

    Where the first one hits C code of Ray's, Python makes a SystemError of it, which ends the block as well.
    """
    asked = False

    def stop(number: int, frame: Any) -> None:
        nonlocal asked
        asked = True
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, kill)
        raise _Stopped

    def kill(number: int, frame: Any) -> None:
        for each in (*_descendants(os.getpid()), os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)

    before = {each: signal.signal(each, stop) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except SystemError as error:
        if not asked:
            raise
        raise _Stopped from error
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _descendants(ancestor: int) -> list[int]:
    """Process ids, parents first."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # ended meanwhile
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found = list(children.get(ancestor, []))
    for each in found:
        found += children.get(each, [])
    return found


def _ready_text(url: str, model: str, asks_for_key: bool) -> str:
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "What is 23 + 58?"}], "temperature": 0})
    key = f' -H "Authorization: Bearer ${KEY_VARIABLE}"' if asks_for_key else ""
    return f"ready at {url}\ncurl {url}/v1/chat/completions{key} -H 'Content-Type: application/json' -d '{body}'"


def _generate(options: argparse.Namespace) -> int:
    from rtp_llm import LLM, SamplingParams

    prompt = sys.stdin.read() if options.prompt == "-" else options.prompt
    params = SamplingParams(max_tokens=options.max_tokens, temperature=options.temperature, seed=options.seed)
    with LLM(model=options.model, dtype=options.dtype) as llm:
        outputs = (
            llm.chat([{"role": "user", "content": prompt}], params) if options.chat else llm.generate(prompt, params)
        )
    print(outputs[0].outputs[0].text)
    return 0


def _chat(options: argparse.Namespace) -> int:
    from rtp_llm.chat import converse

    return converse(options.url, options.system, options.temperature, options.max_tokens)


def _top(options: argparse.Namespace) -> int:
    from rtp_llm.top import watch

    return watch(options.url, options.every, options.once, lambda text: print(text, flush=True))


def _scale(options: argparse.Namespace) -> int:
    from rtp_llm.simulation.scale import scale

    return scale(options, _config(options), lambda text: print(text, flush=True))


def _bench_engine(options: argparse.Namespace) -> int:
    from rtp_llm.bench import Plan, bench_engine, write_json

    plan = Plan(
        decode=options.decode,
        prefill=options.prefill,
        saturated=options.saturated,
        mixed=options.mixed,
        context=options.context,
        steps=options.steps,
    )
    rows = bench_engine(_config(options), plan, lambda line: print(line, flush=True))
    if options.json is not None:
        write_json(rows, options.json)
    return 0


def _bench_serve(options: argparse.Namespace) -> int:
    """Status 1 where a request failed."""
    from rtp_llm.load.command import bench_serve

    return bench_serve(options, lambda line: print(line, flush=True))


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
