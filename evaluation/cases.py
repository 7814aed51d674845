"""What is evaluated: one row a case, with the scores of one or two versions, and the truth where it is known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from evaluation.errors import EvaluationError

UNKNOWN = -1
"""Truth of a case that nobody has read yet."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoredCases:
    """Cases of one finding, validated once constructed.

    A finding is *present* when its score is at or above the version's own operating point.

    Raises
    ------
    EvaluationError
        Arrays of different lengths, no case at all, two cases of one key, a score that is NaN or infinite, a truth
        other than 1, 0 and -1, or baseline scores without an operating point.
    """

    case_keys: NDArray[np.str_]
    """[N], unique."""
    scores: NDArray[np.float64]
    """[N], the candidate's."""
    baseline_scores: NDArray[np.float64] | None = None
    """[N], of the version that it is compared with."""
    truth: NDArray[np.int8]
    """[N], 1 present, 0 absent, -1 unknown."""
    groups: NDArray[np.str_]
    """[N], the person or study: cases of one group are resampled together, since they are not independent."""
    slices: Mapping[str, NDArray[np.str_]] = field(default_factory=dict)
    """Key such as ``device`` -> [N] values, ``""`` where unknown."""
    operating_point: float
    baseline_operating_point: float | None = None

    def __post_init__(self) -> None:
        _set(self, "case_keys", _texts("case keys", self.case_keys))
        count = self.case_keys.size
        if count == 0:
            raise EvaluationError("no case to evaluate")
        _set(self, "scores", _scores("scores", self.scores, count))
        _set(self, "truth", _truth(self.truth, count))
        _set(self, "groups", _texts("groups", self.groups, count))
        _set(self, "slices", {key: _texts(f"slice {key}", values, count) for key, values in self.slices.items()})
        if np.unique(self.case_keys).size != count:
            raise EvaluationError("two cases have the same key")
        if self.baseline_scores is not None:
            _set(self, "baseline_scores", _scores("baseline scores", self.baseline_scores, count))
        if (self.baseline_scores is None) != (self.baseline_operating_point is None):
            raise EvaluationError("baseline scores and the baseline's operating point come together")
        for point in (self.operating_point, self.baseline_operating_point):
            if point is not None and not math.isfinite(point):
                raise EvaluationError("an operating point is not a finite number")

    @property
    def count(self) -> int:
        return int(self.case_keys.size)


def _set(cases: ScoredCases, name: str, value: object) -> None:
    object.__setattr__(cases, name, value)


def _one_axis(name: str, values: NDArray[np.generic], count: int | None) -> None:
    if values.ndim != 1:
        raise EvaluationError(f"{name} have {values.ndim} axes where one is wanted")
    if count is not None and values.size != count:
        raise EvaluationError(f"{values.size} {name} for {count} cases")


def _texts(name: str, values: object, count: int | None = None) -> NDArray[np.str_]:
    texts = np.asarray(values, dtype=np.str_)
    _one_axis(name, texts, count)
    return texts


def _scores(name: str, values: object, count: int) -> NDArray[np.float64]:
    numbers = np.asarray(values, dtype=np.float64)
    _one_axis(name, numbers, count)
    if not np.isfinite(numbers).all():
        raise EvaluationError(f"{int((~np.isfinite(numbers)).sum())} of the {name} are not finite numbers")
    return numbers


def _truth(values: object, count: int) -> NDArray[np.int8]:
    given = np.asarray(values)
    _one_axis("truths", given, count)
    if not np.isin(given, (1, 0, UNKNOWN)).all():
        raise EvaluationError("a truth is neither 1, 0 nor -1 (unknown)")
    return given.astype(np.int8)
