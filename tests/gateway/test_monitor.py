"""The monitor: follows the registry, tests windows, raises one alarm, and remembers across restarts.

Of the charts, which raise the alarms about embeddings, see test_sequential.py.
"""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from known_versions import serve

from drift.monitors import ALL_DEVICES, DriftKind
from drift.reference import load_reference
from gateway.monitor import RegistryFollower, Watch, choose_backend
from gateway.settings import Settings, load_settings
from gateway.store import Store, open_store
from gateway.store.intake import NewInstance, StudyHeader, admit_all, new_key
from gateway.store.models import VersionState, served_versions
from gateway.store.monitoring import alarms, latest_drift
from gateway.store.predictions import (
    JudgementRecord,
    PredictionRow,
    record_judgement,
)
from gateway.store.studies import claim_studies, complete_now
from gateway.study import StudyState
from models import bundled_folders
from models.card import load_bundle

NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)
BUNDLE = load_bundle(next(folder for folder in bundled_folders() if folder.parts[-2:] == ("retinopathy", "1")))
REFERENCE = load_reference(BUNDLE.reference_path)
RUN = threading.Event()


@pytest.fixture
def settings() -> Settings:
    return load_settings(environment={}, overrides={"monitor.backend": "builtin"})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = open_store("", data_dir=tmp_path, migrate=True)
    serve(store, "retinopathy", 1, BUNDLE.folder, NOW, model_sha256=BUNDLE.model_sha256)
    return store


def judge(
    store: Store,
    tmp_path: Path,
    embedding: npt.NDArray[Any],
    row: int,
    device: str = "Kowa VX-10",
    **statistics: float,
) -> None:
    """One study through the store, as a worker leaves it."""
    measured = dict(zip(REFERENCE.statistic_names, REFERENCE.statistics[row].tolist(), strict=True)) | statistics
    key = new_key()
    admit_all(
        store,
        [
            NewInstance(
                instance_key=key,
                header=StudyHeader(study_instance_uid=f"1.2.{int(key, 16)}"[:64]),
                sop_instance_uid=f"1.3.{int(key, 16)}"[:64],
                sop_class_uid="1.2",
                series_instance_uid="1.4",
                transfer_syntax_uid="1.2.840.10008.1.2.1",
                modality="OP",
                sha256="0" * 64,
                size_bytes=1,
                path=f"instances/{key}",
                calling_ae_title="A",
                peer_address="127.0.0.1",
                received_at=NOW,
                quiet_time=timedelta(0),
                hard_cap=timedelta(1),
            )
        ],
    )
    with store.read() as connection:
        study_key = connection.exec_driver_sql(
            "select study_key from instance where instance_key = ?", (key,)
        ).scalar_one()
    complete_now(store, study_key, NOW)
    (claimed,) = claim_studies(store, owner="w", now=NOW, lease=timedelta(minutes=1), limit=1, objects=tmp_path)
    record_judgement(
        store,
        JudgementRecord(
            study_key=claimed.study.study_key,
            revision=claimed.revision,
            state=StudyState.JUDGED,
            reason="",
            priority=0,
            predictions=(
                PredictionRow(
                    instance_key=key,
                    frame_index=0,
                    model_name="retinopathy",
                    model_version=1,
                    model_sha256=BUNDLE.model_sha256,
                    demonstration=True,
                    logits=[0.0],
                    probabilities={"a": 1.0},
                    findings=[],
                    ungradable_reasons=[],
                    explanation=dict(
                        zip(REFERENCE.explanation_names, REFERENCE.explanations[row].tolist(), strict=True)
                    ),
                    heat_map_path=None,
                    acquisition_findings=[],
                    parameters={},
                    statistics=measured,
                    device_key=device,
                    embedding=embedding.astype(np.float32),
                ),
            ),
            results=(),
            rules={},
            not_judged_reasons={},
        ),
        NOW,
    )


def newest(store: Store, scope: str, kind: DriftKind = DriftKind.EMBEDDING) -> Any:
    return next((row for row in latest_drift(store) if row["scope"] == scope and row["kind"] == kind), None)


def test_few_studies_are_not_judged_and_it_says_how_many(store: Store, settings: Settings, tmp_path: Path) -> None:
    for row in range(7):
        judge(store, tmp_path, REFERENCE.embeddings[row], row)
    Watch(settings, store).look(RUN)
    result = newest(store, ALL_DEVICES)
    assert (result["state"], result["reason"]) == ("not judged", "7 of 25 studies")
    assert alarms(store) == ()


def test_changed_embeddings_are_shown_and_raise_no_alarm(store: Store, settings: Settings, tmp_path: Path) -> None:
    """A window is tested again and again; what holds at every look, and raises the alarm, are the charts."""
    shift = 3 * REFERENCE.embeddings.std(axis=0)
    for row in range(25):
        judge(store, tmp_path, REFERENCE.embeddings[row] + shift, row)
    Watch(settings, store).look(RUN)
    assert newest(store, ALL_DEVICES)["state"] == "drift"
    assert not [each for each in alarms(store) if each["kind"] == "embedding"]


def test_a_changed_device_raises_one_alarm_that_counts(store: Store, settings: Settings, tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    rows = random.permutation(len(REFERENCE.embeddings))[:30]
    for row in rows:
        judge(store, tmp_path, REFERENCE.embeddings[row], row, device="old camera")
    watch = Watch(settings, store)
    watch.look(RUN)
    assert newest(store, "old camera", DriftKind.STATISTICS)["state"] == "no drift"
    for row in rows:
        judge(store, tmp_path, REFERENCE.embeddings[row], row, device="new camera", noise=9.0)
    watch.look(RUN)
    assert newest(store, "new camera", DriftKind.STATISTICS)["state"] == "drift"
    assert newest(store, "old camera", DriftKind.STATISTICS)["state"] == "no drift"
    kind = DriftKind.STATISTICS
    (alarm,) = [each for each in alarms(store) if each["scope"] == "new camera" and each["kind"] == kind]
    assert (alarm["state"], alarm["count"]) == ("open", 1)

    for row in rows[:10]:
        judge(store, tmp_path, REFERENCE.embeddings[row], row, device="new camera", noise=9.0)
    watch.look(RUN)
    (alarm,) = [each for each in alarms(store) if each["scope"] == "new camera" and each["kind"] == kind]
    assert (alarm["state"], alarm["count"]) == ("open", 2)


def test_a_restarted_monitor_goes_on_where_it_was(store: Store, settings: Settings, tmp_path: Path) -> None:
    for row in range(26):
        judge(store, tmp_path, REFERENCE.embeddings[row], row)
    first = Watch(settings, store)
    first.look(RUN)
    before = latest_drift(store)
    again = Watch(settings, store)
    again.look(RUN)
    assert latest_drift(store) == before, "nothing new was judged, so nothing is tested again"
    for row in range(26, 36):
        judge(store, tmp_path, REFERENCE.embeddings[row], row)
    first.look(RUN)
    running = newest(store, ALL_DEVICES)
    restored = Watch(settings, store)
    assert running["n"] == 36
    scope = restored._scopes["retinopathy", 1, ALL_DEVICES]
    assert list(scope.window) == list(first._scopes["retinopathy", 1, ALL_DEVICES].window)
    assert scope.seen == 36


@pytest.mark.slow
def test_the_shipped_models_are_registered_and_the_newest_is_champion(tmp_path: Path, settings: Settings) -> None:
    store = open_store("", data_dir=tmp_path, migrate=True)
    follower = RegistryFollower(settings, tmp_path, store)
    follower.follow()
    shipped: dict[str, int] = {}
    for folder in bundled_folders():
        card = load_bundle(folder).card
        shipped[card.name] = max(card.version, shipped.get(card.name, 0))
    served = served_versions(store)
    champions = {entry.model_name: entry.version for entry in served if entry.state is VersionState.CHAMPION}
    assert champions == shipped
    for entry in served:
        assert load_bundle(Path(entry.folder)).model_sha256 == entry.model_sha256


def test_auto_takes_alibi_where_it_is_installed() -> None:
    assert choose_backend(load_settings(environment={}, overrides={"monitor.backend": "builtin"})) == "builtin"
    pytest.importorskip("torch", reason="alibi-detect needs torch")
    pytest.importorskip("alibi_detect", reason="not installed")
    assert choose_backend(load_settings(environment={})) == "alibi"
