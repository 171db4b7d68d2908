"""What a step is told about its instance and this run of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

__all__ = ["ChildResult", "Context", "Signal"]


@dataclass(frozen=True, slots=True)
class Signal:
    """A signal in an instance's inbox.

    Attributes:
        id: its number; of one instance's signals the older has the lower.
        name: its name.
        payload: what was sent with it, as plain JSON values, or None.
        sent_at: when it was stored (aware, by the database's clock).
    """

    id: int
    name: str
    payload: Any
    sent_at: datetime


@dataclass(frozen=True, slots=True)
class ChildResult:
    """A child of the spawn that a step waited for.

    Attributes:
        id: its number.
        machine: the name of its machine or job.
        key: its business key, or None.
        status: ``done``, ``failed`` or ``cancelled``; where the join opened early, also what it does now.
        result: what it ended with, or None.
        error: why it failed or was cancelled: a dict with ``type`` and ``message``; or None.
    """

    id: int
    machine: str
    key: str | None
    status: str
    result: Any
    error: dict[str, Any] | None


class Context:
    """The second argument of a step: which instance runs, where, and how often it was tried.

    A job function gets it through a parameter annotated ``Context``. It is a fresh object for each run.

    Attributes:
        id: the instance's id.
        key: its business key, or None.
        machine: the name of its machine or job.
        version: the version of its machine.
        queue: the queue that it was claimed from.
        step: the name of the step that runs.
        attempt: the number of earlier runs of this step that did not finish it; 0 on the first.
        crashes: how many workers died while they ran this step.
        priority: its priority, lower first.
        inserted_at: when it was inserted (aware, by the database's clock).
        due_at: when this run became due (aware, by the database's clock).
        worker: the id of the worker that runs it.
        client: the engine's client, to insert, read and steer other instances: in an ``async def`` a
            :class:`gen_durable.Engine`, whose calls are awaited; in a ``def`` a :class:`gen_durable.SyncClient`.
        awaited: the signals of the names that it waited for, oldest first; empty for a step that did not wait.
        inbox: all its signals that were there when it was claimed, oldest first.
        timed_out: whether it was woken by its timeout: of an ``Await``, and no signal that is new has come; of a
            ``Spawn``, and the join had not opened.
        children: the children of the ``Spawn`` that it waited for, in the order given; empty otherwise.
    """

    __slots__ = (
        "attempt",
        "awaited",
        "children",
        "client",
        "crashes",
        "due_at",
        "id",
        "inbox",
        "inserted_at",
        "key",
        "machine",
        "priority",
        "queue",
        "step",
        "timed_out",
        "version",
        "worker",
    )

    def __init__(
        self,
        *,
        id: int,
        key: str | None,
        machine: str,
        version: int,
        queue: str,
        step: str,
        attempt: int,
        crashes: int,
        priority: int,
        inserted_at: datetime,
        due_at: datetime,
        worker: Any,
        client: Any,
        awaited: Sequence[Signal] = (),
        inbox: Sequence[Signal] = (),
        timed_out: bool = False,
        children: Sequence[ChildResult] = (),
    ) -> None:
        self.id = id
        self.key = key
        self.machine = machine
        self.version = version
        self.queue = queue
        self.step = step
        self.attempt = attempt
        self.crashes = crashes
        self.priority = priority
        self.inserted_at = inserted_at
        self.due_at = due_at
        self.worker = worker
        self.client = client
        self.awaited = list(awaited)
        self.inbox = list(inbox)
        self.timed_out = timed_out
        self.children = list(children)

    def __repr__(self) -> str:
        return f"<Context of {self.machine} {self.id} at {self.step!r}, attempt {self.attempt}>"
