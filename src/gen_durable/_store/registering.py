"""The operation that makes machines known to those who insert from SQL."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from gen_durable._store.operation import Catalog, Operation

__all__ = ["Limit", "Registration", "StateField", "register"]


class StateField(msgspec.Struct):
    """A field of a state: whether it must be given, and the types of JSON that it has (None: any)."""

    required: bool
    json: list[str] | None


class Limit(msgspec.Struct, omit_defaults=True):
    """What a class says of a limit: a line, a number of tokens, nothing; or a function of Python's says it."""

    value: str | int | None = None
    computed: bool = False


class Registration(msgspec.Struct):
    """A machine, as far as an insert needs it; ``retention`` in seconds, None is for ever."""

    name: str
    version: int
    queue: str
    step: str
    priority: int
    retention: float | None
    history: bool
    max_bytes: int
    fields: dict[str, StateField]
    limits: dict[str, Limit]


def register(sql: Catalog, machines: Sequence[Registration]) -> Operation[None]:
    """Makes machines known, or known anew where they say something else than before."""
    yield sql["machines/register"].bind(machines=msgspec.json.encode(machines).decode())
