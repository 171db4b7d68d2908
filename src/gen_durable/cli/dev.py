"""``gen-durable dev``: the embedded server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import rich_click as click

from gen_durable.cli._options import Command, debug_option, json_option
from gen_durable.cli._output import pairs, write_json

__all__ = ["dev"]


def _path_option(command: Command) -> Command:
    kind = click.Path(file_okay=False, path_type=Path)
    return click.option("--path", type=kind, help="The server's folder; by default ./.gen_durable/postgres.")(command)


@click.group
def dev() -> None:
    """The development server: a PostgreSQL of its own in a folder of your project."""


@dev.command
@_path_option
@click.option("--port", type=click.IntRange(1, 65535), help="Its TCP port; by default the last one, or a free one.")
@json_option
@debug_option
def start(path: Path | None, port: int | None, as_json: bool) -> None:
    """Start it, or make and start it; it stays until it is stopped."""
    from gen_durable import embedded

    embedded.start(path, port=port)
    _report(path, as_json)


@dev.command
@_path_option
@json_option
@debug_option
def stop(path: Path | None, as_json: bool) -> None:
    """Stop it; its data stays."""
    from gen_durable import embedded

    stopped = embedded.stop(path)
    if as_json:
        write_json({"stopped": stopped})
    else:
        click.echo("stopped" if stopped else "it did not run")


@dev.command
@_path_option
@json_option
@debug_option
@click.pass_context
def status(ctx: click.Context, path: Path | None, as_json: bool) -> None:
    """Say whether it runs; exits with 1 when it does not."""
    if not _report(path, as_json):
        ctx.exit(1)


@dev.command
@_path_option
@debug_option
@click.pass_context
def url(ctx: click.Context, path: Path | None) -> None:
    """Print its URL, with the password: `export DATABASE_URL=$(gen-durable dev url)`."""
    from gen_durable import embedded

    found = embedded.status(path)
    if found.url is None:
        click.echo(f"Error: the development server does not run: {found.detail}", err=True)
        ctx.exit(1)
    click.echo(found.url)


def _report(path: Path | None, as_json: bool) -> bool:
    """Writes the state without the password."""
    from gen_durable import embedded

    found = embedded.status(path)
    detail = found.detail
    if not found.running and found.pid is None and (found.path / "data").exists():
        detail = "it is stopped; its data is there"
    known: dict[str, Any] = {
        "running": found.running,
        "path": str(found.path),
        "port": found.port,
        "pid": found.pid,
        "log": str(found.log),
        "detail": detail or None,
    }
    if as_json:
        write_json(known)
    else:
        pairs({**known, "running": "yes" if found.running else "no"})
    return found.running
