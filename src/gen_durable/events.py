"""Events of a running engine, for logs and metrics: ``engine.on("step", fn)``.

A hook is a plain function; it is called on the event loop, in the order of registration, and must not block. What it
raises is logged and goes no further. An event that nobody listens to is never built.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeAlias, get_args

from gen_durable.errors import ConfigurationError

__all__ = [
    "ClaimEvent",
    "CommitEvent",
    "DrainEvent",
    "EventName",
    "Hooks",
    "LimitEvent",
    "ReapedEvent",
    "ReconnectEvent",
    "ScheduleEvent",
    "StaleEvent",
    "StepEvent",
    "WorkerDeadEvent",
]

log = logging.getLogger("gen_durable")

EventName: TypeAlias = Literal[
    "step", "claim", "commit", "stale", "reaped", "worker_dead", "drain", "reconnect", "schedule", "limit"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEvent:
    """A step ran (its outcome is not committed yet).

    Attributes:
        id, machine, step, attempt, queue: what ran.
        outcome: ``next``, ``retry``, ``sleep``, ``await``, ``spawn``, ``done``, ``failed`` or ``cancelled``.
        took: seconds.
        error: what it raised, or None.
    """

    id: int
    machine: str
    step: str
    attempt: int
    queue: str
    outcome: str
    took: float
    error: BaseException | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimEvent:
    """A claim came back: ``wanted`` rows asked for, ``got`` received, in ``took`` seconds."""

    wanted: int
    got: int
    took: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitEvent:
    """A batch of outcomes was committed: ``size`` of them in ``took`` seconds, ``stale`` of them refused."""

    size: int
    stale: int
    took: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StaleEvent:
    """An outcome was refused, because its claim had been taken away: it changed nothing."""

    id: int
    machine: str
    step: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReapedEvent:
    """Claims of dead workers went back to their queues: ``count`` of them."""

    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerDeadEvent:
    """A worker was declared dead."""

    id: int
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainEvent:
    """The worker stops claiming; ``running`` steps are still at work."""

    running: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconnectEvent:
    """A connection was lost and is there again after ``took`` seconds.

    Attributes:
        connection: which: ``claim``, ``commit``, ``service`` or ``control``.
        took: seconds.
    """

    connection: str
    took: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleEvent:
    """This worker has started one occurrence of a schedule.

    Attributes:
        name: the schedule's.
        occurrence: the time that it was due at.
        id: the instance that was inserted for it.
    """

    name: str
    occurrence: datetime
    id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitEvent:
    """This worker has looked at what waits for a limit, because something had come or was freed.

    Attributes:
        kind: ``"concurrency"`` or ``"rate"``.
        name: the limit's.
        partition: of the key, or None.
        admitted: how many rows were brought forward.
        holding: of a concurrency key: how many rows hold it now; else None.
        left: slots that are free now, or tokens.
        throttled: whether rows still wait.
    """

    kind: Literal["concurrency", "rate"]
    name: str
    partition: str | None
    admitted: int
    holding: int | None
    left: float
    throttled: bool


Hook: TypeAlias = Callable[[Any], None]


class Hooks:
    """The hooks of one engine, by event."""

    __slots__ = tuple(get_args(EventName))

    def __init__(self) -> None:
        for name in get_args(EventName):
            setattr(self, name, [])

    step: list[Hook]
    claim: list[Hook]
    commit: list[Hook]
    stale: list[Hook]
    reaped: list[Hook]
    worker_dead: list[Hook]
    drain: list[Hook]
    reconnect: list[Hook]
    schedule: list[Hook]
    limit: list[Hook]

    def add(self, event: str, hook: Hook) -> None:
        """Registers a hook.

        Raises:
            ConfigurationError: for an unknown event, or what can't be called.
        """
        if event not in get_args(EventName):
            raise ConfigurationError(f"there is no event {event!r}; the events are {', '.join(get_args(EventName))}")
        if not callable(hook):
            raise ConfigurationError(f"the hook for {event!r} is {hook!r}: give a function that takes the event")
        getattr(self, event).append(hook)


def emit(hooks: list[Hook], event: object) -> None:
    """Calls each hook; what one raises is logged."""
    for hook in hooks:
        try:
            hook(event)
        except Exception:  # a user's hook must not stop the engine
            log.exception("a hook for %s raised", type(event).__name__)
