"""The hash that DVC gives a file or a folder, and what a DVC repository says it tracks.

A card names its training data by DVC's hash, so that ``dvc get`` fetches those very files years later. The hash is
computed here as DVC 3 does it, since neither a gateway nor a training run should need DVC and all that it drags along.

* A file: the MD5 of its bytes.
* A folder: the MD5 of a JSON list ``[{"md5": ..., "relpath": ...}, ...]`` of all files below it, sorted by ``relpath``,
  with ``.dir`` appended. Empty folders, modes and times do not count.

MD5 says which files they are and is no protection from somebody who wants two sets of one hash; the card's sha256 is.

References
----------
DVC documentation, "Internal Files", https://dvc.org/doc/user-guide/project-structure/internal-files.
dvc-data 3.18, ``dvc_data/hashfile/tree.py`` (``Tree.as_bytes``, ``Tree.digest``).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from models.card import DVC_HASH
from models.errors import BundleError

_IGNORE_FILE = ".dvcignore"
_IGNORED_FOLDERS = frozenset({".git", ".hg", ".dvc"})
"""What DVC leaves out of every folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedOutput:
    """Something that a DVC repository tracks."""

    path: str
    """Relative to the repository, with ``/``."""
    dvc_hash: str
    """As a card spells it: ``md5:<32 digits>`` or ``md5:<32 digits>.dir``."""
    stated_in: str
    """The file that says so, relative to the repository: ``NAME.dvc`` or ``dvc.lock``."""


def dvc_hash(path: Path) -> str:
    """DVC's hash of a file or folder, as a card spells it.

    Raises
    ------
    BundleError
        There is no such file or folder, it cannot be read, or a ``.dvcignore`` has a say in what belongs to it.
    """
    try:
        if path.is_dir():
            return f"md5:{_folder_digest(path)}.dir"
        return f"md5:{_file_md5(path)}"
    except (OSError, UnicodeError) as error:
        raise BundleError(f"the DVC hash of {path} cannot be computed ({type(error).__name__})") from error


def _folder_digest(folder: Path) -> str:
    _refuse_ignore_files(folder)
    entries = [{"md5": _file_md5(folder / name), "relpath": name} for name in sorted(_files_below(folder))]
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode(), usedforsecurity=False).hexdigest()


def _file_md5(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _files_below(folder: Path) -> Iterator[str]:
    """Relative paths with ``/``. Like DVC, follows links, and leaves out the folders of version control."""

    def fail(error: OSError) -> None:
        raise error

    for root, folders, names in os.walk(folder, followlinks=True, onerror=fail):
        folders[:] = [name for name in folders if name not in _IGNORED_FOLDERS]
        for name in names:
            if name == _IGNORE_FILE:
                raise BundleError(f"{root} has a {_IGNORE_FILE}; DVC refuses it inside a tracked folder")
            if name != ".git":
                yield (Path(root) / name).relative_to(folder).as_posix()


def _refuse_ignore_files(folder: Path) -> None:
    """Refuse patterns above the folder, up to the repository's root: what they leave out is not known here."""
    for parent in folder.resolve().parents:
        ignore = parent / _IGNORE_FILE
        if ignore.is_file():
            lines = (line.strip() for line in ignore.read_text(encoding="utf-8").splitlines())
            if any(line and not line.startswith("#") for line in lines):
                raise BundleError(f"{ignore} leaves files out; take the hash that `dvc add` writes instead")
        if (parent / ".dvc").is_dir():
            return


def read_dvc_file(path: Path, repository: Path | None = None) -> tuple[TrackedOutput, ...]:
    """Outputs that one ``.dvc`` file or ``dvc.lock`` tracks by MD5.

    Parameters
    ----------
    repository
        What paths are relative to; the file's own folder unless given.

    Raises
    ------
    BundleError
        It is no such file, or states hashes of DVC 2, which are others for text files.
    """
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise BundleError(f"{path}: no DVC file ({type(error).__name__})") from error
    if not isinstance(content, dict):
        raise BundleError(f"{path}: no DVC file")
    stages = content.get("stages")
    groups = [content] if path.name != "dvc.lock" else list(stages.values()) if isinstance(stages, dict) else []
    root = repository or path.parent
    base = path.parent
    if path.name != "dvc.lock" and isinstance(content.get("wdir"), str):
        base = base / content["wdir"]
    found = []
    for group in groups:
        outputs = group.get("outs") if isinstance(group, dict) else None
        for output in outputs if isinstance(outputs, list) else []:
            tracked = _tracked(output, path, base, root)
            if tracked is not None:
                found.append(tracked)
    return tuple(found)


def _tracked(output: Any, path: Path, base: Path, root: Path) -> TrackedOutput | None:
    """One entry of ``outs``; None for one that is not in DVC's cache by MD5 (a metrics file in Git, a cloud's)."""
    if not isinstance(output, dict) or not isinstance(output.get("path"), str) or "md5" not in output:
        return None
    if output.get("hash") != "md5":
        raise BundleError(f"{path}: written by DVC 2, whose hashes of text files are others; run `dvc cache migrate`")
    value = f"md5:{output['md5']}"
    if not re.fullmatch(DVC_HASH, value):
        raise BundleError(f"{path}: {output['md5']!r} is no hash of DVC")
    return TrackedOutput(path=_relative(base / output["path"], root), dvc_hash=value, stated_in=_relative(path, root))


def _relative(path: Path, root: Path) -> str:
    return Path(os.path.relpath(path, root)).as_posix()


def tracked_outputs(repository: Path) -> tuple[TrackedOutput, ...]:
    """Everything that a DVC repository tracks now, by path. Former commits of Git are not looked at.

    Raises
    ------
    BundleError
        `repository` is none of DVC's, or one of its files cannot be read.
    """
    if not (repository / ".dvc").is_dir():
        raise BundleError(f"{repository} is no DVC repository: it has no folder .dvc")
    found: list[TrackedOutput] = []
    for root, folders, names in os.walk(repository):
        folders[:] = sorted(name for name in folders if name not in _IGNORED_FOLDERS)
        for name in sorted(names):
            if name == "dvc.lock" or (name.endswith(".dvc") and name != ".dvc"):
                found.extend(read_dvc_file(Path(root) / name, repository))
    return tuple(sorted(found, key=lambda output: (output.path, output.stated_in)))


def find_tracked(repository: Path, wanted: str) -> TrackedOutput | None:
    """What in a DVC repository has the hash `wanted`, spelled as in a card.

    Raises
    ------
    BundleError
        As of :func:`tracked_outputs`.
    """
    return next((output for output in tracked_outputs(repository) if output.dvc_hash == wanted), None)
