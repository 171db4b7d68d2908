"""The service that starts the occurrences of schedules. Each worker has it; one of them starts each occurrence."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import psycopg

from gen_durable._runtime.link import Link
from gen_durable._runtime.service import Service
from gen_durable._store.operation import Catalog, drive
from gen_durable._store.scheduling import Due, Turn, due_schedules, start_due
from gen_durable._times import check_catch_up, due
from gen_durable.errors import InvalidArgument
from gen_durable.events import Hooks, ScheduleEvent, emit

__all__ = ["Schedules"]

log = logging.getLogger("gen_durable")

BATCH = 100  # schedules of one look, which go into one transaction
ROWS = 1000  # occurrences of one transaction, where many were missed
TAKEN_SECONDS = 0.05  # until a schedule is looked at again that another worker is just starting
FAILED_SECONDS = 1.0


class Schedules(Service):
    """Sleeps until the next occurrence of any schedule by the database's clock, and starts it.

    Any worker starts any schedule's: what is inserted is stored with the schedule, and waits for one that knows it.
    Nothing is asked in between: whoever makes or changes a schedule tells.
    """

    name = "schedules"

    def __init__(
        self, link: Link, sql: Catalog, hooks: Hooks, look: float, announce: Callable[[str | None], None]
    ) -> None:
        super().__init__()
        self._link = link
        self._sql = sql
        self._hooks = hooks
        self._look = look
        self._announce = announce
        self._complained: dict[int, int] = {}  # by schedule: the definition that can't be read here

    async def once(self) -> float:
        """Starts what has come; answers with the seconds until the next, by the look interval at the latest."""
        began = time.monotonic()
        found = await drive(due_schedules(self._sql, BATCH), self._link.fetch)
        come = [schedule for schedule in found if schedule.wait <= 0]
        turns = [turn for schedule in come if (turn := self._turn(schedule, max(ROWS // len(come), 1))) is not None]
        if turns:
            return await self._start(turns)
        delay = min([self._look, *(schedule.wait for schedule in found if schedule.wait > 0)])
        # Since the look a statement of another service may have had the connection.
        return max(delay - (time.monotonic() - began), 0.0005)

    def _turn(self, schedule: Due, most: int) -> Turn | None:
        """What has come of a schedule; None when that can't be told here."""
        try:
            policy = check_catch_up(schedule.catch_up)
            chosen = due(schedule.times, schedule.anchor, schedule.next_at, schedule.now, policy, most)
        except InvalidArgument as error:  # made by a newer version, or with time zones that this machine lacks
            if self._complained.get(schedule.id) != schedule.rev:
                self._complained[schedule.id] = schedule.rev
                log.warning("the schedule %r is left to other workers: %s", schedule.name, error)
            return None
        return Turn(schedule, *chosen)

    async def _start(self, turns: Sequence[Turn]) -> float:
        """Starts what has come, all in one transaction; answers with the seconds until it is worth another look."""
        try:
            moved, started = await self._link.together(start_due(self._sql, turns))
        except (psycopg.Error, LookupError) as error:
            if len(turns) > 1:  # one that can't be started must not hold up the others
                return max([await self._start([turn]) for turn in turns])
            what = str(error).strip()
            log.warning("the schedule %r can't be started: %s: %s", turns[0].schedule.name, type(error).__name__, what)
            return FAILED_SECONDS
        if started:
            self._announce(None)
        for name, occurrence, id_ in started:
            log.debug("the schedule %r has started %d for %s", name, id_, occurrence)
            if self._hooks.schedule:
                emit(self._hooks.schedule, ScheduleEvent(name=name, occurrence=occurrence, id=id_))
        return 0.0 if moved == len(turns) else TAKEN_SECONDS
