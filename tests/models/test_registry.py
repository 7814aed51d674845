"""Bundles in MLflow's registry: registered once, resolved by alias, never altered."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from models.card import CARD_FILE, GOLDEN_FILE, MODEL_FILE, REFERENCE_FILE, Bundle, load_bundle
from models.errors import BundleError, RegistryError
from models.registry import ModelRegistry, bundle_sha256, card_metrics, card_parameters

ROOT = Path(__file__).resolve().parents[2]


def open_registry(folder: Path) -> ModelRegistry:
    return ModelRegistry(f"sqlite:///{folder / 'registry.db'}", folder / "artifacts")


def register_elsewhere(data_dir: str, bundle_folder: str) -> str:
    return open_registry(Path(data_dir)).register(load_bundle(Path(bundle_folder)))


@pytest.fixture(scope="session")
def empty_registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with MLflow's database made, which takes more than a second."""
    folder = tmp_path_factory.mktemp("empty_registry")
    open_registry(folder)
    return folder


@pytest.fixture
def data_dir(empty_registry: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(empty_registry, tmp_path / "data"))


@pytest.fixture
def registry(data_dir: Path) -> ModelRegistry:
    return open_registry(data_dir)


def test_a_registered_bundle_comes_back_whole(registry: ModelRegistry, tiny_bundle: Bundle) -> None:
    assert registry.register(tiny_bundle) == "1"
    registry.set_alias("tiny", "champion", 1)
    resolved = registry.resolve("tiny", "champion")
    assert resolved.card == tiny_bundle.card
    assert resolved.folder != tiny_bundle.folder
    for name in (CARD_FILE, MODEL_FILE, REFERENCE_FILE):
        assert (resolved.folder / name).read_bytes() == (tiny_bundle.folder / name).read_bytes()


def test_registering_again_changes_nothing(registry: ModelRegistry, tiny_bundle: Bundle, data_dir: Path) -> None:
    assert {registry.register(tiny_bundle) for _ in range(3)} == {"1"}
    assert open_registry(data_dir).register(tiny_bundle) == "1"
    (only,) = registry.versions()
    assert (only.model_name, only.card_version, only.registry_version, only.aliases) == ("tiny", 1, "1", ())
    assert only.model_sha256 == tiny_bundle.model_sha256
    assert only.bundle_sha256 == bundle_sha256(tiny_bundle.folder)


def test_other_bytes_under_a_known_version_are_refused(
    registry: ModelRegistry, tiny_bundle: Bundle, make_bundle: Callable[..., Bundle]
) -> None:
    registry.register(tiny_bundle)
    with pytest.raises(RegistryError, match="registered with other bytes"):
        registry.register(make_bundle(title="Another title, same version"))
    assert len(registry.versions()) == 1


def test_aliases_name_card_versions_not_mlflow_s(registry: ModelRegistry, make_bundle: Callable[..., Bundle]) -> None:
    second, first = make_bundle(version=2), make_bundle(version=1)
    assert registry.register(second) == "1"
    assert registry.register(first) == "2"
    registry.set_alias("tiny", "champion", 1)
    registry.set_alias("tiny", "shadow", 2)
    assert registry.resolve("tiny", "champion").card.version == 1
    assert registry.resolve("tiny", "shadow").card.version == 2
    registry.set_alias("tiny", "champion", 2)
    assert registry.resolve("tiny", "champion").card.version == 2
    assert [(entry.card_version, entry.aliases) for entry in registry.versions("tiny")] == [
        (1, ()),
        (2, ("champion", "shadow")),
    ]
    registry.remove_alias("tiny", "shadow")
    with pytest.raises(RegistryError, match="shadow"):
        registry.resolve("tiny", "shadow")


def test_what_is_not_there_is_a_registry_error(registry: ModelRegistry, tiny_bundle: Bundle) -> None:
    registry.register(tiny_bundle)
    for failing in (
        lambda: registry.resolve("tiny", "champion"),
        lambda: registry.resolve("unknown", "champion"),
        lambda: registry.resolve("tiny' or name != '", "champion"),
        lambda: registry.set_alias("tiny", "champion", 3),
        lambda: registry.set_alias("tiny", "favourite", 1),
    ):
        with pytest.raises(RegistryError):
            failing()
    assert registry.versions("unknown") == []


@pytest.mark.parametrize("name", [MODEL_FILE, REFERENCE_FILE, CARD_FILE])
def test_altered_files_are_not_run(registry: ModelRegistry, tiny_bundle: Bundle, name: str) -> None:
    registry.register(tiny_bundle)
    registry.set_alias("tiny", "champion", 1)
    path = registry.resolve("tiny", "champion").folder / name
    with path.open("ab") as stream:
        stream.write(b"\n")
    with pytest.raises(BundleError):
        registry.resolve("tiny", "champion")


def test_a_moved_data_folder_still_resolves(
    registry: ModelRegistry, tiny_bundle: Bundle, data_dir: Path, tmp_path: Path
) -> None:
    registry.register(tiny_bundle)
    registry.set_alias("tiny", "champion", 1)
    moved = data_dir.rename(tmp_path / "moved")
    resolved = open_registry(moved).resolve("tiny", "champion")
    assert moved in resolved.folder.parents


def test_processes_that_register_at_once_make_one_version(data_dir: Path, tiny_bundle: Bundle) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        calls = [(str(data_dir), str(tiny_bundle.folder))] * 2
        assert pool.starmap(register_elsewhere, calls) == ["1", "1"]
    assert len(open_registry(data_dir).versions()) == 1


def test_the_card_is_shown_as_a_run(registry: ModelRegistry, tiny_bundle: Bundle, data_dir: Path) -> None:
    from mlflow import MlflowClient

    registry.register(tiny_bundle)
    client = MlflowClient(f"sqlite:///{data_dir / 'registry.db'}")
    version = client.get_model_version("tiny", "1")
    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == card_parameters(tiny_bundle.card)
    assert run.data.params["operating_point.there"] == "0.5"
    assert run.data.metrics == card_metrics(tiny_bundle.card)
    assert run.data.metrics == {"AUC _there_/none": 0.75, "AUC _there_/none.low": 0.5, "AUC _there_/none.high": 0.9}
    assert version.tags["card_version"] == "1"
    assert sorted(entry.path for entry in client.list_artifacts(version.run_id, "bundle")) == [
        f"bundle/{name}" for name in sorted((CARD_FILE, GOLDEN_FILE, MODEL_FILE, REFERENCE_FILE))
    ]


def test_a_registry_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "registry.db").write_bytes(b"no database" * 100)
    with pytest.raises(RegistryError, match="cannot be opened"):
        open_registry(tmp_path)


def test_an_unreachable_server_is_a_registry_error_that_keeps_its_secret(tmp_path: Path, tiny_bundle: Bundle) -> None:
    registry = ModelRegistry("http://user:secret@127.0.0.1:9", tmp_path / "artifacts")
    with pytest.raises(RegistryError) as caught:
        registry.register(tiny_bundle)
    assert "secret" not in str(caught.value)


def test_first_start_is_quiet_and_quick(tmp_path: Path, tiny_bundle: Bundle) -> None:
    """Nothing on stdout or stderr, no telemetry, no folder left where the process stands."""
    code = (
        "import pathlib, sys, time\nfrom models.card import load_bundle\nfrom models.registry import ModelRegistry\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "registry = ModelRegistry(f'sqlite:///{folder}/registry.db', folder / 'artifacts')\n"
        "registry.register(load_bundle(pathlib.Path(sys.argv[2])))\n"
        "import mlflow.telemetry.utils as telemetry\n"
        "assert telemetry.is_telemetry_disabled()\n"
    )
    stand = tmp_path / "stand"
    stand.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW", "DO_NOT_TRACK"))}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "data"), str(tiny_bundle.folder)],
        capture_output=True,
        text=True,
        cwd=stand,
        env=environment | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(stand.iterdir()) == []
    assert not list((tmp_path / "data").glob("*.new"))
