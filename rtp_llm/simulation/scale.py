"""The command: a trace replayed through a configuration's pools, and what they did."""

from __future__ import annotations

import argparse
import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rtp_llm.config import Config, Pool
from rtp_llm.errors import ConfigError, InvalidRequestError, UnavailableError
from rtp_llm.load.workload import Trace, Traced
from rtp_llm.simulation.grid import Machine
from rtp_llm.simulation.machines import MACHINES
from rtp_llm.simulation.measured import step_cost_of
from rtp_llm.simulation.replay import Moment, Replayed, fixed_sizes, longest_held, replay
from rtp_llm.simulation.request import SimulatedRequest

ROWS = 40  # of the text plot


def scale(options: argparse.Namespace, config: Config, say: Callable[[str], None]) -> int:
    """
    Raises:
        ConfigError: the trace or the measured steps can't be read, or no pool is autoscaled.
        InvalidRequestError: a flag is wrong; names it.
    """
    if not config.is_autoscaled:
        raise ConfigError("no pool is autoscaled: neither prefill.autoscaling.max nor decode.autoscaling.max is set")
    machine = _machine(options)
    arrivals = _arrivals(options, config, machine, say)
    say(_header(options, config, machine, arrivals))
    replayed = replay(arrivals, config, machine, start_s=options.start_s)
    for line in _plot_lines(replayed):
        say(line)
    summaries = {"autoscaled": _summary(replayed)}
    if options.fixed:
        for sizes, fixed in fixed_sizes(config):
            found = replay(arrivals, fixed, machine, start_s=options.start_s)
            summaries[f"{sizes[Pool.PREFILL]}:{sizes[Pool.DECODE]}"] = _summary(found)
    for line in _table(summaries):
        say(line)
    if options.json is not None:
        _write_json(options.json, summaries, replayed)
    if options.plot is not None:
        _draw(options.plot, replayed)
    return 0


def _machine(options: argparse.Namespace) -> Machine:
    machine = MACHINES.get(options.machine)
    if machine is None:
        text = f"machine must be one of {', '.join(sorted(MACHINES))}, got {options.machine}"
        raise InvalidRequestError(text, param="machine", value=options.machine)
    if options.steps is None:
        return machine
    return replace(machine, name=options.steps.name, cost=step_cost_of(options.steps))


def _arrivals(
    options: argparse.Namespace, config: Config, machine: Machine, say: Callable[[str], None]
) -> list[Traced]:
    trace = Trace(options.trace, options.divide, options.longest, options.speed)
    found = list(trace.lines(options.requests))
    if options.seconds is not None:
        found = [each for each in found if each.due_s < options.seconds]
    held = longest_held(config, machine)
    fitting = [each for each in found if each.prompt_tokens + each.output_tokens <= held]
    if not fitting:
        raise ConfigError(f"trace {options.trace}: no request is short enough for a KV pool of {held} tokens")
    if len(fitting) < len(found):
        say(f"{len(found) - len(fitting)} requests are longer than a KV pool of {held} tokens: left out")
    return sorted(fitting, key=lambda each: each.due_s)


def _header(options: argparse.Namespace, config: Config, machine: Machine, arrivals: Sequence[Traced]) -> str:
    seconds = max(arrivals[-1].due_s, 1e-9)
    return (
        f"{len(arrivals)} requests in {seconds:.0f} s on {machine.name}, a worker starts in {options.start_s:g} s; "
        f"TTFT at most {config.router.ttft_target_ms:g} ms, "
        f"ITL {config.engine_of(Pool.DECODE).itl_target_ms:g} ms (mean of a request)"
    )


# --- What it did


def _summary(replayed: Replayed) -> dict[str, Any]:
    seconds = {pool.value: found for pool, found in replayed.worker_seconds.items()}
    return {
        "attainment": replayed.attainment(replayed.requests),
        "unfinished": sum(not each.is_finished for each in replayed.requests),
        "worker_seconds": {**seconds, "all": sum(seconds.values())},
        "most_waiting": max(each.waiting for each in replayed.moments),
    }


def _table(summaries: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Fixed sizes by their worker-seconds; `autoscaled` first."""
    yield f"{'prefill:decode':>14}  {'in time':>8}  {'prefill':>9}  {'decode':>9}  {'worker-seconds':>14}"
    ordered = sorted(summaries.items(), key=lambda each: (each[0] != "autoscaled", each[1]["worker_seconds"]["all"]))
    for name, found in ordered:
        spent = found["worker_seconds"]
        unfinished = f"  {found['unfinished']} unfinished" if found["unfinished"] else ""
        yield (
            f"{name:>14}  {found['attainment']:8.1%}  {spent['prefill']:9.0f}  {spent['decode']:9.0f}  "
            f"{spent['all']:14.0f}{unfinished}"
        )


def _plot_lines(replayed: Replayed) -> Iterator[str]:
    """A row for each part of the time: means of what there was, and who of those that came then was answered in time."""
    yield f"{'s':>7}  {'requests':>8}  {'waiting':>7}  {'prefill':<16}  {'decode':<16}  in time"
    for begin, moments, came in _parts(replayed, ROWS):
        bars = [_bar(_mean([each.running[pool] for each in moments])) for pool in Pool]
        met = replayed.attainment(came)
        waiting = _mean([each.waiting for each in moments])
        share = "" if met is None else f"{met:4.0%} {'▪' * round(10 * met)}"
        yield f"{begin:7.0f}  {len(came):8}  {waiting:7.1f}  {bars[0]:<16}  {bars[1]:<16}  {share}".rstrip()


def _parts(replayed: Replayed, count: int) -> Iterator[tuple[float, list[Moment], list[SimulatedRequest]]]:
    width = max(replayed.seconds / count, 1e-9)
    arrivals = [each.arrival for each in replayed.requests]
    for number in range(count):
        begin = number * width
        end = begin + width if number < count - 1 else float("inf")
        moments = [each for each in replayed.moments if begin <= each.at < end]
        if moments:
            first, last = (bisect_right(arrivals, at - 1e-9) for at in (begin, end))
            yield begin, moments, list(replayed.requests[first:last])


def _bar(workers: float) -> str:
    return f"{workers:4.1f} {'█' * round(workers)}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _write_json(path: Path, summaries: dict[str, dict[str, Any]], replayed: Replayed) -> None:
    """One object: `summary` by size, a row a moment (`moments`) and a row a request (`requests`)."""
    moments = [
        {
            "at": round(each.at, 3),
            "waiting": each.waiting,
            "running": {pool.value: number for pool, number in each.running.items()},
            "starting": {pool.value: number for pool, number in each.starting.items()},
        }
        for each in replayed.moments
    ]
    requests = [asdict(each) | {"met": replayed.is_met(each)} for each in replayed.requests]
    path.write_text(json.dumps({"summary": summaries, "moments": moments, "requests": requests}) + "\n")


def _draw(path: Path, replayed: Replayed) -> None:
    """Workers, queue and attainment over time.

    Raises:
        UnavailableError: matplotlib isn't installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UnavailableError("--plot needs matplotlib: pip install 'rtp-llm[plot]'") from error
    figure = Figure(figsize=(11, 7), layout="constrained")
    workers, queue, met = figure.subplots(3, 1, sharex=True)
    times = [each.at for each in replayed.moments]
    for pool in Pool:
        workers.step(times, [each.running[pool] for each in replayed.moments], where="post", label=pool.value)
    workers.set(ylabel="workers")
    workers.legend()
    queue.plot(times, [each.waiting for each in replayed.moments])
    queue.set(ylabel="waiting in the router")
    parts = [(begin, replayed.attainment(came)) for begin, _, came in _parts(replayed, ROWS)]
    shown = [(begin, found) for begin, found in parts if found is not None]
    met.step([begin for begin, _ in shown], [found for _, found in shown], where="post")
    met.set(ylabel="answered in time", xlabel="s", ylim=(0, 1.05))
    figure.savefig(path)
