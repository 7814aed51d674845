"""Where a run reads and writes, and what must not overlap."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from gateway.errors import SettingsError

MANIFEST_NAME = "manifest.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Paths of one run, all absolute and without symbolic links."""

    source: Path
    """A file, or a folder that is searched to its bottom. Only read."""
    output: Path
    manifest: Path
    crosswalk: Path | None


def choose_places(
    source: Path, output: Path, *, manifest: Path | None = None, crosswalk: Path | None = None, key_file: Path
) -> Places:
    """Resolve the paths of a run and make the output folder.

    Raises
    ------
    SettingsError
        If input and output overlap, PHI or the key would lie in the output, or a path is not what it should be.
    """
    if not source.exists():
        raise SettingsError(f"{source}: no such file or folder")
    places = Places(
        source=source.resolve(),
        output=_resolved(output),
        manifest=_resolved(manifest) if manifest is not None else _resolved(output) / MANIFEST_NAME,
        crosswalk=None if crosswalk is None else _resolved(crosswalk),
    )
    if places.output.exists() and not places.output.is_dir():
        raise SettingsError(f"{output}: expected a folder, new or there")
    if _within(places.output, places.source) or _within(places.source, places.output):
        raise SettingsError("IN and OUT overlap: expected an output folder outside of what is read")
    _check_record(places.manifest, "--manifest")
    if _within(places.manifest, places.source):
        raise SettingsError("--manifest lies inside IN: expected a place outside of what is read")
    if places.crosswalk is not None:
        _check_record(places.crosswalk, "--crosswalk")
        for inside, name in ((places.output, "OUT"), (places.source, "IN")):
            if _within(places.crosswalk, inside):
                raise SettingsError(f"--crosswalk lies inside {name}: it holds PHI; expected a place apart")
        if places.crosswalk == places.manifest:
            raise SettingsError("--crosswalk and --manifest are the same file")
    if _within(key_file.resolve(), places.output):
        raise SettingsError("the key lies inside OUT, where it would be passed on: expected a place apart")
    try:
        places.output.mkdir(parents=True, exist_ok=True)
        places.manifest.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"{output}: cannot be made: {error.strerror}") from error
    return places


def _resolved(path: Path) -> Path:
    """`path` without symbolic links in its folders; one at its end is refused by whoever opens it."""
    return path.resolve() if path.is_dir() else path.parent.resolve() / path.name


def _within(path: Path, folder: Path) -> bool:
    """Whether `path` is `folder` or lies in it, by name or, for bind mounts and letter case, by inode."""
    if path == folder or folder in path.parents:
        return True
    try:
        status = folder.stat()
    except OSError:
        return False
    for each in (path, *path.parents):
        try:
            if os.path.samestat(each.stat(), status):
                return True
        except OSError:
            continue
    return False


def _check_record(path: Path, option: str) -> None:
    """Refuse to write a record through a link or over something that is no file."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise SettingsError(f"{option}: cannot be looked at: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        raise SettingsError(f"{option}: expected a new file or one of an earlier run, not a link, folder or device")
