"""Every field type round-trips through what jsonb keeps; all else is refused with a message and a mend."""

from __future__ import annotations

import collections
import dataclasses
import enum
import json
import math
import pathlib
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple, TypedDict
from uuid import UUID, uuid4

import attrs
import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gen_durable.codec import StateCodec, encode_value, storable_text
from gen_durable.errors import DefinitionError, InvalidPayload, InvalidState, StateDecodeError


class Color(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


class Perm(enum.Flag):
    READ = 1
    WRITE = 2


@dataclasses.dataclass
class Line:
    sku: str
    price: Decimal
    at: datetime | None = None
    _note: str = ""


@dataclasses.dataclass(frozen=True)
class Point:
    x: int
    y: int


@dataclasses.dataclass
class Tree:
    name: str
    children: list[Tree] = dataclasses.field(default_factory=list)


@attrs.define
class Box:
    lines: list[Line]
    label: str = "x"


@attrs.define
class Private:
    _secret: int = 1


class Money(msgspec.Struct, rename="camel"):
    minor_units: int
    currency: str = "EUR"


class Card(msgspec.Struct, tag=True):
    number: str


class Iban(msgspec.Struct, tag=True):
    number: str


class Inner(pydantic.BaseModel):
    at: datetime
    amount: Decimal


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, extra="forbid")

    id: int = pydantic.Field(alias="theId")
    inner: Inner
    tags: set[str] = set()
    ratio: float | None = None

    @pydantic.computed_field
    def double(self) -> int:
        return self.id * 2


class Swapped(pydantic.BaseModel):
    a: int = pydantic.Field(alias="b")
    b: int = pydantic.Field(alias="a")


class Loose(pydantic.BaseModel):
    ratio: float | None


class Roots(pydantic.RootModel[list[Decimal]]):
    pass


class Login(pydantic.BaseModel):
    password: pydantic.SecretStr


@pydantic.dataclasses.dataclass
class Checked:
    count: pydantic.PositiveInt
    inner: Inner | None = None


class Row(TypedDict, total=False):
    id: int
    when: date


class Pair(NamedTuple):
    left: int
    right: str = "r"


class Opaque:
    pass


WHEN = datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=timezone(timedelta(hours=2)))
INNER = Inner(at=WHEN, amount=Decimal("1.10"))

FIELDS: list[tuple[Any, Any]] = [
    (int, 2**63 + 1),
    (int, -(10**40)),
    (float, 1.5),
    (float, 1e300),
    (float, 5e-324),
    (float, sys.float_info.max),
    (bool, True),
    (str, 'é\U0001f600 "\\u0000" \\ \n'),
    (bytes, b"\x00\xff"),
    (bytearray, bytearray(b"\x00a")),
    (None, None),
    (Any, {"a": [1, None, "x", 2.5, True]}),
    (int | None, None),
    (int | str, "x"),
    (int | float, 2.5),
    (datetime, WHEN),
    (datetime, datetime(2024, 1, 1)),  # noqa: DTZ001 - a naive one stays naive
    (date, date(2024, 2, 29)),
    (time, time(1, 2, 3, 4, tzinfo=UTC)),
    (timedelta, timedelta(days=-1, microseconds=7)),
    (timedelta, timedelta.max),
    (Decimal, Decimal("12.3400")),
    (Decimal, Decimal("1E+400")),
    (UUID, UUID(int=7)),
    (Color, Color.RED),
    (Level, Level.LOW),
    (Perm, Perm.READ | Perm.WRITE),
    (Literal["a", 1, None], "a"),
    (Annotated[int, msgspec.Meta(ge=0)], 0),
    (list[int], [1, 2]),
    (Sequence[int], [1, 2]),
    (tuple[int, str], (1, "a")),
    (tuple[int, ...], (1, 2, 3)),
    (set[UUID], {UUID(int=1), UUID(int=2)}),
    (frozenset[Point], frozenset({Point(1, 2)})),
    (dict[str, list[Line]], {"a": [Line("s", Decimal("1.5"), WHEN, _note="kept")]}),
    (dict[int, str], {1: "a"}),
    (dict[Color, int], {Color.RED: 1}),
    (dict[date, int], {date(2024, 1, 1): 1}),
    (dict[UUID, int], {UUID(int=3): 1}),
    (dict[Decimal, int], {Decimal("1.5"): 1}),
    (Line, Line("s", Decimal("0.10"))),
    (Tree, Tree("a", [Tree("b"), Tree("c", [Tree("d")])])),
    (Box, Box([Line("s", Decimal("1"))])),
    (Money, Money(5)),
    (Card | Iban, Iban("x")),
    (Model, Model(theId=1, inner=INNER, tags={"x"})),
    (list[Model] | None, [Model(theId=1, inner=INNER)]),
    (dict[str, Inner], {"a": INNER}),
    (Swapped, Swapped(a=1, b=2)),
    (Roots, Roots([Decimal("1.10")])),
    (Checked, Checked(count=1, inner=INNER)),
    (Row, {"id": 1, "when": date(2024, 1, 1)}),
    (Pair, Pair(1)),
    (list[Pair | None], [Pair(1), None]),
]


def through_jsonb(raw: bytes) -> bytes:
    """What jsonb gives back: other order of keys, numbers written out as numeric."""

    def text(value: Any) -> str:
        if isinstance(value, dict):
            items = sorted(value.items(), key=lambda item: (len(item[0]), item[0]))
            return "{" + ", ".join(f"{json.dumps(key)}: {text(item)}" for key, item in items) + "}"
        if isinstance(value, list):
            return "[" + ", ".join(map(text, value)) + "]"
        return format(value, "f") if isinstance(value, Decimal) else json.dumps(value)

    return text(json.loads(raw, parse_float=Decimal)).encode()


def codec_of(hint: Any, name: str = "value") -> StateCodec:
    return StateCodec("Shop", {name: hint}, {})


def refusal(hint: Any) -> str:
    with pytest.raises(DefinitionError) as caught:
        codec_of(hint)
    assert "Shop: the type of field 'value' can't be stored: " in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("hint", "value"), FIELDS, ids=range(len(FIELDS)))
def test_every_field_type_comes_back_equal_and_of_its_type(hint: Any, value: Any) -> None:
    codec = codec_of(hint)
    raw, fresh = codec.validated({"value": value})
    stored = codec.decode(through_jsonb(raw))["value"]
    assert stored == value
    assert type(stored) is type(value)
    assert fresh == {"value": value}
    assert codec.validate({"value": stored}) == raw
    assert codec.decode(through_jsonb(raw).decode())["value"] == value


VALUES = {
    "i": st.integers(-(2**200), 2**200),
    "f": st.floats(allow_nan=False, allow_infinity=False),
    "s": st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    "b": st.binary(),
    "d": st.datetimes(timezones=st.none() | st.just(UTC)),
    "t": st.timedeltas(),
    "m": st.decimals(allow_nan=False, allow_infinity=False),
    "o": st.none() | st.integers(),
    "l": st.dictionaries(st.integers(), st.lists(st.uuids(), max_size=2), max_size=2),
}
HINTS: dict[str, Any] = {
    "i": int, "f": float, "s": str, "b": bytes, "d": datetime, "t": timedelta, "m": Decimal, "o": int | None,
    "l": dict[int, list[UUID]],
}  # fmt: skip
MIXED = StateCodec("Mixed", HINTS, {})


@given(st.fixed_dictionaries(VALUES))
def test_any_values_survive_jsonb(state: dict[str, Any]) -> None:
    assert MIXED.decode(through_jsonb(MIXED.encode(state))) == state


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def storable(value: Any) -> bool:
    if isinstance(value, dict):
        return all(storable(item) for pair in value.items() for item in pair)
    if isinstance(value, list):
        return all(map(storable, value))
    if isinstance(value, str):
        return "\0" not in value and not any("\ud800" <= char <= "\udfff" for char in value)
    return not isinstance(value, float) or math.isfinite(value)


@given(JSON)
def test_exactly_the_storable_values_are_taken(value: Any) -> None:
    """NaN, infinity, NUL and lone surrogates are found at any depth, and nothing else is refused."""
    codec = codec_of(Any)
    if storable(value):
        assert codec.decode(codec.encode({"value": value})) == {"value": value}
        assert json.loads(encode_value(value, "it")) == value
    else:
        with pytest.raises(InvalidState, match="Shop: field 'value' holds "):
            codec.encode({"value": value})
        with pytest.raises(InvalidPayload, match="it holds "):
            encode_value(value, "it")


BAD_TYPES: list[tuple[Any, str]] = [
    (Opaque, "Opaque has no JSON form; use builtins, dataclasses"),
    (list[Opaque], "list\\[.*Opaque\\]: Opaque has no JSON form"),
    (Opaque | None, "Opaque has no JSON form"),
    (Opaque | int, "custom type"),
    (complex, "complex has no JSON form"),
    (object, "use Any"),
    (Callable[[int], str], "Callable has no JSON form"),
    (type[int], "type has no JSON form"),
    (threading.Lock, "not supported|no JSON form"),
    (pathlib.Path, "Path has no JSON form"),
    (collections.deque[int], "deque has no JSON form"),
    (str | Decimal, "more than one str-like type"),
    (list[int] | tuple[int, ...], "more than one array-like"),
    (set[list[int]], "items of a set must be hashable; use a list"),
    (frozenset[tuple[int, Line]], "items of a set must be hashable"),
    (set[dict[str, int] | None], "items of a set must be hashable"),
    (dict[tuple[int, int], str], "keys of a dict must be of one type"),
    (dict[int | str, str], "keys of a dict must be of one type"),
    (dict[bool, str], "keys of a dict must be of one type"),
    (enum.Enum("Odd", {"A": (1, 2)}), "all str or all int"),
    (Private, "private attribute '_secret' of Private is not stored; rename it"),
    (list[Login], "Login has a secret field, which pydantic writes as asterisks"),
    (pydantic.SecretStr, "SecretStr has no JSON form"),
    (msgspec.Raw, "raw messages are not checked; use Any"),
    (dataclasses.make_dataclass("Far", [("x", "Nowhere")]), "Nowhere.*define the classes"),
]


@pytest.mark.parametrize(("hint", "says"), BAD_TYPES, ids=range(len(BAD_TYPES)))
def test_types_that_cant_be_stored_are_refused(hint: Any, says: str) -> None:
    """R7: refused when the codec is built, naming owner, field, type and mend."""
    assert re.search(says, refusal(hint))


BAD_VALUES: list[tuple[Any, Any, str]] = [
    (int, "x", r"is 'x' \(str\), which is not int: Expected `int`, got `str`"),
    (int, True, "which is not int"),
    (int, 1.0, "which is not int"),
    (int, None, "is None, which is not int"),
    (bool, 1, "which is not bool"),
    (str, 1, "which is not str"),
    (dict[str, list[int]], {"a": [1, "x"]}, "Expected `int`, got `str`"),
    (Line, {"sku": "a"}, "missing required field `price`"),
    (Model, {"id": 1, "inner": {"at": "never", "amount": "1"}}, "(?s)which is not Model: .*inner.at"),
    (Annotated[int, msgspec.Meta(ge=0)], -1, ">= 0"),
    (Color, "blue", "which is not Color: Invalid enum value 'blue'"),
    (float, math.nan, "holds nan, which JSON has no form for; use None or a Decimal"),
    (float | None, -math.inf, "holds -inf"),
    (Any, {"a": [{"b": (1, math.inf)}]}, "holds inf"),
    (Any, Point(1, math.nan), "holds nan"),
    (Loose | None, Loose(ratio=math.nan), "holds nan"),
    (str, "a\0b", "holds a NUL character, which Postgres can't store in text; remove it, or use bytes"),
    (dict[str, int], {"\\\0": 1}, "holds a NUL character"),
    (str, "\ud800", "holds a lone surrogate"),
    (int, 10**5000, "holds an int of more than 4300 digits"),
    (Any, Opaque(), r"Opaque has no JSON form \(in <.*Opaque.*; convert it first"),
    (Any, {(1, 2): 3}, "can't be written as JSON"),
    (Any, MappingProxyType({}), "mappingproxy has no JSON form"),
]


@pytest.mark.parametrize(("hint", "value", "says"), BAD_VALUES, ids=range(len(BAD_VALUES)))
def test_wrong_values_are_refused_with_owner_field_and_mend(hint: Any, value: Any, says: str) -> None:
    codec = StateCodec("Shop", {"good": int, "value": hint}, {})
    with pytest.raises(InvalidState, match=says) as caught:
        codec.validate({"good": 1, "value": value})
    assert str(caught.value).startswith("Shop: field 'value' ")


def test_a_value_that_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(InvalidState, match="contains itself"):
        codec_of(Any).encode({"value": loop})


@pytest.mark.parametrize("text", ["\\u0000", "\\\\u0000", "null", '"null"', "\\"])
def test_text_that_only_looks_suspicious_is_kept(text: str) -> None:
    codec = codec_of(dict[str, str])
    assert codec.decode(codec.validate({"value": {text: text}})) == {"value": {text: text}}
    assert json.loads(encode_value([text, None], "it")) == [text, None]


def test_encode_takes_only_declared_fields_and_does_not_check_types() -> None:
    assert codec_of(int).encode({"value": "x", "other": object()}) == b'{"value":"x"}'


def test_a_deleted_field_is_refused() -> None:
    with pytest.raises(InvalidState, match="Shop: field 'value' has no value; it was deleted, set it again"):
        codec_of(int).encode({})


def test_subclasses_of_plain_types_are_stored_as_what_they_extend() -> None:
    class Name(str):
        pass

    class Number(int):
        pass

    class Ratio(float):
        pass

    state = {"s": Name("n"), "i": Number(3), "f": Ratio(0.5), "d": collections.Counter("aa")}
    codec = StateCodec("Shop", {"s": str, "i": int, "f": float, "d": dict[str, int]}, {})
    fresh = codec.validated(state)[1]
    assert fresh == {"s": "n", "i": 3, "f": 0.5, "d": {"a": 2}}
    assert [type(value) for value in fresh.values()] == [str, int, float, dict]


def test_build_fills_defaults_and_gives_what_a_step_will_get() -> None:
    shared = [1]
    codec = StateCodec("Shop", {"total": float, "tags": list[int], "n": int}, {"n": lambda: 7})
    state = codec.build({"tags": shared, "total": 1})
    assert state == {"total": 1.0, "tags": [1], "n": 7}
    assert list(state) == ["total", "tags", "n"]
    assert type(state["total"]) is float
    assert state["tags"] is not shared


def test_build_refuses_unknown_and_missing_fields() -> None:
    codec = StateCodec("Shop", {"a": int, "b": int}, {"b": lambda: 1})
    with pytest.raises(InvalidState, match="Shop: there is no field 'c'; its fields are: a, b"):
        codec.build({"a": 1, "c": 2})
    with pytest.raises(InvalidState, match="Shop: field 'a' is missing and has no default; give a="):
        codec.build({})
    with pytest.raises(InvalidState, match="its fields are: none"):
        StateCodec("Empty", {}, {}).build({"a": 1})


def test_decode_fills_missing_fields_and_ignores_unknown_keys() -> None:
    codec = StateCodec("Shop", {"a": int, "tags": list[int]}, {"tags": list})
    assert StateCodec("Shop", {"a": int, "b": int}, {"a": int, "b": int}).decode(b'{"a": 7}') == {"a": 7, "b": 0}
    first, second = codec.decode(b'{"a": 1, "gone": {"x": 1}}'), codec.decode(b'{"a": 1}')
    assert first == second == {"a": 1, "tags": []}
    assert first["tags"] is not second["tags"]
    assert StateCodec("Empty", {}, {}).decode(b'{"x": 1}') == {}


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b'{"b": 1}', "missing required field `a`"),
        (b'{"a": "x"}', r"Expected `int`, got `str` - at `\$.a`"),
        (b"{", "truncated"),
        (b"[]", "Expected `object`"),
        (b'{"a": 1, "model": {}}', "model"),
    ],
)
def test_stored_state_that_does_not_fit_is_a_decode_error(raw: bytes, says: str) -> None:
    """R9: a row whose state no longer decodes gets a clear error, with the owner, the field and a mend."""
    codec = StateCodec("Shop", {"a": int, "b": int, "model": Inner}, {"b": int, "model": lambda: INNER})
    with pytest.raises(StateDecodeError, match=says) as caught:
        codec.decode(raw)
    assert str(caught.value).startswith("Shop: the stored state does not fit its fields: ")
    assert "give a new field a default" in str(caught.value)


def test_a_default_that_raises_is_a_decode_error() -> None:
    codec = StateCodec("Shop", {"a": int}, {"a": lambda: int("x")})
    with pytest.raises(StateDecodeError, match="invalid literal"):
        codec.decode(b"{}")


def test_a_class_that_raises_while_it_is_made_is_a_wrong_value() -> None:
    with pytest.raises(InvalidState, match=r"field 'value' .*no odd ones"):
        codec_of(Picky).validate({"value": {"n": 1}})


@dataclasses.dataclass
class Picky:
    n: int

    def __post_init__(self) -> None:
        if self.n % 2:
            raise RuntimeError("no odd ones")


def test_fields_keep_the_order_of_their_declaration() -> None:
    assert StateCodec("Shop", {"z": int, "a": int}, {}).fields == ("z", "a")


# Results and payloads ---------------------------------------------------------------------------------


def test_results_may_hold_anything_with_a_json_form() -> None:
    number = uuid4()
    value = {"line": Line("s", Decimal("1.5")), "model": Model(theId=1, inner=INNER), "id": number, "s": {1}}
    got = json.loads(encode_value(value, "it"))
    assert got["line"] == {"sku": "s", "price": "1.5", "at": None, "_note": ""}
    assert got["model"]["double"] == 2
    assert got["id"] == str(number)
    assert got["s"] == [1]
    assert encode_value(None, "it") == b"null"


def test_a_result_that_cant_be_written_names_itself() -> None:
    with pytest.raises(InvalidPayload, match=r"^the result of Shop.end can't be written .*Opaque has no JSON form"):
        encode_value([Opaque()], "the result of Shop.end")


def test_a_result_over_the_limit_is_refused_with_both_sizes() -> None:
    assert encode_value("x" * 8, "it", 10) == b'"xxxxxxxx"'
    with pytest.raises(InvalidPayload, match="it has 11 bytes as JSON, more than the limit of 10; store it"):
        encode_value("x" * 9, "it", 10)


def test_a_broken_repr_does_not_hide_the_message() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError

    with pytest.raises(InvalidPayload, match=r"a value \(Broken\)"):
        encode_value(Broken(), "it")


@given(st.text(st.characters(codec=None)), st.integers(3, 20))
def test_storable_text_can_be_stored_and_is_cut(text: str, limit: int) -> None:
    cut = storable_text(text, limit)
    assert encode_value(cut, "it")
    if "\0" not in text and not any("\ud800" <= char <= "\udfff" for char in text):
        assert cut == text if len(text) <= limit else cut == text[: limit - 3] + "..."


def test_storable_text_shows_what_it_replaced() -> None:
    assert storable_text("a\0b\ud800") == "a\\u0000b\\ud800"


def test_pydantic_is_not_imported_unless_a_field_needs_it() -> None:
    code = "import sys, gen_durable.job; sys.exit('pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": "src"}, check=False).returncode == 0
