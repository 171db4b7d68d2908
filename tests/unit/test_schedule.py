"""When schedules are due: cron lines, time zones, intervals, and what is caught up with (SPEC section 8, R18)."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from gen_durable import Engine, Schedule, job
from gen_durable._times import ALIASES, GRACE, Times, due, times_of
from gen_durable.errors import ConfigurationError, InvalidArgument

PARIS = ZoneInfo("Europe/Paris")
ANCHOR = datetime(2026, 1, 1, 0, 0, 0, 123456, UTC)


@job
async def tick(n: int = 0) -> None: ...


@job
async def unknown() -> None: ...


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def local(line: str, since: str, count: int, tz: str = "Europe/Paris") -> list[str]:
    """The occurrences after a moment, by the clock on the wall there."""
    found = Schedule("s", line, tick.bind(), tz=tz).upcoming(at(since), count)
    return [moment.astimezone(ZoneInfo(tz)).strftime("%d %H:%M:%S %z") for moment in found]


# Lines ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "first"),
    [
        ("0 9 * * *", "2026-01-01T09:00:00"),
        ("  0   9 * *  mon-fri ", "2026-01-01T09:00:00"),
        ("*/15 * * * *", "2026-01-01T00:15:00"),
        ("30 */10 * * * *", "2026-01-01T00:00:30"),
        ("* * * * * *", "2026-01-01T00:00:01"),
        ("0 0 L * *", "2026-01-31T00:00:00"),
        ("0 0 * * MON#1", "2026-01-05T00:00:00"),
        ("0 0 29 2 *", "2028-02-29T00:00:00"),
        ("@hourly", "2026-01-01T01:00:00"),
        ("@DAILY", "2026-01-02T00:00:00"),
        ("@midnight", "2026-01-02T00:00:00"),
        ("@weekly", "2026-01-04T00:00:00"),
        ("@monthly", "2026-02-01T00:00:00"),
        ("@yearly", "2027-01-01T00:00:00"),
        ("@annually", "2027-01-01T00:00:00"),
    ],
)
def test_a_line_says_when(line: str, first: str) -> None:
    """Five fields, six with seconds first, or an alias."""
    assert Schedule("s", line, tick.bind()).upcoming(ANCHOR, 1) == [datetime.fromisoformat(first + "+00:00")]


@pytest.mark.parametrize(
    "line",
    ["* * * *", "* * * * * * *", "61 * * * *", "* 24 * * *", "0 0 30 2 *", "1-0 * * * *", "*/0 * * * *", "@reboot",
     "@every 5m", "nine", "0 9 * * XYZ", "² * * * *", "* * * * L"],
)  # fmt: skip
def test_a_line_that_does_not_parse_is_refused_with_its_value_and_the_mend(line: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        Schedule("nightly", line, tick.bind())
    message = str(raised.value)
    assert "'nightly'" in message
    assert repr(line) in message
    assert all(alias in message for alias in ALIASES)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"cron": "* * */20 * 1L"}, "never comes"),
        ({"cron": ""}, "cron must not be empty"),
        ({"cron": "1" * 600}, "at most 512 bytes"),
        ({"cron": 5}, "must be a string, not 5"),
        ({"cron": None}, "cron=None and every=None: give one"),
        ({"every": 5}, "give one of them"),
        ({"cron": None, "every": 0.5}, "every=0.5: an interval is at least 1 second"),
        ({"cron": None, "every": timedelta(seconds=-1)}, "every must be 0 or more"),
        ({"cron": None, "every": "1h"}, "every must be seconds"),
        ({"cron": None, "every": timedelta(days=40000)}, "100 years"),
        ({"tz": "Europe/Nowhere"}, "tz='Europe/Nowhere': there is no such time zone"),
        ({"tz": "../etc/passwd"}, "there is no such time zone"),
        ({"tz": "/etc/passwd"}, "there is no such time zone"),
        ({"tz": "Europe"}, "there is no such time zone"),
        ({"tz": ""}, "tz must not be empty"),
        ({"tz": PARIS}, "tz must be a string"),
        ({"tz": None}, "tz must be a string"),
        ({"catch_up": "most"}, "catch_up='most': use"),
        ({"catch_up": True}, "catch_up=True"),
        ({"name": ""}, "name must not be empty"),
        ({"name": "n" * 513}, "at most 512 bytes"),
        ({"name": "a\0"}, "NUL"),
        ({"instance": tick}, "give a machine, like"),
        ({"instance": None}, "give a machine, like"),
        ({"queue": ""}, "queue must not be empty"),
        ({"priority": 40000}, "priority must be from"),
        ({"time_field": ""}, "time_field must not be empty"),
        ({"paused": 1}, "paused=1"),
    ],
)
def test_a_wrong_argument_is_refused_when_the_schedule_is_built(wrong: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"name": "s", "cron": "@daily", "instance": tick.bind()} | wrong
    with pytest.raises(InvalidArgument) as raised:
        Schedule(**given)
    assert message in str(raised.value)


def test_schedules_of_an_engine_are_checked_when_it_is_built() -> None:
    fine = Schedule("s", "@daily", tick.bind())
    assert Engine(machines=[tick], schedules=[fine]).settings.schedules == (fine,)
    for wrong, message in [
        ("daily", "give a list of Schedule"),
        (5, "give a list of Schedule"),
        (["0 9 * * *"], r"schedules has '0 9 \* \* \*'"),
        ([fine, Schedule("s", "@hourly", tick.bind())], "two schedules have the name 's'"),
        ([Schedule("u", "@daily", unknown.bind())], "'u' starts .*unknown.* not among the engine's machines"),
    ]:
        with pytest.raises(ConfigurationError, match=message):
            Engine(machines=[tick], schedules=wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="aware datetime"):
        fine.upcoming(datetime(2026, 1, 1))  # noqa: DTZ001


# Clocks that are changed ----------------------------------------------------------------------------


def test_a_gap_moves_a_fixed_time_to_its_end() -> None:
    """R18: on 29 March 2026 there is no 02:30 in Paris: the occurrence is at 03:00, and the next day's as always."""
    assert local("30 2 * * *", "2026-03-28T12:00Z", 2) == ["29 03:00:00 +0200", "30 02:30:00 +0200"]
    # Several of one gap are one, also together with the one that is due at its end.
    assert local("0,30 2 * * *", "2026-03-28T12:00Z", 2) == ["29 03:00:00 +0200", "30 02:00:00 +0200"]
    assert local("0 2,3 * * *", "2026-03-28T12:00Z", 2) == ["29 03:00:00 +0200", "30 02:00:00 +0200"]


def test_an_overlap_starts_a_fixed_time_once() -> None:
    """R18: on 25 October 2026 Paris has 02:30 twice: the first counts, also for who asks between the two."""
    first, after = "25 02:30:00 +0200", "26 02:30:00 +0100"
    assert local("30 2 * * *", "2026-10-24T12:00Z", 2) == [first, after]
    assert local("30 2 * * *", "2026-10-25T01:15Z", 1) == [after]


def test_lines_of_every_hour_or_minute_follow_the_time_that_passes() -> None:
    """R18: an hour that is not there has none, one that is there twice has them twice."""
    assert local("*/30 * * * *", "2026-03-29T00:15Z", 2) == ["29 01:30:00 +0100", "29 03:00:00 +0200"]
    assert local("*/30 * * * *", "2026-10-24T23:45Z", 5) == [
        "25 02:00:00 +0200", "25 02:30:00 +0200", "25 02:00:00 +0100", "25 02:30:00 +0100", "25 03:00:00 +0100",
    ]  # fmt: skip


def test_lines_with_seconds_follow_the_time_that_passes() -> None:
    """R18: six fields are outside cron's rule: left out in a gap, twice in an overlap."""
    assert local("0 30 2 * * *", "2026-03-28T12:00Z", 1) == ["30 02:30:00 +0200"]
    assert local("0 30 2 * * *", "2026-10-24T12:00Z", 2) == ["25 02:30:00 +0200", "25 02:30:00 +0100"]


def test_a_gap_at_midnight() -> None:
    assert local("0 0 * * *", "2026-09-05T12:00Z", 2, "America/Santiago") == ["06 01:00:00 -0300", "07 00:00:00 -0300"]


@pytest.mark.parametrize("line", ["30 2 * * *", "*/15 1-3 * * *", "0 30 2 * * *", "7 */2 * * *"])
@pytest.mark.parametrize("day", ["2026-03-25", "2026-10-21"])
def test_what_comes_next_does_not_depend_on_where_one_asks(line: str, day: str) -> None:
    """R18: workers that ask at different moments agree on each occurrence."""
    times, began = times_of(line, None, "Europe/Paris"), at(f"{day}T00:00Z")
    walk = times.walk(began - timedelta(days=2), ANCHOR)
    known = [next(walk) for _ in range(400)]
    assert known == sorted(set(known))
    for minutes in range(0, 7 * 1440, 11):
        moment = began + timedelta(minutes=minutes)
        assert times.after(moment, ANCHOR) == next(one for one in known if one > moment)


# Intervals ------------------------------------------------------------------------------------------


def test_an_interval_counts_from_its_anchor_and_does_not_drift() -> None:
    times = times_of(None, 90, "UTC")
    assert times.every == timedelta(seconds=90)
    assert times.after(ANCHOR, ANCHOR) == ANCHOR + timedelta(seconds=90)
    assert times.after(ANCHOR - timedelta(seconds=1), ANCHOR) == ANCHOR
    late = ANCHOR + timedelta(days=1000, seconds=1)
    assert times.after(late, ANCHOR) == ANCHOR + timedelta(days=1000, seconds=90)
    odd = times_of(None, timedelta(seconds=1, microseconds=3), "UTC")
    assert odd.after(ANCHOR + 9_999_999 * odd.every, ANCHOR) == ANCHOR + 10_000_000 * odd.every  # type: ignore[operator]


# What is caught up with -----------------------------------------------------------------------------

HOURLY = Times("0 * * * *", None, "UTC")
EVERY_SECOND = Times("* * * * * *", None, "UTC")
NOON = at("2026-05-05T12:00Z")


def hours(*numbers: int) -> list[datetime]:
    return [NOON + timedelta(hours=number) for number in numbers]


@pytest.mark.parametrize("policy", ["last", "all", "none"])
@pytest.mark.parametrize("late", [0.0, GRACE.total_seconds()])
def test_what_is_on_time_is_started_whatever_the_policy(policy: Any, late: float) -> None:
    now = NOON + timedelta(seconds=late)
    assert due(HOURLY, ANCHOR, NOON, now, policy, 100) == (hours(0), hours(1)[0])
    seconds = [NOON + timedelta(seconds=n) for n in range(int(late) + 1)]
    assert due(EVERY_SECOND, ANCHOR, NOON, now, policy, 100) == (seconds, seconds[-1] + timedelta(seconds=1))


def test_what_was_missed_goes_by_the_policy() -> None:
    """R18: catch_up "last" starts the latest once, "all" each, "none" only what is on time."""
    now = NOON + timedelta(hours=3, minutes=10)
    assert due(HOURLY, ANCHOR, NOON, now, "last", 100) == (hours(3), hours(4)[0])
    assert due(HOURLY, ANCHOR, NOON, now, "all", 100) == (hours(0, 1, 2, 3), hours(4)[0])
    assert due(HOURLY, ANCHOR, NOON, now, "none", 100) == ([], hours(4)[0])
    just = NOON + timedelta(hours=3, seconds=4)
    assert due(HOURLY, ANCHOR, NOON, just, "last", 100) == (hours(3), hours(4)[0])
    assert due(HOURLY, ANCHOR, NOON, just, "none", 100) == (hours(3), hours(4)[0])


def test_all_that_was_missed_comes_in_batches() -> None:
    now = NOON + timedelta(hours=5)
    assert due(HOURLY, ANCHOR, NOON, now, "all", 2) == (hours(0, 1), hours(2)[0])
    assert due(HOURLY, ANCHOR, hours(4)[0], now, "all", 2) == (hours(4, 5), hours(6)[0])


def test_the_latest_of_a_long_outage_is_found_without_counting() -> None:
    """Nine years of seconds are not walked through."""
    line, looks = "* * 9 * * *", []

    class Counting(Times):
        def after(self, moment: datetime, anchor: datetime) -> datetime | None:
            looks.append(moment)
            return super().after(moment, anchor)

    times = Counting(line, None, "Europe/Paris")
    found = times.latest(at("2026-01-01T08:00:00Z"), at("2035-01-01T00:00:00Z"), ANCHOR)
    assert found == at("2034-12-31T08:59:59Z")
    assert len(looks) < 100


def test_the_latest_is_what_walking_finds() -> None:
    dice = random.Random(5)
    for line in ("0 9 * * *", "*/7 * * * *", "30 2 * * *", "0 30 2 * * *", "0 0 1 * *", "15 */3 * * MON"):
        times = times_of(line, None, "Europe/Paris")
        for _ in range(25):
            known = times.after(ANCHOR + timedelta(days=dice.randrange(300)), ANCHOR)
            assert known is not None
            until, last = known + timedelta(seconds=dice.randrange(900_000)), known
            for found in times.walk(known, ANCHOR):
                if found > until:
                    break
                last = found
            assert times.latest(known, until, ANCHOR) == last, (line, known, until)
