"""The shop's own tables in the same database: stock, reservations, shipments, receipts; idempotent per order."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from psycopg import AsyncConnection, sql
from psycopg_pool import AsyncConnectionPool

from gen_durable import Context

TABLES = """
CREATE TABLE stock (item text PRIMARY KEY, delivered bigint NOT NULL, available bigint NOT NULL CHECK (available >= 0));
CREATE TABLE reservations (order_id text PRIMARY KEY, item text NOT NULL REFERENCES stock, quantity bigint NOT NULL);
CREATE TABLE shipments (order_id text PRIMARY KEY, tracking bigint GENERATED ALWAYS AS IDENTITY);
CREATE TABLE receipts (order_id text PRIMARY KEY, email text NOT NULL, cents bigint NOT NULL);
CREATE UNLOGGED TABLE runs (order_key text, step text, attempt int, worker int);  -- outlives workers, which is enough
"""


@dataclass(frozen=True)
class Books:
    """All that the shop has on record, as plain rows."""

    stock: dict[str, tuple[int, int]]
    reservations: dict[str, tuple[str, int]]
    shipments: set[str]
    receipts: dict[str, int]
    runs: list[tuple[Any, ...]]


class Shop:
    """The statements; ``schema`` is the engine's, the shop's tables live beside it in ``<schema>_shop``."""

    def __init__(self, url: str, schema: str) -> None:
        self.schema = f"{schema}_shop"
        self._pool = AsyncConnectionPool(url, min_size=1, max_size=8, configure=self._configure, open=False)

    async def _configure(self, connection: AsyncConnection) -> None:
        await connection.set_autocommit(True)
        await connection.execute(sql.SQL("SET search_path = {}").format(sql.Identifier(self.schema)))

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[AsyncConnection]:
        await self._pool.open()  # does nothing when it is open
        async with self._pool.connection() as connection:
            yield connection

    async def close(self) -> None:
        await self._pool.close()

    # What the steps call --------------------------------------------------------------------------

    async def note_run(self, ctx: Context) -> None:
        """Notes that a run of a step begins: committed at once, so that it is known also of runs that were killed."""
        await self._execute("INSERT INTO runs VALUES (%s, %s, %s, %s)", ctx.key, ctx.step, ctx.attempt, ctx.worker)

    async def reserve(self, order: str, item: str, quantity: int) -> bool:
        """Takes stock for an order, once. False: there is not enough."""
        ((enough,),) = await self._execute(
            """
            WITH held AS (SELECT FROM reservations WHERE order_id = %(order)s),
            taken AS (
                UPDATE stock SET available = available - %(n)s
                WHERE item = %(item)s AND available >= %(n)s AND NOT EXISTS (SELECT FROM held)
                RETURNING item
            ),
            reserved AS (INSERT INTO reservations SELECT %(order)s, item, %(n)s FROM taken)
            SELECT EXISTS (SELECT FROM held) OR EXISTS (SELECT FROM taken)
            """,
            order=order,
            item=item,
            n=quantity,
        )
        return bool(enough)

    async def release(self, order: str) -> None:
        """Puts an order's stock back, if it has any."""
        await self._execute(
            "WITH gone AS (DELETE FROM reservations WHERE order_id = %s RETURNING item, quantity) "
            "UPDATE stock SET available = available + quantity FROM gone WHERE stock.item = gone.item",
            order,
        )

    async def ship(self, order: str) -> int:
        """Hands an order to the carrier, once; the tracking number."""
        rows = await self._execute(
            "INSERT INTO shipments (order_id) VALUES (%s) "
            "ON CONFLICT (order_id) DO UPDATE SET order_id = excluded.order_id RETURNING tracking",
            order,
        )
        return int(rows[0][0])

    async def send_receipt(self, order: str, email: str, cents: int) -> None:
        """Writes an order's receipt, once."""
        await self._execute("INSERT INTO receipts VALUES (%s, %s, %s) ON CONFLICT DO NOTHING", order, email, cents)

    # What the demo calls --------------------------------------------------------------------------

    async def open_shop(self, stock: dict[str, int]) -> None:
        """Makes the tables, in the shop's empty schema, and fills the shelves."""
        async with self._connection() as connection, connection.transaction():
            await connection.execute(TABLES)
            async with connection.cursor() as cursor:
                await cursor.executemany(
                    "INSERT INTO stock VALUES (%s, %s, %s)", [(item, n, n) for item, n in stock.items()]
                )

    async def progress(self) -> tuple[int, int, int]:
        """How many orders have a reservation, a shipment, a receipt."""
        (row,) = await self._execute(
            "SELECT (SELECT count(*) FROM reservations), (SELECT count(*) FROM shipments), "
            "(SELECT count(*) FROM receipts)"
        )
        return row[0], row[1], row[2]

    async def now(self) -> datetime:
        """The database's clock."""
        (row,) = await self._execute("SELECT clock_timestamp()")
        return cast("datetime", row[0])

    async def books(self) -> Books:
        """Everything, for the report."""
        return Books(
            stock={i: (d, a) for i, d, a in await self._execute("SELECT item, delivered, available FROM stock")},
            reservations={
                o: (i, n) for o, i, n in await self._execute("SELECT order_id, item, quantity FROM reservations")
            },
            shipments={o for (o,) in await self._execute("SELECT order_id FROM shipments")},
            receipts=dict(await self._execute("SELECT order_id, cents FROM receipts")),
            runs=await self._execute("SELECT order_key, step, attempt, worker FROM runs"),
        )

    async def _execute(self, statement: Any, *values: Any, **named: Any) -> list[tuple[Any, ...]]:
        async with self._connection() as connection:
            cursor = await connection.execute(statement, named or values)
            return await cursor.fetchall() if cursor.description else []
