"""Rows that a caller's open transaction has locked: their outcomes wait for its end, and nobody else does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from engine_support import LONG, Build, Seen, eventually, moment
from test_births import worker_of

from gen_durable import Await, Context, Done, Engine, Machine, Spawn, child, job, step
from gen_durable._store.operation import Request

Connect = Callable[[], Any]

go: dict[str, asyncio.Event] = {}
began: dict[str, asyncio.Event] = {}


@job
async def waits(name: str) -> str:
    began.setdefault(name, asyncio.Event()).set()
    await go.setdefault(name, asyncio.Event()).wait()
    return name


class Parent(Machine):
    @step
    async def start(self, ctx: Context) -> Spawn:
        return Spawn([waits.bind(name="child")], then=self.join)

    @step
    async def join(self, ctx: Context) -> Done:
        return Done(ctx.children[0].result)


@job
async def leaf() -> str:
    return "leaf"


class Keyed(Machine):
    key: str | None

    @step
    async def start(self, ctx: Context) -> Spawn:
        began.setdefault(f"spawn {self.key}", asyncio.Event()).set()
        await go.setdefault("spawn", asyncio.Event()).wait()
        return Spawn([child(leaf.bind(), key=self.key)], then=self.join)

    @step
    async def join(self, ctx: Context) -> Done:
        return Done(ctx.children[0].result)


class Listens(Machine):
    @step
    async def start(self, ctx: Context) -> Await:
        began.setdefault("listens", asyncio.Event()).set()
        await go.setdefault("listens", asyncio.Event()).wait()
        return Await("go", then=self.woken)

    @step
    async def woken(self, ctx: Context) -> Done:
        return Done(ctx.awaited[0].payload)


@pytest.fixture(autouse=True)
def nothing_yet() -> None:
    go.clear()
    began.clear()


async def begin(engine: Engine, name: str) -> Any:
    handle = await engine.insert(waits.bind(name=name))
    await began.setdefault(name, asyncio.Event()).wait()
    return handle


def aside(engine: Engine) -> int:
    return len(worker_of(engine)._flusher._aside.entries)


async def test_a_signal_in_an_open_transaction_holds_up_its_own_instance_alone(build: Build, connect: Connect) -> None:
    """R20, R27: others of the same group commit, claims go on, and the outcome follows at the transaction's end."""
    async with build(waits) as engine:
        one, other = await begin(engine, "one"), await begin(engine, "other")
        commits = Seen(engine, "commit")
        caller = await connect()
        async with caller.transaction():
            await engine.signal(one.id, "go", conn=caller)
            go.setdefault("one", asyncio.Event()).set()
            go.setdefault("other", asyncio.Event()).set()
            assert await other.result(timeout=LONG) == "other"
            await eventually(lambda: _is(aside(engine) == 1))
            late = await begin(engine, "late")
            go.setdefault("late", asyncio.Event()).set()
            assert await late.result(timeout=LONG) == "late"
            assert (await one.get()).status == "executing"
            assert not worker_of(engine)._flusher.failing
        assert await one.result(timeout=LONG) == "one"
        assert sum(event.stale for event in commits.all) == 0


async def test_a_row_that_the_callers_own_row_refers_to_holds_up_nobody_else(
    build: Build, connect: Connect, migrated: str
) -> None:
    """R20, R27: a foreign key's lock is a weaker one; it stands in the way of an end all the same."""
    async with build(waits) as engine:
        one, other = await begin(engine, "one"), await begin(engine, "other")
        caller = await connect()
        async with caller.transaction():
            await caller.execute(f"SELECT FROM {migrated}.instances WHERE id = %s FOR KEY SHARE".encode(), [one.id])
            go.setdefault("one", asyncio.Event()).set()
            go.setdefault("other", asyncio.Event()).set()
            assert await other.result(timeout=LONG) == "other"
            await eventually(lambda: _is(aside(engine) == 1))
        assert await one.result(timeout=LONG) == "one"


async def test_a_cancel_in_an_open_transaction_that_commits_wins(build: Build, connect: Connect) -> None:
    """R3, R4: the outcome that waited is refused then; and it is not, where the cancel is rolled back."""
    async with build(waits) as engine:
        for name, keep in (("kept", True), ("undone", False)):
            handle = await begin(engine, name)
            caller = await connect()
            async with caller.transaction(force_rollback=not keep):
                assert await engine.cancel(handle.id, conn=caller)
                go.setdefault(name, asyncio.Event()).set()
                await eventually(lambda: _is(aside(engine) == 1))
            await eventually(lambda: _is(aside(engine) == 0))
            await eventually(lambda handle=handle: _ended(engine, handle.id))
            assert (await handle.get()).status == ("cancelled" if keep else "done")


async def test_a_locked_parent_holds_up_the_ends_of_its_children_alone(build: Build, connect: Connect) -> None:
    """R15, R20: a child's end counts its parent's join down, whose row is locked by a signal to the parent."""
    async with build(Parent, waits) as engine:
        parent = await engine.insert(Parent())
        await began.setdefault("child", asyncio.Event()).wait()
        other = await begin(engine, "other")
        caller = await connect()
        async with caller.transaction():
            await engine.signal(parent.id, "hello", conn=caller)
            go.setdefault("child", asyncio.Event()).set()
            await eventually(lambda: _is(aside(engine) == 1))
            go.setdefault("other", asyncio.Event()).set()
            assert await other.result(timeout=LONG) == "other"
        assert await parent.result(timeout=LONG) == "child"


async def test_a_childs_key_in_an_open_transaction_holds_up_its_own_family_alone(
    build: Build, connect: Connect
) -> None:
    """R16, R20: a spawn of the same group whose children have no such key goes on; so does one that comes later."""
    async with build(Keyed, leaf) as engine:
        caller = await connect()
        async with caller.transaction(force_rollback=True):
            await engine.insert(leaf.bind(), key="taken", conn=caller)
            one, other = await engine.insert(Keyed(key="taken")), await engine.insert(Keyed(key=None))
            for name in ("spawn taken", "spawn None"):
                await began.setdefault(name, asyncio.Event()).wait()
            go.setdefault("spawn", asyncio.Event()).set()
            assert await other.result(timeout=LONG) == "leaf"
            late = await engine.insert(Keyed(key=None))
            assert await late.result(timeout=LONG) == "leaf"
            assert (await one.get()).status == "executing"
        assert await one.result(timeout=LONG) == "leaf"


async def test_many_outcomes_that_are_set_aside_hold_up_no_claim(
    build: Build, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R20, R27: a locked parent may have thousands of children whose ends wait; the worker runs others meanwhile."""
    monkeypatch.setattr("gen_durable._runtime.worker.BACKLOG", 1)
    async with build(waits) as engine:
        locked = [await begin(engine, name) for name in ("one", "two")]
        caller = await connect()
        async with caller.transaction():
            for handle in locked:
                await engine.signal(handle.id, "go", conn=caller)
            for name in ("one", "two"):
                go.setdefault(name, asyncio.Event()).set()
            await eventually(lambda: _is(aside(engine) == 2))
            go.setdefault("late", asyncio.Event()).set()
            late = await engine.insert(waits.bind(name="late"))
            assert await late.result(timeout=LONG) == "late"
        assert [await handle.result(timeout=LONG) for handle in locked] == ["one", "two"]


@pytest.mark.parametrize("mode", ["SHARE", "ACCESS EXCLUSIVE"])
async def test_a_locked_table_is_said(
    build: Build, connect: Connect, migrated: str, caplog: pytest.LogCaptureFixture, mode: str
) -> None:
    """R27: no silent stall: an index that is just being built, say, stops every commit, and the worker's log tells."""
    async with build(waits) as engine:
        handle = await begin(engine, "one")
        caller = await connect()
        async with caller.transaction():
            await caller.execute(f"LOCK TABLE {migrated}.instances IN {mode} MODE".encode())
            go.setdefault("one", asyncio.Event()).set()
            await eventually(lambda: _is(worker_of(engine)._flusher.failing))
            assert "commit of 1 outcomes: canceling statement due to lock timeout" in caplog.text
            assert aside(engine) == 0
        assert await handle.result(timeout=LONG) == "one"
        await eventually(lambda: _is(not worker_of(engine)._flusher.failing))  # it learns that last


async def test_a_park_that_waits_for_a_signals_transaction_is_woken_by_it(build: Build, connect: Connect) -> None:
    """R10: the park comes after the signal's commit, and finds it."""
    async with build(Listens) as engine:
        handle = await engine.insert(Listens())
        await began.setdefault("listens", asyncio.Event()).wait()
        caller = await connect()
        async with caller.transaction():
            await engine.signal(handle.id, "go", "there", conn=caller)
            go.setdefault("listens", asyncio.Event()).set()
            await eventually(lambda: _is(aside(engine) == 1))
        assert await handle.result(timeout=LONG) == "there"


async def test_a_drain_gives_a_locked_rows_claim_back_or_leaves_it_to_the_lease(build: Build, connect: Connect) -> None:
    """R26: it does not hang for the caller; the outcome is lost with the claim, and the step runs again."""
    caller = await connect()
    async with build(waits, drain_timeout=0.2, statement_timeout=0.5, lease=1.0, heartbeat=0.2) as engine:
        handle = await begin(engine, "one")
        await caller.execute("BEGIN")
        await engine.signal(handle.id, "go", conn=caller)
        go.setdefault("one", asyncio.Event()).set()
        await eventually(lambda: _is(aside(engine) == 1))
    await caller.execute("COMMIT")
    async with build(waits, lease=1.0, heartbeat=0.2) as engine:
        assert await engine.result(handle.id, timeout=LONG) == "one"


async def _is(truth: bool) -> bool:
    return truth


async def _ended(engine: Engine, id_: int) -> bool:
    return (await engine.get(id_)).terminal


class Asked:
    """The statements of a worker's services, by name, in the order in which they were answered."""

    def __init__(self, engine: Engine) -> None:
        self.names: list[str] = []
        for link in worker_of(engine)._links:
            link.fetch = self._asked(link.fetch)  # type: ignore[method-assign]

    def _asked(self, fetch: Callable[[Request], Any]) -> Callable[[Request], Any]:
        async def ask(request: Request) -> Any:
            rows = await fetch(request)
            self.names.append(request.statement.name)
            return rows

        return ask

    async def more(self, name: str, than: int = 0) -> None:
        """Waits until one was answered more often."""
        await eventually(lambda: self._are(name, than))

    async def _are(self, name: str, than: int) -> bool:
        return self.names.count(name) > than


@pytest.mark.parametrize("how", ["watch", "signal"])
@pytest.mark.parametrize("lanes", [1, 2])
async def test_a_row_that_was_locked_when_it_was_claimed_is_claimed_soon(
    build: Build, connect: Connect, migrated: str, lanes: int, how: str
) -> None:
    """R19: who wants to be told of its end, or sends it a signal, locks it for a moment. The claim passes it by, nobody
    tells of it, and the next poll is far away."""
    machines = [leaf, waits, Parent, Listens][:lanes]
    async with build(*machines, queues={"default": 5}, poll_interval=60) as engine:
        await engine.pause_queue("default")
        handle = await engine.insert(leaf.bind())
        other = await connect()
        await other.execute("BEGIN")
        if how == "watch":
            await other.execute(f"UPDATE {migrated}.instances SET watched = true")
        else:
            await engine.signal(handle.id, "go", conn=other)
        asked = Asked(engine)
        await engine.resume_queue("default")
        await asked.more("claiming/claim")
        await asked.more("claiming/left")
        await other.execute("COMMIT")
        assert await handle.result(timeout=LONG) == "leaf"


async def test_a_locked_row_is_looked_at_less_and_less_often(build: Build, connect: Connect, migrated: str) -> None:
    """R19: soon after a claim came back short, then after twice as long each time; and no more when nothing is left."""
    async with build(leaf, queues={"default": 5}, poll_interval=60) as engine:
        await engine.pause_queue("default")
        handle = await engine.insert(leaf.bind())
        other = await connect()
        await other.execute("BEGIN")
        await other.execute(f"UPDATE {migrated}.instances SET watched = true")
        asked = Asked(engine)
        await engine.resume_queue("default")
        await asked.more("claiming/left", than=4)
        at = asyncio.get_running_loop().time()
        await asked.more("claiming/left", than=5)
        assert asyncio.get_running_loop().time() - at > 0.3
        await other.execute("COMMIT")
        assert await handle.result(timeout=LONG) == "leaf"
        await eventually(lambda: nothing_doubted(engine))
        asked.names.clear()
        await moment(0.3)
        assert "claiming/left" not in asked.names
        assert "claiming/claim" not in asked.names


async def nothing_doubted(engine: Engine) -> bool:
    queue = worker_of(engine).queues["default"]
    return queue.empty and not queue.misses and queue.look_at > time.monotonic() + 30


async def test_a_row_that_was_locked_when_its_time_came_runs_soon(
    build: Build, connect: Connect, migrated: str
) -> None:
    """R14, R19: the same for a delay, whose timer passes locked rows by."""
    async with build(leaf, poll_interval=60) as engine:
        other = await connect()
        asked = Asked(engine)
        handle = await engine.insert(leaf.bind(), delay=1.0)
        await other.execute("BEGIN")
        await other.execute(f"UPDATE {migrated}.instances SET watched = true")
        await other.execute(f"SELECT pg_sleep_until(due_at) FROM {migrated}.instances")
        count = asked.names.count("timing/promote")
        await asked.more("timing/promote", than=count + 1)
        cursor = await other.execute(f"SELECT status FROM {migrated}.instances")
        assert await cursor.fetchone() == (1,)
        await other.execute("COMMIT")
        assert await handle.result(timeout=LONG) == "leaf"
