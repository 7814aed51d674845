"""The reference that today is held against, and the whitening that makes small shifts visible.

Whitening is fitted on two halves of the reference, the rotation (principal components) on one and the scale on the
other. Fitted on the same images, the scale is too small for new ones, and every in-control window looks shifted. Only
the second half then serves as the sample that windows are compared with.

References
----------
Gretton, Borgwardt, Rasch, Schoelkopf, Smola: A Kernel Two-Sample Test, JMLR 13 (2012), 723-773, for the bandwidth.
"""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drift.errors import ReferenceFileError, WindowError

Array = NDArray[np.float64]

MOST_COMPONENTS = 64
"""More components see rarer changes but need a larger reference than the shipped models have."""
LEAST_REFERENCE = 64
"""Embeddings below which no reference is accepted: half of them would not carry eight components."""
RIDGE_FRACTION = 1e-6
"""Added to each component's variance, as a fraction of the largest one: units that never fire have none."""
_SPLIT_SEED = 20260101


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reference:
    """The arrays of a bundle's ``reference.npz``."""

    embeddings: Array
    """[N, D]; stored as float16, so exact to three digits."""
    scores: Array
    """[N, F], probabilities, columns named by `finding_names`."""
    finding_names: tuple[str, ...]
    explanations: Array
    """[N, S], summary numbers of the explanation, columns named by `explanation_names`; NaN where there was none."""
    explanation_names: tuple[str, ...]
    statistics: Array
    """[N, T], image statistics, columns named by `statistic_names`."""
    statistic_names: tuple[str, ...]
    mean_map: Array
    """[h, w], the mean explanation on the feature map's grid."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Whitening:
    """A linear map after which each component has unit variance on images that its rotation has not seen."""

    centre: Array
    """[D]."""
    rotation: Array
    """[D, k], orthonormal columns, largest variance first."""
    location: Array
    """[k], of the second half, after rotation."""
    scale: Array
    """[k], standard deviations of the second half, after rotation, ridge included."""

    def apply(self, embeddings: NDArray[Any]) -> Array:
        """Embeddings [N, D] as whitened points [N, k].

        Raises
        ------
        WindowError
            Another D, not two axes, or a value that is not finite.
        """
        rows = np.asarray(embeddings, dtype=np.float64)
        if rows.ndim != 2 or rows.shape[1] != len(self.centre):
            raise WindowError(f"embeddings have shape {rows.shape}, the reference has [N, {len(self.centre)}]")
        if not np.isfinite(rows).all():
            raise WindowError("an embedding holds a value that is not finite")
        whitened: Array = ((rows - self.centre) @ self.rotation - self.location) / self.scale
        return whitened


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WhitenedReference:
    """What a test on embeddings needs of a reference; made once a model version."""

    whitening: Whitening
    points: Array
    """[n, k], the second half of the reference, which the rotation has not seen."""
    bandwidth: float
    """Sigma of the kernel ``exp(-|x - y|^2 / (2 sigma^2))``, from all of `points`."""

    def thinned(self, most: int) -> WhitenedReference:
        """The same with at most `most` points, evenly taken; whitening and bandwidth stay."""
        if len(self.points) <= most:
            return self
        chosen = np.linspace(0, len(self.points) - 1, most).round().astype(np.intp)
        return WhitenedReference(whitening=self.whitening, points=self.points[chosen], bandwidth=self.bandwidth)


def load_reference(path: Path) -> Reference:
    """Read ``reference.npz``, without pickle.

    Raises
    ------
    ReferenceFileError
        No such file, not an archive of plain arrays, an array is missing, or their shapes do not fit each other.
    """
    try:
        with path.open("rb") as stream:
            archive = np.load(stream, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ReferenceFileError(f"{path.name}: one array, expected an archive of several")
            stored = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ReferenceFileError(f"{path.name}: {error}") from error
    embeddings = _matrix(stored, "embeddings", path)
    count = len(embeddings)
    if count < LEAST_REFERENCE:
        raise ReferenceFileError(f"{path.name}: {count} embeddings, at least {LEAST_REFERENCE} are needed")
    if not np.isfinite(embeddings).all():
        raise ReferenceFileError(f"{path.name}: an embedding holds a value that is not finite")
    tables: dict[str, Array] = {}
    names: dict[str, tuple[str, ...]] = {}
    for table, name_array in (
        ("scores", "finding_names"),
        ("explanations", "explanation_names"),
        ("statistics", "statistic_names"),
    ):
        tables[table] = _matrix(stored, table, path)
        names[table] = tuple(str(name) for name in _stored(stored, name_array, path))
        if tables[table].shape != (count, len(names[table])):
            raise ReferenceFileError(
                f"{path.name}: {table} has shape {tables[table].shape}, expected {(count, len(names[table]))}"
            )
    return Reference(
        embeddings=embeddings,
        scores=tables["scores"],
        finding_names=names["scores"],
        explanations=tables["explanations"],
        explanation_names=names["explanations"],
        statistics=tables["statistics"],
        statistic_names=names["statistics"],
        mean_map=_matrix(stored, "mean_map", path),
    )


def _stored(stored: dict[str, NDArray[Any]], name: str, path: Path) -> NDArray[Any]:
    try:
        return stored[name]
    except KeyError as error:
        raise ReferenceFileError(f"{path.name}: no array {name}") from error


def _matrix(stored: dict[str, NDArray[Any]], name: str, path: Path) -> Array:
    array = _stored(stored, name, path)
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.floating):
        raise ReferenceFileError(f"{path.name}: {name} is {array.dtype} of {array.ndim} axes, expected floats of two")
    return array.astype(np.float64)


def fit_whitening(embeddings: NDArray[Any], *, components: int | None = None) -> tuple[Whitening, Array]:
    """Fit on a fixed random split of `embeddings` [N, D]; returns the whitening and the second half, whitened.

    Parameters
    ----------
    components
        How many to keep; by default an eighth of N, at most 64. Fewer are kept where the first half has a lower rank.

    Raises
    ------
    ReferenceFileError
        Fewer than 64 embeddings, or all of them the same.
    """
    rows = np.asarray(embeddings, dtype=np.float64)
    if len(rows) < LEAST_REFERENCE:
        raise ReferenceFileError(f"{len(rows)} embeddings, at least {LEAST_REFERENCE} are needed")
    first, second = _halves(rows)
    centre = first.mean(axis=0)
    _, singular, axes = np.linalg.svd(first - centre, full_matrices=False)
    rank = int((singular > singular[0] * 1e-5).sum()) if singular[0] > 0 else 0
    kept = min(components or min(MOST_COMPONENTS, len(rows) // 8), rank)
    if kept < 1:
        raise ReferenceFileError("the reference embeddings are all the same")
    # The sign of a component is arbitrary; fixed so that stored effects compare between runs and machines.
    signs = np.sign(axes[np.arange(kept), np.abs(axes[:kept]).argmax(axis=1)])
    rotation = (axes[:kept] * signs[:, None]).T
    rotated = (second - centre) @ rotation
    variance = rotated.var(axis=0, ddof=1)
    whitening = Whitening(
        centre=centre,
        rotation=rotation,
        location=rotated.mean(axis=0),
        scale=np.sqrt(variance + RIDGE_FRACTION * variance.max()),
    )
    return whitening, whitening.apply(second)


def second_half(rows: Array) -> Array:
    """The rows that :func:`fit_whitening` does not fit the rotation on."""
    return _halves(rows)[1]


def _halves(rows: Array) -> tuple[Array, Array]:
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(rows))
    return rows[np.sort(order[: len(rows) // 2])], rows[np.sort(order[len(rows) // 2 :])]


def whiten_reference(reference: Reference, *, components: int | None = None) -> WhitenedReference:
    """Fit the whitening of a reference, and fix the kernel's bandwidth from it."""
    whitening, points = fit_whitening(reference.embeddings, components=components)
    return WhitenedReference(whitening=whitening, points=points, bandwidth=median_bandwidth(points))


def squared_distances(left: Array, right: Array) -> Array:
    """[n, m] squared Euclidean distances between rows of [n, k] and [m, k], never negative."""
    squares = (left**2).sum(axis=1)[:, None] + (right**2).sum(axis=1)[None, :] - 2.0 * (left @ right.T)
    distances: Array = np.maximum(squares, 1e-30)
    return distances


def median_bandwidth(points: Array) -> float:
    """The median heuristic: sigma with ``2 sigma^2`` the median squared distance between two different rows.

    The order statistic is the one alibi-detect takes (the lower median of all off-diagonal pairs), so that both
    backends use one number.
    """
    count = len(points)
    ordered = np.sort(squared_distances(points, points), axis=None)
    return float(np.sqrt(0.5 * ordered[count + (count * count - count) // 2 - 1]))
