"""Schedules as the engine's settings hold them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice

from gen_durable._checks import check_name, check_priority
from gen_durable._times import CatchUp, Times, check_catch_up, times_of
from gen_durable.errors import InvalidArgument
from gen_durable.machine import Machine

__all__ = ["Schedule"]


@dataclass(frozen=True, slots=True)
class Schedule:
    """Starts an instance at each time of a cron line, or once in each interval; once in the whole cluster.

    ::

        Schedule("daily-report", "0 9 * * *", DailyReport(), tz="Europe/Paris")
        Schedule("sync", None, sync.bind("all"), every=timedelta(minutes=10))

    Attributes:
        name: its identity, at most 512 bytes.
        cron: five fields (minute, hour, day of the month, month, day of the week), six with seconds first, or one of
            ``@hourly``, ``@daily``, ``@midnight``, ``@weekly``, ``@monthly``, ``@yearly``, ``@annually``.
        instance: what each occurrence starts: a machine or a bound job.
        every: an interval instead of a cron line, at least a second; it counts from when the schedule was made.
        tz: the time zone of the cron line, a name of the tz database.
        catch_up: after a time without any worker: start the ``"last"`` missed occurrence, ``"all"``, or ``"none"``.
        queue: another queue than the machine's.
        priority: by default the machine's.
        time_field: the name of a field of the instance that gets the occurrence's time (UTC), whatever it holds here;
            unlike ``ctx.due_at`` it stays over retries.
        paused: whether it is paused when it is made; later that is for ``pause_schedule`` and ``resume_schedule``.

    Raises:
        InvalidArgument: one of them is wrong.
    """

    name: str
    cron: str | None
    instance: Machine
    every: timedelta | float | None = None
    tz: str = "UTC"
    catch_up: CatchUp = "last"
    queue: str | None = None
    priority: int | None = None
    time_field: str | None = None
    paused: bool = False

    def __post_init__(self) -> None:
        check_name(self.name, "the schedule's name")
        if isinstance(self.instance, type) or not isinstance(self.instance, Machine):
            raise InvalidArgument(
                f"the schedule {self.name!r} has the instance {self.instance!r}: "
                "give a machine, like Report(day=1), or a bound job, like report.bind(day=1)"
            )
        try:
            self.times()
            check_catch_up(self.catch_up)
        except InvalidArgument as error:
            raise InvalidArgument(f"the schedule {self.name!r}: {error}") from None
        if self.queue is not None:
            check_name(self.queue, "queue")
        if self.priority is not None:
            check_priority(self.priority, "priority")
        if self.time_field is not None:
            check_name(self.time_field, "time_field")
        if not isinstance(self.paused, bool):
            raise InvalidArgument(f"paused={self.paused!r}: use True or False")

    def times(self) -> Times:
        """When it is due, checked."""
        return times_of(self.cron, self.every, self.tz)

    def upcoming(self, after: datetime, count: int = 5) -> list[datetime]:
        """The first occurrences after a moment, in UTC, without a database: to check a line before it is used.

        Args:
            after: an aware datetime; an interval counts from it.
            count: how many at most.

        Raises:
            InvalidArgument: a naive datetime.
        """
        if not isinstance(after, datetime) or after.utcoffset() is None:
            raise InvalidArgument(f"after={after!r}: give an aware datetime, like datetime.now(UTC)")
        found: Iterator[datetime] = self.times().walk(after, after)
        return list(islice(found, count))
