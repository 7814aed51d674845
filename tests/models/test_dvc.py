"""DVC's hashes, against DVC itself."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from models.dvc import TrackedOutput, dvc_hash, find_tracked, read_dvc_file, tracked_outputs
from models.errors import BundleError

ROOT = Path(__file__).resolve().parents[2]
DVC = ROOT / ".venv/dvc/bin/dvc"
needs_dvc = pytest.mark.skipif(not DVC.is_file(), reason="no .venv/dvc; scripts/setup test makes it")

Dvc = Callable[..., str]


@pytest.fixture
def dvc(tmp_path: Path) -> Dvc:
    """Runs DVC in a repository of its own, without Git."""
    home = tmp_path / "home"
    home.mkdir()
    repository = tmp_path / "repository"
    repository.mkdir()
    environment = {
        "HOME": str(home),
        "PATH": os.environ["PATH"],
        "DVC_NO_ANALYTICS": "1",
        "DVC_GLOBAL_CONFIG_DIR": str(home),
        "DVC_SYSTEM_CONFIG_DIR": str(home),
        "DVC_SITE_CACHE_DIR": str(home / "site"),
        "LC_ALL": "C.UTF-8",
    }

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [str(DVC), *arguments], cwd=repository, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("init", "--no-scm", "--quiet")
    run("config", "core.analytics", "false")
    return run


def fill(folder: Path) -> None:
    """Names and contents that could be hashed in more than one way."""
    for name, content in {
        "b.txt": b"one\r\ntwo\r\n",
        "a/b.bin": bytes(range(256)) * 40,
        "a.txt": b"",
        "a-b/c": b"sorts between a and a/",
        "Zebra": b"capital",
        "ähre/日本.txt": b"umlaut",
        ".hidden": b"hidden",
        'quo"te\\': b"escaped",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "empty").mkdir()
    (folder / "link.txt").symlink_to(folder / "b.txt")


@needs_dvc
def test_a_folder_has_the_hash_that_dvc_gives_it(tmp_path: Path, dvc: Dvc) -> None:
    repository = tmp_path / "repository"
    fill(repository / "images")
    found = dvc_hash(repository / "images")
    dvc("add", "--quiet", "images")
    assert tracked_outputs(repository) == (TrackedOutput(path="images", dvc_hash=found, stated_in="images.dvc"),)
    assert found.startswith("md5:")
    assert found.endswith(".dir")


@needs_dvc
def test_a_file_has_the_hash_that_dvc_gives_it(tmp_path: Path, dvc: Dvc) -> None:
    repository = tmp_path / "repository"
    (repository / "sets").mkdir()
    table = repository / "sets" / "labels.csv"
    table.write_bytes(b"image,grade\r\n1,2\r\n")
    dvc("add", "--quiet", "sets/labels.csv")
    assert read_dvc_file(repository / "sets" / "labels.csv.dvc", repository) == (
        TrackedOutput(path="sets/labels.csv", dvc_hash=dvc_hash(table), stated_in="sets/labels.csv.dvc"),
    )


@needs_dvc
def test_what_a_pipeline_made_is_found_and_what_has_changed_is_not(tmp_path: Path, dvc: Dvc) -> None:
    repository = tmp_path / "repository"
    dvc("stage", "add", "--quiet", "-n", "make", "-o", "made", "mkdir made && echo 1 > made/one")
    dvc("repro", "--quiet")
    before = dvc_hash(repository / "made")
    found = find_tracked(repository, before)
    assert found is not None
    assert (found.path, found.stated_in) == ("made", "dvc.lock")
    (repository / "made" / "two").write_text("2\n")
    assert find_tracked(repository, dvc_hash(repository / "made")) is None
    dvc("commit", "--quiet", "--force", "make")
    assert find_tracked(repository, dvc_hash(repository / "made")) is not None
    assert find_tracked(repository, before) is None


@needs_dvc
def test_what_version_control_keeps_does_not_belong_to_a_folder(tmp_path: Path, dvc: Dvc) -> None:
    repository = tmp_path / "repository"
    fill(repository / "images")
    before = dvc_hash(repository / "images")
    for name in (".git", ".hg"):
        (repository / "images" / name).mkdir()
        (repository / "images" / name / "file").write_text("x")
    assert dvc_hash(repository / "images") == before
    dvc("add", "--quiet", "images")
    assert find_tracked(repository, before) is not None


def test_patterns_that_leave_files_out_are_not_guessed_at(tmp_path: Path) -> None:
    (tmp_path / ".dvc").mkdir()
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "one").write_text("1")
    (tmp_path / ".dvcignore").write_text("# a comment, as dvc init writes it\n\n")
    assert dvc_hash(folder).endswith(".dir")
    (tmp_path / ".dvcignore").write_text("*.tmp\n")
    with pytest.raises(BundleError, match="leaves files out"):
        dvc_hash(folder)
    (tmp_path / ".dvcignore").unlink()
    (folder / ".dvcignore").write_text("")
    with pytest.raises(BundleError, match="refuses it inside"):
        dvc_hash(folder)


def test_a_missing_file_and_a_folder_without_dvc_are_said(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be computed"):
        dvc_hash(tmp_path / "absent")
    with pytest.raises(BundleError, match="no DVC repository"):
        tracked_outputs(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("outs:\n- md5: d751713988987e9331980363e24189ce\n  path: a\n", "DVC 2"),
        ("outs:\n- md5: nothing\n  hash: md5\n  path: a\n", "no hash of DVC"),
        ("- 1\n", "no DVC file"),
        ("outs: [\n", "no DVC file"),
    ],
)
def test_files_that_are_not_dvc_s(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "a.dvc"
    path.write_text(content)
    with pytest.raises(BundleError, match=message):
        read_dvc_file(path)
