"""As whom the server runs: PostgreSQL refuses to run as root.

A plain user runs it as himself. Root has two ways, tried for real before one is taken:

1. drop to an unprivileged user (``GEN_DURABLE_EMBEDDED_USER``, else ``postgres``, else ``nobody``). That
   user has to reach the data folder and the programs; no folder's permissions are changed for it.
2. a user namespace (``unshare -U --map-user``): the server may use root's files, has none of root's
   capabilities, and sees itself as the unprivileged user. This reaches a project under a closed ``/root``.
   Containers often forbid it.

An existing data folder decides by its owner, so the choice never changes afterwards.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from gen_durable.errors import EmbeddedError

SETTING = "GEN_DURABLE_EMBEDDED_USER"
_CHECK = 'cd "$2" && exec "$1/postgres" --version'


class PopenUser(TypedDict, total=False):
    """The arguments of ``subprocess.Popen`` that change the user."""

    user: int
    group: int
    extra_groups: list[int]


@dataclass(frozen=True)
class Identity:
    """One way to run the server.

    Attributes:
        what: for messages.
        prefix: put before each command.
        drop_to: uid and gid to change to, or None.
    """

    what: str
    prefix: tuple[str, ...] = ()
    drop_to: tuple[int, int] | None = None

    def popen(self) -> PopenUser:
        """The arguments for ``subprocess.Popen``."""
        if self.drop_to is None:
            return {}
        return {"user": self.drop_to[0], "group": self.drop_to[1], "extra_groups": []}

    def own(self, *paths: Path) -> None:
        """Give files that this package made to the server's user."""
        if self.drop_to is not None:
            for path in paths:
                os.chown(path, *self.drop_to)

    def check(self, binaries: Path, folder: Path) -> tuple[str | None, str]:
        """Run ``postgres --version`` as this identity from inside ``folder``: (version, why not)."""
        command = [*self.prefix, "/bin/sh", "-c", _CHECK, "sh", str(binaries), str(folder)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=30, cwd="/", env=server_env(), **self.popen()
            )
        except (OSError, subprocess.SubprocessError) as error:
            return None, str(error)
        match = re.search(r"\b\d+(?:\.\d+)*", done.stdout)
        if done.returncode or match is None:
            return None, (done.stderr or done.stdout).strip() or f"exit status {done.returncode}"
        return match[0], ""


def server_env() -> dict[str, str]:
    """The environment for the server: none of the caller's PG* variables or secrets."""
    names = ("PATH", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
    kept = {name: os.environ[name] for name in names if name in os.environ}
    # initdb compares every zone file with the clock unless TZ tells it.
    return {"PATH": os.defpath, **kept, "TZ": "UTC", "LC_ALL": "C"}


def options(data: Path) -> list[Identity]:
    """The ways to try, best first.

    Raises:
        EmbeddedError: ``data`` belongs to someone else, or the configured user does not exist.
    """
    owner = data.stat().st_uid if data.exists() else None
    if os.geteuid() != 0:
        return _as_user(data, owner)
    if owner is None:
        user = _unprivileged()
        return [_drop(user.pw_uid, user.pw_gid, user.pw_name), *_namespace(user)]
    if owner != 0:
        return [_drop(owner, data.stat().st_gid, _name(owner) or f"uid {owner}")]
    return _namespace(_unprivileged())


def explain(folder: Path, reasons: list[str]) -> str:
    """What to do when no identity works."""
    mend = "check the permissions of this folder and of the PostgreSQL programs"
    if os.geteuid() == 0:
        mend = (
            "PostgreSQL refuses to run as root, so either run as an ordinary user, or keep the data folder "
            "and the PostgreSQL programs where the unprivileged user can reach them (not below a closed "
            f"folder such as /root; see path= and GEN_DURABLE_PG_BIN), or name another user in {SETTING}, "
            "or allow user namespaces (unshare -U), or give a database URL instead"
        )
    tried = "; ".join(dict.fromkeys(reasons)) or "no way to leave root is at hand"
    return f"the embedded server can't run for {str(folder)!r}: {tried}. Mend: {mend}"


def _as_user(data: Path, owner: int | None) -> list[Identity]:
    uid = os.geteuid()
    if owner not in (None, uid):
        who = _name(owner) if owner is not None else None
        raise EmbeddedError(
            f"{str(data)!r} belongs to {who or f'uid {owner}'}; start it as that user, or use another path"
        )
    if _name(uid) is None:  # initdb insists on a name (docker run --user 12345)
        return [*_namespace(_unprivileged()), Identity(f"uid {uid}")]
    return [Identity(_name(uid) or "")]


def _drop(uid: int, gid: int, name: str) -> Identity:
    return Identity(f"user {name}", drop_to=(uid, gid))


def _namespace(user: pwd.struct_passwd) -> list[Identity]:
    unshare = shutil.which("unshare")
    if unshare is None:
        return []
    prefix = (unshare, "-U", f"--map-user={user.pw_uid}", f"--map-group={user.pw_gid}", "--")
    return [Identity(f"user namespace as {user.pw_name}", prefix=prefix)]


def _unprivileged() -> pwd.struct_passwd:
    wanted = os.environ.get(SETTING)
    for name in (wanted,) if wanted else ("postgres", "nobody"):
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        if user.pw_uid != 0:
            return user
        raise EmbeddedError(f"{SETTING}={name!r} is root, as whom PostgreSQL refuses to run; name another user")
    if wanted:
        raise EmbeddedError(f"{SETTING}={wanted!r} is no user of this machine; name one, such as 'nobody'")
    raise EmbeddedError(f"no user 'postgres' or 'nobody' here; name an unprivileged one in {SETTING}")


def _name(uid: int) -> str | None:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None
