"""The statuses of an instance and the outcomes of a transition, by number and by name."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["TERMINAL", "Status", "TransitionKind"]


class Status(IntEnum):
    """Where an instance is; the number is what the tables hold.

    ``SCHEDULED`` is a ``runnable`` instance that is due later; outside the tables it is called ``runnable``.
    """

    RUNNABLE = 0
    SCHEDULED = 1
    EXECUTING = 2
    AWAITING_SIGNAL = 3
    AWAITING_CHILDREN = 4
    BLOCKED = 5
    DONE = 6
    FAILED = 7
    CANCELLED = 8

    @property
    def label(self) -> str:
        """The public name: ``runnable``, ``executing``, ``done``, …"""
        return _LABELS[self]

    @property
    def terminal(self) -> bool:
        """Whether the instance has ended."""
        return self >= Status.DONE


_LABELS = {status: "runnable" if status is Status.SCHEDULED else status.name.lower() for status in Status}

TERMINAL = frozenset({"done", "failed", "cancelled"})


class TransitionKind(IntEnum):
    """What ended one run of a step, as the history holds it."""

    NEXT = 0
    RETRY = 1
    SLEEP = 2
    DONE = 3
    FAILED = 4
    CANCELLED = 5
    CRASHED = 6
    AWAIT = 7
    SPAWN = 8

    @property
    def label(self) -> str:
        """The public name: ``next``, ``retry``, …"""
        return self.name.lower()
