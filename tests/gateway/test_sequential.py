"""The charts in the monitor: one alarm with when it began, nothing counted twice, and a restart that shows nowhere."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from known_versions import serve
from sqlalchemy import func, insert, select, update

from drift.charts import state_from_bytes
from drift.monitors import ALL_DEVICES, DriftKind
from drift.reference import Array, load_reference
from gateway import sequential
from gateway.errors import StoreError
from gateway.sequential import SHIPPED, ChartWatch, Prepared
from gateway.settings import Settings, load_settings
from gateway.store import Store, open_store
from gateway.store.charts import chart_states
from gateway.store.intake import new_key
from gateway.store.monitoring import alarms, change_alarm, latest_drift
from gateway.store.retention import remove_records
from gateway.store.schema import chart_state, chart_study, instance, prediction, study
from models import bundled_folders
from models.card import load_bundle

NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)
BUNDLE = load_bundle(next(folder for folder in bundled_folders() if folder.parts[-2:] == ("retinopathy", "1")))
EMBEDDINGS = load_reference(BUNDLE.reference_path).embeddings
SHIFT = 3 * EMBEDDINGS.std(axis=0)
VERSION: dict[str, Any] = {"model_name": "retinopathy", "model_version": 1}
RUN = threading.Event()


@pytest.fixture
def settings() -> Settings:
    return load_settings(environment={}, overrides={"monitor.backend": "builtin"})


@pytest.fixture
def store(store: Store) -> Store:
    """On SQLite and on PostgreSQL, with one model."""
    point_at(store, BUNDLE.folder)
    return store


def point_at(store: Store, folder: Path) -> None:
    serve(store, "retinopathy", 1, folder, NOW, model_sha256=BUNDLE.model_sha256)


def watch(settings: Settings, store: Store, tmp_path: Path) -> ChartWatch:
    return ChartWatch(settings, store, tmp_path / "charts", in_background=False)


def add(store: Store, embeddings: Array, *, device: str = "camera", images: int = 1, **values: Any) -> list[str]:
    """Judged studies, as workers leave them; those of one device are a minute apart."""
    keys = []
    with store.write() as connection:
        for number, embedding in enumerate(embeddings):
            keys.append(new_key())
            at = NOW + timedelta(minutes=number)
            connection.execute(
                insert(study).values(
                    study_key=keys[-1], study_instance_uid=f"1.2.{int(keys[-1], 16)}"[:64], state="judged",
                    first_received_at=at, last_received_at=at, complete_at=at, judged_at=at,
                )
            )  # fmt: skip
            for _ in range(images):
                key = new_key()
                connection.execute(
                    insert(instance).values(
                        instance_key=key, study_key=keys[-1], sop_instance_uid=f"1.3.{int(key, 16)}"[:64],
                        sop_class_uid="1.2", series_instance_uid="1.4", transfer_syntax_uid="1.2", sha256="0" * 64,
                        size_bytes=1, path=f"instances/{key}", calling_ae_title="A", peer_address="::1",
                        received_at=at, removed_at=at,
                    )
                )  # fmt: skip
                row: dict[str, Any] = {
                    **VERSION, "study_key": keys[-1], "instance_key": key, "frame_index": 0,
                    "model_sha256": BUNDLE.model_sha256, "demonstration": True, "logits": [], "probabilities": {},
                    "findings": [], "ungradable_reasons": [], "acquisition_findings": [], "parameters": {},
                    "statistics": {}, "device_key": device, "embedding": embedding.astype("<f4").tobytes(),
                    "judged_at": at,
                }  # fmt: skip
                connection.execute(insert(prediction).values(**row | values))
    return keys


def states_of(store: Store) -> dict[str, bytes]:
    return {row.scope: row.state for row in chart_states(store, **VERSION)}


def totals(store: Store) -> dict[str, int]:
    return {row.scope: row.studies for row in chart_states(store, **VERSION)}


def charts_of(store: Store, scope: str) -> Any:
    return next((row for row in latest_drift(store) if row["scope"] == scope and row["kind"] == DriftKind.CHARTS), None)


def test_a_changed_camera_raises_one_alarm_that_says_when_it_began(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    rows = np.random.default_rng(1).permutation(len(EMBEDDINGS))
    add(store, EMBEDDINGS[rows[:30]], device="old camera")
    charts = watch(settings, store, tmp_path)
    charts.look(RUN)
    assert alarms(store) == ()
    assert charts_of(store, "old camera")["state"] == charts_of(store, ALL_DEVICES)["state"] == "no drift"

    before, after = EMBEDDINGS[rows[30:50]], EMBEDDINGS[rows[50:58]] + SHIFT
    add(store, np.concatenate([before, after]), device="new camera")
    charts.look(RUN)
    (alarm,) = [each for each in alarms(store) if each["scope"] == "new camera"]
    assert (alarm["state"], alarm["kind"], alarm["first_seen_at"] == alarm["last_seen_at"]) == (
        "open", "embedding charts", alarm["count"] == 1,
    )  # fmt: skip
    assert "2026-01-05 12:20 UTC" in alarm["message"], "the twenty-first study of that camera was the first changed one"
    assert alarm["effect"] > 2
    assert alarm["p_value"] <= 0.75 / 10_000
    assert not [each for each in alarms(store) if each["scope"] == "old camera"]

    count = alarm["count"]
    add(store, EMBEDDINGS[rows[58:74]] + SHIFT, device="new camera")
    charts.look(RUN)
    (alarm,) = [each for each in alarms(store) if each["scope"] == "new camera"]
    assert alarm["count"] > count, "charts that begin anew find it again, and it is the same alarm"
    assert alarm["message"].count("2026-01-05 12:20 UTC") == 1, "when it began stays"
    assert alarm["message"].count("Again: ") == 1

    change_alarm(store, alarm["alarm_key"], {"state": "closed"})
    add(store, EMBEDDINGS[rows[74:90]] + SHIFT, device="new camera")
    charts.look(RUN)
    assert len([each for each in alarms(store) if each["scope"] == "new camera"]) == 2


def test_a_restart_after_every_few_studies_leaves_the_same_bytes(settings: Settings, tmp_path: Path) -> None:
    stream = np.concatenate([EMBEDDINGS[:60], EMBEDDINGS[60:75] + SHIFT, EMBEDDINGS[75:90]])
    left = {}
    for restarts in (False, True):
        folder = tmp_path / str(restarts)
        folder.mkdir()
        store = open_store("", data_dir=folder, migrate=True)
        point_at(store, BUNDLE.folder)
        charts = watch(settings, store, folder)
        for part in np.array_split(stream, 12):
            add(store, part, device="a" if part[0, 0] > np.median(stream[:, 0]) else "b")
            if restarts:
                charts = watch(settings, store, folder)
            charts.look(RUN)
        left[restarts] = states_of(store)
        store.close()
    assert left[True] == left[False]
    assert set(left[True]) == {"a", "b", ALL_DEVICES}
    assert state_from_bytes(left[True][ALL_DEVICES]).total == 90


def test_a_study_counts_once(store: Store, settings: Settings, tmp_path: Path) -> None:
    keys = add(store, EMBEDDINGS[:5], images=2)
    add(store, EMBEDDINGS[5:6], ungradable_reasons=["too dark"])
    charts = watch(settings, store, tmp_path)
    charts.look(RUN)
    assert totals(store) == {ALL_DEVICES: 5, "camera": 5}
    before = states_of(store)
    with store.write() as connection:  # judged again: the row of the same image gets a new id
        top = connection.execute(select(func.max(prediction.c.prediction_id))).scalar_one()
        mine = select(func.min(prediction.c.prediction_id)).where(prediction.c.study_key == keys[0]).scalar_subquery()
        connection.execute(update(prediction).where(prediction.c.prediction_id == mine).values(prediction_id=top + 1))
    charts.look(RUN)
    watch(settings, store, tmp_path).look(RUN)
    assert states_of(store) == before


def test_what_was_not_written_down_is_taken_in_again(
    store: Store, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(store, np.concatenate([EMBEDDINGS[:5], EMBEDDINGS[5:20] + SHIFT]))
    charts = watch(settings, store, tmp_path)

    def write_and_fail(*arguments: Any) -> Any:
        """As a kill just before the commit."""
        taken, record, _ = arguments
        with taken.write() as connection:
            connection.execute(insert(chart_study), [{**VERSION, "study_key": record.seen[0][0], "prediction_id": 1}])
            raise StoreError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(sequential, "record_charts", write_and_fail)
        with pytest.raises(StoreError, match="killed"):
            charts.look(RUN)
    assert (states_of(store), alarms(store)) == ({}, ())
    charts.look(RUN)
    assert totals(store) == {ALL_DEVICES: 20, "camera": 20}
    assert {alarm["scope"] for alarm in alarms(store)} == {ALL_DEVICES, "camera"}


def test_state_of_another_reference_is_not_gone_on_with(store: Store, settings: Settings, tmp_path: Path) -> None:
    add(store, EMBEDDINGS[:9])
    watch(settings, store, tmp_path).look(RUN)
    with store.write() as connection:
        connection.execute(update(chart_state).values(fingerprint="0" * 64))
    add(store, EMBEDDINGS[9:20])
    watch(settings, store, tmp_path).look(RUN)
    result = charts_of(store, "camera")
    assert (result["n"], result["seen"]) == (11, 20)
    assert result["reason"] == "the charts' state was of another reference; the charts began anew"


def test_a_version_without_a_usable_reference_says_so_once(store: Store, settings: Settings, tmp_path: Path) -> None:
    point_at(store, tmp_path / "gone")
    charts = watch(settings, store, tmp_path)
    charts.look(RUN)
    assert latest_drift(store) == (), "nothing was judged yet, so nothing goes unjudged"
    add(store, EMBEDDINGS[:3])
    charts.look(RUN)
    first = charts_of(store, ALL_DEVICES)
    charts.look(RUN)
    assert charts_of(store, ALL_DEVICES) == first
    assert first["state"] == "not judged"
    assert first["reason"].startswith("no charts of this model version: ")


def test_an_embedding_of_another_model_is_not_judged(store: Store, settings: Settings, tmp_path: Path) -> None:
    add(store, EMBEDDINGS[:3, :100])
    add(store, EMBEDDINGS[:3])
    watch(settings, store, tmp_path).look(RUN)
    assert totals(store) == {ALL_DEVICES: 3, "camera": 3}
    result = charts_of(store, ALL_DEVICES)
    assert result["state"] == "not judged"
    assert "[N, 1280]" in result["reason"]


def test_simulating_heights_holds_nothing_up(
    store: Store, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, finish = threading.Event(), threading.Event()
    real = sequential.prepare_charts

    def slow(*arguments: Any) -> Prepared:
        begun.set()
        assert finish.wait(30)
        return real(*arguments)

    monkeypatch.setattr(sequential, "prepare_charts", slow)
    add(store, EMBEDDINGS[:3])
    charts = ChartWatch(settings, store, tmp_path / "charts")
    charts.look(RUN)
    assert begun.wait(30)
    charts.look(RUN)
    assert charts_of(store, ALL_DEVICES)["reason"] == "the heights of the charts are being simulated"
    finish.set()
    assert charts._thread is not None
    charts._thread.join(60)
    charts.look(RUN)
    assert totals(store) == {ALL_DEVICES: 3, "camera": 3}


def test_expired_studies_are_forgotten_and_the_charts_stand(store: Store, settings: Settings, tmp_path: Path) -> None:
    keys = add(store, EMBEDDINGS[:3])
    watch(settings, store, tmp_path).look(RUN)
    before = states_of(store)
    assert remove_records(store, keys, before=NOW + timedelta(days=1), committing=()).rows == 3
    with store.read() as connection:
        assert connection.execute(select(func.count()).select_from(chart_study)).scalar_one() == 0
    watch(settings, store, tmp_path).look(RUN)
    assert states_of(store) == before


def test_shipped_models_need_no_simulation(tmp_path: Path) -> None:
    """Their heights are in the repository, under the hash of the reference that they were simulated from."""
    for folder in bundled_folders():
        prepared = sequential.prepare_charts(folder, tmp_path, lambda: True)
        assert prepared.calibration is not None, prepared.reason
        assert prepared.reference is not None
        assert prepared.calibration.fingerprint == prepared.reference.fingerprint
    assert not list(tmp_path.iterdir())
    assert len(list(SHIPPED.glob("*.json"))) == len(bundled_folders())


def test_stopping_leaves_the_rest_for_later(store: Store, settings: Settings, tmp_path: Path) -> None:
    add(store, EMBEDDINGS[:3])
    stopped = threading.Event()
    stopped.set()
    watch(settings, store, tmp_path).look(stopped)
    assert states_of(store) == {}


def test_budget_is_the_operators(store: Store, settings: Settings, tmp_path: Path) -> None:
    section = settings.monitor.model_copy(update={"studies_between_false_alarms": 1_000})
    loose = ChartWatch(settings.model_copy(update={"monitor": section}), store, tmp_path, in_background=False)
    add(store, EMBEDDINGS[:1])
    loose.look(RUN)
    assert charts_of(store, "camera")["threshold_p"] == pytest.approx(0.75e-3)
    assert charts_of(store, ALL_DEVICES)["threshold_p"] == pytest.approx(0.25e-3)
