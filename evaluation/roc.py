"""Area under the ROC curve with DeLong's interval, and the curves.

The area is the chance that a positive case scores above a negative one, ties counting half. DeLong's variance rests on
each case's *placement*: the share of the other class that it beats. Where cases come in groups (two eyes of a person),
the placements are summed by group (Obuchowski), which is DeLong's own formula where no group repeats.

References
----------
DeLong, DeLong, Clarke-Pearson, "Comparing the areas under two or more correlated receiver operating characteristic
curves", Biometrics 1988;44:837-845.
Sun, Xu, "Fast implementation of DeLong's algorithm", IEEE Signal Processing Letters 2014;21:1389-1393.
Obuchowski, "Nonparametric analysis of clustered ROC curve data", Biometrics 1997;53:567-578.
Obuchowski, Lieber, "Confidence bounds when the estimated ROC area is 1.0", Academic Radiology 2002;9:526-530.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import precision_recall_curve, roc_auc_score, roc_curve

from evaluation.figures import CONFIDENCE, Figure, PrecisionRecallCurve, RocCurve
from evaluation.proportions import Z

ONE_CLASS = "the cases with truth are all positive or all negative"
NO_TRUTH = "no case has a truth"
ALL_EQUAL = "all scores are equal, so that they order nothing"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Areas:
    """Areas of K versions on the same cases."""

    values: NDArray[np.float64]
    """[K]."""
    covariance: NDArray[np.float64] | None
    """[K, K]; ``None`` with fewer than two groups that hold a positive, or a negative."""
    least_class: int
    """Groups that hold the rarer class."""
    repeated: bool


def placements(
    scores: NDArray[np.float64], truth: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give each case's share of the other class that it beats, ties counting half (Sun and Xu 2014, eq. 4-6).

    Parameters
    ----------
    scores, truth
        [n].

    Returns
    -------
    Of the positives [m], and of the negatives [n - m]; either one's mean is the area.
    """
    positive, negative = scores[truth], scores[~truth]
    ranks = stats.rankdata(scores)
    above = (ranks[truth] - stats.rankdata(positive)) / negative.size
    below = 1.0 - (ranks[~truth] - stats.rankdata(negative)) / positive.size
    return above, below


def areas(versions: list[NDArray[np.float64]], truth: NDArray[np.bool_], groups: NDArray[np.intp]) -> Areas:
    """Areas of K versions with their covariance (DeLong; Obuchowski where groups repeat).

    Parameters
    ----------
    versions
        K times scores [n].
    truth
        [n], both classes present.
    groups
        [n], codes.
    """
    placed = [placements(scores, truth) for scores in versions]
    # The value is scikit-learn's, to the last bit.
    values = np.array([float(roc_auc_score(truth, scores)) for scores in versions])
    codes = np.unique(groups, return_inverse=True)[1]
    clusters = int(codes.max()) + 1
    of_positives = _by_group([above for above, _ in placed], values, codes[truth], clusters)
    of_negatives = _by_group([below for _, below in placed], values, codes[~truth], clusters)
    with_positive, with_negative = int(np.unique(codes[truth]).size), int(np.unique(codes[~truth]).size)
    least = min(with_positive, with_negative)
    positives, negatives = int(truth.sum()), int((~truth).sum())
    covariance = None
    if least >= 2:
        crossed = of_positives.T @ of_negatives
        covariance = (
            with_positive / (with_positive - 1) / positives**2 * (of_positives.T @ of_positives)
            + with_negative / (with_negative - 1) / negatives**2 * (of_negatives.T @ of_negatives)
            + clusters / (clusters - 1) / (positives * negatives) * (crossed + crossed.T)
        )
    return Areas(values=values, covariance=covariance, least_class=least, repeated=clusters < truth.size)


def _by_group(
    placed: list[NDArray[np.float64]], values: NDArray[np.float64], codes: NDArray[np.intp], clusters: int
) -> NDArray[np.float64]:
    columns = [
        np.bincount(codes, weights=one - value, minlength=clusters) for one, value in zip(placed, values, strict=True)
    ]
    return np.stack(columns, axis=1)


def area_figure(found: Areas, version: int, *, n: int, equal: bool) -> Figure:
    """Area with DeLong's interval, cut off at 0 and 1.

    At an area of 0 or 1 DeLong's variance is 0, which says nothing. There, with ``k`` groups of the rarer class, the
    chance of perfect order is at most ``area ** k`` (k pairs that share no case), which bounds the area from below.

    Parameters
    ----------
    equal
        Whether all scores are equal.
    """
    value = float(found.values[version])
    method = "DeLong, summed by group (Obuchowski)" if found.repeated else "DeLong"
    if equal:
        return Figure(value=value, n=n, method=method, reason=ALL_EQUAL)
    if value in (0.0, 1.0):
        bound = float(((1 - CONFIDENCE) / 2) ** (1 / found.least_class))
        low, high = (bound, 1.0) if value == 1.0 else (0.0, 1.0 - bound)
        return Figure(
            value=value, low=low, high=high, n=n, method="exact bound for perfect order, by the rarer class's groups"
        )
    if found.covariance is None:
        return Figure(value=value, n=n, method=method, reason="one class stands in a single group")
    half = Z * math.sqrt(max(float(found.covariance[version, version]), 0.0))
    return Figure(value=value, low=max(0.0, value - half), high=min(1.0, value + half), n=n, method=method)


def area_difference(found: Areas, first: Figure, second: Figure, *, identical: bool) -> tuple[Figure, float | None]:
    """Difference of two areas of the same cases, and DeLong's two-sided p-value.

    Parameters
    ----------
    found
        Of two versions, candidate first.
    first, second
        Their own figures.
    identical
        Whether the two versions order the cases alike, so that the difference is 0 whatever the cases.
    """
    value = float(found.values[0] - found.values[1])
    method = "DeLong, paired" + (", summed by group (Obuchowski)" if found.repeated else "")
    if identical:
        return Figure(value=0.0, low=0.0, high=0.0, n=first.n, method="same scores"), 1.0
    if found.covariance is None:
        return Figure(value=value, n=first.n, method=method, reason="one class stands in a single group"), None
    covariance = found.covariance
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    # A variance of rounding errors alone, as of two versions without an error each, is no knowledge.
    if variance <= 1e-15:
        return _square_and_add(value, first, second), None
    deviation = math.sqrt(variance)
    p_value = float(2 * stats.norm.sf(abs(value) / deviation))
    low, high = max(-1.0, value - Z * deviation), min(1.0, value + Z * deviation)
    return Figure(value=value, low=low, high=high, n=first.n, method=method), p_value


def _square_and_add(value: float, first: Figure, second: Figure) -> Figure:
    if None in (first.value, first.low, first.high, second.value, second.low, second.high):
        return Figure(value=value, n=first.n, method="DeLong, paired", reason="the variance is 0")
    down = math.hypot(first.value - first.low, second.high - second.value)  # type: ignore[operator]
    up = math.hypot(first.high - first.value, second.value - second.low)  # type: ignore[operator]
    return Figure(
        value=value, low=value - down, high=value + up, n=first.n, method="intervals of both areas, squared and added"
    )


def roc_points(truth: NDArray[np.bool_], scores: NDArray[np.float64], points: int) -> RocCurve:
    """Give the ROC curve of scikit-learn, thinned to about ``points`` evenly spaced along it."""
    false_rate, true_rate, thresholds = roc_curve(truth, scores, drop_intermediate=True)
    kept = _thinned(false_rate, true_rate, points)
    return RocCurve(
        false_positive_rate=_numbers(false_rate[kept]),
        true_positive_rate=_numbers(true_rate[kept]),
        thresholds=_thresholds(thresholds[kept]),
    )


def precision_recall_points(truth: NDArray[np.bool_], scores: NDArray[np.float64], points: int) -> PrecisionRecallCurve:
    """Give the precision-recall curve of scikit-learn, thinned likewise, by rising recall."""
    precision, recall, thresholds = precision_recall_curve(truth, scores, drop_intermediate=True)
    precision, recall = precision[::-1], recall[::-1]
    limits = np.append(thresholds, np.inf)[::-1]
    kept = _thinned(recall, precision, points)
    return PrecisionRecallCurve(
        recall=_numbers(recall[kept]), precision=_numbers(precision[kept]), thresholds=_thresholds(limits[kept])
    )


def _thinned(x: NDArray[np.float64], y: NDArray[np.float64], points: int) -> NDArray[np.intp]:
    if x.size <= points:
        return np.arange(x.size)
    travelled = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
    wanted = np.linspace(0.0, travelled[-1], points)
    chosen = np.minimum(np.searchsorted(travelled, wanted), x.size - 1)
    kept: NDArray[np.intp] = np.unique(np.concatenate([[0], chosen, [x.size - 1]])).astype(np.intp)
    return kept


def _numbers(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(one) for one in values)


def _thresholds(values: NDArray[np.float64]) -> tuple[float | None, ...]:
    return tuple(float(one) if math.isfinite(one) else None for one in values)
