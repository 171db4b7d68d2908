"""Declared limits: what a class may say, what it comes to for one step of one instance, and what must be known."""

from __future__ import annotations

import operator
from functools import partial
from typing import Any

import pytest

from gen_durable import Context, Done, Engine, Job, Machine, Next, Rate, job, step
from gen_durable.config import check_rates
from gen_durable.errors import ConfigurationError, DefinitionError, InvalidArgument
from gen_durable.limits import (
    NO_LIMITS,
    Limits,
    check_known,
)
from gen_durable.machine import spec_of
from gen_durable.outcome import KEEP

# What is declared -----------------------------------------------------------------------------------


class Transfer(Machine, concurrency_key=lambda self: ("account", self.account)):
    account: int
    tenant: str | None = None
    size: int = 1

    @step
    async def free(self, ctx: Context) -> Done: ...

    @step(concurrency_key=None)
    async def loose(self, ctx: Context) -> Done: ...

    @step(rate_limit="crm")
    async def call(self, ctx: Context) -> Done: ...

    @step(
        concurrency_key=lambda self: None if self.tenant is None else ("tenant", self.tenant),
        rate_limit=lambda self: None if self.tenant is None else ("crm", self.tenant),
        weight=lambda self: self.size,
    )
    async def heavy(self, ctx: Context) -> Done: ...


@job(concurrency_key=lambda self: self.to, rate_limit=("mail", "eu"), weight=3)
async def send(to: str, ctx: Context) -> None: ...


TRANSFER = spec_of(Transfer)


def limits(name: str, own: str | None = "cown", /, **options: Any) -> Limits:
    machine = Transfer(account=7, **{k: options.pop(k) for k in ("tenant", "size") if k in options})
    return TRANSFER.limits_of(name, machine, own, **options)


def test_the_specs_hold_what_was_declared() -> None:
    assert callable(TRANSFER.concurrency_key)
    steps = list(TRANSFER.steps.values())[:3]
    assert [(s.concurrency_key is KEEP, s.rate_limit, s.weight, s.limited) for s in steps] == [
        (True, None, None, False),
        (False, None, None, True),
        (True, "crm", None, True),
    ]  # fmt: skip
    assert TRANSFER.limited
    run = spec_of(send).steps["run"]
    assert (run.concurrency_key, run.rate_limit, run.weight, run.limited) == (KEEP, ("mail", "eu"), 3, True)
    assert callable(spec_of(send).concurrency_key)


def test_what_declares_nothing_is_not_limited() -> None:
    """A step without limits costs a look at one flag."""

    class Plain(Machine):
        @step
        async def one(self, ctx: Context) -> Done: ...

        @step(rate_limit="crm")
        async def two(self, ctx: Context) -> Done: ...

    spec = spec_of(Plain)
    assert (spec.limited, spec.steps["one"].limited, spec.steps["two"].limited) == (False, False, True)
    assert spec.limits_of("one", Plain(), None) == NO_LIMITS
    assert not Next("one").limited
    assert Next("one", weight=None).limited


def test_the_instance_s_own_key_is_for_the_steps_that_declare_none() -> None:
    """Section 10: a step's own declaration beats it, and may say that there is none."""
    assert TRANSFER.own_gate(Transfer(account=7)) == "caccount\x1f7"
    assert limits("free") == Limits("cown", None, None)
    assert limits("free", None) == NO_LIMITS
    assert limits("loose") == NO_LIMITS
    assert limits("call") == Limits("cown", "rcrm", None)
    assert limits("heavy") == NO_LIMITS
    assert limits("heavy", tenant="a", size=5) == Limits("ctenant\x1fa", "rcrm\x1fa", 5)
    assert limits("heavy", tenant="a", size=1) == Limits("ctenant\x1fa", "rcrm\x1fa", None)


def test_what_a_transition_says_beats_what_is_declared() -> None:
    """Section 10: on ``Next``; None is no limit."""
    assert limits("free", concurrency_key="x") == Limits("cx", None, None)
    assert limits("free", concurrency_key=None) == NO_LIMITS
    assert limits("free", rate_limit=("crm", 1), weight=2) == Limits("cown", "rcrm\x1f1", 2)
    assert limits("call", rate_limit=None) == Limits("cown", None, None)
    assert limits("call", weight=4) == Limits("cown", "rcrm", 4)
    assert limits("heavy", tenant="a", size=5, weight=None) == Limits("ctenant\x1fa", "rcrm\x1fa", None)
    assert limits("heavy", tenant="a", size=5, concurrency_key=("x", "y"), rate_limit="z") == Limits("cx\x1fy", "rz", 5)
    assert limits("heavy", weight=4) == Limits(None, None, None)  # its function says that there is no limit now


def test_a_weight_without_a_rate_limit_is_refused() -> None:
    """R24: it would have no effect."""
    with pytest.raises(InvalidArgument, match=r"Transfer\.free: weight=3 without a rate limit; give rate_limit= too"):
        limits("free", weight=3)


def test_the_fields_of_a_job_are_the_attributes() -> None:
    """Section 4: a function gets the bound job as a machine's gets its self."""
    spec, bound = spec_of(send), send.bind("ada@x")
    assert spec.own_gate(bound) == "cada@x"
    assert spec.limits_of("run", bound, "cada@x") == Limits("cada@x", "rmail\x1feu", 3)

    class Mail(
        Job, concurrency_key="mails", rate_limit=lambda self: ("mail", self.to), weight=operator.attrgetter("n")
    ):
        to: str
        n: int

        async def run(self, ctx: Context) -> None: ...

    mail = Mail(to="x", n=9)
    assert spec_of(mail).own_gate(mail) == "cmails"
    assert spec_of(mail).limits_of("run", mail, "cmails") == Limits("cmails", "rmail\x1fx", 9)


def test_functions_are_asked_in_order_and_only_for_what_counts() -> None:
    """Key, rate limit, weight; none that is overridden, and no weight where there is no rate limit."""
    asked: list[str] = []

    def ask(what: str, answer: Any) -> Any:
        return lambda self: (asked.append(what), answer)[1]

    class Asked(Machine, concurrency_key=ask("own", "o")):
        @step(concurrency_key=ask("key", "k"), rate_limit=ask("rate", "r"), weight=ask("weight", 2))
        async def all(self, ctx: Context) -> Done: ...

        @step(rate_limit=ask("none", None), weight=ask("weight", 2))
        async def none(self, ctx: Context) -> Done: ...

    spec = spec_of(Asked)

    def order(name: str, **options: Any) -> list[str]:
        asked.clear()
        spec.limits_of(name, Asked(), "co", **options)
        return list(asked)

    assert order("all") == ["key", "rate", "weight"]
    assert order("all", concurrency_key="x") == ["rate", "weight"]
    assert order("all", rate_limit="x") == ["key", "weight"]
    assert order("all", rate_limit=None) == ["key"]
    assert order("all", weight=1) == ["key", "rate"]
    assert order("none") == ["none"]
    asked.clear()
    assert spec.own_gate(Asked(), None) is None
    assert spec.own_gate(Asked(), "x") == "cx"
    assert asked == []


def test_machines_inherit_and_steps_overrule() -> None:
    """Section 3: options on the machine are the defaults of its steps; a base class's are its subclasses'."""

    class Base(Machine, abstract=True, concurrency_key="base", rate_limit="crm", weight=2):
        @step
        async def one(self, ctx: Context) -> Done: ...

        @step(rate_limit=None)
        async def two(self, ctx: Context) -> Done: ...

        @step(weight=None)
        async def three(self, ctx: Context) -> Done: ...

    class Same(Base): ...

    class Other(Base, concurrency_key=None, rate_limit=("crm", 1)): ...

    def of(cls: type[Machine]) -> list[Limits]:
        spec, machine = spec_of(cls), cls()
        return [spec.limits_of(name, machine, spec.own_gate(machine)) for name in spec.steps]

    assert of(Same) == [Limits("cbase", "rcrm", 2), Limits("cbase", None, None), Limits("cbase", "rcrm", None)]
    assert of(Other) == [Limits(None, "rcrm\x1f1", 2), NO_LIMITS, Limits(None, "rcrm\x1f1", None)]


# What is refused when a class is defined ------------------------------------------------------------


async def asynchronous(self: Any) -> str:
    return "x"


def generator(self: Any) -> Any:
    yield "x"


BAD_DECLARATIONS: list[tuple[dict[str, Any], str]] = [
    ({"concurrency_key": ""}, "concurrency_key must not be empty"),
    ({"concurrency_key": 7}, "concurrency_key must be a name"),
    ({"concurrency_key": str}, "concurrency_key must be a name or .*, not <class 'str'>"),
    ({"concurrency_key": ("a", None)}, "concurrency_key: the partition must be a string or an int"),
    ({"concurrency_key": lambda: "x"}, r"concurrency_key is called with the machine alone, like lambda self: self\.te"),
    ({"rate_limit": lambda self, ctx: "x"}, "rate_limit is called with the machine alone"),
    ({"rate_limit": asynchronous}, "rate_limit must be a plain function of the machine, not <function asynchronous"),
    ({"rate_limit": partial(asynchronous)}, "rate_limit must be a plain function of the machine"),
    ({"rate_limit": generator}, "rate_limit must be a plain function of the machine"),
    ({"rate_limit": ["a", "b"]}, "rate_limit must be a name"),
    ({"rate_limit": "a\x1fb"}, "rate_limit .* has the character"),
    ({"rate_limit": "a", "weight": 0}, "weight must be a whole number of tokens from 1 to 2147483647, not 0"),
    ({"rate_limit": "a", "weight": 1.5}, "weight must be a whole number"),
    ({"rate_limit": "a", "weight": lambda: 1}, "weight is called with the machine alone"),
    ({"rate_limit": "a", "weight": asynchronous}, "weight must be a plain function"),
]


@pytest.mark.parametrize(("options", "says"), BAD_DECLARATIONS, ids=range(len(BAD_DECLARATIONS)))
def test_bad_declarations_are_refused_when_the_class_is_defined(options: dict[str, Any], says: str) -> None:
    """R7, R24: on steps, machines, job functions and job classes alike; the message says where."""
    with pytest.raises(DefinitionError, match=rf"^@step on .*\.ship: {says}"):

        class Wrong(Machine):
            @step(**options)
            async def ship(self, ctx: Context) -> Done: ...

    with pytest.raises(DefinitionError, match=rf"Bad: {says}"):

        class Bad(Machine, **options):
            @step
            async def ship(self, ctx: Context) -> Done: ...

    with pytest.raises(DefinitionError, match=rf"work: {says}"):

        @job(**options)
        async def work() -> None: ...

    with pytest.raises(DefinitionError, match=rf"Work: {says}"):

        class Work(Job, **options):
            async def run(self, ctx: Context) -> None: ...


def test_a_declared_weight_needs_a_rate_limit() -> None:
    """R24: at the step, at the machine, at the job."""
    with pytest.raises(DefinitionError, match=r"Wrong: step 'ship' has a weight but no rate_limit; give it one"):

        class Wrong(Machine):
            @step(weight=3)
            async def ship(self, ctx: Context) -> Done: ...

    with pytest.raises(DefinitionError, match="Bad: a weight without a rate_limit has no effect; give rate_limit= too"):

        class Bad(Machine, weight=3):
            @step
            async def ship(self, ctx: Context) -> Done: ...

    with pytest.raises(DefinitionError, match="work: a weight without a rate_limit has no effect"):

        @job(weight=3)
        async def work() -> None: ...

    class Base(Machine, abstract=True, weight=3): ...

    class Good(Base):
        @step(rate_limit="a")
        async def ship(self, ctx: Context) -> Done: ...

    assert spec_of(Good).limits_of("ship", Good(), None) == Limits(None, "ra", 3)


def test_keep_is_for_steps_and_transitions() -> None:
    with pytest.raises(DefinitionError, match="Bad: concurrency_key must be a name"):

        class Bad(Machine, concurrency_key=KEEP):  # type: ignore[arg-type]
            @step
            async def ship(self, ctx: Context) -> Done: ...


class Late(Machine, concurrency_key=lambda self: self.key):
    key: Any = None
    rate: Any = None
    weight: Any = None

    @step(rate_limit=lambda self: self.rate, weight=lambda self: self.weight)
    async def ship(self, ctx: Context) -> Done: ...


# What is known --------------------------------------------------------------------------------------


def test_an_unknown_rate_limit_is_refused() -> None:
    """R24: at insert and at ``Next``; the message names those that there are."""
    known = {"crm": 5.0, "mail": 1.0}
    check_known(NO_LIMITS, {})
    check_known(Limits("cx", None, None), {})
    check_known(Limits(None, "rcrm\x1fx", 5), known)
    check_known(Limits(None, "rmail", None), known)
    with pytest.raises(
        InvalidArgument, match=r"there is no rate limit 'x' \(known: crm, mail\): name it in rate_limits="
    ):
        check_known(Limits(None, "rx", None), known)
    with pytest.raises(InvalidArgument, match=r"no rate limit 'crm' \(known: none\)"):
        check_known(Limits(None, "rcrm", None), {})
    with pytest.raises(
        InvalidArgument, match="weight=6 is more than the rate limit 'crm' ever holds, a burst of 5: use a"
    ):
        check_known(Limits(None, "rcrm", 6), known)


def test_declared_rate_limits_are_checked_as_a_whole() -> None:
    """R24: at the engine's start; what functions answer is checked later."""

    class Plain(Machine, name="shop/plain"):
        @step(rate_limit="crm", weight=3)
        async def one(self, ctx: Context) -> Done: ...

        @step(rate_limit=("mail", "eu"), weight=lambda self: 9)
        async def two(self, ctx: Context) -> Done: ...

        @step(rate_limit=lambda self: "unknown", weight=10**6)
        async def three(self, ctx: Context) -> Done: ...

    specs = [spec_of(Plain), spec_of(Late)]
    settings = Engine(machines=[Plain, Late, send], rate_limits={"crm": Rate(1)}).settings  # not refused yet
    assert settings.rate_names == ("crm", "mail")
    check_rates(specs, {"crm": 3, "mail": 1})
    with pytest.raises(ConfigurationError, match=r"^shop/plain\.two: there is no rate limit 'mail' \(known: crm\)"):
        check_rates(specs, {"crm": 3})
    with pytest.raises(ConfigurationError, match=r"^shop/plain\.one: weight=3 is more than the rate limit 'crm' ever"):
        check_rates(specs, {"crm": 2.5, "mail": 1})
    check_rates([spec_of(Late)], {})
    assert Engine(machines=[Late]).settings.rate_names == ()
