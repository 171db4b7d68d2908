"""Races and mixtures of limits, stepped by hand: keys with rates, lines that are emptied by other hands, late clocks."""

from __future__ import annotations

from sql_stage import Stage, outcome
from test_sql_limits import KEY, claimed, configure, limited, statuses


async def test_a_plain_row_and_one_with_both_in_one_look(stage: Stage) -> None:
    """R21: the slot that the look at the key's line has given is not given again by the look at the rate's line."""
    await configure(stage, "rate", "api", 10, per=1.0, burst=5)
    (both,) = await limited(stage, 1, rate="rapi")
    await stage.admit(KEY)
    (plain,) = await limited(stage, 1)
    assert (await stage.admit(KEY, "rapi")).queues == {"q": 1}
    assert sorted((await statuses(stage)).values()) == [0, 5], (both, plain)


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
