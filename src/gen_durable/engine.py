"""The engine: settings, client and worker put together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any, Literal, Self

from gen_durable import embedded
from gen_durable._database import given_url, migrate_at, uses_embedded
from gen_durable._runtime.worker import Worker
from gen_durable._store.connection import parse_url
from gen_durable._store.operation import check_schema_name
from gen_durable.client import Client, SyncClient
from gen_durable.config import Settings
from gen_durable.errors import ConfigurationError, EngineStateError
from gen_durable.events import EventName, Hooks
from gen_durable.limits import Rate
from gen_durable.schedule import Schedule

__all__ = ["Engine"]

log = logging.getLogger("gen_durable")

RESTART_SECONDS = 1.0
# A service manager that signals a whole group reaches a process twice, by itself and through its supervisor: that is
# one request to stop.
SAME_SIGNAL_SECONDS = 0.5

_running: dict[str, Engine] = {}  # by name: the engines that are started in this process


class Engine(Client):
    """Runs machines and jobs on a Postgres database, and takes the calls on them.

    ``async with engine:`` opens the client and runs a worker in this process; ``async with engine.client():`` opens the
    client only; ``await engine.run()`` is the main of a worker process. All arguments but ``url`` are keyword-only.

    ========================  =========================  ==============================================================
    Setting                   Default                    Meaning
    ========================  =========================  ==============================================================
    url                       None                       Database URL. None: ``GEN_DURABLE_DATABASE_URL``, then
                                                         ``DATABASE_URL``, then the embedded server (development only)
    listen_url                None                       A direct URL for heartbeat and notifications, where ``url``
                                                         leads through a transaction pooler
    embedded                  None                       True: use the embedded server, also in a worker process;
                                                         False: never
    machines                  ()                         The machine and job classes and functions it knows
    queues                    {"default": 50}            The queues it runs and how many steps of each at once;
                                                         {}: none (a web node)
    queue_limits              {}                         How many steps of a queue run at once in the whole cluster
    concurrency_limits        {}                         By the name of a concurrency key: how many instances of one
                                                         key run at once; 1 for all other names
    rate_limits               {}                         The rate limits by name, each a :class:`gen_durable.Rate`
    schedules                 ()                         The schedules that it makes sure of when it starts
    schema                    "gen_durable"              The Postgres schema
    name                      "default"                  The engine's name: in logs and in the workers table
    run_ahead                 True                       Run the next step at once after its commit
    history                   "steps"                    "off", "steps" or "states"; a machine may say otherwise
    retention                 86400                      Seconds that terminal instances stay; a machine may say
                                                         otherwise; ``math.inf``: for ever
    max_crashes               5                          Deaths of workers in one step that fail an instance
    max_state_bytes           1048576                    The largest state or result
    drain_timeout             30                         Seconds that running steps get at a drain
    lease                     15                         Seconds of silence after which a worker is dead
    heartbeat                 5                          Seconds between two signs of life; at most half the lease
    poll_interval             5                          Seconds until work is found when every notification is lost,
                                                         at most 60
    statement_timeout         10                         Seconds after which a silent connection is given up
    prefetch                  500                        How many rows a queue holds at most beyond those that run
    threads                   64                         Threads for steps that are plain functions
    pool_size                 4                          Connections of the client, besides the worker's six
    sessionmaker              None                       SQLAlchemy's, for the ``ctx.session`` of transactional steps
    transaction_pool_size     20                         Connections for transactional steps, and so how many of them
                                                         run at once
    transaction_idle_timeout  60                         Seconds between two statements of a transactional step after
                                                         which the server ends its transaction
    ========================  =========================  ==============================================================

    Durations are seconds or a timedelta.

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
        queues: Mapping[str, int] | None = None,
        queue_limits: Mapping[str, int] | None = None,
        concurrency_limits: Mapping[str, int] | None = None,
        rate_limits: Mapping[str, Rate] | None = None,
        schedules: Iterable[Schedule] = (),
        schema: str = "gen_durable",
        name: str = "default",
        run_ahead: bool = True,
        history: Literal["off", "steps", "states"] = "steps",
        retention: float | timedelta = 86_400.0,
        max_crashes: int = 5,
        max_state_bytes: int = 1_048_576,
        drain_timeout: float | timedelta = 30.0,
        lease: float | timedelta = 15.0,
        heartbeat: float | timedelta = 5.0,
        poll_interval: float | timedelta = 5.0,
        statement_timeout: float | timedelta = 10.0,
        prefetch: int = 500,
        threads: int = 64,
        pool_size: int = 4,
        sessionmaker: Any = None,
        transaction_pool_size: int = 20,
        transaction_idle_timeout: float | timedelta = 60.0,
    ) -> None:
        check_schema_name(schema)
        settings = Settings(
            url=None if url is None else parse_url(url),
            listen_url=None if listen_url is None else parse_url(listen_url),
            embedded=embedded,
            machines=machines,  # type: ignore[arg-type]  # specs there
            queues={"default": 50} if queues is None else queues,
            queue_limits={} if queue_limits is None else queue_limits,
            concurrency_limits={} if concurrency_limits is None else concurrency_limits,
            rate_limits={} if rate_limits is None else rate_limits,
            schedules=schedules,  # type: ignore[arg-type]  # a tuple there
            schema=schema,
            name=name,
            run_ahead=run_ahead,
            history=history,
            retention=retention,  # type: ignore[arg-type]  # normalised to seconds there, as the next ones are
            max_crashes=max_crashes,
            max_state_bytes=max_state_bytes,
            drain_timeout=drain_timeout,  # type: ignore[arg-type]
            lease=lease,  # type: ignore[arg-type]
            heartbeat=heartbeat,  # type: ignore[arg-type]
            poll_interval=poll_interval,  # type: ignore[arg-type]
            statement_timeout=statement_timeout,  # type: ignore[arg-type]
            prefetch=prefetch,
            threads=threads,
            pool_size=pool_size,
            sessionmaker=sessionmaker,
            transaction_pool_size=transaction_pool_size,
            transaction_idle_timeout=transaction_idle_timeout,  # type: ignore[arg-type]
        )
        super().__init__(settings)
        self._hooks = Hooks()
        self._worker: Worker | None = None
        self._threads_client: SyncClient | None = None
        self._life: asyncio.Task[None] | None = None
        self._stopping = False

    @property
    def settings(self) -> Settings:
        """The settings, checked and frozen."""
        return self._settings

    def on(self, event: EventName, hook: Callable[[Any], None]) -> None:
        """Calls ``hook(event)`` at each event of one kind; see :mod:`gen_durable.events`.

        Raises:
            ConfigurationError: for an unknown event.
        """
        self._hooks.add(event, hook)

    # Database -------------------------------------------------------------------------------------

    async def database_url(self, *, development: bool = True) -> str:
        """The URL that this engine uses; starts the embedded server when that is it.

        Args:
            development: False for a production worker: it refuses to fall back to the embedded server.

        Raises:
            ConfigurationError: no URL, and the embedded server is not allowed.
            EmbeddedError: it can't be started.
        """
        url = given_url(self._settings, development=development)
        return parse_url(await asyncio.to_thread(embedded.start)) if url is None else url

    async def migrate(self) -> list[str]:
        """Creates or updates the schema; answers with the names of the migrations that ran.

        Where none did, and this package makes other functions for SQL than the schema has, that is ``["functions"]``.
        Safe to call twice and from several processes at once.

        Raises:
            DatabaseUnreachable: no connection.
            SchemaVersionError: the schema is newer than this package.
        """
        return await self._migrate()

    async def _migrate(self, *, test_clock: bool = False) -> list[str]:
        return await migrate_at(await self.database_url(), self._settings, test_clock=test_clock)

    async def _connect(self, *, development: bool) -> None:
        if self._settings.name in _running:
            raise EngineStateError(
                f"an engine named {self._settings.name!r} runs in this process already: "
                "give each engine a name= of its own, and start each once"
            )
        _running[self._settings.name] = self
        try:
            url = await self.database_url(development=development)
            if uses_embedded(self._settings):
                await self.migrate()
            await self._open(url)
        except BaseException:
            await self._disconnect()
            raise

    def _client_of_threads(self) -> SyncClient:
        """The client of steps that are plain functions; it opens itself at its first call."""
        if self._threads_client is None:
            self._threads_client = SyncClient._of(self._settings, self)
        return self._threads_client

    async def _disconnect(self) -> None:
        shared, self._threads_client = self._threads_client, None
        if shared is not None:
            await asyncio.to_thread(shared.close)
        await self._close()
        if _running.get(self._settings.name) is self:
            del _running[self._settings.name]

    # Life -----------------------------------------------------------------------------------------

    def sync_client(self) -> SyncClient:
        """A client with this engine's settings for code that is not async; it needs no event loop.

        It works whether this engine is started or not, and has connections of its own: open and close it, or use it as
        a context manager.
        """
        return SyncClient._of(self._settings)

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[Self]:
        """Opens the client only: no worker runs in this process.

        Raises:
            DatabaseUnreachable, SchemaMissing, SchemaVersionError: what stands in the way.
            ConfigurationError: a step names a rate limit that is neither configured here nor set in the database, or
                takes more tokens than it ever holds.
            EngineStateError: an engine of this name is started already.
        """
        await self._connect(development=True)
        try:
            yield self
        finally:
            await self._disconnect()

    async def __aenter__(self) -> Self:
        """Opens the client and starts the worker (none, when ``queues`` is empty)."""
        await self._start(development=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Drains the worker and closes everything."""
        await self.stop()

    async def _start(self, *, development: bool) -> None:
        await self._connect(development=development)
        self._stopping = False
        if not self._settings.queues:
            return
        try:
            self._warn_of_queues()
            worker = await self._begin()
        except BaseException:
            await self._disconnect()
            raise
        self._life = asyncio.create_task(self._live(worker), name=f"gen_durable {self._settings.name}")

    async def _begin(self) -> Worker:
        worker = Worker(self._settings, self._session.url, self._sql, self._hooks, self)
        try:
            await worker.start()
        except BaseException:
            await worker.abandon()
            raise
        self._worker = self._local = worker
        return worker

    async def _live(self, worker: Worker | None) -> None:
        """One life of the worker after the other, until the engine is stopped."""
        while not self._stopping or worker is not None:
            try:
                worker = worker or await self._begin()
                if self._stopping:
                    worker.drain()
                await worker.run()
            except Exception:
                log.exception("the worker failed; it starts again in %g s", RESTART_SECONDS)
                await asyncio.sleep(RESTART_SECONDS)
            finally:
                worker = self._worker = self._local = None

    async def stop(self) -> None:
        """Drains: no more claims, running steps get ``drain_timeout`` seconds, the rest goes back at once; then closes.

        Safe to call twice; a second call while the first drains cancels what still runs. When the database is away,
        what can't be given back is left to the lease.
        """
        self._stopping = True
        life = self._life
        try:
            if life is not None:
                if self._worker is not None:
                    self._worker.drain()
                longest = self._settings.drain_timeout + 2 * self._settings.statement_timeout
                await asyncio.wait([life], timeout=longest)
        finally:
            if life is not None and not life.done():
                log.warning("the worker could not drain in time; the lease gives back what it held")
                life.cancel()
                await asyncio.wait([life])
            self._life = None
            await self._disconnect()

    async def run(self) -> None:
        """The main of a worker process: works until SIGTERM or SIGINT, then drains and returns; a second one hurries.

        Raises:
            ConfigurationError: no database URL (the embedded server must be asked for), or a step whose rate limit
                there is not.
            DatabaseUnreachable, SchemaMissing, SchemaVersionError: what stands in the way.
        """
        if not self._settings.queues:
            raise ConfigurationError("queues={}: this engine is a client only; give a worker at least one queue")
        loop = asyncio.get_running_loop()
        asked = asyncio.Event()
        asked_at = 0.0

        def ask() -> None:
            nonlocal asked_at
            if not asked.is_set():
                asked_at = loop.time()
                asked.set()
            elif loop.time() - asked_at > SAME_SIGNAL_SECONDS and self._worker is not None:
                self._worker.drain()

        signals = (signal.SIGTERM, signal.SIGINT)
        for number in signals:
            loop.add_signal_handler(number, ask)
        try:
            await self._start(development=False)
            life = self._life
            assert life is not None
            waiting = asyncio.create_task(asked.wait())
            try:
                await asyncio.wait([life, waiting], return_when=asyncio.FIRST_COMPLETED)
            finally:
                waiting.cancel()
            await self.stop()
        finally:
            for number in signals:
                loop.remove_signal_handler(number)

    def _warn_of_queues(self) -> None:
        for spec in self._settings.machines:
            if spec.queue not in self._settings.queues:
                log.warning(
                    "%s goes to the queue %r, which this engine does not run (queues=%s): another one must",
                    spec.name,
                    spec.queue,
                    dict(self._settings.queues),
                )
