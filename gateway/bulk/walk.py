"""The files of a folder, found one after the other: no list of them is ever held."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One thing in the input."""

    path: str
    """Below the input folder; the name alone where the input is a file. Holds PHI more often than not."""
    problem: str = ""
    """Why it cannot be read; empty for a regular file."""
    failed: bool = False
    """Whether the problem is the machine's (no permission), not what the thing is."""


def walk(source: Path) -> Iterator[Found]:
    """Everything in `source` but folders, in the order of the file system; symbolic links are not followed.

    A folder that cannot be read is one thing with a problem; the rest goes on.
    """
    if not source.is_dir():
        yield Found(path=source.name) if source.is_file() else Found(path=source.name, problem="not a regular file")
        return
    pending = [""]
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(source / folder) as entries:
                for entry in entries:
                    path = f"{folder}/{entry.name}" if folder else entry.name
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(path)
                    elif entry.is_symlink():
                        yield Found(path=path, problem="a symbolic link, which is not followed")
                    elif entry.is_file(follow_symlinks=False):
                        yield Found(path=path)
                    else:
                        yield Found(path=path, problem="not a regular file")
        except OSError as error:
            yield Found(path=folder or ".", problem=f"the folder cannot be read: {error.strerror}", failed=True)
