"""Do scores mean what they say: of the cases with a score of 0.3, are three in ten positive?

References
----------
Naeini, Cooper, Hauskrecht, "Obtaining well calibrated probabilities using Bayesian binning", AAAI 2015 (ECE).
Nixon, Dusenberry, Jerfel, Zhang, Tran, "Measuring calibration in deep learning", CVPR Workshops 2019 (equal mass).
Murphy, "A new vector partition of the probability score", Journal of Applied Meteorology 1973;12:595-600.
Stephenson, Coelho, Jolliffe, "Two extra components in the Brier score decomposition", Weather and Forecasting
2008;23:752-757.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.calibration import calibration_curve

from evaluation.figures import BrierParts, ReliabilityBin
from evaluation.proportions import proportion

BINS = 10
OUTSIDE = "the scores are not probabilities: some lie outside 0 to 1"
_SLACK = 1e-6
"""How far a sum of float32 probabilities may lie outside 0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bins:
    """Which case lies in which bin; only bins with cases are kept."""

    edges: NDArray[np.float64]
    """[bins + 1], of all bins."""
    kept: NDArray[np.intp]
    """[k], indices of bins that hold cases."""
    index: NDArray[np.intp]
    """[n], position in ``kept``."""
    counts: NDArray[np.intp]
    """[k]."""
    mean_scores: NDArray[np.float64]
    """[k]."""
    fractions: NDArray[np.float64]
    """[k], of positive cases."""

    @property
    def expected_error(self) -> float:
        """ECE: the distance of fraction from mean score, weighted by the bins' cases."""
        return float(self.counts @ np.abs(self.fractions - self.mean_scores) / self.counts.sum())


def as_probabilities(scores: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Cut rounding errors off at 0 and 1; ``None`` where a score lies further outside."""
    if scores.min() < -_SLACK or scores.max() > 1 + _SLACK:
        return None
    return np.clip(scores, 0.0, 1.0)


def binned(truth: NDArray[np.bool_], probabilities: NDArray[np.float64], *, equal_mass: bool) -> Bins:
    """Cut the cases into at most :data:`BINS` bins, as :func:`sklearn.calibration.calibration_curve` does.

    A bin holds what lies above its lower and at or below its upper edge. Equal width: tenths of 0 to 1. Equal mass:
    between the deciles of the scores, so that ties may leave fewer bins.
    """
    shares = np.linspace(0.0, 1.0, BINS + 1)
    edges = np.percentile(probabilities, shares * 100) if equal_mass else shares
    place = np.searchsorted(edges[1:-1], probabilities)
    kept, index, counts = np.unique(place, return_inverse=True, return_counts=True)
    fractions, means = calibration_curve(
        truth, probabilities, n_bins=BINS, strategy="quantile" if equal_mass else "uniform", pos_label=True
    )
    return Bins(edges=edges, kept=kept, index=index, counts=counts, mean_scores=means, fractions=fractions)


def reliability(bins: Bins, truth: NDArray[np.bool_], groups: NDArray[np.intp]) -> tuple[ReliabilityBin, ...]:
    """Give the reliability curve with an interval a bin."""
    return tuple(
        ReliabilityBin(
            from_score=float(bins.edges[bins.kept[one]]),
            to_score=float(bins.edges[bins.kept[one] + 1]),
            n=int(bins.counts[one]),
            mean_score=float(bins.mean_scores[one]),
            fraction=proportion(truth[bins.index == one], groups[bins.index == one], nothing="no case"),
        )
        for one in range(bins.kept.size)
    )


def brier_parts(bins: Bins, truth: NDArray[np.bool_], probabilities: NDArray[np.float64]) -> BrierParts:
    """Split the Brier score so that reliability - resolution + uncertainty + within_bin is the score exactly."""
    count = truth.size
    prevalence = float(truth.mean())
    far = float(bins.counts @ (bins.mean_scores - bins.fractions) ** 2) / count
    apart = float(bins.counts @ (bins.fractions - prevalence) ** 2) / count
    within_score = probabilities - bins.mean_scores[bins.index]
    within_truth = truth - bins.fractions[bins.index]
    within = float((within_score**2).mean() - 2 * (within_score * within_truth).mean())
    return BrierParts(reliability=far, resolution=apart, uncertainty=prevalence * (1 - prevalence), within_bin=within)
