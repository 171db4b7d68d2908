"""Rows that a signal wakes as claims of the same process's worker: nobody has to claim them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from engine_support import LONG, Build, Seen, Sql, eventually
from test_births import REASONS, Gate, idle, kept, quiet, row, worker_of

from gen_durable import Await, Context, Done, Engine, Handle, Machine, step
from gen_durable.errors import DatabaseUnreachable

runs: list[Any] = []


class Waiter(Machine):
    """Waits for one signal and answers with what it was handed."""

    @step
    async def start(self, ctx: Context) -> Await:
        return Await("go", then=self.woken)

    @step
    async def woken(self, ctx: Context) -> Done:
        runs.append([signal.payload for signal in ctx.awaited])
        return Done([len(ctx.inbox), runs[-1], ctx.timed_out])


@pytest.fixture(autouse=True)
def no_runs() -> None:
    runs.clear()


@contextlib.asynccontextmanager
async def parked(build: Build, count: int = 1, **settings: Any) -> AsyncIterator[tuple[Engine, list[Handle]]]:
    """A quiet engine, and instances that wait."""
    async with quiet(build, Waiter, **settings) as engine:
        handles = [await engine.insert(Waiter()) for _ in range(count)]
        for handle in handles:
            await waits(handle)
        await settled(engine)
        yield engine, handles


async def waits(handle: Handle) -> None:
    async def look() -> bool:
        return (await handle.get()).status == "awaiting_signal"

    await eventually(look)


async def settled(engine: Engine) -> None:
    worker = worker_of(engine)

    async def look() -> bool:
        return not worker._held and not worker._claimer.claiming

    await eventually(look)
    await idle(worker)


async def true(value: bool) -> bool:
    return value


async def test_a_row_for_an_idle_worker_is_woken_as_its_claim(build: Build) -> None:
    """R10, R19: its step starts without a claim, with all that is in its inbox."""
    async with parked(build) as (engine, [handle]):
        claims = Seen(engine, "claim")
        await engine.signal(handle.id, "other", 1)
        assert (await handle.get()).status == "awaiting_signal"
        before = await handle.get()
        assert await engine.signal(handle.id, "go", 2)
        assert await handle.result(timeout=LONG) == [2, [2], False]
        found = await handle.get()
        assert (found.rev, found.attempt, found.crashes) == (before.rev + 2, 0, 0)
        assert claims.all == []
        assert kept(worker_of(engine)) == 0
        assert not worker_of(engine)._births.under_way


async def test_more_signals_than_places(build: Build) -> None:
    """R19: the places are given to as many as there are; the rest is claimed; each runs once."""
    async with parked(build, 20, queues={"default": 3}) as (engine, handles):
        await asyncio.gather(*(engine.signal(handle.id, "go", n) for n, handle in enumerate(handles)))
        for n, handle in enumerate(handles):
            assert await handle.result(timeout=LONG) == [1, [n], False]
        assert sorted(runs) == [[n] for n in range(20)]
        assert kept(worker_of(engine)) == 0


@pytest.mark.parametrize("reason", [reason for reason in REASONS if reason != "it does not know the lane"])
async def test_when_no_place_is_kept(build: Build, reason: str) -> None:
    """R17: nothing that waits is passed by, and nothing is promised that could not be kept."""
    async with parked(build) as (engine, _):
        worker = worker_of(engine)
        claimer, flusher, queue = worker._claimer, worker._flusher, worker.queues["default"]
        REASONS[reason](worker)
        refused = worker.expect_one()
        queue.buffer.clear()
        worker._births.over = claimer.closing = claimer.claiming = claimer.failing = flusher._main.failing = False
        queue.closed = queue.paused = False
        queue.empty, queue.expected = True, 0
        assert refused is None
        place = worker.expect_one()
        assert place is not None
        assert place.lanes == queue.lanes
        assert kept(worker) == 1
        with place:
            pass
        assert kept(worker) == 0


async def test_no_row_is_woken_as_a_claim_of_a_worker_that_is_not_known(build: Build, sql: Sql) -> None:
    """R25: one that was declared dead and has not heard of it would lose it at the price of a crash."""
    async with parked(build, lease=60, heartbeat=20) as (engine, [handle]):
        await sql("DELETE FROM {s}.workers")
        await engine.signal(handle.id, "go", 1)
        assert await row(sql, "status, worker, crashes") == (0, None, 0)
        async with build(Waiter):
            assert await handle.result(timeout=LONG) == [1, [1], False]


async def test_no_row_is_woken_as_a_claim_in_a_paused_queue(build: Build, sql: Sql) -> None:
    """R20: also where the worker has not heard of the pause yet."""
    async with parked(build, lease=60, heartbeat=20) as (engine, [handle]):
        await sql("UPDATE {s}.lanes SET paused = true")
        await engine.signal(handle.id, "go", 1)
        assert await row(sql, "status, worker, crashes") == (0, None, 0)
        await engine.resume_queue("default")
        assert await handle.result(timeout=LONG) == [1, [1], False]


async def test_a_look_for_lost_claims_leaves_a_row_whose_answer_is_on_its_way(build: Build, sql: Sql) -> None:
    """R25: it is there, it is ours, and we can't know it yet."""
    async with parked(build) as (engine, [handle]):
        worker, gate = worker_of(engine), Gate(engine, statement="signalling/send")
        sending = asyncio.create_task(engine.signal(handle.id, "go", 1))
        await gate.reached.wait()
        for _ in range(2):
            await worker._claimer.check()
            assert await row(sql, "status, worker") == (2, worker.id)
        gate.open.set()
        assert await sending
        assert await handle.result(timeout=LONG) == [1, [1], False]
        assert runs == [[1]]


async def test_a_row_whose_answer_was_lost_goes_back_at_once(build: Build) -> None:
    """R10, R27: the sender does not know; the signal is there, and the step runs once."""
    async with parked(build) as (engine, [handle]):
        gate = Gate(engine, DatabaseUnreachable("cut"), "signalling/send")
        gate.open.set()
        with pytest.raises(DatabaseUnreachable):
            await engine.signal(handle.id, "go", 1)
        assert await handle.result(timeout=LONG) == [1, [1], False]
        assert runs == [[1]]
        assert (await handle.get()).crashes == 0
        assert kept(worker_of(engine)) == 0


async def test_a_lost_row_waits_only_for_the_calls_that_could_be_its_own(build: Build, sql: Sql) -> None:
    """R27: the same row can be woken again and again: what is lost is told by its rev too."""
    async with parked(build, 2) as (engine, [one, two]):
        worker = worker_of(engine)
        other = Gate(engine, statement="signalling/send")
        waiting = asyncio.create_task(engine.signal(two.id, "go", 2))
        await other.reached.wait()
        gate = Gate(engine, DatabaseUnreachable("cut"), "signalling/send")
        gate.open.set()
        with pytest.raises(DatabaseUnreachable):
            await engine.signal(one.id, "go", 1)
        await worker._claimer.check()
        assert await sql("SELECT status, worker FROM {s}.instances") == [(2, worker.id)] * 2
        other.open.set()
        assert await waiting
        assert await two.result(timeout=LONG) == [1, [2], False]
        assert await one.result(timeout=5) == [1, [1], False]
        assert sorted(runs) == [[1], [2]]
        assert await sql("SELECT max(crashes) FROM {s}.finished") == [(0,)]


async def test_a_row_that_is_woken_for_a_life_that_has_ended_goes_back(build: Build) -> None:
    """R25: the worker was declared dead meanwhile; its next life, under another id, runs the row once."""
    async with parked(build) as (engine, [handle]):
        worker = worker_of(engine)
        gate = Gate(engine, statement="signalling/send")
        sending = asyncio.create_task(engine.signal(handle.id, "go", 1))
        await gate.reached.wait()
        worker.declared_dead()
        gate.open.set()
        await sending
        assert await handle.result(timeout=LONG) == [1, [1], False]
        assert (await handle.get()).worker not in (None, worker.id)
        assert runs == [[1]]


async def test_a_drain_hands_back_the_row_of_a_signal_that_is_under_way(build: Build, sql: Sql) -> None:
    """R10, R26: its row is not started any more; it goes back at once with its signal, and no crash is spent."""
    async with parked(build) as (engine, [handle]):
        worker = worker_of(engine)
        gate = Gate(engine, statement="signalling/send")
        sending = asyncio.create_task(engine.signal(handle.id, "go", 1))
        await gate.reached.wait()
        stopping = asyncio.create_task(engine.stop())
        await eventually(lambda: true(worker.queues["default"].closed))
        gate.open.set()
        await sending
        await stopping
    assert await row(sql, "status, worker, crashes") == (0, None, 0)
    assert runs == []
    async with build(Waiter) as next_one:
        assert await next_one.result(handle.id, timeout=LONG) == [1, [1], False]


async def test_a_signal_that_waits_for_a_lock_keeps_no_place_for_long(
    build: Build, sql: Sql, connect: Callable[[], Any], migrated: str
) -> None:
    """R19: others start meanwhile; the row that it wakes runs when it comes."""
    async with parked(build, 2, queues={"default": 1}) as (engine, [one, two]):
        other = await connect()
        await other.execute("BEGIN")
        await other.execute(f"SELECT FROM {migrated}.instances WHERE id = {one.id} FOR UPDATE".encode())
        sending = asyncio.create_task(engine.signal(one.id, "go", 1))
        query = "SELECT 1 FROM pg_stat_activity WHERE application_name = %s AND wait_event_type = 'Lock'"
        await eventually(lambda: sql(query, f"gen_durable {engine.settings.name}"))
        await engine.signal(two.id, "go", 2)
        assert await two.result(timeout=LONG) == [1, [2], False]
        assert not sending.done()
        await other.execute("ROLLBACK")
        await sending
        assert await one.result(timeout=LONG) == [1, [1], False]
