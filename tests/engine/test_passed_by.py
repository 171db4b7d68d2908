"""What claims and timers have passed by, while much else goes on: it runs soon after its lock is gone all the same."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import psycopg
import pytest
from engine_support import LONG, Build, eventually, moment
from test_births import quiet, worker_of
from test_locked_rows import Asked, Connect, leaf, nothing_doubted
from test_woken_claims import true

from gen_durable import job
from gen_durable._store.operation import Request, Row

FAR = 60.0  # between two polls


@job(queue="other")
async def elsewhere() -> str:
    return "elsewhere"


@job
async def second() -> str:
    return "second"


async def test_announcements_that_find_nothing_put_no_look_off(build: Build, connect: Connect, migrated: str) -> None:
    """R19: timers of another queue announce all queues; what is locked then is found as soon as ever."""
    async with build(leaf, elsewhere, queues={"default": 5, "other": 5}, poll_interval=FAR) as engine:
        handles = [await engine.insert(elsewhere.bind(), delay=0.3 + 0.008 * n) for n in range(80)]
        for handle in handles:
            await handle.result(timeout=LONG)
        other = await connect()
        await engine.pause_queue("default")
        handle = await engine.insert(leaf.bind())
        await other.execute("BEGIN")
        await other.execute(f"UPDATE {migrated}.instances SET watched = true")
        queue = worker_of(engine).queues["default"]
        await eventually(lambda: true(queue.paused and not queue.empty))
        await engine.resume_queue("default")
        await eventually(lambda: true(not queue.paused and queue.empty))  # it has claimed, and got nothing
        await other.execute("COMMIT")
        assert await handle.result(timeout=LONG) == "leaf"


async def test_wakes_of_the_timers_put_their_look_off_no_further(build: Build, connect: Connect, migrated: str) -> None:
    """R14: each insert with a delay has the timers look; only looks of their own accord count."""
    async with build(leaf, poll_interval=FAR) as engine, build(leaf, queues={}) as web:
        other = await connect()
        handle = await web.insert(leaf.bind(), delay=1.0)
        await other.execute("BEGIN")
        await other.execute(f"UPDATE {migrated}.instances SET watched = true")
        await other.execute(f"SELECT pg_sleep_until(due_at) FROM {migrated}.instances")
        asked = Asked(engine)
        for count in range(15):
            await web.insert(leaf.bind(), delay=30.0)
            await asked.more("timing/promote", than=count)
        await other.execute("COMMIT")
        assert await handle.result(timeout=LONG) == "leaf"


async def test_while_a_look_fails_others_are_told_of_what_comes(
    build: Build, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R19, R27: the claims' connection broke under the look, and can't be made anew: this worker takes nothing."""
    async with build(leaf, poll_interval=0.5) as engine, build(leaf, poll_interval=FAR) as idle:
        worker = worker_of(engine)
        link = worker._links[0]
        await (await engine.insert(leaf.bind())).result(timeout=LONG)
        await eventually(lambda: nothing_doubted(idle))

        async def never() -> Any:
            raise psycopg.OperationalError("too many connections")

        monkeypatch.setattr(link, "_try_connect", never)
        assert link.connection is not None
        other = await connect()
        await other.execute("SELECT pg_terminate_backend(%s)", [link.connection.info.backend_pid])
        await eventually(lambda: true(worker._claimer.failing and link.connection is None))
        assert await (await engine.insert(leaf.bind())).result(timeout=LONG) == "leaf"
        monkeypatch.undo()


async def test_a_worker_that_drains_does_not_claim_after_its_look(
    build: Build, connect: Connect, migrated: str
) -> None:
    """R26: nothing is claimed once the drain has begun."""
    async with build(leaf, poll_interval=FAR) as engine:
        worker = worker_of(engine)
        await engine.pause_queue("default")
        await engine.insert(leaf.bind())
        other = await connect()
        await other.execute("BEGIN")
        await other.execute(f"UPDATE {migrated}.instances SET watched = true")
        asked = Asked(engine)
        link = worker._links[0]
        fetch = link.fetch
        before: list[str] = []

        async def drained(request: Request) -> list[Row]:
            rows = await fetch(request)
            if request.statement.name == "claiming/left" and not before:
                assert rows
                await other.execute("COMMIT")
                worker.drain()
                await eventually(lambda: true(worker._claimer.closing))
                before.extend(asked.names)
            return rows

        link.fetch = drained  # type: ignore[method-assign]
        await engine.resume_queue("default")
        await eventually(lambda: true(bool(before)))
    assert "claiming/claim" not in asked.names[len(before) :]


async def test_a_locked_row_holds_up_no_other_lane(build: Build, connect: Connect, migrated: str) -> None:
    """R17, R20: it is the most urgent of its queue, and would have the only place."""
    async with build(leaf, second, elsewhere, queues={"default": 1}, poll_interval=FAR) as engine:
        await engine.pause_queue("default")
        first = await engine.insert(leaf.bind(), priority=-1)
        free = [await engine.insert(second.bind()) for _ in range(3)]
        other = await connect()
        await other.execute("BEGIN")
        await other.execute(f"UPDATE {migrated}.instances SET watched = true WHERE id = %s", [first.id])
        await engine.resume_queue("default")
        for handle in free:
            assert await handle.result(timeout=LONG) == "second"
        await other.execute("COMMIT")
        assert await first.result(timeout=LONG) == "leaf"


async def test_a_look_at_a_full_queue_finds_nothing_where_nothing_is(build: Build) -> None:
    """So the next insert of the process is born as a claim again, as soon as there is a place."""
    go = asyncio.Event()

    @job
    async def stay() -> None:
        await go.wait()

    async with quiet(build, stay, queues={"default": 1}) as engine:
        worker = worker_of(engine)
        queue = worker.queues["default"]
        worker.notified = lambda message: None  # type: ignore[method-assign]  # of the insert: it may be late
        staying = await engine.insert(stay.bind())
        await eventually(lambda: true(queue.running == 1 and not worker._claimer.claiming))
        asked = Asked(engine)
        queue.empty, queue.look_at, queue.doubted = True, 0.0, True  # as after a claim that got nothing
        worker._claimer.wake()
        await asked.more("claiming/left")
        await eventually(lambda: nothing_doubted(engine))
        go.set()
        await staying.result(timeout=LONG)


@pytest.mark.parametrize("seed", range(2))
async def test_everything_ends_soon_whatever_is_locked(
    build: Build, connect: Connect, migrated: str, seed: int
) -> None:
    """R19: two workers, two queues, pauses, delays, a cap; rows are locked for a moment; and no poll."""
    dice = random.Random(seed)
    options: dict[str, Any] = {"queue_limits": {"other": 1}} if seed % 2 else {}
    kinds = [leaf, second, elsewhere]
    lock = (
        f"UPDATE {migrated}.instances SET watched = true WHERE id IN "
        f"(SELECT id FROM {migrated}.instances ORDER BY id LIMIT %s FOR UPDATE SKIP LOCKED)"
    )
    async with (
        build(*kinds, queues={"default": 2, "other": 2}, poll_interval=FAR, **options) as one,
        build(leaf, second, queues={"default": 1}, poll_interval=FAR),
        build(*kinds, queues={}) as web,
    ):
        other = await connect()
        for _ in range(12):
            handles = []
            paused = dice.choice(["default", "other", None])
            if paused:
                await one.pause_queue(paused)
            for _ in range(dice.randrange(1, 6)):
                more: dict[str, Any] = dice.choice([{}, {}, {"delay": 0.02}, {"delay": 0.1}])
                client, kind = dice.choice([one, web]), dice.choice(kinds)
                handles.append(await client.insert(kind.bind(), priority=dice.randrange(-2, 3), **more))
            await other.execute("BEGIN")
            await other.execute(lock, [dice.randrange(3)])
            if paused:
                await one.resume_queue(paused)
            await moment(dice.choice([0.001, 0.005, 0.02, 0.1]))
            await other.execute("COMMIT")
            began = time.monotonic()
            for handle in handles:
                await handle.result(timeout=LONG)
            assert time.monotonic() - began < LONG
