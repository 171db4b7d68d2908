"""``gen-durable queues``."""

from __future__ import annotations

from typing import Any

import rich_click as click

from gen_durable.cli._options import database_options, debug_option, json_option, open_client, run
from gen_durable.cli._output import table, write_json

__all__ = ["STATUSES", "queues"]

STATUSES = ("runnable", "executing", "awaiting_signal", "awaiting_children", "blocked", "done", "failed", "cancelled")
EMPTY = "there are no queues yet: a queue is known when an engine that names it has been started"


@click.group(invoke_without_command=True)
@database_options
@json_option
@debug_option
@click.pass_context
def queues(ctx: click.Context, database_url: str | None, schema: str, as_json: bool) -> None:
    """Show the queues, whether they are paused and how many instances each has, or pause and resume one."""
    if ctx.invoked_subcommand is not None:
        ctx.default_map = {ctx.invoked_subcommand: {"database_url": database_url, "schema": schema}}
    else:
        run(_counts(database_url, schema, as_json))


async def _counts(database_url: str | None, schema: str, as_json: bool) -> None:
    async with open_client(database_url, schema) as engine:
        known = sorted(await engine.queues(), key=lambda queue: queue.name)
        counts = await engine.counts()
    counts.sort(key=lambda count: (count.queue, count.machine, count.version, STATUSES.index(count.status)))
    if as_json:
        write_json({"queues": known, "counts": counts})
        return
    lines: dict[tuple[str, str, int], dict[str, int]] = {}
    for count in counts:
        lines.setdefault((count.queue, count.machine, count.version), {})[count.status] = count.count
    used = [name for name in STATUSES if any(line.get(name) for line in lines.values())]
    paused = {queue.name: "yes" if queue.paused else "no" for queue in known}
    rows: list[list[Any]] = [
        [queue, paused.get(queue, "no"), machine, version, *(line.get(name, 0) for name in used)]
        for (queue, machine, version), line in lines.items()
    ]
    filled = {queue for queue, _, _ in lines}
    rows += [[name, mark, "-", "-", *(0 for _ in used)] for name, mark in paused.items() if name not in filled]
    table(("queue", "paused", "machine", "version", *used), sorted(rows, key=lambda row: str(row[0])), empty=EMPTY)


@queues.command
@click.argument("name", help="The queue.")
@database_options
@debug_option
def pause(name: str, database_url: str | None, schema: str) -> None:
    """Stop claims from a queue in the whole cluster; steps that run go on to their end."""
    run(_set_paused(name, database_url, schema, True))
    click.echo(f"{name}: paused")


@queues.command
@click.argument("name", help="The queue.")
@database_options
@debug_option
def resume(name: str, database_url: str | None, schema: str) -> None:
    """Let a paused queue go on."""
    run(_set_paused(name, database_url, schema, False))
    click.echo(f"{name}: runs")


async def _set_paused(name: str, database_url: str | None, schema: str, paused: bool) -> None:
    async with open_client(database_url, schema) as engine:
        await (engine.pause_queue(name) if paused else engine.resume_queue(name))
