"""Bootstrap of every figure at once, for two versions on the same draws.

A draw takes as many groups (persons, studies) as there are, with replacement; a case's weight is how often its group
was taken. Each figure is then one weighted pass over cases that were sorted once, so that a draw costs O(N), ties
included.

References
----------
Efron, Tibshirani, "An introduction to the bootstrap", 1993, chapter 13 (percentile), 13.4 (basic).
Field, Welsh, "Bootstrapping clustered data", JRSS B 2007;69:369-390 (resampling whole clusters).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.figures import CONFIDENCE, Figure

LEAST_DRAWS = 500
"""Fewest draws that a large evaluation is cut to."""
BLOCK = 100_000
"""Weights held at a time; a block of draws stays in the processor's cache."""
CELLS = 12
"""(truth unknown, absent, present) x candidate's decision x baseline's decision."""

Draws = Mapping[str, NDArray[np.float64]]
"""Name of a figure -> [draws, versions], NaN where a draw has no such figure."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Resampled:
    """What is resampled: cases of one slice."""

    groups: NDArray[np.intp]
    """[N], codes 0 to G - 1 without a gap."""
    truth: NDArray[np.int8]
    """[N]."""
    scores: tuple[NDArray[np.float64], ...]
    """One or two times [N]."""
    present: tuple[NDArray[np.bool_], ...]
    """Likewise."""
    bins: tuple[tuple[NDArray[np.intp], NDArray[np.intp]] | None, ...]
    """A version's bins of the cases with truth, equal width and equal mass; ``None``: scores are no probabilities."""


def cut_draws(asked: int, weights: int, budget: int) -> int:
    """Cut the draws so that draws x weights stays within the budget, but not below :data:`LEAST_DRAWS`."""
    return min(asked, max(LEAST_DRAWS, budget // max(weights, 1)))


def cell_codes(truth: NDArray[np.int8], present: tuple[NDArray[np.bool_], ...]) -> NDArray[np.intp]:
    """[N], which of the :data:`CELLS` a case lies in; a lone version stands in both places."""
    return ((truth.astype(np.intp) + 1) * 2 + present[0]) * 2 + present[-1]


def group_weights(groups: int, draws: int, cases: int, rng: np.random.Generator) -> Iterator[NDArray[np.float64]]:
    """Yield how often each group was taken, block by block, [draws in the block, G]."""
    rows = _rows(cases, groups)
    for start in range(0, draws, rows):
        block = min(rows, draws - start)
        taken = rng.integers(0, groups, size=(block, groups), dtype=np.int32).astype(np.intp)
        taken += np.arange(block)[:, None] * groups
        counts = np.bincount(taken.ravel(), minlength=block * groups)
        yield counts.reshape(block, groups).astype(np.float64)


class CellCounter:
    """Sums weights by cell, with the places of a whole block worked out once."""

    def __init__(self, codes: NDArray[np.intp], cells: int, groups: int) -> None:
        self.cells = cells
        rows = _rows(codes.size, groups)
        self.places = (np.arange(rows)[:, None] * cells + codes[None, :]).ravel()

    def __call__(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sum weights [B, N] by cell, [B, cells]."""
        rows = weights.shape[0]
        flat = weights.ravel()
        summed: NDArray[np.float64] = np.bincount(
            self.places[: flat.size], weights=flat, minlength=rows * self.cells
        ).astype(np.float64)
        return summed.reshape(rows, self.cells)


def _rows(cases: int, groups: int) -> int:
    return max(1, BLOCK // max(cases, groups))


class _Ordered:
    """One version's cases with truth, sorted by falling score, ties marked."""

    def __init__(self, cases: Resampled, version: int, known: NDArray[np.intp]) -> None:
        scores = cases.scores[version][known]
        order = np.argsort(-scores, kind="stable")
        self.positions = known[order]
        self.truth = (cases.truth[known][order] == 1).astype(np.float64)
        ranked = scores[order]
        starts = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]]))
        self.starts = None if starts.size == ranked.size else starts
        self.squares: NDArray[np.float64] | None = None
        self.residuals: NDArray[np.float64] | None = None
        self.bin_starts: tuple[NDArray[np.intp], ...] = ()
        bins = cases.bins[version]
        if bins is not None:
            self.residuals = self.truth - np.clip(ranked, 0.0, 1.0)
            self.squares = self.residuals**2
            # Bins are ranges of scores, so that each is one run of the sorted cases.
            self.bin_starts = tuple(
                np.flatnonzero(np.concatenate([[True], np.diff(index[order]) != 0])) for index in bins
            )

    def figures(self, weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        # In place and without temporaries, since for many cases making arrays takes longer than filling them.
        taken = np.take(weights, self.positions, axis=1)
        of_positives = taken * self.truth
        found = {}
        total = taken.sum(axis=1)
        if self.squares is not None and self.residuals is not None:
            found["brier"] = _over(taken @ self.squares, total)
            strayed = taken * self.residuals
            found["calibration_in_the_large"] = _over(-strayed.sum(axis=1), total)
            for name, starts in zip(("ece", "ece_equal_mass"), self.bin_starts, strict=True):
                strayed_bins = np.add.reduceat(strayed, starts, axis=1) / np.maximum(total, 1.0)[:, None]
                found[name] = np.abs(strayed_bins).sum(axis=1)
                expected = np.add.reduceat(self.residuals, starts) / self.residuals.size
                found[f"{name}_deviation"] = np.abs(strayed_bins - expected).sum(axis=1)
        if self.starts is not None:
            taken = np.add.reduceat(taken, self.starts, axis=1)
            of_positives = np.add.reduceat(of_positives, self.starts, axis=1)
        hits = np.cumsum(of_positives, axis=1)
        called = np.cumsum(taken, axis=1)
        positives = hits[:, -1].copy()
        negatives = called[:, -1] - positives
        np.subtract(taken, of_positives, out=taken)
        # A negative is beaten by the positives above it, and by half of those that tie with it.
        beaten = np.einsum("bt,bt->b", taken, hits) - np.einsum("bt,bt->b", taken, of_positives) / 2
        found["auc_roc"] = _over(beaten, positives * negatives)
        np.maximum(called, 1.0, out=called)
        np.divide(hits, called, out=hits)
        found["auc_pr"] = _over(np.einsum("bt,bt->b", of_positives, hits), positives)
        return found


def _over(numerator: NDArray[np.float64], denominator: NDArray[np.float64]) -> NDArray[np.float64]:
    quotient = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=quotient, where=denominator > 0)
    return quotient


def decisions_from_cells(cells: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Turn counts by cell into figures.

    Parameters
    ----------
    cells
        [..., 12] by :func:`cell_codes`.

    Returns
    -------
    Each version's sensitivity, specificity, ppv, npv, accuracy, selection_rate, [..., 2]; agreement and kappa, [...].
    """
    table = cells.reshape(*cells.shape[:-1], 3, 2, 2)
    # [..., truth, decision], by version
    by_version = np.stack([table.sum(axis=-1), table.sum(axis=-2)], axis=-1)
    negative, positive = by_version[..., 1, :, :], by_version[..., 2, :, :]
    everything = by_version.sum(axis=-3)
    found = {
        "sensitivity": _over(positive[..., 1, :], positive.sum(axis=-2)),
        "specificity": _over(negative[..., 0, :], negative.sum(axis=-2)),
        "ppv": _over(positive[..., 1, :], positive[..., 1, :] + negative[..., 1, :]),
        "npv": _over(negative[..., 0, :], positive[..., 0, :] + negative[..., 0, :]),
        "accuracy": _over(positive[..., 1, :] + negative[..., 0, :], (positive + negative).sum(axis=-2)),
        "selection_rate": _over(everything[..., 1, :], everything.sum(axis=-2)),
    }
    total = everything[..., 0].sum(axis=-1)
    same = table[..., 0, 0].sum(axis=-1) + table[..., 1, 1].sum(axis=-1)
    agreement = _over(same, total)
    by_chance = _over((everything[..., 0] * everything[..., 1]).sum(axis=-1), total**2)
    found["agreement"] = agreement
    found["kappa"] = _over(agreement - by_chance, 1 - by_chance)
    return found


def bootstrap(cases: Resampled, draws: int, rng: np.random.Generator) -> Draws:
    """Draw every figure.

    Returns
    -------
    Name -> [draws, versions]; ``agreement`` and ``kappa`` [draws, 1].
    """
    groups = int(cases.groups.max()) + 1
    repeated = groups < cases.groups.size
    known = np.flatnonzero(cases.truth >= 0)
    versions = len(cases.scores)
    ordered = [_Ordered(cases, version, known) for version in range(versions)] if known.size else []
    count_cells = CellCounter(cell_codes(cases.truth, cases.present), CELLS, groups)
    collected: dict[str, list[NDArray[np.float64]]] = {}
    for weights in group_weights(groups, draws, cases.groups.size, rng):
        # Without repeats a code stands for one case, though not in the cases' order.
        by_case = weights[:, cases.groups] if repeated else weights
        for name, values in decisions_from_cells(count_cells(by_case)).items():
            kept = values[:, None] if values.ndim == 1 else values[:, :versions]
            collected.setdefault(name, []).append(kept)
        by_version = [one.figures(by_case) for one in ordered]
        for name in by_version[0] if by_version else ():
            if all(name in found for found in by_version):
                collected.setdefault(name, []).append(np.stack([found[name] for found in by_version], axis=1))
    return {name: np.concatenate(parts) for name, parts in collected.items()}


def percentile(
    value: float | None,
    drawn: NDArray[np.float64] | None,
    *,
    n: int,
    method: str,
    reason: str = "",
    low: float | None = None,
    high: float | None = None,
    limits: tuple[float, float] = (-math.inf, math.inf),
) -> Figure:
    """Put the bootstrap's percentile interval around a value.

    Parameters
    ----------
    drawn
        [draws], NaN where a draw had no such figure.
    low, high
        Bounds known better than from the quantiles.
    limits
        What the figure cannot lie outside of.
    """
    if value is None:
        return Figure(value=None, n=n, method=method, reason=reason)
    usable = np.zeros(0) if drawn is None else drawn[~np.isnan(drawn)]
    asked = 0 if drawn is None else drawn.size
    if usable.size < max(asked / 2, 2):
        return Figure(value=value, n=n, method=method, reason="too few draws hold what the figure needs")
    if float(usable.max() - usable.min()) <= 1e-12:
        return Figure(
            value=value,
            n=n,
            method=method,
            reason="every draw gave the same, so that they cannot tell how far off it is",
        )
    tail = (1 - CONFIDENCE) / 2
    below, above = (float(one) for one in np.quantile(usable, [tail, 1 - tail]))
    low, high = below if low is None else low, above if high is None else high
    if usable.size < asked:
        method += f", {asked - usable.size} draws without such a figure left out"
    return Figure(
        value=value,
        low=max(limits[0], min(low, value)),
        high=min(limits[1], max(high, value)),
        n=n,
        method=method,
    )


def distance_from_noise(value: float, deviations: NDArray[np.float64] | None) -> float:
    """Lower bound of a figure that measures how far something is from nothing (a gap, an ECE).

    Such a figure is a norm, so that it cannot exceed the true one by more than the norm of the estimate's error
    (triangle inequality); the draws' deviations from the estimate stand in for that error. A percentile interval would
    never reach 0, however little there is to find.

    Parameters
    ----------
    deviations
        [draws], norm of each draw's deviation.
    """
    usable = np.zeros(0) if deviations is None else deviations[~np.isnan(deviations)]
    if usable.size == 0:
        return 0.0
    return max(0.0, value - float(np.quantile(usable, 0.5 + CONFIDENCE / 2)))
