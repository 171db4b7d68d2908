"""The workloads: what is done, and when the clock runs."""

from __future__ import annotations

from benchmarks.workloads.bench import Bench
from benchmarks.workloads.catalogue import QUICK, Sizes, Task, letters, tasks

__all__ = ["QUICK", "Bench", "Sizes", "Task", "letters", "tasks"]
