from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from drift.alarms import TRANSITIONS, Alarm, AlarmState, change_state, decide_alarm
from drift.errors import AlarmError
from drift.monitors import DriftKind, DriftResult, DriftState

FIRST = datetime(2026, 11, 24, 9, 0, tzinfo=UTC)
DRIFT = DriftResult(
    kind=DriftKind.EMBEDDING,
    model_name="retinopathy",
    model_version=2,
    scope="all",
    n=50,
    statistic=0.03,
    p_value=0.0004,
    effect=1.4,
    statistic_in_null_sd=9.0,
    threshold_p=0.001,
    state=DriftState.DRIFT,
    reason="the last 50 studies differ",
    computed_at=FIRST,
    backend="builtin",
)


def _raised() -> Alarm:
    change = decide_alarm(None, DRIFT)
    assert change is not None
    return change.alarm


def _later(minutes: int, **changed: object) -> DriftResult:
    return replace(DRIFT, computed_at=FIRST + timedelta(minutes=minutes), **changed)  # type: ignore[arg-type]


def test_drift_raises_one_alarm() -> None:
    change = decide_alarm(None, DRIFT)
    assert change is not None
    assert change.action == "raise"
    assert (change.alarm.state, change.alarm.count, change.alarm.first_seen) == (AlarmState.OPEN, 1, FIRST)


def test_more_drift_folds_into_it() -> None:
    change = decide_alarm(_raised(), _later(5, p_value=0.0009, effect=2.5))
    assert change is not None
    assert change.action == "fold"
    alarm = change.alarm
    assert (alarm.count, alarm.first_seen, alarm.last_seen) == (2, FIRST, FIRST + timedelta(minutes=5))
    assert (alarm.p_value, alarm.effect, alarm.largest_effect) == (0.0004, 2.5, 2.5)
    third = decide_alarm(alarm, _later(9, effect=1.0))
    assert third is not None
    assert (third.alarm.count, third.alarm.effect, third.alarm.largest_effect) == (3, 1.0, 2.5)


@pytest.mark.parametrize("minutes", [0, -3])
def test_a_result_counted_before_changes_nothing(minutes: int) -> None:
    assert decide_alarm(_raised(), _later(minutes)) is None


@pytest.mark.parametrize("state", [DriftState.NO_DRIFT, DriftState.NOT_JUDGED])
@pytest.mark.parametrize("existing", [None, _raised()])
def test_neither_raises_nor_closes_without_drift(state: DriftState, existing: Alarm | None) -> None:
    assert decide_alarm(existing, _later(5, state=state)) is None


def test_acknowledged_alarm_keeps_counting_and_its_state() -> None:
    taken = change_state(_raised(), AlarmState.ACKNOWLEDGED, by="physicist", at=FIRST)
    change = decide_alarm(taken, _later(5))
    assert change is not None
    assert (change.alarm.state, change.alarm.count, change.alarm.changed_by) == (
        AlarmState.ACKNOWLEDGED,
        2,
        "physicist",
    )


@pytest.mark.parametrize(
    "other", [{"scope": "d1"}, {"model_version": 3}, {"model_name": "chest-triage"}, {"kind": DriftKind.EXPLANATION}]
)
def test_another_subject_is_refused(other: dict[str, object]) -> None:
    with pytest.raises(AlarmError):
        decide_alarm(_raised(), _later(5, **other))


def test_closed_alarm_takes_no_more_results() -> None:
    closed = change_state(_raised(), AlarmState.CLOSED, by="physicist", at=FIRST, cause="lamp replaced")
    with pytest.raises(AlarmError):
        decide_alarm(closed, _later(5))


def test_life_of_an_alarm() -> None:
    at = FIRST + timedelta(hours=1)
    closed = change_state(_raised(), AlarmState.CLOSED, by="physicist", at=at, cause="lamp replaced")
    assert (closed.cause, closed.changed_at, closed.changed_by, closed.is_standing) == (
        "lamp replaced",
        at,
        "physicist",
        False,
    )
    reopened = change_state(closed, AlarmState.REOPENED, by="head", at=at)
    assert reopened.is_standing
    assert reopened.cause == "lamp replaced"
    change = decide_alarm(reopened, _later(90))
    assert change is not None
    assert change.action == "fold"
    assert change.alarm.state is AlarmState.REOPENED


@pytest.mark.parametrize("start", list(AlarmState))
@pytest.mark.parametrize("to", list(AlarmState))
def test_only_the_table_s_steps_can_be_taken(start: AlarmState, to: AlarmState) -> None:
    alarm = replace(_raised(), state=start)
    if to in TRANSITIONS[start]:
        assert change_state(alarm, to, by="physicist", at=FIRST, cause="known").state is to
    else:
        with pytest.raises(AlarmError, match=f"is {start} cannot become {to}"):
            change_state(alarm, to, by="physicist", at=FIRST, cause="known")


def test_every_state_stands_in_the_table_and_none_is_a_dead_end() -> None:
    assert set(TRANSITIONS) == set(AlarmState)
    assert all(TRANSITIONS.values())


def test_a_step_needs_a_name_and_closing_a_cause() -> None:
    with pytest.raises(AlarmError, match="name"):
        change_state(_raised(), AlarmState.ACKNOWLEDGED, by=" ", at=FIRST)
    with pytest.raises(AlarmError, match="cause"):
        change_state(_raised(), AlarmState.CLOSED, by="physicist", at=FIRST)
