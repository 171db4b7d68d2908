"""What a worker tells others of rows that it can run, and will not start at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from gen_durable._bell import Bell
from gen_durable._runtime.held import LocalQueue

__all__ = ["Telling"]

FULL_SECONDS = 0.25  # of a queue that this worker can't empty they are told at most this often
TELL_SECONDS = 0.02  # of rows that go back at most this often for each queue


class Telling:
    """Rings for other workers, not too often; ``takes`` says whether this one would start a row of a queue itself."""

    def __init__(self, bell: Bell, takes: Callable[[str], bool]) -> None:
        self._bell = bell
        self._takes = takes
        self._told: dict[str, float] = {}
        self._untold: set[str] = set()  # queues with rows that went back while another notification was just out

    def wake_list(self, queues: Iterable[str]) -> list[str]:
        """Of the queues to which rows go back: those that the rows' commit is to tell of."""
        now = time.monotonic()
        names: list[str] = []
        for name in queues:
            if self._takes(name):
                continue
            if now - self._told.get(name, 0.0) > TELL_SECONDS:
                self._told[name] = now
                names.append(name)
            elif name not in names:
                self._untold.add(name)
        return names

    def gone_back(self) -> None:
        """The commit is there: what it did not tell is told now."""
        while self._untold:
            self._bell.later(self._untold.pop())

    def full(self, queue: LocalQueue) -> None:
        """A claim came back full and nothing more fits: there may be more, for others to take."""
        now = time.monotonic()
        if queue.load >= queue.concurrency and now - self._told.get(queue.name, 0.0) > FULL_SECONDS:
            self._told[queue.name] = now
            self._bell.later(queue.name)
