"""Options and parameter types that several commands share, and the client that they open."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Callable, Coroutine
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

import rich_click as click

if TYPE_CHECKING:
    from gen_durable import Engine

__all__ = [
    "DEBUG",
    "database_options",
    "debug_option",
    "json_option",
    "key_option",
    "moment",
    "open_client",
    "queue_sizes",
    "run",
    "seconds",
    "start_development",
    "target_of",
    "url_option",
]

DEBUG = "gen_durable.debug"

_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([smhd]?)", re.ASCII)
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

T = TypeVar("T")
Command = TypeVar("Command", bound=Callable[..., Any])


def _set_debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta[DEBUG] = True  # shared by all contexts of one run


debug_option = click.option(
    "--debug", is_flag=True, expose_value=False, callback=_set_debug, help="Show the traceback of an error."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Write one JSON document to stdout.")
key_option = click.option("--key", "is_key", is_flag=True, help="TARGET is a key, even if it looks like a number.")
url_option = click.option(
    "--database-url",
    metavar="URL",
    help="The database; by default GEN_DURABLE_DATABASE_URL, then DATABASE_URL, then the development server. "
    "Other users see options in `ps`: with a password in it, prefer the environment.",
)


def database_options(command: Command) -> Command:
    """Adds ``--database-url`` and ``--schema``."""
    schema = click.option("--schema", default="gen_durable", show_default=True, help="The Postgres schema.")
    return url_option(schema(command))


def target_of(text: str, is_key: bool) -> int | str:
    """What a ``TARGET`` names: a number is an id, unless ``--key`` was given."""
    return int(text) if text.isascii() and text.isdigit() and not is_key else text


def seconds(value: str) -> float:
    """A duration as seconds: ``90``, ``1.5``, ``30s``, ``10m``, ``2h``, ``1d``."""
    found = _DURATION.fullmatch(value.strip())
    if found is None:
        raise click.BadParameter(f"{value!r} is not a duration: use seconds, or a number with s, m, h or d, like 10m")
    return float(found[1]) * _UNITS[found[2]]


def moment(option: str, text: str) -> datetime:
    """A time in ISO 8601, with its offset."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise click.UsageError(
            f"{option} {text!r}: give an ISO 8601 time with its offset, like 2030-01-31T09:00:00Z"
        ) from None
    if found.utcoffset() is None:
        raise click.UsageError(f"{option} {text!r} has no time zone: add its offset, like {text}Z or {text}+01:00")
    return found


def queue_sizes(value: str) -> dict[str, int]:
    """Queues with their sizes, ``default=50,email=5``, as a dict."""
    queues: dict[str, int] = {}
    for part in value.split(","):
        name, _, size = (piece.strip() for piece in part.rpartition("="))
        if not name or not size.isascii() or not size.isdigit() or int(size) < 1:
            raise click.BadParameter(f"{part!r}: give each queue as name=n, for n steps at once: default=50,email=5")
        if name in queues:
            raise click.BadParameter(f"the queue {name!r} is given twice")
        queues[name] = int(size)
    return queues


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs a command's asynchronous part."""
    import asyncio

    return asyncio.run(work)


def _development(engine: Engine) -> bool:
    from gen_durable.config import database_url_from_environment

    settings = engine.settings
    given = settings.url or database_url_from_environment()
    return settings.embedded is True or (settings.embedded is None and given is None)


def start_development(engine: Engine, *, note: bool) -> None:
    """Starts the development server, if the engine uses it, and says so on stderr: it outlives the command.

    Args:
        engine: not started yet.
        note: whether to say that it is used when it runs already, for commands that write: nobody should miss it.
    """
    if not _development(engine):
        return
    from gen_durable import embedded

    found = embedded.status()
    if not found.running:
        embedded.start()
        click.echo(f"Started the development server in {found.path}; stop it with `gen-durable dev stop`", err=True)
    elif note:
        click.echo(f"Using the development server in {found.path}", err=True)


@contextlib.asynccontextmanager
async def open_client(url: str | None, schema: str) -> AsyncIterator[Engine]:
    """A client without machines: enough to read and to steer.

    Raises:
        ConfigurationError: there is neither a URL nor a development server: a new one would only be empty.
    """
    from gen_durable import Engine, embedded
    from gen_durable.errors import ConfigurationError

    engine = Engine(url, schema=schema, name="gen-durable", queues={}, pool_size=1)
    if _development(engine) and not embedded.status().path.exists():
        raise ConfigurationError(
            "no database: give --database-url, set GEN_DURABLE_DATABASE_URL or DATABASE_URL, "
            "or start the development server here with `gen-durable dev start`"
        )
    start_development(engine, note=False)
    async with engine.client():
        yield engine
