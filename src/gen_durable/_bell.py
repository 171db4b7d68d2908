"""Wakes other processes after inserts: at once when it is quiet, once for many under load."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable

from gen_durable._session import Session
from gen_durable._store.limiting import wake
from gen_durable._store.operation import Catalog, Operation
from gen_durable.errors import DatabaseUnreachable, EngineStateError

__all__ = ["Bell", "SilentBell"]

COALESCE_SECONDS = 0.004
"""An insert carries a notification if none has for so long."""
PATIENCE_SECONDS = 0.006
"""A row of which nobody was told waits so long for such an insert: one that follows soon gets its chance."""


class Bell:
    """Decides whether an insert carries a notification, and tells of the rows of those that do not.

    A notification in each transaction would serialise commits under load. So one serves all inserts of a few
    milliseconds: the first carries it, and one that is sent after the window's end speaks for the rest; where none is,
    the bell rings by itself.
    """

    def __init__(self, session: Session, sql: Catalog) -> None:
        self._session = session
        self._sql = sql
        self._sent: dict[str, float] = {}  # when the last insert that may tell was sent
        self._told: dict[str, float] = {}  # when the last one was sent that is known to have told
        self._first: dict[str, float] = {}  # since when somebody may have to be told of rows
        self._last: dict[str, float] = {}  # when the last row came that told nobody itself
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._ringing: set[asyncio.Task[None]] = set()
        self._closing = False

    def rides_along(self, queues: Iterable[str]) -> bool:
        """Whether an insert into these queues, sent now, is to tell.

        When it is done, call :meth:`told` if it has told of each of them, else :meth:`later`.
        """
        now = time.monotonic()
        if self._closing:
            return True
        fresh = [queue for queue in queues if now - self._sent.get(queue, 0.0) >= COALESCE_SECONDS]
        for queue in fresh:
            self._sent[queue] = now
        return bool(fresh)

    def told(self, queues: Iterable[str], sent: float) -> None:
        """An insert that was sent then has told of these queues."""
        for queue in queues:
            self._told[queue] = max(sent, self._told.get(queue, 0.0))

    def later(self, queue: str) -> None:
        """A row of the queue is there and nobody was told: see to it that somebody is, soon."""
        now = self._last[queue] = time.monotonic()
        if queue not in self._timers:
            self._first[queue] = now
            self._ring_in(queue, PATIENCE_SECONDS)

    def _ring_in(self, queue: str, seconds: float, *, patient: bool = True) -> None:
        self._timers[queue] = asyncio.get_running_loop().call_later(seconds, self._ring, queue, patient)

    def _ring(self, queue: str, patient: bool) -> None:
        """Tells of a queue's rows, where no insert has done it or is about to.

        An insert that was sent after a row was there tells of the row too.
        """
        del self._timers[queue]
        told, sent = self._told.get(queue, 0.0), self._sent.get(queue, 0.0)
        if told > self._last[queue]:
            return
        if told > self._first[queue]:
            self._first[queue], patient = told, True
        early = self._first[queue] + PATIENCE_SECONDS - time.monotonic()
        if early > 0:
            self._ring_in(queue, early)
        elif patient and sent > self._first[queue]:  # one is on its way; it may fail
            self._ring_in(queue, PATIENCE_SECONDS, patient=False)
        else:
            self._tell_now(queue)

    def _tell_now(self, queue: str) -> None:
        self._sent[queue] = time.monotonic()
        self.send(wake(self._sql, [f"q:{queue}"]))

    def send(self, word: Operation[None]) -> None:
        """Tells something by itself, while nobody waits for it."""
        task = asyncio.create_task(self._tell(word), name="gen_durable wake-up")
        self._ringing.add(task)
        task.add_done_callback(self._ringing.discard)

    async def _tell(self, word: Operation[None]) -> None:
        with contextlib.suppress(DatabaseUnreachable, EngineStateError):  # the poll interval finds the rows
            await self._session.call(word)

    async def close(self) -> None:
        """Tells at once of what is still untold; inserts that are sent meanwhile tell themselves."""
        self._closing = True
        while self._timers or self._ringing:
            for queue, timer in self._timers.items():
                timer.cancel()
                if self._told.get(queue, 0.0) <= self._last[queue]:
                    self._tell_now(queue)
            self._timers.clear()
            await asyncio.gather(*self._ringing, return_exceptions=True)
        self._closing = False


class SilentBell:
    """For clients without an event loop: every statement tells by itself, and nothing is told later."""

    def rides_along(self, queues: Iterable[str]) -> bool:
        """It does."""
        return True

    def told(self, queues: Iterable[str], sent: float) -> None:
        """It is known."""

    def later(self, queue: str) -> None:
        """The statement has told of all that it made due."""

    def send(self, word: Operation[None]) -> None:
        """Only workers ask for it."""

    async def close(self) -> None:
        """There is nothing to tell."""
