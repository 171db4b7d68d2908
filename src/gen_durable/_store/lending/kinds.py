"""Which kind a lent connection is: told by the names of its classes, so that nobody's library is imported for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gen_durable._checks import shown
from gen_durable._store.lending.lent import Lent
from gen_durable._store.lending.of_asyncpg import LentAsyncpg
from gen_durable._store.lending.of_django import LentDjango
from gen_durable._store.lending.of_psycopg import LentAsyncPsycopg, LentPsycopg
from gen_durable._store.lending.of_psycopg2 import LentPsycopg2
from gen_durable._store.lending.of_sqlalchemy import LentAsyncSqlalchemy, LentSqlalchemy, LentSqlalchemySession
from gen_durable.errors import DatabaseUnreachable, InvalidArgument

__all__ = ["lend"]

_BLOCKING = "a psycopg Connection, a SQLAlchemy Session or Connection, Django's connection"
_ASYNC = "a psycopg AsyncConnection, an asyncpg connection, a SQLAlchemy AsyncSession or AsyncConnection"


def _scoped(registry: Any) -> Lent:
    return LentSqlalchemySession(registry())


def _async_scoped(registry: Any) -> Lent:
    return LentAsyncSqlalchemy(registry(), session=True)


_KINDS: dict[str, Callable[[Any], Lent]] = {
    "psycopg.AsyncConnection": LentAsyncPsycopg,
    "psycopg.Connection": LentPsycopg,
    "psycopg2.extensions.connection": LentPsycopg2,
    "asyncpg.connection.Connection": LentAsyncpg,
    "asyncpg.pool.PoolConnectionProxy": LentAsyncpg,
    "sqlalchemy.engine.base.Connection": LentSqlalchemy,
    "sqlalchemy.orm.session.Session": LentSqlalchemySession,
    "sqlalchemy.orm.scoping.scoped_session": _scoped,
    "sqlalchemy.ext.asyncio.engine.AsyncConnection": lambda given: LentAsyncSqlalchemy(given, session=False),
    "sqlalchemy.ext.asyncio.session.AsyncSession": lambda given: LentAsyncSqlalchemy(given, session=True),
    "sqlalchemy.ext.asyncio.scoping.async_scoped_session": _async_scoped,
    "django.db.backends.base.base.BaseDatabaseWrapper": LentDjango,
    "django.utils.connection.ConnectionProxy": LentDjango,
}

# What is mistaken for a connection, and what to give instead.
_PSYCOPG2_BROKEN = 2  # of its `closed`: 0 is open, 1 was closed

_MENDS = {
    "builtins.str": "that is no connection; open one, begin a transaction on it, and give it",
    "sqlalchemy.engine.base.Engine": "give the connection of `with engine.begin() as conn:`",
    "sqlalchemy.ext.asyncio.engine.AsyncEngine": "give the connection of `async with engine.begin() as conn:`",
    "sqlalchemy.orm.session.sessionmaker": "give a session that it makes",
    "sqlalchemy.ext.asyncio.session.async_sessionmaker": "give a session that it makes",
    "psycopg_pool.base.BasePool": "give a connection of it: `with pool.connection() as conn:`",
    "asyncpg.pool.Pool": "give a connection of it: `async with pool.acquire() as conn:`",
    "psycopg.BaseCursor": "give its connection: `cursor.connection`",
    "psycopg._cursor_base.BaseCursor": "give its connection: `cursor.connection`",
    "psycopg2.extensions.cursor": "give its connection: `cursor.connection`",
    "django.db.backends.utils.CursorWrapper": "give the connection, `django.db.connection`",
    "django.utils.connection.BaseConnectionHandler": "give one of them: `connections[alias]`",
}


def lend(connection: Any, *, blocking: bool = False) -> Lent:
    """A caller's connection, made ready for a call.

    Args:
        connection: what was given as ``conn=``.
        blocking: whether only a blocking one will do.

    Raises:
        InvalidArgument: it is none, of another kind, closed, or of another database than Postgres.
        DatabaseUnreachable: its driver has seen it break; asyncpg's also where its caller had closed it.
    """
    names = [f"{kind.__module__}.{kind.__qualname__}" for kind in type(connection).__mro__]
    accepted = _BLOCKING if blocking else f"{_ASYNC}; or, blocking, {_BLOCKING}"
    for name in names:
        if name in _KINDS:
            _check_open(connection, names[0])
            lent = _KINDS[name](connection)
            if blocking and not lent.blocking:
                raise InvalidArgument(
                    f"conn= is an async connection, {names[0]}, and this client blocks: give {accepted}; or use the "
                    "engine's own calls, with await"
                )
            return lent
    given = "a string" if isinstance(connection, str) else shown(connection)  # it may hold a password
    mend = next((_MENDS[name] for name in names if name in _MENDS), None)
    raise InvalidArgument(
        f"conn= is {given} ({names[0]}), not a connection{f': {mend}' if mend else ''}. It takes {accepted}"
    )


def _check_open(connection: Any, name: str) -> None:
    # A Django connection that is closed opens itself, a session has none before it needs it.
    closed = getattr(connection, "closed", False)
    broken = getattr(connection, "broken", False) is True or closed == _PSYCOPG2_BROKEN
    if name.startswith("asyncpg."):
        try:
            # It hears of its server's end by itself, and does not tell that from its own close().
            closed = broken = connection.is_closed()
        except Exception:  # noqa: BLE001  # its own, of a connection that has gone back to its pool
            closed = True
    if broken:
        raise DatabaseUnreachable(
            f"the connection of conn= is closed ({name}): it broke, or was closed before this call. Try again with one "
            "that is open"
        )
    if isinstance(closed, int) and closed:  # psycopg2 has numbers
        raise InvalidArgument(f"conn= is closed ({name}): give one that is open")
