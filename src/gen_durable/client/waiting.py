"""Waiting for an instance's end."""

from __future__ import annotations

import contextlib
import math
import time
from typing import Any

from gen_durable._checks import check_seconds
from gen_durable.client.reading import ReadingCalls
from gen_durable.errors import DatabaseUnreachable, InstanceCancelled, InstanceFailed, StillRunning
from gen_durable.snapshot import Snapshot

__all__ = ["WaitingCalls"]

FIRST_LOOK = 0.003  # an end in this process, or a quick one elsewhere, needs nothing more
LONGEST_LOOK = 5.0
LONGEST_DEAF_LOOK = 0.5  # where notifications can't be received
AWAY_SECONDS = 60.0


class WaitingCalls(ReadingCalls):
    """``result``."""

    async def result(self, target: int | str, timeout: float | None = None) -> Any:
        """Waits for an instance's end and returns its result.

        Args:
            target: id or key.
            timeout: seconds; None waits for ever.

        Raises:
            InstanceFailed, InstanceCancelled: how it ended.
            StillRunning: the time is up; the instance goes on.
            NoSuchInstance: there is none.
            DatabaseUnreachable: the database stays away for a minute.
        """
        limit = None if timeout is None else check_seconds(timeout, "timeout")
        until = math.inf if limit is None else time.monotonic() + limit
        found = await self.get(target)
        waiter = self._make_waiter()
        with self._waiters_lock:
            waiters = self._waiters.setdefault(found.id, set())
            waiters.add(waiter)
        pause = FIRST_LOOK
        watched = False
        heard_at = time.monotonic()
        try:
            while True:
                waiter.clear()
                try:
                    found = await self.get(found.id)
                    heard_at = time.monotonic()
                except DatabaseUnreachable:  # it may be back in a moment, and the instance goes on
                    if time.monotonic() - heard_at > AWAY_SECONDS:
                        raise
                if found.terminal:
                    return _outcome_of(found)
                remaining = until - time.monotonic()
                if remaining > 0 and not watched and pause > FIRST_LOOK:
                    watched = True
                    await self._watch(found.id)
                    continue
                if remaining <= 0:
                    raise StillRunning(found.id, found.status, limit or 0.0)
                await waiter.wait(min(pause, remaining))
                heard = watched and (self._ear.hears or (self._local is not None and self._local.hears))
                pause = LONGEST_LOOK if heard else min(pause * 1.5, LONGEST_DEAF_LOOK)
        finally:
            with self._waiters_lock:
                waiters.discard(waiter)
                if not waiters:
                    self._waiters.pop(found.id, None)

    async def _watch(self, instance_id: int) -> None:
        """Asks to be told of an instance's end, wherever it comes about; look again after this."""
        if self._local is None or not self._local.hears:
            await self._ear.open(self._session.url)
        with contextlib.suppress(DatabaseUnreachable):  # then it is found by looking
            await self._session.fetch(self._sql["reading/watch"].bind(id=instance_id))


def _outcome_of(found: Snapshot) -> Any:
    if found.status == "failed":
        raise InstanceFailed(found.id, found.error)
    if found.status == "cancelled":
        raise InstanceCancelled(found.id, found.error)
    return found.result
