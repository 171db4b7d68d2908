"""Jobs: functions and classes, how they are bound, and what is refused when they are defined."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from datetime import timedelta
from typing import Any, get_args

import pytest

from gen_durable.context import Context
from gen_durable.errors import ConfigurationError, DefinitionError, InvalidState
from gen_durable.job import Job, JobFunction, job
from gen_durable.machine import Machine, MachineSpec, spec_of, step
from gen_durable.retry import Backoff


@job(queue="email", max_attempts=10)
async def send_welcome(user_id: int, template: str = "hello", tags: list[str] = []) -> dict[str, Any]:  # noqa: B006
    """Greet."""
    return {"user": user_id, "template": template}


@job
def resize(ctx: Context, path: str, *, width: float = 80) -> str:
    return f"{path} {width} {ctx}"


class Report(Job, queue="reports", max_attempts=3):
    day: str
    copies: int = 1

    async def run(self, ctx: Context) -> str:
        return self.day * self.copies


# Functions ----------------------------------------------------------------------------------------------


async def test_a_job_function_still_runs_when_it_is_called() -> None:
    """Section 2: calling it plainly just runs it."""
    assert await send_welcome(7) == {"user": 7, "template": "hello"}
    assert resize("ctx", "p", width=3) == "p 3 ctx"  # type: ignore[arg-type]


def test_a_job_function_looks_like_its_function() -> None:
    assert isinstance(send_welcome, JobFunction)
    assert (send_welcome.__name__, send_welcome.__doc__) == ("send_welcome", "Greet.")
    assert send_welcome.__wrapped__ is send_welcome.func
    assert inspect.signature(send_welcome) == inspect.signature(send_welcome.func)
    assert repr(resize) == "<job resize(path: str, *, width: float = 80)>"


def test_the_spec_of_a_function() -> None:
    spec = spec_of(send_welcome)
    assert spec is send_welcome.__durable__ is spec_of(send_welcome.bind(1))
    assert (spec.name, spec.version, spec.kind, spec.queue) == ("send_welcome", 1, "job", "email")
    assert (spec.initial, list(spec.steps), spec.on_error) == ("run", ["run"], None)
    run = spec.steps["run"]
    assert (run.func, run.is_async, run.ctx_param) == (send_welcome.func, True, None)
    assert (run.is_function, run.returns_result) == (True, True)
    assert run.retry == Backoff(max_attempts=10)
    other = spec_of(resize).steps["run"]
    assert (other.func, other.is_async, other.ctx_param) == (resize.func, False, "ctx")
    assert other.retry == Backoff(max_attempts=20)


def test_all_options_of_a_function() -> None:
    @job(
        name="mail/x", version=3, queue="q", priority=-2, retry=Backoff(initial=9), timeout=timedelta(seconds=4),
        retention=math.inf, history="off", max_crashes=2,
    )  # fmt: skip
    async def full() -> None: ...

    spec = spec_of(full)
    assert (spec.name, spec.version, spec.queue, spec.priority) == ("mail/x", 3, "q", -2)
    assert (spec.retention, spec.history, spec.max_crashes) == (math.inf, "off", 2)
    assert spec.steps["run"].timeout == 4.0
    assert spec.steps["run"].retry == Backoff(initial=9)


def test_max_attempts_replaces_the_one_of_the_policy() -> None:
    @job(retry=Backoff(initial=9), max_attempts=4)
    def some() -> None: ...

    assert spec_of(some).steps["run"].retry == Backoff(initial=9, max_attempts=4)


def test_bind_makes_an_insertable_instance() -> None:
    bound = send_welcome.bind(7, template="x")
    assert isinstance(bound, Machine)
    assert vars(bound) == {"user_id": 7, "template": "x", "tags": []}
    assert repr(bound) == "send_welcome(user_id=7, template='x', tags=[])"
    assert bound == send_welcome.bind(user_id=7, template="x")
    assert bound != send_welcome.bind(8, "x")
    assert spec_of(bound).dump(bound) == b'{"user_id":7,"template":"x","tags":[]}'


def test_the_context_is_not_an_argument() -> None:
    """Section 4: ctx is passed when the function has a parameter annotated Context."""
    bound = resize.bind("p")
    assert vars(bound) == {"path": "p", "width": 80.0}
    with pytest.raises(InvalidState, match="unexpected keyword argument 'ctx'"):
        resize.bind("p", ctx=None)  # type: ignore[call-arg]


def test_a_decoded_state_calls_the_function() -> None:
    spec = spec_of(resize)
    run = spec.steps["run"]
    decoded = spec.codec.decode(spec.dump(resize.bind("p", width=2)))
    assert run.ctx_param is not None
    assert run.func(**decoded, **{run.ctx_param: "here"}) == "p 2.0 here"


def test_the_context_may_be_anywhere() -> None:
    @job
    async def late(a: int, *, ctx: Context, b: int = 2) -> None: ...

    assert spec_of(late).steps["run"].ctx_param == "ctx"
    assert vars(late.bind(1)) == {"a": 1, "b": 2}  # type: ignore[call-arg]


def test_parameters_without_annotation_hold_anything() -> None:
    @job
    def loose(a, b=None):  # type: ignore[no-untyped-def]
        return a, b

    assert vars(loose.bind({"x": [1]})) == {"a": {"x": [1]}, "b": None}


def test_types_of_the_function_around_are_found() -> None:
    @dataclasses.dataclass
    class Item:
        sku: str

    @job
    async def ship(item: Item) -> None: ...

    bound = ship.bind(Item("a"))
    spec = spec_of(bound)
    assert spec.codec.decode(spec.dump(bound)) == {"item": Item("a")}


@pytest.mark.parametrize(
    ("args", "kwargs", "says"),
    [
        ((), {}, r"missing a required argument: 'user_id'; it takes \(user_id: int, "),
        ((1, "a", [], 4), {}, "too many positional arguments"),
        ((1,), {"colour": 2}, "unexpected keyword argument 'colour'"),
        (("1",), {}, r"field 'user_id' is '1' \(str\), which is not int"),
        ((1,), {"template": "a\0"}, "field 'template' holds a NUL character"),
        ((object(),), {}, "field 'user_id' can't be written as JSON"),
    ],
)
def test_wrong_arguments_are_refused_when_they_are_bound(args: Any, kwargs: Any, says: str) -> None:
    """Section 14: the message names the job."""
    with pytest.raises(InvalidState, match=says) as caught:
        send_welcome.bind(*args, **kwargs)
    assert str(caught.value).startswith("send_welcome")


# Classes ------------------------------------------------------------------------------------------------


def test_the_spec_of_a_class() -> None:
    spec = spec_of(Report(day="mon"))
    assert (spec.name, spec.kind, spec.queue, spec.initial) == ("Report", "job", "reports", "run")
    run = spec.steps["run"]
    assert (run.func, run.is_async, run.is_function, run.ctx_param) == (vars(Report)["run"], True, False, None)
    assert run.returns_result
    assert run.retry == Backoff(max_attempts=3)


async def test_a_loaded_job_runs() -> None:
    spec = spec_of(Report)
    loaded = spec.load(spec.codec.decode(b'{"day": "mon", "copies": 2}'))
    assert await spec.steps["run"].func(loaded, None) == "monmon"


def test_the_default_policy_and_its_inheritance() -> None:
    """Section 4: 20 attempts by default, 1 s doubling to at most 300 s, with jitter."""

    class Plain(Job):
        def run(self, ctx: Context) -> None: ...

    class Base(Job, abstract=True, retry=Backoff(initial=7), queue="base", timeout=3):
        pass

    class Child(Base, max_attempts=2):
        async def run(self, ctx: Context) -> None: ...

    class Grandchild(Child, name="g", priority=4):
        pass

    policy = spec_of(Plain).steps["run"].retry
    assert policy == Backoff(max_attempts=20, initial=1.0, factor=2.0, maximum=300.0, jitter=True)
    assert not spec_of(Plain).steps["run"].is_async
    for cls in (Child, Grandchild):
        assert spec_of(cls).queue == "base"
        assert spec_of(cls).steps["run"].retry == Backoff(initial=7, max_attempts=2)
        assert spec_of(cls).steps["run"].timeout == 3.0
    assert (spec_of(Grandchild).name, spec_of(Grandchild).priority) == ("g", 4)
    with pytest.raises(ConfigurationError, match="Job is abstract"):
        spec_of(Job)


def test_a_job_may_have_on_error() -> None:
    class Careful(Job):
        async def run(self, ctx: Context) -> None: ...

        async def on_error(self, error: Exception, ctx: Context) -> Any: ...

    assert spec_of(Careful).on_error is vars(Careful)["on_error"]


# Bad jobs -----------------------------------------------------------------------------------------------


def bad(func: Any) -> Any:
    func.__name__ = func.__qualname__ = "bad"
    return func


def generator(x: int) -> Any:
    yield x


async def async_generator(x: int) -> Any:
    yield x


def two_contexts(a: Context, b: Context) -> None: ...
def unstorable(x: complex) -> None: ...
def unknown(x: Nope) -> None: ...  # type: ignore[name-defined]  # noqa: F821
def wrong_default(x: int = "a") -> None: ...  # type: ignore[assignment]
def positional(x: int, /) -> None: ...
def variadic(*items: int) -> None: ...
def keywords(x: int, **options: int) -> None: ...
def private(_x: int) -> None: ...
def bare_context(ctx, x: int) -> None: ...  # type: ignore[no-untyped-def]
def method(self, x: int) -> None: ...  # type: ignore[no-untyped-def]


BAD_FUNCTIONS: list[tuple[Any, str]] = [
    (generator, "bad is a generator, which can't run durably; return the result"),
    (async_generator, "bad is a generator"),
    (two_contexts, "bad: parameters 'a' and 'b' are both a Context; keep one"),
    (unstorable, "bad: the type of field 'x' can't be stored: complex"),
    (unknown, "bad: the annotation 'Nope' of 'x' has no meaning"),
    (wrong_default, r"bad: the default of field 'x' is 'a' \(str\), which is not int"),
    (positional, "bad: 'x' is positional-only, but is passed by name; remove the /"),
    (variadic, r"bad: arguments are stored by name, so \*items: .*int.* can't be one; use a list or a dict"),
    (keywords, r"bad: arguments are stored by name, so \*\*options"),
    (private, "bad: field '_x' starts with an underscore"),
    (bare_context, "bad: the parameter 'ctx' is not an argument to store; annotate it: ctx: Context"),
    (method, "bad: the parameter 'self' is not an argument to store; decorate a function outside of classes"),
]


@pytest.mark.parametrize(("func", "says"), BAD_FUNCTIONS, ids=range(len(BAD_FUNCTIONS)))
def test_bad_functions_are_refused(func: Any, says: str) -> None:
    """R7."""
    with pytest.raises(DefinitionError, match=f"^{says}"):
        job(bad(func))


async def marked(self: Any, ctx: Any) -> None: ...


@pytest.mark.parametrize(
    ("func", "says"),
    [
        (3, "is a int"),
        (Report, "is a type"),
        (functools.partial(print), "is a partial"),
        (send_welcome, "is a JobFunction"),
        (step(marked), "is a @step"),
    ],
    ids=range(5),
)
def test_job_decorates_functions_only(func: Any, says: str) -> None:
    """R7."""
    with pytest.raises(DefinitionError, match=rf"^@job decorates functions; .*{says}; a class derives from Job"):
        job(func)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_attempts": 0}, "max_attempts must be an int of 1 or more, not 0"),
        ({"max_attempts": "3"}, "max_attempts must be an int"),
        ({"retry": 3}, "retry must be a Backoff"),
        ({"queue": ""}, "queue must not be empty"),
        ({"name": ""}, "name must not be empty"),
        ({"version": 0}, "version must be an int"),
        ({"timeout": 0}, "timeout must be above 0"),
        ({"priority": 99_999}, "priority must be from"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], says: str) -> None:
    """R7: for functions and classes alike."""
    with pytest.raises(DefinitionError, match=f"^some: {says}"):
        job(**options)(_some())
    with pytest.raises(DefinitionError, match=f"^Bad: {says}"):
        define({"run": run}, **options)


def _some() -> Any:
    def some() -> None: ...

    some.__qualname__ = "some"
    return some


def define(body: dict[str, Any], **options: Any) -> type:
    return type(Job)("Bad", (Job,), {"__module__": __name__, "__qualname__": "Bad", **body}, **options)


async def stepped(self: Any, ctx: Any) -> None: ...
async def run(self: Any, ctx: Any) -> None: ...


BAD_CLASSES: list[tuple[dict[str, Any], str]] = [
    ({}, r"a job needs run; define async def run\(self, ctx\), or say abstract=True"),
    ({"run": lambda self: None}, r"run has the signature \(self\); it is called with \(self, ctx\)"),
    ({"run": lambda self, ctx, x=1: None}, "run has the signature"),
    ({"run": step(marked)}, r"step 'run' is a function with the name 'marked'"),
    ({"run": staticmethod(print)}, "run is a staticmethod"),
    ({"run": generator}, "run is a generator"),
    ({"run": run, "__annotations__": {"run": int}}, "'run' is both a field and a step"),
    ({"run": run, "stepped": step(stepped)}, r"a job has one step, run\(self, ctx\), but 'stepped' is a @step"),
    ({"run": run, "other": send_welcome}, "'other' is a @job inside a class"),
]


@pytest.mark.parametrize(("body", "says"), BAD_CLASSES, ids=range(len(BAD_CLASSES)))
def test_bad_classes_are_refused(body: dict[str, Any], says: str) -> None:
    """R7."""
    with pytest.raises(DefinitionError, match=f"^Bad: {says}"):
        define(body)


def test_a_good_class_is_made_by_define() -> None:
    assert isinstance(define({"run": run}).__durable__, MachineSpec)  # type: ignore[attr-defined]


def test_the_signature_of_job_names_all_options() -> None:
    options = inspect.signature(job).parameters
    assert {"name", "version", "queue", "priority", "max_attempts", "retry", "timeout", "retention"} < set(options)
    assert get_args(JobFunction[..., ..., int])[-1] is int
