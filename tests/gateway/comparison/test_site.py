"""Comparisons beside a gateway: its versions, its saved studies, what its readers said, its store and MLflow."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compared_images import radiograph
from onnx import numpy_helper
from saved_rows import keep, said
from tiny_bundles import tiny_graph, write_tiny_bundle

from gateway.cli import main
from gateway.comparison.versions import find_version
from gateway.deidentify import Deidentifier
from gateway.errors import ComparisonError
from gateway.store import Store, open_store
from gateway.store.comparisons import list_comparisons
from gateway.store.models import VersionState, add_version
from gateway.store.truth import Word, add_words
from models.card import file_sha256
from models.registry import bundle_sha256

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
STUDIES = 12
CODE = {"value": "1", "scheme": "99TEST", "meaning": "Test"}
FINDINGS = [{"name": "there", "title": "There", "labels": ["there"], "operating_point": 0.45, "code": CODE}]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Two versions of a model are known: 1 judges, 2 is a draft; twelve studies are saved, and read but for two."""
    store = open_store("", data_dir=tmp_path, migrate=True)
    model = tiny_graph()
    for entry in model.graph.initializer:
        if entry.name == "head.bias":
            entry.CopyFrom(numpy_helper.from_array(np.array([0.35, -0.3], dtype=np.float32), "head.bias"))
    for version, graph in ((1, None), (2, model)):
        folder = tmp_path / "bundles" / str(version)
        folder.parent.mkdir(exist_ok=True)
        bundle = write_tiny_bundle(folder, graph, version=version, modalities=["CR"], findings=FINDINGS)
        with store.write() as connection:
            add_version(
                connection,
                model_name="tiny",
                version=version,
                title="Tiny",
                demonstration=True,
                folder=str(folder),
                model_sha256=bundle.model_sha256,
                bundle_sha256=bundle_sha256(folder),
                now=NOW,
                by="test",
                state=VersionState.CHAMPION if version == 1 else VersionState.DRAFT,
            )
    deidentifier = Deidentifier(hashlib.sha256(b"of this test").digest())
    random = np.random.default_rng(2)
    words = []
    for number in range(STUDIES):
        level = 40 + 15 * number
        pixels = np.clip(random.normal(level, 30, (48, 48)), 0, 255).astype(np.uint8)
        kept = keep(
            store,
            said(model="tiny", finding="there"),
            number=number,
            modality="CR",
            dataset=deidentifier.dataset(radiograph(pixels, number=number)),
            data_dir=tmp_path,
            person=f"{number // 2:016d}",
        )
        if number > 1:
            words.append(
                Word(
                    study_key=kept.study_key,
                    model_name="tiny",
                    finding_name="there",
                    value="present" if number % 3 else "absent",
                    source="import",
                    reader="ada",
                    read_at=NOW,
                )
            )
    with store.write() as connection:
        add_words(connection, words, NOW)
    yield store
    store.close()


@pytest.fixture(autouse=True)
def no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {"model_bytes": 1, "providers": ["CPUExecutionProvider"], "threads": 1, "load_ms": 1.0}
    batches = [{"size": size, "runs": 1, "p50_ms": 1.0, "p95_ms": 1.0} for size in (1, 16)]
    monkeypatch.setattr(
        "gateway.comparison.run.measure", lambda *_, **__: figures | {"resident_mib": 1.0, "batches": batches}
    )


def run(tmp_path: Path, *versions: str, studies: str = "model=tiny") -> int:
    arguments = ["compare", *versions, "--studies", studies, "--data-dir", str(tmp_path)]
    return main([*arguments, "--draws", "40", "--threads", "1", "--json"])


def test_the_champion_is_held_against_a_draft_on_saved_studies(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logged: list[dict[str, Any]] = []

    def log(uri: str, root: Path, **given: Any) -> str:
        logged.append({"uri": uri, "root": root, **given})
        return "run-1"

    monkeypatch.setattr("models.tracking.log_comparison", log)
    assert run(tmp_path, "tiny@champion", "tiny@2") == 3  # its card asks for an area that noise does not reach
    said = json.loads(capsys.readouterr().out)
    (row,) = list_comparisons(store)
    folder = tmp_path / row.folder
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert (row.comparison_key, str(folder)) == (said["comparison_key"], said["folder"])
    assert (row.model_name, row.version, row.baseline_name, row.baseline_version) == ("tiny", 2, "tiny", 1)
    assert (row.bundle_sha256, row.baseline_sha256) == (
        bundle_sha256(tmp_path / "bundles" / "2"),
        bundle_sha256(tmp_path / "bundles" / "1"),
    )
    assert row.report_sha256 == file_sha256(folder / "report.json")
    assert (row.case_count, row.truth_count) == (STUDIES, STUDIES - 2)
    assert (row.verdict, report["verdict"]) == ("not met", "not met")
    assert row.verdicts == report["criteria"]
    assert row.studies == "model=tiny"
    assert report["truth"]["unit"] == "study"
    assert report["truth"]["matched_words"] == STUDIES - 2
    assert report["findings"]["there"]["truth_unknown"] == {"nobody has read it": 2}
    assert report["cases"]["persons"] == STUDIES // 2
    assert sorted(path.name for path in folder.iterdir()) == ["cases.csv", "report.html", "report.json", "run.json"]
    assert list((tmp_path / "comparisons" / ".work").iterdir()) == []
    (run_,) = logged
    assert run_["artifacts"] == folder
    figures = report["findings"]["there"]["evaluation"]["overall"]["candidate"]["figures"]
    assert run_["metrics"]["there/candidate/auc_roc"] == figures["auc_roc"]["value"]
    assert run_["tags"]["comparison_key"] == row.comparison_key


def test_no_saved_study_of_a_query_is_said(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "tiny@1", "tiny@2", studies="model=other") == 1
    assert "no saved study fits 'model=other'" in capsys.readouterr().err
    assert list_comparisons(store) == ()


def test_saved_files_that_changed_cost_those_cases_and_are_named(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.tracking.log_comparison", lambda *_, **__: "")
    for broken in sorted((tmp_path / "saved").rglob("*.dcm"))[:2]:
        broken.write_bytes(broken.read_bytes()[:-2] + b"\1\1")
    assert run(tmp_path, "tiny@1", "tiny@2") == 0
    (row,) = list_comparisons(store)
    report = json.loads((tmp_path / row.folder / "report.json").read_text(encoding="utf-8"))
    assert row.case_count == STUDIES - 2
    reason = "saved image has changed since it was saved"
    assert report["cases"]["failed"] == {"candidate": {reason: 2}, "baseline": {reason: 2}}
    assert len({each["case_key"] for each in report["cases"]["failures"]}) == 2


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tiny@3", r"there is no tiny@3; versions of tiny are 1 \(champion\), 2 \(draft\)"),
        ("tiny@canary", "there is no tiny@canary"),
        ("tiny@newest", "'newest' is no version"),
    ],
)
def test_a_version_that_the_store_does_not_have(store: Store, name: str, words: str) -> None:
    with pytest.raises(ComparisonError, match=words):
        find_version(name, store)


def test_a_bundle_that_is_not_the_registered_one_is_refused(store: Store, tmp_path: Path) -> None:
    card = tmp_path / "bundles" / "2" / "card.yaml"
    card.write_text(card.read_text(encoding="utf-8").replace("least_cases: 10", "least_cases: 1"), encoding="utf-8")
    with pytest.raises(ComparisonError, match="not the one that was registered"):
        find_version("tiny@2", store)
