"""The table that a person reads."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.registry import NOT_PEERS, OWN
from benchmarks.samples import Results

WIDTH = 106
COLUMNS = (
    ("wal_bytes", "WAL B"),
    ("commits", "commits"),
    ("client_ms", "client ms"),
    ("server_ms", "server ms"),
    ("p99", "p99 ms"),
    ("plain", "plain"),
    ("share", "share"),
    ("alone", "alone ms"),
    ("written", "rewritten"),
)


def show(results: Results, console: Console) -> None:
    """One table per measure; ``ratio`` says how many times better gen_durable is by medians.

    WAL, commits and CPU time are per job, per step or per row.
    """
    for key in sorted(results.measures):
        measure = results.measures[key]
        ratios = results.ratios(key)
        summaries = {engine: results.summary(key, engine) for engine in results.engines(key)}
        extras = [column for column in COLUMNS if any(column[0] in summary for summary in summaries.values())]
        table = Table(title=f"{key}  {measure.title}", title_justify="left", box=SIMPLE_HEAD)
        table.add_column("engine")
        for heading in (measure.unit, "min – max", "n", "ratio"):
            table.add_column(heading, justify="right", no_wrap=True)
        for _, heading in extras:
            table.add_column(heading, justify="right", no_wrap=True)
        for engine, summary in summaries.items():
            ratio = f"{ratios[engine]:.2f} ×" if engine in ratios else ""
            table.add_row(
                engine,
                _number(summary["median"]),
                f"{_number(summary['min'])} – {_number(summary['max'])}",
                _number(summary["n"]),
                ratio,
                *[_number(summary[name]) if name in summary else "" for name, _ in extras],
                style="bold" if engine == OWN else "dim" if engine in NOT_PEERS else None,
            )
        console.print(table)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
