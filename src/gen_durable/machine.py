"""Machines and their steps: what a user declares, checked when the class is defined.

A subclass of ``Machine`` gets a ``MachineSpec`` as ``__durable__``: all that the engine needs to know of it.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import typing
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any, ClassVar, Literal, TypeAlias

from gen_durable._checks import Seconds, check_name, check_priority, check_seconds
from gen_durable.codec import StateCodec
from gen_durable.context import Context
from gen_durable.errors import ConfigurationError, DefinitionError
from gen_durable.fields import Constant, Fields, fields_of
from gen_durable.limits import DeclaredKey, DeclaredWeight, Limits, concurrency_line
from gen_durable.outcome import KEEP, KeyOption, Outcome, WeightOption
from gen_durable.retry import Backoff
from gen_durable.steps import (
    STEP,
    StepOptions,
    StepSpec,
    check_limits,
    check_method,
    check_retry,
    check_timeout,
    marked_steps,
    refuse,
    said,
    step,
    step_spec,
)

__all__ = ["Machine", "MachineSpec", "StepOptions", "StepSpec", "spec_of", "step"]

History: TypeAlias = Literal["off", "steps", "states"]

_UNSET: Any = object()
_OF_INSTANCES = ("queue", "priority", "retention", "history", "max_crashes", "concurrency_key")


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """A machine or job, as the engine knows it.

    Attributes:
        name: its name, as it is stored in the row; with ``version`` it is its identity.
        version: its version.
        cls: its class.
        kind: ``"machine"`` or ``"job"``.
        queue: the default queue of its instances.
        priority: their default priority.
        codec: encodes and decodes its state.
        steps: its steps by name, in the order of their declaration.
        initial: the name of the first step.
        on_error: its own error handler, called as ``on_error(machine, error, ctx)``, or None.
        retention: seconds that terminal instances stay; ``math.inf`` is for ever, None the engine's default.
        history: ``"off"``, ``"steps"`` or ``"states"``; None is the engine's default.
        max_crashes: how many deaths of workers in one step fail an instance; None is the engine's default.
        concurrency_key: of its instances, as it was declared, or None.
        limited: whether that, or what its first step declares, limits an instance when it is inserted.
    """

    name: str
    version: int
    cls: type[Machine]
    kind: Literal["machine", "job"]
    queue: str
    priority: int
    codec: StateCodec
    steps: Mapping[str, StepSpec]
    initial: str
    on_error: Callable[..., Any] | None = None
    retention: float | None = None
    history: History | None = None
    max_crashes: int | None = None
    concurrency_key: DeclaredKey = None
    limited: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        limited = self.concurrency_key is not None or self.steps[self.initial].limited
        object.__setattr__(self, "limited", limited)

    def load(self, decoded: dict[str, Any]) -> Machine:
        """A machine that holds ``decoded`` (what ``codec.decode`` gave); ``__init__`` is not called."""
        machine = object.__new__(self.cls)
        machine.__dict__.update(decoded)
        return machine

    def dump(self, machine: Machine) -> bytes:
        """The machine's fields as JSON, their types checked; other attributes are left out.

        Raises:
            InvalidState: a field was deleted, has a wrong type, or holds what can't be stored.
        """
        return self.codec.validate(machine.__dict__)

    def own_gate(self, machine: Machine, concurrency_key: KeyOption = KEEP) -> str | None:
        """The line of an instance's own concurrency key, for all its steps that declare none.

        Args:
            machine: the instance, as its first step will get it.
            concurrency_key: an insert's; ``KEEP`` is what the machine declares.

        Raises:
            InvalidArgument: the key, or what the declared function answers, is wrong.
        """
        what = f"{self.name}: concurrency_key"
        line: str | None = said(concurrency_key, self.concurrency_key, machine, what, concurrency_line)
        return line

    def limits_of(
        self,
        step_name: str,
        machine: Machine,
        own_gate: str | None,
        *,
        concurrency_key: KeyOption = KEEP,
        rate_limit: KeyOption = KEEP,
        weight: WeightOption = KEEP,
    ) -> Limits:
        """What a step is held to. Where neither the step nor the call says anything, that is ``own_gate`` alone.

        Declared functions are asked in this order: concurrency key, rate limit, weight (only where there is a rate
        limit); none that is overridden is.

        Args:
            step_name: the step.
            machine: with the state that the step will get.
            own_gate: the line of the instance's own concurrency key.
            concurrency_key, rate_limit, weight: instead of what the step declares, as on ``Next``.

        Raises:
            InvalidArgument: a value, or what a declared function answers, is wrong.
        """
        step = self.steps[step_name]
        return step.limits(machine, own_gate, concurrency_key, rate_limit, weight, what=f"{self.name}.{step_name}")


@typing.dataclass_transform(kw_only_default=True, field_specifiers=(dataclasses.field,))
class Machine:
    """A durable state machine: annotated fields are its state, ``@step`` methods its steps.

    ::

        class Checkout(Machine, queue="checkout"):
            order: int
            paid: int = 0

            @step
            async def start(self, ctx: Context) -> Next:
                self.paid = 100
                return Next(self.ship)

            @step
            async def ship(self, ctx: Context) -> Done:
                return Done({"order": self.order})

    ``Checkout(order=42)`` is a plain object; its fields went through their stored form, so they hold what the
    first step will get. Fields are given by keyword; mutable defaults are copied. Other attributes are
    allowed, and not stored.

    Class keywords, all optional; one that is not given is the base class's (but not ``name``, ``version``
    and ``abstract``):

    Args:
        name: the stored name; by default the class's qualified name.
        version: 1 or more; name and version together identify the machine.
        queue: where its instances go.
        priority: -32768 to 32767, lower first.
        retention: how long terminal instances stay: seconds, a timedelta, or ``math.inf`` for ever.
        history: ``"off"``, ``"steps"`` or ``"states"``.
        max_crashes: how many deaths of workers in one step fail an instance.
        timeout: of each step, in seconds or a timedelta.
        retry: of each step; without one, an error fails the instance.
        run_ahead: False hands instances back to the queue between steps.
        concurrency_key: at most K instances of one key run at once, in the whole cluster; K is 1, or what
            ``concurrency_limits`` says of its name. A key, or a function of the machine that answers with one (None is
            no limit): ``lambda self: ("crm", self.tenant)``, which is asked once, when an instance is inserted.
        rate_limit: of each step that does not say otherwise, as in ``@step``.
        weight: the same.
        transactional: True: each step that does not say otherwise runs in a transaction, as in ``@step``.
        abstract: only a base for other machines; it needs no step and can't be built.

    Raises:
        DefinitionError: the class can't be a machine; the message says why.
        InvalidState: (when an instance is built) an unknown or missing field, or a value that does not fit.
    """

    __durable__: ClassVar[MachineSpec]
    __durable_kind__: ClassVar[Literal["machine", "job"]] = "machine"
    __durable_given__: ClassVar[dict[str, Any]] = {}
    __durable_fields__: ClassVar[Fields] = ({}, {})

    def __init_subclass__(
        cls,
        *,
        name: str | None = None,
        version: int = 1,
        queue: str = _UNSET,
        priority: int = _UNSET,
        retention: Seconds | None = _UNSET,
        history: History | None = _UNSET,
        max_crashes: int | None = _UNSET,
        timeout: Seconds | None = _UNSET,
        retry: Backoff | None = _UNSET,
        run_ahead: bool = _UNSET,
        concurrency_key: DeclaredKey = _UNSET,
        rate_limit: DeclaredKey = _UNSET,
        weight: DeclaredWeight = _UNSET,
        transactional: bool = _UNSET,
        abstract: bool = False,
    ) -> None:
        super().__init_subclass__()
        given = {"queue": queue, "priority": priority, "retention": retention, "history": history}
        given |= {"max_crashes": max_crashes, "timeout": timeout, "retry": retry, "run_ahead": run_ahead}
        given |= {"concurrency_key": concurrency_key, "rate_limit": rate_limit, "weight": weight}
        given["transactional"] = transactional
        cls.__durable_given__ = cls.__durable_given__ | {k: v for k, v in given.items() if v is not _UNSET}
        options = _check_options(cls.__qualname__, cls.__durable_given__)
        hints, defaults = cls.__durable_fields__ = fields_of(cls)
        codec = StateCodec(cls.__qualname__, hints, defaults)
        steps, initial = cls._durable_steps(options)
        _check_members(cls, codec, steps)
        if abstract:
            cls.__durable__ = typing.cast("Any", None)
            return
        if initial is None:
            refuse(cls, *cls._durable_no_step())
        rates = [options["rate_limit"], *(step.rate_limit for step in steps.values())]
        if options["weight"] is not None and all(rate is None for rate in rates):
            refuse(cls, "a weight without a rate_limit has no effect", "give rate_limit= too")
        cls.__durable__ = MachineSpec(
            name=check_name(
                cls.__qualname__ if name is None else name, f"{cls.__qualname__}: name", error=DefinitionError
            ),
            version=check_count(version, f"{cls.__qualname__}: version"),
            cls=cls,
            kind=cls.__durable_kind__,
            codec=codec,
            steps=steps,
            initial=initial,
            on_error=_error_handler(cls),
            **{key: options[key] for key in _OF_INSTANCES},
        )

    def __init__(self, /, **fields: Any) -> None:
        spec = spec_of(self)
        self.__dict__.update(spec.codec.build(fields))

    def on_error(self, error: Any, ctx: Context, /) -> Outcome | Awaitable[Outcome]:
        """Decide what follows an exception in a step; override it, as ``async def`` or ``def``.

        The machine has the state from before the failed run. Return an outcome, or raise ``error`` again to
        follow the step's retry policy (fail, without one): that is what this default does.
        """
        raise error

    def __repr__(self) -> str:
        fields = (f"{name}={self.__dict__.get(name, ...)!r}" for name in type(self).__durable_fields__[0])
        return f"{type(self).__qualname__}({', '.join(fields)})"

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        names = type(self).__durable_fields__[0]
        return all(self.__dict__.get(name, ...) == other.__dict__.get(name, ...) for name in names)

    __hash__ = None  # type: ignore[assignment]  # it can change

    @classmethod
    def _durable_steps(cls, options: dict[str, Any]) -> tuple[dict[str, StepSpec], str | None]:
        """The steps by name and the initial one; jobs have another shape and override it."""
        marked = marked_steps(cls)
        run = inspect.getattr_static(cls, "run", None)
        if "run" not in marked and isinstance(run, FunctionType) and len(inspect.signature(run).parameters) == 2:
            refuse(
                cls,
                "run(self, ctx) is a job's shape",
                "derive from Job, decorate it with @step, or rename it",
            )
        steps = {name: step_spec(cls, name, func, options) for name, func in marked.items()}
        for klass in cls.__mro__:
            own = [n for n, f in marked.items() if getattr(f, STEP).initial and vars(klass).get(n) is f]
            if len(own) > 1:
                refuse(
                    cls,
                    f"steps {own[0]!r} and {own[1]!r} are both initial",
                    "keep initial=True on one of them",
                )
            if own:
                return steps, own[0]
        return steps, next(iter(steps), None)

    @classmethod
    def _durable_no_step(cls) -> tuple[str, str]:
        """Problem and mend for a class without a step."""
        return (
            "there is no step",
            "decorate a method (self, ctx) with @step, or say abstract=True for a base class",
        )


def spec_of(target: object) -> MachineSpec:
    """The spec of a machine, a job, an instance of one, or a ``@job`` function.

    Raises:
        ConfigurationError: ``target`` is something else, or an abstract class.
    """
    spec = getattr(target, "__durable__", None)
    if isinstance(spec, MachineSpec):
        return spec
    cls = target if isinstance(target, type) else type(target)
    if issubclass(cls, Machine):
        raise ConfigurationError(f"{cls.__qualname__} is abstract; use a subclass that has steps")
    raise ConfigurationError(
        f"{target!r} is neither a machine nor a job; give a Machine or Job class, or a @job function"
    )


def check_count(value: Any, what: str) -> int:
    """An int from 1 up to what the database's integer holds."""
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 2**31 - 1:
        raise DefinitionError(f"{what} must be an int of 1 or more, not {value!r}")
    return value


def _check_options(owner: str, given: Mapping[str, Any]) -> dict[str, Any]:
    retention, history, crashes = (given.get(name) for name in ("retention", "history", "max_crashes"))
    if history not in (None, "off", "steps", "states"):
        raise DefinitionError(f'{owner}: history must be "off", "steps" or "states", not {history!r}')
    flags = {"run_ahead": given.get("run_ahead", True), "transactional": given.get("transactional", False)}
    for option, value in flags.items():
        if not isinstance(value, bool):
            raise DefinitionError(f"{owner}: {option} must be True or False, not {value!r}")
    if retention is not None and retention != math.inf:
        retention = check_seconds(retention, f"{owner}: retention", error=DefinitionError)
    check_limits(given, owner)
    return {
        "queue": check_name(given.get("queue", "default"), f"{owner}: queue", error=DefinitionError),
        "priority": check_priority(given.get("priority", 0), f"{owner}: priority", error=DefinitionError),
        "retention": retention,
        "history": history,
        "max_crashes": None if crashes is None else check_count(crashes, f"{owner}: max_crashes"),
        "timeout": check_timeout(given.get("timeout"), owner),
        "retry": check_retry(given.get("retry"), owner),
        **flags,
        **{option: given.get(option) for option in ("concurrency_key", "rate_limit", "weight")},
    }


def _error_handler(cls: type[Machine]) -> Callable[..., Any] | None:
    handler: Callable[..., Any] = inspect.getattr_static(cls, "on_error")
    if handler is vars(Machine)["on_error"]:
        return None
    check_method(cls, handler, "on_error", ("self", "error", "ctx"))
    return handler


def _check_members(cls: type[Machine], codec: StateCodec, steps: Mapping[str, StepSpec]) -> None:
    for name in codec.fields:
        member = inspect.getattr_static(cls, name, None)
        if name in steps:
            refuse(cls, f"{name!r} is both a field and a step", "rename one of them")
        if hasattr(type(member), "__get__"):
            refuse(cls, f"field {name!r} is also a {type(member).__name__} of the class", "rename one of them")
        default = cls.__durable_fields__[1].get(name)
        if isinstance(default, Constant) and (problem := codec.problem_with(name, default.value)):
            refuse(cls, f"the default of field {name!r} {problem}", "mend the default, or the type")
    for name, member in vars(cls).items():
        if not isinstance(member, type) and isinstance(getattr(member, "__durable__", None), MachineSpec):
            refuse(cls, f"{name!r} is a @job inside a class", "move it to the module, or make it a @step")
    if inspect.getattr_static(cls, "__post_init__", None) is not None:
        refuse(cls, "__post_init__ is never called", "use default_factory, or compute it in the first step")
