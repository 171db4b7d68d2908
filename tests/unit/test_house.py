"""Rules of the house that no other tool checks."""

from __future__ import annotations

import re
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "gen_durable"
WALL_CLOCK = re.compile(r"\b(time\.time\(|datetime\.now\(|datetime\.utcnow\(|date\.today\()")


def test_the_engine_never_asks_a_clock_of_its_own() -> None:
    """R6: delays, leases and deadlines come from the database's clock; Python measures durations only."""
    places = [
        f"{path.relative_to(SOURCE)}: {line.strip()}"
        for path in SOURCE.rglob("*.py")
        if "embedded" not in path.parts and "cli" not in path.parts
        for line in path.read_text().splitlines()
        if WALL_CLOCK.search(line)
    ]
    assert [place for place in places if "like datetime.now(UTC)" not in place] == []
