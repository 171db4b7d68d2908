"""What commands write: JSON, tables on a terminal, plain columns elsewhere."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import rich_click as click

__all__ = ["as_text", "pairs", "progress", "table", "when", "write_json"]

STYLES = {"done": "green", "failed": "red", "cancelled": "yellow", "executing": "cyan", "crashed": "red"}


def write_json(document: Any) -> None:
    """One JSON document, indented; dataclasses by their fields, times in ISO 8601."""
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(document), indent=2))


def as_text(value: Any) -> str:
    """A value as JSON for people: on one line while it is short."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else json.dumps(value, ensure_ascii=False, indent=2)


def table(headers: Sequence[str], rows: Sequence[Sequence[Any]], *, empty: str) -> None:
    """A table: framed on a terminal, else columns with nothing cut off. ``empty`` is said when there is no row."""
    cells = [["" if value is None else str(value) for value in row] for row in rows]
    if not cells:
        click.echo(empty, err=not sys.stdout.isatty())
        return
    if not sys.stdout.isatty():
        _plain([[header.upper() for header in headers], *cells])
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(*headers, box=box.SIMPLE_HEAD, header_style="bold")
    for row in cells:
        drawn.add_row(*(Text(cell, style=STYLES.get(cell, "")) for cell in row))
    Console().print(drawn)


def _plain(rows: list[list[str]]) -> None:
    rows = [[cell.replace("\n", " ") for cell in row] for row in rows]
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def pairs(values: dict[str, Any]) -> None:
    """Names and values, one a line; those that are None are left out."""
    shown = {name: value for name, value in values.items() if value is not None}
    width = max((len(name) for name in shown), default=0)
    for name, value in shown.items():
        label = click.style(name.ljust(width), bold=True)  # click strips styles where there is no terminal
        text = str(value).replace("\n", "\n" + " " * (width + 2))
        click.echo(f"{label}  {click.style(text, fg=STYLES.get(text))}")


def when(moment: datetime | None) -> str | None:
    """A time for people: UTC, to the millisecond."""
    if moment is None:
        return None
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + "Z"


@contextlib.contextmanager
def progress(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr; gives a function that sets how many are done. Nothing where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)
