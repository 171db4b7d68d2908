"""Races and mixtures of limits, stepped by hand: keys with rates, lines that are emptied by other hands, late clocks."""

from __future__ import annotations

from sql_stage import Stage
from test_sql_limits import KEY, configure, limited, statuses


async def test_a_plain_row_and_one_with_both_in_one_look(stage: Stage) -> None:
    """R21: the slot that the look at the key's line has given is not given again by the look at the rate's line."""
    await configure(stage, "rate", "api", 10, per=1.0, burst=5)
    (both,) = await limited(stage, 1, rate="rapi")
    await stage.admit(KEY)
    (plain,) = await limited(stage, 1)
    assert (await stage.admit(KEY, "rapi")).queues == {"q": 1}
    assert sorted((await statuses(stage)).values()) == [0, 5], (both, plain)
