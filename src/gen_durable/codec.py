"""State and payloads to JSON bytes and back, typed, with every value that Postgres can't hold refused.

The bytes are stored as ``jsonb``. Its facts decide the checks here: no NaN or infinity, no NUL character and
no lone surrogate in text. Numbers keep any precision, but lose the mark of a float (``1e16`` comes back as an
int where the declared type allows one). UTC offsets of datetimes are whole minutes. In a field typed ``Any``
(or a bare ``dict``) only JSON's own types come back: text for a datetime or an int key, a dict for an object.
"""

from __future__ import annotations

import math
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NotRequired, Required

import msgspec
from msgspec import inspect as mi

from gen_durable._checks import shown
from gen_durable.errors import DefinitionError, InvalidPayload, InvalidState, StateDecodeError

__all__ = ["StateCodec", "encode_value", "storable_text"]

_ESCAPED_NUL: Final = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_BACKSLASH: Final = ord("\\")
_BAD_TEXT: Final = re.compile("[\0\ud800-\udfff]")
_STORABLE: Final = (
    "use builtins, dataclasses, attrs, msgspec or pydantic classes, enums of str or int, "
    "datetimes, Decimal, UUID or bytes"
)
_KEYS: Final = (
    mi.AnyType,
    mi.StrType,
    mi.IntType,
    mi.FloatType,
    mi.EnumType,
    mi.LiteralType,
    mi.DateTimeType,
    mi.DateType,
    mi.TimeType,
    mi.TimeDeltaType,
    mi.DecimalType,
    mi.UUIDType,
    mi.BytesType,
)
_JSON_TYPES: Final[dict[type, set[str]]] = {
    mi.NoneType: {"null"},
    mi.BoolType: {"boolean"},
    mi.IntType: {"number"},
    mi.FloatType: {"number"},
    mi.StrType: {"string"},
    mi.BytesType: {"string"},
    mi.DateTimeType: {"string"},
    mi.DateType: {"string"},
    mi.TimeType: {"string"},
    mi.TimeDeltaType: {"string"},
    mi.UUIDType: {"string"},
    mi.DecimalType: {"number", "string"},
    mi.EnumType: {"number", "string"},
    mi.ListType: {"array"},
    mi.SetType: {"array"},
    mi.FrozenSetType: {"array"},
    mi.TupleType: {"array"},
    mi.VarTupleType: {"array"},
    mi.NamedTupleType: {"array"},
    mi.DictType: {"object"},
    mi.TypedDictType: {"object"},
    mi.DataclassType: {"object"},
}
_typed_dict: Any = typing.TypedDict  # type checkers take only literal fields
_CLASSES: Final = (mi.StructType, mi.DataclassType, mi.CustomType)


class StateCodec:
    """Encodes and decodes the declared fields of one machine or job.

    Args:
        owner: the machine's name in messages.
        fields: the type of each field, resolved (no strings).
        defaults: for each field that may be missing, what makes its value.

    Raises:
        DefinitionError: a field has a type that can't be stored.
    """

    __slots__ = ("_count", "_decode", "_defaults", "_fields", "owner")

    def __init__(
        self, owner: str, fields: Mapping[str, Any], defaults: Mapping[str, Callable[[], Any]] | None = None
    ) -> None:
        self.owner = owner
        self._fields = dict(fields)
        self._defaults = dict(defaults or {})
        self._count = len(self._fields)
        for name, hint in self._fields.items():
            if problem := _problem_with_type(hint):
                raise DefinitionError(f"{owner}: the type of field {name!r} can't be stored: {problem}")
        keys = {n: NotRequired[h] if n in self._defaults else Required[h] for n, h in self._fields.items()}
        schema: Any = _typed_dict("State", keys)
        self._decode: Callable[[bytes | str], dict[str, Any]]
        self._decode = msgspec.json.Decoder(schema, dec_hook=_dec_hook).decode

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of the fields, in the order of their declaration."""
        return tuple(self._fields)

    def json_types(self, name: str) -> list[str] | None:
        """The types of JSON that a value of a field has when it is stored; None: it may be any."""
        found = _json_types(mi.type_info(self._fields[name]))
        return None if found is None else sorted(found)

    @property
    def required(self) -> tuple[str, ...]:
        """The names of the fields without a default."""
        return tuple(name for name in self._fields if name not in self._defaults)

    def build(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The whole state from ``values`` and the defaults, in the form in which a step gets it.

        The values went through their JSON form: they have their declared types (``1`` is ``1.0`` in a float
        field, a tuple is a list in a list field) and share nothing with what was given.

        Raises:
            InvalidState: an unknown or missing field, a wrong type, or a value that can't be stored.
        """
        if not values.keys() <= self._fields.keys():
            unknown = values.keys() - self._fields.keys()
            known = ", ".join(self._fields) or "none"
            raise InvalidState(f"{self.owner}: there is no field {sorted(unknown)[0]!r}; its fields are: {known}")
        whole = {}
        for name in self._fields:
            if name in values:
                whole[name] = values[name]
            elif name in self._defaults:
                whole[name] = self._defaults[name]()
            else:
                raise InvalidState(f"{self.owner}: field {name!r} is missing and has no default; give {name}=...")
        return self.validated(whole)[1]

    def encode(self, values: Mapping[str, Any]) -> bytes:
        """The declared fields of ``values`` as a JSON object; other keys are left out, types are not checked.

        Raises:
            InvalidState: a field is missing, or holds what can't be stored.
        """
        try:
            state = {name: values[name] for name in self._fields}
            raw = _STATE.encode(state)
        except Exception as error:
            raise self._refusal(values, error) from error
        # NaN is written as null; find() and the search for one byte are faster than "in".
        if (raw.find(b"null") >= 0 and _loses_number(state, raw)) or (_BACKSLASH in raw and _ESCAPED_NUL.search(raw)):
            raise self._refusal(values, None)
        return raw

    def validate(self, values: Mapping[str, Any]) -> bytes:
        """Like ``encode``, and check that every field has its declared type ("7" is not an int).

        Raises:
            InvalidState: a field is missing, has a wrong type, or holds what can't be stored.
        """
        return self.validated(values)[0]

    def validated(self, values: Mapping[str, Any]) -> tuple[bytes, dict[str, Any]]:
        """The bytes of ``validate``, and the fresh values that they decode to.

        Raises:
            InvalidState: a field is missing, has a wrong type, or holds what can't be stored.
        """
        raw = self.encode(values)
        try:
            return raw, self._decode(raw)
        except Exception as error:
            raise self._refusal(values, error) from error

    def decode(self, raw: bytes | str) -> dict[str, Any]:
        """Fresh, typed values of all fields; missing ones get their defaults, unknown keys are ignored.

        Raises:
            StateDecodeError: not JSON, a wrong type, or a missing field that has no default.
        """
        try:
            return self._filled(raw)
        except Exception as error:
            raise StateDecodeError(
                f"{self.owner}: the stored state does not fit its fields: {error}; give a new field a "
                "default, or keep the old type and declare the new one under another version"
            ) from error

    def problem_with(self, name: str, value: Any) -> str | None:
        """Why ``value`` can't be the value of the field ``name``, or None when it can."""
        if problem := _problem_with_value(value, _STATE, _state_hook):
            return problem
        hint = self._fields[name]
        try:
            msgspec.json.decode(_STATE.encode(value), type=hint, dec_hook=_dec_hook)
        except Exception as error:  # noqa: BLE001 - also what a class of the user raises
            return f"is {shown(value)}, which is not {_type_name(hint)}: {error}"
        return None

    def _filled(self, raw: bytes | str) -> dict[str, Any]:
        state = self._decode(raw)
        if len(state) != self._count:
            for name, default in self._defaults.items():
                if name not in state:
                    state[name] = default()
        return state

    def _refusal(self, values: Mapping[str, Any], error: Exception | None) -> InvalidState:
        for name in self._fields:
            if name not in values:
                return InvalidState(f"{self.owner}: field {name!r} has no value; it was deleted, set it again")
            if problem := self.problem_with(name, values[name]):
                return InvalidState(f"{self.owner}: field {name!r} {problem}")
        return InvalidState(f"{self.owner}: the state can't be stored: {error}")


def encode_value(value: Any, what: str, max_bytes: int | None = None) -> bytes:
    """Any result or payload as JSON bytes; ``what`` names it in messages.

    Raises:
        InvalidPayload: it can't be written as JSON, Postgres can't hold it, or it is over ``max_bytes``.
    """
    try:
        raw = _VALUE.encode(value)
    except Exception as error:
        problem = _problem_with_value(value, _VALUE, _value_hook) or f"can't be written as JSON: {error}"
        raise InvalidPayload(f"{what} {problem}") from error
    if (_BACKSLASH in raw or b"null" in raw) and (refused := _problem_with_value(value, _VALUE, _value_hook)):
        raise InvalidPayload(f"{what} {refused}")
    if max_bytes is not None and len(raw) > max_bytes:
        raise InvalidPayload(
            f"{what} has {len(raw)} bytes as JSON, more than the limit of {max_bytes}; "
            "store it elsewhere and keep a reference, or raise the limit"
        )
    return raw


def storable_text(text: str, max_chars: int | None = None) -> str:
    """``text`` with what Postgres can't hold (NUL, lone surrogates) escaped, cut to ``max_chars``."""
    if max_chars is not None and len(text) > max_chars:
        text = f"{text[: max(max_chars - 3, 0)]}..."
    return _BAD_TEXT.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _plain(value: Any) -> Any:
    """Subclasses of text and numbers as what they extend; msgspec takes only the exact classes."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, (int, float)):
        return int(value) if isinstance(value, int) else float(value)
    raise TypeError(f"{type(value).__qualname__} has no JSON form")


def _state_hook(value: Any) -> Any:
    # By field name and without computed fields, so that the model's own validation takes it back.
    serializer = getattr(type(value), "__pydantic_serializer__", None)
    if serializer is None:
        return _plain(value)
    return serializer.to_python(value, mode="json", by_alias=False, round_trip=True)


def _value_hook(value: Any) -> Any:
    serializer = getattr(type(value), "__pydantic_serializer__", None)
    return _plain(value) if serializer is None else serializer.to_python(value, mode="json")


def _dec_hook(hint: Any, value: Any) -> Any:
    # From JSON text, not from Python objects: a strict model takes text for a datetime only there.
    return hint.__pydantic_validator__.validate_json(_STATE.encode(value), by_alias=False, by_name=True)


_STATE: Final = msgspec.json.Encoder(enc_hook=_state_hook)
_VALUE: Final = msgspec.json.Encoder(enc_hook=_value_hook)


def _problem_with_value(value: Any, encoder: msgspec.json.Encoder, hook: Callable[[Any], Any]) -> str | None:
    try:
        raw = encoder.encode(value)
        if b"null" in raw and (number := _not_finite(msgspec.to_builtins(value, enc_hook=hook))):
            return f"holds {number}, which JSON has no form for; use None or a Decimal"
    except UnicodeEncodeError:
        return "holds a lone surrogate (half of a character), which is not valid text; clean it, or use bytes"
    except RecursionError:
        return "contains itself, or is nested too deep; store references (ids) instead"
    except Exception as error:  # noqa: BLE001 - also what a class of the user raises
        if isinstance(error, ValueError) and "integer string conversion" in str(error):
            return "holds an int of more than 4300 digits; store it as text or bytes"
        return f"can't be written as JSON: {error} (in {shown(value)}); convert it first"
    if _ESCAPED_NUL.search(raw):
        return "holds a NUL character, which Postgres can't store in text; remove it, or use bytes"
    return None


def _loses_number(state: dict[str, Any], raw: bytes) -> bool:
    # Most nulls are plain None fields; only others are worth the walk.
    if raw.count(b"null") == len([value for value in state.values() if value is None]):
        return False
    return _not_finite(msgspec.to_builtins(state, enc_hook=_state_hook)) is not None


def _not_finite(value: Any) -> str | None:
    if isinstance(value, float):
        return None if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple, set, frozenset)):
        return None
    return next((found for item in value if (found := _not_finite(item))), None)


def _problem_with_type(hint: Any) -> str | None:
    try:
        info = mi.type_info(hint)
        msgspec.json.Decoder(hint, dec_hook=_dec_hook)
    except NameError as error:
        return f"{_type_name(hint)}: {error}; define the classes that it is made of in a module"
    except Exception as error:  # noqa: BLE001 - TypeError, and what a class of the user raises
        return f"{_type_name(hint)}: {error}; {_STORABLE}"
    problem = next((found for node in _nodes(info, {}) if (found := _problem_with_node(node))), None)
    return problem and f"{_type_name(hint)}: {problem}"


def _json_types(node: Any) -> set[str] | None:
    if isinstance(node, mi.Metadata):
        return _json_types(node.type)
    if not isinstance(node, mi.UnionType):
        return _JSON_TYPES.get(type(node))
    parts = [_json_types(part) for part in node.types]
    known = [part for part in parts if part is not None]
    return set().union(*known) if len(known) == len(parts) else None


def _nodes(node: Any, seen: dict[int, Any]) -> Iterator[mi.Type]:
    if id(node) in seen:
        return
    seen[id(node)] = node
    if isinstance(node, mi.Type):
        yield node
    for name in node.__struct_fields__:
        value = getattr(node, name)
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, (mi.Type, mi.Field)):
                yield from _nodes(item, seen)


def _problem_with_node(node: mi.Type) -> str | None:
    if isinstance(node, (mi.RawType, mi.ExtType)):
        return "raw messages are not checked; use Any"
    if isinstance(node, mi.CustomType):
        if node.cls is object:
            return "object says nothing about its form; use Any"
        if not hasattr(node.cls, "__pydantic_validator__"):
            return f"{_type_name(node.cls)} has no JSON form; {_STORABLE}"
        if _hides_secrets(node.cls):
            return f"{_type_name(node.cls)} has a secret field, which pydantic writes as asterisks; use str"
    if isinstance(node, mi.DictType) and not isinstance(node.key_type, _KEYS):
        return "the keys of a dict must be of one type with a text form, like str, int, an enum or a date"
    if isinstance(node, (mi.SetType, mi.FrozenSetType)) and not _hashable(node.item_type):
        return "the items of a set must be hashable; use a list, or frozen classes"
    if isinstance(node, mi.DataclassType) and hasattr(node.cls, "__attrs_attrs__"):
        private = [a.name for a in node.cls.__attrs_attrs__ if a.name.startswith("_")]
        if private:
            return f"the private attribute {private[0]!r} of {_type_name(node.cls)} is not stored; rename it"
    return None


def _hashable(node: mi.Type) -> bool:
    if isinstance(node, (mi.ListType, mi.SetType, mi.DictType, mi.TypedDictType, mi.ByteArrayType)):
        return False
    if isinstance(node, (mi.TupleType, mi.UnionType)):
        items = node.item_types if isinstance(node, mi.TupleType) else node.types
        return all(map(_hashable, items))
    if isinstance(node, mi.VarTupleType):
        return _hashable(node.item_type)
    return not isinstance(node, _CLASSES) or node.cls.__hash__ is not None


def _hides_secrets(model: Any) -> bool:
    try:
        schema = model.model_json_schema(mode="validation")
    except Exception:  # noqa: BLE001 - a model without a JSON schema can't be looked into
        return False
    return '"writeOnly": true' in msgspec.json.format(msgspec.json.encode(schema)).decode()


def _type_name(hint: Any) -> str:
    if isinstance(hint, type) and not typing.get_args(hint):
        return hint.__qualname__
    return repr(hint).replace("typing.", "")
