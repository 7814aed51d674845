"""The results: a frozen tree of figures, which ``to_json`` writes field by field.

Every number that was estimated is a :class:`Figure`: value, 95 % interval, how many cases it rests on, and how it was
got. A figure that could not be had has the value ``None`` and a reason; there is never a NaN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

CONFIDENCE = 0.95
"""Of every interval in this package, two-sided."""


def as_json(value: object) -> Any:
    """Turn a tree of dataclasses, mappings and tuples into what :mod:`json` writes; a number not finite is ``None``."""
    if is_dataclass(value) and not isinstance(value, type):
        return {one.name: as_json(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): as_json(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(one) for one in value]
    if isinstance(value, bool) or value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    raise TypeError(f"{type(value).__name__} has no place in a report")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One estimate with its interval."""

    value: float | None
    low: float | None = None
    high: float | None = None
    """Bounds of the 95 % interval; ``None`` where there is none, see ``reason``."""
    n: int
    """Cases that the figure rests on: for a sensitivity the positive ones."""
    method: str
    """How value and interval were got, in words."""
    reason: str = ""
    """Why there is no value or no interval."""

    def to_json(self) -> dict[str, Any]:
        return dict(as_json(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class Confusion:
    """Counts at a version's own operating point, over the cases with truth."""

    true_positives: int
    false_positives: int
    true_negatives: int
    false_negatives: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RocCurve:
    """Points of the curve, thinned for plotting; the corners (0, 0) and (1, 1) are always there."""

    false_positive_rate: tuple[float, ...]
    true_positive_rate: tuple[float, ...]
    thresholds: tuple[float | None, ...]
    """Score at or above which a case counts as present; ``None`` at the corner where none does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionRecallCurve:
    """Points of the curve, thinned for plotting, by rising recall. To be drawn as steps, not as a slope."""

    recall: tuple[float, ...]
    precision: tuple[float, ...]
    thresholds: tuple[float | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReliabilityBin:
    """Cases whose scores lie above ``from_score`` and at or below ``to_score``."""

    from_score: float
    to_score: float
    n: int
    mean_score: float
    fraction: Figure
    """Of the bin's cases that are positive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrierParts:
    """Brier score = reliability - resolution + uncertainty + within_bin, over the equal-width bins."""

    reliability: float
    resolution: float
    uncertainty: float
    within_bin: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """How many cases have which score; one edge more than bins."""

    edges: tuple[float, ...]
    positive: tuple[int, ...]
    negative: tuple[int, ...]
    unknown: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionEvaluation:
    """Figures of one version on one slice."""

    operating_point: float
    figures: Mapping[str, Figure]
    """auc_roc, auc_roc_bootstrap, auc_pr, sensitivity, specificity, ppv, npv, accuracy, selection_rate, brier, ece,
    ece_equal_mass, calibration_in_the_large."""
    confusion: Confusion | None
    """The rest is ``None`` or empty where the cases do not allow it; the figures say why."""
    roc: RocCurve | None
    precision_recall: PrecisionRecallCurve | None
    reliability_equal_width: tuple[ReliabilityBin, ...]
    reliability_equal_mass: tuple[ReliabilityBin, ...]
    brier_parts: BrierParts | None
    histogram: Histogram


@dataclass(frozen=True, slots=True, kw_only=True)
class McNemar:
    """Do the two versions err on the same cases? Exact test on those that only one got right."""

    n: int
    candidate_only_right: int
    baseline_only_right: int
    p_value: float
    """Two-sided, cases taken as independent."""
    p_value_of_groups: float | None
    """The same with a group counted once, by which version got more of it right; ``None``: no group repeats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreDifferences:
    """Bland-Altman figures of candidate minus baseline score."""

    bias: Figure
    standard_deviation: float | None
    lower_limit: Figure
    upper_limit: Figure
    """Limits of agreement: bias -+ 1.96 standard deviations."""
    largest_absolute: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedEvaluation:
    """The two versions on the same cases."""

    figures: Mapping[str, Figure]
    """agreement, kappa: of the two versions' decisions, each at its own operating point."""
    differences: Mapping[str, Figure]
    """Candidate minus baseline, by the names of :attr:`VersionEvaluation.figures`."""
    auc_roc_p_value: float | None
    """DeLong's test of equal areas, two-sided."""
    mcnemar: Mapping[str, McNemar]
    """sensitivity, specificity; absent where no such case."""
    score_differences: ScoreDifferences
    changed_to_present: int
    changed_to_absent: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceEvaluation:
    """Everything about one slice; ``key`` and ``value`` are empty for all cases together."""

    key: str
    value: str
    """Empty with a key: the cases for which it is unknown."""
    cases: int
    groups: int
    with_truth: int
    positives: int
    negatives: int
    small: bool
    """Fewer cases than ``least_cases``: shown, and to be read as an anecdote."""
    draws: int
    """Bootstrap draws of this slice."""
    candidate: VersionEvaluation
    baseline: VersionEvaluation | None
    paired: PairedEvaluation | None

    @property
    def name(self) -> str:
        """``device=KOWA VX-10``; empty for all cases."""
        return f"{self.key}={self.value}" if self.key else ""

    def to_json(self) -> dict[str, Any]:
        return dict(as_json(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class GapGroup:
    """One value of a slice key in a fairness gap."""

    value: str
    n: int
    rate: float
    small: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """How far a rate differs between the values of a slice key, for one version."""

    difference: Figure
    """Highest minus lowest rate among the groups that are not small."""
    ratio: Figure
    """Lowest over highest, likewise."""
    difference_of_all: Figure
    """With the small groups."""
    ratio_of_all: Figure
    p_value: float | None
    """Of so large a difference if all groups (not small) had the same rate."""
    adjusted_p_value: float | None
    """Holm's, over all gaps of this version in the evaluation."""
    lowest: str
    highest: str
    groups: tuple[GapGroup, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FairnessGap:
    metric: str
    """sensitivity_gap, specificity_gap, selection_rate_gap."""
    key: str
    candidate: Gap
    baseline: Gap | None
    change: Figure | None
    """The candidate's difference minus the baseline's, groups not small."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangedCase:
    """A case on which the two versions decide differently."""

    case_key: str
    score: float
    baseline_score: float
    present: bool
    baseline_present: bool
    truth: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One finding of one version, or of two."""

    finding_name: str
    seed: int
    draws: int
    """As asked for; each slice states its own, which are fewer where there are many cases."""
    least_cases: int
    overall: SliceEvaluation
    slices: tuple[SliceEvaluation, ...]
    fairness: tuple[FairnessGap, ...]
    changed: tuple[ChangedCase, ...]
    """All cases that change side, the largest change of score first."""
    notes: tuple[str, ...]
    """What a reader has to know of how the figures were got."""

    def slice(self, key: str, value: str) -> SliceEvaluation | None:
        return next((one for one in self.slices if (one.key, one.value) == (key, value)), None)

    def to_json(self) -> dict[str, Any]:
        """All of it; ``json.dumps(..., allow_nan=False)`` accepts it."""
        return dict(as_json(self))
