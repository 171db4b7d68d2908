"""The services that look after what is not due, whose worker died, and what has expired."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

import msgspec
import psycopg

from gen_durable._runtime.link import Link
from gen_durable._runtime.service import Service, patience
from gen_durable._store.operation import Catalog
from gen_durable.events import Hooks, ReapedEvent, WorkerDeadEvent, emit

__all__ = ["Pruner", "Reaper", "Timers"]

log = logging.getLogger("gen_durable")

BATCH = 1000
REMEMBER_SECONDS = 90 * 86_400.0  # that it is known which occurrences of a schedule were started
FORGET_SECONDS = 60.0  # between two walks along the lines of limits
RETURN_SECONDS = 3.0  # that workers get to come back after an outage, before a missing lock means anything


class Timers(Service):
    """Brings rows forward when they are due, and sleeps until the next one is."""

    name = "timers"

    def __init__(
        self,
        link: Link,
        sql: Catalog,
        poll_interval: float,
        announce: Callable[[str | None], None],
        limits: Callable[[float], None],
    ) -> None:
        super().__init__()
        self._link = link
        self._sql = sql
        self._poll_interval = poll_interval
        self._announce = announce
        self._limits = limits  # is told in how many seconds lines of limits need a look
        self._next_at = 0.0
        self._misses = 0  # passes in a row that found nothing but locked rows

    async def once(self) -> float:
        """Promotes what is due; sleeps until the database's clock reaches the next."""
        planned = time.monotonic() >= self._next_at - 0.001
        self._next_at = math.inf  # what is expected while the statement runs may be missing in its answer
        rows = await self._link.fetch(self._sql["timing/promote"].bind(batch=BATCH))
        count, _, until_next, look_in, passed_by = rows[0]
        if look_in is not None:
            self._limits(look_in)
        if count:
            self._announce(None)
        if count == BATCH:
            return 0.0
        delay = self._poll_interval if until_next is None else min(until_next, self._poll_interval)
        self._misses = self._misses + 1 if passed_by and not count and planned else 0
        if passed_by:
            delay = min(delay, patience(self._misses))
        self._next_at = time.monotonic() + delay
        return max(float(delay), 0.0005)

    def expect(self, delay: float) -> None:
        """Something of ours is due in ``delay`` seconds: look by then."""
        if time.monotonic() + delay < self._next_at:
            self.wake()


class Reaper(Service):
    """Finds dead workers and gives back what they held. One in the cluster does it at a time."""

    name = "reaper"

    def __init__(
        self,
        link: Link,
        sql: Catalog,
        worker: int,
        hooks: Hooks,
        *,
        lease: float,
        interval: float,
        history: bool,
        announce: Callable[[str | None], None],
    ) -> None:
        super().__init__()
        self._link = link
        self._sql = sql
        self._worker = worker
        self._hooks = hooks
        self._lease = lease
        self._last_look: float | None = None
        self._gap_ended = -math.inf  # when the database was there again after an outage
        self._interval = interval
        self._history = history
        self._announce = announce

    async def once(self) -> float:
        """One look at the workers and at the claims without an owner.

        After an outage nobody has been heard of for its length: who was cut off with us gets the time to come back.
        """
        now = time.monotonic()
        if self._last_look is not None and now - self._last_look > 3 * self._interval:
            self._gap_ended = now
        calm = now - self._gap_ended
        rows = await self._link.fetch(
            self._sql["workers/reap"].bind(
                worker=self._worker,
                heard=calm >= self._lease,
                watched=calm >= min(RETURN_SECONDS, self._lease),
                lease=self._lease,
                grace=self._interval * 0.8,
                batch=BATCH,
                keep=self._history,
            )
        )
        if time.monotonic() - now > 3 * self._interval:
            self._gap_ended = time.monotonic()  # the link was down, and waited for the database
        self._last_look = time.monotonic()
        count, dead, *_ = rows[0]
        for worker, name in msgspec.json.decode(dead):
            log.warning("worker %d (%s) is dead", worker, name)
            if self._hooks.worker_dead:
                emit(self._hooks.worker_dead, WorkerDeadEvent(id=worker, name=name))
        if count:
            log.warning("%d claims without a living owner went back to their queues", count)
            self._announce(None)
            if self._hooks.reaped:
                emit(self._hooks.reaped, ReapedEvent(count=count))
        return 0.0 if count >= BATCH else self._interval


class Pruner(Service):
    """Deletes what has expired, in small batches, and keeps the partitions of the next days ready."""

    name = "pruner"

    def __init__(self, link: Link, sql: Catalog, *, interval: float = 30.0, partitions_every: float = 3600.0) -> None:
        super().__init__()
        self._link = link
        self._sql = sql
        self._interval = interval
        self._partitions_every = partitions_every
        self._ensure = False
        self._line = ""  # of the lines of limits, the last that was looked at
        self._forget_at = time.monotonic() + FORGET_SECONDS
        self._partitions_at = time.monotonic()  # now: workers that never live for an hour have to do it too

    def ensure_soon(self) -> None:
        """There are new lanes: their terminal rows may need other partitions."""
        self._ensure = True
        self.wake()

    async def once(self) -> float:
        """One batch; partitions once an hour. The connection is its own, and only there while it works."""
        try:
            return await self._prune()
        finally:
            await self._link.rest()

    async def _prune(self) -> float:
        if self._ensure:
            self._ensure = False
            await self._link.fetch(self._sql["pruning/ensure"].bind())
        if time.monotonic() >= self._partitions_at:
            self._partitions_at = time.monotonic() + self._partitions_every
            try:
                rows = await self._link.fetch(self._sql["pruning/partitions"].bind())
            except psycopg.errors.LockNotAvailable:
                self._partitions_at = time.monotonic() + self._interval
            else:
                if rows[0][0]:
                    log.info("dropped the expired partitions %s", ", ".join(rows[0][0]))
        rows = await self._link.fetch(self._sql["pruning/sweep"].bind(batch=BATCH))
        runs = await self._link.fetch(self._sql["pruning/runs"].bind(keep=REMEMBER_SECONDS, batch=BATCH))
        if time.monotonic() >= self._forget_at:
            lines = await self._link.fetch(self._sql["limiting/forget"].bind(after=self._line, batch=BATCH))
            self._line = lines[0][1] if lines[0][0] >= BATCH else ""
            self._forget_at = time.monotonic() + (0.0 if self._line else FORGET_SECONDS)
        return 0.05 if rows[0][0] >= BATCH or runs[0][0] >= BATCH else self._interval
