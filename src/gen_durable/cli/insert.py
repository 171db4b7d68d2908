"""``gen-durable insert``."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import rich_click as click

from gen_durable.cli._options import debug_option, json_option, moment, run, seconds, start_development, url_option
from gen_durable.cli._output import progress, write_json
from gen_durable.cli._target import find_machine, load_engine, reconfigure
from gen_durable.errors import GenDurableError

if TYPE_CHECKING:
    from gen_durable import BulkItem, Engine
    from gen_durable.machine import MachineSpec

__all__ = ["insert"]

CHUNK = 4000


@click.command
@click.argument("target", metavar="MODULE:ENGINE", help="The engine, like app:engine.")
@click.argument("machine", help="The name of its machine or job.")
@click.argument("fields", metavar="[JSON|-]", required=False, help="The fields as a JSON object; - reads stdin.")
@click.option(
    "--many",
    type=click.Path(allow_dash=True, path_type=str),
    help="Insert one instance for each line of a JSONL file (- is stdin).",
)
@click.option("--key", help='Its key; with --many a template over the fields, like "order:{order}".')
@click.option("--queue", help="Another queue than the machine's.")
@click.option("--priority", type=int, help="-32768 to 32767, lower first.")
@click.option("--delay", type=seconds, metavar="SECONDS", help="When it is due: seconds from now, or like 10m, 2h, 1d.")
@click.option("--at", help="When it is due: an ISO 8601 time with its offset, like 2030-01-31T09:00:00+01:00.")
@click.option(
    "--on-conflict",
    type=click.Choice(["raise", "existing", "replace"]),
    default="raise",
    show_default=True,
    help="When the key is taken: fail (with --many: after the others went in), take the existing instance, or replace "
    "it where it waits and was never started (not with --many).",
)
@click.option(
    "--scope",
    type=click.Choice(["live", "done", "failed", "cancelled", "none"]),
    multiple=True,
    help="A status in which it holds its key; may be repeated, with live among them. By default live; none alone is no "
    "uniqueness.",
)
@url_option
@json_option
@debug_option
@click.pass_context
def insert(
    ctx: click.Context,
    /,
    target: str,
    machine: str,
    fields: str | None,
    many: str | None,
    database_url: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Insert an instance of a machine, or a job with its parameters; it is there, durably, when this ends.

    With --many all lines are checked before the first goes in; a progress bar shows how far it is.
    """
    if many is not None and fields is not None:
        raise click.UsageError("give either JSON or --many")
    options["at"] = None if options["at"] is None else moment("--at", options["at"])
    options["scope"] = _scope(options["scope"], options["key"])
    if many is not None and options["on_conflict"] == "replace":
        raise click.UsageError("--many can't replace: insert one by one, or give --on-conflict existing")
    if options["at"] is not None and options["delay"] is not None:
        raise click.UsageError("--delay and --at: give one of them")
    engine = load_engine(target)
    if database_url is not None:
        reconfigure(engine, url=database_url, embedded=False)
    spec = find_machine(engine, machine)
    if many is None:
        text = sys.stdin.read() if fields == "-" else fields or "{}"
        item = spec.cls(**_object(text, "JSON"))
        start_development(engine, note=True)
        run(_insert_one(engine, item, options, as_json))
    elif not run(_insert_many(engine, spec, many, options, as_json)):
        ctx.exit(1)


def _scope(given: tuple[str, ...], key: str | None) -> tuple[str, ...] | None:
    if given and key is None:
        raise click.UsageError("--scope is about a key: give --key too")
    if "none" in given and len(given) > 1:
        raise click.UsageError("--scope none stands alone: it is no uniqueness at all")
    if not given:
        return None
    return () if given == ("none",) else given


def _object(text: str | bytes, what: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise click.UsageError(f"{what} can't be read: {error}") from None
    if not isinstance(value, dict):
        raise click.UsageError(f'{what} must be an object with the fields, like {{"order": 42}}, not {str(text)[:80]}')
    return value


async def _insert_one(engine: Engine, item: Any, options: dict[str, Any], as_json: bool) -> None:
    async with engine.client():
        handle = await engine.insert(item, **options)
    if as_json:
        write_json({"id": handle.id, "key": handle.key, "machine": handle.machine})
    else:
        click.echo(handle.id)


async def _insert_many(engine: Engine, spec: MachineSpec, many: str, options: dict[str, Any], as_json: bool) -> bool:
    """Whether all went in, or may stay out."""
    conflict = options.pop("on_conflict")
    inserted = duplicates = 0
    with _opened(many) as file:
        total = sum(1 for _ in _items(spec, file, many, options))
        start_development(engine, note=True)
        with progress(spec.name, total) as advance:
            async with engine.client():
                try:
                    for chunk in _chunks(_items(spec, file, many, options)):
                        placed = await engine.insert_many(chunk)
                        duplicates += sum(one.duplicate for one in placed)
                        inserted += sum(not one.duplicate for one in placed)
                        advance(inserted + duplicates)
                except GenDurableError:
                    click.echo(f"{inserted} of {total} were inserted before this error", err=True)
                    raise
    if as_json:
        write_json({"machine": spec.name, "inserted": inserted, "duplicates": duplicates})
    else:
        click.echo(f"{inserted} inserted, {duplicates} duplicates")
    return not duplicates or conflict == "existing"


@contextlib.contextmanager
def _opened(many: str) -> Iterator[IO[bytes]]:
    """A file that can be read twice: to check it, then to insert."""
    with contextlib.ExitStack() as stack:
        if many == "-":
            file: IO[bytes] = stack.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(sys.stdin.buffer, file)
        else:
            try:
                file = stack.enter_context(Path(many).open("rb"))
            except OSError as error:
                raise click.UsageError(f"--many {many}: {error.strerror}") from None
        yield file


def _items(spec: MachineSpec, file: IO[bytes], name: str, options: dict[str, Any]) -> Iterator[BulkItem]:
    from gen_durable import BulkItem

    template, rest = options["key"], {k: v for k, v in options.items() if k not in ("key", "on_conflict")}
    file.seek(0)
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        fields = _object(line, where)
        try:
            instance = spec.cls(**fields)
            key = None if template is None else template.format_map(fields)
        except GenDurableError as error:
            raise click.UsageError(f"{where}: {error}") from None
        except KeyError as error:
            known = ", ".join(sorted(fields)) or "none"
            raise click.UsageError(
                f"{where}: --key {template!r} uses the field {error}, which is not there; its fields are: {known}"
            ) from None
        except (LookupError, ValueError, AttributeError) as error:
            raise click.UsageError(f"{where}: --key {template!r} can't be filled: {error!r}") from None
        yield BulkItem(instance, key=key, **rest)


def _chunks(items: Iterator[BulkItem]) -> Iterator[list[BulkItem]]:
    chunk: list[BulkItem] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
