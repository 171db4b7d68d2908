"""Chancy: its asyncio executor with eager polling, ends written in batches; a chain is jobs that push jobs."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from chancy import Chancy, Job, Queue, Worker, job

from benchmarks.adapter import FILLER, STEPS
from benchmarks.board import Board

QUEUE = "default"
_board: list[Board] = []
_app: list[Chancy] = []


@job(queue=QUEUE)
async def noop(*, number: int) -> None:
    _board[0].hit()


@job(queue=QUEUE)
async def mark(*, number: int) -> None:
    _board[0].mark(number)


@job(queue=QUEUE)
async def chain(*, step: int, note: str) -> None:
    if step < STEPS:
        await _app[0].push(chain.job.with_kwargs(step=step + 1, note=note))
    _board[0].hit()


def _job(kind: str, number: int) -> Job:
    match kind:
        case "noop":
            return noop.job.with_kwargs(number=number)
        case "mark":
            return mark.job.with_kwargs(number=number)
        case _:
            return chain.job.with_kwargs(step=1, note=FILLER)


class Inserter:
    def __init__(self, app: Chancy) -> None:
        self._app = app

    async def one(self, kind: str, number: int) -> None:
        await self._app.push(_job(kind, number))

    async def many(self, kind: str, count: int) -> None:
        jobs = [_job(kind, number) for number in range(count)]
        async for _ in self._app.push_many(jobs, batch_size=count):
            pass


class Adapter:
    loop = "uvloop"

    def __init__(self, url: str, board: Board, options: dict[str, Any]) -> None:
        self._url, self._options = url, options
        _board[:] = [board]

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[Chancy]:
        log = logging.getLogger("chancy")
        log.setLevel(logging.WARNING)
        async with Chancy(self._url, log=log) as app:
            yield app

    async def setup(self) -> None:
        async with self._open() as app:
            await app.migrate()
            await app.declare(
                Queue(
                    QUEUE,
                    concurrency=self._options.get("concurrency", 1000),
                    executor=Chancy.Executor.Async,
                    polling_interval=1,
                    eager_polling=True,
                )
            )

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Inserter]:
        async with self._open() as app:
            yield Inserter(app)

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[Inserter]:
        async with self._open() as app:
            _app[:] = [app]
            worker = Worker(app, worker_id=f"worker-{os.getpid()}", register_signal_handlers=False)
            worker.send_outgoing_interval = self._options.get("flush", 0.05)
            async with worker:
                yield Inserter(app)
