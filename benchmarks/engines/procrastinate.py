"""Procrastinate: one async worker, LISTEN on (its default); a chain is jobs that defer jobs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from procrastinate import App, PsycopgConnector
from procrastinate.tasks import Task

from benchmarks.adapter import FILLER, STEPS
from benchmarks.board import Board


class Inserter:
    def __init__(self, app: App) -> None:
        self._app = app

    async def one(self, kind: str, number: int) -> None:
        await self._task(kind).defer_async(**_arguments(kind, number))

    async def many(self, kind: str, count: int) -> None:
        await self._task(kind).batch_defer_async(*[_arguments(kind, number) for number in range(count)])

    def _task(self, kind: str) -> Task[Any, Any, Any]:
        task = self._app.tasks[kind]
        assert isinstance(task, Task)
        return task


def _arguments(kind: str, number: int) -> dict[str, Any]:
    return {"step": 1, "note": FILLER} if kind == "chain" else {"number": number}


class Adapter:
    loop = "uvloop"

    def __init__(self, url: str, board: Board, options: dict[str, Any]) -> None:
        self._url, self._board, self._options = url, board, options
        logging.disable(logging.INFO)

    def _app(self) -> App:
        pool = self._options.get("pool", 10)
        app = App(connector=PsycopgConnector(conninfo=self._url, min_size=min(4, pool), max_size=pool))
        board = self._board

        @app.task(name="noop")
        async def noop(number: int) -> None:
            board.hit()

        @app.task(name="mark")
        async def mark(number: int) -> None:
            board.mark(number)

        @app.task(name="chain")
        async def chain(step: int, note: str) -> None:
            if step < STEPS:
                await chain.defer_async(step=step + 1, note=note)
            board.hit()

        return app

    async def setup(self) -> None:
        async with self._app().open_async() as app:
            await app.schema_manager.apply_schema_async()

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Inserter]:
        async with self._app().open_async() as app:
            yield Inserter(app)

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[Inserter]:
        async with self._app().open_async() as app:
            task = asyncio.create_task(
                app.run_worker_async(concurrency=self._options.get("concurrency", 30), install_signal_handlers=False)
            )
            try:
                yield Inserter(app)
            finally:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
