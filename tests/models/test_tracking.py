"""Runs beside the registry: whole or marked as failed, in the same MLflow."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.card import Bundle
from models.errors import RegistryError
from models.registry import ModelRegistry
from models.tracking import COMPARISONS, TRAINING, log_comparison, log_run


def location(tmp_path: Path) -> tuple[str, Path]:
    return f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "artifacts"


def read_run(tmp_path: Path, run_id: str):  # type: ignore[no-untyped-def]
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=location(tmp_path)[0]).get_run(run_id)


def test_a_comparison_is_a_run_with_its_report(tmp_path: Path, tiny_bundle: Bundle) -> None:
    report = tmp_path / "report"
    (report / "figures").mkdir(parents=True)
    (report / "report.html").write_text("<p>Report</p>")
    (report / "figures" / "roc.svg").write_text("<svg/>")
    uri, root = location(tmp_path)
    registry = ModelRegistry(uri, root)
    registry.register(tiny_bundle)
    run_id = log_comparison(
        uri,
        root,
        name="tiny 1 against 2",
        params={"seed": 7, "studies": "x" * 900, "empty": ""},
        metrics={
            "auc_roc/there (low)": 0.75,
            "not measured": float("nan"),
            **{f"slice {i}": i / 8 for i in range(250)},
        },
        tags={"verdict": "met"},
        artifacts=report,
    )
    run = read_run(tmp_path, run_id)
    assert (run.info.run_name, run.info.status) == ("tiny 1 against 2", "FINISHED")
    assert run.data.params == {"seed": "7", "studies": "x" * 500}
    assert len(run.data.metrics) == 251
    assert run.data.metrics["auc_roc/there _low_"] == 0.75
    assert run.data.metrics["slice 249"] == 249 / 8
    assert run.data.tags["verdict"] == "met"
    assert (root / run_id / "artifacts/figures/roc.svg").read_text() == "<svg/>"
    assert [version.card_version for version in registry.versions()] == [1]


def test_experiments_are_kept_apart(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    uri, root = location(tmp_path)
    for experiment in (TRAINING, COMPARISONS, TRAINING):
        log_run(uri, root, experiment=experiment, name="run", params={}, metrics={}, tags={})
    client = MlflowClient(tracking_uri=uri)
    found = {entry.name: entry.experiment_id for entry in client.search_experiments()}
    assert {name: len(client.search_runs([found[name]])) for name in (TRAINING, COMPARISONS)} == {
        TRAINING: 2,
        COMPARISONS: 1,
    }


def test_a_run_that_could_not_be_written_is_marked_as_failed(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    uri, root = location(tmp_path)
    with pytest.raises(RegistryError, match="could not write the run broken"):
        log_comparison(uri, root, name="broken", params={}, metrics={}, tags={}, artifacts=tmp_path / "absent")
    client = MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name(COMPARISONS).experiment_id])
    assert run.info.status == "FAILED"


def test_an_unusable_address_is_said_without_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(RegistryError) as refused:
        log_comparison(
            "postgresql://someone:secret@localhost:1/none",
            tmp_path / "artifacts",
            name="x",
            params={},
            metrics={},
            tags={},
            artifacts=tmp_path,
        )
    assert "secret" not in str(refused.value)
