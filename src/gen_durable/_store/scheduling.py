"""Operations on schedules; those that start occurrences are to run in one transaction (``together``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import msgspec

from gen_durable._store.inserting import Lane, NewInstance, insert_all
from gen_durable._store.operation import Catalog, Operation, Row
from gen_durable._times import Times
from gen_durable.snapshot import ScheduleInfo

__all__ = [
    "Due",
    "Found",
    "Started",
    "Template",
    "Turn",
    "backfill",
    "declare",
    "due_schedules",
    "find",
    "listed",
    "resume",
    "start_due",
    "trigger",
    "with_time",
]


class Template(NamedTuple):
    """What an occurrence starts."""

    lane: Lane
    step: str
    state: bytes
    priority: int
    time_field: str | None
    gate: str | None = None
    own_gate: str | None = None
    rate: str | None = None
    weight: int | None = None

    def row(self, time: datetime, at: datetime | None, priority: int | None = None) -> NewInstance:
        """The instance to insert for an occurrence at ``time``, due at ``at`` (None: now)."""
        chosen = self.priority if priority is None else priority
        state = self.state if self.time_field is None else with_time(self.state, self.time_field, time)
        return NewInstance(
            self.lane, self.step, msgspec.Raw(state), None, chosen, None, at,
            gate=self.gate, own_gate=self.own_gate, rate=self.rate, weight=self.weight,
        )  # fmt: skip


def with_time(state: bytes, field: str, time: datetime) -> bytes:
    """A stored state with a time in one of its fields; the others stay as they are, to the last digit."""
    fields = msgspec.json.decode(state, type=dict[str, msgspec.Raw])
    fields[field] = msgspec.Raw(msgspec.json.encode(time))
    return msgspec.json.encode(fields)


class Due(NamedTuple):
    """A schedule whose turn is next; ``wait`` in seconds."""

    id: int
    rev: int
    name: str
    times: Times
    catch_up: str
    anchor: datetime
    next_at: datetime
    now: datetime
    wait: float


class Found(NamedTuple):
    """A schedule, and the clock when it was read."""

    now: datetime
    id: int
    rev: int
    times: Times
    anchor: datetime
    template: Template
    machine: str
    forgotten: tuple[datetime, datetime] | None


class Turn(NamedTuple):
    """A schedule that is due: what of it is started now, and what comes next (None: nothing any more)."""

    schedule: Due
    occurrences: Sequence[datetime]
    following: datetime | None


class Started(NamedTuple):
    """An occurrence and the instance that was inserted for it."""

    name: str
    occurrence: datetime
    id: int


def _times(cron: str | None, every: float | None, tz: str) -> Times:
    return Times(cron, None if every is None else timedelta(seconds=every), tz)


def _utc(moment: datetime) -> datetime:
    """Times of one zone are subtracted by the clock on the wall: a pooler's session may have any zone."""
    return moment.astimezone(UTC)


def due_schedules(sql: Catalog, batch: int) -> Operation[list[Due]]:
    """The schedules whose turn is next."""
    rows = yield sql["schedules/due"].bind(batch=batch)
    return [
        Due(id_, rev, name, _times(cron, every, tz), catch_up, _utc(anchor), _utc(next_at), _utc(now), wait)
        for id_, rev, name, cron, every, tz, catch_up, anchor, next_at, now, wait in rows
    ]


def start_due(sql: Catalog, turns: Sequence[Turn]) -> Operation[tuple[int, list[Started]]]:
    """Moves schedules on and starts what has come: how many were moved (the others somebody else has, or is about to),
    and what was started."""
    listed = [
        {
            "id": schedule.id,
            "rev": schedule.rev,
            "from_at": schedule.next_at,
            "next_at": following,
            "last_at": occurrences[-1] if occurrences else None,
        }
        for schedule, occurrences, following in turns
    ]
    rows = yield sql["schedules/advance"].bind(turns=msgspec.json.encode(listed).decode())
    templates = {row[0]: Template(*row[1:]) for row in rows}
    wanted = [
        (turn.schedule.id, at, templates[turn.schedule.id].row(at, at))
        for turn in turns
        if turn.schedule.id in templates
        for at in turn.occurrences
    ]
    names = {turn.schedule.id: turn.schedule.name for turn in turns}
    started = yield from _start(sql, wanted)
    return len(rows), [Started(names[schedule], at, id_) for schedule, at, id_ in started]


def _start(
    sql: Catalog, wanted: Sequence[tuple[int, datetime, NewInstance]]
) -> Operation[list[tuple[int, datetime, int]]]:
    """Under the schedules' locks: those occurrences that were not started yet, with their instances."""
    if not wanted:
        return []
    rows = yield sql["schedules/unstarted"].bind(
        schedules=[schedule for schedule, _, _ in wanted], occurrences=[at for _, at, _ in wanted]
    )
    fresh = [wanted[place - 1] for (place,) in rows]
    if not fresh:
        return []
    inserting = yield from insert_all(sql, [row for _, _, row in fresh], together=True)
    started = [(schedule, at, place.id) for (schedule, at, _), place in zip(fresh, inserting.placed, strict=True)]
    schedules, occurrences, instances = (list(column) for column in zip(*started, strict=True))
    yield sql["schedules/record"].bind(schedules=schedules, occurrences=occurrences, instances=instances)
    return started


def _found(row: Row) -> Found | None:
    now, id_, rev, cron, every, tz, anchor, lane, step, state, priority, time_field, machine, since, until, *limits = (
        row
    )
    if id_ is None:
        return None
    template = Template(lane, step, state.encode(), priority, time_field, *limits)
    span = None if since is None else (_utc(since), _utc(until))
    return Found(_utc(now), id_, rev, _times(cron, every, tz), _utc(anchor), template, machine, span)


def find(sql: Catalog, name: str) -> Operation[Found | None]:
    """One schedule."""
    rows = yield sql["schedules/find"].bind(name=name)
    return _found(rows[0])


def declare(
    sql: Catalog, name: str, times: Times, catch_up: str, row: NewInstance, time_field: str | None, *, paused: bool
) -> Operation[bool]:
    """Makes or changes a schedule; whether anything is new."""
    rows = yield sql["schedules/find"].bind(name=name)
    now = _utc(rows[0][0])
    made = yield sql["schedules/declare"].bind(
        name=name,
        cron=times.cron,
        every=None if times.every is None else times.every.total_seconds(),
        tz=times.tz,
        catch_up=catch_up,
        lane=row.lane,
        priority=row.priority,
        step=row.step,
        state=bytes(row.state).decode(),
        time_field=time_field,
        gate=row.gate,
        own_gate=row.own_gate,
        rate=row.rate,
        weight=row.weight,
        next_at=times.after(now, now),
        made_at=now,
        paused=paused,
    )
    return bool(made)


def resume(sql: Catalog, name: str) -> Operation[bool]:
    """Lets a schedule go on with what comes next; whether there is one."""
    yield sql["schedules/hold"].bind(name=name)
    found = yield from find(sql, name)
    if found is None:
        return False
    following = found.times.after(found.now, found.anchor)
    yield sql["schedules/resume"].bind(id=found.id, rev=found.rev, next_at=following)
    return True


def trigger(sql: Catalog, name: str) -> Operation[tuple[str, int] | None]:
    """Starts an instance now, besides the schedule's times: its machine and id; None when there is no such schedule."""
    found = yield from find(sql, name)
    if found is None:
        return None
    inserting = yield from insert_all(sql, [found.template.row(found.now, None)])
    return found.machine, inserting.placed[0].id


def backfill(
    sql: Catalog, name: str, choose: Callable[[Found], Sequence[datetime]], priority: int | None
) -> Operation[tuple[Sequence[datetime], int] | None]:
    """Starts those of the chosen occurrences that were not: what was chosen, and how many of it were started."""
    yield sql["schedules/hold"].bind(name=name)
    found = yield from find(sql, name)
    if found is None:
        return None
    chosen = choose(found)
    started = yield from _start(sql, [(found.id, at, found.template.row(at, at, priority)) for at in chosen])
    return chosen, len(started)


def listed(sql: Catalog) -> Operation[list[ScheduleInfo]]:
    """All schedules, by name."""
    rows = yield sql["schedules/list"].bind()
    names = ScheduleInfo.__slots__
    infos = []
    for row in rows:
        fields = dict(zip(names, row, strict=True))
        fields["every"] = None if fields["every"] is None else timedelta(seconds=fields["every"])
        fields["state"] = msgspec.json.decode(fields["state"])
        infos.append(ScheduleInfo(**fields))
    return infos
