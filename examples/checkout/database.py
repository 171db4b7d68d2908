"""Finds the demo's database and makes room in it: two schemas of its own, new in each run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from psycopg import AsyncConnection, sql

from gen_durable import Engine, embedded

MARK = "made by python -m examples.checkout, which drops and makes it again in each run"


class SchemaTaken(Exception):
    """The schema is somebody else's, or another demo is at work in it."""


@asynccontextmanager
async def database(engine: Engine, given: str | None) -> AsyncIterator[str]:
    """The URL that ``engine`` uses; an embedded server that was started for it is stopped at the end."""
    ours = given is None and not (await asyncio.to_thread(embedded.status)).running
    try:
        yield await engine.database_url()
    finally:
        if ours:
            await asyncio.to_thread(embedded.stop)


@asynccontextmanager
async def empty_schemas(url: str, *schemas: str) -> AsyncIterator[None]:
    """Drops and creates the schemas, and keeps other demos away from them until the end.

    Raises:
        SchemaTaken: one is not of the demo's making, or another demo is using it.
    """
    async with await AsyncConnection.connect(url, autocommit=True) as connection:
        for schema in schemas:
            cursor = await connection.execute("SELECT pg_try_advisory_lock(hashtext(%s))", (f"{MARK}: {schema}",))
            if not (await cursor.fetchone() or (False,))[0]:
                raise SchemaTaken(f"another demo runs in the schema {schema!r}: wait for its end, or give --schema")
            cursor = await connection.execute(
                "SELECT obj_description(oid, 'pg_namespace') FROM pg_namespace WHERE nspname = %s", (schema,)
            )
            if (found := await cursor.fetchone()) and found[0] != MARK:
                raise SchemaTaken(
                    f"the schema {schema!r} exists and was not made by this demo, so it stays as it is: "
                    "give another one with --schema"
                )
        await connection.execute("SET client_min_messages = warning")
        for schema in schemas:
            name = sql.Identifier(schema)
            async with connection.transaction():
                await connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(name))
                await connection.execute(sql.SQL("CREATE SCHEMA {}").format(name))
                await connection.execute(sql.SQL("COMMENT ON SCHEMA {} IS {}").format(name, sql.Literal(MARK)))
        yield
