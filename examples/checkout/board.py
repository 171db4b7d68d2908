"""Shows how far the demo is: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

EVERY = 2.0  # seconds between two lines


@dataclass(frozen=True)
class Counts:
    """How many orders have come how far."""

    reserved: int = 0
    charged: int = 0
    shipped: int = 0
    receipts: int = 0
    runnable: int = 0
    executing: int = 0
    done: int = 0
    failed: int = 0
    cancelled: int = 0

    @property
    def ended(self) -> int:
        return self.done + self.failed + self.cancelled

    def status(self) -> str:
        return f"done {self.done:,} · failed {self.failed:,} · executing {self.executing:,} · waiting {self.runnable:,}"


class Board:
    """``with Board(console, total) as board: board.show(counts)``."""

    BARS = ("reserved", "charged", "shipped", "receipts", "ended")

    def __init__(self, console: Console, total: int) -> None:
        self._console, self._total = console, total
        self._started = time.monotonic()
        self._next_line = EVERY
        self._progress = Progress(
            TextColumn("{task.description:>9}"),
            BarColumn(bar_width=36),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[status]}"),
            console=console,
        )
        self._bars: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bars = {name: self._progress.add_task(name, total=self._total, status="") for name in self.BARS}
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def say(self, line: str) -> None:
        """Prints a line, above the bars if there are any."""
        line = f"{time.monotonic() - self._started:5.1f} s  {line}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def show(self, counts: Counts) -> None:
        for name, bar in self._bars.items():
            status = counts.status() if name == "ended" else ""
            self._progress.update(bar, completed=getattr(counts, name), status=status)
        if not self._bars and time.monotonic() - self._started >= self._next_line:
            self._next_line += EVERY
            steps = " · ".join(f"{name} {getattr(counts, name):,}" for name in self.BARS[:-1])
            self.say(f"{counts.ended:,} of {self._total:,} ended ({steps} · {counts.status()})")
