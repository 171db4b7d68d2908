"""Statements in the forms that drivers take behind SQLAlchemy: pure functions, of statements to text."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, NamedTuple

from gen_durable._store.operation import Request, Statement

__all__ = ["WHOLE", "Rendered", "cast_json", "dollar", "named", "pyformat"]

# Rows come at once, whatever the connection is set up for: a cursor of the server's takes no statement that writes.
WHOLE = {"stream_results": False, "yield_per": None}

_PLACE = re.compile(r"\$(\d+)")
_JSON = re.compile(r"(\$\d+)::(jsonb?)\b")


class Rendered(NamedTuple):
    """A request as ``exec_driver_sql`` takes it."""

    text: str
    parameters: Any


@lru_cache(maxsize=512)
def pyformat(statement: Statement) -> str:
    """Text with ``%(p1)s`` for ``$1`` and every other percent sign doubled: for psycopg."""
    return _PLACE.sub(r"%(p\1)s", statement.text.decode().replace("%", "%%"))


@lru_cache(maxsize=512)
def cast_json(statement: Statement) -> str:
    """Text whose json parameters are text to the driver, whatever codec it has for json: for asyncpg."""
    return _JSON.sub(r"\1::text::\2", statement.text.decode())


def dollar(request: Request) -> Rendered:
    """For a driver with ``$1`` and a tuple, that asks the server for the types of its parameters."""
    return Rendered(cast_json(request.statement), request.parameters)


def named(request: Request) -> Rendered:
    """For a driver with ``%(p1)s`` and a dict."""
    given = {f"p{place}": value for place, value in enumerate(request.parameters, 1)}
    return Rendered(pyformat(request.statement), given)
