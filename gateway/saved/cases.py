"""Cases to try a model version on: frames of saved studies, of an export, or of a folder of DICOM files.

A case is one frame. What it opens is de-identified, wherever it comes from, and cases come one after the other: memory
does not grow with their number.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pydicom
from pydicom import Dataset
from pydicom.errors import InvalidDicomError

from drift.acquisition import normalise
from gateway.acquisition import device_key, read_parameters
from gateway.deidentification.keys import KeyedHash
from gateway.deidentify import IMPLEMENTATION_CLASS_UID, Deidentifier
from gateway.errors import DeidentificationError, SavedError, UnreadableError
from gateway.pipeline import MAXIMUM_FRAMES
from gateway.saved.characteristics import age_group, characteristics, laterality, sex
from gateway.saved.query import QUALITIES, Query, select_saved
from gateway.store.engine import Store
from gateway.store.saved import SavedImage, SavedPrediction, SavedStudyRow, original_identifiers
from models.card import file_sha256
from models.errors import ModelError
from models.pixels import displayed_frame_count

MANIFEST_FILE = "manifest.csv"
SLICE_NAMES = ("device", "manufacturer", "modality", "laterality", "age_group", "sex", "site", "quality")
"""What a case is sliced by; every case has them all, and an empty value is not known."""
MANIFEST_COLUMNS = ("case_key", "file", "frame_index", "sha256", "study", "person", *SLICE_NAMES)
_KEY_DIGITS = 32
_UNREADABLE = (OSError, InvalidDicomError, RecursionError, ValueError, NotImplementedError, AttributeError, KeyError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One frame to try versions on. Holds no PHI but in `identifiers`."""

    case_key: str
    """The same for the same frame each time, and no peer's text: for reports and file names."""
    study_key: str
    """The gateway's key of the study; of a folder of files a pseudonym. Cases of a study follow each other."""
    group_key: str
    """Pseudonym of the person, or the study where that is not known: what is resampled together."""
    frame_index: int
    slices: Mapping[str, str]
    """By :data:`SLICE_NAMES`."""
    predictions: tuple[SavedPrediction, ...] = ()
    """What versions said when the study came; empty for a folder."""
    identifiers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """What a truth table may name it by, as far as it is known: sop_instance_uid, study_instance_uid, accession_number,
    study_key, file. PHI, but for exports: to be compared, never to be written."""
    reader: Callable[[], Dataset] = field(repr=False)

    def open(self) -> Dataset:
        """The de-identified object, its pixel data and file meta included.

        Raises
        ------
        UnreadableError
            The file is gone, or no longer what it was.
        DeidentificationError
            It cannot be de-identified.
        """
        return self.reader()


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A file that gives no case, and why."""

    name: str
    """Relative to the folder; may hold PHI where the folder's names do."""
    reason: str


def _ignore(_: Skipped) -> None:
    """For who does not ask what was passed by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseSources:
    """What cases are made with."""

    store: Store | None = None
    data_dir: Path | None = None
    """Both for queries."""
    deidentifier: Deidentifier | None = None
    """For folders of originals."""
    site_key: bytes | None = None
    """For pseudonyms of files; without it only files that are de-identified already are taken."""
    skip: Callable[[Skipped], None] = _ignore


def iterate(
    source: Query | Path,
    *,
    store: Store | None = None,
    data_dir: Path | None = None,
    deidentifier: Deidentifier | None = None,
    site_key: bytes | None = None,
    skip: Callable[[Skipped], None] = _ignore,
) -> Iterator[Case]:
    """The cases of `source`, one after the other, each time in the same order.

    Parameters
    ----------
    source
        A query for saved studies, an export of such, or a folder of DICOM files, looked through with its sub-folders.
    store, data_dir
        Where saved studies are; for queries.
    deidentifier, site_key
        For folders: originals are de-identified when they are opened. Files that say that they are de-identified are
        taken as they are where there is no de-identifier.
    skip
        Told of each file that gives no case.

    Raises
    ------
    SavedError
        A query without a store, a folder that is not there, or an export whose manifest is broken.
    StoreError
        The store cannot be reached.
    """
    sources = CaseSources(store=store, data_dir=data_dir, deidentifier=deidentifier, site_key=site_key, skip=skip)
    if isinstance(source, Query):
        return _saved(source, sources)
    if not source.is_dir():
        raise SavedError(f"{source}: no such folder; expected DICOM files or an export of saved studies in it")
    return _exported(source) if is_export(source) else _folder(source, sources)


def is_export(folder: Path) -> bool:
    """Whether a folder is an export of saved studies: it has their manifest."""
    try:
        with (folder / MANIFEST_FILE).open(encoding="utf-8", newline="") as stream:
            return stream.readline().strip().split(",")[: len(MANIFEST_COLUMNS)] == list(MANIFEST_COLUMNS)
    except (OSError, UnicodeDecodeError):
        return False


def saved_case(study: SavedStudyRow, image: SavedImage, path: Path) -> Case:
    """One frame of a saved study, whose file is at `path`."""
    return Case(
        case_key=f"{image.instance_key}-{image.frame_index}",
        study_key=study.study_key,
        group_key=study.person or study.study_key,
        frame_index=image.frame_index,
        slices=saved_slices(study, image),
        predictions=image.predictions,
        identifiers={
            "study_key": study.study_key,
            "saved_key": study.saved_key,
            "instance_key": image.instance_key,
            "file": f"{study.saved_key}/{image.file_name}",
        },
        reader=lambda: read_deidentified(path, image.sha256),
    )


def saved_slices(study: SavedStudyRow, image: SavedImage) -> dict[str, str]:
    """The slices of one frame of a saved study."""
    said = image.predictions[0]
    return {
        "device": said.device_key,
        "manufacturer": _manufacturer(said.content["parameters"]),
        "modality": study.modality,
        "laterality": said.laterality,
        "age_group": study.characteristics.get("age_group", ""),
        "sex": study.characteristics.get("sex", ""),
        "site": study.characteristics.get("site", ""),
        "quality": QUALITIES[any(each.is_ungradable for each in image.predictions)],
    }


def _manufacturer(parameters: Mapping[str, Any]) -> str:
    return normalise("manufacturer", str(parameters.get("manufacturer") or "")).upper()


def _saved(query: Query, sources: CaseSources) -> Iterator[Case]:
    if sources.store is None or sources.data_dir is None:
        raise SavedError("saved studies lie in a gateway's data folder; expected one")
    for study in select_saved(sources.store, query):
        known = original_identifiers(sources.store, study.study_key)
        for image in study.images:
            case = saved_case(study, image, sources.data_dir / study.folder / image.file_name)
            yield replace(case, identifiers={**known.get(image.instance_key, {}), **case.identifiers})


def read_deidentified(path: Path, sha256: str) -> Dataset:
    """A file that the gateway de-identified, after making sure that it is the same still.

    Raises
    ------
    UnreadableError
        It is gone, or has changed.
    """
    try:
        if file_sha256(path) != sha256:
            raise UnreadableError(f"saved image {path.stem} has changed since it was saved")
        return pydicom.dcmread(path)
    except _UNREADABLE as error:
        raise UnreadableError(f"saved image {path.stem} cannot be read: {type(error).__name__}") from error


def _exported(folder: Path) -> Iterator[Case]:
    with (folder / MANIFEST_FILE).open(encoding="utf-8", newline="") as stream:
        for number, row in enumerate(csv.DictReader(stream), start=2):
            try:
                yield _exported_case(folder, row)
            except (KeyError, ValueError, TypeError) as error:
                raise SavedError(f"{MANIFEST_FILE}, line {number}: is not as it was exported") from error


def _exported_case(folder: Path, row: Mapping[str, str]) -> Case:
    path, sha256 = folder / row["file"], row["sha256"]
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(row["file"])
    return Case(
        case_key=row["case_key"],
        study_key=row["study"],
        group_key=row["person"] or row["study"],
        frame_index=int(row["frame_index"]),
        slices={name: row[name] for name in SLICE_NAMES},
        identifiers={
            "study_key": row["study"],
            "instance_key": row["case_key"].rpartition("-")[0],
            "file": row["file"],
        },
        reader=lambda: read_deidentified(path, sha256),
    )


def _folder(folder: Path, sources: CaseSources) -> Iterator[Case]:
    for path in walk_files(folder):
        name = path.relative_to(folder).as_posix()
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True)
            if "SOPInstanceUID" not in header:
                raise InvalidDicomError
            yield from _file_cases(path, name, header, sources)
        except DeidentificationError as error:
            sources.skip(Skipped(name=name, reason=str(error)))
        except ModelError as error:
            sources.skip(Skipped(name=name, reason=str(error)))
        except _UNREADABLE as error:
            reason = "not DICOM" if isinstance(error, InvalidDicomError) else f"unreadable: {type(error).__name__}"
            sources.skip(Skipped(name=name, reason=reason))


def walk_files(folder: Path) -> Iterator[Path]:
    """Every file below a folder, in the order of the names; those that begin with a dot are passed by."""
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir() and not entry.is_symlink():
            yield from walk_files(entry)
        elif entry.is_file():
            yield entry


def _file_cases(path: Path, name: str, header: Dataset, sources: CaseSources) -> Iterator[Case]:
    count = min(displayed_frame_count(header), MAXIMUM_FRAMES)
    deidentified = is_deidentified(header)
    if sources.deidentifier is None and not deidentified:
        raise DeidentificationError("not de-identified, and there is no site key to do it with")
    parameters = read_parameters(header, site_key=sources.site_key)
    study = _pseudonym(str(header.get("StudyInstanceUID", "")), "study", sources.site_key)
    patient = str(header.get("PatientID", "") or "")
    person = _pseudonym(patient, "person", sources.site_key) if patient.strip() else study
    slices = _file_slices(parameters, header, sources.site_key)
    case_key = _pseudonym(str(header.SOPInstanceUID), "case", sources.site_key)
    identifiers = {
        "sop_instance_uid": str(header.SOPInstanceUID),
        "study_instance_uid": str(header.get("StudyInstanceUID", "")),
        "accession_number": str(header.get("AccessionNumber", "") or "").strip(),
        "file": name,
    }
    for index in range(count):
        yield Case(
            case_key=f"{case_key}-{index}",
            study_key=study,
            group_key=person,
            frame_index=index,
            slices=slices,
            identifiers={key: value for key, value in identifiers.items() if value},
            reader=lambda: _read_file(path, header, case_key, sources.deidentifier),
        )


def _file_slices(parameters: Mapping[str, Any], header: Dataset, site_key: bytes | None) -> dict[str, str]:
    found = (
        characteristics(parameters, header, "", site_key)
        if site_key is not None and "InstitutionName" in header
        else {"age_group": age_group(parameters.get("patient_age_years")), "sex": sex(parameters)}
    )
    return {
        "device": device_key(parameters),
        "manufacturer": _manufacturer(parameters),
        "modality": str(parameters.get("modality") or ""),
        "laterality": laterality(parameters),
        "age_group": found.get("age_group", ""),
        "sex": found.get("sex", ""),
        "site": found.get("site", ""),
        "quality": "",
    }


def is_deidentified(header: Dataset) -> bool:
    """Whether a gateway de-identified the file: so says its (0012,0062), and who wrote its file meta."""
    meta = getattr(header, "file_meta", None)
    writer = "" if meta is None else str(meta.get("ImplementationClassUID", ""))
    return str(header.get("PatientIdentityRemoved", "")) == "YES" and writer == IMPLEMENTATION_CLASS_UID


def _pseudonym(text: str, purpose: str, site_key: bytes | None) -> str:
    """32 digits that stand for an identifier; of a de-identified one, a plain hash does."""
    if site_key is not None:
        return KeyedHash(site_key, f"case: {purpose}").hexadecimal(text, _KEY_DIGITS).lower()
    return hashlib.sha256(f"{purpose}\0{text}".encode("utf-8", "surrogatepass")).hexdigest()[:_KEY_DIGITS]


def _read_file(path: Path, header: Dataset, case_key: str, deidentifier: Deidentifier | None) -> Dataset:
    try:
        dataset = pydicom.dcmread(path)
        if deidentifier is None or is_deidentified(header):
            return dataset
        return deidentifier.dataset(dataset)
    except DeidentificationError as error:
        raise DeidentificationError(f"case {case_key}: {error}") from error
    except _UNREADABLE as error:
        raise UnreadableError(f"case {case_key} cannot be read: {type(error).__name__}") from error
