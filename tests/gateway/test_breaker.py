"""The circuit breaker: every event in every state, the pauses, and what opens it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gateway.breaker import Breaker, BreakerRule, Breakers, BreakerState

RULE = BreakerRule(failures=3, slow_s=2.0, first_pause_s=10.0, longest_pause_s=35.0)
CLOSED, HALF_OPEN, OPEN = BreakerState.CLOSED, BreakerState.HALF_OPEN, BreakerState.OPEN


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(rule=RULE, clock=clock)


def opened(breaker: Breaker) -> Breaker:
    for study in ("a", "b", "c"):
        breaker.failed(study, "out of memory")
    return breaker


def half_opened(breaker: Breaker, clock: Clock) -> Breaker:
    opened(breaker)
    clock.now_s += breaker.wait_s
    breaker.begin_probe()
    return breaker


EVENTS: dict[str, Callable[[Breaker], object]] = {
    "success": lambda breaker: breaker.succeeded("z", 0.1),
    "slow success": lambda breaker: breaker.succeeded("z", 2.0),
    "failure": lambda breaker: breaker.failed("z", "broken"),
    "begin probe": lambda breaker: breaker.begin_probe(),
    "probe succeeds": lambda breaker: breaker.end_probe(""),
    "probe fails": lambda breaker: breaker.end_probe("broken"),
}
TABLE: dict[tuple[str, str], BreakerState | None] = {
    ("closed", "success"): CLOSED,
    ("closed", "slow success"): CLOSED,
    ("closed", "failure"): CLOSED,
    ("closed", "begin probe"): None,
    ("closed", "probe succeeds"): None,
    ("closed", "probe fails"): None,
    ("one before", "success"): CLOSED,
    ("one before", "slow success"): OPEN,
    ("one before", "failure"): OPEN,
    ("one before", "begin probe"): None,
    ("one before", "probe succeeds"): None,
    ("one before", "probe fails"): None,
    ("open", "success"): OPEN,
    ("open", "slow success"): OPEN,
    ("open", "failure"): OPEN,
    ("open", "begin probe"): None,
    ("open", "probe succeeds"): None,
    ("open", "probe fails"): None,
    ("pause over", "success"): OPEN,
    ("pause over", "slow success"): OPEN,
    ("pause over", "failure"): OPEN,
    ("pause over", "begin probe"): HALF_OPEN,
    ("pause over", "probe succeeds"): None,
    ("pause over", "probe fails"): None,
    ("half open", "success"): HALF_OPEN,
    ("half open", "slow success"): HALF_OPEN,
    ("half open", "failure"): HALF_OPEN,
    ("half open", "begin probe"): None,
    ("half open", "probe succeeds"): CLOSED,
    ("half open", "probe fails"): OPEN,
}
"""State and event -> the state after; ``None``: the event is a mistake of the caller's."""


def brought_to(state: str, breaker: Breaker, clock: Clock) -> Breaker:
    if state == "one before":
        breaker.failed("a", "broken")
        breaker.failed("b", "broken")
    elif state in ("open", "pause over"):
        opened(breaker)
        clock.now_s += 10.0 if state == "pause over" else 9.9
    elif state == "half open":
        half_opened(breaker, clock)
    return breaker


@pytest.mark.parametrize(("state", "event"), TABLE)
def test_every_event_in_every_state(state: str, event: str, breaker: Breaker, clock: Clock) -> None:
    assert {each for _, each in TABLE} == EVENTS.keys()
    brought_to(state, breaker, clock)
    before = breaker.state
    expected = TABLE[state, event]
    if expected is None:
        with pytest.raises(ValueError, match="probe"):
            EVENTS[event](breaker)
        assert breaker.state is before
    else:
        EVENTS[event](breaker)
        assert breaker.state is expected


def test_one_bad_study_tried_again_does_not_open_it(breaker: Breaker) -> None:
    for _ in range(20):
        breaker.failed("the bad one", "no")
    assert (breaker.state, breaker.failures) == (CLOSED, 1)


def test_a_success_in_between_begins_the_count_anew(breaker: Breaker) -> None:
    for study in "abcdefgh":
        breaker.failed(study, "no")
        breaker.failed(f"{study}2", "no")
        breaker.succeeded(f"{study}3", 0.1)
    assert (breaker.state, breaker.failures, breaker.reason) == (CLOSED, 0, "")


def test_the_pause_doubles_until_a_study_has_succeeded(breaker: Breaker, clock: Clock) -> None:
    opened(breaker)
    pauses = []
    for _ in range(4):
        pauses.append(breaker.wait_s)
        clock.now_s += breaker.wait_s
        breaker.begin_probe()
        breaker.end_probe("broken")
    assert pauses == [10.0, 20.0, 35.0, 35.0]
    assert breaker.openings == 5
    clock.now_s += breaker.wait_s
    breaker.begin_probe()
    breaker.end_probe("")
    # Inputs of its own pass, live studies do not: it does not begin with the shortest pause again.
    opened(breaker)
    assert breaker.wait_s == 35.0
    clock.now_s += breaker.wait_s
    breaker.begin_probe()
    breaker.end_probe("")
    breaker.succeeded("d", 0.1)
    opened(breaker)
    assert breaker.wait_s == 10.0


def test_a_slow_study_says_how_slow(breaker: Breaker) -> None:
    for study in "abc":
        breaker.succeeded(study, 7.25)
    assert breaker.state is OPEN
    assert breaker.reason == "slow: 7.2 s a picture, 2 s or more"


def test_each_version_has_its_own() -> None:
    breakers = Breakers(rule=RULE)
    opened(breakers.of("a", 1))
    assert breakers.of("a", 1).state is OPEN
    assert breakers.of("a", 2).is_closed
    breakers.forget("a", 1)
    assert breakers.of("a", 1).is_closed


def test_outside_a_worker_none_opens() -> None:
    breaker = Breakers().of("a", 1)
    for number in range(10_000):
        breaker.failed(str(number), "no")
    assert breaker.is_closed
