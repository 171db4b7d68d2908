"""The order in which things are measured."""

from __future__ import annotations

import time

from rich.console import Console

from benchmarks.agents import AgentFailed
from benchmarks.registry import Entry
from benchmarks.samples import Results, Sample
from benchmarks.workloads import Bench, Task


def measure(
    todo: list[Task],
    benches: list[Bench],
    reps: int,
    results: Results,
    progress: Console,
    *,
    slow_most: int | None = None,
) -> int:
    """Take all samples; the number of failures.

    Engines alternate within each repetition, in turning order, so that a slow minute hits them all. An engine
    that failed is left out of the measure's other repetitions; slow ones have ``slow_most`` at most.
    """
    failures = 0
    for task in todo:
        able = [bench for bench in benches if task.fits(bench.entry) and not _known(task, bench.entry, results)]
        times = min(reps, task.most or reps)
        for rep in range(times):
            for bench in list(able):
                if slow_most is not None and rep >= slow_most and bench.entry.slow:
                    continue
                start = time.monotonic()
                try:
                    sample = task.run(bench)
                except AgentFailed as error:
                    failures += 1
                    able.remove(bench)
                    progress.print(f"{task.key:16} failed: {error}", style="red", markup=False)
                    continue
                results.add(task.measure, bench.entry.name, sample)
                line = _line(task, bench.entry, sample, rep, times, time.monotonic() - start)
                progress.print(line, markup=False, soft_wrap=True)
            able = able[1:] + able[:1]
    return failures


def _known(task: Task, entry: Entry, results: Results) -> bool:
    """Whether this run has measured the same thing of the engine under another key."""
    same = task.same_for(entry)
    return bool(same) and results.share(same, task.measure, entry.name)


def _line(task: Task, entry: Entry, sample: Sample, rep: int, reps: int, took: float) -> str:
    noise = sample.extras.get("others_pct", 0.0)
    note = f"  (others used {noise:.0f} % of a core)" if noise >= 20 else ""
    value = f"{sample.value:,.0f}" if sample.value >= 100 else f"{sample.value:.2f}"
    head = f"{task.key:16} {entry.name:14} {rep + 1}/{reps}"
    return f"{head} {value:>9} {task.measure.unit}  in {took:.1f} s{note}"
