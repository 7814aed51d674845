"""The shipped models' versions 1 and 2 on real test images, against scikit-learn on scores got without a comparison."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from compared_images import CHEST, FUNDUS, write_chest, write_fundus
from pydicom import dcmread
from sklearn.metrics import confusion_matrix, roc_auc_score

from gateway.cli import main
from models import bundled_folders
from models.card import load_bundle
from models.pixels import read_frame
from models.preprocess import prepare
from models.quality import judge_quality
from models.session import ModelSession

needs_images = pytest.mark.skipif(not CHEST.is_dir() or not FUNDUS.is_dir(), reason="the shared images are not here")
IMAGES = 20
MEASURED = {
    "model_bytes": 1,
    "providers": ["CPUExecutionProvider"],
    "threads": 1,
    "load_ms": 1.0,
    "resident_mib": 1.0,
    "batches": [{"size": size, "runs": 1, "p50_ms": 1.0, "p95_ms": 1.0} for size in (1, 16)],
}
WRITERS = {"chest-triage": (write_chest, "pneumonia"), "retinopathy": (write_fundus, "referable_dr")}


@needs_images
@pytest.mark.slow
@pytest.mark.parametrize("model", list(WRITERS))
def test_figures_are_those_of_scikit_learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    """A part of the images: all of them take minutes, see docs/compare.md."""
    monkeypatch.setattr("gateway.comparison.run.measure", lambda *_, **__: MEASURED)
    write, finding = WRITERS[model]
    truth_file = write(tmp_path / "images", IMAGES)
    arguments = ["compare", f"{model}@1", f"{model}@2", "--studies", str(tmp_path / "images"), "--draws", "50"]
    arguments += ["--truth", str(truth_file), "--data-dir", str(tmp_path / "none"), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--threads", "2"]) in (0, 3)
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    overall = report["findings"][finding]["evaluation"]["overall"]
    truth, scores, points = independently(tmp_path / "images", truth_file, model, finding)
    assert overall["cases"] == len(truth)
    for role, version in (("baseline", 1), ("candidate", 2)):
        figures = overall[role]["figures"]
        assert figures["auc_roc"]["value"] == pytest.approx(roc_auc_score(truth, scores[version]), abs=1e-9)
        present = scores[version] >= points[version]
        negatives, _, _, positives = confusion_matrix(truth, present).ravel()
        assert figures["sensitivity"]["value"] == pytest.approx(positives / truth.sum(), abs=1e-12)
        assert figures["specificity"]["value"] == pytest.approx(negatives / (~truth).sum(), abs=1e-12)
    changed = (scores[1] >= points[1]) != (scores[2] >= points[2])
    assert len(report["findings"][finding]["evaluation"]["changed"]) == changed.sum()


def independently(
    images: Path, truth_file: Path, model: str, finding: str
) -> tuple[np.ndarray, dict[int, np.ndarray], dict[int, float]]:
    """Truth, scores by version, operating points: one image at a time, straight from the original files."""
    with truth_file.open(encoding="utf-8", newline="") as stream:
        truth = {row["file"]: row["value"] == "present" for row in csv.DictReader(stream)}
    bundles = {
        bundle.card.version: bundle for bundle in map(load_bundle, bundled_folders()) if bundle.card.name == model
    }
    sessions = {version: ModelSession(bundles[version]) for version in (1, 2)}
    kept: list[tuple[bool, float, float]] = []
    for path in sorted(images.iterdir()):
        frame = read_frame(dcmread(path), least_side=640)
        said = []
        for version, session in sessions.items():
            model_input = prepare(frame, bundles[version].card.pixel_contract)
            if judge_quality(model_input.statistics, bundles[version].card.quality):
                break
            said.append(session.run(model_input.tensor[np.newaxis])[0].scores[finding])
        if len(said) == 2:
            kept.append((truth[path.name], said[0], said[1]))
    columns = np.array(kept, dtype=np.float64).T
    points = {
        version: next(each.operating_point for each in bundles[version].card.findings if each.name == finding)
        for version in (1, 2)
    }
    return columns[0] == 1, {1: columns[1], 2: columns[2]}, points
