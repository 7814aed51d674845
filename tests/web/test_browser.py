"""The pages in Chromium: real keys, real clicks, real pixels. No page may load from elsewhere or log an error."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from running import running_web, self_signed
from web_site import CAMERA_FINDING, NOON, Site

from gateway.accounts import Accounts, first_password_path, prepare_first_account
from gateway.roles import Role
from gateway.settings import load_settings
from gateway.store.accounts import Doer
from gateway.store.deliveries import mark_delivered, mark_failed
from gateway.studies_view import study_detail
from gateway.study import StudyState

ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WEB = Path(__file__).resolve().parents[2] / "gateway" / "web"

Open = Callable[..., Page]


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
def open_page(browser: Browser, address: str) -> Iterator[Open]:
    """Opens a path; at the end nothing has failed in the page, and nothing has come from elsewhere."""
    complaints: list[str] = []
    context = browser.new_context(viewport={"width": 1440, "height": 900})

    def opened(path: str, *, live: bool = True) -> Page:
        page = context.new_page()
        page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        page.on(
            "request",
            lambda request: (
                request.url.startswith((address, "data:", "blob:")) or complaints.append(f"elsewhere: {request.url}")
            ),
        )
        page.goto(address + path)
        if live:
            expect(page.locator("#live")).to_have_text("live")
        return page

    yield opened
    context.close()
    assert complaints == []


def judged(site: Site, name: str, score: float, *, priority: int = 2, minutes: int = 0, **arguments: Any) -> str:
    study_key, instance_key = site.receive(name=name, at=NOON + timedelta(minutes=minutes))
    site.judge(study_key, {instance_key: score}, priority=priority, **arguments)
    return study_key


def names(page: Page) -> list[str]:
    return page.locator("#rows a.open").all_inner_texts()


# --- worklist ---


def test_a_study_comes_is_judged_and_rises_without_reload(site: Site, open_page: Open) -> None:
    judged(site, "Calm^Carl", 0.1, priority=0)
    page = open_page("/")
    page.evaluate("window.sameDocument = true")
    assert names(page) == ["Calm, Carl"]
    late, image = site.receive(name="Late^Lea", at=NOON + timedelta(minutes=5))
    row = page.locator(f'tr[data-key="{late}"]')
    expect(row).to_contain_text("receiving")
    assert names(page) == ["Calm, Carl", "Late, Lea"]
    site.judge(late, {image: 0.93}, acquisition=[CAMERA_FINDING])
    expect(row).to_contain_text("0.930 present")
    expect(row).to_contain_text("High")
    expect(row).to_contain_text("retinopathy 2")
    expect(row).to_contain_text("1 warning")
    expect(row).to_contain_text("2 pending")
    assert names(page) == ["Late, Lea", "Calm, Carl"]
    site.drift(state="not judged", reason="7 of 25 studies", n=7, p_value=None)
    expect(row).to_contain_text("not judged: 7 of 25 studies")
    mark_delivered(site.store, site.pending()[-2:], site.clock)
    expect(row).to_contain_text("2 delivered")
    assert page.evaluate("window.sameDocument") is True
    expect(row.locator("img")).to_have_js_property("naturalWidth", 96)


def test_every_state_is_shown(site: Site, open_page: Open) -> None:
    site.receive(name="receiving")
    queued, _ = site.receive(name="failed")
    site.fail(queued, "the worker was killed five times")
    unmatched, _ = site.receive(name="unmatched")
    site.judge(unmatched, {}, priority=0, deliver=False, state=StudyState.NOT_MATCHED)
    judged(site, "poor", 0.9, priority=0, ungradable=["sharpness 3 is below 10"])
    page = open_page("/")
    rows = {row.locator("a.open").inner_text(): row for row in page.locator("#rows tr").all()}
    expect(rows["receiving"]).to_contain_text("receiving")
    expect(rows["failed"]).to_contain_text("the worker was killed five times")
    expect(rows["unmatched"]).to_contain_text("not matched")
    expect(rows["poor"]).to_contain_text("ungradable: sharpness 3 is below 10")
    expect(rows["poor"]).not_to_contain_text("present")


def test_keys_move_and_open_and_the_selection_stays_with_its_study(site: Site, open_page: Open) -> None:
    keys = [judged(site, name, 0.8, minutes=place) for place, name in enumerate("ABCD")]
    page = open_page("/?priority=HIGH")
    selected = page.locator("#rows tr.selected")
    expect(selected).to_have_attribute("data-key", keys[0])
    for key, place in (("j", 1), ("ArrowDown", 2), ("j", 3), ("j", 3), ("k", 2), ("ArrowUp", 1), ("End", 3), ("k", 2)):
        page.keyboard.press(key)
        expect(selected).to_have_attribute("data-key", keys[place])
    judged(site, "Urgent", 0.99, minutes=9)
    expect(page.locator("#rows tr").first).to_contain_text("Urgent")
    expect(selected).to_have_attribute("data-key", keys[2])
    assert page.evaluate("document.activeElement.dataset.key") == keys[2]
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/studies/{keys[2]}")
    page.keyboard.press("Escape")
    page.wait_for_url("**/?priority=HIGH")
    expect(page.locator("#rows tr.selected")).to_have_attribute("data-key", keys[2])


def test_search_and_filters_are_in_the_address(site: Site, open_page: Open) -> None:
    judged(site, "Doe^Jane", 0.9)
    judged(site, "Roe^Rita", 0.1, priority=0)
    page = open_page("/")
    page.keyboard.press("/")
    page.keyboard.type("jane")
    page.keyboard.press("Enter")
    page.wait_for_url("**/?q=jane")
    assert names(page) == ["Doe, Jane"]
    page.get_by_label("Priority").select_option("LOW")
    page.wait_for_url("**/?q=jane&priority=LOW")
    expect(page.locator("#rows")).to_contain_text("No study fits")
    page.get_by_role("link", name="Clear").click()
    expect(page.locator("#count")).to_have_text("2 studies")


def test_help_and_theme(site: Site, open_page: Open) -> None:
    page = open_page("/")
    page.keyboard.press("?")
    expect(page.locator("#keys")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#keys")).to_be_hidden()
    page.keyboard.press("t")
    page.reload()
    expect(page.locator("html")).to_have_attribute("data-theme", "light")


def test_what_a_peer_sent_is_text(site: Site, open_page: Open) -> None:
    hostile = "<img src=x onerror=alert(1)>"
    study_key, image = site.receive(
        name="</td><script>alert(2)</script>^Eve",
        patient_id=hostile,
        study_description=f'"{hostile}',
        accession_number="javascript:alert(3)",
    )
    site.judge(study_key, {image: 0.9}, acquisition=[{**CAMERA_FINDING, "value": hostile, "message": f'"{hostile}'}])
    page = open_page("/")
    assert names(page) == ["</td><script>alert(2)</script>, Eve"]
    page = open_page(f"/studies/{study_key}")
    expect(page.locator("#panel")).to_contain_text(f"found {hostile}")
    assert page.locator("img[src=x]").count() == 0


# --- viewer ---

SAMPLE = """(figure) => {
  const canvas = figure.querySelector("canvas");
  const context = canvas.getContext("2d");
  const [width, height] = [canvas.width, canvas.height];
  const at = (x, y) => [...context.getImageData(Math.round(x * width), Math.round(y * height), 1, 1).data];
  const points = [];
  for (const y of [0.4, 0.5, 0.6]) for (const x of [0.3, 0.4, 0.45, 0.55, 0.6, 0.7]) points.push(at(x, y));
  return points;
}"""


def sample(page: Page, number: int = 0) -> list[list[int]]:
    """Pixels of the canvas, [point][RGBA], three points left of its middle and three right of it in each of 3 rows."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    found: list[list[int]] = page.locator(".viewport").nth(number).evaluate(SAMPLE)
    return found


def ready(page: Page, number: int = 0) -> None:
    expect(page.locator(".viewport").nth(number)).to_have_attribute("data-ready", "all")


def viewer(site: Site, open_page: Open, **image: str) -> Page:
    study_key, instance_key = site.receive(**image)
    site.judge(study_key, {instance_key: 0.9}, acquisition=[CAMERA_FINDING])
    page = open_page(f"/studies/{study_key}")
    ready(page)
    return page


def test_the_heat_map_lies_over_the_half_where_it_is_and_h_takes_it_off(site: Site, open_page: Open) -> None:
    page = viewer(site, open_page)
    with_heat = sample(page)
    page.keyboard.press("h")
    expect(page.locator("#heat")).to_have_attribute("aria-pressed", "false")
    without = sample(page)
    for place, (one, other) in enumerate(zip(with_heat, without, strict=True)):
        difference = max(abs(a - b) for a, b in zip(one, other, strict=True))
        assert difference > 20 if place % 6 >= 3 else difference == 0, (place, one, other)
    page.keyboard.press("h")
    assert sample(page) == with_heat
    page.locator("#opacity").fill("100")
    assert all(pixel[:3] == [0xFD, 0xE7, 0x25] for place, pixel in enumerate(sample(page)) if place % 6 >= 3)


def test_window_and_level_by_mouse_and_keys(site: Site, open_page: Open) -> None:
    page = viewer(site, open_page, file="grey_explicit_little_endian.dcm")
    page.keyboard.press("h")
    first = sample(page)
    readout = page.locator(".readout")
    before = re.match(r"W (\d+) L (\d+)", readout.inner_text())
    assert before is not None
    box = page.locator(".viewport canvas").bounding_box()
    assert box is not None
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] - 150, middle[1] - 60, steps=5)
    page.mouse.up()
    assert sample(page) != first
    after = re.match(r"W (\d+) L (\d+)", readout.inner_text())
    assert after is not None
    assert int(after[1]) < int(before[1])
    page.keyboard.press("r")
    assert sample(page) == first
    page.keyboard.press("]")
    spread = [max(pixel[0] for pixel in each) - min(pixel[0] for pixel in each) for each in (first, sample(page))]
    assert spread[1] < spread[0]
    page.keyboard.press("r")
    page.keyboard.press("i")
    inverted = sample(page)
    assert all(abs(one[0] + other[0] - 255) <= 1 for one, other in zip(first, inverted, strict=True))
    page.keyboard.press("r")
    assert sample(page) == first


def test_zoom_and_pan(site: Site, open_page: Open) -> None:
    page = viewer(site, open_page)
    first = sample(page)
    readout = page.locator(".readout")
    whole = readout.inner_text()
    page.keyboard.press("+")
    assert sample(page) != first
    assert readout.inner_text() != whole
    page.keyboard.press("r")
    page.mouse.move(600, 500)
    page.mouse.wheel(0, -400)
    assert sample(page) != first
    page.keyboard.press("r")
    assert sample(page) == first
    page.keyboard.down("Shift")
    page.mouse.down()
    page.mouse.move(700, 560, steps=3)
    page.mouse.up()
    page.keyboard.up("Shift")
    assert sample(page) != first
    assert readout.inner_text() == whole


def test_both_eyes_stand_side_by_side(site: Site, open_page: Open) -> None:
    study_key, left = site.receive(study_uid="1.2.7")
    _, right = site.receive(study_uid="1.2.7", at=NOON + timedelta(seconds=1))
    site.judge(study_key, {left: 0.9, right: 0.2})
    page = open_page(f"/studies/{study_key}")
    for number in (0, 1):
        ready(page, number)
        expect(page.locator(".viewport").nth(number)).to_be_visible()
    panel = page.locator(".image-panel:visible")
    expect(panel).to_contain_text("0.900 present")
    page.keyboard.press("ArrowRight")
    expect(panel).to_contain_text("0.200 absent")
    page.keyboard.press("s")
    expect(page.locator(".viewport").nth(0)).to_be_hidden()
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".viewport").nth(1)).to_be_hidden()
    expect(page.locator(".viewport").nth(0)).to_be_visible()


def test_frames_of_one_image(site: Site, open_page: Open) -> None:
    page = viewer(site, open_page, file="grey_multi_frame.dcm")
    page.keyboard.press("h")
    readout = page.locator(".readout")
    expect(readout).to_contain_text("frame 1 of 3")
    first = sample(page)
    page.keyboard.press("PageDown")
    expect(readout).to_contain_text("frame 2 of 3")
    ready(page)
    assert sample(page) != first


def test_the_panel_says_it_all_and_resends(site: Site, open_page: Open) -> None:
    study_key = judged(site, "Doe^Jane", 0.9, acquisition=[CAMERA_FINDING])
    report, picture = site.pending()
    mark_failed(site.store, [report], error="0xA700 out of resources", next_attempt_at=None)
    mark_delivered(site.store, [picture], site.clock)
    site.drift(state="drift", p_value=0.0002, effect=3.1)
    page = open_page(f"/studies/{study_key}")
    panel = page.locator("#panel")
    for text in ("0.900 present", "operating point 0.4", "found CR-2", "(0008,1090)", "validated: VX-10", "p 2.0e-04"):
        expect(panel).to_contain_text(text)
    dead = page.locator(".sent", has_text="given up")
    expect(dead).to_contain_text("0xA700 out of resources")
    dead.get_by_role("button", name="Resend").click()
    expect(page.locator(".sent", has_text="given up")).to_have_count(0)
    states = {each["delivery_id"]: each["state"] for each in study_detail(site.store, study_key)["deliveries"]}
    assert states == {report: "pending", picture: "delivered"}


def test_an_image_that_cannot_be_shown_says_so(site: Site, browser: Browser, address: str) -> None:
    """In a page of its own: the browser logs the failed request, rightly."""
    study_key, instance_key = site.receive()
    next(site.objects.path("instances").rglob(f"{instance_key}.dcm")).write_bytes(b"no DICOM")
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(f"{address}/studies/{study_key}")
        expect(page.locator(".problem")).to_contain_text("The picture cannot be shown")


def test_a_study_is_held_and_released(site: Site, open_page: Open) -> None:
    page = open_page(f"/studies/{judged(site, 'Doe^Jane', 0.9)}")
    page.get_by_label("Let nothing expire, because").fill("teaching file")
    page.get_by_role("button", name="Hold").click()
    expect(page.locator("#panel")).to_contain_text("on hold by anyone")
    expect(page.locator("#panel")).to_contain_text("teaching file")
    page.get_by_role("button", name="Release").click()
    expect(page.get_by_label("Let nothing expire, because")).to_be_visible()


# --- the other pages ---


def test_an_alarm_is_taken_on_and_closed(site: Site, open_page: Open) -> None:
    site.drift(state="drift", p_value=0.0001, effect=3.1, reason="mean moved by 3.1 sd")
    key = site.alarm()
    page = open_page("/drift")
    alarm = page.locator(f"#alarm-{key}")
    alarm.get_by_label("Your name").fill("M. Vogel")
    alarm.get_by_role("button", name="Acknowledge").click()
    expect(alarm).to_contain_text("acknowledged by M. Vogel")
    alarm.get_by_label("Your name").fill("M. Vogel")
    alarm.get_by_role("button", name="Close").click()
    expect(alarm.locator("output")).not_to_be_empty()
    alarm.get_by_label("Cause").fill("New lamp in camera 2")
    alarm.get_by_role("button", name="Close").click()
    expect(alarm).to_contain_text("closed by M. Vogel: New lamp in camera 2")
    assert alarm.locator("form").count() == 0


@pytest.mark.parametrize(
    ("path", "heading"),
    [("/drift", "Drift"), ("/quarantine", "Quarantine"), ("/processes", "Processes"), ("/docs", "DICOM AI gateway")],
)
def test_pages_without_anything_to_show(site: Site, open_page: Open, path: str, heading: str) -> None:
    page = open_page(path, live=False)
    expect(page.get_by_role("heading", level=1)).to_contain_text(heading)
    expect(page.locator(".banner")).to_contain_text("not for diagnosis")


def test_no_file_of_the_pages_names_another_host() -> None:
    """Also in what no test opens: hospitals have no internet."""
    files = [*WEB.rglob("*.html"), *WEB.rglob("*.css"), *WEB.rglob("*.js"), *WEB.rglob("*.svg")]
    assert len(files) > 8
    for file in files:
        found = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+", file.read_text("utf-8")))
        assert found <= {"http://www.w3.org"}, file


# --- log-in ---


@pytest.fixture
def guarded(site: Site) -> Iterator[str]:
    """The web process as it is shipped, log-in on, after a first start."""
    site.settings = load_settings(environment={}, overrides={"worker.count": 1})
    prepare_first_account(site.store, site.data_dir, now=datetime.now(UTC))
    with running_web(site) as address:
        yield address


def test_from_the_first_password_to_a_colleague_at_work(site: Site, browser: Browser, guarded: str) -> None:
    study_key = judged(site, "Doe^Jane", 0.9)
    complaints: list[str] = []
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(f"{guarded}/studies/{study_key}")
    assert page.url == f"{guarded}/login?next=/studies/{study_key}"
    expect(page.locator("nav a")).to_have_count(0)
    page.get_by_label("Name").fill("admin")
    page.get_by_label("Password").fill("wrong wrong wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("do not belong together")
    first = first_password_path(site.data_dir)
    page.get_by_label("Password").fill(first.read_text().strip())
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url("**/account")
    expect(page.locator("main")).to_contain_text("Choose one of your own")
    page.get_by_label("Old password").fill(first.read_text().strip())
    page.get_by_label("New password").fill("correct horse battery")
    page.get_by_label("Once more").fill("correct horse battery")
    page.get_by_role("button", name="Change").click()
    page.wait_for_url(f"{guarded}/")
    expect(page.locator("#live")).to_have_text("live")
    assert names(page) == ["Doe, Jane"]
    assert not first.exists()

    page.locator("#user summary").click()
    page.get_by_role("link", name="Accounts").click()
    page.get_by_label("Name", exact=True).fill("berta")
    page.locator("main form.card").get_by_label("Role").select_option("radiologist")
    page.get_by_role("button", name="Make").click()
    given = page.locator("#secret").inner_text()
    page.goto(f"{guarded}/")
    expect(page.locator("#rows")).to_contain_text("Doe, Jane")
    page.locator("#user summary").click()
    page.get_by_role("button", name="Log out").click()
    page.wait_for_url("**/login")
    assert context.cookies(guarded) == []
    page.go_back()
    page.wait_for_url("**/login")
    expect(page.locator("body")).not_to_contain_text("Doe")

    page.goto(f"{guarded}/login?next=/studies/{study_key}")
    page.get_by_label("Name").fill("berta")
    page.get_by_label("Password").fill(given)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url("**/account")
    page.get_by_label("Old password").fill(given)
    page.get_by_label("New password").fill("another battery staple")
    page.get_by_label("Once more").fill("another battery staple")
    page.get_by_role("button", name="Change").click()
    page.wait_for_url(f"{guarded}/")
    page.goto(f"{guarded}/studies/{study_key}")
    page.get_by_role("button", name="Judge again").click()
    expect(page.locator("#patient")).to_contain_text("queued")
    assert page.goto(f"{guarded}/admin/accounts").status == 403
    assert complaints == []
    context.close()


def test_a_page_whose_session_has_ended_goes_to_the_log_in(site: Site, browser: Browser, guarded: str) -> None:
    accounts = Accounts(site.store, site.data_dir)
    by = Doer(actor="test")
    accounts.make("carla", "correct horse battery", Role.ENGINEER, now=datetime.now(UTC), by=by)
    key = site.alarm()
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{guarded}/drift")
    page.get_by_label("Name").fill("carla")
    page.get_by_label("Password").fill("correct horse battery")
    page.get_by_role("button", name="Log in").click()
    expect(page.locator("#live")).to_have_text("live")
    page.locator(f"#alarm-{key}").get_by_role("button", name="Acknowledge").click()
    expect(page.locator(f"#alarm-{key}")).to_contain_text("acknowledged by carla")
    accounts.disable("carla", now=datetime.now(UTC), by=by)
    site.alarm(scope="camera 2")
    page.wait_for_url("**/login?next=/drift")
    context.close()


def test_the_pages_over_https(site: Site, browser: Browser, tmp_path: Path) -> None:
    """A browser takes the ``__Host-`` cookie, which it does not show to scripts."""
    certificate, key = self_signed(tmp_path)
    overrides = {"worker.count": 1, "web.certificate": str(certificate), "web.key": str(key)}
    site.settings = load_settings(environment={}, overrides=overrides)
    Accounts(site.store, site.data_dir).make(
        "dora", "correct horse battery", Role.VIEWER, now=datetime.now(UTC), by=Doer(actor="test")
    )
    with running_web(site) as address, browser.new_context(ignore_https_errors=True) as context:
        secure = address.replace("http:", "https:")
        page = context.new_page()
        page.goto(secure)
        page.get_by_label("Name").fill("dora")
        page.get_by_label("Password").fill("correct horse battery")
        page.get_by_role("button", name="Log in").click()
        expect(page.locator("#live")).to_have_text("live")
        (cookie,) = context.cookies(secure)
        assert (cookie["name"], cookie["secure"], cookie["httpOnly"]) == ("__Host-gateway-session", True, True)
        assert cookie["sameSite"] == "Strict"
        assert page.evaluate("document.cookie") == ""
