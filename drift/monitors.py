"""Judgements on a window of the latest studies: has what the model sees, or how it explains itself, moved?

Two monitors, one kind of result. :func:`judge_embeddings` asks a kernel two-sample test about whitened embeddings.
:func:`summary_shift` asks, column by column, about the few numbers that sum up an explanation or a picture. Both say
*not judged*, with the reason, where they cannot tell: that differs from *no drift*.

References
----------
Rabanser, Guennemann, Lipton: Failing Loudly, NeurIPS 2019, for both monitors on a model's outputs.
Holm: A simple sequentially rejective multiple test procedure, Scand. J. Statist. 6 (1979), 65-70.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drift.errors import WindowError
from drift.mmd import MmdTest
from drift.reference import Array

ALL_DEVICES = "all"
"""The scope of a result that covers every device of a model version."""
_LEAST_P = 1e-300


class DriftKind(StrEnum):
    """What was held against the reference."""

    EMBEDDING = "embedding"
    EXPLANATION = "explanation"
    STATISTICS = "acquisition statistics"
    CHARTS = "embedding charts"
    """Sequential, study by study; the other three are tests on a window."""


WINDOW_KINDS = (DriftKind.EMBEDDING, DriftKind.EXPLANATION, DriftKind.STATISTICS)


class DriftState(StrEnum):
    NO_DRIFT = "no drift"
    DRIFT = "drift"
    NOT_JUDGED = "not judged"


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowRule:
    """How many studies a test looks at, how often, and when its answer counts as drift."""

    size: int = 50
    minimum: int = 25
    """Fewer studies than this are not judged."""
    stride: int = 10
    """New studies after which a scope is tested again; each look is another chance of a false alarm."""
    threshold_p: float = 0.001
    """A p-value at or below this is drift."""

    def __post_init__(self) -> None:
        if not 2 <= self.minimum <= self.size or self.stride < 1 or not 0 < self.threshold_p < 1:
            raise ValueError(f"not a window rule: {self}")

    def is_due(self, *, seen: int, seen_at_last_test: int | None) -> bool:
        """Whether to test again, with `seen` studies ever in this scope and that many at its last test."""
        if seen_at_last_test is None:
            return seen > 0
        if seen_at_last_test < self.minimum:
            # Says "7 of 25" as it grows, and tests at the first moment that it can.
            return seen > seen_at_last_test
        return seen - seen_at_last_test >= self.stride


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Whose window it is."""

    model_name: str
    model_version: int
    scope: str = ALL_DEVICES
    """``all``, or the gateway's key of one device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Driver:
    """One column's part in a result."""

    name: str
    shift_in_sd: float
    """Mean of the window minus mean of the reference, in standard deviations of the reference."""
    p_value: float
    """After Holm's correction over all columns tested with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftResult:
    """One look at one window."""

    kind: DriftKind
    model_name: str
    model_version: int
    scope: str
    n: int
    """Studies in the window."""
    statistic: float | None
    """Unbiased MMD squared, the largest Kolmogorov-Smirnov distance, or the highest chart's level over its height.
    ``None`` where not judged, as the next two."""
    p_value: float | None
    """In (0, 1]; of one look, not of a stream of looks. Of charts: the rate of false alarms a study at that height."""
    effect: float | None
    """How far the mean moved, in standard deviations of the reference: see ``docs/monitoring.md``."""
    statistic_in_null_sd: float | None
    """`statistic` over its standard deviation if nothing had changed; ``None`` for summaries and charts."""
    threshold_p: float
    state: DriftState
    reason: str
    """Plain words; empty where there is no drift."""
    computed_at: datetime
    backend: str
    drivers: tuple[Driver, ...] = ()
    """Columns at or under the threshold, the most certain first."""


def not_judged(
    subject: Subject, *, kind: DriftKind, n: int, rule: WindowRule, reason: str, now: datetime, backend: str
) -> DriftResult:
    """The result that says why there is none."""
    return DriftResult(
        kind=kind,
        model_name=subject.model_name,
        model_version=subject.model_version,
        scope=subject.scope,
        n=n,
        statistic=None,
        p_value=None,
        effect=None,
        statistic_in_null_sd=None,
        threshold_p=rule.threshold_p,
        state=DriftState.NOT_JUDGED,
        reason=reason,
        computed_at=now,
        backend=backend,
    )


def judge_embeddings(
    test: MmdTest, embeddings: NDArray[Any], subject: Subject, *, rule: WindowRule, now: datetime
) -> DriftResult:
    """Hold the last studies' embeddings [N, D], oldest first, against the reference of `test`.

    Parameters
    ----------
    embeddings
        One row a study: several pictures of one patient are not independent, and would count as evidence twice.

    Raises
    ------
    WindowError
        Another D than the reference's, or a value that is not finite.
    BackendError
        The backend failed.
    """
    window = np.asarray(embeddings)[-rule.size :]
    count = len(window)
    if count < rule.minimum:
        return not_judged(
            subject,
            kind=DriftKind.EMBEDDING,
            n=count,
            rule=rule,
            reason=f"{count} of {rule.minimum} studies",
            now=now,
            backend=test.backend,
        )
    points = test.reference.whitening.apply(window)
    score = test.score(points)
    effect = mean_shift(test.reference.points, points)
    drifted = score.p_value <= rule.threshold_p
    return DriftResult(
        kind=DriftKind.EMBEDDING,
        model_name=subject.model_name,
        model_version=subject.model_version,
        scope=subject.scope,
        n=count,
        statistic=score.statistic,
        p_value=score.p_value,
        effect=effect,
        statistic_in_null_sd=score.statistic / score.null_sd,
        threshold_p=rule.threshold_p,
        state=DriftState.DRIFT if drifted else DriftState.NO_DRIFT,
        reason=f"the last {count} studies differ from the reference: mean moved by {effect:.1f} sd" if drifted else "",
        computed_at=now,
        backend=test.backend,
    )


def mean_shift(reference: Array, window: Array) -> float:
    """Length of the difference of means of whitened points [n, k] and [m, k], in sd, less what chance alone adds.

    Zero where the difference is no longer than sampling explains on average.
    """
    difference = window.mean(axis=0) - reference.mean(axis=0)
    chance = (window.var(axis=0, ddof=1) / len(window) + reference.var(axis=0, ddof=1) / len(reference)).sum()
    return float(np.sqrt(max(0.0, float(difference @ difference) - float(chance))))


def summary_shift(
    reference: NDArray[Any],
    names: Sequence[str],
    window: NDArray[Any],
    subject: Subject,
    *,
    kind: DriftKind,
    rule: WindowRule,
    now: datetime,
) -> DriftResult:
    """Two-sample Kolmogorov-Smirnov tests of each column, corrected by Holm's method; drift if any is certain.

    Parameters
    ----------
    reference
        [N, S], columns named by `names`.
    window
        [M, S], one row a study, oldest first; only the last of them are looked at. NaN marks a study without that
        number, such as one without an explanation; a column counts the studies that have it.

    Raises
    ------
    WindowError
        The columns are not those of the reference.
    """
    from scipy.stats import ks_2samp  # takes a second to import, which only the monitor process has

    known = np.asarray(reference, dtype=np.float64)
    recent = np.asarray(window, dtype=np.float64)[-rule.size :]
    if known.ndim != 2 or recent.ndim != 2 or not known.shape[1] == recent.shape[1] == len(names):
        raise WindowError(f"columns: {known.shape} in the reference, {recent.shape} in the window, {len(names)} names")
    distances: dict[str, float] = {}
    p_values: dict[str, float] = {}
    shifts: dict[str, float] = {}
    most = 0
    for column, name in enumerate(names):
        before, after = (part[np.isfinite(part[:, column]), column] for part in (known, recent))
        most = max(most, len(after))
        if len(after) < rule.minimum or len(before) < rule.minimum:
            continue
        outcome = ks_2samp(before, after)
        distances[name] = float(outcome.statistic)
        p_values[name] = max(float(outcome.pvalue), _LEAST_P)
        shifts[name] = _standardised_shift(before, after)
    if not p_values:
        reason = f"{most} of {rule.minimum} studies"
        return not_judged(subject, kind=kind, n=most, rule=rule, reason=reason, now=now, backend="builtin")
    adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    ranked = sorted(adjusted, key=lambda name: (adjusted[name], p_values[name]))
    drivers = tuple(
        Driver(name=name, shift_in_sd=shifts[name], p_value=adjusted[name])
        for name in ranked
        if adjusted[name] <= rule.threshold_p
    )
    return DriftResult(
        kind=kind,
        model_name=subject.model_name,
        model_version=subject.model_version,
        scope=subject.scope,
        n=most,
        statistic=max(distances.values()),
        p_value=adjusted[ranked[0]],
        effect=max(map(abs, shifts.values())),
        statistic_in_null_sd=None,
        threshold_p=rule.threshold_p,
        state=DriftState.DRIFT if drivers else DriftState.NO_DRIFT,
        reason="; ".join(_driver_words(driver) for driver in drivers),
        computed_at=now,
        backend="builtin",
        drivers=drivers,
    )


def _driver_words(driver: Driver) -> str:
    words = driver.name.replace("_", " ")
    if abs(driver.shift_in_sd) < 0.05:
        return f"{words} is spread differently"
    return f"{words} is {'higher' if driver.shift_in_sd > 0 else 'lower'} by {abs(driver.shift_in_sd):.1f} sd"


def _standardised_shift(before: Array, after: Array) -> float:
    """Difference of means in sd of `before`; where that is constant, in sd of both together."""
    difference = float(after.mean() - before.mean())
    for sample in (before, np.concatenate([before, after])):
        spread = float(sample.std(ddof=1))
        if spread > 1e-9 * (1.0 + abs(float(sample.mean()))):
            return difference / spread
    return 0.0


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted so that the chance of any false one among them stays under the threshold."""
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(p_values))
    running = 0.0
    for rank, position in enumerate(order):
        running = max(running, (len(p_values) - rank) * p_values[position])
        adjusted[position] = min(1.0, running)
    return [float(value) for value in adjusted]
