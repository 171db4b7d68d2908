"""The shop on http://127.0.0.1:8000, and a worker in a process of its own, until Ctrl-C."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIServer, make_server

MANAGE = Path(__file__).with_name("manage.py")


class ThreadingServer(ThreadingMixIn, WSGIServer):
    """A request does not wait for another."""

    daemon_threads = True


def serve(port: int) -> None:
    """Migrates, starts the worker, and serves until a signal."""
    from django.contrib.staticfiles.handlers import StaticFilesHandler
    from django.core.management import call_command

    from examples.django_shop.wsgi import application

    call_command("migrate", verbosity=0)
    worker = subprocess.Popen([sys.executable, MANAGE, "durable", "worker"])
    try:
        with make_server("127.0.0.1", port, StaticFilesHandler(application), ThreadingServer) as server:
            print(f"http://127.0.0.1:{server.server_port}", flush=True)
            server.serve_forever()
    finally:
        worker.terminate()
        worker.wait()


def main() -> None:
    """Ends by SIGTERM as by Ctrl-C. A development server that was started for this is stopped then."""
    parser = argparse.ArgumentParser(prog="python -m examples.django_shop", description=__doc__)
    parser.add_argument("--port", type=int, default=8000, help="0: any free one (default: %(default)s)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "examples.django_shop.settings")
    from gen_durable import embedded
    from gen_durable.config import database_url_from_environment

    ours = database_url_from_environment() is None and not embedded.status().running
    try:
        serve(options.port)
    except KeyboardInterrupt:
        print("ended", flush=True)
    finally:
        if ours:
            embedded.stop()


if __name__ == "__main__":
    main()
