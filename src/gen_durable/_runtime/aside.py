"""Outcomes that can't be committed yet, because somebody has locked their rows for long."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import psycopg

from gen_durable._runtime.committer import Entry
from gen_durable._runtime.link import LinkDown

__all__ = ["Aside"]

log = logging.getLogger("gen_durable")

LOOK_SECONDS = 0.1  # between two looks whether they can be committed now


class Aside:
    """Keeps outcomes until their rows are free: a caller's transaction that holds a signal may be open for minutes.

    Their claims stay, and nobody else waits for them.
    """

    def __init__(
        self, busy: Callable[[list[Entry]], Awaitable[list[Entry]]], again: Callable[[list[Entry]], None]
    ) -> None:
        self.entries: list[Entry] = []
        self._busy = busy
        self._again = again
        self._some = asyncio.Event()

    def put(self, entries: list[Entry]) -> None:
        """Sets outcomes aside."""
        if entries and not self.entries:
            log.info(
                "instance %d and %d others: their outcomes wait for an open transaction that has their rows locked",
                entries[0][0].id,
                len(entries) - 1,
            )
        self.entries += entries
        self._some.set()

    async def run(self) -> None:
        """The loop; runs until it is cancelled."""
        while True:
            await self._some.wait()
            await self.look()

    async def look(self) -> None:
        """Waits a moment, then sends those on their way whose rows are free."""
        await asyncio.sleep(LOOK_SECONDS)
        looked = list(self.entries)
        try:
            busy = await self._busy(looked)
        except (LinkDown, psycopg.Error) as error:
            log.info("looking for locked rows: %s", str(error).strip())  # the next look is soon
            return
        there = {id(entry) for entry in busy}
        free = [entry for entry in looked if id(entry) not in there]
        gone = {id(entry) for entry in free}
        self.entries = [entry for entry in self.entries if id(entry) not in gone]
        if not self.entries:
            self._some.clear()
        if free:
            self._again(free)
