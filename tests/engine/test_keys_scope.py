"""R16 beyond the default: what ``scope`` reserves, what ``replace`` replaces, keys without uniqueness."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from engine_support import Build, Sql, ended, eventually

from gen_durable import Await, BulkItem, Context, Done, Machine, Spawn, child, job, step
from gen_durable.errors import DuplicateInstance, InvalidArgument, NoSuchInstance

DONE, ANY = ("live", "done"), ("live", "done", "failed", "cancelled")


@job
async def keyed(n: int = 0) -> int:
    return n


@job(max_attempts=1)
async def broken() -> None:
    raise OSError("out of order")


class Waiter(Machine):
    n: int = 0

    @step
    async def start(self, ctx: Context) -> Await:
        return Await("go", then=self.end)

    @step
    async def end(self, ctx: Context) -> Done:
        return Done(self.n)


@pytest.mark.parametrize(
    ("scope", "reserved"),
    [
        (None, set()),
        ("live", set()),
        (("live",), set()),
        (DONE, {"done"}),
        (["failed", "live"], {"failed"}),
        ({"live", "cancelled"}, {"cancelled"}),
        (ANY, {"done", "failed", "cancelled"}),
        (("runnable", "executing", "awaiting_signal", "awaiting_children", "blocked", "done"), {"done"}),
    ],
    ids=range(8),
)
async def test_a_key_is_reserved_in_the_statuses_of_its_scope(build: Build, scope: Any, reserved: set[str]) -> None:
    """R16: at most one has the key among those whose status is in its scope; ``get`` finds the holder."""
    async with build(keyed, broken, Waiter) as engine:
        for status, instance in (("done", keyed.bind(1)), ("failed", broken.bind()), ("cancelled", Waiter())):
            first = await engine.insert(instance, key=status, scope=scope)
            if status == "cancelled":
                await first.cancel()
            assert (await ended(first)).status == status
            if status in reserved:
                with pytest.raises(DuplicateInstance) as refused:
                    await engine.insert(keyed.bind(2), key=status)
                assert refused.value.existing_id == first.id
                again = await engine.insert(keyed.bind(2), key=status, on_conflict="existing")
                assert again.id == first.id
                (item,) = await engine.insert_many([BulkItem(keyed.bind(2), key=status)])
                assert (item.duplicate, item.id) == (True, first.id)
                with pytest.raises(DuplicateInstance):
                    await engine.insert(keyed.bind(2), key=status, on_conflict="replace")
                with pytest.raises(NoSuchInstance):
                    await engine.signal(status, "go")
            else:
                assert (await engine.insert(keyed.bind(2), key=status, delay=60)).id != first.id


async def test_a_reservation_ends_with_the_retention(build: Build, sql: Sql) -> None:
    """R16: the key stays reserved while the row exists, and no longer."""

    @job(retention=0.05)
    async def brief() -> None:
        return None

    async with build(brief, keyed) as engine:
        handle = await engine.insert(brief.bind(), key="k", scope=DONE)
        await handle.result(timeout=10)

        async def free() -> bool:
            await engine._worker._pruner.once()  # type: ignore[attr-defined]
            return not await sql("SELECT 1 FROM {s}.instances")

        await eventually(free)
        assert (await engine.insert(keyed.bind(), key="k")).id != handle.id


async def test_a_retry_takes_its_reservation_back(build: Build) -> None:
    """R16, section 12: the reservation becomes the row again; a key that another has taken is refused."""
    async with build(Waiter, keyed) as engine:
        held = await engine.insert(Waiter(n=1), key="held", scope=ANY)
        await held.cancel()
        await engine.retry("held")
        with pytest.raises(DuplicateInstance):
            await engine.insert(keyed.bind(), key="held")
        free = await engine.insert(Waiter(n=2), key="free")
        await free.cancel()
        other = await engine.insert(keyed.bind(), key="free", delay=60)
        with pytest.raises(DuplicateInstance) as refused:
            await engine.retry(free.id)
        assert refused.value.existing_id == other.id
        assert (await free.get()).status == "cancelled"
        await engine.signal("held", "go")
        assert await held.result(timeout=10) == 1


async def test_keys_without_uniqueness_are_addresses(build: Build) -> None:
    """Section 7: an empty scope is no uniqueness; the key means the newest."""
    async with build(Waiter) as engine:
        handles = [await engine.insert(Waiter(n=n), key="user:7", scope=()) for n in range(3)]
        many = await engine.insert_many(BulkItem(Waiter(n=n), key="user:7", scope=()) for n in (3, 4))
        assert [item.duplicate for item in many] == [False, False]
        assert len({*(handle.id for handle in handles), *(item.id for item in many)}) == 5
        assert (await engine.get("user:7")).id == many[-1].id
        await engine.signal("user:7", "go")
        assert await many[-1].handle.result(timeout=10) == 4
        assert (await engine.get("user:7")).id == many[0].id  # the newest that is live
        holder = await engine.insert(Waiter(n=5), key="user:7")
        with pytest.raises(DuplicateInstance) as refused:
            await engine.insert(Waiter(n=6), key="user:7")
        assert refused.value.existing_id == holder.id
        assert len((await engine.list(key_prefix="user:7")).items) == 6
        with pytest.raises(InvalidArgument, match="what would it replace"):
            await engine.insert(Waiter(), key="user:7", scope=(), on_conflict="replace")


async def test_replace_takes_everything_but_the_id(build: Build) -> None:
    """R16: ``replace`` where the holder waits and was never started: state, machine, queue, priority, time, scope."""
    async with build(keyed, Waiter, queues={"other": 1}) as engine:
        queues = {"queue": "other"}
        first = await engine.insert(keyed.bind(1), key="k", delay=3600, priority=3, **queues)
        await engine.signal("k", "go")
        second = await engine.insert(
            Waiter(n=2), key="k", on_conflict="replace", priority=1, delay=timedelta(hours=2), scope=DONE, **queues
        )
        assert second.id == first.id
        found = await first.get()
        assert (found.machine, found.state, found.priority) == ("Waiter", {"n": 2}, 1)
        assert found.due_at is not None
        assert found.due_at - found.updated_at == timedelta(hours=2)
        await engine.insert(Waiter(n=3), key="k", on_conflict="replace", scope=DONE, **queues)
        assert await first.result(timeout=10) == 3  # the signal has stayed
        with pytest.raises(DuplicateInstance):
            await engine.insert(keyed.bind(), key="k", on_conflict="replace", **queues)
        fresh = await engine.insert(keyed.bind(7), key="new", on_conflict="replace", **queues)
        assert await fresh.result(timeout=10) == 7


async def test_what_has_begun_is_not_replaced(build: Build) -> None:
    """R16: neither one that runs, nor one that is parked, nor one that waits for a retry, nor a child."""
    started, go = asyncio.Event(), asyncio.Event()

    @job
    async def busy() -> None:
        started.set()
        await go.wait()

    @job
    async def late(ctx: Context) -> None:
        raise OSError("again in a second")

    class Parent(Machine):
        @step
        async def start(self, ctx: Context) -> Spawn:
            return Spawn([child(keyed.bind(), key="child", delay=3600)], then=self.end)

        @step
        async def end(self, ctx: Context) -> Done:
            return Done()

    async with build(busy, late, Waiter, Parent, keyed) as engine:
        await engine.insert(busy.bind(), key="busy")
        await asyncio.wait_for(started.wait(), 10)
        await engine.insert(Waiter(), key="parked")
        retried = await engine.insert(late.bind(), key="retried")
        await engine.insert(Parent())

        async def ready() -> bool:
            states = {(one.key, one.status) for one in (await engine.list()).items}
            return {("parked", "awaiting_signal"), ("child", "runnable")} <= states and (
                await retried.get()
            ).attempt > 0

        await eventually(ready)
        for key in ("busy", "parked", "retried", "child"):
            with pytest.raises(DuplicateInstance):
                await engine.insert(keyed.bind(), key=key, on_conflict="replace")
        go.set()


async def test_racing_replaces_leave_one_instance(build: Build, sql: Sql) -> None:
    """R16: of many who replace at the same time while a worker claims, one instance stands in the end for each key."""
    async with build(keyed, queues={"default": 5}) as engine, build(keyed, queues={}) as web:

        async def replace(n: int) -> int | None:
            try:
                return (await (engine, web)[n % 2].insert(keyed.bind(n), key="hot", on_conflict="replace")).id
            except DuplicateInstance:
                return None

        ids = {found for found in await asyncio.gather(*(replace(n) for n in range(60))) if found is not None}
        for one in ids:
            assert await engine.result(one, timeout=10) in range(60)
    assert await sql("SELECT count(*) FROM {s}.instances") == [(0,)]
    assert await sql("SELECT count(*) FROM {s}.finished") == [(len(ids),)]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"scope": "ended"}, "scope has 'ended', which is no status"),
        ({"scope": ("live", "gone")}, "'gone', which is no status"),
        ({"scope": ("done",)}, 'add "live"'),
        ({"scope": ("runnable", "done")}, 'add "live"'),
        ({"scope": 5}, "scope=5"),
        ({"scope": (5, "live")}, "scope"),
        ({"scope": ([],)}, "scope"),
        ({"key": None, "scope": DONE}, "key"),
        ({"key": None, "on_conflict": "replace"}, "needs a key"),
        ({"on_conflict": "update"}, 'use "raise", "existing" or "replace"'),
    ],
    ids=range(10),
)
async def test_bad_scopes_are_refused(build: Build, sql: Sql, arguments: dict[str, Any], says: str) -> None:
    """Section 14: with the value and the mend, and nothing is written."""
    async with build(keyed, queues={}) as engine:
        with pytest.raises(InvalidArgument, match=says):
            await engine.insert(keyed.bind(), **{"key": "k"} | arguments)
        assert await sql("SELECT 1 FROM {s}.instances") == []
