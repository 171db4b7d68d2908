"""A TCP proxy in front of Postgres that freezes, cuts, and loses single questions and answers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from psycopg import conninfo

READY = b"Z\0\0\0\x05I"  # the server's last word on a statement, after its commit
CHUNK = 65_536

Trick = Literal["lose answer", "lose question", "freeze"]


@dataclass
class Rule:
    """What to do with the next statements that contain some bytes (of their text, or of a parameter's).

    ``lose answer``: the server gets the statement and finishes it; its answer is dropped, then the connection is cut.
    ``lose question``: the connection is cut, and the server never sees the statement.
    ``freeze``: the statement is passed on, then the connection goes silent in both directions.
    """

    marker: bytes
    trick: Trick
    times: int
    hits: int = 0
    done: threading.Event = field(default_factory=threading.Event)


class Proxy:
    """Runs in a thread of its own, so that it works on while the test's event loop does something else."""

    def __init__(self, url: str) -> None:
        self._info = conninfo.conninfo_to_dict(url)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._rules: list[Rule] = []
        self._pairs: set[Pair] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._flow: asyncio.Event | None = None
        self.port = 0
        self.accepted = 0

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._open())
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def url(self) -> str:
        """The database, through the proxy."""
        given = {**self._info, "host": "127.0.0.1", "port": self.port, "sslmode": "disable", "gssencmode": "disable"}
        given.pop("hostaddr", None)
        return conninfo.make_conninfo(**given)

    # What a test does -----------------------------------------------------------------------------

    def freeze(self) -> None:
        """Nothing passes in either direction, and nothing is closed: a half-open link, for new connections too."""
        self._call(self._set_flow(False))

    def thaw(self) -> None:
        """Everything passes again, also what was held up."""
        self._call(self._set_flow(True))

    def cut(self, *, frozen: bool = False) -> int:
        """Resets every connection (those that a trick has frozen); answers with how many there were."""
        count: int = self._call(self._cut_all(frozen))
        return count

    def on(self, marker: bytes, trick: Trick, times: int = 1) -> Rule:
        """Plays a trick on the next statements that contain the marker; ``rule.done`` is set when all were hit."""
        rule = Rule(marker, trick, times)
        self._rules.append(rule)
        return rule

    # In the thread --------------------------------------------------------------------------------

    def _call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _open(self) -> None:
        self._flow = asyncio.Event()
        self._flow.set()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        assert self._server is not None
        self._server.close()
        await self._cut_all()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # transports end in the loop's next turn

    async def _set_flow(self, flows: bool) -> None:
        assert self._flow is not None
        if flows:
            self._flow.set()
        else:
            self._flow.clear()

    async def _cut_all(self, frozen: bool = False) -> int:
        pairs = [pair for pair in self._pairs if pair.frozen or not frozen]
        for pair in pairs:
            pair.cut()
        return len(pairs)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert self._flow is not None
        host = str(self._info.get("host") or self._info.get("hostaddr") or "127.0.0.1")
        port = int(str(self._info.get("port") or 5432))
        pair = Pair(self._flow, self._rule_for, writer)
        self._pairs.add(pair)
        try:
            await self._flow.wait()
            if host.startswith("/"):
                server = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
            else:
                server = await asyncio.open_connection(host, port)
            await pair.run(reader, *server)
        except OSError:
            pass
        finally:
            pair.cut()
            self._pairs.discard(pair)

    def _rule_for(self, data: bytes) -> Rule | None:
        for rule in self._rules:
            if rule.hits < rule.times and rule.marker in data:
                rule.hits += 1
                return rule
        return None


class Pair:
    """One connection through the proxy."""

    def __init__(
        self, flow: asyncio.Event, rule_for: Callable[[bytes], Rule | None], client: asyncio.StreamWriter
    ) -> None:
        self._flow = flow
        self._rule_for = rule_for
        self._client = client
        self._server: asyncio.StreamWriter | None = None
        self._rule: Rule | None = None

    @property
    def frozen(self) -> bool:
        return self._rule is not None and self._rule.trick == "freeze"

    async def run(
        self, reader: asyncio.StreamReader, server_reader: asyncio.StreamReader, server: asyncio.StreamWriter
    ) -> None:
        self._server = server
        ways = [asyncio.create_task(self._questions(reader)), asyncio.create_task(self._answers(server_reader))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _questions(self, reader: asyncio.StreamReader) -> None:
        assert self._server is not None
        kept = b""  # a marker may be split over two reads
        while data := await reader.read(CHUNK):
            await self._flow.wait()
            if self._rule is None and (rule := self._rule_for(kept + data)) is not None:
                if rule.trick == "lose question":
                    self._hit(rule)
                    return
                self._rule = rule
                kept = b""
            self._server.write(data)
            await self._server.drain()
            if self._rule is not None and self.frozen:
                self._hit(self._rule)
                await asyncio.Event().wait()
            kept = data[-100:]

    async def _answers(self, reader: asyncio.StreamReader) -> None:
        lost = b""
        while True:
            if self.frozen:
                await asyncio.Event().wait()
            data = await reader.read(CHUNK)
            if not data:
                return
            await self._flow.wait()
            if self._rule is None:
                self._client.write(data)
                await self._client.drain()
            elif self._rule.trick == "lose answer":
                lost = (lost + data)[-100:]
                if lost.endswith(READY):
                    self._hit(self._rule)
                    return

    @staticmethod
    def _hit(rule: Rule) -> None:
        if rule.hits == rule.times:
            rule.done.set()

    def cut(self) -> None:
        """Resets both sides at once."""
        for writer in (self._client, self._server):
            if writer is not None:
                sock = writer.get_extra_info("socket")
                if sock is not None and sock.fileno() >= 0:
                    # With no time to linger a close becomes a reset.
                    with contextlib.suppress(OSError):
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                writer.transport.abort()
