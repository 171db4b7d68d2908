"""Calls that bring claims, against looks, cancels, crowds and a drain whose time is up; each order forced by hand."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from engine_support import LONG, Build, Seen, Sql, eventually, moment
from test_births import Gate, idle, kept, quiet, row, worker_of
from test_woken_claims import Waiter, parked, runs, true

from gen_durable import Await, Context, Done, Machine, Next, job, step
from gen_durable._runtime import births
from gen_durable._runtime.worker import Worker
from gen_durable._store.operation import Request, Row
from gen_durable.errors import DatabaseUnreachable


@pytest.fixture(autouse=True)
def no_runs() -> None:
    runs.clear()


class Look:
    """Stands between the claimer and the answer of its next look for lost claims."""

    def __init__(self, worker: Worker) -> None:
        self.reached = asyncio.Event()
        self.open = asyncio.Event()
        self._link = worker._claimer._link
        self._fetch = self._link.fetch
        self._link.fetch = self._pass  # type: ignore[method-assign]

    async def _pass(self, request: Request) -> list[Row]:
        rows = await self._fetch(request)
        if request.statement.name == "claiming/mine":
            self._link.fetch = self._fetch  # type: ignore[method-assign]
            self.reached.set()
            await self.open.wait()
        return rows


async def test_an_answer_that_is_lost_while_a_look_is_under_way(build: Build) -> None:
    """R10, R27: that look has not seen the row; another one must, at once and not after a lease."""
    async with parked(build, lease=60, heartbeat=20) as (engine, [handle]):
        worker = worker_of(engine)
        look = Look(worker)
        worker._claimer.check_soon()
        await look.reached.wait()
        gate = Gate(engine, DatabaseUnreachable("cut"), "signalling/send")
        gate.open.set()
        with pytest.raises(DatabaseUnreachable):
            await engine.signal(handle.id, "go", 1)
        look.open.set()
        assert await handle.result(timeout=5) == [1, [1], False]
        assert runs == [[1]]
        assert (await handle.get()).crashes == 0


async def test_a_drain_during_a_look_that_came_before_a_lost_answer(build: Build, sql: Sql) -> None:
    """R26, R27: the look that was under way does not speak for a row that came after it."""
    async with parked(build) as (engine, [handle]):
        worker = worker_of(engine)
        look = Look(worker)
        worker._claimer.check_soon()
        await look.reached.wait()
        gate = Gate(engine, DatabaseUnreachable("cut"), "signalling/send")
        sending = asyncio.create_task(engine.signal(handle.id, "go", 1))
        await gate.reached.wait()
        stopping = asyncio.create_task(engine.stop())
        await eventually(lambda: true(worker._claimer.closing))
        gate.open.set()
        with pytest.raises(DatabaseUnreachable):
            await sending
        look.open.set()
        await stopping
    assert await row(sql, "status, worker, crashes") == (0, None, 0)


@pytest.mark.parametrize("call", ["signal", "insert"])
async def test_a_drain_whose_time_is_up_amid_a_step_that_wakes_another(build: Build, sql: Sql, call: str) -> None:
    """R10, R26: the call is cancelled with its step; the row that it brought goes back at once, without a crash."""
    target: list[int] = []

    @job
    async def quick() -> None:
        runs.append("quick")

    class Caller(Machine):
        @step
        async def start(self, ctx: Context) -> Done:
            if call == "signal":
                await engine.signal(target[0], "go", 1)
            else:
                target.append((await engine.insert(quick.bind())).id)
            return Done()

    async with quiet(build, Caller, Waiter, quick, drain_timeout=0.1) as engine:
        waiting = await engine.insert(Waiter(), key="w")
        target.append(waiting.id)

        async def settled() -> bool:
            return (await waiting.get()).status == "awaiting_signal" and not worker_of(engine)._held

        await eventually(settled)
        caller = await engine.insert(Caller(), key="c")
        statement = "signalling/send" if call == "signal" else "inserting/"
        gate = Gate(engine, statement=statement)
        await asyncio.wait_for(gate.reached.wait(), LONG)
        await engine.stop()
    found = await sql("SELECT status, worker, attempt, crashes FROM {s}.instances WHERE status <> 3")
    assert found == [(0, None, 0, 0)] * 2, (caller.id, waiting.id)
    assert runs == []


async def test_a_crowd_of_late_rows_goes_to_another_worker(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """R19: they lost their places, and more came than this worker can start: the rest is not left behind the first."""
    monkeypatch.setattr(births, "LONGEST_KEPT", 0.0)
    gate = asyncio.Event()

    class Long(Machine):
        @step
        async def start(self, ctx: Context) -> Await:
            return Await("go", then=self.woken)

        @step
        async def woken(self, ctx: Context) -> Done:
            runs.append(ctx.worker)
            if len(runs) == 1:
                await gate.wait()
            return Done()

    async with quiet(build, Long, queues={"default": 1}) as engine:
        handles = [await engine.insert(Long()) for _ in range(2)]

        async def settled() -> bool:
            return [(await one.get()).status for one in handles] == ["awaiting_signal"] * 2

        await eventually(settled)
        worker = worker_of(engine)
        await eventually(lambda: true(not worker._held and worker.queues["default"].empty))
        async with build(Long, poll_interval=60) as other:
            await idle(worker)
            gates, sending = [], []
            for handle in handles:
                gates.append(Gate(engine, statement="signalling/send"))
                sending.append(asyncio.create_task(engine.signal(handle.id, "go")))
                await gates[-1].reached.wait()
                await eventually(lambda: true(kept(worker) == 0))
            for one in gates:
                one.open.set()
            await asyncio.gather(*sending)
            try:
                await eventually(lambda: true(len(runs) == 2), timeout=5)
            finally:
                gate.set()
            assert runs == [worker.id, worker_of(other).id]


async def test_a_chain_that_goes_on_behind_a_row_that_was_woken(
    build: Build, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R19: its commit was under way when the row took its place; it is not left behind that row's long step."""
    gate = asyncio.Event()

    class Either(Machine):
        chain: bool

        @step
        async def start(self, ctx: Context) -> Next | Await:
            return Next(self.last) if self.chain else Await("go", then=self.woken)

        @step
        async def last(self, ctx: Context) -> Done:
            runs.append("last")
            return Done()

        @step
        async def woken(self, ctx: Context) -> Done:
            runs.append("long")
            await gate.wait()
            return Done()

    async with quiet(build, Either, queues={"default": 1}) as engine:
        worker = worker_of(engine)
        waiting = await engine.insert(Either(chain=False))

        async def settled() -> bool:
            return (await waiting.get()).status == "awaiting_signal" and not worker._held

        await eventually(settled)
        await eventually(lambda: true(worker.queues["default"].empty and not worker._claimer.claiming))
        reached, go = asyncio.Event(), asyncio.Event()
        send = worker._flusher._main.link.fetch

        async def commit(request: Request) -> list[Row]:
            rows = await send(request)
            reached.set()
            await go.wait()
            return rows

        monkeypatch.setattr(worker._flusher._main.link, "fetch", commit)
        chain = await engine.insert(Either(chain=True))
        await reached.wait()
        await idle(worker)
        claims = Seen(engine, "claim")
        await engine.signal(waiting.id, "go")
        await eventually(lambda: true(bool(runs)))
        assert claims.all == []
        go.set()
        try:
            await eventually(lambda: sql("SELECT 1 FROM {s}.instances WHERE id = %s AND status = 0", chain.id), 5)
        finally:
            gate.set()
        await chain.result(timeout=LONG)
        assert runs == ["long", "last"]


@pytest.mark.parametrize("call", ["signal", "insert", "claim"])
async def test_a_cancel_that_overtakes_the_answer_of_a_claim(build: Build, call: str) -> None:
    """R4, R19: the instance has ended when the worker hears that it has it: its step is not started any more."""
    async with parked(build) as (engine, [handle]):
        worker = worker_of(engine)
        calling: asyncio.Task[Any]
        if call == "claim":
            reached, go = asyncio.Event(), asyncio.Event()
            link = worker._claimer._link
            fetch = link.fetch

            async def claim(request: Request) -> list[Row]:
                rows = await fetch(request)
                if request.statement.name == "claiming/claim" and rows:
                    reached.set()
                    await go.wait()
                return rows

            link.fetch = claim  # type: ignore[method-assign]
            worker.queues["default"].empty = False  # no place is kept
            calling = asyncio.create_task(engine.signal(handle.id, "go", 1))
            id_ = handle.id
        else:
            gate = Gate(engine, statement="signalling/send" if call == "signal" else "inserting/")
            reached, go = gate.reached, gate.open
            if call == "signal":
                calling, id_ = asyncio.create_task(engine.signal(handle.id, "go", 1)), handle.id
            else:
                calling, id_ = asyncio.create_task(engine.insert(Waiter(), key="k")), 0
        await asyncio.wait_for(reached.wait(), LONG)
        assert await engine.cancel(id_ or "k")
        started = worker.queues["default"].started
        go.set()
        await calling
        await moment(0.1)
        assert worker.queues["default"].started == started
        assert runs == []
        assert not worker._held
        assert kept(worker) == 0
        # What comes under another claim of the same instance is not meant.
        if call == "signal":
            await engine.retry(id_)
            assert await handle.result(timeout=LONG) == [1, [1], False]


async def test_a_full_queue_whose_time_to_look_has_come_waits_for_room(build: Build) -> None:
    """R27: no busy loop: rows that come as claims fill a queue of which the last claim had found nothing."""
    gate = asyncio.Event()

    @job
    async def stay(n: int) -> None:
        runs.append(n)
        await gate.wait()

    async with quiet(build, stay, queues={"default": 1}) as engine, build(stay, queues={}) as web:
        worker = worker_of(engine)
        queue, claimer = worker.queues["default"], worker._claimer
        await engine.insert(stay.bind(n=1))
        await eventually(lambda: true(runs == [1]))
        assert queue.empty
        passes = 0
        once = claimer.once

        async def count() -> float:
            nonlocal passes
            passes += 1
            return await once()

        claimer.once = count  # type: ignore[method-assign]
        queue.look_at = 0.0
        claimer.wake()
        await moment(0.3)
        assert passes < 10
        # What came unheard is found as soon as there is room.
        worker.notified = lambda message: None  # type: ignore[method-assign]
        await web.insert(stay.bind(n=2))
        gate.set()
        await eventually(lambda: true(runs == [1, 2]), timeout=5)


async def test_while_commits_fail_the_claimer_does_not_spin(build: Build) -> None:
    """R27: no busy loop: the time to look comes while nothing may be claimed."""
    async with quiet(build, queues={"default": 1}) as engine:
        worker = worker_of(engine)
        claimer, passes = worker._claimer, 0
        once = claimer.once

        async def count() -> float:
            nonlocal passes
            passes += 1
            return await once()

        claimer.once = count  # type: ignore[method-assign]
        worker._flusher._main.failing = True
        worker.queues["default"].look_at = 0.0
        claimer.wake()
        await moment(0.3)
        worker._flusher._main.failing = False
        assert passes < 20


@pytest.mark.parametrize("where", ["here", "elsewhere"])
async def test_a_cancelled_step_makes_room_for_what_waits(build: Build, where: str) -> None:
    """R19: a place that a cancel has freed is taken at once, also where the step took its time to end."""
    cleaned = asyncio.Event()

    @job
    async def stay(n: int) -> None:
        runs.append(n)
        try:
            await asyncio.Event().wait()
        finally:
            await cleaned.wait()

    settings: dict[str, Any] = {"queues": {"default": 1}, "poll_interval": 60, "drain_timeout": 0.1}
    async with build(stay, **settings) as engine, build(stay, queues={}) as web:
        queue = worker_of(engine).queues["default"]
        first = await engine.insert(stay.bind(n=1))
        await eventually(lambda: true(runs == [1]))
        await engine.insert(stay.bind(n=2))
        await eventually(lambda: true(not worker_of(engine)._claimer.claiming))
        await (engine if where == "here" else web).cancel(first.id)
        await eventually(lambda: true(not worker_of(engine)._held))
        await moment(0.1)
        assert queue.running == 1
        cleaned.set()
        await eventually(lambda: true(runs == [1, 2]), timeout=5)
