"""The floor that pgbench runs: which program, which part of its log, what a worker reports."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks import envs, floor_pgbench, programs, registry  # noqa: E402
from benchmarks.board import Board  # noqa: E402


def test_floor_without_pgbench_is_skipped_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "find", lambda name: None)
    with pytest.raises(envs.Unavailable, match="floor_pgbench needs pgbench"):
        envs.python_for(registry.find("floor_pgbench"))


def test_program_is_found_beside_the_server_or_not_at_all() -> None:
    found = programs.find("postgres")
    assert found is not None
    assert found.name == "postgres"
    assert programs.find("no_such_program") is None


def test_clock_starts_with_the_first_transaction_of_the_log() -> None:
    now = time.time()
    ended = now - 5
    line = f"0 1 250000 0 {int(ended)} {int(ended % 1 * 1e6)}\n0 2 1000 0 {int(ended) + 1} 0\n"
    assert floor_pgbench.started(line) == pytest.approx(time.monotonic() - 5.25, abs=0.05)


def test_reported_bodies_count_and_stamp_the_first(tmp_path: Path) -> None:
    board = Board(tmp_path / "board", 1)
    board.report(500, 12.5)
    assert (Board(tmp_path / "board").hits(), Board(tmp_path / "board").first()) == (500, 12.5)


def test_cycle_has_no_parameter_of_python_left() -> None:
    assert "%" not in floor_pgbench.CYCLE
    assert ":batch" in floor_pgbench.CYCLE
