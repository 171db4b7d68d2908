"""awa: a core in Rust that runs handlers in Python; jobs come in by COPY, a chain is jobs that insert jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import awa

from benchmarks.adapter import FILLER, STEPS
from benchmarks.board import Board

QUEUE = "default"
LONG = 86400.0
"""Seconds after which a callback is given up; an hour by default."""
WAITING = (
    "SELECT (args->>'number')::int AS number, callback_id::text AS callback "
    "FROM awa.jobs WHERE state = 'waiting_external'"
)


@dataclass
class Noop:
    number: int


@dataclass
class Mark:
    number: int


@dataclass
class Chain:
    step: int
    note: str


@dataclass
class Waiter:
    number: int


def _job(kind: str, number: int) -> Noop | Mark | Waiter | Chain:
    match kind:
        case "noop":
            return Noop(number)
        case "mark":
            return Mark(number)
        case "waiter":
            return Waiter(number)
        case _:
            return Chain(1, FILLER)


class Inserter:
    def __init__(self, client: awa.AsyncClient) -> None:
        self._client = client
        self._callbacks: dict[int, str] = {}

    async def one(self, kind: str, number: int) -> None:
        await self._client.insert(_job(kind, number), queue=QUEUE)

    async def many(self, kind: str, count: int) -> None:
        await self._client.enqueue_many_copy([_job(kind, number) for number in range(count)], queue=QUEUE)

    async def signal(self, number: int) -> None:
        await self._client.resume_external(self._callbacks[number], {"number": number})

    async def parked(self) -> int:
        async with await self._client.transaction() as transaction:
            rows = await transaction.fetch_all(WAITING)
        self._callbacks = {row["number"]: row["callback"] for row in rows}
        return len(rows)


class Adapter:
    loop = "uvloop"

    def __init__(self, url: str, board: Board, options: dict[str, Any]) -> None:
        self._url, self._board, self._options = url, board, options

    async def setup(self) -> None:
        async with awa.AsyncClient(self._url) as client:
            await client.migrate()
        # A new schema changes over to its final storage when the first worker starts.
        async with self.worker():
            pass

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Inserter]:
        async with awa.AsyncClient(self._url) as client:
            yield Inserter(client)

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[Inserter]:
        async with awa.AsyncClient(self._url) as client:
            self._register(client)
            size, batch = self._options.get("workers", 100), self._options.get("batch", 100)
            queue = {"name": QUEUE, "max_workers": size, "claim_batch_size": batch}
            await client.start([queue], poll_interval_ms=self._options.get("poll_ms", 200))
            try:
                yield Inserter(client)
            finally:
                await client.shutdown(timeout_ms=2000)

    def _register(self, client: awa.AsyncClient) -> None:
        board = self._board

        @client.task(Noop, queue=QUEUE)
        async def noop(job: awa.Job[Noop]) -> None:
            board.hit()

        @client.task(Mark, queue=QUEUE)
        async def mark(job: awa.Job[Mark]) -> None:
            board.mark(job.args.number)

        @client.task(Waiter, queue=QUEUE)
        async def waiter(job: awa.Job[Waiter]) -> None:
            await job.wait_for_callback(await job.register_callback(timeout_seconds=LONG))
            board.mark(job.args.number)

        @client.task(Chain, queue=QUEUE)
        async def chain(job: awa.Job[Chain]) -> None:
            if job.args.step < STEPS:
                await client.insert(Chain(job.args.step + 1, job.args.note), queue=QUEUE)
            board.hit()
