"""The tables that a person reads: of a run, and of a saved one (``python -m benchmarks.report NAME --markdown``)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks import markdown, saved
from benchmarks.columns import EXTRAS, shown
from benchmarks.registry import NOT_PEERS, OWN
from benchmarks.samples import Line, Results

WIDTH = 106


def show(results: Results | list[Line], console: Console) -> None:
    """One table per measure; ``ratio`` says how many times better gen_durable is by medians.

    WAL, commits and CPU time are per job, per step or per row.
    """
    for line in results.lines() if isinstance(results, Results) else results:
        measure = line.measure
        extras = [column for column in EXTRAS if any(column[0] in summary for summary in line.engines.values())]
        table = Table(title=f"{measure.key}  {measure.title}", title_justify="left", box=SIMPLE_HEAD)
        table.add_column("engine")
        for heading in (measure.unit, "min – max", "n", "ratio"):
            table.add_column(heading, justify="right", no_wrap=True)
        for _, heading in extras:
            table.add_column(heading, justify="right", no_wrap=True)
        for engine, summary in line.engines.items():
            ratio = f"{line.ratios[engine]:.2f} ×" if engine in line.ratios else ""
            table.add_row(
                engine,
                shown(summary["median"]),
                f"{shown(summary['min'])} – {shown(summary['max'])}",
                shown(summary["n"]),
                ratio,
                *[shown(summary[name]) if name in summary else "" for name, _ in extras],
                style="bold" if engine == OWN else "dim" if engine in NOT_PEERS else None,
            )
        console.print(table)


def main(argv: Sequence[str] | None = None) -> int:
    """Show a saved run; 2 when there is no such run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description="Show a saved run.")
    parser.add_argument("name", nargs="?", default=saved.LATEST, help=f"as given to --save (default: {saved.LATEST})")
    parser.add_argument("--markdown", action="store_true", help="tables to paste into PERFORMANCE.md")
    arguments = parser.parse_args(argv)
    try:
        run = saved.load(arguments.name)
    except (saved.NotSaved, ValueError) as error:
        parser.error(str(error))
    if arguments.markdown:
        print(markdown.tables(run), end="")
        return 0
    console = Console()
    console.width = max(console.width, WIDTH)
    console.print(run.where(), markup=False, highlight=False)
    show(run.lines, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
