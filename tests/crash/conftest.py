"""What the tests that kill worker processes share."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Chaos, Server
from proxy import Proxy

from gen_durable import embedded


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


@pytest.fixture
def server() -> Iterator[Server]:
    """A server of the test's own, which it may crash."""
    folder = Path(tempfile.mkdtemp(prefix="gd-crash-"))
    folder.chmod(0o711)  # the server may run as another user
    try:
        yield Server(folder / "pg")
    finally:
        embedded.stop(folder / "pg")
        shutil.rmtree(folder)
