"""Judges de-identified objects beside the corpus that they were made from, whoever made them.

Leaks are looked for in the bytes of what was written, with deflated data sets inflated. The ten actions are those of
the MIDI benchmark, written anew from its description: each is one answer of an answer key, to which an output is right
or wrong. Stricter than there: an object that was not written is wrong in all of its answers, not only in those that ask
for something kept. Whether a name is hidden in pixels is judged by its contrast, not by reading it. Imports nothing of
the gateway.

References
----------
L. Pei et al., Medical Image De-Identification Benchmark Challenge, arXiv:2507.23608, 2025.
M. W. Rutherford et al., Medical Image De-Identification Resources: Synthetic DICOM Data and Tools for Validation,
arXiv:2508.01889, 2025 (the ten actions and what each compares).
"""

from __future__ import annotations

import io
import re
import subprocess
import warnings
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from corpus_places import PLACES, at
from corpus_tokens import DATES, Plant, byte_forms
from deidentification_corpus import LAST_WORDS, Corpus, CorpusFile
from numpy.typing import NDArray
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.multival import MultiValue
from pydicom.pixels import pixel_array
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

Outputs = Mapping[Path, Path]
"""Path of an original -> path of what was made of it; what is absent was not written."""

ACTIONS = (
    "tag retained", "text retained", "text removed", "text not null", "date shifted", "UID changed", "UID consistent",
    "patient ID consistent", "pixels hidden", "pixels retained",
)  # fmt: skip
_REQUIRED = ("PatientName", "PatientID", "PatientBirthDate", "StudyDate", "AccessionNumber", "SpecificCharacterSet")
"""Type 2 attributes, and one that the original has because it needs it: the output must still have them."""
_NOT_NULL = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "Modality")
_PLACE = re.compile(r"(?!preamble)[A-Za-z]+(>[A-Za-z]+)*")
_DATE_KINDS = frozenset(["day", "moment"])
_HIDDEN_BELOW = 0.1
"""Letters whose contrast is below this fraction of what it was are hidden."""


def read(path: Path | bytes) -> Dataset:
    """A data set, with no word about what is odd in it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dcmread(io.BytesIO(path) if isinstance(path, bytes) else path, force=True)


def searchable(content: bytes) -> bytes:
    """The bytes of a file, and behind them those of its data set if that is deflated."""
    if DeflatedExplicitVRLittleEndian.encode() not in content[:2000]:
        return content
    meta_end = 132 + 12 + int.from_bytes(content[140:144], "little")
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    return content + b"\n" + inflater.decompress(content[meta_end:]) + inflater.unused_data


def leaks(content: bytes, plants: tuple[Plant, ...], options: frozenset[str] = frozenset()) -> list[Plant]:
    """What of the planted is found in a file's bytes, but for what the options keep by definition."""
    exact = searchable(content)
    folded = exact.lower()
    kept_tokens = {plant.token for plant in plants if plant.may_stay(options)}
    found: dict[str, Plant] = {}
    for plant in plants:
        if plant.token in found or plant.token in kept_tokens:
            continue
        where = folded if plant.token.isascii() else exact
        if any(form in where for form in byte_forms(plant.token)):
            found[plant.token] = plant
    return list(found.values())


def wrongly_removed(output: Dataset, retained: Mapping[str, Any]) -> list[str]:
    """Places of attributes that had to stay and are gone or different."""
    return [place for place, value in retained.items() if not _same(_content(output, place), value)]


def _content(dataset: Dataset | None, place: str) -> Any:
    element = None if dataset is None else at(dataset, place)
    return None if element is None else element.value


def _same(value: Any, expected: Any) -> bool:
    if isinstance(expected, MultiValue | list | tuple):
        return (
            isinstance(value, MultiValue | list | tuple)
            and len(value) == len(expected)
            and all(_same(one, other) for one, other in zip(value, expected, strict=True))
        )
    if isinstance(expected, bytes):
        return isinstance(value, bytes) and value.rstrip(b"\0") == expected.rstrip(b"\0")
    try:
        return bool(value == expected or float(value) == float(expected))
    except (TypeError, ValueError):
        return str(value).strip() == str(expected).strip()


def _pixels(dataset: Dataset) -> NDArray[Any] | None:
    """Decoded, colours as RGB; None if they cannot be."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return pixel_array(dataset)
    except (AttributeError, ValueError, RuntimeError, KeyError, NotImplementedError):
        return None


def frames_differ(output: Dataset, original: Dataset) -> bool:
    """Whether decoded pixels are others than those of the original by more than rounding of colours."""
    now, before = _pixels(output), _pixels(original)
    if now is None or before is None or now.shape != before.shape:
        return True
    slack = 2 if before.ndim > 2 and before.shape[-1] == 3 else 0
    return int(np.abs(now.astype(np.int64) - before.astype(np.int64)).max()) > slack


def validator_errors(path: Path, validator: Path, scratch: Path) -> Counter[str]:
    """What dciodvfy calls an error; deflated data sets are inflated for it."""
    dataset = read(path)
    if dataset.file_meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = scratch / "inflated.dcm"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcmwrite(path, dataset, enforce_file_format=True)
    finished = subprocess.run(
        [validator, path], capture_output=True, text=True, errors="replace", check=False, timeout=60
    )
    lines = (finished.stdout + finished.stderr).splitlines()
    return Counter(line for line in lines if line.startswith("Error"))


# --- the ten actions -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Right answers of all answers, by action."""

    right: Mapping[str, int]
    asked: Mapping[str, int]

    @property
    def score(self) -> float:
        """The fraction of right answers over all actions."""
        return sum(self.right.values()) / max(1, sum(self.asked.values()))


class _Answers:
    def __init__(self) -> None:
        self.right: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()
        self.wrong: list[tuple[str, str, str]] = []

    def note(self, action: str, is_right: bool, file: CorpusFile, where: str) -> None:
        self.asked[action] += 1
        self.right[action] += is_right
        if not is_right:
            self.wrong.append((action, f"{file.family} {file.path.name}", where))


def midi(corpus: Corpus, outputs: Outputs, *, wrong: list[tuple[str, str, str]] | None = None) -> Tally:
    """The ten actions over the valid objects of a corpus; wrong answers are added to `wrong`."""
    answers = _Answers()
    files = [file for file in corpus.files if not file.is_hostile]
    pairs = {file.path: (read(file.path), read(outputs[file.path]) if file.path in outputs else None) for file in files}
    new_uids, new_ids = _mappings(files, pairs)
    for file in files:
        original, output = pairs[file.path]
        _texts(answers, file, original, output)
        _dates(answers, file, original, output)
        _identities(answers, file, original, output, new_uids, new_ids)
        _pictures(answers, file, original, output)
    if wrong is not None:
        wrong.extend(answers.wrong)
    return Tally(
        right={action: answers.right[action] for action in ACTIONS},
        asked={action: answers.asked[action] for action in ACTIONS},
    )


def _value(dataset: Dataset | None, place: str) -> str:
    element = None if dataset is None else at(dataset, place)
    return "" if element is None or element.value is None else str(element.value)


def _mappings(files: list[CorpusFile], pairs: Mapping[Path, tuple[Dataset, Dataset | None]]) -> tuple[Any, Any]:
    """What each UID and patient ID became, by what most objects say."""
    uids: dict[str, Counter[str]] = {}
    ids: dict[str, Counter[str]] = {}
    for file in files:
        original, output = pairs[file.path]
        if output is None:
            continue
        for place, old in file.uids.items():
            if _value(output, place):
                uids.setdefault(old, Counter())[_value(output, place)] += 1
        ids.setdefault(str(original.PatientID), Counter())[_value(output, "PatientID")] += 1
    return (
        {old: seen.most_common(1)[0][0] for old, seen in uids.items()},
        {old: seen.most_common(1)[0][0] for old, seen in ids.items()},
    )


def _texts(answers: _Answers, file: CorpusFile, original: Dataset, output: Dataset | None) -> None:
    for keyword in _REQUIRED:
        if keyword in original:
            answers.note("tag retained", output is not None and keyword in output, file, keyword)
    for keyword in _NOT_NULL:
        answers.note("text not null", bool(_value(output, keyword)), file, keyword)
    for keyword, value in file.retained.items():
        if not isinstance(value, bytes):
            answers.note("text retained", _same(_content(output, keyword), value), file, keyword)
    for keyword in ("PatientSex", "PatientSize", "PatientWeight"):
        is_right = output is not None and _same(output.get(keyword), original.get(keyword))
        answers.note("text retained", is_right, file, keyword)
    for keyword in ("StudyDescription", "SeriesDescription"):
        is_right = all(word in _value(output, keyword).upper().split() for word in LAST_WORDS.split())
        answers.note("text retained", is_right, file, f"words of imaging in {keyword}")
    for plant in file.plants:
        if plant.kept_by or plant.category in ("date", "date and time", "time", "UID", "private creator"):
            continue  # those that an option keeps are asked neither way
        before = at(original, plant.place) if _PLACE.fullmatch(plant.place) else None
        if before is not None and not isinstance(before.value, bytes):
            is_right = output is not None and plant.token.lower() not in _value(output, plant.place).lower()
            answers.note("text removed", is_right, file, plant.place)


def _dates(answers: _Answers, file: CorpusFile, original: Dataset, output: Dataset | None) -> None:
    for place, kind, kept_by in (*PLACES, ("StudyDate", "day", DATES), ("AcquisitionDate", "day", DATES)):
        if kind in _DATE_KINDS and not kept_by - DATES and _value(original, place):
            is_right = output is not None and _value(output, place)[:8] != _value(original, place)[:8]
            answers.note("date shifted", is_right, file, place)


def _identities(
    answers: _Answers, file: CorpusFile, original: Dataset, output: Dataset | None, new_uids: Any, new_ids: Any
) -> None:
    for place, old in file.uids.items():
        new = _value(output, place)
        answers.note("UID changed", output is not None and new != old, file, place)
        answers.note("UID consistent", output is not None and new == new_uids.get(old), file, place)
    old_id = str(original.PatientID)
    new_id = _value(output, "PatientID")
    is_right = output is not None and new_id == new_ids.get(old_id) and list(new_ids.values()).count(new_id) == 1
    answers.note("patient ID consistent", is_right, file, "PatientID")


def _pictures(answers: _Answers, file: CorpusFile, original: Dataset, output: Dataset | None) -> None:
    if file.burned_in is None:
        is_right = output is not None and not frames_differ(output, original)
        answers.note("pixels retained", is_right, file, "PixelData")
        return
    is_right = output is not None and _contrast(output, file) < _HIDDEN_BELOW * _contrast(original, file)
    answers.note("pixels hidden", is_right, file, "PixelData")


def _contrast(dataset: Dataset, file: CorpusFile) -> float:
    """How much brighter the letters are than what is around them, in grey levels."""
    assert file.burned_in is not None
    pixels, letters = _pixels(dataset), file.burned_in
    if pixels is None:
        return float("inf")
    pixels = pixels.astype(np.float32).reshape((-1, *letters.shape, dataset.SamplesPerPixel))[0].mean(axis=-1)
    rows, columns = np.nonzero(letters)
    box = np.zeros_like(letters)
    box[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
    return float(abs(pixels[letters].mean() - pixels[box & ~letters].mean()))
