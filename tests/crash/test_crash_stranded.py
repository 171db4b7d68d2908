"""Every way we know in which a row can be left as executing, and that each comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import pytest
from chaos_worker import MACHINES, quick
from harness import Chaos, Client, until
from stepper import Stepper

from gen_durable import Engine

pytestmark = pytest.mark.crash

Way = Callable[[Stepper, Callable[[], Awaitable[Stepper]], int], Awaitable[None]]
Another = Callable[[], Awaitable[Stepper]]

GONE = "DELETE FROM {schema}.workers WHERE id = %s"


async def silent(one: Stepper, another: Another, worker: int) -> None:
    """It has no session lock (a pooler, a lost race for it) and was last heard of long ago."""
    await one.register(worker)
    assert await one.claim(worker, 1)
    await one.silence(worker, 3600)


async def silent_with_lock(one: Stepper, another: Another, worker: int) -> None:
    """Its machine lost its power: the server still believes in its session."""
    owner = await another()
    await owner.register(worker, lock=True)
    assert await owner.claim(worker, 1)
    await one.silence(worker, 3600)


async def lock_lost(one: Stepper, another: Another, worker: int) -> None:
    """Killed a moment ago: heard of just now, but its session is gone."""
    owner = await another()
    await owner.register(worker, lock=True)
    assert await owner.claim(worker, 1)
    await owner.connection.close()


async def registered_twice(one: Stepper, another: Another, worker: int) -> None:
    """The answer to its registration was lost; it lives on under another id, and this one was never heard of again."""
    owner = await another()
    await owner.register(worker, lock=True)
    assert await owner.claim(worker, 1)
    await owner.query("SELECT pg_advisory_unlock_all()")


async def row_gone(one: Stepper, another: Another, worker: int) -> None:
    """Somebody else has declared it dead, and died before he could give its claims back."""
    await one.register(worker)
    assert await one.claim(worker, 1)
    await one.query(GONE, worker)


async def left_with_a_claim(one: Stepper, another: Another, worker: int) -> None:
    """It has drained and taken itself off the table, but could not give a claim back."""
    await one.register(worker)
    assert await one.claim(worker, 1)
    assert await one.ask("workers/unregister", worker=worker)


async def unknown(one: Stepper, another: Another, worker: int) -> None:
    """Nobody ever heard of the owner (a restored backup)."""
    query = "UPDATE {schema}.instances SET status = 2, worker = %s, rev = rev + 1 WHERE id = "
    await one.query(query + "(SELECT min(id) FROM {schema}.instances WHERE status = 0)", -worker)


async def claimed_after_its_death(one: Stepper, another: Another, worker: int) -> None:
    """Its claim was under way when it was declared dead, and was committed afterwards."""
    owner = await another()
    await one.register(worker)
    async with owner.connection.transaction():
        assert await owner.claim(worker, 1)
        await one.query(GONE, worker)


async def reaper_died(one: Stepper, another: Another, worker: int) -> None:
    """Its reaper died in the middle of its pass: nothing of that pass took effect."""
    await one.register(worker)
    assert await one.claim(worker, 1)
    await one.silence(worker, 3600)
    reaper = await another()
    await reaper.connection.execute("BEGIN")
    assert await reaper.reap() >= 1
    await reaper.connection.close()


async def suspected_and_forgotten(one: Stepper, another: Another, worker: int) -> None:
    """It was suspected long ago by a reaper that died; nobody has looked since."""
    owner = await another()
    await owner.register(worker, lock=True)
    assert await owner.claim(worker, 1)
    await owner.connection.close()
    await one.query("UPDATE {schema}.workers SET suspect_at = now() - interval '1 day' WHERE id = %s", worker)


WAYS: list[Way] = [
    silent,
    silent_with_lock,
    lock_lost,
    registered_twice,
    row_gone,
    left_with_a_claim,
    unknown,
    claimed_after_its_death,
    reaper_died,
    suspected_and_forgotten,
]


@pytest.fixture
async def another(connect: Callable[[], Any], migrated: str) -> Another:
    async def make() -> Stepper:
        return Stepper(await connect(), migrated)

    return make


async def test_no_row_is_stranded_as_executing(chaos: Chaos, build: Callable[..., Engine], another: Another) -> None:
    """R25: whoever owned the row and however he ended, the first worker that starts finds it and it runs again."""
    one = await another()
    rows: dict[int, str] = {}
    async with Client(build, MACHINES) as client:
        for number, way in enumerate(WAYS, start=1):
            handle = await client.insert(quick.bind(n=number))
            await way(one, another, 100 + number)
            assert (await one.row(handle.id))["status"] == 2, way.__name__
            rows[handle.id] = way.__name__
    engine = build(*MACHINES, lease=1.5, heartbeat=0.5)
    async with engine:

        def stranded() -> list[str]:
            left = chaos.rows("SELECT id FROM {schema}.instances ORDER BY id")
            return [rows[id_] for (id_,) in left]

        try:
            await until(lambda: not stranded(), 15)
        except AssertionError:
            raise AssertionError(f"stranded: {stranded()}") from None
        assert len(await engine.workers()) == 1
    ended = chaos.rows("SELECT id, status, attempt, crashes FROM {schema}.finished ORDER BY id")
    assert ended == [(id_, 6, 1, 1) for id_ in sorted(rows)]


async def test_a_row_that_its_living_owner_does_not_know_of_comes_back(
    chaos: Chaos, build: Callable[..., Engine]
) -> None:
    """R25: the table says that a living worker holds rows, and it knows nothing of them (the answer of a claim that was
    committed late): it gives them back itself within a lease, no attempt spent."""
    engine = build(*MACHINES, lease=1.5, heartbeat=0.5)
    async with engine:
        await engine.pause_queue("default")
        handle = await engine.insert(quick.bind(n=1))
        query = "UPDATE {schema}.instances SET status = 2, rev = rev + 1, worker = (SELECT id FROM {schema}.workers)"
        chaos.rows(query)
        await engine.resume_queue("default")
        assert await handle.result(timeout=10) == 1
        assert (await handle.get()).attempt == 0


async def test_rows_of_a_paused_or_unknown_queue_come_back_too(
    chaos: Chaos, build: Callable[..., Engine], another: Another
) -> None:
    """R25, R9: a reaper gives back what it would not run itself."""
    one = await another()
    async with Client(build, MACHINES) as client:
        handle = await client.insert(quick.bind(n=1))
        await row_gone(one, another, 7)
        await client.pause_queue("default")
    async with build(queues={"other": 1}, lease=1.5, heartbeat=0.5):
        await until(lambda: chaos.executing() == 0)
    assert (await one.row(handle.id))["attempt"] == 1


async def test_more_than_a_batch_comes_back_at_once(
    chaos: Chaos, build: Callable[..., Engine], another: Another
) -> None:
    """R25: 5,000 claims of several dead workers come back without a pause between the batches."""
    one = await another()
    async with Client(build, MACHINES) as client:
        await client.insert_many([quick.bind(n=n) for n in range(5000)])
        for worker in (5, 6):
            await one.register(worker)
            assert len(await one.claim(worker, 2500)) == 2500
            await one.query(GONE, worker)
    async with build(queues={"other": 1}), asyncio.timeout(15):
        await until(lambda: chaos.executing() == 0)
    assert chaos.rows("SELECT count(*), min(attempt), max(attempt) FROM {schema}.instances WHERE status = 0") == [
        (5000, 1, 1)
    ]


async def test_a_row_that_somebody_holds_locked_comes_back_when_it_is_free(
    chaos: Chaos, build: Callable[..., Engine], another: Another
) -> None:
    """R25: a reaper does not wait for a locked row, and does not forget it."""
    one, holder = await another(), await another()
    async with Client(build, MACHINES) as client:
        handle = await client.insert(quick.bind(n=1))
        free = await client.insert(quick.bind(n=2))
        await one.register(7)
        assert len(await one.claim(7)) == 2
        await one.query(GONE, 7)
    async with build(*MACHINES, lease=1.5, heartbeat=0.5):
        async with holder.connection.transaction():
            await holder.query("SELECT 1 FROM {schema}.instances WHERE id = %s FOR UPDATE", handle.id)
            await until(lambda: chaos.rows("SELECT 1 FROM {schema}.finished WHERE id = %s", free.id))
            assert (await one.row(handle.id))["status"] == 2
        await chaos.settled()


async def test_a_reaper_that_hangs_with_the_lead_does_not_hang_the_others(
    chaos: Chaos, build: Callable[..., Engine], another: Another
) -> None:
    """R25: one reaper at a time: one that hangs in its transaction is thrown out by the server, and another goes on."""
    one, hung = await another(), await another()
    async with Client(build, MACHINES) as client:
        handle = await client.insert(quick.bind(n=1))
        await row_gone(one, another, 7)
        # A worker's sessions have such a bound of their own, of a minute: here it is two seconds.
        await hung.query("SET idle_in_transaction_session_timeout = '2s'")
        await hung.connection.execute("BEGIN")
        assert await hung.reap() == 1
        async with build(*MACHINES, lease=1.5, heartbeat=0.5, name="lively"):
            assert await handle.result(timeout=15) == 1
        with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout):
            await hung.query("SELECT 1")
