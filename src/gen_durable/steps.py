"""Steps: the ``@step`` decorator, and what is checked and kept of each decorated method."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any, Final, Literal, NoReturn, TypeAlias, TypeVar, overload

from gen_durable._checks import Seconds, check_seconds
from gen_durable.errors import DefinitionError, InvalidArgument
from gen_durable.limits import (
    DeclaredKey,
    DeclaredWeight,
    Encode,
    Limits,
    check_declared,
    check_weight,
    concurrency_line,
    evaluate,
    rate_line,
)
from gen_durable.outcome import KEEP, Keep, KeyOption, WeightOption
from gen_durable.retry import Backoff

__all__ = ["StepOptions", "StepSpec", "step"]

F = TypeVar("F", bound=Callable[..., Any])
Kept: TypeAlias = Literal[Keep.KEEP]

STEP: Final = "__durable_step__"
"""The attribute of a decorated method that holds its ``StepOptions``."""


@dataclass(frozen=True, slots=True)
class StepOptions:
    """What was given to ``@step``; None, or ``KEEP``, means the machine's own default."""

    initial: bool = False
    timeout: float | None = None
    retry: Backoff | None = None
    run_ahead: bool | None = None
    concurrency_key: DeclaredKey | Kept = KEEP
    rate_limit: DeclaredKey | Kept = KEEP
    weight: DeclaredWeight | Kept = KEEP
    transactional: bool | None = None


@dataclass(frozen=True, slots=True)
class StepSpec:
    """One step, as the engine runs it.

    Attributes:
        name: its name, as it is stored in the row.
        func: a method, called as ``func(machine, ctx)``, or (``is_function``) a job's, as ``func(**state)``.
        is_async: it is a coroutine function and runs on the event loop; else it runs in a thread.
        timeout: seconds, or None.
        retry: the policy for its errors, or None (an error fails the instance).
        run_ahead: the worker may run it at once after the step before it.
        returns_result: what it returns is the result (jobs), not an outcome.
        is_function: ``func`` is the function of a job and gets the state as keyword arguments.
        ctx_param: the parameter of the job function that gets the ``Context``, or None.
        concurrency_key: its own, as it was declared; None is no limit, ``KEEP`` the instance's own key.
        rate_limit: as it was declared, or None.
        weight: the tokens that it takes there, as it was declared; None is 1.
        transactional: it runs in a transaction of its own, and its outcome commits in that.
        limited: whether it declares a concurrency key or a rate limit.
    """

    name: str
    func: Callable[..., Any]
    is_async: bool
    timeout: float | None = None
    retry: Backoff | None = None
    run_ahead: bool = True
    returns_result: bool = False
    is_function: bool = False
    ctx_param: str | None = None
    concurrency_key: DeclaredKey | Kept = KEEP
    rate_limit: DeclaredKey = None
    weight: DeclaredWeight = None
    transactional: bool = False
    limited: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "limited", self.concurrency_key is not KEEP or self.rate_limit is not None)

    def limits(
        self,
        machine: object,
        own_gate: str | None,
        concurrency_key: KeyOption,
        rate_limit: KeyOption,
        weight: WeightOption,
        *,
        what: str,
    ) -> Limits:
        """What it is held to; see ``MachineSpec.limits_of``. ``what`` names the step in messages."""
        gate = own_gate
        if concurrency_key is not KEEP or self.concurrency_key is not KEEP:
            gate = said(concurrency_key, self.concurrency_key, machine, f"{what}: concurrency_key", concurrency_line)
        rate = said(rate_limit, self.rate_limit, machine, f"{what}: rate_limit", rate_line)
        taken = None
        if rate is not None or weight is not KEEP:
            taken = said(weight, self.weight, machine, f"{what}: weight", check_weight)
        if rate is None and taken is not None and rate_limit is KEEP and self.rate_limit is None:
            raise InvalidArgument(f"{what}: weight={taken} without a rate limit; give rate_limit= too")
        return Limits(gate, rate, None if rate is None or taken == 1 else taken)


@overload
def step(func: F, /) -> F: ...
@overload
def step(
    *,
    initial: bool = False,
    timeout: Seconds | None = None,
    retry: Backoff | None = None,
    run_ahead: bool | None = None,
    concurrency_key: DeclaredKey | Kept = KEEP,
    rate_limit: DeclaredKey | Kept = KEEP,
    weight: DeclaredWeight | Kept = KEEP,
    transactional: bool | None = None,
) -> Callable[[F], F]: ...
def step(
    func: F | None = None,
    /,
    *,
    initial: bool = False,
    timeout: Seconds | None = None,
    retry: Backoff | None = None,
    run_ahead: bool | None = None,
    concurrency_key: DeclaredKey | Kept = KEEP,
    rate_limit: DeclaredKey | Kept = KEEP,
    weight: DeclaredWeight | Kept = KEEP,
    transactional: bool | None = None,
) -> F | Callable[[F], F]:
    """Make a method ``(self, ctx)`` a step of its machine; ``async def`` or ``def``, with or without options.

    Args:
        func: the method, when used without parentheses.
        initial: instances start here; by default they start at the first step of the class.
        timeout: seconds or a timedelta; a longer run is cancelled and counts as a ``TimeoutError``.
            ``math.inf`` is no timeout, whatever the machine's is.
        retry: what to do after an error; by default the machine's policy.
        run_ahead: False hands the instance back to the queue before this step.
        concurrency_key: at most K instances of one key run at once, in the whole cluster; K is 1, or what
            ``concurrency_limits`` says of its name. A key, or a function of the machine that answers with one (None is
            no limit), like ``lambda self: ("crm", self.tenant)``; it sees the state that the step will get. By default
            the instance's own key holds.
        rate_limit: the name (and partition) of one of the engine's ``rate_limits``, which each run takes tokens from; a
            key or a function, as above. None is no limit; by default the machine's.
        weight: how many tokens: a number, or a function of the machine. None is 1; by default the machine's.
        transactional: the step gets ``ctx.conn`` inside an open transaction; what it writes there and its outcome
            commit together or not at all. By default the machine's.

    Raises:
        DefinitionError: not a plain method, or a wrong option.
    """

    def mark(func: F) -> F:
        method: object = func
        if not isinstance(method, FunctionType):
            raise DefinitionError(f"@step decorates methods; {func!r} is a {type(func).__name__}")
        owner = f"@step on {method.__qualname__}"
        flags = (("initial", initial), ("run_ahead", run_ahead), ("transactional", transactional))
        for option, value in flags:
            if not isinstance(value, bool) and value is not None:
                raise DefinitionError(f"{owner}: {option} must be True or False, not {value!r}")
        limits = {"concurrency_key": concurrency_key, "rate_limit": rate_limit, "weight": weight}
        check_limits({option: value for option, value in limits.items() if value is not KEEP}, owner)
        options = StepOptions(
            bool(initial), check_timeout(timeout, owner), check_retry(retry, owner), run_ahead,
            concurrency_key, rate_limit, weight, transactional,
        )  # fmt: skip
        setattr(func, STEP, options)
        return func

    return mark if func is None else mark(func)


def refuse(cls: type, problem: str, mend: str) -> NoReturn:
    """Refuse the definition of a class."""
    raise DefinitionError(f"{cls.__qualname__}: {problem}; {mend}")


def marked_steps(cls: type) -> dict[str, FunctionType]:
    """The ``@step`` methods by name: those of base classes first, overridden ones at their place."""
    steps: dict[str, FunctionType] = {}
    for klass in reversed(cls.__mro__):
        for name, member in vars(klass).items():
            inner = getattr(member, "__func__", member)
            if not hasattr(inner, STEP):
                if name in steps:
                    refuse(cls, f"{name!r} overrides a step without being one", "decorate it with @step too")
                continue
            if inner is not member:
                refuse(cls, f"step {name!r} is a {type(member).__name__}", "make it a plain method (self, ctx)")
            if name.startswith("_") or inner.__name__.startswith("__") or name == "on_error":
                refuse(cls, f"{name!r} is reserved and can't be a step", "rename it")
            if inner.__name__ != name:
                refuse(
                    cls,
                    f"step {name!r} is a function with the name {inner.__name__!r}",
                    "define it under its own name (a decorator below @step needs functools.wraps)",
                )
            steps[name] = inner
    return steps


def step_spec(cls: type, name: str, func: FunctionType, options: Mapping[str, Any]) -> StepSpec:
    """The spec of one method step; its own options come before those of the machine."""
    check_method(cls, func, f"step {name!r}", ("self", "ctx"))
    own: StepOptions = getattr(func, STEP, StepOptions())
    timeout = options["timeout"] if own.timeout is None else own.timeout
    rate_limit = options["rate_limit"] if own.rate_limit is KEEP else own.rate_limit
    if rate_limit is None and own.weight is not KEEP and own.weight is not None:
        refuse(cls, f"step {name!r} has a weight but no rate_limit", "give it one, or give both on Next")
    return StepSpec(
        name=name,
        func=func,
        is_async=inspect.iscoroutinefunction(func),
        timeout=None if timeout == math.inf else timeout,
        retry=options["retry"] if own.retry is None else own.retry,
        run_ahead=options["run_ahead"] if own.run_ahead is None else own.run_ahead,
        concurrency_key=own.concurrency_key,
        rate_limit=rate_limit,
        weight=options["weight"] if own.weight is KEEP else own.weight,
        transactional=options["transactional"] if own.transactional is None else own.transactional,
    )


def check_method(cls: type, func: Any, what: str, parameters: tuple[str, ...]) -> None:
    """Refuse a method that can't be called as ``what`` is: with exactly ``parameters``, by position."""
    wanted = f"({', '.join(parameters)})"
    if not isinstance(func, FunctionType):
        refuse(cls, f"{what} is a {type(func).__name__}", f"make it a plain method {wanted}")
    forbid_generator(f"{cls.__qualname__}: {what}", func, "return one value instead of yielding")
    signature = inspect.signature(func)
    kinds = [p.kind for p in signature.parameters.values()]
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if len(kinds) != len(parameters) or any(kind not in positional for kind in kinds):
        refuse(cls, f"{what} has the signature {signature}", f"it is called with {wanted}, so declare just these")


def forbid_generator(owner: str, func: Any, mend: str) -> None:
    """Refuse generator functions: nothing would drive them."""
    if inspect.isgeneratorfunction(func) or inspect.isasyncgenfunction(func):
        raise DefinitionError(f"{owner} is a generator, which can't run durably; {mend}")


def check_timeout(value: Any, owner: str) -> float | None:
    """A timeout as float seconds; ``math.inf`` stays as it is and means none."""
    if value is None or value == math.inf:
        return None if value is None else math.inf
    return check_seconds(value, f"{owner}: timeout", error=DefinitionError, positive=True)


def check_retry(value: Any, owner: str) -> Backoff | None:
    """A retry policy, or None."""
    if value is not None and not isinstance(value, Backoff):
        raise DefinitionError(f"{owner}: retry must be a Backoff, not {value!r}; like Backoff(max_attempts=5)")
    return value


def check_limits(given: Mapping[str, Any], owner: str) -> None:
    """Refuse what can't be a declared ``concurrency_key``, ``rate_limit`` or ``weight``."""
    for option, encode in (("concurrency_key", concurrency_line), ("rate_limit", rate_line), ("weight", check_weight)):
        check_declared(given.get(option), f"{owner}: {option}", encode)


def said(given: Any, declared: Any, machine: object, what: str, encode: Encode) -> Any:
    """A line or a weight: what a call gives counts more than what was declared."""
    if given is KEEP:
        return evaluate(declared, machine, what, encode)
    return None if given is None else encode(given, what, InvalidArgument)
