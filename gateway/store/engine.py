"""Opening the store: engine, transactions, migrations."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import SQLAlchemyError

from gateway.errors import StoreError

BUSY_TIMEOUT_S = 30


class _Turns:
    """Lets SQLite's writers in one after the other, over all processes.

    SQLite itself makes a second writer poll, with pauses that grow to 100 ms. A file lock (flock(2)) wakes the next one
    at once, in order, and ends with the process that holds it.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._threads = threading.Lock()

    def __enter__(self) -> None:
        self._threads.acquire()
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        self._threads.release()

    def close(self) -> None:
        os.close(self._descriptor)


@dataclass(frozen=True, slots=True)
class Store:
    """A handle on the store; each process opens its own."""

    engine: Engine
    turns: _Turns | None = None
    """Of SQLite's writers."""

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that may write; on SQLite it takes the write lock at once: it may wait, never deadlock.

        Raises
        ------
        StoreError
            The database refused, or could not be reached. Nothing was changed.
        """
        try:
            with (
                self.turns or nullcontext(),
                self.engine.connect().execution_options(writes=True) as connection,
                connection.begin(),
            ):
                yield connection
        except SQLAlchemyError as error:
            raise StoreError(f"the store failed: {type(error).__name__}: {_without_values(error)}") from error

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads. Raises :class:`StoreError` as :meth:`write` does."""
        try:
            with self.engine.connect() as connection, connection.begin():
                yield connection
        except SQLAlchemyError as error:
            raise StoreError(f"the store failed: {type(error).__name__}: {_without_values(error)}") from error

    def close(self) -> None:
        """Give all connections back."""
        self.engine.dispose()
        if self.turns is not None:
            self.turns.close()


def _without_values(error: SQLAlchemyError) -> str:
    """The driver's message without statement and values, which may hold PHI."""
    origin = getattr(error, "orig", None)
    return str(origin).splitlines()[0] if isinstance(origin, (sqlite3.Error,)) else type(origin).__name__


def open_store(url: str, *, data_dir: Path, migrate: bool = False) -> Store:
    """Open the store at `url`, or the SQLite file in `data_dir` where `url` is empty.

    Parameters
    ----------
    migrate
        Bring the tables up to this version first; one process (the supervisor) does so.

    Raises
    ------
    StoreError
        The URL is not understood, the database cannot be reached, or a migration failed.
    """
    try:
        engine = create_engine(
            url or f"sqlite:///{data_dir / 'gateway.db'}",
            pool_pre_ping=bool(url),
            pool_use_lifo=True,  # each SQLite connection caches 2 MB of pages: rather one that is warm than five
            hide_parameters=True,
        )
        turns = None
        if engine.dialect.name == "sqlite":
            prepare_sqlite(engine)
            turns = _Turns(data_dir / "gateway.db.turns")
        if migrate:
            upgrade(engine)
    except (SQLAlchemyError, ImportError, OSError) as error:
        raise StoreError(f"the store cannot be opened: {error}") from error
    return Store(engine, turns)


def prepare_sqlite(engine: Engine, *pragmas: str) -> None:
    """Make every connection durable and its transactions begin as :class:`Store` says; `pragmas` come on top."""

    @event.listens_for(engine, "connect")
    def on_connect(connection: sqlite3.Connection, _: Any) -> None:
        # sqlite3 would otherwise begin transactions by its own rules and never before a SELECT.
        connection.isolation_level = None
        connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_S * 1000}")
        connection.execute("PRAGMA journal_mode = WAL")
        # FULL: a committed row is on disk before Success is answered, whatever happens to the power.
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def upgrade(engine: Engine) -> None:
    """Run the migrations that `engine`'s database has not had."""
    from alembic import command  # one process, once; all others are spared its 10 MB
    from alembic.config import Config

    configuration = Config()
    configuration.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    with engine.connect().execution_options(writes=True) as connection:
        configuration.attributes["connection"] = connection
        command.upgrade(configuration, "head")
        if connection.in_transaction():
            connection.commit()
