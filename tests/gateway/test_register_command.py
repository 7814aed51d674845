"""``gateway models register``: what passes is a draft and stands in the record, what does not leaves no trace."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_bundles import write_tiny_bundle

from gateway.catalogue import embedded_registry_uri
from gateway.cli import main
from gateway.errors import LifecycleError
from gateway.model_record import entries, load_record_key, verify
from gateway.register_command import CRITERIA_CHECK, DVC_CHECK, add_register_step, examine, register
from gateway.settings import Settings, load_settings
from gateway.site_key import prepare_site_key
from gateway.store import Store, open_store
from gateway.store.models import VersionState, known_versions
from models import bundled_folders
from models.card import CARD_FILE, GOLDEN_FILE, load_bundle
from models.dvc import dvc_hash
from models.errors import BundleError, RegistryError
from models.registry import ModelRegistry, bundle_sha256

ROOT = Path(__file__).resolve().parents[2]
DVC = ROOT / ".venv/dvc/bin/dvc"
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
SOURCE = {"name": "set", "source": "drawn", "licence": "CC0", "count": 1, "split": "none", "sha256": "0" * 64}


class Site:
    """A data folder whose gateway has run once."""

    def __init__(self, data_dir: Path) -> None:
        data_dir.mkdir()
        self.data_dir = data_dir
        self.settings: Settings = load_settings(environment={})
        store = self.store()
        prepare_site_key(store, self.settings.deidentification, data_dir, now=NOW)
        store.close()

    def store(self) -> Store:
        return open_store("", data_dir=self.data_dir, migrate=True)

    def registry(self) -> ModelRegistry:
        return ModelRegistry(embedded_registry_uri(self.data_dir), self.data_dir / "mlflow-artifacts")

    def run(self, *arguments: str) -> int:
        parser = argparse.ArgumentParser()
        steps = parser.add_subparsers(dest="step", required=True)
        add_register_step(steps, lambda each: None, lambda _: (self.settings, self.data_dir, self.store()))
        options = parser.parse_args(["register", *arguments])
        status: int = options.run(options)
        return status


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "data")


def record_of(site: Site) -> list[Any]:
    store = site.store()
    try:
        assert verify(store, load_record_key(site.settings.deidentification, site.data_dir)) == []
        with store.read() as connection:
            return list(entries(connection))
    finally:
        store.close()


def versions_of(site: Site) -> list[Any]:
    store = site.store()
    try:
        return list(known_versions(store))
    finally:
        store.close()


def test_a_bundle_becomes_a_draft_in_mlflow_the_store_and_the_record(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    assert site.run(str(bundle.folder)) == 0
    printed = capsys.readouterr().out
    assert "tiny@1 is registered, as a draft" in printed
    assert "FAILED" not in printed

    (known,) = versions_of(site)
    (registered,) = site.registry().versions()
    assert (known.model_name, known.version, known.state) == ("tiny", 1, VersionState.DRAFT)
    assert known.registered_by.startswith("command:")
    assert Path(known.folder) != bundle.folder
    assert bundle_sha256(Path(known.folder)) == known.bundle_sha256 == registered.bundle_sha256
    (entry,) = record_of(site)
    assert (entry.action, entry.to_state, entry.model_name, entry.version) == ("register", "draft", "tiny", 1)
    assert entry.detail["waived"] == {}
    assert "golden run" in entry.detail["checks"]


def test_the_same_bytes_again_change_nothing(site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    copy = shutil.copytree(bundle.folder, tmp_path / "copy")
    assert site.run(str(bundle.folder)) == 0
    assert site.run(str(copy)) == 0
    assert "was registered before, with these very bytes" in capsys.readouterr().out
    assert len(versions_of(site)) == len(site.registry().versions()) == len(record_of(site)) == 1


def test_a_new_threshold_under_an_old_version_is_refused(site: Site, tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    assert site.run(str(bundle.folder)) == 0
    card = yaml.safe_load((bundle.folder / CARD_FILE).read_text())
    card["findings"][0]["operating_point"] = 0.4
    (bundle.folder / CARD_FILE).write_text(yaml.safe_dump(card))
    with pytest.raises(RegistryError, match="a new threshold is a new version"):
        site.run(str(bundle.folder))
    assert len(versions_of(site)) == len(record_of(site)) == 1

    card["version"] = 2
    (bundle.folder / CARD_FILE).write_text(yaml.safe_dump(card))
    assert site.run(str(bundle.folder)) == 0
    assert [known.version for known in versions_of(site)] == [1, 2]


def test_other_bytes_under_a_known_version_are_refused_in_one_line(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    assert site.run(str(bundle.folder)) == 0
    card = yaml.safe_load((bundle.folder / CARD_FILE).read_text())
    card["title"] = "Another"
    (bundle.folder / CARD_FILE).write_text(yaml.safe_dump(card))
    capsys.readouterr()
    assert main(["models", "register", str(bundle.folder), "--data-dir", str(site.data_dir)]) == 1
    said = capsys.readouterr().err
    assert "gateway models: tiny version 1 is registered with other bytes" in said
    assert "Traceback" not in said


def test_a_data_folder_with_the_bytes_of_before_keeps_them(site: Site, tmp_path: Path) -> None:
    """Versions 1 and 2 of the shipped models were registered without golden inputs by earlier gateways."""
    from gateway.registry_follower import register_bundled

    shipped = next(folder for folder in bundled_folders() if folder.parts[-2:] == ("chest-triage", "1"))
    before = tmp_path / "before"
    shutil.copytree(shipped, before)
    (before / GOLDEN_FILE).unlink()
    card = yaml.safe_load((before / CARD_FILE).read_text())
    card |= {"golden": None, "acceptance": None}
    del card["files"][GOLDEN_FILE]
    (before / CARD_FILE).write_text(yaml.safe_dump(card))
    registry = site.registry()
    registry.register(load_bundle(before))

    register_bundled(registry)

    found = {(each.model_name, each.card_version): each for each in registry.versions()}
    assert len(found) == len(bundled_folders())
    kept = registry.bundle(found["chest-triage", 1])
    assert bundle_sha256(kept.folder) == bundle_sha256(before)
    assert kept.model_sha256 == load_bundle(shipped).model_sha256
    with pytest.raises(RegistryError, match="registered with other bytes"):
        site.run(str(shipped))


def test_what_fails_leaves_no_trace(site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle", licence="", opset=18)
    assert site.run(str(bundle.folder)) == 1
    printed = capsys.readouterr().out
    assert "FAILED  licence" in printed
    assert "the card says opset 18, the graph 17" in printed
    assert "tiny@1 is not registered: 2 of 15 checks failed" in printed
    assert versions_of(site) == record_of(site) == []
    assert not (site.data_dir / "mlflow.db").exists()


def test_a_folder_that_is_no_bundle(site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert site.run(str(tmp_path / "absent")) == 1
    assert "no card.yaml" in capsys.readouterr().out
    bundle = write_tiny_bundle(tmp_path / "bundle")
    bundle.reference_path.write_bytes(b"other")
    assert site.run(str(bundle.folder), "--json") == 1
    said = json.loads(capsys.readouterr().out)
    assert (said["passed"], said["registered"], said["model"]) == (False, False, None)
    assert "the card says" in said["checks"][0]["detail"]


def test_checking_only_needs_no_gateway(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(_: argparse.Namespace) -> Any:
        raise AssertionError("opened")

    parser = argparse.ArgumentParser()
    add_register_step(parser.add_subparsers(), lambda each: None, refuse)
    bundle = write_tiny_bundle(tmp_path / "bundle")
    options = parser.parse_args(["register", str(bundle.folder), "--check-only", "--json"])
    assert options.run(options) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["passed"], said["registered"], said["new"]) == (True, False, False)
    assert len(said["checks"]) == 15


def test_knowing_the_command_costs_neither_onnx_runtime_nor_mlflow() -> None:
    words = "import sys, gateway.register_command; print({'onnxruntime', 'mlflow', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_what_may_be_missing_may_be_so_for_a_reason_that_is_recorded(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle", acceptance=None, training_data=[SOURCE])
    assert site.run(str(bundle.folder)) == 1
    assert site.run(str(bundle.folder), "--allow-missing", "  ") == 1
    assert versions_of(site) == []
    assert site.run(str(bundle.folder), "--allow-missing", "A published model; its makers state no hash.") == 0
    assert "waived  acceptance criteria" in capsys.readouterr().out
    (entry,) = record_of(site)
    assert set(entry.detail["waived"]) == {"acceptance criteria", "training data's DVC hash"}
    assert entry.detail["allow_missing"] == "A published model; its makers state no hash."


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"metric": "auc"}, "auc is none of accuracy, agreement, auc_pr, auc_roc"),
        ({"metric": "agreement", "statistic": "difference"}, "agreement is none of accuracy, auc_pr"),
        ({"slice": "each:camera"}, "camera is none of device, manufacturer"),
        ({"slice": "Sex=F"}, None),
        ({"metric": "sensitivity_gap", "slice": "sex=F"}, "each:sex is expected"),
    ],
)
def test_a_criterion_that_no_comparison_could_judge(tmp_path: Path, change: dict[str, str], words: str | None) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    assert bundle.card.acceptance is not None
    acceptance = bundle.card.acceptance.model_dump(mode="json")
    acceptance["criteria"][0] |= change
    if words is None:
        with pytest.raises(BundleError, match="slice"):
            write_tiny_bundle(tmp_path / "other", acceptance=acceptance)
        return
    (failed,) = examine(write_tiny_bundle(tmp_path / "other", acceptance=acceptance).folder, allow_missing="x").failed
    assert failed.name == CRITERIA_CHECK
    assert words in failed.detail


@pytest.mark.parametrize("folder", bundled_folders(), ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_what_ships_could_be_registered(folder: Path) -> None:
    assert examine(folder).failed == ()


def test_a_reason_waives_nothing_else(site: Site, tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle", licence="", acceptance=None)
    examination = examine(bundle.folder, allow_missing="because")
    assert [result.name for result in examination.failed] == ["licence"]
    assert [result.name for result in examination.waived] == ["acceptance criteria"]
    store = site.store()
    with pytest.raises(LifecycleError, match="not passed"):
        register(site.settings, site.data_dir, store, examination, actor="test", now=NOW)
    store.close()


def test_who_brought_a_version_is_recorded_though_the_monitor_saw_it_first(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gateway import lifecycle

    real, seen = lifecycle.take_in, []

    def after_the_monitor(store: Store, **arguments: Any) -> bool:
        if not seen:
            seen.append(real(store, **arguments | {"by": "registry", "detail": None}))
        return real(store, **arguments)

    monkeypatch.setattr(lifecycle, "take_in", after_the_monitor)
    assert site.run(str(write_tiny_bundle(tmp_path / "bundle").folder)) == 0
    first, second = record_of(site)
    assert (first.actor, first.to_state, second.to_state) == ("registry", "draft", "")
    assert second.actor.startswith("command:")
    assert "golden run" in second.detail["checks"]


@pytest.mark.skipif(not DVC.is_file(), reason="no .venv/dvc; scripts/setup test makes it")
def test_the_training_data_has_to_be_in_the_dvc_repository_that_is_named(
    site: Site, tmp_path: Path, make_dvc: Callable[[Path], Callable[..., None]], capsys: pytest.CaptureFixture[str]
) -> None:
    repository = tmp_path / "repository"
    dvc = make_dvc(repository)
    (repository / "images").mkdir()
    (repository / "images" / "one.txt").write_text("1")
    dvc("add", "--quiet", "images")
    tracked = SOURCE | {"dvc_hash": dvc_hash(repository / "images")}
    bundle = write_tiny_bundle(tmp_path / "bundle", training_data=[tracked])
    assert site.run(str(bundle.folder), "--dvc-repository", str(repository)) == 0
    assert f"ok      {DVC_CHECK}: set is images, by images.dvc" in capsys.readouterr().out

    (repository / "images" / "two.txt").write_text("2")
    dvc("add", "--quiet", "images")
    assert site.run(str(bundle.folder), "--check-only", "--dvc-repository", str(repository)) == 1
    assert "not tracked there now: set (md5:" in capsys.readouterr().out
    assert site.run(str(bundle.folder), "--check-only", "--dvc-repository", str(tmp_path)) == 1
    assert "no DVC repository" in capsys.readouterr().out


@pytest.fixture
def make_dvc(tmp_path: Path) -> Callable[[Path], Callable[..., None]]:
    """Makes a DVC repository without Git, and gives what runs DVC in it."""

    def make(repository: Path) -> Callable[..., None]:
        repository.mkdir()
        home = tmp_path / "home"
        home.mkdir()
        names = ("HOME", "DVC_GLOBAL_CONFIG_DIR", "DVC_SYSTEM_CONFIG_DIR", "DVC_SITE_CACHE_DIR")
        environment = {"PATH": os.environ["PATH"], "DVC_NO_ANALYTICS": "1"} | dict.fromkeys(names, str(home))

        def run(*arguments: str) -> None:
            subprocess.run([str(DVC), *arguments], cwd=repository, env=environment, check=True, capture_output=True)

        run("init", "--no-scm", "--quiet")
        return run

    return make
