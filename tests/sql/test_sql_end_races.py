"""Ends against signals, deliveries and whoever waits for them, each order forced by hand."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from sql_stage import Connection, Stage, outcome

from gen_durable._store.connection import fetch
from gen_durable._store.inserting import NewInstance
from gen_durable._store.operation import drive
from gen_durable._store.signalling import Delivery, NewSignal, deliver_or_insert
from gen_durable.errors import DuplicateInstance

# A signal and the end -----------------------------------------------------------------------------


async def finish(stage: Stage, id_: int, rev: int, how: str, on: Connection | None = None) -> list[int]:
    return await (stage.cancel(id_, on=on) if how == "cancel" else stage.commit(outcome(id_, rev, 2), on=on))


@pytest.mark.parametrize("how", ["commit", "cancel"])
@pytest.mark.parametrize("by", ["id", "key"])
@pytest.mark.parametrize("scope", [None, 1 << 6 | 1 << 8])
async def test_a_signal_that_waits_for_the_end_finds_nobody(stage: Stage, how: str, by: str, scope: int | None) -> None:
    """R12: it stores nothing, and answers with nothing; a reserved key is nobody too."""
    id_, rev, _ = await stage.held(key="k", scope=scope)
    worker, client = await stage.connect(), await stage.connect()
    async with worker.transaction():
        assert await finish(stage, id_, rev, how, on=worker) == [id_]
        task = asyncio.create_task(stage.send(id_ if by == "id" else "k", on=client))
        await stage.until_waiting(task, client)
    assert await task is None
    assert await stage.ask("SELECT FROM {schema}.signals") == []
    assert await stage.send("k") is None


@pytest.mark.parametrize("how", ["commit", "cancel"])
@pytest.mark.parametrize("earlier", [0, 1])
async def test_an_end_that_waits_for_a_signal_leaves_no_orphan(stage: Stage, how: str, earlier: int) -> None:
    """R12, R13: the inbox goes with its instance, also what came while the end waited."""
    id_, rev, _ = await stage.held()
    for _ in range(earlier):
        await stage.send(id_, dedup="early")
    worker, client = await stage.connect(), await stage.connect()
    async with client.transaction():
        assert await stage.send(id_, on=client) == (True, False)
        task = asyncio.create_task(finish(stage, id_, rev, how, on=worker))
        await stage.until_waiting(task, worker)
    assert await task == [id_]
    assert await stage.ask("SELECT FROM {schema}.signals") == []


async def test_a_signal_by_key_that_waits_for_an_end_reaches_no_reservation(stage: Stage) -> None:
    """R12: of loose keys the newest is meant; where that ends meanwhile, the one before it."""
    lane = await stage.lane()
    older, _ = await stage.insert(*[{"lane": lane, "key": "k", "scope": 0}] * 2)
    _, (newer, rev, *_) = sorted(await stage.claim((lane, 0, 2)))
    worker, client = await stage.connect(), await stage.connect()
    async with worker.transaction():
        await stage.commit(outcome(newer, rev, 2), on=worker)
        task = asyncio.create_task(stage.send("k", on=client))
        await stage.until_waiting(task, client)
    assert await task == (True, False)
    assert await stage.ask("SELECT instance_id FROM {schema}.signals") == [(older,)]


# A signal or an insert ----------------------------------------------------------------------------


class Steps:
    """Runs an operation in a transaction, and stops after a statement until it is told to go on."""

    def __init__(self, stage: Stage, on: Connection, after: str) -> None:
        self.stage, self.on, self.after = stage, on, after
        self.there, self.further = asyncio.Event(), asyncio.Event()

    async def _send(self, request: Any) -> Any:
        rows = await fetch(self.on, request)
        if request.statement.name == self.after and not self.there.is_set():
            self.there.set()
            await self.further.wait()
        return rows

    async def deliver(self, row: NewInstance, signal: NewSignal) -> Delivery:
        async with self.on.transaction():
            return await drive(deliver_or_insert(self.stage.sql, row, signal), self._send)


def new(lane: int, **fields: Any) -> NewInstance:
    return NewInstance(lane, "one", msgspec.Raw(b"{}"), "k", **fields)


async def test_of_two_deliveries_one_inserts(stage: Stage) -> None:
    """R16, section 5: whoever races, one instance has the key, and every signal is in its inbox."""
    lane = await stage.lane()
    one, two = await stage.connect(), await stage.connect()
    first = Steps(stage, one, "inserting/insert")
    tasks = [asyncio.create_task(first.deliver(new(lane), NewSignal("go", "1", None)))]
    await first.there.wait()
    second = Steps(stage, two, "none")
    tasks.append(asyncio.create_task(second.deliver(new(lane), NewSignal("go", "2", None))))
    await stage.until_waiting(tasks[1], two)
    first.further.set()
    deliveries = [await task for task in tasks]
    assert [delivery.started for delivery in deliveries] == [True, False]
    assert await stage.ask("SELECT instance_id, payload FROM {schema}.signals ORDER BY id") == [
        (deliveries[0].id, b"1"),
        (deliveries[0].id, b"2"),
    ]


async def test_a_delivery_whose_holder_ends_meanwhile_starts_another(stage: Stage) -> None:
    """R16, section 5: a holder that came and went is no reservation."""
    lane = await stage.lane()
    on = await stage.connect()
    steps = Steps(stage, on, "inserting/holders")
    other = await stage.connect()
    async with other.transaction():
        await stage.insert({"lane": lane, "key": "k"}, on=other)
        task = asyncio.create_task(steps.deliver(new(lane), NewSignal("go", "1", None)))
        await stage.until_waiting(task, on)
    await steps.there.wait()
    ((id_, rev, *_),) = await stage.claim((lane, 0, 1))
    await stage.commit(outcome(id_, rev, 2))
    steps.further.set()
    delivery = await task
    assert delivery.started
    assert delivery.id != id_


async def test_a_delivery_to_a_reserved_key_is_refused_also_when_the_terminal_row_is_gone(stage: Stage) -> None:
    """R16: rather than asked again and again until the reservation goes."""
    id_, rev, lane = await stage.held(key="k", scope=1 << 6)
    await stage.commit(outcome(id_, rev, 2))
    await stage.ask("DELETE FROM {schema}.finished")
    with pytest.raises(DuplicateInstance):
        await asyncio.wait_for(Steps(stage, stage.main, "").deliver(new(lane), NewSignal("go", None, None)), 5)


# Whoever waits for the end -------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["commit", "cancel"])
async def test_a_watch_and_an_end_in_both_orders(stage: Stage, ear: Connection, how: str) -> None:
    """R19, section 12: it is either told, or sees that it came too late."""
    id_, rev, lane = await stage.held()
    worker, client = await stage.connect(), await stage.connect()
    async with client.transaction():
        assert await stage.run("reading/watch", on=client, id=id_) == [(id_,)]
        task = asyncio.create_task(finish(stage, id_, rev, how, on=worker))
        await stage.until_waiting(task, worker)
    assert await task == [id_]
    assert f"e:{id_}" in await stage.heard(ear)
    await stage.insert({"lane": lane})
    ((id_, rev, *_),) = await stage.claim((lane, 0, 1))
    async with worker.transaction():
        await finish(stage, id_, rev, how, on=worker)
        late = asyncio.create_task(stage.run("reading/watch", on=client, id=id_))
        await stage.until_waiting(late, client)
    assert await late == []
    assert f"e:{id_}" not in await stage.heard(ear)
