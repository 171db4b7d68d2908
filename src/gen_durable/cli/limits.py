"""``gen-durable limits`` and ``why``."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
from gen_durable.cli._output import pairs, table, write_json

if TYPE_CHECKING:
    from gen_durable import LimitInfo, LimitRef, Rate, Why

__all__ = ["limits", "why"]

EMPTY = "there are no limits: name them in concurrency_limits=, rate_limits= or queue_limits= of an engine, or set one"
MOST = 10_000  # counts end there


def _number(value: str) -> int:
    """A whole number, or ``none`` (0) to take a limit away."""
    if value.lower() == "none":
        return 0
    if not value.isascii() or not value.isdigit() or int(value) < 1:
        raise click.BadParameter(f"{value!r}: give a whole number from 1, or none to take the limit away")
    return int(value)


@click.group(invoke_without_command=True)
@database_options
@json_option
@debug_option
@click.pass_context
def limits(ctx: click.Context, database_url: str | None, schema: str, as_json: bool) -> None:
    """Show the limits and how much of each is in use, or set one for the whole cluster."""
    if ctx.invoked_subcommand is not None:
        ctx.default_map = {ctx.invoked_subcommand: {"database_url": database_url, "schema": schema}}
    else:
        run(_list(database_url, schema, as_json))


async def _list(url: str | None, schema: str, as_json: bool) -> None:
    async with open_client(url, schema) as engine:
        found = await engine.limits()
    if as_json:
        write_json({"limits": found})
        return
    table(
        ("kind", "name", "limit", "burst", "lines", "holding", "waiting"),
        [
            [
                one.kind,
                one.name,
                _amount(one),
                "-" if one.burst is None else one.burst,
                "-" if one.kind == "queue" else one.lines,
                _count(one.holding),
                _count(one.waiting),
            ]
            for one in found
        ],
        empty=EMPTY,
    )


def _amount(one: LimitInfo | LimitRef) -> str:
    return f"{one.limit:g}" if one.per is None else f"{one.limit:g} in {one.per:g}s"


def _count(number: int | None) -> str | None:
    return f"{number}+" if number is not None and number >= MOST else None if number is None else str(number)


@limits.command("set")
@click.argument("name", help="The name of the key or the rate, without a partition; or the queue.")
@click.option("--concurrency", type=_number, metavar="N|none", help="How many instances of one key run at once.")
@click.option("--rate", type=float, metavar="N", help="How many tokens come in the time of --per.")
@click.option("--per", type=seconds, metavar="SECONDS", help="The seconds, like 60 or 10m; else 1.")
@click.option("--burst", type=int, metavar="N", help="How many tokens wait at most; else as many as --rate.")
@click.option(
    "--queue-cap", type=_number, metavar="N|none", help="How many steps of the queue run at once in the cluster."
)
@database_options
@debug_option
def set_(
    name: str,
    concurrency: int | None,
    rate: float | None,
    per: float | None,
    burst: int | None,
    queue_cap: int | None,
    database_url: str | None,
    schema: str,
) -> None:
    """Set a limit for the whole cluster, at once: also for what holds it or waits for it.

    Give one of --concurrency, --rate and --queue-cap. It stays over restarts of engines whose configuration says what
    it said before.
    """
    if sum(one is not None for one in (concurrency, rate, queue_cap)) != 1:
        raise click.UsageError("give one of --concurrency, --rate and --queue-cap")
    if rate is None and not (per is None and burst is None):
        raise click.UsageError("--per and --burst belong to --rate")
    limit: int | Rate | None = (concurrency or queue_cap) or None
    if rate is not None:
        from gen_durable import Rate

        limit = Rate(rate, 1.0 if per is None else per, burst)
    changed = run(_set(name, limit, queue_cap is not None, database_url, schema))
    done = "taken away" if limit is None else "set"
    click.echo(f"{name}: {done if changed else 'nothing to change'}")


async def _set(name: str, limit: int | Rate | None, queue: bool, url: str | None, schema: str) -> bool:
    async with open_client(url, schema) as engine:
        return await engine.set_limit(name, limit, queue=queue)


@click.command
@click.argument("target", help="An id (a number) or a key.")
@key_option
@database_options
@json_option
@debug_option
def why(target: str, is_key: bool, database_url: str | None, schema: str, as_json: bool) -> None:
    """Say why an instance does not run: a limit, a paused queue, no worker, what it waits for."""
    found = run(_why(target_of(target, is_key), database_url, schema))
    if as_json:
        write_json(found)
        return
    pairs(
        {
            "id": found.id,
            "status": found.status,
            "why": found.reason,
            "limit": None if found.limit is None else _described(found.limit),
            "holders": ", ".join(map(str, found.holders)) or None,
            "holding": _count(found.holding),
            "ahead": _count(found.ahead),
            "in": None if found.seconds is None else f"{found.seconds:.3g}s",
        }
    )


def _described(limit: LimitRef) -> str:
    partition = "" if limit.partition is None else f", partition {limit.partition}"
    return f"{limit.kind} {limit.name}{partition}: {_amount(limit)}"


async def _why(target: int | str, url: str | None, schema: str) -> Why:
    async with open_client(url, schema) as engine:
        return await engine.why(target)
