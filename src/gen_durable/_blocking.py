"""The connections of a client without an event loop: its coroutines never suspend, :func:`finish` runs them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import psycopg
from psycopg import Connection
from psycopg_pool import ConnectionPool

from gen_durable._session import Session, is_quiet
from gen_durable._store.connection import cut, fetch_sync, forbidden, open_sync, set_up_sync, unreachable
from gen_durable._store.migrating import check_version
from gen_durable._store.operation import Request, Row
from gen_durable.config import Settings
from gen_durable.errors import EngineStateError

__all__ = ["BlockingSession", "finish"]

T = TypeVar("T")

PATIENCE = 1.0  # seconds for a thread that is told to end


def finish(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine that never suspends.

    Raises:
        RuntimeError: it does, which is a defect of this package.
    """
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]  # a coroutine's return value is untyped here
    coroutine.close()
    raise RuntimeError(f"{coroutine!r} waits for an event loop: it must not, in a blocking client")


class BlockingSession(Session):
    """A session over a pool that threads share. The pool belongs to the process that made it."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._blocking_pool: ConnectionPool[Connection[Row]] | None = None
        self._watchdog = Watchdog()

    async def open(self, url: str) -> bool:
        """Connects and checks the schema; answers whether that has a test clock.

        Raises:
            DatabaseUnreachable, SchemaMissing, SchemaVersionError: what stands in the way.
        """
        self.url = url
        name = f"gen_durable {self._settings.name}"
        try:
            first = open_sync(url, name)
        except (psycopg.Error, OSError) as error:
            raise unreachable(url, error) from None
        try:
            test_clock = await check_version(lambda request: self._watched(first, request), self._settings.schema)
        except psycopg.errors.InsufficientPrivilege as error:
            raise forbidden(url, error) from None
        except psycopg.OperationalError as error:
            raise unreachable(url, error) from error
        finally:
            first.close()
        self._blocking_pool = ConnectionPool(
            kwargs={"url": url, "application_name": name},
            connection_class=_PooledConnection,
            min_size=1,
            max_size=self._settings.pool_size,
            check=_check_if_idle,
            configure=_configure,
            open=False,
            timeout=self._settings.statement_timeout,
            name=f"gen_durable-{self._settings.name}",
        )
        self._blocking_pool.open()
        return test_clock

    async def close(self) -> None:
        """Closes the pool; safe to call twice."""
        pool, self._blocking_pool = self._blocking_pool, None
        if pool is not None:
            pool.close()
        self._watchdog.close()

    def forget(self) -> None:
        """Lets go of what belongs to the process that this one was forked from."""
        self._blocking_pool = None
        self._watchdog = Watchdog()

    def check_open(self) -> None:
        """Refuses a call before :meth:`open` and after :meth:`close`."""
        if self._blocking_pool is None:
            raise EngineStateError(f"the client {self._settings.name!r} is closed: open() it again, or make another")

    async def _watched(self, connection: Any, request: Request) -> list[Row]:
        with self._watchdog.over(connection, self._settings.statement_timeout):
            return fetch_sync(connection, request)

    async def _take(self) -> Any:
        pool = self._blocking_pool
        assert pool is not None
        connection: Any = pool.getconn()
        connection.lent_by = pool
        return connection

    async def _give(self, connection: Any) -> None:
        connection.lent_by.putconn(connection)


class _PooledConnection(Connection[Row]):
    """The pool's connections are opened like all others of ours."""

    @classmethod
    def connect(cls, conninfo: str = "", **kwargs: Any) -> Any:
        return open_sync(kwargs["url"], kwargs["application_name"])


def _configure(connection: Connection[Row]) -> None:
    set_up_sync(connection)


def _check_if_idle(connection: Connection[Row]) -> None:
    if not is_quiet(connection):
        ConnectionPool.check_connection(connection)


class _Watch:
    """A statement that is under way."""

    __slots__ = ("connection", "deadline")

    def __init__(self, connection: Connection[Row], deadline: float) -> None:
        self.connection: Connection[Row] | None = connection
        self.deadline = deadline


class Watchdog:
    """One thread that cuts the connections whose statements take too long: a link may be half open, and say nothing.

    All statements have the same time, so the first in the row is the first to be cut.
    """

    def __init__(self) -> None:
        self._watches: deque[_Watch] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def over(self, connection: Connection[Row], seconds: float) -> Iterator[None]:
        """Cuts the connection unless the block ends in time."""
        watch = _Watch(connection, time.monotonic() + seconds)
        with self._changed:
            self._watches.append(watch)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="gen_durable watchdog", daemon=True)
                self._thread.start()
            elif len(self._watches) == 1:
                self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                watch.connection = None
                while self._watches and self._watches[0].connection is None:
                    self._watches.popleft()

    def _run(self) -> None:
        with self._changed:
            while self._thread is threading.current_thread():
                if not self._watches:
                    self._changed.wait()
                    continue
                first = self._watches[0]
                left = first.deadline - time.monotonic()
                if left > 0:
                    self._changed.wait(left)
                    continue
                self._watches.popleft()
                if first.connection is not None:
                    cut(first.connection)

    def close(self) -> None:
        """Lets the thread end."""
        with self._changed:
            thread, self._thread = self._thread, None
            self._changed.notify_all()
        if thread is not None:
            thread.join(PATIENCE)
