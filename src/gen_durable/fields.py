"""The fields of a machine: annotations looked up, defaults found, bad declarations refused."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import sys
import typing
from collections.abc import Callable, Mapping
from types import FrameType, FunctionType
from typing import Any, ClassVar, TypeAlias

from gen_durable.errors import DefinitionError
from gen_durable.steps import refuse

__all__ = ["Constant", "Fields", "fields_of", "resolve"]

Fields: TypeAlias = tuple[dict[str, Any], dict[str, Callable[[], Any]]]
"""The type of each field, and what makes its default where it has one."""


class Constant:
    """A default that is copied for each instance."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __call__(self) -> Any:
        """A fresh copy of the value."""
        return copy.deepcopy(self.value)


def fields_of(cls: type) -> Fields:
    """Types and defaults of all fields: those of base classes first, redeclared ones at their place."""
    hints: dict[str, Any] = {}
    defaults: dict[str, Callable[[], Any]] = {}
    for klass in reversed(cls.__mro__):
        if klass is not cls and (known := vars(klass).get("__durable_fields__")):
            hints |= known[0]
            defaults |= known[1]
            continue
        own = _resolved(cls, klass)
        if private := [name for name in own if name.startswith("_")]:
            refuse(cls, f"field {private[0]!r} starts with an underscore, which is reserved", "rename it")
        hints |= own
        for name in hints:
            default = _own_default(cls, klass, name)
            if default is not None:
                defaults[name] = default
            elif name in own:
                defaults.pop(name, None)
    return hints, defaults


def _own_default(cls: type, klass: type, name: str) -> Callable[[], Any] | None:
    """The default that the body of ``klass`` gives to a field, if any; a shared mutable leaves the class."""
    if name not in vars(klass):
        return None
    value = vars(klass)[name]
    if not isinstance(value, dataclasses.Field):
        if type(value).__hash__ is None:
            delattr(klass, name)
        return Constant(value)
    if not (value.init and value.repr and value.compare):
        refuse(
            cls,
            f"field {name!r} has options that have no effect here",
            "give default or default_factory only",
        )
    if value.default is not dataclasses.MISSING:
        setattr(klass, name, value.default)
        return _own_default(cls, klass, name)
    delattr(klass, name)
    return None if value.default_factory is dataclasses.MISSING else value.default_factory


def _resolved(cls: type, klass: type) -> dict[str, Any]:
    """The annotated fields that ``klass`` itself declares, without ``ClassVar``, with all names looked up."""
    try:
        annotations = inspect.get_annotations(klass)
    except NameError as error:
        refuse(cls, f"an annotation has no meaning: {error}", "define what it names before the class")
    names = {n: v for n, v in vars(klass).items() if n not in annotations and not isinstance(v, FunctionType)}
    hints = resolve(cls.__qualname__, annotations, klass.__module__, names)
    return {
        name: typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Final else hint
        for name, hint in hints.items()
        if (typing.get_origin(hint) or hint) is not ClassVar
    }


def resolve(owner: str, annotations: Mapping[str, Any], module: str, names: Mapping[str, Any]) -> dict[str, Any]:
    """The annotations with all names looked up: in ``names``, around the definition, in its module.

    Raises:
        DefinitionError: a name is unknown; the message says which annotation.
    """
    local = {**_defining_locals(module), **names}
    hints = {}
    for name, annotation in annotations.items():
        try:
            holder = type("_", (), {"__module__": module, "__annotations__": {name: annotation}})
            hints[name] = typing.get_type_hints(holder, localns=local, include_extras=True)[name]
        except Exception as error:
            raise DefinitionError(
                f"{owner}: the annotation {annotation!r} of {name!r} has no meaning: {error}; "
                "import or define what it names before this definition, also at run time"
            ) from error
    return hints


def _defining_locals(module: str) -> dict[str, Any]:
    """The names around the definition: those of its function and of the classes between."""
    frame: FrameType | None = sys._getframe(1)
    while frame and (frame.f_globals.get("__name__") != module or frame.f_code.co_name == "__init_subclass__"):
        frame = frame.f_back
    names: dict[str, Any] = {}
    while frame and frame.f_locals is not frame.f_globals and frame.f_globals.get("__name__") == module:
        names = {**frame.f_locals, **names}
        if frame.f_code.co_flags & inspect.CO_OPTIMIZED:
            break  # a function; what called it is not around it
        frame = frame.f_back
    return names
