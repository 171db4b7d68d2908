"""The worker process of the tests of limits, and the machines it runs; started with a JSON configuration.

What runs at once is not asked of the engine: each step takes an advisory lock in a session that is the process's own,
under the number of its key, and counts those that the server has granted. When the process is killed they are gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
from collections.abc import AsyncIterator
from typing import Any

import psycopg
from chaos_worker import note, open_journal

from gen_durable import Backoff, Context, Done, Engine, Machine, Next, Rate, Retry, Sleep, Spawn, job, step

_ENTER = """SELECT pg_advisory_lock({key}, pg_backend_pid() << 8 | {place});
SELECT count(*), extract(epoch FROM clock_timestamp())::float8 FROM pg_locks l
WHERE l.locktype = 'advisory' AND l.classid = {key} AND l.objsubid = 2 AND l.granted
    AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())"""
_LEAVE = """SELECT pg_advisory_unlock({key}, pg_backend_pid() << 8 | {place});
SELECT extract(epoch FROM clock_timestamp())::float8"""
_START = """SELECT extract(epoch FROM clock_timestamp())::float8,
    (SELECT extract(epoch FROM i.updated_at)::float8 FROM {schema}.instances i WHERE i.id = {id})"""


class Probe:
    """The process's own session."""

    def __init__(self) -> None:
        self.url = self.schema = ""
        self._session: psycopg.AsyncConnection[Any] | None = None
        self._opening = asyncio.Lock()
        self._free = list(range(256))

    async def ask(self, text: str, **values: Any) -> tuple[Any, ...]:
        """Sends statements in one message; answers with the last one's row."""
        async with self._opening:
            if self._session is None or self._session.closed:
                self._session = await psycopg.AsyncConnection.connect(
                    self.url, autocommit=True, application_name="probe"
                )
        cursor = await self._session.execute(text.format(schema=self.schema, **values).encode())
        while cursor.nextset():
            pass
        row: tuple[Any, ...] = (await cursor.fetchone()) or ()
        return row

    @contextlib.asynccontextmanager
    async def inside(self, ctx: Context, key: int, allowed: int) -> AsyncIterator[None]:
        """Notes how many are inside with it, when it came and when it left."""
        place = self._free.pop()
        try:
            count, since = await self.ask(_ENTER, key=key, place=place)
            if count > allowed:
                note(kind="over", key=key, id=ctx.id, worker=ctx.worker, count=count, allowed=allowed)
            yield
            (until,) = await self.ask(_LEAVE, key=key, place=place)
            note(kind="held", key=key, id=ctx.id, attempt=ctx.attempt, since=since, until=until, count=count)
        finally:
            self._free.append(place)


probe = Probe()


@job(name="held", concurrency_key=lambda self: (self.limit, self.tenant))
async def held(limit: str, tenant: int, number: int, allowed: int, seconds: float, ctx: Context) -> int:
    """Holds a slot of its key for some seconds."""
    async with probe.inside(ctx, number, allowed):
        await asyncio.sleep(seconds)
    return tenant


@job(name="metered", rate_limit="api")
async def metered(n: int, ctx: Context) -> int:
    """Notes when it was claimed and when it started, both by the database's clock."""
    started, claimed = await probe.ask(_START, id=ctx.id)
    note(kind="start", id=ctx.id, started=started, claimed=claimed)
    return n


@job(name="both", concurrency_key=lambda self: ("few", self.tenant), rate_limit="fast")
async def both(tenant: int) -> int:
    await asyncio.sleep(0.002)
    return tenant


class Mixed(Machine, name="mixed", concurrency_key=lambda self: ("one", self.tenant)):
    """Changes its key and its rate with every step, fails now and then, and sleeps."""

    tenant: int

    @step(retry=Backoff(max_attempts=5, initial=0.01, factor=1.0, jitter=False))
    async def first(self, ctx: Context) -> Next:
        if ctx.attempt == 0 and self.tenant % 3 == 0:
            raise RuntimeError("not yet")
        return Next(self.second, concurrency_key=("few", (self.tenant + 1) % 5))

    @step
    async def second(self, ctx: Context) -> Next:
        return Next(self.third, concurrency_key=("one", (self.tenant + 2) % 5), rate_limit="fast")

    @step
    async def third(self, ctx: Context) -> Sleep | Retry:
        return Sleep(0.02, then=self.last) if ctx.attempt else Retry(0)

    @step
    async def last(self, ctx: Context) -> Done:
        return Done(self.tenant)


class Family(Machine, name="family"):
    """Children that share keys, and a join."""

    tenant: int

    @step
    async def start(self, ctx: Context) -> Spawn:
        children = [both.bind(tenant=(self.tenant + n) % 5) for n in range(4)]
        return Spawn([*children, Mixed(tenant=self.tenant)], then=self.end)

    @step(concurrency_key=lambda self: ("one", self.tenant))
    async def end(self, ctx: Context) -> Done:
        return Done(len(ctx.children))


MACHINES = (held, metered, both, Mixed, Family)
LIMITS: dict[str, Any] = {
    "concurrency_limits": {"three": 3, "fifty": 50, "five": 5, "few": 2},  # of the others one runs at a time
    "rate_limits": {"api": Rate(150, burst=20), "fast": Rate(2000, burst=50)},
}


def main() -> None:
    """Runs a worker until it is ended."""
    settings: dict[str, Any] = json.loads(sys.argv[1])
    open_journal(settings.pop("journal"))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    probe.url, probe.schema = settings["url"], settings["schema"]
    engine = Engine(settings.pop("url"), machines=MACHINES, **LIMITS, **settings)
    for event in ("stale", "reaped", "worker_dead"):
        engine.on(event, lambda happened, kind=event: note(kind=kind, text=repr(happened)))
    asyncio.run(engine.run())


if __name__ == "__main__":
    main()
