"""Scale: how the rate grows with the workers, where neither the database nor the machine is at its limit.

Each worker runs few jobs at once, each of which waits as for somebody's answer; the database is at the end of a wire.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import psycopg

from benchmarks.adapter import CALL_SECONDS
from benchmarks.agents import AgentFailed
from benchmarks.cpu import CORES
from benchmarks.samples import Sample
from benchmarks.wire import stretched
from benchmarks.workloads.bench import Bench, Costs, until_committed, until_hits, wait

DELAY = 0.0005
"""Seconds that each direction takes: a round trip takes a millisecond."""
SETTLE = 1.5
"""Seconds from the first body of the last worker until the clock runs."""
SPARE = 2.0
"""Seconds of work more than what a worker can do while the clock runs."""


def scale(bench: Bench, *, procs: int, seconds: float) -> Sample:
    """The rate of so many workers; ``plain`` is as many times the rate of one, ``share`` the rate by that."""
    if procs == 1:
        return _rate(bench, 1, seconds)
    one = _rate(bench, 1, seconds)
    many = _rate(bench, procs, seconds)
    linear = procs * one.value
    return Sample(many.value, many.count, {**many.extras, "plain": linear, "share": many.value / linear})


def _rate(bench: Bench, workers: int, seconds: float) -> Sample:
    """Jobs a second, of all workers, while all of them work.

    Raises ``AgentFailed`` when they had no work left, or when rows finished are not those inserted.
    """
    most = bench.entry.settings("L")["concurrency"] / CALL_SECONDS
    count = round(workers * most * (SETTLE + seconds + SPARE))
    with bench.fresh("L") as agents:
        agents.call("prepare", kind="call", count=count)
        bench.vacuum()
        with (
            stretched(bench.server.url(bench.database), DELAY) as (url, wire),
            agents.at(url).workers(workers) as processes,
            bench.connect() as connection,
            psycopg.connect(url, autocommit=True) as far,
        ):
            wait(lambda: bench.board.ready() == workers, processes)
            bench.board.open_gate()
            wait(lambda: bench.board.started() == workers, processes)
            time.sleep(SETTLE)
            costs = Costs(bench, [wire, *(process.pid for process in processes)])
            hits, start = bench.board.hits(), time.monotonic()
            trip = _trip(far, start + seconds)
            hits, took = bench.board.hits() - hits, time.monotonic() - start
            costs.stop()
            spent = costs.per_job(hits)
            if bench.board.hits() >= count:
                raise AgentFailed(f"{bench.entry.name}: all {count} jobs had run before {seconds:g} s were over")
            until_hits(bench, count, processes)
            until_committed(bench, connection)
            done = bench.count(connection, bench.entry.done)
    if done != count:
        raise AgentFailed(f"{bench.entry.name}: {count} rows inserted, {done} finished")
    busy = (spent["client_ms"] + spent.get("server_ms", 0.0)) / 1000 * hits / took / CORES
    extras = {"trip_ms": 1000 * trip, "busy_pct": 100 * busy, "others_pct": spent.get("others_pct", 0.0)}
    return Sample(hits / took, count, extras)


def _trip(far: psycopg.Connection[Any], until: float) -> float:
    """The median of the round trips of a statement that does nothing, until then."""
    trips = []
    while (start := time.monotonic()) < until:
        far.execute("SELECT")
        trips.append(time.monotonic() - start)
        time.sleep(0.02)
    return statistics.median(trips)
