"""``python -m benchmarks``: the command line and the order in which things are measured."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import psycopg
from rich.console import Console

from benchmarks import plots, report, run, saved
from benchmarks.board import Board
from benchmarks.envs import ROOT, Unavailable, python_for
from benchmarks.registry import ENTRIES, NOT_PEERS, PEERS, QUICK_PEERS, Entry, find
from benchmarks.samples import Results
from benchmarks.server import running
from benchmarks.workloads import FEW, QUICK, Bench, Sizes, Task, brief, letters, tasks
from gen_durable.errors import GenDurableError


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure this engine, its peers and a bare loop side by side on one Postgres.",
    )
    out.add_argument("--quick", action="store_true", help="smaller sizes, fewer repetitions: about two minutes")
    out.add_argument(
        "--only",
        type=_parts,
        metavar="A,F.large",
        help=f"workloads, of {', '.join(letters())}, or keys of them (default: all; quick: what can be small)",
    )
    out.add_argument(
        "--peers",
        type=_names,
        metavar="NAMES",
        help=f"of {', '.join(PEERS)}; 'none' for none (default: all; quick: {', '.join(QUICK_PEERS)})",
    )
    out.add_argument("--without", type=_names, default=[], metavar="NAMES", help=f"of {', '.join(NOT_PEERS)}")
    out.add_argument("--reps", type=_positive, help="repetitions (default: 5; quick: 3, or 1 of everything)")
    out.add_argument(
        "--procs",
        type=_numbers,
        metavar="1,2",
        help="worker processes, where a letter leaves that open (default: 1,2; quick: 1)",
    )
    out.add_argument("--jobs", type=_positive, help="jobs in A (default: 20000)")
    out.add_argument(
        "--save",
        type=_name,
        default=saved.LATEST,
        help=f"write benchmarks/results/SAVE.json and draw plots of it; 'none' for neither (default: {saved.LATEST})",
    )
    out.add_argument("--json", action="store_true", help="one JSON object on stdout; progress goes to stderr")
    out.add_argument("--url", help="use this server (a superuser's URL) instead of a throw-away one")
    out.add_argument(
        "--set",
        type=_setting,
        action="append",
        default=[],
        metavar="ENGINE.KEY=VALUE",
        help="a setting of an engine, as JSON: gen_durable.concurrency=500",
    )
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Run; 0, or 1 when an engine failed, or 2 on wrong arguments or without a server."""
    arguments = parser().parse_args(argv)
    try:
        todo = _todo(arguments)
    except ValueError as error:
        parser().error(f"argument --only: {error}")
    # The server and the workers end in "finally" blocks, so a kill of the run has to unwind.
    signal.signal(signal.SIGTERM, _terminated)
    progress = Console(stderr=True, highlight=False)
    results = Results()
    try:
        failures = _measure(arguments, todo, results, progress)
    except (psycopg.OperationalError, GenDurableError) as error:
        progress.print(f"no server to measure on: {error}", style="red", markup=False, soft_wrap=True)
        return 2
    if arguments.save != "none" and results.measures:
        _keep(arguments.save, results, sys.argv[1:] if argv is None else argv, progress)
    if arguments.json:
        print(json.dumps(results.as_json()))
    else:
        console = Console()
        console.width = max(console.width, report.WIDTH)
        report.show(results, console)
    return 1 if failures else 0


def _measure(arguments: argparse.Namespace, todo: list[Task], results: Results, progress: Console) -> int:
    peers = arguments.peers if arguments.peers is not None else QUICK_PEERS if arguments.quick else PEERS
    names = [*(name for name in NOT_PEERS if name not in arguments.without), *peers]
    engines = _available([find(name) for name in names], progress)
    settings = _collect(arguments.set)
    with running(arguments.url) as server, tempfile.TemporaryDirectory() as folder:
        results.server = server.describe()
        progress.print(results.server, markup=False)
        board = Board(Path(folder) / "board")
        benches = [Bench(server, entry, python, board, settings.get(entry.name, {})) for entry, python in engines]
        reps, slow_most = _repetitions(arguments)
        try:
            return run.measure(todo, benches, reps, results, progress, slow_most=slow_most)
        finally:
            for bench in benches:
                bench.close()


def _todo(arguments: argparse.Namespace) -> list[Task]:
    procs, sizes = arguments.procs or ([1] if arguments.quick else [1, 2]), _sizes(arguments)
    if arguments.quick and arguments.only is None:
        return brief(procs, sizes)
    return tasks(letters() if arguments.only is None else arguments.only, procs, sizes)


def _repetitions(arguments: argparse.Namespace) -> tuple[int, int | None]:
    """Of an engine, and of a slow one at most."""
    if arguments.reps:
        return arguments.reps, None
    if arguments.quick:
        return (1 if arguments.only is None else 3), 1
    return 5, FEW


def _keep(name: str, results: Results, argv: Sequence[str], progress: Console) -> None:
    path = saved.save(name, results, argv)
    progress.print(f"saved: {path.relative_to(ROOT)}", markup=False, soft_wrap=True)
    try:
        drawn = plots.draw(name)
    except Unavailable as error:
        progress.print(f"no plots: {error}", style="yellow", markup=False, soft_wrap=True)
    else:
        progress.print(f"drawn: {', '.join(plot.name for plot in drawn)}", markup=False, soft_wrap=True)


def _available(entries: list[Entry], progress: Console) -> list[tuple[Entry, Path]]:
    found = []
    for entry in entries:
        try:
            found.append((entry, python_for(entry)))
        except Unavailable as error:
            progress.print(f"skipped: {error}", style="yellow", markup=False)
    return found


def _sizes(arguments: argparse.Namespace) -> Sizes:
    sizes = QUICK if arguments.quick else Sizes()
    return replace(sizes, jobs=arguments.jobs) if arguments.jobs else sizes


def _collect(settings: list[tuple[str, str, Any]]) -> dict[str, dict[str, Any]]:
    out: dict[str, dict[str, Any]] = {}
    for engine, key, value in settings:
        out.setdefault(engine, {})[key] = value
    return out


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _names(text: str) -> list[str]:
    names = [] if text == "none" else text.split(",")
    known = {entry.name for entry in ENTRIES}
    if unknown := [name for name in names if name not in known]:
        raise argparse.ArgumentTypeError(f"unknown engine {unknown[0]!r}: there are {', '.join(sorted(known))}")
    return names


def _name(text: str) -> str:
    try:
        return saved.checked(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1 or more")
    return int(text)


def _numbers(text: str) -> list[int]:
    return [_positive(part) for part in text.split(",")]


def _setting(text: str) -> tuple[str, str, Any]:
    name, equals, value = text.partition("=")
    engine, dot, key = name.partition(".")
    if not (equals and dot and key):
        raise argparse.ArgumentTypeError(f"{text!r} is not ENGINE.KEY=VALUE")
    _names(engine)
    try:
        return engine, key, json.loads(value)
    except ValueError:
        return engine, key, value


def _terminated(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)
