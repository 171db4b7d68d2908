"""``gen-durable worker``: one worker process, or a supervisor of several."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import rich_click as click

from gen_durable.cli._options import debug_option, queue_sizes, start_development, url_option
from gen_durable.cli._target import load_engine, reconfigure

if TYPE_CHECKING:
    from gen_durable import Engine

__all__ = ["worker"]

ORPHAN_MARGIN = 30.0
URL_VARIABLE = "GEN_DURABLE_DATABASE_URL"


@click.command
@click.argument("target", metavar="MODULE:ENGINE", help="The engine, like app:engine.")
@click.option("--processes", type=click.IntRange(1, 1000), default=1, show_default=True, help="How many processes.")
@click.option(
    "--queues",
    type=queue_sizes,
    metavar="NAME=N,...",
    help="Run these queues instead of the engine's: default=50,email=5.",
)
@url_option
@click.option("--embedded", is_flag=True, help="Use the development server, although this is a worker.")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="What goes to stderr, unless the module sets up logging itself.",
)
@click.option("--leash", type=int, hidden=True, help="The supervisor's end of this process (internal).")
@click.option("--url-in-environment", is_flag=True, hidden=True, help="The supervisor's --database-url is (internal).")
@debug_option
@click.pass_context
def worker(
    ctx: click.Context,
    target: str,
    processes: int,
    queues: dict[str, int] | None,
    database_url: str | None,
    embedded: bool,
    log_level: str,
    leash: int | None,
    url_in_environment: bool,
) -> None:
    """Run a worker until SIGTERM or SIGINT, then drain: running steps finish, the rest goes back.

    A second signal cancels what still runs. With several processes a supervisor replaces those that die, hands the
    signals on (a third one kills), and ends with an error when they keep dying at once.
    """
    if embedded and database_url is not None:
        raise click.UsageError("--embedded and --database-url: give one of them")
    loaded = _hold(leash) if leash is not None else lambda _: None
    if url_in_environment:
        database_url = os.environ[URL_VARIABLE]
    engine = load_engine(target)
    changes: dict[str, Any] = {"queues": queues, "url": database_url, "embedded": embedded or None}
    if database_url is not None:
        changes["embedded"] = False
    changes = {name: value for name, value in changes.items() if value is not None}
    if changes:
        reconfigure(engine, **changes)
    if not engine.settings.queues:
        raise click.UsageError(
            "queues={}: this engine is a client only; give its worker a queue, like --queues default=50"
        )
    if engine.settings.embedded:
        start_development(engine, note=False)
    if processes > 1:
        ctx.exit(_supervise(ctx, engine, target, processes))
    _log(log_level)
    _run(engine, loaded)


def _log(level: str) -> None:
    """Sends the log to stderr, unless the user's module has set up logging."""
    logging.basicConfig(format="%(asctime)s %(levelname)s [%(process)d] %(name)s: %(message)s")
    logger = logging.getLogger("gen_durable")
    if logger.level == logging.NOTSET:
        logger.setLevel(level.upper())


def _run(engine: Engine, loaded: Callable[[float], None]) -> None:
    import asyncio

    async def main() -> None:
        await engine.database_url(development=False)  # to be refused before others like this one start
        loaded(engine.settings.drain_timeout)
        await engine.run()

    try:
        from uvloop import new_event_loop
    except ImportError:
        asyncio.run(main())
        return
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(main())


def _supervise(ctx: click.Context, engine: Engine, target: str, processes: int) -> int:
    import asyncio

    from gen_durable.cli.supervisor import Supervisor

    asyncio.run(engine.database_url(development=False))  # what is wrong with it is said once, before any child starts
    command, env = [sys.executable, "-m", "gen_durable", "worker", target, "--log-level", ctx.params["log_level"]], {}
    if ctx.params["queues"]:
        command += ["--queues", ",".join(f"{name}={size}" for name, size in ctx.params["queues"].items())]
    if ctx.params["database_url"] is not None:
        command.append("--url-in-environment")  # every user of the machine may read a process's arguments
        env[URL_VARIABLE] = ctx.params["database_url"]
    if ctx.params["embedded"]:
        command.append("--embedded")
    return asyncio.run(Supervisor(command, processes, env=env).run())


def _hold(fd: int) -> Callable[[float], None]:
    """Ties this process to its supervisor: when that one is gone, however it ended, this one drains and ends.

    The answer is called with the drain's timeout when the engine is loaded.
    """
    os.set_inheritable(fd, False)
    end = socket.socket(fileno=fd)
    patience = 0.0

    def watch() -> None:
        while end.recv(1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(patience + ORPHAN_MARGIN)  # an event loop that is blocked for good would never drain
        os._exit(1)

    def loaded(drain_timeout: float) -> None:
        nonlocal patience
        patience = drain_timeout
        end.send(b"+")

    threading.Thread(target=watch, name="gen_durable leash", daemon=True).start()
    return loaded
