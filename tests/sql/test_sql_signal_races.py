"""Signals against parks, timeouts, claims and ends, each order forced by hand."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from sql_stage import Connection, Stage, encode, outcome

from gen_durable._runtime.held import InboxRow, Waits


async def parked(stage: Stage, *names: str, delay: float | None = None, **row: Any) -> tuple[int, int, int]:
    """A row that waits for signals: its id, its rev, its lane."""
    id_, rev, lane = await stage.held(**row)
    await stage.commit(outcome(id_, rev, 3, awaits=list(names or ("go",)), delay=delay))
    assert await stage.row(id_, "status") == (3,)
    return id_, rev + 1, lane


async def woken(stage: Stage, lane: int, on: Connection | None = None) -> tuple[int, int, Waits]:
    """Claims the one row that is awake: its id, its rev, what it is told."""
    (row,) = await stage.claim((lane, 0, 9), on=on)
    return row[0], row[1], msgspec.json.decode(row[12], type=Waits)


def numbers(rows: list[InboxRow] | None) -> list[Any]:
    return [row.payload for row in rows or ()]


async def inbox(stage: Stage, id_: int) -> list[tuple[str, int]]:
    rows = await stage.ask("SELECT name, status FROM {schema}.signals WHERE instance_id = %s ORDER BY id", id_)
    return [(row[0], row[1]) for row in rows]


# A signal and a park -------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["before", "signal first", "park first", "after"])
@pytest.mark.parametrize("name", ["go", "other"])
async def test_a_park_and_a_signal_in_every_order(stage: Stage, moment: str, name: str) -> None:
    """R10, R12: a row is awake whenever a matching signal has come, and only then."""
    id_, rev, lane = await stage.held()
    worker, client = await stage.connect(), await stage.connect()
    park = outcome(id_, rev, 3)
    if moment == "before":
        assert await stage.send(id_, name, 1) == (True, False)
        assert await stage.commit(park) == [id_]
    elif moment == "signal first":
        async with client.transaction():
            assert await stage.send(id_, name, 1, on=client) == (True, False)
            task = asyncio.create_task(stage.commit(park, on=worker))
            await stage.until_waiting(task, worker)
        assert await task == [id_]
    elif moment == "park first":
        async with worker.transaction():
            assert await stage.commit(park, on=worker) == [id_]
            task = asyncio.create_task(stage.send(id_, name, 1, on=client))
            await stage.until_waiting(task, client)
        assert await task == (True, name == "go")
    else:
        await stage.commit(park)
        assert await stage.send(id_, name, 1) == (True, name == "go")
    assert await inbox(stage, id_) == [(name, 0)]
    assert await stage.row(id_, "status, inbox") == (0 if name == "go" else 3, 1)
    if name == "go":
        _, _, waits = await woken(stage, lane)
        assert numbers(waits.awaited()) == [1]
        assert not waits.timed_out


@pytest.mark.parametrize("moment", ["before", "signal first", "park first", "after"])
@pytest.mark.parametrize("name", ["go", "other"])
async def test_a_pack_sleeps_until_a_signal_that_it_was_not_handed(stage: Stage, moment: str, name: str) -> None:
    """R10, R13: a re-await keeps what it has and sleeps; a new signal wakes it, whenever it comes."""
    id_, _, lane = await parked(stage)
    await stage.send(id_, "go", 1)
    _, rev, waits = await woken(stage, lane)
    worker, client = await stage.connect(), await stage.connect()
    again = outcome(id_, rev, 3, signals=[row.id for row in waits.awaited()])
    if moment == "before":
        await stage.send(id_, name, 2)
        assert await stage.commit(again) == [id_]
    elif moment == "signal first":
        async with client.transaction():
            await stage.send(id_, name, 2, on=client)
            task = asyncio.create_task(stage.commit(again, on=worker))
            await stage.until_waiting(task, worker)
        assert await task == [id_]
    elif moment == "park first":
        async with worker.transaction():
            assert await stage.commit(again, on=worker) == [id_]
            sent = asyncio.create_task(stage.send(id_, name, 2, on=client))
            await stage.until_waiting(sent, client)
        assert await sent == (True, name == "go")
    else:
        await stage.commit(again)
        assert await stage.row(id_, "status") == (3,), "no spinning on what it was handed"
        await stage.send(id_, name, 2)
    assert await inbox(stage, id_) == [("go", 1), (name, 0)]
    assert await stage.row(id_, "status") == (0 if name == "go" else 3,)
    if name == "go":
        _, _, waits = await woken(stage, lane)
        assert numbers(waits.awaited()) == [1, 2]


async def test_a_signal_that_is_rolled_back_wakes_nobody(stage: Stage) -> None:
    """R10: its park waits for it, and then sleeps."""
    id_, rev, _ = await stage.held()
    worker, client = await stage.connect(), await stage.connect()
    async with client.transaction(force_rollback=True):
        await stage.send(id_, on=client)
        task = asyncio.create_task(stage.commit(outcome(id_, rev, 3), on=worker))
        await stage.until_waiting(task, worker)
    assert await task == [id_]
    assert await stage.row(id_, "status, inbox") == (3, None)


async def test_a_signal_finds_a_park_that_is_rolled_back_as_it_was(stage: Stage) -> None:
    """R10: the row is executing still; its next park sees the signal."""
    id_, rev, _ = await stage.held()
    worker, client = await stage.connect(), await stage.connect()
    async with worker.transaction(force_rollback=True):
        await stage.commit(outcome(id_, rev, 3), on=worker)
        task = asyncio.create_task(stage.send(id_, on=client))
        await stage.until_waiting(task, client)
    assert await task == (True, False)
    assert await stage.row(id_, "status, inbox") == (2, 1)
    await stage.commit(outcome(id_, rev, 3))
    assert await stage.row(id_, "status") == (0,)


async def test_a_park_that_is_refused_changes_nothing_of_the_inbox(stage: Stage) -> None:
    """R3, R13: the outcome of a claim that was lost neither marks nor consumes."""
    id_, rev, _ = await stage.held()
    await stage.send(id_)
    await stage.release((id_, rev))
    ((signal,),) = await stage.ask("SELECT id FROM {schema}.signals")
    for op in (0, 1, 2, 3, 4):
        assert await stage.commit(outcome(id_, rev, op, signals=[signal])) == []
    assert await inbox(stage, id_) == [("go", 0)]


@pytest.mark.parametrize("op", [0, 1, 4])
@pytest.mark.parametrize("raced", [True, False])
async def test_what_comes_while_a_step_runs_is_not_consumed_with_what_it_was_handed(
    stage: Stage, op: int, raced: bool
) -> None:
    """R13: by identity: it stays, also where the commit waited for its transaction."""
    id_, _, lane = await parked(stage)
    await stage.send(id_, payload=1)
    _, rev, waits = await woken(stage, lane)
    ends = outcome(id_, rev, op, signals=[row.id for row in waits.awaited()])
    if raced:
        worker, client = await stage.connect(), await stage.connect()
        async with client.transaction():
            await stage.send(id_, payload=2, on=client)
            task = asyncio.create_task(stage.commit(ends, on=worker))
            await stage.until_waiting(task, worker)
        assert await task == [id_]
    else:
        await stage.send(id_, payload=2)
        assert await stage.commit(ends) == [id_]
    assert await stage.ask("SELECT payload, status FROM {schema}.signals") == [(b"2", 0)]


# The same signal twice ----------------------------------------------------------------------------


@pytest.mark.parametrize("committed", [True, False])
async def test_the_same_signal_from_two_sides_is_one(stage: Stage, committed: bool) -> None:
    """R11: the second waits for the first; where that is rolled back, it is the first."""
    id_, _, _ = await parked(stage)
    one, two = await stage.connect(), await stage.connect()
    async with one.transaction(force_rollback=not committed):
        assert await stage.send(id_, dedup="d", on=one) == (True, True)
        task = asyncio.create_task(stage.send(id_, dedup="d", on=two))
        await stage.until_waiting(task, two)
    assert await task == ((False, False) if committed else (True, True))
    assert await inbox(stage, id_) == [("go", 0)]
    assert await stage.row(id_, "status, inbox") == (0, 1)


@pytest.mark.parametrize("first", ["commit", "signal"])
async def test_a_signal_again_while_the_first_is_consumed(stage: Stage, first: str) -> None:
    """R11: its dedup_key outlives it, in both orders; it wakes nobody."""
    id_, _, lane = await parked(stage)
    await stage.send(id_, dedup="d", payload=1)
    _, rev, waits = await woken(stage, lane)
    worker, client = await stage.connect(), await stage.connect()
    consume = outcome(id_, rev, 1, signals=[row.id for row in waits.awaited()])
    if first == "commit":
        async with worker.transaction():
            assert await stage.commit(consume, on=worker) == [id_]
            task = asyncio.create_task(stage.send(id_, dedup="d", payload=1, on=client))
            await stage.until_waiting(task, client)
        assert await task == (False, False)
    else:
        async with client.transaction():
            assert await stage.send(id_, dedup="d", payload=1, on=client) == (False, False)
            ends = asyncio.create_task(stage.commit(consume, on=worker))
            await stage.until_waiting(ends, worker)
        assert await ends == [id_]
    assert await stage.ask("SELECT status, payload FROM {schema}.signals") == [(2, None)]


# A signal and a timeout ---------------------------------------------------------------------------


async def expired(stage: Stage) -> tuple[int, int]:
    """A row whose await is over by now: its id, its lane."""
    id_, _, lane = await parked(stage, delay=0)
    return id_, lane


async def test_a_signal_that_waits_for_the_timeout_still_counts(stage: Stage) -> None:
    """R10, R14: the timeout wakes it once; the signal is there before the claim, and is what it was woken by."""
    id_, lane = await expired(stage)
    timer, client = await stage.connect(), await stage.connect()
    async with timer.transaction():
        assert (await stage.run("timing/promote", on=timer, batch=10))[0][0] == 1
        task = asyncio.create_task(stage.send(id_, payload=1, on=client))
        await stage.until_waiting(task, client)
    assert (await task) is not None
    _, _, waits = await woken(stage, lane)
    assert numbers(waits.awaited()) == [1]
    assert not waits.timed_out
    assert await stage.claim((lane, 0, 9)) == []


async def test_the_timeout_passes_by_what_a_signal_has(stage: Stage) -> None:
    """R14: it neither waits nor wakes it again."""
    id_, lane = await expired(stage)
    client = await stage.connect()
    async with client.transaction():
        assert await stage.send(id_, payload=1, on=client) == (True, True)
        assert (await stage.run("timing/promote", batch=10))[0][0] == 0
    assert (await stage.run("timing/promote", batch=10))[0][0] == 0
    _, _, waits = await woken(stage, lane)
    assert numbers(waits.awaited()) == [1]
    assert not waits.timed_out


@pytest.mark.parametrize("name", ["go", "other"])
async def test_a_signal_that_waits_for_the_claim_of_a_timeout(stage: Stage, name: str) -> None:
    """R10, R14: the claim has said that it timed out; the signal stays for the next await."""
    id_, lane = await expired(stage)
    await stage.run("timing/promote", batch=10)
    worker, client = await stage.connect(), await stage.connect()
    async with worker.transaction():
        _, rev, waits = await woken(stage, lane, worker)
        assert waits.timed_out
        assert waits.awaited() == []
        task = asyncio.create_task(stage.send(id_, name, on=client))
        await stage.until_waiting(task, client)
    assert await task == (True, False)
    await stage.commit(outcome(id_, rev, 3))
    assert await stage.row(id_, "status") == (0 if name == "go" else 3,)


async def test_a_claim_passes_by_a_row_that_a_signal_wakes_and_takes_it_with_the_signal(stage: Stage) -> None:
    """R10: it never waits, and never has the row without what woke it."""
    id_, _, lane = await parked(stage)
    client = await stage.connect()
    async with client.transaction():
        await stage.send(id_, payload=1, on=client)
        assert await stage.claim((lane, 0, 9)) == []
    _, _, waits = await woken(stage, lane)
    assert numbers(waits.awaited()) == [1]


async def test_a_claim_with_an_old_snapshot_is_told_of_the_signal_that_woke_the_row(stage: Stage) -> None:
    """R10, R14: between its start and the row's turn another worker ran it, parked it, and a signal woke it."""
    lane = await stage.lane()
    first, id_ = await stage.insert({"lane": lane}, {"lane": lane})
    await stage.register(8)
    slow, gate = await stage.connect(), await stage.connect()
    # The slow worker has its snapshot and its first row, and is held up there.
    await stage.ask(
        "CREATE FUNCTION {schema}.wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "PERFORM pg_advisory_xact_lock_shared({lockspace}, 99); RETURN NEW; END $$"
    )
    await stage.ask(
        "CREATE TRIGGER held_up BEFORE UPDATE ON {schema}.instances FOR EACH ROW "
        f"WHEN (OLD.id = {first} AND NEW.worker = 8) EXECUTE FUNCTION {{schema}}.wait()"
    )
    async with gate.transaction():
        await stage.ask("SELECT pg_advisory_xact_lock({lockspace}, 99)", on=gate)
        task = asyncio.create_task(stage.claim((lane, 0, 9), worker=8, on=slow))
        await stage.until_waiting(task, slow)
        ((taken, rev, *_),) = await stage.claim((lane, 0, 9), worker=7)
        assert taken == id_
        await stage.commit(outcome(id_, rev, 3))
        assert await stage.send(id_, payload=1) == (True, True)
    rows = {row[0]: row for row in await task}
    assert rows.keys() == {first, id_}
    waits = msgspec.json.decode(rows[id_][12], type=Waits)
    assert numbers(waits.awaited()) == [1]
    assert not waits.timed_out


# Wake-ups ------------------------------------------------------------------------------------------


async def test_the_wake_up_of_a_signal_rides_on_its_commit(stage: Stage, ear: Connection) -> None:
    """R19: nothing is heard before the row can be claimed, and nothing of what is rolled back."""
    id_, _, lane = await parked(stage)
    client = await stage.connect()
    async with client.transaction(force_rollback=True):
        await stage.send(id_, notify=True, on=client)
    assert await stage.heard(ear) == []
    async with client.transaction():
        await stage.send(id_, notify=True, on=client)
        assert await stage.heard(ear) == []
    assert await stage.heard(ear) == ["q:q"]
    _, _, waits = await woken(stage, lane)
    assert len(waits.awaited()) == 1


async def test_a_park_that_finds_its_signal_there_tells_its_queue(stage: Stage, ear: Connection) -> None:
    """R19: the row is awake at once, and its queue's idle workers hear of it."""
    id_, rev, lane = await stage.held()
    await stage.send(id_)
    rows = await stage.run(
        "committing/commit",
        worker=7,
        outcomes=encode([outcome(id_, rev, 3)]),
        first=encode([id_]),
        wake=[],
    )
    assert (id_, rev + 1, lane) in rows
    assert await stage.heard(ear) == ["q:q"]


# Inboxes without measure --------------------------------------------------------------------------


async def test_an_inbox_too_large_for_one_value_stops_no_claim_and_no_end(stage: Stage) -> None:
    """R10: it is handed over in parts, what is new first; its instance can end, and be claimed beside others."""
    lane = await stage.lane()
    full, other = await stage.insert({"lane": lane}, {"lane": lane})
    await stage.ask(
        "INSERT INTO {schema}.signals (instance_id, sent_at, name, status, payload) "
        "SELECT %s, {clock}, 'go', CASE WHEN n <= 150 THEN 1 ELSE 0 END, to_jsonb(repeat('abcdefgh', 131072)) "
        "FROM generate_series(1, 300) AS n",
        full,
    )
    await stage.ask("UPDATE {schema}.instances SET inbox = 300, awaits = '{go}' WHERE id = %s", full)
    claimed = {row[0]: row for row in await stage.claim((lane, 0, 9))}
    assert claimed.keys() == {full, other}
    handed = msgspec.json.decode(claimed[full][12], type=Waits)
    assert [row.status for row in handed.awaited()] == [0] * len(handed.awaited())
    assert 40 < len(handed.awaited()) < 80
    assert not handed.timed_out
    assert await stage.commit(outcome(full, claimed[full][1], 2, kind=4)) == [full]
    assert await stage.ask("SELECT count(*) FROM {schema}.signals") == [(0,)]
    kept = await stage.value("SELECT jsonb_array_length(inbox) FROM {schema}.finished WHERE id = %s", full)
    assert kept == len(handed.awaited())


# A signal that wakes its row as a claim -------------------------------------------------------------


@pytest.mark.parametrize("moment", ["before", "signal first", "park first", "after"])
async def test_a_signal_that_claims_and_a_park_in_every_order(stage: Stage, moment: str) -> None:
    """R10, R12: it claims what it wakes, and nothing else; the inbox comes with it."""
    id_, rev, lane = await stage.held()
    worker, client = await stage.connect(), await stage.connect()
    park = outcome(id_, rev, 3)
    await stage.send(id_, "other", 0)
    if moment == "before":
        assert await stage.send_for(7, id_, "go", 1) is None
        assert await stage.commit(park) == [id_]
    elif moment == "signal first":
        async with client.transaction():
            assert await stage.send_for(7, id_, "go", 1, on=client) is None
            task = asyncio.create_task(stage.commit(park, on=worker))
            await stage.until_waiting(task, worker)
        assert await task == [id_]
    else:
        if moment == "after":
            await stage.commit(park)
            claim = await stage.send_for(7, id_, "go", 1)
        else:
            async with worker.transaction():
                assert await stage.commit(park, on=worker) == [id_]
                sent = asyncio.create_task(stage.send_for(7, id_, "go", 1, on=client))
                await stage.until_waiting(sent, client)
            claim = await sent
        assert claim is not None
        assert claim[:4] == (id_, rev + 2, lane, "two")
        assert await stage.row(id_, "status, worker, rev, inbox") == (2, 7, rev + 2, 2)
        waits = msgspec.json.decode(claim[12], type=Waits)
        assert numbers(waits.awaited()) == [1]
        assert numbers(waits.signals) == [0, 1]
        assert not waits.timed_out
        assert await stage.claim((lane, 0, 9)) == []
        return
    assert await stage.row(id_, "status, worker") == (0, None)


async def test_two_signals_of_which_each_would_claim(stage: Stage) -> None:
    """R1, R12: one of them has it; the other finds it executing."""
    id_, rev, _ = await parked(stage)
    one, two = await stage.connect(), await stage.connect()
    async with one.transaction():
        assert (await stage.send_for(7, id_, "go", 1, on=one) or [None])[1] == rev + 1
        task = asyncio.create_task(stage.send_for(8, id_, "go", 2, on=two))
        await stage.until_waiting(task, two)
    assert await task is None
    assert await stage.row(id_, "status, worker, rev, inbox") == (2, 7, rev + 1, 2)


async def test_a_claim_that_is_rolled_back_leaves_the_row_waiting(stage: Stage) -> None:
    """R10"""
    id_, rev, _ = await parked(stage)
    client = await stage.connect()
    async with client.transaction(force_rollback=True):
        assert await stage.send_for(7, id_, on=client)
    assert await stage.row(id_, "status, worker, rev, inbox") == (3, None, rev, None)


@pytest.mark.parametrize(
    "why", ["another name", "another lane", "no such worker", "paused", "crashed", "known dedup_key"]
)
async def test_what_a_signal_does_not_claim(stage: Stage, why: str) -> None:
    """R10, R13, R20, R25: where a claim would not get the row, or the signal does not wake it."""
    id_, rev, lane = await parked(stage)
    dedup = None
    if why == "paused":
        await stage.ask("UPDATE {schema}.lanes SET paused = true")
    elif why == "crashed":
        await stage.ask("UPDATE {schema}.instances SET crashes = 1")
    elif why == "known dedup_key":
        dedup = "once"
        await stage.send(id_, "other", dedup=dedup)
    name = "other" if why == "another name" else "go"
    lanes = [lane + 1] if why == "another lane" else None
    assert await stage.send_for(99 if why == "no such worker" else 7, id_, name, lanes=lanes, dedup=dedup) is None
    asleep = why in ("another name", "known dedup_key")
    assert await stage.row(id_, "status, worker, rev") == (3 if asleep else 0, None, rev)
