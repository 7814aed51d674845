"""Runs beside the registry: whole or marked as failed, in the same MLflow."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from running import free_port

from models.card import Bundle
from models.errors import RegistryError
from models.registry import ModelRegistry, bundle_sha256
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


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """MLflow's own server, on an embedded database that registry and runs have been written to; its URL."""
    uri, root = location(tmp_path)
    ModelRegistry(uri, root)  # makes the database
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1", "--artifacts-destination", str(tmp_path / "served")]
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    with (tmp_path / "server.txt").open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                    assert answer.status == 200
                break
            except OSError:
                assert process.poll() is None, (tmp_path / "server.txt").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


@pytest.mark.slow
def test_mlflow_s_own_server_shows_it_all_and_takes_it_all(
    tmp_path: Path, make_bundle: Callable[..., Bundle], server: str
) -> None:
    """What was written to the embedded database is shown; what is sent to the URL is kept, bundles byte for byte."""
    uri, root = location(tmp_path)
    report = tmp_path / "report"
    report.mkdir()
    (report / "report.html").write_text("<p>Report</p>")
    ModelRegistry(uri, root).register(make_bundle(version=1))
    for place in ((uri, root), (server, tmp_path / "copies")):
        log_comparison(
            *place, name="compared", params={"seed": 1}, metrics={"auc": 0.5}, tags={"verdict": "met"}, artifacts=report
        )
    registry = ModelRegistry(server, tmp_path / "copies")
    sent = make_bundle(version=2)
    registry.register(sent)
    registry.set_alias("tiny", "champion", 2)
    resolved = registry.resolve("tiny", "champion")
    assert bundle_sha256(resolved.folder) == bundle_sha256(sent.folder)
    assert [each.card_version for each in registry.versions("tiny")] == [1, 2]

    def ask(path: str, **body: object) -> dict[str, Any]:
        request = urllib.request.Request(
            f"{server}/api/2.0/mlflow/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return dict(json.load(answer))

    ids = {each["name"]: each["experiment_id"] for each in ask("experiments/search", max_results=10)["experiments"]}
    runs = ask("runs/search", experiment_ids=[ids[COMPARISONS]])["runs"]
    assert [run["data"]["metrics"][0]["value"] for run in runs] == [0.5, 0.5]
    (bundle_run, _) = ask("runs/search", experiment_ids=[ids["bundles"]])["runs"]
    params = {each["key"]: each["value"] for each in bundle_run["data"]["params"]}
    assert params["training_data.0.dvc_hash"] == "md5:" + "0" * 32 + ".dir"
    assert params["acceptance.auc"] == "auc_roc (low) of there: at least 0.6"
