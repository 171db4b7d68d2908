"""Hears of the ends of instances that threads wait for, in a client without an event loop."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import psycopg
from psycopg import Connection

from gen_durable._store.connection import cut, fetch_sync, open_sync, set_up_sync
from gen_durable._store.operation import Catalog, Row
from gen_durable.config import Settings

__all__ = ["BlockingEar"]

log = logging.getLogger("gen_durable")

AGAIN_SECONDS = 1.0
LISTEN_SECONDS = 60.0
PATIENCE = 1.0


class BlockingEar:
    """A thread with a connection that listens, from the first wait on until the client is closed."""

    def __init__(self, settings: Settings, sql: Catalog, ended: Callable[[int | None], None]) -> None:
        self._settings = settings
        self._sql = sql
        self._ended = ended
        self._lock = threading.Lock()
        self._life: _Life | None = None

    @property
    def hears(self) -> bool:
        """Whether notifications reach it."""
        life = self._life
        return life is not None and life.hears

    async def open(self, url: str) -> None:
        """Listens, from when this returns, unless the database can't do that here (``hears`` says so)."""
        with self._lock:
            life = self._life
            if life is None:
                life = self._life = _Life()
                given = (life, self._settings.listen_url or url)
                life.thread = threading.Thread(target=self._run, args=given, name="gen_durable ear", daemon=True)
                life.thread.start()
        life.ready.wait(self._settings.statement_timeout)

    def _run(self, life: _Life, url: str) -> None:
        while not life.over.is_set():
            try:
                if not self._listen(life, url):
                    return  # behind a transaction pooler
            except (psycopg.Error, OSError) as error:
                if not life.over.is_set():
                    log.info("the client's ear: %s; trying again", str(error).strip())
            finally:
                life.hears = False
                life.ready.set()
            self._ended(None)  # some may have ended unheard
            life.over.wait(AGAIN_SECONDS)

    def _listen(self, life: _Life, url: str) -> bool:
        with open_sync(url, f"gen_durable {self._settings.name} ear") as connection:
            if not set_up_sync(connection):
                return False
            fetch_sync(connection, self._sql["queues/listen"].bind())
            life.connection = connection
            life.hears = True
            life.ready.set()
            self._ended(None)
            while not life.over.is_set():
                for notice in connection.notifies(timeout=LISTEN_SECONDS):
                    kind, _, name = notice.payload.partition(":")
                    if kind == "e":
                        self._ended(int(name))
        return True

    async def close(self) -> None:
        """Stops listening."""
        with self._lock:
            life, self._life = self._life, None
        if life is not None:
            life.over.set()
            if life.connection is not None:
                cut(life.connection)
            if life.thread is not None:
                life.thread.join(PATIENCE)

    def forget(self) -> None:
        """Lets go of what belongs to the process that this one was forked from."""
        self._lock = threading.Lock()
        self._life = None


class _Life:
    """One thread's hearing."""

    def __init__(self) -> None:
        self.hears = False
        self.ready = threading.Event()
        self.over = threading.Event()
        self.connection: Connection[Row] | None = None
        self.thread: threading.Thread | None = None
