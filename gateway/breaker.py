"""A circuit breaker: after failures in a row a version is left alone for a while, then tried with inputs of its own.

::

                 failures of enough studies in a row
        CLOSED ---------------------------------------> OPEN <---+
          ^                                              |       | the probe fails: twice the pause
          |                             its pause is over|       |
          |                                              v       |
          +------------ the probe succeeds --------- HALF_OPEN --+

Pure: no thread, no clock but the one it is given, nothing is run here. One breaker belongs to one version in one
worker, since what fails may be that worker's device.

References
----------
M. Nygard, *Release It!*, 2nd edition, 2018, "Circuit Breaker".
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

Clock = Callable[[], float]
"""Seconds that only grow, such as :func:`time.monotonic`."""


class BreakerState(StrEnum):
    """Whether a version may be asked."""

    CLOSED = "closed"
    """It may."""
    HALF_OPEN = "half open"
    """A probe is under way; studies are kept away still."""
    OPEN = "open"
    """It failed too often in a row; it is left alone until its pause is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerRule:
    """When a breaker opens, and for how long."""

    failures: int
    """Studies in a row, different ones, that failed or were slow: one bad study tried again does not count twice."""
    slow_s: float
    """Seconds a picture from which an inference counts as failed, though its result is used."""
    first_pause_s: float
    longest_pause_s: float
    """The pause doubles up to this, until a study has succeeded again."""


@dataclass(slots=True, kw_only=True)
class Breaker:
    """The breaker of one version."""

    rule: BreakerRule
    clock: Clock
    state: BreakerState = BreakerState.CLOSED
    reason: str = ""
    """Why it is not closed, or what failed last."""
    openings: int = 0
    """How often it opened."""
    _failed: set[str] = field(default_factory=set)
    _pause_s: float = 0.0
    _opened_at: float = 0.0

    @property
    def is_closed(self) -> bool:
        """Whether the version may be asked for a study."""
        return self.state is BreakerState.CLOSED

    @property
    def failures(self) -> int:
        """Different studies that failed since the last that did not."""
        return len(self._failed)

    @property
    def wait_s(self) -> float:
        """Seconds until a probe may be made; 0 where that is now, or none is needed."""
        if self.state is not BreakerState.OPEN:
            return 0.0
        return max(0.0, self._opened_at + self._pause_s - self.clock())

    @property
    def probe_is_due(self) -> bool:
        """Whether it is open and its pause is over."""
        return self.state is BreakerState.OPEN and self.wait_s == 0.0

    def succeeded(self, subject: str, taken_s: float = 0.0) -> None:
        """A study went through, in `taken_s` seconds a picture; a slow one counts as failed."""
        if taken_s >= self.rule.slow_s:
            self.failed(subject, f"slow: {taken_s:.1f} s a picture, {self.rule.slow_s:g} s or more")
        elif self.state is BreakerState.CLOSED:  # else it was under way before, and says nothing of now
            self._failed.clear()
            self._pause_s = 0.0
            self.reason = ""

    def failed(self, subject: str, reason: str) -> None:
        """A study did not go through."""
        if self.state is not BreakerState.CLOSED:
            return
        self._failed.add(subject)
        self.reason = reason
        if len(self._failed) >= self.rule.failures:
            self._open()

    def begin_probe(self) -> None:
        """A probe is being made.

        Raises
        ------
        ValueError
            None is due.
        """
        if not self.probe_is_due:
            raise ValueError(f"no probe is due: the breaker is {self.state}, {self.wait_s:.1f} s are left")
        self.state = BreakerState.HALF_OPEN

    def end_probe(self, reason: str) -> None:
        """The probe has ended: well, where `reason` is empty.

        Raises
        ------
        ValueError
            None was begun.
        """
        if self.state is not BreakerState.HALF_OPEN:
            raise ValueError(f"no probe was begun: the breaker is {self.state}")
        if reason:
            self.reason = f"probe: {reason}"
            self._open()
            return
        # The pause stays as it is until a study has succeeded: inputs of its own may pass where live ones fail.
        self.state = BreakerState.CLOSED
        self._failed.clear()

    def _open(self) -> None:
        self.state = BreakerState.OPEN
        self.openings += 1
        self._opened_at = self.clock()
        doubled = self._pause_s * 2 or self.rule.first_pause_s
        self._pause_s = min(doubled, self.rule.longest_pause_s)
        self._failed.clear()


NEVER = BreakerRule(failures=1 << 31, slow_s=float("inf"), first_pause_s=1.0, longest_pause_s=1.0)
"""Opens never, for runs outside a worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakers:
    """The breakers of all versions that a worker runs."""

    rule: BreakerRule = NEVER
    clock: Clock = time.monotonic
    _known: dict[tuple[str, int], Breaker] = field(default_factory=dict)

    def of(self, model_name: str, version: int) -> Breaker:
        """The breaker of that version, closed at first."""
        return self._known.setdefault((model_name, version), Breaker(rule=self.rule, clock=self.clock))

    def forget(self, model_name: str, version: int) -> None:
        """A version runs no more."""
        self._known.pop((model_name, version), None)
