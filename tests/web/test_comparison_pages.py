"""The list of comparisons and the reports: who sees them, what may run in them, and that no path leads elsewhere."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from argon2 import PasswordHasher
from direct import Direct
from fastapi import FastAPI
from web_site import Site

from gateway.roles import Role
from gateway.settings import load_settings
from gateway.store.accounts import Doer
from gateway.store.audit import entries
from gateway.store.comparisons import ComparisonRow, add_comparison, list_comparisons
from gateway.web.server import create_app

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
KEY, OTHER = "a" * 32, "b" * 32
PASSWORD = "correct horse battery staple"
STYLE = "p { color: red }"
Client = Callable[[Role], httpx.Client]


def row(key: str, **changed: object) -> ComparisonRow:
    values: dict[str, object] = {
        "comparison_key": key,
        "model_name": "tiny",
        "version": 2,
        "baseline_name": "tiny",
        "baseline_version": 1,
        "studies": "model=tiny",
        "case_count": 40,
        "truth_count": 38,
        "verdict": "met",
        "verdicts": [],
        "bundle_sha256": "1" * 64,
        "baseline_sha256": "2" * 64,
        "folder": f"comparisons/{key}",
        "report_sha256": "3" * 64,
        "created_at": NOW,
        "created_by": "command:test",
    }
    return ComparisonRow(**(values | changed))  # type: ignore[arg-type]


@pytest.fixture
def folder(site: Site) -> Path:
    folder = site.data_dir / "comparisons" / KEY
    folder.mkdir(parents=True)
    (folder / "report.html").write_text(f"<html><style>{STYLE}</style><p>figures</p></html>")
    (folder / "report.json").write_text('{"verdict": "met"}')
    (folder / "cases.csv").write_text("case_key\n")
    (site.data_dir / "comparisons" / "secret.txt").write_text("secret")
    add_comparison(site.store, row(KEY))
    return folder


@pytest.fixture
def app(site: Site, folder: Path) -> FastAPI:
    app = create_app(load_settings(environment={}), site.data_dir, site.store, clock=lambda: NOW)
    app.state.access.accounts._hasher = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    return app


@pytest.fixture
def client(app: FastAPI) -> Iterator[Client]:
    opened: list[httpx.Client] = []

    def log_in(role: Role) -> httpx.Client:
        made = httpx.Client(transport=Direct(app, "10.0.0.1"), base_url="http://127.0.0.1")
        opened.append(made)
        app.state.access.accounts.make(role.value, PASSWORD, role, now=NOW, by=Doer(actor="test", address=""))
        answer = made.post("/login", data={"name": role.value, "password": PASSWORD})
        assert answer.status_code == 303
        return made

    yield log_in
    for each in opened:
        each.close()


def test_an_engineer_finds_the_report_from_the_list(client: Client) -> None:
    engineer = client(Role.ENGINEER)
    listed = engineer.get("/comparisons", headers={"accept": "text/html"})
    assert listed.status_code == 200
    assert f'href="/comparisons/{KEY}"' in listed.text
    assert "tiny@1" in listed.text
    assert engineer.get(f"/comparisons/{KEY}").text.endswith("<p>figures</p></html>")
    assert engineer.get(f"/comparisons/{KEY}/report.json").json() == {"verdict": "met"}
    assert engineer.get("/api/comparisons").json()[0]["comparison_key"] == KEY
    assert engineer.get("/api/comparisons?model=other").json() == []


def test_nothing_runs_in_a_report_and_nothing_is_loaded(client: Client) -> None:
    policy = client(Role.ENGINEER).get(f"/comparisons/{KEY}").headers["content-security-policy"]
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    directives = dict(each.strip().partition(" ")[::2] for each in policy.split(";"))
    assert directives["default-src"] == "'none'"
    assert directives["style-src"] == f"'sha256-{digest}'"
    assert directives["img-src"] == "data:"
    assert "script-src" not in directives
    assert "sandbox" in directives


@pytest.mark.parametrize("role", [Role.VIEWER, Role.RADIOLOGIST])
def test_who_does_not_decide_about_versions_sees_neither_list_nor_report(client: Client, role: Role) -> None:
    person = client(role)
    for path in ("/comparisons", f"/comparisons/{KEY}", f"/comparisons/{KEY}/cases.csv", "/api/comparisons"):
        assert person.get(path).status_code == 403
    assert "/comparisons" not in person.get("/", headers={"accept": "text/html"}).text


def test_nobody_sees_a_report_without_log_in(app: FastAPI) -> None:
    with httpx.Client(transport=Direct(app, "10.0.0.1"), base_url="http://127.0.0.1") as nobody:
        assert nobody.get(f"/comparisons/{KEY}").status_code == 401


@pytest.mark.parametrize(
    "path",
    [
        f"/comparisons/{OTHER}",
        "/comparisons/..%2f..%2fgateway.db",
        "/comparisons/%2e%2e",
        "/comparisons/secret.txt",
        f"/comparisons/{KEY}/..%2fsecret.txt",
        f"/comparisons/{KEY}/../secret.txt",
        f"/comparisons/{KEY}/gateway.db",
        f"/comparisons/{KEY.upper()}",
    ],
)
def test_no_path_leads_out_of_the_comparisons(client: Client, path: str) -> None:
    answer = client(Role.ADMINISTRATOR).get(path)
    assert answer.status_code in (404, 422)
    assert "secret" not in answer.text.replace("secret.txt", "")


def test_a_report_that_is_gone_is_said_to_be(site: Site, client: Client) -> None:
    add_comparison(site.store, row(OTHER))
    answer = client(Role.ENGINEER).get(f"/comparisons/{OTHER}")
    assert answer.status_code == 410


def test_a_comparison_is_written_down_with_who_made_it(site: Site, folder: Path) -> None:
    assert [each.comparison_key for each in list_comparisons(site.store, model_name="tiny", version=2)] == [KEY]
    assert list_comparisons(site.store, version=3) == ()
    (entry,) = entries(site.store, limit=5, action="compare")
    assert (entry["actor"], entry["subject"]) == ("command:test", KEY)
    assert entry["detail"] == "tiny@2 against tiny@1: met"
