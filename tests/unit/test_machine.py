"""Machines: what a class declares, what of it is stored, and what is refused when the class is defined."""

from __future__ import annotations

import abc
import copy
import dataclasses
import enum
import inspect
import math
import pickle
from dataclasses import field
from datetime import UTC, datetime, timedelta
from functools import cached_property, wraps
from typing import Any, ClassVar, Final, Generic, TypeVar

import pytest

from gen_durable.context import Context
from gen_durable.errors import ConfigurationError, DefinitionError, InvalidState, StateDecodeError
from gen_durable.job import Job, job
from gen_durable.machine import Machine, MachineSpec, StepOptions, spec_of, step
from gen_durable.outcome import Done, Next, Outcome, Retry, Stop
from gen_durable.retry import Backoff

T = TypeVar("T")


class Checkout(Machine, queue="checkout"):
    LIMIT: ClassVar[int] = 3

    order: int
    paid: int = 0
    tags: list[str] = []
    at: datetime | None = None
    ids: list[int] = field(default_factory=lambda: [1])

    @step
    async def start(self, ctx: Context) -> Next:
        self.paid = 100
        return Next(self.ship)

    @step(timeout=timedelta(minutes=1), retry=Backoff(max_attempts=3), run_ahead=False)
    def ship(self, ctx: Context) -> Done | Stop:
        return Done(self.order)

    async def helper(self) -> None: ...


def context(**changes: Any) -> Context:
    now = datetime.now(UTC)
    given: dict[str, Any] = {"id": 1, "key": None, "machine": "M", "version": 1, "queue": "q", "step": "start"}
    given |= {"attempt": 0, "crashes": 0, "priority": 0, "inserted_at": now, "due_at": now, "worker": 1}
    return Context(**{**given, "client": None, **changes})


# What is declared ---------------------------------------------------------------------------------------


def test_the_spec_says_what_was_declared() -> None:
    spec = spec_of(Checkout)
    assert spec is Checkout.__durable__ is spec_of(Checkout(order=1))
    assert (spec.name, spec.version, spec.cls, spec.kind) == ("Checkout", 1, Checkout, "machine")
    assert (spec.queue, spec.priority, spec.initial) == ("checkout", 0, "start")
    assert (spec.on_error, spec.retention, spec.history, spec.max_crashes) == (None, None, None, None)
    assert spec.codec.fields == ("order", "paid", "tags", "at", "ids")
    assert list(spec.steps) == ["start", "ship"]
    start, ship = spec.steps.values()
    assert start.func is vars(Checkout)["start"]
    assert (start.name, start.is_async, start.timeout, start.retry, start.run_ahead) == (
        "start",
        True,
        None,
        None,
        True,
    )
    assert (start.returns_result, start.is_function, start.ctx_param) == (False, False, None)
    assert (ship.is_async, ship.timeout, ship.run_ahead) == (False, 60.0, False)
    assert ship.retry == Backoff(max_attempts=3)


def test_all_options_of_a_machine() -> None:
    policy = Backoff(max_attempts=2)

    class Full(
        Machine,
        name="shop/full",
        version=7,
        queue="q",
        priority=-3,
        retention=timedelta(days=2),
        history="states",
        max_crashes=9,
        timeout=5,
        retry=policy,
        run_ahead=False,
    ):
        @step
        async def a(self, ctx: Context) -> Done: ...

        @step(timeout=math.inf, retry=Backoff(max_attempts=1), run_ahead=True)
        async def b(self, ctx: Context) -> Done: ...

    spec = spec_of(Full)
    assert (spec.name, spec.version, spec.queue, spec.priority) == ("shop/full", 7, "q", -3)
    assert (spec.retention, spec.history, spec.max_crashes) == (172_800.0, "states", 9)
    a, b = spec.steps.values()
    assert (a.timeout, a.retry, a.run_ahead) == (5.0, policy, False)
    assert (b.timeout, b.retry, b.run_ahead) == (None, Backoff(max_attempts=1), True)


def test_the_name_is_the_qualified_name_and_retention_may_be_for_ever() -> None:
    class Local(Machine, retention=math.inf):
        @step
        async def a(self, ctx: Context) -> Done: ...

    assert spec_of(Local).name == "test_the_name_is_the_qualified_name_and_retention_may_be_for_ever.<locals>.Local"
    assert spec_of(Local).retention == math.inf


def test_a_step_stays_a_plain_method() -> None:
    assert inspect.isfunction(vars(Checkout)["ship"])
    assert Checkout(order=4).ship(context()) == Done(4)
    assert vars(Checkout)["start"].__durable_step__ == StepOptions()


def test_initial_overrules_the_order() -> None:
    class Late(Machine):
        @step
        async def a(self, ctx: Context) -> Done: ...

        @step(initial=True)
        async def b(self, ctx: Context) -> Done: ...

    class Later(Late):
        @step(initial=True)
        async def c(self, ctx: Context) -> Done: ...

    assert spec_of(Late).initial == "b"
    assert spec_of(Later).initial == "c"
    assert list(spec_of(Later).steps) == ["a", "b", "c"]


def test_base_classes_come_first_and_overridden_things_keep_their_place() -> None:
    class Base(Machine, abstract=True, queue="base", priority=4, timeout=9):
        a: int
        b: str = "x"

        @step
        async def one(self, ctx: Context) -> Done: ...

        @step
        async def two(self, ctx: Context) -> Done: ...

    class Mixin:
        extra: float = 1.5

    class Child(Mixin, Base, priority=5, name="child"):
        c: int = 1
        a: int = 7
        b = "changed"

        @step(timeout=1)
        async def one(self, ctx: Context) -> Done: ...

        @step
        async def three(self, ctx: Context) -> Done: ...

    class Grandchild(Child):
        pass

    spec = spec_of(Child)
    assert list(spec.steps) == ["one", "two", "three"]
    assert [s.timeout for s in spec.steps.values()] == [1.0, 9.0, 9.0]
    assert spec.steps["one"].func is vars(Child)["one"]
    assert vars(Child()) == {"a": 7, "b": "changed", "extra": 1.5, "c": 1}
    assert (spec.queue, spec.priority, spec.name) == ("base", 5, "child")
    assert (spec_of(Grandchild).queue, spec_of(Grandchild).priority) == ("base", 5)
    assert spec_of(Grandchild).name.endswith("Grandchild")
    assert vars(Grandchild(c=2)) == {"a": 7, "b": "changed", "extra": 1.5, "c": 2}


def test_a_field_that_is_declared_again_loses_its_default() -> None:
    class Base(Machine, abstract=True):
        a: int = 1

    class Child(Base):
        a: str

        @step
        async def one(self, ctx: Context) -> Done: ...

    with pytest.raises(InvalidState, match="field 'a' is missing"):
        Child()


def test_names_are_looked_up_where_the_class_is_defined() -> None:
    """With ``from __future__ import annotations``: classes of the function, of classes around, and of its own body."""

    @dataclasses.dataclass
    class Item:
        sku: str

    class Outer:
        class Size(enum.Enum):
            S = "s"

        class Order(Machine):
            class Kind(enum.Enum):
                GIFT = "gift"

            item: Item
            size: Size  # noqa: F821 - of the class around
            kind: Kind | None = None
            limit: Final[int] = 3
            datetime: datetime | None = None

            @step
            async def one(self, ctx: Context) -> Done: ...

    order = Outer.Order(item=Item("a"), size=Outer.Size.S)
    spec = spec_of(order)
    assert spec.codec.decode(spec.dump(order)) == vars(order)
    assert type(spec.codec.decode(spec.dump(order))["item"]) is Item


def test_generic_and_abstract_base_classes() -> None:
    class Base(Machine, abc.ABC, Generic[T], abstract=True):
        value: T

        @step
        async def one(self, ctx: Context) -> Done: ...

    class Child(Base[int]):
        pass

    assert spec_of(Child(value=3)).dump(Child(value=3)) == b'{"value":3}'


# Instances ----------------------------------------------------------------------------------------------


def test_an_instance_has_its_fields_and_defaults() -> None:
    first, second = Checkout(order=1), Checkout(order=1)
    assert vars(first) == {"order": 1, "paid": 0, "tags": [], "at": None, "ids": [1]}
    assert first.tags is not second.tags
    assert first.ids is not second.ids
    assert repr(first) == "Checkout(order=1, paid=0, tags=[], at=None, ids=[1])"
    assert Checkout.paid == 0
    assert Checkout.LIMIT == 3


def test_mutable_defaults_are_copied_when_a_stored_state_lacks_them() -> None:
    codec = spec_of(Checkout).codec
    first, second = codec.decode(b'{"order": 1}'), codec.decode(b'{"order": 1}')
    first["tags"].append("x")
    assert second["tags"] == []
    assert Checkout(order=1).tags == []


def test_a_deleted_mutable_field_does_not_uncover_the_shared_default() -> None:
    checkout = Checkout(order=1)
    del checkout.tags
    with pytest.raises(AttributeError):
        checkout.tags  # noqa: B018
    assert repr(checkout) == "Checkout(order=1, paid=0, tags=Ellipsis, at=None, ids=[1])"
    with pytest.raises(InvalidState, match="Checkout: field 'tags' has no value; it was deleted"):
        spec_of(checkout).dump(checkout)


def test_equal_means_same_class_and_same_fields() -> None:
    class Twin(Checkout):
        pass

    one = Checkout(order=1)
    assert one == Checkout(order=1)
    assert one != Checkout(order=2)
    assert one != Twin(order=1)
    assert one != {"order": 1}
    one.scratch = object()  # type: ignore[attr-defined]
    assert one == Checkout(order=1)
    del one.paid
    assert one != Checkout(order=1)
    with pytest.raises(TypeError, match="unhashable"):
        hash(one)


def test_instances_copy_and_pickle() -> None:
    one = Checkout(order=1, tags=["a"])
    assert copy.deepcopy(one) == pickle.loads(pickle.dumps(one)) == one


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "Checkout: field 'order' is missing and has no default"),
        ({"order": 1, "colour": 2}, "Checkout: there is no field 'colour'; its fields are: order, paid"),
        ({"order": "1"}, r"Checkout: field 'order' is '1' \(str\), which is not int"),
        ({"order": 1, "LIMIT": 4}, "there is no field 'LIMIT'"),
        ({"order": 1, "at": "soon"}, "field 'at' .*datetime"),
        ({"order": 1, "tags": ["a\0"]}, "field 'tags' holds a NUL character"),
    ],
)
def test_wrong_state_is_refused_when_it_is_built(given: dict[str, Any], says: str) -> None:
    """Section 14: names the class and the field."""
    with pytest.raises(InvalidState, match=says):
        Checkout(**given)


def test_fields_are_given_by_keyword() -> None:
    with pytest.raises(TypeError, match="positional"):
        Checkout(1)  # type: ignore[misc]


def test_an_instance_holds_what_its_first_step_will_get() -> None:
    tags = ["a"]
    one = Checkout(order=1, tags=tags, at="2024-01-01T00:00:00Z")  # type: ignore[arg-type]
    spec = spec_of(one)
    assert one.at == datetime(2024, 1, 1, tzinfo=UTC)
    assert one.tags is not tags
    assert spec.load(spec.codec.decode(spec.dump(one))) == one


def test_load_makes_an_instance_without_init_and_dump_stores_only_fields() -> None:
    spec = spec_of(Checkout)
    decoded = spec.codec.decode(b'{"order": 5}')
    one = spec.load(decoded)
    assert type(one) is Checkout
    assert one == Checkout(order=5)
    one.scratch = object()  # type: ignore[attr-defined]
    assert spec.codec.decode(spec.dump(one)) == vars(Checkout(order=5))
    one.paid = "lots"  # type: ignore[attr-defined]
    with pytest.raises(InvalidState, match=r"Checkout: field 'paid' is 'lots' \(str\), which is not int"):
        spec.dump(one)
    with pytest.raises(StateDecodeError, match=r"^Checkout: "):
        spec.codec.decode(b"{}")


def test_fields_with_awkward_names() -> None:
    class Odd(Machine):
        self: int
        cls: int
        fields: int
        load: int = 3

        @step
        async def one(self, ctx: Context) -> Done: ...

    assert vars(Odd(self=1, cls=2, fields=3)) == {"self": 1, "cls": 2, "fields": 3, "load": 3}


# on_error and spec_of -----------------------------------------------------------------------------------


def test_on_error_is_known_when_it_is_overridden() -> None:
    class Careful(Checkout):
        async def on_error(self, error: Exception, ctx: Context) -> Outcome:
            return Retry(1)

    class Plain(Careful):
        def on_error(self, exc: Any, ctx: Context) -> Outcome:  # type: ignore[override]
            return Stop("x")

    assert spec_of(Careful).on_error is vars(Careful)["on_error"]
    assert spec_of(Plain).on_error is vars(Plain)["on_error"]


def test_the_default_on_error_leaves_it_to_the_policy() -> None:
    error = OSError("x")
    with pytest.raises(OSError, match="x") as caught:
        Checkout(order=1).on_error(error, context())
    assert caught.value is error


@pytest.mark.parametrize("target", [None, 3, "Checkout", object, object(), Context])
def test_spec_of_something_else(target: object) -> None:
    with pytest.raises(ConfigurationError, match=r"is neither a machine nor a job; give a Machine or Job class"):
        spec_of(target)


def test_an_abstract_class_has_no_spec_and_no_instances() -> None:
    class Base(Checkout, abstract=True):
        pass

    for use in (lambda: spec_of(Base), lambda: Base(order=1), lambda: spec_of(Machine)):
        with pytest.raises(ConfigurationError, match="is abstract; use a subclass that has steps"):
            use()


def test_the_spec_is_frozen() -> None:
    spec = spec_of(Checkout)
    for target, name in ((spec, "name"), (spec.steps["ship"], "timeout")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(target, name, None)


def test_a_context_says_what_runs() -> None:
    ctx = context(id=7, step="ship", attempt=2)
    assert (ctx.id, ctx.step, ctx.attempt) == (7, "ship", 2)
    assert repr(ctx) == "<Context of M 7 at 'ship', attempt 2>"
    assert not hasattr(ctx, "__dict__")


# Bad classes --------------------------------------------------------------------------------------------


def define(body: dict[str, Any], bases: tuple[type, ...] = (Machine,), **keywords: Any) -> type:
    """A class ``Bad`` with this body; ``one`` is its step unless the body says otherwise."""

    async def one(self: Any, ctx: Context) -> Done: ...

    one.__qualname__ = "Bad.one"
    body = {"__module__": __name__, "__qualname__": "Bad", "one": step(one), **body}
    return type(Machine)("Bad", bases, body, **keywords)


def test_define_makes_a_good_class() -> None:
    assert isinstance(define({}).__durable__, MachineSpec)  # type: ignore[attr-defined]


def named(name: str, func: Any, **options: Any) -> Any:
    func.__name__, func.__qualname__ = name, f"Bad.{name}"
    return step(**options)(func)


async def good(self: Any, ctx: Any) -> None: ...


def generator(self: Any, ctx: Any) -> Any:
    yield


def yields(self: Any, error: Any, ctx: Any) -> Any:
    yield


async def async_generator(self: Any, ctx: Any) -> Any:
    yield


def fresh(name: str = "two", **options: Any) -> Any:
    async def func(self: Any, ctx: Any) -> None: ...

    return named(name, func, **options)


BAD_CLASSES: list[tuple[dict[str, Any], str]] = [
    ({"one": None}, "Bad: there is no step; decorate a method .* with @step, or say abstract=True"),
    (
        {"one": fresh("one", initial=True), "two": fresh(initial=True)},
        "Bad: steps 'one' and 'two' are both initial; keep initial=True on one of them",
    ),
    ({"__annotations__": {"lock": complex}}, "Bad: the type of field 'lock' can't be stored: complex"),
    ({"__annotations__": {"x": "Nope[int]"}}, r"Bad: the annotation 'Nope\[int\]' of 'x' has no meaning: .*Nope"),
    ({"__annotations__": {"x": "int +"}}, r"the annotation 'int \+' of 'x' has no meaning"),
    ({"__annotations__": {"_x": int}}, "Bad: field '_x' starts with an underscore, which is reserved; rename it"),
    ({"__annotations__": {"x": dataclasses.InitVar[int]}}, "the type of field 'x' can't be stored"),
    ({"__annotations__": {"one": int}}, "Bad: 'one' is both a field and a step; rename one of them"),
    ({"__annotations__": {"on_error": int}}, "field 'on_error' is also a function of the class"),
    ({"__annotations__": {"x": int}, "x": property(lambda self: 1)}, "field 'x' is also a property of the class"),
    ({"__annotations__": {"x": int}, "x": None}, "default of field 'x' is None, which is not int.*; mend the default"),
    ({"__annotations__": {"x": list[int]}, "x": ["a"]}, "the default of field 'x' is"),
    ({"__annotations__": {"x": float}, "x": math.nan}, "the default of field 'x' holds nan"),
    ({"__annotations__": {"x": int}, "x": field(default="a")}, "the default of field 'x' is 'a'"),
    ({"__annotations__": {"x": int}, "x": field(default=1, repr=False)}, "field 'x' has options that have no effect"),
    (
        {"two": named("two", lambda self: None)},
        r"Bad: step 'two' has the signature \(self\); it is called with \(self, ctx\)",
    ),
    ({"two": named("two", lambda self, ctx, more=1: None)}, r"step 'two' has the signature \(self, ctx, more=1\)"),
    ({"two": named("two", lambda self, *args: None)}, "step 'two' has the signature"),
    ({"two": named("two", lambda self, *, ctx: None)}, "step 'two' has the signature"),
    ({"two": named("two", generator)}, "Bad: step 'two' is a generator, which can't run durably; return"),
    ({"two": named("two", async_generator)}, "Bad: step 'two' is a generator"),
    ({"two": staticmethod(fresh())}, "Bad: step 'two' is a staticmethod; make it a plain method"),
    ({"two": classmethod(fresh())}, "Bad: step 'two' is a classmethod"),
    ({"two": fresh("three")}, "Bad: step 'two' is a function with the name 'three'; define it under its own name"),
    ({"on_error": fresh("on_error")}, "Bad: 'on_error' is reserved and can't be a step"),
    ({"_two": fresh("_two")}, "Bad: '_two' is reserved and can't be a step"),
    ({"on_error": lambda self, error: None}, r"Bad: on_error has the signature .*called with \(self, error, ctx\)"),
    ({"on_error": yields}, "Bad: on_error is a generator"),
    ({"on_error": 3}, "Bad: on_error is a int; make it a plain method"),
    ({"run": good}, r"Bad: run\(self, ctx\) is a job's shape; derive from Job, decorate it with @step, or rename it"),
    ({"work": job(lambda x: None)}, "Bad: 'work' is a @job inside a class; move it to the module"),
    ({"__post_init__": good}, "Bad: __post_init__ is never called; use default_factory"),
]


@pytest.mark.parametrize(("body", "says"), BAD_CLASSES, ids=range(len(BAD_CLASSES)))
def test_bad_classes_are_refused_when_they_are_defined(body: dict[str, Any], says: str) -> None:
    """R7: the message names the class, the step or field, and the mend."""
    with pytest.raises(DefinitionError, match=says) as caught:
        define(body)
    assert str(caught.value).startswith("Bad: ")


BAD_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"name": ""}, "name must not be empty"),
    ({"name": "x" * 513}, "name must be at most 512 bytes"),
    ({"name": "a\0"}, "name 'a.x00' .*has a NUL character"),
    ({"name": 3}, "name must be a string"),
    *(({"version": value}, "version must be an int of 1 or more") for value in (0, -1, 1.0, "1", True, 2**31)),
    *(({"queue": value}, "queue") for value in ("", "q" * 513, 3, None, "a\0", "\ud800")),
    *(({"priority": value}, "priority must be .*-32768 to 32767") for value in (40_000, -32_769, 1.5, "1", True)),
    *(({"retention": value}, "retention must be") for value in (-1, math.nan, "1 day", timedelta(-1))),
    *(({"history": value}, "history must be .*steps") for value in ("all", 3, True)),
    *(({"max_crashes": value}, "max_crashes must be an int of 1 or more") for value in (0, "5", 1.5, True)),
    *(({"timeout": value}, "timeout must be") for value in (0, -1, math.nan, "5", timedelta(0), True)),
    *(({"retry": value}, "retry must be a Backoff, not .*like Backoff") for value in (3, Backoff, True)),
    *(({"run_ahead": value}, "run_ahead must be True or False") for value in (None, 1)),
]


@pytest.mark.parametrize(("options", "says"), BAD_OPTIONS, ids=range(len(BAD_OPTIONS)))
def test_bad_options_are_refused_when_the_class_is_defined(options: dict[str, Any], says: str) -> None:
    """R7."""
    with pytest.raises(DefinitionError, match=f"^Bad: {says}"):
        define({}, **options)


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(TypeError, match="quue"):
        define({}, quue="x")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"timeout": 0}, "timeout must be above 0 seconds, not 0"),
        ({"timeout": "1"}, "timeout must be seconds"),
        ({"retry": 3}, "retry must be a Backoff"),
        ({"initial": "yes"}, "initial must be True or False, not 'yes'"),
        ({"run_ahead": 1}, "run_ahead must be True or False, not 1"),
    ],
)
def test_bad_options_of_a_step(options: dict[str, Any], says: str) -> None:
    """R7: the message names class and step."""
    with pytest.raises(DefinitionError, match=f"^@step on Bad.two: {says}"):
        fresh(**options)


@pytest.mark.parametrize("func", [3, Checkout, staticmethod(good), cached_property(good), Checkout(order=1).start])
def test_step_decorates_functions_only(func: Any) -> None:
    with pytest.raises(DefinitionError, match=r"^@step decorates methods; .* is a "):
        step(func)


def test_a_step_that_is_overridden_without_step_is_refused() -> None:
    """R7."""
    with pytest.raises(DefinitionError, match="Bad: 'ship' overrides a step without being one; decorate it with @step"):
        define({"ship": good}, bases=(Checkout,))


def test_a_base_class_step_and_a_field_of_one_name_are_refused() -> None:
    """R7."""
    with pytest.raises(DefinitionError, match="'ship' is both a field and a step"):
        define({"__annotations__": {"ship": str}}, bases=(Checkout,))
    with pytest.raises(DefinitionError, match="'paid' is both a field and a step"):
        define({"paid": fresh("paid")}, bases=(Checkout,))


def test_abstract_classes_are_checked_too_but_need_no_step() -> None:
    """R7."""

    class Base(Machine, abstract=True):
        x: int

    with pytest.raises(DefinitionError, match="step 'two' has the signature"):
        define({"two": named("two", lambda self: None)}, abstract=True)
    assert issubclass(Base, Machine)


def test_both_shapes_at_once_are_refused() -> None:
    """R7."""
    for bases in ((Job, Checkout), (Checkout, Job), (Job,)):
        with pytest.raises(DefinitionError, match=r"Bad: a job has one step, run\(self, ctx\), but '\w+' is a @step"):
            define({"run": good}, bases=bases)


def test_a_decorator_below_step_needs_wraps() -> None:
    def logged(func: Any) -> Any:
        @wraps(func)
        async def inner(*args: Any) -> Any:
            return await func(*args)

        return inner

    class Wrapped(Machine):
        @step
        @logged
        async def one(self, ctx: Context) -> Done: ...

    assert spec_of(Wrapped).steps["one"].is_async


def test_type_checkers_see_a_keyword_only_dataclass() -> None:
    transform = Machine.__dataclass_transform__  # type: ignore[attr-defined]
    assert transform["kw_only_default"] is True
    assert transform["field_specifiers"] == (dataclasses.field,)
