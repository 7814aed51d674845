"""Scores as they come, kept in a file of their own, so that a comparison that was stopped goes on where it was.

Cases are scored in chunks of a fixed size, in the order in which they come, and a chunk is written in one transaction
with a seal over its rows. A kill costs the chunk at hand. Since a chunk is run whole or not at all, its batches are the
same whether or not there was a kill in between, and so are the scores to the last bit.

A chunk is only taken for done where its cases are the same files and its seal fits; everything else is scored again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.errors import ComparisonError

logger = logging.getLogger(__name__)

SCORES_FILE = "scores.db"
CODE_VERSION = 1
"""Changes with whatever changes a score or a row: what an older code wrote is not gone on with."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS chunk (number INTEGER PRIMARY KEY, cases TEXT NOT NULL, seal TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS score (
    place INTEGER PRIMARY KEY, chunk INTEGER NOT NULL, content TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS ix_score_chunk ON score (chunk);
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionScore:
    """What one version said of one case."""

    scores: Mapping[str, float]
    """By finding; empty where the case failed."""
    ungradable: tuple[str, ...] = ()
    """Why the picture is too poor for this version."""
    failure: str = ""
    """Why there are no scores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredCase:
    """One case with what both versions said. No PHI."""

    case_key: str
    case_sha256: str
    """Of the file that was scored."""
    study_key: str
    group_key: str
    frame_index: int
    slices: Mapping[str, str]
    candidate: VersionScore
    baseline: VersionScore | None

    @property
    def versions(self) -> tuple[VersionScore, ...]:
        """Candidate first."""
        return (self.candidate,) if self.baseline is None else (self.candidate, self.baseline)


class ScoreBook:
    """The scores of one comparison, in the file :data:`SCORES_FILE` of a working folder that no other process uses.

    Raises
    ------
    ComparisonError
        Another process works in the folder, or the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = (folder / ".lock").open("w")
        except OSError as error:
            raise ComparisonError(f"the working folder {folder} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise ComparisonError(f"the same comparison runs already (it works in {folder})") from error
        self._connection = self._opened()

    def _opened(self) -> sqlite3.Connection:
        """The file, or a new one where it cannot be read: scores can be made again."""
        path = self.folder / SCORES_FILE
        try:
            return _connect(path)
        except sqlite3.DatabaseError as error:
            logger.warning("the scores of the interrupted comparison cannot be read (%s): all are made again", error)
            for each in (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
                each.unlink(missing_ok=True)
            return _connect(path)

    def close(self) -> None:
        """Close the file, and let others work in the folder."""
        self._connection.close()
        self._lock.close()

    def is_done(self, number: int, cases: Sequence[tuple[str, str]]) -> bool:
        """Whether a chunk of these cases (key and sha256) has been scored, and its rows are what was written."""
        row = self._connection.execute("SELECT cases, seal FROM chunk WHERE number = ?", (number,)).fetchone()
        if row is None or row[0] != _digest(cases):
            return False
        rows = self._connection.execute("SELECT content FROM score WHERE chunk = ? ORDER BY place", (number,))
        if row[1] == _seal(content for (content,) in rows):
            return True
        logger.warning("scores of chunk %d are not what was written: they are made again", number)
        return False

    def write(self, number: int, place: int, cases: Sequence[tuple[str, str]], scored: Sequence[ScoredCase]) -> None:
        """Keep a chunk, its first row at `place`; whatever stood there before goes.

        Raises
        ------
        ComparisonError
            The disk is full or failing.
        """
        contents = [json.dumps(_as_row(each), separators=(",", ":"), allow_nan=False) for each in scored]
        try:
            with self._transaction():
                self._connection.execute("DELETE FROM score WHERE chunk = ?", (number,))
                self._connection.executemany(
                    "INSERT OR REPLACE INTO score VALUES (?, ?, ?)",
                    [(place + offset, number, content) for offset, content in enumerate(contents)],
                )
                self._connection.execute(
                    "INSERT OR REPLACE INTO chunk VALUES (?, ?, ?)", (number, _digest(cases), _seal(contents))
                )
        except sqlite3.Error as error:
            raise ComparisonError(f"scores cannot be written to {self.folder}: {error}") from error

    def end(self, chunks: int) -> None:
        """Forget chunks past the last one: of files that were there before an interruption, and are no more."""
        with self._transaction():
            self._connection.execute("DELETE FROM score WHERE chunk >= ?", (chunks,))
            self._connection.execute("DELETE FROM chunk WHERE number >= ?", (chunks,))

    def rows(self) -> Iterator[tuple[int, ScoredCase]]:
        """Place and case, in order; one after the other is in memory."""
        for place, content in self._connection.execute("SELECT place, content FROM score ORDER BY place"):
            yield place, _from_row(json.loads(content))

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")


def working_name(*parts: str) -> str:
    """Name of a working folder: the same for the same comparison by the same code."""
    return _seal([str(CODE_VERSION), *parts])[:32]


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")  # a power cut costs the last chunks, and none is half there
        connection.executescript(_SCHEMA)
        ((verdict,),) = connection.execute("PRAGMA quick_check(1)").fetchall()
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
    except BaseException:
        connection.close()
        raise
    return connection


def _digest(cases: Sequence[tuple[str, str]]) -> str:
    return _seal(f"{key} {sha256}" for key, sha256 in cases)


def _seal(contents: Any) -> str:
    digest = hashlib.sha256()
    for content in contents:
        digest.update(f"{len(content)}\0{content}\n".encode())
    return digest.hexdigest()


def _as_row(scored: ScoredCase) -> dict[str, Any]:
    return {
        "key": scored.case_key,
        "sha256": scored.case_sha256,
        "study": scored.study_key,
        "group": scored.group_key,
        "frame": scored.frame_index,
        "slices": dict(scored.slices),
        "versions": [[dict(each.scores), list(each.ungradable), each.failure] for each in scored.versions],
    }


def _from_row(row: Mapping[str, Any]) -> ScoredCase:
    versions = [
        VersionScore(scores=scores, ungradable=tuple(ungradable), failure=failure)
        for scores, ungradable, failure in row["versions"]
    ]
    return ScoredCase(
        case_key=row["key"],
        case_sha256=row["sha256"],
        study_key=row["study"],
        group_key=row["group"],
        frame_index=row["frame"],
        slices=row["slices"],
        candidate=versions[0],
        baseline=versions[1] if len(versions) > 1 else None,
    )
