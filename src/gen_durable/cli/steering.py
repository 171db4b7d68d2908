"""``gen-durable signal``, ``wait``, ``cancel`` and ``retry``."""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import rich_click as click

from gen_durable.cli._options import (
    database_options,
    debug_option,
    json_option,
    key_option,
    open_client,
    run,
    seconds,
    target_of,
)
from gen_durable.cli._output import as_text, write_json
from gen_durable.errors import (
    DuplicateInstance,
    InstanceCancelled,
    InstanceFailed,
    InvalidArgument,
    NoSuchInstance,
    StillRunning,
)

if TYPE_CHECKING:
    from gen_durable import Engine

__all__ = ["cancel", "retry", "signal", "wait"]


@click.command
@click.argument("target", help="An id (a number) or a key.")
@click.argument("name", help="The name of the signal.")
@click.option("--payload", metavar="JSON|-", help="What is sent with it, as JSON; - reads stdin.")
@click.option("--dedup-key", help="The same one twice for one instance is one signal: for a call that is repeated.")
@key_option
@database_options
@json_option
@debug_option
def signal(
    target: str,
    name: str,
    payload: str | None,
    dedup_key: str | None,
    is_key: bool,
    database_url: str | None,
    schema: str,
    as_json: bool,
) -> None:
    """Send a signal to a live instance; it is in the inbox, durably, when this ends."""
    where, body = target_of(target, is_key), _payload(payload)
    fresh = run(_signal(where, name, body, dedup_key, database_url, schema))
    if as_json:
        write_json({"target": where, "name": name, "new": fresh})
    else:
        click.echo(f"{where}: {name} {'delivered' if fresh else 'was there already, by its dedup key'}")


def _payload(text: str | None) -> Any:
    try:
        return None if text is None else json.loads(sys.stdin.read() if text == "-" else text)
    except ValueError as error:
        raise click.UsageError(
            f"--payload can't be read: {error}; give JSON, a text in its own quotes: '\"yes\"'"
        ) from None


async def _signal(
    target: int | str, name: str, payload: Any, dedup_key: str | None, url: str | None, schema: str
) -> bool:
    async with open_client(url, schema) as engine:
        return await engine.signal(target, name, payload, dedup_key=dedup_key)


@click.command
@click.argument("target", help="An id (a number) or a key.")
@click.option("--timeout", type=seconds, metavar="SECONDS", help="How long at most, like 90 or 10m; else for ever.")
@key_option
@database_options
@json_option
@debug_option
def wait(
    target: str,
    timeout: float | None,
    is_key: bool,
    database_url: str | None,
    schema: str,
    as_json: bool,
) -> None:
    """Wait for the end of an instance and print its result, as JSON.

    Exit codes: 0 it is done; 4 it failed; 5 it was cancelled; 6 it has not ended within the timeout, and goes on.
    """
    run(_wait(target_of(target, is_key), timeout, database_url, schema, as_json))


async def _wait(target: int | str, timeout: float | None, url: str | None, schema: str, as_json: bool) -> None:
    async with open_client(url, schema) as engine:
        instance_id = (await engine.get(target)).id  # a key may mean another instance by the end
        try:
            result = await engine.result(instance_id, timeout)
        except (InstanceFailed, InstanceCancelled, StillRunning):
            if as_json:
                await _answer(engine, instance_id)
            raise
        if as_json:
            await _answer(engine, instance_id)
        else:
            click.echo(as_text(result))


async def _answer(engine: Engine, instance_id: int) -> None:
    found = await engine.get(instance_id)
    names = ("id", "key", "status", "result", "error")
    write_json({name: getattr(found, name) for name in names})


@click.command
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...", help="Ids (numbers) or keys.")
@click.option("--cascade", is_flag=True, help="Cancel what they have spawned too, and so on.")
@click.option("--reason", default="cancelled", show_default=True, help="Recorded as the error's message.")
@key_option
@database_options
@json_option
@debug_option
@click.pass_context
def cancel(
    ctx: click.Context,
    targets: tuple[str, ...],
    cascade: bool,
    reason: str,
    is_key: bool,
    database_url: str | None,
    schema: str,
    as_json: bool,
) -> None:
    """End instances as cancelled, whatever they do; a step that runs is stopped.

    One that has ended already stays as it is, and is no error.
    """
    if not reason:
        raise click.UsageError("--reason is empty: give a text, or leave it out")

    async def one(engine: Engine, target: int | str) -> str:
        live = await engine.cancel(target, cascade=cascade, reason=reason)
        return "cancelled" if live else "had ended already"

    ctx.exit(run(_each(one, targets, is_key, database_url, schema, as_json)))


@click.command
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...", help="Ids (numbers) or keys.")
@key_option
@database_options
@json_option
@debug_option
@click.pass_context
def retry(
    ctx: click.Context,
    targets: tuple[str, ...],
    is_key: bool,
    database_url: str | None,
    schema: str,
    as_json: bool,
) -> None:
    """Run failed or cancelled instances again, from the step at which they ended."""

    async def one(engine: Engine, target: int | str) -> str:
        await engine.retry(target)
        return "runs again"

    ctx.exit(run(_each(one, targets, is_key, database_url, schema, as_json)))


async def _each(
    work: Callable[[Engine, int | str], Awaitable[str]],
    targets: tuple[str, ...],
    is_key: bool,
    url: str | None,
    schema: str,
    as_json: bool,
) -> int:
    """Does it to each, also after one that is refused; 1 if any was."""
    answers: list[dict[str, Any]] = []
    async with open_client(url, schema) as engine:
        for target in (target_of(text, is_key) for text in targets):
            try:
                answers.append({"target": target, "answer": await work(engine, target), "error": None})
            except (NoSuchInstance, DuplicateInstance, InvalidArgument) as error:
                answers.append({"target": target, "answer": None, "error": str(error)})
            last = answers[-1]
            if not as_json:
                click.echo(f"{target}: {last['answer'] or last['error']}", err=last["answer"] is None)
    if as_json:
        write_json(answers)
    return 1 if any(answer["error"] for answer in answers) else 0
