"""The root command: its subcommands, and what becomes of errors."""

from __future__ import annotations

import re
import traceback
from typing import Any

import rich_click as click
from click.exceptions import Exit

from gen_durable import __version__
from gen_durable.cli._options import DEBUG, debug_option
from gen_durable.cli.completion import completion
from gen_durable.cli.demo import demo
from gen_durable.cli.dev import dev
from gen_durable.cli.insert import insert
from gen_durable.cli.limits import limits, why
from gen_durable.cli.migrate import migrate
from gen_durable.cli.queues import queues
from gen_durable.cli.reading import list_, show, workers
from gen_durable.cli.schedules import schedule
from gen_durable.cli.steering import cancel, retry, signal, wait
from gen_durable.cli.worker import worker
from gen_durable.errors import (
    ConfigurationError,
    DatabaseError,
    DefinitionError,
    DuplicateInstance,
    EmbeddedError,
    GenDurableError,
    InstanceCancelled,
    InstanceFailed,
    InvalidArgument,
    StillRunning,
)

__all__ = ["FAILED", "INTERRUPTED", "NO_DATABASE", "USAGE", "root"]

FAILED, USAGE, NO_DATABASE, INTERRUPTED = 1, 2, 3, 130
ENDS: dict[type[Exception], int] = {InstanceFailed: 4, InstanceCancelled: 5, StillRunning: 6}  # what a wait found

_SECRET = re.compile(r"(://[^:/@\s]*:)\S+@|(password\s*=\s*)('[^']*'|\S+)", re.IGNORECASE)


class Root(click.RichGroup):
    """Shows errors as one line on stderr and turns them into exit codes."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the subcommand."""
        try:
            return super().invoke(ctx)
        except (Exit, click.ClickException, click.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)
        except Exception as error:  # noqa: BLE001 - the last stop before the user
            if ctx.meta.get(DEBUG):
                traceback.print_exc()
            click.echo(f"Error: {_message(error)}", err=True)
            ctx.exit(exit_code(error))


def exit_code(error: Exception) -> int:
    """The exit code that an error ends with."""
    if isinstance(error, DatabaseError) or type(error).__module__.partition(".")[0] == "psycopg":
        return NO_DATABASE
    if type(error) in ENDS:
        return ENDS[type(error)]
    return USAGE if isinstance(error, ConfigurationError | DefinitionError | InvalidArgument) else FAILED


def _message(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    if isinstance(error, DuplicateInstance):
        text = text.replace('pass on_conflict="existing"', "pass --on-conflict existing")
    if not isinstance(error, GenDurableError):
        text = f"{type(error).__name__}: {text} (--debug shows where)"
    if not isinstance(error, EmbeddedError):  # that one ends with lines of the server's log
        text = " ".join(text.split())
    return _SECRET.sub(lambda found: f"{found[1]}***@" if found[1] else f"{found[2]}***", text)


@click.group(cls=Root, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, message="gen-durable %(version)s", help="Show the version and end.")
@debug_option
def root() -> None:
    """Durable execution on Postgres: run workers, insert work, look at it.

    The database is `--database-url`, else `GEN_DURABLE_DATABASE_URL`, else `DATABASE_URL`, else the development server
    in `./.gen_durable/postgres` (not for workers, unless `--embedded` asks for it).

    Exit codes: 0 done; 1 the operation failed; 2 wrong usage, settings or arguments (nothing was written); 3 the
    database can't be reached or its schema does not fit; 4, 5, 6 `wait` found it failed, cancelled, still
    running; 130 interrupted.
    """


for command in (
    *(migrate, worker, insert, signal, wait, cancel, retry, show, list_, workers, queues, schedule),
    *(limits, why),
    *(demo, dev, completion),
):
    root.add_command(command)
