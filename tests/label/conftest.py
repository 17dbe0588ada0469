"""The labelling service on both databases, its pages in process, and in a real browser."""

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from environment import missing
from preferl.label.accounts import Accounts
from preferl.label.schema import open_database
from preferl.label.store import Store
from projects import free_port


class Clock:
    """Time that a test moves itself."""

    def __init__(self, now: float = 1_800_000_000.0):
        self.now = now

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


@pytest.fixture
def clock():
    return Clock()


# ------------------------------------------------------------------------------------------------- databases


def postgres_programs() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)
    if found:
        return found[0].parent
    known = shutil.which("initdb")
    return Path(known).resolve().parent if known else None


@pytest.fixture(scope="session")
def postgres():
    """A PostgreSQL server of our own, on this machine alone; yields the URL of its server."""
    programs = postgres_programs()
    if programs is None:
        missing("PostgreSQL")
    # Not below pytest's folder, which belongs to one user alone: the programs refuse to be run by root.
    folder = Path(tempfile.mkdtemp(prefix="preferl-postgres-"))
    user = {}
    if os.getuid() == 0:
        owner = pwd.getpwnam("postgres")
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        user = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
    port = free_port()

    def call(program: str, *arguments: str) -> None:
        done = subprocess.run([programs / program, *arguments], capture_output=True, cwd=folder, **user)
        assert done.returncode == 0, done.stdout + done.stderr

    data = str(folder / "data")
    call("initdb", "-D", data, "-U", "preferl", "--auth=trust", "--no-sync", "-E", "UTF8")
    options = f"-p {port} -h 127.0.0.1 -k {folder} -c fsync=off -c max_connections=100"
    call("pg_ctl", "-D", data, "-w", "-l", str(folder / "log"), "-o", options, "start")
    yield f"postgresql://preferl@127.0.0.1:{port}"
    call("pg_ctl", "-D", data, "-m", "immediate", "stop")
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    """An empty database of each kind."""
    if request.param == "sqlite":
        yield str(tmp_path / "label.sqlite")
        return
    import psycopg

    server = request.getfixturevalue("postgres")
    name = f"test_{time.time_ns()}"
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield f"{server}/{name}"
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def store(url, clock):
    database = open_database(url)
    yield Store(database, clock)
    database.close()


@pytest.fixture
def accounts(store, clock):
    return Accounts(store.database, clock)


# --------------------------------------------------------------------------------------------------- serving
