"""Latencies on an idle engine, one call every 20 ms: p50 and p99."""

from __future__ import annotations

from benchmarks.agent import WARM
from benchmarks.agents import AgentFailed
from benchmarks.samples import Sample, percentile
from benchmarks.workloads.bench import Bench


def latency(bench: Bench, *, count: int, local: bool) -> Sample:
    """From the call of insert to the start of the body; the worker in the same process, or in another one."""
    with bench.fresh("D") as agents:
        agents.call("prepare", kind="noop", count=0)
        if local:
            values = agents.call("latency_local", count=count)["ms"]
        else:
            with agents.workers(1):
                bench.board.open_gate()
                values = agents.call("latency", count=count)["ms"]
    return _sample(values)


def wakeups(bench: Bench, *, count: int, local: bool) -> Sample:
    """From the call of signal to the start of the body that it wakes."""
    count = bench.scaled("E", count)
    with bench.fresh("E") as agents:
        agents.call("prepare", kind="noop", count=0)
        with agents.workers(0 if local else 1):
            bench.board.open_gate()
            values = agents.call("wakeups", count=count, local=local)["ms"]
    return _sample(values)


def results(bench: Bench, *, count: int, local: bool) -> Sample:
    """From the call of insert to the return of the call that waits for the result.

    Raises ``AgentFailed`` when an answer is wrong, or when rows finished are not those inserted.
    """
    with bench.fresh("D.result") as agents:
        agents.call("prepare", kind="noop", count=0)
        with agents.workers(0 if local else 1), bench.connect() as connection:
            bench.board.open_gate()
            values = agents.call("results", count=count, local=local)["ms"]
            done = bench.count(connection, bench.entry.done)
    if done != WARM + count:
        raise AgentFailed(f"{bench.entry.name}: {WARM + count} rows inserted, {done} finished")
    return _sample(values)


def _sample(values: list[float]) -> Sample:
    return Sample(percentile(values, 0.5), len(values), {"p99": percentile(values, 0.99)})
