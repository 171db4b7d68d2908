"""Hears of the ends of instances that somebody waits for, in a process whose worker does not."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

import psycopg

from gen_durable._store.connection import cut, fetch, open_connection, set_up
from gen_durable._store.operation import Catalog
from gen_durable.config import Settings

__all__ = ["Ear"]

log = logging.getLogger("gen_durable")

AGAIN_SECONDS = 1.0


class Ear:
    """A connection that listens, from the first wait on until the client is closed."""

    def __init__(self, settings: Settings, sql: Catalog, ended: Callable[[int | None], None]) -> None:
        self._settings = settings
        self._sql = sql
        self._ended = ended
        self._task: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self.hears = False

    async def open(self, url: str) -> None:
        """Listens, from when this returns, unless the database can't do that here (``hears`` says so)."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(self._settings.listen_url or url), name="gen_durable ear")
        await self._ready.wait()

    async def _run(self, url: str) -> None:
        while True:
            try:
                if not await self._listen(url):
                    return  # behind a transaction pooler
            except (psycopg.Error, OSError, TimeoutError) as error:
                log.info("the client's ear: %s; trying again", str(error).strip())
            finally:
                self.hears = False
                self._ready.set()
            self._ended(None)  # some may have ended unheard
            await asyncio.sleep(AGAIN_SECONDS)

    async def _listen(self, url: str) -> bool:
        async with asyncio.timeout(self._settings.statement_timeout):
            connection = await open_connection(url, f"gen_durable {self._settings.name} ear")
        try:
            async with asyncio.timeout(self._settings.statement_timeout):
                if not await set_up(connection, steady=False):
                    return False
                await fetch(connection, self._sql["queues/listen"].bind())
            self.hears = True
            self._ready.set()
            self._ended(None)
            async for notice in connection.notifies():
                kind, _, name = notice.payload.partition(":")
                if kind == "e":
                    self._ended(int(name))
        finally:
            cut(connection)
            with contextlib.suppress(psycopg.Error, OSError):
                await connection.close()
        return True

    async def close(self) -> None:
        """Stops listening."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        self._ready.clear()
