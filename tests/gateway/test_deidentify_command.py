"""``gateway deidentify``: folders of all kinds of files, as a user runs it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pydicom
import pytest
from bombs import BOMBS
from photographs import drawn_jpeg, op_dataset, write
from PIL import Image, ImageDraw, ImageFont
from pydicom import Dataset
from pydicom.data import get_testdata_file
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    DigitalMammographyXRayImageStorageForPresentation,
    DigitalXRayImageStorageForPresentation,
)
from small_objects import ct

from gateway.bulk.names import OUTPUT_NAME
from gateway.bulk.walk import walk
from gateway.cli import main
from gateway.deidentification.keys import load_or_create_key
from gateway.deidentification.options import Option, load_profile
from gateway.deidentify import Deidentifier

FAMILIES = {
    "CR": "RG3_J2KI.dcm",
    "CT": "CT_small.dcm",
    "MR": "MR_small.dcm",
    "US": "ExplVR_BigEnd.dcm",
    "SC": "SC_rgb_rle.dcm",
}
"""Real objects among pydicom's test files; DX, MG and OP are made."""


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("key") / "site.key"
    load_or_create_key(path)
    return path


def pydicom_data(name: str) -> Path:
    path = get_testdata_file(name, download=False)
    assert isinstance(path, str)
    return Path(path)


def labelled(sop_class_uid: str, modality: str, number: int) -> Dataset:
    """A small image of 4 x 4 pixels, an instance of its own."""
    dataset = ct()
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = sop_class_uid
    dataset.Modality, dataset.InstanceNumber = modality, number
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.4.5.{number}"
    return dataset


def many_ct(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        write(labelled("1.2.840.10008.5.1.4.1.1.2", "CT", number), folder / f"{number}.dcm")
    return folder


def mixed(folder: Path) -> Path:
    """One object of each of the eight families, in folders and files that are named after a patient."""
    place = folder / "MUELLER^JANE" / "SECRET-1 19500101"
    place.mkdir(parents=True)
    for family, name in FAMILIES.items():
        (place / f"Jane {family}.dcm").write_bytes(pydicom_data(name).read_bytes())
    write(labelled(DigitalXRayImageStorageForPresentation, "DX", 100), place / "Jane DX.dcm")
    write(labelled(DigitalMammographyXRayImageStorageForPresentation, "MG", 101), place / "Jane MG.dcm")
    write(op_dataset(drawn_jpeg()), place / "Jane OP.dcm")
    return folder


def rows_of(output: Path, state: str | None = None) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (output / "manifest.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == "file" and state in (None, row["state"])]


def outputs_in(output: Path) -> dict[str, str]:
    """Every file in `output` but the manifest, with its SHA-256."""
    return {
        str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in output.rglob("*")
        if path.is_file() and path.name != "manifest.jsonl"
    }


class Command:
    """Runs the command in this process."""

    def __init__(self, key_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._key_file, self._capsys, self.errors = key_file, capsys, ""

    def __call__(self, source: Path, output: Path, *more: str, processes: int = 1) -> tuple[int, dict[str, Any]]:
        arguments = ["deidentify", str(source), str(output), "--key-file", str(self._key_file), "--json"]
        status = main([*arguments, "--processes", str(processes), *more])
        printed, self.errors = self._capsys.readouterr()
        return status, json.loads(printed) if printed else {}


@pytest.fixture
def deidentify(key_file: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(key_file, capsys)


@pytest.fixture
def start(key_file: Path) -> Iterator[Any]:
    """Starts the command as a process of its own."""
    started: list[subprocess.Popen[str]] = []

    def begin(source: Path, output: Path, *more: str, limit_file_bytes: int | None = None) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "gateway.cli", "deidentify", str(source), str(output)]
        command += ["--key-file", str(key_file), *more]
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        if limit_file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_file_bytes, before[1]))
        try:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def until(found: Any, patience_s: float = 60.0) -> Any:
    """What `found` gives once it gives something."""
    end_s = time.monotonic() + patience_s
    while not (result := found()):
        assert time.monotonic() < end_s, "it did not happen in time"
        time.sleep(0.02)
    return result


def who_reads(path: Path, parent: int) -> int:
    """The child of `parent` that has `path` open, 0 if none has."""
    with contextlib.suppress(OSError):  # one has ended meanwhile
        for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
            for link in Path(f"/proc/{child}/fd").iterdir():
                if str(link.readlink()) == str(path):
                    return int(child)
    return 0


# --- all kinds of objects ---------------------------------------------------------------------------------------------


def test_eight_families_come_out_under_names_that_say_nothing(start: Any, key_file: Path, tmp_path: Path) -> None:
    source, output, crosswalk = mixed(tmp_path / "in"), tmp_path / "out", tmp_path / "crosswalk.jsonl"
    before = outputs_in(source)
    process = start(source, output, "--processes", "2", "--crosswalk", str(crosswalk))
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 0, printed + errors
    assert "8 files: 8 done, 0 skipped, 0 refused, 0 failed" in printed
    assert "files/s" in printed
    assert errors == ""  # no bar, since nobody watches; no library's warning, which could quote a value
    assert outputs_in(source) == before

    made = outputs_in(output)
    assert len(made) == 8
    assert all(OUTPUT_NAME.fullmatch(name) for name in made)
    rows = rows_of(output)
    assert {row["output"]: row["output_sha256"] for row in rows} == made
    assert {row["source_sha256"] for row in rows} == set(before.values())
    key = load_or_create_key(key_file)
    for walked in (json.loads(line) for line in crosswalk.read_text().splitlines()[1:]):
        original, copy = pydicom.dcmread(source / walked["path"]), pydicom.dcmread(output / walked["output"])
        expected = Deidentifier(key).dataset(original)
        assert copy.SOPInstanceUID == expected.SOPInstanceUID
        assert copy.PatientID.lower() == expected.PatientID.lower() == walked["output"].split("/")[0]
        assert copy.file_meta.TransferSyntaxUID == original.file_meta.TransferSyntaxUID
    assert stat_mode(crosswalk) == 0o600


def stat_mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_the_manifest_says_what_was_done_and_nothing_of_whom(
    deidentify: Command, key_file: Path, tmp_path: Path
) -> None:
    source, output = mixed(tmp_path / "in"), tmp_path / "out"
    assert deidentify(source, output)[0] == 0
    content = (output / "manifest.jsonl").read_bytes()
    for word in (b"Jane", b"JANE", b"SECRET", b"19500101", b"1.2.3.4", b"M\xc3\xbcller", str(tmp_path).encode()):
        assert word not in content
    lines = [json.loads(line) for line in content.splitlines()]
    assert [lines[0]["kind"], lines[-1]["kind"]] == ["run", "summary"]
    assert lines[0]["profile"]["options"] == ["retain_device_identity"]
    assert lines[0]["edition"] == "2026d"
    assert load_or_create_key(key_file).hex() not in content.decode().lower()
    assert lines[-1]["done"] == lines[-1]["files"] == 8
    content = pydicom_data("CT_small.dcm").read_bytes()
    (row,) = [row for row in rows_of(output) if row["source_sha256"] == hashlib.sha256(content).hexdigest()]
    assert row["options"] == ["retain_device_identity"]
    attributes = {name: group["action"] for group in row["changes"] for name in group["attributes"]}
    assert attributes["(0010,0010) PatientName"] == "replaced"
    assert attributes["(0008,0018) SOPInstanceUID"] == "new UID"
    assert attributes["(0028,0010) Rows"] == "kept"
    # Everything that the original has is accounted for.
    original = pydicom.dcmread(pydicom_data("CT_small.dcm"))
    assert {f"({each.tag.group:04X},{each.tag.element:04X})" for each in original} <= {name[:11] for name in attributes}


def test_names_do_not_tell_uids_that_are_retained(deidentify: Command, tmp_path: Path) -> None:
    profile = tmp_path / "profile.toml"
    profile.write_text('options = ["retain_uids"]')
    source, output = many_ct(tmp_path / "in", 2), tmp_path / "out"
    assert deidentify(source, output, "--profile", str(profile))[0] == 0
    for name in outputs_in(output):
        copy = pydicom.dcmread(output / name)
        assert str(copy.SOPInstanceUID).startswith("1.2.3.4.5.")
        plain = (
            hashlib.sha256(str(each).encode()).hexdigest() for each in (copy.SOPInstanceUID, copy.StudyInstanceUID)
        )
        assert not any(digest[:16] in name for digest in plain)
    assert (output / "manifest.jsonl").read_text().count("1.2.3.4.5") == 0


def test_a_single_file_is_taken_too(deidentify: Command, tmp_path: Path) -> None:
    status, summary = deidentify(pydicom_data("MR_small.dcm"), tmp_path / "out")
    assert (status, summary["done"]) == (0, 1)


def test_text_in_pixels_is_blanked_and_counted(deidentify: Command, tmp_path: Path) -> None:
    pytest.importorskip("rapidocr", reason="the network that finds text is not installed (scripts/setup does)")
    profile = tmp_path / "profile.toml"
    profile.write_text('options = ["clean_pixel_data"]')
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    picture = Image.new("L", (400, 300), 30)
    ImageDraw.Draw(picture).text((20, 20), "MUELLER JANE 01.01.1950", fill=255, font=ImageFont.load_default(24))
    dataset = labelled("1.2.840.10008.5.1.4.1.1.7", "OT", 7)
    dataset.Rows, dataset.Columns, dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 300, 400, 8, 8, 7
    dataset.PixelData, dataset.BurnedInAnnotation = picture.tobytes(), "YES"
    dataset["PixelData"].VR = "OB"
    write(dataset, source / "text.dcm")
    (source / "ct.dcm").write_bytes(pydicom_data("CT_small.dcm").read_bytes())
    status, summary = deidentify(source, output, "--profile", str(profile))
    assert status == 0, summary["reasons"]
    counts = {row["source_kib"]: row["pixels"]["boxes"] for row in rows_of(output, "done")}
    assert counts[max(counts)] >= 1
    assert summary["pixel_boxes"] == sum(counts.values())
    copies = [pydicom.dcmread(output / name) for name in outputs_in(output)]
    (copy,) = [each for each in copies if each.Rows == 300]
    assert copy.pixel_array[20:44, 20:320].max() < 100
    assert copy.BurnedInAnnotation == "NO"


def test_without_a_text_finder_no_file_is_touched(
    deidentify: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.deidentification.burned_in_text.MODEL_SHA256", "of another network")
    profile = tmp_path / "profile.toml"
    profile.write_text('options = ["clean_pixel_data"]')
    assert deidentify(many_ct(tmp_path / "in", 1), tmp_path / "out", "--profile", str(profile))[0] == 2
    assert "network that finds burned-in text" in deidentify.errors
    assert not (tmp_path / "out").exists()


# --- again, and in between --------------------------------------------------------------------------------------------


def test_a_second_run_does_only_what_is_not_done(deidentify: Command, tmp_path: Path) -> None:
    source, output = many_ct(tmp_path / "in", 4), tmp_path / "out"
    assert deidentify(source, output)[0] == 0
    first = outputs_in(output)
    gone = output / min(first)
    times = {name: (output / name).stat().st_mtime_ns for name in first}
    gone.unlink()
    many_ct(source, 5)
    (source / "renamed.dcm").write_bytes((source / "0.dcm").read_bytes())
    (source / "0.dcm").unlink()
    status, summary = deidentify(source, output)
    assert (status, summary["done"], summary["skipped"]) == (0, 2, 3)
    again = outputs_in(output)
    assert first.items() <= again.items()
    assert len(again) == 5
    untouched = {name: (output / name).stat().st_mtime_ns for name in first if output / name != gone}
    assert untouched.items() <= times.items()


def test_what_a_kill_leaves_is_whole_and_the_next_run_goes_on(start: Any, deidentify: Command, tmp_path: Path) -> None:
    source, output, undisturbed = many_ct(tmp_path / "in", 80), tmp_path / "out", tmp_path / "undisturbed"
    process = start(source, output, "--processes", "2")
    until(lambda: (output / "manifest.jsonl").is_file() and len(rows_of_torn(output)) >= 10)
    process.kill()
    process.wait()
    left = {name: digest for name, digest in outputs_in(output).items() if not name.startswith(".unfinished")}
    assert 10 <= len(left) < 80
    with (output / "manifest.jsonl").open("ab") as file:
        file.write(b'{"kind":"file","state":"do')  # as if cut short while a row was written
    status, summary = deidentify(source, output, processes=2)
    assert status == 0, deidentify.errors
    assert summary["done"] + summary["skipped"] == 80
    assert summary["skipped"] >= 10
    assert deidentify(source, undisturbed)[0] == 0
    assert outputs_in(output) == outputs_in(undisturbed)
    assert left.items() <= outputs_in(output).items()
    assert not (output / ".unfinished").exists()


def rows_of_torn(output: Path) -> list[str]:
    return [line for line in (output / "manifest.jsonl").read_text().splitlines() if '"state":"done"' in line]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_it_cleanly(start: Any, tmp_path: Path, number: signal.Signals) -> None:
    source, output = many_ct(tmp_path / "in", 80), tmp_path / "out"
    process = start(source, output, "--processes", "2")
    until(lambda: (output / "manifest.jsonl").is_file() and len(rows_of_torn(output)) >= 3)
    process.send_signal(number)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in printed
    assert errors == ""
    made = {row["output"]: row["output_sha256"] for row in rows_of(output, "done")}
    assert made == outputs_in(output)
    assert len(made) < 80
    summary = json.loads((output / "manifest.jsonl").read_text().splitlines()[-1])
    assert summary["stopped"] == "interrupted"


def test_a_profile_is_the_same_when_it_is_read_again(deidentify: Command, tmp_path: Path) -> None:
    profile = tmp_path / "profile.toml"
    profile.write_text(
        'options = ["retain_uids", "retain_safe_private"]\n'
        'safe_private = [{ creator = "GATEWAY TEST", group = 0x0009, element = 0x01 }]\n'
        'further_sop_classes = ["1.2.840.10008.5.1.4.1.1.128"]\n'
    )
    source, output = many_ct(tmp_path / "in", 1), tmp_path / "out"
    assert deidentify(source, output, "--profile", str(profile))[0] == 0
    status, summary = deidentify(source, output, "--profile", str(profile))
    assert (status, summary["skipped"]) == (0, 1)


def test_two_runs_into_one_folder_do_not_meet(start: Any, deidentify: Command, tmp_path: Path) -> None:
    source, output = many_ct(tmp_path / "in", 1), tmp_path / "out"
    held = source / "held.dcm"
    with held.open("wb") as file:
        file.truncate(1 << 40)  # takes many minutes to hash
    process = start(source, output, "--processes", "1")
    until(lambda: who_reads(held, process.pid))
    status, _ = deidentify(source, output)
    assert status == 2
    status, _ = deidentify(source, tmp_path / "other", "--manifest", str(output / "manifest.jsonl"))
    assert status == 2


def test_another_key_or_profile_needs_another_folder(
    deidentify: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output, other = many_ct(tmp_path / "in", 1), tmp_path / "out", tmp_path / "other.key"
    assert deidentify(source, output)[0] == 0
    load_or_create_key(other)
    arguments = ["deidentify", str(source), str(output), "--processes", "1", "--key-file"]
    assert main([*arguments, str(other)]) == 2
    assert "another key fingerprint" in capsys.readouterr().err
    profile = tmp_path / "profile.toml"
    profile.write_text("options = []")
    assert deidentify(source, output, "--profile", str(profile))[0] == 2
    assert len(outputs_in(output)) == 1


# --- duplicates and files in the way ----------------------------------------------------------------------------------


def test_the_same_bytes_come_out_once_and_other_bytes_of_one_instance_too(deidentify: Command, tmp_path: Path) -> None:
    source, output = many_ct(tmp_path / "in", 1), tmp_path / "out"
    (source / "copy.dcm").write_bytes((source / "0.dcm").read_bytes())
    status, summary = deidentify(source, output, processes=2)
    assert (status, summary["done"], summary["skipped"]) == (0, 1, 1)
    (skipped,) = rows_of(output, "skipped")
    assert skipped["output"] == rows_of(output, "done")[0]["output"]

    other = pydicom.dcmread(source / "0.dcm")
    other.PixelData = bytes(32)
    other.PatientID = "OTHER"  # would lie in another folder
    other.save_as(source / "other.dcm")
    status, summary = deidentify(source, output, processes=2)
    assert (status, summary["skipped"], summary["done"]) == (0, 2, 1)
    assert "same SOP Instance UID" in rows_of(output, "done")[-1]["reason"]
    assert len(outputs_in(output)) == 2
    assert len({str(pydicom.dcmread(output / path).SOPInstanceUID) for path in outputs_in(output)}) == 1
    status, summary = deidentify(source, output, processes=2)
    assert (status, summary["skipped"], summary["done"]) == (0, 3, 0)


def test_a_header_without_its_pixels_or_its_study_is_deidentified(deidentify: Command, tmp_path: Path) -> None:
    source, output = many_ct(tmp_path / "in", 1), tmp_path / "out"
    header = pydicom.dcmread(source / "0.dcm")
    del header.PixelData, header.StudyInstanceUID, header.SeriesInstanceUID
    header.save_as(source / "0.dcm")
    assert deidentify(source, output)[0] == 0
    (path,) = outputs_in(output)
    assert pydicom.dcmread(output / path).PatientIdentityRemoved == "YES"
    assert "before its content" in rows_of(output, "done")[0]["reason"]


def test_zeros_behind_the_last_element_are_padding_and_other_bytes_are_not(deidentify: Command, tmp_path: Path) -> None:
    source, output = many_ct(tmp_path / "in", 2), tmp_path / "out"
    for name, tail in (("0.dcm", bytes(512)), ("1.dcm", bytes(500) + b"Doe^Jane    ")):
        with (source / name).open("ab") as file:
            file.write(tail)
    status, summary = deidentify(source, output)
    assert (status, summary["done"], summary["refused"]) == (1, 1, 1)


def test_a_file_in_the_way_is_never_overwritten(deidentify: Command, tmp_path: Path) -> None:
    source, output = many_ct(tmp_path / "in", 2), tmp_path / "out"
    assert deidentify(source, output)[0] == 0
    first, second = sorted(outputs_in(output))
    (output / "manifest.jsonl").unlink()
    (output / first).write_bytes(b"mine")
    status, summary = deidentify(source, output)
    assert (status, summary["done"], summary["refused"]) == (1, 1, 1)
    assert (output / first).read_bytes() == b"mine"
    assert rows_of(output, "done")[0]["output"] == second


def test_nothing_is_written_through_a_link_in_the_output(deidentify: Command, tmp_path: Path) -> None:
    source, output, elsewhere = many_ct(tmp_path / "in", 1), tmp_path / "out", tmp_path / "elsewhere"
    assert deidentify(source, tmp_path / "first")[0] == 0
    (name,) = outputs_in(tmp_path / "first")
    for folder in (output, elsewhere):
        folder.mkdir()
    (output / name.split("/")[0]).symlink_to(elsewhere)
    status, summary = deidentify(source, output)
    assert (status, summary["refused"]) == (1, 1)
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("name", ["manifest.jsonl", ".unfinished"])
def test_records_and_unfinished_files_do_not_go_through_links(deidentify: Command, tmp_path: Path, name: str) -> None:
    source, output, elsewhere = many_ct(tmp_path / "in", 1), tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine").write_text("mine")
    output.mkdir()
    (output / name).symlink_to(elsewhere / "mine" if name.endswith("jsonl") else elsewhere)
    assert deidentify(source, output)[0] == 2
    assert [each.read_text() for each in elsewhere.iterdir()] == ["mine"]


def test_names_of_any_bytes_are_read_and_told(deidentify: Command, tmp_path: Path) -> None:
    source, output, crosswalk = many_ct(tmp_path / "in", 1), tmp_path / "out", tmp_path / "crosswalk.jsonl"
    (source / "0.dcm").rename(source / os.fsdecode(b"M\xfcller\n.dcm"))
    status, _ = deidentify(source, output, "--crosswalk", str(crosswalk))
    assert status == 0
    told = json.loads(crosswalk.read_text().splitlines()[1])
    assert os.fsencode(told["path"]) == b"M\xfcller\n.dcm"
    assert told["output"] in outputs_in(output)


# --- what is hostile or broken ----------------------------------------------------------------------------------------


def head_and_data_set(dataset: Dataset, tmp_path: Path) -> tuple[bytes, bytes]:
    content = write(dataset, tmp_path / "whole.dcm").read_bytes()
    end = 144 + int(struct.unpack("<I", content[140:144])[0])
    return content[:end], content[end:]


def deflated(tmp_path: Path, number: int, inflated_bytes: int) -> bytes:
    """A CT image, and then a private attribute of zeros that is `inflated_bytes` long."""
    dataset = labelled("1.2.840.10008.5.1.4.1.1.2", "CT", number)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    head, _ = head_and_data_set(dataset, tmp_path)
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    _, plain = head_and_data_set(dataset, tmp_path)
    (tmp_path / "whole.dcm").unlink()
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    start = plain + struct.pack("<HH2sHI", 0x7FE1, 0x1001, b"OB", 0, inflated_bytes)
    stream = deflate.compress(start) + deflate.flush(zlib.Z_FULL_FLUSH)
    zeros = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    block = zeros.compress(bytes(1 << 20)) + zeros.flush(zlib.Z_FULL_FLUSH)
    stream += block * (inflated_bytes >> 20) + b"\x03\x00"
    return head + stream


def nested(depth: int, tmp_path: Path) -> bytes:
    head, data_set = head_and_data_set(labelled("1.2.840.10008.5.1.4.1.1.2", "CT", 999), tmp_path)
    (tmp_path / "whole.dcm").unlink()
    sequence = struct.pack("<HH2sHI", 0x7FE1, 0x1001, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    ends = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    return head + data_set + sequence * depth + ends * depth


def hostile(folder: Path, tmp_path: Path) -> dict[str, str]:
    """Files that must not get through, and a word of the reason."""
    content = pydicom_data("CT_small.dcm").read_bytes()
    (folder / "empty.dcm").write_bytes(b"")
    (folder / "notes.txt").write_text("Jane Mueller, born 1950")
    (folder / "truncated.dcm").write_bytes(content[:-100])
    (folder / "nested.dcm").write_bytes(nested(20_000, tmp_path))
    (folder / "deflated.dcm").write_bytes(deflated(tmp_path, 998, 3 << 30))
    (folder / "DICOMDIR").write_bytes(pydicom_data("DICOMDIR").read_bytes())
    (folder / "link.dcm").symlink_to(pydicom_data("CT_small.dcm"))
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe.dcm")
    return {
        "empty.dcm": "not a DICOM file",
        "notes.txt": "not a DICOM file",
        "truncated.dcm": "truncated",
        "nested.dcm": "nested deeper",
        "deflated.dcm": "inflates to more than",
        "DICOMDIR": "a DICOMDIR",
        "link.dcm": "symbolic link",
        "loop": "symbolic link",
        "pipe.dcm": "not a regular file",
    }


def test_hostile_files_cost_themselves_alone(deidentify: Command, tmp_path: Path) -> None:
    source, output, crosswalk = many_ct(tmp_path / "in", 3), tmp_path / "out", tmp_path / "crosswalk.jsonl"
    expected = hostile(source, tmp_path)
    assert (source / "deflated.dcm").stat().st_size < 4 << 20
    status, summary = deidentify(source, output, "--crosswalk", str(crosswalk), processes=2)
    assert (status, summary["done"], summary["refused"], summary["failed"]) == (1, 3, len(expected), 0)
    assert len(outputs_in(output)) == 3
    told = {row["path"]: row for row in (json.loads(line) for line in crosswalk.read_text().splitlines()[1:])}
    for name, word in expected.items():
        assert word in told[name]["reason"]
        assert told[name]["output"] is None
    assert {row["source"] for row in told.values()} == {row["source"] for row in rows_of(output)}
    assert "Jane" not in (output / "manifest.jsonl").read_text()
    assert sum(summary["reasons"].values()) == len(expected)


def test_pictures_that_bomb_a_decoder_hurt_nothing(deidentify: Command, tmp_path: Path) -> None:
    source, output = many_ct(tmp_path / "in", 1), tmp_path / "out"
    for number, make in enumerate(BOMBS.values()):
        dataset = make()
        dataset.StudyInstanceUID = dataset.SeriesInstanceUID = "1.2.3.4.9"
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.4.9.{number}"
        write(dataset, source / f"bomb{number}.dcm")
    status, summary = deidentify(source, output)
    assert summary["files"] == 1 + len(BOMBS)
    assert summary["failed"] == 0
    assert len(outputs_in(output)) == summary["done"] >= 1
    assert status in (0, 1)


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """Root reads every folder; somebody else does not."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_folder_that_cannot_be_read_is_one_thing_and_the_rest_goes_on() -> None:
    with tempfile.TemporaryDirectory() as name:
        source = Path(name)
        source.chmod(0o755)
        for folder in ("closed", "open"):
            (source / folder).mkdir()
            (source / folder).chmod(0o755)  # whatever the umask
            (source / folder / "file").touch()
        (source / "closed").chmod(0)
        with nobody():
            found = {each.path: each for each in walk(source)}
    assert set(found) == {"closed", "open/file"}
    assert found["closed"].problem == "the folder cannot be read: Permission denied"
    assert found["closed"].failed


def test_what_cannot_be_read_is_listed_as_failed(deidentify: Command, tmp_path: Path) -> None:
    source, output = many_ct(tmp_path / "in", 1), tmp_path / "out"
    here = os.open(source, os.O_RDONLY)  # below, paths get longer than they may be
    try:
        for _ in range(25):
            os.mkdir("d" * 200, dir_fd=here)
            below = os.open("d" * 200, os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=here))
    finally:
        os.close(here)
    status, summary = deidentify(source, output)
    assert (status, summary["done"], summary["failed"]) == (1, 1, 1)
    assert rows_of(output, "failed")[0]["reason"] == "the folder cannot be read: File name too long"


def test_a_file_that_takes_too_long_is_listed(deidentify: Command, tmp_path: Path) -> None:
    source, output = many_ct(tmp_path / "in", 2), tmp_path / "out"
    with (source / "endless.dcm").open("wb") as file:
        file.truncate(1 << 40)
    status, summary = deidentify(source, output, "--time-limit", "1")
    assert (status, summary["done"], summary["failed"]) == (1, 2, 1)
    assert rows_of(output, "failed")[0]["reason"] == "it took more than 1 s"


def test_a_file_that_takes_too_much_memory_is_listed(deidentify: Command, tmp_path: Path) -> None:
    source, output = many_ct(tmp_path / "in", 2), tmp_path / "out"
    (source / "large.dcm").write_bytes(deflated(tmp_path, 998, 200 << 20))
    status, summary = deidentify(source, output, "--memory-limit", "100")
    assert (status, summary["done"], summary["failed"]) == (1, 2, 1)
    assert rows_of(output, "failed")[0]["reason"] == "it needs more memory than a file may take"


def test_a_worker_that_is_killed_costs_its_file_alone(start: Any, tmp_path: Path) -> None:
    source, output = many_ct(tmp_path / "in", 20), tmp_path / "out"
    victim = source / "victim.dcm"
    with victim.open("wb") as file:
        file.truncate(1 << 40)
    process = start(source, output, "--processes", "1", "--json")
    worker = until(lambda: who_reads(victim, process.pid))
    os.kill(worker, signal.SIGKILL)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 1, errors
    summary = json.loads(printed)
    assert (summary["done"], summary["failed"]) == (20, 1)
    assert rows_of(output, "failed")[0]["reason"] == "the process was killed (signal 9)"


# --- no room ----------------------------------------------------------------------------------------------------------


def test_what_finds_no_room_is_listed_and_not_half_there(start: Any, tmp_path: Path) -> None:
    source, output = many_ct(tmp_path / "in", 3), tmp_path / "out"
    (source / "large.dcm").write_bytes(pydicom_data("693_UNCI.dcm").read_bytes())
    process = start(source, output, "--processes", "1", "--json", limit_file_bytes=256 << 10)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 1, errors
    summary = json.loads(printed)
    assert (summary["done"], summary["failed"]) == (3, 1)
    assert rows_of(output, "failed")[0]["reason"] == "no room for the output"
    assert {row["output"] for row in rows_of(output, "done")} == set(outputs_in(output))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "none", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_stops_it_and_it_goes_on_when_there_is_room(deidentify: Command, small_disk: Path) -> None:
    source, output = small_disk.parent / "in", small_disk / "out"
    source.mkdir()
    original = pydicom.dcmread(pydicom_data("693_UNCI.dcm"))
    for number in range(40):
        original.SOPInstanceUID = original.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.4.5.{number}"
        original.save_as(source / f"{number}.dcm")
    status, summary = deidentify(source, output)
    assert status == 1
    assert summary["stopped"] == "the disk is full"
    assert 1 <= summary["done"] <= 6  # half a megabyte each
    assert summary["done"] + summary["failed"] == summary["files"] < 40
    made = outputs_in(output)
    assert {row["output"]: row["output_sha256"] for row in rows_of(output, "done")} == made
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    status, again = deidentify(source, output)
    assert (status, again["done"] + again["skipped"]) == (0, 40)
    assert again["skipped"] == summary["done"]
    assert made.items() <= outputs_in(output).items()


# --- arguments --------------------------------------------------------------------------------------------------------


def test_without_a_key_it_says_how_to_make_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = many_ct(tmp_path / "in", 1), tmp_path / "out"
    assert main(["deidentify", str(source), str(output)]) == 2
    assert "gateway key FILE" in capsys.readouterr().err
    for content in (b"", b"secret", bytes(32), b"correct horse battery staple correct horse"):
        weak = tmp_path / "weak.key"
        weak.write_bytes(content)
        weak.chmod(0o600)
        assert main(["deidentify", str(source), str(output), "--key-file", str(weak)]) == 2
        assert "key" in capsys.readouterr().err
    assert main(["deidentify", str(source), str(output), "--key-file", str(tmp_path / "missing")]) == 2
    assert not output.exists()


def test_a_key_is_made_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new.key"
    assert main(["key", str(path)]) == 0
    content = path.read_bytes()
    assert len(content) == 32
    assert stat_mode(path) == 0o600
    assert content.hex() not in capsys.readouterr().out
    assert main(["key", str(path)]) == 2
    assert path.read_bytes() == content
    assert main(["key", str(tmp_path / "second.key")]) == 0
    assert (tmp_path / "second.key").read_bytes() != content
    (tmp_path / "link.key").symlink_to(tmp_path / "target")
    assert main(["key", str(tmp_path / "link.key")]) == 2
    assert not (tmp_path / "target").exists()


def test_overlaps_and_phi_in_the_output_are_refused(deidentify: Command, tmp_path: Path) -> None:
    source = many_ct(tmp_path / "in", 1)
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "file").write_text("")
    before = outputs_in(tmp_path)
    out = tmp_path / "out"
    for arguments in (
        (source, source),
        (source, source / "out"),
        (source / "..", tmp_path / "out"),
        (source, tmp_path / "link" / "out"),
        (tmp_path / "link", source / "out"),
        (source, tmp_path / "file"),
        (tmp_path / "missing", out),
        (source, out, "--crosswalk", str(out / "crosswalk.jsonl")),
        (source, out, "--crosswalk", str(source / "crosswalk.jsonl")),
        (source, out, "--crosswalk", str(tmp_path / "link" / "crosswalk.jsonl")),
        (source, out, "--manifest", str(source / "manifest.jsonl")),
        (source, out, "--manifest", str(source)),
        (source, out, "--profile", str(tmp_path / "missing.toml")),
        (source, out, "--processes", "0"),
    ):
        assert deidentify(*arguments)[0] == 2, arguments
    assert outputs_in(tmp_path) == before
    assert not out.exists()


def test_a_record_that_others_may_read_or_that_is_something_else_is_refused(
    deidentify: Command, tmp_path: Path
) -> None:
    source, crosswalk = many_ct(tmp_path / "in", 1), tmp_path / "crosswalk.jsonl"
    crosswalk.write_text("my notes")
    crosswalk.chmod(0o600)
    assert deidentify(source, tmp_path / "out", "--crosswalk", str(crosswalk))[0] == 2
    crosswalk.write_text("")
    crosswalk.chmod(0o644)
    assert deidentify(source, tmp_path / "out", "--crosswalk", str(crosswalk))[0] == 2
    notes = tmp_path / "notes.txt"
    notes.write_text("my notes\n")
    assert deidentify(source, tmp_path / "out", "--manifest", str(notes))[0] == 2
    assert notes.read_text() == "my notes\n"
    assert outputs_in(tmp_path / "out") == {}


def test_the_key_is_not_passed_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = many_ct(tmp_path / "in", 1), tmp_path / "out"
    output.mkdir()
    load_or_create_key(output / "site.key")
    assert main(["deidentify", str(source), str(output), "--key-file", str(output / "site.key")]) == 2
    assert "key lies inside OUT" in capsys.readouterr().err


def test_an_empty_folder_is_not_well(deidentify: Command, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    status, summary = deidentify(tmp_path / "in", tmp_path / "out")
    assert (status, summary["files"]) == (1, 0)


def test_reasons_count_together_whatever_their_numbers() -> None:
    from gateway.bulk.run import Summary

    summary = Summary()
    for number in (5, 1234):
        reason = f"the data set is truncated in (7FE0,0010) at byte {number}"
        summary.add({"state": "refused", "reason": reason})
    assert summary.reasons == {"the data set is truncated in (7FE0,0010) at byte N": 2}
    assert re.search(r"7FE0,0010", next(iter(summary.reasons)))


def test_the_audit_finds_what_was_planted_and_nothing_after(
    deidentify: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output, names = many_ct(tmp_path / "in", 2), tmp_path / "out", tmp_path / "names.txt"
    names.write_text("SECRET-1\n\nJane\n")
    assert main(["deidentify", "--audit", str(source), "--names", str(names), "--json"]) == 1
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert any("0010,0010" in each["where"] for each in found)
    assert all("Jane" not in each["excerpt"] for each in found)
    assert deidentify(source, output)[0] == 0
    status = main(["deidentify", "--audit", str(output), "--names", str(names)])
    assert (status, capsys.readouterr().out) == (0, "nothing that looks like PHI was found\n")
    assert main(["deidentify", "--audit", str(tmp_path / "missing")]) == 2
    assert main(["deidentify", str(source), "--audit", str(output)]) == 2


DOCS = Path(__file__).resolve().parents[2] / "docs" / "deidentify-command.md"


def test_the_profile_in_the_docs_is_one_and_names_every_option(tmp_path: Path, key_file: Path) -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
    profile = tmp_path / "profile.toml"
    profile.write_text(block)
    loaded = load_profile(profile)
    assert {str(option) for option in Option} == set(re.findall(r'^ +(?:# )?"(\w+)",', block, re.MULTILINE))
    assert {field.name for field in fields(loaded)} == set(re.findall(r"^(\w+) =", block, re.MULTILINE))
    without_pixels = replace(loaded, options=loaded.options - {Option.CLEAN_PIXEL_DATA})
    Deidentifier(load_or_create_key(key_file), without_pixels)  # every SOP class in it has an allow-list


def test_the_docs_name_every_argument(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["deidentify", "--help"])
    options = set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help", "--json", "--processes"}
    assert all(option in DOCS.read_text("utf-8") for option in options)
