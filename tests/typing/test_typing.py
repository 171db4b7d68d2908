"""What type checkers say of code that uses the package: both of them, run for real on a few lines."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FILES = ("shop.py", "accepted.py", "refused.py")
MARK = re.compile(r"# expect-error: \w")


def expected() -> dict[str, set[int]]:
    return {
        name: {n for n, line in enumerate((HERE / name).read_text("utf-8").splitlines(), 1) if MARK.search(line)}
        for name in FILES
    }


def mypy(folder: Path) -> list[tuple[str, int, str]]:
    command = [sys.executable, "-m", "mypy", "--strict", "--no-color-output", "--no-error-summary"]
    command += ["--config-file=", "--python-version", "3.11", "--cache-dir", str(folder), *FILES]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr + done.stdout
    found = re.findall(r"^(\w+\.py):(\d+): error: (.*)$", done.stdout, re.MULTILINE)
    return [(name, int(line), message) for name, line, message in found]


def pyright(folder: Path) -> list[tuple[str, int, str]]:
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, *FILES]
    quiet = os.environ | {"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    done = subprocess.run(command, cwd=HERE, env=quiet, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr + done.stdout
    found = json.loads(done.stdout[done.stdout.index("{") :])["generalDiagnostics"]
    return [
        (Path(one["file"]).name, one["range"]["start"]["line"] + 1, one["message"])
        for one in found
        if one["severity"] == "error"
    ]


@pytest.mark.parametrize("checker", [mypy, pyright])
def test_type_checkers_refuse_what_is_wrong_and_nothing_else(checker: object, tmp_path: Path) -> None:
    """Section 2: ``insert`` and ``bind`` are typed like the class and the function themselves."""
    found = checker(tmp_path)  # type: ignore[operator]
    lines: dict[str, set[int]] = {name: set() for name in FILES}
    for name, line, _ in found:
        lines[name].add(line)
    assert lines == expected(), "\n".join(f"{name}:{line}: {message}" for name, line, message in found)
    assert len(expected()["refused.py"]) > 20
