"""The whole story: a PACS sends images, the gateway judges them, results come back and show.

Real peers over real sockets: DCMTK sends and receives, Orthanc routes, validators check what came back.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pydicom
import pytest
from photographs import FULL_SIZE, drawn_jpeg, op_dataset, pydicom_data, write
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from pydicom import Dataset
from running import (
    Gateway,
    StoreScp,
    destination,
    free_port,
    running_gateway,
    running_orthanc,
    running_storescp,
    storescu,
    wait_until,
)

from gateway.send import send_files

PIXELMED = Path("/usr/share/java/pixelmed.jar")
COMPREHENSIVE_3D_SR = "1.2.840.10008.5.1.4.1.1.88.34"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"

QUICK_RULES = """
[[rules]]
name = "fundus"
when = { Modality = "OP" }
models = ["retinopathy"]
quiet_time_s = 1

[[rules]]
name = "chest"
when = { Modality = ["CR", "DX"], BodyPartExamined = "CHEST" }
models = ["chest-triage"]
quiet_time_s = 1
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, StoreScp]]:
    """A gateway and the PACS that takes its results."""
    folder = tmp_path_factory.mktemp("site")
    with (
        running_storescp(folder / "pacs") as pacs,
        running_gateway(folder / "gateway", QUICK_RULES + destination("pacs", "PACS", pacs.port)) as gateway,
    ):
        yield gateway, pacs


def study_of(
    gateway: Gateway, study_instance_uid: str, *, delivered: bool = True
) -> Callable[[], dict[str, Any] | None]:
    """The study once it has ended and all its results are delivered."""

    def find() -> dict[str, Any] | None:
        for study in gateway.get("/api/studies")["studies"]:
            if study["study_instance_uid"] == study_instance_uid and study["state"] in (
                "judged",
                "failed",
                "not matched",
            ):
                waiting = [each for each in study["deliveries"] if each["state"] != "delivered"]
                return None if delivered and waiting else dict(study)
        return None

    return find


def results_in(pacs: StoreScp, study_instance_uid: str) -> list[Dataset]:
    found = [pydicom.dcmread(path) for path in pacs.files()]
    return [dataset for dataset in found if dataset.StudyInstanceUID == study_instance_uid]


def test_both_eyes_are_judged_and_come_back_in_the_same_study(site: tuple[Gateway, StoreScp], tmp_path: Path) -> None:
    gateway, pacs = site
    right = op_dataset(drawn_jpeg(1), patient="Müller^Jürgen", laterality="R")
    right.SpecificCharacterSet = "ISO_IR 100"
    left = op_dataset(drawn_jpeg(2), patient="Müller^Jürgen", laterality="L", study_instance_uid=right.StudyInstanceUID)
    left.SpecificCharacterSet = "ISO_IR 100"
    sent = storescu([write(right, tmp_path / "r.dcm"), write(left, tmp_path / "l.dcm")], gateway.dicom_port)
    assert sent.returncode == 0, sent.stderr
    study = wait_until(study_of(gateway, right.StudyInstanceUID), "the study to be judged and delivered")

    assert study["state"] == "judged"
    assert len(study["predictions"]) == 2
    for prediction in study["predictions"]:
        assert prediction["model_name"] == "retinopathy"
        assert prediction["demonstration"] is True
        assert sum(prediction["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert prediction["explanation"] is not None

    came = results_in(pacs, right.StudyInstanceUID)
    reports = [each for each in came if each.SOPClassUID == COMPREHENSIVE_3D_SR]
    key_images = [each for each in came if each.SOPClassUID == SECONDARY_CAPTURE]
    assert (len(reports), len(key_images)) == (1, 2)
    for each in came:
        assert each.PatientName == right.PatientName
        assert each.PatientID == right.PatientID
        assert each.AccessionNumber == right.AccessionNumber
        assert each.SeriesInstanceUID not in (right.SeriesInstanceUID, left.SeriesInstanceUID)
    text = str(reports[0])
    assert "not for diagnosis" in text.lower() or "not a diagnosis" in text.lower()
    assert reports[0].VerificationFlag == "UNVERIFIED"
    # 12 or more grey levels apart over the whole picture would mean that heat map or picture are missing.
    pixels = key_images[0].pixel_array
    assert pixels.ndim == 3
    assert pixels.std() > 12


def test_a_chest_radiograph_from_a_real_device(site: tuple[Gateway, StoreScp]) -> None:
    gateway, pacs = site
    path = pydicom_data("RG1_UNCI.dcm")
    uid = pydicom.dcmread(path, stop_before_pixels=True).StudyInstanceUID
    assert storescu([path], gateway.dicom_port).returncode == 0
    study = wait_until(study_of(gateway, uid), "the radiograph to be judged and delivered")
    assert study["state"] == "judged", study["reason"]
    assert study["predictions"][0]["model_name"] == "chest-triage"
    assert any("Philips" in finding["value"] for finding in study["predictions"][0]["acquisition_findings"])
    assert {each.SOPClassUID for each in results_in(pacs, uid)} == {COMPREHENSIVE_3D_SR, SECONDARY_CAPTURE}


def test_the_same_image_again_makes_nothing_new(site: tuple[Gateway, StoreScp], tmp_path: Path) -> None:
    gateway, pacs = site
    dataset = op_dataset(drawn_jpeg(3))
    path = write(dataset, tmp_path / "a.dcm")
    storescu([path], gateway.dicom_port)
    before = wait_until(study_of(gateway, dataset.StudyInstanceUID), "the first judgement")
    assert storescu([path], gateway.dicom_port).returncode == 0
    gateway.command("studies", "--data-dir", str(gateway.data_dir), "--complete", before["study_key"])

    def judged_again() -> bool:
        study = study_of(gateway, dataset.StudyInstanceUID)()
        return study is not None and study["judged_at"] > before["judged_at"]

    wait_until(judged_again, "the second judgement")
    after = study_of(gateway, dataset.StudyInstanceUID)()
    assert after is not None
    assert len(after["predictions"]) == 1
    first, second = (sorted(each["sop_instance_uid"] for each in study["deliveries"]) for study in (before, after))
    assert first == second
    assert len(results_in(pacs, dataset.StudyInstanceUID)) == 2


def test_a_late_image_is_judged_with_its_study(site: tuple[Gateway, StoreScp], tmp_path: Path) -> None:
    gateway, _ = site
    right = op_dataset(drawn_jpeg(4))
    storescu([write(right, tmp_path / "r.dcm")], gateway.dicom_port)
    wait_until(study_of(gateway, right.StudyInstanceUID), "the first eye")
    left = op_dataset(drawn_jpeg(5), laterality="L", study_instance_uid=right.StudyInstanceUID)
    storescu([write(left, tmp_path / "l.dcm")], gateway.dicom_port)

    def both() -> dict[str, Any] | None:
        study = study_of(gateway, right.StudyInstanceUID)()
        return study if study is not None and len(study["predictions"]) == 2 else None

    assert wait_until(both, "both eyes")["state"] == "judged"


def test_what_no_rule_chooses_is_kept_and_goes_nowhere(site: tuple[Gateway, StoreScp], tmp_path: Path) -> None:
    gateway, pacs = site
    phantom = op_dataset(drawn_jpeg(6), patient="Phantom^QA")
    phantom.QualityControlImage = "YES"
    ct = pydicom_data("693_UNCI.dcm")
    ct_uid = pydicom.dcmread(ct, stop_before_pixels=True).StudyInstanceUID
    storescu([write(phantom, tmp_path / "p.dcm"), ct], gateway.dicom_port)
    for study in gateway.get("/api/studies")["studies"]:
        if study["study_instance_uid"] in (phantom.StudyInstanceUID, ct_uid) and study["state"] == "receiving":
            gateway.post(f"/api/studies/{study['study_key']}/complete")
    for uid, words in ((phantom.StudyInstanceUID, "phantom"), (ct_uid, "no rule")):
        study = wait_until(study_of(gateway, uid), "a study that matches nothing")
        assert study["state"] == "not matched"
        assert words in study["reason"].lower()
        assert study["predictions"] == study["deliveries"] == []
        assert results_in(pacs, uid) == []


def test_a_picture_that_is_no_photograph_is_ungradable(site: tuple[Gateway, StoreScp], tmp_path: Path) -> None:
    gateway, pacs = site
    stream = io.BytesIO()
    Image.new("RGB", (900, 700), (90, 40, 20)).save(stream, "JPEG")
    dataset = op_dataset(stream.getvalue())
    storescu([write(dataset, tmp_path / "blank.dcm")], gateway.dicom_port)
    study = wait_until(study_of(gateway, dataset.StudyInstanceUID), "the blank picture")
    assert study["state"] == "judged"
    assert study["predictions"][0]["ungradable_reasons"]
    assert study["priority"] in (0, "LOW")
    assert len(results_in(pacs, dataset.StudyInstanceUID)) == 2


def test_pixels_that_cannot_be_decoded_fail_with_the_reason(site: tuple[Gateway, StoreScp], tmp_path: Path) -> None:
    gateway, _ = site
    dataset = op_dataset(drawn_jpeg(1))
    dataset.PixelData = pydicom.encaps.encapsulate([drawn_jpeg(1)[:3000]])
    storescu([write(dataset, tmp_path / "cut.dcm")], gateway.dicom_port)
    study = wait_until(study_of(gateway, dataset.StudyInstanceUID), "the broken picture")
    assert study["state"] == "failed"
    assert study["reason"]


def test_health_and_metrics_speak_the_truth(site: tuple[Gateway, StoreScp]) -> None:
    gateway, _ = site
    health = wait_until(lambda: gateway.get("/health"), "health")
    assert {"housekeeper", "monitor", "receiver-0", "receiver-1", "sender", "web", "worker-0"} <= {
        process["name"] for process in health["processes"]
    }
    samples = [
        sample for family in text_string_to_metric_families(gateway.text("/metrics")) for sample in family.samples
    ]
    listed = gateway.get("/api/studies?limit=500")["studies"]
    judged = sum(study["state"] == "judged" for study in listed)
    assert judged in [sample.value for sample in samples if sample.labels.get("state") == "judged"]


def test_the_log_names_no_patient(site: tuple[Gateway, StoreScp]) -> None:
    gateway, _ = site
    log = gateway.log()
    listed = gateway.get("/api/studies?limit=500")["studies"]
    assert listed
    for study in listed:
        assert study["study_key"]
        assert study["study_instance_uid"] not in log
    for word in ("Müller", "Patient^", "TEST-PATIENT", "CompressedSamples"):
        assert word not in log


# --- Orthanc as the PACS --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("Orthanc") is None, reason="Orthanc is not installed (scripts/setup test as root)")
def test_orthanc_routes_to_the_gateway_and_gets_valid_results_back(tmp_path: Path) -> None:
    pacs_port = free_port()
    radiographs = [pydicom_data(name) for name in ("RG1_UNCI.dcm", "RG1_J2KI.dcm")]
    streams = [path.read_bytes() for path in sorted(FULL_SIZE.glob("*.jpg"))[:2]] or [drawn_jpeg(1), drawn_jpeg(2)]
    photographs = [op_dataset(stream, patient=f"Full^Size{number}") for number, stream in enumerate(streams)]
    with (
        running_gateway(tmp_path / "gateway", QUICK_RULES + destination("orthanc", "ORTHANC", pacs_port)) as gateway,
        running_orthanc(tmp_path / "orthanc", gateway_port=gateway.dicom_port, dicom_port=pacs_port) as orthanc,
    ):
        for number, dataset in enumerate(photographs):
            orthanc.upload(write(dataset, tmp_path / f"{number}.dcm").read_bytes())
        for path in radiographs:
            orthanc.upload(path.read_bytes())
        sources = [*photographs, *(pydicom.dcmread(path, stop_before_pixels=True) for path in radiographs)]
        uids = {str(dataset.StudyInstanceUID) for dataset in sources}
        sent_series = {str(dataset.SeriesInstanceUID) for dataset in sources}

        def all_back() -> bool:
            """A series with the report and one with the key images, in each study."""
            return len(orthanc.get("series")) >= len(sent_series) + 2 * len(uids)

        wait_until(all_back, "results in Orthanc")
        results = []
        for instance in orthanc.get("instances?expand"):
            content = orthanc.file(instance["ID"])
            dataset = pydicom.dcmread(io.BytesIO(content))
            if dataset.SOPClassUID in (COMPREHENSIVE_3D_SR, SECONDARY_CAPTURE):
                assert str(dataset.StudyInstanceUID) in uids
                path = tmp_path / f"result-{instance['ID']}.dcm"
                path.write_bytes(content)
                results.append((dataset, path))
        # Nothing that came back was routed to the gateway and judged again.
        assert len(gateway.get("/api/studies")["studies"]) == len(uids)
    assert {dataset.SOPClassUID for dataset, _ in results} == {COMPREHENSIVE_3D_SR, SECONDARY_CAPTURE}
    for _, path in results:
        assert dciodvfy_errors(path) == []
    reports = [path for dataset, path in results if dataset.SOPClassUID == COMPREHENSIVE_3D_SR]
    assert template_errors(reports[0]) == []


def dciodvfy_errors(path: Path) -> list[str]:
    command = [str(Path(sys.executable).parent / "dciodvfy"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]


def template_errors(path: Path) -> list[str]:
    """PixelMed's validator of SR templates; always exits 0, so its output is read."""
    if not PIXELMED.is_file():
        pytest.skip("PixelMed is not installed (scripts/setup test as root)")
    limits = [f"-Djdk.xml.{name}=0" for name in ("xpathExprGrpLimit", "xpathExprOpLimit", "xpathTotalOpLimit")]
    command = ["java", *limits, "-Xss16m", "-cp", str(PIXELMED), "com.pixelmed.validate.DicomSRValidator", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert re.search("Found|Validating|Root", done.stdout + done.stderr), done.stdout + done.stderr
    return [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]


# --- killed at any moment -------------------------------------------------------------------------------------------


def small_jpeg(seed: int) -> bytes:
    picture = Image.open(io.BytesIO(drawn_jpeg(seed))).resize((640, 640))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=90)
    return stream.getvalue()


@pytest.mark.slow
def test_kill_9_of_any_process_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    """200 instances over four associations while every kind of process is killed, the supervisor last."""
    streams = [small_jpeg(seed) for seed in range(4)]
    files = []
    for number in range(200):
        dataset = op_dataset(streams[number % 4], patient=f"Kill^{number}")
        files.append((str(dataset.SOPInstanceUID), write(dataset, tmp_path / f"{number:03d}.dcm")))
    acknowledged: set[str] = set()
    with running_storescp(tmp_path / "pacs") as pacs:
        gateway = Gateway(tmp_path / "gateway", QUICK_RULES + destination("pacs", "PACS", pacs.port))
        gateway.start()
        try:
            wait_until(lambda: gateway.get("/api/models"), "the registry")
            sending_over = threading.Event()
            killer = threading.Thread(target=kill_each, args=(gateway, sending_over))
            killer.start()
            with ThreadPoolExecutor(4) as pool:
                for done in pool.map(
                    lambda share: send_until_accepted(share, gateway), (files[k::4] for k in range(4))
                ):
                    acknowledged |= done
            sending_over.set()
            killer.join()
            assert len(acknowledged) == 200

            # Kill the supervisor: what it leaves behind still finishes, and a new gateway takes over.
            assert gateway.process is not None
            gateway.process.kill()
            gateway.process.wait()
            gateway.start()
            wait_until(lambda: judged_instances(gateway) >= acknowledged, "every instance to be judged", 240)
            wait_until(lambda: len(key_images(pacs)) == 200, "every key image in the PACS", 120)
        finally:
            gateway.stop()
        sources = [str(each.SourceImageSequence[0].ReferencedSOPInstanceUID) for each in key_images(pacs)]
        assert sorted(sources) == sorted(acknowledged)
        reports = [each for each in map(pydicom.dcmread, pacs.files()) if each.SOPClassUID == COMPREHENSIVE_3D_SR]
        assert len(reports) == len({each.SOPInstanceUID for each in reports}) == 200


def kill_each(gateway: Gateway, over: threading.Event) -> None:
    for name in (
        "receiver-0",
        "worker-0",
        "sender",
        "receiver-1",
        "worker-1",
        "monitor",
        "housekeeper",
        "web",
        "worker-0",
        "receiver-0",
    ):
        if over.wait(1.5):
            return
        pid = gateway.pids().get(name)
        if pid is not None:
            os.kill(pid, signal.SIGKILL)


def send_until_accepted(share: list[tuple[str, Path]], gateway: Gateway) -> set[str]:
    """As a modality does: what was not accepted, because the receiver died, is sent again."""
    waiting = {path: uid for uid, path in share}
    accepted: set[str] = set()
    for _ in range(60):
        report = send_files(
            list(waiting),
            host="127.0.0.1",
            port=gateway.dicom_port,
            called_ae_title="GATEWAY",
            calling_ae_title="MODALITY",
        )
        for sent in report.files:
            if sent.accepted:
                accepted.add(waiting.pop(sent.path))
        if not waiting:
            break
    return accepted


def judged_instances(gateway: Gateway) -> set[str]:
    return {prediction["sop_instance_uid"] for study in gateway.studies() for prediction in study["predictions"]}


def key_images(pacs: StoreScp) -> list[Dataset]:
    found = [pydicom.dcmread(path, stop_before_pixels=True) for path in pacs.files()]
    return [dataset for dataset in found if dataset.SOPClassUID == SECONDARY_CAPTURE]
