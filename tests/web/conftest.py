"""A filled store, and the web process on a free port."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from running import wait_until
from web_site import DESTINATION, Site

from gateway.objects import ObjectFolder
from gateway.settings import Settings, load_settings
from gateway.store import open_store
from gateway.store.monitoring import processes
from gateway.web.server import run


@pytest.fixture
def settings() -> Settings:
    return load_settings(
        environment={},
        overrides={
            "worker.count": 1,
            "web.authentication": "off",
            "destinations": [{"name": DESTINATION, "ae_title": "PACS", "host": "127.0.0.1", "port": 104}],
        },
    )


@pytest.fixture
def site(tmp_path: Path, settings: Settings) -> Iterator[Site]:
    store = open_store("", data_dir=tmp_path, migrate=True)
    yield Site(store=store, data_dir=tmp_path, objects=ObjectFolder.in_data_dir(tmp_path), settings=settings)
    store.close()


@pytest.fixture
def address(site: Site) -> Iterator[str]:
    """The web process, in a thread of this one, on a socket bound beforehand as the supervisor does."""
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        arguments = {"listener": listener}
        running = threading.Thread(target=run, args=(site.settings, site.data_dir, stop), kwargs=arguments)
        running.start()
        wait_until(lambda: processes(site.store), "the web process to report")
        yield f"http://127.0.0.1:{port}"
        stop.set()
        running.join(20)
        assert not running.is_alive()


@pytest.fixture
def client(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, timeout=30, trust_env=False) as client:
        yield client
