"""Statements, and operations that are driven over any kind of connection.

A statement is one ``.sql`` file: a header that says what it locks and what guards it, then static SQL with named
parameters. It is compiled once per schema into text with positional parameters, as every driver understands them.

An operation is a generator: it yields a :class:`Request`, gets the rows, and returns a typed value. It never touches a
connection, so the same code serves an async and a sync one.
"""

from __future__ import annotations

import contextlib
import re
import zlib
from collections.abc import Awaitable, Callable, Generator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any, NamedTuple, TypeAlias, TypeVar

from gen_durable.errors import ConfigurationError

__all__ = [
    "Catalog",
    "Operation",
    "Request",
    "Row",
    "Statement",
    "catalog",
    "channel_of",
    "check_schema_name",
    "drive",
    "drive_sync",
    "drive_together",
    "tokens",
]

Row: TypeAlias = tuple[Any, ...]
T = TypeVar("T")

_WALL_CLOCK = "statement_timestamp()"
_PARAMETER = re.compile(r"%\((\w+)\)s")
_SCHEMA_NAME = re.compile(r"[a-z_][a-z0-9_]{0,49}\Z")


@dataclass(frozen=True, slots=True)
class Statement:
    """One compiled statement.

    Attributes:
        name: its file's path without the ending, ``claiming/claim``.
        text: SQL with ``$1``-style parameters, encoded.
        parameters: the names of the parameters, in their order.
    """

    name: str
    text: bytes
    parameters: tuple[str, ...]

    def bind(self, **values: Any) -> Request:
        """A request for this statement.

        Raises:
            KeyError: when a parameter is missing.
        """
        return Request(self, tuple(values[name] for name in self.parameters))


class Request(NamedTuple):
    """What an operation asks for: one statement with its parameters."""

    statement: Statement
    parameters: tuple[Any, ...]


def _words(text: str) -> Request:
    return Request(Statement(text, text.encode(), ()), ())


_BEGIN, _COMMIT, _ROLLBACK = (_words(word) for word in ("BEGIN", "COMMIT", "ROLLBACK"))
_SAVE, _RELEASE, _BACK = (
    _words(f"{words} gen_durable") for words in ("SAVEPOINT", "RELEASE SAVEPOINT", "ROLLBACK TO SAVEPOINT")
)

Operation: TypeAlias = Generator[Request, list[Row], T]
Catalog: TypeAlias = Mapping[str, Statement]


def check_schema_name(schema: str) -> str:
    """The name itself, if it can be a schema of ours.

    Raises:
        ConfigurationError: unless it is 1 to 50 lower-case letters, digits and underscores.
    """
    if not isinstance(schema, str) or not _SCHEMA_NAME.match(schema) or schema.startswith("pg_"):
        raise ConfigurationError(
            f"schema={schema!r}: use 1 to 50 lower-case letters, digits and underscores, "
            'not starting with a digit or "pg_"'
        )
    return schema


def channel_of(schema: str) -> str:
    """The channel on which workers of a schema are woken."""
    return f"{schema}_wake"


def tokens(schema: str, *, test_clock: bool = False) -> dict[str, str]:
    """What the tokens in SQL files stand for.

    ``{clock}`` is the clock that decides what is due; in a schema with a test clock (``test_clock.sql``) that one.
    ``{wall}`` tells whether processes live, which no test may bring forward.
    """
    return {
        "{schema}": check_schema_name(schema),
        "{channel}": channel_of(schema),
        # Advisory locks are shared by a whole database: one number space for each schema.
        "{lockspace}": str(zlib.crc32(f"gen_durable:{schema}".encode()) & 0x7FFFFFFF),
        "{clock}": f"{schema}.clock()" if test_clock else _WALL_CLOCK,
        "{wall}": _WALL_CLOCK,
    }


def render(text: str, schema: str, *, test_clock: bool = False) -> str:
    """SQL text with its tokens replaced."""
    for token, value in tokens(schema, test_clock=test_clock).items():
        text = text.replace(token, value)
    return text


def _compile(name: str, source: str, schema: str, test_clock: bool) -> Statement:
    body = "\n".join(line for line in source.splitlines() if not line.lstrip().startswith("--"))
    names: list[str] = []

    def place(match: re.Match[str]) -> str:
        if match[1] not in names:
            names.append(match[1])
        return f"${names.index(match[1]) + 1}"

    text = render(body, schema, test_clock=test_clock)
    return Statement(name, _PARAMETER.sub(place, text).strip().encode(), tuple(names))


@lru_cache(maxsize=64)
def catalog(schema: str, *, test_clock: bool = False) -> Catalog:
    """All statements, compiled for one schema, and for the clock that it has.

    Raises:
        ConfigurationError: when the schema's name can't be used.
    """
    root = files("gen_durable._store") / "sql"
    return {
        (name := f"{area.name}/{file.name[:-4]}"): _compile(name, file.read_text("utf-8"), schema, test_clock)
        for area in sorted(root.iterdir(), key=lambda entry: entry.name)
        if area.is_dir()
        for file in sorted(area.iterdir(), key=lambda entry: entry.name)
        if file.name.endswith(".sql")
    }


async def drive(operation: Operation[T], fetch: Callable[[Request], Awaitable[list[Row]]]) -> T:
    """Runs an operation over an async connection's ``fetch``."""
    try:
        request = next(operation)
        while True:
            request = operation.send(await fetch(request))
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]  # a generator's return value is untyped here


async def drive_together(
    operation: Operation[T], fetch: Callable[[Request], Awaitable[list[Row]]], *, inside: bool = False
) -> T:
    """Runs an operation in one transaction: what it raises rolls everything back.

    Args:
        operation: what is to be done.
        fetch: runs one request on the connection.
        inside: a transaction is open already: then it is a savepoint of that.
    """
    await fetch(_SAVE if inside else _BEGIN)
    try:
        value = await drive(operation, fetch)
    except BaseException:
        with contextlib.suppress(Exception):  # the connection may have broken; what happened first is raised
            await fetch(_BACK if inside else _ROLLBACK)
            if inside:
                await fetch(_RELEASE)
        raise
    await fetch(_RELEASE if inside else _COMMIT)
    return value


def drive_sync(operation: Operation[T], fetch: Callable[[Request], list[Row]]) -> T:
    """Runs an operation over a blocking connection's ``fetch``."""
    try:
        request = next(operation)
        while True:
            request = operation.send(fetch(request))
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]  # a generator's return value is untyped here
