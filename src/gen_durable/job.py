"""Jobs, the one-step machines: ``@job`` functions and ``Job`` classes."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable
from dataclasses import replace
from types import FunctionType
from typing import Any, ClassVar, Concatenate, Final, Generic, Literal, ParamSpec, TypeVar, overload

from gen_durable._checks import Seconds
from gen_durable.context import Context
from gen_durable.errors import DefinitionError, InvalidState
from gen_durable.fields import resolve
from gen_durable.limits import DeclaredKey, DeclaredWeight
from gen_durable.machine import History, Machine, MachineSpec, check_count, spec_of
from gen_durable.retry import Backoff
from gen_durable.steps import (
    STEP,
    StepSpec,
    check_method,
    check_retry,
    forbid_generator,
    marked_steps,
    refuse,
    step_spec,
)

__all__ = ["Job", "JobFunction", "job"]

P = ParamSpec("P")
CallP = ParamSpec("CallP")
BindP = ParamSpec("BindP")
R = TypeVar("R")

RUN: Final = "run"
"""The name of the one step of a job."""
_UNSET: Any = object()


class Job(Machine, abstract=True, retry=Backoff()):
    """A job as a class: its annotated fields are the arguments, ``run`` does the work and returns the result.

    ::

        class Resize(Job, queue="images", max_attempts=5):
            path: str
            width: int = 800

            async def run(self, ctx: Context) -> dict:
                ...

    An exception is retried after a backoff until ``max_attempts`` runs were made (20 by default), then the
    job is ``failed``. The class keywords are those of ``Machine``, and:

    Args:
        max_attempts: the number of runs in all; it replaces the one of ``retry``.
        retry: by default ``Backoff()``: 1 s, doubling to at most 300 s, with jitter.

    Raises:
        DefinitionError: the class can't be a job; the message says why.
    """

    __durable_kind__: ClassVar[Literal["machine", "job"]] = "job"

    def __init_subclass__(cls, *, max_attempts: int = _UNSET, retry: Backoff | None = _UNSET, **options: Any) -> None:
        inherited = cls.__durable_given__.get("retry")
        policy = _policy(cls.__qualname__, inherited if retry is _UNSET else retry, max_attempts)
        super().__init_subclass__(retry=policy, **options)

    @classmethod
    def _durable_steps(cls, options: dict[str, Any]) -> tuple[dict[str, StepSpec], str | None]:
        if marked := marked_steps(cls):
            name = next(iter(marked))
            refuse(
                cls,
                f"a job has one step, run(self, ctx), but {name!r} is a @step",
                "derive from Machine instead",
            )
        run = inspect.getattr_static(cls, RUN, None)
        if run is None:
            return {}, None
        check_method(cls, run, RUN, ("self", "ctx"))
        return {RUN: replace(step_spec(cls, RUN, run, options), returns_result=True)}, RUN

    @classmethod
    def _durable_no_step(cls) -> tuple[str, str]:
        return "a job needs run", "define async def run(self, ctx), or say abstract=True for a base class"


class JobFunction(Generic[CallP, BindP, R]):
    """What ``@job`` makes of a function: still callable, and ``bind`` makes a job of a call.

    Attributes:
        func: the function itself.
    """

    __durable__: MachineSpec
    __wrapped__: Callable[..., Any]
    __name__: str
    __qualname__: str

    def __init__(self, func: Callable[CallP, R], signature: inspect.Signature, spec: MachineSpec) -> None:
        functools.update_wrapper(self, func)
        self.func = func
        self.__durable__ = spec
        self._signature = signature
        parameters = signature.parameters.values()
        named = all(p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) for p in parameters)
        self._known = frozenset(p.name for p in parameters if named)
        self._required = frozenset(p.name for p in parameters if p.default is p.empty)

    def __call__(self, *args: CallP.args, **kwargs: CallP.kwargs) -> R:
        """Run the function here and now, as if it were not a job."""
        return self.func(*args, **kwargs)

    def bind(self, *args: BindP.args, **kwargs: BindP.kwargs) -> Machine:
        """A job that will call the function with these arguments (the ``Context`` left out), ready to insert.

        Raises:
            InvalidState: the arguments don't fit the function, or can't be stored.
        """
        if not args and self._required <= kwargs.keys() <= self._known:
            return self.__durable__.cls(**kwargs)
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise InvalidState(f"{self.__qualname__}.bind: {error}; it takes {self._signature}") from None
        return self.__durable__.cls(**bound.arguments)

    def __repr__(self) -> str:
        return f"<job {self.__qualname__}{self._signature}>"


class _Decorator(typing.Protocol):
    @overload
    def __call__(self, func: Callable[Concatenate[Context, P], R], /) -> JobFunction[Concatenate[Context, P], P, R]: ...
    @overload
    def __call__(self, func: Callable[P, R], /) -> JobFunction[P, P, R]: ...


@overload
def job(func: Callable[Concatenate[Context, P], R], /) -> JobFunction[Concatenate[Context, P], P, R]: ...
@overload
def job(func: Callable[P, R], /) -> JobFunction[P, P, R]: ...
@overload
def job(
    *,
    name: str | None = None,
    version: int = 1,
    queue: str = "default",
    priority: int = 0,
    max_attempts: int = 20,
    retry: Backoff | None = None,
    timeout: Seconds | None = None,
    retention: Seconds | None = None,
    history: History | None = None,
    max_crashes: int | None = None,
    concurrency_key: DeclaredKey = None,
    rate_limit: DeclaredKey = None,
    weight: DeclaredWeight = None,
    transactional: bool = False,
) -> _Decorator: ...
def job(
    func: Any = None,
    /,
    *,
    name: str | None = None,
    version: int = 1,
    queue: str = "default",
    priority: int = 0,
    max_attempts: int = _UNSET,
    retry: Backoff | None = None,
    timeout: Seconds | None = None,
    retention: Seconds | None = None,
    history: History | None = None,
    max_crashes: int | None = None,
    concurrency_key: DeclaredKey = None,
    rate_limit: DeclaredKey = None,
    weight: DeclaredWeight = None,
    transactional: bool = False,
) -> Any:
    """Make a function, ``async def`` or ``def``, a job: ``@job`` or ``@job(queue="email", ...)``.

    ::

        @job(queue="email", max_attempts=10)
        async def send_welcome(user_id: int, template: str = "hello") -> dict: ...

        await engine.insert(send_welcome.bind(user_id=7))
        await send_welcome(7)                       # just runs it

    The parameters are the job's state: typed, stored, checked by ``bind``. One that is annotated ``Context``
    is passed by the engine (put it first, and type checkers know that ``bind`` leaves it out). What the
    function returns is the recorded result.

    Args:
        func: the function, when used without parentheses.
        name: the stored name; by default the function's qualified name.
        max_attempts: the number of runs in all, 20 by default; it replaces the one of ``retry``.
        retry: by default ``Backoff()``: 1 s, doubling to at most 300 s, with jitter.
        version: this and all below as for ``Machine``.
        queue: where its instances go.
        priority: -32768 to 32767, lower first.
        timeout: of a run, in seconds or a timedelta.
        retention: how long terminal instances stay: seconds, a timedelta, or ``math.inf`` for ever.
        history: ``"off"``, ``"steps"`` or ``"states"``.
        max_crashes: how many deaths of workers fail an instance.
        concurrency_key: at most K of one key run at once, in the whole cluster. A key, or a function of the bound job,
            which has the arguments as attributes: ``lambda self: ("crm", self.tenant)``.
        rate_limit: what each run takes tokens from: a key or a function, as above.
        weight: how many tokens: a number or a function, 1 by default.
        transactional: True: it gets ``ctx.conn`` inside an open transaction; what it writes there and its end commit
            together or not at all.

    Raises:
        DefinitionError: the function can't be a job; the message says why.
    """

    options: dict[str, Any] = {"name": name, "version": version, "queue": queue, "priority": priority}
    options |= {"timeout": timeout, "retention": retention, "history": history, "max_crashes": max_crashes}
    options |= {"concurrency_key": concurrency_key, "rate_limit": rate_limit, "weight": weight}
    options["transactional"] = transactional

    def declare(func: Any) -> JobFunction[..., ..., Any]:
        if not isinstance(func, FunctionType) or hasattr(func, STEP):
            what = "a @step" if hasattr(func, STEP) else f"a {type(func).__name__}"
            raise DefinitionError(f"@job decorates functions; {func!r} is {what}; a class derives from Job instead")
        return _declare(func, {**options, "retry": _policy(func.__qualname__, retry, max_attempts)})

    return declare if func is None else declare(func)


def _policy(owner: str, retry: Any, max_attempts: int) -> Backoff:
    policy = check_retry(retry, owner) or Backoff()
    if max_attempts is _UNSET:
        return policy
    return replace(policy, max_attempts=check_count(max_attempts, f"{owner}: max_attempts"))


class _Call(Machine, abstract=True):
    """The base of the classes made for job functions: their fields are the function's parameters."""

    __durable_kind__: ClassVar[Literal["machine", "job"]] = "job"
    __durable_call__: ClassVar[tuple[FunctionType, str | None]]

    @classmethod
    def _durable_steps(cls, options: dict[str, Any]) -> tuple[dict[str, StepSpec], str | None]:
        if "__durable_call__" not in vars(cls):
            return {}, None
        func, ctx_param = cls.__durable_call__
        run = StepSpec(
            name=RUN,
            func=func,
            is_async=inspect.iscoroutinefunction(func),
            timeout=options["timeout"],
            retry=options["retry"],
            run_ahead=options["run_ahead"],
            returns_result=True,
            is_function=True,
            ctx_param=ctx_param,
            rate_limit=options["rate_limit"],
            weight=options["weight"],
            transactional=options["transactional"],
        )
        return {RUN: run}, RUN


def _declare(func: FunctionType, options: dict[str, Any]) -> JobFunction[..., ..., Any]:
    owner = func.__qualname__
    forbid_generator(owner, func, "return the result")
    signature = inspect.signature(func)
    hints = resolve(owner, {k: v for k, v in func.__annotations__.items() if k != "return"}, func.__module__, {})
    ctx_param = _context_parameter(owner, signature, hints)
    if options["transactional"] and ctx_param is None:
        raise DefinitionError(
            f"{owner} is transactional, but has no parameter annotated Context: give it one, for ctx.conn"
        )
    parameters = [
        p.replace(annotation=hints.get(p.name, p.empty)) for p in signature.parameters.values() if p.name != ctx_param
    ]
    namespace: dict[str, Any] = {p.name: p.default for p in parameters if p.default is not p.empty}
    namespace |= {
        "__annotations__": {p.name: hints.get(p.name, Any) for p in parameters},
        "__module__": func.__module__,
        "__qualname__": owner,
        "__doc__": func.__doc__,
        "__durable_call__": (func, ctx_param),
    }
    cls = types.new_class(func.__name__, (_Call,), options, lambda body: body.update(namespace))
    return JobFunction(func, signature.replace(parameters=parameters, return_annotation=signature.empty), spec_of(cls))


def _context_parameter(owner: str, signature: inspect.Signature, hints: dict[str, Any]) -> str | None:
    found = [name for name, hint in hints.items() if hint is Context]
    if len(found) > 1:
        raise DefinitionError(f"{owner}: parameters {found[0]!r} and {found[1]!r} are both a Context; keep one")
    for position, (name, parameter) in enumerate(signature.parameters.items()):
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise DefinitionError(
                f"{owner}: arguments are stored by name, so {parameter} can't be one; use a list or a dict"
            )
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise DefinitionError(f"{owner}: {name!r} is positional-only, but is passed by name; remove the /")
        if name not in hints and (name == "ctx" or (position == 0 and name in ("self", "cls"))):
            mend = (
                "annotate it: ctx: Context"
                if name == "ctx"
                else "decorate a function outside of classes, or derive from Job"
            )
            raise DefinitionError(f"{owner}: the parameter {name!r} is not an argument to store; {mend}")
    return found[0] if found else None
