"""What the tests that kill worker processes share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Chaos
from proxy import Proxy


@pytest.fixture
def chaos(database_url: str, migrated: str, tmp_path: Path) -> Iterator[Chaos]:
    """Worker processes on the test's schema; those that still live are killed at the end, by pid."""
    started = Chaos(database_url, migrated, tmp_path)
    yield started
    started.close()


@pytest.fixture
def proxy(database_url: str) -> Iterator[Proxy]:
    """A proxy in front of the database."""
    with Proxy(database_url) as running:
        yield running
