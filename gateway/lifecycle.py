"""The life of a model version: one table of transitions, and the steps that people and the gateway take along it.

::

    draft ──shadow──▶ shadow ──canary──▶ canary ──promote──▶ champion ──replaced──▶ retired
      ▲                 │ ▲                 │                    ▲                    │ │
      └───stop shadow───┘ └───end canary────┘                    └─────roll back──────┘ │
      └──────────────────────────────────reopen─────────────────────────────────────────┘

A version becomes canary or champion by a request alone, which names a comparison that meets the criteria of the
version's card, and which two different people have approved, each by password and with a reason. Going
back is one step of one person. Everything stands in the sealed record (:mod:`gateway.model_record`), in the same
transaction as what it tells of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select, update

from gateway.errors import LifecycleError
from gateway.model_record import RecordKey, append, recording, take_turn
from gateway.signatures import approvals, decide, fitting_reason
from gateway.store import Store
from gateway.store.models import (
    SERVING,
    KnownVersion,
    RequestState,
    VersionState,
    add_version,
    find_request,
    find_version,
    requests,
    version_in,
)
from gateway.store.schema import model_record, model_version
from models.card import Bundle, load_bundle
from models.errors import BundleError

GATEWAY = "gateway"
"""The actor of what the gateway does by itself."""
APPROVALS_NEEDED = 2
DRAFT, SHADOW, CANARY, CHAMPION, RETIRED = VersionState


class Action(StrEnum):
    """What moves a version to another state."""

    SHADOW = "shadow"
    STOP_SHADOW = "stop shadow"
    CANARY = "canary"
    END_CANARY = "end canary"
    STOP_CANARY = "stop canary"
    PROMOTE = "promote"
    REPLACED = "replaced"
    ROLL_BACK = "roll back"
    ROLLED_BACK = "rolled back"
    RETIRE = "retire"
    REOPEN = "reopen"
    SET_UP = "set up"


class Need(StrEnum):
    """What a transition asks for."""

    NOTHING = "nothing"
    """But a reason."""
    APPROVAL = "approval"
    """A request with a comparison that meets the card's criteria, approved by two people."""
    FORMER_CHAMPION = "former champion"
    """That the version is the last former champion."""
    NO_CHAMPION_EVER = "no champion ever"
    """That the model has none and never had: the gateway's first start."""
    CONSEQUENCE = "consequence"
    """That another version takes the place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """Where an action leads, and what it needs."""

    to_state: VersionState
    need: Need


TRANSITIONS: Mapping[tuple[VersionState, Action], Transition] = {
    (DRAFT, Action.SHADOW): Transition(to_state=SHADOW, need=Need.NOTHING),
    (SHADOW, Action.STOP_SHADOW): Transition(to_state=DRAFT, need=Need.NOTHING),
    (DRAFT, Action.CANARY): Transition(to_state=CANARY, need=Need.APPROVAL),
    (SHADOW, Action.CANARY): Transition(to_state=CANARY, need=Need.APPROVAL),
    (CANARY, Action.CANARY): Transition(to_state=CANARY, need=Need.APPROVAL),  # another share
    (CANARY, Action.END_CANARY): Transition(to_state=SHADOW, need=Need.NOTHING),
    (CANARY, Action.STOP_CANARY): Transition(to_state=DRAFT, need=Need.NOTHING),
    (DRAFT, Action.PROMOTE): Transition(to_state=CHAMPION, need=Need.APPROVAL),
    (SHADOW, Action.PROMOTE): Transition(to_state=CHAMPION, need=Need.APPROVAL),
    (CANARY, Action.PROMOTE): Transition(to_state=CHAMPION, need=Need.APPROVAL),
    (CHAMPION, Action.REPLACED): Transition(to_state=RETIRED, need=Need.CONSEQUENCE),
    (CHAMPION, Action.ROLLED_BACK): Transition(to_state=RETIRED, need=Need.CONSEQUENCE),
    (RETIRED, Action.ROLL_BACK): Transition(to_state=CHAMPION, need=Need.FORMER_CHAMPION),
    (DRAFT, Action.ROLL_BACK): Transition(to_state=CHAMPION, need=Need.FORMER_CHAMPION),
    (SHADOW, Action.ROLL_BACK): Transition(to_state=CHAMPION, need=Need.FORMER_CHAMPION),
    (CANARY, Action.ROLL_BACK): Transition(to_state=CHAMPION, need=Need.FORMER_CHAMPION),
    (DRAFT, Action.RETIRE): Transition(to_state=RETIRED, need=Need.NOTHING),
    (SHADOW, Action.RETIRE): Transition(to_state=RETIRED, need=Need.NOTHING),
    (CANARY, Action.RETIRE): Transition(to_state=RETIRED, need=Need.NOTHING),
    (RETIRED, Action.REOPEN): Transition(to_state=DRAFT, need=Need.NOTHING),
    (DRAFT, Action.SET_UP): Transition(to_state=CHAMPION, need=Need.NO_CHAMPION_EVER),
}
"""All that may happen; what is not here may not. A version that is replaced or rolled back from is retired, and comes
back by ``reopen`` as a draft, from which it has to be compared and approved again."""

REQUESTED: Mapping[VersionState, Action] = {CANARY: Action.CANARY, CHAMPION: Action.PROMOTE}
"""What a request may ask for, and the action that carries it out."""
_MADE_CHAMPION = (Action.SET_UP, Action.PROMOTE, Action.ROLL_BACK)
_ENDS_REQUESTS = (Action.RETIRE, Action.END_CANARY, Action.STOP_CANARY)


@dataclass(frozen=True, slots=True, kw_only=True)
class RolledBack:
    """What a roll-back did."""

    from_version: int
    to_version: int


# --- the one function that changes a state ---


def move_version(
    connection: Connection,
    *,
    key: RecordKey,
    model_name: str,
    version: int,
    action: Action,
    actor: str,
    now: datetime,
    reason: str = "",
    request_key: str | None = None,
    traffic: Mapping[str, Any] | None = None,
    detail: Mapping[str, Any] | None = None,
) -> VersionState:
    """Move a version along the table, with what follows for others; all in the transaction of `connection`.

    A new champion retires the former one, ends another version's canary, and makes the model's other requests void:
    they were held against a champion that is none any more.

    Parameters
    ----------
    connection
        Of :func:`gateway.model_record.recording`.
    traffic
        Of a canary.

    Returns
    -------
    VersionState
        The new one.

    Raises
    ------
    LifecycleError
        There is no such version, the table does not lead there, or what it needs is not given.
    """
    take_turn(connection)
    known = find_version(connection, model_name, version)
    transition = check_allowed(known, action)
    if transition.need is Need.CONSEQUENCE:
        raise LifecycleError(f"{model_name}@{version}: {action!s} follows from another version's move alone")
    _check_need(connection, key, known, action, transition, request_key)
    common: dict[str, Any] = {"key": key, "actor": actor, "now": now, "reason": reason, "request_key": request_key}
    detail = dict(detail or {}) | {"bundle_sha256": known.bundle_sha256}
    if transition.to_state is CHAMPION:
        former = version_in(connection, model_name, CHAMPION)
        if former is not None:
            left_by = Action.ROLLED_BACK if action is Action.ROLL_BACK else Action.REPLACED
            _set_state(connection, former, left_by, detail={"by_version": version}, **common)
        detail["replaces"] = None if former is None else former.version
        canary = version_in(connection, model_name, CANARY)
        if canary is not None and canary.version != version:
            _set_state(connection, canary, Action.STOP_CANARY, detail={"champion": version}, **common)
    sitting = version_in(connection, model_name, transition.to_state) if transition.to_state in SERVING else None
    if sitting is not None and sitting.version != version:
        raise LifecycleError(f"{model_name}@{sitting.version} is in {transition.to_state}; end that first")
    _set_state(connection, known, action, traffic=traffic, detail=detail, **common)
    if transition.to_state is CHAMPION:
        _void_requests(connection, key, model_name, None, except_key=request_key, now=now, why="the champion changed")
    elif action in _ENDS_REQUESTS:
        why = f"{model_name}@{version} went from {known.state} to {transition.to_state}"
        _void_requests(connection, key, model_name, version, except_key=request_key, now=now, why=why)
    return transition.to_state


def check_allowed(known: KnownVersion, action: Action) -> Transition:
    """The table's entry. Raises :class:`LifecycleError` where it has none."""
    transition = TRANSITIONS.get((known.state, action))
    if transition is not None:
        return transition
    allowed = [str(each) for state, each in TRANSITIONS if state is known.state]
    raise LifecycleError(
        f"{known.model_name}@{known.version} is {known.state}, where {action!s} does not apply; "
        f"possible: {', '.join(allowed)}"
    )


def _check_need(
    connection: Connection,
    key: RecordKey,
    known: KnownVersion,
    action: Action,
    transition: Transition,
    request_key: str | None,
) -> None:
    name = f"{known.model_name}@{known.version}"
    if transition.need is Need.APPROVAL:
        if request_key is None:
            raise LifecycleError(f"{name} needs a request that {APPROVALS_NEEDED} people have approved")
        request = find_request(connection, request_key)
        fits = (request.model_name, request.version, REQUESTED[request.to_state])
        if fits != (known.model_name, known.version, action) or request.state is not RequestState.OPEN:
            raise LifecycleError(f"request {request_key} does not ask for this, or is not open")
        count = len(approvals(connection, key, request))
        if count < APPROVALS_NEEDED:
            raise LifecycleError(f"request {request_key} has {count} of {APPROVALS_NEEDED} approvals")
    elif transition.need is Need.FORMER_CHAMPION:
        if former_champion(connection, known.model_name) != known.version:
            raise LifecycleError(f"{name} is not the last former champion")
    elif transition.need is Need.NO_CHAMPION_EVER and _champions(connection, known.model_name):
        raise LifecycleError(f"{known.model_name} has or had a champion already")


def _set_state(
    connection: Connection,
    known: KnownVersion,
    action: Action,
    *,
    key: RecordKey,
    actor: str,
    now: datetime,
    reason: str,
    request_key: str | None,
    traffic: Mapping[str, Any] | None = None,
    detail: Mapping[str, Any],
) -> None:
    """Write one version's move down: the row, and its entry in the record."""
    to_state = check_allowed(known, action).to_state
    same = (model_version.c.model_name == known.model_name) & (model_version.c.version == known.version)
    kept = dict(traffic or {}) if to_state is CANARY else {}
    values: dict[str, Any] = {"state": to_state.value, "state_since": now, "traffic": kept}
    if to_state is CHAMPION:
        values["was_champion"] = True
    changed = connection.execute(
        update(model_version).where(same, model_version.c.state == known.state.value).values(**values)
    )
    if changed.rowcount != 1:
        raise LifecycleError(f"{known.model_name}@{known.version} is not {known.state} any more")
    append(
        connection,
        key=key,
        at=now,
        actor=actor,
        action=action.value,
        model_name=known.model_name,
        version=known.version,
        from_state=known.state.value,
        to_state=to_state.value,
        request_key=request_key,
        reason=reason,
        detail=dict(detail) | ({"traffic": kept} if kept else {}),
    )


def _void_requests(
    connection: Connection,
    key: RecordKey,
    model_name: str,
    version: int | None,
    *,
    except_key: str | None,
    now: datetime,
    why: str,
) -> None:
    for each in requests(connection, model_name=model_name, version=version, state=RequestState.OPEN):
        if each.request_key != except_key:
            decide(connection, key, each, RequestState.VOID, actor=GATEWAY, now=now, reason=why)


# --- former champions ---


def former_champion(connection: Connection, model_name: str) -> int | None:
    """The version that was champion before the present one; ``None`` where there is none.

    Follows the record: a roll-back goes one champion further back, never forth to the one it came from.
    """
    standing = _champions(connection, model_name)
    return standing[-2] if len(standing) > 1 else None


def _champions(connection: Connection, model_name: str) -> list[int]:
    """The champions of a model that are not rolled back from, oldest first; the last is the present one."""
    statement = (
        select(model_record.c.action, model_record.c.version)
        .where(
            model_record.c.model_name == model_name, model_record.c.action.in_([str(each) for each in _MADE_CHAMPION])
        )
        .order_by(model_record.c.record_id)
    )
    standing: list[int] = []
    for action, version in connection.execute(statement):
        if action != Action.ROLL_BACK:
            standing.append(version)
        elif standing:
            standing.pop()
    return standing


def roll_back(store: Store, *, model_name: str, reason: str, actor: str, now: datetime, key: RecordKey) -> RolledBack:
    """Let the last former champion judge again, at once; needs neither the registry nor a second person.

    Raises
    ------
    LifecycleError
        There is no former champion, its bundle cannot be used, or no reason is given.
    """
    reason = fitting_reason(reason)
    with store.read() as connection:
        target = former_champion(connection, model_name)
        folder = None if target is None else Path(find_version(connection, model_name, target).folder)
    if target is None or folder is None:
        raise LifecycleError(f"{model_name} has no former champion to go back to")
    try:
        load_bundle(folder)
    except (BundleError, OSError) as error:
        raise LifecycleError(f"the bundle of the former champion {model_name}@{target} cannot be used") from error
    with recording(store, key) as connection:
        champion = version_in(connection, model_name, CHAMPION)
        if champion is None:
            raise LifecycleError(f"{model_name} has no champion to go back from")
        move_version(
            connection,
            key=key,
            model_name=model_name,
            version=target,
            action=Action.ROLL_BACK,
            actor=actor,
            now=now,
            reason=reason,
        )
    return RolledBack(from_version=champion.version, to_version=target)


# --- steps that need no approval ---


def take_step(
    store: Store,
    *,
    key: RecordKey,
    model_name: str,
    version: int,
    action: Action,
    actor: str,
    reason: str,
    now: datetime,
    detail: Mapping[str, Any] | None = None,
) -> VersionState:
    """Start or stop a shadow, end a canary, retire or reopen; what needs more than a reason is refused.

    Raises
    ------
    LifecycleError
        The table does not lead there, needs more, or no reason is given.
    """
    reason = fitting_reason(reason)
    with recording(store, key) as connection:
        return move_version(
            connection,
            key=key,
            model_name=model_name,
            version=version,
            action=action,
            actor=actor,
            reason=reason,
            now=now,
            detail=detail,
        )


def end_canary(
    store: Store,
    *,
    key: RecordKey,
    model_name: str,
    version: int,
    reason: str,
    detail: Mapping[str, Any],
    now: datetime,
    actor: str = "guard",
    to: VersionState = SHADOW,
) -> VersionState:
    """Take a canary's share away: it becomes shadow, or a draft where `to` says so or another version is shadow.

    Returns
    -------
    VersionState
        What it is now.

    Raises
    ------
    LifecycleError
        It is no canary (any more).
    """
    reason = fitting_reason(reason)
    with recording(store, key) as connection:
        taken = version_in(connection, model_name, SHADOW) is not None
        return move_version(
            connection,
            key=key,
            model_name=model_name,
            version=version,
            action=Action.END_CANARY if to is SHADOW and not taken else Action.STOP_CANARY,
            actor=actor,
            reason=reason,
            now=now,
            detail=detail,
        )


def take_in(
    store: Store,
    *,
    key: RecordKey,
    bundle: Bundle,
    bundle_sha256: str,
    by: str,
    now: datetime,
    detail: Mapping[str, Any] | None = None,
) -> bool:
    """Let the store know a registered version, as a draft, and record it; false where it was known with these bytes.

    Raises
    ------
    LifecycleError
        The version is known with other bytes.
    """
    with recording(store, key) as connection:
        return take_in_by(
            connection, key=key, bundle=bundle, bundle_sha256=bundle_sha256, by=by, now=now, detail=detail
        )


def take_in_by(
    connection: Connection,
    *,
    key: RecordKey,
    bundle: Bundle,
    bundle_sha256: str,
    by: str,
    now: datetime,
    detail: Mapping[str, Any] | None = None,
) -> bool:
    """As :func:`take_in`, in a transaction of :func:`gateway.model_record.recording`."""
    take_turn(connection)
    card = bundle.card
    same = (model_version.c.model_name == card.name) & (model_version.c.version == card.version)
    known = connection.execute(select(model_version.c.bundle_sha256).where(same)).scalar_one_or_none()
    if known is not None:
        if known != bundle_sha256:
            raise LifecycleError(f"{card.name}@{card.version} is known with other bytes; a version never changes")
        return False
    add_version(
        connection,
        model_name=card.name,
        version=card.version,
        title=card.title,
        demonstration=card.demonstration,
        folder=str(bundle.folder),
        model_sha256=bundle.model_sha256,
        bundle_sha256=bundle_sha256,
        now=now,
        by=by,
    )
    append(
        connection,
        key=key,
        at=now,
        actor=by,
        action="register",
        model_name=card.name,
        version=card.version,
        to_state=DRAFT.value,
        detail=dict(detail or {}) | {"bundle_sha256": bundle_sha256, "model_sha256": bundle.model_sha256},
    )
    return True


def parse_version(text: str) -> tuple[str, int]:
    """``retinopathy@2`` as name and version. Raises :class:`LifecycleError` where it is not of that form."""
    name, _, version = text.partition("@")
    if not name or not version.isascii() or not version.isdigit() or not 0 < int(version) < 2**31:
        raise LifecycleError(f"{text!r} names no version: expected a name like retinopathy@2")
    return name, int(version)
