"""What the client answers with: typed, frozen views of rows."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

__all__ = [
    "LimitInfo",
    "LimitRef",
    "Page",
    "QueueCount",
    "QueueInfo",
    "ScheduleInfo",
    "Snapshot",
    "Transition",
    "Why",
    "WorkerInfo",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """An instance as it was when it was read.

    Attributes:
        id: its number.
        machine, version: what it runs.
        queue, priority: where and how urgently (lower first).
        step: the step that runs next, or that ended it.
        status: ``runnable``, ``executing``, ``awaiting_signal``, ``awaiting_children``, ``blocked``, ``done``,
            ``failed`` or ``cancelled``.
        attempt: how many runs of this step have not finished it (of a terminal one: before the last run).
        crashes: how many of those ended with the death of their worker.
        key: its business identity, or None.
        state: the committed state, as plain JSON values.
        result: what it ended with, or None.
        error: the last error: ``type``, ``message``, ``traceback``; or None.
        worker: the worker that holds it (of a terminal one: that ended it), or None.
        rev: the number of changes so far; the fencing token.
        due_at: when it may run next, or goes on without what it waits for; None for a terminal one, and for one that
            waits without a timeout.
        inserted_at, updated_at, finished_at: by the database's clock.
        awaits: the names of the signals that it waits for; None when it does not.
        children_left: how many ends of children it still waits for; None when it does not.
        parent_id: the instance that spawned it, or None.
    """

    id: int
    machine: str
    version: int
    queue: str
    step: str
    status: str
    priority: int
    attempt: int
    crashes: int
    key: str | None
    state: dict[str, Any]
    result: Any
    error: dict[str, Any] | None
    worker: int | None
    rev: int
    due_at: datetime | None
    inserted_at: datetime
    updated_at: datetime
    finished_at: datetime | None
    awaits: list[str] | None = None
    children_left: int | None = None
    parent_id: int | None = None

    @property
    def terminal(self) -> bool:
        """Whether it has ended."""
        return self.finished_at is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A page of instances, newest first.

    Attributes:
        items: the instances.
        next: pass it as ``after=`` for the next page; None when there is none.
    """

    items: list[Snapshot]
    next: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """One row of an instance's history: what ended one run of a step.

    Attributes:
        seq: grows with each transition; the instance's ``rev`` after it.
        step, attempt: what ran, and which try it was (from 0).
        outcome: ``next``, ``retry``, ``sleep``, ``await``, ``spawn``, ``done``, ``failed``, ``cancelled`` or
            ``crashed``.
        at: when it was committed, by the database's clock.
        took: how many seconds the step ran; None for a crash.
        worker: who ran it; None for a crash.
        error: what went wrong, or None.
        state: the state after it, where the history keeps states; else None.
    """

    seq: int
    step: str
    attempt: int
    outcome: str
    at: datetime
    took: float | None
    worker: int | None
    error: dict[str, Any] | None
    state: dict[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueCount:
    """How many instances of one machine have one status in one queue."""

    queue: str
    machine: str
    version: int
    status: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueInfo:
    """A queue that somebody has used, and whether it is paused for the whole cluster."""

    name: str
    paused: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInfo:
    """A worker process that is registered.

    Attributes:
        id: its number, new at each start.
        name, host, pid: who it is.
        queues: its queues and how many steps of each it runs at once.
        started_at, seen_at: by the database's clock.
        silent: seconds since its last heartbeat.
    """

    id: int
    name: str
    host: str
    pid: int
    queues: dict[str, int]
    started_at: datetime
    seen_at: datetime
    silent: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleInfo:
    """A schedule as it was when it was read.

    Attributes:
        name: its name.
        cron, every, tz: when it is due: a cron line or an interval, and the time zone of the line.
        catch_up: ``last``, ``all`` or ``none``: what becomes of occurrences that nobody was there to start.
        machine, version, queue, priority, state: what each occurrence starts, and where.
        time_field: the field of the state that gets the occurrence's time, or None.
        paused_at: since when it is paused, or None.
        next_at: its next occurrence; None when it is paused or never comes again.
        last_at: the latest occurrence that was started at its time or caught up with, or None.
        created_at, updated_at: when it was made and last changed, by the database's clock.
    """

    name: str
    cron: str | None
    every: timedelta | None
    tz: str
    catch_up: str
    machine: str
    version: int
    queue: str
    priority: int
    state: dict[str, Any]
    time_field: str | None
    paused_at: datetime | None
    next_at: datetime | None
    last_at: datetime | None
    created_at: datetime
    updated_at: datetime

    @property
    def paused(self) -> bool:
        """Whether it is paused."""
        return self.paused_at is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitInfo:
    """A limit as it was when it was read, and how much of it was in use.

    Attributes:
        kind: ``concurrency`` (of a key), ``rate``, or ``queue`` (its cap in the cluster).
        name: the key's or the rate's name, or the queue.
        limit: how many at once; of a rate: how many tokens come in ``per`` seconds.
        per, burst: of a rate, else None.
        lines: how many lines of that name are in use, or were in the last minute: one for each partition.
        holding: how many instances hold its slots; of a rate: have their tokens and have not started; of a queue:
            execute. 10,000 stands for that and more, here and in ``waiting``.
        waiting: how many wait for it, in all its lines; of a queue: how many are due in it.
    """

    kind: Literal["concurrency", "rate", "queue"]
    name: str
    limit: float
    per: float | None
    burst: int | None
    lines: int
    holding: int
    waiting: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitRef:
    """A limit for which an instance waits.

    Attributes:
        kind: ``concurrency``, ``rate`` or ``queue``.
        name: its name.
        partition: the partition of the key, or None.
        limit: how many at once; of a rate: how many tokens come in ``per`` seconds.
        per, burst: of a rate, else None.
    """

    kind: Literal["concurrency", "rate", "queue"]
    name: str
    partition: str | None
    limit: float
    per: float | None = None
    burst: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Why:
    """Why an instance is where it is, and what it waits for.

    Attributes:
        id: the instance.
        status: as in :class:`Snapshot`.
        reason: one sentence.
        limit: the limit for which it waits, or None.
        holders: the ids of up to 10 instances that hold the slots of that limit.
        holding: how many do, for a concurrency key or the cap of a queue.
        ahead: how many are before it, in its limit's line or, when it is runnable, in its queue. 10,000 stands for that
            and more.
        seconds: until it may run, where that can be told: at this rate, or until its due time. For one that waits for
            signals or children: until its deadline.
    """

    id: int
    status: str
    reason: str
    limit: LimitRef | None = None
    holders: tuple[int, ...] = ()
    holding: int | None = None
    ahead: int | None = None
    seconds: float | None = None
