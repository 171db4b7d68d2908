"""Draws the plots of one saved run: ``python -m benchmarks.draw RESULTS.json``, in the environment with matplotlib.

Bars for what several engines were measured in, one file per letter; lines for decay (``K``) and scale (``L``).
"""

from __future__ import annotations

import io
import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image

from benchmarks.columns import shown, times
from benchmarks.registry import FLOOR, FLOOR_PGBENCH, OWN

OWN_COLOR, PEER_COLOR, FLOOR_COLOR = "#1f6fb4", "#b3bec8", "#e3e7ea"
LINES = ("#1f6fb4", "#d1762c", "#3f8f5b", "#8a5fb0")
GREY = "#666666"
WIDE = 10.0
"""Values further apart than this many times are drawn on a logarithmic scale."""
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "figure.dpi": 110,
}

Measures = dict[str, dict[str, Any]]


def figures(run: dict[str, Any]) -> Iterator[tuple[str, Figure]]:
    """All figures that the run has values for, by the end of their files' names."""
    measures: Measures = run["measures"]
    for letter in sorted({key[0] for key in measures} - {"K", "L"}):
        shared = {key: m for key, m in measures.items() if key[0] == letter and len(m["engines"]) > 1}
        if shared:
            yield letter, _bars(shared)
    decay = {key: m for key, m in measures.items() if key[0] == "K" and OWN in m["engines"]}
    if decay:
        yield "K", _decay(decay)
    scale = {key: m for key, m in measures.items() if key[0] == "L" and OWN in m["engines"]}
    if len(scale) > 1:
        yield "L", _scale(scale)


def _bars(measures: Measures) -> Figure:
    columns = min(2, len(measures))
    rows = -(-len(measures) // columns)
    most = max(len(m["engines"]) for m in measures.values())
    figure, axes = plt.subplots(rows, columns, figsize=(5.6 * columns, rows * (1.0 + 0.27 * most)), squeeze=False)
    for ax in axes.flat[len(measures) :]:
        ax.set_visible(False)
    for ax, (key, measure) in zip(axes.flat, measures.items(), strict=False):
        _bar(ax, key, measure)
    return figure


def _bar(ax: Axes, key: str, measure: dict[str, Any]) -> None:
    """Engines from the best to the worst; whiskers from the least to the greatest value."""
    lower = measure["lower_is_better"]
    ranked = sorted(measure["engines"].items(), key=lambda item: item[1]["median"], reverse=lower)
    names = [name for name, _ in ranked]
    values = [row["median"] for _, row in ranked]
    spread = [[row["median"] - row["min"] for _, row in ranked], [row["max"] - row["median"] for _, row in ranked]]
    ax.barh(names, values, color=[_color(name) for name in names], height=0.7)
    ax.errorbar(values, names, xerr=spread, fmt="none", ecolor=GREY, elinewidth=0.8, capsize=2)
    wide = max(values) > WIDE * min(values) > 0
    top = max(row["max"] for _, row in ranked)
    if wide:
        ax.set_xscale("log")
        ax.set_xlim(min(row["min"] for _, row in ranked) / 2, top * 12)
    else:
        ax.set_xlim(0, top * 1.4)
        ax.xaxis.set_major_locator(MaxNLocator(6))
    for position, (name, row) in enumerate(ranked):
        text = shown(row["median"])
        if name in measure["ratio"]:
            text += f"  ({times(measure['ratio'][name])})"
        weight = "bold" if name == OWN else "normal"
        ax.annotate(text, (row["max"], position), xytext=(5, 0), textcoords="offset points", va="center", weight=weight)
    scale = ", logarithmic" if wide else ""
    ax.set_title(textwrap.fill(f"{key}: {measure['title']}", 60))
    ax.set_xlabel(f"{measure['unit']}{scale}; {'less' if lower else 'more'} is better", color=GREY)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: shown(value)))
    ax.tick_params(axis="y", length=0)
    for label in ax.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() == OWN else "normal")


def _color(name: str) -> str:
    return OWN_COLOR if name == OWN else FLOOR_COLOR if name in (FLOOR, FLOOR_PGBENCH) else PEER_COLOR


def _decay(measures: Measures) -> Figure:
    """The share of the rate that is left, by the number of rows that lie beside; dotted where statistics are bad."""
    series: dict[str, list[tuple[float, dict[str, Any]]]] = {}
    levels: dict[str, float] = {}
    for key, measure in measures.items():
        row = measure["engines"][OWN]
        _, kind, *rest = key.split(".")
        if kind == "stats":
            levels["stale statistics" if rest else "no statistics"] = row["median"]
        else:
            work = "chains" if "B" in rest else "jobs"
            series.setdefault(f"{kind} rows, {work}", []).append((row["n"], row))
    figure, ax = plt.subplots(figsize=(7.5, 3.8))
    none = {"median": 1.0, "min": 1.0, "max": 1.0}
    for number, (name, points) in enumerate(sorted(series.items())):
        points.sort(key=lambda point: point[0])
        dashes = "-" if name.endswith("jobs") else "--"
        xs, rows = [0.0, *(x for x, _ in points)], [none, *(row for _, row in points)]
        _line(ax, xs, rows, LINES[number // 2 % len(LINES)], name, dashes)
    for color, (name, value) in zip(LINES[::-1], levels.items(), strict=False):
        ax.axhline(value, color=color, linestyle=":", linewidth=1.4, label=f"{name}, jobs: {shown(value)}")
    ax.axhline(0.9, color=GREY, linewidth=0.7)
    highest = max([*levels.values(), *(row["max"] for points in series.values() for _, row in points)])
    ax.set_ylim(0, max(1.2, 1.05 * highest))
    ax.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 0.9, 1])
    ax.set_xlim(left=0)
    ax.set_xlabel("rows beside", color=GREY)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: shown(value)))
    ax.set_ylabel("share of the rate beside none", color=GREY)
    ax.set_title("K: what is left of the rate beside many rows")
    ax.legend(loc="lower right", frameon=False, fontsize=8, ncols=2)
    return figure


def _scale(measures: Measures) -> Figure:
    """The rate by the number of workers, ``L`` being one, beside as many times the rate of one."""
    points = sorted((int(key.partition(".")[2] or 1), m["engines"][OWN]) for key, m in measures.items())
    xs, rows = [float(workers) for workers, _ in points], [row for _, row in points]
    first = next(iter(measures.values()))
    linear = [rows[0]["median"] * x / xs[0] for x in xs]
    figure, ax = plt.subplots(figsize=(6.5, 3.8))
    ax.plot(xs, linear, color=GREY, linestyle="--", linewidth=0.9, label="linear")
    _line(ax, xs, rows, OWN_COLOR, OWN, "-")
    for x, row in zip(xs, rows, strict=True):
        share = f" ({shown(row['share'])})" if "share" in row else ""
        text = shown(row["median"]) + share
        ax.annotate(text, (x, row["median"]), xytext=(6, -10), textcoords="offset points")
    ax.set_xticks(xs)
    ax.set_xlim(0, max(xs) * 1.25)
    ax.set_ylim(0, max(linear) * 1.1)
    ax.set_xlabel("worker processes", color=GREY)
    ax.set_ylabel(first["unit"], color=GREY)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: shown(value)))
    ax.set_title("L: the rate by workers; in brackets the share of linear")
    ax.legend(loc="upper left", frameon=False)
    return figure


def _line(ax: Axes, xs: list[float], rows: list[dict[str, Any]], color: str, name: str, dashes: str) -> None:
    values = [row["median"] for row in rows]
    spread = [[row["median"] - row["min"] for row in rows], [row["max"] - row["median"] for row in rows]]
    ax.errorbar(
        xs,
        values,
        spread,
        color=color,
        linestyle=dashes,
        marker="o",
        markersize=4,
        linewidth=1.4,
        capsize=2,
        label=name,
    )


def _write(figure: Figure, path: Path) -> None:
    """As a PNG of few colours, a quarter of the size."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    Image.open(buffer).convert("RGB").quantize(64).save(path, optimize=True)


def main(argv: list[str]) -> None:
    """Draw all figures beside the file; their paths go to stdout, one a line."""
    source = Path(argv[0])
    run = json.loads(source.read_text())
    for old in source.parent.glob(f"{source.stem}-?.png"):
        old.unlink()
    cores = "1 core" if run["cpus"] == 1 else f"{run['cpus']} cores"
    foot = f"{run['date'][:10]}, {run['server']}, Python {run['python']}, {cores}"
    with plt.rc_context(STYLE):
        for letter, figure in figures(run):
            figure.tight_layout(rect=(0, 0.06, 1, 1))
            brackets = "" if letter in "KL" else f"\nIn brackets: how many times better {OWN} is"
            figure.text(0.01, 0.01, foot + brackets, fontsize=7, color=GREY)
            path = source.parent / f"{source.stem}-{letter}.png"
            _write(figure, path)
            plt.close(figure)
            print(path)


if __name__ == "__main__":
    main(sys.argv[1:])
