"""A context for steps that are called without an engine."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from gen_durable.context import Context
from gen_durable.errors import InvalidArgument

__all__ = ["context"]

_WHEN = datetime(2026, 1, 1, tzinfo=UTC)
_DEFAULTS: dict[str, Any] = {
    "id": 1,
    "key": None,
    "machine": "test",
    "version": 1,
    "queue": "default",
    "step": "test",
    "attempt": 0,
    "crashes": 0,
    "priority": 0,
    "inserted_at": _WHEN,
    "due_at": _WHEN,
    "worker": 0,
    "client": None,
}


_ATTRIBUTES = (*Context.__slots__, "conn", "session")


def context(**fields: Any) -> Context:
    """A :class:`Context` for a test that calls a step as a plain method: these attributes, defaults for the rest.

    ::

        outcome = await Checkout(order=1).pay(testing.context(attempt=2))

    ``conn`` and ``session`` are what a transactional step is to get.

    Raises:
        InvalidArgument: a context has no such attribute.
    """
    for name in fields:
        if name not in _ATTRIBUTES:
            raise InvalidArgument(f"a context has no attribute {name!r}; it has {', '.join(_ATTRIBUTES)}")
    return Context(**{**_DEFAULTS, **fields})
