"""The flow, without processes: images of several studies through the shipped models."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pydicom
import pytest
from photographs import drawn_jpeg, op_dataset, pydicom_data, write
from pydicom import Dataset
from pydicom.uid import generate_uid

from gateway.deidentify import Deidentifier
from gateway.frames import PICTURE_LONG_SIDE, display_picture
from gateway.judgement import Priority
from gateway.pipeline import decide, judge_studies
from gateway.settings import Rule
from gateway.stages import Engine
from gateway.study import ReceivedInstance, Study
from models import bundled_folders
from models.card import Card, load_bundle
from models.decoding import Decoder, default_decoder
from models.frame import Frame
from models.prediction import Prediction
from models.session import ModelSession

KEY = hashlib.sha256(b"the key of this test").digest()
NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)
EVERYTHING = Rule(name="everything", models=("retinopathy", "chest-triage"))


@pytest.fixture(scope="module")
def sessions() -> dict[str, ModelSession]:
    return {
        session.bundle.card.name: session
        for session in (ModelSession(load_bundle(folder)) for folder in bundled_folders() if folder.name == "1")
    }


@pytest.fixture
def engine(sessions: dict[str, ModelSession]) -> Iterator[Engine]:
    with ThreadPoolExecutor(2) as threads:
        yield Engine(
            rules=(EVERYTHING,),
            sessions=sessions,
            deidentifier=Deidentifier(KEY),
            decoder=default_decoder(),
            key=KEY,
            gateway_version="test",
            threads=threads,
        )


def received(path: Path) -> ReceivedInstance:
    header = pydicom.dcmread(path, stop_before_pixels=True)
    return ReceivedInstance(
        instance_key=hashlib.sha256(str(path).encode()).hexdigest()[:32],
        path=path,
        sop_class_uid=str(header.SOPClassUID),
        sop_instance_uid=str(header.SOPInstanceUID),
        series_instance_uid=str(header.SeriesInstanceUID),
        study_instance_uid=str(header.StudyInstanceUID),
        transfer_syntax_uid=str(header.file_meta.TransferSyntaxUID),
        calling_ae_title="TEST",
        received_at=NOW,
    )


def study_of(key: str, *paths: Path) -> Study:
    return Study(study_key=key, instances=tuple(received(path) for path in paths))


def test_a_model_that_does_not_take_the_image_costs_the_other_nothing(engine: Engine) -> None:
    (judgement,) = judge_studies([study_of("a", pydicom_data("RG1_UNCI.dcm"))], engine, NOW)
    assert [image.card.name for image in judgement.judged] == ["chest-triage"]
    (reason,) = judgement.not_judged_reasons.values()
    assert reason == "retinopathy: the model reads RGB, the picture is greyscale"
    assert {made.kind for made in judgement.results} == {"SR", "SC"}


def test_each_study_of_a_batch_gets_what_it_would_get_alone(engine: Engine, tmp_path: Path) -> None:
    shared = generate_uid()
    right = write(op_dataset(drawn_jpeg(1), study_instance_uid=shared), tmp_path / "r.dcm")
    left = write(op_dataset(drawn_jpeg(2), study_instance_uid=shared, laterality="L"), tmp_path / "l.dcm")
    alone = write(op_dataset(drawn_jpeg(3)), tmp_path / "a.dcm")
    studies = [study_of("both", right, left), study_of("chest", pydicom_data("RG1_UNCI.dcm")), study_of("one", alone)]
    together = judge_studies(studies, engine, NOW)
    for study, judged in zip(studies, together, strict=True):
        (single,) = judge_studies([study], engine, NOW)
        assert [image.instance_key for image in judged.judged] == [image.instance_key for image in single.judged]
        for one, other in zip(judged.judged, single.judged, strict=True):
            np.testing.assert_allclose(one.prediction.probabilities, other.prediction.probabilities, atol=1e-5)
        uids = [[made.sop_instance_uid for made in each.results] for each in (judged, single)]
        assert uids[0] == uids[1], "identifiers of results follow from what was judged"


def test_an_image_that_cannot_be_deidentified_goes_nowhere_and_says_why(engine: Engine, tmp_path: Path) -> None:
    good = op_dataset(drawn_jpeg(1))
    video: Dataset = op_dataset(drawn_jpeg(2), study_instance_uid=good.StudyInstanceUID)
    video.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.102"  # MPEG-4
    paths = write(good, tmp_path / "good.dcm"), write(video, tmp_path / "video.dcm")
    (judgement,) = judge_studies([study_of("a", *paths)], engine, NOW)
    bad = judgement.study.instances[1].instance_key
    assert {image.instance_key for image in judgement.judged} == {judgement.study.instances[0].instance_key}
    assert judgement.not_judged_reasons[bad]
    assert "Test" not in judgement.not_judged_reasons[bad]


def test_a_phantom_reaches_no_model(engine: Engine, tmp_path: Path) -> None:
    dataset = op_dataset(drawn_jpeg(1))
    dataset.QualityControlImage = "YES"
    (judgement,) = judge_studies([study_of("a", write(dataset, tmp_path / "p.dcm"))], engine, NOW)
    assert judgement.chosen == judgement.judged == judgement.results == ()


def test_the_model_sees_no_identity(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gateway import frames

    seen: list[str] = []
    read_frame = frames.read_frame

    def watched(dataset: Dataset, *, frame_index: int, least_side: int, decoder: Decoder) -> Frame:
        seen.append(str(dataset))
        return read_frame(dataset, frame_index=frame_index, least_side=least_side, decoder=decoder)

    monkeypatch.setattr(frames, "read_frame", watched)
    dataset = op_dataset(drawn_jpeg(1), patient="Zqsecret^Zqgiven")
    judge_studies([study_of("a", write(dataset, tmp_path / "a.dcm"))], engine, NOW)
    assert seen
    for text in seen:
        for planted in ("Zqsecret", "ACC7", str(dataset.StudyInstanceUID), str(dataset.SOPInstanceUID)):
            assert planted not in text


@pytest.mark.parametrize(
    ("score", "present", "priority"),
    [(0.2, False, Priority.LOW), (0.5, True, Priority.MEDIUM), (0.9, True, Priority.HIGH)],
)
def test_scores_at_the_operating_point_and_above(
    sessions: dict[str, ModelSession], score: float, present: bool, priority: Priority
) -> None:
    card: Card = sessions["retinopathy"].bundle.card
    finding = card.findings[0].model_copy(update={"operating_point": 0.5, "high_priority_from": 0.9})
    prediction = Prediction(
        model_name="retinopathy",
        model_version=1,
        model_sha256="0" * 64,
        logits=np.zeros(5, np.float32),
        probabilities=np.full(5, 0.2, np.float32),
        scores={finding.name: score},
        embedding=np.zeros(2, np.float32),
        feature_map=np.zeros((2, 1, 1), np.float32),
    )
    (result,) = decide(prediction, card.model_copy(update={"findings": (finding,)}))
    assert (result.present, result.priority) == (present, priority)


def test_display_picture_keeps_shape_and_levels() -> None:
    grey = Frame(
        pixels=np.tile(np.linspace(0, 1, 3000, dtype=np.float32), (1500, 1)), source_rows=1500, source_columns=3000
    )
    picture = display_picture(grey)
    assert picture.shape == (PICTURE_LONG_SIDE // 2, PICTURE_LONG_SIDE, 3)
    assert (picture[:, 0].max(), picture[:, -1].min()) == (0, 255)
    colour = Frame(pixels=np.full((600, 700, 3), 7, np.uint8), source_rows=600, source_columns=700)
    assert (display_picture(colour) == 7).all()
