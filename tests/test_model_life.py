"""The life of a model version, as the people live it who let it in and take it back: all by the commands.

A running gateway, DCMTK as the sender, shipped models and versions derived from them, two engineers with passwords.
"""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from derived_bundles import Change, derive, failing_between, with_scaled_head
from photographs import drawn_jpeg, op_dataset, write
from PIL import Image, ImageEnhance
from pydicom import dcmread
from running import Gateway, StoreScp, destination, running_gateway, running_storescp, storescu, wait_until
from sqlalchemy import select

from gateway.store import open_store
from gateway.store.schema import model_failure, prediction
from models import bundled_folders
from models.card import Bundle, load_bundle

PASSWORDS = {"ada": "correct horse battery staple", "grace": "nanoseconds make a length of wire"}
MODEL = "retinopathy"
CONFIG = """
[canary]
least_studies = 5

[[rules]]
name = "fundus"
when = { Modality = "OP" }
models = ["retinopathy"]
quiet_time_s = 0.5
"""
CRITERIA = {
    "written_at": "2026-11-24",
    "written_by": "tests",
    "studies": "drawn photographs, with many lesions and with none",
    "least_cases": 20,
    "criteria": [
        {"name": "tells them apart", "finding": "referable_dr", "metric": "auc_roc", "minimum": 0.9},
        {
            "name": "no worse than the champion",
            "finding": "referable_dr",
            "metric": "auc_roc",
            "statistic": "difference",
            "minimum": -0.02,
        },
    ],
}
BRIGHT = (-0.43, -0.36)
"""Means of the tensor: drawn photographs have -0.53, the golden ones -0.51 to -0.45, brightened ones -0.40."""
pytestmark = pytest.mark.slow


def shipped(version: int) -> Bundle:
    return next(load_bundle(each) for each in bundled_folders() if each.parts[-2:] == (MODEL, str(version)))


class Site:
    """A gateway, its PACS, and the people."""

    def __init__(self, gateway: Gateway, pacs: StoreScp, folder: Path) -> None:
        self.gateway, self.pacs, self.folder = gateway, pacs, folder
        self.sent = 0

    def run(self, *arguments: str, stdin: str = "", expected: int = 0) -> str:
        command = [sys.executable, "-m", "gateway.cli", *arguments, "--data-dir", str(self.gateway.data_dir)]
        if arguments[0] not in ("users",):
            command += ["--config", str(self.gateway.folder / "gateway.toml")]
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=300, check=False, env=self._environment()
        )
        assert done.returncode == expected, done.stdout + done.stderr
        return done.stdout if expected in (0, 3) else done.stderr

    def _environment(self) -> dict[str, str]:
        # Log-in is on for these commands: signatures are passwords.
        return {name: value for name, value in os.environ.items() if name != "GATEWAY_WEB__AUTHENTICATION"}

    def register(self, version: int, change: Change) -> None:
        """Once: a test may be run alone."""
        folder = self.folder / f"bundle-{version}"
        if not folder.is_dir():
            fields = {"acceptance": CRITERIA, "title": f"Derived version {version}"}
            derive(shipped(2), folder, change=change, version=version, **fields)
        self.run("models", "register", str(folder))

    def compare(self, candidate: int, *, expected: int = 0) -> dict[str, Any]:
        studies, truth = self.saved_studies()
        said = self.run(
            *("compare", f"{MODEL}@champion", f"{MODEL}@{candidate}", "--studies", str(studies)),
            *("--truth", str(truth), "--draws", "200", "--json"),
            expected=expected,
        )
        found: dict[str, Any] = json.loads(said)
        return found

    def saved_studies(self) -> tuple[Path, Path]:
        """Drawn photographs and what they show: many lesions, or none."""
        folder, truth = self.folder / "saved", self.folder / "truth.csv"
        if not folder.is_dir():
            folder.mkdir()
            lines = ["sop_instance_uid,finding,value"]
            for seed in range(1, 13):
                for lesions in (0, 90):
                    dataset = op_dataset(drawn_jpeg(seed, lesions), patient=f"Drawn^{seed}^{lesions}")
                    write(dataset, folder / f"{seed}-{lesions}.dcm")
                    lines.append(f"{dataset.SOPInstanceUID},referable_dr,{'present' if lesions else 'absent'}")
            truth.write_text("\n".join(lines) + "\n")
        return folder, truth

    def let_in(self, version: int, to: str, report_key: str, *more: str) -> None:
        """Propose, and sign twice."""
        said = self.run(
            *("models", "propose", f"{MODEL}@{version}", "--to", to, "--report", report_key, "--as", "ada", "--json"),
            *("--reason", "the comparison meets the card's criteria", *more),
        )
        request_key = json.loads(said)["request_key"]
        for name, password in PASSWORDS.items():
            self.run(
                *("models", "approve", request_key, "--as", name, "--reason", "read the report", "--password-stdin"),
                stdin=password + "\n",
            )

    def states(self) -> dict[int, str]:
        rows = json.loads(self.run("models", "--json"))
        return {row["version"]: row["state"] for row in rows if row["name"] == MODEL}

    def send(self, count: int, *, brightness: float = 1.0) -> list[str]:
        """Study Instance UIDs of so many studies, each acknowledged; the first is always of the same photograph."""
        uids, files = [], []
        for number in range(count):
            self.sent += 1
            picture = brightened(drawn_jpeg(100 + number % 4, 40), brightness)
            dataset = op_dataset(picture, patient=f"Sent^{self.sent}")
            uids.append(str(dataset.StudyInstanceUID))
            files.append(write(dataset, self.folder / f"sent-{self.sent}.dcm"))
        sent = storescu(files, self.gateway.dicom_port)
        assert sent.returncode == 0, sent.stderr
        return uids

    def judged(self, uids: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
        """The predictions of studies by Study Instance UID, shadows included, once all of them are judged."""

        def find() -> dict[str, list[dict[str, Any]]] | None:
            rows = {
                row["study_instance_uid"]: row for row in self.gateway.studies() if row["study_instance_uid"] in uids
            }
            done = [row for row in rows.values() if row["state"] == "judged"]
            assert not [row["reason"] for row in rows.values() if row["state"] == "failed"]
            return self._predictions(rows) if len(done) == len(uids) else None

        found: dict[str, list[dict[str, Any]]] = wait_until(find, f"{len(uids)} studies to be judged")
        return found

    def _predictions(self, studies: Mapping[str, Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
        store = open_store("", data_dir=self.gateway.data_dir)
        try:
            with store.read() as connection:
                rows = [dict(row) for row in connection.execute(select(prediction)).mappings()]
        finally:
            store.close()
        return {uid: [row for row in rows if row["study_key"] == study["study_key"]] for uid, study in studies.items()}

    def failures(self) -> list[dict[str, Any]]:
        store = open_store("", data_dir=self.gateway.data_dir)
        try:
            with store.read() as connection:
                return [dict(row) for row in connection.execute(select(model_failure)).mappings()]
        finally:
            store.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("life")
    with (
        running_storescp(folder / "pacs") as pacs,
        running_gateway(folder / "gateway", CONFIG + destination("pacs", "PACS", pacs.port)) as gateway,
    ):
        site = Site(gateway, pacs, folder)
        wait_until(gateway.is_healthy, "the gateway to be healthy")
        for name, password in PASSWORDS.items():
            site.run("users", "add", name, "--role", "engineer", "--password-stdin", stdin=password + "\n")
        wait_until(lambda: site.states().get(2) == "champion", "the shipped version to be champion")
        yield site


@lru_cache
def brightened(jpeg: bytes, factor: float) -> bytes:
    stream = io.BytesIO()
    ImageEnhance.Brightness(Image.open(io.BytesIO(jpeg))).enhance(factor).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def scores(predictions: Mapping[str, Sequence[Mapping[str, Any]]], role: str = "champion") -> list[Any]:
    return [row["logits"] for rows in predictions.values() for row in rows if row["role"] == role]


def versions_in(pacs: StoreScp) -> dict[str, set[str]]:
    """Study Instance UID -> algorithm versions that its reports name."""
    found: dict[str, set[str]] = {}
    for path in pacs.files():
        report = dcmread(path)
        if report.Modality == "SR":
            names = {
                str(item.TextValue)
                for group in report.ContentSequence
                for item in walk(group)
                if "ConceptNameCodeSequence" in item and item.ConceptNameCodeSequence[0].CodeValue == "111003"
            }
            found.setdefault(str(report.StudyInstanceUID), set()).update(names)
    return found


def walk(item: Any) -> Iterator[Any]:
    yield item
    for child in item.get("ContentSequence", ()):
        yield from walk(child)


def test_a_worse_version_is_stopped_by_its_own_criteria(site: Site) -> None:
    site.register(10, with_scaled_head(-1))
    report = site.compare(10, expected=3)
    assert report["verdict"] == "not met"
    refused = site.run(
        *("models", "propose", f"{MODEL}@10", "--to", "champion", "--report", report["comparison_key"]),
        *("--as", "ada", "--reason", "let us try"),
        expected=1,
    )
    assert "not met" in refused
    assert site.states()[10] == "draft"
    assert site.states()[2] == "champion"


def test_a_shadow_judges_unseen(site: Site) -> None:
    site.register(11, with_scaled_head(0.9))
    site.run("models", "shadow", f"{MODEL}@11", "--reason", "before it is let in")
    uids = site.send(3)

    def paired() -> dict[str, list[dict[str, Any]]] | None:
        found = site.judged(uids)
        return found if all(len(rows) == 2 for rows in found.values()) else None

    found = wait_until(paired, "shadow predictions")
    for rows in found.values():
        assert {(row["role"], row["model_version"]) for row in rows} == {("champion", 2), ("shadow", 11)}
    wait_until(lambda: set(uids) <= versions_in(site.pacs).keys(), "reports")
    said = versions_in(site.pacs)
    assert {version for uid in uids for version in said[uid]} == {"2"}
    shown = [row for row in site.gateway.studies() if row["study_instance_uid"] in uids]
    assert {row["model_version"] for study in shown for row in study["predictions"]} == {2}
    site.run("models", "shadow", f"{MODEL}@11", "--stop", "--reason", "seen enough")


def test_a_report_counts_for_its_own_version_alone(site: Site) -> None:
    site.register(11, with_scaled_head(0.9))
    report = site.compare(11)
    assert report["verdict"] == "met"
    site.register(12, with_scaled_head(0.95))
    refused = site.run(
        *("models", "propose", f"{MODEL}@12", "--to", "champion", "--as", "ada"),
        *("--report", report["comparison_key"], "--reason", "another version's report"),
        expected=1,
    )
    assert "12" in refused
    assert site.states()[12] == "draft"


def test_a_canary_that_fails_ends_by_itself_and_loses_nothing(site: Site) -> None:
    site.register(13, failing_between(*BRIGHT))  # so well on the darker test photographs
    report = site.compare(13)
    assert report["verdict"] == "met"
    site.let_in(13, "canary", report["comparison_key"], "--fraction", "1")
    assert site.states()[13] == "canary"
    uids = site.send(30, brightness=1.3)
    found = site.judged(uids)
    for rows in found.values():
        assert [row["model_version"] for row in rows if row["role"] != "shadow"] == [2]
    assert {row["version"] for row in site.failures()} == {13}
    wait_until(lambda: site.states()[13] == "shadow", "the guard to end the canary")
    ended = json.loads(site.run("models", "record", f"{MODEL}@13", "--json"))
    (last,) = [entry for entry in ended if entry["action"] == "end canary"]
    assert last["actor"] == "guard"
    assert re.match(r"failed in (\d+) of \1 studies", last["reason"])  # of those judged when the guard looked
    site.run("models", "shadow", f"{MODEL}@13", "--stop", "--reason", "it fails")


def test_roll_back_under_load_loses_nothing_gives_the_former_outputs_and_is_recorded(site: Site) -> None:
    before = scores(site.judged(site.send(1)))
    site.register(14, with_scaled_head(0.99))
    report = site.compare(14)
    site.let_in(14, "champion", report["comparison_key"])
    assert (site.states()[14], site.states()[2]) == ("champion", "retired")

    def judged_by() -> set[int]:
        (rows,) = site.judged(site.send(1)).values()
        return {row["model_version"] for row in rows if row["role"] == "champion"}

    wait_until(lambda: judged_by() == {14}, "the new champion to judge")
    assert scores(site.judged(site.send(1))) != before

    stop, load = threading.Event(), []

    def sender() -> None:
        while not stop.is_set():
            load.extend(site.send(4))

    thread = threading.Thread(target=sender)
    thread.start()
    try:
        wait_until(lambda: len(load) >= 12, "load")
        said = json.loads(site.run("models", "rollback", MODEL, "--reason", "too sure of itself", "--json"))
        rolled_back_at = datetime.now(UTC)
        wait_until(lambda: (datetime.now(UTC) - rolled_back_at).total_seconds() > 8, "more load")
    finally:
        stop.set()
        thread.join()
    assert (said["from"], said["to"]) == (14, 2)
    found = site.judged(load)
    assert len(found) == len(set(load))
    rows = [row for each in found.values() for row in each if row["role"] == "champion"]
    assert len(rows) == len(load)
    late = [row for row in rows if (row["judged_at"] - rolled_back_at).total_seconds() > 5]
    assert late
    assert {row["model_version"] for row in late} == {2}
    assert scores(site.judged(site.send(1))) == before
    assert site.states()[14] == "retired"

    # And the record tells all of it.
    entries = json.loads(site.run("models", "record", MODEL, "--json"))
    told = [(entry["action"], entry["version"]) for entry in entries]
    assert ("promote", 14) in told
    assert ("roll back", 2) in told
    assert [entry["actor"] for entry in entries if (entry["action"], entry["version"]) == ("approve", 14)] == [
        "ada",
        "grace",
    ]
    site.run("models", "record", "--verify")


def test_any_result_can_be_replayed(site: Site) -> None:
    (uid,) = site.send(1)
    site.judged([uid])
    (study,) = [row for row in site.gateway.studies() if row["study_instance_uid"] == uid]
    said = json.loads(site.run("studies", "replay", study["study_key"], "--json"))
    assert said["outcome"] == "same"
    assert [each["model_version"] for each in said["predictions"] if each["role"] == "champion"] == [2]
