"""A worker: leases, attempts, reasons, and one bad study among good ones."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from arrived_images import arrive
from known_versions import serve
from photographs import drawn_jpeg, op_dataset
from pydicom import Dataset

from gateway import worker as worker_module
from gateway.errors import ResultError, StoreError
from gateway.settings import Settings, load_settings
from gateway.store import Store, open_store
from gateway.store.studies import claim_studies, complete_now, release_leases
from gateway.studies_view import every_study
from gateway.study import StudyState
from gateway.vault import prepare_vault
from gateway.worker import Worker, conclusion, plan_threads
from models import bundled_folders
from models.card import load_bundle
from models.errors import InferenceError

LONG_AGO = datetime(2026, 1, 5, 12, tzinfo=UTC)


@pytest.fixture
def settings() -> Settings:
    return load_settings(environment={}, overrides={"worker.attempts": 2})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = open_store("", data_dir=tmp_path, migrate=True)
    for folder in bundled_folders():
        if folder.name == "1":
            serve(store, folder.parent.name, 1, folder, LONG_AGO, model_sha256=load_bundle(folder).model_sha256)
    return store


@pytest.fixture
def worker(settings: Settings, store: Store, tmp_path: Path) -> Iterator[Worker]:
    prepare_vault(settings.vault, tmp_path)
    made = Worker(settings, tmp_path, name="worker-0", threads=1)
    yield made
    made.close()


def receive(store: Store, data_dir: Path, dataset: Dataset) -> str:
    """An instance in the object folder and the store, its study complete; the study's key."""
    return arrive(store, data_dir, dataset, LONG_AGO)


def state(store: Store, key: str) -> tuple[str, str]:
    (study,) = [each for each in every_study(store) if each["study_key"] == key]
    return study["state"], study["reason"]


def test_a_bad_study_does_not_cost_the_good_ones_of_its_batch(
    store: Store, worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = (receive(store, tmp_path, op_dataset(drawn_jpeg(seed))) for seed in (1, 2))
    judge_studies = worker_module.judge_studies

    def fails_on_bad(studies: Any, *rest: Any) -> Any:
        if any(study.study_key == bad for study in studies):
            raise ZeroDivisionError("a bug")
        return judge_studies(studies, *rest)

    monkeypatch.setattr(worker_module, "judge_studies", fails_on_bad)
    assert worker.work_once()
    assert state(store, good) == ("judged", "")
    assert state(store, bad) == ("failed", "internal error: ZeroDivisionError")


def test_what_may_pass_is_tried_again_later(
    store: Store, worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = receive(store, tmp_path, op_dataset(drawn_jpeg(1)))

    def fails(*_: Any) -> Any:
        raise InferenceError("out of memory")

    monkeypatch.setattr(worker_module, "judge_studies", fails)
    worker.work_once()
    assert state(store, key) == ("queued", "out of memory")
    assert not worker.work_once(), "it waits before the next try"


def test_a_result_that_cannot_be_built_fails_the_study(
    store: Store, worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = receive(store, tmp_path, op_dataset(drawn_jpeg(1)))

    def fails(*_: Any, **__: Any) -> Any:
        raise ResultError("no patient")

    monkeypatch.setattr("gateway.pipeline.build_results", fails)
    worker.work_once()
    assert state(store, key) == ("failed", "no patient")


def test_a_study_whose_worker_always_dies_is_given_up(
    store: Store, settings: Settings, worker: Worker, tmp_path: Path
) -> None:
    key = receive(store, tmp_path, op_dataset(drawn_jpeg(1)))
    now = datetime.now(UTC)
    complete_now(store, key, now)
    for _ in range(settings.worker.attempts):
        (claimed,) = claim_studies(
            store, owner="dead:1", now=now, lease=timedelta(minutes=1), limit=1, objects=tmp_path
        )
        assert claimed.study.study_key == key
        assert release_leases(store, owner="dead:1") == 1
    worker.work_once()
    assert state(store, key) == ("failed", "given up after 2 attempts that did not end")


def test_a_lease_that_ended_frees_its_study(store: Store, tmp_path: Path) -> None:
    key = receive(store, tmp_path, op_dataset(drawn_jpeg(1)))
    complete_now(store, key, LONG_AGO)
    claim = {"lease": timedelta(seconds=30), "limit": 1, "objects": tmp_path}
    assert claim_studies(store, owner="a", now=LONG_AGO, **claim)
    assert not claim_studies(store, owner="b", now=LONG_AGO + timedelta(seconds=29), **claim)
    assert claim_studies(store, owner="b", now=LONG_AGO + timedelta(seconds=31), **claim)


def test_a_missing_file_fails_with_a_reason_and_without_a_path(store: Store, worker: Worker, tmp_path: Path) -> None:
    key = receive(store, tmp_path, op_dataset(drawn_jpeg(1)))
    for path in (tmp_path / "objects" / "instances").rglob("*.dcm"):
        path.unlink()
    worker.work_once()
    found, reason = state(store, key)
    assert found == "failed"
    assert reason
    assert str(tmp_path) not in reason


@pytest.mark.parametrize(
    ("count", "threads", "cores", "accelerators", "expected"),
    [
        (0, 0, 2, 0, (2, 1)),
        (0, 0, 16, 0, (4, 4)),
        (0, 0, 16, 1, (1, 16)),
        (0, 0, 1, 0, (1, 1)),
        (3, 5, 16, 2, (3, 5)),
    ],
)
def test_workers_and_threads_share_the_cores(
    count: int, threads: int, cores: int, accelerators: int, expected: tuple[int, int]
) -> None:
    settings = load_settings(environment={}, overrides={"worker.count": count, "worker.threads": threads})
    assert plan_threads(settings, cores=cores, accelerators=accelerators) == expected


def test_conclusions() -> None:
    from gateway.stages import StudyJudgement
    from gateway.study import Study

    nothing = StudyJudgement(study=Study(study_key="k", instances=()), not_judged_reasons={"a": "no rule matches"})
    assert conclusion(nothing) == (StudyState.NOT_MATCHED, "no rule matches")


def test_a_store_that_fails_is_left_alone_for_a_while(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise StoreError("disk is full")

    with monkeypatch.context() as failing:
        failing.setattr(worker_module, "claim_studies", fails)
        assert not worker.work_once()
        assert worker.pause_s == worker_module.STORE_PAUSE_S
    assert not worker.work_once()
    assert worker.pause_s == worker_module.POLL_S
