"""What the tests of transactional steps share: a table of the user's, in the test's schema."""

from __future__ import annotations

from typing import Any

from engine_support import Sql, eventually

from gen_durable import Engine


class Notes:
    """The user's table: what steps have written there, and is committed."""

    def __init__(self, sql: Sql, schema: str) -> None:
        self._sql = sql
        self.table = f"{schema}.notes"
        self.insert = f"INSERT INTO {self.table} (id, what) VALUES (%s, %s)"

    async def create(self) -> None:
        await self._sql(f"CREATE TABLE {self.table} (id bigint, what text)")

    async def all(self) -> list[str]:
        return [what for (what,) in await self._sql(f"SELECT what FROM {self.table} ORDER BY what")]

    async def add(self, ctx: Any, what: str) -> None:
        await ctx.conn.execute(self.insert, (ctx.id, what))


def stepping(engine: Engine) -> str:
    """The application name of its transactional connections."""
    return f"gen_durable {engine.settings.name} step"[:63]


async def idle_backends(sql: Sql, engine: Engine) -> list[Any]:
    """The transactional sessions that are not at rest, once they had the time to be."""

    async def none_busy() -> bool:
        return not await sql(
            "SELECT pid FROM pg_stat_activity WHERE application_name = %s AND state <> 'idle'", stepping(engine)
        )

    await eventually(none_busy)
    return await sql("SELECT pid FROM pg_stat_activity WHERE application_name = %s", stepping(engine))
