"""What pages, pictures, API, health and metrics say of shadows, canaries and breakers, and to whom."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from known_versions import serve
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import update
from web_site import CAMERA_FINDING, MODEL, NOON, Site

from gateway.roles import PERMISSIONS, Role
from gateway.store.models import VersionState
from gateway.store.monitoring import report_process
from gateway.store.predictions import FailureRow, record_shadows
from gateway.store.schema import model_version, prediction
from gateway.web.access import Access, Caller
from gateway.web.events import worklist_token
from gateway.web.rollout import traffic_words
from gateway.web.server import create_app

OUTSIDE = [Role.VIEWER, Role.RADIOLOGIST]
INSIDE = [Role.ENGINEER, Role.ADMINISTRATOR]
Ask = Callable[[Role, str], Any]


@pytest.fixture
def ask(site: Site, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """GET as somebody of a role."""
    app = create_app(site.settings, site.data_dir, site.store)

    def get(role: Role, path: str) -> Any:
        async def identify(self: Access, request: Any) -> Caller:
            return Caller(kind="token", actor=str(role), address="", permissions=PERMISSIONS[role], role=role)

        monkeypatch.setattr(Access, "identify", identify)

        async def fetch() -> httpx.Response:
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                return await client.get(path)

        return asyncio.run(fetch())

    return get


@pytest.fixture
def judged(site: Site) -> tuple[str, str]:
    """A study that version 2 judged and version 3 read in its shadow, and in which version 4 failed."""
    study_key, instance_key = site.receive(name="Doe^Jane")
    site.judge(study_key, {instance_key: 0.2}, priority=0, acquisition=[CAMERA_FINDING])
    row = site._prediction(instance_key, 0.977, 3, (), (), True)
    shadow = replace(row, role="shadow", paired_version=2, agrees=False)
    failure = FailureRow(model_name=MODEL, version=4, role="shadow", reason="ONNX Runtime failed")
    record_shadows(site.store, study_key, [shadow], [failure], NOON)
    folder = Path("nowhere")
    serve(site.store, MODEL, 2, folder, NOON, state=VersionState.CHAMPION)
    serve(site.store, MODEL, 3, folder, NOON, state=VersionState.SHADOW)
    return study_key, instance_key


@pytest.mark.parametrize("role", OUTSIDE)
def test_nobody_outside_sees_what_the_shadow_said(ask: Ask, judged: tuple[str, str], site: Site, role: Role) -> None:
    study_key, instance_key = judged
    site.alarm(version=3, message="of the shadow")
    site.drift(state="drift", model_version=3)
    study = ask(role, f"/api/studies/{study_key}").json()
    assert {each["model_version"] for each in study["predictions"]} == {2}
    assert study.keys().isdisjoint({"shadows", "failures"})
    assert study["priority"] == "LOW"
    assert study["alarms"] == []
    pages = [ask(role, path).text for path in ("/", f"/studies/{study_key}", "/drift", "/api/studies", "/api/alarms")]
    for text in pages:
        assert "0.977" not in text
        assert "of the shadow" not in text
        assert "In the shadow" not in text
        assert "runs in the shadow" not in text
    assert ask(role, "/api/drift").json() == []
    for picture in ("heat.png", "thumbnail.jpg"):
        address = f"/api/instances/{instance_key}/frames/0/{picture}?model={MODEL}"
        assert ask(role, f"{address}&version=3").status_code == 404
        assert ask(role, f"{address}&version=2").status_code == 200


@pytest.mark.parametrize("role", INSIDE)
def test_engineers_see_it_beside(ask: Ask, judged: tuple[str, str], site: Site, role: Role) -> None:
    study_key, instance_key = judged
    site.alarm(version=3, message="of the shadow")
    study = ask(role, f"/api/studies/{study_key}").json()
    assert {each["model_version"] for each in study["predictions"]} == {2}
    (shadow,) = study["shadows"]
    assert (shadow["model_version"], shadow["paired_version"], shadow["agrees"]) == (3, 2, False)
    assert [each["reason"] for each in study["failures"]] == ["ONNX Runtime failed"]
    page = ask(role, f"/studies/{study_key}").text
    for shown in ("In the shadow", "0.977", "decides otherwise", f"{MODEL} 4, shadow: ONNX Runtime failed"):
        assert shown in page
    assert "1 picture paired with what was said, 1 decided otherwise, 100.0%" in ask(role, "/").text
    assert "0.977" not in ask(role, "/").text, "the worklist is what everybody acts on"
    assert "of the shadow" in ask(role, "/drift").text
    assert ask(role, f"/api/instances/{instance_key}/frames/0/heat.png?model={MODEL}&version=3").status_code == 200


def test_an_engineer_does_not_warm_a_cache_for_others(ask: Ask, judged: tuple[str, str]) -> None:
    address = f"/api/instances/{judged[1]}/frames/0/thumbnail.jpg?model={MODEL}&version=3"
    assert ask(Role.ENGINEER, address).status_code == 200
    assert ask(Role.VIEWER, address).status_code == 404


def test_an_ungradable_shadow_makes_no_study_ungradable(site: Site, ask: Ask) -> None:
    study_key, instance_key = site.receive()
    site.judge(study_key, {instance_key: 0.2})
    row = site._prediction(instance_key, 0.9, 3, ("too dark",), (), True)
    record_shadows(site.store, study_key, [replace(row, role="shadow")], [], NOON)
    assert ask(Role.ENGINEER, "/api/studies?state=ungradable").json()["total"] == 0


def test_a_shadow_lends_no_urgency(site: Site, ask: Ask) -> None:
    for name, score, shadow in (("first", 0.6, 0.1), ("second", 0.5, 0.99)):
        study_key, instance_key = site.receive(name=name)
        site.judge(study_key, {instance_key: score})
        row = site._prediction(instance_key, shadow, 3, (), (), False)
        record_shadows(site.store, study_key, [replace(row, role="shadow")], [], NOON)
    found = ask(Role.ENGINEER, "/api/studies").json()["studies"]
    assert [each["patient_name"] for each in found] == ["first", "second"]


def test_the_alarm_of_a_version_that_judged_before_is_shown_to_all(ask: Ask, site: Site) -> None:
    """A canary that the guard has ended is a shadow now; studies that it judged are still read."""
    study_key, instance_key = site.receive()
    site.judge(study_key, {instance_key: 0.9})
    serve(site.store, MODEL, 2, Path("nowhere"), NOON, state=VersionState.SHADOW)
    site.alarm(version=2, message="seen by all")
    assert "seen by all" in ask(Role.VIEWER, "/drift").text


def test_a_canary_is_marked_for_all(ask: Ask, site: Site) -> None:
    study_key, instance_key = site.receive()
    site.judge(study_key, {instance_key: 0.9})
    with site.store.write() as connection:
        connection.execute(update(prediction).values(role="canary"))
    serve(site.store, MODEL, 2, Path("nowhere"), NOON, state=VersionState.CANARY)
    with site.store.write() as connection:
        connection.execute(update(model_version).values(traffic={"fraction": 0.1, "devices": ["KOWA*"]}))
    page = ask(Role.VIEWER, "/").text
    assert f"{MODEL} 2 is a canary: it judges 10% of all studies and those of KOWA*." in page
    assert '<b class="canary">canary</b>' in page
    assert '<small class="canary">canary</small>' in ask(Role.VIEWER, f"/studies/{study_key}").text


@pytest.mark.parametrize(
    ("traffic", "words"),
    [
        ({"fraction": 0.25}, "25% of all studies"),
        ({"fraction": 0.005}, "0.005 of all studies"),
        ({"devices": ["A", "B"]}, "those of A, B"),
        ({}, "no studies"),
    ],
)
def test_traffic_in_words(traffic: dict[str, Any], words: str) -> None:
    assert traffic_words(traffic) == words


def breaker(role: str, state: str = "open", **values: Any) -> dict[str, Any]:
    given = {"model": MODEL, "version": 2, "role": role, "state": state, "reason": "ONNX Runtime failed"}
    return given | {"failures": 0, "openings": 3, "wait_s": 12.0} | values


def report(site: Site, *breakers: dict[str, Any], **detail: Any) -> None:
    names = ("receiver-0", "receiver-1", "monitor", "sender", "housekeeper", "web")
    for name in names:
        report_process(site.store, name=name, pid=1, now=datetime.now(UTC), detail={})
    worker = {"breakers": list(breakers), **detail}
    report_process(site.store, name="worker-0", pid=1, now=datetime.now(UTC), detail=worker)


def test_an_open_breaker_is_told_on_the_worklist_the_processes_page_and_in_health(ask: Ask, site: Site) -> None:
    report(site, breaker("champion"))
    worklist = ask(Role.VIEWER, "/").text
    assert (
        f"{MODEL} 2 is left alone by worker-0 after failures and is tried again in 12 s; meanwhile studies wait."
        in worklist
    )
    assert 'title="ONNX Runtime failed"' in worklist
    page = ask(Role.VIEWER, "/processes").text
    assert "circuit breaker open, tried again in 12 s, opened 3 times: ONNX Runtime failed" in page
    assert ">degraded<" in page
    answer = ask(Role.VIEWER, "/health")
    assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
    assert answer.json()["problems"] == [f"worker-0 leaves {MODEL} 2 alone after failures: circuit breaker open"]


def test_open_pages_are_told_when_a_breaker_opens_or_a_version_changes(site: Site) -> None:
    tokens = [worklist_token(site.store)]
    report(site, breaker("champion"))
    tokens.append(worklist_token(site.store))
    report(site, breaker("champion", wait_s=3.0))
    assert worklist_token(site.store) == tokens[-1], "a pause that runs is no change"
    report(site, breaker("champion", "closed"))
    tokens.append(worklist_token(site.store))
    serve(site.store, MODEL, 3, Path("nowhere"), NOON, state=VersionState.CANARY)
    tokens.append(worklist_token(site.store))
    assert tokens[0] == tokens[2]
    assert len(set(tokens)) == 3


def test_a_shadows_breaker_is_for_engineers_and_degrades_nothing(ask: Ask, site: Site) -> None:
    report(site, breaker("shadow"))
    assert "left alone" not in ask(Role.VIEWER, "/").text
    assert "left alone" in ask(Role.ENGINEER, "/").text
    assert ask(Role.VIEWER, "/health").json()["status"] == "ok"


def test_a_version_that_does_not_load_degrades(ask: Ask, site: Site) -> None:
    report(site, breaker("champion", "closed"), broken={f"{MODEL} 2": "sha256 differs"})
    assert ask(Role.VIEWER, "/health").json()["problems"] == [f"worker-0 cannot load {MODEL} 2"]


def test_metrics_count_shadows_apart(client: httpx.Client, site: Site, judged: tuple[str, str]) -> None:
    report(site, breaker("champion"), breaker("shadow", "half open", version=3, openings=1))
    serve(site.store, MODEL, 5, Path("nowhere"), NOON, state=VersionState.CANARY)
    with site.store.write() as connection:
        connection.execute(update(model_version).where(model_version.c.version == 5).values(traffic={"fraction": 0.25}))
    found = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for sample in family.samples
    }

    def value(name: str, **labels: str) -> float | None:
        return found.get((name, frozenset({"model": MODEL, **labels}.items())))

    assert value("gateway_predictions_total", version="2") == 1
    assert value("gateway_predictions_total", version="3") is None
    assert value("gateway_findings_present_total", version="3", finding="referable") is None
    assert value("gateway_shadow_predictions_total", version="3") == 1
    assert value("gateway_shadow_pairs_total", version="3", paired_version="2") == 1
    assert value("gateway_shadow_disagreements_total", version="3", paired_version="2") == 1
    assert value("gateway_model_failures_total", version="4", role="shadow") == 1
    assert value("gateway_model_served", version="3", role="shadow") == 1
    assert value("gateway_canary_fraction", version="5") == 0.25
    assert value("gateway_breaker_state", process="worker-0", version="2", role="champion") == 2
    assert value("gateway_breaker_state", process="worker-0", version="3", role="shadow") == 1
    assert value("gateway_breaker_openings_total", process="worker-0", version="2", role="champion") == 3
