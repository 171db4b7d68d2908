"""Oban for Python, its open-source edition: workers as classes, as its own command runs them (uvloop, orjson).

A chain is jobs that enqueue jobs.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
from oban import Job, Oban, worker
from oban.schema import install
from psycopg.types.json import set_json_dumps, set_json_loads

from benchmarks.adapter import FILLER, STEPS
from benchmarks.board import Board

QUEUE = "default"
_board: list[Board] = []
_oban: list[Oban] = []


@worker(queue=QUEUE)
class Noop:
    async def process(self, job: Job) -> None:
        _board[0].hit()


@worker(queue=QUEUE)
class Mark:
    async def process(self, job: Job) -> None:
        _board[0].mark(job.args["number"])


@worker(queue=QUEUE)
class Chain:
    async def process(self, job: Job) -> None:
        step = job.args["step"]
        if step < STEPS:
            await _oban[0].enqueue(Chain.new({**job.args, "step": step + 1}))
        _board[0].hit()


def _job(kind: str, number: int) -> Job:
    match kind:
        case "noop":
            return Noop.new({"number": number})
        case "mark":
            return Mark.new({"number": number})
        case _:
            return Chain.new({"step": 1, "note": FILLER})


class Inserter:
    def __init__(self, oban: Oban) -> None:
        self._oban = oban

    async def one(self, kind: str, number: int) -> None:
        await self._oban.enqueue(_job(kind, number))

    async def many(self, kind: str, count: int) -> None:
        await self._oban.enqueue_many([_job(kind, number) for number in range(count)])


class Adapter:
    loop = "uvloop"

    def __init__(self, url: str, board: Board, options: dict[str, Any]) -> None:
        self._url, self._options = url, options
        _board[:] = [board]
        logging.disable(logging.INFO)
        set_json_dumps(orjson.dumps)
        set_json_loads(orjson.loads)

    async def setup(self) -> None:
        async with await Oban.create_pool(self._url, min_size=1, max_size=1) as pool:
            await install(pool)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Inserter]:
        async with await Oban.create_pool(self._url, min_size=1, max_size=4) as pool:
            yield Inserter(Oban(pool=pool))

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[Inserter]:
        queues: dict[str, int | dict[str, Any]] = {QUEUE: {"limit": self._options.get("limit", 100)}}
        async with (
            await Oban.create_pool(self._url, min_size=1, max_size=self._options.get("pool", 10)) as pool,
            Oban(pool=pool, queues=queues, node=f"node-{os.getpid()}") as oban,
        ):
            _oban[:] = [oban]
            yield Inserter(oban)
