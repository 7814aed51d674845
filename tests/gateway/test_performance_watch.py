"""The monitor's part: computing when something has changed, in a process of its own; and the command."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from known_versions import serve
from running import wait_until
from tiny_bundles import write_tiny_bundle
from truth_rig import FINDING, MODEL, drawn_patients, fill, say, truths

from gateway.cli import main
from gateway.performance_watch import PerformanceWatch
from gateway.settings import load_settings
from gateway.store import Store, open_store
from gateway.store.performance import performance_rows

NOW = datetime(2026, 3, 1, tzinfo=UTC)
START = datetime(2026, 1, 1, tzinfo=UTC)
CODE = {"value": "1", "scheme": "99TEST", "meaning": "Test"}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store("", data_dir=tmp_path, migrate=True)
    finding = {"name": FINDING, "title": "Referable", "labels": ["there"], "operating_point": 0.4, "code": CODE}
    write_tiny_bundle(tmp_path / "bundle", name=MODEL, findings=[finding], acceptance=None)
    serve(opened, MODEL, 1, tmp_path / "bundle", NOW)
    yield opened
    opened.close()


def watch(store: Store, folder: Path, clock: list[float], interval_s: float = 3600) -> PerformanceWatch:
    settings = load_settings(environment={}, overrides={"truth.interval_s": interval_s})
    return PerformanceWatch(settings, folder, store, clock=lambda: clock[0])


def test_it_computes_when_readers_have_said_something(store: Store, tmp_path: Path) -> None:
    clock = [0.0]
    watched = watch(store, tmp_path, clock)
    patients = drawn_patients(1, 60, START)
    keys = fill(store, patients)
    watched.look()
    assert not watched.is_computing  # nobody has said anything
    say(store, keys, truths(patients), at=NOW)
    watched.look()
    assert watched.is_computing

    def has_ended() -> bool:
        watched.look()
        return not watched.is_computing

    wait_until(has_ended, "the computation to end", 120)
    (row,) = performance_rows(store)
    assert row.figures["cases"] == 60
    clock[0] = 4000.0
    watched.look()
    assert not watched.is_computing  # nothing has changed since
    say(store, keys[:1], ["ungradable"], at=NOW)
    clock[0] = 3000.0
    watched.look()
    assert not watched.is_computing  # not yet
    clock[0] = 4000.0
    watched.look()
    assert watched.is_computing
    watched.end()
    assert not watched.is_computing


def test_it_can_be_left_to_the_command(store: Store, tmp_path: Path) -> None:
    patients = drawn_patients(2, 10, START)
    say(store, fill(store, patients), truths(patients), at=NOW)
    watched = watch(store, tmp_path, [0.0], interval_s=0)
    watched.look()
    assert not watched.is_computing


def test_the_command_computes_stores_and_tells(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    patients = drawn_patients(3, 80, START)
    say(store, fill(store, patients), truths(patients), at=NOW)
    place = ["--data-dir", str(tmp_path)]
    assert main(["performance", "--stored", "--json", *place]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert main(["performance", "--json", "--no-estimate", "--model", MODEL, *place]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    auc = row["figures"]["evaluation"]["overall"]["candidate"]["figures"]["auc_roc"]
    assert row["estimate"] is None
    assert main(["performance", "--stored", *place]) == 0
    told = capsys.readouterr().out
    assert f"{MODEL} 1, {FINDING}: 80 cases with truth" in told
    assert f"auc_roc      {auc['value']:.3f} ({auc['low']:.3f} to {auc['high']:.3f})" in told
    assert "device=TOPCON NW400: 27 cases (small)" in told


@pytest.mark.parametrize("module", ["gateway.web.server", "gateway.monitor", "gateway.cli", "gateway.worker"])
def test_what_is_heavy_is_loaded_by_none_that_stays(module: str) -> None:
    heavy = ("sklearn", "pandas", "nannyml", "fairlearn", "matplotlib")
    program = f"import sys, {module}\nprint([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"
