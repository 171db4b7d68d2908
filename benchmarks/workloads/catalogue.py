"""What can be measured: the keys, their sizes, and how to take a sample of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from benchmarks.adapter import CALL_SECONDS, STEPS
from benchmarks.samples import Measure, Sample
from benchmarks.workloads.crowds import crowd, idle
from benchmarks.workloads.decay import BLOCKED, PARKED, TERMINAL, Beside, beside, statistics
from benchmarks.workloads.families import family, large_family
from benchmarks.workloads.latencies import latency, results, wakeups
from benchmarks.workloads.memory import executing, parked
from benchmarks.workloads.rates import drain, history, insert, limited
from benchmarks.workloads.scale import scale
from benchmarks.workloads.task import Sizes, Task

BRIEF = frozenset((*"ABCDEFGHIJ", "B.step", "C.bulk", "D.other", "D.result", "E.other"))
"""The keys of a quick run that names none: those that can be small."""
BRIEF_OF_PEERS = frozenset(("A", "B", "B.step", "C", "C.bulk", "D"))
"""Those of them for which it has time to measure the peers, too."""


def letters() -> list[str]:
    """The workloads."""
    return list(dict.fromkeys(task.letter for task in _all([1], Sizes())))


def brief(procs: Sequence[int], sizes: Sizes) -> list[Task]:
    """The tasks of a quick run that names none."""
    return [replace(task, alone=task.base not in BRIEF_OF_PEERS) for task in _all(procs, sizes) if task.base in BRIEF]


def tasks(only: Sequence[str], procs: Sequence[int], sizes: Sizes) -> list[Task]:
    """The tasks that ``only`` names; a letter stands for all keys of that workload, by each of ``procs`` processes.

    Raises ``ValueError`` with all keys when it names something else.
    """
    known = _all(sorted({1, 2, *procs}), sizes)
    keys = {task.key.lower(): task.key for task in known}
    named = set()
    for name in only:
        if name.lower() not in keys and name.upper() not in letters():
            raise ValueError(
                f"{name!r} is no workload and no key of one: there are {', '.join(letters())}, and the keys "
                f"{', '.join(keys.values())}"
            )
        named.add(name.upper() if len(name) == 1 else keys[name.lower()])
    return [
        task
        for task in known
        if (task.letter in named and task.procs in (None, *procs)) or (len(task.key) > 1 and task.key in named)
    ]


def _all(procs: Sequence[int], sizes: Sizes) -> list[Task]:
    return [
        *_draining("A", "noop", "no-op jobs", "jobs/s", sizes.jobs, procs),
        *_draining("B", "chain", f"chains of {STEPS} steps", "steps/s", sizes.chains, procs),
        *_handed_back(sizes.chains, procs),
        Task(Measure("C", "insert one by one", "rows/s"), partial(insert, count=sizes.singles, bulk=False)),
        Task(Measure("C.bulk", "insert 1,000 a call", "rows/s"), partial(insert, count=sizes.bulk, bulk=True)),
        _latency("D", "same process", sizes.latencies, local=True),
        _latency("D.other", "another process", sizes.latencies, local=False),
        _result("D.result", "same process", sizes.latencies, local=True),
        _result("D.result.other", "another process", sizes.latencies, local=False),
        _wakeup("E", "same process", sizes.latencies, local=True),
        _wakeup("E.other", "another process", sizes.latencies, local=False),
        *(_idle(key, parked, sizes.idle) for key, parked in (("E.idle", 0), ("E.parked", sizes.parked))),
        Task(
            Measure("F", f"{sizes.family:,} children of one parent, spawn to join", "children/s"),
            partial(family, count=sizes.family),
        ),
        Task(
            Measure("F.large", f"{sizes.large:,} children of one parent", "s", lower_is_better=True),
            partial(large_family, count=sizes.large),
            needs="F.large",
        ),
        *_limited("G", "keyed", "jobs over 100 keys of one at a time", sizes, procs),
        *_limited("H", "wide", "jobs over 100 keys of 50 at a time, which never bind", sizes, procs),
        *_limited("H.rate", "metered", "jobs under a rate that never binds", sizes, procs),
        *_histories(sizes, procs),
        *_draining("J", "paid", "transactional steps, 20 in flight", "steps/s", sizes.paid, procs),
        *_draining("J.alone", "paid_alone", "the same SQL in transactions of its own", "steps/s", sizes.paid, procs),
        *_decays(sizes),
        *_scales(sizes.steady),
        *_memory(sizes),
        Task(
            Measure(
                "N", f"insert to start beside {sizes.crowd:,} that wait on one key, p50", "ms", lower_is_better=True
            ),
            partial(crowd, waiting=sizes.crowd, jobs=sizes.jobs, latencies=sizes.latencies),
        ),
    ]


def _draining(key: str, kind: str, title: str, unit: str, count: int, procs: Sequence[int]) -> list[Task]:
    return _by_procs(key, title, unit, procs, partial(drain, workload=key, kind=kind, count=count))


def _by_procs(key: str, title: str, unit: str, procs: Sequence[int], run: Callable[..., Sample]) -> list[Task]:
    """A task for each number of worker processes."""
    return [
        Task(
            Measure(key if workers == 1 else f"{key}.{workers}", f"{title}, {_plural(workers)}", unit),
            partial(run, procs=workers),
            workers,
        )
        for workers in procs
    ]


def _handed_back(count: int, procs: Sequence[int]) -> list[Task]:
    title = f"chains of {STEPS} steps, each handed back and claimed anew"
    found = _draining("B.step", "chain", title, "steps/s", count, procs)
    return [replace(task, same=task.key.replace(".step", ""), own="B.step") for task in found]


def _plural(procs: int) -> str:
    return "1 worker process" if procs == 1 else f"{procs} worker processes"


def _limited(key: str, kind: str, title: str, sizes: Sizes, procs: Sequence[int]) -> list[Task]:
    run = partial(limited, kind=kind, count=sizes.jobs, pairs=sizes.pairs)
    return _by_procs(key, title, "jobs/s", procs, run)


def _histories(sizes: Sizes, procs: Sequence[int]) -> list[Task]:
    jobs = partial(history, kind="noop", count=sizes.jobs, pairs=sizes.pairs)
    chains = partial(history, kind="chain", count=sizes.chains, pairs=sizes.pairs)
    return _few(
        [
            *_by_procs("I", "no-op jobs with history", "jobs/s", procs, jobs),
            *_by_procs("I.B", f"chains of {STEPS} steps with history", "steps/s", procs, chains),
        ]
    )


def _few(found: list[Task]) -> list[Task]:
    return [replace(task) for task in found]


def _decays(sizes: Sizes) -> list[Task]:
    fewer = sizes.terminal // 5
    return [
        *_decay("K.terminal", TERMINAL, sizes.terminal, "terminal rows", sizes),
        *_decay("K.terminal.fewer", TERMINAL, fewer, "terminal rows", sizes),
        *_decay("K.parked", PARKED, sizes.crowd, "parked rows", sizes),
        *_decay("K.blocked", BLOCKED, sizes.crowd, "rows that wait on one key", sizes),
        _statistics("K.stats", "without statistics", sizes, empty=False),
        _statistics("K.stats.stale", "with the statistics of the empty tables", sizes, empty=True),
    ]


def _decay(key: str, what: Beside, rows: int, title: str, sizes: Sizes) -> list[Task]:
    """Two tasks: jobs, and chains."""
    own = partial(beside, what=what, rows=rows, pairs=sizes.pairs)
    place = f"beside {rows:,} {title}, share of the rate beside none"
    return [
        Task(Measure(key, f"no-op jobs {place}", "share"), partial(own, kind="noop", count=sizes.jobs)),
        Task(
            Measure(f"{key}.B", f"chains of {STEPS} steps {place}", "share"),
            partial(own, kind="chain", count=sizes.chains),
        ),
    ]


def _statistics(key: str, title: str, sizes: Sizes, *, empty: bool) -> Task:
    measure = Measure(key, f"no-op jobs {title}, share of the rate with them", "share")
    run = partial(statistics, empty=empty, count=sizes.jobs, pairs=sizes.pairs)
    return Task(measure, run)


def _scales(seconds: float) -> list[Task]:
    title = f"jobs that wait for {1000 * CALL_SECONDS:.0f} ms, 1 ms away from Postgres"
    return [
        replace(task, procs=None)
        for task in _by_procs("L", title, "jobs/s", (1, 2, 4, 8), partial(scale, seconds=seconds))
    ]


def _memory(sizes: Sizes) -> list[Task]:
    title = "memory of a worker for each of"
    running = Measure("M.executing", f"{title} {sizes.executing:,} executing instances", "KB", lower_is_better=True)
    waiting = Measure("M.parked", f"{title} {sizes.parked:,} parked instances", "KB", lower_is_better=True)
    return [
        Task(running, partial(executing, count=sizes.executing)),
        Task(waiting, partial(parked, count=sizes.parked)),
    ]


def _latency(key: str, where: str, count: int, *, local: bool) -> Task:
    measure = Measure(key, f"insert to start, {where}, p50", "ms", lower_is_better=True)
    return Task(measure, partial(latency, count=count, local=local))


def _result(key: str, where: str, count: int, *, local: bool) -> Task:
    measure = Measure(key, f"insert to result, {where}, p50", "ms", lower_is_better=True)
    return Task(measure, partial(results, count=count, local=local), needs="D.result")


def _wakeup(key: str, where: str, count: int, *, local: bool) -> Task:
    measure = Measure(key, f"signal to start of the waiting step, {where}, p50", "ms", lower_is_better=True)
    return Task(measure, partial(wakeups, count=count, local=local))


def _idle(key: str, parked: int, seconds: float) -> Task:
    measure = Measure(key, f"an idle worker beside {parked:,} parked instances", "commits/s", lower_is_better=True)
    return Task(measure, partial(idle, parked=parked, seconds=seconds), needs="E.idle")
