"""The benchmarks' wire: everything comes through, in order, late, and nothing waits for what is before it."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks.agents import AgentFailed  # noqa: E402
from benchmarks.wire import stretched  # noqa: E402

DELAY = 0.05


@pytest.fixture
def echo() -> Iterator[tuple[str, int]]:
    """A server that sends everything back, and ends when its peer does."""

    def answer(connection: socket.socket) -> None:
        with connection:
            while data := connection.recv(65_536):
                connection.sendall(data)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:  # closed: the test is over
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield listener.getsockname()
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()


@pytest.fixture
def port(echo: tuple[str, int]) -> Iterator[int]:
    """Where a wire to that server begins."""
    with stretched(f"postgresql://127.0.0.1:{echo[1]}/bench", DELAY) as (url, _):
        yield int(url.rpartition(":")[2].partition("/")[0])


def receive(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count and (more := connection.recv(65_536)):
        data += more
    return data


def test_each_direction_takes_the_delay(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        start = time.monotonic()
        connection.sendall(b"there and back")
        assert receive(connection, 14) == b"there and back"
        assert time.monotonic() - start >= 2 * DELAY


def test_what_is_on_its_way_does_not_hold_up_what_follows(port: int) -> None:
    """Forty round trips that start together end together: one after the other they would take forty times as long."""
    with ExitStack() as stack:
        connections = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(40)]
        start = time.monotonic()
        for connection in connections:
            connection.sendall(b"x")
        assert [receive(connection, 1) for connection in connections] == [b"x"] * 40
        assert time.monotonic() - start < 40 * DELAY


def test_much_comes_through_whole_and_in_order_and_then_the_end(port: int) -> None:
    sent = b"".join(number.to_bytes(4) for number in range(500_000))
    with socket.create_connection(("127.0.0.1", port)) as connection:
        threading.Thread(target=connection.sendall, args=(sent,), daemon=True).start()
        assert receive(connection, len(sent)) == sent
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""


def test_the_url_of_a_database_at_its_end_keeps_login_and_name(echo: tuple[str, int]) -> None:
    with stretched(f"postgresql://me:se%40cret@127.0.0.1:{echo[1]}/bench?a=1", DELAY) as (url, pid):
        assert pid > 0
        assert url.startswith("postgresql://me:se%40cret@127.0.0.1:")
        assert url.endswith("/bench?a=1")
        port = int(url.partition("@127.0.0.1:")[2].partition("/")[0])
        assert port != echo[1]
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"x")
            assert receive(connection, 1) == b"x"


def test_a_unix_socket_has_no_wire() -> None:
    with pytest.raises(AgentFailed, match="give --url a host"), stretched("postgresql:///bench", DELAY):
        pass
