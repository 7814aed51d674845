"""The charts over whole streams at once, for simulation and measurement; ``drift/charts.py`` goes study by study."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from drift.charts import ALLOWANCE, CHARTS, FORGETTING, WINDOWS, ChartReference, mewma_variance

Float32 = NDArray[np.float32]


def run_recursions(levels: Float32, capped: Float32, moved: Float32) -> None:
    """Fill the first three of `levels` [7, streams, studies]: MEWMA and both sides of the CUSUM.

    Parameters
    ----------
    capped
        [streams, studies, k], whitened, none longer than the cap.
    moved
        [streams, studies], lengths in sd, capped.
    """
    streams, studies, width = capped.shape
    average = np.zeros((streams, width), dtype=np.float32)
    higher, lower = np.zeros(streams, dtype=np.float32), np.zeros(streams, dtype=np.float32)
    keep, weight, allowance = np.float32(1 - FORGETTING), np.float32(FORGETTING), np.float32(ALLOWANCE)
    for study in range(studies):
        average *= keep
        average += weight * capped[:, study]
        levels[0, :, study] = np.einsum("sk,sk->s", average, average) / np.float32(mewma_variance(study + 1))
        higher = np.maximum(0, higher + (moved[:, study] - allowance))
        lower = np.maximum(0, lower - (moved[:, study] + allowance))
        levels[1, :, study], levels[2, :, study] = higher, lower


class PairSums:
    """Kernel sums over sliding windows, from the kernel between each study and the one `lag` before it."""

    def __init__(self, streams: int, studies: int) -> None:
        self._backward = np.zeros((streams, studies))
        self._forward = np.zeros((streams, studies))

    def add(self, lag: int, pairs: Float32) -> None:
        """`pairs` [streams, studies - lag], for each lag from 1 up."""
        self._backward[:, lag:] += pairs
        self._forward[:, :-lag] += pairs

    def inside(self, window: int) -> NDArray[np.float64]:
        """[streams, studies], over ordered pairs within the window that ends there; lags under `window` are in."""
        # Each study brings its pairs with those before it in the window; the one that leaves takes those after it.
        gain = self._backward.copy()
        gain[:, window:] -= self._forward[:, :-window]
        return 2 * np.cumsum(gain, axis=1)


def fill_window(
    levels: Float32, number: int, sums: PairSums, affinities: NDArray[np.floating[Any]], within: float
) -> None:
    """Fill the level of one MMD window from its kernel sums; `affinities` [streams, studies]."""
    window = WINDOWS[number]
    across = np.cumsum(affinities, axis=1, dtype=np.float64)
    across[:, window:] -= across[:, :-window].copy()
    levels[3 + number] = sums.inside(window) / (window * (window - 1)) - 2 * across / window + within
    levels[3 + number, :, : window - 1] = -np.inf


def levels_of_streams(reference: ChartReference, embeddings: NDArray[Any]) -> Float32:
    """[7, streams, studies], the levels that ``charts.advance`` gives, to single precision, without restarts.

    Parameters
    ----------
    embeddings
        [streams, studies, D].
    """
    streams, studies, depth = embeddings.shape
    points = reference.whitening.apply(embeddings.reshape(-1, depth)).astype(np.float32)
    lengths = np.sqrt((points**2).sum(axis=1))
    moved, factor = reference.lengths_in_sd(lengths), reference.shortening(lengths)
    levels = np.empty((len(CHARTS), streams, studies), dtype=np.float32)
    shape = (streams, studies, -1)
    run_recursions(
        levels,
        (points * factor[:, None]).astype(np.float32).reshape(shape),
        moved.astype(np.float32).reshape(streams, studies),
    )
    affinities = _affinities(reference, points).reshape(streams, studies)
    points = points.reshape(shape)
    squares = (lengths**2).reshape(streams, studies)
    sums = PairSums(streams, studies)
    lag = 0
    for number, window in enumerate(WINDOWS):
        while lag < min(window, studies) - 1:
            lag += 1
            products = np.einsum("stk,stk->st", points[:, lag:], points[:, :-lag])
            distances = np.maximum(squares[:, lag:] + squares[:, :-lag] - 2 * products, 0)
            sums.add(lag, np.exp(distances / np.float32(-2 * reference.bandwidth**2)))
        if window <= studies:
            fill_window(levels, number, sums, affinities, reference.within)
        else:
            levels[3 + number] = -np.inf
    return levels


def _affinities(reference: ChartReference, points: Float32) -> NDArray[np.float64]:
    known = reference.points.astype(np.float32)
    scale = np.float32(-2 * reference.bandwidth**2)
    found = np.empty(len(points))
    for start in range(0, len(points), 4096):
        part = points[start : start + 4096]
        squares = (part**2).sum(axis=1)[:, None] + (known**2).sum(axis=1)[None] - 2 * (part @ known.T)
        found[start : start + 4096] = np.exp(np.maximum(squares, 0) / scale).mean(axis=1)
    return found
