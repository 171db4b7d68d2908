"""The command line ``gen-durable``; one file for each group of commands.

It uses the public client only. What is heavy to load (the engine, the database driver) is imported by the command that
needs it, so that ``--version``, ``--help`` and completion answer at once.
"""

from __future__ import annotations

from typing import NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    """The entry point: runs the command of ``sys.argv`` and exits."""
    from gen_durable.cli.app import root

    root.main(prog_name="gen-durable")
    raise SystemExit(0)
