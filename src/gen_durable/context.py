"""What a step is told about its instance and this run of it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

__all__ = ["Context"]


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
        client: the engine's client, to insert, read and steer other instances.
    """

    __slots__ = (
        "attempt",
        "client",
        "crashes",
        "due_at",
        "id",
        "inserted_at",
        "key",
        "machine",
        "priority",
        "queue",
        "step",
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

    def __repr__(self) -> str:
        return f"<Context of {self.machine} {self.id} at {self.step!r}, attempt {self.attempt}>"
