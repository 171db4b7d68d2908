"""A payment provider as one meets it: over HTTP, in a process of its own, and not always well.

``python -m examples.checkout.provider`` prints its URL and serves until it is ended. Of the charge requests some are
refused with 503, some are answered after the caller gave up, and of some the connection breaks AFTER the card was
charged. A request whose ``Idempotency-Key`` was used before gets the first answer again; ``--forgetful`` ignores it.

``POST /charges`` charges a card; ``GET /count`` and ``GET /report`` show what happened, for the audit.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from examples.checkout.processes import end_with_parent

UNAVAILABLE, BROKEN, SLOW = 0.04, 0.03, 0.02  # shares of the requests
LATENCY = (0.02, 0.12)  # seconds, of a usual answer
TOO_LATE = 2.0  # seconds, of a slow one


class Ledger:
    """Every charge and every request, in memory: this process lives as long as the demo."""

    def __init__(self, forgetful: bool) -> None:
        self.charges: list[dict[str, Any]] = []
        self.requests: Counter[str] = Counter()
        self._answers: dict[str, tuple[int, dict[str, Any]]] = {}
        self._seen: Counter[str] = Counter()
        self._forgetful = forgetful
        self._lock = threading.Lock()

    def trouble(self, key: str) -> str:
        """What goes wrong with the next request of a key; the same in each run of the demo."""
        with self._lock:
            self._seen[key] += 1
            dice = random.Random(f"{key}#{self._seen[key]}").random()
        for name, share in (("unavailable", UNAVAILABLE), ("broken", BROKEN), ("slow", SLOW)):
            if (dice := dice - share) < 0:
                return name
        return ""

    def charge(self, key: str, order: str, cents: int, card: str) -> tuple[int, dict[str, Any]]:
        """The answer to a request, the same for the same key."""
        with self._lock:
            if key in self._answers and not self._forgetful:
                self.requests["replayed"] += 1
                return self._answers[key]
            if card.endswith("declined"):
                self.requests["declined"] += 1
                answer: tuple[int, dict[str, Any]] = (402, {"error": "insufficient funds"})
            else:
                self.requests["charged"] += 1
                charge = {"charge": f"ch_{len(self.charges) + 1}", "key": key, "order": order, "cents": cents}
                self.charges.append(charge)
                answer = (201, charge)
            self._answers[key] = answer
            return answer

    def count(self, what: str) -> None:
        with self._lock:
            self.requests[what] += 1

    def report(self) -> dict[str, Any]:
        with self._lock:
            return {"requests": dict(self.requests), "charges": list(self.charges)}


class Handler(BaseHTTPRequestHandler):
    """One connection; ``ledger`` is set by ``main``."""

    ledger: Ledger
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        order = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = self.headers["Idempotency-Key"]
        trouble = self.ledger.trouble(key)
        if trouble:
            self.ledger.count(trouble)
        time.sleep(random.uniform(*LATENCY))
        if trouble == "unavailable":
            self.answer(503, {"error": "try again later"})
            return
        status, body = self.ledger.charge(key, order["order"], order["cents"], order["card"])
        if trouble == "broken":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if trouble == "slow":
            time.sleep(TOO_LATE)
        self.answer(status, body)

    def do_GET(self) -> None:
        if self.path == "/count":
            self.answer(200, {"charges": len(self.ledger.charges)})
        elif self.path == "/report":
            self.answer(200, self.ledger.report())
        else:
            self.answer(404, {"error": f"there is no {self.path}; try /count or /report"})

    def answer(self, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Silence: the ledger is the log."""


class Server(ThreadingHTTPServer):
    """A thread for each connection."""

    request_queue_size = 128
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a caller that did not wait for a slow answer
            super().handle_error(*_)


def main() -> None:
    parser = argparse.ArgumentParser(description="A payment provider with bad days.")
    parser.add_argument("--port", type=int, default=0, help="default: any free one")
    parser.add_argument("--forgetful", action="store_true", help="ignore idempotency keys")
    options = parser.parse_args()
    Handler.ledger = Ledger(options.forgetful)
    with Server(("127.0.0.1", options.port), Handler) as server:
        print(f"http://127.0.0.1:{server.server_port}", flush=True)
        end_with_parent()
        server.serve_forever()


if __name__ == "__main__":
    main()
