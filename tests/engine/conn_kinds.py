"""A caller for each kind of connection that a call can be lent, as its library's users write it.

Coroutines of blocking kinds never suspend: they run in a thread, see :func:`lend`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeAlias, TypeVar

import asyncpg
import psycopg
import psycopg2
import psycopg2.extras
import sqlalchemy as sa
from engine_support import LONG
from psycopg import conninfo
from psycopg.adapt import Loader
from psycopg.rows import dict_row
from sqlalchemy import orm
from sqlalchemy.ext import asyncio as asa
from sqlalchemy.pool import NullPool

from gen_durable import Engine
from gen_durable._blocking import finish

T = TypeVar("T")


class Caller:
    """A caller with a transaction of its own."""

    blocking = False

    def __init__(self, conn: Any) -> None:
        self.conn = conn  # what it lends

    async def execute(self, text: str) -> Any:
        raise NotImplementedError

    async def begin(self) -> None:
        await self.execute("BEGIN")

    async def commit(self) -> None:
        await self.execute("COMMIT")

    async def rollback(self) -> None:
        await self.execute("ROLLBACK")

    async def save(self) -> None:
        await self.execute("SAVEPOINT mine")

    async def back(self) -> None:
        await self.execute("ROLLBACK TO SAVEPOINT mine")


class Strings(Loader):
    """A loader that no statement of the engine's could live with."""

    def load(self, data: Any) -> str:
        return f"<{bytes(data).decode()}>"


def _spoil(connection: Any) -> None:
    for name in ("int8", "int4", "bool", "jsonb", "text", "timestamptz"):
        connection.adapters.register_loader(name, Strings)


class AsyncPsycopg(Caller):
    async def execute(self, text: str) -> Any:
        return await self.conn.execute(text.encode())

    async def begin(self) -> None:
        if self.conn.autocommit:
            await self.execute("BEGIN")

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, autocommit: bool = False, spoilt: bool = False) -> AsyncIterator[Caller]:
        async with await psycopg.AsyncConnection.connect(url, autocommit=autocommit) as connection:
            if spoilt:
                connection.row_factory = dict_row  # type: ignore[assignment]
                connection.prepare_threshold = 0
                _spoil(connection)
            yield cls(connection)
            await connection.rollback()


class Psycopg(Caller):
    blocking = True

    async def execute(self, text: str) -> Any:
        return self.conn.execute(text.encode())

    async def begin(self) -> None:
        if self.conn.autocommit:
            await self.execute("BEGIN")

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, autocommit: bool = False, spoilt: bool = False) -> AsyncIterator[Caller]:
        with psycopg.connect(url, autocommit=autocommit) as connection:
            if spoilt:
                connection.row_factory = dict_row  # type: ignore[assignment]
                _spoil(connection)
            yield cls(connection)
            connection.rollback()


class Psycopg2(Caller):
    blocking = True

    async def execute(self, text: str) -> Any:
        with self.conn.cursor() as cursor:
            cursor.execute(text)

    async def begin(self) -> None:
        """It begins by itself."""

    async def commit(self) -> None:
        self.conn.commit()

    async def rollback(self) -> None:
        self.conn.rollback()

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, autocommit: bool = False) -> AsyncIterator[Caller]:
        connection = psycopg2.connect(url, cursor_factory=psycopg2.extras.RealDictCursor)
        connection.autocommit = autocommit
        try:
            yield cls(connection)
        finally:
            connection.close()


class Asyncpg(Caller):
    async def execute(self, text: str) -> Any:
        return await self.conn.execute(text)

    async def begin(self) -> None:
        self.transaction = self.conn.transaction()
        await self.transaction.start()

    async def commit(self) -> None:
        await self.transaction.commit()

    async def rollback(self) -> None:
        await self.transaction.rollback()

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, pooled: bool = False) -> AsyncIterator[Caller]:
        given = conninfo.conninfo_to_dict(url)
        where = {
            "host": given["host"], "port": int(str(given["port"])), "user": given["user"],
            "database": given["dbname"], "password": given.get("password"),
        }  # fmt: skip
        if pooled:
            async with asyncpg.create_pool(**where, min_size=1, max_size=2) as pool, pool.acquire() as connection:
                yield cls(connection)
            return
        connection = await asyncpg.connect(**where)
        try:
            for name in ("json", "jsonb"):
                await connection.set_type_codec(name, encoder=json.dumps, decoder=json.loads, schema="pg_catalog")
            yield cls(connection)
        finally:
            await connection.close()


def sa_url(url: str, driver: str) -> sa.URL:
    given = conninfo.conninfo_to_dict(url)
    return sa.URL.create(
        f"postgresql+{driver}", username=str(given["user"]), password=given.get("password"),  # type: ignore[arg-type]
        host=str(given["host"]), port=int(str(given["port"])), database=str(given["dbname"]),
    )  # fmt: skip


class Sqlalchemy(Caller):
    """A Connection, a Session, or a scoped_session."""

    blocking = True

    async def execute(self, text: str) -> Any:
        return self.conn.execute(sa.text(text))

    async def begin(self) -> None:
        """It begins by itself."""

    async def commit(self) -> None:
        self.conn.commit()

    async def rollback(self) -> None:
        self.conn.rollback()

    async def save(self) -> None:
        self.nested = self.conn.begin_nested()

    async def back(self) -> None:
        self.nested.rollback()

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, driver: str, what: str, **options: Any) -> AsyncIterator[Caller]:
        engine = sa.create_engine(sa_url(url, driver), poolclass=NullPool, **options)
        if what == "connection":
            with engine.connect() as connection:
                yield cls(connection)
        elif what == "session":
            with orm.Session(engine) as session:
                yield cls(session)
        else:
            scoped = orm.scoped_session(orm.sessionmaker(engine))
            yield cls(scoped)
            scoped.remove()
        engine.dispose()


class AsyncSqlalchemy(Caller):
    """An AsyncConnection, an AsyncSession, or an async_scoped_session."""

    async def execute(self, text: str) -> Any:
        return await self.conn.execute(sa.text(text))

    async def begin(self) -> None:
        """It begins by itself."""

    async def commit(self) -> None:
        await self.conn.commit()

    async def rollback(self) -> None:
        await self.conn.rollback()

    async def save(self) -> None:
        self.nested = await self.conn.begin_nested()

    async def back(self) -> None:
        await self.nested.rollback()

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, driver: str, what: str, **options: Any) -> AsyncIterator[Caller]:
        engine = asa.create_async_engine(sa_url(url, driver), poolclass=NullPool, **options)
        if what == "connection":
            async with engine.connect() as connection:
                yield cls(connection)
        elif what == "session":
            async with asa.AsyncSession(engine) as session:
                yield cls(session)
        else:
            scoped = asa.async_scoped_session(asa.async_sessionmaker(engine), scopefunc=asyncio.current_task)
            yield cls(scoped)
            await scoped.remove()
        await engine.dispose()


class Django(Caller):
    """``django.db.connection``, or the wrapper behind it."""

    blocking = True

    async def execute(self, text: str) -> Any:
        with self.conn.cursor() as cursor:
            cursor.execute(text)

    async def begin(self) -> None:
        from django.db import transaction

        self.atomic = transaction.atomic()
        self.atomic.__enter__()

    async def commit(self) -> None:
        self.atomic.__exit__(None, None, None)

    async def rollback(self) -> None:
        error = RuntimeError()
        self.atomic.__exit__(RuntimeError, error, None)

    async def save(self) -> None:
        from django.db import transaction

        self.sid = transaction.savepoint()

    async def back(self) -> None:
        from django.db import transaction

        transaction.savepoint_rollback(self.sid)

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, wrapper: bool = False, naive: bool = False) -> AsyncIterator[Caller]:
        configure_django(url)
        from django.db import connection, connections
        from django.test.utils import override_settings

        with override_settings(USE_TZ=not naive):
            try:
                yield cls(connections["default"] if wrapper else connection)
            finally:
                connection.close()


def configure_django(url: str) -> None:
    import django
    from django.conf import settings

    given = conninfo.conninfo_to_dict(url)
    database = {
        "ENGINE": "django.db.backends.postgresql", "NAME": given["dbname"], "USER": given["user"],
        "PASSWORD": given.get("password") or "", "HOST": given["host"], "PORT": str(given["port"]),
    }  # fmt: skip
    if not settings.configured:
        settings.configure(DATABASES={"default": database}, USE_TZ=True, TIME_ZONE="America/New_York")
        django.setup()
    from django.db import connections

    connections["default"].settings_dict.update(database)  # others of this process may have set Django up for another


AUTOCOMMIT = {"isolation_level": "AUTOCOMMIT"}

KINDS: dict[str, Callable[[str], Any]] = {
    "psycopg async": AsyncPsycopg.open,
    "psycopg async autocommit": lambda url: AsyncPsycopg.open(url, autocommit=True),
    "psycopg async spoilt": lambda url: AsyncPsycopg.open(url, spoilt=True),
    "psycopg": Psycopg.open,
    "psycopg autocommit": lambda url: Psycopg.open(url, autocommit=True),
    "psycopg spoilt": lambda url: Psycopg.open(url, spoilt=True),
    "psycopg2": Psycopg2.open,
    "asyncpg": Asyncpg.open,
    "asyncpg pool": lambda url: Asyncpg.open(url, pooled=True),
    **{
        f"sqlalchemy {driver} {what}": lambda url, driver=driver, what=what: Sqlalchemy.open(url, driver, what)
        for driver in ("psycopg", "psycopg2")
        for what in ("connection", "session", "scoped")
    },
    **{
        f"sqlalchemy {driver} async {what}": lambda url, driver=driver, what=what: AsyncSqlalchemy.open(
            url, driver, what
        )
        for driver in ("psycopg", "asyncpg")
        for what in ("connection", "session", "scoped")
    },
    "psycopg2 autocommit": lambda url: Psycopg2.open(url, autocommit=True),
    "sqlalchemy psycopg autocommit": lambda url: Sqlalchemy.open(url, "psycopg", "connection", **AUTOCOMMIT),
    "sqlalchemy psycopg2 autocommit": lambda url: Sqlalchemy.open(url, "psycopg2", "session", **AUTOCOMMIT),
    "sqlalchemy psycopg async autocommit": lambda url: AsyncSqlalchemy.open(url, "psycopg", "session", **AUTOCOMMIT),
    "sqlalchemy asyncpg async autocommit": lambda url: AsyncSqlalchemy.open(url, "asyncpg", "connection", **AUTOCOMMIT),
    "django": Django.open,
    "django wrapper": lambda url: Django.open(url, wrapper=True),
    "django naive": lambda url: Django.open(url, naive=True),
}


def is_blocking(kind: str) -> bool:
    return "async" not in kind or kind.startswith("sqlalchemy psycopg2")


Call: TypeAlias = Callable[..., Awaitable[Any]]
Work: TypeAlias = Callable[[Caller, Call], Awaitable[None]]


async def lend(kind: str, url: str, engine: Engine, work: Work) -> None:
    """Runs ``work(caller, call)`` where its kind belongs: on the loop with the engine, or in a thread with its client.

    ``await call("insert", ...)`` makes a call of whichever client it is.
    """

    async def scenario() -> None:
        async with KINDS[kind](url) as caller:
            if caller.blocking:
                with engine.sync_client() as client:
                    await work(caller, _calls_of(client))
            else:
                await work(caller, _calls_of(engine))

    if is_blocking(kind):
        await asyncio.to_thread(finish, scenario())
    else:
        await scenario()


def _calls_of(client: Any) -> Call:
    async def call(name: str, /, *args: Any, **options: Any) -> Any:
        made = getattr(client, name)(*args, **options)
        return await made if isinstance(made, Coroutine) else made

    return call


def elsewhere(caller: Caller, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> Awaitable[T]:
    """Something that is done on the loop meanwhile, also for a caller that sits in a thread."""

    async def there() -> T:
        return asyncio.run_coroutine_threadsafe(work, loop).result(LONG)

    return there() if caller.blocking else work
