"""Families: children of one parent, from its insertion to its end."""

from __future__ import annotations

from benchmarks.samples import Sample
from benchmarks.workloads.bench import Bench


def family(bench: Bench, *, count: int) -> Sample:
    """Children of one parent beside as many plain jobs, inserted and run."""
    count = bench.scaled("F", count)
    with bench.fresh("F") as agents:
        agents.call("prepare", kind="noop", count=0)
        bench.board.open_gate()
        spent = agents.call("family", count=count)
    children, plain = count / spent["children"], count / spent["plain"]
    return Sample(children, count, {"plain": plain, "share": children / plain})


def large_family(bench: Bench, *, count: int) -> Sample:
    """A parent with very many children."""
    with bench.fresh("F") as agents:
        agents.call("prepare", kind="noop", count=0)
        bench.board.open_gate()
        return Sample(agents.call("large_family", count=count)["seconds"], count)
