"""The workloads: what is done, and when the clock runs."""

from __future__ import annotations

from benchmarks.workloads.bench import Bench
from benchmarks.workloads.catalogue import brief, letters, tasks
from benchmarks.workloads.task import FEW, QUICK, Sizes, Task

__all__ = ["FEW", "QUICK", "Bench", "Sizes", "Task", "brief", "letters", "tasks"]
