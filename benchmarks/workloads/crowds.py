"""Crowds: what many rows that wait, for signals or for a limit, cost those that don't."""

from __future__ import annotations

import time
from typing import Any

import psycopg

from benchmarks.agents import AgentFailed
from benchmarks.samples import Sample, percentile
from benchmarks.workloads.bench import Bench, Costs


def idle(bench: Bench, *, parked: int, seconds: float) -> Sample:
    """What a worker with nothing to do sends beside so many parked instances; CPU time too, all by the second."""
    with bench.fresh("E") as agents:
        agents.call("prepare", kind="waiter", count=1)
        with bench.connect() as connection:
            bench.fill(connection, "parked", parked)
        bench.vacuum()
        with agents.workers(1) as workers:
            bench.board.open_gate()
            time.sleep(5.0)  # its start, and the first passes of its services
            costs = Costs(bench, [worker.pid for worker in workers])
            time.sleep(seconds)
            costs.stop()
            commits = bench.server.commits(bench.database) - costs.commits
        extras = {key: value for key, value in costs.per_job(1).items() if key.endswith("_ms")}
        extras = {key: value / seconds for key, value in extras.items()}
        return Sample(commits / seconds, parked, extras)


def crowd(bench: Bench, *, waiting: int, jobs: int, latencies: int) -> Sample:
    """Unrelated jobs of a queue in which so many rows wait on one key, beside a queue in which none does.

    From insert to start: p50, p99, and ``alone`` the p50 without the others. ``plain`` is the rate without them,
    ``share`` the rate with them by that one. ``written`` counts the waiting rows that were written meanwhile,
    ``updates`` and ``dead`` what is more of either in the whole table than without them.
    """
    alone, plain, updates, dead, _ = _unrelated(bench, 0, jobs, latencies)
    values, rate, more_updates, more_dead, written = _unrelated(bench, waiting, jobs, latencies)
    extras = {"p99": percentile(values, 0.99), "alone": percentile(alone, 0.5), "plain": plain, "share": rate / plain}
    extras |= {"updates": float(more_updates - updates), "dead": float(more_dead - dead), "written": written}
    return Sample(percentile(values, 0.5), waiting, extras)


def _unrelated(bench: Bench, waiting: int, jobs: int, latencies: int) -> tuple[list[float], float, int, int, float]:
    """Milliseconds from insert to start, jobs a second, rows updated, dead rows, waiting rows written."""
    with bench.fresh("N") as agents, bench.connect() as connection:
        agents.call("prepare", kind="crowd", count=min(waiting, 1))
        bench.fill(connection, "blocked", waiting)
        bench.vacuum()
        with agents.workers(1):
            bench.board.open_gate()
            time.sleep(2.0)  # one holds the key, the others wait
            before = _traffic(connection)
            values = agents.call("latency", count=latencies)["ms"]
            seconds = agents.call("burst", count=jobs)["seconds"]
            time.sleep(2.0)  # statistics come late
            after = _traffic(connection)
            row = connection.execute(bench.entry.waiting.encode()).fetchone()
        if row is None or row[0] != waiting:
            raise AgentFailed(f"{waiting} rows are to wait, {row and row[0]} do")
        return values, jobs / seconds, after[0] - before[0], after[1] - before[1], float(row[1])


def _traffic(connection: psycopg.Connection[Any]) -> tuple[int, int]:
    """Rows that were updated so far in the table of instances, and dead ones in it now."""
    query = "SELECT n_tup_upd, n_dead_tup FROM pg_stat_user_tables WHERE relname = 'instances'"
    row = connection.execute(query).fetchone()
    assert row is not None
    return int(row[0]), int(row[1])
