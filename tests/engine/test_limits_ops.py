"""Limits at run time: set for the whole cluster, shown, and why an instance waits for one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from engine_support import LONG, Build, Sql, eventually, failure

from gen_durable import Await, Context, Done, Engine, Handle, Machine, Next, Rate, Spawn, job, step
from gen_durable.errors import ConfigurationError, InvalidArgument, NoSuchInstance

doors: dict[str, asyncio.Event] = {}


@pytest.fixture(autouse=True)
def _doors() -> None:
    doors.clear()


@job
async def held(door: str = "a") -> str:
    await doors.setdefault(door, asyncio.Event()).wait()
    return door


@job(rate_limit="api")
async def call(n: int = 0) -> int:
    return n


@job(rate_limit=lambda self: self.name)
async def named(name: str) -> str:
    return name


class Goes(Machine):
    @step
    async def first(self, ctx: Context) -> Next:
        return Next(self.last, rate_limit="later")

    @step
    async def last(self, ctx: Context) -> Done:
        return Done("through")


class Waits(Machine):
    @step
    async def first(self, ctx: Context) -> Await | Done:
        return Done() if ctx.awaited else Await(["paid", "refused"], then=self.first, timeout=3600)


class Parent(Machine):
    @step
    async def first(self, ctx: Context) -> Spawn:
        return Spawn([held.bind("child")], then=self.last)

    @step
    async def last(self, ctx: Context) -> Done:
        return Done()


async def until(engine: Engine, handle: Handle, status: str) -> None:
    async def there() -> bool:
        return (await engine.get(handle.id)).status == status

    await eventually(there)


# Setting --------------------------------------------------------------------------------------------


REFUSED: list[tuple[tuple[Any, Any, Any], str]] = [
    (("", 1, False), "the limit's name must not be empty"),
    ((7, 1, False), "must be a string"),
    ((("stripe", "a"), 1, False), "give the name alone"),
    (("a\x1fb", 1, False), "separates names from partitions"),
    (("a", 0, False), "from 1 to"),
    (("a", -1, False), "from 1 to"),
    (("a", True, False), "from 1 to"),
    (("a", 1.5, False), "from 1 to"),
    (("a", 2**31, False), "from 1 to"),
    (("default", Rate(1), True), "from 1 to"),
    (("nowhere", 1, True), "there is no queue 'nowhere'"),
    (("default", 1, "yes"), "use True or False"),
    (("api", None, False), "'api' is a rate limit, and steps that name it need it"),
]


async def test_a_bad_limit_is_refused(build: Build) -> None:
    """R24: with a message that names the value; nothing is written."""
    async with build(queues={}, rate_limits={"api": Rate(1)}).client() as engine:
        before = await engine.limits()
        for (name, limit, queue), message in REFUSED:
            with pytest.raises(InvalidArgument, match=message):
                await engine.set_limit(name, limit, queue=queue)
        assert await engine.limits() == before


async def test_a_raised_limit_is_in_force_at_once_and_everywhere(build: Build) -> None:
    """Section 10: while rows hold and wait; set by another process than the worker's; it outlives a restart."""
    settings: dict[str, Any] = {"concurrency_limits": {"tenant": 2}}
    web = build(held, queues={}, **settings)
    async with build(held, **settings) as worker, web.client():
        handles = [await web.insert(held.bind(), concurrency_key=("tenant", 7)) for _ in range(4)]
        await until(web, handles[1], "executing")
        assert [(await one.get()).status for one in handles] == ["executing", "executing", "blocked", "blocked"]
        assert await web.set_limit("tenant", 3)
        await until(web, handles[2], "executing")
        assert not await web.set_limit("tenant", 3)
        assert await worker.set_limit("tenant", 4)
        await until(web, handles[3], "executing")
        (shown,) = await web.limits()
        assert (shown.kind, shown.name, shown.limit, shown.lines, shown.holding, shown.waiting) == (
            "concurrency",
            "tenant",
            4,
            1,
            4,
            0,
        )
        doors["a"].set()
        await asyncio.gather(*(one.result(LONG) for one in handles))
    async with build(queues={}, **settings).client() as again:
        assert [one.limit for one in await again.limits()] == [4], "the configuration says what it said before"
    async with build(queues={}, concurrency_limits={"tenant": 5}).client() as again:
        assert [one.limit for one in await again.limits()] == [5]
        assert await again.set_limit("tenant", None)
        assert not await again.set_limit("tenant", None)
        assert await again.limits() == []


async def test_a_cap_of_a_queue_comes_and_goes(build: Build) -> None:
    """Section 10: counted over the whole cluster."""
    async with build(held) as one, build(held) as two:
        assert await one.set_limit("default", 1, queue=True)
        handles = [await engine.insert(held.bind()) for engine in (one, two, one)]
        await until(one, handles[0], "executing")
        found = await handles[1].why()
        assert found.reason == "its queue 'default' runs 1 of at most 1 steps in the cluster"
        assert found.limit is not None
        assert (found.limit.kind, found.limit.name, found.limit.limit, found.holding) == ("queue", "default", 1, 1)
        assert await two.set_limit("default", None, queue=True)
        for handle in handles:
            await until(one, handle, "executing")
        doors["a"].set()
        await asyncio.gather(*(handle.result(LONG) for handle in handles))


# Rates that are known, and that are not -------------------------------------------------------------


async def test_a_rate_that_is_nowhere_is_refused_at_the_start(build: Build) -> None:
    """R24: unless another process has set it."""
    with pytest.raises(ConfigurationError, match="there is no rate limit 'api'"):
        async with build(call, queues={}).client():
            pass
    async with build(queues={}).client() as other:
        await other.set_limit("api", Rate(100, burst=3))
    async with build(call) as engine:
        assert await (await engine.insert(call.bind(1))).result(LONG) == 1
        with pytest.raises(InvalidArgument, match=r"weight=4 is more than .* a burst of 3"):
            await engine.insert(call.bind(1), weight=4)


async def test_a_rate_that_another_process_sets_later_is_found(build: Build) -> None:
    """R24: the table is asked before anything is refused."""
    async with build(named) as engine, build(queues={}).client() as other:
        with pytest.raises(InvalidArgument, match=r"there is no rate limit 'sms' \(known: none\)") as refused:
            await engine.insert(named.bind("sms"))
        assert refused.type is InvalidArgument
        await other.set_limit("sms", Rate(1, burst=2))
        assert await (await engine.insert(named.bind("sms"))).result(LONG) == "sms"
        await other.set_limit("sms", Rate(100, burst=9))
        handle = await engine.insert(named.bind("sms"), weight=9)
        assert await handle.result(LONG) == "sms"


async def test_a_step_finds_a_rate_that_another_process_has_set(build: Build) -> None:
    """R24: what ``Next`` names is looked for too; what is nowhere is an error of the step."""
    async with build(Goes) as engine, build(queues={}).client() as other:
        error = await failure(await engine.insert(Goes()))
        assert error["type"] == "gen_durable.errors.InvalidArgument"
        assert error["message"].startswith("there is no rate limit 'later'")
        await other.set_limit("later", Rate(10))
        assert await (await engine.insert(Goes())).result(LONG) == "through"


# Why ------------------------------------------------------------------------------------------------


async def test_why_an_instance_waits_for_a_key(build: Build) -> None:
    """Section 12: which limit, who holds it, how many are ahead."""
    async with build(held) as engine:
        first, _, third = [await engine.insert(held.bind(), concurrency_key=("tenant", 7)) for _ in range(3)]
        await until(engine, first, "executing")
        found = await third.why()
        assert found.reason == (
            f"the concurrency key 'tenant', partition '7' lets 1 run at once; {first.id} holds it; "
            "1 is before it in the line"
        )
        assert found.limit is not None
        assert (found.limit.kind, found.limit.name, found.limit.partition, found.limit.limit) == (
            "concurrency",
            "tenant",
            "7",
            1,
        )
        assert (found.status, found.holders, found.holding, found.ahead) == ("blocked", (first.id,), 1, 1)
        running = await engine.why(first.id)
        assert running.reason.endswith("executes its step 'run', attempt 0")
        doors["a"].set()
        await third.result(LONG)
        assert (await third.why()).reason == "it has ended, as done"
        with pytest.raises(NoSuchInstance):
            await engine.why("nobody")


async def test_why_an_instance_waits_for_tokens(build: Build) -> None:
    """Section 12: when at this rate."""
    async with build(call, queues={}, rate_limits={"api": Rate(1, per=3600, burst=2)}).client() as client:
        async with build(call):
            assert await (await client.insert(call.bind(1))).result(LONG) == 1
            assert await (await client.insert(call.bind(2))).result(LONG) == 2
            await client.insert(call.bind(3))
            last = await client.insert(call.bind(4), weight=2)
            found = await last.why()
        assert found.limit is not None
        assert (found.limit.limit, found.limit.per, found.limit.burst) == (1, 3600, 2)
        assert found.seconds == pytest.approx(3 * 3600, abs=60)
        assert found.reason.startswith(
            "the rate limit 'api' lets 1 tokens through in 1 h; its turn is in about 3 h; 1 is before it in the line"
        )
        assert (await last.why()).reason.endswith("; no worker lives")


async def test_why_of_every_other_status(build: Build, sql: Sql) -> None:
    """Section 12"""
    client = build(held, Waits, Parent, queues={})
    async with client.client():
        due = await client.insert(held.bind())
        assert (await due.why()).reason == "no worker lives"
        later = await client.insert(held.bind(), delay=7200)
        found = await later.why()
        assert found.reason.startswith("it is due in 2 h; no worker lives")
        assert found.seconds == pytest.approx(7200, abs=60)
        async with build(Waits, Parent, queues={"other": 1}):
            assert (await due.why()).reason == "no worker runs its queue 'default'"
        async with build(Waits, Parent):
            assert (await due.why()).reason.startswith("it is due, and a worker is to take it"), "who knows it yet?"
            await sql("UPDATE {s}.workers SET started_at = started_at - interval '1 h'")
            await sql("UPDATE {s}.instances SET inserted_at = inserted_at - interval '1 h'")
            assert (await due.why()).reason == f"no worker knows {due.machine} version 1"
            waits = await client.insert(Waits())
            await until(client, waits, "awaiting_signal")
            found = await waits.why()
            assert found.reason.startswith("it waits for a signal of the name 'paid', 'refused', for 1 h more at most")
            parent = await client.insert(Parent())
        await client.pause_queue("default")
        assert (await due.why()).reason == "its queue 'default' is paused"
        await client.resume_queue("default")
        async with build(held, Waits, Parent):
            await until(client, parent, "awaiting_children")
            assert (await parent.why()).reason == "it waits for the end of 1 child"
            await client.cancel(waits.id, reason="enough")
            assert (await waits.why()).reason == "it has ended, as cancelled: Cancelled: enough"
            for door in ("a", "child"):
                doors.setdefault(door, asyncio.Event()).set()
            await parent.result(LONG)


async def test_a_runnable_one_behind_others(build: Build) -> None:
    """Section 12: how many are before it in its queue."""
    async with build(held, queues={"default": 1}, prefetch=0) as engine:
        first = await engine.insert(held.bind())
        await until(engine, first, "executing")
        await engine.insert(held.bind(), priority=-1)
        last = await engine.insert(held.bind())
        found = await last.why()
        assert found.reason == "it is due, and a worker is to take it; 1 is before it in its queue 'default'"
        assert found.ahead == 1
        doors["a"].set()
        await last.result(LONG)
