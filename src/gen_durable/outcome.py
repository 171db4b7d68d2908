"""What a step returns (its outcome), and the two exceptions with which any step can end early.

==================  =================================================================
``Next(step)``      commit the state and go to ``step``
``Retry(delay)``    run the same step again after ``delay`` seconds, ``attempt + 1``
``Sleep(s, then)``  a durable pause of ``s`` seconds, then ``then``
``Await(n, then)``  wait for a signal of the name ``n``, or one of several, then ``then``
``Spawn(c, then)``  insert the children ``c`` and wait for their end, then ``then``
``Done(result)``    the end: ``done``, with a result
``Stop(reason)``    the end: ``failed``, with a reason
==================  =================================================================

Outcomes are values: building one does nothing, and a wrong one is refused where it is built.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any, Final, Literal, TypeAlias

from gen_durable._checks import Seconds, check_name, check_priority, check_seconds, shown
from gen_durable.errors import InvalidArgument
from gen_durable.limits import LimitKey, check_weight, concurrency_line, rate_line

__all__ = [
    "KEEP",
    "Await",
    "Cancel",
    "Child",
    "Done",
    "Keep",
    "Next",
    "Outcome",
    "Retry",
    "RetryAfter",
    "Sleep",
    "Spawn",
    "StepRef",
    "Stop",
    "child",
]

StepRef: TypeAlias = Callable[..., Any] | str
"""A step: the machine's method (``self.ship`` or ``Checkout.ship``), or its name."""


class Keep(Enum):
    """The type of ``KEEP``: an option of ``Next`` that was not given leaves the row's value as it is."""

    KEEP = "keep"

    def __repr__(self) -> str:
        return "KEEP"


KEEP: Final = Keep.KEEP

KeyOption: TypeAlias = LimitKey | Literal[Keep.KEEP] | None
"""A key for one instance or step; None is no limit, ``KEEP`` what was declared."""
WeightOption: TypeAlias = int | Literal[Keep.KEEP] | None
"""Tokens; None is 1, ``KEEP`` what was declared."""


def step_name(step: object, what: str) -> str:
    """The name of the step that ``step`` refers to; whether the machine has it is checked by the engine.

    Raises:
        InvalidArgument: neither a method, a function nor a name.
    """
    if isinstance(step, str):
        return check_name(step, f"{what}: the name of a step")
    name = getattr(step, "__name__", None)
    if callable(step) and not isinstance(step, type) and isinstance(name, str) and name.isidentifier():
        return name
    mend = "give a step of the machine, like self.ship or 'ship'"
    if inspect.iscoroutine(step):
        step.close()
        mend = f"give the method itself, self.{name}, without calling it"
    raise InvalidArgument(f"{what} got {shown(step)}, which is not a step; {mend}")


@dataclass(frozen=True, slots=True, init=False)
class Next:
    """Commit the state and go to ``step``; ``attempt`` starts again at 0.

    Args:
        step: a step of the machine: ``self.ship``, or ``"ship"``.
        queue: move the instance to this queue; by default it stays where it is.
        priority: the new priority, -32768 to 32767, lower first; by default it stays as it is.
        delay: seconds or a timedelta from the commit, by the database's clock; None is at once.
        concurrency_key: for that step, instead of what it declares, or of the instance's own; None is no limit.
        rate_limit: for that step, instead of what it declares; None is no limit.
        weight: the tokens that the step takes there, instead of what it declares; None is 1.

    Raises:
        InvalidArgument: a value is wrong.
    """

    step: str
    queue: str | Literal[Keep.KEEP]
    priority: int | Literal[Keep.KEEP]
    delay: float | None
    concurrency_key: KeyOption
    rate_limit: KeyOption
    weight: WeightOption

    def __init__(
        self,
        step: StepRef,
        *,
        queue: str | Literal[Keep.KEEP] = KEEP,
        priority: int | Literal[Keep.KEEP] = KEEP,
        delay: Seconds | None = None,
        concurrency_key: KeyOption = KEEP,
        rate_limit: KeyOption = KEEP,
        weight: WeightOption = KEEP,
    ) -> None:
        if concurrency_key is not KEEP and concurrency_key is not None:
            concurrency_line(concurrency_key, "Next: concurrency_key")
        if rate_limit is not KEEP and rate_limit is not None:
            rate_line(rate_limit, "Next: rate_limit")
        if weight is not KEEP and weight is not None:
            check_weight(weight, "Next: weight")
        put = object.__setattr__
        put(self, "step", step_name(step, "Next"))
        put(self, "queue", queue if queue is KEEP else check_name(queue, "Next: queue"))
        put(self, "priority", priority if priority is KEEP else check_priority(priority, "Next: priority"))
        put(self, "delay", None if delay is None else check_seconds(delay, "Next: delay"))
        put(self, "concurrency_key", concurrency_key)
        put(self, "rate_limit", rate_limit)
        put(self, "weight", weight)

    @property
    def limited(self) -> bool:
        """Whether it says anything of limits."""
        return self.concurrency_key is not KEEP or self.rate_limit is not KEEP or self.weight is not KEEP

    def __repr__(self) -> str:
        names = ("queue", "priority", "delay", "concurrency_key", "rate_limit", "weight")
        options = {name: getattr(self, name) for name in names}
        given = [
            f", {name}={value!r}"
            for name, value in options.items()
            if value is not KEEP and not (name == "delay" and value is None)
        ]
        return f"Next({self.step!r}{''.join(given)})"


@dataclass(frozen=True, slots=True, init=False)
class Retry:
    """Run the same step again after ``delay`` (seconds or a timedelta), with ``attempt + 1``.

    The state that the step leaves is committed. There is no limit to the number of runs: look at
    ``ctx.attempt``, or raise an error and let a ``Backoff`` count.

    Raises:
        InvalidArgument: the delay is wrong.
    """

    delay: float

    def __init__(self, delay: Seconds = 0) -> None:
        object.__setattr__(self, "delay", check_seconds(delay, "Retry: delay"))


@dataclass(frozen=True, slots=True, init=False)
class Sleep:
    """A durable pause of ``seconds`` (a number or a timedelta), then the step ``then``.

    Raises:
        InvalidArgument: a value is wrong.
    """

    seconds: float
    then: str

    def __init__(self, seconds: Seconds, then: StepRef) -> None:
        object.__setattr__(self, "seconds", check_seconds(seconds, "Sleep: seconds"))
        object.__setattr__(self, "then", step_name(then, "Sleep: then"))


@dataclass(frozen=True, slots=True, init=False)
class Await:
    """Wait until a signal of one of ``names`` arrives, or until ``timeout`` has passed; then run ``then``.

    The woken step finds the signals of these names in ``ctx.awaited``, all others in ``ctx.inbox`` too, and
    ``ctx.timed_out``. An ``Await`` takes nothing out of the inbox: a step that has not got enough returns it again, and
    sleeps until a signal comes that no step was handed yet. ``Next``, ``Sleep`` and ``Spawn`` take out what the step
    was handed in ``ctx.awaited``; what earlier steps were handed, and left, is new again for the next ``Await``.

    Args:
        names: a name, or several.
        then: the step to run.
        timeout: seconds or a timedelta from the commit, by the database's clock; None waits for ever.

    Raises:
        InvalidArgument: a value is wrong.
    """

    names: tuple[str, ...]
    then: str
    timeout: float | None

    def __init__(self, names: str | Iterable[str], then: StepRef, *, timeout: Seconds | None = None) -> None:
        if not isinstance(names, str | list | tuple | set | frozenset):
            raise InvalidArgument(f"Await: names must be a string or several, not {shown(names)}")
        listed = [names] if isinstance(names, str) else list(names)
        if not listed:
            raise InvalidArgument("Await: names is empty; name at least one signal")
        checked = [check_name(name, "Await: the name of a signal") for name in listed]
        put = object.__setattr__
        put(self, "names", tuple(sorted(set(checked))))
        put(self, "then", step_name(then, "Await: then"))
        put(self, "timeout", None if timeout is None else check_seconds(timeout, "Await: timeout"))


@dataclass(frozen=True, slots=True)
class Child:
    """A machine or bound job to be spawned, with options of its own; made by :func:`child`."""

    instance: Any
    key: str | None = None
    queue: str | None = None
    priority: int | None = None
    delay: Seconds | None = None
    at: datetime | None = None
    concurrency_key: KeyOption = KEEP
    rate_limit: KeyOption = KEEP
    weight: WeightOption = KEEP


def child(
    instance: Any,
    *,
    key: str | None = None,
    queue: str | None = None,
    priority: int | None = None,
    delay: Seconds | None = None,
    at: datetime | None = None,
    concurrency_key: KeyOption = KEEP,
    rate_limit: KeyOption = KEEP,
    weight: WeightOption = KEEP,
) -> Child:
    """A child for ``Spawn`` with options of its own; they mean what they mean in ``Engine.insert``."""
    return Child(instance, key, queue, priority, delay, at, concurrency_key, rate_limit, weight)


@dataclass(frozen=True, slots=True, init=False)
class Spawn:
    """Insert ``children`` and wait for their end; then run ``then`` once, with ``ctx.children`` in the order given.

    The children and the wait are committed together. A failed or cancelled child has ended too. Without children
    ``then`` runs straight on.

    Args:
        children: machines and bound jobs, or what :func:`child` made of them.
        then: the step to run.
        join: when to go on: ``"all"`` of them have ended, ``"any"``, or a number.
        success: count only those that are done; it goes on early when the number can't be reached any more.
        timeout: seconds or a timedelta after which it goes on with what is there (``ctx.timed_out``); None waits for
            ever.
        cancel_rest: cancel those that have not ended when it goes on.

    Raises:
        InvalidArgument: a value is wrong.
    """

    children: tuple[Child, ...]
    then: str
    join: int
    success: bool
    timeout: float | None
    cancel_rest: bool

    def __init__(
        self,
        children: Iterable[Any],
        then: StepRef,
        *,
        join: Literal["all", "any"] | int = "all",
        success: bool = False,
        timeout: Seconds | None = None,
        cancel_rest: bool = False,
    ) -> None:
        if isinstance(children, str | bytes) or not isinstance(children, Iterable):
            raise InvalidArgument(f"Spawn: children must be a list of machines and jobs, not {shown(children)}")
        listed = tuple(given if isinstance(given, Child) else Child(given) for given in children)
        for given in listed:
            if isinstance(given.instance, type) or not hasattr(type(given.instance), "__durable__"):
                raise InvalidArgument(
                    f"Spawn got {shown(given.instance)}, which is neither a machine nor a bound job; "
                    "give Resize(...) or resize.bind(...)"
                )
        for name, flag in (("success", success), ("cancel_rest", cancel_rest)):
            if not isinstance(flag, bool):
                raise InvalidArgument(f"Spawn: {name} must be True or False, not {shown(flag)}")
        put = object.__setattr__
        put(self, "children", listed)
        put(self, "then", step_name(then, "Spawn: then"))
        put(self, "join", _join_count(join, len(listed)))
        put(self, "success", success)
        put(self, "timeout", None if timeout is None else check_seconds(timeout, "Spawn: timeout"))
        put(self, "cancel_rest", cancel_rest)


def _join_count(join: object, children: int) -> int:
    if join == "all":
        return children
    if join == "any":
        return min(children, 1)
    if isinstance(join, bool) or not isinstance(join, int):
        raise InvalidArgument(f'Spawn: join must be "all", "any" or a number, not {shown(join)}')
    if not 1 <= join <= max(children, 1):
        raise InvalidArgument(f"Spawn: join={join} of {children} children; use a number from 1 to {children}")
    return min(join, children)


@dataclass(frozen=True, slots=True)
class Done:
    """The end: the instance is ``done`` and ``result`` is recorded; anything that can be written as JSON."""

    result: Any = None


@dataclass(frozen=True, slots=True)
class Stop:
    """The end: the instance is ``failed`` and ``reason`` is recorded.

    Raises:
        InvalidArgument: the reason is not a string.
    """

    reason: str

    def __post_init__(self) -> None:
        if not isinstance(self.reason, str):
            raise InvalidArgument(f"Stop: reason must be a string, not {shown(self.reason)}; use str(...)")


Outcome: TypeAlias = Next | Retry | Sleep | Await | Spawn | Done | Stop


class Cancel(Exception):
    """Raise it in any step or job: the instance ends as ``cancelled``, without a retry.

    Attributes:
        reason: why, as recorded with the instance.
    """

    def __init__(self, reason: str = "cancelled by its step") -> None:
        if not isinstance(reason, str):
            raise InvalidArgument(f"Cancel: reason must be a string, not {shown(reason)}; use str(...)")
        super().__init__(reason)
        self.reason = reason


class RetryAfter(Exception):
    """Raise it in any step or job: the same step runs again after ``delay``, instead of the policy's delay.

    The run counts as an attempt, and the state from before it counts.

    Attributes:
        delay: seconds.

    Raises:
        InvalidArgument: the delay is wrong.
    """

    def __init__(self, delay: Seconds) -> None:
        self.delay = check_seconds(delay, "RetryAfter: delay")
        super().__init__(self.delay)

    def __str__(self) -> str:
        return f"retry after {self.delay:g} s"
