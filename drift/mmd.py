"""The kernel two-sample test (maximum mean discrepancy), under one contract with two backends.

``builtin`` needs numpy alone and keeps the reference's kernel between tests. ``alibi`` asks alibi-detect, whose licence
(Business Source License from 0.12 on) bars most production use; see ``docs/monitoring.md``. Both get the same whitened
points and the same bandwidth, so the statistic is the same number.

References
----------
Gretton et al., JMLR 13 (2012), 723-773: lemma 6, equation 3 for the unbiased statistic.
Phipson, Smyth, Stat. Appl. Genet. Mol. Biol. 9 (2010), 39: why a permutation p-value is (k + 1) / (P + 1), never 0.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from drift.errors import BackendError, WindowError
from drift.reference import Array, WhitenedReference, squared_distances

BackendName = Literal["builtin", "alibi"]

BUILTIN_PERMUTATIONS = 9_999
ALIBI_PERMUTATIONS = 1_000
"""The fewest with which a p-value can be under 0.001."""
BUILTIN_MOST_POINTS = 1_000
ALIBI_MOST_POINTS = 500
"""alibi-detect's cost grows with the square of this: 2 s a test at 500, 32 s at 2,000."""
_SEED = 20260102
_CHUNK = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class MmdScore:
    """The outcome of one test."""

    statistic: float
    """Unbiased estimate of MMD squared; negative values are chance."""
    p_value: float
    """In (0, 1]; never exactly 0."""
    null_sd: float
    """Standard deviation of `statistic` if nothing has changed."""


class MmdTest(Protocol):
    """Is this window of whitened points from the same distribution as the reference?"""

    @property
    def backend(self) -> str: ...

    @property
    def reference(self) -> WhitenedReference: ...

    def score(self, window: Array) -> MmdScore:
        """Test whitened points [m, k], m at least 2. The same window always gets the same answer.

        Raises
        ------
        WindowError
            Another k, fewer than two points, or a value that is not finite.
        BackendError
            The backend failed.
        """
        ...


def make_mmd_test(backend: BackendName, reference: WhitenedReference) -> MmdTest:
    """The test by the backend's name, the reference thinned to what the backend can afford.

    Raises
    ------
    BackendError
        No such backend, or alibi-detect is not installed.
    """
    if backend == "builtin":
        return BuiltinMmd(reference.thinned(BUILTIN_MOST_POINTS))
    if backend == "alibi":
        return AlibiMmd(reference.thinned(ALIBI_MOST_POINTS))
    raise BackendError(f"no backend {backend!r}; there are 'builtin' and 'alibi'")


def gaussian_kernel(left: Array, right: Array, bandwidth: float) -> Array:
    """[n, m] with ``exp(-|x - y|^2 / (2 bandwidth^2))``."""
    kernel: Array = np.exp(squared_distances(left, right) / (-2.0 * bandwidth**2))
    return kernel


class BuiltinMmd:
    """Permutation test with the reference's kernel computed once."""

    backend = "builtin"

    def __init__(self, reference: WhitenedReference, *, permutations: int = BUILTIN_PERMUTATIONS) -> None:
        self.reference = reference
        self.permutations = permutations
        self._kernel = _zero_diagonal(gaussian_kernel(reference.points, reference.points, reference.bandwidth))
        self._spread = _kernel_spread(self._kernel)
        self._drawn: dict[int, NDArray[np.intp]] = {}

    def score(self, window: Array) -> MmdScore:
        points = _checked(window, self.reference)
        pooled = self._pooled_kernel(points)
        chosen = self._permutations_of(len(points))
        row_sums: Array = np.asarray(pooled.sum(axis=1))
        total = float(row_sums.sum())
        within = np.empty(len(chosen))
        for start in range(0, len(chosen), _CHUNK):
            part = chosen[start : start + _CHUNK]
            within[start : start + _CHUNK] = pooled[part[:, :, None], part[:, None, :]].sum(axis=(1, 2))
        counts = (len(self.reference.points), len(points))
        permuted = _statistic(within, row_sums[chosen].sum(axis=1), total, *counts)
        observed = float(
            _statistic(pooled[counts[0] :, counts[0] :].sum(), row_sums[counts[0] :].sum(), total, *counts)
        )
        # Ties count as extreme; the margin is rounding, as the sums are taken in another order.
        extreme = int(np.count_nonzero(permuted >= observed - 1e-12))
        return MmdScore(
            statistic=observed,
            p_value=(extreme + 1) / (self.permutations + 1),
            null_sd=_null_sd(self._spread, *counts),
        )

    def _pooled_kernel(self, points: Array) -> Array:
        across = gaussian_kernel(self.reference.points, points, self.reference.bandwidth)
        inside = _zero_diagonal(gaussian_kernel(points, points, self.reference.bandwidth))
        pooled: Array = np.block([[self._kernel, across], [across.T, inside]])
        return pooled

    def _permutations_of(self, count: int) -> NDArray[np.intp]:
        """[P, count] rows of the pooled sample that play the window; drawn once a window size, from a fixed seed."""
        if count not in self._drawn:
            generator = np.random.default_rng(_SEED)
            total = len(self.reference.points) + count
            drawn = [generator.choice(total, size=count, replace=False) for _ in range(self.permutations)]
            self._drawn = {count: np.array(drawn, dtype=np.intp)}
        return self._drawn[count]


class AlibiMmd:
    """alibi-detect's ``MMDDrift`` on PyTorch, imported when the first one is made."""

    backend = "alibi"

    def __init__(self, reference: WhitenedReference, *, permutations: int = ALIBI_PERMUTATIONS) -> None:
        self.reference = reference
        self.permutations = permutations
        self._spread = _kernel_spread(
            _zero_diagonal(gaussian_kernel(reference.points, reference.points, reference.bandwidth))
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Importing it deprecates things in three other libraries.
            try:
                from alibi_detect.cd import MMDDrift
            except ImportError as error:
                raise BackendError("alibi-detect is not installed; the backend 'builtin' needs nothing more") from error
            self._detector = MMDDrift(
                reference.points,
                backend="pytorch",
                device="cpu",
                sigma=np.array([reference.bandwidth]),
                configure_kernel_from_x_ref=False,
                n_permutations=permutations,
            )

    def score(self, window: Array) -> MmdScore:
        import torch

        points = _checked(window, self.reference)
        threads = torch.get_num_threads()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            # Its matrices are small: on a busy machine a second thread made a test ten times slower.
            torch.set_num_threads(1)
            try:
                p_value, statistic, _ = self._detector.score(points)
            except (RuntimeError, ValueError) as error:
                raise BackendError(f"alibi-detect failed: {error}") from error
            finally:
                torch.set_num_threads(threads)
        return MmdScore(
            statistic=float(statistic),
            # alibi-detect reports k / P, which can be 0.
            p_value=(round(p_value * self.permutations) + 1) / (self.permutations + 1),
            null_sd=_null_sd(self._spread, len(self.reference.points), len(points)),
        )


def _checked(window: Array, reference: WhitenedReference) -> Array:
    points = np.ascontiguousarray(window, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != reference.points.shape[1] or len(points) < 2:
        raise WindowError(f"the window has shape {points.shape}, expected [2 or more, {reference.points.shape[1]}]")
    if not np.isfinite(points).all():
        raise WindowError("the window holds a value that is not finite")
    return points


def _zero_diagonal(kernel: Array) -> Array:
    np.fill_diagonal(kernel, 0.0)
    return kernel


def _statistic(
    within: NDArray[np.float64] | float, touched: NDArray[np.float64] | float, total: float, n: int, m: int
) -> NDArray[np.float64] | float:
    """MMD squared from kernel sums without the diagonal.

    `within` sums over pairs inside the window, `touched` over pairs with one end in it, `total` over all pairs.
    """
    across = touched - within
    outside = total - 2.0 * across - within
    return outside / (n * (n - 1)) + within / (m * (m - 1)) - 2.0 * across / (n * m)


def _kernel_spread(kernel: Array) -> float:
    """Mean square of the doubly centred kernel of two independent points, from the reference's own pairs."""
    count = len(kernel)
    means = kernel.sum(axis=1) / (count - 1)
    centred = kernel - means[:, None] - means[None, :] + means.mean()
    np.fill_diagonal(centred, 0.0)
    return float((centred**2).sum() / (count * (count - 1)))


def _null_sd(spread: float, n: int, m: int) -> float:
    """Standard deviation of the unbiased statistic when both samples are of one distribution (Gretton, section 5)."""
    return float(np.sqrt(spread * (2.0 / (n * (n - 1)) + 2.0 / (m * (m - 1)) + 4.0 / (n * m))))
