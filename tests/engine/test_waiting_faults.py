"""Outcomes of waiting that the database refuses, cancels that cross a commit, and trouble that is no step's fault."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest
from engine_support import Build, Sql, ended, eventually

from gen_durable import Await, Context, Done, Handle, Machine, Next, Spawn, Stop, child, job, step
from gen_durable._runtime.committer import Committer
from gen_durable._runtime.needs import Needs


@job
async def unlucky(n: int) -> int:
    return n


class Parent(Machine):
    numbers: list[int]
    key: str | None = None
    runs: int = 0

    @step
    async def start(self, ctx: Context) -> Spawn:
        return Spawn([child(unlucky.bind(n=n), key=self.key) for n in self.numbers], then=self.join)

    @step
    async def join(self, ctx: Context) -> Done:
        return Done([c.result for c in ctx.children])


async def test_a_child_that_only_postgres_refuses_fails_its_parent(build: Build, sql: Sql) -> None:
    """R8: once, with the reason; no child of an outcome that is not there."""
    await sql("ALTER TABLE {s}.instances ADD CHECK ((state -> 'n') IS DISTINCT FROM '13')")
    async with build(Parent, unlucky) as engine:
        handle = await engine.insert(Parent(numbers=[1, 13]))
        found = await ended(handle)
        assert found.status == "failed"
        assert found.error is not None
        assert "Postgres refused" in found.error["message"]
        assert (await engine.insert(Parent(numbers=[2]))).id > handle.id
        assert await sql("SELECT count(*) FROM {s}.all_instances WHERE parent_id = %s", handle.id) == [(0,)]


async def test_a_handler_whose_spawn_is_refused_ends_the_instance(build: Build) -> None:
    """R8: a handler that gives the same impossible outcome over and over is no loop."""
    asked = 0

    class Stubborn(Machine):
        @step
        async def start(self, ctx: Context) -> Spawn:
            return Spawn([child(unlucky.bind(n=1), key="taken")], then=self.join)

        @step
        async def join(self, ctx: Context) -> Done:
            return Done()

        async def on_error(self, error: Any, ctx: Context) -> Spawn:
            nonlocal asked
            asked += 1
            return await self.start(ctx)

    async with build(Stubborn, unlucky) as engine:
        await engine.insert(unlucky.bind(n=0), key="taken", delay=60)
        found = await ended(await engine.insert(Stubborn()))
    assert (found.status, asked) == ("failed", 1)
    assert found.error is not None
    assert found.error["type"].endswith("DuplicateInstance")


async def test_a_cancel_that_crosses_the_answer_of_a_commit_stops_the_chain(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R3: it is cancelled between two steps, when the worker does not know yet that the first is committed."""
    sent, gate = asyncio.Event(), asyncio.Event()
    ran: list[str] = []
    send = Committer.send

    async def late(self: Committer, *arguments: Any) -> Any:
        answer = await send(self, *arguments)
        if not sent.is_set():
            sent.set()
            await gate.wait()
        return answer

    class Chain(Machine):
        @step
        async def one(self, ctx: Context) -> Next:
            return Next(self.two)

        @step
        async def two(self, ctx: Context) -> Done:
            ran.append("two")
            return Done()

    @job
    async def other() -> None: ...

    monkeypatch.setattr(Committer, "send", late)
    async with build(Chain, other) as engine:
        handle = await engine.insert(Chain())
        await sent.wait()
        assert await handle.cancel()
        gate.set()
        await (await engine.insert(other.bind())).result(timeout=10)
    assert ran == []


async def test_a_statement_of_the_engines_own_that_fails_is_not_the_steps_error(
    build: Build, sql: Sql, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R3: a join that can't cancel the rest now, because somebody has a child's row locked for long, does it later."""
    ask = Needs.children_of
    locked = asyncio.Event()

    class First(Machine):
        @step
        async def start(self, ctx: Context) -> Spawn:
            rest = child(unlucky.bind(n=2), delay=1000)
            return Spawn([unlucky.bind(n=1), rest], then=self.join, join="any", cancel_rest=True)

        @step
        async def join(self, ctx: Context) -> Done:
            return Done([c.status for c in ctx.children])

    async with await psycopg.AsyncConnection.connect(database_url) as gate:
        lock = (await sql("SELECT 'SELECT FROM {s}.instances WHERE status = 1 FOR UPDATE'"))[0][0]

        async def when_locked(self: Needs, held: Any) -> Any:
            if not locked.is_set():
                await gate.execute(lock)
                locked.set()
            return await ask(self, held)

        monkeypatch.setattr(Needs, "children_of", when_locked)
        async with build(First, unlucky) as engine:
            handle = await engine.insert(First())
            await locked.wait()
            stuck = "FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query ~ '{s}'"
            await eventually(lambda: sql(f"SELECT pg_cancel_backend(pid) {stuck}"))
            await gate.rollback()
            assert await handle.result(timeout=10) == ["done", "cancelled"]


async def test_a_signal_by_key_reaches_the_instance_that_the_key_stands_for(build: Build) -> None:
    """A key is the address of the newest live one that has it, whatever its scope, as for a reader."""

    class Patient(Machine):
        @step
        async def start(self, ctx: Context) -> Await:
            return Await("go", then=self.end)

        @step
        async def end(self, ctx: Context) -> Done:
            return Done(ctx.id)

    async with build(Patient) as engine:
        loose = await engine.insert(Patient(), key="k", scope=())
        own = await engine.insert(Patient(), key="k")
        for newest in (own, loose):
            assert (await engine.get("k")).id == newest.id
            await engine.signal("k", "go")
            assert await newest.result(timeout=10) == newest.id


@pytest.mark.parametrize("end", ["failed", "cancelled"])
async def test_a_retried_join_is_the_join_that_it_was(build: Build, end: str) -> None:
    """R15: it opened because not enough could be done any more, not by a timeout; the rest is still cancelled."""
    stopped = asyncio.Event()

    class Needy(Machine):
        @step
        async def start(self, ctx: Context) -> Spawn:
            both = [child(unlucky.bind(n=n), key=f"child {n}", delay=1000) for n in (1, 2)]
            return Spawn(both, then=self.join, success=True, cancel_rest=end == "cancelled")

        @step
        async def join(self, ctx: Context) -> Done | Stop:
            if end == "failed" and not stopped.is_set():
                stopped.set()
                return Stop("not yet")
            return Done([ctx.timed_out, [c.status for c in ctx.children]])

    async with build(Needy, unlucky) as engine:
        handle = await engine.insert(Needy())
        await eventually(lambda: _is(handle, "awaiting_children"))
        if end == "failed":
            await engine.cancel("child 1")
            assert (await ended(handle)).status == "failed"
        else:
            await handle.cancel()
        await engine.retry(handle.id)
        expected = [False, ["cancelled", "runnable"]] if end == "failed" else [True, ["cancelled", "cancelled"]]
        assert await handle.result(timeout=10) == expected


async def _is(handle: Handle, status: str) -> bool:
    return (await handle.get()).status == status
