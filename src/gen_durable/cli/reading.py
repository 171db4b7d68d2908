"""``gen-durable show``, ``list`` and ``workers``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import rich_click as click

from gen_durable.cli._options import (
    database_options,
    debug_option,
    json_option,
    key_option,
    open_client,
    run,
    target_of,
)
from gen_durable.cli._output import as_text, pairs, table, when, write_json
from gen_durable.cli.queues import STATUSES

if TYPE_CHECKING:
    from gen_durable import Snapshot, Transition

__all__ = ["list_", "show", "workers"]


@click.command
@click.argument("target", help="An id (a number) or a key.")
@key_option
@click.option("--history", is_flag=True, help="Show its transitions too.")
@database_options
@json_option
@debug_option
def show(target: str, is_key: bool, history: bool, database_url: str | None, schema: str, as_json: bool) -> None:
    """Show one instance: where it is, its state, its result or error."""
    run(_show(target_of(target, is_key), history, database_url, schema, as_json))


async def _show(target: int | str, history: bool, url: str | None, schema: str, as_json: bool) -> None:
    async with open_client(url, schema) as engine:
        found = await engine.get(target)
        transitions = await engine.history(found.id) if history else None
    if as_json:
        write_json(asdict(found) | ({} if transitions is None else {"history": transitions}))
        return
    pairs(_described(found))
    if transitions is not None:
        click.echo()
        table(
            ("seq", "step", "attempt", "outcome", "at", "took", "worker", "error"),
            [_transition(transition) for transition in transitions],
            empty="there is no history",
        )


def _described(found: Snapshot) -> dict[str, Any]:
    parked = _waits_for(found) is not None
    return {
        "id": found.id,
        "key": found.key,
        "machine": f"{found.machine} (version {found.version})",
        "queue": found.queue,
        "status": found.status,
        "step": found.step,
        "attempt": found.attempt or None,
        "crashes": found.crashes or None,
        "priority": found.priority or None,
        "parent": found.parent_id,
        "worker": found.worker,
        "waits for": _waits_for(found),
        "deadline" if parked else "due": when(found.due_at),
        "inserted": when(found.inserted_at),
        "updated": when(found.updated_at),
        "finished": when(found.finished_at),
        "state": as_text(found.state),
        "result": None if found.result is None else as_text(found.result),
        "error": _error(found.error, full=True),
    }


def _waits_for(found: Snapshot) -> str | None:
    if found.awaits is not None:
        return ", ".join(found.awaits)
    if found.children_left is not None:
        return "1 child" if found.children_left == 1 else f"{found.children_left} children"
    return None


def _error(error: dict[str, Any] | None, *, full: bool = False) -> str | None:
    if not error:
        return None
    trace = error.get("traceback") if full else None
    return str(trace).strip() if trace else f"{error.get('type')}: {error.get('message')}"


def _transition(transition: Transition) -> list[Any]:
    took = None if transition.took is None else f"{transition.took:.3f}s"
    return [
        transition.seq,
        transition.step,
        transition.attempt,
        transition.outcome,
        when(transition.at),
        took,
        transition.worker,
        _error(transition.error),
    ]


@click.command("list")
@click.option("--machine", help="Only instances of this machine or job.")
@click.option("--status", type=click.Choice(STATUSES), multiple=True, help="Only with this status; may be repeated.")
@click.option("--queue", help="Only in this queue.")
@click.option("--key-prefix", help="Only those whose key begins so.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="How many at most.")
@click.option("--after", type=int, help="Go on after this id: the `next` of the page before.")
@database_options
@json_option
@debug_option
def list_(database_url: str | None, schema: str, as_json: bool, status: tuple[str, ...], **filters: Any) -> None:
    """List instances, newest first, a page at a time."""
    run(_list(database_url, schema, as_json, {**filters, "status": status or None}))


async def _list(url: str | None, schema: str, as_json: bool, filters: dict[str, Any]) -> None:
    async with open_client(url, schema) as engine:
        page = await engine.list(**filters)
    if as_json:
        write_json(page)
        return
    table(
        ("id", "key", "machine", "queue", "status", "step", "attempt", "waits for", "due", "finished", "parent"),
        [_listed(found) for found in page.items],
        empty="no instance fits",
    )
    if page.next is not None:
        click.echo(f"There are more: --after {page.next}", err=True)


def _listed(found: Snapshot) -> list[Any]:
    return [
        found.id,
        found.key,
        found.machine,
        found.queue,
        found.status,
        found.step,
        found.attempt,
        _waits_for(found),
        when(found.due_at),  # of one that waits: its deadline
        when(found.finished_at),
        found.parent_id,
    ]


@click.command
@database_options
@json_option
@debug_option
def workers(database_url: str | None, schema: str, as_json: bool) -> None:
    """List the worker processes that are registered."""
    run(_workers(database_url, schema, as_json))


async def _workers(url: str | None, schema: str, as_json: bool) -> None:
    async with open_client(url, schema) as engine:
        found = await engine.workers()
    if as_json:
        write_json({"workers": found})
        return
    table(
        ("id", "name", "host", "pid", "queues", "started", "silent"),
        [
            [
                worker.id,
                worker.name,
                worker.host,
                worker.pid,
                ",".join(f"{name}={size}" for name, size in worker.queues.items()),
                when(worker.started_at),
                f"{worker.silent:.1f}s",
            ]
            for worker in found
        ],
        empty="no worker is registered",
    )
