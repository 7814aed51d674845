"""Versions that a store knows, put there without a registry."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from sqlalchemy import delete

from gateway.store import Store
from gateway.store.models import VersionState, add_version
from gateway.store.schema import model_version


def serve(
    store: Store,
    model_name: str,
    version: int,
    folder: Path,
    now: datetime,
    *,
    model_sha256: str = "0" * 64,
    state: VersionState = VersionState.CHAMPION,
) -> None:
    """Let a version run from a folder; a second call replaces the first."""
    with store.write() as connection:
        same = (model_version.c.model_name == model_name) & (model_version.c.version == version)
        connection.execute(delete(model_version).where(same))
        add_version(
            connection,
            model_name=model_name,
            version=version,
            title="",
            demonstration=True,
            folder=str(folder),
            model_sha256=model_sha256,
            bundle_sha256="0" * 64,
            now=now,
            by="test",
            state=state,
        )
