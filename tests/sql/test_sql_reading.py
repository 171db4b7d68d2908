"""The views and the statements that read through them."""

from __future__ import annotations

from typing import Any

import pytest
from sql_stage import Stage, encode, outcome

from gen_durable._store.connection import set_up
from gen_durable._store.operation import Row

ANY = dict.fromkeys(["before", "machine", "queue", "statuses", "key_prefix"])


async def three(stage: Stage) -> tuple[int, int, int]:
    """One that waits, one that executes, one that has ended."""
    lane, other = await stage.lane("q", "m"), await stage.lane("r", "n", 2)
    await stage.insert(
        {"lane": other, "key": "ended", "priority": -1},
        {"lane": lane, "key": "runs", "priority": 0},
        {"lane": lane, "delay": 60},
    )
    ended, runs = await stage.claim((other, 0, 1), (lane, 1, 1))
    await stage.commit(outcome(ended[0], ended[1], 2, result={"ok": 1}, kind=3))
    waits = await stage.value("SELECT id FROM {schema}.instances WHERE status = 1")
    return waits, runs[0], ended[0]


async def test_the_view_shows_the_living_and_the_ended_alike(stage: Stage) -> None:
    waits, runs, ended = await three(stage)
    columns = "id, machine, version, queue, status, key, worker, result, due_at IS NULL, finished_at IS NULL"
    assert await stage.ask(f"SELECT {columns} FROM {{schema}}.all_instances ORDER BY id") == sorted(
        [
            (waits, "m", 1, "q", 1, None, None, None, False, True),
            (runs, "m", 1, "q", 2, "runs", 7, None, False, True),
            (ended, "n", 2, "r", 6, "ended", 7, b'{"ok": 1}', True, False),
        ]
    )


async def test_by_id_finds_it_on_either_side(stage: Stage) -> None:
    for id_ in await three(stage):
        ((found, *_),) = await stage.run("reading/by_id", id=id_)
        assert found == id_
    assert await stage.run("reading/by_id", id=2**40) == []


async def test_by_key_prefers_the_living_then_the_latest(stage: Stage) -> None:
    """R16: the key addresses the live instance; after its end, the one that ended last."""
    lane = await stage.lane()
    ids = []
    for _ in range(3):
        await stage.insert({"lane": lane, "key": "k"})
        ((id_, rev, *_),) = await stage.claim((lane, 0, 1))
        await stage.commit(outcome(id_, rev, 2))
        ids.append(id_)
    assert [row[0] for row in await stage.run("reading/by_key", key="k")] == ids[-1:]
    (live,) = await stage.insert({"lane": lane, "key": "k"})
    assert [row[0] for row in await stage.run("reading/by_key", key="k")] == [live]
    assert await stage.run("reading/by_key", key="K") == []


@pytest.mark.parametrize("steady", [True, False])
async def test_pages_cover_everything_once_newest_first(stage: Stage, connect: Any, steady: bool) -> None:
    lane = await stage.lane()
    placed = await stage.insert(*[{"lane": lane, "key": f"k{n:02}"} for n in range(23)])
    for id_, rev, *_ in await stage.claim((lane, 0, 11)):
        await stage.commit(outcome(id_, rev, 2))
    client = await connect()
    await set_up(client, steady=steady)
    seen: list[Row] = []
    before = None
    while rows := await stage.run("reading/page", on=client, **ANY | {"before": before, "limit": 5}):
        seen += rows
        before = rows[-1][0]
    assert [row[0] for row in seen] == sorted((id_ for id_ in placed if id_), reverse=True)
    assert sum(row[5] == 6 for row in seen) == 11
    by_id = {row[0]: row for row in seen}
    for id_ in placed:
        assert await stage.run("reading/by_id", id=id_) == [by_id[id_]], "a list shows what a look at one shows"


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"machine": "m"}, "wr"),
        ({"machine": "n"}, "e"),
        ({"queue": "r"}, "e"),
        ({"queue": "nowhere"}, ""),
        ({"statuses": [0, 1]}, "w"),
        ({"statuses": [2, 6]}, "re"),
        ({"statuses": []}, ""),
        ({"key_prefix": "ru"}, "r"),
        ({"key_prefix": ""}, "re"),
        ({"key_prefix": "%"}, ""),
        ({"machine": "m", "statuses": [2], "queue": "q", "key_prefix": "r"}, "r"),
    ],
)
async def test_a_page_is_filtered(stage: Stage, given: dict[str, Any], found: str) -> None:
    ids = dict(zip("wre", await three(stage), strict=True))
    rows = await stage.run("reading/page", **ANY | {"limit": 9} | given)
    assert sorted(row[0] for row in rows) == sorted(ids[name] for name in found)


async def test_counts_add_both_sides(stage: Stage) -> None:
    await three(stage)
    assert await stage.run("reading/counts") == [("q", "m", 1, 1, 1), ("q", "m", 1, 2, 1), ("r", "n", 2, 6, 1)]


async def test_history_is_in_order_over_all_its_places(stage: Stage) -> None:
    lane = await stage.lane()
    (id_,) = await stage.insert({"lane": lane})
    ((_, rev, *_),) = await stage.claim((lane, 0, 1))
    await stage.commit(outcome(id_, rev, 0))
    await stage.ask("INSERT INTO {schema}.transitions_kept SELECT * FROM {schema}.transitions")
    await stage.ask("DELETE FROM {schema}.transitions")
    await stage.commit(outcome(id_, rev + 1, 0, ran="two"))
    await stage.commit(outcome(id_, rev + 2, 2, ran="three"))
    assert [(row[0], row[2]) for row in await stage.history(id_)] == [
        (rev + 1, "one"), (rev + 2, "two"), (rev + 3, "three"),
    ]  # fmt: skip


async def test_the_client_finds_holders_of_many_keys(stage: Stage) -> None:
    lane = await stage.lane()
    keys = [f"k{n}" for n in range(100)]
    placed = await stage.insert(*[{"lane": lane, "key": key} for key in keys])
    rows = await stage.run("inserting/holders", keys=encode([*keys, "none"]))
    assert {key: id_ for key, id_, _ in rows} == dict(zip(keys, placed, strict=True))
