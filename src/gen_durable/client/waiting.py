"""Waiting for an instance's end."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from typing import Any

from gen_durable.client.reading import ReadingCalls
from gen_durable.errors import DatabaseUnreachable, InstanceCancelled, InstanceFailed, StillRunning
from gen_durable.outcome import check_seconds
from gen_durable.snapshot import Snapshot

__all__ = ["WaitingCalls"]

FIRST_LOOK, LONGEST_LOOK = 0.02, 0.5
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
        event = asyncio.Event()
        waiters = self._waiters.setdefault(found.id, set())
        waiters.add(event)
        pause = FIRST_LOOK
        heard_at = time.monotonic()
        try:
            while True:
                event.clear()
                try:
                    found = await self.get(found.id)
                    heard_at = time.monotonic()
                except DatabaseUnreachable:  # it may be back in a moment, and the instance goes on
                    if time.monotonic() - heard_at > AWAY_SECONDS:
                        raise
                if found.terminal:
                    return _outcome_of(found)
                remaining = until - time.monotonic()
                if remaining <= 0:
                    raise StillRunning(found.id, found.status, limit or 0.0)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(pause, remaining)):
                        await event.wait()
                pause = min(pause * 1.5, LONGEST_LOOK)
        finally:
            waiters.discard(event)
            if not waiters:
                self._waiters.pop(found.id, None)

    def _ended(self, instance_id: int) -> None:
        """The worker of this process has committed an instance's end."""
        for event in self._waiters.get(instance_id, ()):
            event.set()


def _outcome_of(found: Snapshot) -> Any:
    if found.status == "failed":
        raise InstanceFailed(found.id, found.error)
    if found.status == "cancelled":
        raise InstanceCancelled(found.id, found.error)
    return found.result
