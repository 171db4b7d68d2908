"""A signal that wakes its row as a claim, against timeouts, cancels and holders that change; each order by hand."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from sql_stage import Stage, outcome
from test_sql_signal_races import expired, inbox, numbers, parked

from gen_durable._runtime.held import Waits


@pytest.mark.parametrize("first", ["timeout", "signal"])
async def test_a_timeout_and_a_signal_that_claims(stage: Stage, first: str) -> None:
    """R14: one of them wakes the row; the signal is in what the step is told, in both orders."""
    id_, lane = await expired(stage)
    timer, client = await stage.connect(), await stage.connect()
    if first == "timeout":
        async with timer.transaction():
            assert (await stage.run("timing/promote", on=timer, batch=10))[0][0] == 1
            task = asyncio.create_task(stage.send_for(7, id_, "go", 1, on=client))
            await stage.until_waiting(task, client)
        assert await task is None
        ((*claim,),) = await stage.claim((lane, 0, 9))
    else:
        async with client.transaction():
            claim = await stage.send_for(7, id_, "go", 1, on=client)
            assert (await stage.run("timing/promote", on=timer, batch=10))[0][0] == 0
        assert (await stage.run("timing/promote", batch=10))[0][0] == 0
        assert await stage.claim((lane, 0, 9)) == []
    assert claim
    waits = msgspec.json.decode(claim[12], type=Waits)
    assert numbers(waits.awaited()) == [1]
    assert not waits.timed_out
    assert (await stage.row(id_, "status, worker")) == (2, 7)


@pytest.mark.parametrize("first", ["cancel", "signal"])
async def test_a_cancel_and_a_signal_that_claims(stage: Stage, first: str) -> None:
    """R4, R12: what is cancelled first is gone for the signal; a claim that came first is told of, and fenced."""
    id_, rev, _ = await parked(stage)
    one, two = await stage.connect(), await stage.connect()
    if first == "cancel":
        async with one.transaction():
            assert await stage.cancel(id_, on=one) == [id_]
            sending = asyncio.create_task(stage._send(id_, "go", 1, None, False, two, 7, list(range(100))))
            await stage.until_waiting(sending, two)
        assert await sending is None
    else:
        async with one.transaction():
            assert await stage.send_for(7, id_, "go", 1, on=one)
            reason = {"reason": '{"type": "Cancelled"}', "keep": True}
            task = asyncio.create_task(stage.run("steering/cancel", on=two, ids=f"[{id_}]", **reason))
            await stage.until_waiting(task, two)
        assert (id_, 7, rev + 1) in [(row[0], row[1], row[4]) for row in await task]
        assert await stage.commit(outcome(id_, rev + 1, 2)) == []
    assert await inbox(stage, id_) == []
    assert await stage.row(id_) is None


async def test_a_key_whose_holder_changes_while_the_signal_waits_for_it(stage: Stage) -> None:
    """R12: of the holder that has ended it says so; asked again it claims the next one, and only that."""
    id_, rev, lane = await stage.held(key="k")
    worker, client = await stage.connect(), await stage.connect()
    everywhere = list(range(100))
    async with worker.transaction():
        assert await stage.commit(outcome(id_, rev, 2), on=worker) == [id_]
        (next_one,) = await stage.insert({"lane": lane, "key": "k"}, on=worker)
        assert next_one is not None
        ((claimed, rev, *_),) = await stage.claim((lane, 0, 1), on=worker)
        assert claimed == next_one
        assert await stage.commit(outcome(next_one, rev, 3), on=worker) == [next_one]
        task = asyncio.create_task(stage._send("k", "go", 1, None, False, client, 7, everywhere))
        await stage.until_waiting(task, client)
    assert await task is None
    claim = await stage.send_for(7, "k", "go", 1)
    assert claim is not None
    assert claim[:2] == (next_one, rev + 2)
    assert await stage.ask("SELECT instance_id FROM {schema}.signals") == [(next_one,)]


async def test_a_row_that_moves_to_another_lane_while_the_signal_waits_for_it(stage: Stage) -> None:
    """R17: it is claimed by the lane that it is in when it is woken."""
    id_, rev, lane = await stage.held()
    other = await stage.lane("elsewhere")
    worker, client = await stage.connect(), await stage.connect()
    async with worker.transaction():
        assert await stage.commit(outcome(id_, rev, 3, lane=other), on=worker) == [id_]
        task = asyncio.create_task(stage.send_for(7, id_, lanes=[lane], on=client))
        await stage.until_waiting(task, client)
    assert await task is None
    assert await stage.row(id_, "status, worker, lane") == (0, None, other)
