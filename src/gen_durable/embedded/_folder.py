"""The server's folder on disk, and the two locks in it.

::

    <path>/
    ├── data/          the cluster, 0700, owned by the server's user
    ├── server.log     what the server says
    ├── password       the superuser's, random, 0600
    ├── port           the last port: kept over restarts while it is free
    ├── start.lock     held (flock) while somebody starts or stops
    └── server.lock    held (flock) by the server and its backends for as long as one of them lives

``server.lock`` is the server's standard input, so the kernel keeps it locked exactly as long as a process of
the server lives. No pid has to be trusted: pids are reused, and a zombie looks alive.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from gen_durable.errors import EmbeddedError

LOG_LIMIT = 10 * 1024 * 1024
POLL = 0.005


@dataclass(frozen=True)
class Postmaster:
    """What ``postmaster.pid`` says."""

    pid: int
    port: int
    ready: bool


class Folder:
    """Names and locks of one server folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = path / "data"
        self.log = path / "server.log"
        self.password_file = path / "password"
        self.port_file = path / "port"
        self.server_lock = path / "server.lock"
        self.start_lock = path / "start.lock"

    def create(self) -> None:
        """Make the folder, reachable (not listable) for the server's user; an existing one stays as it is."""
        if self.path.is_dir():
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            self.path.mkdir()
            self.path.chmod(0o711)
            (self.path / ".gitignore").write_text("*\n")

    def url(self, port: int) -> str | None:
        """The URL for ``port``, or None before there is a password."""
        try:
            password = self.password_file.read_text().strip()
        except FileNotFoundError:
            return None
        return f"postgresql://postgres:{password}@127.0.0.1:{port}/postgres"

    def last_port(self) -> int | None:
        """The port of the last start, or None."""
        try:
            return int(self.port_file.read_text())
        except (FileNotFoundError, ValueError):
            return None

    def postmaster(self) -> Postmaster | None:
        """What ``postmaster.pid`` says, or None when it is absent or half-written."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
            return Postmaster(int(lines[0]), int(lines[3]), len(lines) > 7 and lines[7].strip() == "ready")
        except (FileNotFoundError, IndexError, ValueError):
            return None

    def runs_here(self, pid: int) -> bool | None:
        """Whether ``pid`` is a live postmaster of this data folder; None where the system can't tell."""
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        if not Path("/proc/self/cwd").exists():
            return by_ps(pid, self.data)
        try:  # a postmaster works inside its data folder; a zombie works nowhere
            return os.path.samefile(f"/proc/{pid}/cwd", self.data)
        except PermissionError:
            return None
        except OSError:
            return False

    def alive(self) -> bool:
        """Whether a process of the server lives."""
        if (fd := try_lock(self.server_lock)) is None:
            return True
        os.close(fd)
        postmaster = self.postmaster()  # one that was started by hand holds no lock of ours
        return postmaster is not None and self.runs_here(postmaster.pid) is True

    def log_tail(self, offset: int = 0, lines: int = 15) -> str:
        """The last lines of the log after byte ``offset``."""
        try:
            with self.log.open("rb") as file:
                file.seek(offset)
                text = file.read()[-8192:].decode(errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def forget_server(self) -> None:
        """Remove the pid and socket files of a dead server (the caller holds ``server.lock``).

        PostgreSQL takes any live pid in them for a server: also a zombie, or another process with a reused
        number.
        """
        try:
            pid = int((self.data / "postmaster.pid").read_text().partition("\n")[0])
        except FileNotFoundError:
            return
        except ValueError:  # killed while it wrote the file
            pid = None
        if pid is None or self.runs_here(pid) is False:
            for file in (self.data / "postmaster.pid", *self.data.glob(".s.PGSQL.*")):
                file.unlink(missing_ok=True)

    def open_log(self) -> int:
        """The log, opened for appending; a grown one is moved aside first."""
        with suppress(FileNotFoundError):
            if self.log.stat().st_size > LOG_LIMIT:
                self.log.replace(self.log.with_suffix(".log.1"))
        return os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def sweep(self) -> None:
        """Remove what a killed initdb left."""
        for stage in self.path.glob(".initdb-*"):
            shutil.rmtree(stage, ignore_errors=True)

    @contextmanager
    def starting(self, deadline: float) -> Iterator[None]:
        """Be the only one that starts or stops this server."""
        while (fd := try_lock(self.start_lock)) is None:
            if time.monotonic() > deadline:
                raise EmbeddedError(
                    f"another process has been starting or stopping the server in {str(self.path)!r} for too "
                    f"long; see {str(self.log)!r}, end that process, and try again"
                )
            time.sleep(POLL)
        try:
            yield
        finally:
            # A fork elsewhere in this process may have copied the descriptor: closing alone would not unlock.
            fcntl.flock(fd, fcntl.LOCK_UN)
            os.close(fd)


def by_ps(pid: int, data: Path) -> bool | None:
    """``Folder.runs_here`` for systems without /proc: a postgres of this folder, of another, or none."""
    command = ["ps", "-ww", "-o", "stat=,args=", "-p", str(pid)]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    if "postgres" not in said or said.startswith("Z"):
        return False
    return True if f" {data} " in f"{said} " else None


def try_lock(path: Path) -> int | None:
    """An open descriptor that holds the lock, or None when another process does."""
    fd = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd
