"""A PostgreSQL server for development and tests, from a package's or the system's programs.

::

    url = embedded.start()                  # ./.gen_durable/postgres: found, or started, or made and started
    embedded.stop()                         # it outlives its starter: somebody has to end it

    with embedded.temporary() as url:       # a throw-away one: gone at the end, even after kill -9
        ...

One server per folder, shared by every process that asks for it. It listens on 127.0.0.1 and asks for a
random password that lies in the folder, readable by its owner only: a superuser may run programs as the
server's user, so other users of the machine must not get in. It is a real server with fsync on, but meant
for development; for production give a URL.

Raises :class:`~gen_durable.errors.EmbeddedError` for everything that goes wrong. POSIX only.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from gen_durable.errors import EmbeddedError

from . import _server
from ._binaries import find_binaries
from ._folder import POLL, Folder

__all__ = ["Status", "find_binaries", "start", "status", "stop", "temporary"]

DEFAULT_PATH = Path(".gen_durable/postgres")
START_TIMEOUT = 60.0
STOP_TIMEOUT = 30.0


@dataclass(frozen=True)
class Status:
    """What is known about one folder's server.

    Attributes:
        path: the folder.
        running: whether it accepts connections.
        url: where, with the password (left out of the repr); None when it does not run.
        pid: of its postmaster, or None.
        port: TCP port on 127.0.0.1, or None.
        log: the server's log file.
        detail: why it is not running; empty when it is.
    """

    path: Path
    running: bool
    url: str | None = field(repr=False)
    pid: int | None
    port: int | None
    log: Path
    detail: str


def start(
    path: str | os.PathLike[str] | None = None,
    *,
    port: int | None = None,
    settings: Mapping[str, str] | None = None,
    binaries: str | os.PathLike[str] | None = None,
) -> str:
    """The URL of the server in ``path``; it is started, or made and started, if it does not run.

    Blocks: about 10 ms for a running server, 0.1 s to start one, a second to make one (60 s at most). Any
    number of processes and threads may call it at once; one starts the server, all get the same URL. The
    server runs in its own session and stays when its starter ends, until :func:`stop`.

    Args:
        path: the folder; by default ``.gen_durable/postgres`` in the working directory.
        port: TCP port on 127.0.0.1; by default the last one if it is free, else any free one.
        settings: PostgreSQL settings for this start (a running server keeps those it was started with).
        binaries: folder with the PostgreSQL programs; see :func:`find_binaries`.

    Raises:
        EmbeddedError: there are no programs, or the server can't run here or does not start; with the end of
            its log.
    """
    deadline = time.monotonic() + START_TIMEOUT
    merged = _server.server_settings(settings)
    folder = _locate(path)
    try:
        url = _running(folder)
        if url is None:
            folder.create()
            with folder.starting(deadline):
                url = _running(folder) or _start(folder, port, merged, binaries, deadline)
    except OSError as error:
        raise _unusable(folder, "started", error) from error
    if port is not None and not url.endswith(f":{port}/postgres"):
        running = url.rpartition(":")[2].partition("/")[0]
        raise EmbeddedError(
            f"port={port}: the server in {str(folder.path)!r} already runs on port {running}; "
            "stop it first, or leave the port out"
        )
    return url


def stop(path: str | os.PathLike[str] | None = None, *, timeout: float = STOP_TIMEOUT) -> bool:
    """Stop the server in ``path``: connections are closed, transactions rolled back, data stays.

    Returns:
        Whether there was one to stop.

    Raises:
        EmbeddedError: it is still there after ``timeout`` seconds and an immediate shutdown.
    """
    folder = _locate(path)
    try:
        if not folder.data.exists():
            return False
        with folder.starting(time.monotonic() + START_TIMEOUT):
            if not folder.alive():
                return False
            for number, patience in ((signal.SIGINT, timeout), (signal.SIGQUIT, 10.0)):
                _signal(folder, number)
                if _gone(folder, time.monotonic() + patience):
                    return True
    except OSError as error:
        raise _unusable(folder, "stopped", error) from error
    raise EmbeddedError(
        f"the server in {str(folder.path)!r} does not stop; see {str(folder.log)!r}, which ends with:\n"
        f"{folder.log_tail()}"
    )


def status(path: str | os.PathLike[str] | None = None) -> Status:
    """Whether the server in ``path`` runs, tried with a connection; starts nothing and changes nothing."""
    folder = _locate(path)
    try:
        url, detail = _server.connects(folder)
        postmaster = folder.postmaster() if url is not None else None
    except OSError as error:
        raise _unusable(folder, "looked at", error) from error
    return Status(
        path=folder.path,
        running=url is not None,
        url=url,
        pid=postmaster.pid if postmaster else None,
        port=postmaster.port if postmaster else None,
        log=folder.log,
        detail=detail,
    )


@contextmanager
def temporary(
    *,
    settings: Mapping[str, str] | None = None,
    binaries: str | os.PathLike[str] | None = None,
) -> Iterator[str]:
    """A throw-away server in a temporary folder; yields its URL.

    At the end, also by an exception, the server is stopped and the folder removed. Its parent is a small
    shell that watches a pipe from this process, so the same happens when this process is killed. fsync is
    off, since nothing outlives the server; pass ``settings={"fsync": "on"}`` to measure with it.

    Raises:
        EmbeddedError: as :func:`start`.
    """
    deadline = time.monotonic() + START_TIMEOUT
    merged = _server.server_settings({"fsync": "off", **(settings or {})})
    folder = Folder(Path(tempfile.mkdtemp(prefix="gen_durable-")).resolve())
    shell = None
    try:
        folder.path.chmod(0o711)
        programs = _server.choose_programs(folder, binaries)
        programs.identity.own(folder.path)  # so that the watching shell can remove it
        _server.initialise(folder, programs, lasting=False, deadline=deadline)
        url, shell = _server.launch(folder, programs, merged, port=None, deadline=deadline, watched=True)
        yield url
    finally:
        if shell is not None:
            _server.end_shell(shell)
        shutil.rmtree(folder.path, ignore_errors=True)


def _locate(path: str | os.PathLike[str] | None) -> Folder:
    return Folder(Path(DEFAULT_PATH if path is None else path).expanduser().resolve())


def _running(folder: Folder) -> str | None:
    postmaster = folder.postmaster()
    return _server.connects(folder)[0] if postmaster is not None and postmaster.ready else None


def _start(
    folder: Folder,
    port: int | None,
    settings: Mapping[str, str],
    binaries: str | os.PathLike[str] | None,
    deadline: float,
) -> str:
    """Under the start lock: wait for one that is coming up (or in recovery), else start one."""
    if folder.postmaster() is not None and folder.alive() and (url := _server.wait_ready(folder, deadline)):
        return url
    programs = _server.choose_programs(folder, binaries)
    if not folder.data.exists():
        _server.initialise(folder, programs, lasting=True, deadline=deadline)
    return _server.launch(folder, programs, settings, port=port, deadline=deadline)[0]


def _unusable(folder: Folder, verb: str, error: OSError) -> EmbeddedError:
    mend = ""
    if isinstance(error, PermissionError):
        mend = "; it is another user's or lies in a closed folder; use another path"
    return EmbeddedError(f"the embedded server in {str(folder.path)!r} can't be {verb}: {error}{mend}")


def _signal(folder: Folder, number: signal.Signals) -> None:
    postmaster = folder.postmaster()
    if postmaster is not None and folder.runs_here(postmaster.pid):
        with suppress(ProcessLookupError):
            os.kill(postmaster.pid, number)


def _gone(folder: Folder, deadline: float) -> bool:
    while folder.alive():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL)
    return True
