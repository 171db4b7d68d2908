"""Schedules: what is started at which times."""

from __future__ import annotations

import builtins
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice, takewhile
from typing import Any

import msgspec

from gen_durable._checks import check_name, check_priority
from gen_durable._store import scheduling
from gen_durable._store.scheduling import Found
from gen_durable._times import CatchUp
from gen_durable.client.handle import Handle
from gen_durable.client.inserting import BulkItem, InsertingCalls, check_at
from gen_durable.errors import InvalidArgument, NoSuchSchedule
from gen_durable.machine import Machine, MachineSpec
from gen_durable.schedule import Schedule
from gen_durable.snapshot import ScheduleInfo

__all__ = ["SchedulingCalls"]

BACKFILL_ROWS = 500  # occurrences of one transaction
_TICK = timedelta(microseconds=1)


class SchedulingCalls(InsertingCalls):
    """``schedule``, ``schedules`` and what steers them."""

    async def schedule(
        self,
        name: str,
        cron: str | None,
        instance: Machine,
        *,
        every: timedelta | float | None = None,
        tz: str = "UTC",
        catch_up: CatchUp = "last",
        queue: str | None = None,
        priority: int | None = None,
        time_field: str | None = None,
        paused: bool = False,
        conn: Any = None,
    ) -> None:
        """Makes a schedule, or changes the one of this name; :class:`gen_durable.Schedule` explains the arguments.

        One that is the same already stays untouched, with its next time and its pause: each process may say it at each
        start. Other times (``cron``, ``every``, ``tz``) count from now; anything else leaves the next time as it is.
        With ``conn``, a connection of the caller's, it takes effect when the caller's transaction commits.

        Raises:
            InvalidArgument: an argument is wrong; nothing was written.
            InvalidState: the state can't be stored.
            DatabaseUnreachable: no connection, or it broke.
        """
        given = Schedule(name, cron, instance, every, tz, catch_up, queue, priority, time_field, paused)
        await self._declare(given, conn)

    async def _declare(self, given: Schedule, conn: Any = None) -> None:
        runs = self._over(conn)
        spec, lane, row = await self._checked(BulkItem(given.instance, queue=given.queue, priority=given.priority))
        row.lane = await self._lane(spec, lane.queue)
        if given.time_field is not None:
            _check_time_field(given.name, spec, bytes(row.state), given.time_field)
        times = given.times()
        made = await runs.call(
            scheduling.declare(self._sql, given.name, times, given.catch_up, row, given.time_field, paused=given.paused)
        )
        if made and conn is None:
            self._schedules_changed()

    def _schedules_changed(self) -> None:
        """The workers of other processes are told by the statement."""
        if self._local is not None:
            self._local.schedules_changed()

    async def schedules(self) -> builtins.list[ScheduleInfo]:
        """All schedules of the schema, by name, also those of other programs and of machines not known here."""
        found: builtins.list[ScheduleInfo] = await self._session.call(scheduling.listed(self._sql))
        return found

    async def unschedule(self, name: str, *, conn: Any = None) -> bool:
        """Removes a schedule; what it has started goes on. Answers whether there was one.

        One that a process names in its ``schedules=`` is there again when that starts.

        Args:
            name: the schedule.
            conn: a connection of the caller's: then it takes effect when the caller's transaction commits.
        """
        return bool(await self._over(conn).fetch(self._sql["schedules/remove"].bind(name=_name(name))))

    async def pause_schedule(self, name: str, *, conn: Any = None) -> None:
        """Stops a schedule until it is resumed; occurrences in between are not started, and not caught up with.

        Args:
            name: the schedule.
            conn: a connection of the caller's: then it takes effect when the caller's transaction commits.

        Raises:
            NoSuchSchedule: there is none.
        """
        if not await self._over(conn).fetch(self._sql["schedules/pause"].bind(name=_name(name))):
            raise NoSuchSchedule(name)

    async def resume_schedule(self, name: str, *, conn: Any = None) -> None:
        """Lets a paused schedule go on with its next occurrence; one that is not paused stays as it is.

        Args:
            name: the schedule.
            conn: a connection of the caller's: then it takes effect when the caller's transaction commits.

        Raises:
            NoSuchSchedule: there is none.
        """
        if not await self._over(conn).together(scheduling.resume(self._sql, _name(name))):
            raise NoSuchSchedule(name)
        if conn is None:
            self._schedules_changed()

    async def trigger_schedule(self, name: str, *, conn: Any = None) -> Handle:
        """Starts an instance now, besides the schedule's times, which stay as they are; also of a paused one.

        Args:
            name: the schedule.
            conn: a connection of the caller's: then it takes effect when the caller's transaction commits.

        Raises:
            NoSuchSchedule: there is none.
        """
        started = await self._over(conn).call(scheduling.trigger(self._sql, _name(name)))
        if started is None:
            raise NoSuchSchedule(name)
        machine, id_ = started
        if self._local is not None and conn is None:
            self._local.inserted(set(self._settings.queues), None)
        return self._handle(id_, None, machine)

    async def backfill_schedule(
        self, name: str, since: datetime, until: datetime, *, priority: int | None = None
    ) -> int:
        """Starts the occurrences of a past span that were not started yet; answers with how many there were.

        Each is started at most once, whether in its turn or by a backfill, however often this is called: when it was
        cut short, call it again. What is still to come is left to its turn. It takes no ``conn``: it commits a few
        hundred at a time, so that a long span holds no lock for long, and no caller's transaction could undo that.

        Args:
            name: the schedule, which may be paused.
            since: an aware datetime: where the span begins.
            until: where it ends; an occurrence at that very time is not in it.
            priority: another than the schedule's: lower ones (a greater number) let current work pass.

        Raises:
            NoSuchSchedule: there is none.
            InvalidArgument: an argument is wrong, or the span reaches into a time of which it is not remembered any
                more what was started.
        """
        first, end = check_at(since, "since"), check_at(until, "until")
        if first is None or end is None or first >= end:
            raise InvalidArgument(f"since={since!r}, until={until!r}: give two times, the earlier one first")
        if priority is not None:
            check_priority(priority, "priority")
        total, chosen = 0, [first - _TICK]
        while chosen:
            answer = await self._session.together(
                scheduling.backfill(self._sql, _name(name), partial(_choose, name, chosen[-1], end), priority)
            )
            if answer is None:
                raise NoSuchSchedule(name)
            chosen, count = answer
            total += count
        return total


def _check_time_field(name: str, spec: MachineSpec, state: bytes, field: str) -> None:
    known = sorted(msgspec.json.decode(state))
    if field not in known:
        raise InvalidArgument(
            f"the schedule {name!r}: {spec.name} has no field {field!r} for time_field=; it has: "
            f"{', '.join(known) or 'none'}"
        )
    if problem := spec.codec.problem_with(field, datetime(2000, 1, 1, tzinfo=UTC)):
        raise InvalidArgument(
            f"the schedule {name!r}: time_field={field!r} of {spec.name} must be able to hold a datetime: {problem}"
        )


def _choose(name: str, after: datetime, end: datetime, found: Found) -> builtins.list[datetime]:
    """The next occurrences of a span that have come."""
    if found.forgotten and after < found.forgotten[1] and end > found.forgotten[0]:
        raise InvalidArgument(
            f"which occurrences of {name!r} from {found.forgotten[0]} to {found.forgotten[1]} were started is not "
            "remembered any more: choose a span before or after that, or insert what is missing by hand"
        )
    walk = found.times.walk(after, found.anchor)
    return list(islice(takewhile(lambda at: at < end and at <= found.now, walk), BACKFILL_ROWS))


def _name(name: str) -> str:
    return check_name(name, "the schedule's name")
