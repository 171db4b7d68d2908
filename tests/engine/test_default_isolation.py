"""A database, or a role, whose transactions are REPEATABLE READ or SERIALIZABLE unless they say otherwise."""

from __future__ import annotations

import asyncio

import pytest
from engine_support import LONG, Build
from test_births import worker_of

from gen_durable import job
from gen_durable._store.operation import Operation, Request, Row, Statement

ISOLATION = Request(Statement("isolation", b"SHOW transaction_isolation", ()), ())


@job(concurrency_key="k")
async def gated(n: int) -> int:
    return n


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
async def test_sessions_of_the_engine_read_what_is_committed(build: Build, database_url: str, level: str) -> None:
    """R10, R22, R27: what looks behind a lock must see what was committed meanwhile, and no call fails for others."""
    options = "options=-c%20default_transaction_isolation%3D" + level.replace(" ", "%5C%20")
    url = f"{database_url}{'&' if '?' in database_url else '?'}{options}"
    async with build(gated, url=url) as engine, build(gated, url=url) as other:
        for link in worker_of(engine)._links:
            assert await link.fetch(ISOLATION) == [("read committed",)]
            assert await link.together(_asked()) == [("read committed",)]
        assert await engine._session.fetch(ISOLATION) == [("read committed",)]
        for _ in range(20):
            handles = await asyncio.gather(*(one.insert(gated.bind(n=1)) for one in (engine, other) * 2))
            assert [await handle.result(timeout=LONG) for handle in handles] == [1] * 4


def _asked() -> Operation[list[Row]]:
    return (yield ISOLATION)
