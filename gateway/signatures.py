"""Requests as the record holds them: who signed what, and how a request ends."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, update

from gateway.accounts import Accounts
from gateway.errors import LifecycleError
from gateway.model_record import RecordEntry, RecordKey, append, entries, is_sealed
from gateway.roles import PERMISSIONS, Permission
from gateway.store import Store
from gateway.store.accounts import find_account
from gateway.store.audit import record
from gateway.store.models import KnownVersion, Request, RequestState, find_version
from gateway.store.schema import model_request

LONGEST_REASON = 1000


def fitting_reason(reason: str) -> str:
    """`reason` without space around it. Raises :class:`LifecycleError` where it is empty, too long or unprintable."""
    reason = " ".join(reason.split())
    if not reason or len(reason) > LONGEST_REASON or not reason.isprintable():
        raise LifecycleError(f"a reason is needed, of at most {LONGEST_REASON} printable characters")
    return reason


def signed_by(
    store: Store, accounts: Accounts, name: str, password: str, *, request_key: str, now: datetime, address: str = ""
) -> str:
    """The account that signs: its password is right, and it may decide on models.

    Raises
    ------
    LifecycleError
        Otherwise; a wrong password is written down.
    """
    found = accounts.verify(name.strip(), password)
    if found is None:
        record(store, now=now, actor="nobody", action="signature failed", subject=request_key, address=address)
        raise LifecycleError("that name and password do not belong together, or the account is disabled")
    if found.must_change:
        raise LifecycleError(f"{found.name} must change the password first: somebody else knows it")
    if Permission.MODELS not in PERMISSIONS[found.role]:
        raise LifecycleError(f"the role {found.role} of {found.name} does not allow deciding on models")
    return found.name


def may_decide(store: Store, name: str) -> str:
    """The account of that name, where it is not disabled and may decide on models.

    Raises
    ------
    LifecycleError
        There is no such account, or it may not.
    """
    found = find_account(store, name.strip().lower())
    if found is None or found.disabled:
        raise LifecycleError(f"there is no account {name.strip()}, or it is disabled")
    if Permission.MODELS not in PERMISSIONS[found.role]:
        raise LifecycleError(f"the role {found.role} of {found.name} does not allow deciding on models")
    return found.name


def asked_for(request: Request, known: KnownVersion) -> dict[str, Any]:
    """What a request asks for and a signature stands for, as the record seals it."""
    return {
        "to_state": request.to_state.value,
        "traffic": dict(request.traffic),
        "comparison_key": request.comparison_key,
        "report_sha256": request.report_sha256,
        "bundle_sha256": known.bundle_sha256,
    }


def approvals(connection: Connection, key: RecordKey, request: Request) -> tuple[RecordEntry, ...]:
    """The signatures of a request as the record holds them, one a person.

    Raises
    ------
    LifecycleError
        The request, its proposal in the record, or a signature is not as it was sealed.
    """
    of_request = entries(connection, request_key=request.request_key)
    known = find_version(connection, request.model_name, request.version)
    asked = asked_for(request, known)
    proposal = next((each for each in of_request if each.action == "propose"), None)
    signed = [each for each in of_request if each.action == "approve"]
    kept = [] if proposal is None else [proposal, *signed]
    fits = all(
        is_sealed(connection, key, each)
        and (each.model_name, each.version) == (request.model_name, request.version)
        and all(each.detail.get(name) == value for name, value in asked.items())
        for each in kept
    )
    if proposal is None or proposal.actor != request.proposed_by or not fits:
        raise LifecycleError(
            f"request {request.request_key} is not as it was recorded: run gateway models record --verify"
        )
    return tuple({each.actor: each for each in signed}.values())


_ENDINGS = {RequestState.REFUSED: "refuse", RequestState.WITHDRAWN: "withdraw", RequestState.VOID: "void"}


def decide(
    connection: Connection,
    key: RecordKey,
    request: Request,
    state: RequestState,
    *,
    actor: str,
    now: datetime,
    reason: str,
    detail: Mapping[str, Any] | None = None,
) -> None:
    """End a request without carrying it out. Raises :class:`LifecycleError` where it is not open."""
    close(connection, request, state, now)
    append_of(connection, key, request, _ENDINGS[state], actor=actor, now=now, reason=reason, detail=detail or {})


def close(connection: Connection, request: Request, state: RequestState, now: datetime) -> None:
    """Write down what became of a request. Raises :class:`LifecycleError` where it is not open."""
    check_open(request)
    same = model_request.c.request_key == request.request_key
    connection.execute(update(model_request).where(same).values(state=state.value, decided_at=now))


def append_of(
    connection: Connection,
    key: RecordKey,
    request: Request,
    action: str,
    *,
    actor: str,
    now: datetime,
    reason: str,
    detail: Mapping[str, Any],
) -> None:
    """Add an entry about a request to the record."""
    append(
        connection,
        key=key,
        at=now,
        actor=actor,
        action=action,
        model_name=request.model_name,
        version=request.version,
        request_key=request.request_key,
        reason=reason,
        detail=detail,
    )


def check_open(request: Request) -> None:
    """Raise :class:`LifecycleError` where a request is decided."""
    if request.state is not RequestState.OPEN:
        raise LifecycleError(f"request {request.request_key} is {request.state}")
