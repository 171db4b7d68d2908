"""The worker's sign of life and its ear: heartbeat, session lock and notifications, in a thread of their own.

A step that blocks the event loop must not make the worker look dead: so the heartbeat has its own thread, with a small
event loop and one connection of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import msgspec
import psycopg
from psycopg import AsyncConnection

from gen_durable._runtime.link import Link, LinkDown
from gen_durable._store.connection import fetch
from gen_durable._store.operation import Catalog, Row
from gen_durable.config import Settings
from gen_durable.events import Hooks, emit

__all__ = ["Control", "Listener"]

log = logging.getLogger("gen_durable")

FIRST_ID = 3  # below are the numbers of the other advisory locks: reaper, partitions, migrations

# Between two attempts to connect. When the server has crashed it has forgotten the session locks: a worker must be back
# before the others take that for its death.
LONGEST_PAUSE = 0.4
GRACE_SECONDS = 1.0  # for the statement that is under way when it is told to stop


class Listener:
    """What the control thread reports; each method is called on the worker's own event loop."""

    def notified(self, message: str) -> None:
        """A notification came; ``"*"`` after a gap in which some may have been lost."""

    def lanes_changed(self) -> None:
        """There are lanes that this worker has not seen."""

    def declared_dead(self) -> None:
        """The worker's row is gone: its claims belong to others."""


class Control:
    """Registers the worker and keeps it known to be alive."""

    def __init__(self, settings: Settings, url: str, sql: Catalog, hooks: Hooks, listener: Listener) -> None:
        self._settings = settings
        self._url = settings.listen_url or url
        self._sql = sql
        self._hooks = Hooks()
        # Hooks run on the worker's loop, not in this thread.
        self._hooks.add("reconnect", lambda event: self._report(emit, hooks.reconnect, event))
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._registered: asyncio.Future[int] = self._loop.create_future()
        self._thread: threading.Thread | None = None
        self._inner: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self.worker = 0
        self.lanes: list[int] = []
        self.lane_mark = ""
        self.listening = False
        self._locked = False
        self._stopped = False
        self._link: Link | None = None
        self._answered = True
        self._loop_thread = threading.get_ident()

    async def start(self) -> int:
        """Registers; answers with the worker's id."""
        self._thread = threading.Thread(target=self._run, name="gen_durable control", daemon=True)
        self._thread.start()
        return await self._registered

    async def stop(self) -> None:
        """Takes the worker off the table and ends the thread."""
        self._stopped = True  # first: the thread looks at it when it has made the rest
        inner, stop = self._inner, self._stop
        if self._thread is None:
            return
        if inner is not None and stop is not None and self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # its loop has just ended
                inner.call_soon_threadsafe(stop.set)
        await asyncio.to_thread(self._thread.join)

    # In the thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:
            log.exception("the control thread ended")
            self._report(self._fail, error)

    def _report(self, function: Callable[..., None], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            log.debug("the worker's event loop is closed")

    def _fail(self, error: BaseException) -> None:
        if not self._registered.done():
            self._registered.set_exception(error)
        else:
            self._listener.declared_dead()

    async def _main(self) -> None:
        self._inner = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        if self._stopped:
            return
        deadline = min(self._settings.statement_timeout, self._settings.lease / 3)
        self._link = link = Link(
            self._url,
            "control",
            self._hooks,
            application_name=f"gen_durable {self._settings.name} control",
            deadline=deadline,
            longest_pause=LONGEST_PAUSE,
        )
        # A task of its own: when the database is away it waits in the link for as long as that takes.
        work = asyncio.create_task(self._work(link))
        stop = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait([work, stop], return_when=asyncio.FIRST_COMPLETED)
            if link.connection is not None:  # a statement that is under way may make the row that is to be taken away
                await asyncio.wait([work], timeout=GRACE_SECONDS)
            for task in (work, stop):
                task.cancel()
            await asyncio.gather(work, stop, return_exceptions=True)
            if not work.cancelled() and (error := work.exception()) is not None:
                raise error
            await self._unregister(link)
        finally:
            await link.close()

    async def _work(self, link: Link) -> None:
        await self._register(link)
        link.on_connect = self._on_connect
        if link.connection is not None:
            await self._listen(link.connection)
        self._report(self._registered.set_result, self.worker)
        await self._live(link)

    async def _register(self, link: Link) -> None:
        while not self.worker:
            candidate = secrets.randbelow(2**31 - FIRST_ID) + FIRST_ID
            try:
                await link.connect()
                rows = await link.fetch(
                    self._sql["workers/register"].bind(
                        worker=candidate,
                        name=self._settings.name,
                        host=socket.gethostname(),
                        pid=os.getpid(),
                        queues=msgspec.json.encode(dict(self._settings.queues)).decode(),
                        lanes=self.lanes,
                        lock=link.own_session,
                    )
                )
            except LinkDown:
                continue
            if rows:
                self.worker, self._locked = candidate, rows[0][0]

    async def _on_connect(self, connection: AsyncConnection[Row]) -> None:
        """On every new connection after the first: the lock, the channel, and a look at what was missed."""
        assert self._link is not None
        self._locked = False
        if self._link.own_session:
            rows = await fetch(connection, self._sql["workers/relock"].bind(worker=self.worker))
            self._locked = rows[0][0]
        await self._listen(connection)

    async def _listen(self, connection: AsyncConnection[Row]) -> None:
        assert self._link is not None
        self.listening = self._link.own_session
        if self.listening:
            connection.add_notify_handler(lambda notice: self._report(self._listener.notified, notice.payload))
            await fetch(connection, self._sql["queues/listen"].bind())
        self._report(self._listener.notified, "*")

    async def _live(self, link: Link) -> None:
        assert self._stop is not None
        next_beat = time.monotonic()
        while not self._stop.is_set():
            try:
                if time.monotonic() >= next_beat:
                    next_beat = time.monotonic() + self._settings.heartbeat
                    if not await self._beat(link):
                        return
                await self._hear(link, next_beat - time.monotonic())
            except LinkDown:
                next_beat = time.monotonic()
            except psycopg.Error as error:
                log.warning("heartbeat: %s", str(error).strip())
                next_beat = time.monotonic() + 1.0

    def _check_loop(self) -> None:
        """Says so when the worker's event loop has not answered since the last heartbeat, and where it stands."""
        if self._answered is False:
            frame = sys._current_frames().get(self._loop_thread)
            place = "".join(traceback.format_stack(frame, limit=8)) if frame is not None else "unknown\n"
            log.warning(
                "the event loop has not run for %g s: something blocks it (a step that should be a plain `def`, "
                "to run in a thread?). It stands at:\n%s",
                self._settings.heartbeat,
                place,
            )
        self._answered = False
        self._report(self._answer)

    def _answer(self) -> None:
        self._answered = True

    async def _beat(self, link: Link) -> bool:
        self._check_loop()
        await link.connect()  # first, because that says whether the lock is held
        if link.own_session and not self._locked:
            rows = await link.fetch(self._sql["workers/relock"].bind(worker=self.worker))
            self._locked = rows[0][0]
        rows = await link.fetch(
            self._sql["workers/heartbeat"].bind(worker=self.worker, locked=self._locked, lanes=self.lanes)
        )
        if not rows:
            log.warning("worker %d was declared dead: it drops what it holds and registers anew", self.worker)
            self.worker = 0
            self._report(self._listener.declared_dead)
            return False
        if rows[0][0] != self.lane_mark:
            self._report(self._listener.lanes_changed)
        return True

    async def _hear(self, link: Link, seconds: float) -> None:
        """Waits for notifications, the stop signal, the end of the connection, or for ``seconds``."""
        assert self._stop is not None
        loop = asyncio.get_running_loop()
        connection = link.connection
        over = asyncio.Event()
        broken: list[psycopg.Error] = []
        fd = -1
        if connection is not None and self.listening and not connection.closed:
            pgconn = connection.pgconn
            fd = pgconn.socket

            def readable() -> None:
                try:
                    pgconn.consume_input()
                    while notice := pgconn.notifies():
                        self._report(self._listener.notified, notice.extra.decode())
                except psycopg.Error as error:
                    broken.append(error)
                    over.set()

            loop.add_reader(fd, readable)
        waits = [asyncio.ensure_future(self._stop.wait()), asyncio.ensure_future(over.wait())]
        try:
            await asyncio.wait(waits, timeout=max(seconds, 0), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            if fd >= 0:
                loop.remove_reader(fd)
        if broken:
            await link.drop(broken[0])
            raise LinkDown(str(broken[0]))

    async def _unregister(self, link: Link) -> None:
        if not self.worker or link.connection is None:
            return
        try:
            await link.fetch(self._sql["workers/unregister"].bind(worker=self.worker))
        except (LinkDown, psycopg.Error) as error:
            log.warning("worker %d could not take itself off the table: %s", self.worker, str(error).strip())
