"""Replay: what a real worker recorded is made again, bit for bit, or what differs is named."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from known_versions import serve
from photographs import FUNDUS, drawn_jpeg, op_dataset
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomFileLike
from pydicom.filewriter import write_dataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid
from saving_rig import NOW, receive, saver_of, saving
from sqlalchemy import select, update
from tiny_bundles import tiny_graph, write_tiny_bundle

from gateway import cli
from gateway.errors import ReplayError
from gateway.objects import ObjectFolder
from gateway.replay import SCORE_TOLERANCE, Outcome, Report, data_set_sha256, replay
from gateway.settings import Settings
from gateway.store import Store, open_store
from gateway.store.models import VersionState, known_versions
from gateway.store.retention import remove_originals, remove_records, remove_results
from gateway.store.saved import find_saved, write_place
from gateway.store.schema import instance, model_version, prediction, result, study
from gateway.vault import prepare_vault
from gateway.worker import Worker
from models import bundled_folders
from models.card import Bundle, load_bundle
from models.registry import bundle_sha256

RULES = [{"name": "everything", "models": ["tiny"]}]


def picture(seed: int = 1) -> Dataset:
    """A greyscale secondary capture of random pixels."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate, dataset.PatientSex = "A^B", "ID1", "", "F"
    dataset.StudyDate, dataset.StudyTime, dataset.StudyID, dataset.AccessionNumber = "20260105", "101112", "1", "A1"
    dataset.ReferringPhysicianName = ""
    dataset.Modality, dataset.ConversionType = "OT", "WSD"
    dataset.SeriesNumber, dataset.InstanceNumber = 1, 1
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = 64, 48
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 48), dtype=np.uint8)
    dataset.PixelData = pixels.tobytes()
    return dataset


def serve_bundle(store: Store, bundle: Bundle, state: VersionState = VersionState.CHAMPION) -> None:
    card = bundle.card
    serve(store, card.name, card.version, bundle.folder, NOW, model_sha256=bundle.model_sha256, state=state)
    same = (model_version.c.model_name == card.name) & (model_version.c.version == card.version)
    with store.write() as connection:
        connection.execute(update(model_version).where(same).values(bundle_sha256=bundle_sha256(bundle.folder)))


def work(settings: Settings, data_dir: Path) -> None:
    """Let a real worker judge what is there, shadows included."""
    worker = Worker(settings, data_dir, name="worker-0", threads=1)
    try:
        while worker.work_once():
            pass
    finally:
        worker.close()


@pytest.fixture
def settings() -> Settings:
    return saving({"name": "all"}, rules=RULES)


@pytest.fixture
def store(tmp_path: Path, settings: Settings) -> Iterator[Store]:
    opened = open_store("", data_dir=tmp_path, migrate=True)
    write_place(opened, 0)
    prepare_vault(settings.vault, tmp_path)
    serve_bundle(opened, write_tiny_bundle(tmp_path / "bundle-1"))
    yield opened
    opened.close()


@pytest.fixture
def judged(store: Store, settings: Settings, tmp_path: Path) -> list[tuple[str, str]]:
    """Three studies that went through the worker in one batch; keys of study and instance."""
    keys = [receive(store, tmp_path, picture(seed)) for seed in (1, 2, 3)]
    work(settings, tmp_path)
    return keys


def again(store: Store, settings: Settings, data_dir: Path, key: str) -> Report:
    return replay(key, settings=settings, data_dir=data_dir, store=store)


def test_what_a_worker_recorded_comes_out_bit_for_bit(
    store: Store, settings: Settings, judged: list[tuple[str, str]], tmp_path: Path
) -> None:
    for study_key, instance_key in judged:
        report = again(store, settings, tmp_path, study_key)
        assert report.outcome is Outcome.SAME
        (one,) = report.predictions
        assert one.recorded.instance_key == instance_key
        assert one.recorded.provenance["tensor_sha256"]
        assert one.identical
        assert one.score_difference == one.logit_difference == one.embedding_difference == 0
        assert one.differences == (), "nothing about how it was made is otherwise"
        assert one.source == "the received image"


def test_a_result_and_its_sop_instance_uid_lead_to_what_it_says(
    store: Store, settings: Settings, judged: list[tuple[str, str]], tmp_path: Path
) -> None:
    with store.write() as connection:
        row = connection.execute(select(result).where(result.c.study_key == judged[1][0])).mappings().first()
        connection.execute(  # as if a shadow had judged it, too
            update(prediction).where(prediction.c.study_key == judged[0][0]).values(role="shadow")
        )
    assert row is not None
    for key in (row["result_key"], row["sop_instance_uid"]):
        report = again(store, settings, tmp_path, key)
        assert report.study_key == judged[1][0]
        assert [each.recorded.instance_key for each in report.predictions] == [judged[1][1]]
        assert report.outcome is Outcome.SAME


def test_a_retired_version_and_a_shadow_are_run_as_they_were(
    store: Store, settings: Settings, judged: list[tuple[str, str]], tmp_path: Path
) -> None:
    graph = tiny_graph()
    graph.graph.initializer[2].CopyFrom(_bias([2.0, -1.0]))
    two = write_tiny_bundle(tmp_path / "bundle-2", graph, version=2)
    serve_bundle(store, load_bundle(tmp_path / "bundle-1"), VersionState.RETIRED)
    serve_bundle(store, two)
    later, _ = receive(store, tmp_path, picture(4))
    work(settings, tmp_path)
    old, new = (again(store, settings, tmp_path, key) for key in (judged[0][0], later))
    assert old.outcome is new.outcome is Outcome.SAME
    assert [each.recorded.model_version for each in (*old.predictions, *new.predictions)] == [1, 2]
    assert {each.version: each.state for each in known_versions(store)}[1] is VersionState.RETIRED


def _bias(values: list[float]) -> Any:
    from onnx import numpy_helper

    return numpy_helper.from_array(np.array(values, dtype=np.float32), "head.bias")


def test_another_bundle_under_the_same_version_is_named(
    store: Store, settings: Settings, judged: list[tuple[str, str]], tmp_path: Path
) -> None:
    graph = tiny_graph()
    graph.graph.initializer[2].CopyFrom(_bias([2.0, -1.0]))
    other = write_tiny_bundle(tmp_path / "other", graph)
    with store.write() as connection:
        connection.execute(update(model_version).values(folder=str(other.folder)))
    (one,) = again(store, settings, tmp_path, judged[0][0]).predictions
    assert one.outcome is Outcome.DIFFERS
    assert one.score_difference is not None
    assert one.score_difference > SCORE_TOLERANCE
    assert {"the model's sha256", "the bundle's sha256"} <= {each.what for each in one.differences}
    named = {each.what: (each.then, each.now) for each in one.differences}
    assert named["the model's sha256"][1] == other.model_sha256


def test_another_input_is_named(
    store: Store, settings: Settings, judged: list[tuple[str, str]], tmp_path: Path
) -> None:
    study_key, instance_key = judged[0]
    path = next((tmp_path / "objects" / "instances").rglob(f"{instance_key}.dcm"))
    picture(99).save_as(path, enforce_file_format=True)
    (one,) = again(store, settings, tmp_path, study_key).predictions
    assert one.outcome is Outcome.DIFFERS
    assert {"the received image's sha256", "the model input's sha256"} <= {each.what for each in one.differences}


def test_a_decision_that_turns_is_named(
    store: Store, settings: Settings, judged: list[tuple[str, str]], tmp_path: Path
) -> None:
    study_key, _ = judged[0]
    mine = prediction.c.study_key == study_key
    with store.write() as connection:
        findings = connection.execute(select(prediction.c.findings).where(mine)).scalar_one()
        findings[0]["present"] = not findings[0]["present"]
        connection.execute(update(prediction).where(mine).values(findings=findings))
    (one,) = again(store, settings, tmp_path, study_key).predictions
    assert one.outcome is Outcome.DIFFERS
    assert one.identical
    assert [each.what for each in one.differences] == ["the finding there"]


def test_other_circumstances_are_named_though_the_score_is_the_same(
    store: Store, settings: Settings, judged: list[tuple[str, str]], tmp_path: Path
) -> None:
    study_key, _ = judged[0]
    mine = prediction.c.study_key == study_key
    with store.write() as connection:
        known = connection.execute(select(prediction.c.provenance).where(mine)).scalar_one()
        changed = known | {"onnxruntime": "1.2.3", "providers": ["TensorrtExecutionProvider"], "gateway_version": "0"}
        connection.execute(update(prediction).where(mine).values(provenance=changed))
    other = saving({"name": "all"}, rules=RULES, **{"deidentification.unknown_attributes": "remove"})
    (one,) = again(store, other, tmp_path, study_key).predictions
    assert one.outcome is Outcome.SAME
    assert {each.what for each in one.differences} == {
        "ONNX Runtime",
        "the execution providers",
        "the gateway's version",
        "the de-identification profile's sha256",
    }
    with store.write() as connection:  # judged before it was kept
        connection.execute(update(prediction).where(mine).values(provenance=None))
    (one,) = again(store, settings, tmp_path, study_key).predictions
    assert one.outcome is Outcome.SAME
    assert one.differences == ()


def expire(store: Store, data_dir: Path, study_key: str, *, records: bool = False) -> None:
    """As the housekeeper does."""
    with store.write() as connection:
        keys = connection.execute(select(instance.c.instance_key).where(instance.c.study_key == study_key)).scalars()
        going = keys.all()
        results = connection.execute(select(result.c.result_key).where(result.c.study_key == study_key)).scalars().all()
    removed = [remove_originals(store, going, before=_LATER, committing=(), now=NOW)]
    if records:
        removed.append(remove_results(store, results, before=_LATER, committing=(), now=NOW))
        removed.append(remove_records(store, [study_key], before=_LATER, committing=()))
    for each in removed:
        assert each.rows
        for path in each.paths:
            ObjectFolder.in_data_dir(data_dir).remove(path)


_LATER = datetime(2100, 1, 1, tzinfo=UTC)


def test_where_the_original_has_expired_the_saved_copy_serves(
    store: Store, settings: Settings, judged: list[tuple[str, str]], tmp_path: Path
) -> None:
    assert saver_of(store, tmp_path, settings, _LATER).look(budget_s=60) == 3
    study_key = judged[0][0]
    expire(store, tmp_path, study_key)
    (one,) = again(store, settings, tmp_path, study_key).predictions
    assert (one.outcome, one.source, one.identical) == (Outcome.SAME, "the saved copy", True)
    assert one.differences == (), "the tensor is the same"
    expire_all = judged[1][0]
    expire(store, tmp_path, expire_all, records=True)
    with store.read() as connection:
        assert connection.execute(select(study).where(study.c.study_key == expire_all)).first() is None
    saved = find_saved(store, expire_all)
    assert saved is not None
    for key in (expire_all, saved.saved_key):
        (one,) = again(store, settings, tmp_path, key).predictions
        assert (one.outcome, one.source, one.identical) == (Outcome.SAME, "the saved copy", True)
        assert one.embedding_difference is None


def test_what_is_gone_is_said(store: Store, settings: Settings, judged: list[tuple[str, str]], tmp_path: Path) -> None:
    expire(store, tmp_path, judged[0][0])
    (one,) = again(store, settings, tmp_path, judged[0][0]).predictions
    assert one.outcome is Outcome.GONE
    assert one.gone == "the input is gone: the received image has expired on 2026-03-04, and no copy of it was saved"
    for path in (tmp_path / "objects" / "instances").rglob("*.dcm"):
        path.unlink()
    (one,) = again(store, settings, tmp_path, judged[1][0]).predictions
    assert one.gone == "the input is gone: the received image is gone, and no copy of it was saved"
    (tmp_path / "bundle-1").rename(tmp_path / "elsewhere")
    (one,) = again(store, settings, tmp_path, judged[1][0]).predictions
    assert one.gone == "the bundle is gone: tiny version 1 is registered, its folder is not there"
    (tmp_path / "elsewhere").rename(tmp_path / "bundle-1")
    (tmp_path / "bundle-1" / "model.onnx").write_bytes(b"another")
    (one,) = again(store, settings, tmp_path, judged[1][0]).predictions
    assert "sha256 is" in one.gone
    with pytest.raises(ReplayError, match="no study, saved study or result of the key nothing"):
        again(store, settings, tmp_path, "nothing")


def test_the_command_says_it_and_ends_so(
    store: Store, judged: list[tuple[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study_key, instance_key = judged[0]
    command = ["studies", "replay", study_key, "--data-dir", str(tmp_path)]
    assert cli.main(command) == 0
    shown = capsys.readouterr().out
    assert f"study {study_key}: same" in shown
    assert "largest difference of a score 0, bit for bit the same" in shown
    assert cli.main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["outcome"] == "same"
    assert told["predictions"][0]["scores_then"] == told["predictions"][0]["scores_now"]
    path = next((tmp_path / "objects" / "instances").rglob(f"{instance_key}.dcm"))
    picture(99).save_as(path, enforce_file_format=True)
    assert cli.main(command) == 1
    assert "the received image's sha256 was " in capsys.readouterr().out
    path.unlink()
    assert cli.main(command) == 3
    assert "the input is gone" in capsys.readouterr().out
    assert cli.main(["studies", "replay", "nothing", "--data-dir", str(tmp_path)]) == 1
    assert "no study" in capsys.readouterr().err


def test_the_sha256_is_that_of_the_data_set_alone(tmp_path: Path) -> None:
    dataset = picture()
    path = tmp_path / "a.dcm"
    dataset.save_as(path, enforce_file_format=True)
    stream = io.BytesIO()
    target = DicomFileLike(stream)
    target.is_little_endian, target.is_implicit_VR = True, False
    write_dataset(target, dataset)
    assert data_set_sha256(path) == hashlib.sha256(stream.getvalue()).hexdigest()


@pytest.mark.slow
def test_the_shipped_models_give_the_same_on_real_photographs(tmp_path: Path) -> None:
    """Version 1 judges photographs in batches; each is made again alone, from the original and from the saved copy."""
    photographs = sorted(FUNDUS.rglob("*.jpg"))[:6] if FUNDUS.is_dir() else []
    jpegs = [path.read_bytes() for path in photographs] or [drawn_jpeg(seed) for seed in range(6)]
    settings = saving({"name": "all"})
    store = open_store("", data_dir=tmp_path, migrate=True)
    write_place(store, 0)
    prepare_vault(settings.vault, tmp_path)
    for folder in bundled_folders():
        if folder.name == "1":
            serve_bundle(store, load_bundle(folder))
    keys = [receive(store, tmp_path, op_dataset(jpeg))[0] for jpeg in jpegs]
    work(settings, tmp_path)
    assert saver_of(store, tmp_path, settings, _LATER).look(budget_s=600) == len(keys)
    for key in keys:
        report = again(store, settings, tmp_path, key)
        assert report.outcome is Outcome.SAME
        assert all(each.score_difference is not None and each.score_difference <= 1e-5 for each in report.predictions)
        assert all(not each.differences for each in report.predictions)
    expire(store, tmp_path, keys[0])
    (one,) = again(store, settings, tmp_path, keys[0]).predictions
    assert (one.outcome, one.source) == (Outcome.SAME, "the saved copy")
    assert one.differences == ()
    store.close()
