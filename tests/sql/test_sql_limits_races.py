"""Races and mixtures of limits, stepped by hand: keys with rates, lines emptied by other hands, late clocks."""

from __future__ import annotations

import pytest
from sql_stage import Stage, encode, outcome
from test_sql_limits import KEY, claimed, configure, later, limited, statuses


async def test_a_plain_row_and_one_with_both_in_one_look(stage: Stage) -> None:
    """R21: the slot that the look at the key's line has given is not given again by the look at the rate's line."""
    await configure(stage, "rate", "api", 10, per=1.0, burst=5)
    (both,) = await limited(stage, 1, rate="rapi")
    await stage.admit(KEY)
    (plain,) = await limited(stage, 1)
    assert (await stage.admit(KEY, "rapi")).queues == {"q": 1}
    assert sorted((await statuses(stage)).values()) == [0, 5], (both, plain)


async def test_rows_of_one_key_behind_one_without_tokens(stage: Stage) -> None:
    """R22, section 10: a slot that nobody can use for want of tokens is for the next who can."""
    await configure(stage, "rate", "api", 1, per=3600.0, burst=1)
    (first,) = await limited(stage, 1, gate=None, rate="rapi")
    await stage.admit()
    (both,) = await limited(stage, 1, rate="rapi")
    (plain,) = await limited(stage, 1)
    await drained(stage)
    assert await statuses(stage) == {first: 0, both: 5, plain: 0}


async def test_rows_of_one_key_behind_others_of_another_rate(stage: Stage) -> None:
    """R22: the slots of a shared key are not kept for a tenant whose tokens are spent."""
    await configure(stage, "rate", "api", 1, per=3600.0, burst=1)
    await configure(stage, "concurrency", "account:7", 2)
    await limited(stage, 1, gate=None, rate="rapi\x1fa")
    await stage.admit()
    mine = await limited(stage, 5, rate="rapi\x1fa")
    (other,) = await limited(stage, 1, rate="rapi\x1fb")
    await drained(stage)
    found = await statuses(stage)
    assert [found[id_] for id_ in mine] == [5] * 5
    assert found[other] == 0


async def drained(stage: Stage) -> None:
    """Looks until nothing comes of it, as the admitter does: at knocks, and at what is to be looked at soon."""
    for _ in range(100):
        await stage.ask("UPDATE {schema}.lines SET wake_at = {clock} WHERE wake_at < {clock} + interval '0.1 s'")
        found = await stage.admit()
        if not found.queues and (found.wake is None or found.wake > 0.1):
            return
    raise AssertionError("it never comes to rest")


async def test_a_heavy_row_that_is_cancelled_makes_way(stage: Stage) -> None:
    """R22, R24: those behind it fit at once, and nobody waits for its tokens."""
    await configure(stage, "rate", "api", 1, per=3600.0, burst=5)
    await limited(stage, 1, gate=None, rate="rapi", weight=3)
    await stage.admit()
    (heavy,) = await limited(stage, 1, gate=None, rate="rapi", weight=5)
    (light,) = await limited(stage, 1, gate=None, rate="rapi")
    assert (await stage.admit()).queues == {}
    await stage.cancel(heavy)
    assert (await stage.admit()).queues == {"q": 1}
    assert (await statuses(stage))[light] == 0


async def test_a_heavy_row_that_is_replaced_makes_way(stage: Stage) -> None:
    """R22: as when it is cancelled."""
    await configure(stage, "rate", "api", 1, per=3600.0, burst=5)
    await limited(stage, 1, gate=None, rate="rapi", weight=3)
    await stage.admit()
    (heavy,) = await limited(stage, 1, gate=None, rate="rapi", weight=5, key="k")
    (light,) = await limited(stage, 1, gate=None, rate="rapi")
    assert (await stage.admit()).queues == {}
    row = encode([{"lane": await stage.lane(), "step": "one", "state": {}}])
    assert await stage.run("inserting/replace", key="k", row=row, notify=False, soon=5.0)
    assert (await stage.admit()).queues == {"q": 1}
    assert await statuses(stage) == {heavy - 1: 0, heavy: 0, light: 0}


async def test_what_outweighs_a_lowered_burst_costs_no_more_than_the_burst(stage: Stage) -> None:
    """R24, never under: a look while it waits for its claim takes nothing more from the bucket."""
    await configure(stage, "rate", "api", 1, per=1.0, burst=9)
    (heavy,) = await limited(stage, 1, gate=None, rate="rapi", weight=9)
    await configure(stage, "rate", "api", 1, per=1.0, burst=3)
    assert (await stage.admit()).queues == {"q": 1}
    await limited(stage, 3, gate=None, rate="rapi")
    found = await stage.admit()
    assert found.queues == {}
    assert found.lines["rapi"][2] == pytest.approx(0.0, abs=0.1)
    ((id_, _),) = await claimed(stage)
    assert id_ == heavy
    assert (await stage.admit("rapi")).queues == {}, "the bucket fills from the look that finds it claimed"
    await later(stage, 3)
    assert (await stage.admit("rapi")).queues == {"q": 3}


async def test_a_look_with_a_late_clock_fills_a_bucket_only_once(stage: Stage) -> None:
    """R21: who began first and comes last takes the bucket's time as it is."""
    await configure(stage, "rate", "api", 10, per=1.0, burst=5)
    await limited(stage, 20, gate=None, rate="rapi")
    await stage.admit()
    for id_, rev in await claimed(stage):
        await stage.commit(outcome(id_, rev, 2))
    await stage.ask("UPDATE {schema}.lines SET filled_at = {clock} + interval '0.3 s'")
    before = await stage.value("SELECT filled_at FROM {schema}.lines")
    await stage.admit("rapi")
    assert await stage.value("SELECT filled_at FROM {schema}.lines") >= before


@pytest.mark.parametrize("way", ["cancelled", "replaced"])
async def test_a_row_that_waits_for_tokens_and_goes_makes_way_in_its_keys_line_too(stage: Stage, way: str) -> None:
    """R22: those of the same key and rate wait behind it there, and come after it."""
    await configure(stage, "rate", "api", 1, per=3600.0, burst=1)
    await limited(stage, 1, gate=None, rate="rapi")
    (first,) = await limited(stage, 1, rate="rapi", key="k")
    (second,) = await limited(stage, 1, rate="rapi")
    await drained(stage)
    assert await stage.ask("SELECT id, line FROM {schema}.instances WHERE status = 5 ORDER BY 1") == [
        (first, "rapi"),
        (second, KEY),
    ]
    if way == "cancelled":
        await stage.cancel(first)
    else:
        row = encode([{"lane": await stage.lane(), "step": "one", "state": {}, "delay": 60.0}])
        assert await stage.run("inserting/replace", key="k", row=row, notify=False, soon=5.0)
    await drained(stage)
    assert await stage.row(second, "line") == ("rapi",)


async def test_those_behind_one_that_got_both_follow_it(stage: Stage) -> None:
    """R22: the slot that another keeps free, for want of other tokens, is for the next of those who have theirs."""
    await configure(stage, "concurrency", "account:7", 2)
    await configure(stage, "rate", "api", 1, per=3600.0, burst=2)
    await limited(stage, 1, gate=None, rate="rapi\x1fa", weight=2)
    await stage.admit()
    (spent,) = await limited(stage, 1, rate="rapi\x1fa")
    first, second = await limited(stage, 2, rate="rapi\x1fb")
    await drained(stage)
    found = await statuses(stage)
    assert (found[spent], found[first], found[second]) == (5, 0, 0)


async def test_who_finds_its_keys_line_locked_is_looked_at_soon(stage: Stage) -> None:
    """R22: within tens of milliseconds, though nobody else knocks."""
    await configure(stage, "rate", "api", 1, per=1.0, burst=5)
    (both,) = await limited(stage, 1, rate="rapi")
    await stage.admit()
    other = await stage.connect()
    async with other.transaction():
        await stage.ask("SELECT FROM {schema}.lines WHERE line = %s FOR UPDATE", KEY, on=other)
        found = await stage.admit()
        assert await stage.row(both, "status, line") == (5, KEY)
    assert found.wake is not None
    assert found.wake < 0.1
