"""Saved studies as a folder to take elsewhere: images, a manifest, predictions, and a README that says what they are.

The folder appears under its name whole or not at all. Until then it lies beside as ``.NAME.partial``; the same command
goes on where an earlier one was stopped, with the studies that were saved when that one began.
"""

from __future__ import annotations

import csv
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from gateway.errors import SavedError
from gateway.objects import fsync_folder
from gateway.saved.cases import MANIFEST_COLUMNS, MANIFEST_FILE, SLICE_NAMES, saved_slices
from gateway.saved.query import Query, select_saved
from gateway.store import Store
from gateway.store.saved import SavedImage, SavedPrediction, SavedStudyRow
from models.card import file_sha256

PREDICTIONS_FILE = "predictions.csv"
README_FILE = "README.md"
IMAGES = "images"
_STATE_FILE = ".export.json"
PREDICTION_COLUMNS = (
    *("case_key", "model", "version", "role", "model_sha256", "finding", "score", "operating_point", "present"),
    "ungradable_reasons",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What an export holds."""

    folder: Path
    studies: int
    cases: int
    files: int
    size_bytes: int
    gone: int
    """Studies that were removed while they were being exported."""


@dataclass(slots=True, kw_only=True)
class _Counts:
    studies: int = 0
    cases: int = 0
    files: int = 0
    size_bytes: int = 0
    gone: int = 0


def export_saved(
    store: Store,
    data_dir: Path,
    query: Query,
    out: Path,
    *,
    now: datetime,
    gateway_version: str,
    progress: Callable[[SavedStudyRow], None] = lambda _: None,
) -> Exported:
    """Write the saved studies that fit a query to a new folder.

    Parameters
    ----------
    progress
        Told of each study when it is done.

    Raises
    ------
    SavedError
        The folder is there already, an unfinished export there is of another query, nothing fits, or a saved file is
        not what it was.
    OSError
        The disk is full or failing; the same call goes on where it stopped.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SavedError(f"{out} is there already; expected a new folder")
    partial = out.with_name(f".{out.name}.partial")
    with _claimed(partial, query, now) as saved_before:
        counts = _Counts()
        with ExitStack() as closing:
            manifest = closing.enter_context(_table(partial / MANIFEST_FILE, MANIFEST_COLUMNS))
            predictions = closing.enter_context(_table(partial / PREDICTIONS_FILE, PREDICTION_COLUMNS))
            for study in select_saved(store, query, saved_before=saved_before):
                if _export_study(study, data_dir, partial, counts):
                    _write_rows(study, manifest, predictions, counts)
                progress(study)
        if not counts.studies:
            shutil.rmtree(partial)
            raise SavedError(f"no saved study fits {query.text!r}")
        _drop_others(partial, counts.files)
        (partial / README_FILE).write_text(_readme(query, counts, gateway_version), encoding="utf-8")
        (partial / _STATE_FILE).unlink()
        for name in (MANIFEST_FILE, PREDICTIONS_FILE, README_FILE):
            _fsync(partial / name)
        fsync_folder(partial)
        if out.exists():
            out.rmdir()
        partial.rename(out)
        fsync_folder(out.parent)
    return Exported(
        folder=out,
        studies=counts.studies,
        cases=counts.cases,
        files=counts.files,
        size_bytes=counts.size_bytes,
        gone=counts.gone,
    )


@contextmanager
def _claimed(partial: Path, query: Query, now: datetime) -> Iterator[datetime]:
    """The folder in which an export is made, for nobody else; gives when its making began."""
    partial.mkdir(parents=True, exist_ok=True)
    with (partial / _STATE_FILE).open("a+", encoding="utf-8") as state:
        try:
            fcntl.flock(state, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SavedError(f"{partial}: somebody is exporting there") from None
        state.seek(0)
        text = state.read()
        try:
            known: dict[str, Any] = json.loads(text) if text else {}
        except ValueError:  # a kill before it was written whole
            known = {}
        if known and known["query"] != query.text:
            raise SavedError(
                f"{partial} is an unfinished export of {known['query']!r}; expected that query, or the folder deleted"
            )
        if not known:
            known = {"query": query.text, "saved_before": now.astimezone(UTC).isoformat()}
            state.truncate(0)
            state.write(json.dumps(known))
            state.flush()
            os.fsync(state.fileno())
        yield datetime.fromisoformat(known["saved_before"])


@contextmanager
def _table(path: Path, columns: tuple[str, ...]) -> Iterator[Any]:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = _writer(stream)
        writer.writerow(columns)
        yield writer


def _writer(stream: TextIO) -> Any:
    return csv.writer(stream, lineterminator="\n")


def _export_study(study: SavedStudyRow, data_dir: Path, partial: Path, counts: _Counts) -> bool:
    """Copy the files of a study; false where it was removed meanwhile."""
    wanted = {image.file_name: image.sha256 for image in study.images}
    target = partial / IMAGES / study.saved_key[:2] / study.saved_key
    target.mkdir(parents=True, exist_ok=True)
    for name, sha256 in wanted.items():
        source, path = data_dir / study.folder / name, target / name
        try:
            if not path.exists() or file_sha256(path) != sha256:
                _copy(source, path, sha256)
        except FileNotFoundError:
            shutil.rmtree(target)
            counts.gone += 1
            return False
        counts.size_bytes += path.stat().st_size
    fsync_folder(target)
    counts.files += len(wanted)
    counts.studies += 1
    return True


def _copy(source: Path, path: Path, sha256: str) -> None:
    unfinished = path.with_name(f".{path.name}")
    shutil.copyfile(source, unfinished)
    if file_sha256(unfinished) != sha256:
        raise SavedError(f"saved image {source.stem} has changed since it was saved; it is not exported")
    _fsync(unfinished)
    unfinished.replace(path)


def _fsync(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def _write_rows(study: SavedStudyRow, manifest: Any, predictions: Any, counts: _Counts) -> None:
    for image in study.images:
        case_key = f"{image.instance_key}-{image.frame_index}"
        file = f"{IMAGES}/{study.saved_key[:2]}/{study.saved_key}/{image.file_name}"
        slices = saved_slices(study, image)
        manifest.writerow(
            [case_key, file, image.frame_index, image.sha256, study.saved_key, study.person]
            + [slices[name] for name in SLICE_NAMES]
        )
        predictions.writerows(_prediction_rows(case_key, image))
        counts.cases += 1


def _prediction_rows(case_key: str, image: SavedImage) -> Iterator[list[Any]]:
    for said in image.predictions:
        yield from _finding_rows(case_key, said)


def _finding_rows(case_key: str, said: SavedPrediction) -> Iterator[list[Any]]:
    for finding in said.findings:
        yield [
            case_key,
            said.model_name,
            said.model_version,
            said.role,
            said.content.get("model_sha256", ""),
            finding["name"],
            repr(finding["score"]),
            finding["operating_point"],
            int(finding["present"]),
            "; ".join(said.content["ungradable_reasons"]),
        ]


def _drop_others(partial: Path, files: int) -> None:
    """Delete what an earlier run copied of studies that were removed since."""
    images = partial / IMAGES
    if sum(1 for path in images.rglob("*") if path.is_file()) == files:
        return
    with (partial / MANIFEST_FILE).open(encoding="utf-8", newline="") as stream:
        wanted = {row["file"] for row in csv.DictReader(stream)}
    for path in list(images.rglob("*")):
        if path.is_file() and path.relative_to(partial).as_posix() not in wanted:
            path.unlink()
    for folder in sorted((path for path in images.rglob("*") if path.is_dir()), reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()


def _query_line(query: Query) -> str:
    return f"* Query: `{query.text or '(all)'}`"


def is_export_of(folder: Path, query: Query) -> bool:
    """Whether a folder is a finished export of that very query."""
    try:
        return _query_line(query) in (folder / README_FILE).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return False


def _readme(query: Query, counts: _Counts, gateway_version: str) -> str:
    # Without the time: the same studies give the same files, and so the same hash of DVC.
    manifest, predictions = (", ".join(f"`{name}`" for name in each) for each in (MANIFEST_COLUMNS, PREDICTION_COLUMNS))
    return f"""# Saved studies

Exported by a DICOM AI gateway, version {gateway_version}.

{_query_line(query)}
* {counts.studies} studies, {counts.cases} frames, {counts.files} files.

| file | content |
|---|---|
| `images/` | DICOM Part 10 files, de-identified (PS3.15 Annex E); each says how in (0012,0064) |
| `{MANIFEST_FILE}` | one line a frame: {manifest} |
| `{PREDICTIONS_FILE}` | one line a frame, version and finding: {predictions} |

`study` and `person` are pseudonyms; frames of one person belong together when data are split or resampled. `age_group`
is in decades, 90 and above together. Age group and sex are not in the images: they are in the manifest alone, and
without those columns nothing else is lost.

De-identified does not mean anonymous: fundus photographs tell persons apart by themselves, and nobody looked for text
that is burned into the pixels. Pass these files on only where the law and the hospital's rules allow it.

The scores are those of the versions named, when the study came. They are no truth.
"""
