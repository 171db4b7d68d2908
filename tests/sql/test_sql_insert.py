"""insert, holders, promote, lanes, pause, wake: what comes in, and when it becomes due."""

from __future__ import annotations

from typing import Any

import msgspec
import psycopg
import pytest
from sql_stage import Connection, Stage, encode, outcome

from gen_durable._store.connection import set_up
from gen_durable._store.inserting import Born, LaneKey, NewInstance, PlainInstance, ensure_lanes, insert_all
from gen_durable._store.operation import drive


async def test_a_row_is_stored_as_given(stage: Stage) -> None:
    lane = await stage.lane()
    (id_,) = await stage.insert(
        {"lane": lane, "step": "s", "state": {"a": [1, None, "é"]}, "key": "k", "priority": -32768}
    )
    assert await stage.row(id_, "status, worker, rev, attempt, crashes, step, state, key, priority, lane, error") == (
        0, None, 0, 0, 0, "s", '{"a": [1, null, "é"]}'.encode(), "k", -32768, lane, None,
    )  # fmt: skip


async def test_when_a_row_is_due(stage: Stage) -> None:
    """R6: a delay counts from the database's clock; what is due already is runnable at once."""
    lane = await stage.lane()
    placed = await stage.insert(
        {"lane": lane},
        {"lane": lane, "delay": 0},
        {"lane": lane, "delay": 90},
        {"lane": lane, "at": "2020-01-01T00:00:00+02:00"},
        {"lane": lane, "at": "2999-01-01T00:00:00Z"},
    )
    text = "SELECT status, extract(epoch FROM due_at - inserted_at)::float8 FROM {schema}.instances ORDER BY id"
    (now, none, later, past, future) = await stage.ask(text)
    assert now == none == (0, 0.0)
    assert later == (1, 90.0)
    assert past[0] == 0
    assert future[0] == 1
    assert await stage.value("SELECT due_at = '2019-12-31 22:00+00' FROM {schema}.instances WHERE id = %s", placed[3])


@pytest.mark.parametrize("steady", [True, False])
async def test_ids_follow_the_list_over_any_number_of_lanes(stage: Stage, connect: Any, steady: bool) -> None:
    """R17: rows of one call are equally old, so their ids say who is first; also on the client's connections."""
    rows = [{"queue": "q", "machine": f"m{n:03}", "version": 1, "retention": 86400.0} for n in range(300)]
    lanes = [row[3] for row in await stage.run("queues/lanes", lanes=encode(rows))]
    await stage.ask("ANALYZE {schema}.lanes")
    client: Connection = await connect()
    await set_up(client, steady=steady)
    wanted = [{"lane": lanes[(n * 37) % 300]} for n in range(150)]
    for keyed in (False, True):
        given = [row | {"key": f"{(n * 7919) % 1000:04}"} if keyed else row for n, row in enumerate(wanted)]
        placed = await stage.insert(*given, on=client)
        assert placed == sorted(placed)


async def test_a_key_is_given_once_among_the_living(stage: Stage) -> None:
    """R16: in one call, in two, and again after the end."""
    lane = await stage.lane()
    first, none, other = await stage.insert({"lane": lane, "key": "a"}, {"lane": lane, "key": "a"}, {"lane": lane})
    assert none is None
    assert other is not None
    again, free, fresh = await stage.insert({"lane": lane, "key": "a"}, {"lane": lane}, {"lane": lane, "key": "A"})
    assert again is None
    assert free is not None
    assert fresh is not None
    assert await stage.run("inserting/holders", keys=encode(["a", "b", "A"])) == [("a", first, 0), ("A", fresh, 0)]
    rows = await stage.claim((lane, 0, 9))
    revs = {row[0]: row[1] for row in rows}
    assert await stage.insert({"lane": lane, "key": "a"}) == [None], "executing"
    await stage.commit(outcome(first, revs[first], 2))
    ((reborn,),) = [await stage.insert({"lane": lane, "key": "a"})]
    assert reborn is not None


async def test_an_unknown_lane_is_missing_from_the_answer(stage: Stage) -> None:
    lane = await stage.lane()
    rows = encode([{"lane": lane, "step": "s", "state": {}}, {"lane": 999, "step": "s", "state": {}}])
    answer = await stage.run("inserting/insert", rows=rows, notify=True, soon=1.0, worker=None)
    assert [row[0] for row in answer] == [1]
    with pytest.raises(LookupError, match="lane"):
        await drive(insert_all(stage.sql, [NewInstance(999, "s", msgspec.Raw(b"{}"))]), by_hand(stage))


async def test_a_row_that_is_refused_leaves_the_call_undone(stage: Stage) -> None:
    lane = await stage.lane()
    for bad in ({"priority": 40_000}, {"at": "never"}, {"delay": 1e300}):
        with pytest.raises(psycopg.DataError):
            await stage.insert({"lane": lane}, {"lane": lane} | bad)
    assert await stage.ask("SELECT FROM {schema}.instances") == []


async def test_rows_that_are_born_claimed(stage: Stage, ear: Connection) -> None:
    """R19: those that are due now, under rev 0; nobody is told of them, nobody claims them, and they commit."""
    lane = await stage.lane()
    await stage.register(7)
    rows = [{"step": "one", "state": {}, "lane": lane} | more for more in BIRTHS]
    answer = await stage.run("inserting/insert", rows=encode(rows), notify=True, soon=1.0, worker=7)
    facts = [await stage.row(row[1], "status, worker, rev") if row[1] else None for row in sorted(answer)]
    assert facts == [(2, 7, 0), (2, 7, 0), (2, 7, 0), None, (1, None, 0), (0, None, 0), (1, None, 0)]
    for _, id_, told, born_at in answer:
        assert told == 1
        if id_ is not None:
            due = await stage.row(id_, "due_at, inserted_at, status")
            assert due is not None
            assert born_at == (due[0] if due[2] == 2 else None)
            assert born_at in (None, due[1])
    assert await stage.heard(ear) == ["q:q"], "of the row whose time had passed"
    assert len(await stage.claim((lane, 0, 9))) == 1
    ids = {row[0]: row[1] for row in answer}
    assert await stage.commit(outcome(ids[1], 0, 0), outcome(ids[2], 0, 2), outcome(ids[3], 1, 2)) == [ids[1], ids[2]]
    assert [entry[0] for entry in await stage.history(ids[1])] == [1]
    assert await stage.release((ids[3], 0)) == 1


BIRTHS: list[dict[str, Any]] = [
    {},
    {"delay": 0.0},
    {"key": "k"},
    {"key": "k"},
    {"delay": 60.0},
    {"at": "2020-01-01T00:00:00Z"},
    {"at": "2999-01-01T00:00:00Z"},
]


async def test_rows_are_not_born_claimed_where_no_claim_would_get_them(stage: Stage, ear: Connection) -> None:
    """R20, R25: a paused queue, a worker that is not in the table; others are told of these rows."""
    q, paused = await stage.lane("q"), await stage.lane("p")
    await stage.run("queues/pause", queue="p", paused=True)
    await stage.heard(ear)
    await stage.register(7)
    for worker, expected in ((7, {q: (2, 7), paused: (0, None)}), (8, {q: (0, None), paused: (0, None)})):
        placed = await stage.insert({"lane": q}, {"lane": paused}, worker=worker, notify=True)
        found = [await stage.row(id_, "lane, status, worker") for id_ in placed if id_ is not None]
        assert {row[0]: row[1:] for row in found if row is not None} == expected
        assert sorted(await stage.heard(ear)) == (["q:p"] if worker == 7 else ["q:p", "q:q"])


async def test_a_row_that_was_born_to_a_dead_worker_comes_back(stage: Stage) -> None:
    """R25: as any claim of it does."""
    lane = await stage.lane()
    await stage.register(7, seen=60.0)
    (id_,) = await stage.insert({"lane": lane}, worker=7)
    assert id_ is not None
    assert await stage.reap(lease=0.003) == (1, [7])
    assert await stage.row(id_, "status, worker, rev, attempt, crashes") == (0, None, 1, 1, 1)
    assert await stage.commit(outcome(id_, 0, 2)) == [], "its old owner is fenced"


async def test_who_is_told_of_an_insert(stage: Stage, ear: Connection) -> None:
    """R19: each queue with due rows once; timers when something is due before they look by themselves."""
    q, r = await stage.lane("q"), await stage.lane("r")
    q2 = await stage.lane("q", "other")
    await stage.insert(*[{"lane": q}] * 3, {"lane": q2}, {"lane": r}, notify=True)
    assert sorted(await stage.heard(ear)) == ["q:q", "q:r"]
    await stage.insert({"lane": q, "delay": 4}, notify=True, soon=5.0)
    assert await stage.heard(ear) == ["t:"]
    await stage.insert({"lane": q, "delay": 6}, notify=True, soon=5.0)
    assert await stage.heard(ear) == []
    await stage.insert({"lane": q, "key": "k"}, notify=False)
    assert await stage.heard(ear) == []
    await stage.insert({"lane": q, "key": "k"}, notify=True)
    assert await stage.heard(ear) == [], "a duplicate is no news"


async def test_a_wake_up_rides_on_the_transaction(stage: Stage, ear: Connection) -> None:
    """R19: nobody is told of a row that was rolled back."""
    lane = await stage.lane()
    writer = await stage.connect()
    async with writer.transaction(force_rollback=True):
        await stage.insert({"lane": lane}, notify=True, on=writer)
    assert await stage.heard(ear) == []


async def test_wake_sends_what_it_is_given(stage: Stage, ear: Connection) -> None:
    assert len(await stage.run("queues/wake", messages=["l:", "q:" + "x" * 512])) == 2
    assert await stage.heard(ear) == ["l:", "q:" + "x" * 512]


# Promoting ----------------------------------------------------------------------------------------


async def test_promote_brings_due_rows_forward_in_order_and_says_when_to_come_again(
    stage: Stage, ear: Connection
) -> None:
    """R14, R19"""
    q, r = await stage.lane("q"), await stage.lane("r")
    placed = await stage.insert(*[{"lane": q, "delay": 100 + n} for n in range(4)], {"lane": r, "delay": 50})
    ((count, told, until, *_),) = await stage.run("timing/promote", batch=10)
    assert (count, told) == (0, 0)
    assert 40 < until <= 50
    await stage.ask("UPDATE {schema}.instances SET due_at = due_at - interval '102.5 s'")
    ((count, _, until, *_),) = await stage.run("timing/promote", batch=2)
    assert count == 2
    assert 0 < until <= 0.5
    assert await stage.row(placed[4], "status") == (0,)
    assert await stage.row(placed[0], "status") == (0,)
    assert await stage.row(placed[1], "status") == (1,)
    assert sorted(await stage.heard(ear)) == ["q:q", "q:r"]
    ((count, *_),) = await stage.run("timing/promote", batch=10)
    assert count == 2
    assert await stage.heard(ear) == ["q:q"]
    assert await stage.row(placed[0], "rev, attempt, due_at > {clock}") == (0, 0, False)


async def test_promote_says_so_when_nothing_is_scheduled(stage: Stage) -> None:
    assert await stage.run("timing/promote", batch=10) == [(0, 0, None, None, False)]


async def test_two_promoters_do_not_wait_for_each_other(stage: Stage) -> None:
    lane = await stage.lane()
    await stage.insert(*[{"lane": lane, "delay": 1}] * 4)
    await stage.ask("UPDATE {schema}.instances SET due_at = due_at - interval '1 h'")
    other = await stage.connect()
    async with other.transaction():
        assert (await stage.run("timing/promote", batch=3, on=other))[0][0] == 3
        assert (await stage.run("timing/promote", batch=3))[0][0] == 1


async def test_promote_says_whether_it_has_passed_rows_by(stage: Stage) -> None:
    """R19: one that somebody has locked while its time came is nobody's to tell of."""
    lane = await stage.lane()
    placed = await stage.insert(*[{"lane": lane, "delay": 1}] * 2)
    await stage.ask("UPDATE {schema}.instances SET due_at = due_at - interval '1 h'")
    other = await stage.connect()
    async with other.transaction():
        await stage.run("reading/watch", on=other, id=placed[0])
        assert (await stage.run("timing/promote", batch=10))[0] == (1, 1, None, None, True)
        assert (await stage.run("timing/promote", batch=10))[0] == (0, 0, None, None, True)
    assert (await stage.run("timing/promote", batch=10))[0] == (1, 1, None, None, False)


# Lanes and queues ---------------------------------------------------------------------------------


async def test_lanes_are_made_once_and_keep_their_numbers(stage: Stage) -> None:
    wanted = {LaneKey("q", "m", 1): 60.0, LaneKey("q", "m", 2): None, LaneKey("r", "m", 1): 60.0}

    async def go(keeps: dict[LaneKey, float | None]) -> dict[LaneKey, int]:
        return await drive(
            ensure_lanes(stage.sql, keeps),
            lambda request: stage.run(
                request.statement.name, **dict(zip(request.statement.parameters, request.parameters, strict=True))
            ),
        )

    first = await go(wanted)
    assert len(set(first.values())) == 3
    assert await go(wanted) == first
    assert await stage.run("queues/names") == [("q", False), ("r", False)]
    changed = wanted | {LaneKey("q", "m", 1): 90.0, LaneKey("s", "m", 1): 1.0}
    second = await go(changed)
    assert {key: second[key] for key in first} == first
    kept = dict(await stage.ask("SELECT id, retention FROM {schema}.lanes"))
    assert kept == {second[key]: keep for key, keep in changed.items()}
    known = await stage.run("queues/known", queues=["q", "nowhere"])
    mark = f"{max(second.values())}"
    assert known == [
        ("q", "m", 1, first[LaneKey("q", "m", 1)], False, False, mark),
        ("q", "m", 2, first[LaneKey("q", "m", 2)], False, False, mark),
    ]
    await stage.run("queues/pause", queue="r", paused=True)
    (other,) = {row[-1] for row in await stage.run("queues/known", queues=["q"])}
    assert other.startswith(f"{mark}:"), "who hears nothing sees it by the mark"


async def test_a_lane_that_comes_to_a_paused_queue_is_paused(stage: Stage, ear: Connection) -> None:
    old = await stage.lane("q", "old")
    await stage.run("queues/pause", queue="q", paused=True)
    assert await stage.heard(ear) == ["l:q"]
    new = await stage.lane("q", "new")
    other = await stage.lane("r", "new")
    paused = dict(await stage.ask("SELECT id, paused FROM {schema}.lanes"))
    assert paused == {old: True, new: True, other: False}
    assert await stage.ask("SELECT name, paused, paused_at IS NULL FROM {schema}.queues ORDER BY 1") == [
        ("q", True, False),
        ("r", False, True),
    ]
    await stage.run("queues/pause", queue="q", paused=False)
    assert await stage.ask("SELECT FROM {schema}.lanes WHERE paused") == []
    assert await stage.value("SELECT paused_at FROM {schema}.queues WHERE name = 'q'") is None


async def test_a_queue_can_be_paused_before_it_has_lanes(stage: Stage) -> None:
    await stage.run("queues/pause", queue="new", paused=True)
    lane = await stage.lane("new")
    await stage.insert({"lane": lane})
    assert await stage.claim((lane, 0, 1)) == []


# Rows that differ only in their states --------------------------------------------------------------


def plain(lane: int, *states: Any, **more: Any) -> dict[str, Any]:
    given = {"states": encode(states), "lane": lane, "step": "one", "priority": 3, "notify": True, "worker": None}
    return given | {"parent_id": None, "parent_spawn": None} | more


async def make(stage: Stage, queue: str) -> None:
    """Makes the queue ``q`` paused or capped."""
    if queue == "paused":
        await stage.run("queues/pause", queue="q", paused=True)
    elif queue == "capped":
        await stage.ask("INSERT INTO {schema}.limits (kind, name, amount, changed_at) VALUES ('queue', 'q', 5, now())")


@pytest.mark.parametrize("parent", [(None, None), (5, 2)])
@pytest.mark.parametrize("worker", [None, 7, 8], ids=["no worker", "a worker", "one that is not there"])
@pytest.mark.parametrize("queue", ["open", "paused", "capped"])
async def test_plain_comes_to_the_same_as_insert(
    stage: Stage, ear: Connection, queue: str, worker: int | None, parent: tuple[int | None, int | None]
) -> None:
    """R17, R19, R20, R25: whichever statement it is, the rows are the same, and who is told of them."""
    lane = await stage.lane()
    await stage.register(7)
    await make(stage, queue)
    await stage.heard(ear)
    states = [{"a": [1, None, "\u00e9", 1.5e300]}, {}, {"b": {"c": "\\"}}]
    rows = [
        {"lane": lane, "step": "one", "state": state, "priority": 3, "parent_id": parent[0], "parent_spawn": parent[1]}
        for state in states
    ]
    slow = await stage.run("inserting/insert", rows=encode(rows), notify=True, soon=5.0, worker=worker)
    heard = await stage.heard(ear)
    quick = await stage.run(
        "inserting/plain",
        **plain(lane, *states, worker=worker, parent_id=parent[0], parent_spawn=parent[1]),
    )
    assert await stage.heard(ear) == heard
    query = (
        "SELECT to_jsonb(i) - ARRAY['id', 'due_at', 'inserted_at', 'updated_at'] "
        "|| jsonb_build_object('same', due_at = inserted_at AND inserted_at = updated_at) "
        "FROM {schema}.instances i WHERE id = ANY (%s) ORDER BY id"
    )
    one = await stage.ask(query, sorted(row[1] for row in slow))
    two = await stage.ask(query, [row[0] for row in quick])
    assert two == one
    assert len(two) == 3
    assert [row[1:] for row in quick] == [(told, at and quick[0][2]) for _, _, told, at in slow]
    assert {at for _, _, at in quick} <= {None, await stage.value("SELECT max(due_at) FROM {schema}.instances")}


@pytest.mark.parametrize("worker", [None, 7, 8], ids=["no worker", "a worker", "one that is not there"])
@pytest.mark.parametrize("queue", ["open", "paused", "capped"])
async def test_one_comes_to_the_same_as_plain(stage: Stage, ear: Connection, queue: str, worker: int | None) -> None:
    """R17, R19, R25: the same row, or none where it would not be a claim."""
    lane = await stage.lane()
    await stage.register(7)
    await make(stage, queue)
    await stage.heard(ear)
    state = {"a": [1, None, "\u00e9", 1.5e300], "b": {"c": "\\"}}
    ((known, _, at),) = await stage.run("inserting/plain", **plain(lane, state, notify=False, worker=worker))
    given = {"lane": lane, "step": "one", "priority": 3, "state": encode(state)}
    if worker is None:
        answer = await stage.run("inserting/one", **given)
        new, born = answer[0][0], None
    else:
        answer = await stage.run("inserting/one_born", **given, worker=worker)
        assert bool(answer) is (at is not None)
        if not answer:
            assert await stage.value("SELECT count(*) FROM {schema}.instances") == 1
            return
        ((new, born),) = answer
    assert await stage.heard(ear) == []
    query = (
        "SELECT to_jsonb(i) - ARRAY['id', 'due_at', 'inserted_at', 'updated_at'] "
        "|| jsonb_build_object('same', due_at = inserted_at AND inserted_at = updated_at) "
        "FROM {schema}.instances i WHERE id = %s"
    )
    assert await stage.ask(query, new) == await stage.ask(query, known)
    assert born == (None if at is None else (await stage.row(new, "due_at"))[0])


@pytest.mark.parametrize("steady", [True, False])
async def test_plain_answers_in_the_order_of_its_list(stage: Stage, connect: Any, steady: bool) -> None:
    """R17: the ids are those of the states at the same places, on any session."""
    lanes = [await stage.lane(f"q{n}") for n in range(40)]
    await stage.ask("ANALYZE {schema}.lanes")
    client: Connection = await connect()
    await set_up(client, steady=steady)
    answer = await stage.run("inserting/plain", on=client, **plain(lanes[7], *[{"n": n} for n in range(2000)]))
    ids = [row[0] for row in answer]
    assert ids == sorted(set(ids))
    found = await stage.ask("SELECT state->>'n' FROM {schema}.instances ORDER BY id")
    assert [row[0] for row in found] == [str(n) for n in range(2000)]


@pytest.mark.parametrize("notify", [True, False])
async def test_plain_of_an_unknown_lane_inserts_nothing(stage: Stage, notify: bool) -> None:
    assert await stage.run("inserting/plain", **plain(999, {})) == []
    rows: list[NewInstance] = [PlainInstance(999, "s", msgspec.Raw(b"{}"))]
    with pytest.raises(LookupError, match="lane"):
        await drive(insert_all(stage.sql, rows, notify=notify), by_hand(stage))
    assert await stage.ask("SELECT FROM {schema}.instances") == []


async def test_which_statement_inserts(stage: Stage) -> None:
    """Only rows that are alike in all but their states go the short way; each answer belongs to its row."""
    one, two = await stage.lane("q"), await stage.lane("r")
    used: list[str] = []

    def row(lane: int, number: int, kind: type[NewInstance] = PlainInstance, **more: Any) -> NewInstance:
        return kind(lane, "s", msgspec.Raw(b"%d" % number), **more)

    short, full = ["inserting/plain"], ["inserting/insert"]
    for rows, expected in [
        ([row(one, 1), row(one, 2)], short),
        ([row(one, 3, parent_id=1, parent_spawn=1), row(one, 4, parent_id=1, parent_spawn=1)], short),
        ([row(one, 5), row(two, 6)], full),
        ([row(one, 7), row(one, 8, NewInstance, priority=1)], full),
        ([row(one, 9, parent_id=1, parent_spawn=1), row(one, 10, parent_id=2, parent_spawn=1)], full),
        ([row(one, 11, parent_id=1, parent_spawn=1), row(one, 12, parent_id=1, parent_spawn=2)], full),
        ([], []),
    ]:
        used.clear()
        answer = await drive(insert_all(stage.sql, rows), by_hand(stage, used))
        assert used == expected
        for given, place in zip(rows, answer.placed, strict=True):
            columns = "state, lane, priority, parent_id, parent_spawn"
            wanted = (bytes(given.state), given.lane, given.priority, given.parent_id, given.parent_spawn)
            assert await stage.row(place.id, columns) == wanted


class Kept:
    """A worker's promise of a place."""

    worker = 7

    def __init__(self) -> None:
        self.rows: list[Born] = []

    def born(self, rows: list[Born]) -> None:
        self.rows += rows


@pytest.mark.parametrize("paused", [False, True])
async def test_which_statement_inserts_one(stage: Stage, paused: bool) -> None:
    """The shortest that will do: it tells nobody, and makes a claim or nothing."""
    lane = await stage.lane("q")
    await stage.register(7)
    if paused:
        await stage.run("queues/pause", queue="q", paused=True)
    single, born, many = "inserting/one", "inserting/one_born", "inserting/plain"
    child = {"parent_id": 5, "parent_spawn": 1}
    for notify, kept, more, expected in [
        (True, None, {}, [many]),
        (False, None, {}, [single]),
        (False, None, child, [many]),
        (False, Kept(), {}, [born, many] if paused else [born]),
        (True, Kept(), {}, [born, many] if paused else [born]),
        (True, Kept(), child, [many]),
    ]:
        used: list[str] = []
        row = PlainInstance(lane, "s", msgspec.Raw(b'{"n":1}'), **more)
        answer = await drive(insert_all(stage.sql, [row], notify=notify, birth=kept), by_hand(stage, used))
        assert used == expected
        ((new, duplicate),) = answer.placed
        assert not duplicate
        claim = kept is not None and not paused
        assert [(found.id, found.row) for found in kept.rows] == [(new, row)] * claim if kept else True
        columns = "status, worker, due_at, state"
        status, worker, due_at, state = await stage.row(new, columns)
        assert (status, worker, state) == ((2, 7) if claim else (0, None)) + (b'{"n": 1}',)
        assert not claim or kept is None or kept.rows[0].at == due_at


def by_hand(stage: Stage, used: list[str] | None = None) -> Any:
    def run(request: Any) -> Any:
        if used is not None:
            used.append(request.statement.name)
        named = dict(zip(request.statement.parameters, request.parameters, strict=True))
        return stage.run(request.statement.name, **named)

    return run
