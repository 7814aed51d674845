"""The keys a, d and u in Chromium, and the page of figures as it looks."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from known_versions import serve
from playwright.sync_api import Browser, Page, expect, sync_playwright
from running import running_web
from tiny_bundles import write_tiny_bundle
from truth_rig import drawn_patients, fill, say, truths
from web_site import MODEL, NOON, Site

from gateway.accounts import Accounts
from gateway.performance import refresh
from gateway.roles import Role
from gateway.settings import Settings, load_settings
from gateway.store.accounts import Doer
from gateway.store.models import VersionState
from gateway.store.truth import words

PASSWORD = "correct horse battery"
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]


@pytest.fixture
def settings() -> Settings:
    return load_settings(environment={}, overrides={"worker.count": 1})


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("Chromium is not installed (apt install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, site: Site) -> Iterator[Page]:
    """A radiologist's; at the end nothing has failed in it."""
    accounts = Accounts(site.store, site.data_dir)
    now = datetime.now(UTC)
    for role in (Role.RADIOLOGIST, Role.ENGINEER):
        accounts.make(str(role), PASSWORD, role, now=now, by=Doer(actor="test"))
    complaints: list[str] = []
    with running_web(site) as address:
        context = browser.new_context(viewport={"width": 1440, "height": 1000}, base_url=address)
        page = context.new_page()
        page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        log_in(page, "radiologist")
        yield page
        context.close()
    assert complaints == []


def log_in(page: Page, name: str) -> None:
    page.goto("about:blank")  # a page that listens would complain of the log-out
    page.context.clear_cookies()
    page.goto("/login")
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_url("**/")


def test_one_key_each(site: Site, page: Page) -> None:
    key, image = site.receive(name="Roe^Rita")
    site.judge(key, {image: 0.9}, deliver=False)
    page.goto(f"/studies/{key}")
    expect(page.locator("#live")).to_have_text("live")
    said = page.locator(".image-panel:not([hidden]) .said")
    page.keyboard.press("d")
    expect(said).to_contain_text("absent radiologist · disagrees with version 2")
    page.keyboard.press("a")
    expect(said).to_contain_text("present radiologist · agrees with version 2")
    assert said.locator("li").count() == 1
    comment = page.get_by_label("Comment")
    comment.fill("dad: u and a are letters here")
    page.keyboard.press("Enter")  # chooses nothing
    assert [word.value for word in words(site.store)] == ["present"]
    page.get_by_role("button", name="Ungradable").click()
    expect(said).to_contain_text("dad: u and a are letters here")
    page.keyboard.press("u")
    expect(said).not_to_contain_text("letters")
    kept = words(site.store, superseded=True)
    assert [(word.value, word.comment) for word in kept] == [
        ("absent", ""),
        ("present", ""),
        ("ungradable", "dad: u and a are letters here"),
        ("ungradable", ""),
    ]
    page.keyboard.press("?")
    expect(page.locator("#keys")).to_contain_text("agree, disagree")


def test_the_page_of_figures(site: Site, page: Page, tmp_path: Path) -> None:
    pytest.importorskip("nannyml", reason="NannyML is not installed (extra: estimate)")
    log_in(page, "engineer")
    page.goto("about:blank")  # the worklist would ask for the pictures of studies that have none here
    finding = {"name": "referable", "title": "Referable", "labels": ["there"], "operating_point": 0.4}
    finding["code"] = {"value": "1", "scheme": "99TEST", "meaning": "Test"}
    write_tiny_bundle(tmp_path / "bundle", name=MODEL, findings=[finding], acceptance=None)
    serve(site.store, MODEL, 2, tmp_path / "bundle", NOON)
    serve(site.store, MODEL, 3, tmp_path / "bundle", NOON, state=VersionState.SHADOW)
    start = datetime(2025, 12, 1, tzinfo=UTC)
    labelled = drawn_patients(1, 400, start, versions=(2, 3))
    values = [
        value if each.scores[2] >= 0.4 or place % 3 else ""
        for place, (value, each) in enumerate(zip(truths(labelled), labelled, strict=True))
    ]
    say(site.store, fill(site.store, labelled, shadow=3), values, at=NOON)
    fill(site.store, drawn_patients(2, 100, start + timedelta(days=30)))
    refresh(site.store, site.settings.truth, now=NOON)
    page.goto("/performance")
    expect(page.locator("#live")).to_have_text("live")
    table = page.locator(".measured table").first
    expect(table.locator("tbody tr")).to_have_count(2 + 1)  # version 1 has judged, too
    expect(page.locator(".measured")).to_contain_text("readers did not look at all alike")
    expect(page.locator(".measured")).to_contain_text("3 minus 2")
    box = table.locator(".interval .span").first.bounding_box()
    assert box is not None and 2 < box["width"] < 120
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
