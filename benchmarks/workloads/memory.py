"""Memory: what a worker process takes for each instance that it runs, and for each that is parked."""

from __future__ import annotations

import subprocess
import time
from typing import Any

import psycopg

from benchmarks import cpu
from benchmarks.agents import AgentFailed
from benchmarks.samples import Sample
from benchmarks.workloads.bench import Bench, until_committed, until_hits

Workers = list[subprocess.Popen[bytes]]

SETTLE = 2.0
"""Seconds from the last body's start to the look: the last commits, and what they leave behind."""
WARM = 1_000
"""Jobs that have run before the first look, so that what a worker makes once is there."""


def executing(bench: Bench, *, count: int) -> Sample:
    """Kilobytes of the worker for each of so many instances that all wait in their bodies at once.

    Raises ``AgentFailed`` when not exactly those inserted are being executed.
    """
    with bench.fresh("M.executing", {"concurrency": count}) as agents:
        agents.call("prepare", kind="noop", count=WARM)
        with bench.connect() as connection, agents.workers(1) as workers:
            bench.board.open_gate()
            until_hits(bench, WARM, workers)
            before = _settled(workers[0])
            agents.call("prepare", kind="sitter", count=count, ready=True)
            until_hits(bench, WARM + count, workers)
            after = _settled(workers[0])
            left, done = (bench.count(connection, query) for query in (bench.entry.left, bench.entry.done))
    if (left, done) != (count, WARM):
        raise AgentFailed(f"{bench.entry.name}: {count} are to be executed and {WARM} finished, {left} and {done} are")
    return Sample((after - before) / count / 1024, count)


def parked(bench: Bench, *, count: int) -> Sample:
    """Kilobytes of the worker for each of so many instances that it has run and parked, more than for a fifth of them.

    Raises ``AgentFailed`` when not exactly those inserted are parked.
    """
    warm = count // 5
    with bench.fresh("M.parked") as agents:
        agents.call("prepare", kind="parked", count=warm)
        with bench.connect() as connection, agents.workers(1) as workers:
            bench.board.open_gate()
            _until_parked(bench, connection, warm, workers)
            before = _settled(workers[0])
            agents.call("prepare", kind="parked", count=count, ready=True)
            _until_parked(bench, connection, warm + count, workers)
            after = _settled(workers[0])
    return Sample((after - before) / count / 1024, count)


def _until_parked(bench: Bench, connection: psycopg.Connection[Any], wanted: int, workers: Workers) -> None:
    """Wait until exactly so many are parked and nothing else is left."""
    until_hits(bench, wanted, workers)
    until_committed(bench, connection)
    found = bench.count(connection, bench.entry.parked)
    if found != wanted:
        raise AgentFailed(f"{bench.entry.name}: {wanted} are to be parked, {found} are")


def _settled(worker: subprocess.Popen[bytes]) -> int:
    """Bytes of memory of a worker that has nothing to do but to hold what it holds."""
    time.sleep(SETTLE)
    if (resident := cpu.resident(worker.pid)) is None:
        raise AgentFailed("M reads /proc/PID/smaps_rollup, which is not there: run it on Linux")
    return resident
