"""Look-ups on the page and by the API: who may, with a reason, and that each stands in the record."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from argon2 import PasswordHasher
from direct import Direct
from fastapi import FastAPI
from photographs import drawn_jpeg, op_dataset, write
from pydicom import dcmread
from sqlalchemy import update
from web_site import Site

from gateway.accounts import Accounts
from gateway.roles import Role
from gateway.settings import Settings, load_settings
from gateway.store.accounts import Doer
from gateway.store.audit import entries
from gateway.vault import Vault, open_vault, prepare_vault
from gateway.vault_keys import FILE_NAME
from gateway.vault_rows import vault_study
from gateway.web.access import CSRF_HEADER
from gateway.web.server import create_app

NOW = datetime(2026, 1, 5, 8, tzinfo=UTC)
PASSWORD = "correct horse battery"
BY = Doer(actor="test")
PATIENT = "0123456789ABCDEF"
STUDY = "a" * 32
BODY = {"pseudonym": PATIENT, "reason": "call back"}


@pytest.fixture
def settings() -> Settings:
    return load_settings(environment={})


@pytest.fixture
def vault(settings: Settings, site: Site) -> Iterator[Vault]:
    prepare_vault(settings.vault, site.data_dir)
    vault = open_vault(settings.vault, site.data_dir)
    assert vault is not None
    source = op_dataset(drawn_jpeg(1), patient="Müller<b>^Änne")
    source.SpecificCharacterSet = "ISO_IR 192"
    path = write(source, site.data_dir / "source.dcm")
    vault.remember(pseudonym=PATIENT, study_key=STUDY, instance_key="c" * 32, source=dcmread(path), now=NOW)
    yield vault
    vault.close()


@pytest.fixture
def app(site: Site, settings: Settings, vault: Vault) -> FastAPI:
    app = create_app(settings, site.data_dir, site.store, clock=lambda: NOW)
    app.state.access.accounts._hasher = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    return app


Caller = Callable[[Role], httpx.Client]


def direct(app: FastAPI, headers: dict[str, str] | None = None) -> httpx.Client:
    return httpx.Client(transport=Direct(app, "10.0.0.1"), base_url="http://127.0.0.1", headers=headers)


@pytest.fixture
def machine(app: FastAPI) -> Iterator[Caller]:
    """A program with a token of that role."""
    accounts: Accounts = app.state.access.accounts
    opened = []

    def make(role: Role) -> httpx.Client:
        _, secret = accounts.make_token(str(role), role, lifetime=timedelta(days=1), now=NOW, by=BY)
        client = direct(app, {"Authorization": f"Bearer {secret}"})
        opened.append(client)
        return client

    yield make
    for each in opened:
        each.close()


@pytest.fixture
def person(app: FastAPI) -> Iterator[Caller]:
    """A browser, logged in."""
    accounts: Accounts = app.state.access.accounts
    opened = []

    def make(role: Role) -> httpx.Client:
        accounts.make(str(role), PASSWORD, role, now=NOW, by=BY)
        client = direct(app)
        opened.append(client)
        assert client.post("/login", data={"name": str(role), "password": PASSWORD}).status_code == 303
        return client

    yield make
    for each in opened:
        each.close()


def look_ups(site: Site) -> list[tuple[str, str, str]]:
    rows = entries(site.store, limit=100, action="identity look-up")
    return [(row["actor"], row["subject"], row["detail"]) for row in rows]


def csrf(client: httpx.Client) -> str:
    found = re.search(r'name="csrf-token" content="([0-9a-f]{64})"', client.get("/account").text)
    assert found is not None
    return found[1]


def test_a_radiologist_looks_up_and_it_is_written_down(person: Caller, site: Site) -> None:
    client = person(Role.RADIOLOGIST)
    page = client.get("/identities")
    assert page.status_code == 200
    assert "Müller" not in page.text
    answer = client.post("/identities", data={**BODY, "csrf_token": csrf(client)})
    assert answer.status_code == 200
    assert "Müller&lt;b&gt;" in answer.text
    assert "Müller<b>" not in answer.text
    assert "ACC7" in answer.text
    assert answer.headers["cache-control"] == "no-store"
    assert look_ups(site) == [("radiologist", PATIENT, "call back")]
    shown = client.get("/identities").text
    assert PATIENT in shown
    assert "call back" in shown
    assert "Müller" not in shown


def test_a_look_up_needs_the_sessions_token(person: Caller, site: Site) -> None:
    client = person(Role.RADIOLOGIST)
    for data in (BODY, {**BODY, "csrf_token": "0" * 64}):
        answer = client.post("/identities", data=data)
        assert answer.status_code == 403
        assert "Müller" not in answer.text
    assert client.post("/api/identities", json=BODY).status_code == 403
    assert look_ups(site) == []
    answer = client.post("/api/identities", json=BODY, headers={CSRF_HEADER: csrf(client)})
    assert answer.status_code == 200


@pytest.mark.parametrize("role", [*Role])
def test_who_may(role: Role, machine: Caller, site: Site) -> None:
    client = machine(role)
    may = role in (Role.RADIOLOGIST, Role.ADMINISTRATOR)
    answer = client.post("/api/identities", json=BODY)
    assert answer.status_code == (200 if may else 403)
    assert ("Müller" in answer.text) is may
    assert client.get("/api/identities/look-ups").status_code == (200 if may else 403)
    assert look_ups(site) == ([(f"token:{role}", PATIENT, "call back")] if may else [])


def test_the_answer_of_the_api(machine: Caller) -> None:
    client = machine(Role.ADMINISTRATOR)
    answer = client.post(
        "/api/identities", json={"pseudonym": f"pseudonym^{PATIENT.lower()}", "reason": " call  back "}
    )
    (study,) = answer.json()["studies"]
    assert answer.json()["pseudonym"] == PATIENT
    assert (study["patient_name"], study["accession_number"]) == ("Müller<b>^Änne", "ACC7")
    assert (study["patient_birth_date"], study["study_key"]) == ("19600203", STUDY)
    (row,) = client.get("/api/identities/look-ups").json()
    assert (row["actor"], row["subject"], row["detail"]) == ("token:administrator", PATIENT, "call back")


@pytest.mark.parametrize(
    "body",
    [
        {"pseudonym": "Müller^Änne", "reason": "x"},
        {"pseudonym": PATIENT, "reason": "  "},
        {"pseudonym": PATIENT},
        {"pseudonym": PATIENT, "reason": "x" * 501},
        {"pseudonym": "F" * 15, "reason": "x"},
    ],
)
def test_no_pseudonym_or_no_reason_shows_nothing_and_is_not_written_down(
    body: dict[str, str], machine: Caller, person: Caller, site: Site
) -> None:
    answer = machine(Role.ADMINISTRATOR).post("/api/identities", json=body)
    assert answer.status_code == 422
    browser = person(Role.RADIOLOGIST)
    page = browser.post("/identities", data={**body, "csrf_token": csrf(browser)})
    assert page.status_code == 422
    assert "ACC7" not in answer.text + page.text
    assert look_ups(site) == []


def test_nobody_is_found_and_that_is_written_down(machine: Caller, site: Site) -> None:
    answer = machine(Role.ADMINISTRATOR).post("/api/identities", json={**BODY, "pseudonym": "F" * 16})
    assert answer.status_code == 404
    assert look_ups(site) == [("token:administrator", "F" * 16, "call back")]


def test_an_altered_row_a_key_that_has_gone_and_no_vault(
    machine: Caller, vault: Vault, site: Site, settings: Settings
) -> None:
    client = machine(Role.ADMINISTRATOR)
    with vault._engine.begin() as connection:
        connection.execute(update(vault_study).values(sealed=b"x" * 100))
    answer = client.post("/api/identities", json=BODY)
    assert (answer.status_code, "altered" in answer.text) == (409, True)
    (site.data_dir / FILE_NAME).unlink()
    assert client.post("/api/identities", json=BODY).status_code == 503
    off = load_settings(environment={}, overrides={"vault.enabled": False})
    other = direct(create_app(off, site.data_dir, site.store, clock=lambda: NOW))
    with other:
        answer = other.post("/api/identities", json=BODY, headers=dict(client.headers))
    assert (answer.status_code, "keeps no vault" in answer.text) == (409, True)


def test_with_log_in_off_nobody_may_since_nobody_could_be_named(site: Site, vault: Vault) -> None:
    off = load_settings(environment={}, overrides={"web.authentication": "off"})
    client = direct(create_app(off, site.data_dir, site.store, clock=lambda: NOW))
    with client:
        answer = client.post("/api/identities", json=BODY)
    assert answer.status_code == 403
    assert "gateway vault find" in answer.text
    assert look_ups(site) == []


def test_nobody_walks_through_all_patients(machine: Caller, app: FastAPI) -> None:
    client = machine(Role.ADMINISTRATOR)
    answers = [client.post("/api/identities", json=BODY).status_code for _ in range(80)]
    assert answers[0] == 200
    assert answers[-1] == 429
