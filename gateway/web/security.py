"""Who may ask, what the browser may do with the answer, and what is answered where the gateway itself is at fault.

Who is logged in is :mod:`gateway.web.access`'s business. This comes before it: a browser must not become a way around a
log-in, or around listening on loopback alone. A page from elsewhere may neither change anything (cross-site requests)
nor read anything by giving its own name this machine's address (DNS rebinding).
"""

from __future__ import annotations

import ipaddress
import json
import logging
import socket
import traceback
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
STATIC = "/static/"
UPLOADS = "/dicom-web/"
"""Below it stand the routes that read large bodies piece by piece, and count for themselves."""
LONGEST_BODY_BYTES = 64 * 1024
"""Of any other request: the framework reads it whole before it knows who asks."""
HSTS = "max-age=31536000"

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "font-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def is_known_host(host_header: str, configured: str, names: Collection[str] = ()) -> bool:
    """Whether a request that names `host_header` may be meant for a gateway that listens on `configured`.

    Loopback, the configured host and the further `names` always; the machine's own name and any address written in
    digits where the gateway listens on all addresses. A name that somebody else gave this machine is in none of these.
    """
    try:
        name = (urlsplit(f"//{host_header}").hostname or "").rstrip(".").lower()
    except ValueError:
        return False
    if name in {"localhost", "127.0.0.1", "::1", configured.lower(), *(each.lower() for each in names)}:
        return bool(name)
    if configured not in {"0.0.0.0", "::", ""}:
        return False
    return name in {socket.gethostname().lower(), socket.getfqdn().lower()} or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_same_origin(headers: Headers) -> bool:
    """Whether a request comes from this gateway's own page, or from no browser at all.

    References
    ----------
    https://www.w3.org/TR/fetch-metadata/
    """
    if headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}:
        return False
    origin = headers.get("origin")
    if origin is None:
        return True
    try:
        return urlsplit(origin).netloc.lower() == headers.get("host", "").lower()
    except ValueError:
        return False


def wants_page(request: Request) -> bool:
    """Whether the answer is for a person's browser, and not for a program or a page's own script."""
    return "text/html" in request.headers.get("accept", "") and not request.url.path.startswith("/api/")


class Guard:
    """ASGI middleware: refuses strange hosts, cross-site changes and large bodies; adds the headers to every answer.

    The web's last handler too: the framework's own stands outside of this one, so that its answer has no headers, and
    it hands the error on to the server, whose log shows the values in it.
    """

    def __init__(self, app: ASGIApp, *, host: str, names: Collection[str] = ()) -> None:
        self._app = app
        self._host = host
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        started = False

        async def send_guarded(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if scope["scheme"] == "https":
                    headers.setdefault("Strict-Transport-Security", HSTS)
                headers.setdefault("Cache-Control", "no-cache" if scope["path"].startswith(STATIC) else "no-store")
            await send(message)

        headers = Headers(scope=scope)
        if not is_known_host(headers.get("host", ""), self._host, self._names):
            await _refuse(send_guarded, 421, "this gateway is not known by that name; use its address")
        elif scope["method"] not in SAFE_METHODS and not is_same_origin(headers):
            await _refuse(send_guarded, 403, "changes are taken from this gateway's own pages only")
        elif not scope["path"].startswith(UPLOADS) and _is_large(headers):
            await _refuse(send_guarded, 413, f"at most {LONGEST_BODY_BYTES} bytes are taken here")
        else:
            bounded = receive if scope["path"].startswith(UPLOADS) else _bounded(receive)
            try:
                await self._app(scope, bounded, send_guarded)
            except Exception as error:  # noqa: BLE001  one request must not say more than its kind, nor end the process
                route = getattr(scope.get("route"), "path", "(no route)")
                place = traceback.extract_tb(error.__traceback__)[-1]
                name = type(error).__name__
                logger.error("%s %s: %s in %s:%s", scope["method"], route, name, place.filename, place.lineno)
                if started:
                    raise ConnectionAbortedError("an answer was cut short") from None
                await _refuse(send_guarded, 500, "internal error; the gateway's log has it")


def _is_large(headers: Headers) -> bool:
    length = headers.get("content-length", "0")
    return not length.isdecimal() or int(length) > LONGEST_BODY_BYTES


def _bounded(receive: Receive) -> Receive:
    """`receive`, which ends a body that did not say how long it is and goes on too long."""
    taken = 0

    async def receive_bounded() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        return message if taken <= LONGEST_BODY_BYTES else {"type": "http.disconnect"}

    return receive_bounded


async def _refuse(send: Send, status: int, reason: str) -> None:
    body = json.dumps({"error": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
