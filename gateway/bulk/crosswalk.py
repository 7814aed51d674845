"""Which file became which. PHI: paths tell of patients more often than not."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

from gateway.errors import SettingsError

_FIRST = b'{"kind":"crosswalk"'


class Crosswalk:
    """JSON Lines in a file of mode 0600; later runs add to it.

    Raises
    ------
    SettingsError
        The file cannot be written, others may read it, or it is something else.
    """

    def __init__(self, path: Path, source: Path) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(path, flags, 0o600)
        except OSError as error:
            raise SettingsError(f"--crosswalk cannot be opened: {error.strerror}") from error
        self._file = os.fdopen(descriptor, "ab", buffering=0)
        status = os.fstat(descriptor)
        problem = ""
        if not stat.S_ISREG(status.st_mode):
            problem = "is no file"
        elif status.st_mode & 0o077 or status.st_uid != os.geteuid():
            problem = "may be read by others: expected mode 0600"
        elif status.st_size and os.pread(descriptor, len(_FIRST), 0) != _FIRST:
            problem = "is there and is no crosswalk"
        if problem:
            self._file.close()
            raise SettingsError(f"--crosswalk {problem}")
        try:
            self._write({"kind": "crosswalk", "input": str(source)})
        except OSError as error:
            raise SettingsError(f"--crosswalk cannot be written: {error.strerror}") from error

    def write(self, path: str, row: dict[str, Any]) -> None:
        """The fate of the file at `path` below the input.

        Raises
        ------
        OSError
            There is no room for it.
        """
        self._write({"path": path, **{name: row.get(name) for name in ("source", "state", "reason", "output")}})

    def close(self) -> None:
        """Make it durable."""
        os.fsync(self._file.fileno())
        self._file.close()

    def _write(self, row: dict[str, Any]) -> None:
        line = (json.dumps(row, separators=(",", ":")) + "\n").encode()
        if self._file.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
