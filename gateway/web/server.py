"""The web process: pages and API on the socket that the supervisor bound."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import uvicorn
from anyio import to_thread
from fastapi import FastAPI
from starlette.staticfiles import StaticFiles

from gateway import __version__
from gateway.accounts import Accounts, Lifetimes
from gateway.errors import SettingsError, StoreError
from gateway.model_record import load_record_key
from gateway.objects import ObjectFolder
from gateway.settings import Settings, WebSettings
from gateway.store import Store, open_store
from gateway.store.monitoring import report_process
from gateway.web.access import Access, Clock, check_every_route, describe_access, utc_now
from gateway.web.account_pages import account_pages_router
from gateway.web.api import api_router
from gateway.web.comparison_pages import comparison_router
from gateway.web.deadlines import protocol_with_deadlines
from gateway.web.errors import add_error_handlers
from gateway.web.events import Hub
from gateway.web.model_api import model_api_router
from gateway.web.model_pages import model_pages_router
from gateway.web.model_steps import ModelSteps
from gateway.web.pages import pages_router
from gateway.web.pictures import pictures_router
from gateway.web.render import make_environment
from gateway.web.security import STATIC, Guard
from gateway.web.stow import stow_router
from gateway.web.truth_pages import truth_router
from gateway.web.vault_pages import vault_router

logger = logging.getLogger(__name__)

REPORT_S = 5.0
THREADS = 12
"""Requests answered side by side; the store's pool holds 15 connections."""
STOP_PATIENCE_S = 5.0
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def run(settings: Settings, data_dir: Path, stop: threading.Event, *, listener: socket.socket) -> None:
    """The web process, until `stop` is set."""
    store = open_store(settings.store.url, data_dir=data_dir)
    app = create_app(settings, data_dir, store)
    if settings.web.host not in LOOPBACK and not settings.web.certificate:
        logger.warning(
            "pages on %s go over the network unencrypted, passwords and patients' names with them: set web.certificate "
            "and web.key, or listen on loopback behind a proxy that has HTTPS",
            settings.web.host,
        )
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http=protocol_with_deadlines(settings.web),  # type: ignore[arg-type]
            log_config=None,
            access_log=False,  # an address may carry a search for a patient
            server_header=False,
            timeout_graceful_shutdown=2,
            timeout_keep_alive=30,
            ssl_certfile=settings.web.certificate or None,
            ssl_keyfile=settings.web.key or None,
            proxy_headers=bool(settings.web.proxies),
            forwarded_allow_ips=list(settings.web.proxies),
        )
    )
    # Not the main thread: uvicorn would take over the signals, which are the supervisor's business.
    serving = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="http", daemon=True)
    serving.start()
    try:
        while not stop.is_set() and serving.is_alive():
            try:
                report_process(store, name="web", pid=os.getpid(), now=datetime.now(UTC), detail={})
            except StoreError as error:
                logger.error("%s", error)
            stop.wait(REPORT_S)
    finally:
        app.state.stopping.set()  # streams end by themselves
        server.should_exit = True
        serving.join(STOP_PATIENCE_S)
        store.close()


def check_certificate(settings: WebSettings) -> None:
    """Raise :class:`SettingsError` where HTTPS is wanted and its files cannot be used."""
    if not settings.certificate:
        return
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
            settings.certificate, settings.key, password=lambda: ""
        )
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise SettingsError(f"web.certificate {settings.certificate} and web.key {settings.key}: {error}") from error


def create_app(settings: Settings, data_dir: Path, store: Store, *, clock: Clock = utc_now) -> FastAPI:
    """The application, for any ASGI server."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        to_thread.current_default_thread_limiter().total_tokens = THREADS
        hub = app.state.hub = Hub(store, app.state.stopping)
        watching = asyncio.create_task(hub.watch())
        yield
        watching.cancel()

    app = FastAPI(
        title="DICOM AI gateway",
        version=__version__,
        description="Studies, predictions, deliveries and monitors of one gateway. "
        "Results are for triage, not for diagnosis.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,  # a page like the others: it asks for a log-in
    )
    app.state.stopping = threading.Event()
    lifetimes = Lifetimes(
        idle=timedelta(minutes=settings.web.session_idle_minutes), longest=timedelta(hours=settings.web.session_hours)
    )
    accounts = Accounts(store, data_dir, lifetimes)
    app.state.access = Access(settings.web, accounts, store, clock)
    app.add_middleware(Guard, host=settings.web.host, names=settings.web.names)
    environment = make_environment()
    add_error_handlers(app, environment)
    app.include_router(api_router(settings, store))
    app.include_router(pictures_router(ObjectFolder.in_data_dir(data_dir), store, settings.decoding))
    app.include_router(pages_router(settings, store, environment))
    app.include_router(stow_router(settings, store, ObjectFolder.in_data_dir(data_dir).root))
    app.include_router(account_pages_router(store, accounts, environment))
    steps = ModelSteps(
        store=store, data_dir=data_dir, key=load_record_key(settings.deidentification, data_dir), accounts=accounts
    )
    app.include_router(model_api_router(store, steps))
    app.include_router(model_pages_router(store, data_dir, steps, environment))
    app.include_router(comparison_router(store, data_dir, environment))
    app.include_router(vault_router(settings.vault, data_dir, store, environment))
    app.include_router(truth_router(settings.truth, store, environment))
    app.mount(STATIC, StaticFiles(directory=Path(__file__).parent / "static"))
    check_every_route(app)
    describe = app.openapi
    app.openapi = lambda: describe_access(app, describe())  # type: ignore[method-assign]
    return app
