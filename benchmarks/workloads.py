"""The workloads: what is done, and when the clock runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psycopg

from benchmarks import cpu
from benchmarks.adapter import STEPS
from benchmarks.agents import AgentFailed, Agents
from benchmarks.board import MARKS, Board
from benchmarks.registry import Entry
from benchmarks.samples import Measure, Sample, percentile
from benchmarks.server import Server

STALL = 30.0
"""Seconds without a single finished job after which a run is given up."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much of each."""

    jobs: int = 20_000
    chains: int = 4_000
    singles: int = 1_000
    paid: int = 10_000
    bulk: int = 20_000
    latencies: int = 200
    parked: int = 100_000
    idle: float = 10.0
    family: int = 5_000
    large: int = 100_000
    crowd: int = 1_000_000


QUICK = Sizes(
    paid=4_000, chains=1_000, singles=500, latencies=100, parked=20_000, idle=5.0, large=20_000, crowd=100_000
)
assert QUICK.latencies < MARKS


class Bench:
    """One engine on one server, ready to run any workload."""

    def __init__(self, server: Server, entry: Entry, python: Path, board: Board, extra: dict[str, Any]) -> None:
        self.server, self.entry, self.board = server, entry, board
        self._python, self._extra = python, extra
        self.database = f"bench_{entry.name}"
        self.written = 0.0

    @contextmanager
    def fresh(self, workload: str) -> Iterator[Agents]:
        """An empty database and a clear board."""
        url = self.server.recreate(self.database)
        self.board.clear()
        options = {**self.entry.settings(workload), **self._extra}
        try:
            yield Agents(self.entry, self._python, url, self.board, options)
        finally:
            self.server.drop(self.database)

    def connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.server.url(self.database), autocommit=True)

    def vacuum(self) -> None:
        """Statistics as on a system that has run for a while."""
        with self.connect() as connection:
            connection.execute("VACUUM ANALYZE")

    def scaled(self, workload: str, count: int) -> int:
        """The number of jobs for this engine."""
        return max(1, round(count * self.entry.share.get(workload, 1.0)))

    def count(self, connection: psycopg.Connection[Any], statement: str) -> int:
        row = connection.execute(statement.encode()).fetchone()
        assert row is not None
        return int(row[0])


class _Costs:
    """WAL, commits and CPU from construction to ``stop``."""

    def __init__(self, bench: Bench, pids: list[int]) -> None:
        self._server, self._database, self._pids = bench.server, bench.database, pids
        self.commits = self._server.commits(self._database)
        self._start = self._read()

    def _read(self) -> tuple[float, int, float | None, float, float | None, float]:
        workers = sum(cpu.seconds(pid) for pid in self._pids)
        return (
            time.monotonic(),
            self._server.wal(),
            self._server.cpu(),
            workers,
            cpu.busy(),
            time.process_time(),
        )

    def stop(self) -> None:
        self._end = self._read()

    def per_job(self, jobs: int, own_commits: int = 0) -> dict[str, float]:
        """Costs per job; to be asked when the sessions are closed: their commits are counted only then."""
        time.sleep(0.1)  # a session's last statistics arrive while it ends
        commits = self._server.commits(self._database) - self.commits - own_commits
        (t0, wal0, server0, workers0, busy0, me0), (t1, wal1, server1, workers1, busy1, me1) = (
            self._start,
            self._end,
        )
        costs = {"wal_bytes": (wal1 - wal0) / jobs, "commits": commits / jobs}
        if self._pids:
            costs["client_ms"] = 1000 * (workers1 - workers0) / jobs
        if server0 is not None and server1 is not None:
            costs["server_ms"] = 1000 * (server1 - server0) / jobs
            if busy0 is not None and busy1 is not None and self._pids:
                others = (busy1 - busy0) - (server1 - server0) - (workers1 - workers0) - (me1 - me0)
                costs["others_pct"] = max(0.0, 100 * others / (t1 - t0))
        return costs


def drain(bench: Bench, *, workload: str, kind: str, count: int, procs: int) -> Sample:
    """Insert first, then start the workers; the clock runs from the first body to the last commit.

    Raises ``AgentFailed`` when a worker dies, when it stalls, or when rows finished are not those inserted.
    """
    count = bench.scaled(workload, count)
    steps = STEPS if kind == "chain" else 1
    rows = count * (steps if bench.entry.row_per_step else 1)
    with bench.fresh(workload) as agents:
        agents.call("prepare", kind=kind, count=count)
        bench.vacuum()
        with bench.connect() as connection, agents.workers(procs) as workers:
            _wait(lambda: bench.board.ready() == procs, workers)
            time.sleep(0.3)
            costs = _Costs(bench, [worker.pid for worker in workers])
            bench.board.open_gate()
            _until_hits(bench, count * steps, workers)
            polls = _until_committed(bench, connection)
            end = time.monotonic()
            costs.stop()
            done = bench.count(connection, bench.entry.done)
            seconds = end - bench.board.first()
        if done != rows:
            raise AgentFailed(f"{bench.entry.name}: {rows} rows inserted, {done} finished")
        return Sample(count * steps / seconds, count, costs.per_job(count * steps, polls + 1))


def insert(bench: Bench, *, count: int, bulk: bool) -> Sample:
    """Insert from one process, one call awaited after the other; no worker runs."""
    count = bench.scaled("C", count) if bulk else count
    with bench.fresh("C") as agents:
        agents.call("prepare", kind="noop", count=0)
        costs = _Costs(bench, [])
        answer = agents.call("insert", bulk=bulk, count=count)
        costs.stop()
        extras = costs.per_job(count)
        extras["client_ms"] = 1000 * answer["cpu"] / count
        return Sample(count / answer["seconds"], count, extras)


def latency(bench: Bench, *, count: int, local: bool) -> Sample:
    """From the call of insert to the start of the body on an idle engine, every 20 ms: p50 and p99."""
    with bench.fresh("D") as agents:
        agents.call("prepare", kind="noop", count=0)
        if local:
            values = agents.call("latency_local", count=count)["ms"]
        else:
            with agents.workers(1):
                bench.board.open_gate()
                values = agents.call("latency", count=count)["ms"]
    return Sample(percentile(values, 0.5), count, {"p99": percentile(values, 0.99)})


def wakeups(bench: Bench, *, count: int, local: bool) -> Sample:
    """From the call of signal to the start of the body that it wakes, every 20 ms: p50 and p99."""
    with bench.fresh("E") as agents:
        agents.call("prepare", kind="noop", count=0)
        with agents.workers(0 if local else 1):
            bench.board.open_gate()
            values = agents.call("wakeups", count=count, local=local)["ms"]
    return Sample(percentile(values, 0.5), count, {"p99": percentile(values, 0.99)})


def idle(bench: Bench, *, parked: int, seconds: float) -> Sample:
    """What a worker with nothing to do sends beside so many parked instances; CPU time too, all by the second."""
    with bench.fresh("E") as agents:
        agents.call("prepare", kind="waiter", count=1)
        with bench.connect() as connection:
            psycopg.RawCursor(connection).execute(bench.entry.park.encode(), [parked])
        bench.vacuum()
        with agents.workers(1) as workers:
            bench.board.open_gate()
            time.sleep(5.0)  # its start, and the first passes of its services
            costs = _Costs(bench, [worker.pid for worker in workers])
            time.sleep(seconds)
            costs.stop()
            commits = bench.server.commits(bench.database) - costs.commits
        extras = {key: value for key, value in costs.per_job(1).items() if key.endswith("_ms")}
        extras = {key: value / seconds for key, value in extras.items()}
        return Sample(commits / seconds, parked, extras)


def family(bench: Bench, *, count: int) -> Sample:
    """Children of one parent, from its insertion to its end, beside as many plain jobs, inserted and run."""
    with bench.fresh("F") as agents:
        agents.call("prepare", kind="noop", count=0)
        bench.board.open_gate()
        spent = agents.call("family", count=count)
    children, plain = count / spent["children"], count / spent["plain"]
    return Sample(children, count, {"plain": plain, "share": children / plain})


def large_family(bench: Bench, *, count: int) -> Sample:
    """A parent with very many children, from its insertion to its end."""
    with bench.fresh("F") as agents:
        agents.call("prepare", kind="noop", count=0)
        bench.board.open_gate()
        return Sample(agents.call("large_family", count=count)["seconds"], count)


def limited(bench: Bench, *, kind: str, count: int) -> Sample:
    """Jobs with a limit, beside as many without, in turns: plain, limited, limited, plain."""
    rates: dict[str, list[float]] = {"noop": [], kind: []}
    others = 0.0
    for which in ("noop", kind, kind, "noop"):
        sample = drain(bench, workload="G", kind=which, count=count, procs=1)
        rates[which].append(1 / sample.value)
        others = max(others, sample.extras.get("others_pct", 0.0))
    own, plain = 2 / sum(rates[kind]), 2 / sum(rates["noop"])
    return Sample(own, count, {"plain": plain, "share": own / plain, "others_pct": others})


def crowd(bench: Bench, *, waiting: int, jobs: int, latencies: int) -> Sample:
    """Unrelated jobs of a queue in which so many rows wait on one key, beside a queue in which none does.

    From insert to start: p50, p99, and ``alone`` the p50 without the others. ``plain`` is the rate without them,
    ``share`` the rate with them by that one. ``written`` counts the waiting rows that were written meanwhile,
    ``updates`` and ``dead`` what is more of either in the whole table than without them.
    """
    alone, plain, updates, dead = _unrelated(bench, 0, jobs, latencies)
    values, rate, more_updates, more_dead = _unrelated(bench, waiting, jobs, latencies)
    extras = {"p99": percentile(values, 0.99), "alone": percentile(alone, 0.5), "plain": plain, "share": rate / plain}
    extras |= {"updates": float(more_updates - updates), "dead": float(more_dead - dead), "written": bench.written}
    return Sample(percentile(values, 0.5), waiting, extras)


def _unrelated(bench: Bench, waiting: int, jobs: int, latencies: int) -> tuple[list[float], float, int, int]:
    """Milliseconds from insert to start, jobs a second, rows updated, dead rows."""
    with bench.fresh("N") as agents, bench.connect() as connection:
        agents.call("prepare", kind="crowd", count=min(waiting, 1))
        psycopg.RawCursor(connection).execute(bench.entry.crowd.encode(), [waiting])
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
        bench.written = float(row[1])
        return values, jobs / seconds, after[0] - before[0], after[1] - before[1]


def _traffic(connection: psycopg.Connection[Any]) -> tuple[int, int]:
    """Rows that were updated so far in the table of instances, and dead ones in it now."""
    query = "SELECT n_tup_upd, n_dead_tup FROM pg_stat_user_tables WHERE relname = 'instances'"
    row = connection.execute(query).fetchone()
    assert row is not None
    return int(row[0]), int(row[1])


def _wait(condition: Callable[[], bool], workers: list[Any], limit: float = STALL) -> None:
    end = time.monotonic() + limit
    while not condition():
        if any(worker.poll() is not None for worker in workers):
            raise AgentFailed("a worker died")
        if time.monotonic() > end:
            raise AgentFailed(f"nothing happened for {limit:g} s")
        time.sleep(0.002)


def _until_hits(bench: Bench, wanted: int, workers: list[Any]) -> None:
    while (seen := bench.board.hits()) < wanted:
        _wait(lambda seen=seen: bench.board.hits() > seen, workers)  # type: ignore[misc]


def _until_committed(bench: Bench, connection: psycopg.Connection[Any], limit: float = STALL) -> int:
    """All bodies have run; wait for the last commits. The number of looks that it took."""
    polls, give_up = 1, time.monotonic() + limit
    while left := bench.count(connection, bench.entry.left):
        if time.monotonic() > give_up:
            raise AgentFailed(f"{bench.entry.name}: all jobs ran, {left} of them are not finished")
        polls += 1
        time.sleep(0.002)
    return polls


@dataclass(frozen=True)
class Task:
    """One measure and how to take one sample of it."""

    letter: str
    measure: Measure
    run: Callable[[Bench], Sample]


def tasks(only: str, procs: list[int], sizes: Sizes) -> list[Task]:
    """The tasks of the workloads named by the letters in ``only``."""
    found = [
        *(_draining("A", "noop", "no-op jobs", "jobs/s", sizes.jobs, workers) for workers in procs),
        *(_draining("B", "chain", f"chains of {STEPS} steps", "steps/s", sizes.chains, workers) for workers in procs),
        Task("C", Measure("C", "insert one by one", "rows/s"), partial(insert, count=sizes.singles, bulk=False)),
        Task(
            "C",
            Measure("C.bulk", "insert 1,000 a call", "rows/s"),
            partial(insert, count=sizes.bulk, bulk=True),
        ),
        _latency("D", "same process", sizes.latencies, local=True),
        _latency("D.other", "another process", sizes.latencies, local=False),
        _wakeup("E", "same process", sizes.latencies, local=True),
        _wakeup("E.other", "another process", sizes.latencies, local=False),
        *(_idle(key, parked, sizes.idle) for key, parked in (("E.idle", 0), ("E.parked", sizes.parked))),
        Task(
            "F",
            Measure("F", f"{sizes.family:,} children of one parent, spawn to join", "children/s"),
            partial(family, count=sizes.family),
        ),
        Task(
            "F",
            Measure("F.large", f"{sizes.large:,} children of one parent", "s", lower_is_better=True),
            partial(large_family, count=sizes.large),
        ),
        _limited("G", "keyed", "jobs over 100 keys of one at a time", sizes.jobs),
        _limited("H", "wide", "jobs over 100 keys of 50 at a time, which never bind", sizes.jobs),
        _limited("H.rate", "metered", "jobs under a rate that never binds", sizes.jobs),
        _draining("J", "paid", "transactional steps, 20 in flight", "steps/s", sizes.paid, 1),
        _draining(
            "J", "paid_alone", "the same SQL in transactions of its own", "steps/s", sizes.paid, 1, key="J.alone"
        ),
        Task(
            "N",
            Measure(
                "N", f"insert to start beside {sizes.crowd:,} that wait on one key, p50", "ms", lower_is_better=True
            ),
            partial(crowd, waiting=sizes.crowd, jobs=sizes.jobs, latencies=sizes.latencies),
        ),
    ]
    return [task for task in found if task.letter in only]


def _draining(letter: str, kind: str, title: str, unit: str, count: int, procs: int, key: str = "") -> Task:
    key = key or (letter if procs == 1 else f"{letter}.{procs}")
    plural = "1 worker process" if procs == 1 else f"{procs} worker processes"
    run = partial(drain, workload=letter, kind=kind, count=count, procs=procs)
    return Task(letter, Measure(key, f"{title}, {plural}", unit), run)


def _limited(key: str, kind: str, title: str, count: int) -> Task:
    return Task(key[0], Measure(key, title, "jobs/s"), partial(limited, kind=kind, count=count))


def _latency(key: str, where: str, count: int, *, local: bool) -> Task:
    measure = Measure(key, f"insert to start, {where}, p50", "ms", lower_is_better=True)
    return Task("D", measure, partial(latency, count=count, local=local))


def _wakeup(key: str, where: str, count: int, *, local: bool) -> Task:
    measure = Measure(key, f"signal to start of the waiting step, {where}, p50", "ms", lower_is_better=True)
    return Task("E", measure, partial(wakeups, count=count, local=local))


def _idle(key: str, parked: int, seconds: float) -> Task:
    measure = Measure(key, f"an idle worker beside {parked:,} parked instances", "commits/s", lower_is_better=True)
    return Task("E", measure, partial(idle, parked=parked, seconds=seconds))
