"""Truth that arrives late: what a reader says of a study or an image, and the CSV table that it comes in.

Reading a table is all there is here: no store, no images. ``docs/truth.md`` documents the columns.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType

from gateway.errors import Problem, TruthError, TruthFileError

LARGEST_FILE_BYTES = 256 * 2**20
SHOWN_PROBLEMS = 50
LONGEST_NAME = 64
LONGEST_READER = 128
LONGEST_COMMENT = 2000
_SHOWN_CHARACTERS = 40
_DELIMITERS = (",", ";", "\t")


class TruthValue(StrEnum):
    """What a reader says of a finding."""

    PRESENT = "present"
    ABSENT = "absent"
    UNGRADABLE = "ungradable"
    """The reader could not tell from the images."""


class TruthKey(StrEnum):
    """What a row may be identified by; the first that names one image or, failing that, one study."""

    SOP_INSTANCE_UID = "sop_instance_uid"
    FILE = "file"
    STUDY_KEY = "study_key"
    STUDY_INSTANCE_UID = "study_instance_uid"
    ACCESSION_NUMBER = "accession_number"


COLUMNS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "sop_instance_uid": ("sopuid", "instanceuid"),
        "file": ("filename", "filepath", "path", "image", "imageid"),
        "study_key": ("study",),
        "study_instance_uid": ("studyuid",),
        "accession_number": ("accession",),
        "model": ("modelname",),
        "finding": ("findingname",),
        "value": ("truth", "label", "grade", "groundtruth"),
        "laterality": ("eye", "side", "imagelaterality"),
        "reader": ("readername", "radiologist", "grader"),
        "date": ("readat", "readdate", "datetime"),
        "comment": ("comments", "remark", "note"),
    }
)
"""Column -> other headers that are taken for it. Headers are compared without case, spaces and punctuation."""

_WORDS: Mapping[str, TruthValue] = MappingProxyType(
    {
        **dict.fromkeys(("present", "positive", "pos", "yes", "y", "true", "t", "1", "1.0"), TruthValue.PRESENT),
        **dict.fromkeys(("absent", "negative", "neg", "no", "n", "false", "f", "0", "0.0"), TruthValue.ABSENT),
        **dict.fromkeys(("ungradable", "ungradeable", "not gradable", "not gradeable"), TruthValue.UNGRADABLE),
    }
)
_LATERALITIES: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("r", "right", "od"), "R"),
        **dict.fromkeys(("l", "left", "os"), "L"),
        **dict.fromkeys(("", "b", "both", "ou", "u", "unpaired"), ""),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TruthRow:
    """One reader's word, as it stands in a table."""

    line: int
    """Of the file, from 1."""
    keys: Mapping[TruthKey, str] = field(repr=False)  # PHI: accession number, UIDs
    """What it is about; at least one. All that are given must mean the same study."""
    model_name: str
    """Empty: whichever model has the finding."""
    finding_name: str
    """Empty: the model's only finding."""
    value: TruthValue
    laterality: str
    """``R``, ``L``, or empty for both or not said."""
    reader: str
    """Empty: the table does not say."""
    read_at: datetime | None
    """``None``: the table does not say. A date without a time is midnight UTC; a time without a zone is UTC."""
    comment: str = field(repr=False)

    @property
    def names_image(self) -> bool:
        """Whether the row is about one image rather than the whole study."""
        return TruthKey.SOP_INSTANCE_UID in self.keys or TruthKey.FILE in self.keys


def file_error(name: str, problems: Sequence[Problem]) -> TruthFileError:
    """The error of a table with these problems, of which the message names the first."""
    shown = [f"    {problem}" for problem in problems[:SHOWN_PROBLEMS]]
    if len(problems) > SHOWN_PROBLEMS:
        shown.append(f"    and {len(problems) - SHOWN_PROBLEMS} more")
    count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
    return TruthFileError("\n".join([f"{name}: {count}, nothing was taken in", *shown]), problems)


@dataclass(frozen=True, slots=True, kw_only=True)
class TruthOptions:
    """What is said beside the table; a column of the table, where it has one, prevails over all but `positive_from`."""

    model_name: str = ""
    finding_name: str = ""
    reader: str = ""
    positive_from: float | None = None
    """Values are grades: from this one on the finding is present. ``None``: values are present, absent, ungradable."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Column -> the header that this table has for it."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.columns) - set(COLUMNS))
        if unknown:
            raise TruthError(f"unknown column {unknown[0]!r}; known are {', '.join(COLUMNS)}")
        if self.positive_from is not None and not math.isfinite(self.positive_from):
            raise TruthError("the grade from which on a finding is present must be a number")


@dataclass(frozen=True, slots=True, kw_only=True)
class TruthFile:
    """A table that was read without a problem."""

    rows: tuple[TruthRow, ...]
    ignored_columns: tuple[str, ...]
    """Headers that mean nothing here."""


def read_truth(path: Path, options: TruthOptions | None = None) -> Iterator[TruthRow]:
    """The rows of a truth table in the order of its lines.

    The whole table is read before the first row is given.

    Raises
    ------
    TruthFileError
        It cannot be read, or something in it is wrong: carries every problem found.
    """
    return iter(read_truth_file(path, options).rows)


def read_truth_file(path: Path, options: TruthOptions | None = None) -> TruthFile:
    """As :func:`read_truth`, with what was left aside."""
    options = options or TruthOptions()
    lines = _Lines(_text(path), path.name)
    header_line, header = next(lines, (1, []))
    places, ignored = _places(header, header_line, options, path.name)
    problems: list[Problem] = []
    rows: list[TruthRow] = []
    for line, fields in lines:
        if not any(entry.strip() for entry in fields):
            continue
        made = _row(line, fields, len(header), places, options)
        if isinstance(made, TruthRow):
            rows.append(made)
        else:
            problems.extend(made)
    problems.extend(lines.problems)
    problems.extend(_contradictions(rows))
    if problems:
        raise file_error(path.name, sorted(problems, key=lambda problem: problem.line))
    if not rows:
        raise file_error(path.name, [Problem(line=header_line + 1, column="", found="", expected="a row")])
    return TruthFile(rows=tuple(rows), ignored_columns=ignored)


# --- the file ---


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST_FILE_BYTES:
            raise TruthError(f"{path.name}: larger than {LARGEST_FILE_BYTES} bytes")
        content = path.read_bytes()
    except OSError as error:
        raise TruthError(f"{path.name}: cannot be read: {error.strerror}") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        found = f"byte 0x{content[error.start]:02X}"
        if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
            line, found = 1, "UTF-16"
        problem = Problem(line=line, column="", found=found, expected="text in UTF-8")
        raise file_error(path.name, [problem]) from error


class _Lines:
    """(line number, fields) of a CSV text; what the csv module cannot read is a problem and ends it."""

    def __init__(self, text: str, name: str) -> None:
        self.problems: list[Problem] = []
        self._reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text), strict=True)
        self._name = name

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> tuple[int, list[str]]:
        line = self._reader.line_num + 1  # where the record begins; a quoted comment may run over several
        try:
            return line, next(self._reader)
        except csv.Error as error:
            problem = Problem(line=line, column="", found=f"'{error}'", expected="CSV (RFC 4180)")
            if line == 1:
                raise file_error(self._name, [problem]) from error
            self.problems.append(problem)
            raise StopIteration from error


def _delimiter(text: str) -> str:
    """What splits the header into the most fields."""
    header = text.split("\n", 1)[0]
    counts = {}
    for delimiter in _DELIMITERS:
        try:
            counts[delimiter] = len(next(csv.reader([header], delimiter=delimiter), []))
        except csv.Error:
            counts[delimiter] = 0
    return max(_DELIMITERS, key=lambda delimiter: counts[delimiter])


def _plain(header: str) -> str:
    return re.sub(r"[^0-9a-z]+", "", header.casefold())


_BY_HEADER: Mapping[str, str] = MappingProxyType(
    {_plain(header): column for column, others in COLUMNS.items() for header in (column, *others)}
)


def _places(
    header: Sequence[str], line: int, options: TruthOptions, name: str
) -> tuple[Mapping[str, int], tuple[str, ...]]:
    """Column -> index in the header, and the headers that mean nothing."""
    chosen = {_plain(found): column for column, found in options.columns.items()}
    taken: dict[str, int] = {}
    ignored: list[str] = []
    problems: list[Problem] = []
    for index, found in enumerate(header):
        column = chosen.get(_plain(found)) or _BY_HEADER.get(_plain(found))
        if column is None or (column in options.columns and _plain(found) not in chosen):
            ignored.append(found.strip())
            continue
        if column in taken:
            expected = f"one column for {column}; it is the {_ordinal(taken[column] + 1)} column already"
            problems.append(Problem(line=line, column=column, found=_quoted(found), expected=expected))
            continue
        taken[column] = index
    for column, found in options.columns.items():
        if column not in taken:
            expected = f"a header {_quoted(found)}, which was said to be {column}"
            problems.append(Problem(line=line, column=column, found=_headers(header), expected=expected))
    if not any(key in taken for key in TruthKey):
        expected = f"one of the columns {', '.join(sorted(TruthKey))}"
        problems.append(Problem(line=line, column="", found=_headers(header), expected=expected))
    if "value" not in taken:
        problems.append(Problem(line=line, column="value", found=_headers(header), expected="a column value"))
    if problems:
        raise file_error(name, problems)
    return taken, tuple(ignored)


def _headers(header: Sequence[str]) -> str:
    shown = ", ".join(_quoted(found) for found in header[:20])
    return f"headers {shown}" if shown else "no header"


def _ordinal(number: int) -> str:
    endings = {1: "st", 2: "nd", 3: "rd"}
    return f"{number}{'th' if 10 <= number % 100 <= 20 else endings.get(number % 10, 'th')}"


def _quoted(found: str) -> str:
    cut = found.strip()[:_SHOWN_CHARACTERS]
    shown = "".join(character if character.isprintable() else "?" for character in cut)
    return f"'{shown}{'...' if len(found.strip()) > _SHOWN_CHARACTERS else ''}'"


# --- a row ---


def _row(
    line: int, fields: Sequence[str], width: int, places: Mapping[str, int], options: TruthOptions
) -> TruthRow | list[Problem]:
    if len(fields) != width:
        found = f"{len(fields)} fields"
        return [Problem(line=line, column="", found=found, expected=f"{width}, as many as headers")]
    problems: list[Problem] = []

    def cell(column: str) -> str:
        return fields[places[column]].strip() if column in places else ""

    def wrong(column: str, expected: str, *, shown: bool = True) -> None:
        found = (_quoted(cell(column)) if cell(column) else "nothing") if shown else ""
        problems.append(Problem(line=line, column=column, found=found, expected=expected))

    keys = {key: cell(key) for key in TruthKey if cell(key)}
    if not keys:
        given = [key.value for key in TruthKey if key in places]
        wrong(given[0], f"a value in {' or '.join(given)}")
    for key, text in keys.items():
        expected = _expected_key(key, text)
        if expected:
            wrong(key, expected, shown=False)
    value = _value(cell("value"), options.positive_from)
    if value is None:
        wrong("value", _expected_value(options.positive_from))
    laterality = _LATERALITIES.get(cell("laterality").casefold())
    if laterality is None:
        wrong("laterality", "R, L, right, left, OD, OS, or nothing for both")
    read_at = _read_at(cell("date")) if cell("date") else None
    if cell("date") and read_at is None:
        wrong("date", "a date as 2026-11-24, 20261124 or 2026-11-24T09:30:00+01:00")
    names = {"model": options.model_name, "finding": options.finding_name, "reader": options.reader}
    longest = {"model": LONGEST_NAME, "finding": LONGEST_NAME, "reader": LONGEST_READER, "comment": LONGEST_COMMENT}
    for column, most in longest.items():
        if len(cell(column)) > most:
            wrong(column, f"at most {most} characters")
        elif column in names:
            names[column] = cell(column) or names[column]
    if problems or value is None or laterality is None:
        return problems
    return TruthRow(
        line=line,
        keys=MappingProxyType(keys),
        model_name=names["model"],
        finding_name=names["finding"],
        value=value,
        laterality=laterality,
        reader=names["reader"],
        read_at=read_at,
        comment=cell("comment"),
    )


def _expected_key(key: TruthKey, text: str) -> str:
    """What `key` should look like, where `text` does not; else empty."""
    if key is TruthKey.STUDY_KEY:
        return "" if re.fullmatch(r"[0-9a-f]{32}", text) else "the gateway's study key, 32 hexadecimal digits"
    if key in (TruthKey.STUDY_INSTANCE_UID, TruthKey.SOP_INSTANCE_UID):
        fits = re.fullmatch(r"[0-9]+(\.[0-9]+)+", text) and len(text) <= 64
        return "" if fits else "a UID (PS3.5 section 9.1)"
    return ""


def _value(text: str, positive_from: float | None) -> TruthValue | None:
    word = " ".join(text.casefold().split())
    if positive_from is None:
        return _WORDS.get(word)
    try:
        grade = float(word)
    except ValueError:
        return _WORDS.get(word)
    if not math.isfinite(grade):
        return None
    return TruthValue.PRESENT if grade >= positive_from else TruthValue.ABSENT


def _expected_value(positive_from: float | None) -> str:
    if positive_from is None:
        return "present, absent or ungradable (1/0, yes/no and true/false too); of grades, say which one is present"
    return f"a grade (a number; present from {positive_from:g} on), or present, absent, ungradable"


def _read_at(text: str) -> datetime | None:
    if not re.match(r"\d{4}-?\d{2}-?\d{2}", text):
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        try:
            moment = datetime.combine(date.fromisoformat(text), time())
        except ValueError:
            return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def _contradictions(rows: Iterable[TruthRow]) -> list[Problem]:
    """Where one reader says two things of the same, and no date tells which came later."""
    said: dict[tuple[object, ...], TruthRow] = {}
    problems = []
    for row in rows:
        subject = tuple(sorted(row.keys.items()))
        key = (subject, row.model_name, row.finding_name, row.laterality, row.reader, row.read_at)
        before = said.setdefault(key, row)
        if before.value is not row.value:
            expected = f"{before.value}, as in line {before.line}: same reader, same subject, and no later date"
            problems.append(Problem(line=row.line, column="value", found=_quoted(row.value), expected=expected))
    return problems
