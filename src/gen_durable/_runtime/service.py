"""The loop that every periodic service shares: a service writes only its one pass."""

from __future__ import annotations

import asyncio
import logging

import psycopg

from gen_durable._runtime.link import LinkDown

__all__ = ["Service", "patience"]

log = logging.getLogger("gen_durable")

AGAIN_SECONDS = 0.01  # until the first look again


def patience(misses: int) -> float:
    """Seconds until a look again at rows that somebody had locked, by how many looks have missed them so far.

    It doubles: a row is found after as long again as it was locked, at most.
    """
    return AGAIN_SECONDS * 2.0 ** min(misses, 20)


class Service:
    """Runs :meth:`once` again and again.

    A pass answers with the seconds until the next one; :meth:`wake` brings it forward. A pass that fails is logged and
    tried again: a lost connection at once (its link waits by itself), any other database error after a second.
    """

    name = "service"

    def __init__(self) -> None:
        self._woken = asyncio.Event()
        self._stopping = False

    async def once(self) -> float:
        """One pass; answers with the seconds until the next."""
        raise NotImplementedError

    def wake(self) -> None:
        """Makes the next pass start now."""
        self._woken.set()

    def stop(self) -> None:
        """Lets the loop end after the pass that is under way."""
        self._stopping = True
        self._woken.set()

    async def run(self) -> None:
        """The loop; returns after :meth:`stop`."""
        while not self._stopping:
            self._woken.clear()
            try:
                delay = await self.once()
            except LinkDown:
                delay = 0.0
            except psycopg.Error as error:
                log.warning("%s: %s: %s", self.name, type(error).__name__, str(error).strip())
                delay = 1.0
            if delay > 0 and not self._woken.is_set():
                await self._pause(delay)

    async def _pause(self, delay: float) -> None:
        loop = asyncio.get_running_loop()
        timer = loop.call_later(delay, self._woken.set)
        try:
            await self._woken.wait()
        finally:
            timer.cancel()
