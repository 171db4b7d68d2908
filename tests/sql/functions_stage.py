"""A schema whose machines an engine has registered, and a plain connection to call its functions from SQL."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import tuple_row

from gen_durable import Await, Context, Done, Engine, Machine, Rate, job, step
from gen_durable._store.operation import Row


class Order(Machine, name="Order", queue="orders", priority=3, retention=7200):
    order: int
    note: str | None = None
    tags: list[str] = []

    @step
    async def start(self, ctx: Context) -> Await:
        return Await("paid", then=self.ship)

    @step
    async def ship(self, ctx: Context) -> Done:
        return Done({"order": self.order, "paid": [signal.payload for signal in ctx.awaited], "tags": self.tags})


class OrderTwo(Machine, name="Order", version=2, queue="orders"):
    order: int
    extra: str

    @step(rate_limit="mail", weight=2)
    async def begin(self, ctx: Context) -> Done:
        return Done(self.extra)


class Tenant(Machine, name="Tenant", concurrency_key=lambda self: ("crm", self.tenant)):
    tenant: str

    @step(rate_limit=lambda self: ("mail", self.tenant), weight=lambda self: 3)
    async def start(self, ctx: Context) -> Done:
        return Done(None)


class Fixed(Machine, name="Fixed", concurrency_key="one"):
    @step(concurrency_key=("two", 7))
    async def start(self, ctx: Context) -> Done:
        return Done(None)


class Closed(Machine, name="Closed"):
    who: str = "me"

    @step(concurrency_key=lambda self: self.who)
    async def start(self, ctx: Context) -> Done:
        return Done(None)


@job(name="mail", queue="mails")
async def mail(to: str, copies: int = 1) -> str:
    return to * copies


MACHINES = (Order, Tenant, Fixed, Closed, mail)
RATES = {"mail": Rate(100, per=60, burst=10)}


def make_engine(url: str, schema: str, *machines: Any, **settings: Any) -> Engine:
    settings.setdefault("queues", {"orders": 5, "mails": 5, "default": 5})
    settings.setdefault("rate_limits", RATES)
    return Engine(url, machines=machines or MACHINES, schema=schema, name=f"{schema}_{id(settings)}", **settings)


class Caller:
    """Somebody who only speaks SQL."""

    def __init__(self, schema: str, connection: AsyncConnection[Row]) -> None:
        self.schema = schema
        self.connection = connection

    async def all(self, text: str, *values: Any) -> list[Row]:
        """The rows of a query; {s} is the schema."""
        cursor = self.connection.cursor(row_factory=tuple_row)
        await cursor.execute(text.replace("{s}", self.schema).encode(), values or None)
        return await cursor.fetchall() if cursor.description else []

    async def one(self, text: str, *values: Any) -> Any:
        """The one value of a query."""
        ((value,),) = await self.all(text, *values)
        return value

    async def refused(self, text: str, *values: Any) -> psycopg.errors.Diagnostic:
        """The error of a call that fails, and leaves nothing behind."""
        before = await self.counts()
        try:
            await self.all(text, *values)
        except psycopg.Error as error:
            assert await self.counts() == before
            return error.diag
        raise AssertionError(f"it was not refused: {text}")

    async def counts(self) -> tuple[int, ...]:
        rows = await self.all(
            "SELECT (SELECT count(*) FROM {s}.instances), (SELECT count(*) FROM {s}.signals), "
            "(SELECT count(*) FROM {s}.lanes), (SELECT count(*) FROM {s}.knocks)"
        )
        return rows[0]

    async def row(
        self, id_: int, columns: str = "l.queue, l.machine, l.version, i.step, i.state, i.status"
    ) -> Row | None:
        """A live row's columns."""
        rows = await self.all(
            f"SELECT {columns} FROM {{s}}.instances i JOIN {{s}}.lanes l ON l.id = i.lane WHERE i.id = %s", id_
        )
        return rows[0] if rows else None
