"""An app with an engine under a real uvicorn: what happens when the database is away, and at the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import httpx2 as httpx
import pytest
from server import Server, started

from gen_durable import Engine, Snapshot

HERE = Path(__file__).parent
Build = Callable[..., Engine]


def uvicorn(database_url: str, schema: str, *options: str, drain: float = 10) -> object:
    arguments = ("-m", "uvicorn", "served_app:app", "--port", "0", "--app-dir", str(HERE), *options)
    env = {"GEN_DURABLE_DATABASE_URL": database_url, "SCHEMA": schema, "DRAIN": str(drain)}
    return started(*arguments, env=env)


async def run_slow(server: Server, http: httpx.AsyncClient, seconds: float) -> int:
    id_ = (await http.post(f"/slow/{seconds}")).json()
    await server.until("the step runs")
    assert isinstance(id_, int)
    return id_


async def look(build: Build, id_: int) -> Snapshot:
    async with build(queues={}) as engine:
        return await engine.get(id_)


@pytest.mark.crash
async def test_sigterm_lets_steps_finish(database_url: str, migrated: str, build: Build) -> None:
    """R26: uvicorn ends its lifespan at SIGTERM; the step that runs is finished before the process ends."""
    async with uvicorn(database_url, migrated) as server:  # type: ignore[attr-defined]
        async with httpx.AsyncClient(base_url=await server.url()) as http:
            id_ = await run_slow(server, http, 1.0)
        assert await server.end() in (0, -15), server.output  # uvicorn hands the signal on to itself at the end
    assert (await look(build, id_)).result == "finished"


@pytest.mark.crash
async def test_an_endless_stream_is_bounded_and_so_is_the_drain(database_url: str, migrated: str, build: Build) -> None:
    """R26: with a bound for streams, what can't finish is handed back after ``drain_timeout`` and the process ends."""
    async with (
        uvicorn(database_url, migrated, "--timeout-graceful-shutdown", "1", drain=1) as server,  # type: ignore[attr-defined]
        httpx.AsyncClient(base_url=await server.url()) as http,
    ):
        id_ = await run_slow(server, http, 1000)
        async with http.stream("GET", "/stream") as stream:
            lines = stream.aiter_lines()
            assert await anext(lines) == "data: tick"
            since = time.monotonic()
            await server.end()
            assert time.monotonic() - since < 8, server.output
    found = await look(build, id_)
    assert (found.status, found.attempt) == ("runnable", 0), found


@pytest.mark.crash
async def test_a_database_that_is_away_ends_the_server(migrated: str) -> None:
    """Section 14: uvicorn ends with an error that names the place, never the password."""
    async with uvicorn("postgresql://user:secret@127.0.0.1:1/d", migrated) as server:  # type: ignore[attr-defined]
        assert await server.ended() == 3
        assert "no connection to the database (host 127.0.0.1, port 1, database d, user user)" in server.output
        assert "secret" not in server.output
