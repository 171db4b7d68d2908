"""pgqueuer: asyncpg and autovacuum settings as it recommends; a chain is jobs that insert jobs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import asyncpg
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries

from benchmarks.adapter import FILLER, STEPS
from benchmarks.board import Board


class Inserter:
    def __init__(self, queries: Queries) -> None:
        self._queries = queries

    async def one(self, kind: str, number: int) -> None:
        await self._queries.enqueue(kind, _payload(kind, number))

    async def many(self, kind: str, count: int) -> None:
        payloads: list[bytes | None] = [_payload(kind, number) for number in range(count)]
        await self._queries.enqueue([kind] * count, payloads, [0] * count)


def _payload(kind: str, number: int) -> bytes:
    return f"1 {FILLER}".encode() if kind == "chain" else str(number).encode()


class Adapter:
    loop = "uvloop"

    def __init__(self, url: str, board: Board, options: dict[str, Any]) -> None:
        self._url, self._board, self._options = url, board, options
        logging.disable(logging.INFO)

    @asynccontextmanager
    async def _queries(self) -> AsyncIterator[Queries]:
        connection = await asyncpg.connect(self._url)
        try:
            yield Queries(AsyncpgDriver(connection))
        finally:
            await connection.close()

    async def setup(self) -> None:
        async with self._queries() as queries:
            await queries.install()
            await queries.optimize_autovacuum()

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Inserter]:
        async with self._queries() as queries:
            yield Inserter(queries)

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[Inserter]:
        connection = await asyncpg.connect(self._url)
        async with self.client() as client, self._queries() as queries:
            manager = PgQueuer.from_asyncpg_connection(connection)
            self._register(manager, queries)
            task = asyncio.create_task(
                manager.run(
                    batch_size=self._options.get("batch", 100),
                    dequeue_timeout=timedelta(seconds=30),
                )
            )
            yield client
            manager.shutdown.set()
            await asyncio.wait([task], timeout=3)

    def _register(self, manager: PgQueuer, queries: Queries) -> None:
        board = self._board

        @manager.entrypoint("noop")
        async def noop(job: Job) -> None:
            board.hit()

        @manager.entrypoint("mark")
        async def mark(job: Job) -> None:
            board.mark(int(job.payload or b""))

        @manager.entrypoint("chain")
        async def chain(job: Job) -> None:
            step, _, note = (job.payload or b"").partition(b" ")
            if int(step) < STEPS:
                await queries.enqueue("chain", b"%d %s" % (int(step) + 1, note))
            board.hit()
