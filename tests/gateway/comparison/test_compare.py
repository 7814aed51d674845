"""Whole comparisons of tiny bundles on drawn pictures, and what stops them."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from compared_images import radiograph
from onnx import numpy_helper
from photographs import write
from sklearn.metrics import average_precision_score, brier_score_loss, cohen_kappa_score, roc_auc_score
from tiny_bundles import tiny_graph, write_tiny_bundle

from gateway.cli import main
from gateway.comparison.measure import measure
from gateway.comparison.run import Job, make_pair
from gateway.comparison.scores import SCORES_FILE, ScoreBook
from gateway.comparison.versions import find_version
from gateway.deidentify import Deidentifier
from gateway.errors import ComparisonError
from gateway.settings import load_settings

KEY = hashlib.sha256(b"of the tests").digest()
CASES = 40
REPOSITORY = Path(__file__).resolve().parents[3]


def shifted_graph() -> onnx.ModelProto:
    """Another head: other scores on the same pictures."""
    model = tiny_graph()
    for entry in model.graph.initializer:
        if entry.name == "head.bias":
            entry.CopyFrom(numpy_helper.from_array(np.array([0.35, -0.3], dtype=np.float32), "head.bias"))
    return model


CARD: dict[str, Any] = {"modalities": ["CR"]}
LOOSE = [{"name": "area", "finding": "there", "metric": "auc_roc", "minimum": 0.0}]
STRICT = [{"name": "area", "finding": "there", "metric": "auc_roc", "minimum": 0.999}]
ONE_FINDING = [
    {
        "name": "there",
        "title": "There",
        "labels": ["there"],
        "operating_point": 0.45,
        "code": {"value": "1", "scheme": "99TEST", "meaning": "Test"},
    }
]


def acceptance(criteria: list[dict[str, Any]], least: int = 10) -> dict[str, Any]:
    return {
        "written_at": "2026-11-24",
        "written_by": "The tests",
        "studies": "Drawn ones.",
        "least_cases": least,
        "criteria": criteria,
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two bundles, a folder of drawn pictures, and a truth table."""
    folder = tmp_path_factory.mktemp("compare")
    card = CARD | {"findings": ONE_FINDING}
    write_tiny_bundle(folder / "one", version=1, **card, acceptance=acceptance(LOOSE))
    write_tiny_bundle(folder / "two", shifted_graph(), version=2, **card, acceptance=acceptance(LOOSE))
    write_tiny_bundle(folder / "bad", shifted_graph(), version=3, **card, acceptance=acceptance(STRICT))
    write_tiny_bundle(folder / "bare", shifted_graph(), version=4, **card, acceptance=None)
    draw(folder / "images", CASES)
    return folder


def draw(images: Path, count: int) -> None:
    """Pictures, the truth of which goes with their brightness, by and large; two a person."""
    images.mkdir()
    random = np.random.default_rng(4)
    rows = []
    for number in range(count):
        level = random.uniform(30, 220)
        pixels = np.clip(random.normal(level, 40, (64, 64)), 0, 255).astype(np.uint8)
        write(radiograph(pixels, person=f"p{number // 2}", number=number), images / f"{number:03d}.dcm")
        rows.append((f"{number:03d}.dcm", "present" if level + random.normal(0, 60) > 125 else "absent"))
    with images.with_name("truth.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("file", "value"), *rows])


@pytest.fixture(scope="module", autouse=True)
def no_measuring() -> Iterator[None]:
    """Measuring takes seconds a version; its own test does it."""
    figures = {"model_bytes": 1, "providers": ["CPUExecutionProvider"], "threads": 1, "load_ms": 1.0}
    batches = [{"size": size, "runs": 1, "p50_ms": 1.0, "p95_ms": 1.0} for size in (1, 16)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "gateway.comparison.run.measure", lambda *_, **__: figures | {"resident_mib": 1.0, "batches": batches}
        )
        yield


@pytest.fixture(scope="module")
def made(place: Path) -> Path:
    """Version 2 compared with version 1, without a break, under a known key."""
    use_key(place / "made")
    assert compare(place, "one", "two", out=place / "made") == 0
    return place / "made"


def use_key(out: Path) -> None:
    """Pseudonyms of a comparison without a gateway follow from this key."""
    path = out.with_name(f".{out.name}.key")
    path.write_bytes(KEY)
    path.chmod(0o600)


def compare(place: Path, *versions: str, out: Path, truth: bool = True, more: tuple[str, ...] = ()) -> int:
    arguments = ["compare", *(str(place / version) for version in versions), "--studies", str(place / "images")]
    arguments += ["--data-dir", str(place / "nowhere"), "--out", str(out), "--draws", "40", "--threads", "1"]
    if truth:
        arguments += ["--truth", str(place / "truth.csv")]
    return main([*arguments, *more])


def read(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "report.json").read_text(encoding="utf-8")))


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "cases.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_figures_are_those_of_scikit_learn_on_the_written_cases(made: Path) -> None:
    overall = read(made)["findings"]["there"]["evaluation"]["overall"]
    rows = rows_of(made)
    assert len(rows) == CASES == overall["cases"]
    truth = np.array([row["there.truth"] == "present" for row in rows])
    assert 0 < truth.sum() < CASES
    decisions = {}
    for role in ("candidate", "baseline"):
        scores = np.array([float(row[f"there.{role}_score"]) for row in rows])
        decisions[role] = [row[f"there.{role}_present"] == "present" for row in rows]
        assert (scores >= 0.45).tolist() == decisions[role]
        figures = overall[role]["figures"]
        assert figures["auc_roc"]["value"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
        assert figures["auc_pr"]["value"] == pytest.approx(average_precision_score(truth, scores), abs=1e-12)
        assert figures["brier"]["value"] == pytest.approx(brier_score_loss(truth, scores), abs=1e-12)
    kappa = cohen_kappa_score(decisions["candidate"], decisions["baseline"])
    assert overall["paired"]["figures"]["kappa"]["value"] == pytest.approx(kappa)
    changed = {row["case_key"] for row, a, b in zip(rows, *decisions.values(), strict=True) if a != b}
    assert changed
    assert {each["case_key"] for each in read(made)["findings"]["there"]["evaluation"]["changed"]} == changed


def test_truth_goes_to_the_image_whose_file_it_names(place: Path, made: Path) -> None:
    with (place / "truth.csv").open(encoding="utf-8", newline="") as stream:
        said = [row["value"] for row in csv.DictReader(stream)]
    assert [row["there.truth"] for row in rows_of(made)] == said


def test_one_version_is_held_against_the_truth_alone(place: Path, made: Path, tmp_path: Path) -> None:
    assert compare(place, "two", out=tmp_path / "out") == 0
    alone, paired = (read(out)["findings"]["there"]["evaluation"]["overall"] for out in (tmp_path / "out", made))
    assert (alone["baseline"], alone["paired"]) == (None, None)
    assert alone["candidate"]["figures"]["auc_roc"] == paired["candidate"]["figures"]["auc_roc"]
    assert "against the truth" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_a_worse_version_is_stopped_by_its_criteria(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(place, "one", "bad", out=tmp_path / "out") == 3
    assert "acceptance criteria not met" in capsys.readouterr().out
    report = read(tmp_path / "out")
    assert report["verdict"] == "not met"
    (criterion,) = report["criteria"]
    assert criterion["passed"] is False
    assert criterion["observed"] < 0.999


def test_without_criteria_or_truth_nothing_is_judged(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(place, "one", "bare", out=tmp_path / "bare") == 0
    assert read(tmp_path / "bare")["verdict"] == "not judged"
    assert "tiny@4 states no acceptance criteria" in capsys.readouterr().out
    assert compare(place, "one", "two", out=tmp_path / "no-truth", truth=False) == 0
    report = read(tmp_path / "no-truth")
    assert (report["verdict"], report["verdict_reason"]) == ("not judged", "no truth was given")
    assert report["findings"]["there"]["evaluation"]["overall"]["paired"]["figures"]["agreement"]["value"] is not None


def test_the_page_needs_no_network_and_names_what_was_compared(made: Path) -> None:
    page = (made / "report.html").read_text(encoding="utf-8")
    report = read(made)
    for foreign in ("http:", "https:", "<script", "url(", "@import", "<link", " style="):
        assert foreign not in page
    assert report["candidate"]["bundle_sha256"] in page
    assert page.count("data:image/jpeg;base64,") == 3 * len(report["findings"]["there"]["shown"]) > 0
    assert "Demonstration models" in page


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("--studies", "EMPTY"), "no DICOM image to compare on (files: 1 not DICOM)"),
        (("--studies", "nonsense"), "neither a folder nor a query"),
        (("--studies", "model=tiny"), "no gateway has run there; expected --data-dir"),
        (("--truth", "BAD"), "present, absent or ungradable"),
        (("--truth", "MISSING"), "cannot be read"),
        (("--draws", "0"), "expected 1 or more"),
        (("--column", "value"), "expected NAME=HEADER"),
    ],
)
def test_what_cannot_be_compared_says_why(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: tuple[str, str], words: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    (tmp_path / "bad.csv").write_text("file,value\n000.dcm,perhaps\n")
    paths = {"EMPTY": "empty", "BAD": "bad.csv", "MISSING": "missing.csv"}
    value = str(tmp_path / paths[change[1]]) if change[1] in paths else change[1]
    assert compare(place, "one", "two", out=tmp_path / "out", more=(change[0], value)) == 1
    assert words in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.csv", "empty"], "nothing is left behind"


@pytest.mark.parametrize(
    ("versions", "words"),
    [
        (("one", "one"), "with itself"),
        (("one", "two", "bad"), "one version, or two"),
        (("images",), "holds no bundle"),
        (("nothing",), "is neither a version nor a folder"),
    ],
)
def test_versions_that_cannot_be_compared(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], versions: tuple[str, ...], words: str
) -> None:
    assert compare(place, *versions, out=tmp_path / "out") == 1
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("name", ["retinopathy@77", "nonesuch@1"])
def test_an_unknown_version_says_what_there_is(name: str) -> None:
    with pytest.raises(ComparisonError, match=f"there is no {name}"):
        make_pair(None, name, None)


def test_a_report_never_replaces_another_folder(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    assert compare(place, "one", "two", out=tmp_path / "out") == 1
    assert "is there already" in capsys.readouterr().err
    assert (tmp_path / "out" / "mine.txt").read_text() == "kept"


def test_what_fails_is_counted_and_named(place: Path, tmp_path: Path) -> None:
    """An image of which the pixels are cut short, and one that the versions do not read."""
    images = tmp_path / "images"
    images.mkdir()
    pixels = np.full((32, 32), 100, dtype=np.uint8)
    write(radiograph(pixels, number=0), images / "good.dcm")
    broken = radiograph(pixels, number=1)
    broken.Rows = 64
    write(broken, images / "short.dcm")
    other = radiograph(pixels, number=2)
    other.Modality = "US"
    write(other, images / "other.dcm")
    compare(place, "one", "two", out=tmp_path / "out", truth=False, more=("--studies", str(images)))
    report = read(tmp_path / "out")
    assert report["cases"]["cases"] == 3
    assert sum(report["cases"]["failed"]["candidate"].values()) == 2
    assert any("modality US" in reason for reason in report["cases"]["failed"]["baseline"])
    assert report["findings"]["there"]["left_out"] == {"no score of either version": {"unknown": 2}}
    assert len([row for row in rows_of(tmp_path / "out") if row["candidate_failure"]]) == 2


KILLED = """
import os, signal, sys
from gateway.comparison import run, scores
written = scores.ScoreBook.write
def write(book, number, *rest):
    written(book, number, *rest)
    if number == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
scores.ScoreBook.write = write
from gateway.cli import main
main(sys.argv[2:])
"""


def killed(place: Path, out: Path, after: int) -> Path:
    """Run until a chunk is written, then die; gives the working folder."""
    arguments = ["compare", str(place / "one"), str(place / "two"), "--studies", str(place / "images")]
    arguments += ["--data-dir", str(place / "nowhere"), "--out", str(out), "--draws", "40", "--threads", "1"]
    arguments += ["--truth", str(place / "truth.csv")]
    command = [sys.executable, "-c", KILLED, str(after), *arguments]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, capture_output=True, check=False, env=environment, cwd=REPOSITORY, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not out.exists()
    (work,) = out.parent.glob(f".{out.name}-*")
    return work


@pytest.mark.parametrize("damage", ["none", "row", "file"])
def test_killed_and_started_again_it_writes_the_same_bytes(
    place: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    scored: list[int] = []
    written = ScoreBook.write

    def write_counted(book: ScoreBook, number: int, *rest: Any) -> None:
        scored.append(number)
        written(book, number, *rest)

    monkeypatch.setattr(ScoreBook, "write", write_counted)
    out = tmp_path / "out"
    use_key(out)
    work = killed(place, out, after=1)
    if damage == "row":
        connection = sqlite3.connect(work / SCORES_FILE)
        connection.execute("UPDATE score SET content = replace(content, '0.', '0.9') WHERE place = 3")
        connection.commit()
        connection.close()
    elif damage == "file":
        (work / f"{SCORES_FILE}-wal").unlink(missing_ok=True)
        (work / SCORES_FILE).write_bytes(b"SQLite format 3\0" + b"torn" * 300)
    assert compare(place, "one", "two", out=out) == 0
    assert scored == {"none": [2], "row": [0, 2], "file": [0, 1, 2]}[damage]
    assert not work.exists()
    for name in ("report.json", "cases.csv"):
        assert (out / name).read_bytes() == (made / name).read_bytes()


def test_two_at_once_do_not_disturb_each_other(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = Job(
        pair=make_pair(str(place / "one"), str(place / "two"), None),
        source=place / "images",
        deidentifier=Deidentifier(KEY),
        site_key=KEY,
        site=None,
        out=tmp_path / "out",
        providers=load_settings(environment={}).worker.providers or None,
    )
    book = ScoreBook(job.work)
    try:
        assert compare(place, "one", "two", out=tmp_path / "out") == 1
        assert "runs already" in capsys.readouterr().err
    finally:
        book.close()


def test_a_version_is_measured_in_a_process_of_its_own(place: Path) -> None:
    version = find_version(str(place / "one"), None)
    found = measure(version, batch=4, threads=1, providers=None)
    assert [each["size"] for each in found["batches"]] == [1, 4]
    assert all(0 < each["p50_ms"] <= each["p95_ms"] for each in found["batches"])
    assert found["model_bytes"] == version.bundle.model_path.stat().st_size
    assert 0 < found["resident_mib"] < 500
