"""The read model: order, filters, what a study's findings are, and how many statements it takes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event
from web_site import CAMERA_FINDING, DESTINATION, DEVICE, MODEL, NOON, SHA256, Site

from gateway.errors import StoreError
from gateway.store import Store
from gateway.store.deliveries import mark_delivered, mark_failed
from gateway.studies_view import count_studies, every_study, list_studies, study_detail
from gateway.study import StudyState


@contextmanager
def counted_statements(store: Store) -> Iterator[list[str]]:
    seen: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        seen.append(statement)

    event.listen(store.engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(store.engine, "before_cursor_execute", note)


def test_a_study_has_the_promised_keys_and_is_json(site: Site) -> None:
    study_key, instance_key = site.receive(study_uid="1.2.3", name="Doe^Jane")
    site.judge(study_key, {instance_key: 0.9}, acquisition=[CAMERA_FINDING])
    (study,) = list_studies(site.store)
    assert study.keys() >= {"study_key", "study_instance_uid", "state", "reason", "priority"}
    assert study.keys() >= {"predictions", "findings", "alarms", "deliveries"}
    assert (study["study_key"], study["study_instance_uid"], study["state"]) == (study_key, "1.2.3", "judged")
    assert (study["priority"], study["patient_name"]) == ("HIGH", "Doe^Jane")
    (prediction,) = study["predictions"]
    assert prediction["instance_key"] == instance_key
    assert (prediction["model_name"], prediction["model_version"]) == (MODEL, 2)
    assert (prediction["model_sha256"], prediction["demonstration"]) == (SHA256, True)
    assert prediction["probabilities"] == {"none": 0.1, "referable": 0.9}
    assert prediction["explanation"]["finding_name"] == "referable"
    assert prediction["acquisition_findings"] == [CAMERA_FINDING]
    assert [(each["kind"], each["state"], each["destination"]) for each in study["deliveries"]] == [
        ("SR", "pending", DESTINATION),
        ("SC", "pending", DESTINATION),
    ]
    assert json.loads(json.dumps(study)) == study


def test_urgency_is_priority_then_score_then_waiting(site: Site) -> None:
    """A study without any finding present stays behind, however high its score."""
    expected = {}
    for name, score, priority, minutes in (
        ("fourth", 0.95, 1, 0),
        ("sixth", 0.1, 0, 0),
        ("first", 0.99, 2, 9),
        ("third", 0.5, 2, 7),
        ("second", 0.5, 2, 3),
        ("fifth", 0.45, 1, 0),
    ):
        study_key, instance_key = site.receive(name=name, at=NOON + timedelta(minutes=minutes))
        site.judge(study_key, {instance_key: score}, priority=priority)
        expected[name] = study_key
    found = [study["patient_name"] for study in list_studies(site.store)]
    assert found == ["first", "second", "third", "fourth", "fifth", "sixth"]
    pages = [list_studies(site.store, limit=2, offset=offset) for offset in (0, 2, 4, 6)]
    assert [study["study_key"] for page in pages for study in page] == [expected[name] for name in found]
    assert [study["study_key"] for study in every_study(site.store)] == [expected[name] for name in found]


def test_an_ungradable_picture_lends_no_urgency_and_asserts_nothing(site: Site) -> None:
    poor, poor_image = site.receive(name="poor", at=NOON)
    site.judge(poor, {poor_image: 0.99}, ungradable=["sharpness 3 is under 10"])
    sure, sure_image = site.receive(name="sure", at=NOON + timedelta(minutes=5))
    site.judge(sure, {sure_image: 0.5})
    studies = {study["patient_name"]: study for study in list_studies(site.store)}
    assert list(studies) == ["sure", "poor"]
    (said,) = studies["poor"]["findings"]
    assert (said["state"], said["present"]) == ("ungradable", False)
    assert [study["study_key"] for study in list_studies(site.store, state="ungradable")] == [poor]
    assert count_studies(site.store, state="ungradable") == 1


def test_a_studys_finding_is_that_of_its_worst_image(site: Site) -> None:
    study_key, left = site.receive(study_uid="1.2.9")
    _, right = site.receive(study_uid="1.2.9")
    site.judge(study_key, {left: 0.2, right: 0.8}, acquisition=[CAMERA_FINDING])
    findings = study_detail(site.store, study_key)["findings"]
    assert [(each["kind"], each.get("score"), each.get("instance_key")) for each in findings] == [
        ("model", 0.8, right),
        ("acquisition", None, None),
    ]
    assert findings[1]["image_count"] == 2


def test_a_newer_version_supersedes_what_an_older_one_said(site: Site) -> None:
    study_key, instance_key = site.receive()
    site.judge(study_key, {instance_key: 0.9}, version=1)
    site.judge(study_key, {instance_key: 0.3}, version=2)
    study = study_detail(site.store, study_key)
    assert {each["model_version"]: each["superseded"] for each in study["predictions"]} == {1: True, 2: False}
    assert [(each["model_version"], each["score"]) for each in study["findings"]] == [(2, 0.3)]


def test_drift_of_the_device_comes_before_that_of_all(site: Site) -> None:
    study_key, instance_key = site.receive()
    site.judge(study_key, {instance_key: 0.9})

    def drift() -> dict[str, Any]:
        found: dict[str, Any] = study_detail(site.store, study_key)["predictions"][0]["drift"]
        return found

    assert drift()["state"] == "not judged"
    site.drift(scope="all", state="no drift", p_value=0.5)
    assert (drift()["state"], drift()["scope"]) == ("no drift", "all")
    site.drift(scope=DEVICE, state="not judged", reason="7 of 25 studies", p_value=None, n=7)
    assert (drift()["state"], drift()["scope"]) == ("no drift", "all")
    site.drift(scope=DEVICE, state="drift", p_value=0.0002)
    assert (drift()["state"], drift()["p_value"]) == ("drift", 0.0002)
    site.drift(scope=DEVICE, state="drift", p_value=0.9, kind="explanation")
    assert drift()["p_value"] == 0.0002


def test_alarms_that_concern_a_study(site: Site) -> None:
    study_key, instance_key = site.receive()
    site.judge(study_key, {instance_key: 0.9})
    mine = {site.alarm(scope="all"), site.alarm(scope=DEVICE)}
    site.alarm(scope="another camera")
    site.alarm(scope="all", version=1)
    assert {each["alarm_key"] for each in study_detail(site.store, study_key)["alarms"]} == mine


def test_states_are_shown_with_their_reasons(site: Site) -> None:
    site.receive(name="receiving")
    failed, _ = site.receive(name="failed")
    site.fail(failed, "the worker was killed five times")
    unmatched, _ = site.receive(name="unmatched")
    site.judge(unmatched, {}, priority=0, deliver=False, state=StudyState.NOT_MATCHED)
    by_name = {study["patient_name"]: study for study in list_studies(site.store)}
    assert {name: study["state"] for name, study in by_name.items()} == {
        "receiving": "receiving",
        "failed": "failed",
        "unmatched": "not matched",
    }
    assert by_name["failed"]["reason"] == "the worker was killed five times"
    for state in ("receiving", "failed", "not matched"):
        assert [study["state"] for study in list_studies(site.store, state=state)] == [state]
        assert count_studies(site.store, state=state) == 1


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("müller", {"Müller^Änne"}),
        ("doe chest", {"Doe^Jane"}),
        ("doe fundus", set()),
        ("ACC-00002", {"Müller^Änne"}),
        ("100%", {"Doe^Jane"}),
        ("1_0", set()),
        ("'; drop table study; --", set()),
        ("", {"Doe^Jane", "Müller^Änne"}),
    ],
)
def test_search(site: Site, query: str, found: set[str]) -> None:
    """All words must occur; wildcards of SQL are letters like others."""
    site.receive(name="Doe^Jane", study_description="CHEST 100% PA")
    site.receive(name="Müller^Änne", study_description="Fundus")
    assert {study["patient_name"] for study in list_studies(site.store, query=query)} == found
    assert count_studies(site.store, query=query) == len(found)


def test_since_and_newest(site: Site) -> None:
    for minutes in (0, 10, 20):
        site.receive(name=str(minutes), at=NOON + timedelta(minutes=minutes))
    late = list_studies(site.store, since=NOON + timedelta(minutes=10), order="newest")
    assert [study["patient_name"] for study in late] == ["20", "10"]


def test_deliveries_tell_what_became_of_them(site: Site) -> None:
    study_key, instance_key = site.receive()
    site.judge(study_key, {instance_key: 0.9})
    report, picture = site.pending()
    mark_delivered(site.store, [report], site.clock)
    mark_failed(site.store, [picture], error="0xA700: out of resources", next_attempt_at=None)
    sent, dead = study_detail(site.store, study_key)["deliveries"]
    assert (sent["state"], sent["attempts"], sent["delivered_at"]) == ("delivered", 1, site.clock.isoformat())
    assert (dead["state"], dead["last_error"]) == ("dead", "0xA700: out of resources")


def test_the_number_of_statements_does_not_grow(site: Site) -> None:
    def statements() -> tuple[int, int]:
        with counted_statements(site.store) as seen:
            found = list_studies(site.store, limit=50)
        return len(seen), len(found)

    first, first_image = site.receive()
    site.judge(first, {first_image: 0.9})
    few, one = statements()
    for _ in range(9):
        study_key, image = site.receive()
        site.judge(study_key, {image: 0.9}, acquisition=[CAMERA_FINDING])
    many, ten = statements()
    assert (one, ten) == (1, 10)
    assert few == many <= 8


def test_an_unknown_study(site: Site) -> None:
    with pytest.raises(StoreError, match="no study"):
        study_detail(site.store, "0" * 32)
