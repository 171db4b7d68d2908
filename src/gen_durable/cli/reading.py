"""``gen-durable show``, ``list`` and ``workers``."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import rich_click as click

from gen_durable.cli._options import database_options, debug_option, json_option, open_client, run
from gen_durable.cli._output import pairs, table, when, write_json
from gen_durable.cli.queues import STATUSES

if TYPE_CHECKING:
    from gen_durable import Snapshot, Transition

__all__ = ["list_", "show", "workers"]


@click.command
@click.argument("target", help="An id (a number) or a key.")
@click.option("--key", "is_key", is_flag=True, help="TARGET is a key, even if it looks like a number.")
@click.option("--history", is_flag=True, help="Show its transitions too.")
@database_options
@json_option
@debug_option
def show(target: str, is_key: bool, history: bool, database_url: str | None, schema: str, as_json: bool) -> None:
    """Show one instance: where it is, its state, its result or error."""
    number = target.isascii() and target.isdigit() and not is_key
    run(_show(int(target) if number else target, history, database_url, schema, as_json))


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
        "worker": found.worker,
        "due": when(found.due_at),
        "inserted": when(found.inserted_at),
        "updated": when(found.updated_at),
        "finished": when(found.finished_at),
        "state": _json(found.state),
        "result": None if found.result is None else _json(found.result),
        "error": _error(found.error, full=True),
    }


def _json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else json.dumps(value, ensure_ascii=False, indent=2)


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
        ("id", "key", "machine", "queue", "status", "step", "attempt", "due", "finished"),
        [
            [i.id, i.key, i.machine, i.queue, i.status, i.step, i.attempt, when(i.due_at), when(i.finished_at)]
            for i in page.items
        ],
        empty="no instance fits",
    )
    if page.next is not None:
        click.echo(f"There are more: --after {page.next}", err=True)


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
