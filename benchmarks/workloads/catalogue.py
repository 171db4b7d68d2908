"""What can be measured: the keys, their sizes, and how to take a sample of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from benchmarks.adapter import STEPS
from benchmarks.board import MARKS
from benchmarks.samples import Measure, Sample
from benchmarks.workloads.bench import Bench
from benchmarks.workloads.crowds import crowd, idle
from benchmarks.workloads.families import family, large_family
from benchmarks.workloads.latencies import latency, wakeups
from benchmarks.workloads.rates import drain, insert, limited


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
