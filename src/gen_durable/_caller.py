"""What runs a call's operations on the connection that its caller lends, in the caller's transaction."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, Protocol, TypeVar
from weakref import WeakKeyDictionary

import psycopg

from gen_durable._store.inserting import LaneGone
from gen_durable._store.lending import Lent
from gen_durable._store.operation import Catalog, Operation, Request, Row, drive, drive_together
from gen_durable.errors import DatabaseError, DatabaseUnreachable, GenDurableError, InvalidArgument, SchemaMissing

__all__ = ["CallerSession", "Home", "Runs", "state_of"]

T = TypeVar("T")


class Runs(Protocol):
    """What operations run on: the client's own session, or a caller's connection."""

    async def fetch(self, request: Request) -> list[Row]:
        """Runs one statement."""
        raise NotImplementedError

    async def call(self, operation: Operation[Any]) -> Any:
        """Runs an operation, statement by statement."""

    async def together(self, operation: Operation[Any]) -> Any:
        """Runs an operation as a whole: all of it takes effect, or nothing."""


class Home:
    """The engine's database: every lent connection must lead to it."""

    def __init__(self, fetch: Callable[[Request], Awaitable[list[Row]]]) -> None:
        self._fetch = fetch  # the client's own
        self._place: Row | None = None
        self._known: WeakKeyDictionary[Any, str] = WeakKeyDictionary()  # drivers' connections that do, and the schema

    async def check(self, lent: Lent, sql: Catalog, schema: str) -> None:
        """Refuses a connection to another database; asks once for each connection.

        Raises:
            InvalidArgument: it leads to another database of the same schema.
            SchemaMissing: to one without it.
        """
        driver = await lent.ready()
        if self._known.get(driver) == schema:
            return
        ((database, *place, there),) = await lent.fetch(sql["reading/home"].bind())
        if not there:
            raise SchemaMissing(
                f"the connection of conn= leads to the database {database!r}, which has no gen_durable schema "
                f"{schema!r}: give a connection to the engine's own database"
            )
        if self._place is None or [database, *place] != list(self._place):  # the server may have started anew since
            self._place = (await self._fetch(sql["reading/home"].bind()))[0][:-1]
        if [database, *place] != list(self._place) and not await self._is_same(lent, sql, [database, *place]):
            raise InvalidArgument(
                f"the connection of conn= leads to another database (its name is {database!r}) than the engine's "
                f"({self._place[0]!r}): give a connection to the engine's own"
            )
        self._known[driver] = schema

    async def _is_same(self, lent: Lent, sql: Catalog, place: list[Any]) -> bool:
        """Whether it is the same one by way of another server: of a cluster that has several for one database."""
        assert self._place is not None
        if place[:2] != list(self._place[:2]):
            return False
        made = sql["reading/made"].bind()
        return await lent.fetch(made) == await self._fetch(made)


class CallerSession:
    """A session over a lent connection, for one call."""

    def __init__(self, lent: Lent, home: Home, sql: Catalog, schema: str) -> None:
        self._lent = lent
        self._home = home
        self._sql = sql
        self._schema = schema
        self._ready = False

    async def fetch(self, request: Request) -> list[Row]:
        """Runs one statement.

        Raises:
            InvalidArgument: the database refused a value, or the connection leads to another database.
            SchemaMissing: it leads to a database without the schema.
            DatabaseError: a right is missing.
            DatabaseUnreachable: the connection broke.
            Exception: of the driver, what only its caller can know the mend of: a lost race, a transaction that had
                failed before.
        """
        await self._open()
        return await self._told(self._lent.fetch(request), request.statement.name)

    async def call(self, operation: Operation[T]) -> T:
        """Runs an operation of one statement, or whose further ones write nothing."""
        with _lanes_seen():
            return await drive(operation, self.fetch)

    async def together(self, operation: Operation[T]) -> T:
        """Runs an operation as a whole: in a savepoint of the caller's transaction, or as a transaction of its own."""
        await self._open()
        with _lanes_seen():
            return await drive_together(operation, self.fetch, inside=self._lent.in_transaction)

    async def _open(self) -> None:
        if not self._ready:
            await self._told(self._home.check(self._lent, self._sql, self._schema), "a look at the database")
            self._ready = True

    async def _told(self, work: Coroutine[Any, Any, T], what: str) -> T:
        try:
            return await work
        except GenDurableError:
            raise
        except Exception as error:
            mapped = _mapped(error, what)
            if mapped is None:
                raise
            raise mapped from error


@contextlib.contextmanager
def _lanes_seen() -> Iterator[None]:
    try:
        yield
    except LaneGone as error:
        raise DatabaseError(
            "this transaction began before the first use of a queue or machine by this client was committed, and its "
            "isolation level (REPEATABLE READ or SERIALIZABLE) hides that from it: roll back, and try again in a new "
            "transaction"
        ) from error


def _mapped(error: Exception, what: str) -> Exception | None:
    """The error that says what happened; None where the driver's says it best."""
    state = state_of(error)
    reason = " ".join(str(error).split())
    if state[:2] in ("22", "54") or (not state and isinstance(error, psycopg.DataError)):
        return InvalidArgument(f"Postgres refused a value of {what}: {reason}")
    if state == "42501":
        return DatabaseError(
            f"the user of the connection of conn= may not do this: {reason}. Grant it what the operations guide lists"
        )
    if state in ("42P01", "3F000"):
        return SchemaMissing(f"the schema is not where the connection of conn= leads: {reason}")
    if state[:2] == "08" or state[:3] == "57P" or (not state and _is_broken(error)):
        return DatabaseUnreachable(f"the connection of conn= broke while {what} was under way: {reason}")
    return None


def _is_broken(error: BaseException | None) -> bool:
    """Whether a driver's error that has no SQLSTATE is of a connection that is gone."""
    while error is not None:
        # asyncpg's first word of a server that has closed the connection is that it can't switch to some state.
        if type(error).__name__ in ("OperationalError", "InternalClientError") or "closed" in str(error):
            return True
        error = getattr(error, "orig", None) or error.__cause__
    return False


def state_of(error: BaseException | None) -> str:
    """The SQLSTATE of a driver's error, also of one that SQLAlchemy or Django has wrapped; empty: there is none."""
    while error is not None:
        for name in ("sqlstate", "pgcode"):
            state = getattr(error, name, None)
            if isinstance(state, str):
                return state
        error = getattr(error, "orig", None) or error.__cause__
    return ""
