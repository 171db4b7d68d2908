"""The client for code that can't await: Flask, Django, scripts, steps that are plain functions."""

from __future__ import annotations

import asyncio
import builtins
import os
import threading
import weakref
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Literal, Self, TypeVar

from gen_durable import embedded as embedded_server
from gen_durable._bell import SilentBell
from gen_durable._blocking import BlockingSession, finish
from gen_durable._blocking_ear import BlockingEar
from gen_durable._database import given_url, migrate_at, uses_embedded
from gen_durable._store.connection import parse_url
from gen_durable._store.lending import Lent, lend
from gen_durable._store.operation import check_schema_name
from gen_durable._waiter import ThreadWaiter, Waiter
from gen_durable.client.calls import Client
from gen_durable.client.sync_calls import SyncWritingCalls
from gen_durable.config import Settings
from gen_durable.errors import EngineStateError
from gen_durable.limits import Rate
from gen_durable.schedule import Schedule
from gen_durable.snapshot import (
    LimitInfo,
    Page,
    QueueCount,
    QueueInfo,
    ScheduleInfo,
    Snapshot,
    Transition,
    Why,
    WorkerInfo,
)

__all__ = ["SyncClient"]

T = TypeVar("T")


class _BlockingCalls(Client):
    """The calls over blocking connections: their coroutines never suspend."""

    _session: BlockingSession
    _ear: BlockingEar

    def _make_session(self) -> BlockingSession:
        return BlockingSession(self._settings)

    def _make_bell(self) -> SilentBell:
        return SilentBell()

    def _make_ear(self) -> BlockingEar:
        return BlockingEar(self._settings, self._sql, self._ended)

    def _make_waiter(self) -> Waiter:
        return ThreadWaiter()

    def _lend(self, conn: Any) -> Lent:
        return lend(conn, blocking=True)

    def _forget(self) -> None:
        self._session.forget()
        self._ear.forget()
        self._waiters, self._waiters_lock = {}, threading.Lock()


class SyncClient(SyncWritingCalls):
    """The calls of :class:`Client`, without async: no event loop is needed, and no worker runs in it.

    Threads may share one. It opens itself at its first call; ``open()`` does it earlier, and ``close()``, or the end of
    ``with client:``, for good. It may be made before a process forks: each process opens connections of its own.

    Args:
        url: the database; None: ``GEN_DURABLE_DATABASE_URL``, then ``DATABASE_URL``, then the embedded server.
        listen_url: a direct URL for ``result`` to be told on, where ``url`` leads through a transaction pooler.
        queues: names of queues that are known before anybody has used them.
        machines, embedded, queue_limits, concurrency_limits, rate_limits, schedules, schema, name, history, retention,
            max_state_bytes, statement_timeout, pool_size: as of :class:`gen_durable.Engine`.

    Raises:
        ConfigurationError: a setting is wrong; it says which and how to mend it.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        listen_url: str | None = None,
        embedded: bool | None = None,
        machines: Iterable[Any] = (),
        queues: Iterable[str] = ("default",),
        queue_limits: Mapping[str, int] | None = None,
        concurrency_limits: Mapping[str, int] | None = None,
        rate_limits: Mapping[str, Rate] | None = None,
        schedules: Iterable[Schedule] = (),
        schema: str = "gen_durable",
        name: str = "default",
        history: Literal["off", "steps", "states"] = "steps",
        retention: float | timedelta = 86_400.0,
        max_state_bytes: int = 1_048_576,
        statement_timeout: float | timedelta = 10.0,
        pool_size: int = 4,
    ) -> None:
        check_schema_name(schema)
        settings = Settings(
            url=None if url is None else parse_url(url),
            listen_url=None if listen_url is None else parse_url(listen_url),
            embedded=embedded,
            machines=machines,  # type: ignore[arg-type]  # specs there
            queues=dict.fromkeys([queues] if isinstance(queues, str) else queues, 1),
            queue_limits={} if queue_limits is None else queue_limits,
            concurrency_limits={} if concurrency_limits is None else concurrency_limits,
            rate_limits={} if rate_limits is None else rate_limits,
            schedules=schedules,  # type: ignore[arg-type]  # a tuple there
            schema=schema,
            name=name,
            history=history,
            retention=retention,  # type: ignore[arg-type]  # normalised to seconds there
            max_state_bytes=max_state_bytes,
            statement_timeout=statement_timeout,  # type: ignore[arg-type]
            pool_size=pool_size,
        )
        self._begin(settings)

    @classmethod
    def _of(cls, settings: Settings, engine: Client | None = None) -> Self:
        """One with an engine's settings; given that engine too, one that shares what it has seen to when it started."""
        client = cls.__new__(cls)
        client._begin(settings)
        if engine is not None:
            client._url = engine._session.url
            client._blocking._lanes = engine._lanes  # a drain looks there for new ones
        return client

    @property
    def _calls(self) -> _BlockingCalls:
        return self._blocking

    def _begin(self, settings: Settings) -> None:
        self._settings = settings
        self._url: str | None = None  # where everything that the settings declare is done already
        self._blocking = _BlockingCalls(settings)
        self._lock = threading.Lock()
        self._is_open = self._is_closed = False
        _clients.add(self)

    # Life -----------------------------------------------------------------------------------------

    def open(self) -> Self:
        """Connects, and checks the schema; a second call does nothing.

        Raises:
            DatabaseUnreachable, SchemaMissing, SchemaVersionError: what stands in the way.
            ConfigurationError: a step names a rate limit that there is not, or takes more tokens than it ever holds.
        """
        with self._lock:
            self._is_closed = False
            self._open()
        return self

    def close(self) -> None:
        """Closes all connections; a second call does nothing. Those who wait for a result are told so."""
        with self._lock:
            self._is_closed, self._is_open = True, False
            finish(self._calls._close())

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()

    def migrate(self) -> builtins.list[str]:
        """Creates or updates the schema; answers with the names of the migrations that ran.

        Safe to call twice and from several processes at once.

        Raises:
            DatabaseUnreachable: no connection.
            SchemaVersionError: the schema is newer than this package.
        """
        return _apart(migrate_at(self._database_url(), self._settings))

    def _database_url(self) -> str:
        return self._url or given_url(self._settings) or parse_url(embedded_server.start())

    def _open(self) -> None:
        if self._is_closed:
            raise EngineStateError(f"the client {self._settings.name!r} is closed: open() it again, or make another")
        if self._is_open:
            return
        try:
            url = self._database_url()
            if self._url is not None:
                self._calls._use_clock(test=finish(self._calls._session.open(url)))
                finish(self._calls._load_rates())
            else:
                if uses_embedded(self._settings):
                    _apart(migrate_at(url, self._settings))
                finish(self._calls._open(url))
        except BaseException:
            finish(self._calls._close())
            raise
        self._is_open = True

    def _run(self, call: Coroutine[Any, Any, T]) -> T:
        if not self._is_open:
            try:
                with self._lock:
                    self._open()
            except BaseException:
                call.close()
                raise
        return finish(call)

    def _forget(self) -> None:
        """In a process that was forked: what the other one has open is not this one's."""
        self._lock = threading.Lock()
        self._is_open = False
        self._calls._forget()

    # Reading --------------------------------------------------------------------------------------

    def get(self, target: int | str) -> Snapshot:
        """An instance, by id or by key; see :meth:`Client.get`."""
        return self._run(self._calls.get(target))

    def list(
        self,
        *,
        machine: str | None = None,
        status: str | Sequence[str] | None = None,
        queue: str | None = None,
        key_prefix: str | None = None,
        limit: int = 50,
        after: int | None = None,
    ) -> Page:
        """Instances, newest first, a page at a time; see :meth:`Client.list`."""
        return self._run(
            self._calls.list(
                machine=machine, status=status, queue=queue, key_prefix=key_prefix, limit=limit, after=after
            )
        )

    def result(self, target: int | str, timeout: float | None = None) -> Any:
        """Waits for an instance's end and returns its result; see :meth:`Client.result`."""
        return self._run(self._calls.result(target, timeout))

    def history(self, target: int | str) -> builtins.list[Transition]:
        """The transitions of an instance, oldest first; see :meth:`Client.history`."""
        return self._run(self._calls.history(target))

    def why(self, target: int | str) -> Why:
        """Why an instance does not run, or what it does; see :meth:`Client.why`."""
        return self._run(self._calls.why(target))

    def counts(self) -> builtins.list[QueueCount]:
        """How many instances there are, by queue, machine and status; see :meth:`Client.counts`."""
        return self._run(self._calls.counts())

    def queues(self) -> builtins.list[QueueInfo]:
        """The queues that somebody has used; see :meth:`Client.queues`."""
        return self._run(self._calls.queues())

    def workers(self) -> builtins.list[WorkerInfo]:
        """The worker processes that are registered; see :meth:`Client.workers`."""
        return self._run(self._calls.workers())

    def schedules(self) -> builtins.list[ScheduleInfo]:
        """All schedules of the schema; see :meth:`Client.schedules`."""
        return self._run(self._calls.schedules())

    def limits(self) -> builtins.list[LimitInfo]:
        """The limits that are set; see :meth:`Client.limits`."""
        return self._run(self._calls.limits())


_clients: weakref.WeakSet[SyncClient] = weakref.WeakSet()


def _forked() -> None:
    for client in builtins.list(_clients):
        client._forget()


os.register_at_fork(after_in_child=_forked)


def _apart(work: Coroutine[Any, Any, T]) -> T:
    """Runs what needs an event loop on one of its own, in a thread: this one may have a loop that runs."""
    done: builtins.list[T] = []
    failed: builtins.list[BaseException] = []

    def run() -> None:
        try:
            done.append(asyncio.run(work))
        except BaseException as error:  # noqa: BLE001  # it belongs to whoever waits
            failed.append(error)

    thread = threading.Thread(target=run, name="gen_durable migrate")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]
