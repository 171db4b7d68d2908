"""A wire to Postgres that takes its time: what enters one end leaves the other after a fixed delay.

``python -m benchmarks.wire HOST PORT SECONDS`` prints the port at which it listens and ends when its stdin is closed.
Each direction is delayed, so a round trip takes twice that. What is on its way does not hold up what follows: all that
is read gets a time at which it is due, and leaves then, however much is in between. Two threads: one reads and says
when, the other waits and sends; an event loop would not do, because its timers are good for a millisecond at best.
"""

from __future__ import annotations

import os
import queue
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit, urlunsplit

from benchmarks.agents import AgentFailed, end
from benchmarks.envs import ROOT

CHUNK = 262_144


class Wire:
    """Connections to one server."""

    def __init__(self, target: tuple[str, int], delay: float) -> None:
        self._target, self._delay = target, delay
        self._selector = selectors.DefaultSelector()
        self._sent: queue.SimpleQueue[tuple[float, socket.socket, socket.socket, bytes]] = queue.SimpleQueue()
        self._ended: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self.port = int(self._listener.getsockname()[1])

    def run(self) -> None:
        """Read, for ever; what was read is due after the delay."""
        threading.Thread(target=self._send, name="wire", daemon=True).start()
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._listener:
                    self._connect()
                else:
                    self._read(key.fileobj, key.data)  # type: ignore[arg-type]

    def _connect(self) -> None:
        client, _ = self._listener.accept()
        server = socket.create_connection(self._target)
        for one, other in ((client, server), (server, client)):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._selector.register(one, selectors.EVENT_READ, other)

    def _read(self, source: socket.socket, other: socket.socket) -> None:
        try:
            data = source.recv(CHUNK)
        except ConnectionError:  # to the other end a connection that was cut is one that has ended
            data = b""
        if not data:
            self._selector.unregister(source)
        self._sent.put((time.monotonic() + self._delay, source, other, data))

    def _send(self) -> None:
        while True:
            due, source, other, data = self._sent.get()
            if (early := due - time.monotonic()) > 0:
                time.sleep(early)
            try:
                if data:
                    other.sendall(data)
                else:
                    self._end(source, other)
            except OSError:  # it has gone: its own end is read, and told to the one that sent this
                continue

    def _end(self, source: socket.socket, other: socket.socket) -> None:
        if other in self._ended:
            self._ended.discard(other)
            source.close()
            other.close()
        else:
            self._ended.add(source)
            other.shutdown(socket.SHUT_WR)


@contextmanager
def stretched(url: str, seconds: float) -> Iterator[tuple[str, int]]:
    """The same database at the end of a wire that delays each direction by so many seconds, and the wire's process.

    Raises ``AgentFailed`` when the URL has no host: a Unix socket has no wire.
    """
    parts = urlsplit(url)
    if not parts.hostname:
        raise AgentFailed("a wire needs a server that listens on TCP: give --url a host")
    argv = [sys.executable, "-m", "benchmarks.wire", parts.hostname, str(parts.port or 5432), str(seconds)]
    process = subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        if not (port := process.stdout.readline().decode().strip()):
            raise AgentFailed("the wire ended before it listened: see above")
        login, at, _ = parts.netloc.rpartition("@")
        yield urlunsplit(parts._replace(netloc=f"{login}{at}127.0.0.1:{port}")), process.pid
    finally:
        end(process)


def main(argv: list[str]) -> None:
    host, port, seconds = argv
    wire = Wire((host, int(port)), float(seconds))
    print(wire.port, flush=True)
    threading.Thread(target=_watch, daemon=True).start()
    wire.run()


def _watch() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
