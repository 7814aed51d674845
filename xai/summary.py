"""A heat map in seven numbers, so that a monitor can hold today's against the reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from xai.errors import ExplanationError

if TYPE_CHECKING:
    from models.preprocess import Grid

EXPLANATION_NAMES: tuple[str, ...] = (
    "entropy",
    "effective_area_fraction",
    "centre_row_fraction",
    "centre_column_fraction",
    "border_mass_fraction",
    "outside_mass_fraction",
    "peak",
)
"""The order in which a bundle's reference stores them."""


def summarise(cam: npt.NDArray[np.floating[Any]], grid: Grid) -> dict[str, float]:
    """Summary numbers of a heat map.

    Parameters
    ----------
    cam
        [h, w], at least 0, not normalised.
    grid
        Where the model's tensor lies in the source picture.

    Returns
    -------
    dict
        In the order of :data:`EXPLANATION_NAMES`:

        ``entropy``
            Shannon entropy of the mass over the cells, 0 (one cell) to 1 (even).
        ``effective_area_fraction``
            ``(sum m)^2 / (n sum m^2)``: share of the cells that an even map of the same concentration would fill.
        ``centre_row_fraction``, ``centre_column_fraction``
            Centre of mass in the crop box, 0 top or left, 1 bottom or right.
        ``border_mass_fraction``
            Share of the mass in the outermost ring of cells.
        ``outside_mass_fraction``
            Share of the mass in padding, outside the source picture.
        ``peak``
            Maximum of `cam`, in log odds.

        A map without heat gives the centre 0.5 and everything else 0.

    Raises
    ------
    ExplanationError
        `cam` has no cells.
    """
    if cam.ndim != 2 or 0 in cam.shape:
        raise ExplanationError(f"heat map has shape {cam.shape}, not [h, w]")
    mass = np.asarray(cam, dtype=np.float64)
    total = float(mass.sum())
    if not total > 0:
        return dict.fromkeys(EXPLANATION_NAMES, 0.0) | {"centre_row_fraction": 0.5, "centre_column_fraction": 0.5}
    share = mass / total
    rows, columns = share.shape
    positive = share[share > 0]
    entropy = -float((positive * np.log(positive)).sum()) / np.log(share.size) if share.size > 1 else 0.0
    inside = np.outer(
        _inside_fractions(rows, grid.top, grid.height, grid.source_rows),
        _inside_fractions(columns, grid.left, grid.width, grid.source_columns),
    )
    values = (
        entropy,
        1.0 / (share.size * float((share * share).sum())),
        float(share.sum(axis=1) @ (np.arange(rows) + 0.5)) / rows,
        float(share.sum(axis=0) @ (np.arange(columns) + 0.5)) / columns,
        1.0 - float(share[1:-1, 1:-1].sum()),
        max(0.0, 1.0 - float((share * inside).sum())),
        float(mass.max()),
    )
    return {name: float(value) for name, value in zip(EXPLANATION_NAMES, values, strict=True)}


def _inside_fractions(cells: int, start: float, length: float, source_size: int) -> npt.NDArray[np.float64]:
    """Share of each cell, along one axis, that lies inside the source picture."""
    edges = start + length * np.arange(cells + 1) / cells
    within = np.clip(edges, 0, source_size)
    return np.asarray(np.diff(within) / np.diff(edges), dtype=np.float64)
