"""Charts: monitors of embeddings that are valid at every look, updated study by study.

Three charts watch the whitened embedding x of k components. Each sees what the others miss.

- *MEWMA*: an exponentially weighted mean of x against its own covariance; small shifts of the mean in any direction.
- *Distance*: a two-sided CUSUM of the log of the length of x, the Mahalanobis distance; a change of spread, such as
  blur, which may leave the mean alone.
- *MMD*: the unbiased statistic of the kernel two-sample test over the last 10, 25, 50 and 100 studies; any change.

A statistic above its height (``drift/calibration.py``) is a signal, and the charts begin anew. The reference is frozen.
The state is a value: the same studies give the same bytes, and charts restored from bytes go on with the same bits.

References
----------
Lowry, Woodall, Champ, Rigdon: A multivariate exponentially weighted moving average control chart, Technometrics 34
(1992), 46-53.
Page: Continuous inspection schemes, Biometrika 41 (1954), 100-115.
Gretton et al., JMLR 13 (2012), 723-773: equation 3.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drift.errors import ChartStateError, ReferenceFileError, WindowError
from drift.reference import (
    MOST_COMPONENTS,
    Array,
    Whitening,
    fit_whitening,
    median_bandwidth,
    second_half,
    squared_distances,
)

FORGETTING = 0.05
"""Weight of the newest study in the MEWMA; the smaller, the better it sees small shifts and the later large ones."""
ALLOWANCE = 0.5
"""Of the CUSUM, in sd of the distance: half the shift that it is best at."""
WINDOWS = (10, 25, 50, 100)
CHARTS = ("MEWMA", "distance, higher", "distance, lower", *(f"MMD of {window}" for window in WINDOWS))
"""Names of the statistics, in the order of every array of levels and heights."""
HISTORY = 200
"""Studies that a state remembers for the change point; at least the longest window."""
LEAST_REFERENCE = 128
"""Embeddings below which charts judge nothing: thresholds that cover so small a reference's error see little."""
LEAST_POINTS_PER_COMPONENT = 3
MOST_POINTS = 1_000
"""Of the reference in the kernel sums."""
CAP_SD = 4.0
"""A single study counts as at most this far out. How rare a study still farther out is, no reference of hundreds can
tell; so no chart's quiet may rest on it, and no single odd picture alarms."""
_REVISION = 1
"""Raised with every change that makes stored states or thresholds mean something else."""
_MAGIC = b"gwchart1"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChartReference:
    """What the charts of one model version hold each study against; never updated."""

    fingerprint: str
    """Hash over the embeddings and over what the charts make of them; state and thresholds belong to one."""
    whitening: Whitening
    """Rotation from one half, scale from the other, location from both: the mean, unlike the scale, may use all."""
    points: Array
    """[n, k], the second half, whitened."""
    studies: int
    """Embeddings that the location comes from."""
    bandwidth: float
    within: float
    """Mean of the kernel over pairs of different points."""
    log_length_mean: float
    log_length_sd: float

    @property
    def components(self) -> int:
        return self.points.shape[1]

    def lengths_in_sd(self, lengths: NDArray[Any]) -> Array:
        """How far whitened embeddings of these lengths are from the usual length, on a log scale, capped."""
        return lengths_in_sd(lengths, self.log_length_mean, self.log_length_sd)

    def shortening(self, lengths: NDArray[Any]) -> Array:
        """Factors that bring whitened embeddings of these lengths to the cap, 1 where they are under it."""
        return shortening(lengths, self.log_length_mean, self.log_length_sd)


def lengths_in_sd(lengths: NDArray[Any], mean: float, sd: float) -> Array:
    """The capped z of log lengths. The logarithm makes their distribution nearly even on both sides."""
    return np.asarray(np.clip((np.log(np.maximum(lengths, 1e-30)) - mean) / sd, -CAP_SD, CAP_SD))


def shortening(lengths: NDArray[Any], mean: float, sd: float) -> Array:
    """Factors at most 1 that bring lengths to at most the cap."""
    return np.asarray(np.minimum(1.0, np.exp(mean + CAP_SD * sd) / np.maximum(lengths, 1e-30)))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChartState:
    """Where the charts of one scope stand. Immutable; :func:`advance` makes the next one."""

    fingerprint: str
    """Of the reference that it belongs to."""
    total: int
    """Studies ever."""
    studies: int
    """Studies since the charts began, or began anew after a signal."""
    average: Array
    """[k], the MEWMA's."""
    higher: float
    lower: float
    pair_sums: Array
    """[4], kernel summed over the ordered pairs in each of :data:`WINDOWS`."""
    affinities: Array
    """[at most 100], mean kernel between each of the last studies and the reference, oldest first."""
    points: Array
    """[at most 200, k], the last studies since the charts began, whitened, oldest first."""
    times_us: NDArray[np.int64]
    """[as many], when each was judged, microseconds since 1970 in UTC."""

    def to_bytes(self) -> bytes:
        """The state as bytes, little endian; :func:`state_from_bytes` gives it back bit for bit."""
        header = json.dumps([self.fingerprint, self.total, self.studies, len(self.average), len(self.points)]).encode()
        arrays = (
            np.array([self.higher, self.lower]),
            self.average,
            self.pair_sums,
            self.affinities,
            self.points,
        )
        body = b"".join(np.ascontiguousarray(array, dtype="<f8").tobytes() for array in arrays)
        return b"".join(
            (_MAGIC, struct.pack("<I", len(header)), header, body, self.times_us.astype("<i8", copy=False).tobytes())
        )


def state_from_bytes(stored: bytes) -> ChartState:
    """The state that :meth:`ChartState.to_bytes` wrote.

    Raises
    ------
    ChartStateError
        These bytes are not such a state.
    """
    try:
        if stored[:8] != _MAGIC:
            raise ValueError("another format")
        (length,) = struct.unpack_from("<I", stored, 8)
        fingerprint, total, studies, width, count = json.loads(stored[12 : 12 + length])
        known = min(count, WINDOWS[-1])
        sizes = (2, width, len(WINDOWS), known, count * width)
        if len(stored) != 12 + length + 8 * (sum(sizes) + count):
            raise ValueError("another length")
        numbers = np.frombuffer(stored, dtype="<f8", count=sum(sizes), offset=12 + length).astype(np.float64)
        sides, average, pair_sums, affinities, points = np.split(numbers, np.cumsum(sizes)[:-1])
        times_us = np.frombuffer(stored, dtype="<i8", offset=12 + length + numbers.nbytes).astype(np.int64)
    except (ValueError, TypeError, struct.error) as error:
        raise ChartStateError(f"the stored state of a chart cannot be read: {error}") from error
    return ChartState(
        fingerprint=fingerprint,
        total=total,
        studies=studies,
        average=average,
        higher=float(sides[0]),
        lower=float(sides[1]),
        pair_sums=pair_sums,
        affinities=affinities,
        points=points.reshape(count, width),
        times_us=times_us,
    )


def make_chart_reference(embeddings: NDArray[Any], *, components: int | None = None) -> ChartReference:
    """Fit the whitening on embeddings [N, D], and all that the charts need of them.

    Raises
    ------
    ReferenceFileError
        Too few embeddings for charts, or for so many components; or all of them the same.
    """
    rows = np.asarray(embeddings, dtype=np.float64)
    if len(rows) < LEAST_REFERENCE:
        raise ReferenceFileError(f"the reference has {len(rows)} embeddings, charts need at least {LEAST_REFERENCE}")
    fitted, _ = fit_whitening(rows, components=components)
    kept = fitted.rotation.shape[1]
    second = second_half(rows)
    if len(second) < LEAST_POINTS_PER_COMPONENT * kept:
        raise ReferenceFileError(
            f"the reference is too small for {kept} components: {len(second)} embeddings in its second half,"
            f" at least {LEAST_POINTS_PER_COMPONENT * kept} are needed"
        )
    rotated = (rows - fitted.centre) @ fitted.rotation
    whitening = replace(fitted, location=rotated.mean(axis=0))
    points = whitening.apply(second)
    log_lengths = 0.5 * np.log((points**2).sum(axis=1))
    bandwidth = median_bandwidth(points)
    if len(points) > MOST_POINTS:
        points = points[np.linspace(0, len(points) - 1, MOST_POINTS).round().astype(np.intp)]
    kernel = np.exp(squared_distances(points, points) / (-2.0 * bandwidth**2))
    np.fill_diagonal(kernel, 0.0)
    stamp = json.dumps([_REVISION, rows.shape, kept, MOST_COMPONENTS, FORGETTING, ALLOWANCE, WINDOWS, CAP_SD])
    return ChartReference(
        fingerprint=hashlib.sha256(stamp.encode() + rows.astype("<f8").tobytes()).hexdigest(),
        whitening=whitening,
        points=points,
        studies=len(rows),
        bandwidth=bandwidth,
        within=float(kernel.sum() / (len(points) * (len(points) - 1))),
        log_length_mean=float(log_lengths.mean()),
        log_length_sd=float(log_lengths.std(ddof=1)),
    )


def begin(reference: ChartReference, *, total: int = 0) -> ChartState:
    """The state before the first study."""
    return ChartState(
        fingerprint=reference.fingerprint,
        total=total,
        studies=0,
        average=np.zeros(reference.components),
        higher=0.0,
        lower=0.0,
        pair_sums=np.zeros(len(WINDOWS)),
        affinities=np.empty(0),
        points=np.empty((0, reference.components)),
        times_us=np.empty(0, dtype=np.int64),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChartPoint:
    """What one study is to the charts; the same for the scope of its device and that of all devices."""

    fingerprint: str
    """Of the reference that made it."""
    whitened: Array
    """[k]."""
    z: float
    """Its log length in sd, capped."""
    factor: float
    """That brings it to the cap, 1 under it."""
    affinity: float
    """Mean kernel between it and the reference."""


def whiten_study(reference: ChartReference, embedding: NDArray[Any]) -> ChartPoint:
    """Hold one study's embedding [D] against the reference.

    Raises
    ------
    WindowError
        Another D or more axes, or a value that is not finite.
    """
    if np.ndim(embedding) != 1:
        raise WindowError(f"one study's embedding has one axis, not {np.ndim(embedding)}")
    whitened = reference.whitening.apply(np.asarray(embedding)[None])[0]
    length = np.sqrt(whitened @ whitened)
    squares = ((reference.points - whitened) ** 2).sum(axis=1)
    return ChartPoint(
        fingerprint=reference.fingerprint,
        whitened=whitened,
        z=float(reference.lengths_in_sd(length)),
        factor=float(reference.shortening(length)),
        affinity=float(np.exp(squares / (-2.0 * reference.bandwidth**2)).mean()),
    )


def advance(
    reference: ChartReference, state: ChartState, point: ChartPoint, *, at: datetime
) -> tuple[ChartState, Array]:
    """Take in one study, judged at `at`: the next state, and its levels [7], one for each of :data:`CHARTS`.

    A window that is not full yet has the level minus infinity. The cost does not grow with the studies seen.

    Raises
    ------
    ChartStateError
        State or point belong to another reference.
    """
    if not state.fingerprint == point.fingerprint == reference.fingerprint:
        raise ChartStateError("the state of the charts belongs to another reference")
    after = ChartState(
        fingerprint=state.fingerprint,
        total=state.total + 1,
        studies=state.studies + 1,
        average=(1.0 - FORGETTING) * state.average + FORGETTING * point.factor * point.whitened,
        higher=max(0.0, state.higher + point.z - ALLOWANCE),
        lower=max(0.0, state.lower - point.z - ALLOWANCE),
        pair_sums=_next_pair_sums(reference, state, point.whitened),
        affinities=np.append(state.affinities[-WINDOWS[-1] + 1 :], point.affinity),
        points=np.concatenate([state.points[-HISTORY + 1 :], point.whitened[None]]),
        times_us=np.append(state.times_us[-HISTORY + 1 :], _microseconds(at)),
    )
    return after, _levels(reference, after)


def mewma_variance(studies: int) -> float:
    """Variance of each component of the MEWMA after so many studies in control (Lowry 1992, equation 3)."""
    return FORGETTING / (2.0 - FORGETTING) * (1.0 - (1.0 - FORGETTING) ** (2 * studies))


def mean_shift_now(state: ChartState) -> float:
    """Length of the recent mean's distance from the reference's in sd, less what chance adds, as the MEWMA sees it."""
    if state.studies == 0:
        return 0.0
    weight = 1.0 - (1.0 - FORGETTING) ** state.studies
    square = float(state.average @ state.average) - len(state.average) * mewma_variance(state.studies)
    return float(np.sqrt(max(0.0, square))) / weight


def _levels(reference: ChartReference, state: ChartState) -> Array:
    levels = np.full(len(CHARTS), -np.inf)
    levels[0] = float(state.average @ state.average) / mewma_variance(state.studies)
    levels[1], levels[2] = state.higher, state.lower
    for number, window in enumerate(WINDOWS):
        if state.studies >= window:
            across = float(state.affinities[-window:].mean())
            levels[3 + number] = state.pair_sums[number] / (window * (window - 1)) - 2.0 * across + reference.within
    return levels


def _next_pair_sums(reference: ChartReference, state: ChartState, point: Array) -> Array:
    """The sums over ordered pairs after a study comes in, and after the oldest of a full window goes out."""
    scale = -2.0 * reference.bandwidth**2
    before = state.points[-WINDOWS[-1] :]
    row = np.exp(((before - point) ** 2).sum(axis=1) / scale)
    sums = state.pair_sums.copy()
    for number, window in enumerate(WINDOWS):
        kept = min(window - 1, len(before))
        if kept:
            sums[number] += 2.0 * row[-kept:].sum()
        if len(before) >= window:
            part = before[-window:]
            sums[number] -= 2.0 * np.exp(((part[1:] - part[0]) ** 2).sum(axis=1) / scale).sum()
    return sums


def _microseconds(at: datetime) -> int:
    since = at.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
