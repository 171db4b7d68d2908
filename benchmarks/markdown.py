"""A saved run as Markdown tables, to be pasted: figures are never typed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.columns import EXTRAS, shown, times
from benchmarks.registry import ENTRIES, OWN
from benchmarks.samples import Line
from benchmarks.saved import Saved

WIDTH = 140
"""Characters of a row, about; a table that would be wider is cut into several."""
COSTS = ("wal_bytes", "commits", "client_ms", "server_ms")
PLAIN = ("plain", "share")
ORDER = [entry.name for entry in ENTRIES]


def tables(run: Saved) -> str:
    """Side by side where several engines were measured, then what goes with it, then what is gen_durable's alone."""
    shared = [line for line in run.lines if len(line.engines) > 1]
    alone = [line for line in run.lines if len(line.engines) == 1]
    parts = [f"{run.where()}:\n`{run.command}`.\nMedians; in brackets how many times better {OWN} is."]
    parts += ["\n".join(_side_by_side(part)) for part in _cut(shared)]
    parts += ["\n".join(_more(line)) for line in shared if _named(line)]
    if alone:
        parts.append("\n".join(_alone(alone)))
    return "\n\n".join(parts) + "\n"


def _named(line: Line) -> tuple[str, ...]:
    """What has columns of its own: costs, those of one worker process standing for all, or the rate of plain jobs."""
    by_one = not line.measure.key.rsplit(".", 1)[-1].isdigit()
    rows = line.engines.values()
    if any("server_ms" in row for row in rows):
        return COSTS if by_one else ()
    return PLAIN if any("plain" in row for row in rows) else ()


def _cut(lines: list[Line]) -> Iterator[list[Line]]:
    """So many measures that their table is not too wide."""
    part: list[Line] = []
    for line in lines:
        if part and sum(map(_width, [*part, line])) > WIDTH - 20:
            yield part
            part = []
        part.append(line)
    if part:
        yield part


def _width(line: Line) -> int:
    return 3 + max(len(_heading(line)), *(len(_cell(line, engine)) for engine in line.engines))


def _side_by_side(lines: list[Line]) -> Iterator[str]:
    yield from (f"- {line.measure.key}: {line.measure.title}" for line in lines)
    yield ""
    yield from _table(
        ["Engine", *map(_heading, lines)],
        [
            [_bold(engine), *(_cell(line, engine) if engine in line.engines else "–" for line in lines)]
            for engine in _ordered({engine for line in lines for engine in line.engines})
        ],
    )


def _heading(line: Line) -> str:
    p99 = " / p99" if any("p99" in row for row in line.engines.values()) else ""
    return f"{line.measure.key}, {line.measure.unit}{p99}"


def _cell(line: Line, engine: str) -> str:
    row = line.engines[engine]
    p99 = f" / {shown(row['p99'])}" if "p99" in row else ""
    ratio = f" ({times(line.ratios[engine])})" if engine in line.ratios else ""
    return shown(row["median"]) + p99 + ratio


def _more(line: Line) -> Iterator[str]:
    named = _named(line)
    names = [(name, heading) for name, heading in EXTRAS if name in named]
    unit = line.measure.unit.split("/")[0].removesuffix("s")
    yield f"{line.measure.key}, {f'for each {unit}' if named == COSTS else 'beside plain jobs'}:"
    yield ""
    head = ["Engine", *(heading for _, heading in names), line.measure.unit, "least to most", "n"]
    rows = []
    for engine in _ordered(set(line.engines)):
        row = line.engines[engine]
        costs = [shown(row[name]) if name in row else "–" for name, _ in names]
        rows.append([_bold(engine), *costs, shown(row["median"]), _spread(row), shown(row["n"])])
    yield from _table(head, rows)


def _alone(lines: list[Line]) -> Iterator[str]:
    rows = []
    for line in lines:
        (engine,) = line.engines
        row = line.engines[engine]
        spread = _spread(row) if row["reps"] > 1 else "once"
        others = "; ".join(f"{heading} {shown(row[name])}" for name, heading in EXTRAS if name in row)
        title = line.measure.title if engine == OWN else f"{line.measure.title} ({engine})"
        rows.append([f"{line.measure.key}: {title}", f"{shown(row['median'])} {line.measure.unit}", spread, others])
    yield from _table(["Workload", "Median", "Least to most", ""], rows)


def _spread(row: dict[str, Any]) -> str:
    return f"{shown(row['min'])} to {shown(row['max'])}"


def _ordered(engines: set[str]) -> list[str]:
    """gen_durable first, then as they are registered."""
    known = [name for name in ORDER if name in engines]
    return known + sorted(engines.difference(known))


def _bold(engine: str) -> str:
    return f"**{engine}**" if engine == OWN else engine


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield f"| {' | '.join(row)} |"
