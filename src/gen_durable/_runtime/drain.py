"""The orderly end of a worker's life: what runs may finish, what is left goes back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from gen_durable._runtime.births import Births
from gen_durable._runtime.claimer import Claimer
from gen_durable._runtime.flusher import Flusher
from gen_durable._runtime.held import Held, LocalQueue
from gen_durable._runtime.link import Link, LinkClosed, LinkDown
from gen_durable._runtime.transactor import Transactor

__all__ = ["Drain", "bounded"]

log = logging.getLogger("gen_durable")

CHECK_SECONDS = 2.0  # that it gives the look for rows of an insert whose answer was lost


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """The parts of a worker that end, and for how long they may take."""

    worker: int
    queues: Collection[LocalQueue]
    held: Mapping[int, Held]
    births: Births
    claimer: Claimer
    link: Link  # the claimer's
    flusher: Flusher
    transactor: Transactor
    left: asyncio.Event  # set whenever a claim or an insert has ended
    hurry: asyncio.Event  # set when what still runs is to be cancelled now
    until: float  # when what runs must have ended (monotonic)
    statement_timeout: float  # seconds for what came of that, and again for the rest to go back

    async def run(self, claims: asyncio.Task[None]) -> None:
        """Ends the claims, waits for what is held, and hands back what was not done; the queues are closed already."""
        until = self.until
        self.claimer.closing = True
        self.claimer.stop()
        hurry = asyncio.create_task(self.hurry.wait())
        try:
            while not (claims.done() or hurry.done()) and time.monotonic() < until:
                await asyncio.wait([claims, hurry], timeout=0.2, return_when="FIRST_COMPLETED")
                if self.link.connection is None:  # the database is away, so no claim is under way
                    claims.cancel()
            await asyncio.wait([claims], timeout=2.0)  # one that is under way: its rows go back too
            if claims.done():
                await self._finish_held(until, hurry)
        finally:
            hurry.cancel()
        if self.held or self.births.under_way or self.births.unsure:
            await self._cut_short()

    async def _finish_held(self, until: float, hurry: asyncio.Task[Any]) -> None:
        births = self.births
        while (self.held or births.under_way or births.unsure) and not hurry.done():
            self.left.clear()
            if births.unsure and not births.under_way:
                births.unsure = False
                await bounded(self._check(), min(until, time.monotonic() + CHECK_SECONDS))
            for queue in self.queues:
                if queue.buffer:
                    await bounded(self.claimer.give_back(queue), until)
            remaining = until - time.monotonic()
            if not (self.held or births.under_way or births.unsure) or remaining <= 0:
                return
            left = asyncio.create_task(self.left.wait())
            await asyncio.wait([left, hurry], timeout=remaining, return_when="FIRST_COMPLETED")
            left.cancel()

    async def _check(self) -> None:
        while True:
            try:
                return await self.claimer.check()
            except LinkClosed:
                raise
            except LinkDown:
                continue

    async def _cut_short(self) -> None:
        """The time is up: cancel what runs, commit what came of it, hand the rest back as it was claimed."""
        for queue in self.queues:
            queue.cancel()
        for queue in self.queues:
            await queue.wait_cancelled(1.0)
        limit = time.monotonic() + self.statement_timeout
        await bounded(self.transactor.wait_idle(), limit)
        await bounded(self.flusher.wait_idle(), limit)
        await bounded(self.births.wait_over(), limit)
        self.births.over = True
        if self.births.unsure:  # of a call that was cancelled with its step, for one
            await bounded(self._check(), min(limit, time.monotonic() + CHECK_SECONDS))
        rest = [(held.id, held.rev) for held in self.held.values()]
        if rest:
            log.warning("worker %d hands %d unfinished steps back", self.worker, len(rest))
            await bounded(self.claimer.release(rest), limit)


async def bounded(work: Awaitable[object], until: float) -> None:
    """Waits for ``work`` until a time (monotonic), and leaves it then or when the link breaks."""
    with contextlib.suppress(TimeoutError, LinkDown):
        async with asyncio.timeout(max(until - time.monotonic(), 0.1)):
            await work
