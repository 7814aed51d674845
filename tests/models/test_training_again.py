"""A second training gives the same figures, and writes them down as runs in MLflow.

The scripts run whole, on a few images and with few epochs (``--quick``): reading, altering, fitting, fine-tuning,
measuring, the ONNX graph, golden inputs, the bundle's own checks.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from models.bundle_check import check_bundle
from models.card import Bundle, load_bundle
from models.dvc import dvc_hash
from models.golden import run_golden
from models.registry import bundle_sha256, card_metrics
from models.session import CPU, ModelSession
from models.tracking import TRAINING

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "../shared/data"
METRIC_TOLERANCE = 0.005
"""Of any figure, between two trainings on one machine, see docs/models.md."""


def train(script: str, images: Path, version: int, folders: list[Path]) -> None:
    """Train once for each folder, at the same time."""
    started = []
    for folder in folders:
        folder.mkdir()
        command = [sys.executable, str(ROOT / "scripts" / script), "--images", str(images), "--out", str(folder)]
        command += ["--mlflow", str(folder), "--versions", str(version), "--quick", "--threads", "1"]
        with (folder / "output.txt").open("w") as output:
            started.append(
                subprocess.Popen(
                    command,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=folder,
                    env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
                )
            )
    for folder, process in zip(folders, started, strict=True):
        assert process.wait(timeout=500) == 0, (folder / "output.txt").read_text()[-3000:]


def run_of(folder: Path) -> tuple[Any, Path]:
    """The one training run in a folder, and where its files lie."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name(TRAINING).experiment_id])
    return run, folder / "mlflow-artifacts" / run.info.run_id / "artifacts" / "bundle"


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="the shared training images are not here")
@pytest.mark.parametrize(
    ("script", "name", "images", "data"),
    [
        ("train_chest_triage.py", "chest-triage", DATA / "cxr", DATA / "cxr/train"),
        ("train_retinopathy.py", "retinopathy", DATA / "fundus", DATA / "fundus"),
    ],
)
def test_a_second_training_gives_the_same_figures(
    script: str, name: str, images: Path, data: Path, tmp_path: Path
) -> None:
    folders = [tmp_path / "first", tmp_path / "second"]
    train(script, images, 2, folders)
    bundles: list[Bundle] = []
    metrics, parameters = [], []
    for folder in folders:
        run, artifacts = run_of(folder)
        bundle = load_bundle(folder / name / "2")
        assert run.info.status == "FINISHED"
        assert bundle_sha256(artifacts) == bundle_sha256(bundle.folder) == run.data.tags["bundle_sha256"]
        assert run.data.params["training_data.0.dvc_hash"] == dvc_hash(data) == bundle.card.training_data[0].dvc_hash
        assert run.data.params["seed"] == "20"
        assert run.data.params["schedule.epochs"] == "2"
        assert run.data.metrics.items() >= card_metrics(bundle.card).items()
        assert [result for result in check_bundle(bundle, run=False) if not result.passed] == []
        assert "quick run" in bundle.card.title
        bundles.append(bundle)
        metrics.append(dict(run.data.metrics))
        parameters.append(dict(run.data.params))
    first, second = metrics
    assert first.keys() == second.keys()
    assert parameters[0] == parameters[1]
    assert {figure: second[figure] for figure in first} == pytest.approx(first, abs=METRIC_TOLERANCE)
    # The second model says of the golden pictures what the first one said.
    crossed = bundles[1].folder / "golden.npz"
    crossed.write_bytes((bundles[0].folder / "golden.npz").read_bytes())
    assert run_golden(ModelSession(bundles[1], providers=[CPU]), bundles[1]).largest_score_difference < METRIC_TOLERANCE
