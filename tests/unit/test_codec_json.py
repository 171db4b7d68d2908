"""The JSON types that a field is said to have are those that its values are stored as."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import json
import typing
import uuid
from typing import Any

import pydantic
import pytest

from gen_durable.codec import StateCodec

TYPES = {
    bool: "boolean", int: "number", float: "number", str: "string", list: "array", dict: "object", type(None): "null",
}  # fmt: skip


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


@dataclasses.dataclass
class Point:
    x: int


class Pair(typing.NamedTuple):
    a: int
    b: str


class Model(pydantic.BaseModel):
    x: int


@pytest.mark.parametrize(
    ("hint", "values", "types"),
    [
        (int, [1, 2**70], ["number"]),
        (float, [1.5, 1], ["number"]),
        (bool, [True], ["boolean"]),
        (str, ["a"], ["string"]),
        (bytes, [b"a"], ["string"]),
        (dt.datetime, [dt.datetime(2030, 1, 1, tzinfo=dt.UTC)], ["string"]),
        (dt.date, [dt.date(2030, 1, 1)], ["string"]),
        (dt.time, [dt.time(1, 2)], ["string"]),
        (dt.timedelta, [dt.timedelta(seconds=1.5)], ["string"]),
        (uuid.UUID, [uuid.UUID(int=1)], ["string"]),
        (decimal.Decimal, [decimal.Decimal("1.50")], ["number", "string"]),
        (Colour, [Colour.RED], ["number", "string"]),
        (Level, [Level.LOW], ["number", "string"]),
        (list[int], [[1]], ["array"]),
        (set[int], [{1}], ["array"]),
        (tuple[int, str], [(1, "a")], ["array"]),
        (Pair, [Pair(1, "a")], ["array"]),
        (dict[str, int], [{"a": 1}], ["object"]),
        (Point, [Point(1)], ["object"]),
        (int | None, [1, None], ["null", "number"]),
        (list[int] | str | None, [[1], "a", None], ["array", "null", "string"]),
        (Any, [1, "a", None], None),
        (Model, [Model(x=1)], None),
        (typing.Literal["a", 1], ["a", 1], None),
    ],
)
def test_a_value_is_stored_as_one_of_the_types(hint: Any, values: list[Any], types: list[str] | None) -> None:
    """Section 14: else a state from SQL would be refused that a worker takes; where it is not sure, any is taken."""
    codec = StateCodec("T", {"field": hint})
    assert codec.json_types("field") == types
    for value in values:
        stored = json.loads(codec.validate({"field": value}))["field"]
        assert types is None or TYPES[type(stored)] in types


def test_which_fields_must_be_given() -> None:
    codec = StateCodec("T", {"a": int, "b": int}, {"b": lambda: 1})
    assert codec.required == ("a",)
