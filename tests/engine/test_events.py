"""``engine.on``: each event fires, with the right fields; a hook can do no harm."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from engine_support import Build, Seen, Sql, ended

from gen_durable import Backoff, Cancel, Context, Done, Machine, Next, Sleep, Stop, job, step


class Trip(Machine, retry=Backoff(max_attempts=2, initial=0)):
    how: str = "done"

    @step
    async def a(self, ctx: Context) -> Next:
        if ctx.attempt == 0:
            raise OSError("once")
        return Next(self.b)

    @step
    def b(self, ctx: Context) -> Sleep:
        return Sleep(0, self.c)

    @step
    async def c(self, ctx: Context) -> Done | Stop:
        if self.how == "cancel":
            raise Cancel("enough")
        return Done(1) if self.how == "done" else Stop("no")


@job
async def noop(n: int = 0) -> int:
    return n


async def test_step_says_what_ran_and_how_it_ended(build: Build) -> None:
    """Events: ``step`` for each run, with id, machine, step, attempt, queue, outcome, seconds and error."""
    async with build(Trip, queues={"default": 1}) as engine:
        steps = Seen(engine, "step")
        handles = {how: await engine.insert(Trip(how=how)) for how in ("done", "stop", "cancel")}
        for handle in handles.values():
            await ended(handle)
    for how, last in (("done", "done"), ("stop", "failed"), ("cancel", "cancelled")):
        mine = [event for event in steps.all if event.id == handles[how].id]
        assert [(e.machine, e.step, e.attempt, e.queue, e.outcome) for e in mine] == [
            ("Trip", "a", 0, "default", "retry"),
            ("Trip", "a", 1, "default", "next"),
            ("Trip", "b", 0, "default", "sleep"),
            ("Trip", "c", 0, "default", last),
        ]
        assert isinstance(mine[0].error, OSError)
        assert [e.error for e in mine[1:3]] == [None, None]
        assert isinstance(mine[3].error, Cancel) == (how == "cancel")
        assert all(0 <= e.took < 5 for e in mine)


async def test_claim_and_commit_count_rows(build: Build) -> None:
    """Events: ``claim`` and ``commit`` for each batch, with sizes and seconds; nothing on an idle system."""
    async with build(noop, queues={"default": 7}) as engine:
        claims, commits = Seen(engine, "claim"), Seen(engine, "commit")
        report = await engine.insert_many(noop.bind(n=n) for n in range(50))
        for item in report:
            await item.handle.result(timeout=10)
        await commits.until(lambda seen: sum(e.size for e in seen) == 50)
        assert sum(e.got for e in claims.all) == 50
        assert all(0 < e.got <= e.wanted and 0 <= e.took < 5 for e in claims.all)
        assert all(e.size > 0 and e.stale == 0 and 0 <= e.took < 5 for e in commits.all)
        assert len(commits.all) <= 50


async def test_a_refused_outcome_is_told_and_changes_nothing(build: Build, sql: Sql) -> None:
    """R4; events: ``stale`` with id, machine and step, and ``commit`` counts it; the row is as the other left it."""

    class Fenced(Machine, name="Fenced"):
        n: int = 0

        @step
        async def only(self, ctx: Context) -> Done:
            self.n = 5
            # What a worker does that has taken the row over, claimed it and handed it on.
            await sql("UPDATE {s}.instances SET rev = rev + 1, status = 1, worker = NULL, due_at = 'infinity'")
            return Done("must not be there")

    async with build(Fenced) as engine:
        stale, commits = Seen(engine, "stale"), Seen(engine, "commit")
        handle = await engine.insert(Fenced())
        await stale.until(lambda seen: seen)
        await commits.until(lambda seen: seen)
        assert [(e.id, e.machine, e.step) for e in stale.all] == [(handle.id, "Fenced", "only")]
        assert [(e.size, e.stale) for e in commits.all] == [(0, 1)]
    rows = await sql("SELECT status, worker, state, step FROM {s}.instances")
    assert rows == [(1, None, {"n": 0}, "only")]
    assert await sql("SELECT 1 FROM {s}.transitions") == []
    assert await sql("SELECT 1 FROM {s}.finished") == []


async def test_the_same_worker_can_not_commit_through_an_old_claim(build: Build, sql: Sql) -> None:
    """R4: the token is fresh for each claim: also a row that the same worker has claimed again refuses the old one."""
    runs: list[int] = []
    again, refused = asyncio.Event(), asyncio.Event()

    @job
    async def twice(ctx: Context) -> str:
        runs.append(ctx.attempt)
        if len(runs) == 1:
            await sql(
                "UPDATE {s}.instances SET rev = rev + 1, status = 0, worker = NULL, attempt = attempt + 1, "
                "crashes = crashes + 1"
            )
            await sql("SELECT pg_notify(%s, 'q:default')", channel)
            await again.wait()
            return "the first, late"
        again.set()
        await refused.wait()
        return "the second"

    engine = build(twice)
    channel = f"{engine.settings.schema}_wake"
    async with engine:
        engine.on("stale", lambda event: refused.set())
        handle = await engine.insert(twice.bind())
        assert await handle.result(timeout=10) == "the second"
        found = await handle.get()
        history = await engine.history(handle.id)
    assert (found.result, found.crashes, runs) == ("the second", 1, [0, 1])
    assert [t.outcome for t in history] == ["done"]


async def test_a_dead_worker_and_its_claims_are_told(build: Build, sql: Sql) -> None:
    """R25; events: ``worker_dead`` with id and name, ``reaped`` with the number of claims that went back."""
    async with build(noop, queues={}) as web:
        report = await web.insert_many(noop.bind(n=n) for n in range(30))
        await sql(
            "INSERT INTO {s}.workers (id, name, host, pid, queues, lanes, locked, started_at, seen_at) "
            "VALUES (7, 'gone', 'host', 1, '{}', '{}', false, now() - interval '1 h', now() - interval '1 h')"
        )
        await sql("UPDATE {s}.instances SET status = 2, worker = 7, rev = rev + 1")
        engine = build(noop, lease=1, heartbeat=0.3)
        dead, reaped = Seen(engine, "worker_dead"), Seen(engine, "reaped")
        async with engine:
            for item in report:
                await item.handle.result(timeout=10)
            assert [w.name for w in await web.workers()] == [engine.settings.name]
            history = await web.history(report[0].id)
            found = await web.get(report[0].id)
    assert [(e.id, e.name) for e in dead.all] == [(7, "gone")]
    assert [e.count for e in reaped.all] == [30]
    assert (history[0].outcome, history[0].attempt, history[0].worker) == ("crashed", 0, None)
    assert (found.attempt, found.crashes) == (1, 1)


@pytest.mark.parametrize("which", ["claim", "commit", "service", "control"])
async def test_a_lost_connection_that_is_there_again_is_told(build: Build, sql: Sql, which: str) -> None:
    """R27; events: ``reconnect`` with the connection and the seconds; work goes on."""
    async with build(noop, poll_interval=0.3, heartbeat=0.3, lease=2) as engine:
        back = Seen(engine, "reconnect")
        assert await (await engine.insert(noop.bind(n=1))).result(timeout=10) == 1
        name = f"gen_durable {engine.settings.name} {which}"[:63]
        ended_ = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s"
        assert await sql(ended_, name) == [(True,)]
        for n in range(5):
            assert await (await engine.insert(noop.bind(n=n))).result(timeout=10) == n
        await back.until(lambda seen: any(e.connection == which and 0 <= e.took < 10 for e in seen))


async def test_every_connection_cut_at_once_while_it_works(build: Build, sql: Sql) -> None:
    """R27: all connections of the engine, the client's too, are cut again and again under load: each job ends once."""
    runs: dict[int, int] = {}

    class Work(Machine):
        n: int
        left: int = 3

        @step
        async def go(self, ctx: Context) -> Next | Done:
            runs[self.n] = runs.get(self.n, 0) + 1
            self.left -= 1
            return Next(self.go) if self.left else Done(self.n)

    cut = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE application_name LIKE %s AND pid <> pg_backend_pid()"
    )
    async with build(Work, poll_interval=0.5) as engine:
        done = Seen(engine, "step")
        await engine.insert_many(Work(n=n) for n in range(400))
        for threshold in (50, 300, 700):
            await done.until(lambda seen, least=threshold: len(seen) >= least)
            await sql(cut, f"gen_durable {engine.settings.name}%"[:63])
        await done.until(lambda seen: sum(e.outcome == "done" for e in seen) >= 400, timeout=30)
    rows = await sql("SELECT status, (result)::text::int FROM {s}.finished ORDER BY 2")
    assert rows == [(6, n) for n in range(400)]
    assert await sql("SELECT count(*) FROM {s}.transitions WHERE outcome = 0") == [(800,)]


async def test_drain_says_how_many_run(build: Build) -> None:
    """R26; events: ``drain`` with the number of running steps."""
    started, go = asyncio.Event(), asyncio.Event()

    @job
    async def slow() -> None:
        started.set()
        await go.wait()

    engine = build(slow)
    drains = Seen(engine, "drain")
    async with engine:
        await engine.insert(slow.bind())
        await started.wait()
        asyncio.get_running_loop().call_later(0.05, go.set)
    assert [e.running for e in drains.all] == [1]


async def test_a_hook_that_raises_is_logged_and_harms_nothing(build: Build, caplog: Any) -> None:
    """Events: what a hook raises goes no further, and the hooks after it are called all the same."""
    seen: list[str] = []

    def bad(event: object) -> None:
        raise RuntimeError("a bad hook")

    async with build(Trip, noop) as engine:
        for name in ("step", "claim", "commit", "drain"):
            engine.on(name, bad)  # type: ignore[arg-type]
            engine.on(name, lambda event, name=name: seen.append(name))  # type: ignore[arg-type]
        with caplog.at_level(logging.ERROR, "gen_durable"):
            assert await (await engine.insert(Trip())).result(timeout=10) == 1
            assert await (await engine.insert(noop.bind(n=3))).result(timeout=10) == 3
    assert {"step", "claim", "commit", "drain"} == set(seen)
    assert "a bad hook" in caplog.text


async def test_hooks_are_called_on_the_loop_and_can_insert(build: Build) -> None:
    """Events: a hook may start a task of its own; it runs in the loop's thread."""
    made: list[asyncio.Task[Any]] = []

    async with build(noop) as engine:

        def follow(event: Any) -> None:
            if event.step == "run" and len(made) < 3:
                made.append(asyncio.create_task(engine.insert(noop.bind(n=len(made) + 1))))

        engine.on("step", follow)
        done = Seen(engine, "step")
        await (await engine.insert(noop.bind())).result(timeout=10)
        await done.until(lambda seen: len(seen) >= 4)
        for task in made:
            await (await task).result(timeout=10)
