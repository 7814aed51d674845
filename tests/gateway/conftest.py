"""Peers, receivers and databases that the gateway's tests share."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from intake_rig import Receivers, start_receivers
from running import free_port

from gateway.store import Store, open_store


@pytest.fixture
def receivers(tmp_path: Path) -> Iterator[Receivers]:
    """One receiver process."""
    started = start_receivers(tmp_path / "data")
    yield started
    started.end()


@pytest.fixture
def make_receivers(tmp_path: Path) -> Iterator[Callable[..., Receivers]]:
    """Start receivers with settings of the test's own."""
    started: list[Receivers] = []

    def make(**arguments: Any) -> Receivers:
        started.append(start_receivers(tmp_path / f"data{len(started)}", **arguments))
        return started[-1]

    yield make
    for each in started:
        each.end()


def _postgresql_program(name: str) -> str | None:
    installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(installed[-1]) if installed else shutil.which(name)


def _as_user() -> tuple[list[str], int]:
    """How to run PostgreSQL, which refuses to run as root, and who that is."""
    if os.getuid() != 0:
        return [], os.getuid()
    try:
        return ["runuser", "-u", "postgres", "--"], pwd.getpwnam("postgres").pw_uid
    except KeyError:
        pytest.skip("PostgreSQL does not run as root, and there is no user postgres")


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Callable[[], str]]:
    """A PostgreSQL cluster for the session; gives a function that makes a fresh database and returns its URL."""
    pytest.importorskip("psycopg", reason="psycopg is not installed (extra: postgresql)")
    initdb, control = _postgresql_program("initdb"), _postgresql_program("pg_ctl")
    if initdb is None or control is None:
        pytest.skip("PostgreSQL is not installed (apt install postgresql)")
    prefix, user_id = _as_user()
    folder = Path(tempfile.mkdtemp(prefix="gateway-postgresql-"))
    os.chown(folder, user_id, -1)
    port = free_port()
    cluster = str(folder / "cluster")

    def call(*command: str) -> None:
        subprocess.run([*prefix, *command], check=True, cwd=folder, stdout=subprocess.DEVNULL)

    call(initdb, "-D", cluster, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
    call(control, "-D", cluster, "-w", "-l", str(folder / "log"), "-o", options, "start")
    made = 0

    def fresh_database() -> str:
        import psycopg

        nonlocal made
        made += 1
        with psycopg.connect(f"host=127.0.0.1 port={port} user=postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE gateway{made}".encode())
        return f"postgresql+psycopg://postgres@127.0.0.1:{port}/gateway{made}"

    try:
        yield fresh_database
    finally:
        call(control, "-D", cluster, "-m", "immediate", "-w", "stop")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest) -> str:
    """The empty URL, which means SQLite, and a PostgreSQL database."""
    if request.param == "sqlite":
        return ""
    return str(request.getfixturevalue("postgresql")())


@pytest.fixture
def store(store_url: str, tmp_path: Path) -> Iterator[Store]:
    """An empty store, on SQLite and on PostgreSQL."""
    opened = open_store(store_url, data_dir=tmp_path, migrate=True)
    yield opened
    opened.close()
