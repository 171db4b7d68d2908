"""``gen-durable schedule``."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import rich_click as click

from gen_durable.cli._options import database_options, debug_option, json_option, moment, open_client, run
from gen_durable.cli._output import table, when, write_json
from gen_durable.errors import NoSuchSchedule

if TYPE_CHECKING:
    from gen_durable import ScheduleInfo

__all__ = ["schedule"]

EMPTY = "there are no schedules: name them in schedules= of an engine, or call engine.schedule(...)"

name_argument = click.argument("name", help="The schedule.")


@click.group
def schedule() -> None:
    """Show the schedules, pause, resume and remove them, and start occurrences by hand."""


@schedule.command("list")
@database_options
@json_option
@debug_option
def list_(database_url: str | None, schema: str, as_json: bool) -> None:
    """List the schedules, with the last and the next time of each."""
    run(_list(database_url, schema, as_json))


async def _list(url: str | None, schema: str, as_json: bool) -> None:
    async with open_client(url, schema) as engine:
        found = await engine.schedules()
    if as_json:
        write_json({"schedules": found})
        return
    table(
        ("name", "times", "tz", "catch-up", "machine", "queue", "last", "next"),
        [
            [
                one.name,
                one.cron or _interval(one.every),
                one.tz,
                one.catch_up,
                one.machine,
                one.queue,
                when(one.last_at) or "-",
                _next(one),
            ]
            for one in found
        ],
        empty=EMPTY,
    )


def _interval(every: timedelta | None) -> str:
    return "" if every is None else f"every {every.total_seconds():g}s"


def _next(one: ScheduleInfo) -> str:
    return "paused" if one.paused else when(one.next_at) or "never"


@schedule.command
@name_argument
@database_options
@debug_option
def pause(name: str, database_url: str | None, schema: str) -> None:
    """Start no more occurrences until it is resumed; those in between are left out."""
    run(_steer(name, database_url, schema, "pause_schedule"))
    click.echo(f"{name}: paused")


@schedule.command
@name_argument
@database_options
@debug_option
def resume(name: str, database_url: str | None, schema: str) -> None:
    """Let a paused schedule go on with its next occurrence."""
    run(_steer(name, database_url, schema, "resume_schedule"))
    click.echo(f"{name}: runs")


@schedule.command
@name_argument
@database_options
@debug_option
def remove(name: str, database_url: str | None, schema: str) -> None:
    """Remove a schedule; a program that names it in schedules= makes it again when it starts."""
    if not run(_steer(name, database_url, schema, "unschedule")):
        raise NoSuchSchedule(name)
    click.echo(f"{name}: removed")


@schedule.command
@name_argument
@database_options
@json_option
@debug_option
def trigger(name: str, database_url: str | None, schema: str, as_json: bool) -> None:
    """Start an instance now, besides the schedule's times; prints its id."""
    handle = run(_steer(name, database_url, schema, "trigger_schedule"))
    if as_json:
        write_json({"id": handle.id, "machine": handle.machine, "schedule": name})
    else:
        click.echo(handle.id)


async def _steer(name: str, url: str | None, schema: str, call: str) -> Any:
    async with open_client(url, schema) as engine:
        return await getattr(engine, call)(name)


@schedule.command
@name_argument
@click.option("--since", required=True, help="Where the span begins: an ISO 8601 time with its offset.")
@click.option("--until", required=True, help="Where it ends; an occurrence at that very time is not in it.")
@click.option("--priority", type=int, help="Another than the schedule's: -32768 to 32767, lower first.")
@database_options
@json_option
@debug_option
def backfill(
    name: str, since: str, until: str, priority: int | None, database_url: str | None, schema: str, as_json: bool
) -> None:
    """Start the occurrences of a past span that were not started yet; prints how many."""
    span = moment("--since", since), moment("--until", until)
    count = run(_backfill(name, *span, priority, database_url, schema))
    if as_json:
        write_json({"schedule": name, "started": count})
    else:
        click.echo(f"{name}: {count} started")


async def _backfill(name: str, since: Any, until: Any, priority: int | None, url: str | None, schema: str) -> int:
    async with open_client(url, schema) as engine:
        return await engine.backfill_schedule(name, since, until, priority=priority)
