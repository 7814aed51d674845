"""Bombs sent to a whole gateway: each costs a decoding process, is shown in the quarantine, and stops nobody."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest
from bombs import described, jpeg_2000_saying, jpeg_saying, rle_bomb
from photographs import drawn_jpeg, op_dataset, write
from pydicom import Dataset
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, generate_uid
from running import running_gateway, storescu, wait_until

CONFIG = """
[worker]
count = 1
threads = 2

[completion]
single_image_quiet_time_s = 0.5
other_quiet_time_s = 0.5

[decoding]
memory_bytes = 268435456
time_s = 5

[[rules]]
name = "everything"
models = ["retinopathy", "chest-triage"]
"""
SENT = {
    "frame over the limit": (
        lambda: described(60000, 60000, jpeg_2000_saying(60000, 60000), JPEG2000Lossless),
        "limit",
    ),
    "header that lies": (lambda: described(64, 64, jpeg_2000_saying(60000, 60000), JPEG2000Lossless), "60000 rows"),
    "RLE": (lambda: rle_bomb(16000, 16000), "an RLE segment is too short"),
    # Grey, since colour is decoded at a reduced scale, which takes little memory.
    "over the memory": (
        lambda: described(16000, 16000, jpeg_saying(16000, 16000), JPEGBaseline8Bit),
        "more memory than",
    ),
}


def as_study(dataset: Dataset) -> Dataset:
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    return dataset


@pytest.mark.slow
def test_bombs_are_quarantined_and_a_good_study_is_judged(tmp_path: Path) -> None:
    bombs = {name: as_study(make()) for name, (make, _) in SENT.items()}
    good = op_dataset(drawn_jpeg(1))
    files = [write(dataset, tmp_path / f"{number}.dcm") for number, dataset in enumerate(bombs.values())]
    files.append(write(good, tmp_path / "good.dcm"))
    with running_gateway(tmp_path / "gateway", CONFIG) as gateway:
        assert storescu(files, gateway.dicom_port).returncode == 0

        def ended() -> dict[str, Any] | None:
            listed = {study["study_instance_uid"]: study for study in gateway.studies()}
            done = len(listed) == len(files) and all(each["state"] in {"judged", "failed"} for each in listed.values())
            return listed if done else None

        studies = wait_until(ended, "every study to be judged or failed")
        worker = gateway.pids()["worker-0"]
        assert studies[good.StudyInstanceUID]["state"] == "judged"
        for name, (_, reason) in SENT.items():
            study = studies[bombs[name].StudyInstanceUID]
            assert study["state"] == "failed"
            assert reason in study["reason"]
        quarantined = gateway.get("/api/quarantine")
        page = gateway.text("/quarantine")
        assert len(quarantined) == len(SENT)
        for _, reason in SENT.values():
            (row,) = [row for row in quarantined if reason in row["reason"]]
            assert row["reason"] in page.replace("&#39;", "'")
            key = row["quarantine_key"]
            # What was acknowledged stays where it was; the quarantine has a name of its own for it.
            stored = gateway.data_dir / "objects" / "instances" / key[:2] / f"{key}.dcm"
            shown = gateway.data_dir / "objects" / "quarantine" / f"{key}.dcm"
            assert stored.stat().st_ino == shown.stat().st_ino
            with pytest.raises(HTTPError) as caught:
                gateway.get(f"/api/instances/{key}/frames/0/pixels")
            with caught.value as answer:
                assert answer.code == 422
                # De-identification, which the viewer does without, refuses the RLE stream before the decoder would.
                assert reason.replace("an RLE segment is too short", "cannot hold") in answer.read().decode()
        later = write(op_dataset(drawn_jpeg(2)), tmp_path / "later.dcm")
        assert storescu([later], gateway.dicom_port).returncode == 0
        wait_until(lambda: sum(each["state"] == "judged" for each in gateway.studies()) == 2, "the study sent after")
        assert gateway.pids()["worker-0"] == worker, "no bomb cost the worker"
        log = gateway.log()
    assert "goes to quarantine" in log
    for dataset in bombs.values():
        assert dataset.StudyInstanceUID not in log
        assert "Fixture" not in log
