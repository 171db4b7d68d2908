"""Section 12: get, list, history, counts, workers."""

from __future__ import annotations

import asyncio
import os
import socket
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from engine_support import Build, Sql, ended

from gen_durable import BulkItem, Cancel, Context, Done, Engine, Machine, Next, Stop, job, step
from gen_durable.errors import InvalidArgument


@job
async def noop(n: int = 0) -> int:
    return n


class Ends(Machine, name="ends", version=4):
    how: str

    @step
    async def first(self, ctx: Context) -> Next:
        return Next(self.last)

    @step
    async def last(self, ctx: Context) -> Done | Stop:
        if self.how == "cancelled":
            raise Cancel
        return Done({"how": self.how}) if self.how == "done" else Stop("no")


async def test_a_snapshot_shows_every_fact_of_the_row(build: Build) -> None:
    """Section 12: ``get`` by id and by key, before, while and after it runs."""
    go, started = asyncio.Event(), asyncio.Event()

    class Shown(Machine, name="shown", version=2, priority=6):
        n: int = 1

        @step
        async def only(self, ctx: Context) -> Done:
            started.set()
            await go.wait()
            self.n = 2
            return Done([self.n])

    async with build(Shown, queues={}) as web:
        handle = await web.insert(Shown(), key="the key", delay=0.05)
        waits = await web.get("the key")
        async with build(Shown) as worker:
            await started.wait()
            runs = await web.get(handle.id)
            (info,) = await web.workers()
            go.set()
            await worker.result(handle.id, timeout=10)
            over = await handle.get()
    for found in (waits, runs, over):
        assert (found.id, found.key, found.machine, found.version) == (handle.id, "the key", "shown", 2)
        assert (found.queue, found.step, found.priority) == ("default", "only", 6)
        assert (found.attempt, found.crashes) == (0, 0)
        assert found.inserted_at == waits.inserted_at
        assert found.inserted_at.utcoffset() is not None
        assert abs(found.inserted_at - datetime.now(UTC)) < timedelta(minutes=5)
    assert waits.due_at is not None
    assert waits.due_at - waits.inserted_at == timedelta(seconds=0.05)
    assert [w.status for w in (waits, runs, over)] == ["runnable", "executing", "done"]
    assert [w.worker for w in (waits, runs, over)] == [None, info.id, info.id]
    assert [w.state for w in (waits, runs, over)] == [{"n": 1}, {"n": 1}, {"n": 2}]
    assert [w.result for w in (waits, runs, over)] == [None, None, [2]]
    assert [w.terminal for w in (waits, runs, over)] == [False, False, True]
    assert (over.due_at, over.error) == (None, None)
    assert over.finished_at is not None
    assert over.finished_at == over.updated_at >= runs.updated_at >= waits.updated_at
    assert waits.rev < runs.rev < over.rev
    assert runs.finished_at is None


async def _many(engine: Engine) -> dict[str, list[int]]:
    """Some of each kind; ids by what they are."""
    ids: dict[str, list[int]] = {}
    for how in ("done", "failed", "cancelled"):
        report = await engine.insert_many(BulkItem(Ends(how=how), key=f"{how}%_{n}") for n in range(4))
        ids[how] = [item.id for item in report]
        for item in report:
            await ended(item.handle)
    report = await engine.insert_many(BulkItem(noop.bind(n=n), delay=1000) for n in range(4))
    ids["later"] = [item.id for item in report]
    await engine.pause_queue("other")
    report = await engine.insert_many(BulkItem(noop.bind(n=n), queue="other", key=f"Done{n}") for n in range(4))
    ids["other"] = [item.id for item in report]
    return ids


async def test_list_filters_and_pages(build: Build) -> None:
    """Section 12: every filter, alone and together; newest first, by keyset; a page says how to get the next."""
    async with build(Ends, noop, queues={"default": 5, "other": 1}) as engine:
        ids = await _many(engine)
        every = sorted((i for some in ids.values() for i in some), reverse=True)

        async def listed(**filters: Any) -> list[int]:
            return [one.id for one in (await engine.list(**filters)).items]

        def newest(*names: str) -> list[int]:
            return sorted((i for name in names for i in ids[name]), reverse=True)

        assert await listed() == every
        assert await listed(status="done") == newest("done")
        assert await listed(status=["failed", "cancelled"]) == newest("failed", "cancelled")
        assert await listed(status="runnable") == newest("later", "other")
        assert await listed(status=()) == []
        assert await listed(status="blocked") == []
        assert await listed(machine="noop") == newest("later", "other")
        assert await listed(machine="nobody") == []
        assert await listed(queue="other") == newest("other")
        assert await listed(key_prefix="failed%_") == newest("failed")
        assert await listed(key_prefix="failed%_2") == [ids["failed"][2]]
        assert await listed(key_prefix="%") == []
        assert await listed(key_prefix="done") == newest("done")
        assert await listed(machine="ends", status="done", queue="default", key_prefix="d") == newest("done")
        assert await listed(machine="ends", queue="other") == []

        seen: list[int] = []
        after = None
        pages = 0
        while True:
            page = await engine.list(limit=3, after=after)
            seen += [one.id for one in page.items]
            pages += 1
            if page.next is None:
                break
            after = page.next
            await engine.insert(noop.bind(), delay=99)  # what comes in the meantime shifts nothing
        assert (seen, pages) == (every, 7)
        exactly = await engine.list(limit=4, machine="ends", status="done")
        assert (len(exactly.items), exactly.next) == (4, None)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"limit": 0}, "limit=0"),
    ({"limit": 1001}, "limit=1001"),
    ({"limit": "5"}, "limit='5'"),
    ({"limit": True}, "limit=True"),
    ({"status": "finished"}, "no status 'finished'; the statuses are runnable"),
    ({"status": ["done", "scheduled"]}, "no status 'scheduled'"),
    ({"status": 5}, "no status 5"),
    ({"after": "abc"}, "after='abc'"),
    ({"after": 2**63}, "after="),
    ({"machine": "a\0"}, "machine"),
    ({"queue": 5}, "queue"),
    ({"key_prefix": "\ud800"}, "key_prefix"),
]


async def test_a_wrong_filter_is_refused(build: Build) -> None:
    """Section 14: ``InvalidArgument`` names the filter and its value."""
    async with build(noop, queues={}) as engine:
        for filters, message in WRONG:
            with pytest.raises(InvalidArgument, match=message):
                await engine.list(**filters)


async def test_counts_by_queue_machine_and_status(build: Build) -> None:
    """Section 12: how many there are of each; what is due later is ``runnable`` as what is due now."""
    async with build(Ends, noop, queues={"default": 5, "other": 1}) as engine:
        assert await engine.counts() == []
        await _many(engine)
        await engine.insert(noop.bind(), delay=1, queue="other")
        counted = {(c.queue, c.machine, c.version, c.status): c.count for c in await engine.counts()}
    assert counted == {
        ("default", "ends", 4, "done"): 4,
        ("default", "ends", 4, "failed"): 4,
        ("default", "ends", 4, "cancelled"): 4,
        ("default", "noop", 1, "runnable"): 4,
        ("other", "noop", 1, "runnable"): 5,
    }


async def test_workers_shows_who_runs_what(build: Build) -> None:
    """Section 12: each worker with its name, host, process, queues and signs of life; gone when it has drained."""
    async with build(noop, queues={}) as web:
        assert await web.workers() == []
        one, two = build(noop, heartbeat=0.1, lease=1), build(noop, queues={"a": 1, "b": 2})
        async with one, two:
            found = {worker.name: worker for worker in await web.workers()}
            assert set(found) == {one.settings.name, two.settings.name}
            first = found[one.settings.name]
            assert (first.host, first.pid) == (socket.gethostname(), os.getpid())
            assert found[two.settings.name].queues == {"a": 1, "b": 2}
            assert first.id != found[two.settings.name].id
            async with asyncio.timeout(10):  # the heartbeat goes on
                while (await _named(web, first.name)).seen_at <= first.seen_at:
                    pass
            again = await _named(web, first.name)
            assert again.started_at == first.started_at <= again.seen_at
            assert 0 <= again.silent < 5
        assert await web.workers() == []


async def _named(engine: Engine, name: str) -> Any:
    return next(worker for worker in await engine.workers() if worker.name == name)


async def test_history_tells_each_transition(build: Build) -> None:
    """Section 12, history: one row for each, numbered, timed, with worker, attempt and error."""
    async with build(Ends) as engine:
        handle = await engine.insert(Ends(how="failed"), key="k")
        found = await ended(handle)
        assert await engine.history("k") == await engine.history(handle.id)
        first, last = await engine.history(handle.id)
    assert (first.step, first.attempt, first.outcome, first.error, first.state) == ("first", 0, "next", None, None)
    assert (last.step, last.attempt, last.outcome, last.state) == ("last", 0, "failed", None)
    assert last.error == {"type": "Stop", "message": "no"}
    assert first.worker == last.worker == found.worker
    assert first.seq < last.seq == found.rev
    assert first.at <= last.at == found.finished_at
    assert first.took is not None
    assert last.took is not None
    assert 0 <= first.took < 5


@pytest.mark.parametrize(
    ("engine_says", "machine_says", "rows", "states"),
    [
        ("off", None, 0, False),
        ("steps", None, 2, False),
        ("states", None, 2, True),
        ("off", "states", 2, True),
        ("states", "off", 0, False),
        ("states", "steps", 2, False),
    ],
)
async def test_history_off_steps_or_states(
    build: Build, sql: Sql, engine_says: str, machine_says: Any, rows: int, states: bool
) -> None:
    """Section 12: ``history=`` of the engine, or of the machine where it says otherwise."""

    class Noted(Machine, history=machine_says):
        n: int = 0

        @step
        async def one(self, ctx: Context) -> Next:
            self.n = 1
            return Next(self.two)

        @step
        async def two(self, ctx: Context) -> Done:
            self.n = 2
            return Done("kept")

    async with build(Noted, history=engine_says) as engine:
        handle = await engine.insert(Noted())
        assert await handle.result(timeout=10) == "kept"
        history = await engine.history(handle.id)
        assert (await handle.get()).state == {"n": 2}
    assert [t.state for t in history] == ([{"n": 1}, {"n": 2}] if states else [None] * rows)
