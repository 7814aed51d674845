"""Exports: what lies in them, whole or not at all, resumed, and as a data set of a real DVC repository."""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from photographs import drawn_jpeg, op_dataset
from saved_rows import FIRST, keep, said

from gateway import cli
from gateway.deidentify import Deidentifier
from gateway.errors import SavedError
from gateway.saved import export as export_module
from gateway.saved.cases import MANIFEST_FILE, iterate
from gateway.saved.dvc_export import find_dvc, track
from gateway.saved.export import Exported, export_saved
from gateway.saved.folders import remove_saved
from gateway.saved.query import parse_query
from gateway.store import Store, open_store
from gateway.store.saved import SavedStudyRow
from models.card import TrainingData, file_sha256
from models.dvc import dvc_hash

KEY = hashlib.sha256(b"the key of these exports").digest()
LATER = FIRST + timedelta(days=100)
OWN_DVC = Path(__file__).resolve().parents[3] / ".venv" / "dvc" / "bin" / "dvc"


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Store]:
    store = open_store("", data_dir=tmp_path, migrate=True)
    yield store
    store.close()


@pytest.fixture
def kept(shelf: Store, tmp_path: Path) -> list[SavedStudyRow]:
    """Four saved studies with files, of which the second is a left eye."""
    copies = [Deidentifier(KEY).dataset(op_dataset(drawn_jpeg(seed))) for seed in range(1, 5)]
    return [
        keep(
            shelf,
            said(laterality="L" if number == 1 else "R", score=0.1 * number + 1e-9),
            said(version=2, role="shadow", laterality="L" if number == 1 else "R", ungradable=number == 3),
            number=number,
            dataset=copy,
            data_dir=tmp_path,
        )
        for number, copy in enumerate(copies)
    ]


def export(store: Store, data_dir: Path, query: str, out: Path, **values: Any) -> Exported:
    return export_saved(store, data_dir, parse_query(query), out, now=LATER, gateway_version="test", **values)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_an_export_holds_images_manifest_and_predictions(
    shelf: Store, kept: list[SavedStudyRow], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = export(shelf, tmp_path, "laterality=R", out)
    assert (done.studies, done.cases, done.files, done.gone) == (3, 3, 3, 0)
    manifest = rows_of(out / MANIFEST_FILE)
    assert [row["study"] for row in manifest] == [kept[number].saved_key for number in (0, 2, 3)]
    for row in manifest:
        assert file_sha256(out / row["file"]) == row["sha256"]
        assert row["laterality"] == "R"
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert files == {"README.md", "manifest.csv", "predictions.csv", *(row["file"] for row in manifest)}
    assert done.size_bytes == sum((out / row["file"]).stat().st_size for row in manifest)
    predictions = rows_of(out / "predictions.csv")
    assert len(predictions) == 6
    assert float(predictions[2]["score"]) == 0.1 * 2 + 1e-9, "no digit is lost"
    assert predictions[5]["ungradable_reasons"] == "too dark"
    assert not list(tmp_path.glob(".out*"))


def test_an_export_gives_the_cases_that_the_query_gives(
    shelf: Store, kept: list[SavedStudyRow], tmp_path: Path
) -> None:
    export(shelf, tmp_path, "", tmp_path / "out")
    there = list(iterate(tmp_path / "out"))
    here = list(iterate(parse_query(""), store=shelf, data_dir=tmp_path))
    assert [case.case_key for case in there] == [case.case_key for case in here]
    assert [dict(case.slices) for case in there] == [dict(case.slices) for case in here]
    assert [case.group_key for case in there] == [case.group_key for case in here]
    for one, other in zip(there, here, strict=True):
        assert one.open().SOPInstanceUID == other.open().SOPInstanceUID


def test_a_manifest_does_not_lead_out_of_its_folder(shelf: Store, kept: list[SavedStudyRow], tmp_path: Path) -> None:
    export(shelf, tmp_path, "", tmp_path / "out")
    path = tmp_path / "out" / MANIFEST_FILE
    path.write_text(path.read_text().replace("images/", "../../images/", 1))
    with pytest.raises(SavedError, match=r"manifest\.csv, line 2"):
        list(iterate(tmp_path / "out"))


def test_an_export_that_was_stopped_goes_on_with_what_was_there_when_it_began(
    shelf: Store, kept: list[SavedStudyRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    copies = itertools.count(1)
    copy = shutil.copyfile

    def stops(source: Path, path: Path) -> Any:
        if next(copies) == 3:
            path.write_bytes(source.read_bytes()[:100])
            raise OSError(28, "No space left on device")
        return copy(source, path)

    with monkeypatch.context() as failing:
        failing.setattr(export_module.shutil, "copyfile", stops)
        with pytest.raises(OSError, match="No space"):
            export(shelf, tmp_path, "", out)
    assert not out.exists()
    keep(shelf, said(), number=200, dataset=op_dataset(drawn_jpeg(9)), data_dir=tmp_path)  # saved after it began
    remove_saved(shelf, tmp_path, [kept[0].saved_key], actor="a", reason="b", now=LATER)
    copied: list[Path] = []

    def watched(source: Path, path: Path) -> Any:
        copied.append(path)
        return copy(source, path)

    with monkeypatch.context() as watching:
        watching.setattr(export_module.shutil, "copyfile", watched)
        with pytest.raises(SavedError, match="unfinished export of ''"):
            export(shelf, tmp_path, "sex=F", out)
        done = export(shelf, tmp_path, "", out)
    assert [row["study"] for row in rows_of(out / MANIFEST_FILE)] == [each.saved_key for each in kept[1:]]
    assert len(copied) == 2, "the one that was half, and the one that was not begun"
    assert done.files == 3
    assert sum(path.is_file() for path in (out / "images").rglob("*")) == 3, "none of the removed study"
    assert not list(tmp_path.glob(".out*"))


def test_what_cannot_be_exported_is_said(shelf: Store, kept: list[SavedStudyRow], tmp_path: Path) -> None:
    with pytest.raises(SavedError, match="no saved study fits 'sex=O'"):
        export(shelf, tmp_path, "sex=O", tmp_path / "out")
    assert not list(tmp_path.glob(".out*"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(SavedError, match="is there already"):
        export(shelf, tmp_path, "", tmp_path / "full")
    (path,) = (tmp_path / kept[1].folder).iterdir()
    path.write_bytes(b"changed")
    with pytest.raises(SavedError, match="has changed since it was saved"):
        export(shelf, tmp_path, "", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_do_not_export_to_one_place(shelf: Store, kept: list[SavedStudyRow], tmp_path: Path) -> None:
    def again(_: SavedStudyRow) -> None:
        with pytest.raises(SavedError, match="somebody is exporting there"):
            export(shelf, tmp_path, "", tmp_path / "out")

    assert export(shelf, tmp_path, "", tmp_path / "out", progress=again).studies == 4


@pytest.fixture(scope="module")
def dvc() -> Path:
    command = str(OWN_DVC) if OWN_DVC.is_file() else shutil.which("dvc")
    if command is None:
        pytest.skip("no dvc here; scripts/setup makes one for tests")
    return find_dvc(command)


@pytest.fixture
def repository(dvc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Git repository with DVC."""
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    folder = tmp_path / "repository"
    folder.mkdir()
    for command in (["git", "init", "-q"], [str(dvc), "init", "-q"]):
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


def test_dvc_tracks_an_export_and_its_hash_is_what_a_card_takes(
    shelf: Store,
    kept: list[SavedStudyRow],
    tmp_path: Path,
    repository: Path,
    dvc: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = repository / "sets" / "hard-cases"
    out.parent.mkdir()
    arguments = ["saved", "export", "laterality=R", str(out), "--data-dir", str(tmp_path), "--dvc"]
    assert cli.main([*arguments, "--dvc-command", str(dvc), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["studies"] == 3
    stated = (out.parent / "hard-cases.dvc").read_text()
    (digest,) = re.findall(r"md5: (\w+\.dir)", stated)
    assert report["dvc_hash"] == f"md5:{digest}" == dvc_hash(out), "as DVC says, and as worked out without it"
    TrainingData(name="a", source="b", licence="c", count=3, split="d", sha256="0" * 64, dvc_hash=report["dvc_hash"])
    shutil.rmtree(out)
    subprocess.run([dvc, "checkout", "-q"], cwd=repository, check=True, capture_output=True)
    assert [case.open().PatientIdentityRemoved for case in iterate(out)] == ["YES"] * 3, "out of DVC's cache"
    assert cli.main([*arguments, "--dvc-command", str(dvc)]) == 0, "again: it is there, and tracked"
    assert f"dvc_hash: {report['dvc_hash']}" in capsys.readouterr().out
    arguments[2] = "laterality=L"
    assert cli.main([*arguments, "--dvc-command", str(dvc)]) == 1, "what is there is of another query"
    assert "is there already" in capsys.readouterr().err
    export(shelf, tmp_path, "laterality=R", tmp_path / "again")
    assert dvc_hash(tmp_path / "again") != report["dvc_hash"], "the version of the gateway is another"
    export(shelf, tmp_path, "laterality=R", tmp_path / "once more")
    assert dvc_hash(tmp_path / "again") == dvc_hash(tmp_path / "once more")


def test_what_dvc_needs_is_asked_for_before_anything_is_written(
    shelf: Store, kept: list[SavedStudyRow], tmp_path: Path, dvc: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["saved", "export", "", str(tmp_path / "out"), "--data-dir", str(tmp_path), "--dvc", "--dvc-command"]
    assert cli.main([*arguments, str(tmp_path / "nowhere")]) == 1
    assert "pip install dvc" in capsys.readouterr().err
    assert cli.main([*arguments, str(dvc)]) == 1
    assert "in no DVC repository" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_dvc_says_is_passed_on(repository: Path, dvc: Path) -> None:
    folder = repository / "in-git"
    folder.mkdir()
    (folder / "a.txt").write_text("a")
    environment = {**os.environ, "GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@t"}
    subprocess.run(["git", "add", "in-git"], cwd=repository, check=True, env=environment)
    with pytest.raises(SavedError, match=r"dvc add failed: .*in-git.*"):
        track(folder, dvc)


def test_the_commands_list_and_remove(
    shelf: Store, kept: list[SavedStudyRow], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--data-dir", str(tmp_path)]
    assert cli.main(["saved", "list", "laterality=R", *place]) == 0
    shown = capsys.readouterr().out
    assert f"{kept[0].saved_key}  2026-01-10  OP  1 frames  60-69, F  [a tenth: one of ten]" in shown
    assert "    retinopathy 1 (champion): referable_dr absent 0.000" in shown
    assert "3 of 4 saved studies" in shown
    assert "no [[saving]] rule is set" in shown
    assert cli.main(["saved", "list", "--json", *place]) == 0
    listed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["saved_key"] for each in listed] == [each.saved_key for each in kept]
    assert cli.main(["saved", "list", "sexx=F", *place]) == 1
    assert "query, character 1: found 'sexx=F'; expected one of model" in capsys.readouterr().err
    remove = ["saved", "remove", "laterality=R", "--reason", "a test", *place]
    assert cli.main(remove) == 1, "nobody to ask"
    assert cli.main([*remove, "--yes"]) == 0
    assert "3 saved studies were removed" in capsys.readouterr().out
    assert [case.study_key for case in iterate(parse_query(""), store=shelf, data_dir=tmp_path)] == [kept[1].study_key]
    assert [path.parent.name for path in (tmp_path / "saved").rglob("*.dcm")] == [kept[1].saved_key]
