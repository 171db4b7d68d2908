"""claim, release, mine: who gets which rows, in which order."""

from __future__ import annotations

from typing import Any

from sql_stage import Connection, Stage, outcome

from gen_durable._store.operation import Row


def ids(rows: list[Row]) -> list[int]:
    return [row[0] for row in rows]


async def test_a_lone_lane_is_claimed_by_priority_then_due_time_then_id(stage: Stage) -> None:
    """R17"""
    lane = await stage.lane()
    placed = await stage.insert(
        {"lane": lane, "priority": 1},
        {"lane": lane, "priority": -5, "at": "2020-01-02T00:00:00Z"},
        {"lane": lane, "priority": -5, "at": "2020-01-01T00:00:00Z"},
        {"lane": lane, "priority": -5, "at": "2020-01-01T00:00:00Z"},
        {"lane": lane},
    )
    wanted = [placed[2], placed[3], placed[1], placed[4], placed[0]]
    assert ids(await stage.claim((lane, 0, 3))) == wanted[:3]
    assert ids(await stage.claim((lane, 0, 10))) == wanted[3:]
    assert await stage.claim((lane, 0, 10)) == []


async def test_several_lanes_of_a_queue_are_merged_by_urgency(stage: Stage) -> None:
    """R17: a queue's order does not care which machine a row is of."""
    lanes = [await stage.lane(machine=name) for name in "abc"]
    rows = [
        {"lane": lanes[n % 3], "priority": (n * 7) % 5, "at": f"2020-01-{1 + n % 9:02}T00:00:00Z"} for n in range(30)
    ]
    placed = await stage.insert(*rows)
    order = sorted(range(30), key=lambda n: (rows[n]["priority"], rows[n]["at"], placed[n]))
    wants = [(lane, 0, 7) for lane in lanes]
    taken: list[int] = []
    while batch := await stage.claim(*wants):
        taken.append(len(batch))
        assert set(ids(batch)) == {placed[n] for n in order[: len(batch)]}
        del order[: len(batch)]
    assert taken == [7, 7, 7, 7, 2]


async def test_a_busy_lane_does_not_hide_the_urgent_row_of_another(stage: Stage) -> None:
    """R17"""
    busy, calm = await stage.lane(machine="busy"), await stage.lane(machine="calm")
    await stage.insert(*[{"lane": busy}] * 50)
    (urgent,) = await stage.insert({"lane": calm, "priority": -1})
    got = ids(await stage.claim((busy, 0, 5), (calm, 0, 5)))
    assert len(got) == 5
    assert urgent in got


async def test_several_queues_get_their_own_room_in_one_statement(stage: Stage) -> None:
    a1, a2 = await stage.lane("a", "m1"), await stage.lane("a", "m2")
    b = await stage.lane("b", "m1")
    for lane in (a1, a2, b):
        await stage.insert(*[{"lane": lane}] * 10)
    got = await stage.claim((a1, 0, 4), (a2, 0, 4), (b, 1, 6))
    counts = {lane: sum(row[2] == lane for row in got) for lane in (a1, a2, b)}
    assert counts[a1] + counts[a2] == 4
    assert counts[b] == 6


async def test_a_claim_says_all_that_a_step_needs_and_marks_the_row(stage: Stage) -> None:
    """R4: every claim gets a fresh token."""
    lane = await stage.lane()
    (id_,) = await stage.insert({"lane": lane, "state": {"n": 1}, "key": "k", "priority": 3, "step": "start"})
    (
        (claimed, rev, got_lane, step, state, attempt, crashes, priority, key, due_at, inserted_at, *waits),
    ) = await stage.claim((lane, 0, 1), worker=42)
    assert (claimed, rev, got_lane, step, state) == (id_, 1, lane, "start", b'{"n": 1}')
    assert (attempt, crashes, priority, key) == (0, 0, 3, "k")
    assert due_at == inserted_at
    assert waits == [None] * 5, "parent, what it waited for, gate, own gate, rate"
    assert await stage.row(id_, "status, worker, rev") == (2, 42, 1)


async def test_nothing_but_due_rows_of_known_lanes_is_claimed(stage: Stage) -> None:
    """R9, R17: scheduled, parked, blocked and executing rows, and other lanes, are not looked at."""
    lane, unknown = await stage.lane(), await stage.lane(version=2)
    placed = await stage.insert(*[{"lane": lane}] * 4, {"lane": lane, "delay": 60}, {"lane": unknown})
    for id_, status in zip(placed[:3], (3, 4, 5), strict=True):
        await stage.ask("UPDATE {schema}.instances SET status = %s WHERE id = %s", status, id_)
    assert ids(await stage.claim((lane, 0, 10))) == [placed[3]]
    assert await stage.claim((lane, 0, 10), worker=8) == []
    assert await stage.claim((999_999, 0, 10)) == []


async def test_paused_lanes_are_passed_over_until_they_go_on(stage: Stage) -> None:
    lane, other = await stage.lane("q"), await stage.lane("r")
    await stage.insert({"lane": lane}, {"lane": other})
    await stage.run("queues/pause", queue="q", paused=True)
    got = await stage.claim((lane, 0, 5), (other, 1, 5))
    assert [row[2] for row in got] == [other]
    await stage.run("queues/pause", queue="q", paused=False)
    assert len(await stage.claim((lane, 0, 5))) == 1


async def test_no_room_takes_nothing(stage: Stage) -> None:
    lane = await stage.lane()
    await stage.insert({"lane": lane})
    assert await stage.claim((lane, 0, 0)) == []


async def test_mine_lists_one_workers_claims(stage: Stage) -> None:
    lane = await stage.lane()
    await stage.insert(*[{"lane": lane}] * 3)
    mine = await stage.claim((lane, 0, 2), worker=7)
    await stage.claim((lane, 0, 1), worker=8)
    assert sorted(await stage.run("claiming/mine", worker=7)) == sorted((row[0], row[1]) for row in mine)
    assert await stage.run("claiming/mine", worker=9) == []


async def test_release_gives_back_without_spending_an_attempt_and_tells_the_queue(
    stage: Stage, ear: Connection
) -> None:
    """R26: what a drain hands back is there again at once, as it was, under a new token."""
    lane = await stage.lane("pears")
    (id_,) = await stage.insert({"lane": lane})
    ((_, rev, *_),) = await stage.claim((lane, 0, 1))
    before = await stage.row(id_, "due_at, attempt, crashes, step, state, priority")
    assert await stage.release((id_, rev)) == 1
    assert await stage.row(id_, "due_at, attempt, crashes, step, state, priority") == before
    assert await stage.row(id_, "status, worker, rev") == (0, None, rev + 1)
    assert await stage.heard(ear) == ["q:pears"]


async def test_release_is_fenced(stage: Stage, ear: Connection) -> None:
    """R4: another worker, an older rev, a later rev, an ended row: nothing changes and nobody is woken."""
    lane = await stage.lane()
    (id_,) = await stage.insert({"lane": lane})
    ((_, rev, *_),) = await stage.claim((lane, 0, 1))
    for claim, worker in [((id_, rev), 8), ((id_, rev - 1), 7), ((id_, rev + 1), 7), ((id_ + 1, rev), 7)]:
        assert await stage.release(claim, worker=worker) == 0
    assert await stage.row(id_, "status, worker, rev") == (2, 7, rev)
    assert await stage.release((id_, rev)) == 1
    assert await stage.release((id_, rev)) == 0, "sent twice does no harm"
    ((_, again, *_),) = await stage.claim((lane, 0, 1))
    assert await stage.release((id_, rev)) == 0, "the same worker's older claim"
    assert await stage.commit(outcome(id_, again, 2)) == [id_]
    assert await stage.release((id_, again)) == 0
    assert await stage.heard(ear) == ["q:q"]


async def test_a_claim_passes_by_what_another_transaction_holds(stage: Stage) -> None:
    """Two workers never wait for each other, and a short lane is filled from further back."""
    lane = await stage.lane()
    placed: list[Any] = await stage.insert(*[{"lane": lane}] * 6)
    first = await stage.connect()
    async with first.transaction():
        assert ids(await stage.claim((lane, 0, 3), on=first)) == placed[:3]
        assert ids(await stage.claim((lane, 0, 2), worker=8)) == placed[3:5]


async def test_a_claim_over_several_lanes_may_come_back_short_but_never_twice(stage: Stage) -> None:
    """What was taken while it looked leaves room: the next claim, after the other's commit, fills it."""
    a, b = await stage.lane(machine="a"), await stage.lane(machine="b")
    await stage.insert(*[{"lane": a, "priority": -1}] * 10)
    await stage.insert(*[{"lane": b}] * 10)
    first = await stage.connect()
    async with first.transaction():
        assert len(await stage.claim((a, 0, 6), (b, 0, 6), on=first)) == 6
        short = await stage.claim((a, 0, 6), (b, 0, 6), worker=8)
        assert len(short) == 4
    assert len(await stage.claim((a, 0, 6), (b, 0, 6), worker=8)) == 6


async def test_a_worker_that_is_not_in_the_table_gets_nothing(stage: Stage) -> None:
    """R25: one that was declared dead and has not heard of it yet would only lose the rows again."""
    lane = await stage.lane()
    await stage.insert({"lane": lane})
    await stage.register(7)
    await stage.ask("DELETE FROM {schema}.workers")
    assert await stage.claim((lane, 0, 1), worker=7) == []
    assert len(await stage.claim((lane, 0, 1), worker=8)) == 1


async def test_what_a_claim_has_passed_by_is_left(stage: Stage) -> None:
    """R19: a row that somebody had locked, if only to be told of its end; not those that nobody can claim now."""
    lanes = [await stage.lane(machine=name) for name in "abc"]
    placed = await stage.insert(*[{"lane": lane} for lane in lanes], {"lane": lanes[2], "delay": 60})
    other = await stage.connect()
    async with other.transaction():
        await stage.run("reading/watch", on=other, id=placed[1])
        assert ids(await stage.claim(*[(lane, 0, 10) for lane in lanes])) == [placed[0], placed[2]]
        assert await stage.run("claiming/left", lanes=lanes) == [(lanes[1],)]
        assert await stage.run("claiming/left", lanes=[lanes[0], lanes[2]]) == []
    assert ids(await stage.claim(*[(lane, 0, 10) for lane in lanes])) == [placed[1]]
    assert await stage.run("claiming/left", lanes=lanes) == []


async def test_what_is_put_off_is_told_to_the_timers(stage: Stage, ear: Connection) -> None:
    """R19, R25: all of them: the worker that puts it off may be the next to die."""
    lane = await stage.lane()
    await stage.insert({"lane": lane})
    ((id_, rev, *_),) = await stage.claim((lane, 0, 1))
    await stage.heard(ear)
    claims = f'[{{"id": {id_}, "rev": {rev}}}]'
    ((count, _, seconds),) = await stage.run("claiming/postpone", worker=7, claims=claims, seconds=10.0)
    assert count == 1
    assert 0.9 < seconds <= 10
    assert await stage.heard(ear) == ["t:"]
    assert await stage.run("claiming/postpone", worker=7, claims=claims, seconds=10.0) == [(0, 0, None)]
    assert await stage.heard(ear) == []
