"""A real PostgreSQL for tests: Debian's, on loopback, in a folder of its own, gone afterwards.

Import the fixture where it is needed:

    from tests.support.postgres import postgres  # noqa: F401

`postgres.new_database()` is the URL of a database that nothing has touched.
"""

import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fedward_server.sandbox.layout import free_ports

DRIVER = "pg8000"
OWNER = "fedward"
START_SECONDS = 30.0


def programs() -> Path | None:
    """The folder of initdb and postgres: of the newest version that Debian put there, or PATH's."""
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3])
    )
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return None if on_path is None else Path(on_path).parent


def missing() -> str | None:
    """What is not installed here, in words; None where everything is."""
    if programs() is None:
        return "needs PostgreSQL: make ci-deps installs Debian's"
    if importlib.util.find_spec(DRIVER) is None:
        return f"needs {DRIVER}: pip install 'fedward-server[postgresql]'"
    return None


@dataclass(kw_only=True)
class Postgres:
    """A running server with one owner, known by a password that is made for it."""

    port: int
    password: str
    programs: Path
    _made: list[str] = field(default_factory=list)

    def url(self, database: str, *, password: str | None = None) -> str:
        """The SQLAlchemy URL of a database."""
        secret = self.password if password is None else password
        return f"postgresql+{DRIVER}://{OWNER}:{secret}@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """The URL of a new, empty database."""
        name = f"test_{len(self._made) + 1}"
        self._made.append(name)
        subprocess.run(
            [
                *(str(self.programs / "createdb"), "--host", "127.0.0.1"),
                *("--port", str(self.port), "--username", OWNER, name),
            ],
            check=True,
            env={**os.environ, "PGPASSWORD": self.password},
            capture_output=True,
        )
        return self.url(name)


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """A server of its own; the caller has asked `missing`."""
    found = programs()
    if found is None:
        raise AssertionError("no PostgreSQL here")
    # Not pytest's folder: the server's user could not get into that of root.
    folder = Path(tempfile.mkdtemp(prefix="fedward-postgres-"))
    server = Postgres(port=free_ports(1)[0], password=secrets.token_hex(16), programs=found)
    as_user = _unprivileged(folder)
    secret = folder / "password"
    secret.write_text(server.password)
    _give(secret, as_user)
    _run(
        [
            *(str(found / "initdb"), "--pgdata", str(folder / "data"), "--username", OWNER),
            *("--auth", "scram-sha-256", "--pwfile", str(secret)),
            *("--encoding", "UTF8", "--no-locale", "--no-sync"),
        ],
        as_user,
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(str(found / "postgres"), "-D", str(folder / "data"), "-p", str(server.port)),
                *("-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={folder}"),
                *("-c", "fsync=off", "-c", "max_connections=40"),
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd="/",
            **as_user,
        )
    try:
        _wait(server, process, folder)
        yield server
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server for the session; skipped where it or its driver is not installed."""
    if (reason := missing()) is not None:
        pytest.skip(reason)
    with running_postgres() as server:
        yield server


def _unprivileged(folder: Path) -> dict[str, Any]:
    """Arguments for subprocess: PostgreSQL does not run as root."""
    if os.geteuid() != 0:
        return {}
    names = {entry.pw_name: entry for entry in pwd.getpwall()}
    user = names.get("postgres") or names["nobody"]
    os.chown(folder, user.pw_uid, user.pw_gid)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _give(path: Path, as_user: dict[str, Any]) -> None:
    path.chmod(0o600)
    if as_user:
        os.chown(path, as_user["user"], as_user["group"])


def _run(command: list[str], as_user: dict[str, Any]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", **as_user)
    if done.returncode != 0:
        raise AssertionError(f"{Path(command[0]).name}: {done.stderr}")


def _wait(server: Postgres, process: subprocess.Popen[bytes], folder: Path) -> None:
    limit = time.monotonic() + START_SECONDS
    ready = [str(server.programs / "pg_isready"), "-h", "127.0.0.1", "-p", str(server.port), "-q"]
    while subprocess.run(ready, check=False).returncode != 0:
        if process.poll() is not None or time.monotonic() > limit:
            raise AssertionError((folder / "log").read_text(errors="replace"))
        time.sleep(0.1)
