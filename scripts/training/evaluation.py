"""Figures that go on a card: area under the ROC curve with its interval, and the choice of an operating point."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from models.card import Metric

Scores = npt.NDArray[np.float64]
BOOTSTRAPS = 2000


def area_under_curve(truth: npt.NDArray[np.bool_], scores: Scores) -> float:
    """Share of (positive, negative) pairs in the right order, ties counted half (Hanley and McNeil 1982)."""
    order = np.sort(scores[~truth])
    below = np.searchsorted(order, scores[truth], side="left")
    not_above = np.searchsorted(order, scores[truth], side="right")
    return float((below + not_above).mean() / 2 / len(order))


def interval(
    statistic: object, groups: npt.NDArray[np.int_], seed: int, bootstraps: int = BOOTSTRAPS
) -> tuple[float, float]:
    """95 % percentile bootstrap of ``statistic(positions)``, whole groups (persons) drawn together.

    Draws on which the statistic is not defined (a class is missing) are left out.
    """
    random = np.random.default_rng(seed)
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    found = []
    for _ in range(bootstraps):
        drawn = random.integers(0, len(members), len(members))
        value = statistic(np.concatenate([members[index] for index in drawn]))  # type: ignore[operator]
        if np.isfinite(value):
            found.append(value)
    low, high = np.percentile(found, (2.5, 97.5))
    return float(low), float(high)


def auc_metric(
    name: str, dataset: str, truth: npt.NDArray[np.bool_], repeats: Scores, groups: npt.NDArray[np.int_], method: str
) -> Metric:
    """Mean area under the curve over the rows of `repeats` [R, N], and its interval."""

    def mean_area(positions: npt.NDArray[np.int_]) -> float:
        drawn = truth[positions]
        if drawn.all() or not drawn.any():
            return float("nan")
        return float(np.mean([area_under_curve(drawn, scores[positions]) for scores in repeats]))

    low, high = interval(mean_area, groups, seed=0)
    return _metric(name, dataset, (mean_area(np.arange(len(truth))), low, high), method)


def rate_metric(
    name: str,
    dataset: str,
    correct: npt.NDArray[np.bool_],
    groups: npt.NDArray[np.int_],
    method: str,
) -> Metric:
    """Share of `correct` [R, N] (a sensitivity or specificity), with Wilson's interval for as many trials as `groups`.

    Wilson's, since a bootstrap of a share of 1 claims certainty; persons rather than images, since those of a person
    are alike (Wilson 1927).
    """
    share, trials, z = float(correct.mean()), len(np.unique(groups)), 1.959964
    centre = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    reach = z / (1 + z**2 / trials) * np.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    return _metric(name, dataset, (share, float(centre - reach), min(1.0, float(centre + reach))), method)


def _metric(name: str, dataset: str, values: tuple[float, float, float], method: str) -> Metric:
    value, low, high = (round(number, 4) for number in values)
    return Metric(name=name, dataset=dataset, value=value, low=low, high=high, method=method)


def operating_point(truth: npt.NDArray[np.bool_], repeats: Scores, sensitivity: float) -> float:
    """Highest threshold, rounded down to 0.01, at which at least `sensitivity` of the positives are found.

    `repeats` [R, N] are scores of images that the model which gave them was not trained on.
    """
    positives = np.sort(repeats[:, truth].ravel())
    missed = int((1 - sensitivity) * len(positives))
    return max(0.01, float(np.floor(positives[missed] * 100) / 100))


def high_priority_from(truth: npt.NDArray[np.bool_], repeats: Scores, specificity: float) -> float:
    """Lowest threshold, rounded up to 0.01, at which at least `specificity` of the negatives stay below."""
    negatives = np.sort(repeats[:, ~truth].ravel())
    index = min(len(negatives) - 1, int(np.ceil(specificity * len(negatives))))
    return min(0.99, float(np.ceil(negatives[index] * 100 + 1e-9) / 100))


def quadratic_kappa(truth: npt.NDArray[np.int_], grades: npt.NDArray[np.int_], count: int) -> float:
    """Agreement of ordered grades, weighted by the squared distance (Cohen 1968)."""
    observed = np.zeros((count, count))
    np.add.at(observed, (truth, grades), 1)
    expected = np.outer(observed.sum(axis=1), observed.sum(axis=0)) / observed.sum()
    weight = (np.arange(count)[:, None] - np.arange(count)) ** 2
    return float(1 - (weight * observed).sum() / (weight * expected).sum())


def table(metrics: Sequence[Metric]) -> str:
    """The metrics as lines of text."""
    rows = []
    for metric in metrics:
        bounds = f"[{metric.low:.3f}, {metric.high:.3f}]" if metric.low is not None and metric.high is not None else ""
        rows.append(f"  {metric.name:<44} {metric.value:.3f} {bounds:<16} {metric.dataset}")
    return "\n".join(rows)
