"""``manage.py durable migrate|worker|status``."""

from __future__ import annotations

import os
import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from gen_durable.cli.app import exit_code, root
from gen_durable.contrib.django import client, close, conf, migrate
from gen_durable.errors import GenDurableError

__all__ = ["Command"]

WORKER = "gen_durable.contrib.django.worker:engine"


class Command(BaseCommand):
    """The commands on the database of the settings; ``gen-durable`` has more."""

    help = "Create gen_durable's tables, run a worker, or show what there is to do."

    def add_arguments(self, parser: CommandParser) -> None:
        """The three, with their options."""
        commands = parser.add_subparsers(dest="what", required=True, metavar="migrate|worker|status")
        commands.add_parser("migrate", help="create or update gen_durable's tables; safe to run twice")
        worker = commands.add_parser("worker", help="run steps until SIGTERM or SIGINT, then drain")
        worker.add_argument("--processes", type=int, default=1, help="how many processes (default: 1)")
        worker.add_argument("--queues", metavar="NAME=N,...", help="run these queues instead of the settings'")
        worker.add_argument(
            "--log-level", choices=("debug", "info", "warning", "error"), default="info", help="what goes to stderr"
        )
        commands.add_parser("status", help="show workers, and instances by queue, machine and status")

    def handle(self, *args: Any, what: str, **options: Any) -> None:
        """Runs one of them."""
        if what == "worker":
            self._work(options)
            return
        try:
            self._migrate() if what == "migrate" else self._status()
        except GenDurableError as error:
            raise CommandError(str(error), returncode=exit_code(error)) from error
        finally:
            close()

    def _migrate(self) -> None:
        ran = migrate()
        schema = conf.read().schema
        for name in ran:
            self.stdout.write(f"{schema}: {name}")
        if not ran:
            self.stdout.write(f"{schema}: nothing to do")

    def _status(self) -> None:
        workers = client().workers()
        self.stdout.write(f"{len(workers)} worker{'' if len(workers) == 1 else 's'}")
        for worker in workers:
            queues = ", ".join(f"{name}={size}" for name, size in sorted(worker.queues.items()))
            self.stdout.write(f"  {worker.host} {worker.pid}: {queues}; heard of {worker.silent:.0f} s ago")
        for queue in client().queues():
            if queue.paused:
                self.stdout.write(f"the queue {queue.name} is paused")
        for count in client().counts():
            machine = count.machine if count.version == 1 else f"{count.machine} version {count.version}"
            self.stdout.write(f"{count.queue}  {machine}  {count.status}  {count.count}")

    def _work(self, options: dict[str, Any]) -> None:
        """The ordinary worker: its supervisor starts others like itself, which must find the project too."""
        import click
        from django.db import connections

        connections.close_all()  # what the checks have opened
        os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(path or os.getcwd() for path in sys.path))
        arguments = [WORKER, "--processes", str(options["processes"]), "--log-level", options["log_level"]]
        if options["queues"]:
            arguments += ["--queues", options["queues"]]
        try:
            code = root.main(["worker", *arguments], prog_name="manage.py durable", standalone_mode=False)
        except click.ClickException as error:
            raise CommandError(error.format_message(), returncode=error.exit_code) from None
        sys.exit(code)
