"""The examples, each as the process that a reader starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(database_url: str, schema: str) -> object:
    def start(name: str, *args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", f"examples.{name}", "--schema", schema, *args],
            cwd=ROOT,
            env={**os.environ, "GEN_DURABLE_DATABASE_URL": database_url},
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )

    return start


def test_approval_reminds_escalates_and_takes_answers_from_outside(run) -> None:  # type: ignore[no-untyped-def]
    """R10, R12, R14: an answer that comes while no worker runs, reminders by timeout, the boss, nobody."""
    done = run("approval")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    ended = [line for line in done.stdout.splitlines() if line.startswith("ok ")]
    assert [line.split(":")[1].split(";")[0].strip() for line in ended] == [
        "approved by ann",
        "approved by ann",
        "bob refused",
        "nobody answered",
    ]
    assert "answer delivered" in done.stdout


def test_wordcount_gathers_what_its_children_counted(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """R15: children in the order given, nested, one of them failed and reported."""
    done = run("wordcount")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not read: songs/scan.txt: UnicodeDecodeError" in done.stdout
    assert "ok: a plain loop finds the same" in done.stdout
    (tmp_path / "empty").mkdir()
    for number in range(30):
        (tmp_path / f"{number}.txt").write_text("one two two\n" * number)
    done = run("wordcount", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{3 * sum(range(30))} words, 2 of them different, in 30 files" in done.stdout
    assert run("wordcount", "no such folder").returncode == 2


def test_nightly_starts_each_occurrence_once(run) -> None:  # type: ignore[no-untyped-def]
    """R18: two workers, a week of nights with a change of the clocks, a line of seconds; and all of it again."""
    for _ in range(2):
        done = run("nightly")
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stderr == ""
        assert done.stdout.count("report of 2025-0") == 7
        assert done.stdout.count("ok ") == 2
