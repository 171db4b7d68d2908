"""Limits: what is brought forward, and what not; races for a slot and for tokens, stepped by hand."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sql_stage import Connection, Stage, encode, outcome

KEY = "caccount:7"


async def limited(stage: Stage, count: int, *, gate: str | None = KEY, **row: Any) -> list[int]:
    """Rows with a limit that have come, and whose line has been knocked at."""
    lane = await stage.lane()
    ids = await stage.insert(*({"lane": lane, "gate": gate} | row for _ in range(count)))
    return [id_ for id_ in ids if id_ is not None]


async def configure(
    stage: Stage, kind: str, name: str, amount: float, per: float | None = None, burst: float = 1
) -> None:
    await stage.ask(
        "INSERT INTO {schema}.limits VALUES (%s, %s, %s, %s, %s, NULL, {clock}) "
        "ON CONFLICT (kind, name) DO UPDATE SET amount = EXCLUDED.amount, per = EXCLUDED.per, burst = EXCLUDED.burst",
        kind, name, amount, per, burst if kind == "rate" else None,
    )  # fmt: skip


async def statuses(stage: Stage) -> dict[int, int]:
    return dict(await stage.ask("SELECT id, status FROM {schema}.instances ORDER BY id"))


async def knocks(stage: Stage) -> list[str]:
    return [row[0] for row in await stage.ask("SELECT DISTINCT line FROM {schema}.knocks ORDER BY 1")]


async def claimed(stage: Stage, count: int = 9, worker: int = 7) -> list[tuple[int, int]]:
    lane = await stage.lane()
    return [(row[0], row[1]) for row in await stage.claim((lane, 0, count), worker=worker)]


# Concurrency ----------------------------------------------------------------------------------------


async def test_of_one_key_one_runs_at_a_time_in_order(stage: Stage) -> None:
    """R21, R22: by priority, then due time, then id; a new row is blocked until somebody has looked."""
    one, two = await limited(stage, 2)
    (urgent,) = await limited(stage, 1, priority=-1)
    assert await statuses(stage) == {one: 5, two: 5, urgent: 5}
    assert await claimed(stage) == []
    first = await stage.admit()
    assert (first.queues, first.wake, await knocks(stage)) == ({"q": 1}, None, [])
    assert first.lines[KEY] == (1, 1, 0, 0)
    assert await statuses(stage) == {one: 5, two: 5, urgent: 0}
    for expected in (urgent, one, two):
        assert (await stage.admit(KEY)).queues == {}
        ((id_, rev),) = await claimed(stage)
        assert id_ == expected
        async with stage.main.transaction():
            await stage.commit(outcome(id_, rev, 2))
            await stage.admit(KEY)
    assert await statuses(stage) == {}


async def test_a_configured_name_lets_more_run_and_partitions_are_apart(stage: Stage) -> None:
    """R21: K is of the name; each partition has its own line."""
    await configure(stage, "concurrency", "stripe", 2)
    a, b = "cstripe\x1fa", "cstripe\x1fb"
    for gate in (a, b):
        await limited(stage, 3, gate=gate)
    assert (await stage.admit()).queues == {"q": 4}
    rows = await stage.ask("SELECT gate, count(*) FROM {schema}.instances WHERE status = 0 GROUP BY 1 ORDER BY 1")
    assert rows == [(a, 2), (b, 2)]
    await configure(stage, "concurrency", "stripe", 3)
    assert (await stage.admit(a, b)).queues == {"q": 2}
    await configure(stage, "concurrency", "stripe", 1)
    assert (await stage.admit(a, b)).lines[a] == (0, 3, -2, None)


async def test_two_who_look_at_the_same_new_line(stage: Stage) -> None:
    """R21: the second waits for the first to make the line, and counts what that has brought forward."""
    ids = await limited(stage, 3)
    one, two = await stage.connect(), await stage.connect()
    async with one.transaction():
        assert (await stage.admit(on=one)).queues == {"q": 1}
        task = asyncio.create_task(stage.admit(KEY, on=two))
        await stage.until_waiting(task, two)
    assert (await task).queues == {}
    assert sorted((await statuses(stage)).values()) == [0, 5, 5]
    assert len(ids) == 3


async def test_a_slot_that_is_freed_while_somebody_else_looks(stage: Stage) -> None:
    """R22: who has the line counted before the slot was free; a knock is left, and the next look brings one forward."""
    one, two = await limited(stage, 2)
    await stage.admit()
    ((id_, rev),) = await claimed(stage)
    looker, worker = await stage.connect(), await stage.connect()
    async with looker.transaction():
        assert (await stage.admit(KEY, on=looker)).queues == {}
        async with worker.transaction():
            await stage.commit(outcome(id_, rev, 2), on=worker)
            found = await stage.admit(KEY, on=worker)
        assert found.queues == {}
        assert found.wake is not None
    assert await knocks(stage) == [KEY]
    assert (await stage.admit()).queues == {"q": 1}
    assert (id_, await statuses(stage)) == (one, {two: 0})


async def test_knocks_of_a_line_that_somebody_looks_at_stay(stage: Stage) -> None:
    """R22: the rows of a call that commits meanwhile are not forgotten."""
    await configure(stage, "concurrency", "account:7", 2)
    await stage.admit(KEY)
    await limited(stage, 1)
    looker = await stage.connect()
    async with looker.transaction():
        assert (await stage.admit(on=looker)).queues == {"q": 1}
        await limited(stage, 1)
        found = await stage.admit()
        assert found.queues == {}
        assert found.wake is not None
        assert await knocks(stage) == [KEY]
    assert (await stage.admit()).queues == {"q": 1}
    assert await knocks(stage) == []


async def test_a_row_that_is_just_being_cancelled_is_passed_by(stage: Stage) -> None:
    """R22: the next one gets the slot; when the cancel is rolled back, the row is looked at again by itself."""
    await configure(stage, "concurrency", "account:7", 2)
    one, two = await limited(stage, 2)
    other = await stage.connect()
    async with other.transaction(force_rollback=True):
        assert await stage.cancel(one, on=other) == [one]
        found = await stage.admit()
        assert found.queues == {"q": 1}
        assert await statuses(stage) == {one: 5, two: 0}
        assert found.wake is not None
    await stage.ask("UPDATE {schema}.lines SET wake_at = {clock} - interval '1 s'")
    assert (await stage.admit()).queues == {"q": 1}
    assert await statuses(stage) == {one: 0, two: 0}


async def test_what_fits_is_a_claim_at_once_where_a_worker_keeps_places(stage: Stage) -> None:
    """R9, R20: as many as there are places for, in lanes that the worker has and that are not paused."""
    await configure(stage, "concurrency", "account:7", 5)
    await stage.register(7)
    ids = await limited(stage, 4)
    lane = await stage.lane()
    found = await stage.admit(worker=7, places=[(lane, 0, 2)])
    assert [row[0] for row in found.claims] == ids[:2]
    assert [row[13:] for row in found.claims] == [(KEY, None, None)] * 2
    assert found.queues == {"q": 2}
    assert list((await statuses(stage)).values()) == [2, 2, 0, 0]
    ((rev, worker),) = {
        tuple(row) for row in await stage.ask("SELECT rev, worker FROM {schema}.instances WHERE status = 2")
    }
    assert (rev, worker) == (1, 7)
    await limited(stage, 1)
    assert (await stage.admit(worker=99, places=[(lane, 0, 2)])).queues == {"q": 1}
    await stage.ask("DELETE FROM {schema}.instances")
    await limited(stage, 1)
    await stage.ask("UPDATE {schema}.lanes SET paused = true")
    assert (await stage.admit(worker=7, places=[(lane, 0, 2)])).queues == {}


# How slots come free, and how rows come to a line ------------------------------------------------------


async def free_by_cancel(stage: Stage, id_: int, rev: int) -> None:
    await stage.cancel(id_)


async def free_by_reap(stage: Stage, id_: int, rev: int) -> None:
    await stage.ask("DELETE FROM {schema}.workers")
    assert (await stage.reap(worker=0))[0] == 1


async def free_by_second_reap(stage: Stage, id_: int, rev: int) -> None:
    await stage.ask("UPDATE {schema}.instances SET crashes = 1 WHERE id = %s", id_)
    await free_by_reap(stage, id_, rev)


async def free_by_postponement(stage: Stage, id_: int, rev: int) -> None:
    claims = encode([{"id": id_, "rev": rev}])
    await stage.run("claiming/postpone", worker=7, claims=claims, seconds=60.0)


FREES = [free_by_cancel, free_by_reap, free_by_second_reap, free_by_postponement]


@pytest.mark.parametrize("free", FREES)
async def test_a_slot_comes_back_with_its_holder(stage: Stage, free: Any) -> None:
    """R23: whatever takes the claim away leaves a knock in the same transaction; nothing is counted but rows."""
    one, two = await limited(stage, 2)
    await stage.admit()
    ((id_, rev),) = await claimed(stage)
    await free(stage, id_, rev)
    assert await knocks(stage) == [KEY]
    await stage.admit()
    held = await stage.ask("SELECT id FROM {schema}.instances WHERE status IN (0, 2)")
    assert held == [(one if free is free_by_reap else two,)]


async def test_a_claim_that_goes_back_unstarted_keeps_its_slot(stage: Stage) -> None:
    """R21"""
    one, two = await limited(stage, 2)
    await stage.admit()
    ((id_, rev),) = await claimed(stage)
    await stage.release((id_, rev))
    assert (await stage.admit(KEY)).queues == {}
    assert await statuses(stage) == {one: 0, two: 5}


async def test_parked_and_sleeping_rows_hold_nothing_and_come_back_to_the_line(stage: Stage) -> None:
    """Section 10: released while parked; awake again they wait like any other."""
    one, two = await limited(stage, 2)
    await stage.admit()
    ((_, rev),) = await claimed(stage)
    async with stage.main.transaction():
        await stage.commit(outcome(one, rev, 3))
        assert (await stage.admit(KEY)).queues == {"q": 1}
    assert await stage.send(one) == (True, True)
    assert await statuses(stage) == {one: 5, two: 0}
    assert await knocks(stage) == [KEY]
    await stage.admit()
    ((id_, rev),) = await claimed(stage)
    async with stage.main.transaction():
        await stage.commit(outcome(id_, rev, 1, delay=3600.0))
        assert (await stage.admit(KEY)).queues == {"q": 1}
    assert (id_, await statuses(stage)) == (two, {one: 0, two: 1})
    await stage.ask("UPDATE {schema}.instances SET due_at = {clock} WHERE id = %s", two)
    ((promoted, _, _, look, _),) = await stage.run("timing/promote", batch=10)
    assert (promoted, look) == (1, 0)
    assert await statuses(stage) == {one: 0, two: 5}


async def test_a_step_with_another_key_gives_up_the_slot_and_waits_in_the_other_line(stage: Stage) -> None:
    """Section 10: the key is of the step that runs next."""
    one, two = await limited(stage, 2)
    (other,) = await limited(stage, 1, gate="cother")
    await stage.admit()
    claims = dict(await claimed(stage))
    assert set(claims) == {one, other}
    async with stage.main.transaction():
        await stage.commit(outcome(one, claims[one], 1, limits=True, gate="cother", kind=1))
        await stage.admit(KEY)
    assert await knocks(stage) == ["cother"]
    assert (await stage.admit()).queues == {}
    assert await statuses(stage) == {one: 5, two: 0, other: 2}
    async with stage.main.transaction():
        await stage.commit(outcome(other, claims[other], 0, limits=True))
        await stage.admit("cother")
    assert await statuses(stage) == {one: 0, two: 0, other: 2}


# Rates ----------------------------------------------------------------------------------------------


async def later(stage: Stage, seconds: float) -> None:
    """The clock goes on; where it is the database's, as if the buckets had been filled for so much longer."""
    if stage.seconds is not None:
        stage.seconds += seconds
        return
    await stage.ask("UPDATE {schema}.lines SET filled_at = filled_at - make_interval(secs => %s)", seconds)


async def started(stage: Stage, on: Connection | None = None) -> int:
    """Claims what is runnable and ends it: how many there were."""
    lane = await stage.lane()
    rows = await stage.claim((lane, 0, 999), on=on)
    await stage.commit(*(outcome(row[0], row[1], 2) for row in rows), on=on)
    return len(rows)


async def test_a_bucket_starts_full_and_fills_at_its_pace(stage: Stage) -> None:
    """R21: never more than rate x window + burst; and the line says when the next one fits."""
    stage.seconds = 0.0
    await configure(stage, "rate", "api", 10, per=1.0, burst=5)
    await limited(stage, 20, gate=None, rate="rapi")
    first = await stage.admit()
    assert first.queues == {"q": 5}
    assert first.wake == pytest.approx(0.1, abs=0.05)
    assert await started(stage) == 5
    await stage.admit("rapi")
    await later(stage, 0.3)
    assert (await stage.admit("rapi")).queues == {"q": 3}
    assert await started(stage) == 3
    await stage.admit("rapi")
    await later(stage, 3600)
    await stage.admit("rapi")
    assert await started(stage) == 5, "it never holds more than its burst"


async def test_tokens_of_rows_that_nobody_claims_do_not_pile_up(stage: Stage) -> None:
    """R21: else they would all start at once when a worker comes."""
    stage.seconds = 0.0
    await configure(stage, "rate", "api", 10, per=1.0, burst=5)
    await limited(stage, 20, gate=None, rate="rapi")
    await stage.admit()
    for _ in range(3):
        await later(stage, 3600)
        assert (await stage.admit("rapi")).queues == {}
    assert await started(stage) == 5


async def test_rows_that_were_claimed_late_leave_no_full_bucket_behind(stage: Stage) -> None:
    """R21: the bucket fills from their claim on, not while they could have been claimed; else twice its burst starts at
    once. And it does fill from then on."""
    stage.seconds = 0.0
    await configure(stage, "rate", "api", 10, per=1.0, burst=5)
    await limited(stage, 5, gate=None, rate="rapi")
    assert (await stage.admit()).wake == pytest.approx(0.2, abs=0.05), "it is looked at when they may be claimed"
    await later(stage, 3600)
    assert await started(stage) == 5
    await limited(stage, 9, gate=None, rate="rapi")
    assert (await stage.admit()).queues == {"q": 2}, "what came in a quarter of a second"
    assert await started(stage) == 2
    await later(stage, 0.3)
    assert (await stage.admit("rapi")).queues == {"q": 3}
    assert await started(stage) == 3
    await later(stage, 0.01)
    await stage.admit("rapi")
    await later(stage, 3600)
    assert (await stage.admit("rapi")).queues == {"q": 4}


async def test_a_small_bucket_loses_nothing_by_claims_between_two_looks(stage: Stage) -> None:
    """R22: one token, one more each second, and a look whenever the line says so: one starts each second."""
    stage.seconds = 0.0
    await configure(stage, "rate", "api", 1, per=1.0, burst=1)
    await limited(stage, 9, gate=None, rate="rapi")
    await stage.admit()
    starts = await started(stage)
    while stage.seconds < 5.05:
        wake = (await stage.admit("rapi")).wake
        starts += await started(stage)
        await later(stage, 0.2 if wake is None else max(wake, 0.01))
    assert starts == 6


async def test_a_heavy_row_is_not_passed_by_lighter_ones(stage: Stage) -> None:
    """R22: the most urgent prefix that fits; the next one is waited for."""
    stage.seconds = 0.0
    await configure(stage, "rate", "api", 10, per=1.0, burst=5)
    light = await limited(stage, 2, gate=None, rate="rapi")
    (heavy,) = await limited(stage, 1, gate=None, rate="rapi", weight=5)
    behind = await limited(stage, 2, gate=None, rate="rapi")
    first = await stage.admit()
    assert first.queues == {"q": 2}
    assert first.wake == pytest.approx(0.2, abs=0.05)
    assert await started(stage) == 2
    await later(stage, 0.1)
    assert (await stage.admit("rapi")).queues == {}
    await later(stage, 0.2)
    assert (await stage.admit("rapi")).queues == {"q": 1}
    assert [id_ for id_, status in (await statuses(stage)).items() if status == 0] == [heavy]
    assert set(await statuses(stage)) == {heavy, *behind}
    assert light


async def test_a_row_that_outweighs_a_lowered_burst_starts_with_a_full_bucket(stage: Stage) -> None:
    """R24: never a silent stall."""
    await configure(stage, "rate", "api", 10, per=1.0, burst=9)
    await limited(stage, 1, gate=None, rate="rapi", weight=9)
    await configure(stage, "rate", "api", 10, per=1.0, burst=3)
    assert (await stage.admit()).queues == {"q": 1}


# Both -----------------------------------------------------------------------------------------------


async def test_a_row_with_both_takes_neither_while_one_refuses(stage: Stage) -> None:
    """Section 10: while it waits for tokens the slot is others'; while it waits for the slot no tokens are spent."""
    await configure(stage, "rate", "api", 1, per=3600.0, burst=1)
    (drain,) = await limited(stage, 1, gate=None, rate="rapi")
    await stage.admit()
    (both,) = await limited(stage, 1, rate="rapi")
    await stage.admit()
    await stage.admit()
    assert (await stage.row(both, "status, line"), await knocks(stage)) == ((5, "rapi"), [])
    (plain,) = await limited(stage, 1)
    assert (await stage.admit()).queues == {"q": 1}, "the slot was free"
    assert await statuses(stage) == {drain: 0, both: 5, plain: 0}
    claims = dict(await claimed(stage))
    await stage.commit(outcome(drain, claims[drain], 2))
    await stage.admit("rapi")
    await later(stage, 3600)
    assert (await stage.admit("rapi")).queues == {}
    assert await stage.row(both, "status, line") == (5, KEY)
    tokens = await stage.value("SELECT tokens FROM {schema}.lines WHERE line = 'rapi'")
    assert tokens == pytest.approx(1.0, abs=0.01)
    async with stage.main.transaction():
        await stage.commit(outcome(plain, claims[plain], 2))
        await stage.admit(KEY)
    assert (await stage.admit()).queues == {"q": 1}
    assert await stage.row(both, "status, line") == (0, KEY)


async def test_a_slot_is_taken_between_its_two_looks(stage: Stage) -> None:
    """R21: a row that comes to its tokens finds its key's line locked, or full, and goes back."""
    await configure(stage, "rate", "api", 10, per=1.0, burst=5)
    (both,) = await limited(stage, 1, rate="rapi")
    await stage.admit(KEY)
    assert await stage.row(both, "status, line") == (5, "rapi")
    await limited(stage, 1)
    other = await stage.connect()
    async with other.transaction():
        assert (await stage.admit(KEY, on=other)).queues == {"q": 1}
        assert (await stage.admit("rapi")).queues == {}
        assert await stage.row(both, "status, line") == (5, KEY)
    for _ in range(3):
        assert (await stage.admit()).queues == {}
    assert await stage.row(both, "status, line") == (5, KEY)


# Lines come and go ----------------------------------------------------------------------------------


async def test_a_line_that_nobody_uses_is_forgotten(stage: Stage) -> None:
    """R23: not while rows wait or hold, nor a bucket that is not full; a line that was forgotten is made again."""
    await configure(stage, "rate", "api", 1, per=10.0, burst=1)
    ids = await limited(stage, 2)
    await limited(stage, 1, gate=None, rate="rapi")
    await stage.admit()

    async def forget() -> list[str]:
        await stage.ask("UPDATE {schema}.lines SET made_at = made_at - interval '1 hour'")
        await stage.run("limiting/forget", after="", batch=100)
        return [row[0] for row in await stage.ask("SELECT line FROM {schema}.lines ORDER BY 1")]

    assert await forget() == [KEY, "rapi"]
    for id_, rev in await claimed(stage):
        await stage.commit(outcome(id_, rev, 2))
    await stage.admit("rapi")
    assert await forget() == [KEY, "rapi"], "one waits; the bucket is empty"
    await stage.cancel(ids[1])
    await later(stage, 20)
    assert await forget() == []
    await limited(stage, 1)
    assert (await stage.admit()).queues == {"q": 1}


# Paused queues --------------------------------------------------------------------------------------


async def two_queues(stage: Stage) -> tuple[int, int, int, int]:
    """A row of each of two queues under one key, that of the first before the other's; their lanes."""
    quiet, busy = await stage.lane("quiet"), await stage.lane("busy")
    first, second = await stage.insert({"lane": quiet, "gate": KEY}, {"lane": busy, "gate": KEY})
    assert first is not None
    assert second is not None
    return first, second, quiet, busy


async def pause(stage: Stage, queue: str, paused: bool = True) -> None:
    await stage.run("queues/pause", queue=queue, paused=paused)
    await stage.run("limiting/pause", queue=queue, paused=paused)


async def test_a_row_in_a_paused_queue_takes_no_slot(stage: Stage) -> None:
    """Section 10: it takes none of its limits while its queue refuses; resumed, it has its turn again."""
    first, second, _, busy = await two_queues(stage)
    await pause(stage, "quiet")
    assert (await stage.admit()).queues == {"busy": 1}
    found = await stage.admit(KEY)
    assert (found.queues, found.wake) == ({}, None)
    ((id_, rev),) = [(row[0], row[1]) for row in await stage.claim((busy, 0, 9))]
    assert id_ == second
    async with stage.main.transaction():
        await stage.commit(outcome(id_, rev, 2))
        found = await stage.admit(KEY)
    assert (found.queues, found.wake, await knocks(stage)) == ({}, None, []), "nobody looks for what can't go on"
    await pause(stage, "quiet", False)
    assert await knocks(stage) == [KEY]
    assert (await stage.admit()).queues == {"quiet": 1}
    assert await statuses(stage) == {first: 0}


@pytest.mark.parametrize("claimed", [False, True])
async def test_a_slot_in_a_queue_that_is_paused_goes_to_another(stage: Stage, claimed: bool) -> None:
    """Section 10: one that nobody has claimed at once, a claim when it goes back unstarted; one that runs keeps it."""
    first, second, quiet, _ = await two_queues(stage)
    assert (await stage.admit()).queues == {"quiet": 1}
    rows = await stage.claim((quiet, 0, 9)) if claimed else []
    await pause(stage, "quiet")
    if claimed:
        assert (await stage.admit(KEY)).queues == {}
        await stage.release((rows[0][0], rows[0][1]))
    assert await statuses(stage) == {first: 5, second: 5}
    assert await knocks(stage) == [KEY]
    assert (await stage.admit()).queues == {"busy": 1}
    assert await statuses(stage) == {first: 5, second: 0}


async def test_tokens_are_not_spent_on_a_paused_queue(stage: Stage) -> None:
    """Section 10: nor does its row hold up those behind it."""
    await configure(stage, "rate", "api", 1, per=3600.0, burst=1)
    quiet, busy = await stage.lane("quiet"), await stage.lane("busy")
    first, second = await stage.insert({"lane": quiet, "rate": "rapi"}, {"lane": busy, "rate": "rapi"})
    await pause(stage, "quiet")
    assert (await stage.admit()).queues == {"busy": 1}
    assert await statuses(stage) == {first: 5, second: 0}
