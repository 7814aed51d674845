"""Alarms: what a person is told about drift, and what may become of it.

Pure values and one transition table; the store keeps them, the web shows them. An alarm never closes by itself: a
device that drifts back has still been read with for a while. One alarm stands open for each model version, scope and
kind; each further drifted window is counted into it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Literal

from drift.errors import AlarmError
from drift.monitors import DriftKind, DriftResult, DriftState


class AlarmState(StrEnum):
    OPEN = "open"
    """Nobody has seen it yet."""
    ACKNOWLEDGED = "acknowledged"
    """Somebody has taken it on."""
    CLOSED = "closed"
    """A person gave its cause."""
    REOPENED = "reopened"
    """Closed too early, by a person's judgement."""


TRANSITIONS: Mapping[AlarmState, frozenset[AlarmState]] = {
    AlarmState.OPEN: frozenset({AlarmState.ACKNOWLEDGED, AlarmState.CLOSED}),
    AlarmState.ACKNOWLEDGED: frozenset({AlarmState.CLOSED}),
    AlarmState.CLOSED: frozenset({AlarmState.REOPENED}),
    AlarmState.REOPENED: frozenset({AlarmState.ACKNOWLEDGED, AlarmState.CLOSED}),
}
"""What may follow what. Every step is a person's; see :func:`change_state`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """Drift of one kind in one scope of one model version, from its first window to its last."""

    kind: DriftKind
    model_name: str
    model_version: int
    scope: str
    state: AlarmState
    count: int
    """Drifted windows folded into it."""
    first_seen: datetime
    last_seen: datetime
    p_value: float
    """The smallest so far."""
    effect: float
    """Of the latest drifted window."""
    largest_effect: float
    reason: str
    """Of the latest drifted window."""
    changed_at: datetime
    """When `state` was last changed."""
    changed_by: str = ""
    """Who did; empty while the monitor alone has touched it."""
    cause: str = ""
    """Given on closing."""

    @property
    def is_standing(self) -> bool:
        """Whether further drift belongs to this alarm."""
        return self.state is not AlarmState.CLOSED


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmChange:
    """What the store is to write, in the transaction that stores the result."""

    action: Literal["raise", "fold"]
    """``raise``: a new alarm, to be told about. ``fold``: the standing one, updated."""
    alarm: Alarm


def decide_alarm(existing_open: Alarm | None, result: DriftResult) -> AlarmChange | None:
    """What a result does to the alarms, given the standing alarm of its subject, if any.

    ``None`` where there is no drift, where nothing was judged, and where the standing alarm has counted this result or
    a later one already, so that a repeated run changes nothing.

    Raises
    ------
    AlarmError
        `existing_open` is closed, or is about another model version, scope or kind.
    """
    if existing_open is not None:
        if not existing_open.is_standing:
            raise AlarmError("a closed alarm takes no more results; a new one is raised")
        if _subject(existing_open) != _subject(result):
            raise AlarmError(f"the alarm is about {_subject(existing_open)}, the result about {_subject(result)}")
    if result.state is not DriftState.DRIFT or result.p_value is None or result.effect is None:
        return None
    if existing_open is None:
        return AlarmChange(action="raise", alarm=_raised(result, result.p_value, result.effect))
    if result.computed_at <= existing_open.last_seen:
        return None
    folded = replace(
        existing_open,
        count=existing_open.count + 1,
        last_seen=result.computed_at,
        p_value=min(existing_open.p_value, result.p_value),
        effect=result.effect,
        largest_effect=max(existing_open.largest_effect, result.effect),
        reason=result.reason,
    )
    return AlarmChange(action="fold", alarm=folded)


def change_state(alarm: Alarm, to: AlarmState, *, by: str, at: datetime, cause: str = "") -> Alarm:
    """The alarm after a person's step.

    Raises
    ------
    AlarmError
        :data:`TRANSITIONS` does not have the step, nobody is named, or it closes without a cause.
    """
    if to not in TRANSITIONS[alarm.state]:
        raise AlarmError(f"an alarm that is {alarm.state} cannot become {to}")
    if not by.strip():
        raise AlarmError("a change of an alarm needs the name of who makes it")
    if to is AlarmState.CLOSED and not cause.strip():
        raise AlarmError("closing an alarm needs its cause")
    kept_cause = cause.strip() if to is AlarmState.CLOSED else alarm.cause
    return replace(alarm, state=to, changed_at=at, changed_by=by.strip(), cause=kept_cause)


def _raised(result: DriftResult, p_value: float, effect: float) -> Alarm:
    return Alarm(
        kind=result.kind,
        model_name=result.model_name,
        model_version=result.model_version,
        scope=result.scope,
        state=AlarmState.OPEN,
        count=1,
        first_seen=result.computed_at,
        last_seen=result.computed_at,
        p_value=p_value,
        effect=effect,
        largest_effect=effect,
        reason=result.reason,
        changed_at=result.computed_at,
    )


def _subject(of: Alarm | DriftResult) -> tuple[str, int, str, str]:
    return of.model_name, of.model_version, of.scope, of.kind
