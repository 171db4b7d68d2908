"""Absurd: its asyncio worker; a chain is one task of five checkpointed steps.

It has no bulk insert; 1,000 ``spawn`` in one transaction come nearest.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import absurdctl
from absurd_sdk import AsyncAbsurd, AsyncTaskContext
from psycopg import AsyncConnection

from benchmarks.adapter import FILLER, STEPS
from benchmarks.board import Board

QUEUE = "default"


def _parameters(kind: str, number: int) -> dict[str, Any]:
    return {"note": FILLER} if kind == "chain" else {"number": number}


class Inserter:
    def __init__(self, url: str, app: AsyncAbsurd) -> None:
        self._url, self._app = url, app
        self._bulk: AsyncConnection[Any] | None = None

    async def one(self, kind: str, number: int) -> None:
        await self._app.spawn(kind, _parameters(kind, number), queue=QUEUE)

    async def many(self, kind: str, count: int) -> None:
        if self._bulk is None:
            self._bulk = await AsyncConnection.connect(self._url)
        app = AsyncAbsurd(self._bulk, queue_name=QUEUE)
        for number in range(count):
            await app.spawn(kind, _parameters(kind, number), queue=QUEUE)
        await self._bulk.commit()


class Adapter:
    loop = "uvloop"

    def __init__(self, url: str, board: Board, options: dict[str, Any]) -> None:
        self._url, self._board, self._options = url, board, options

    async def setup(self) -> None:
        async with await AsyncConnection.connect(self._url, autocommit=True) as connection:
            # What its command "absurdctl init" runs, which would need psql.
            await connection.execute(absurdctl.BUNDLED_SCHEMA_SQL.encode())
        async with self._open() as app:
            await app.create_queue()

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[AsyncAbsurd]:
        app = AsyncAbsurd(self._url, queue_name=QUEUE)
        try:
            yield app
        finally:
            await app.close()

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Inserter]:
        async with self._open() as app:
            yield Inserter(self._url, app)

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[Inserter]:
        async with self._open() as app, self._open() as client:
            self._register(app)
            task = asyncio.create_task(
                app.start_worker(
                    worker_id=f"worker-{os.getpid()}",
                    concurrency=self._options.get("concurrency", 200),
                    poll_interval=self._options.get("poll", 0.25),
                )
            )
            try:
                yield Inserter(self._url, client)
            finally:
                app.stop_worker()
                await task

    def _register(self, app: AsyncAbsurd) -> None:
        board = self._board

        @app.register_task("noop")
        async def noop(parameters: dict[str, Any], ctx: AsyncTaskContext) -> None:
            board.hit()

        @app.register_task("mark")
        async def mark(parameters: dict[str, Any], ctx: AsyncTaskContext) -> None:
            board.mark(parameters["number"])

        @app.register_task("chain")
        async def chain(parameters: dict[str, Any], ctx: AsyncTaskContext) -> None:
            note: str = parameters["note"]

            async def advance() -> str:
                board.hit()
                return note

            for step in range(STEPS):
                note = await ctx.step(f"step {step}", advance)
