"""Requests to let a version judge for others: proposed, approved by two people, refused, withdrawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, insert, select

from gateway.accounts import Accounts
from gateway.errors import LifecycleError
from gateway.lifecycle import APPROVALS_NEEDED, REQUESTED, check_allowed, move_version
from gateway.model_record import RecordKey, recording
from gateway.promotion import fitting_traffic, unmet_needs
from gateway.signatures import append_of, approvals, asked_for, check_open, close, decide, fitting_reason, signed_by
from gateway.store import Store
from gateway.store.intake import new_key
from gateway.store.models import Request, RequestState, VersionState, find_request, find_version, requests
from gateway.store.schema import comparison, model_request


@dataclass(frozen=True, slots=True, kw_only=True)
class Approved:
    """What an approval did."""

    request: Request
    approved_by: tuple[str, ...]
    carried_out: bool


def propose(
    store: Store,
    *,
    key: RecordKey,
    data_dir: Path,
    model_name: str,
    version: int,
    to_state: VersionState,
    comparison_key: str,
    reason: str,
    by: str,
    now: datetime,
    fraction: float | None = None,
    devices: tuple[str, ...] = (),
    limits: Mapping[str, Any] | None = None,
    detail: Mapping[str, Any] | None = None,
) -> Request:
    """Ask that a version become canary or champion.

    Raises
    ------
    LifecycleError
        A need is not met (each is named), the table does not lead there, or such a request is open already.
    """
    reason = fitting_reason(reason)
    if to_state not in REQUESTED:
        raise LifecycleError(f"a request asks for {' or '.join(REQUESTED)}, not {to_state}")
    if to_state is not VersionState.CANARY and (fraction is not None or devices or limits):
        raise LifecycleError("a champion gets all studies; fraction, devices and limits are a canary's")
    traffic = (
        fitting_traffic(fraction=fraction, devices=devices, limits=limits) if to_state is VersionState.CANARY else {}
    )
    common: dict[str, Any] = {
        "data_dir": data_dir,
        "model_name": model_name,
        "version": version,
        "to_state": to_state,
        "comparison_key": comparison_key,
    }
    with store.read() as connection:
        check_allowed(find_version(connection, model_name, version), REQUESTED[to_state])
        _refuse_unmet(unmet_needs(connection, **common))
    with recording(store, key) as connection:
        known = find_version(connection, model_name, version)
        check_allowed(known, REQUESTED[to_state])
        _refuse_unmet(unmet_needs(connection, files=False, **common))
        for each in requests(connection, model_name=model_name, version=version, state=RequestState.OPEN):
            if each.to_state is to_state:
                raise LifecycleError(f"request {each.request_key} asks for that already")
        found = select(comparison.c.report_sha256).where(comparison.c.comparison_key == comparison_key)
        values = {
            "request_key": new_key(),
            "model_name": model_name,
            "version": version,
            "to_state": to_state.value,
            "traffic": traffic,
            "comparison_key": comparison_key,
            "report_sha256": connection.execute(found).scalar_one(),
            "reason": reason,
            "proposed_by": by,
            "proposed_at": now,
            "state": RequestState.OPEN.value,
        }
        connection.execute(insert(model_request).values(**values))
        request = find_request(connection, str(values["request_key"]))
        append_of(
            connection,
            key,
            request,
            "propose",
            actor=by,
            now=now,
            reason=reason,
            detail=asked_for(request, known) | dict(detail or {}),
        )
    return request


def approve(
    store: Store,
    *,
    key: RecordKey,
    data_dir: Path,
    accounts: Accounts,
    request_key: str,
    name: str,
    password: str,
    reason: str,
    now: datetime,
    address: str = "",
    detail: Mapping[str, Any] | None = None,
) -> Approved:
    """Sign a request, by password; the second person's signature carries it out.

    Raises
    ------
    LifecycleError
        Name and password do not belong together, the account may not decide on models, or has approved already; the
        request is not open; or a need is not met any more.
    BusyError
        Too many passwords are being checked at once.
    """
    reason = fitting_reason(reason)
    name = signed_by(store, accounts, name, password, request_key=request_key, now=now, address=address)
    with store.read() as connection:
        request = find_request(connection, request_key)
        _check_signer(connection, key, request, name)
        _refuse_unmet(unmet_needs(connection, **_needs_of(request, data_dir)))
    with recording(store, key) as connection:
        request = find_request(connection, request_key)
        _check_signer(connection, key, request, name)
        _refuse_unmet(unmet_needs(connection, files=False, **_needs_of(request, data_dir)))
        known = find_version(connection, request.model_name, request.version)
        append_of(
            connection,
            key,
            request,
            "approve",
            actor=name,
            now=now,
            reason=reason,
            detail=asked_for(request, known) | dict(detail or {}) | {"signed": "password"},
        )
        signers = tuple(each.actor for each in approvals(connection, key, request))
        carried_out = len(signers) >= APPROVALS_NEEDED
        if carried_out:
            move_version(
                connection,
                key=key,
                model_name=request.model_name,
                version=request.version,
                action=REQUESTED[request.to_state],
                actor=name,
                now=now,
                reason=request.reason,
                request_key=request_key,
                traffic=request.traffic,
                detail={"proposed_by": request.proposed_by, "approved_by": list(signers)},
            )
            close(connection, request, RequestState.CARRIED_OUT, now)
        request = find_request(connection, request_key)
    return Approved(request=request, approved_by=signers, carried_out=carried_out)


def _needs_of(request: Request, data_dir: Path) -> dict[str, Any]:
    return {
        "data_dir": data_dir,
        "model_name": request.model_name,
        "version": request.version,
        "to_state": request.to_state,
        "comparison_key": request.comparison_key,
    }


def _check_signer(connection: Connection, key: RecordKey, request: Request, name: str) -> None:
    check_open(request)
    if name in [each.actor for each in approvals(connection, key, request)]:
        raise LifecycleError(f"{name} has approved it already; another person has to")


def refuse(
    store: Store,
    *,
    key: RecordKey,
    request_key: str,
    by: str,
    reason: str,
    now: datetime,
    detail: Mapping[str, Any] | None = None,
) -> Request:
    """End a request: one person's refusal is enough. Raises :class:`LifecycleError` where it is not open."""
    reason = fitting_reason(reason)
    with recording(store, key) as connection:
        request = find_request(connection, request_key)
        decide(
            connection, key, request, RequestState.REFUSED, actor=by, now=now, reason=reason, detail=dict(detail or {})
        )
        return find_request(connection, request_key)


def withdraw(
    store: Store,
    *,
    key: RecordKey,
    request_key: str,
    by: str,
    reason: str,
    now: datetime,
    detail: Mapping[str, Any] | None = None,
) -> Request:
    """Take one's own request back. Raises :class:`LifecycleError` where it is another's, or not open."""
    reason = fitting_reason(reason)
    with recording(store, key) as connection:
        request = find_request(connection, request_key)
        if request.proposed_by != by:
            raise LifecycleError(f"{request.proposed_by} has proposed it; others may refuse it")
        decide(
            connection,
            key,
            request,
            RequestState.WITHDRAWN,
            actor=by,
            now=now,
            reason=reason,
            detail=dict(detail or {}),
        )
        return find_request(connection, request_key)


def _refuse_unmet(unmet: tuple[str, ...]) -> None:
    if unmet:
        raise LifecycleError("; ".join(unmet))
