"""The object folder: received instances, results and pictures as files, named by the gateway's own keys.

Nothing that a peer sent ever becomes part of a name. A file appears under its name whole and fsynced, or not at all.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_FOLDERS = ("incoming", "instances", "quarantine", "results", "heat", "pictures")


@dataclass(frozen=True, slots=True)
class ObjectFolder:
    """Where files lie. Paths in the store are relative to :attr:`root`."""

    root: Path

    @classmethod
    def in_data_dir(cls, data_dir: Path) -> ObjectFolder:
        """The object folder of a data folder, its sub-folders made."""
        folder = cls(data_dir / "objects")
        for name in _FOLDERS:
            (folder.root / name).mkdir(parents=True, exist_ok=True)
        return folder

    def path(self, relative: str) -> Path:
        """Where the file of that relative path lies."""
        return self.root / relative

    def write(self, relative: str, content: bytes | memoryview, *, durable: bool = True) -> None:
        """Write a file under its relative path; it appears whole or not at all, and survives power loss if `durable`.

        Raises
        ------
        OSError
            The disk is full or failing; nothing is left behind under that name.
        """
        path = self.root / relative
        path.parent.mkdir(exist_ok=True)
        spool = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with spool.open("wb") as stream:
                stream.write(content)
                if durable:
                    stream.flush()
                    os.fsync(stream.fileno())
            spool.replace(path)
        except OSError:
            spool.unlink(missing_ok=True)
            raise
        if durable:
            fsync_folder(path.parent)

    def link(self, path: Path, relative: str) -> None:
        """Give a file a second, durable name; either can be removed without the other.

        Raises
        ------
        OSError
            The disk is full or failing.
        """
        target = self.root / relative
        try:
            target.hardlink_to(path)
        except FileExistsError:
            return
        except OSError:  # not all file systems have hard links
            self.write(relative, path.read_bytes())
        fsync_folder(target.parent)

    def remove(self, relative: str) -> None:
        """Delete a file, if it is there."""
        (self.root / relative).unlink(missing_ok=True)


def quarantine_path(key: str) -> str:
    """Relative path of an object in quarantine."""
    return f"quarantine/{key}.dcm"


def result_path(key: str) -> str:
    """Relative path of a result object."""
    return f"results/{key[:2]}/{key}.dcm"


def heat_map_path(instance_key: str, frame_index: int, model_name: str, model_version: int) -> str:
    """Relative path of a heat map: 8-bit grey PNG over the whole picture."""
    return f"heat/{instance_key[:2]}/{instance_key}-{frame_index}-{model_name}-{model_version}.png"


def picture_path(instance_key: str, frame_index: int) -> str:
    """Relative path of a display picture: JPEG, long side at most 1152."""
    return f"pictures/{instance_key[:2]}/{instance_key}-{frame_index}.jpg"


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
