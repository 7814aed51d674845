"""Intervals of proportions, of their paired difference, and McNemar's test.

References
----------
Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927;22:209-212.
Clopper, Pearson, "The use of confidence or fiducial limits", Biometrika 1934;26:404-413.
Rao, Scott, "A simple method for the analysis of clustered binary data", Biometrics 1992;48:577-585.
Korn, Graubard, "Confidence intervals for proportions with small expected number of positive counts estimated from
survey data", Survey Methodology 1998;24:193-201.
Newcombe, "Improved confidence intervals for the difference between binomial proportions based on paired data",
Statistics in Medicine 1998;17:2635-2650, method 10.
McNemar, "Note on the sampling error of the difference between correlated proportions", Psychometrika 1947;12:153-157.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from evaluation.figures import CONFIDENCE, Figure, McNemar

WILSON_FROM = 40
"""Cases (effective, where groups repeat) from which Wilson's interval is used; Clopper-Pearson's below."""
Z = float(stats.norm.ppf(0.5 + CONFIDENCE / 2))


def _wilson(share: float, size: float) -> tuple[float, float]:
    centre = (share + Z * Z / (2 * size)) / (1 + Z * Z / size)
    half = Z / (1 + Z * Z / size) * math.sqrt(share * (1 - share) / size + Z * Z / (4 * size * size))
    return (0.0 if share == 0 else max(0.0, centre - half)), (1.0 if share == 1 else min(1.0, centre + half))


def _clopper_pearson(share: float, size: float) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    hits = share * size
    low = 0.0 if share == 0 else float(stats.beta.ppf(tail, hits, size - hits + 1))
    high = 1.0 if share == 1 else float(stats.beta.ppf(1 - tail, hits + 1, size - hits))
    return low, high


def interval(share: float, size: float) -> tuple[float, float]:
    """Give the interval of a proportion among ``size`` independent cases; ``size`` need not be whole."""
    return _wilson(share, size) if size >= WILSON_FROM else _clopper_pearson(share, size)


def effective_size(hits: NDArray[np.bool_], groups: NDArray[np.intp]) -> float:
    """To how many independent cases do these amount?

    Parameters
    ----------
    hits
        [n].
    groups
        [n], codes.

    Returns
    -------
    ``n`` where no group repeats. Else ``n`` over the design effect of the ratio estimator, shrunk for few groups by
    Korn and Graubard's factor; never above ``n``, and the number of groups where all or none are hits, since then
    nothing tells how alike the cases of a group are.
    """
    count = hits.size
    codes = np.unique(groups, return_inverse=True)[1]
    clusters = int(codes.max()) + 1
    share = float(hits.mean())
    if clusters == count:
        return float(count)
    if clusters < 2 or share in (0.0, 1.0):
        return float(clusters)
    residuals = np.bincount(codes, weights=hits - share)
    variance = clusters / (clusters - 1) * float(residuals @ residuals) / count**2
    independent = share * (1 - share) / count
    if variance <= 0:
        return float(clusters)
    size = count * independent / variance
    size *= (Z / float(stats.t.ppf(0.5 + CONFIDENCE / 2, clusters - 1))) ** 2
    return float(min(max(size, 1.0), count))


def proportion(hits: NDArray[np.bool_], groups: NDArray[np.intp], *, nothing: str) -> Figure:
    """Estimate the proportion of hits.

    Parameters
    ----------
    hits
        [n], of the cases that count.
    groups
        [n], codes.
    nothing
        Why there is no figure where ``n`` is 0.
    """
    if hits.size == 0:
        return Figure(value=None, n=0, method="proportion", reason=nothing)
    share = float(hits.mean())
    size = effective_size(hits, groups)
    low, high = interval(share, size)
    method = "Wilson" if size >= WILSON_FROM else "Clopper-Pearson"
    if np.unique(groups).size < hits.size:
        method += f", {size:.1f} effective cases (Rao-Scott) since groups repeat"
    return Figure(value=share, low=min(low, share), high=max(high, share), n=int(hits.size), method=method)


def paired_difference(
    candidate: NDArray[np.bool_], baseline: NDArray[np.bool_], groups: NDArray[np.intp], *, nothing: str
) -> Figure:
    """Estimate the difference of two proportions of the same cases (Newcombe's method 10).

    Where groups repeat, the counts are scaled down to the effective size of the difference.

    Parameters
    ----------
    candidate, baseline
        [n], hits of each.
    """
    count = candidate.size
    if count == 0:
        return Figure(value=None, n=0, method="Newcombe", reason=nothing)
    first, second = float(candidate.mean()), float(baseline.mean())
    size = _effective_pairs(candidate, baseline, groups)
    both = float((candidate & baseline).mean()) * size
    only_first = float((candidate & ~baseline).mean()) * size
    only_second = float((~candidate & baseline).mean()) * size
    neither = size - both - only_first - only_second
    low, high = _newcombe(both, only_first, only_second, neither)
    method = "Newcombe's paired score interval"
    if size < count:
        method += f", {size:.1f} effective cases since groups repeat"
    value = first - second
    return Figure(value=value, low=min(low, value), high=max(high, value), n=int(count), method=method)


def _effective_pairs(candidate: NDArray[np.bool_], baseline: NDArray[np.bool_], groups: NDArray[np.intp]) -> float:
    count = candidate.size
    codes = np.unique(groups, return_inverse=True)[1]
    clusters = int(codes.max()) + 1
    if clusters == count:
        return float(count)
    change = candidate.astype(np.float64) - baseline
    spread = float(change.var())
    if clusters < 2 or spread == 0:
        return float(clusters)
    residuals = np.bincount(codes, weights=change - change.mean())
    variance = clusters / (clusters - 1) * float(residuals @ residuals) / count**2
    if variance <= 0:
        return float(clusters)
    size = spread / variance * (Z / float(stats.t.ppf(0.5 + CONFIDENCE / 2, clusters - 1))) ** 2
    return float(min(max(size, 1.0), count))


def _newcombe(both: float, only_first: float, only_second: float, neither: float) -> tuple[float, float]:
    size = both + only_first + only_second + neither
    first, second = (both + only_first) / size, (both + only_second) / size
    (low_1, high_1), (low_2, high_2) = _wilson(_unit(first), size), _wilson(_unit(second), size)
    product = (both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)
    phi = 0.0
    if product > 0:
        excess = both * neither - only_first * only_second
        # The continuity correction of method 10 applies to a positive association alone.
        corrected = max(excess - size / 2, 0.0) if excess > 0 else excess
        phi = corrected / math.sqrt(product)
    down = (first - low_1) ** 2 - 2 * phi * (first - low_1) * (high_2 - second) + (high_2 - second) ** 2
    up = (high_1 - first) ** 2 - 2 * phi * (high_1 - first) * (second - low_2) + (second - low_2) ** 2
    value = first - second
    return max(-1.0, value - math.sqrt(max(down, 0.0))), min(1.0, value + math.sqrt(max(up, 0.0)))


def _unit(share: float) -> float:
    return min(max(share, 0.0), 1.0)


def mcnemar(candidate: NDArray[np.bool_], baseline: NDArray[np.bool_], groups: NDArray[np.intp]) -> McNemar | None:
    """Test whether two versions are right equally often on the same cases; ``None`` without a case.

    Parameters
    ----------
    candidate, baseline
        [n], where each was right.
    """
    if candidate.size == 0:
        return None
    change = candidate.astype(np.int64) - baseline
    codes = np.unique(groups, return_inverse=True)[1]
    of_groups = None
    if int(codes.max()) + 1 < change.size:
        net = np.bincount(codes, weights=change)
        of_groups = _sign_test(int((net > 0).sum()), int((net < 0).sum()))
    gained, lost = int((change > 0).sum()), int((change < 0).sum())
    return McNemar(
        n=int(change.size),
        candidate_only_right=gained,
        baseline_only_right=lost,
        p_value=_sign_test(gained, lost),
        p_value_of_groups=of_groups,
    )


def _sign_test(gained: int, lost: int) -> float:
    return float(stats.binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0
