"""Log-in, roles, CSRF, limits: what is asked of whom, with the application as it runs and a clock of our own."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from argon2 import PasswordHasher
from direct import Direct
from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from web_site import DESTINATION, Site

from gateway.accounts import Accounts
from gateway.roles import Permission, Role
from gateway.settings import Settings, load_settings
from gateway.store.accounts import Doer
from gateway.store.audit import entries
from gateway.web.access import CSRF_HEADER, check_every_route, needs_of, routes_of, safe_next
from gateway.web.limits import RateLimit, address_key
from gateway.web.server import create_app

PASSWORD = "correct horse battery"
BY = Doer(actor="test")
PAGE = {"Accept": "text/html,*/*"}
COOKIE = "gateway-session"


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 1, 5, 8, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def pass_by(self, **time: float) -> None:
        self.now += timedelta(**time)


@pytest.fixture
def settings() -> Settings:
    return load_settings(
        environment={},
        overrides={
            "destinations": [{"name": DESTINATION, "ae_title": "PACS", "host": "127.0.0.1", "port": 104}],
            "web.login_attempts_per_minute": 4,
        },
    )


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def app(site: Site, settings: Settings, clock: Clock) -> FastAPI:
    app = create_app(settings, site.data_dir, site.store, clock=clock)
    # The parameters of argon2 are tested in test_accounts.py.
    app.state.access.accounts._hasher = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    return app


@pytest.fixture
def accounts(app: FastAPI, clock: Clock) -> Accounts:
    accounts: Accounts = app.state.access.accounts
    for role in ("viewer", "radiologist", "engineer", "administrator"):
        accounts.make(role, PASSWORD, Role(role), now=clock.now, by=BY)
    return accounts


Open = Callable[..., httpx.Client]


@pytest.fixture
def browser(app: FastAPI, accounts: Accounts) -> Iterator[Open]:
    """Opens a client of its own cookies, logged in where a name is given."""
    opened: list[httpx.Client] = []

    def open_client(name: str = "", *, scheme: str = "http", address: str = "10.0.0.1") -> httpx.Client:
        client = httpx.Client(transport=Direct(app, address), base_url=f"{scheme}://127.0.0.1")
        opened.append(client)
        if name:
            answer = client.post("/login", data={"name": name, "password": PASSWORD})
            assert answer.status_code == 303
        return client

    yield open_client
    for each in opened:
        each.close()


def csrf(client: httpx.Client) -> dict[str, str]:
    found = re.search(r'name="csrf-token" content="([0-9a-f]{64})"', client.get("/account", headers=PAGE).text)
    assert found is not None
    return {CSRF_HEADER: found[1]}


def bearer(accounts: Accounts, role: Role, clock: Clock, days: float = 30) -> dict[str, str]:
    _, secret = accounts.make_token("test", role, lifetime=timedelta(days=days), now=clock.now, by=BY)
    return {"Authorization": f"Bearer {secret}"}


# --- every route says what it needs ---


def declared(app: FastAPI) -> dict[tuple[str, str], Permission]:
    found = {}
    for route in routes_of(app.routes):
        if isinstance(route, APIRoute):
            (needed,) = needs_of(route)
            for method in route.methods:
                found[method, route.path] = needed
    return found


def test_what_is_open_to_all_is_this_and_no_more(app: FastAPI) -> None:
    found = declared(app)
    assert len(found) > 30
    is_open = {route for route, needed in found.items() if needed is Permission.OPEN}
    assert is_open == {("GET", "/health"), ("GET", "/metrics"), ("GET", "/login"), ("POST", "/login")}
    changing = {route: needed for route, needed in found.items() if route[0] != "GET"}
    assert [route for route, needed in changing.items() if needed is Permission.SEE] == []
    administer = {path for (_, path), needed in found.items() if needed is Permission.ADMINISTER}
    assert {path for (_, path) in found if path.startswith("/admin")} == administer


def test_an_application_with_a_route_that_says_nothing_is_not_made(app: FastAPI) -> None:
    forgetful = APIRouter()

    @forgetful.get("/api/forgotten")
    def forgotten() -> str:
        return "everything"

    app.include_router(forgetful)
    with pytest.raises(RuntimeError, match="/api/forgotten"):
        check_every_route(app)


def filled(path: str) -> str:
    values = {"frame_index": "0", "delivery_id": "1", "step": "disable", "name": "viewer"}
    return re.sub(r"{(\w+)}", lambda match: values.get(match[1], "0" * 32), path)


def test_nobody_gets_nothing_from_any_route(app: FastAPI, browser: Open, site: Site) -> None:
    """Pages send to the log-in, all else is refused; with a cookie or token that is none, too."""
    site.receive(name="Doe^Jane")
    stranger = browser()
    for (method, path), needed in declared(app).items():
        if needed is Permission.OPEN:
            continue
        for headers in (
            {},
            {"Cookie": f"{COOKIE}={'A' * 43}"},
            {"Authorization": "Bearer gw_" + "A" * 43},
            {"Authorization": "Basic YWRtaW46YWRtaW4="},
            {"Authorization": "Bearer"},
        ):
            answer = stranger.request(method, filled(path), headers=headers)
            assert answer.status_code in (401, 429), (method, path, headers)
            assert answer.status_code == 429 or answer.headers["www-authenticate"].startswith("Bearer")
            assert "Doe" not in answer.text
        if not path.startswith("/api/") and method == "GET":
            answer = stranger.get(filled(path), headers=PAGE)
            assert answer.status_code == 303
            assert answer.headers["location"].startswith("/login")


def test_health_metrics_and_the_look_of_the_log_in_are_open(browser: Open, site: Site) -> None:
    site.receive(name="Doe^Jane")
    stranger = browser()
    assert stranger.get("/health").status_code == 503  # answered: no process has reported
    for path in ("/metrics", "/login", "/static/style.css", "/static/common.js"):
        answer = stranger.get(path)
        assert answer.status_code == 200
        assert "Doe" not in answer.text


@pytest.mark.parametrize("role", [*Role])
def test_each_role_may_do_what_its_permissions_say_on_every_route(
    app: FastAPI, browser: Open, accounts: Accounts, clock: Clock, role: Role
) -> None:
    """By the status of a real request: 403 exactly where the role's table lacks what the route needs.

    Written out here, not taken from PERMISSIONS: who may do what is a decision, and changing it shall need two edits.
    """
    may = {
        Role.VIEWER: {"see"},
        Role.RADIOLOGIST: {"see", "studies", "reads", "identity"},
        Role.ENGINEER: {"see", "studies", "alarms", "models"},
        Role.ADMINISTRATOR: {"see", "studies", "reads", "alarms", "models", "store", "identity", "administer"},
        Role.SENDER: {"store"},
    }[role]
    client = browser()
    app.state.access.requests = RateLimit(10**6)
    token = bearer(accounts, role, clock)
    for (method, path), needed in declared(app).items():
        if needed in (Permission.OPEN, Permission.OWN) or path == "/api/events":
            continue
        answer = client.request(method, filled(path), headers=token)
        assert (answer.status_code == 403) == (needed.value not in may), (method, path, answer.status_code)
        assert answer.status_code != 401
    assert client.get("/account", headers=token).status_code == 403  # a token has no account


# --- log-in ---


def test_log_in_and_out(browser: Open, site: Site) -> None:
    site.receive(name="Doe^Jane")
    client = browser()
    sent = client.get("/?q=jane", headers=PAGE)
    assert sent.status_code == 303
    location = client.get("/studies/x?a=b&c=d", headers=PAGE).headers["location"]
    assert location == "/login?next=/studies/x%3Fa%3Db%26c%3Dd"
    form = client.get("/login?next=/drift", headers=PAGE)
    assert 'name="next" value="/drift"' in form.text
    done = client.post("/login", data={"name": "Viewer ", "password": PASSWORD, "next": "/drift?x=1"})
    assert (done.status_code, done.headers["location"]) == (303, "/drift?x=1")
    assert "Doe, Jane" in client.get("/", headers=PAGE).text
    assert client.get("/api/session").json()["name"] == "viewer"
    old = client.cookies[COOKIE]
    token = csrf(client)
    out = client.post("/logout", headers=token)
    assert (out.status_code, out.headers["location"]) == (303, "/login")
    assert COOKIE not in client.cookies
    client.cookies.set(COOKIE, old)
    assert client.get("/api/studies").status_code == 401
    assert [row["action"] for row in entries(site.store, limit=2)] == ["logout", "login"]


@pytest.mark.parametrize(
    ("scheme", "name", "flags"),
    [
        ("http", "gateway-session", {"httponly", "samesite=strict", "path=/", "max-age=43200"}),
        ("https", "__Host-gateway-session", {"httponly", "samesite=strict", "path=/", "max-age=43200", "secure"}),
    ],
)
def test_flags_of_the_cookie(browser: Open, scheme: str, name: str, flags: set[str]) -> None:
    client = browser(scheme=scheme)
    answer = client.post("/login", data={"name": "viewer", "password": PASSWORD})
    (cookie,) = answer.headers.get_list("set-cookie")
    value, *found = cookie.split("; ")
    assert re.fullmatch(rf"{name}=[\w-]{{43}}", value)
    assert {each.lower() for each in found} == flags
    assert ("strict-transport-security" in answer.headers) == (scheme == "https")


def test_a_session_that_somebody_else_began_is_not_taken_over(browser: Open) -> None:
    """Session fixation: the value before the log-in is worth nothing after it."""
    client = browser("viewer")
    planted = client.cookies[COOKIE]
    client.post("/login", data={"name": "administrator", "password": PASSWORD})
    assert client.cookies[COOKIE] != planted
    client.cookies.clear()
    client.cookies.set(COOKIE, planted)
    assert client.get("/api/studies").status_code == 401


@pytest.mark.parametrize("name", ["viewer", "no-such-name"])
def test_what_is_wrong_is_not_said(browser: Open, name: str) -> None:
    answer = browser().post("/login", data={"name": name, "password": "wrong wrong wrong"})
    assert answer.status_code == 401
    assert "do not belong together" in answer.text
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    "wanted",
    [
        "https://evil.example/",
        "//evil.example",
        "///evil.example",
        "/\\evil.example",
        "\\\\evil.example",
        "/\t/evil.example",
        "/\n/evil.example",
        "\x00//evil.example",
        " //evil.example",
        "javascript:alert(1)",
        "http:evil.example",
        "evil.example",
        "/login?next=/login",
        "/logout",
        "/%6cogin",
        "//[::1",
        "",
        "/" + "x" * 3000,
    ],
)
def test_the_log_in_sends_nobody_elsewhere(browser: Open, wanted: str) -> None:
    assert safe_next(wanted) == "/"
    answer = browser().post("/login", data={"name": "viewer", "password": PASSWORD, "next": wanted})
    assert answer.headers["location"] == "/"


@pytest.mark.parametrize("wanted", ["/", "/drift", "/?q=doe&page=2", "/studies/0123#x", "/?u=http://x.example//y"])
def test_the_log_in_goes_on_to_where_one_wanted(wanted: str) -> None:
    assert safe_next(wanted) == wanted


def test_a_session_ends_when_idle_and_after_its_hours(browser: Open, clock: Clock) -> None:
    client = browser("viewer")
    for _ in range(11):
        clock.pass_by(minutes=59)
        assert client.get("/api/studies").status_code == 200
    clock.pass_by(minutes=59)
    assert client.get("/", headers=PAGE).status_code == 200
    clock.pass_by(hours=12 - 12 * 59 / 60)
    assert client.get("/api/studies").status_code == 401
    client = browser("viewer")
    clock.pass_by(minutes=60)
    assert client.get("/", headers=PAGE).headers["location"] == "/login"


@pytest.mark.parametrize(
    ("headers", "kept"),
    [({}, True), ({"X-Background": "1"}, False), ({"Sec-Fetch-Dest": "image"}, False)],
)
def test_what_keeps_a_session_from_ending(browser: Open, clock: Clock, headers: dict[str, str], kept: bool) -> None:
    client = browser("viewer")
    clock.pass_by(minutes=50)
    assert client.get("/api/studies", headers=headers).status_code == 200
    clock.pass_by(minutes=50)
    assert (client.get("/api/studies").status_code == 200) is kept


# --- CSRF ---


def test_a_change_by_cookie_needs_the_token_of_its_session(browser: Open, site: Site) -> None:
    study_key, _ = site.receive()
    client, other = browser("radiologist"), browser("radiologist")
    path = f"/api/studies/{study_key}/complete"
    for headers in ({}, {CSRF_HEADER: ""}, {CSRF_HEADER: "0" * 64}, {CSRF_HEADER: "é"}, csrf(other)):
        sent = {name: value.encode() for name, value in headers.items()}
        assert client.post(path, headers=sent).status_code == 403
    assert client.get(f"/api/studies/{study_key}").json()["state"] == "receiving"
    assert client.post(path, headers={**csrf(client), "Origin": "http://evil.example"}).status_code == 403
    assert client.post(path, headers=csrf(client)).json()["state"] == "queued"
    (row, *_) = entries(site.store, limit=1)
    assert (row["actor"], row["action"], row["subject"], row["address"]) == (
        "radiologist",
        "judge now",
        study_key,
        "10.0.0.1",
    )


def test_a_form_needs_it_too(browser: Open, accounts: Accounts) -> None:
    client = browser("administrator")
    path = "/admin/accounts/viewer/disable"
    assert client.post(path).status_code == 403
    assert client.post(path, data={"csrf_token": "0" * 64}).status_code == 403
    assert client.post(path, files={"csrf_token": ("x", b"y")}).status_code == 403
    assert client.post("/logout").status_code == 403
    (token,) = csrf(client).values()
    assert client.post(path, data={"csrf_token": token}).status_code == 303
    assert [each.name for each in accounts.accounts() if each.disabled] == ["viewer"]


def test_a_token_needs_none(browser: Open, site: Site, accounts: Accounts, clock: Clock) -> None:
    study_key, _ = site.receive()
    headers = bearer(accounts, Role.RADIOLOGIST, clock)
    assert browser().post(f"/api/studies/{study_key}/complete", headers=headers).status_code == 200
    (row, *_) = entries(site.store, limit=1)
    assert (row["actor"], row["action"]) == ("token:test", "judge now")


def test_a_token_until_it_is_revoked(browser: Open, accounts: Accounts, clock: Clock) -> None:
    client = browser()
    headers = bearer(accounts, Role.VIEWER, clock, days=2)
    assert client.get("/api/studies", headers=headers).status_code == 200
    assert client.get("/api/studies", headers={**headers, "Cookie": f"{COOKIE}=x"}).status_code == 200
    accounts.revoke_token(accounts.tokens()[0].token_key, now=clock.now, by=BY)
    assert client.get("/api/studies", headers=headers).status_code == 401
    headers = bearer(accounts, Role.VIEWER, clock, days=2)
    clock.pass_by(days=2)
    assert client.get("/api/studies", headers=headers).status_code == 401


# --- limits ---


def test_guessing_is_slowed_by_name_and_by_address(app: FastAPI, browser: Open, clock: Clock, site: Site) -> None:
    """Four a minute here; the right password is not looked at either when there were too many."""

    def attempt(name: str, address: str, password: str = "wrong wrong wrong") -> int:
        answer = browser(address=address).post("/login", data={"name": name, "password": password})
        if answer.status_code == 429:
            assert 1 <= int(answer.headers["retry-after"]) <= 15
        return answer.status_code

    now = 0.0
    app.state.access.log_ins = RateLimit(4, clock=lambda: now)
    assert [attempt("viewer", f"10.0.1.{number}") for number in range(6)] == [401] * 4 + [429] * 2
    assert attempt("viewer", "10.0.1.9", PASSWORD) == 429
    assert [attempt(f"name{number}", "10.0.2.1") for number in range(6)] == [401] * 4 + [429] * 2
    assert attempt("engineer", "10.0.2.1", PASSWORD) == 429
    assert attempt("engineer", "10.0.2.2", PASSWORD) == 303
    now += 15
    assert attempt("viewer", "10.0.1.9", PASSWORD) == 303
    assert sum(row["action"] == "login failed" for row in entries(site.store, limit=100)) == 8


def test_those_who_know_their_password_are_not_slowed(browser: Open) -> None:
    for _ in range(12):
        browser("viewer")


def test_the_old_password_cannot_be_guessed_from_a_session_either(browser: Open) -> None:
    client = browser("viewer")
    token = csrf(client)
    form = {"old": "wrong wrong wrong", "new": "another battery staple", "again": "another battery staple"}
    statuses = [client.post("/account", data=form, headers=token).status_code for _ in range(6)]
    assert statuses == [422] * 4 + [429] * 2


def test_requests_are_counted_by_who_asks(app: FastAPI, browser: Open) -> None:
    now = 0.0
    viewer, engineer, stranger = browser("viewer"), browser("engineer"), browser(address="10.0.9.9")
    app.state.access.requests = RateLimit(10, clock=lambda: now)
    assert [viewer.get("/api/studies").status_code for _ in range(12)] == [200] * 10 + [429] * 2
    answer = viewer.get("/api/studies")
    assert answer.headers["retry-after"] == "6"
    assert engineer.get("/api/studies").status_code == 200
    assert [stranger.get("/metrics").status_code for _ in range(12)] == [200] * 10 + [429] * 2
    assert stranger.get("/api/studies").status_code == 429
    now += 6
    assert [viewer.get("/api/studies").status_code for _ in range(2)] == [200, 429]


def test_thumbnails_count_a_tenth(app: FastAPI, browser: Open, site: Site) -> None:
    """A page of the worklist shows up to 200 of them."""
    study_key, image = site.receive()
    site.judge(study_key, {image: 0.9})
    client = browser("viewer")
    app.state.access.requests = RateLimit(10, clock=lambda: 0.0)
    path = f"/api/instances/{image}/frames/0/thumbnail.jpg"
    assert [client.get(path).status_code for _ in range(100)] == [200] * 100
    assert client.get(path).status_code == 429


def test_the_memory_of_limits_is_bounded() -> None:
    now = 0.0
    limit = RateLimit(10, clock=lambda: now, largest_keys=100)
    for number in range(10_000):
        assert limit.take(f"name {number}") == 0
    assert len(limit) == 100


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_what_counts_as_one_address(address: str, key: str) -> None:
    assert address_key(address) == key


def test_large_bodies_are_refused_before_anybody_is_asked_who_they_are(browser: Open) -> None:
    client = browser()
    assert client.post("/login", content=b"x" * 70_000).status_code == 413
    assert client.post("/login", content=(b"x" * 1000 for _ in range(100))).status_code in (400, 401)
    assert client.post("/login", headers={"Content-Length": "many"}).status_code == 413


# --- pages ---


def test_a_hold_names_who_is_logged_in(browser: Open, site: Site) -> None:
    study_key, _ = site.receive()
    client = browser("radiologist")
    token = csrf(client)
    path = f"/api/studies/{study_key}/hold"
    for body in ({}, {"reason": ""}, {"reason": "  "}, {"reason": "x" * 1001}):
        assert client.post(path, json=body, headers=token).status_code == 422
    held = client.post(path, json={"reason": " teaching file "}, headers=token).json()["hold"]
    assert (held["by"], held["reason"]) == ("radiologist", "teaching file")
    page = client.get(f"/studies/{study_key}").text
    assert "teaching file" in page
    assert "Release" in page
    assert client.post(f"/api/studies/{study_key}/release", headers=token).json()["hold"] is None
    for step, body in (("release", {}), ("hold", {"reason": "x"})):
        assert client.post(f"/api/studies/{'0' * 32}/{step}", json=body, headers=token).status_code == 404
    rows = entries(site.store, limit=2)
    assert [(row["actor"], row["action"], row["subject"]) for row in rows] == [
        ("radiologist", "release", study_key),
        ("radiologist", "hold", study_key),
    ]


def test_a_password_that_was_given_must_be_changed_first(
    browser: Open, accounts: Accounts, clock: Clock, site: Site
) -> None:
    site.receive(name="Doe^Jane")
    accounts.set_password("viewer", PASSWORD, now=clock.now, by=BY, must_change=True)
    client = browser("viewer")
    assert client.get("/", headers=PAGE).headers["location"] == "/account"
    refused = client.get("/api/studies")
    assert (refused.status_code, "Doe" in refused.text) == (403, False)
    token = csrf(client)
    new = "another battery staple"
    for form, words in (
        ({"old": PASSWORD, "new": new, "again": "else else else"}, "differ"),
        ({"old": "wrong wrong wrong", "new": new, "again": new}, "old password"),
        ({"old": PASSWORD, "new": PASSWORD, "again": PASSWORD}, "is the old one"),
        ({"old": PASSWORD, "new": "short", "again": "short"}, "at least 12"),
    ):
        answer = client.post("/account", data=form, headers=token)
        assert answer.status_code == 422
        assert words in answer.text
    other = browser("viewer")
    done = client.post("/account", data={"old": PASSWORD, "new": new, "again": new}, headers=token)
    assert (done.status_code, done.headers["location"]) == (303, "/")
    assert "Doe, Jane" in client.get("/", headers=PAGE).text
    assert other.get("/api/session").status_code == 401  # other sessions have ended


def test_an_administrator_makes_changes_and_disables_accounts(browser: Open, accounts: Accounts) -> None:
    client = browser("administrator")
    token = csrf(client)
    made = client.post("/admin/accounts", data={"name": "Berta", "role": "viewer"}, headers=token)
    password = re.search(r'id="secret">([^<]+)<', made.text)
    assert password is not None
    assert accounts.verify("berta", password[1]) is not None
    assert password[1] not in client.get("/admin/accounts").text
    again = client.post("/admin/accounts", data={"name": "berta", "role": "viewer"}, headers=token)
    assert (again.status_code, "already" in again.text) == (422, True)
    client.post("/admin/accounts/berta/role", data={"role": "engineer"}, headers=token)
    client.post("/admin/accounts/berta/disable", headers=token)
    (berta,) = [each for each in accounts.accounts() if each.name == "berta"]
    assert (berta.role, berta.disabled, berta.must_change) == (Role.ENGINEER, True, True)
    for path, form in (
        ("/admin/accounts/administrator/disable", {}),
        ("/admin/accounts/administrator/role", {"role": "viewer"}),
        ("/admin/accounts/berta/role", {"role": "sender"}),
        ("/admin/accounts/nobody-known/disable", {}),
    ):
        assert client.post(path, data=form, headers=token).status_code == 422
    assert client.post("/admin/accounts/berta/delete", headers=token).status_code == 422
    assert "berta" in client.get("/admin/audit").text


def test_an_administrator_makes_and_revokes_tokens(browser: Open) -> None:
    client, machine = browser("administrator"), browser()
    token = csrf(client)
    made = client.post("/admin/tokens", data={"purpose": "<CT 1>", "role": "viewer", "days": "30"}, headers=token)
    assert "&lt;CT 1&gt;" in made.text
    secret = re.search(r'id="secret">(gw_[\w-]{43})<', made.text)
    assert secret is not None
    headers = {"Authorization": f"Bearer {secret[1]}"}
    assert machine.get("/api/studies", headers=headers).status_code == 200
    listed = client.get("/admin/tokens").text
    assert secret[1] not in listed
    key = re.search(r'id="token-([0-9a-f]{32})"', listed)
    assert key is not None
    assert client.post(f"/admin/tokens/{key[1]}/revoke", headers=token).status_code == 303
    assert machine.get("/api/studies", headers=headers).status_code == 401


def test_pages_show_what_one_may_do_and_no_more(browser: Open, site: Site) -> None:
    study_key, image = site.receive()
    site.judge(study_key, {image: 0.9})
    alarm_key = site.alarm()
    shown: dict[str, tuple[bool, ...]] = {}
    for role in ("viewer", "radiologist", "engineer", "administrator"):
        client = browser(role)
        study, drift = client.get(f"/studies/{study_key}").text, client.get("/drift").text
        shown[role] = (
            "Judge again" in study,
            "Resend" in study,
            f'data-alarm="{alarm_key}"' in drift,
            "/admin/" in drift,
        )
        assert "Your name" not in drift
    assert shown == {
        "viewer": (False, False, False, False),
        "radiologist": (True, True, False, False),
        "engineer": (True, True, True, False),
        "administrator": (True, True, True, True),
    }


def test_the_name_on_an_alarm_is_of_who_is_logged_in(browser: Open, site: Site) -> None:
    key = site.alarm()
    client = browser("engineer")
    step = {"by": "Somebody Else"}
    answer = client.post(f"/api/alarms/{key}/acknowledge", json=step, headers=csrf(client)).json()
    assert answer["handled_by"] == "engineer"
    closed = {"cause": "new lamp"}
    assert client.post(f"/api/alarms/{key}/close", json=closed, headers=csrf(client)).status_code == 200
    rows = entries(site.store, limit=2)
    assert [(row["actor"], row["action"], row["subject"]) for row in rows] == [
        ("engineer", "alarm closed", key),
        ("engineer", "alarm acknowledged", key),
    ]


def test_the_description_tells_of_tokens_and_needs(browser: Open) -> None:
    client = browser("viewer")
    described: dict[str, Any] = client.get("/openapi.json").json()
    assert described["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    studies = described["paths"]["/api/studies"]["get"]
    assert (studies["security"], studies["x-permission"]) == ([{"token": []}], "see")
    assert "401" in studies["responses"]
    assert described["paths"]["/health"]["get"]["security"] == []
    page = client.get("/docs").text
    assert "Authorization: Bearer" in page
    assert "needs the permission <b>alarms</b>" in page


def test_log_in_off_lets_all_in_but_to_accounts(site: Site, clock: Clock) -> None:
    settings = load_settings(environment={}, overrides={"web.authentication": "off"})
    app = create_app(settings, site.data_dir, site.store, clock=clock)
    with httpx.Client(transport=Direct(app, "127.0.0.1"), base_url="http://127.0.0.1") as client:
        assert client.get("/api/studies").status_code == 200
        assert client.get("/admin/accounts").status_code == 403
        assert client.post("/admin/accounts", data={"name": "x", "role": "administrator"}).status_code == 403
        assert client.get("/account").status_code == 403
