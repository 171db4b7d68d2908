"""gen_durable itself: one worker with one queue; a chain is a machine of five steps that runs ahead."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.adapter import FILLER
from benchmarks.board import Board
from gen_durable import Context, Done, Engine, Machine, Next, job, step

_board: list[Board] = []


@job
async def noop(number: int) -> None:
    _board[0].hit()


@job
async def mark(number: int) -> None:
    _board[0].mark(number)


class Chain(Machine):
    number: int
    note: str = FILLER

    @step
    async def first(self, ctx: Context) -> Next:
        _board[0].hit()
        return Next(self.second)

    @step
    async def second(self, ctx: Context) -> Next:
        _board[0].hit()
        return Next(self.third)

    @step
    async def third(self, ctx: Context) -> Next:
        _board[0].hit()
        return Next(self.fourth)

    @step
    async def fourth(self, ctx: Context) -> Next:
        _board[0].hit()
        return Next(self.fifth)

    @step
    async def fifth(self, ctx: Context) -> Done:
        _board[0].hit()
        return Done()


def _instance(kind: str, number: int) -> Any:
    match kind:
        case "noop":
            return noop.bind(number=number)
        case "mark":
            return mark.bind(number=number)
        case _:
            return Chain(number=number)


class Inserter:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def one(self, kind: str, number: int) -> None:
        await self._engine.insert(_instance(kind, number))

    async def many(self, kind: str, count: int) -> None:
        await self._engine.insert_many([_instance(kind, number) for number in range(count)])


class Adapter:
    loop = "uvloop"

    def __init__(self, url: str, board: Board, options: dict[str, Any]) -> None:
        self._url, self._options = url, dict(options)
        self._concurrency = self._options.pop("concurrency", 200)
        _board[:] = [board]

    def _engine(self) -> Engine:
        machines = [noop, mark, Chain]
        return Engine(self._url, machines=machines, queues={"default": self._concurrency}, **self._options)

    async def setup(self) -> None:
        await self._engine().migrate()

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Inserter]:
        engine = self._engine()
        async with engine.client():
            yield Inserter(engine)

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[Inserter]:
        engine = self._engine()
        async with engine:
            yield Inserter(engine)
