"""CPU seconds and memory of processes, read from /proc; all functions answer None or 0.0 where there is no /proc."""

from __future__ import annotations

import os
from pathlib import Path

CORES = os.cpu_count() or 1
_TICKS = os.sysconf("SC_CLK_TCK")


def seconds(pid: int) -> float:
    """User and system time of a process and its children, the ended ones included."""
    return tree_seconds(pid) or 0.0


def tree_seconds(pid: int) -> float | None:
    """The same; None where it can't be seen."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return None
    return _own(pid, reaped=True) + sum(_own(int(child)) for child in children)


def resident(pid: int) -> int | None:
    """Bytes of memory that a process has."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return None
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Rss:"))


def busy() -> float | None:
    """CPU seconds that this machine has spent on anything so far."""
    try:
        fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    except (OSError, ValueError):
        return None
    return (sum(fields) - fields[3] - fields[4]) / _TICKS


def _own(pid: int, *, reaped: bool = False) -> float:
    """Of one process, with that of its ended children when ``reaped``."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return 0.0
    return sum(int(field) for field in fields[11 : 15 if reaped else 13]) / _TICKS
