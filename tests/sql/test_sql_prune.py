"""Partitions and the sweep: what is kept, what goes, and that nothing is left behind."""

from __future__ import annotations

import datetime as dt

import pytest
from sql_stage import Stage, outcome

PARTITIONS = (
    "SELECT relname FROM pg_class WHERE relnamespace = '{schema}'::regnamespace AND relkind = 'r' "
    "AND relname ~ '_[0-9]+$' ORDER BY 1"
)


async def today(stage: Stage) -> dt.date:
    day: dt.date = await stage.value("SELECT ({clock} AT TIME ZONE 'UTC')::date")
    return day


async def partitions(stage: Stage) -> list[str]:
    return [row[0] for row in await stage.ask(PARTITIONS)]


async def make(stage: Stage, parent: str, days_ago: int) -> str:
    """A partition for a day that has passed."""
    day = await today(stage) - dt.timedelta(days=days_ago)
    zone = " 00:00+00" if parent == "transitions" else ""
    name = f"{parent}_{day:%Y%m%d}"
    await stage.ask(
        f"CREATE TABLE {{schema}}.{name} PARTITION OF {{schema}}.{parent} "
        f"FOR VALUES FROM ('{day}{zone}') TO ('{day + dt.timedelta(days=1)}{zone}')"
    )
    return name


async def note(stage: Stage, id_: int, days_ago: float) -> None:
    """A transition of some days ago."""
    await stage.ask(
        "INSERT INTO {schema}.transitions (instance_id, seq, at, attempt, outcome, step) "
        "VALUES (%s, 1, {clock} - make_interval(secs => %s), 0, 0, 's')",
        id_,
        days_ago * 86400.0,
    )


async def end(stage: Stage, *, keep: float | None, expired: bool = False, aged: int = 0) -> int:
    """A terminal instance, inserted some days ago."""
    lane = await stage.lane()
    await stage.insert({"lane": lane})
    ((id_, rev, *_),) = await stage.claim((lane, 0, 1))
    await stage.ask("UPDATE {schema}.instances SET inserted_at = {clock} - make_interval(days => %s)", aged)
    await stage.commit(outcome(id_, rev, 2, keep=keep, history=2))
    if expired:
        await stage.ask("UPDATE {schema}.finished SET expires_at = {clock} WHERE id = %s", id_)
    return id_


async def drop(stage: Stage) -> list[str]:
    ((dropped, _),) = await stage.run("pruning/partitions")
    return list(dropped)


async def test_partitions_are_there_before_they_are_needed(stage: Stage) -> None:
    """History for four days; terminal rows for the expiry days of every retention between a day and a month."""
    day = await today(stage)
    for machine, keep in [("a", 86400.0), ("b", 86400.0 * 3), ("c", 3600.0), ("d", None), ("e", 86400.0 * 40)]:
        await stage.lane("q", machine, retention=keep)
    await stage.run("pruning/ensure")
    names = {f"transitions_{day + dt.timedelta(days=n):%Y%m%d}" for n in range(4)}
    names |= {f"finished_{day + dt.timedelta(days=n):%Y%m%d}" for n in range(1, 6)}
    assert set(await partitions(stage)) == names
    assert await stage.run("pruning/ensure") == [(0,)]


async def test_rows_of_a_day_without_a_partition_wait_in_the_default_one(stage: Stage) -> None:
    """Nobody ran for days: nothing is refused, and the partition comes when its rows have gone."""
    day = await today(stage)
    await stage.ask(f"DROP TABLE {{schema}}.transitions_{day:%Y%m%d}")
    lane = await stage.lane()
    await stage.insert({"lane": lane})
    ((id_, rev, *_),) = await stage.claim((lane, 0, 1))
    await stage.commit(outcome(id_, rev, 0))
    await stage.commit(outcome(id_, rev + 1, 2))
    assert await stage.value("SELECT count(*) FROM {schema}.transitions_default") == 1
    assert await stage.value("SELECT count(*) FROM {schema}.finished_default") == 1
    before = await partitions(stage)
    await stage.run("pruning/ensure")
    made = set(await partitions(stage)) - set(before)
    assert f"transitions_{day:%Y%m%d}" not in made
    assert f"finished_{day + dt.timedelta(days=1):%Y%m%d}" not in made
    assert f"finished_{day + dt.timedelta(days=2):%Y%m%d}" in made, "the others are made all the same"
    await stage.ask("UPDATE {schema}.finished SET expires_at = {clock}")
    assert await stage.run("pruning/sweep", batch=10) == [(1, 1)]
    await stage.run("pruning/ensure")
    assert f"transitions_{day:%Y%m%d}" in await partitions(stage)


async def test_days_that_have_passed_go_whole(stage: Stage) -> None:
    old = [await make(stage, "finished", 2), await make(stage, "transitions", 2)]
    kept = [await make(stage, "finished", 0)]
    assert await drop(stage) == old
    assert set(kept) <= set(await partitions(stage))
    assert await drop(stage) == []


@pytest.mark.parametrize("ended", [False, True])
async def test_history_stays_while_an_instance_of_its_time_is_there(stage: Stage, ended: bool) -> None:
    """History and instance go together."""
    names = [await make(stage, "transitions", n) for n in (4, 3, 2)]
    if ended:
        id_ = await end(stage, keep=None, aged=3)
    else:
        lane = await stage.lane()
        (placed,) = await stage.insert({"lane": lane})
        assert placed is not None
        id_ = placed
        await stage.ask("UPDATE {schema}.instances SET inserted_at = {clock} - make_interval(days => 3)")
    await note(stage, id_, 2.0)
    assert await drop(stage) == [names[0]]
    assert len(await stage.history(id_)) == (2 if ended else 1)
    await stage.ask("DELETE FROM {schema}.instances")
    await stage.ask("DELETE FROM {schema}.finished")
    assert await drop(stage) == names[1:]


async def test_the_oldest_instance_counts_not_the_newest(stage: Stage) -> None:
    name = await make(stage, "transitions", 3)
    lane = await stage.lane()
    first, _ = await stage.insert({"lane": lane}, {"lane": lane})
    await stage.ask("UPDATE {schema}.instances SET inserted_at = {clock} - interval '5 days' WHERE id = %s", first)
    assert await drop(stage) == []
    assert name in await partitions(stage)


async def test_the_history_of_a_long_life_is_kept_aside(stage: Stage) -> None:
    """A partition goes after a month at the latest; who still lives takes its history along."""
    old, young = await make(stage, "transitions", 40), await make(stage, "transitions", 20)
    await stage.ask("SELECT nextval('{schema}.instances_id_seq')")
    lane = await stage.lane()
    (id_,) = await stage.insert({"lane": lane})
    assert id_ is not None
    await stage.ask("UPDATE {schema}.instances SET inserted_at = {clock} - interval '41 days'")
    for days in (40, 20):
        await note(stage, id_, days)
        await note(stage, id_ + 1000, days)  # somebody's who has gone
    assert await drop(stage) == [old]
    assert young in await partitions(stage)
    assert await stage.ask("SELECT instance_id FROM {schema}.transitions_kept") == [(id_,)]
    assert len(await stage.history(id_)) == 2
    assert len(await stage.history(id_ + 1000)) == 1


async def test_copying_never_happens_under_the_lock_of_a_drop(stage: Stage) -> None:
    """Commits wait behind a drop; so a partition that must be copied from has a pass of its own."""
    (one, two) = [await make(stage, "transitions", n) for n in (41, 40)]
    lane = await stage.lane()
    await stage.insert({"lane": lane})
    await stage.ask("UPDATE {schema}.instances SET inserted_at = {clock} - interval '45 days'")
    assert await drop(stage) == [one]
    assert await drop(stage) == [two]


@pytest.mark.parametrize("place", ["transitions_kept", "transitions_default"])
async def test_history_outside_its_day_goes_with_its_instance(stage: Stage, place: str) -> None:
    """Whoever is dropped with a partition leaves nothing behind."""
    gone, stays = 501, 502
    await make(stage, "finished", 2)
    day = await today(stage) - dt.timedelta(days=2)
    await stage.ask(
        "INSERT INTO {schema}.finished (id, rev, inserted_at, finished_at, expires_at, bucket, lane, attempt, crashes, "
        "status, priority, step, state) VALUES (%s, 1, now(), now(), now(), %s, 1, 0, 0, 6, 0, 's', '[]')",
        gone,
        day,
    )
    for id_ in (gone, stays):
        await stage.ask(
            f"INSERT INTO {{schema}}.{place} (instance_id, seq, at, attempt, outcome, step) "
            "VALUES (%s, 1, {clock} - interval '90 days', 0, 0, 's')",
            id_,
        )
    assert len(await drop(stage)) == 1
    assert await stage.ask(f"SELECT instance_id FROM {{schema}}.{place}") == [(stays,)]


async def test_a_partition_that_somebody_reads_stays_for_the_next_time(stage: Stage) -> None:
    """It waits a moment, not for each of them, and the commits behind it wait no longer."""
    names = [await make(stage, "finished", n) for n in range(9, 1, -1)]
    reader = await stage.connect()
    async with reader.transaction():
        await stage.ask("SELECT count(*) FROM {schema}.finished", on=reader)
        started = await stage.value("SELECT clock_timestamp()")
        assert await drop(stage) == []
        assert await stage.value("SELECT clock_timestamp() - %s < interval '1.5 s'", started)
    assert await drop(stage) == names


async def test_one_drops_at_a_time(stage: Stage) -> None:
    name = await make(stage, "finished", 2)
    other = await stage.connect()
    async with other.transaction():
        await stage.ask("SELECT pg_advisory_xact_lock(%s, 1)", stage.lockspace, on=other)
        assert await stage.value("SELECT {schema}.drop_expired_partitions()") == []
    assert await drop(stage) == [name]


# The sweep ----------------------------------------------------------------------------------------


async def test_the_sweep_takes_what_has_expired_with_its_history(stage: Stage) -> None:
    short, late, forever = [
        await end(stage, keep=keep, expired=expired) for keep, expired in [(60.0, True), (60.0, False), (None, False)]
    ]
    await note(stage, short, 0.0)
    await stage.ask("INSERT INTO {schema}.transitions_kept SELECT * FROM {schema}.transitions")
    assert await stage.run("pruning/sweep", batch=10) == [(1, 4)]
    assert await stage.ask("SELECT id FROM {schema}.finished ORDER BY id") == [(late,), (forever,)]
    for table in ("transitions", "transitions_kept"):
        assert await stage.ask(f"SELECT DISTINCT instance_id FROM {{schema}}.{table} ORDER BY 1") == [
            (late,),
            (forever,),
        ]
    assert await stage.run("pruning/sweep", batch=10) == [(0, 0)]


async def test_the_sweep_is_bounded_and_takes_the_oldest_first(stage: Stage) -> None:
    ended = [await end(stage, keep=60.0) for _ in range(5)]
    for n, id_ in enumerate(ended):
        await stage.ask(
            "UPDATE {schema}.finished SET expires_at = {clock} - make_interval(mins => %s) WHERE id = %s", n, id_
        )
    assert (await stage.run("pruning/sweep", batch=2))[0][0] == 2
    assert [row[0] for row in await stage.ask("SELECT id FROM {schema}.finished ORDER BY id")] == ended[:3]


async def test_two_sweeps_do_not_wait_for_each_other(stage: Stage) -> None:
    for _ in range(4):
        await end(stage, keep=60.0, expired=True)
    other = await stage.connect()
    async with other.transaction():
        assert (await stage.run("pruning/sweep", batch=2, on=other))[0][0] == 2
        assert (await stage.run("pruning/sweep", batch=4))[0][0] == 2
    assert await stage.ask("SELECT FROM {schema}.finished") == []
