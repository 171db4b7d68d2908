"""The command line ``gen-durable``; one file for each group of commands.

It uses the public client only. What is heavy to load (the engine, the database driver) is imported by the command that
needs it, so that ``--version``, ``--help`` and completion answer at once.
"""

from __future__ import annotations

import sys
from typing import NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    """The entry point: runs the command of ``sys.argv`` and exits."""
    from gen_durable.cli.app import INTERRUPTED, root

    if sys.stderr.isatty():
        root.main(prog_name="gen-durable")
    import click

    try:  # click's frames are for terminals; a log gets lines
        code = root.main(prog_name="gen-durable", standalone_mode=False)
    except click.ClickException as error:
        click.echo(f"Error: {error.format_message()}", err=True)
        if isinstance(error, click.UsageError) and error.ctx is not None:
            click.echo(f"Try '{error.ctx.command_path} --help' for help.", err=True)
        code = error.exit_code
    except click.Abort:
        code = INTERRUPTED
    raise SystemExit(code if isinstance(code, int) else 0)
