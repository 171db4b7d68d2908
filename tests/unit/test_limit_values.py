"""Limits as values: rates, keys and their lines, weights; what is refused of them, wherever they are given."""

from __future__ import annotations

import copy
import enum
import math
import pickle
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gen_durable import Context, Done, Machine, Next, Rate, Spawn, child, step
from gen_durable.errors import ConfigurationError, DefinitionError, InvalidArgument
from gen_durable.limits import (
    NO_LIMITS,
    check_weight,
    concurrency_line,
    name_of_line,
    rate_line,
)
from gen_durable.machine import spec_of
from gen_durable.outcome import KEEP


class Color(str, enum.Enum):  # noqa: UP042 - its text is not its value, unlike a StrEnum's
    RED = "red"


class Number(enum.IntEnum):
    SEVEN = 7


# Rates ----------------------------------------------------------------------------------------------


def test_a_rate_has_defaults() -> None:
    """Section 10: the bucket holds what comes in one span, and never less than one token."""
    assert (Rate(100).limit, Rate(100).per, Rate(100).burst) == (100.0, 1.0, 100)
    assert [Rate(limit).burst for limit in (0.001, 0.5, 1, 1.5, 2)] == [1, 1, 1, 2, 2]
    rate = Rate(100, per=timedelta(minutes=1), burst=20)
    assert (rate.limit, rate.per, rate.burst) == (100.0, 60.0, 20)
    assert rate == Rate(100.0, 60, 20)
    assert rate != Rate(100, 60)
    assert repr(rate) == "Rate(limit=100.0, per=60.0, burst=20)"
    assert {rate: 1}[copy.deepcopy(rate)] == 1
    assert pickle.loads(pickle.dumps(rate)) == rate
    with pytest.raises(AttributeError):
        rate.limit = 3.0  # type: ignore[misc]


NO_RATE: list[tuple[Callable[[], Any], str]] = [
    (lambda: Rate(0), r"Rate: limit must be above 0 and at most 2147483647 tokens, not 0 \(int\)"),
    (lambda: Rate(-1.5), r"limit must be above 0 .*, not -1\.5 \(float\)"),
    (lambda: Rate(math.nan), "limit must be above 0 .*, not nan"),
    (lambda: Rate(math.inf), "at most 2147483647 tokens, not inf"),
    (lambda: Rate(10**5000), r"at most 2147483647 tokens, not a value \(int\)"),
    (lambda: Rate(2**31), "at most 2147483647 tokens, not 2147483648"),
    (lambda: Rate(True), r"limit must be a number of tokens, not True \(bool\)"),
    (lambda: Rate("10"), r"limit must be a number of tokens, not '10' \(str\)"),  # type: ignore[arg-type]
    (lambda: Rate(None), "limit must be a number of tokens, not None"),  # type: ignore[arg-type]
    (lambda: Rate(1, per=0), r"Rate: per must be above 0 seconds, not 0 \(int\)"),
    (lambda: Rate(1, per=-1), "per must be above 0 seconds, not -1"),
    (lambda: Rate(1, per=timedelta(0)), "per must be above 0 seconds, not datetime.timedelta"),
    (lambda: Rate(1, per=math.nan), "per must be above 0 seconds, not nan"),
    (lambda: Rate(1, per=math.inf), "per must be at most 100 years"),
    (lambda: Rate(1, per=True), "per must be seconds"),
    (lambda: Rate(1, per="1m"), r"per must be seconds \(a number\) or a timedelta, not '1m'"),  # type: ignore[arg-type]
    (lambda: Rate(1, burst=0), r"Rate: burst must be a whole number of tokens from 1 to 2147483647, not 0 \(int\)"),
    (lambda: Rate(1, burst=-1), "burst must be a whole number .*, not -1"),
    (lambda: Rate(1, burst=True), "burst must be a whole number .*, not True"),
    (lambda: Rate(1, burst=1.5), "burst must be a whole number .*, not 1.5"),  # type: ignore[arg-type]
    (lambda: Rate(1, burst=2**31), "burst must be a whole number .*, not 2147483648"),
    (lambda: Rate(1e-300), "the bucket would take more than 100 years to fill; use a higher limit"),
    (lambda: Rate(1, per=86400, burst=2**31 - 1), "with limit=1, per=86400 and a burst of 2147483647 the bucket"),
]


@pytest.mark.parametrize(("make", "says"), NO_RATE, ids=range(len(NO_RATE)))
def test_a_wrong_rate_is_refused(make: Callable[[], Any], says: str) -> None:
    """R24: a rate of zero or less, or one that is none, names what was given."""
    with pytest.raises(ConfigurationError, match=says):
        make()


# Keys and lines -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "name", "encoded"),
    [
        ("account:7", "account:7", "account:7"),
        (("stripe", "acme"), "stripe", "stripe\x1facme"),
        (("stripe", 7), "stripe", "stripe\x1f7"),
        (("stripe", -(2**63)), "stripe", "stripe\x1f-9223372036854775808"),
        (("stripe", Number.SEVEN), "stripe", "stripe\x1f7"),
        (Color.RED, "red", "red"),
        ((Color.RED, Color.RED), "red", "red\x1fred"),
        ("x" * 512, "x" * 512, "x" * 512),
    ],
)
def test_a_key_is_a_name_or_a_name_and_a_partition(key: Any, name: str, encoded: str) -> None:
    """Section 10: the name says which limit; of a plain string it is the whole string."""
    for encode, prefix in ((concurrency_line, "c"), (rate_line, "r")):
        line = encode(key, "key")
        assert line == prefix + encoded
        assert type(line) is str
        assert name_of_line(line) == name


BAD_KEYS: list[tuple[Any, str]] = [
    ("", "key must not be empty"),
    ("a\0", "has a NUL character"),
    ("\ud800", "has a lone surrogate"),
    ("x" * 513, "at most 512 bytes"),
    ("a\x1fb", r"key 'a\\x1fb' \(str\) has the character \\x1f, which separates names from partitions; remove it"),
    (7, r'must be a name or \(name, partition\), not 7 \(int\); like "account:7" or \("stripe", 7\)'),
    (b"a", "must be a name"),
    (["stripe", 7], r"must be a name or .*, not \['stripe', 7\] \(list\)"),
    (("stripe",), "must be a name"),
    (("stripe", 7, 8), "must be a name"),
    ((), "must be a name"),
    ((7, "stripe"), "key: the name must be a string, not 7"),
    (("", 7), "key: the name must not be empty"),
    (("a\x1f", 7), "key: the name .* has the character"),
    (("stripe", ""), "key: the partition must not be empty"),
    (("stripe", "a\x1fb"), "key: the partition .* has the character"),
    (("stripe", "a\0"), "key: the partition .* NUL"),
    (("stripe", None), "the partition must be a string or an int, not None"),
    (("stripe", True), "the partition must be a string or an int, not True"),
    (("stripe", 1.0), "the partition must be a string or an int, not 1.0"),
    (("stripe", 2**63), "the partition must fit into 64 bits, unlike 9223372036854775808"),
    (("stripe", 10**5000), "must fit into 64 bits, unlike a value"),
    (("é" * 200, "é" * 56), r"must be at most 512 bytes of UTF-8 in all; .* has 513"),
    (len, "must be a name"),
    (KEEP, "must be a name"),
]


@pytest.mark.parametrize(("key", "says"), BAD_KEYS, ids=range(len(BAD_KEYS)))
def test_a_wrong_key_is_refused(key: Any, says: str) -> None:
    """Section 14: the message names the value and the mend."""
    with pytest.raises(InvalidArgument, match=says):
        concurrency_line(key, "key")
    with pytest.raises(DefinitionError, match=says):
        rate_line(key, "key", DefinitionError)


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0\x1f"), min_size=1, max_size=60)
partitions = st.one_of(texts, st.integers(-(2**63), 2**63 - 1))
keys = st.one_of(texts, st.tuples(texts, partitions))


@given(keys)
def test_a_line_says_what_key_it_is_of(key: Any) -> None:
    """R21: a key comes back from its line, whole; nothing of a partition gets into the name."""
    name, *partition = (key,) if isinstance(key, str) else key
    for line in (concurrency_line(key, "key"), rate_line(key, "key")):
        assert name_of_line(line) == name
        assert line[1:].split("\x1f") == [name, *(str(part) for part in partition)]
        assert len(line.encode()) <= 513


@given(keys, keys)
def test_two_keys_share_a_line_only_where_they_are_the_same(one: Any, other: Any) -> None:
    """Section 10: a plain string can't be captured by a name with a partition; a number is its digits."""

    def plain(key: Any) -> Any:
        return key if isinstance(key, str) else (key[0], str(key[1]))

    same = plain(one) == plain(other)
    assert (concurrency_line(one, "key") == concurrency_line(other, "key")) is same
    assert concurrency_line(one, "key") != rate_line(other, "key")


@given(st.one_of(st.text(), st.tuples(st.text(), st.one_of(st.text(), st.integers())), st.integers(), st.none()))
def test_whatever_is_taken_can_be_stored(key: Any) -> None:
    """Section 14: a key is refused with a documented error, or its line is text that Postgres holds."""
    try:
        line = concurrency_line(key, "key")
    except InvalidArgument:
        return
    assert "\0" not in line
    assert line.count("\x1f") == isinstance(key, tuple)
    assert 2 <= len(line.encode()) <= 513


@pytest.mark.parametrize("weight", [1, 7, 2**31 - 1, Number.SEVEN])
def test_weights(weight: int) -> None:
    assert check_weight(weight, "weight") == weight
    assert type(check_weight(weight, "weight")) is int


@pytest.mark.parametrize("weight", [0, -1, 2**31, 1.0, True, "1", None, math.nan, 10**5000], ids=range(9))
def test_bad_weights(weight: Any) -> None:
    """R24: a weight is a whole number of at least one."""
    with pytest.raises(InvalidArgument, match="weight must be a whole number of tokens from 1 to 2147483647, not "):
        check_weight(weight, "weight")


# What is refused when a function has answered -------------------------------------------------------


class Late(Machine, concurrency_key=lambda self: self.key):
    key: Any = None
    rate: Any = None
    weight: Any = None

    @step(rate_limit=lambda self: self.rate, weight=lambda self: self.weight)
    async def ship(self, ctx: Context) -> Done: ...


class Answer:
    async def __call__(self, machine: Any) -> str:
        return "x"


@pytest.mark.parametrize(("key", "says"), BAD_KEYS, ids=range(len(BAD_KEYS)))
def test_wrong_answers_name_machine_step_and_value(key: Any, says: str) -> None:
    """R24: the answer is checked where the function is asked."""
    spec, machine = spec_of(Late), Late()
    machine.key = machine.rate = key
    with pytest.raises(InvalidArgument, match=rf"^Late: concurrency_key.*{says.removeprefix('key')}"):
        spec.own_gate(machine)
    with pytest.raises(InvalidArgument, match=rf"^Late\.ship: rate_limit.*{says.removeprefix('key')}"):
        spec.limits_of("ship", machine, None)


def test_a_wrong_weight_names_machine_step_and_value() -> None:
    machine = Late(rate="crm", weight=0)
    with pytest.raises(
        InvalidArgument, match=r"^Late\.ship: weight must be a whole number of tokens .*, not 0 \(int\)"
    ):
        spec_of(Late).limits_of("ship", machine, None)
    assert spec_of(Late).limits_of("ship", Late(weight=0), None) == NO_LIMITS


def test_a_function_that_raises_is_named() -> None:
    class Broken(Machine, concurrency_key=lambda self: self.nothing):
        @step(rate_limit=lambda self: {}["x"], weight=lambda self: 1 / 0)
        async def ship(self, ctx: Context) -> Done: ...

    spec = spec_of(Broken)
    with pytest.raises(
        InvalidArgument, match="Broken: concurrency_key: its function raised AttributeError: "
    ) as raised:
        spec.own_gate(Broken())
    assert isinstance(raised.value.__cause__, AttributeError)
    with pytest.raises(InvalidArgument, match=r"Broken\.ship: rate_limit: its function raised KeyError: 'x'"):
        spec.limits_of("ship", Broken(), None)
    with pytest.raises(InvalidArgument, match=r"Broken\.ship: weight: its function raised ZeroDivisionError"):
        spec.limits_of("ship", Broken(), None, rate_limit="crm")


def test_an_answer_that_nobody_awaited_is_refused_and_closed() -> None:
    class Waits(Machine, concurrency_key=Answer()):
        @step
        async def ship(self, ctx: Context) -> Done: ...

    with pytest.raises(InvalidArgument, match=r"Waits: concurrency_key must be a name or .*, not <coroutine"):
        spec_of(Waits).own_gate(Waits())


# Next, child ----------------------------------------------------------------------------------------


def test_options_of_next() -> None:
    """Section 3: absent keeps, None releases, a value switches."""
    bare = Next("ship")
    assert (bare.concurrency_key, bare.rate_limit, bare.weight, bare.limited) == (KEEP, KEEP, KEEP, False)
    given = Next("ship", concurrency_key=("a", 1), rate_limit=None, weight=2)
    assert (given.concurrency_key, given.rate_limit, given.weight, given.limited) == (("a", 1), None, 2, True)
    assert repr(given) == "Next('ship', concurrency_key=('a', 1), rate_limit=None, weight=2)"
    assert pickle.loads(pickle.dumps(given)) == given
    assert pickle.loads(pickle.dumps(bare)).concurrency_key is KEEP


@pytest.mark.parametrize(("key", "says"), BAD_KEYS[:-1], ids=range(len(BAD_KEYS) - 1))
def test_next_refuses_what_is_no_key(key: Any, says: str) -> None:
    """R24: where the outcome is built, in the step."""
    with pytest.raises(InvalidArgument, match=f"^Next: concurrency_key.*{says.removeprefix('key')}"):
        Next("ship", concurrency_key=key)
    with pytest.raises(InvalidArgument, match=f"^Next: rate_limit.*{says.removeprefix('key')}"):
        Next("ship", rate_limit=key)


def test_next_refuses_what_is_no_weight() -> None:
    with pytest.raises(InvalidArgument, match=r"^Next: weight must be a whole number of tokens"):
        Next("ship", weight=0)


def test_a_child_has_options_of_its_own() -> None:
    made = child(Late(), key="k", concurrency_key=None, rate_limit="crm", weight=2)
    assert (made.key, made.concurrency_key, made.rate_limit, made.weight) == ("k", None, "crm", 2)
    (plain,) = Spawn([Late()], "join").children
    assert (plain.concurrency_key, plain.rate_limit, plain.weight) == (KEEP, KEEP, KEEP)
