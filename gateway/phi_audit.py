"""Looks for what looks like PHI in any folder, knowing nothing of how it was de-identified.

Nothing of the engine is used here: not its tables, not its rules, not its pseudonyms. Whatever the engine overlooks by
design, this has a chance to see. It says *suspicion*: some are harmless, and that there is none proves nothing.

What an object claims in (0012,0064) *De-identification Method Code Sequence* is believed as far as it explains that an
attribute is there: kept UIDs under 113110, device texts under 113109. Its values are looked at all the same.

References
----------
PS3.10 7.1 (preamble and file meta), PS3.15 E.3 (options), PS3.16 CID 7050; 45 CFR 164.514(b)(2) (kinds of identifiers).
"""

from __future__ import annotations

import csv
import json
import mmap
import os
import re
import stat
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom import Dataset
from pydicom.errors import InvalidDicomError

from gateway.phi_elements import UNREADABLE, DataSetAudit
from gateway.phi_patterns import DOTTED, HASH, PUBLIC_UID, TextRules, known_names, masked
from gateway.phi_streams import leftovers, of_png, texts_in, words_in

_PREAMBLE_BYTES = 128
_LARGEST_JSON_BYTES = 32 << 20
_LONGEST_LINE_BYTES = 1 << 20
_LARGEST_PICTURE_BYTES = 512 << 20
_CLOSED = {
    b"%PDF": "PDF document",
    b"PK\x03\x04": "archive or office document",
    b"PK\x05\x06": "archive",
    b"\x1f\x8b": "archive",
    b"BZh": "archive",
    b"7z\xbc\xaf": "archive",
    b"Rar!": "archive",
    b"\xfd7zXZ": "archive",
    b"SQLite format 3": "database",
    b"\xd0\xcf\x11\xe0": "office document",
    b"II*\x00": "TIFF picture",
    b"MM\x00*": "TIFF picture",
    b"GIF8": "GIF picture",
}
"""Files that are not looked into: that they are there is suspicious."""
_PERSONAL_KEYS = re.compile(
    r"name|patient|birth|\bdob\b|mrn|ssn|phone|address|e-?mail|accession|zip|postcode|physician|insurance|\bdate\b|_date",
    re.IGNORECASE,
)
_HARMLESS_VALUES = re.compile(
    r"|[0-9a-fA-F]{16,64}|PSEUDONYM\^[0-9A-F]{16}|REMOVED|UNKNOWN|true|false|null", re.IGNORECASE
)
_LEAST_NUMBER = 100_000
_LONG_DIGITS = re.compile(r"(?<![0-9A-Fa-f])\d{6,}(?![0-9A-Fa-f])")


class Finder(Protocol):
    """Looks for text in a picture."""

    def find(self, picture: npt.NDArray[np.uint8]) -> Sequence[object]:
        """Boxes around text in uint8 [rows, columns] or [rows, columns, 3]."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspicion:
    """Something that looks like PHI."""

    path: Path
    where: str
    """Tag path such as ``(0008,1140)[0]>(0008,1155) ReferencedSOPInstanceUID``, or a part of the file."""
    kind: str
    excerpt: str
    """First letter and length: never the text itself."""


def audit_folder(folder: Path, *, names: Iterable[str] = (), finder: Finder | None = None) -> Iterator[Suspicion]:
    """What looks like PHI in the files of a folder, at any depth, one file in memory at a time.

    Parameters
    ----------
    folder
        Or one file.
    names
        Names and numbers to look for everywhere, such as those of the originals.
    finder
        Looks at the first, middle and last frame of every object and at pictures for text burned in.
    """
    rules = TextRules(names)
    for path in _files(folder):
        for part in path.relative_to(folder).parts if path != folder else (path.name,):
            yield from (
                Suspicion(path=path, where="file name", kind=k, excerpt=masked(t)) for k, t in _name(part, rules)
            )
        if path.is_symlink():
            yield Suspicion(path=path, where="file", kind="link", excerpt=masked(""))
            continue
        for where, kind, text in _file(path, rules, finder):
            yield Suspicion(path=path, where=where, kind=kind, excerpt=masked(text))


def _files(folder: Path) -> Iterator[Path]:
    """Files in the order of their names; a folder's names are held, not those of the whole tree."""
    if not folder.is_dir():
        yield folder
        return
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        try:
            with os.scandir(here) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            yield here  # as a file that cannot be read
            continue
        waiting += [Path(entry.path) for entry in reversed(found) if entry.is_dir(follow_symlinks=False)]
        yield from (Path(entry.path) for entry in found if not entry.is_dir(follow_symlinks=False))


_Found = tuple[str, str, str]
"""Where, kind, text."""


def _name(part: str, rules: TextRules) -> Iterator[tuple[str, str]]:
    """What a file's or folder's name says: common names, numbers, dates, UIDs of others."""
    stem = re.sub(r"\.[A-Za-z]{2,5}$", "", part)
    for uid in DOTTED.findall(stem):
        if not PUBLIC_UID.fullmatch(uid):
            yield "UID", uid
            return
    if PUBLIC_UID.search(stem):
        return
    if HASH.fullmatch(stem) and not stem.isdecimal():  # letters of a hash are a name by chance
        given = rules.given(stem)
        if given is not None:
            yield "given name", given
        return
    spaced = re.sub(r"[_\-^,;+~()\[\]]+", " ", stem)
    found = rules.certain(stem) or rules.certain(spaced)
    if found:
        yield found
        return
    number = _LONG_DIGITS.search(stem)
    if number and not re.fullmatch(r"[0-9a-f]{16,64}", stem):
        yield "number", number.group()
        return
    name = next(known_names(spaced), None)
    if name is not None:
        yield "person name", name


def _file(path: Path, rules: TextRules, finder: Finder | None) -> Iterator[_Found]:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            yield "file", "no regular file", ""
            return
        size = status.st_size
        with path.open("rb") as file:
            head = file.read(_PREAMBLE_BYTES + 4)
    except OSError:
        yield "file", "unreadable file", ""
        return
    if not size:
        return
    if head[_PREAMBLE_BYTES:] == b"DICM":
        yield from _dicom(path, head, rules, finder)
        return
    for magic, kind in _CLOSED.items():
        if head.startswith(magic):
            yield "file", kind, ""
            return
    if head.startswith((b"\xff\xd8", b"\x89PNG", b"\x00\x00\x00\x0cjP  ", b"\xff\x4f\xff\x51")):
        yield from _picture(path, finder)
    elif _is_text(head):
        yield from _text_file(path, size, rules)
    else:
        yield from _headless(path, rules, finder)
    yield from _given_names(path, rules)


def _given_names(path: Path, rules: TextRules) -> Iterator[_Found]:
    """The first long given name anywhere in the bytes of a file, whatever they are."""
    if rules.bytes_pattern is None:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        found = rules.bytes_pattern.search(mapped)
        if found:
            yield "bytes of the file", "given name", found.group().decode()


def _dicom(path: Path, head: bytes, rules: TextRules, finder: Finder | None) -> Iterator[_Found]:
    if head[:_PREAMBLE_BYTES].strip(b"\x00"):
        yield "preamble", "preamble", ""
    told = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dataset = pydicom.dcmread(path, defer_size="256 KB")
            for found in DataSetAudit(dataset, rules).run():
                told = told or found[1] == "given name"
                yield found
            if finder is not None:
                yield from _burned_in(dataset, finder)
        except (InvalidDicomError, *UNREADABLE):
            yield "data set", "unreadable data set", ""
    if not told:
        yield from _given_names(path, rules)


def _headless(path: Path, rules: TextRules, finder: Finder | None) -> Iterator[_Found]:
    """A file without preamble: a data set all the same, or bytes of an unknown kind, which nobody can vouch for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dataset = pydicom.dcmread(path, defer_size="256 KB", force=True)
            if "SOPClassUID" in dataset or "PatientID" in dataset:
                yield from DataSetAudit(dataset, rules).run()
                if finder is not None:
                    yield from _burned_in(dataset, finder)
                return
        except UNREADABLE:
            pass
    yield "file", "unknown kind of file", ""
    with path.open("rb") as file:
        while block := file.read(_LONGEST_LINE_BYTES):
            for text in texts_in(block):
                found = rules.likely(text)
                if found:
                    yield "bytes of the file", *found
                    return


def _burned_in(dataset: Dataset, finder: Finder) -> Iterator[_Found]:
    """Text in the first, middle and last frame."""
    if "PixelData" not in dataset:
        return
    from pydicom.pixels.utils import pixel_array

    frames = int(dataset.get("NumberOfFrames", 1) or 1)
    for index in sorted({0, frames // 2, frames - 1}):
        try:
            picture = _as_picture(pixel_array(dataset, index=index))
        except (*UNREADABLE, RuntimeError):
            yield f"frame {index + 1}", "unreadable pixels", ""
            return
        if len(finder.find(picture)):
            yield f"frame {index + 1}", "text burned in", ""


def _as_picture(pixels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """8 bits over the range of values that are there."""
    if pixels.dtype == np.uint8:
        return pixels
    low, high = float(pixels.min()), float(pixels.max())
    return ((pixels - low) * (255.0 / max(high - low, 1.0))).astype(np.uint8)


def _picture(path: Path, finder: Finder | None) -> Iterator[_Found]:
    if path.stat().st_size > _LARGEST_PICTURE_BYTES:
        yield "file", "picture too large to look into", ""
        return
    stream = path.read_bytes()
    for kind, payload in of_png(stream) if stream.startswith(b"\x89PNG") else leftovers(stream):
        yield "picture", kind, words_in(payload).decode("ascii", "replace")
    if finder is not None:
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(path) as image:
                picture = np.asarray(image.convert("RGB"))
        except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError):
            yield "picture", "unreadable pixels", ""
            return
        if len(finder.find(picture)):
            yield "picture", "text burned in", ""


def _is_text(head: bytes) -> bool:
    try:
        text = head[: len(head) & ~3].decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 8:
            return head.startswith((b"\xff\xfe", b"\xfe\xff"))
        text = head[: error.start].decode("utf-8")
    return all(character.isprintable() or character in "\r\n\t\f\ufeff" for character in text)


def _text_file(path: Path, size: int, rules: TextRules) -> Iterator[_Found]:
    """JSON by its keys and values, tables by their columns, other text line by line."""
    if path.suffix.lower() == ".json" and size <= _LARGEST_JSON_BYTES:
        try:
            loaded = json.loads(path.read_bytes())
        except ValueError:
            loaded = None
        if loaded is not None:
            yield from _json(loaded, rules)
            return
    header: list[str] = []
    with path.open("rb") as file:
        number = 0
        while line := file.readline(_LONGEST_LINE_BYTES):
            number += 1
            text = line.decode("utf-16" if line.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8", "replace").strip()
            if text.startswith("{") and text.endswith("}"):
                try:
                    found = list(_json(json.loads(text), rules))
                except ValueError:
                    found = []
                yield from ((f"line {number}, {where}", kind, value) for where, kind, value in found)
                if found:
                    continue
                text = ""
            if number == 1 and path.suffix.lower() in (".csv", ".tsv"):
                header = _cells(text)
            elif header:
                yield from _row(header, _cells(text), number, rules)
            else:
                likely = rules.likely(text)
                if likely:
                    yield f"line {number}", *likely


def _cells(line: str) -> list[str]:
    return next(
        csv.reader([line], delimiter="\t" if "\t" in line else ";" if line.count(";") > line.count(",") else ","), []
    )


def _row(header: list[str], cells: list[str], number: int, rules: TextRules) -> Iterator[_Found]:
    for column, cell in zip(header, cells, strict=False):
        found = _keyed(column, cell, rules)
        if found:
            yield f"line {number}, column {header.index(column) + 1}", *found


def _json(loaded: Any, rules: TextRules) -> Iterator[_Found]:
    """Values of a JSON document by their keys; a DICOM JSON model is read as a data set."""
    waiting: list[tuple[str, str, Any]] = [("", "", loaded)]
    while waiting:
        where, key, value = waiting.pop()
        if isinstance(value, dict):
            if _is_dicom_json(value):
                yield from _dicom_json(where, value, rules)
            else:
                keys = (rules.likely(str(name)) for name in value)
                yield from ((where or "key", *found) for found in keys if found)
                waiting += [
                    (f"{where}.{position}", str(name), item) for position, (name, item) in enumerate(value.items())
                ]
        elif isinstance(value, list):
            waiting += [(f"{where}[{position}]", key, item) for position, item in enumerate(value)]
        elif isinstance(value, str | int) and not isinstance(value, bool):
            short = isinstance(value, int) and abs(value) < _LEAST_NUMBER
            found = None if short else _keyed(key, str(value), rules)
            if isinstance(value, int) and found and not _PERSONAL_KEYS.search(_spaced(key)):
                found = None  # counts, sizes and times are numbers too
            if found:
                yield where or "value", *found


def _is_dicom_json(value: dict[str, Any]) -> bool:
    return bool(value) and all(
        re.fullmatch(r"[0-9A-Fa-f]{8}", key) and isinstance(item, dict) and "vr" in item for key, item in value.items()
    )


def _dicom_json(where: str, value: dict[str, Any], rules: TextRules) -> Iterator[_Found]:
    try:
        dataset = Dataset.from_json(value, bulk_data_uri_handler=lambda tag, vr, uri: b"")
        for inner, kind, text in DataSetAudit(dataset, rules).run():
            yield f"{where}>{inner}", kind, text
    except UNREADABLE:
        yield where, "unreadable DICOM JSON", ""


def _keyed(key: str, value: str, rules: TextRules) -> tuple[str, str] | None:
    """What a value looks like under its key or in its column."""
    if _HARMLESS_VALUES.fullmatch(value.strip()) or PUBLIC_UID.fullmatch(value.strip()):
        return None
    likely = rules.likely(value)
    if likely:
        return likely
    return ("personal field", value) if _PERSONAL_KEYS.search(_spaced(key)) else None


def _spaced(key: str) -> str:
    """``PatientName`` as words."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", key)
