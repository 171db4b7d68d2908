"""``result`` for ends that come about in another process: told by notification, not found by looking."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from engine_support import Build, Sql, eventually

from gen_durable import Await, Context, Done, Engine, Machine, Stop, step
from gen_durable.client.waiting import LONGEST_LOOK
from gen_durable.errors import InstanceCancelled, InstanceFailed, StillRunning

SOON = LONGEST_LOOK / 3  # seconds: less than a look would take to come round


class Gate(Machine):
    """Parked until it is told how to end."""

    @step
    async def start(self, ctx: Context) -> Await:
        return Await("end", then=self.end)

    @step
    async def end(self, ctx: Context) -> Done | Stop:
        how = ctx.awaited[0].payload
        return Stop(how) if how == "badly" else Done(how)


class Looks:
    """Counts how often a client looks at instances."""

    def __init__(self, engine: Engine) -> None:
        self.count = 0
        self._get = engine.get
        engine.get = self._counted  # type: ignore[method-assign]

    async def _counted(self, target: int | str) -> Any:
        self.count += 1
        return await self._get(target)


@pytest.fixture
async def two(build: Build) -> AsyncIterator[tuple[Engine, Engine]]:
    """A worker, and a client with nothing of the worker's: what another process is."""
    async with build(Gate) as worker, build(Gate, queues={}) as web:
        yield worker, web


async def waiting(web: Engine, sql: Sql, target: int | str, count: int = 1) -> list[asyncio.Task[Any]]:
    """Calls of ``result`` that sleep until they are told: nothing but a notification, or the long look, wakes them."""
    tasks = [asyncio.create_task(web.result(target, timeout=60)) for _ in range(count)]

    async def asleep() -> bool:
        (row,) = await sql("SELECT watched FROM {s}.instances ORDER BY id DESC LIMIT 1")
        return bool(row[0]) and web._ear.hears

    await eventually(asleep)
    looks = Looks(web)
    before = -1
    while before != looks.count:  # the looks that follow the watch are over
        before = looks.count
        await asyncio.wait(tasks, timeout=0.3)
    return tasks


async def test_an_end_elsewhere_is_told(two: tuple[Engine, Engine], sql: Sql) -> None:
    """Section 12: elsewhere within tens of milliseconds: by the notification, and with one look."""
    worker, web = two
    handle = await worker.insert(Gate(), key="k")
    (task,) = await waiting(web, sql, "k")
    looks = Looks(web)
    began = time.monotonic()
    await worker.signal(handle.id, "end", "well")
    assert await task == "well"
    assert time.monotonic() - began < SOON
    assert looks.count <= 2  # of the end; another where the wake-up of the signal was still under way


async def test_a_failure_and_a_cancel_elsewhere_are_told(two: tuple[Engine, Engine], sql: Sql) -> None:
    """Section 12: ``InstanceFailed`` and ``InstanceCancelled``, with id and error, to each who waits."""
    worker, web = two
    handle = await worker.insert(Gate())
    tasks = await waiting(web, sql, handle.id, count=3)
    began = time.monotonic()
    await worker.signal(handle.id, "end", "badly")
    for task in tasks:
        with pytest.raises(InstanceFailed, match="badly") as failed:
            await task
        assert failed.value.instance_id == handle.id
    other = await worker.insert(Gate())
    assert time.monotonic() - began < SOON

    tasks = await waiting(web, sql, other.id, count=2)
    began = time.monotonic()
    assert await worker.cancel(other.id, reason="withdrawn")
    for task in tasks:
        with pytest.raises(InstanceCancelled, match="was cancelled: withdrawn") as cancelled:
            await task
        assert cancelled.value.instance_id == other.id
        assert cancelled.value.error == {"type": "Cancelled", "message": "withdrawn"}
    assert time.monotonic() - began < SOON


async def test_a_retried_one_can_be_waited_for_again(two: tuple[Engine, Engine], sql: Sql) -> None:
    """Section 12: the new end, not the old one."""
    worker, web = two
    handle = await worker.insert(Gate())
    await worker.cancel(handle.id)
    with pytest.raises(InstanceCancelled):
        await web.result(handle.id, timeout=10)
    await web.retry(handle.id)
    (task,) = await waiting(web, sql, handle.id)
    began = time.monotonic()
    await web.signal(handle.id, "end", "in the end")
    assert await task == "in the end"
    assert time.monotonic() - began < SOON


async def test_the_ear_that_was_cut_hears_again(two: tuple[Engine, Engine], sql: Sql) -> None:
    """R27: an end that comes while nobody hears is found when the ear is back, at the latest."""
    worker, web = two
    handle = await worker.insert(Gate())
    (task,) = await waiting(web, sql, handle.id)
    ear = f"gen_durable {web.settings.name} ear"
    assert await sql("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = %s", ear)
    began = time.monotonic()
    await worker.signal(handle.id, "end", 7)
    assert await task == 7
    assert time.monotonic() - began < SOON + 1.0

    async def back() -> bool:
        return web._ear.hears

    await eventually(back)
    again = await worker.insert(Gate())
    (task,) = await waiting(web, sql, again.id)
    await worker.signal(again.id, "end", 8)
    assert await task == 8


async def test_only_who_waits_elsewhere_has_an_ear(two: tuple[Engine, Engine], sql: Sql) -> None:
    """Section 8: a client that never waits, and one beside a worker, take no connection for it."""
    worker, web = two
    asked = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s"

    async def ears(engine: Engine) -> int:
        return int((await sql(asked, f"gen_durable {engine.settings.name} ear"))[0][0])

    handle = await web.insert(Gate())
    with pytest.raises(StillRunning) as still:
        await worker.result(handle.id, timeout=0.2)
    assert (still.value.instance_id, still.value.status) == (handle.id, "awaiting_signal")
    assert (await ears(worker), await ears(web)) == (0, 0)
    with pytest.raises(StillRunning):
        await web.result(handle.id, timeout=0.5)
    assert (await ears(worker), await ears(web)) == (0, 1)
    await web.stop()

    async def gone() -> bool:
        return await ears(web) == 0

    await eventually(gone)


async def test_an_end_of_the_other_id_wakes_nobody(two: tuple[Engine, Engine], sql: Sql) -> None:
    """Section 12: a thousand ends cost one who waits for another instance nothing."""
    worker, web = two
    handle = await worker.insert(Gate())
    (task,) = await waiting(web, sql, handle.id)
    looks = Looks(web)
    others = [item.handle for item in await worker.insert_many(Gate() for _ in range(50))]
    for other in others:
        await other.signal("end", 1)
        assert await other.result(timeout=10) == 1
    assert looks.count <= 1
    await worker.signal(handle.id, "end", 2)
    assert await task == 2
