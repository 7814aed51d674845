"""Model versions as the store knows them: which there are, and which of them judge.

The store decides what runs; the registry's aliases follow it. So a worker neither imports MLflow nor waits for it, and
a version can be taken back while the registry is away.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, RowMapping, insert, select

from gateway.errors import LifecycleError
from gateway.store.engine import Store
from gateway.store.schema import model_request, model_version


class VersionState(StrEnum):
    """What a version of a model may do."""

    DRAFT = "draft"
    """Registered, and judges nothing."""
    SHADOW = "shadow"
    """Judges the same studies as the champion; nobody outside sees its results."""
    CANARY = "canary"
    """Judges a part of the studies in the champion's place."""
    CHAMPION = "champion"
    """Judges."""
    RETIRED = "retired"
    """Has judged or could have, and does no more."""


SERVING = (VersionState.CHAMPION, VersionState.CANARY, VersionState.SHADOW)
"""States in which a version runs; of each there is at most one version of a model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownVersion:
    """One version of a model, with everything that the store knows of it."""

    model_name: str
    version: int
    """The card's."""
    state: VersionState
    state_since: datetime
    was_champion: bool
    traffic: Mapping[str, Any]
    """Of a canary: ``fraction``, ``devices``, ``limits``; empty otherwise."""
    title: str
    demonstration: bool
    folder: str
    """Of the verified bundle."""
    model_sha256: str
    bundle_sha256: str
    registered_at: datetime
    registered_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedVersion:
    """A version that runs, and as what."""

    model_name: str
    version: int
    state: VersionState
    folder: str
    model_sha256: str
    traffic: Mapping[str, Any]


class RequestState(StrEnum):
    """What became of a request."""

    OPEN = "open"
    CARRIED_OUT = "carried out"
    REFUSED = "refused"
    WITHDRAWN = "withdrawn"
    VOID = "void"
    """The champion changed, or the version left the state it was proposed in, before enough people had approved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A proposal to let a version judge for others."""

    request_key: str
    model_name: str
    version: int
    to_state: VersionState
    traffic: Mapping[str, Any]
    comparison_key: str | None
    report_sha256: str
    reason: str
    proposed_by: str
    proposed_at: datetime
    state: RequestState
    decided_at: datetime | None


def served_versions(store: Store) -> tuple[ServedVersion, ...]:
    """Every version that runs, by model and state."""
    names = ("model_name", "version", "state", "folder", "model_sha256", "traffic")
    statement = (
        select(*(model_version.c[name] for name in names))
        .where(model_version.c.state.in_(SERVING))
        .order_by(model_version.c.model_name, model_version.c.state, model_version.c.version)
    )
    with store.read() as connection:
        return tuple(
            ServedVersion(**dict(row) | {"state": VersionState(row["state"])})
            for row in connection.execute(statement).mappings()
        )


def known_versions(store: Store, model_name: str | None = None) -> tuple[KnownVersion, ...]:
    """Every version of a model, or of all, by model and version."""
    statement = select(model_version).order_by(model_version.c.model_name, model_version.c.version)
    if model_name is not None:
        statement = statement.where(model_version.c.model_name == model_name)
    with store.read() as connection:
        return tuple(_known(row) for row in connection.execute(statement).mappings())


def find_version(connection: Connection, model_name: str, version: int) -> KnownVersion:
    """One version. Raises :class:`LifecycleError` where there is no such version."""
    same = (model_version.c.model_name == model_name) & (model_version.c.version == version)
    row = None
    if 0 < version < 2**31:  # what a database can be asked for at all
        row = connection.execute(select(model_version).where(same)).mappings().one_or_none()
    if row is None:
        raise LifecycleError(f"there is no version {model_name}@{version}")
    return _known(row)


def version_in(connection: Connection, model_name: str, state: VersionState) -> KnownVersion | None:
    """The version of a model that is champion, canary or shadow; ``None`` where none is."""
    same = (model_version.c.model_name == model_name) & (model_version.c.state == state)
    row = connection.execute(select(model_version).where(same)).mappings().one_or_none()
    return None if row is None else _known(row)


def find_request(connection: Connection, request_key: str) -> Request:
    """One request. Raises :class:`LifecycleError` where there is none of that key."""
    statement = select(model_request).where(model_request.c.request_key == request_key)
    row = connection.execute(statement).mappings().one_or_none()
    if row is None:
        raise LifecycleError(f"there is no request {request_key}")
    return _request(row)


def requests(
    connection: Connection,
    *,
    model_name: str | None = None,
    version: int | None = None,
    state: RequestState | None = None,
) -> tuple[Request, ...]:
    """Requests, newest first."""
    statement = select(model_request).order_by(model_request.c.proposed_at.desc(), model_request.c.request_key)
    for column, wanted in (("model_name", model_name), ("version", version), ("state", state)):
        if wanted is not None:
            statement = statement.where(model_request.c[column] == wanted)
    return tuple(_request(row) for row in connection.execute(statement).mappings())


def _known(row: RowMapping) -> KnownVersion:
    return KnownVersion(**dict(row) | {"state": VersionState(row["state"])})


def _request(row: RowMapping) -> Request:
    states = {"to_state": VersionState(row["to_state"]), "state": RequestState(row["state"])}
    return Request(**dict(row) | states)


def add_version(
    connection: Connection,
    *,
    model_name: str,
    version: int,
    title: str,
    demonstration: bool,
    folder: str,
    model_sha256: str,
    bundle_sha256: str,
    now: datetime,
    by: str,
    state: VersionState = VersionState.DRAFT,
) -> None:
    """Take in a version that the store does not know yet."""
    connection.execute(
        insert(model_version).values(
            model_name=model_name,
            version=version,
            state=state.value,
            state_since=now,
            was_champion=state is VersionState.CHAMPION,
            traffic={},
            title=title,
            demonstration=demonstration,
            folder=folder,
            model_sha256=model_sha256,
            bundle_sha256=bundle_sha256,
            registered_at=now,
            registered_by=by,
        )
    )
