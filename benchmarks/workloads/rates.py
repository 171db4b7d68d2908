"""Rates: jobs and chains that are run, rows that are inserted, jobs beside jobs of another kind."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import psycopg

from benchmarks.adapter import STEPS
from benchmarks.agents import AgentFailed, Agents
from benchmarks.samples import Sample
from benchmarks.workloads.bench import Bench, Costs, until_committed, until_hits, wait


def drain(
    bench: Bench, *, workload: str, kind: str, count: int, procs: int, options: Mapping[str, Any] | None = None
) -> Sample:
    """Insert first, then start the workers; the clock runs from the first body to the last commit.

    Raises ``AgentFailed`` when a worker dies, when it stalls, or when rows finished are not those inserted.
    """
    count = bench.scaled(workload, count)
    with bench.fresh(workload, options) as agents:
        agents.call("prepare", kind=kind, count=count)
        bench.vacuum()
        with bench.connect() as connection:
            return run_all(bench, agents, connection, kind=kind, count=count, procs=procs)


def run_all(
    bench: Bench,
    agents: Agents,
    connection: psycopg.Connection[Any],
    *,
    kind: str,
    count: int,
    procs: int,
    staying: int = 0,
) -> Sample:
    """Run what has been inserted; what was finished before does not count, and ``staying`` are never finished."""
    steps = STEPS if kind == "chain" else 1
    rows = count * (steps if bench.entry.row_per_step else 1)
    before = bench.count(connection, bench.entry.done)
    with agents.workers(procs) as workers:
        wait(lambda: bench.board.ready() == procs, workers)
        time.sleep(0.3)
        costs = Costs(bench, [worker.pid for worker in workers])
        bench.board.open_gate()
        until_hits(bench, count * steps, workers)
        polls = until_committed(bench, connection, staying)
        end = time.monotonic()
        costs.stop()
        done = bench.count(connection, bench.entry.done) - before
        seconds = end - bench.board.first()
    if done != rows:
        raise AgentFailed(f"{bench.entry.name}: {rows} rows inserted, {done} finished")
    connection.close()  # so that what it has committed is counted, too
    return Sample(count * steps / seconds, count, costs.per_job(count * steps, polls + 1))


def insert(bench: Bench, *, count: int, bulk: bool) -> Sample:
    """Insert from one process, one call awaited after the other; no worker runs."""
    count = bench.scaled("C", count) if bulk else count
    with bench.fresh("C") as agents:
        agents.call("prepare", kind="noop", count=0)
        costs = Costs(bench, [])
        answer = agents.call("insert", bulk=bulk, count=count)
        costs.stop()
        extras = costs.per_job(count)
        extras["client_ms"] = 1000 * answer["cpu"] / count
        return Sample(count / answer["seconds"], count, extras)


def limited(bench: Bench, *, kind: str, count: int, procs: int, pairs: int) -> Sample:
    """Jobs with a limit, beside as many without."""
    jobs = partial(drain, bench, workload="G", count=count, procs=procs)
    return in_turns(partial(jobs, kind=kind), partial(jobs, kind="noop"), pairs)


def history(bench: Bench, *, kind: str, count: int, procs: int, pairs: int) -> Sample:
    """Jobs or chains with a row of history for each step, beside as many without history."""
    jobs = partial(drain, bench, workload="I", kind=kind, count=count, procs=procs)
    return in_turns(partial(jobs, options={"history": "steps"}), partial(jobs, options={"history": "off"}), pairs)


def in_turns(own: Callable[[], Sample], plain: Callable[[], Sample], pairs: int) -> Sample:
    """What something costs: plain, own; own, plain; and so on.

    ``plain`` is the rate of the plain ones, ``share`` the own rate by that one; ``plain_wal`` their WAL per job.
    """
    samples: dict[Callable[[], Sample], list[Sample]] = {own: [], plain: []}
    for pair in range(pairs):
        for run in (own, plain) if pair % 2 else (plain, own):
            samples[run].append(run())
    rates = {run: statistics.harmonic_mean(sample.value for sample in taken) for run, taken in samples.items()}
    wal = {run: statistics.mean(sample.extras["wal_bytes"] for sample in taken) for run, taken in samples.items()}
    noise = [sample.extras.get("others_pct", 0.0) for taken in samples.values() for sample in taken]
    extras = {"wal_bytes": wal[own], "plain_wal": wal[plain], "plain": rates[plain], "share": rates[own] / rates[plain]}
    return Sample(rates[own], samples[own][0].count, {**extras, "others_pct": max(noise)})
