"""A board in shared memory: workers count and stamp on it, the run that measures them reads along.

A file mapped by all processes costs a worker well under a microsecond per job and no system call. The stamps
are ``time.monotonic`` values: on Linux and macOS one clock for all processes of a machine.
"""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path

SLOTS = 16
MARKS = 4096
_WORDS = 3 * SLOTS + 1 + MARKS


class Board:
    """Counters and stamps of one timed run; ``slot`` is the place of the worker process that writes."""

    def __init__(self, path: Path, slot: int = 0) -> None:
        if not path.exists():
            path.write_bytes(bytes(8 * _WORDS))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 8 * _WORDS)
        self.path, self.slot = path, slot
        whole = memoryview(self._map)
        self._hits = whole[: 8 * SLOTS].cast("q")
        self._ready = whole[8 * SLOTS : 16 * SLOTS].cast("q")
        self._first = whole[16 * SLOTS : 24 * SLOTS].cast("d")
        self._go = whole[24 * SLOTS : 24 * SLOTS + 8].cast("q")
        self._marks = whole[24 * SLOTS + 8 :].cast("d")

    def clear(self) -> None:
        """Back to zeros, for the next run."""
        self._map[:] = bytes(8 * _WORDS)

    def hit(self) -> None:
        """Count one executed body; the first one of a worker is also stamped."""
        slot = self.slot
        count = self._hits[slot] + 1
        self._hits[slot] = count
        if count == 1:
            self._first[slot] = time.monotonic()

    def report(self, count: int, first: float) -> None:
        """Count bodies that a program ran which can't write here, and stamp the start of the first."""
        self._first[self.slot] = first
        self._hits[self.slot] += count

    def mark(self, number: int) -> None:
        """Stamp item ``number`` with the time at which its body started."""
        self._marks[number] = time.monotonic()
        self.hit()

    def marked(self, number: int) -> float:
        """Stamp of item ``number``; 0.0 while it has not started."""
        return self._marks[number]

    def hits(self) -> int:
        """Bodies executed so far, all workers together."""
        return sum(self._hits)

    def first(self) -> float:
        """When the first body of any worker started; 0.0 before."""
        return min((stamp for stamp in self._first if stamp), default=0.0)

    def started(self) -> int:
        """How many workers have executed a body."""
        return sum(1 for stamp in self._first if stamp)

    def ready(self) -> int:
        """How many workers stand at the gate."""
        return sum(self._ready)

    def open_gate(self) -> None:
        """Let the workers that stand at the gate go."""
        self._go[0] = 1

    def wait_at_gate(self) -> None:
        """Say that this worker is ready (imports done), then block until the gate opens."""
        parent = os.getppid()
        self._ready[self.slot] = 1
        while not self._go[0]:
            if os.getppid() != parent:
                raise SystemExit("the run that started this worker is gone")
            time.sleep(0.002)
