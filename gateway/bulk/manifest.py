"""What a run did, file by file, as JSON Lines without PHI; and what need not be done again.

A row is written when a file's fate is known, after its output lies whole under its name. Rows are not made durable one
by one: after a power cut some may be missing, or outputs that they name; a later run looks for both.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from gateway.bulk.names import OUTPUT_NAME
from gateway.errors import SettingsError

FORMAT = "gateway deidentify 1"
_TAIL_BYTES = 1 << 16
_SAME = ("format", "gateway_version", "edition", "profile", "key_fingerprint")
"""What has to be the same in all runs into one manifest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DoneFile:
    """An output that is there."""

    sha256: str
    """Of the source."""
    instance: str
    output: str
    output_kib: int
    earlier: bool
    """Whether an earlier run made it."""


def kib(size_bytes: int) -> int:
    """A size as rows have it: KiB, rounded up. Exact ones are long numbers, which look like a patient's."""
    return -(-size_bytes // 1024)


class DoneFiles:
    """Which sources are done, on a disk file without a name, so that a million of them take no memory."""

    def __init__(self) -> None:
        self._connection = sqlite3.connect("")
        self._connection.executescript(
            "PRAGMA journal_mode=OFF; PRAGMA cache_size=-4096;"
            "CREATE TABLE done (sha256 TEXT PRIMARY KEY, instance TEXT NOT NULL UNIQUE, output TEXT NOT NULL,"
            " output_kib INTEGER NOT NULL, earlier INTEGER NOT NULL) WITHOUT ROWID;"
        )

    def add(self, file: DoneFile) -> None:
        """Remember `file`; what had the same source or instance before is forgotten."""
        self._connection.execute(
            "INSERT OR REPLACE INTO done VALUES (?, ?, ?, ?, ?)",
            (file.sha256, file.instance, file.output, file.output_kib, file.earlier),
        )

    def of_source(self, sha256: str) -> DoneFile | None:
        """What was made of a source with these bytes."""
        return self._one("sha256", sha256)

    def of_instance(self, instance: str) -> DoneFile | None:
        """What was made of the instance with this name."""
        return self._one("instance", instance)

    def forget(self, file: DoneFile) -> None:
        """It is not there any more."""
        self._connection.execute("DELETE FROM done WHERE sha256 = ?", (file.sha256,))

    def close(self) -> None:
        """Free the disk file."""
        self._connection.close()

    def _one(self, column: str, value: str) -> DoneFile | None:
        query = f"SELECT sha256, instance, output, output_kib, earlier FROM done WHERE {column} = ?"
        row = self._connection.execute(query, (value,)).fetchone()
        if row is None:
            return None
        return DoneFile(sha256=row[0], instance=row[1], output=row[2], output_kib=row[3], earlier=bool(row[4]))


class Manifest:
    """An open manifest that no other run can write.

    Parameters
    ----------
    path
        A new file, or the manifest of earlier runs with the same key, profile and version.
    header
        The first row of this run.
    make_room
        Called when the disk is full: frees what was kept back for this, and says whether that was any.

    Raises
    ------
    SettingsError
        It cannot be written, is in use, is no manifest, or is of runs with another key, profile or version.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], *, make_room: Callable[[], bool] = bool) -> None:
        self.done = DoneFiles()
        self._make_room = make_room
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise SettingsError(f"the manifest cannot be opened: {error.strerror}") from error
        try:
            self._start(header)
        except BaseException:
            self.close()
            raise

    def write(self, row: Mapping[str, Any]) -> None:
        """Add a row, whole or not at all.

        Raises
        ------
        OSError
            There is no room for it.
        """
        line = (json.dumps(row, separators=(",", ":")) + "\n").encode()
        try:
            self._append(line)
        except OSError:
            if not self._make_room():
                raise
            self._append(line)

    def sync(self) -> None:
        """Make all rows durable."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Let others write it."""
        os.close(self._descriptor)
        self.done.close()

    def _start(self, header: Mapping[str, Any]) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SettingsError("the manifest is in use: another run writes it") from error
        except OSError:
            pass  # a file system without locks
        with os.fdopen(os.dup(self._descriptor), "rb") as file:
            self._end = _whole_rows_bytes(file)
            file.seek(0)
            for row in _rows(file, self._end):
                self._take(row, header)
        os.ftruncate(self._descriptor, self._end)  # a row that a kill has cut short
        try:
            self.write(header)
        except OSError as error:
            raise SettingsError(f"the manifest cannot be written: {error.strerror}") from error

    def _take(self, row: Mapping[str, Any], header: Mapping[str, Any]) -> None:
        if row.get("kind") == "run":
            for name in _SAME:
                if row.get(name) != header[name]:
                    raise SettingsError(
                        f"OUT holds what was made with another {name.replace('_', ' ')}: expected the same as before, "
                        "or a new folder"
                    )
        elif row.get("kind") == "file" and row.get("state") == "done":
            output, size, sha256 = row.get("output"), row.get("output_kib"), row.get("source_sha256")
            if isinstance(output, str) and OUTPUT_NAME.fullmatch(output) and isinstance(size, int) and sha256:
                instance = output[-36:-4]
                self.done.add(
                    DoneFile(sha256=str(sha256), instance=instance, output=output, output_kib=size, earlier=True)
                )

    def _append(self, line: bytes) -> None:
        try:
            left, position = memoryview(line), self._end
            while left:
                written = os.pwrite(self._descriptor, left, position)
                left, position = left[written:], position + written
        except OSError:
            os.ftruncate(self._descriptor, self._end)
            raise
        self._end += len(line)


def _whole_rows_bytes(file: IO[bytes]) -> int:
    """Up to where `file` consists of whole lines."""
    position = file.seek(0, os.SEEK_END)
    while position:
        start = max(0, position - _TAIL_BYTES)
        file.seek(start)
        newline = file.read(position - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        position = start
    return 0


def _rows(file: IO[bytes], end: int) -> Iterator[Mapping[str, Any]]:
    position = 0
    while position < end:
        line = file.readline()
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or (position == 0 and row.get("format") != FORMAT):
            raise SettingsError("the file at the manifest's place is no manifest of this command, and is left as it is")
        position += len(line)
        yield row
