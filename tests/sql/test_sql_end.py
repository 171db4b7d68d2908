"""The statement for outcomes that only end instances: the same as the general one, and slots that are handed on."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, NamedTuple

import msgspec
import pytest
from sql_stage import Connection, Stage, encode, outcome

from gen_durable._store.operation import Row

KEY = "caccount:7"


class Ended(NamedTuple):
    """What ``end.sql`` answered: the ids that ended, the claims, the queues in which rows are runnable now."""

    ids: list[int]
    claims: list[tuple[int, int]]
    queues: list[str]


async def end(
    stage: Stage,
    *outcomes: dict[str, Any],
    places: list[tuple[int, int, int]] | None = None,
    worker: int = 7,
    report: bool = False,
    on: Connection | None = None,
) -> Ended:
    pools = None if places is None else encode([{"lane": lane, "pool": p, "room": room} for lane, p, room in places])
    rows = await stage.run(
        "committing/end",
        on=on,
        worker=worker,
        outcomes=encode(sorted(outcomes, key=lambda one: one["id"])),
        pools=pools,
        most=1000,
        report=report,
    )
    (done,) = (row for row in rows if row[0] == "done")
    return Ended(
        [] if done[1] is None else sorted(id_ for id_, _ in msgspec.json.decode(done[1])),
        [(row[6], row[7]) for row in rows if row[0] == "claim"],
        [row[1] for row in rows if row[0] == "queue"],
    )


async def limited(stage: Stage, count: int, *, gate: str = KEY, on: Connection | None = None, **row: Any) -> list[int]:
    lane = row.pop("lane", None) or await stage.lane()
    ids = await stage.insert(*({"lane": lane, "gate": gate} | row for _ in range(count)), on=on)
    return [id_ for id_ in ids if id_ is not None]


async def holders(stage: Stage, count: int = 1, *, gate: str = KEY, worker: int = 7) -> list[tuple[int, int]]:
    """Rows that hold the key, claimed by the worker: their ids and revs."""
    await limited(stage, count, gate=gate)
    await stage.admit()
    return [(row[0], row[1]) for row in await stage.claim((await stage.lane(), 0, count), worker=worker)]


async def allow(stage: Stage, amount: int, *, lowered: bool = False) -> None:
    await stage.ask(
        "INSERT INTO {schema}.limits (kind, name, amount, changed_at, lowered) "
        "VALUES ('concurrency', 'account:7', %s, {clock}, %s) "
        "ON CONFLICT (kind, name) DO UPDATE SET amount = EXCLUDED.amount, lowered = EXCLUDED.lowered",
        amount, lowered,
    )  # fmt: skip


async def holding(stage: Stage) -> int:
    count: int = await stage.value("SELECT count(*) FROM {schema}.instances WHERE gate = %s AND status IN (0, 2)", KEY)
    return count


async def status(stage: Stage, id_: int) -> int | None:
    row = await stage.row(id_, "status")
    return row[0] if row else None


# The same as the general statement -----------------------------------------------------------------

ENDS: list[dict[str, Any]] = [
    {},
    {"result": {"a": [1, None]}, "state": {"n": 2}},
    {"kind": 4, "error": {"type": "Stop", "message": "no"}, "tried": 3, "ran": "two"},
    {"kind": 5, "error": {"type": "Cancel", "message": "no"}, "keep": None},
    {"history": 0, "keep": 60.0},
]


async def terminal(stage: Stage, id_: int) -> Row:
    columns = "rev, bucket::text, lane, worker, attempt, crashes, status, priority, step, key, state, result, "
    columns += "error, took, scope, parent_id, spawn, awaits, jsonb_array_length(inbox), gate, own_gate, rate, weight, "
    columns += "CASE WHEN isfinite(expires_at) THEN expires_at - finished_at END"
    ((*row,),) = await stage.ask(f"SELECT {columns} FROM {{schema}}.finished WHERE id = %s", id_)
    return tuple(row)


@pytest.mark.parametrize("fields", ENDS, ids=lambda fields: "-".join(fields) or "done")
async def test_it_leaves_the_same_rows_as_the_general_statement(stage: Stage, fields: dict[str, Any]) -> None:
    """R1, R3: the terminal row with all that it holds, the inbox, the history, a key that stays taken."""
    found = []
    for number, ending in enumerate((end, partial(Stage.commit, general=True), Stage.commit)):
        id_, rev, _ = await stage.held(priority=3, key=f"order:{number}", scope=1 << 6 | 1 << 7)
        await stage.send(id_, "other", {"n": 1})
        await ending(stage, outcome(id_, rev, 2) | fields)
        row = await terminal(stage, id_)
        stub = await stage.row(id_, "status, step, scope")
        found.append((row[:9], row[10:], stub, [step[1:] for step in await stage.history(id_)]))
        assert await stage.value("SELECT count(*) FROM {schema}.signals WHERE instance_id = %s", id_) == 0
    assert found[0] == found[1] == found[2]


async def test_a_lost_claim_ends_nothing(stage: Stage) -> None:
    """R4: neither under an old rev nor for another worker."""
    id_, rev, _ = await stage.held()
    assert (await end(stage, outcome(id_, rev - 1, 2))).ids == []
    assert (await end(stage, outcome(id_, rev, 2), worker=8)).ids == []
    assert await status(stage, id_) == 2
    assert (await end(stage, outcome(id_, rev, 2))).ids == [id_]
    assert (await end(stage, outcome(id_, rev, 2))).ids == []


async def test_who_waits_for_the_end_is_told_at_the_commit(stage: Stage) -> None:
    """R19."""
    id_, rev, _ = await stage.held()
    await stage.run("reading/watch", id=id_)
    hearer = await stage.connect()
    await stage.run("queues/listen", on=hearer)
    await end(stage, outcome(id_, rev, 2))
    assert [notice.payload async for notice in hearer.notifies(timeout=5, stop_after=1)] == [f"e:{id_}"]


# Slots that are handed on ---------------------------------------------------------------------------


async def test_the_next_of_the_line_gets_the_slot(stage: Stage) -> None:
    """R21, R22: by priority, then due time, then id; as a claim with a token of its own; one for one."""
    lane = await stage.lane()
    ((first, rev),) = await holders(stage)
    one, two = await limited(stage, 2)
    (urgent,) = await limited(stage, 1, priority=-1)
    order = []
    for _ in range(4):
        found = await end(stage, outcome(first, rev, 2), places=[(lane, 0, 5)])
        assert found.ids == [first]
        if found.claims:
            ((first, rev),) = found.claims
            assert await stage.row(first, "status, worker, rev") == (2, 7, rev)
            assert await holding(stage) == 1
            order.append(first)
    assert order == [urgent, one, two]


async def test_a_lost_claim_hands_nothing_on(stage: Stage) -> None:
    """R4, R21: whoever has the row now holds the slot."""
    lane = await stage.lane()
    ((first, rev),) = await holders(stage)
    (waiting,) = await limited(stage, 1)
    assert await end(stage, outcome(first, rev - 1, 2), places=[(lane, 0, 5)]) == ([], [], [])
    assert (await status(stage, first), await status(stage, waiting)) == (2, 5)


async def test_a_slot_goes_through_the_count_where_a_limit_was_lowered(stage: Stage) -> None:
    """R21: of three holders two are too many: their ends let nobody in, the third's does."""
    lane = await stage.lane()
    await allow(stage, 3)
    held = await holders(stage, 3)
    await limited(stage, 2)
    await allow(stage, 1, lowered=True)
    counts = []
    for id_, rev in held:
        found = await end(stage, outcome(id_, rev, 2), places=[(lane, 0, 5)])
        counts.append((len(found.claims), await holding(stage)))
    assert counts == [(0, 2), (0, 1), (1, 1)]


async def test_setting_a_lower_limit_says_so(stage: Stage) -> None:
    """R21: by a call, by a configuration, by taking it away; a higher one does not."""

    async def lowered() -> bool:
        value: bool = await stage.value("SELECT lowered FROM {schema}.limits WHERE name = 'account:7'")
        return value

    async def set_(amount: int) -> None:
        await stage.run("limiting/set", kind="concurrency", name="account:7", amount=amount, per=None, burst=None)

    await set_(2)
    await set_(3)
    assert not await lowered()
    await set_(2)
    assert await lowered()
    await set_(9)
    assert await lowered(), "who has come in before may still be there"
    for change in ("seed", "unset"):
        await stage.ask("UPDATE {schema}.limits SET lowered = false")
        if change == "seed":
            listed = [{"kind": "concurrency", "name": "account:7", "amount": 4}]
            await stage.run("limiting/seed", limits=encode(listed))
        else:
            await stage.run("limiting/unset", kind="concurrency", name="account:7")
        assert await lowered(), change


@pytest.mark.parametrize("why", ["rate", "crashed", "unknown lane", "paused", "no place", "reported"])
async def test_what_can_not_follow_at_once_is_left_to_the_look(stage: Stage, why: str) -> None:
    """R9, R22: nobody is passed by, and the same statement looks at the line."""
    await stage.register(7)
    lane = await stage.lane()
    ((first, rev),) = await holders(stage)
    other = await stage.lane(machine="other")
    (waiting,) = await limited(stage, 1, lane=other if why == "unknown lane" else lane)
    behind = await limited(stage, 1)
    if why == "rate":
        await stage.ask("UPDATE {schema}.instances SET rate = 'rapi' WHERE id = %s", waiting)
        await stage.ask(
            "INSERT INTO {schema}.limits (kind, name, amount, per, burst, changed_at) "
            "VALUES ('rate', 'api', 5, 1, 5, {clock})"
        )
    elif why == "crashed":
        await stage.ask("UPDATE {schema}.instances SET crashes = 1 WHERE id = %s", waiting)
    elif why == "paused":
        await stage.ask("UPDATE {schema}.lanes SET paused = true")
    places = [(lane, 0, 0 if why == "no place" else 5)]
    found = await end(stage, outcome(first, rev, 2), places=places, report=why == "reported")
    assert found.ids == [first]
    line = await stage.value("SELECT line FROM {schema}.instances WHERE id = %s", waiting)
    if why == "rate":
        assert line == "rapi", "it waits for its tokens, and holds no slot"
        assert await stage.value("SELECT count(*) FROM {schema}.knocks WHERE line = 'rapi'") == 1
    elif why == "paused":
        assert (await status(stage, waiting), await holding(stage)) == (5, 0)
    elif why == "reported":
        assert found.claims == [(waiting, 1)]
    else:
        assert (found.claims, await status(stage, waiting)) == ([], 0)
        assert found.queues == ["q"]
    assert await holding(stage) <= 1
    assert await status(stage, behind[0]) == 5


async def test_of_several_ends_each_frees_its_own_lines_slot(stage: Stage) -> None:
    """R21: two lines in one group, one of two slots; the worker's places are not passed."""
    lane = await stage.lane()
    await allow(stage, 2)
    held = await holders(stage, 2)
    other = await holders(stage, 1, gate="cx")
    waiting = await limited(stage, 3)
    (last,) = await limited(stage, 1, gate="cx", priority=9)
    ends = [outcome(id_, rev, 2) for id_, rev in held + other]
    found = await end(stage, *ends, places=[(lane, 0, 2)])
    assert sorted(id_ for id_, _ in found.claims) == waiting[:2], "the most urgent of all lines"
    assert (await status(stage, last), await status(stage, waiting[2])) == (0, 5)
    assert found.queues == ["q"]


# Races ----------------------------------------------------------------------------------------------


async def test_a_row_that_comes_while_the_holder_ends_is_not_forgotten(stage: Stage) -> None:
    """R22: the end began before the row was there, and the look that the row asked for saw the slot held."""
    lane = await stage.lane()
    ((first, rev),) = await holders(stage)
    gate, worker = await stage.connect(), await stage.connect()
    async with gate.transaction():
        await stage.ask("SELECT FROM {schema}.instances WHERE id = %s FOR UPDATE", first, on=gate)
        ending = asyncio.create_task(end(stage, outcome(first, rev, 2), places=[(lane, 0, 5)], on=worker))
        await stage.until_waiting(ending, worker)
        (late,) = await limited(stage, 1)
        assert (await stage.admit()).queues == {}
        assert await stage.value("SELECT count(*) FROM {schema}.knocks") == 0
    assert (await ending).claims == [(late, 1)]


async def test_who_looks_at_the_line_meanwhile_makes_the_end_leave_a_knock(stage: Stage) -> None:
    """R22: the look has counted the holder, and holds the line when the end comes to look for what it did not see."""
    lane = await stage.lane()
    ((first, rev),) = await holders(stage)
    gate, worker, looker = await stage.connect(), await stage.connect(), await stage.connect()
    async with looker.transaction():
        async with gate.transaction():
            await stage.ask("SELECT FROM {schema}.instances WHERE id = %s FOR UPDATE", first, on=gate)
            ending = asyncio.create_task(end(stage, outcome(first, rev, 2), places=[(lane, 0, 5)], on=worker))
            await stage.until_waiting(ending, worker)
            (late,) = await limited(stage, 1)
            assert (await stage.admit(on=looker)).queues == {}
        assert (await ending).claims == []
    assert await stage.ask("SELECT line FROM {schema}.knocks") == [(KEY,)]
    assert (await stage.admit()).queues == {"q": 1}
    assert await status(stage, late) == 0


async def test_a_look_and_an_end_never_give_one_slot_twice(stage: Stage) -> None:
    """R21: of two slots one is free. The look takes that one, the end hands its own on: in either order of commits."""
    lane = await stage.lane()
    looker, worker = await stage.connect(), await stage.connect()
    for look_first in (True, False):
        await stage.ask("DELETE FROM {schema}.instances")
        await stage.ask("DELETE FROM {schema}.knocks")
        await allow(stage, 1)
        ((first, rev),) = await holders(stage)
        ids = await limited(stage, 3)
        await allow(stage, 2)
        async with looker.transaction(), worker.transaction():
            if look_first:
                assert (await stage.admit(KEY, on=looker)).queues == {"q": 1}
            found = await end(stage, outcome(first, rev, 2), places=[(lane, 0, 5)], on=worker)
            assert [id_ for id_, _ in found.claims] == [ids[1] if look_first else ids[0]]
            if not look_first:
                assert (await stage.admit(KEY, on=looker)).queues == {"q": 1}
        assert await holding(stage) == 2
        assert (await stage.admit(KEY)).queues == {}


async def test_two_ends_of_one_line_at_once(stage: Stage) -> None:
    """R21: each hands on its own slot, to another row; the one that finds none left looks, and finds none."""
    lane = await stage.lane()
    await allow(stage, 2)
    (one, rev), (two, other_rev) = await holders(stage, 2)
    (waiting,) = await limited(stage, 1)
    first, second = await stage.connect(), await stage.connect()
    async with first.transaction():
        found = await end(stage, outcome(one, rev, 2), places=[(lane, 0, 5)], on=first)
        assert [id_ for id_, _ in found.claims] == [waiting]
        found = await end(stage, outcome(two, other_rev, 2), places=[(lane, 0, 5)], on=second)
        assert (found.ids, found.claims) == ([two], [])
    assert await holding(stage) == 1


async def test_a_row_that_is_just_being_cancelled_does_not_get_the_slot(stage: Stage) -> None:
    """R22, R23: the one behind it does; when the cancel is rolled back it keeps its place in the line."""
    lane = await stage.lane()
    ((first, rev),) = await holders(stage)
    one, two = await limited(stage, 2)
    other = await stage.connect()
    async with other.transaction(force_rollback=True):
        assert await stage.cancel(one, on=other) == [one]
        found = await end(stage, outcome(first, rev, 2), places=[(lane, 0, 5)])
        assert [id_ for id_, _ in found.claims] == [two]
    assert (await status(stage, one), await holding(stage)) == (5, 1)


async def test_an_end_that_is_rolled_back_hands_nothing_on(stage: Stage) -> None:
    """R21, R23."""
    lane = await stage.lane()
    ((first, rev),) = await holders(stage)
    (waiting,) = await limited(stage, 1)
    async with stage.main.transaction(force_rollback=True):
        assert (await end(stage, outcome(first, rev, 2), places=[(lane, 0, 5)])).claims
    assert (await status(stage, first), await status(stage, waiting)) == (2, 5)
