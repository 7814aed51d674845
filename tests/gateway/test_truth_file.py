"""Truth tables: what is read, and that everything wrong is said at once, by place, without quoting an identifier."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from gateway.errors import TruthError, TruthFileError
from gateway.truth import COLUMNS, TruthKey, TruthOptions, TruthValue, read_truth, read_truth_file

KEY = "0123456789abcdef0123456789abcdef"
OTHER_KEY = "f" * 32


def table(folder: Path, text: str | bytes) -> Path:
    path = folder / "reads.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def problems_of(path: Path, options: TruthOptions | None = None) -> list[str]:
    with pytest.raises(TruthFileError) as caught:
        read_truth(path, options)
    return [str(problem) for problem in caught.value.problems]


def test_a_full_row(tmp_path: Path) -> None:
    path = table(
        tmp_path,
        "Study_Key,MODEL,Finding,Value,Laterality,Reader,Date,Comment\n"
        f'{KEY},retinopathy,referable_dr,present,R,Dr. A,2026-11-24T09:30:00+01:00,"said ""sure"",\nafter all"\n'
        f"{OTHER_KEY},,,absent,,,,\n",
    )
    first, second = read_truth(path)
    assert first.keys == {TruthKey.STUDY_KEY: KEY}
    assert (first.model_name, first.finding_name, first.laterality) == ("retinopathy", "referable_dr", "R")
    assert first.value is TruthValue.PRESENT
    assert first.read_at == datetime(2026, 11, 24, 9, 30, tzinfo=timezone(timedelta(hours=1)))
    assert first.comment == 'said "sure",\nafter all'
    assert first.line == 2
    assert second.line == 4  # the quoted comment runs over a line
    assert (second.model_name, second.finding_name, second.reader, second.read_at) == ("", "", "", None)
    assert not second.names_image


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_delimiters_marks_and_line_ends(tmp_path: Path, delimiter: str, start: bytes, newline: str) -> None:
    rows = [["accession_number", "value", "comment"], ["A-1", "yes", '"a, b; c"'], ["A-2", "0", "Grüße"]]
    text = newline.join(delimiter.join(row) for row in rows)
    first, second = read_truth(table(tmp_path, start + text.encode()))
    assert (first.keys, first.value, first.comment) == ({TruthKey.ACCESSION_NUMBER: "A-1"}, "present", "a, b; c")
    assert (second.value, second.comment) == ("absent", "Grüße")


@pytest.mark.parametrize(
    ("header", "column"),
    [
        ("StudyInstanceUID", "study_instance_uid"),
        ("Study Instance UID", "study_instance_uid"),
        ("ACCESSION", "accession_number"),
        ("AccessionNumber", "accession_number"),
        ("sop instance uid", "sop_instance_uid"),
        ("File Name", "file"),
        ("study-key", "study_key"),
    ],
)
def test_headers_are_known_without_case_and_punctuation(tmp_path: Path, header: str, column: str) -> None:
    text = KEY if column == "study_key" else "1.2.840.1"
    (row,) = read_truth(table(tmp_path, f"{header},Value\n{text},1\n"))
    assert row.keys == {TruthKey(column): text}


def test_no_header_means_two_columns() -> None:
    names = ["".join(filter(str.isalnum, name)) for column, others in COLUMNS.items() for name in (column, *others)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *((text, "present") for text in ("present", "PRESENT", " Positive ", "1", "1.0", "yes", "Y", "true", "T")),
        *((text, "absent") for text in ("absent", "negative", "0", "0.0", "No", "n", "FALSE")),
        *((text, "ungradable") for text in ("ungradable", "Ungradeable", "not  gradable")),
    ],
)
def test_values(tmp_path: Path, text: str, value: str) -> None:
    (row,) = read_truth(table(tmp_path, f"study_key,value\n{KEY},{text}\n"))
    assert row.value == value


def test_grades_of_the_international_scale(tmp_path: Path) -> None:
    # ICDR: 0 none, 1 mild, 2 moderate, 3 severe, 4 proliferative; referable from moderate on.
    text = "\n".join(f"{place:032x},{grade}" for place, grade in enumerate(["0", "1", "2", "3", "4", "2.0", "present"]))
    rows = read_truth(
        table(tmp_path, f"study_key,icdr\n{text}\n"), TruthOptions(positive_from=2, columns={"value": "ICDR"})
    )
    assert [str(row.value) for row in rows] == ["absent", "absent", *["present"] * 5]
    assert problems_of(table(tmp_path, f"study_key,value\n{KEY},nan\n"), TruthOptions(positive_from=2)) == [
        "line 2, column value: found 'nan', expected a grade (a number; present from 2 on), or present, absent, "
        "ungradable"
    ]


def test_options_fill_in_what_the_table_lacks(tmp_path: Path) -> None:
    options = TruthOptions(model_name="retinopathy", finding_name="referable_dr", reader="panel")
    first, second = read_truth(table(tmp_path, f"study_key,value,reader\n{KEY},1,Dr. A\n{OTHER_KEY},1,\n"), options)
    assert (first.model_name, first.finding_name, first.reader) == ("retinopathy", "referable_dr", "Dr. A")
    assert second.reader == "panel"
    with pytest.raises(TruthError, match="unknown column 'redaer'"):
        TruthOptions(columns={"redaer": "x"})


def test_everything_wrong_is_said_at_once_and_identifiers_are_not_quoted(tmp_path: Path) -> None:
    path = table(
        tmp_path,
        "study_instance_uid,finding,value,laterality,date\n"
        "1.2.3,f,maybe,X,yesterday\n"
        "Doe^Jane,f,1,R,2026-02-30\n"
        ",f,1,L,\n"
        "1.2.4,f,1\n"
        "1.2.5,f,,OD,20261124\n",
    )
    found = problems_of(path)
    assert found == [
        "line 2, column value: found 'maybe', expected present, absent or ungradable (1/0, yes/no and true/false too); "
        "of grades, say which one is present",
        "line 2, column laterality: found 'X', expected R, L, right, left, OD, OS, or nothing for both",
        "line 2, column date: found 'yesterday', expected a date as 2026-11-24, 20261124 or 2026-11-24T09:30:00+01:00",
        "line 3, column study_instance_uid: expected a UID (PS3.5 section 9.1)",
        "line 3, column date: found '2026-02-30', expected a date as 2026-11-24, 20261124 or 2026-11-24T09:30:00+01:00",
        "line 4, column study_instance_uid: found nothing, expected a value in study_instance_uid",
        "line 5: found 3 fields, expected 5, as many as headers",
        "line 6, column value: found nothing, expected present, absent or ungradable (1/0, yes/no and true/false too); "
        "of grades, say which one is present",
    ]
    with pytest.raises(TruthFileError) as caught:
        read_truth(path)
    assert "Doe" not in str(caught.value)
    assert str(caught.value).startswith("reads.csv: 8 problems, nothing was taken in\n    line 2")


def test_many_problems_are_counted_beyond_a_limit(tmp_path: Path) -> None:
    with pytest.raises(TruthFileError) as caught:
        read_truth(table(tmp_path, "study_key,value\n" + f"{KEY},maybe\n" * 70))
    assert len(caught.value.problems) == 70
    assert str(caught.value).count("\n") == 51
    assert str(caught.value).endswith("and 20 more")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "line 1: found no header, expected one of the columns"),
        (b"value\n1\n", "line 1: found headers 'value', expected one of the columns"),
        (b"study_key\n" + KEY.encode() + b"\n", "line 1, column value: found headers 'study_key'"),
        (b"study_key,value\n", "line 2: expected a row"),
        (b"study_key,value,grade\n", "found 'grade', expected one column for value; it is the 2nd column already"),
        (b"study_key,value\n" + b"\xe4,1\n", "line 2: found byte 0xE4, expected text in UTF-8"),
        ("study_key,value\n".encode("utf-16"), "line 1: found UTF-16, expected text in UTF-8"),
        (b'study_key,value\n"x,1\n', "line 2: found 'unexpected end of data', expected CSV"),
    ],
)
def test_what_is_no_table(tmp_path: Path, content: bytes, said: str) -> None:
    assert said in "\n".join(problems_of(table(tmp_path, content)))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TruthError, match=r"none\.csv: cannot be read: No such file"):
        read_truth(tmp_path / "none.csv")


def test_one_reader_who_says_two_things_needs_dates(tmp_path: Path) -> None:
    text = (
        "study_key,value,reader,date\n"
        + f"{KEY},1,A,\n{KEY},0,A,\n{KEY},0,B,\n{KEY},1,C,20260101\n{KEY},0,C,20260102\n"
    )
    assert problems_of(table(tmp_path, text)) == [
        "line 3, column value: found 'absent', expected present, as in line 2: same reader, same subject, and no later "
        "date"
    ]


def test_unknown_columns_are_named(tmp_path: Path) -> None:
    made = read_truth_file(table(tmp_path, f"study_key,value,Age\n{KEY},1,70\n"))
    assert made.ignored_columns == ("Age",)
    assert len(made.rows) == 1
    assert made.rows[0].read_at is None


def test_a_date_is_midnight_utc(tmp_path: Path) -> None:
    (row,) = read_truth(table(tmp_path, f"study_key,value,date\n{KEY},1,20261124\n"))
    assert row.read_at == datetime(2026, 11, 24, tzinfo=UTC)
