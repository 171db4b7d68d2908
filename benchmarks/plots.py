"""``python -m benchmarks.plots NAME``: plots of a saved run, beside it in ``benchmarks/results``.

They are drawn by ``benchmarks.draw``, in an environment of its own that has matplotlib.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import saved
from benchmarks.envs import ROOT, Unavailable, python_for
from benchmarks.registry import Entry

DRAWER = Entry(name="plots", module="benchmarks.draw", done="", left="", requirements=("matplotlib==3.11.2",))


def draw(name: str) -> list[Path]:
    """Draw all plots that the run has figures for; the files.

    Raises ``saved.NotSaved``, and ``Unavailable`` when matplotlib can't be installed or fails.
    """
    saved.load(name)
    argv = [str(python_for(DRAWER)), "-m", DRAWER.module, str(saved.path_of(name))]
    result = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode:
        raise Unavailable(f"plots of {name}: {result.stderr.strip()}")
    return [Path(line) for line in result.stdout.splitlines()]


def main(argv: Sequence[str] | None = None) -> int:
    """Draw; 1 when that fails, 2 when there is no such run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plots", description="Draw plots of a saved run.")
    parser.add_argument("name", nargs="?", default=saved.LATEST, help=f"as given to --save (default: {saved.LATEST})")
    arguments = parser.parse_args(argv)
    try:
        drawn = draw(arguments.name)
    except (saved.NotSaved, ValueError) as error:
        parser.error(str(error))
    except Unavailable as error:
        print(error, file=sys.stderr)
        return 1
    for path in drawn:
        print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
