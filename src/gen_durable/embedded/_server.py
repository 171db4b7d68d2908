"""Make, launch and check one server; the callers hold ``Folder.starting``."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gen_durable.errors import EmbeddedError

from . import _binaries, _identity
from ._folder import POLL, Folder, try_lock
from ._identity import Identity

SOCKET_LIMIT = 107 - len("/.s.PGSQL.65535.lock")
DEFAULTS = {"shared_buffers": "128MB", "max_connections": "200", "timezone": "UTC", "lc_messages": "C"}
OWNED = {
    "port": "pass port= instead",
    "listen_addresses": "it listens on 127.0.0.1 only",
    "unix_socket_directories": "its socket is in the data folder",
    "data_directory": "pass path= instead",
}
# The rounds in which a password is hashed make one that people choose costly to guess. Ours is 128 random bits, and a
# throw-away server does with one round: more would cost each new connection more than all the rest. Some drivers of
# other languages refuse fewer than this many (RFC 7677), so a server that stays has them.
ROUNDS = 4096
# The shell gets the server's lock as standard output and hands it on as the server's standard input, so that
# only the server holds it. Detached: the shell ends, the server stays. Watched: standard input is a pipe from
# the owner; when it closes, however the owner ended, the server is stopped at once and its folder removed.
DETACHED = 'exec 4<&1 1>&2; "$@" <&4 4<&- & :'
WATCHED = """exec 3<&0 4<&1 1>&2 </dev/null
folder=$1; shift
"$@" <&4 3<&- 4<&- & server=$!
exec 4<&-
read _ <&3
kill -QUIT $server; kill -CONT $server; wait $server
rm -rf -- "$folder"
"""


@dataclass(frozen=True)
class Programs:
    """Programs that were seen to run, and as whom."""

    folder: Path
    version: str
    identity: Identity

    @property
    def major(self) -> int:
        """The major version."""
        return int(self.version.partition(".")[0])


def choose_programs(folder: Folder, binaries: str | os.PathLike[str] | None) -> Programs:
    """The first programs and identity that work together for this folder, tried for real.

    Raises:
        EmbeddedError: none does.
    """
    candidates = _binaries.candidates(binaries)
    identities = _identity.options(folder.data)
    version_file = folder.data / "PG_VERSION"
    needed = int(version_file.read_text()) if version_file.exists() else None
    reasons: list[str] = []
    others: list[str] = []
    for place in candidates:
        for identity in identities:
            version, why_not = identity.check(place, folder.path)
            if version is None:
                reasons.append(f"as {identity.what}, {str(place)!r}: {why_not}")
                continue
            programs = Programs(place, version, identity)
            if needed in (None, programs.major):
                return programs
            others.append(f"{version} in {str(place)!r}")
            break
    if others:
        raise EmbeddedError(
            f"{str(folder.data)!r} was made by PostgreSQL {needed}, but only {', '.join(others)} was found; "
            f"set {_binaries.SETTING} to programs of version {needed}, or move the folder away to start anew"
        )
    raise EmbeddedError(_identity.explain(folder.path, reasons))


def initialise(folder: Folder, programs: Programs, *, lasting: bool, deadline: float) -> None:
    """Make the cluster beside its place, then rename it: ``data`` is whole or absent.

    With ``lasting`` it is safe on disk at the end.
    """
    folder.sweep()
    stage = Path(tempfile.mkdtemp(prefix=".initdb-", dir=folder.path))
    password = secrets.token_hex(16)
    secret = stage / "password"
    _write(secret, scram_secret(password, ROUNDS if lasting else 1))
    programs.identity.own(stage, secret)
    command = [
        *programs.identity.prefix,
        str(programs.folder / "initdb"),
        f"--pgdata={stage / 'data'}",
        "--username=postgres",
        "--auth=scram-sha-256",
        f"--pwfile={secret}",
        "--encoding=UTF8",
        *_locale(programs.major),
        *([] if lasting else ["--no-sync"]),
    ]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            cwd="/",
            env=_identity.server_env(),
            start_new_session=True,
            timeout=max(1.0, deadline - time.monotonic()),
            **programs.identity.popen(),
        )
        if done.returncode:
            said = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
            raise EmbeddedError(f"initdb {programs.version} failed in {str(folder.path)!r}; it said:\n{said}")
        folder.password_file.unlink(missing_ok=True)
        _write(folder.password_file, password)
        (stage / "data").rename(folder.data)
    except subprocess.TimeoutExpired:
        raise EmbeddedError(f"initdb took too long in {str(folder.path)!r}; is the disk stuck?") from None
    finally:
        folder.sweep()


def _locale(major: int) -> list[str]:
    if major >= 17:  # the builtin one does not depend on what the system has installed
        return ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
    return ["--locale=C.UTF-8" if sys.platform == "linux" else "--locale=C"]


def scram_secret(password: str, rounds: int) -> str:
    """What the server keeps of a password (RFC 5802, section 3; the form is that of ``pg_authid.rolpassword``)."""
    salt = secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, rounds)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    salt_, stored_, server_ = (
        base64.b64encode(part).decode() for part in (salt, stored, hmac.digest(salted, b"Server Key", "sha256"))
    )
    return f"SCRAM-SHA-256${rounds}:{salt_}${stored_}:{server_}"


def _write(path: Path, text: str) -> None:
    """A new file that only its owner can read, complete on disk."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(fd)


def server_settings(settings: Mapping[str, str] | None) -> dict[str, str]:
    """The defaults with the caller's on top.

    Raises:
        EmbeddedError: a name that is not a setting's, or one that this module decides.
    """
    merged = dict(DEFAULTS)
    for name, value in (settings or {}).items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]*", name):
            raise EmbeddedError(f"settings: {name!r} is not the name of a PostgreSQL setting")
        if why := OWNED.get(name.lower()):
            raise EmbeddedError(f"settings: {name!r} can't be set here; {why}")
        merged[name.lower()] = str(value)
    return merged


def launch(
    folder: Folder,
    programs: Programs,
    settings: Mapping[str, str],
    *,
    port: int | None,
    deadline: float,
    watched: bool = False,
) -> tuple[str, subprocess.Popen[bytes]]:
    """Start the server and wait until it connects; returns the URL and the (watching) shell.

    A port that somebody else takes between our look and the server's bind is answered with another one.
    """
    for _ in range(5):
        chosen = _choose_port(folder, port)
        offset = folder.log.stat().st_size if folder.log.exists() else 0
        shell = _spawn(folder, programs, {**settings, "port": str(chosen)}, deadline, watched=watched)
        try:
            url = wait_ready(folder, deadline)
            if url is not None:
                folder.port_file.write_text(f"{chosen}\n")
                return url, shell
        except BaseException:
            end_shell(shell)
            raise
        end_shell(shell)
        if not _port_taken(chosen):
            raise EmbeddedError(
                f"PostgreSQL {programs.version} did not start in {str(folder.path)!r}; its log ends with:\n"
                f"{folder.log_tail(offset)}"
            )
    raise EmbeddedError(f"no free port for {str(folder.path)!r}: five in a row were taken; pass port=")


def end_shell(shell: subprocess.Popen[bytes]) -> None:
    """Let the watching shell stop its server and remove its folder; nothing to do for a detached one."""
    if shell.stdin is not None:
        shell.stdin.close()
    try:
        shell.wait(30)
    except subprocess.TimeoutExpired:
        shell.kill()
        shell.wait()


def _spawn(
    folder: Folder, programs: Programs, settings: Mapping[str, str], deadline: float, *, watched: bool
) -> subprocess.Popen[bytes]:
    fits = len(os.fsencode(folder.data)) <= SOCKET_LIMIT
    owned = {"listen_addresses": "127.0.0.1", "unix_socket_directories": str(folder.data) if fits else ""}
    script = ["-c", WATCHED, "sh", str(folder.path)] if watched else ["-c", DETACHED, "sh"]
    postgres = [str(programs.folder / "postgres"), "-D", str(folder.data)]
    command = [*programs.identity.prefix, "/bin/sh", *script, *postgres]
    for name, value in {**settings, **owned}.items():
        command += ["-c", f"{name}={value}"]
    lock = _take_server_lock(folder, deadline)
    log = folder.open_log()
    try:
        shell = subprocess.Popen(
            command,
            stdin=subprocess.PIPE if watched else subprocess.DEVNULL,
            stdout=lock,
            stderr=log,
            cwd="/",
            env=_identity.server_env(),
            start_new_session=True,
            **programs.identity.popen(),
        )
    finally:
        os.close(lock)
        os.close(log)
    if not watched:
        shell.wait()
    return shell


def _take_server_lock(folder: Folder, deadline: float) -> int:
    """The lock, once the last process of a former server is gone."""
    while (fd := try_lock(folder.server_lock)) is None:
        if time.monotonic() > deadline:
            raise EmbeddedError(
                f"processes of a former server still hold {str(folder.server_lock)!r} and do not accept "
                "connections; end them (fuser shows them) and start again"
            )
        time.sleep(POLL)
    folder.forget_server()
    return fd


def wait_ready(folder: Folder, deadline: float) -> str | None:
    """The URL once a connection works, or None when the server is gone.

    Raises:
        EmbeddedError: it lives but does not connect in time.
    """
    while True:
        why = "it is still starting"
        postmaster = folder.postmaster()
        if postmaster is not None and postmaster.ready:
            url, why = connects(folder)
            if url is not None:
                return url
        if not folder.alive():
            return None
        if time.monotonic() > deadline:
            raise EmbeddedError(
                f"the server in {str(folder.path)!r} runs but can't be used: {why}; its log ends with:\n"
                f"{folder.log_tail()}\nMend: stop it with gen_durable.embedded.stop(path) and start again"
            )
        time.sleep(POLL)


def connects(folder: Folder) -> tuple[str | None, str]:
    """The URL if a server of *this* folder answers there, else the reason."""
    import psycopg

    postmaster = folder.postmaster()
    url = folder.url(postmaster.port) if postmaster is not None else None
    # A dead server's port may be somebody else's by now, who would let us wait for his answer.
    if postmaster is None or url is None or not folder.alive():
        return None, "there is no server"
    try:
        with psycopg.connect(url, connect_timeout=5, autocommit=True) as connection:
            row = connection.execute("SHOW data_directory").fetchone()
    except psycopg.Error as error:
        return None, str(error).strip()
    # A copied project has the original's password and pid file: its server must not be taken for ours.
    if folder.runs_here(postmaster.pid) or (row is not None and _same(row[0], folder.data)):
        return url, ""
    return None, f"port {postmaster.port} belongs to the server of another folder"


def _same(left: str, right: Path) -> bool:
    try:
        return os.path.samefile(left, right)
    except OSError:
        return False


def _choose_port(folder: Folder, port: int | None) -> int:
    if port is not None:
        if not 0 < port < 65536:
            raise EmbeddedError(f"port={port} is no TCP port; pass one from 1 to 65535, or none for a free one")
        if _port_taken(port):
            raise EmbeddedError(f"port {port} on 127.0.0.1 is taken; pass another, or none for a free one")
        return port
    # The last one again, so that the URL outlives a restart.
    last = folder.last_port()
    if last is not None and not _port_taken(last):
        return last
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _port_taken(port: int) -> bool:
    with socket.socket() as probe:
        # as PostgreSQL does: a connection in TIME_WAIT does not own the port
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False
