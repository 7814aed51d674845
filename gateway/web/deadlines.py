"""HTTP connections with deadlines: uvicorn has none for a client that connects and waits, drips, or does not read.

A connection costs a descriptor and a few kilobytes, and the process has so many. So a request's head has to be there
within a time, its body must not come more slowly than a rate, an answer has to be read within a time, and one address
has so many connections. Reverse proxies, which speak for others, are not counted by address.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from gateway.settings import WebSettings

logger = logging.getLogger(__name__)

LOOK_S = 1.0
"""Between looks at a connection."""
RATE_WINDOW_S = 10.0
"""Over which the rate of a body is measured."""
_TIMEOUT_ANSWER = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one client may take."""

    connections: int
    connections_per_address: int
    timeout_s: float
    """For a request's head to arrive, and for an answer to be read on."""
    minimum_bytes_per_s: float
    """Of a body, over :data:`RATE_WINDOW_S`."""
    proxies: tuple[str, ...]

    def counts(self, address: str) -> bool:
        """Whether connections from there are counted against their address."""
        try:
            return not any(ip_address(address) in ip_network(proxy, strict=False) for proxy in self.proxies)
        except ValueError:
            return True


def protocol_with_deadlines(settings: WebSettings) -> Callable[..., DeadlineProtocol]:
    """What uvicorn's ``http`` option takes."""
    return functools.partial(
        DeadlineProtocol,
        limits=Limits(
            connections=settings.maximum_connections,
            connections_per_address=settings.maximum_connections_per_address,
            timeout_s=settings.request_timeout_s,
            minimum_bytes_per_s=settings.minimum_bytes_per_s,
            proxies=settings.proxies,
        ),
    )


class DeadlineProtocol(H11Protocol):
    """One connection of uvicorn's, looked at every :data:`LOOK_S` seconds."""

    def __init__(self, *arguments: Any, limits: Limits, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._limits = limits
        self._look: asyncio.TimerHandle | None = None
        self._head_since: float | None = None
        """When the head that is awaited should have begun; ``None`` between requests, where keep-alive's timer runs."""
        self._window_since = 0.0
        self._window_bytes = 0
        self._unread_since: float | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        problem = self._too_many()
        if problem:
            logger.warning("HTTP connection from %s refused: %s", self._address, problem)
            transport.abort()
            return
        self._head_since = self.loop.time()
        self._look = self.loop.call_later(LOOK_S, self._look_at_it)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._look is not None:
            self._look.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._head_since is None and self.conn.their_state is h11.IDLE:
            self._head_since = self.loop.time()
        if self.conn.their_state is h11.IDLE or not self._window_since:
            self._window_since, self._window_bytes = self.loop.time(), 0
        self._window_bytes += len(data)
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._head_since = None

    def pause_writing(self) -> None:
        self._unread_since = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._unread_since = None
        super().resume_writing()

    @property
    def _address(self) -> str:
        return self.client[0] if self.client else ""

    def _too_many(self) -> str:
        """Why this connection is one too many; empty where it is not."""
        others: Sequence[Any] = list(self.connections)  # this one among them
        if len(others) > self._limits.connections:
            return f"{self._limits.connections} are open (web.maximum_connections)"
        if not self._limits.counts(self._address):
            return ""
        same = sum(other.client is not None and other.client[0] == self._address for other in others)
        if same > self._limits.connections_per_address:
            return f"{same - 1} are open from there (web.maximum_connections_per_address)"
        return ""

    def _look_at_it(self) -> None:
        problem = self._overdue(self.loop.time())
        if not problem:
            self._look = self.loop.call_later(LOOK_S, self._look_at_it)
            return
        logger.warning("HTTP connection from %s ended: %s", self._address, problem)
        if self.conn.our_state is h11.IDLE and not self.transport.is_closing():
            self.transport.write(_TIMEOUT_ANSWER)
            self.transport.close()
            return
        self.transport.abort()

    def _overdue(self, now: float) -> str:
        """What the client has kept waiting for too long; empty where nothing."""
        limits = self._limits
        if self._head_since is not None and now - self._head_since > limits.timeout_s:
            return f"no whole request within {limits.timeout_s:g} s"
        if self._unread_since is not None and now - self._unread_since > limits.timeout_s:
            return f"an answer not read for {limits.timeout_s:g} s"
        if self.conn.their_state is not h11.SEND_BODY or self.flow.read_paused:
            self._window_since, self._window_bytes = now, 0  # nothing is awaited, or we are the slow ones
            return ""
        if now - self._window_since < RATE_WINDOW_S:
            return ""
        rate = self._window_bytes / (now - self._window_since)
        self._window_since, self._window_bytes = now, 0
        if rate < limits.minimum_bytes_per_s:
            return f"a body of {rate:.0f} bytes a second; web.minimum_bytes_per_s is {limits.minimum_bytes_per_s:g}"
        return ""
