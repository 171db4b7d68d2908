"""Absurd: its asyncio worker; a chain is one task of five checkpointed steps.

It has no bulk insert; 1,000 ``spawn`` in one transaction come nearest.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import absurdctl
from absurd_sdk import AsyncAbsurd, AsyncTaskContext
from psycopg import AsyncConnection

from benchmarks.adapter import FILLER, STEPS
from benchmarks.board import Board

QUEUE = "default"
KIDS = "kids"
"""Of the children: a task can't wait for one of its own queue."""
LOOK = 0.005
"""Seconds between two looks for a result."""


def _parameters(kind: str, number: int) -> dict[str, Any]:
    return {"note": FILLER} if kind == "chain" else {"number": number}


def _event(number: int) -> str:
    return f"go {number}"


class Inserter:
    def __init__(self, url: str, app: AsyncAbsurd) -> None:
        self._url, self._app = url, app
        self._bulk: AsyncConnection[Any] | None = None
        self._looker: AsyncConnection[Any] | None = None

    async def one(self, kind: str, number: int) -> None:
        await self._app.spawn(kind, _parameters(kind, number), queue=QUEUE)

    async def many(self, kind: str, count: int) -> None:
        if self._bulk is None:
            self._bulk = await AsyncConnection.connect(self._url)
        await _spawn(self._bulk, kind, count, QUEUE)

    async def signal(self, number: int) -> None:
        await self._app.emit_event(_event(number), {"number": number}, QUEUE)

    async def parked(self) -> int:
        return await self._count("SELECT count(*) FROM absurd.t_default WHERE state = 'sleeping'")

    async def left(self) -> int:
        return await self._count("SELECT count(*) FROM absurd.t_default WHERE state <> 'completed'")

    async def family(self, count: int) -> None:
        task = await self._app.spawn("parent", {"number": count}, queue=QUEUE)
        while (result := await self._app.fetch_task_result(task["task_id"], QUEUE)) is None or not result.result:
            if result is not None and result.failure:
                raise RuntimeError(f"a parent failed: {result.failure}")
            await asyncio.sleep(LOOK)
        if result.result != count:
            raise RuntimeError(f"{count} children spawned, {result.result} ended")

    async def _count(self, query: str) -> int:
        if self._looker is None:
            self._looker = await AsyncConnection.connect(self._url, autocommit=True)
        row = await (await self._looker.execute(query.encode())).fetchone()
        return int(row[0]) if row else 0


async def _spawn(connection: AsyncConnection[Any], kind: str, count: int, queue: str) -> list[str]:
    """So many in one transaction; their ids."""
    app = AsyncAbsurd(connection, queue_name=queue)
    spawned = [await app.spawn(kind, _parameters(kind, number), queue=queue) for number in range(count)]
    await connection.commit()
    return [str(one["task_id"]) for one in spawned]


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
            if self._options.get("kids"):
                await app.create_queue(KIDS)

    @asynccontextmanager
    async def _open(self, queue: str = QUEUE) -> AsyncIterator[AsyncAbsurd]:
        app = AsyncAbsurd(self._url, queue_name=queue)
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
        async with AsyncExitStack() as stack:
            app = await stack.enter_async_context(self._open())
            self._register_jobs(app)
            self._register_waiting(app)
            await stack.enter_async_context(self._working(app))
            if self._options.get("kids"):
                kids = await stack.enter_async_context(self._open(KIDS))
                self._register_jobs(kids)
                await stack.enter_async_context(self._working(kids))
            yield Inserter(self._url, await stack.enter_async_context(self._open()))

    @asynccontextmanager
    async def _working(self, app: AsyncAbsurd) -> AsyncIterator[None]:
        task = asyncio.create_task(
            app.start_worker(
                worker_id=f"worker-{os.getpid()}",
                concurrency=self._options.get("concurrency", 200),
                poll_interval=self._options.get("poll", 0.25),
            )
        )
        try:
            yield
        finally:
            app.stop_worker()
            await task

    def _register_waiting(self, app: AsyncAbsurd) -> None:
        board, url = self._board, self._url

        @app.register_task("waiter")
        async def waiter(parameters: dict[str, Any], ctx: AsyncTaskContext) -> None:
            await ctx.await_event(_event(parameters["number"]))
            board.mark(parameters["number"])

        @app.register_task("parent")
        async def parent(parameters: dict[str, Any], ctx: AsyncTaskContext) -> int:
            async def spawn() -> list[str]:
                async with await AsyncConnection.connect(url) as connection:
                    return await _spawn(connection, "noop", parameters["number"], KIDS)

            children = await ctx.step("spawn", spawn)
            ended = [await ctx.await_task_result(child, queue_name=KIDS) for child in children]
            return sum(child.state == "completed" for child in ended)

    def _register_jobs(self, app: AsyncAbsurd) -> None:
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
