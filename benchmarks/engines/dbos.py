"""DBOS: sync workflows on a queue (faster there than async ones), a chain is one workflow of five steps.

It has no bulk insert; 1,000 ``enqueue_in_transaction`` in one transaction come nearest. In the same process a
workflow is started directly, without a queue, which is its fast way. A sync workflow that waits for a message holds a
thread, so the waiters are async ones.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cached_property
from typing import Any

import sqlalchemy
from dbos import DBOS, DBOSClient, DBOSConfig, EnqueueOptions, SetWorkflowID, WorkflowHandle

from benchmarks.adapter import FILLER, STEPS
from benchmarks.board import Board

QUEUE, VERSION, TOPIC = "bench", "v1", "go"
LOOK = 0.005
"""Seconds between two looks of another process for a result; a second by default."""
LONG = 86400.0
"""Seconds for which a waiter waits at most; a minute by default."""
# A waiter writes down its deadline as a step, when it can be woken.
PARKED = "SELECT count(*) FROM dbos.operation_outputs WHERE function_name = 'DBOS.sleep'"
LEFT = "SELECT count(*) FROM dbos.workflow_status WHERE status <> 'SUCCESS'"
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


@DBOS.workflow(name="waiter")
async def waiter(number: int) -> None:
    await DBOS.recv_async(TOPIC, timeout_seconds=LONG)
    _board[0].mark(number)


@DBOS.workflow(name="parent")
def parent(count: int) -> int:
    children = [DBOS.start_workflow(noop, number) for number in range(count)]
    return len([child.get_result(polling_interval_sec=LOOK) for child in children])


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


def _waiter(number: int) -> str:
    return f"waiter {number}"


def _options(kind: str, number: int) -> EnqueueOptions:
    options: EnqueueOptions = {"workflow_name": kind, "queue_name": QUEUE, "app_version": VERSION}
    if kind == "waiter":
        options["workflow_id"] = _waiter(number)
    return options


class QueueInserter:
    def __init__(self, url: str) -> None:
        self._client = DBOSClient(system_database_url=url, application_name="bench")
        self._database = sqlalchemy.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))

    async def one(self, kind: str, number: int) -> None:
        self._client.enqueue(_options(kind, number), _argument(kind, number))

    async def ask(self, number: int) -> int:
        handle: WorkflowHandle[int] = self._client.enqueue(_options("answer", number), number)
        return handle.get_result(polling_interval_sec=LOOK)

    async def many(self, kind: str, count: int) -> None:
        with self._database.begin() as connection:
            for number in range(count):
                options = _options(kind, number)
                self._client.enqueue_in_transaction(connection, options, _argument(kind, number))

    async def signal(self, number: int) -> None:
        self._client.send(_waiter(number), number, TOPIC)

    async def parked(self) -> int:
        return self.count(PARKED)

    def count(self, query: str) -> int:
        with self._database.connect() as connection:
            return int(connection.execute(sqlalchemy.text(query)).scalar_one())


class DirectInserter:
    def __init__(self, url: str) -> None:
        self._url = url

    @cached_property
    def _queue(self) -> QueueInserter:
        return QueueInserter(self._url)

    async def one(self, kind: str, number: int) -> None:
        await DBOS.start_workflow_async(mark_direct, number)

    async def many(self, kind: str, count: int) -> None:
        if kind == "waiter":
            for number in range(count):
                with SetWorkflowID(_waiter(number)):
                    await DBOS.start_workflow_async(waiter, number)
        else:
            await self._queue.many(kind, count)

    async def ask(self, number: int) -> int:
        handle = await DBOS.start_workflow_async(answer_direct, number)
        return await handle.get_result()

    async def signal(self, number: int) -> None:
        await DBOS.send_async(_waiter(number), number, TOPIC)

    async def parked(self) -> int:
        return await self._queue.parked()

    async def left(self) -> int:
        return self._queue.count(LEFT)

    async def family(self, count: int) -> None:
        handle = await asyncio.to_thread(DBOS.start_workflow, parent, count)
        ended = await asyncio.to_thread(handle.get_result)
        if ended != count:
            raise RuntimeError(f"{count} children spawned, {ended} ended")


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
        yield DirectInserter(self._url)
