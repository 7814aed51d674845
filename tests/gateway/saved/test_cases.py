"""Cases: of saved studies, of folders of originals, and what they tell."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from photographs import drawn_jpeg, op_dataset, pydicom_data, write
from saved_rows import keep, said

from gateway.deidentify import Deidentifier
from gateway.errors import SavedError, UnreadableError
from gateway.saved.cases import SLICE_NAMES, Skipped, iterate
from gateway.saved.query import parse_query
from gateway.store import Store

KEY = hashlib.sha256(b"the key of these cases").digest()


def test_cases_of_saved_studies_open_their_files(store: Store, tmp_path: Path) -> None:
    copy = Deidentifier(KEY).dataset(op_dataset(drawn_jpeg(1)))
    kept = keep(store, said(), said(version=2, role="shadow"), dataset=copy, data_dir=tmp_path)
    keep(store, said(laterality="L"), number=1, dataset=copy, data_dir=tmp_path)
    (case,) = iterate(parse_query("laterality=R"), store=store, data_dir=tmp_path)
    assert case.open().SOPInstanceUID == copy.SOPInstanceUID
    assert case.study_key == kept.study_key
    assert case.group_key == kept.person
    assert [each.model_version for each in case.predictions] == [1, 2]
    assert case.slices == {
        "device": "KOWA VX-10 · 1.0 · 1F2E",
        "manufacturer": "KOWA",
        "modality": "OP",
        "laterality": "R",
        "age_group": "60-69",
        "sex": "F",
        "site": "0A0B0C0D",
        "quality": "gradable",
    }


def test_a_saved_file_that_changed_is_not_opened(store: Store, tmp_path: Path) -> None:
    copy = Deidentifier(KEY).dataset(op_dataset(drawn_jpeg(1)))
    kept = keep(store, said(), dataset=copy, data_dir=tmp_path)
    (path,) = (tmp_path / kept.folder).iterdir()
    path.write_bytes(path.read_bytes()[:-2] + b"\1\1")
    (case,) = iterate(parse_query(""), store=store, data_dir=tmp_path)
    with pytest.raises(UnreadableError, match="has changed since it was saved"):
        case.open()
    path.unlink()
    with pytest.raises(UnreadableError, match="cannot be read"):
        case.open()


def test_a_folder_of_originals_is_deidentified_as_it_is_opened(tmp_path: Path) -> None:
    (tmp_path / "Doe, John").mkdir()
    original = op_dataset(drawn_jpeg(1), patient="Zqsecret^Zqgiven")
    original.PatientAge, original.InstitutionName = "067Y", "Zqhospital"
    write(original, tmp_path / "Doe, John" / "a.dcm")
    write(op_dataset(drawn_jpeg(2), patient="Zqsecret^Zqgiven", laterality="L"), tmp_path / "b.dcm")
    (tmp_path / "notes.txt").write_text("not an image")
    skipped: list[Skipped] = []
    found = list(iterate(tmp_path, deidentifier=Deidentifier(KEY), site_key=KEY, skip=skipped.append))
    assert [case.identifiers["file"] for case in found] == ["Doe, John/a.dcm", "b.dcm"]
    assert skipped == [Skipped(name="notes.txt", reason="not DICOM")]
    first, second = found
    assert first.slices["age_group"] == "60-69"
    assert (first.slices["laterality"], second.slices["laterality"]) == ("R", "L")
    assert first.slices["site"] != second.slices["site"] == ""
    assert first.group_key == second.group_key, "one person"
    assert first.study_key != second.study_key
    opened = first.open()
    assert opened.PatientIdentityRemoved == "YES"
    for planted in ("Zqsecret", "Zqhospital", str(original.SOPInstanceUID)):
        assert planted not in str(opened)
        assert planted not in f"{first.case_key} {first.study_key} {first.group_key} {dict(first.slices)} {first!r}"
    assert set(first.slices) == set(SLICE_NAMES)
    again = list(iterate(tmp_path, deidentifier=Deidentifier(KEY), site_key=KEY))
    assert [case.case_key for case in again] == [case.case_key for case in found]


def test_originals_are_not_taken_without_a_key(tmp_path: Path) -> None:
    write(op_dataset(drawn_jpeg(1)), tmp_path / "original.dcm")
    write(Deidentifier(KEY).dataset(op_dataset(drawn_jpeg(2))), tmp_path / "copy.dcm")
    skipped: list[Skipped] = []
    (case,) = iterate(tmp_path, skip=skipped.append)
    assert case.identifiers["file"] == "copy.dcm"
    assert case.open().PatientIdentityRemoved == "YES"
    assert [each.name for each in skipped] == ["original.dcm"]
    assert "no site key" in skipped[0].reason


def test_each_frame_is_a_case(tmp_path: Path) -> None:
    source = pydicom_data("color3d_jpeg_baseline.dcm")
    (tmp_path / "a.dcm").write_bytes(source.read_bytes())
    found = list(iterate(tmp_path, deidentifier=Deidentifier(KEY), site_key=KEY))
    assert [case.frame_index for case in found] == list(range(32)), "as many as are judged"
    assert len({case.case_key for case in found}) == 32


def test_what_is_not_there_is_said(store: Store, tmp_path: Path) -> None:
    with pytest.raises(SavedError, match="no such folder"):
        iterate(tmp_path / "nowhere")
    with pytest.raises(SavedError, match="data folder"):
        list(iterate(parse_query("")))
