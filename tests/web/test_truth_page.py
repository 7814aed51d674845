"""Agree or disagree from the viewer and by programs: who may, what is kept, and that a shadow is never spoken of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from argon2 import PasswordHasher
from direct import Direct
from fastapi import FastAPI
from known_versions import serve
from sqlalchemy import update
from tiny_bundles import write_tiny_bundle
from truth_rig import drawn_patients, fill, say, truths
from web_site import MODEL, Site

from gateway.accounts import Accounts
from gateway.performance import refresh
from gateway.roles import Role
from gateway.settings import Settings, load_settings
from gateway.store.accounts import Doer
from gateway.store.audit import entries
from gateway.store.models import VersionState
from gateway.store.schema import prediction
from gateway.store.truth import words
from gateway.web.access import CSRF_HEADER
from gateway.web.server import create_app

NOW = datetime(2026, 1, 5, 8, tzinfo=UTC)
PASSWORD = "correct horse battery"
BY = Doer(actor="test")
FINDING = "referable"
CODE = {"value": "1", "scheme": "99TEST", "meaning": "Test"}
BODY = {"model": MODEL, "finding": FINDING, "verdict": "agree"}

Caller = Callable[[Role], httpx.Client]


@pytest.fixture
def settings() -> Settings:
    return load_settings(environment={})


@pytest.fixture
def app(site: Site, settings: Settings, tmp_path: Path) -> FastAPI:
    finding = {"name": FINDING, "title": "Referable", "labels": ["there"], "operating_point": 0.4, "code": CODE}
    write_tiny_bundle(tmp_path / "bundle", name=MODEL, findings=[finding], acceptance=None)
    serve(site.store, MODEL, 2, tmp_path / "bundle", NOW)
    serve(site.store, MODEL, 3, tmp_path / "bundle", NOW, state=VersionState.SHADOW)
    app = create_app(settings, site.data_dir, site.store, clock=lambda: NOW)
    app.state.access.accounts._hasher = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    return app


def direct(app: FastAPI, headers: dict[str, str] | None = None) -> httpx.Client:
    return httpx.Client(transport=Direct(app, "10.0.0.1"), base_url="http://127.0.0.1", headers=headers)


@pytest.fixture
def machine(app: FastAPI) -> Iterator[Caller]:
    accounts: Accounts = app.state.access.accounts
    opened = []

    def make(role: Role) -> httpx.Client:
        _, secret = accounts.make_token(f"{role}s", role, lifetime=timedelta(days=1), now=NOW, by=BY)
        opened.append(direct(app, {"Authorization": f"Bearer {secret}"}))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


@pytest.fixture
def person(app: FastAPI) -> Iterator[Caller]:
    """A browser, logged in, which shows the page's token with what it sends."""
    accounts: Accounts = app.state.access.accounts
    opened = []

    def make(role: Role) -> httpx.Client:
        accounts.make(str(role), PASSWORD, role, now=NOW, by=BY)
        client = direct(app)
        opened.append(client)
        assert client.post("/login", data={"name": str(role), "password": PASSWORD}).status_code == 303
        token = client.get("/").text.split('name="csrf-token" content="')[1].split('"')[0]
        client.headers[CSRF_HEADER] = token
        return client

    yield make
    for each in opened:
        each.close()


def judged(site: Site, score: float = 0.9, *, ungradable: tuple[str, ...] = ()) -> tuple[str, str]:
    key, image = site.receive()
    site.judge(key, {image: score}, deliver=False, ungradable=ungradable)
    return key, image


def shadow(site: Site, key: str, image: str, score: float) -> None:
    """Version 3 judges the same image, unseen."""
    site.judge(key, {image: score}, deliver=False, version=3)
    with site.store.write() as connection:
        connection.execute(update(prediction).where(prediction.c.model_version == 3).values(role="shadow"))


def test_a_radiologist_disagrees_and_it_stands_on_the_page(person: Caller, site: Site) -> None:
    key, image = judged(site)
    client = person(Role.RADIOLOGIST)
    body = {**BODY, "verdict": "disagree", "instance_key": image, "version": 2, "comment": " drusen <b> "}
    answer = client.post(f"/api/studies/{key}/truth", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["taken"] == "added"
    (word,) = words(site.store)
    assert (word.value, word.agrees, word.shown_version, word.instance_key) == ("absent", False, 2, image)
    assert (word.reader, word.source, word.comment, word.read_at) == ("radiologist", "viewer", "drusen <b>", NOW)
    page = client.get(f"/studies/{key}").text
    assert '<b class="word absent">absent</b>' in page
    assert "radiologist · disagrees with version 2" in page
    assert "drusen &lt;b&gt;" in page
    (entry,) = entries(site.store, limit=9, action="read")
    assert (entry["actor"], entry["subject"]) == ("radiologist", key)
    assert entry["detail"] == f"{MODEL} {FINDING}: absent, shown present by version 2"
    (listed,) = client.get(f"/api/studies/{key}/truth").json()
    assert (listed["value"], listed["reader"]) == ("absent", "radiologist")


def test_saying_it_again_changes_nothing_and_another_word_supersedes(person: Caller, site: Site) -> None:
    key, image = judged(site)
    client = person(Role.RADIOLOGIST)

    def told(verdict: str) -> str:
        body = {**BODY, "verdict": verdict, "instance_key": image}
        return str(client.post(f"/api/studies/{key}/truth", json=body).json()["taken"])

    assert [told("agree"), told("agree"), told("ungradable"), told("absent")] == [
        "added",
        "unchanged",
        "superseding",
        "superseding",
    ]
    assert [word.value for word in words(site.store)] == ["absent"]
    assert len(words(site.store, superseded=True)) == 3
    assert len(entries(site.store, limit=9, action="read")) == 3


@pytest.mark.parametrize(
    ("score", "ungradable", "verdict", "value", "agrees"),
    [
        (0.9, (), "agree", "present", True),
        (0.9, (), "disagree", "absent", False),
        (0.1, (), "agree", "absent", True),
        (0.1, (), "disagree", "present", False),
        (0.1, (), "present", "present", False),
        (0.9, (), "ungradable", "ungradable", False),
        (0.9, ("too dark",), "agree", "ungradable", True),
        (0.9, ("too dark",), "present", "present", False),
        (0.9, ("too dark",), "disagree", None, None),
    ],
)
@pytest.mark.parametrize("of_image", [True, False])
def test_verdicts(
    machine: Caller,
    site: Site,
    score: float,
    ungradable: tuple[str, ...],
    verdict: str,
    value: str | None,
    agrees: bool | None,
    of_image: bool,
) -> None:
    key, image = judged(site, score, ungradable=ungradable)
    body = {**BODY, "verdict": verdict, "instance_key": image if of_image else ""}
    answer = machine(Role.RADIOLOGIST).post(f"/api/studies/{key}/truth", json=body)
    if value is None:
        assert answer.status_code == 422
        assert answer.json()["error"] == "the model asserts nothing here; say present or absent"
        return
    (word,) = words(site.store)
    assert (word.value, word.agrees, word.shown_version) == (value, agrees, 2)


def test_a_program_says_for_whom_it_speaks(machine: Caller, site: Site) -> None:
    key, _ = judged(site)
    client = machine(Role.RADIOLOGIST)
    client.post(f"/api/studies/{key}/truth", json={**BODY, "reader": "Dr. B", "laterality": "R"})
    client.post(f"/api/studies/{key}/truth", json=BODY)
    said = [(word.reader, word.source, word.laterality) for word in words(site.store)]
    assert said == [("Dr. B", "api", "R"), ("token:radiologists", "api", "")]
    assert {entry["actor"] for entry in entries(site.store, limit=9, action="read")} == {"token:radiologists"}


def test_who_may_not(app: FastAPI, person: Caller, machine: Caller, site: Site) -> None:
    key, _ = judged(site)
    address = f"/api/studies/{key}/truth"
    assert person(Role.VIEWER).post(address, json=BODY).status_code == 403
    assert person(Role.ENGINEER).post(address, json=BODY).status_code == 403
    assert machine(Role.SENDER).post(address, json=BODY).status_code == 403
    assert direct(app).post(address, json=BODY).status_code == 401
    radiologist = person(Role.RADIOLOGIST)
    del radiologist.headers[CSRF_HEADER]
    assert radiologist.post(address, json=BODY).status_code == 403
    assert words(site.store) == []
    assert 'form class="read"' in radiologist.get(f"/studies/{key}").text


def test_nobody_reads_while_log_in_is_off(site: Site) -> None:
    key, _ = judged(site)
    app = create_app(load_settings(environment={}, overrides={"web.authentication": "off"}), site.data_dir, site.store)
    answer = direct(app).post(f"/api/studies/{key}/truth", json=BODY)
    assert answer.status_code == 403
    assert "a read says whose it is" in answer.json()["error"]


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"version": 1}, 409, "what is shown has changed meanwhile"),
        ({"version": 3}, 409, "what is shown has changed meanwhile"),
        ({"finding": "cough"}, 422, "no such finding"),
        ({"model": "lung"}, 422, "no such finding"),
        ({"instance_key": "0" * 32}, 422, "no such image"),
        ({"verdict": "perhaps"}, 422, "body.verdict"),
        ({"comment": "x" * 2001}, 422, "body.comment"),
        ({"reader": "somebody else"}, 422, "an account speaks for itself"),
    ],
)
def test_what_does_not_fit_is_refused(
    person: Caller, site: Site, change: dict[str, Any], status: int, said: str
) -> None:
    key, image = judged(site)
    shadow(site, key, image, 0.1)
    answer = person(Role.RADIOLOGIST).post(f"/api/studies/{key}/truth", json={**BODY, **change})
    assert (answer.status_code, said in answer.text) == (status, True), answer.text
    assert words(site.store) == []


def test_a_study_that_is_not_there(person: Caller) -> None:
    client = person(Role.RADIOLOGIST)
    assert client.post(f"/api/studies/{'0' * 32}/truth", json=BODY).status_code == 404
    assert client.get(f"/api/studies/{'0' * 32}/truth").status_code == 404


def test_a_shadow_is_never_what_a_reader_agrees_with(person: Caller, site: Site) -> None:
    key, image = judged(site, 0.9)
    shadow(site, key, image, 0.1)
    client = person(Role.RADIOLOGIST)
    page = client.get(f"/studies/{key}").text
    assert f"{MODEL} 2" in page
    assert f"{MODEL} 3" not in page
    for body in ({**BODY, "instance_key": image}, BODY):
        client.post(f"/api/studies/{key}/truth", json=body)
    assert {(word.value, word.shown_version) for word in words(site.store)} == {("present", 2)}


def test_a_study_that_no_model_judged_takes_a_value_but_no_agreement(person: Caller, site: Site) -> None:
    key, _ = site.receive()
    client = person(Role.RADIOLOGIST)
    assert client.post(f"/api/studies/{key}/truth", json=BODY).status_code == 422
    assert client.post(f"/api/studies/{key}/truth", json={**BODY, "verdict": "present"}).status_code == 200
    (word,) = words(site.store)
    assert (word.value, word.agrees, word.shown_version) == ("present", None, None)


# --- performance ---


def computed(site: Site) -> None:
    start = datetime(2025, 12, 1, tzinfo=UTC)
    patients = drawn_patients(1, 120, start, versions=(2, 3))
    say(site.store, fill(site.store, patients, shadow=3), truths(patients), at=NOW)
    refresh(site.store, site.settings.truth, now=NOW, estimate=False)


def test_the_page_shows_what_was_computed_and_shadows_to_engineers_alone(person: Caller, site: Site) -> None:
    client = person(Role.RADIOLOGIST)
    assert "Nothing has been computed yet" in client.get("/performance").text
    computed(site)
    page = client.get("/performance").text
    assert '<b>2</b> <span class="version-state champion">champion</span>' in page
    assert "shadow" not in page
    assert [row["model_version"] for row in client.get("/api/performance").json()] == [2]
    engineer = person(Role.ENGINEER)
    page = engineer.get("/performance").text
    assert "<b>3</b> minus 2" in page
    rows = engineer.get("/api/performance", params={"model": MODEL}).json()
    assert [(row["model_version"], row["state"]) for row in rows] == [(2, "champion"), (3, "shadow")]
    value = rows[0]["figures"]["evaluation"]["overall"]["candidate"]["figures"]["auc_roc"]["value"]
    assert f"<b>{value:.3f}</b>" in page
    assert engineer.get("/api/performance", params={"model": "other"}).json() == []


def test_metrics_read_what_was_computed(app: FastAPI, site: Site) -> None:
    computed(site)
    text = direct(app).get("/metrics").text
    labels = f'finding="{FINDING}",model="{MODEL}",version="2"'
    assert f"gateway_performance_cases{{{labels}}} 120.0" in text
    bounds = {}
    for bound in ("low", "value", "high"):
        line = f'gateway_performance{{bound="{bound}",figure="auc_roc",{labels}}} '
        bounds[bound] = float(text.split(line)[1].split("\n")[0])
    assert 0.5 < bounds["low"] < bounds["value"] < bounds["high"] <= 1
    assert "gateway_performance_age_seconds{" in text
