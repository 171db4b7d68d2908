"""commit and locate: what becomes of a claimed row, with its history, behind the fence."""

from __future__ import annotations

import datetime as dt
from typing import Any

import psycopg
import pytest
from sql_stage import Connection, Stage, encode, outcome

DAY = 86400.0


async def test_a_row_that_goes_on_stays_claimed_with_its_new_step_and_state(stage: Stage) -> None:
    """R1: the new step and state are in the row, under a new token, with a clean slate of attempts."""
    id_, rev, _ = await stage.held()
    await stage.ask("UPDATE {schema}.instances SET attempt = 3, crashes = 2, error = '[]' WHERE id = %s", id_)
    assert await stage.commit(outcome(id_, rev, 0, state={"n": 2}, tried=3)) == [id_]
    assert await stage.row(id_, "status, worker, rev, attempt, crashes, step, state, error") == (
        2, 7, rev + 1, 0, 0, "two", b'{"n": 2}', None,
    )  # fmt: skip
    assert await stage.commit(outcome(id_, rev + 1, 0, step="three", ran="two")) == [id_]
    assert await stage.row(id_, "step, state, rev") == ("three", b'{"n": 2}', rev + 2)
    assert await stage.history(id_) == [
        (rev + 1, 0, "one", 3, 0.25, 7, None, None),
        (rev + 2, 0, "two", 0, 0.25, 7, None, None),
    ]


async def test_a_row_that_goes_back_is_due_at_once_or_later(stage: Stage) -> None:
    """R6: the delay counts from the database's clock."""
    lane = await stage.lane()
    other = await stage.lane("other")
    now_id, later_id = await stage.insert(*[{"lane": lane, "state": {"n": 1}, "delay": 0}] * 2)
    revs = {row[0]: row[1] for row in await stage.claim((lane, 0, 2))}
    problem = {"type": "E", "message": "m"}
    back = outcome(now_id, revs[now_id], 1, attempt=4, crashes=1, kind=1, tried=3, error=problem)
    later = outcome(later_id, revs[later_id], 1, delay=60, lane=other, priority=-9, step="two", state={"n": 3}, kind=0)
    assert await stage.commit(back, later) == sorted([now_id, later_id])
    columns = "status, worker, rev, attempt, crashes, step, state, lane, priority, error IS NULL"
    assert await stage.row(now_id, columns) == (0, None, revs[now_id] + 1, 4, 1, "one", b'{"n": 1}', lane, 0, False)
    assert await stage.row(later_id, columns) == (
        1,
        None,
        revs[later_id] + 1,
        0,
        0,
        "two",
        b'{"n": 3}',
        other,
        -9,
        True,
    )
    ((passed, ahead),) = await stage.ask(
        "SELECT (SELECT {clock} - due_at < '5 s' FROM {schema}.instances WHERE id = %s),"
        " (SELECT due_at - {clock} BETWEEN '50 s' AND '60 s' FROM {schema}.instances WHERE id = %s)",
        now_id,
        later_id,
    )
    assert passed
    assert ahead
    history = await stage.ask("SELECT instance_id, outcome, attempt, error FROM {schema}.transitions ORDER BY 1")
    assert history == [(now_id, 1, 3, encode_pg(problem)), (later_id, 0, 0, None)]


def encode_pg(value: dict[str, str]) -> bytes:
    """As jsonb writes it."""
    return (
        encode(dict(sorted(value.items(), key=lambda item: (len(item[0]), item[0]))))
        .replace(":", ": ")
        .replace(",", ", ")
        .encode()
    )


async def test_a_row_that_ends_moves_to_the_finished_ones_in_the_same_transaction(stage: Stage) -> None:
    """R3: its end, its result and its history come together, and it is nowhere twice."""
    id_, rev, lane = await stage.held(key="k", priority=4)
    ended = outcome(id_, rev, 2, state={"n": 9}, result=[1, 2], tried=2, keep=DAY)
    assert await stage.commit(ended) == [id_]
    assert await stage.row(id_) is None
    columns = "id, rev, lane, worker, attempt, crashes, status, priority, step, key, state, result, error"
    assert await stage.ask(f"SELECT {columns} FROM {{schema}}.finished") == [
        (id_, rev + 1, lane, 7, 2, 0, 6, 4, "one", "k", b'{"n": 9}', b"[1, 2]", None)
    ]
    assert await stage.history(id_) == [(rev + 1, 3, "one", 2, 0.25, 7, None, None)]
    assert await stage.commit(ended) == [], "sent twice, it is refused"
    assert await stage.value("SELECT count(*) FROM {schema}.all_instances") == 1


@pytest.mark.parametrize(
    ("keep", "bucketed"),
    [(0.0, False), (3600.0, False), (DAY, True), (31 * DAY, True), (31 * DAY + 1, False), (None, False)],
)
async def test_a_terminal_row_goes_where_its_retention_is_served(
    stage: Stage, keep: float | None, bucketed: bool
) -> None:
    """A day to a month: dropped with its day's partition; the rest is swept, or stays for ever."""
    id_, rev, _ = await stage.held()
    await stage.run("pruning/ensure")
    await stage.commit(outcome(id_, rev, 2, keep=keep))
    ((kept, bucket, expires, finished),) = await stage.ask(
        "SELECT tableoid::regclass::text, bucket::text, expires_at::text, finished_at FROM {schema}.finished"
    )
    if keep is None:
        assert expires == "infinity"
    else:
        due = finished + dt.timedelta(seconds=keep)
        assert await stage.value("SELECT expires_at = %s FROM {schema}.finished", due)
        if bucketed:
            assert bucket == due.astimezone(dt.UTC).date().isoformat()
    if not bucketed:
        assert bucket == "infinity"
        assert kept.endswith("finished_swept")
    elif keep == DAY:  # the only retention that a lane has: its partition was made
        assert kept.endswith(bucket.replace("-", ""))
    else:
        assert kept.endswith("finished_default")


async def test_every_fence_holds(stage: Stage) -> None:
    """R4: another worker, an older token (its own too), a later one, no claim at all: nothing changes."""
    id_, old, lane = await stage.held()
    assert await stage.release((id_, old)) == 1
    assert await stage.commit(outcome(id_, old, 2)) == [], "no claim"
    ((_, rev, *_),) = await stage.claim((lane, 0, 1), worker=7)
    before = await stage.row(id_, "instances::text")
    for kind in (0, 1, 2):
        for worker, token in [(7, old), (8, rev), (7, rev + 1), (7, rev - 1), (8, old)]:
            assert await stage.commit(outcome(id_, token, kind, state={"bad": 1}), worker=worker) == []
    assert await stage.row(id_, "instances::text") == before
    assert await stage.history(id_) == []
    assert await stage.ask("SELECT FROM {schema}.finished") == []
    assert await stage.commit(outcome(id_, rev, 2)) == [id_]


async def test_a_stale_outcome_does_not_keep_the_others_of_its_batch(stage: Stage, ear: Connection) -> None:
    lane = await stage.lane()
    await stage.insert(*[{"lane": lane}] * 6)
    rows = await stage.claim((lane, 0, 6))
    batch = [outcome(row[0], row[1] - (n % 2), n // 2) for n, row in enumerate(rows)]
    assert await stage.commit(*batch, wake=["q"]) == [rows[0][0], rows[2][0], rows[4][0]]
    assert [len(await stage.history(row[0])) for row in rows] == [1, 0, 1, 0, 1, 0]
    assert await stage.heard(ear) == ["q:q"]


@pytest.mark.parametrize(("level", "noted"), [(0, []), (1, [None]), (2, [b'{"n": 5}'])])
async def test_history_is_as_detailed_as_asked(stage: Stage, level: int, noted: list[Any]) -> None:
    for kind in (0, 1, 2):
        id_, rev, _ = await stage.held()
        await stage.commit(outcome(id_, rev, kind, history=level, state={"n": 5}))
        assert [row[-1] for row in await stage.history(id_)] == noted
        await stage.ask("DELETE FROM {schema}.instances")


async def test_one_row_that_postgres_refuses_leaves_the_batch_undone(stage: Stage) -> None:
    """The flusher splits such a batch: it counts on all or nothing."""
    lane = await stage.lane()
    await stage.insert(*[{"lane": lane}] * 2)
    (one, two) = await stage.claim((lane, 0, 2))
    poison = outcome(two[0], two[1], 0)
    text = encode([outcome(one[0], one[1], 2), poison | {"state": "@"}]).replace('"@"', '"a\\u0000b"')
    with pytest.raises(psycopg.DataError):
        await stage.run("committing/commit", worker=7, outcomes=text, first="[]", wake=[])
    assert await stage.row(one[0], "status, rev") == (2, one[1])
    assert await stage.ask("SELECT FROM {schema}.finished") == []
    assert await stage.commit(outcome(one[0], one[1], 2)) == [one[0]]


@pytest.mark.parametrize(("kind", "status"), [(3, 6), (4, 7), (5, 8)])
@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("error", [None, {"type": "E"}])
async def test_every_end_is_in_the_history_once(
    stage: Stage, kind: int, status: int, level: int, error: dict[str, str] | None
) -> None:
    """The terminal row speaks for it where it can, else a row of the history does."""
    id_, rev, _ = await stage.held(state={"n": 1})
    await stage.commit(outcome(id_, rev, 2, kind=kind, error=error, history=level, tried=4))
    kept = None if error is None else b'{"type": "E"}'
    state = b'{"n": 1}' if level == 2 else None
    assert await stage.history(id_) == ([(rev + 1, kind, "one", 4, 0.25, 7, kept, state)] if level else [])
    shown = None if kind == 3 else kept
    assert await stage.ask("SELECT status, error FROM {schema}.finished") == [(status, shown)]


async def test_what_an_outcome_leaves_out_has_a_sane_meaning(stage: Stage) -> None:
    """The shortest record ends a job."""
    id_, rev, _ = await stage.held(step="run", state={"n": 1})
    rows = await stage.run(
        "committing/commit", worker=7, outcomes=encode([{"id": id_, "rev": rev}]), first="[]", wake=[]
    )
    assert rows == [(id_, rev + 1, None)]
    columns = "status, step, attempt, state, result, error, expires_at::text"
    assert await stage.ask(f"SELECT {columns} FROM {{schema}}.finished") == [
        (6, "run", 0, b'{"n": 1}', None, None, "infinity")
    ]


async def test_a_commit_wakes_the_queues_that_it_is_told_to(stage: Stage, ear: Connection) -> None:
    id_, rev, _ = await stage.held()
    await stage.commit(outcome(id_, rev, 1), wake=["q", "with:colon"])
    assert sorted(await stage.heard(ear)) == ["q:q", "q:with:colon"]


async def test_going_on_changes_no_index(stage: Stage) -> None:
    """The update of a run-ahead commit is a heap-only one."""
    id_, rev, _ = await stage.held()
    await stage.ask("SELECT pg_stat_force_next_flush()")
    before = await stage.value(HOT)
    for n in range(20):
        assert await stage.commit(outcome(id_, rev + n, 0, state={"n": n})) == [id_]
    await stage.ask("SELECT pg_stat_force_next_flush()")
    assert await stage.value(HOT) - before == 20


HOT = "SELECT n_tup_hot_upd FROM pg_stat_all_tables WHERE schemaname = '{schema}' AND relname = 'instances'"


async def test_locate_finds_rows_wherever_they_are(stage: Stage) -> None:
    """R27: how a commit without an answer is resolved."""
    lane = await stage.lane()
    await stage.insert(*[{"lane": lane}] * 3)
    on, back, end = await stage.claim((lane, 0, 3))
    await stage.commit(outcome(on[0], on[1], 0), outcome(back[0], back[1], 1, delay=9), outcome(end[0], end[1], 2))
    found = await stage.run("committing/locate", ids=encode([on[0], back[0], end[0], 999]))
    assert sorted(found) == [(on[0], 2, 2, 7), (back[0], 2, 1, None), (end[0], 2, 6, 7)]
