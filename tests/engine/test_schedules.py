"""Schedules in a running engine (SPEC section 8, R18): at their times, once, as their policy says, steered by calls."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from engine_support import Build, Seen, Sql, ended, eventually, moment

from gen_durable import Backoff, Context, Done, Engine, Handle, Machine, Next, Schedule, ScheduleInfo, job, step
from gen_durable.errors import DuplicateInstance, InvalidArgument, InvalidState, NoSuchSchedule
from gen_durable.events import ScheduleEvent

SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)


@job
async def tick(ctx: Context, n: int = 0) -> str:
    return ctx.due_at.isoformat()


@job(queue="reports", priority=7)
async def report(n: int = 0) -> int:
    return n


class Two(Machine, name="two"):
    n: int

    @step
    async def first(self, ctx: Context) -> Next:
        self.n += 1
        return Next(self.second)

    @step
    async def second(self, ctx: Context) -> Done:
        return Done(self.n)


async def put_back(sql: Sql, ago: str, name: str = "s") -> None:
    """Makes a schedule as late as if nobody had been there for so long; workers are told."""
    await sql("UPDATE {s}.schedules SET next_at = next_at - %s::interval WHERE name = %s", ago, name)


async def tell(client: Engine) -> None:
    """What a change by SQL does not do."""
    await client._session.fetch(client._sql["queues/wake"].bind(messages=["s:"]))


async def runs(sql: Sql) -> list[datetime]:
    """The occurrences on record, which must be those of the instances that are there."""
    rows = await sql("SELECT occurrence, instance_id FROM {s}.schedule_runs ORDER BY 1")
    there = {row[0] for row in await sql("SELECT id FROM {s}.all_instances")}
    assert {id_ for _, id_ in rows} <= there
    return [row[0] for row in rows]


async def one(client: Engine) -> ScheduleInfo:
    (found,) = await client.schedules()
    return found


async def database_now(sql: Sql) -> datetime:
    return (await sql("SELECT statement_timestamp()"))[0][0]


# At its time ----------------------------------------------------------------------------------------


async def test_a_schedule_starts_its_instances_at_their_times(build: Build, sql: Sql) -> None:
    """R18: within 0.25 s of each second by the database's clock; ctx.due_at is the occurrence's time."""
    engine = build(tick, schedules=[Schedule("s", "* * * * * *", tick.bind(n=4))])
    seen = Seen(engine, "schedule")
    async with engine:
        events: list[ScheduleEvent] = (await seen.until(lambda found: len(found) >= 3))[:3]
        for event in events:
            snapshot = await ended(Handle(event.id, None, "tick", engine))
            assert snapshot.result == event.occurrence.isoformat()
            assert snapshot.state == {"n": 4}
            assert 0 <= (snapshot.inserted_at - event.occurrence).total_seconds() < 0.25
    assert [event.name for event in events] == ["s"] * 3
    assert [event.occurrence.microsecond for event in events] == [0] * 3
    assert events[2].occurrence - events[0].occurrence == 2 * SECOND
    assert (await runs(sql))[:3] == [event.occurrence for event in events]


async def test_an_interval_counts_from_when_it_was_made(build: Build, sql: Sql) -> None:
    """R18: it does not drift: each time is a whole number of intervals from the schedule's making."""
    engine = build(tick)
    seen = Seen(engine, "schedule")
    async with engine:
        await engine.schedule("s", None, tick.bind(), every=1)
        events = await seen.until(lambda found: len(found) >= 2)
        found = await one(engine)
    ((anchor,),) = await sql("SELECT anchor FROM {s}.schedules")
    assert [event.occurrence - anchor for event in events[:2]] == [SECOND, 2 * SECOND]
    assert (found.every, found.cron) == (SECOND, None)


async def test_a_schedule_made_by_another_process_is_known_at_once(build: Build) -> None:
    """R19: the worker has looked, and would look again in a minute only."""
    worker = build(tick)
    seen = Seen(worker, "schedule")
    client = build(tick, queues={})
    async with worker, client:
        await moment(0.3)
        await client.schedule("s", "* * * * * *", tick.bind())
        await seen.until(len, 2.0)


async def test_a_machine_that_no_worker_knows_waits(build: Build) -> None:
    """R9: any worker starts the occurrence; it waits for one that can run it."""
    starter, client = build(report), build(tick, queues={})
    seen = Seen(starter, "schedule")
    async with starter, client:
        await client.schedule("s", "* * * * * *", tick.bind())
        (event, *_) = await seen.until(len)
        assert (await client.get(event.id)).status == "runnable"
        async with build(tick):
            assert await client.result(event.id, timeout=10) == event.occurrence.isoformat()


async def test_a_machine_of_several_steps_with_queue_and_priority(build: Build) -> None:
    engine = build(Two, report, queues={"default": 5, "other": 5})
    async with engine:
        await engine.schedule("s", "@yearly", Two(n=1), queue="other", priority=-3)
        found = await one(engine)
        assert (found.machine, found.version, found.queue, found.priority) == ("two", 1, "other", -3)
        handle = await engine.trigger_schedule("s")
        snapshot = await ended(handle)
        assert (snapshot.result, snapshot.queue, snapshot.priority) == (2, "other", -3)
        assert handle.machine == "two"
        await engine.schedule("r", "@yearly", report.bind(n=3))
        listed = await engine.schedules()
        assert [(info.name, info.queue, info.priority, info.state) for info in listed] == [
            ("r", "reports", 7, {"n": 3}),
            ("s", "other", -3, {"n": 1}),
        ]


# Once -----------------------------------------------------------------------------------------------


async def test_several_workers_start_each_occurrence_once(build: Build, sql: Sql) -> None:
    """R18: three workers that all declare it and all wake at each second."""
    schedules = [Schedule("s", "* * * * * *", tick.bind()), Schedule("t", None, tick.bind(n=1), every=1)]
    engines = [build(tick, schedules=schedules) for _ in range(3)]
    events: list[ScheduleEvent] = []
    done = asyncio.Event()

    def note(event: ScheduleEvent) -> None:
        events.append(event)
        if len(events) >= 8:
            done.set()

    for engine in engines:
        engine.on("schedule", note)
    async with engines[0], engines[1], engines[2], asyncio.timeout(20):
        await done.wait()
    rows = await sql("SELECT s.name, r.occurrence FROM {s}.schedule_runs r JOIN {s}.schedules s ON s.id = r.schedule")
    assert sorted(rows) == sorted((event.name, event.occurrence) for event in events)
    assert len(set(rows)) == len(rows)
    assert await sql("SELECT count(*) FROM {s}.all_instances") == [(len(rows),)]
    for name in ("s", "t"):
        times = sorted(at for of, at in rows if of == name)
        assert times == [times[0] + n * SECOND for n in range(len(times))]


@pytest.mark.parametrize(("policy", "count"), [("last", 1), ("all", 3 * 24), ("none", 0)])
async def test_what_was_missed_is_caught_up_with_as_the_policy_says(
    build: Build, sql: Sql, policy: Any, count: int
) -> None:
    """R18: after three days without a worker: the latest once, all, or none; then its turn comes as always."""
    async with build(tick, queues={}) as client:
        await client.schedule("s", "30 * * * *", tick.bind(), catch_up=policy)
        made = (await one(client)).next_at
        assert made is not None
        await put_back(sql, "3 days")
        assert (await one(client)).next_at == made - timedelta(days=3)
        async with build(tick):

            async def caught_up() -> bool:
                return (await one(client)).next_at == made

            await eventually(caught_up)
        assert (await one(client)).last_at == (made - HOUR if count else None)
        assert await runs(sql) == [made - n * HOUR for n in range(count, 0, -1)]


async def test_several_batches_are_caught_up_with(build: Build, sql: Sql) -> None:
    """R18: 2,500 missed occurrences: each once, none lost between two transactions."""
    async with build(tick, queues={}) as client:
        await client.schedule("s", "30 * * * *", tick.bind(), catch_up="all")
        made = (await one(client)).next_at
        await put_back(sql, f"{2500} hours")
        async with build(tick), build(tick):

            async def caught_up() -> bool:
                return (await one(client)).next_at == made

            await eventually(caught_up)
        found = await runs(sql)
    assert len(found) == len(set(found)) == 2500
    assert await sql("SELECT count(*) FROM {s}.all_instances") == [(2500,)]


# Declaring ------------------------------------------------------------------------------------------


async def test_a_declaration_at_each_start_changes_nothing(build: Build, sql: Sql) -> None:
    """R18: neither the next time nor the pause: a web node and a worker that both have it may restart at will."""
    schedule = Schedule("s", "0 9 * * *", tick.bind(), tz="Europe/Paris")
    async with build(tick, schedules=[schedule], queues={}) as client:
        before = await one(client)
        await put_back(sql, "2 days")
        await client.pause_schedule("s")
        async with build(tick, schedules=(schedule,)) as worker, build(tick, schedules=[schedule]).client() as web:
            assert await one(worker) == await one(web)
        found = await one(client)
        assert (found.created_at, found.updated_at) == (before.created_at, before.updated_at)
        assert found.paused
        assert await sql("SELECT next_at FROM {s}.schedules") == [(before.next_at - timedelta(days=2),)]  # type: ignore[operator]
    assert before.tz == "Europe/Paris"


async def test_other_times_and_another_instance(build: Build) -> None:
    async with build(tick, report, queues={}) as client:
        await client.schedule("s", "0 9 * * *", tick.bind())
        first = await one(client)
        await client.schedule("s", "0 9 * * *", tick.bind(n=2))
        second = await one(client)
        assert (second.state, second.next_at) == ({"n": 2}, first.next_at)
        assert second.updated_at > first.updated_at
        await client.schedule("s", "@hourly", report.bind(n=2), catch_up="all")
        third = await one(client)
        assert (third.machine, third.queue, third.cron, third.catch_up) == ("report", "reports", "0 * * * *", "all")
        assert third.next_at is not None
        assert third.next_at.minute == 0


async def test_a_schedule_that_is_made_paused(build: Build, sql: Sql) -> None:
    """It is not un-paused by the same declaration, nor by one that leaves ``paused`` out."""
    engine = build(tick)
    seen = Seen(engine, "schedule")
    async with engine:
        await engine.schedule("s", "* * * * * *", tick.bind(), paused=True)
        await engine.schedule("s", "* * * * * *", tick.bind())
        found = await one(engine)
        assert (found.paused, found.next_at) == (True, None)
        await moment(1.3)
        assert seen.all == []
        await engine.resume_schedule("s")
        assert (await one(engine)).next_at is not None
        await seen.until(len)
    assert found.paused_at == found.created_at


async def test_wrong_declarations_write_nothing(build: Build) -> None:
    async with build(tick, queues={}) as client:
        with pytest.raises(InvalidArgument, match="can't be read"):
            await client.schedule("s", "0 25 * * *", tick.bind())
        with pytest.raises(InvalidArgument, match="not registered"):
            await client.schedule("s", "@daily", report.bind())
        with pytest.raises(InvalidArgument, match="there is no queue 'nope'"):
            await client.schedule("s", "@daily", tick.bind(), queue="nope")
        with pytest.raises(InvalidState):
            await client.schedule("s", "@daily", tick.bind(n="x"))  # type: ignore[arg-type]
        assert await client.schedules() == []


# Steering -------------------------------------------------------------------------------------------


async def test_pausing_leaves_out_and_resuming_goes_on(build: Build, sql: Sql) -> None:
    """R18: what passes during a pause is not caught up with, whatever the policy."""
    engine = build(tick)
    seen = Seen(engine, "schedule")
    async with engine:
        await engine.schedule("s", "* * * * * *", tick.bind(), catch_up="all")
        await seen.until(len)
        await engine.pause_schedule("s")
        await engine.pause_schedule("s")
        paused_at = (await one(engine)).paused_at
        assert paused_at is not None
        await put_back(sql, "1 hour")
        await tell(engine)
        await moment(1.2)
        count = len(seen.all)
        await engine.resume_schedule("s")
        await seen.until(lambda found: len(found) > count)
    assert seen.all[count - 1].occurrence <= paused_at
    assert seen.all[count].occurrence > paused_at + SECOND / 2


async def test_trigger_is_besides_the_times(build: Build, sql: Sql) -> None:
    """The next time stays; a paused schedule too can be triggered, any number of times, from a client as well."""
    async with build(tick), build(tick, queues={}) as client:
        await client.schedule("s", "@yearly", tick.bind(n=3), paused=True)
        before = await sql("SELECT * FROM {s}.schedules")
        handles = [await client.trigger_schedule("s") for _ in range(2)]
        now = await database_now(sql)
        for handle in handles:
            at = datetime.fromisoformat(await handle.result(timeout=10))
            assert timedelta(0) <= now - at < 10 * SECOND
        assert handles[0].id != handles[1].id
        assert await sql("SELECT * FROM {s}.schedules") == before
        assert await runs(sql) == []


async def test_a_backfill_starts_what_was_not_started_once(build: Build, sql: Sql) -> None:
    """R18: neither what its turn has started nor what an earlier backfill has; the times are the occurrences'."""
    async with build(tick, queues={}) as client:
        await client.schedule("s", "30 * * * *", tick.bind(), catch_up="all", priority=2)
        made = (await one(client)).next_at
        assert made is not None
        await put_back(sql, "3 hours")
        async with build(tick):

            async def caught_up() -> bool:
                return (await one(client)).next_at == made

            await eventually(caught_up)
        assert len(await runs(sql)) == 3
        since = made - 10 * HOUR
        assert await client.backfill_schedule("s", since, made, priority=9) == 7
        assert await client.backfill_schedule("s", since - HOUR, made + 5 * HOUR) == 1
        assert await client.backfill_schedule("s", since, made) == 0
        assert await runs(sql) == [made - n * HOUR for n in range(11, 0, -1)]
        rows = await sql("SELECT due_at, priority FROM {s}.instances WHERE due_at < %s ORDER BY 1", made - 3 * HOUR)
        assert rows == [(made - 11 * HOUR, 2), *((made - n * HOUR, 9) for n in range(10, 3, -1))]
        found = await one(client)
        assert (found.next_at, found.last_at) == (made, made - HOUR)


async def test_a_backfill_of_a_span_is_half_open_and_goes_in_batches(build: Build, sql: Sql) -> None:
    async with build(tick, queues={}) as client:
        await client.schedule("s", "* * * * *", tick.bind(), paused=True)
        since = datetime(2026, 1, 1, tzinfo=UTC)
        assert await client.backfill_schedule("s", since, since + timedelta(minutes=1200)) == 1200
        found = await runs(sql)
        assert (found[0], found[-1], len(found)) == (since, since + timedelta(minutes=1199), 1200)
        assert await client.backfill_schedule("s", since, since + timedelta(minutes=1201)) == 1


async def test_an_interval_can_be_backfilled_to_before_it_was_made(build: Build, sql: Sql) -> None:
    async with build(tick, queues={}) as client:
        await client.schedule("s", None, tick.bind(), every=HOUR, paused=True)
        ((anchor,),) = await sql("SELECT anchor FROM {s}.schedules")
        assert await client.backfill_schedule("s", anchor - 3 * HOUR, anchor + HOUR) == 4
        assert await runs(sql) == [anchor - n * HOUR for n in (3, 2, 1, 0)]


async def test_a_backfill_of_what_is_forgotten_is_refused(build: Build, sql: Sql) -> None:
    """R18: rather than start an occurrence again."""
    async with build(tick, queues={}) as client:
        await client.schedule("s", "@hourly", tick.bind())
        await sql("UPDATE {s}.schedules SET forgotten = '[2026-01-01 10:00Z, 2026-01-02 10:00Z]'")
        day = datetime(2026, 1, 1, 10, tzinfo=UTC)
        for since, until in [(-1, 1), (3, 5), (24, 30), (-5, 100)]:
            with pytest.raises(InvalidArgument, match="not remembered any more"):
                await client.backfill_schedule("s", day + since * HOUR, day + until * HOUR)
        assert await runs(sql) == []
        assert await client.backfill_schedule("s", day - 2 * HOUR, day) == 2
        assert await client.backfill_schedule("s", day + 25 * HOUR, day + 26 * HOUR) == 1


async def test_wrong_spans_and_names(build: Build) -> None:
    async with build(tick, queues={}) as client:
        await client.schedule("s", "@hourly", tick.bind())
        now = datetime(2026, 1, 1, tzinfo=UTC)
        for since, until, message in [
            (now, now, "the earlier one first"),
            (now, now - HOUR, "the earlier one first"),
            (now.replace(tzinfo=None), now, "since=.* has no time zone"),
            (now, "tomorrow", "until='tomorrow'"),
            (None, now, "since=None"),
        ]:
            with pytest.raises(InvalidArgument, match=message):
                await client.backfill_schedule("s", since, until)  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument, match="priority"):
            await client.backfill_schedule("s", now - HOUR, now, priority=10**6)
        for call in (client.pause_schedule, client.resume_schedule, client.trigger_schedule):
            with pytest.raises(NoSuchSchedule, match="'nope'") as raised:
                await call("nope")
            assert raised.value.name == "nope"
            with pytest.raises(InvalidArgument):
                await call("")
        with pytest.raises(NoSuchSchedule):
            await client.backfill_schedule("nope", now - HOUR, now)
        assert await client.unschedule("nope") is False


async def test_a_schedule_that_is_removed_starts_nothing_more(build: Build, sql: Sql) -> None:
    engine = build(tick)
    seen = Seen(engine, "schedule")
    async with engine:
        await engine.schedule("s", "* * * * * *", tick.bind())
        await seen.until(len)
        assert await engine.unschedule("s") is True
        count = len(await runs(sql))
        await moment(1.2)
        assert await engine.schedules() == []
        assert len(await runs(sql)) == count


# What can go wrong ----------------------------------------------------------------------------------


async def test_a_schedule_that_this_worker_can_not_read_holds_up_nobody(
    build: Build, sql: Sql, caplog: pytest.LogCaptureFixture
) -> None:
    """Made by a newer version, or with a time zone that this machine lacks: it is left to others, and said once."""
    engine = build(tick)
    seen = Seen(engine, "schedule")
    async with build(tick, queues={}) as client:
        for name in ("zone", "line", "policy", "fine"):
            await client.schedule(name, "* * * * * *", tick.bind())
        await sql("UPDATE {s}.schedules SET tz = 'Mars/Olympus' WHERE name = 'zone'")
        await sql("UPDATE {s}.schedules SET cron = '@sunrise' WHERE name = 'line'")
        await sql("UPDATE {s}.schedules SET catch_up = 'some' WHERE name = 'policy'")
        with caplog.at_level(logging.WARNING, "gen_durable"):
            async with engine:
                await seen.until(lambda found: len(found) >= 3)
    assert {event.name for event in seen.all} == {"fine"}
    said = [record.getMessage() for record in caplog.records if "left to other workers" in record.getMessage()]
    assert sorted(text.split("'")[1] for text in said) == ["line", "policy", "zone"]


async def test_a_schedule_that_can_not_be_started_holds_up_nobody(
    build: Build, sql: Sql, caplog: pytest.LogCaptureFixture
) -> None:
    """Each is tried alone when a transaction of several fails; the one that fails is tried again."""
    engine = build(tick)
    seen = Seen(engine, "schedule")
    async with build(tick, queues={}) as client:
        for name in ("bad", "fine"):
            await client.schedule(name, "* * * * * *", tick.bind())
        await sql("UPDATE {s}.schedules SET lane = 99 WHERE name = 'bad'")
        async with engine:
            await seen.until(lambda found: len(found) >= 2)
            assert {event.name for event in seen.all} == {"fine"}
            assert "the schedule 'bad' can't be started" in caplog.text
            await sql("UPDATE {s}.schedules SET lane = (SELECT lane FROM {s}.schedules WHERE name = 'fine')")
            await seen.until(lambda found: any(event.name == "bad" for event in found))


@job(retry=Backoff(max_attempts=3, initial=0.01, jitter=False))
async def daily(ctx: Context, price: Decimal, day: datetime | None = None) -> list[Any]:
    if ctx.attempt < 2:
        raise RuntimeError("not yet")
    return [str(price), day, ctx.due_at]


class Timed(Machine, name="timed"):
    day: datetime
    note: str = ""

    @step
    async def only(self, ctx: Context) -> Done:
        return Done(self.day)


async def test_a_field_gets_the_occurrence_s_time_and_keeps_it_over_retries(build: Build, sql: Sql) -> None:
    """``ctx.due_at`` is the time of the try; the field's is the occurrence's. Nothing else of the state changes."""
    price = Decimal("1.10000000000000000000000000000000001")
    engine = build(daily, Timed)
    seen = Seen(engine, "schedule")
    async with engine:
        await engine.schedule("s", "* * * * * *", daily.bind(price), time_field="day")
        event = (await seen.until(len))[0]
        shown, day, due_at = await engine.result(event.id, timeout=10)
        assert (shown, datetime.fromisoformat(day)) == (str(price), event.occurrence)
        assert datetime.fromisoformat(due_at) > event.occurrence
        await engine.unschedule("s")
        before = await database_now(sql)
        await engine.schedule("t", "@daily", Timed(day=before), time_field="day", paused=True)
        handle = await engine.trigger_schedule("t")
        assert before <= datetime.fromisoformat(await handle.result(timeout=10)) <= await database_now(sql)
        assert (await one(engine)).time_field == "day"
        since = datetime(2026, 3, 3, tzinfo=UTC)
        assert await engine.backfill_schedule("t", since, since + HOUR) == 1
        ((id_,),) = await sql("SELECT instance_id FROM {s}.schedule_runs WHERE occurrence = %s", since)
        assert datetime.fromisoformat(await engine.result(id_, timeout=10)) == since
        for field, message in [("nope", "has no field 'nope'.* it has: day, note"), ("price", None)]:
            instance = daily.bind(price) if field == "price" else Timed(day=before)
            with pytest.raises(InvalidArgument, match=message or "must be able to hold a datetime"):
                await engine.schedule("wrong", "@daily", instance, time_field=field)


async def test_a_key_of_the_same_name_is_no_obstacle(build: Build) -> None:
    """What a schedule starts has no key."""
    async with build(tick) as engine:
        await engine.insert(tick.bind(), key="s", delay=60)
        await engine.schedule("s", "@yearly", tick.bind())
        assert (await engine.trigger_schedule("s")).key is None
        with pytest.raises(DuplicateInstance):
            await engine.insert(tick.bind(), key="s")
