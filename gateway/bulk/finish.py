"""Written files made durable and put in their places, several at a time, since a disk serves ten as fast as one.

An output has its name from the moment on when it lies whole on the disk, and never replaces anything.

References
----------
fsync(2), link(2).
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

_FULL = frozenset([errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
_WITHOUT_LINKS = frozenset([errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK])
DISK_FULL = "no room for the output"
TOO_LARGE = "it needs more memory than a file may take"
OTHER_CONTENT = "a file with other content has the name of the output"


class NotDoneError(Exception):
    """The file is not done; the text says why and holds no PHI."""

    def __init__(self, reason: str, *, refused: bool = False) -> None:
        super().__init__(reason)
        self.state = "refused" if refused else "failed"


class Finisher:
    """Puts files from `unfinished` into their places below `output`. Any number of threads may use it."""

    def __init__(self, output: Path, unfinished: Path) -> None:
        self._output = os.open(output, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._unfinished = unfinished

    def finish(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Finish what `row` says was done; returns the row with what became of it."""
        unfinished = self._unfinished / row["unfinished"]
        finished = {name: value for name, value in row.items() if name != "unfinished"}
        try:
            self._place(unfinished, row)
            return finished
        except NotDoneError as error:
            state, reason = error.state, str(error)
        except OSError as error:
            state, reason = "failed", reason_of(error)
        finally:
            with suppress(OSError):
                unfinished.unlink()
        told = ("source_kib", "source_sha256", "ms")
        return {"state": state, "reason": reason, **{name: row[name] for name in told if name in row}}

    def close(self) -> None:
        """Nothing more comes."""
        os.close(self._output)

    def _place(self, unfinished: Path, row: Mapping[str, Any]) -> None:
        descriptor = os.open(unfinished, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        patient, study, name = row["output"].split("/")
        outer = _folder_in(self._output, patient)
        try:
            inner = _folder_in(outer, study)
        finally:
            os.close(outer)
        try:
            _link(unfinished, inner, name, row["output_sha256"])
        finally:
            os.close(inner)


def _link(unfinished: Path, folder: int, name: str, sha256: str) -> None:
    try:
        os.link(unfinished, name, dst_dir_fd=folder, follow_symlinks=False)
    except FileExistsError:
        # Of a run that was killed before it could write it down: the same bytes. Anything else stays.
        if _sha256_in(folder, name) != sha256:
            raise NotDoneError(OTHER_CONTENT, refused=True) from None
    except OSError as error:
        if error.errno not in _WITHOUT_LINKS:
            raise
        # A file system without hard links. No other run works here, so that nothing comes between these two.
        try:
            os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            os.rename(unfinished, name, dst_dir_fd=folder)
            return
        if _sha256_in(folder, name) != sha256:
            raise NotDoneError(OTHER_CONTENT, refused=True) from None


def _folder_in(parent: int, name: str) -> int:
    """A descriptor of the folder `name`, made if it is not there; a link in its place is an error."""
    with suppress(FileExistsError):
        os.mkdir(name, dir_fd=parent)
    try:
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    except NotADirectoryError as error:
        raise NotDoneError("something that is no folder has the name of an output folder", refused=True) from error


def _sha256_in(folder: int, name: str) -> str:
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return ""
    with os.fdopen(descriptor, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if stat.S_ISREG(os.fstat(descriptor).st_mode) else ""


def reason_of(error: OSError) -> str:
    """What went wrong, in words without a path."""
    # pydicom wraps errors in others of their class, whose text names the tag and whose number is lost.
    cause: BaseException | None = error
    while isinstance(cause, OSError) and cause.errno is None:
        cause = cause.__cause__
    if not isinstance(cause, OSError):
        return f"reading or writing failed: {type(error).__name__}"
    if cause.errno in _FULL:
        return DISK_FULL
    return TOO_LARGE if cause.errno == errno.ENOMEM else f"reading or writing failed: {cause.strerror}"
