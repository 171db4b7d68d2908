"""Where PostgreSQL's own client programs are."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from gen_durable import embedded
from gen_durable.errors import EmbeddedError


def find(name: str) -> Path | None:
    """The program of that name: beside the throw-away server's, on the PATH, in the newest of Debian's folders."""
    for folder in _folders():
        path = folder / name
        if path.is_file() and os.access(path, os.X_OK):
            return path
    found = shutil.which(name)
    return Path(found) if found else None


def _folders() -> Iterator[Path]:
    with suppress(EmbeddedError):  # a run on somebody's server needs no programs of a server
        yield embedded.find_binaries()
    yield from sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_version, reverse=True)


def _version(folder: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", folder.parent.name)]
