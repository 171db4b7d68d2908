"""Setting limits, showing them, and what stands between an instance and its step; races stepped by hand."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sql_stage import Connection, Stage, outcome

from gen_durable._store.connection import fetch
from gen_durable._store.limiting import (
    Facts,
    Kind,
    NewLimit,
    facts,
    listed,
    rates,
    seed,
    set_limit,
    telling,
    unset_limit,
)
from gen_durable._store.operation import Operation, drive

KEY = "caccount"


async def run(stage: Stage, operation: Operation[Any], on: Connection | None = None) -> Any:
    return await drive(operation, lambda request: fetch(on or stage.main, request))


async def change(stage: Stage, operation: Operation[Any], on: Connection | None = None) -> list[tuple[Kind, str]]:
    changed: list[tuple[Kind, str]] = await run(stage, telling(stage.sql, operation), on)
    return changed


async def rows(stage: Stage, count: int, **row: Any) -> list[int]:
    lane = await stage.lane()
    ids = await stage.insert(*({"lane": lane} | row for _ in range(count)))
    return [id_ for id_ in ids if id_ is not None]


async def amounts(stage: Stage) -> dict[str, float | None]:
    return dict(await stage.ask("SELECT name, amount FROM {schema}.limits ORDER BY kind, name"))


async def knocks(stage: Stage) -> list[str]:
    return [row[0] for row in await stage.ask("SELECT DISTINCT line FROM {schema}.knocks ORDER BY 1")]


async def why(stage: Stage, id_: int) -> Facts:
    found: Facts | None = await run(stage, facts(stage.sql, id_, lease=15.0, grace=10.0))
    assert found is not None
    return found


# Setting --------------------------------------------------------------------------------------------


async def test_what_the_configuration_says_anew_wins_and_what_it_repeats_undoes_nothing(stage: Stage) -> None:
    """Section 10: limits are rows, seeded from the configuration, changed at run time."""
    said = [NewLimit("concurrency", "a", 5), NewLimit("rate", "a", 10, 1.0, 3), NewLimit("queue", "q", 2)]
    assert sorted(await change(stage, seed(stage.sql, said))) == [("concurrency", "a"), ("queue", "q"), ("rate", "a")]
    assert await change(stage, seed(stage.sql, said)) == []
    assert await change(stage, set_limit(stage.sql, NewLimit("concurrency", "a", 7))) == [("concurrency", "a")]
    assert await change(stage, set_limit(stage.sql, NewLimit("concurrency", "a", 7))) == []
    assert await change(stage, set_limit(stage.sql, NewLimit("rate", "a", 20, 1.0, 3))) == [("rate", "a")]
    assert await change(stage, unset_limit(stage.sql, "queue", "q")) == [("queue", "q")]
    assert await change(stage, unset_limit(stage.sql, "queue", "q")) == []
    assert await change(stage, seed(stage.sql, said)) == []
    found = await stage.ask("SELECT kind, amount FROM {schema}.limits ORDER BY kind")
    assert found == [("concurrency", 7), ("queue", None), ("rate", 20)]
    other = [NewLimit("concurrency", "a", 6), NewLimit("rate", "a", 10, 1.0, 3), NewLimit("queue", "q", 3)]
    assert sorted(await change(stage, seed(stage.sql, other))) == [("concurrency", "a"), ("queue", "q")]
    found = await stage.ask("SELECT kind, amount FROM {schema}.limits ORDER BY kind")
    assert found == [("concurrency", 6), ("queue", 3), ("rate", 20)]
    assert await run(stage, rates(stage.sql)) == {"a": 3}


async def test_a_limit_that_somebody_set_gives_way_when_the_configuration_first_names_it(stage: Stage) -> None:
    """Section 10"""
    await change(stage, set_limit(stage.sql, NewLimit("concurrency", "a", 7)))
    assert await change(stage, seed(stage.sql, [NewLimit("concurrency", "a", 2)])) == [("concurrency", "a")]
    assert await amounts(stage) == {"a": 2}


async def test_a_rate_is_not_taken_away(stage: Stage) -> None:
    """R24: steps that name it would wait for nothing."""
    await change(stage, set_limit(stage.sql, NewLimit("rate", "a", 1, 1.0, 1)))
    assert await change(stage, unset_limit(stage.sql, "rate", "a")) == []
    assert await amounts(stage) == {"a": 1}


async def test_two_engines_that_start_at_once(stage: Stage) -> None:
    """The second waits for the first, in the same order, and then has nothing to write."""
    said = [NewLimit("rate", "z", 1, 1.0, 1), NewLimit("concurrency", "b", 2), NewLimit("concurrency", "a", 2)]
    one, two = await stage.connect(), await stage.connect()
    async with one.transaction():
        assert len(await change(stage, seed(stage.sql, said), one)) == 3
        task = asyncio.create_task(change(stage, seed(stage.sql, said[::-1]), two))
        await stage.until_waiting(task, two)
    assert await task == []
    assert await stage.value("SELECT count(DISTINCT xmin::text) FROM {schema}.limits") == 1


async def test_two_configurations_at_once_the_later_one_wins(stage: Stage) -> None:
    """No deadlock, whatever the order in which each names its limits."""
    one, two = await stage.connect(), await stage.connect()
    names = ["a", "B", "c", "\u00e4"]
    async with one.transaction():
        await change(stage, seed(stage.sql, [NewLimit("concurrency", name, 1) for name in names]), one)
        later = seed(stage.sql, [NewLimit("concurrency", name, 2) for name in reversed(names)])
        task = asyncio.create_task(change(stage, later, two))
        await stage.until_waiting(task, two)
    assert len(await task) == 4
    assert set((await amounts(stage)).values()) == {2}


async def test_a_raised_limit_lets_those_through_that_wait(stage: Stage, ear: Connection) -> None:
    """R22: event-driven; each line of the name in which rows wait is knocked at, no other."""
    for partition in ("\x1f1", "\x1f2"):
        await rows(stage, 3, gate=KEY + partition)
    await rows(stage, 2, gate="caccounts\x1f1")
    await rows(stage, 2, gate=None, rate="raccount")
    await rows(stage, 1, gate=KEY + "\x1f3")
    await stage.admit()
    assert await knocks(stage) == []
    await stage.heard(ear)
    await change(stage, set_limit(stage.sql, NewLimit("concurrency", "account", 2)))
    assert await knocks(stage) == [f"{KEY}\x1f1", f"{KEY}\x1f2"]
    assert await stage.heard(ear) == ["k:"]
    assert (await stage.admit()).queues == {"q": 2}


async def test_a_faster_rate_does_not_wait_for_the_slow_one_s_time(stage: Stage) -> None:
    """R22"""
    await change(stage, set_limit(stage.sql, NewLimit("rate", "api", 1, 3600.0, 1)))
    await rows(stage, 3, rate="rapi")
    assert (await stage.admit()).queues == {"q": 1}
    lane = await stage.lane()
    await stage.claim((lane, 0, 9))
    assert (await stage.admit("rapi")).wake == pytest.approx(3600, abs=2)
    await change(stage, set_limit(stage.sql, NewLimit("rate", "api", 1000, 0.001, 5)))
    assert (await stage.admit()).queues == {"q": 2}


async def test_a_look_that_has_seen_the_limit_as_it_was(stage: Stage) -> None:
    """R22: it has made the line and answered the knock, but nothing of that is to be seen yet when the limit is set."""
    await rows(stage, 3, gate=KEY)
    looker = await stage.connect()
    async with looker.transaction():
        assert (await stage.admit(on=looker)).queues == {"q": 1}
        await change(stage, set_limit(stage.sql, NewLimit("concurrency", "account", 3)))
    assert await knocks(stage) == [KEY]
    assert (await stage.admit()).queues == {"q": 2}


async def test_a_cap_waits_for_who_claims_under_it(stage: Stage, ear: Connection) -> None:
    """R21: no claim is under way that has counted by the old one; a cap that is taken away holds nobody any more."""
    await change(stage, set_limit(stage.sql, NewLimit("queue", "q", 2)))
    assert await stage.heard(ear) == ["l:", "q:q"]
    await rows(stage, 3)
    lane = await stage.lane()
    claimer, setter = await stage.connect(), await stage.connect()
    async with claimer.transaction():
        assert await stage.run("limiting/rooms", queues=["q"], on=claimer) == [("q", 2)]
        assert len(await stage.claim((lane, 0, 2), counted=True, on=claimer)) == 2
        task = asyncio.create_task(change(stage, set_limit(stage.sql, NewLimit("queue", "q", 1)), setter))
        await stage.until_waiting(task, setter)
    await task
    assert await stage.run("limiting/rooms", queues=["q"]) == [("q", -1)]
    assert await stage.claim((lane, 0, 9)) == []
    await change(stage, unset_limit(stage.sql, "queue", "q"))
    assert await stage.run("limiting/rooms", queues=["q"]) == []
    assert len(await stage.claim((lane, 0, 9))) == 1


async def test_a_heartbeat_tells_of_a_cap(stage: Stage) -> None:
    """R19: where notifications are lost."""
    await stage.register(7)
    await stage.lane()

    async def marks() -> tuple[Any, Any]:
        beat = await stage.run("workers/heartbeat", worker=7, locked=False, lanes=[1])
        return beat[0][0], (await stage.run("queues/known", queues=["q"]))[0][6]

    before = await marks()
    await change(stage, set_limit(stage.sql, NewLimit("queue", "q", 1)))
    after = await marks()
    assert before[0] == before[1] != after[0] == after[1]
    await change(stage, unset_limit(stage.sql, "queue", "q"))
    assert await marks() == before


# Showing --------------------------------------------------------------------------------------------


async def test_limits_are_shown_with_what_they_hold_and_what_waits(stage: Stage) -> None:
    """Section 10; rows whose line nobody has looked at are counted too."""
    await change(
        stage,
        seed(
            stage.sql,
            [
                NewLimit("concurrency", "account", 2),
                NewLimit("rate", "api", 100, 60.0, 4),
                NewLimit("queue", "q", 3),
                NewLimit("queue", "gone", 3),
            ],
        ),
    )
    await change(stage, unset_limit(stage.sql, "queue", "gone"))
    await rows(stage, 3, gate=f"{KEY}\x1f1")
    await rows(stage, 1, gate=f"{KEY}\x1f2")
    await rows(stage, 6, rate="rapi")
    await stage.admit()
    await rows(stage, 2, gate=f"{KEY}\x1f3")
    key, cap, rate = await run(stage, listed(stage.sql))
    assert (key.kind, key.name, key.limit, key.per, key.burst) == ("concurrency", "account", 2, None, None)
    assert (key.lines, key.holding, key.waiting) == (3, 3, 3)
    assert (cap.kind, cap.limit, cap.holding, cap.waiting) == ("queue", 3, 0, 7)
    assert (rate.kind, rate.limit, rate.per, rate.burst) == ("rate", 100, 60.0, 4)
    assert (rate.lines, rate.holding, rate.waiting) == (1, 4, 2)
    lane = await stage.lane()
    assert len(await stage.claim((lane, 0, 9), counted=True)) == 7
    key, cap, rate = await run(stage, listed(stage.sql))
    assert (key.holding, cap.holding, cap.waiting, rate.holding) == (3, 7, 0, 0)


async def test_no_count_goes_over_a_long_line(stage: Stage) -> None:
    """It stops where it was told to, over all lines of a name together."""
    await change(stage, set_limit(stage.sql, NewLimit("concurrency", "account", 1)))
    for partition in range(4):
        await rows(stage, 3, gate=f"{KEY}\x1f{partition}")
    await stage.admit()
    ((*_, lines, holding, waiting),) = await stage.run("limiting/list", most=3)
    assert (lines, holding, waiting) == (4, 3, 3)
    last = await stage.value("SELECT max(id) FROM {schema}.instances")
    (found,) = await stage.run("reading/why", id=last, lease=15.0, grace=10.0, most=1, shown=1)
    assert Facts(*found).ahead == 1


# Why ------------------------------------------------------------------------------------------------


async def test_what_a_blocked_row_waits_for(stage: Stage) -> None:
    """R22: who holds the slot, and how many are before it, by priority and due time."""
    first, second, third = await rows(stage, 3, gate=KEY)
    await rows(stage, 1, gate=KEY, priority=9)
    await stage.admit()
    found = await why(stage, third)
    assert (found.status, found.line, found.amount, found.holders, found.holding) == (5, KEY, None, [first], 1)
    assert (found.ahead, found.living, found.need) == (1, 0, None)
    await change(stage, set_limit(stage.sql, NewLimit("concurrency", "account", 2)))
    await stage.admit()
    found = await why(stage, third)
    assert (found.ahead, found.amount, found.holders, found.holding) == (0, 2, [first, second], 2)


async def test_when_a_row_has_its_tokens(stage: Stage) -> None:
    """Section 10: by the tokens that there are, and those that it and the ones before it need."""
    await change(stage, set_limit(stage.sql, NewLimit("rate", "api", 10, 1.0, 5)))
    await rows(stage, 5, rate="rapi")
    await rows(stage, 2, rate="rapi", weight=3)
    (own,) = await rows(stage, 1, rate="rapi", weight=4)
    await stage.admit()
    found = await why(stage, own)
    assert (found.status, found.line, found.amount, found.per, found.burst) == (5, "rapi", 10, 1.0, 5)
    assert (found.ahead, found.need, found.tokens) == (2, 10, 0)
    lane = await stage.lane()
    await stage.commit(*(outcome(row[0], row[1], 2) for row in await stage.claim((lane, 0, 9))))
    await stage.ask("UPDATE {schema}.lines SET filled_at = filled_at - interval '0.2 s'")
    found = await why(stage, own)
    assert found.tokens is not None
    assert found.tokens >= 2


async def test_who_could_run_it(stage: Stage) -> None:
    """R9: the workers that live, that run its queue, and that know its machine; a paused queue; its cap."""
    one, two = await rows(stage, 2)
    lane = await stage.lane()
    found = await why(stage, two)
    assert (found.status, found.paused, found.living, found.ahead, found.cap) == (0, False, 0, 1, None)
    for worker in (7, 8, 9, 10):
        await stage.register(worker, seen=20.0 if worker == 10 else 0.0)
    await stage.ask("UPDATE {schema}.workers SET queues = jsonb_build_object('q', 5) WHERE id > 7")
    await stage.ask("UPDATE {schema}.workers SET lanes = ARRAY[%s::int] WHERE id > 8", lane)
    found = await why(stage, one)
    assert (found.living, found.serving, found.knowing) == (3, 2, 3), "they may not have said yet what they know"
    for table, column in (("workers", "started_at"), ("instances", "inserted_at")):
        await stage.ask(f"UPDATE {{schema}}.{table} SET {column} = {column} - interval '11 s'")
    found = await why(stage, one)
    assert (found.living, found.serving, found.knowing) == (3, 2, 1)
    await stage.run("queues/pause", queue="q", paused=True)
    assert (await why(stage, one)).paused
    await stage.run("queues/pause", queue="q", paused=False)
    await change(stage, set_limit(stage.sql, NewLimit("queue", "q", 1)))
    await stage.claim((lane, 0, 1), worker=9, counted=True)
    found = await why(stage, two)
    assert (found.cap, found.busy, found.ahead) == (1, 1, 0)


async def test_what_has_ended_is_not_live(stage: Stage) -> None:
    id_, rev, _ = await stage.held()
    assert (await why(stage, id_)).status == 2
    await stage.commit(outcome(id_, rev, 2))
    assert await run(stage, facts(stage.sql, id_, lease=15.0, grace=10.0)) is None
    id_, rev, _ = await stage.held()
    await stage.commit(outcome(id_, rev, 3))
    found = await why(stage, id_)
    assert (found.status, found.due) == (3, None)
