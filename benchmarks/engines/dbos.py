"""DBOS: sync workflows on a queue (faster there than async ones), a chain is one workflow of five steps.

It has no bulk insert; 1,000 ``enqueue_in_transaction`` in one transaction come nearest. In the same process a
workflow is started directly, without a queue, which is its fast way.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import sqlalchemy
from dbos import DBOS, DBOSClient, DBOSConfig, EnqueueOptions, WorkflowHandle

from benchmarks.adapter import FILLER, STEPS
from benchmarks.board import Board

QUEUE, VERSION = "bench", "v1"
LOOK = 0.005
"""Seconds between two looks of another process for a result; a second by default."""
_board: list[Board] = []


@DBOS.workflow(name="noop")
def noop(number: int) -> None:
    _board[0].hit()


@DBOS.workflow(name="mark")
def mark(number: int) -> None:
    _board[0].mark(number)


@DBOS.workflow(name="mark_direct")
async def mark_direct(number: int) -> None:
    _board[0].mark(number)


@DBOS.workflow(name="answer")
def answer(number: int) -> int:
    return number


@DBOS.workflow(name="answer_direct")
async def answer_direct(number: int) -> int:
    return number


@DBOS.step()
def advance(step: int, note: str) -> str:
    _board[0].hit()
    return note


@DBOS.workflow(name="chain")
def chain(note: str) -> None:
    for step in range(STEPS):
        note = advance(step, note)


def _argument(kind: str, number: int) -> Any:
    return FILLER if kind == "chain" else number


class QueueInserter:
    def __init__(self, url: str) -> None:
        self._client = DBOSClient(system_database_url=url, application_name="bench")
        self._database = sqlalchemy.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))

    async def one(self, kind: str, number: int) -> None:
        self._client.enqueue(_options(kind), _argument(kind, number))

    async def ask(self, number: int) -> int:
        handle: WorkflowHandle[int] = self._client.enqueue(_options("answer"), number)
        return handle.get_result(polling_interval_sec=LOOK)

    async def many(self, kind: str, count: int) -> None:
        options = _options(kind)
        with self._database.begin() as connection:
            for number in range(count):
                self._client.enqueue_in_transaction(connection, options, _argument(kind, number))


def _options(kind: str) -> EnqueueOptions:
    return {"workflow_name": kind, "queue_name": QUEUE, "app_version": VERSION}


class DirectInserter:
    async def one(self, kind: str, number: int) -> None:
        await DBOS.start_workflow_async(mark_direct, number)

    async def many(self, kind: str, count: int) -> None:
        raise NotImplementedError("only the latency workloads insert from a worker")

    async def ask(self, number: int) -> int:
        handle = await DBOS.start_workflow_async(answer_direct, number)
        return await handle.get_result()


class Adapter:
    loop = "asyncio"

    def __init__(self, url: str, board: Board, options: dict[str, Any]) -> None:
        self._url, self._options = url, options
        _board[:] = [board]

    def _launch(self) -> None:
        config: DBOSConfig = {
            "name": "bench",
            "system_database_url": self._url,
            "sys_db_pool_size": 20,
            "executor_id": f"worker-{os.getpid()}",
            "application_version": VERSION,
            "log_level": "WARNING",
        }
        if threads := self._options.get("threads"):
            config["max_executor_threads"] = threads
        DBOS(config=config)
        DBOS.launch()
        DBOS.register_queue(
            QUEUE,
            worker_concurrency=self._options.get("concurrency"),
            polling_interval_sec=self._options.get("poll", 0.05),
        )

    async def setup(self) -> None:
        await asyncio.to_thread(self._launch)
        await asyncio.to_thread(DBOS.destroy)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[QueueInserter]:
        yield QueueInserter(self._url)

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[DirectInserter]:
        # In a thread: with a running event loop in sight DBOS goes into its async mode.
        await asyncio.to_thread(self._launch)
        yield DirectInserter()
