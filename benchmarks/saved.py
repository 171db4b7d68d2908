"""What runs have measured, kept as JSON in ``benchmarks/results``."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.samples import Line, Measure, Results

HOME = Path(__file__).resolve().parent / "results"
LATEST = "latest"
"""The name that a run saves under when it is given none; git ignores it."""


class NotSaved(Exception):
    """There is no such result; the message names those that there are."""


@dataclass(frozen=True)
class Saved:
    """One saved run: what was measured, and where."""

    name: str
    date: str
    server: str
    python: str
    cpus: int
    command: str
    lines: list[Line]

    def where(self) -> str:
        """The conditions in one line."""
        cores = "1 core" if self.cpus == 1 else f"{self.cpus} cores"
        return f"{self.date[:10]}, {self.server}, Python {self.python}, {cores}"


def checked(name: str) -> str:
    """The name, if a file can be called so; ``ValueError`` otherwise."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ValueError(f"{name!r} is no name of a result: take letters, digits, dots, dashes and underscores")
    return name


def path_of(name: str) -> Path:
    return HOME / f"{checked(name)}.json"


def save(name: str, results: Results, argv: Sequence[str]) -> Path:
    """Write a run's summaries; the file."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    content = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "server": results.server,
        "python": platform.python_version(),
        "cpus": cores,
        "command": " ".join(["python -m benchmarks", *_public(argv)]),
        "measures": {line.measure.key: _line_out(line) for line in results.lines()},
    }
    path = path_of(name)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def load(name: str) -> Saved:
    """A saved run; raises ``NotSaved``."""
    path = path_of(name)
    if not path.exists():
        have = ", ".join(sorted(file.stem for file in HOME.glob("*.json"))) or "none"
        raise NotSaved(f"no result is saved as {name!r}: there are {have}; a run saves one with --save {name}")
    content = json.loads(path.read_text())
    lines = [_line_in(key, measure) for key, measure in content["measures"].items()]
    about = {key: content[key] for key in ("date", "server", "python", "cpus", "command")}
    return Saved(name=name, lines=lines, **about)


def _line_out(line: Line) -> dict[str, Any]:
    measure = line.measure
    return {
        "title": measure.title,
        "unit": measure.unit,
        "lower_is_better": measure.lower_is_better,
        "engines": line.engines,
        "ratio": line.ratios,
    }


def _line_in(key: str, content: dict[str, Any]) -> Line:
    measure = Measure(key, content["title"], content["unit"], content["lower_is_better"])
    return Line(measure, content["engines"], content["ratio"])


def _public(argv: Sequence[str]) -> list[str]:
    """The arguments without the server's URL, which may hold a password."""
    kept: list[str] = []
    for before, argument in zip(["", *argv], argv, strict=False):
        if argument.startswith("--url") or before == "--url":
            continue
        kept.append(argument)
    return kept
