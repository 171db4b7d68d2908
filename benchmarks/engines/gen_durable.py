"""gen_durable itself: one worker with one queue; a chain is a machine of five steps that runs ahead."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from psycopg_pool import AsyncConnectionPool

from benchmarks.adapter import CALL_SECONDS, FILLER
from benchmarks.board import Board
from gen_durable import Await, BulkItem, Context, Done, Engine, Machine, Next, Rate, Spawn, job, step

KEYS = 100
ACCOUNTS = 10_000
PAY = "UPDATE accounts SET cents = cents + 1 WHERE id = %s"
OPEN = "CREATE TABLE accounts AS SELECT n AS id, 0 AS cents FROM generate_series(0, 9999) n"
LIMITS: dict[str, Any] = {
    "concurrency_limits": {"wide": 50},
    "rate_limits": {"fast": Rate(1_000_000, burst=1_000_000)},
}

_board: list[Board] = []
_pool: list[AsyncConnectionPool[Any]] = []


@job
async def noop(number: int) -> None:
    _board[0].hit()


@job
async def mark(number: int) -> None:
    _board[0].mark(number)


@job
async def call(number: int) -> None:
    await asyncio.sleep(CALL_SECONDS)
    _board[0].hit()


@job
async def sitter(number: int) -> None:
    _board[0].hit()
    await asyncio.Event().wait()


@job
async def answer(number: int) -> int:
    return number


@job(concurrency_key=lambda self: ("one", self.number % KEYS))
async def keyed(number: int) -> None:
    _board[0].hit()


@job(concurrency_key=lambda self: ("wide", self.number % KEYS))
async def wide(number: int) -> None:
    _board[0].hit()


@job(rate_limit="fast")
async def metered(number: int) -> None:
    _board[0].hit()


@job(transactional=True)
async def paid(ctx: Context, number: int) -> None:
    await ctx.conn.execute(PAY, (number % ACCOUNTS,))
    _board[0].hit()


@job
async def paid_alone(number: int) -> None:
    async with _pool[0].connection() as connection:
        await connection.execute(PAY, (number % ACCOUNTS,))
    _board[0].hit()


@job(concurrency_key="crowd")
async def crowd(number: int) -> None:
    await asyncio.Event().wait()


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


class Waiter(Machine):
    number: int

    @step
    async def start(self, ctx: Context) -> Await:
        _board[0].hit()
        return Await("go", then=self.woken)

    @step
    async def woken(self, ctx: Context) -> Done:
        _board[0].mark(self.number)
        return Done()


class Parent(Machine):
    count: int

    @step
    async def start(self, ctx: Context) -> Spawn:
        return Spawn([noop.bind(number=number) for number in range(self.count)], then=self.join)

    @step
    async def join(self, ctx: Context) -> Done:
        return Done(len(ctx.children))


def _instance(kind: str, number: int) -> Any:
    match kind:
        case "noop":
            return noop.bind(number=number)
        case "mark":
            return mark.bind(number=number)
        case "call":
            return call.bind(number=number)
        case "sitter":
            return sitter.bind(number=number)
        case "parked":
            return Waiter(number=number)
        case "answer":
            return answer.bind(number=number)
        case "keyed":
            return keyed.bind(number=number)
        case "wide":
            return wide.bind(number=number)
        case "metered":
            return metered.bind(number=number)
        case "crowd":
            return crowd.bind(number=number)
        case "paid":
            return paid.bind(number=number)
        case "paid_alone":
            return paid_alone.bind(number=number)
        case "waiter":
            return BulkItem(Waiter(number=number), key=f"waiter {number}")
        case _:
            return Chain(number=number)


class Inserter:
    def __init__(self, engine: Engine, url: str) -> None:
        self._engine, self._url = engine, url
        self._looker: psycopg.AsyncConnection[Any] | None = None

    async def one(self, kind: str, number: int) -> None:
        await self._engine.insert(_instance(kind, number))

    async def many(self, kind: str, count: int) -> None:
        await self._engine.insert_many([_instance(kind, number) for number in range(count)])

    async def ask(self, number: int) -> int:
        handle = await self._engine.insert(answer.bind(number=number))
        result: int = await handle.result(timeout=20)
        return result

    async def signal(self, number: int) -> None:
        await self._engine.signal(f"waiter {number}", "go", {"number": number})

    async def parked(self) -> int:
        return await self._count("SELECT count(*) FROM gen_durable.instances WHERE status = 3")

    async def left(self) -> int:
        return await self._count("SELECT count(*) FROM gen_durable.instances")

    async def family(self, count: int) -> None:
        parent = await self._engine.insert(Parent(count=count))
        ended = await parent.result(timeout=300)
        if ended != count:
            raise RuntimeError(f"{count} children spawned, {ended} ended")

    async def _count(self, query: str) -> int:
        if self._looker is None:
            self._looker = await psycopg.AsyncConnection.connect(self._url, autocommit=True)
        row = await (await self._looker.execute(query.encode())).fetchone()
        return int(row[0]) if row else 0


class Adapter:
    loop = "uvloop"

    def __init__(self, url: str, board: Board, options: dict[str, Any]) -> None:
        self._url, self._options = url, dict(options)
        self._concurrency = self._options.pop("concurrency", 200)
        _board[:] = [board]

    def _engine(self) -> Engine:
        machines = [
            noop,
            mark,
            answer,
            call,
            sitter,
            keyed,
            wide,
            metered,
            paid,
            paid_alone,
            crowd,
            Chain,
            Waiter,
            Parent,
        ]
        options = {**LIMITS, **self._options}
        return Engine(self._url, machines=machines, queues={"default": self._concurrency}, **options)

    async def setup(self) -> None:
        await self._engine().migrate()
        async with await psycopg.AsyncConnection.connect(self._url, autocommit=True) as connection:
            await connection.execute(OPEN)
            await connection.execute("ALTER TABLE accounts ADD PRIMARY KEY (id)")

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Inserter]:
        engine = self._engine()
        async with engine.client():
            yield Inserter(engine, self._url)

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[Inserter]:
        engine = self._engine()
        pool = AsyncConnectionPool(
            self._url, min_size=0, max_size=self._concurrency, kwargs={"autocommit": True}, open=False
        )
        async with pool, engine:
            _pool[:] = [pool]
            yield Inserter(engine, self._url)
