"""The pages and the API of model versions: what they show, who may do what, and real clicks in Chromium."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import httpx
import pytest
from argon2 import PasswordHasher
from direct import Direct
from fastapi import FastAPI
from model_rig import BY, NOW, PASSWORD, ModelRig, model_rig
from playwright.sync_api import Browser, Page, expect, sync_playwright
from running import running_web
from web_site import Site

from gateway.lifecycle import Action
from gateway.roles import Role
from gateway.settings import Settings, load_settings
from gateway.store.audit import entries
from gateway.store.models import RequestState, VersionState, find_request
from gateway.store.monitoring import report_process
from gateway.store.schema import model_request
from gateway.web.access import CSRF_HEADER
from gateway.web.server import create_app

CANARY, CHAMPION = VersionState.CANARY, VersionState.CHAMPION


@pytest.fixture
def settings() -> Settings:
    return load_settings(environment={})


@pytest.fixture
def rig(site: Site) -> Iterator[ModelRig]:
    """Version 1 is champion, version 2 a draft that has been compared."""
    with model_rig(site.store, site.data_dir) as rig:
        rig.register(1)
        rig.register(2)
        rig.set_up(1)
        yield rig


@pytest.fixture
def app(site: Site, settings: Settings, rig: ModelRig) -> FastAPI:
    app = create_app(settings, site.data_dir, site.store, clock=lambda: rig.later(1))
    app.state.access.accounts._hasher = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    return app


Client = Callable[[str], httpx.Client]


@pytest.fixture
def person(app: FastAPI) -> Iterator[Client]:
    """A browser in which somebody is logged in, with a valid CSRF token in every request."""
    opened = []

    def make(name: str) -> httpx.Client:
        client = httpx.Client(transport=Direct(app, "10.0.0.1"), base_url="http://127.0.0.1")
        opened.append(client)
        assert client.post("/login", data={"name": name, "password": PASSWORD}).status_code == 303
        found = re.search(r'name="csrf-token" content="([0-9a-f]{64})"', client.get("/account").text)
        assert found is not None
        client.headers[CSRF_HEADER] = found[1]
        return client

    yield make
    for each in opened:
        each.close()


def machine(app: FastAPI, role: Role) -> httpx.Client:
    _, secret = app.state.access.accounts.make_token("ci", role, lifetime=timedelta(days=1), now=NOW, by=BY)
    headers = {"Authorization": f"Bearer {secret}"}
    return httpx.Client(transport=Direct(app, "10.0.0.1"), base_url="http://127.0.0.1", headers=headers)


# --- API ---


def test_the_whole_way_by_the_api(rig: ModelRig, person: Client) -> None:
    report = rig.compare(2, champion=1)
    ada, bob, eve = (person(name) for name in ("ada", "bob", "eve"))
    body: dict[str, Any] = {"to": "canary", "report": report, "reason": "better", "fraction": 0.2}
    asked = ada.post("/api/models/tiny/2/propose", json=body | {"limits": {"error_fraction": 0.02, "drift": True}})
    assert asked.status_code == 200, asked.text
    key = asked.json()["request_key"]
    assert asked.json()["traffic"] == {"fraction": 0.2, "limits": {"error_fraction": 0.02, "drift": True}}
    signature = {"password": PASSWORD, "reason": "I read it"}
    first = bob.post(f"/api/models/requests/{key}/approve", json=signature).json()
    assert (first["state"], [each["by"] for each in first["approvals"]]) == ("open", ["bob"])
    wrong = eve.post(f"/api/models/requests/{key}/approve", json=signature | {"password": "x"})
    assert (wrong.status_code, "do not belong together" in wrong.json()["error"]) == (409, True)
    assert eve.post(f"/api/models/requests/{key}/approve", json=signature).json()["state"] == "carried out"
    found = eve.get("/api/models/tiny/2").json()
    assert (found["state"], found["by"]) == ("canary", "approved by bob and eve")
    assert found["card"]["acceptance"]["criteria"][0]["name"] == "no worse"
    assert [each["action"] for each in found["record"]][:2] == ["canary", "approve"]
    ended = eve.post("/api/models/tiny/2/step", json={"action": "end canary", "reason": "enough seen"})
    assert ended.json()["state"] == "shadow"
    listed = eve.get("/api/models/requests", params={"state": "carried out"}).json()
    assert [each["request_key"] for each in listed] == [key]
    record = eve.get("/api/models/record", params={"model": "tiny", "limit": 2}).json()
    assert [each["action"] for each in record] == ["end canary", "canary"]
    noted = [(each["actor"], each["action"]) for each in entries(rig.store, limit=20) if "model" in each["action"]]
    assert noted[:4] == [
        ("eve", "model end canary"),
        ("eve", "model approved"),
        ("bob", "model approved"),
        ("ada", "model proposed"),
    ]


def test_back_by_the_api(rig: ModelRig, person: Client, app: FastAPI) -> None:
    rig.promote(2, champion=1)
    machine_client = machine(app, Role.ENGINEER)
    answer = machine_client.post("/api/models/tiny/rollback", json={"reason": "it misses"})
    assert answer.json() == {"model_name": "tiny", "from_version": 2, "to_version": 1}
    assert rig.states() == {1: "champion", 2: "retired"}
    assert rig.actions("actor")[-1] == "token:ci"
    again = person("ada").post("/api/models/tiny/rollback", json={"reason": "it misses"})
    assert (again.status_code, again.json()["error"]) == (409, "tiny has no former champion to go back to")


def test_a_machine_may_propose_and_never_signs(rig: ModelRig, app: FastAPI) -> None:
    client = machine(app, Role.ENGINEER)
    body = {"to": "champion", "report": rig.compare(2, champion=1), "reason": "nightly training"}
    key = client.post("/api/models/tiny/2/propose", json=body).json()["request_key"]
    answer = client.post(f"/api/models/requests/{key}/approve", json={"password": PASSWORD, "reason": "x"})
    assert (answer.status_code, answer.json()["error"]) == (409, "a signature is a person's: log in with an account")


STEPS: list[tuple[str, dict[str, Any]]] = [
    ("/api/models/tiny/2/propose", {"to": "champion", "report": "0" * 32, "reason": "x"}),
    ("/api/models/requests/{key}/approve", {"password": PASSWORD, "reason": "x"}),
    ("/api/models/requests/{key}/refuse", {"reason": "x"}),
    ("/api/models/requests/{key}/withdraw", {"reason": "x"}),
    ("/api/models/tiny/2/step", {"action": "shadow", "reason": "x"}),
    ("/api/models/tiny/rollback", {"reason": "x"}),
]


@pytest.mark.parametrize("role", [role for role in Role if role not in (Role.ENGINEER, Role.ADMINISTRATOR)])
def test_who_may_not_decide(rig: ModelRig, app: FastAPI, role: Role) -> None:
    key = rig.propose(2, CHAMPION, champion=1).request_key
    before = (rig.states(), rig.actions())
    client = machine(app, role)
    for path, body in STEPS:
        assert client.post(path.format(key=key), json=body).status_code == 403, path
        assert client.post(path.removeprefix("/api").format(key=key), data=body).status_code in (403, 404, 405), path
    assert (rig.states(), rig.actions()) == before
    assert client.get("/api/models/tiny/2").status_code == (403 if role is Role.SENDER else 200)


def test_no_step_without_the_token_of_the_page(rig: ModelRig, person: Client) -> None:
    client = person("bob")
    key = rig.propose(2, CHAMPION, champion=1).request_key
    del client.headers[CSRF_HEADER]
    for path, body in STEPS:
        assert client.post(path.format(key=key), json=body).status_code == 403
    for path in ("/models/tiny/2/step", f"/models/requests/{key}/approve", "/models/tiny/1/rollback"):
        assert client.post(path, data={"action": "shadow", "reason": "x", "password": PASSWORD}).status_code == 403
    assert rig.states() == {1: "champion", 2: "draft"}


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/models/tiny/9", 409),
        ("/api/models/none/1", 409),
        ("/api/models/tiny/x", 422),
        ("/models/tiny/9", 409),
        ("/models/tiny/0", 409),
        (f"/models/tiny/{2**63}", 409),
        (f"/api/models/tiny/{2**63}", 409),
    ],
)
def test_a_version_that_is_not_there(rig: ModelRig, person: Client, path: str, status: int) -> None:
    assert person("ada").get(path).status_code == status


def test_steps_that_are_none(rig: ModelRig, person: Client) -> None:
    client = person("ada")
    for body in ({"action": "promote", "reason": "x"}, {"action": "shadow", "reason": " "}, {"action": "shadow"}):
        assert client.post("/api/models/tiny/2/step", json=body).status_code == 422
    assert client.post("/models/tiny/2/step", data={"action": "promote", "reason": "x"}).status_code == 422
    assert rig.state(2) is VersionState.DRAFT


def test_guesses_at_a_password_are_slowed(rig: ModelRig, person: Client, settings: Settings) -> None:
    key = rig.propose(2, CHAMPION, champion=1).request_key
    client = person("bob")
    codes = [
        client.post(f"/api/models/requests/{key}/approve", json={"password": "guess", "reason": "x"}).status_code
        for _ in range(settings.web.login_attempts_per_minute + 2)
    ]
    assert codes[-1] == 429
    assert "approve" not in rig.actions()


# --- pages ---


def test_pages_say_what_is_missing(rig: ModelRig, person: Client) -> None:
    report = rig.compare(
        2, champion=1, verdict="not met", verdicts=[{"criterion": {"name": "no worse"}, "passed": False}]
    )
    client = person("ada")
    page = client.get("/models/tiny/2").text
    assert "a report that holds tiny@2 against the champion tiny@1 is needed" in page
    answer = client.post("/models/tiny/2/propose", data={"to": "champion", "report": report, "reason": "I want it"})
    assert answer.status_code == 422
    assert f"Comparison {report}: the acceptance criteria are not met: no worse." in answer.text
    assert 'value="I want it"' in answer.text, "what was typed is kept"
    answer = client.post(
        "/models/tiny/2/propose", data={"to": "canary", "report": report, "reason": "x", "percent": "many"}
    )
    assert "The share: a number is expected." in answer.text


def test_a_viewer_reads_and_sees_no_buttons(rig: ModelRig, person: Client) -> None:
    rig.person("vera", Role.VIEWER)
    rig.propose(2, CHAMPION, champion=1)
    client = person("vera")
    assert client.get("/models").status_code == 200
    page = client.get("/models/tiny/2").text
    assert "<form" not in page.split("<main", 1)[1].split("</main>")[0]
    assert "asks that" in page


def test_what_people_typed_is_text(rig: ModelRig, person: Client) -> None:
    rig.propose(2, CHAMPION, champion=1, reason="<script>alert(1)</script>")
    for path in ("/models", "/models/tiny/2"):
        page = person("bob").get(path).text
        assert "<script>alert" not in page
        assert "&lt;script&gt;alert(1)" in page


def test_the_registry_and_the_guard_are_shown(rig: ModelRig, person: Client) -> None:
    rig.promote(2, champion=1, to_state=CANARY)
    figure = {"name": "error_fraction", "count": 2, "studies": 31, "limit": 0.05}
    detail = {
        "registry": {"error": "", "notices": ["the registry's alias champion of tiny is version 2"]},
        "canaries": [{"model_name": "tiny", "version": 2, "figures": [figure]}],
        "model_record": {"problems": ["entry 5 is missing"]},
    }
    report_process(rig.store, name="monitor", pid=1, now=NOW, detail=detail)
    client = person("ada")
    page = client.get("/models").text
    assert "The registry&#39;s alias champion of tiny is version 2." in page
    assert "The record of model versions is not as it was written: entry 5 is missing." in page
    for each in (page, client.get("/models/tiny/2").text):
        assert "2 of 31 studies" in each


def test_while_log_in_is_off(rig: ModelRig, site: Site) -> None:
    """Steps of one person go on, by nobody in particular; what needs a name is refused."""
    settings = load_settings(environment={}, overrides={"web.authentication": "off"})
    app = create_app(settings, site.data_dir, site.store, clock=lambda: rig.later(1))
    key = rig.propose(2, CHAMPION, champion=1).request_key
    with httpx.Client(transport=Direct(app, "10.0.0.1"), base_url="http://127.0.0.1") as client:
        assert client.post("/api/models/tiny/2/step", json={"action": "shadow", "reason": "x"}).status_code == 200
        body = {"to": "canary", "report": "0" * 32, "reason": "x", "fraction": 0.1}
        assert "log-in is off" in client.post("/api/models/tiny/2/propose", json=body).json()["error"]
        signature = {"password": PASSWORD, "reason": "x"}
        assert client.post(f"/api/models/requests/{key}/approve", json=signature).status_code == 409
        assert client.get("/models/tiny/2").status_code == 200
    assert rig.actions("actor")[-1] == "anyone"


# --- Chromium ---


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("Chromium is not installed (apt install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def logged_in(browser: Browser, address: str, name: str, complaints: list[str]) -> Page:
    page = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
    page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(f"{address}/login?next=/models")
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_url(f"{address}/models")
    return page


def test_three_people_make_a_champion_and_one_takes_it_back(rig: ModelRig, site: Site, browser: Browser) -> None:
    rig.compare(2, champion=1)
    complaints: list[str] = []
    with running_web(site) as address:
        ada = logged_in(browser, address, "ada", complaints)
        expect(ada.locator("#live")).to_have_text("live")
        ada.get_by_role("link", name="tiny@2").click()
        ada.locator("#propose-champion summary").click()
        expect(ada.locator("#propose-champion")).to_contain_text("meets what the card asks for")
        form = ada.locator("#propose-champion form")
        form.get_by_label("Reason").fill("fewer misses on cameras of site B")
        form.get_by_role("button", name="Propose").click()
        request = ada.locator("article.request.open")
        expect(request).to_contain_text("ada asks that tiny@2 become champion")
        expect(request.get_by_role("button", name="Withdraw")).to_be_visible()
        expect(request.get_by_role("button", name="Approve and sign")).to_be_visible()
        expect(request.get_by_role("button", name="Refuse")).to_have_count(0)
        for name in ("bob", "eve"):
            page = logged_in(browser, address, name, complaints)
            page.get_by_role("link", name="Read and decide").click()
            request = page.locator("article.request").first
            request.get_by_label("Reason").fill(f"{name} read the report")
            request.get_by_label(f"Password of {name}").fill("wrong horse battery")
            request.get_by_role("button", name="Approve and sign").click()
            expect(page.get_by_role("alert")).to_contain_text("do not belong together")
            request = page.locator("article.request").first
            expect(request.get_by_label("Reason")).to_have_value(f"{name} read the report")
            expect(request.get_by_label(f"Password of {name}")).to_have_value("")
            request.get_by_label(f"Password of {name}").fill(PASSWORD)
            page.keyboard.press("Enter")
            expect(page.locator("article.request").first).to_contain_text(f"Signed by {name}")
        expect(page.locator("h1 .state")).to_have_text("champion")
        expect(page.locator("#record")).to_contain_text("signed by password")
        page.locator("#rollback summary").click()
        page.locator("#rollback").get_by_label("Reason").fill("it misses haemorrhages")
        page.get_by_role("button", name="Roll back to tiny@1").click()
        page.wait_for_url(f"{address}/models/tiny/1")
        expect(page.locator("h1 .state")).to_have_text("champion")
        expect(page.locator("#record")).to_contain_text("it misses haemorrhages")
        page.get_by_role("link", name="All models").click()
        expect(page.locator("#model-tiny")).to_contain_text("roll back by eve")
    assert [each for each in complaints if "422" not in each] == []
    assert rig.states() == {1: "champion", 2: "retired"}


def test_a_canary_is_proposed_refused_and_withdrawn_by_clicks(rig: ModelRig, site: Site, browser: Browser) -> None:
    rig.compare(2, champion=1)
    rig.step(2, Action.SHADOW)
    complaints: list[str] = []
    with running_web(site) as address:
        ada = logged_in(browser, address, "ada", complaints)
        for place in range(2):
            ada.goto(f"{address}/models/tiny/2")
            ada.locator("#propose-canary summary").click()
            form = ada.locator("#propose-canary form")
            form.get_by_label("Share of the studies").fill("2.5")
            form.get_by_label("Devices").fill("KOWA*, CANON/CR-2")
            form.get_by_label("failing studies").fill("0.02")
            form.get_by_label("drift alarms").select_option("true")
            form.get_by_label("Reason").fill("try it")
            form.get_by_role("button", name="Propose").click()
            expect(ada.locator("article.request.open")).to_contain_text("2.5 % of the studies and those of KOWA*")
            if place == 0:
                bob = logged_in(browser, address, "bob", complaints)
                bob.goto(f"{address}/models/tiny/2")
                bob.locator("article.request.open").get_by_label("Reason").fill("too few cases")
                bob.get_by_role("button", name="Refuse").click()
                expect(bob.locator("article.request.refused")).to_contain_text("Refused by bob")
                continue
            ada.locator("article.request.open").get_by_label("Reason").fill("another time")
            ada.get_by_role("button", name="Withdraw").click()
            expect(ada.locator("article.request.withdrawn")).to_contain_text("another time")
        ada.locator("#step-stop-shadow summary").click()
        ada.locator("#step-stop-shadow").get_by_label("Reason").fill("seen enough")
        ada.get_by_role("button", name="Stop shadow").click()
        expect(ada.locator("h1 .state")).to_have_text("draft")
    assert complaints == []
    with rig.store.read() as connection:
        keys = {each["request_key"] for each in rig_requests(rig)}
        states = {find_request(connection, key).state for key in keys}
    assert states == {RequestState.REFUSED, RequestState.WITHDRAWN}
    traffic = next(each["traffic"] for each in rig_requests(rig))
    limits = {"error_fraction": 0.02, "drift": True}
    assert traffic == {"fraction": 0.025, "devices": ["KOWA*", "CANON/CR-2"], "limits": limits}


def rig_requests(rig: ModelRig) -> list[dict[str, Any]]:
    with rig.store.read() as connection:
        return [dict(row) for row in connection.execute(model_request.select()).mappings()]
