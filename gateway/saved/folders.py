"""Folders of saved studies: written whole, renamed into place, found again after a kill.

A study lies in ``saved/<2 digits>/<saved key>``, after it grew in ``saved/<2 digits>/<saved key>-2`` and so on. The row
in the store says which; a folder that no row promises is one that a kill left, and is deleted.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from pydicom import Dataset

from gateway.objects import fsync_folder
from gateway.store import Store
from gateway.store.audit import add_entry
from gateway.store.saved import mark_removed, needed_folders

ROOT = "saved"
_UNFINISHED = ".unfinished"


def first_folder(saved_key: str) -> str:
    """Where a study that is saved for the first time lies, relative to the data folder."""
    return f"{ROOT}/{saved_key[:2]}/{saved_key}"


def next_folder(folder: str) -> str:
    """Where a study lies after it grew."""
    stem, _, number = folder.partition("-")
    return f"{stem}-{int(number or 1) + 1}"


class NewFolder:
    """A folder that is being written, and appears under its name whole or not at all.

    Raises
    ------
    OSError
        From every step: the disk is full or failing. :meth:`abandon` clears up.
    """

    def __init__(self, data_dir: Path, relative: str) -> None:
        self._place = data_dir / relative
        self._unfinished = data_dir / ROOT / f"{_UNFINISHED}-{self._place.name}"
        if self._unfinished.exists():
            shutil.rmtree(self._unfinished)
        self._unfinished.mkdir(parents=True)

    def write(self, name: str, dataset: Dataset) -> Path:
        """Write an object; it is on the disk when this returns."""
        path = self._unfinished / name
        with path.open("xb") as stream:
            dataset.save_as(stream, enforce_file_format=True)
            stream.flush()
            os.fsync(stream.fileno())
        return path

    def drop(self, name: str) -> None:
        """Without an object that could not be written."""
        (self._unfinished / name).unlink(missing_ok=True)

    def take_over(self, path: Path) -> Path:
        """A file of an earlier folder of the study, in this one, too."""
        target = self._unfinished / path.name
        try:
            target.hardlink_to(path)
        except OSError:  # not all file systems have hard links
            shutil.copyfile(path, target)
        return target

    def finish(self) -> None:
        """Give the folder its name. One of that name is what a kill left, since no row promises it, and goes."""
        fsync_folder(self._unfinished)
        self._place.parent.mkdir(exist_ok=True)
        if self._place.exists():
            shutil.rmtree(self._place)
        self._unfinished.rename(self._place)
        fsync_folder(self._place.parent)
        fsync_folder(self._place.parent.parent)

    def abandon(self) -> None:
        """Delete what was written."""
        shutil.rmtree(self._unfinished, ignore_errors=True)


def delete_folder(data_dir: Path, relative: str) -> None:
    """Delete a folder that no row promises any more; one that is not there costs nothing."""
    with suppress(FileNotFoundError):
        shutil.rmtree(data_dir / relative)
    with suppress(OSError):  # not empty
        (data_dir / relative).parent.rmdir()


def remove_saved(
    store: Store, data_dir: Path, saved_keys: Sequence[str], *, actor: str, reason: str, now: datetime
) -> int:
    """Remove saved studies, their files and what was said about them, and record who did so; returns how many."""
    with store.write() as connection:
        folders = mark_removed(connection, saved_keys, now)
        for folder in folders:
            key = Path(folder).name.partition("-")[0]
            add_entry(connection, now=now, actor=actor, action="saved study removed", subject=key, detail=reason)
    for folder in folders:
        delete_folder(data_dir, folder)
    return len(folders)


def sweep(store: Store, data_dir: Path) -> int:
    """Delete folders that no row promises: what a kill left; returns how many. Nobody may be saving meanwhile."""
    root = data_dir / ROOT
    count = 0
    for unfinished in root.glob(f"{_UNFINISHED}-*"):
        shutil.rmtree(unfinished)
        count += 1
    for sub_folder in sorted(root.glob("??")):
        names = [f"{ROOT}/{sub_folder.name}/{folder.name}" for folder in _folders(sub_folder)]
        for relative in sorted(set(names) - needed_folders(store, names)):
            delete_folder(data_dir, relative)
            count += 1
    return count


def _folders(folder: Path) -> Iterator[Path]:
    return (entry for entry in folder.iterdir() if entry.is_dir())
