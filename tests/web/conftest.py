"""A filled store, and the web process on a free port."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from running import running_web
from web_site import DESTINATION, Site

from gateway.objects import ObjectFolder
from gateway.settings import Settings, load_settings
from gateway.store import open_store


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
    """The web process on a free port."""
    with running_web(site) as address:
        yield address


@pytest.fixture
def client(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, timeout=30, trust_env=False) as client:
        yield client
