"""HTTP clients that wait, drip or do not read: each connection has an end, and a good client is answered meanwhile."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from urllib.parse import urlsplit

import httpx
import pytest
from running import running_web
from web_site import Site

from gateway.settings import load_settings
from gateway.web import deadlines
from gateway.web.deadlines import Limits

TIMEOUT_S = 1.5
PEERS = 50


@contextmanager
def site_with(site: Site, **changes: object) -> Iterator[tuple[str, int]]:
    chosen = {"web.request_timeout_s": TIMEOUT_S, "web.authentication": "off"}
    chosen |= {f"web.{name}": value for name, value in changes.items()}
    site.settings = load_settings(environment={}, overrides=chosen)
    with running_web(site) as address:
        where = urlsplit(address)
        assert where.hostname and where.port
        yield where.hostname, where.port


def connected(closing: ExitStack, where: tuple[str, int]) -> socket.socket:
    connection = closing.enter_context(socket.create_connection(where, timeout=20))
    connection.settimeout(20)
    return connection


def answers_in_time(where: tuple[str, int]) -> None:
    answer = httpx.get(f"http://{where[0]}:{where[1]}/login", timeout=2, trust_env=False)
    assert answer.status_code < 400


def what_is_left(connection: socket.socket) -> bytes:
    """Everything until the other side ends it."""
    received = b""
    try:
        while piece := connection.recv(65536):
            received += piece
    except ConnectionResetError:
        pass
    return received


@pytest.mark.parametrize("sent", [b"", b"GET /login HTTP/1.1\r\nHost: x"], ids=["nothing", "half a head"])
def test_a_client_that_sends_no_whole_request_is_let_go(site: Site, sent: bytes) -> None:
    with site_with(site) as where, ExitStack() as closing:
        idle = [connected(closing, where) for _ in range(PEERS)]
        for connection in idle:
            connection.sendall(sent)
        answers_in_time(where)
        started = time.monotonic()
        assert {what_is_left(connection)[:12] for connection in idle} == {b"HTTP/1.1 408"}
        assert time.monotonic() - started < TIMEOUT_S + 3 * deadlines.LOOK_S
        answers_in_time(where)


def test_a_head_that_drips_has_the_same_time(site: Site) -> None:
    with site_with(site) as where, ExitStack() as closing:
        connection = connected(closing, where)
        connection.settimeout(0.1)
        ended = False
        for byte in b"GET /login HTTP/1.1\r\n" + b"X: y\r\n" * 100:
            try:
                connection.sendall(bytes([byte]))
                ended = connection.recv(100).startswith(b"HTTP/1.1 408")
            except TimeoutError:
                continue
            except OSError:
                ended = True
            break
        assert ended


def test_the_second_request_of_a_connection_has_the_time_too(site: Site) -> None:
    with site_with(site) as where, ExitStack() as closing:
        connection = connected(closing, where)
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        first = connection.recv(65536)
        assert first.startswith(b"HTTP/1.1 ")
        connection.sendall(b"GET /hea")
        assert b"HTTP/1.1 408" in what_is_left(connection)


def test_a_body_that_drips_is_ended_and_a_slow_one_is_not(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(deadlines, "RATE_WINDOW_S", 2.0)
    head = b"POST /studies HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/related; type=application/dicom; "
    head += b"boundary=b\r\nContent-Length: 100000\r\n\r\n--b\r\nContent-Type: application/dicom\r\n\r\n"
    with (
        caplog.at_level(logging.WARNING, logger="gateway"),
        site_with(site, minimum_bytes_per_s=1000) as where,
        ExitStack() as closing,
    ):
        drips, flows = connected(closing, where), connected(closing, where)
        for connection in (drips, flows):
            connection.sendall(head)
        ended_after = None
        started = time.monotonic()
        while time.monotonic() - started < 6 and ended_after is None:
            flows.sendall(bytes(400))
            try:
                drips.sendall(b"x")
            except OSError:
                ended_after = time.monotonic() - started
            time.sleep(0.1)
        assert ended_after is not None
        flows.sendall(bytes(100))  # 4,000 bytes a second: still there
        answers_in_time(where)
    assert "bytes a second" in caplog.text


def test_an_answer_that_is_not_read_is_ended(site: Site) -> None:
    with site_with(site) as where, ExitStack() as closing:
        connection = closing.enter_context(socket.socket())
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect(where)
        connection.settimeout(20)
        request = b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        connection.sendall(request)
        ended = False
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline and not ended:  # ask on, and never read
            try:
                connection.settimeout(0.5)
                connection.sendall(request * 20)
            except TimeoutError:
                continue
            except OSError:
                ended = True
        assert ended
        answers_in_time(where)


def test_one_address_has_so_many_connections(site: Site) -> None:
    with site_with(site, maximum_connections_per_address=8, request_timeout_s=20) as where, ExitStack() as closing:
        held = [connected(closing, where) for _ in range(8)]
        one_more = connected(closing, where)
        assert what_is_left(one_more) == b""
        held.pop().close()
        time.sleep(0.2)
        answers_in_time(where)


def test_all_together_have_so_many_and_proxies_are_not_counted_by_address(site: Site) -> None:
    chosen = {"maximum_connections": 10, "maximum_connections_per_address": 4, "proxies": ["127.0.0.0/8"]}
    with site_with(site, request_timeout_s=20, **chosen) as where, ExitStack() as closing:
        for _ in range(10):
            connected(closing, where)
        assert what_is_left(connected(closing, where)) == b""


def test_which_addresses_count() -> None:
    limits = Limits(
        connections=1,
        connections_per_address=1,
        timeout_s=1,
        minimum_bytes_per_s=1,
        proxies=("10.0.0.0/8", "fd00::1"),
    )
    assert [limits.counts(each) for each in ("10.1.2.3", "fd00::1", "192.0.2.1", "::1", "")] == [
        *(False, False),
        *(True, True, True),
    ]
