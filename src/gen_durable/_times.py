"""When a schedule's occurrences are: cron lines in a time zone, and intervals. Arithmetic only; it asks no clock."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import Literal, TypeAlias, get_args
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from gen_durable._checks import check_name, check_seconds
from gen_durable.errors import InvalidArgument

__all__ = ["GRACE", "CatchUp", "Times", "check_catch_up", "due", "times_of"]

CatchUp: TypeAlias = Literal["last", "all", "none"]

GRACE = timedelta(seconds=5)  # an occurrence that is later than this was missed: nobody was there to start it
SHORTEST = 1.0  # seconds of an interval
ALIASES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_SOME_DAY = datetime(2000, 1, 1)  # noqa: DTZ001 - to find out whether a line ever fits, in any zone
_TICK = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Times:
    """A cron line in a time zone, or an interval; made by :func:`times_of`, which checks it.

    Attributes:
        cron: the line in cron's own form (no alias), or None.
        every: the interval, or None.
        tz: the time zone's name.
    """

    cron: str | None
    every: timedelta | None
    tz: str

    def walk(self, moment: datetime, anchor: datetime) -> Iterator[datetime]:
        """The occurrences after a moment, in UTC, in order; an interval's are whole multiples of it from the anchor."""
        if self.every is not None:
            count = (moment - anchor) // self.every
            while True:
                count += 1
                yield anchor + count * self.every
        last = moment
        try:
            lines = CronSim(self.cron or "", moment.astimezone(_zone(self.tz)))
        except CronSimError as error:  # a newer version of the parser may have taken it
            raise InvalidArgument(f"cron={self.cron!r} can't be read: {error}") from None
        for local in lines:
            found = local.astimezone(UTC)
            # Where clocks go back, a line at a fixed hour names the first of the two, also when asked in the second.
            if found > last:
                last = found
                yield found

    def after(self, moment: datetime, anchor: datetime) -> datetime | None:
        """The first occurrence after a moment; None when there is none any more."""
        return next(self.walk(moment, anchor), None)

    def latest(self, known: datetime, until: datetime, anchor: datetime) -> datetime:
        """The last occurrence up to ``until``, not before ``known``, which is one.

        By halving, in as many looks as the span has bits: after a long outage nobody counts each second of it.
        """
        low, high = known, until
        while (found := self.after(low, anchor)) is not None and found <= until:
            middle = low + (high - low) / 2
            candidate = self.after(middle, anchor)
            if candidate is not None and candidate <= until:
                low = candidate
            else:
                high, low = middle, found
        return low


def times_of(cron: str | None, every: timedelta | float | None, tz: str) -> Times:
    """Checks a schedule's times.

    Raises:
        InvalidArgument: not exactly one of cron and every, a line that doesn't parse or never comes, an interval of
            less than a second, a time zone that is not known here.
    """
    if (cron is None) == (every is None):
        raise InvalidArgument(f"cron={cron!r} and every={every!r}: give one of them, a cron line or an interval")
    _zone(check_name(tz, "tz"))
    if every is not None:
        seconds = check_seconds(every, "every")
        if seconds < SHORTEST:
            raise InvalidArgument(f"every={every!r}: an interval is at least {SHORTEST:g} second")
        return Times(None, timedelta(seconds=seconds), tz)
    line = " ".join(check_name(cron, "cron").split())
    line = ALIASES.get(line.lower(), line)
    mend = (
        'use "minute hour day-of-month month day-of-week", like "0 9 * * MON-FRI" (six fields: seconds first), '
        f"or one of {', '.join(ALIASES)}"
    )
    try:
        comes = next(CronSim(line, _SOME_DAY), None)
    except CronSimError as error:
        raise InvalidArgument(f"cron={cron!r} can't be read: {error}; {mend}") from None
    if comes is None:
        raise InvalidArgument(f"cron={cron!r} never comes: no day of 50 years fits it; {mend}")
    return Times(line, None, tz)


@lru_cache(maxsize=256)
def _zone(tz: str) -> tzinfo:
    if tz == "UTC":
        return UTC
    try:
        return ZoneInfo(tz)
    except (KeyError, ValueError, OSError):
        raise InvalidArgument(
            f'tz={tz!r}: there is no such time zone; use a name of the tz database, like "Europe/Paris", or "UTC"'
        ) from None


def check_catch_up(value: object) -> CatchUp:
    """``value`` when it is a policy.

    Raises:
        InvalidArgument: it is not.
    """
    for policy in get_args(CatchUp):
        if value == policy:
            return policy  # type: ignore[no-any-return]  # one of the literals
    raise InvalidArgument(f'catch_up={value!r}: use "last", "all" or "none"')


def due(
    times: Times, anchor: datetime, next_at: datetime, now: datetime, catch_up: CatchUp, most: int
) -> tuple[list[datetime], datetime | None]:
    """What to start of what has come since ``next_at`` (an occurrence, not later than now), and what comes after that.

    What is not later than :data:`GRACE` is on time, whatever the policy. Where something was missed, ``"last"`` starts
    the latest that has come, ``"none"`` only what is on time, and ``"all"`` all of it, ``most`` at once: then what
    comes after may have come too.
    """
    if now - next_at <= GRACE or catch_up == "all":
        found = [next_at]
        for following in times.walk(next_at, anchor):
            if following > now or len(found) == most:
                return found, following
            found.append(following)
        return found, None
    if catch_up == "last":
        return [times.latest(next_at, now, anchor)], times.after(now, anchor)
    found = []
    for following in times.walk(now - GRACE - _TICK, anchor):
        if following > now:
            return found, following
        found.append(following)
    return found, None
