"""A real gateway that saves: received, judged, saved though its saver is killed, exported, and made again."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from photographs import drawn_jpeg, op_dataset, write
from running import running_gateway, wait_until
from saving_rig import assert_rows_and_files_agree

from gateway.store import open_store
from gateway.store.monitoring import processes
from models import bundled_folders

CONFIG = """
[disk]
expire_below_bytes = 0
refuse_below_bytes = 0
[worker]
count = 1
[[saving]]
name = "all photographs"
models = ["retinopathy"]
"""


def saver_pid(data_dir: Path) -> int | None:
    return next((row["pid"] for row in _processes(data_dir) if row["name"] == "saver"), None)


def has_loaded(data_dir: Path, model: str) -> bool:
    """Whether the worker says so."""
    return any(model in row["detail"].get("models", {}) for row in _processes(data_dir))


def _processes(data_dir: Path) -> tuple[Mapping[str, Any], ...]:
    store = open_store("", data_dir=data_dir)
    try:
        return processes(store)
    finally:
        store.close()


@pytest.mark.slow
def test_a_gateway_saves_what_it_judged_and_makes_it_again(tmp_path: Path) -> None:
    paths = [write(op_dataset(drawn_jpeg(seed), patient="Zqname^Zqgiven"), tmp_path / f"{seed}.dcm") for seed in (1, 2)]
    with running_gateway(tmp_path / "gateway", CONFIG) as gateway:
        wait_until(gateway.is_healthy, "the saver, too")
        wait_until(lambda: has_loaded(gateway.data_dir, "retinopathy"), "its champion")
        sent = gateway.command("send", *map(str, paths), "--port", str(gateway.dicom_port))
        assert sent.returncode == 0, sent.stderr
        first = wait_until(lambda: saver_pid(gateway.data_dir), "a sign of life")
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: saver_pid(gateway.data_dir) not in (None, first), "another saver")
        place = ["--data-dir", str(gateway.data_dir)]

        def listed() -> list[str]:
            return gateway.command("saved", "list", "--json", *place).stdout.splitlines()

        wait_until(lambda: len(listed()) == 2, "both to be saved, a minute after they were judged", 150)
        store = open_store("", data_dir=gateway.data_dir)
        assert set(assert_rows_and_files_agree(store, gateway.data_dir).values()) == {1}
        store.close()
        row = json.loads(listed()[0])
        replayed = gateway.command("studies", "replay", row["saved_key"], "--json", *place)
        assert replayed.returncode == 0, replayed.stdout + replayed.stderr
        told = json.loads(replayed.stdout)
        newest = max(int(folder.name) for folder in bundled_folders() if folder.parent.name == "retinopathy")
        assert [each["model_version"] for each in told["predictions"]] == [newest]
        assert told["predictions"][0]["differences"] == []
        exported = gateway.command("saved", "export", "", str(tmp_path / "out"), *place)
        assert "2 studies, 2 frames" in exported.stdout
        assert "Zqname" not in gateway.log()
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            assert b"Zqname" not in path.read_bytes()
