"""What a page from elsewhere cannot do, and the headers of every answer."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import httpx
import pytest
from web_site import Site

from gateway.web.security import HEADERS, Guard, is_known_host


@pytest.mark.parametrize(
    ("host", "configured", "known"),
    [
        ("127.0.0.1:8080", "127.0.0.1", True),
        ("localhost", "127.0.0.1", True),
        ("LOCALHOST.:8080", "127.0.0.1", True),
        ("[::1]:8080", "127.0.0.1", True),
        ("gateway.hospital.example:8080", "gateway.hospital.example", True),
        ("gateway.hospital.example", "127.0.0.1", False),
        ("rebound.example:8080", "127.0.0.1", False),
        ("rebound.example:8080", "0.0.0.0", False),
        ("10.1.2.3:8080", "0.0.0.0", True),
        ("10.1.2.3:8080", "127.0.0.1", False),
        ("localhost.rebound.example", "127.0.0.1", False),
        ("localhost@rebound.example", "127.0.0.1", False),
        ("", "127.0.0.1", False),
        ("[::1", "127.0.0.1", False),
        ("127.0.0.1:port", "127.0.0.1", True),
    ],
)
def test_hosts(host: str, configured: str, known: bool) -> None:
    assert is_known_host(host, configured) is known


def test_another_name_for_this_machine_reads_nothing(site: Site, client: httpx.Client) -> None:
    site.receive(name="Doe^Jane")
    answer = client.get("/api/studies", headers={"Host": "rebound.example"})
    assert answer.status_code == 421
    assert "Doe" not in answer.text


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "{address}", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "http://rebound.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://[::1"}, 403),
        ({"Origin": "{address}", "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
    ],
)
def test_changes_come_from_own_pages(
    site: Site, client: httpx.Client, address: str, headers: dict[str, str], status: int
) -> None:
    study_key, _ = site.receive()
    sent = {name: value.format(address=address) for name, value in headers.items()}
    answer = client.post(f"/api/studies/{study_key}/complete", headers=sent)
    assert answer.status_code == status
    expected = "queued" if status == 200 else "receiving"
    assert client.get(f"/api/studies/{study_key}").json()["state"] == expected


@pytest.mark.parametrize("path", ["/api/studies", "/health", "/metrics", "/openapi.json", "/no-such-page"])
def test_headers_of_every_answer(client: httpx.Client, path: str) -> None:
    headers = client.get(path).headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert "server" not in headers


def test_an_error_of_our_own_says_nothing_but_its_kind(caplog: pytest.LogCaptureFixture) -> None:
    """Its message may hold a patient's name: neither the answer nor the log has it."""

    async def faulty(scope: Any, receive: Any, send: Any) -> None:
        raise LookupError("Doe^Jane")

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(Guard(faulty, host="127.0.0.1"))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.get("/studies?q=Doe")

    with caplog.at_level(logging.DEBUG, logger="gateway"):
        answer = asyncio.run(ask())
    assert answer.status_code == 500
    assert answer.headers["content-security-policy"] == HEADERS["Content-Security-Policy"]
    assert "LookupError" in caplog.text
    for told in (answer.text, caplog.text):
        assert "Doe" not in told


def test_a_browser_gets_its_errors_as_a_page(client: httpx.Client) -> None:
    """Programs, and the pages' own scripts, get JSON."""
    page = client.get(f"/studies/{'0' * 32}", headers={"Accept": "text/html,*/*"})
    assert page.status_code == 404
    assert page.headers["content-type"].startswith("text/html")
    assert "no study" in page.text
    assert "To the worklist" in page.text
    assert client.get("/?state=lost", headers={"Accept": "text/html"}).status_code == 422
    for path in (f"/studies/{'0' * 32}", "/nowhere"):
        assert client.get(path).headers["content-type"] == "application/json"
