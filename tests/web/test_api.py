"""The JSON API over a real socket, and what it refuses."""

from __future__ import annotations

import json
import threading
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from known_versions import serve
from web_site import MODEL, NOON, SHA256, Site

from gateway.errors import GatewayError, StoreError, TransitionError
from gateway.store.deliveries import mark_failed
from gateway.store.intake import new_key, put_in_quarantine
from gateway.web.errors import STATUSES, status_of


def judged(site: Site, score: float = 0.9, *, at: datetime = NOON, **arguments: Any) -> tuple[str, str]:
    study_key, instance_key = site.receive(at=at)
    site.judge(study_key, {instance_key: score}, **arguments)
    return study_key, instance_key


def test_studies_with_filters_and_pages(site: Site, client: httpx.Client) -> None:
    urgent, _ = judged(site, 0.9, priority=2)
    calm, _ = judged(site, 0.1, priority=0)
    waiting, _ = site.receive(at=NOON + timedelta(minutes=1))

    def keys(**query: Any) -> tuple[list[str], int]:
        answer = client.get("/api/studies", params=query)
        assert answer.status_code == 200
        return [study["study_key"] for study in answer.json()["studies"]], answer.json()["total"]

    assert keys() == ([urgent, calm, waiting], 3)
    assert keys(priority="HIGH") == ([urgent], 1)
    assert keys(state="receiving") == ([waiting], 1)
    assert keys(limit=1, offset=1) == ([calm], 3)
    assert keys(since="2030-01-01T00:00:00Z") == ([], 0)


@pytest.mark.parametrize(
    "query", ["state=lost", "priority=high", "limit=0", "limit=1001", "offset=-1", "since=2026-01-05", f"q={'x' * 201}"]
)
def test_a_query_that_does_not_fit_is_refused(client: httpx.Client, query: str) -> None:
    answer = client.get(f"/api/studies?{query}")
    assert answer.status_code == 422
    assert query.split("=")[0] in answer.json()["error"]
    assert "x" * 50 not in answer.text


def test_one_study_and_none(site: Site, client: httpx.Client) -> None:
    study_key, instance_key = judged(site)
    study = client.get(f"/api/studies/{study_key}").json()
    assert [image["instance_key"] for image in study["images"]] == [instance_key]
    assert client.get(f"/api/studies/{'0' * 32}").status_code == 404


def test_complete_now(site: Site, client: httpx.Client) -> None:
    study_key, _ = site.receive()
    assert client.post(f"/api/studies/{study_key}/complete").json()["state"] == "queued"
    again = client.post(f"/api/studies/{study_key}/complete")
    assert again.status_code == 409
    assert "queued" in again.json()["error"]
    assert client.post(f"/api/studies/{'0' * 32}/complete").status_code == 404


def test_resend_a_dead_letter(site: Site, client: httpx.Client) -> None:
    study_key, _ = judged(site)
    dead = site.pending()[0]
    mark_failed(site.store, [dead], error="no answer", next_attempt_at=None)
    assert client.post(f"/api/deliveries/{dead}/resend").status_code == 200
    found = client.get(f"/api/studies/{study_key}").json()["deliveries"][0]
    assert (found["delivery_id"], found["state"], found["attempts"], found["last_error"]) == (dead, "pending", 0, "")
    for unknown in (0, 999, 2**40):
        assert client.post(f"/api/deliveries/{unknown}/resend").status_code == 404


def test_an_alarm_from_open_to_closed(site: Site, client: httpx.Client) -> None:
    key = site.alarm()

    def step(name: str, **body: str) -> httpx.Response:
        return client.post(f"/api/alarms/{key}/{name}", json=body)

    assert step("acknowledge").status_code == 422
    assert step("acknowledge", by=" ").status_code == 409
    assert step("acknowledge", by="M. Vogel").json()["state"] == "acknowledged"
    assert step("acknowledge", by="M. Vogel").status_code == 409
    assert step("close", by="M. Vogel").status_code == 409
    closed = step("close", by="M. Vogel", cause="New lamp in camera 2; reference photographs repeated.").json()
    assert (closed["state"], closed["handled_by"]) == ("closed", "M. Vogel")
    assert closed["handling"].startswith("New lamp")
    assert client.get("/api/alarms", params={"closed": "false"}).json() == []
    assert [alarm["state"] for alarm in client.get("/api/alarms").json()] == ["closed"]
    assert client.post(f"/api/alarms/{new_key()}/close", json={"by": "x", "cause": "y"}).status_code == 404


def test_models_drift_and_quarantine(site: Site, client: httpx.Client) -> None:
    serve(site.store, MODEL, 2, Path("/somewhere"), site.clock, model_sha256=SHA256)
    (model,) = client.get("/api/models").json()
    assert (model["model_name"], model["state"], model["version"], model["model_sha256"]) == (
        MODEL,
        "champion",
        2,
        SHA256,
    )
    assert "/somewhere" not in json.dumps(model)
    site.drift(state="no drift", p_value=0.5)
    site.drift(state="drift", p_value=0.0001)
    (test,) = client.get("/api/drift").json()
    assert (test["state"], test["p_value"]) == ("drift", 0.0001)
    put_in_quarantine(
        site.store,
        key=new_key(),
        reason="not DICOM",
        path="quarantine/x.dcm",
        size_bytes=9,
        calling_ae_title="CT1",
        peer_address="10.0.0.1",
        received_at=site.clock,
    )
    (refused,) = client.get("/api/quarantine").json()
    assert (refused["reason"], refused["size_bytes"], refused["calling_ae_title"]) == ("not DICOM", 9, "CT1")
    assert "path" not in refused


def test_events_tell_of_a_study_that_came(site: Site, client: httpx.Client) -> None:
    told: list[str] = []
    first, second = threading.Event(), threading.Event()

    def listen() -> None:
        with client.stream("GET", "/api/events") as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            for line in stream.iter_lines():
                if line.startswith("data: "):
                    told.append(line)
                    (second if len(told) > 1 else first).set()
                if len(told) > 1:
                    return

    listening = threading.Thread(target=listen)
    listening.start()
    assert first.wait(20)
    site.receive()
    assert second.wait(20)
    listening.join(20)
    assert told[0] != told[1]


def test_every_error_has_a_status_and_the_store_tells_absent_from_broken() -> None:
    assert STATUSES.keys() >= {StoreError, TransitionError}
    assert status_of(StoreError("no study x")) == 404
    broken = StoreError("the store failed")
    broken.__cause__ = OSError()
    assert status_of(broken) == 503
    assert status_of(GatewayError("?")) == 500


def test_openapi_describes_every_route_of_the_api(client: httpx.Client) -> None:
    described = client.get("/openapi.json").json()
    assert described["openapi"].startswith("3.")
    paths = described["paths"]
    for path in ("/health", "/metrics", "/api/studies", "/api/studies/{study_key}", "/api/events", "/api/drift"):
        assert paths[path]["get"]["summary"]
    assert "post" in paths["/api/deliveries/{delivery_id}/resend"]
