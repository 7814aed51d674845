"""Health and metrics, the latter read as Prometheus reads them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families
from web_site import CAMERA_FINDING, DESTINATION, MODEL, Site

from gateway.store.deliveries import mark_delivered
from gateway.store.monitoring import report_process
from gateway.study import StudyState
from gateway.web.health import expected_processes, judge_health

VERSION = {"model": MODEL, "version": "2"}


def report(site: Site, *names: str, at: datetime | None = None) -> None:
    for name in names:
        report_process(site.store, name=name, pid=1, now=at or datetime.now(UTC), detail={"providers": ["CPU"]})


def test_health_is_ok_when_every_process_reports(site: Site, client: httpx.Client) -> None:
    before = client.get("/health")
    assert before.status_code == 503
    assert "sender has not reported yet" in before.json()["problems"]
    report(site, "receiver-0", "receiver-1", "worker-0", "monitor", "sender", "housekeeper")
    answer = client.get("/health")
    assert (answer.status_code, answer.json()["status"], answer.json()["problems"]) == (200, "ok", [])
    assert {each["name"] for each in answer.json()["processes"]} == expected_processes(site.settings)


def test_a_silent_process_is_told(site: Site, client: httpx.Client) -> None:
    report(site, "receiver-0", "receiver-1", "worker-0", "monitor", "housekeeper")
    report(site, "sender", at=datetime.now(UTC) - timedelta(seconds=40))
    answer = client.get("/health")
    assert answer.status_code == 503
    (problem,) = answer.json()["problems"]
    assert problem.startswith("sender was last seen 4")


def test_a_worker_may_be_silent_longer_than_a_sender(site: Site) -> None:
    now = datetime.now(UTC)
    report(site, *expected_processes(site.settings), at=now - timedelta(seconds=30))
    problems = judge_health(site.settings, site.store, now)["problems"]
    assert {problem.split()[0] for problem in problems} == {"receiver-0", "receiver-1", "sender", "web"}


def test_health_without_a_store(site: Site) -> None:
    with site.store.write() as connection:
        connection.exec_driver_sql("DROP TABLE process")
    found = judge_health(site.settings, site.store)
    assert found["status"] == "failing"
    assert "no such table" in found["problems"][0]


def read_metrics(client: httpx.Client) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_metrics(site: Site, client: httpx.Client) -> None:
    for score, ungradable in ((0.9, ()), (0.8, ()), (0.1, ()), (0.9, ("too dark",))):
        study_key, left = site.receive(name="Secret^Name")
        site.judge(study_key, {left: score}, ungradable=ungradable, acquisition=[CAMERA_FINDING])
    unmatched, _ = site.receive()
    site.judge(unmatched, {}, priority=0, deliver=False, state=StudyState.NOT_MATCHED)
    site.receive()
    mark_delivered(site.store, site.pending()[:3], site.clock)
    site.drift(state="drift", p_value=0.0002, effect=3.25, n=48)
    site.drift(scope="camera 2", state="not judged", p_value=None, effect=None, n=7)
    site.alarm()
    report(site, "sender")
    report(site, "monitor", at=datetime.now(UTC) - timedelta(minutes=5))
    found = read_metrics(client)

    def value(name: str, **labels: str) -> Any:
        return found.get((name, frozenset(labels.items())))

    assert value("gateway_studies", state="judged") == 4
    assert value("gateway_studies", state="not matched") == 1
    assert value("gateway_studies", state="receiving") == 1
    assert value("gateway_studies", state="failed") == 0
    assert value("gateway_instances_received_total") == 6
    assert value("gateway_predictions_total", **VERSION) == 4
    assert value("gateway_ungradable_total", **VERSION) == 1
    assert value("gateway_findings_present_total", **VERSION, finding="referable") == 2
    assert value("gateway_deliveries", destination=DESTINATION, state="delivered") == 3
    assert value("gateway_deliveries", destination=DESTINATION, state="pending") == 5
    everywhere = {**VERSION, "scope": "all", "kind": "embedding"}
    assert value("gateway_drift_p_value", **everywhere) == 0.0002
    assert value("gateway_drift_effect", **everywhere) == 3.25
    assert value("gateway_drift_studies", **everywhere) == 48
    assert value("gateway_drift_detected", **everywhere) == 1
    camera = {**everywhere, "scope": "camera 2"}
    assert value("gateway_drift_studies", **camera) == 7
    assert value("gateway_drift_p_value", **camera) is None
    assert value("gateway_alarms_open", **everywhere, state="open") == 1
    assert value("gateway_process_up", process="sender") == 1
    assert value("gateway_process_up", process="monitor") == 0


def test_age_of_the_queue(site: Site, client: httpx.Client) -> None:
    assert read_metrics(client)["gateway_oldest_queued_study_age_seconds", frozenset()] == 0
    study_key, _ = site.receive()
    client.post(f"/api/studies/{study_key}/complete").raise_for_status()
    assert 0 <= read_metrics(client)["gateway_oldest_queued_study_age_seconds", frozenset()] < 20


def test_no_metric_names_a_patient_a_study_or_a_peer(site: Site, client: httpx.Client) -> None:
    study_key, image = site.receive(name="Secret^Name", study_uid="1.2.999.1")
    site.judge(study_key, {image: 0.9})
    text = client.get("/metrics").text
    for private in ("Secret", "PID-", "1.2.999.1", study_key, image, "MODALITY", "127.0.0.1"):
        assert private not in text
