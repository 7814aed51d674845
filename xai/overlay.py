"""From a heat map's few cells to the source picture, and over it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from xai.colour_map import COLOUR_MAP
from xai.errors import ExplanationError

if TYPE_CHECKING:
    from models.preprocess import Grid

LEVELS = 256


def to_source_grid(cam: npt.NDArray[np.floating[Any]], grid: Grid, rows: int, columns: int) -> npt.NDArray[np.float32]:
    """Spread a heat map over the source picture, bilinearly between the centres of its cells.

    Parameters
    ----------
    cam
        [h, w], at least 0. Its cells tile the crop box of `grid`.
    grid
        Where the model's tensor lies in the source picture; the box may stick out of the picture.
    rows, columns
        Size of the result, which shows the whole source picture: the source grid or a reduced version of it.

    Returns
    -------
    float32 [rows, columns], 0 to 1, where 1 is the maximum of `cam` even if that lies in padding outside the picture.
    What the model did not see, outside the box, is 0.

    Raises
    ------
    ExplanationError
        `cam` has no cells, or the box or the picture no area.
    """
    if cam.ndim != 2 or 0 in cam.shape:
        raise ExplanationError(f"heat map has shape {cam.shape}, not [h, w]")
    if min(grid.height, grid.width) <= 0 or min(grid.source_rows, grid.source_columns, rows, columns) < 1:
        raise ExplanationError("crop box or picture without area")
    peak = float(cam.max())
    if not peak > 0:
        return np.zeros((rows, columns), dtype=np.float32)
    # Bilinear interpolation is separable: two thin matrices, so time goes into writing the result alone.
    down = _weights(cam.shape[0], grid.top, grid.height, grid.source_rows, rows)
    across = _weights(cam.shape[1], grid.left, grid.width, grid.source_columns, columns)
    heat = (down @ (cam.astype(np.float32) / np.float32(peak))) @ across.T
    return np.clip(heat, 0.0, 1.0, out=heat)


def _weights(cells: int, start: float, length: float, source_size: int, size: int) -> npt.NDArray[np.float32]:
    """Bilinear weights along one axis, float32 [size, cells]; rows of zeros outside the box."""
    source = (np.arange(size) + 0.5) * (source_size / size)
    fraction = (source - start) / length
    inside = (fraction >= 0) & (fraction <= 1)
    position = np.clip(fraction * cells - 0.5, 0, cells - 1)
    lower = np.minimum(position.astype(np.intp), max(cells - 2, 0))
    upper = np.minimum(lower + 1, cells - 1)
    share = position - lower
    weights = np.zeros((size, cells), dtype=np.float32)
    line = np.arange(size)
    np.add.at(weights, (line, lower), (1 - share) * inside)
    np.add.at(weights, (line, upper), share * inside)
    return weights


def blend(
    picture: npt.NDArray[np.uint8], heat: npt.NDArray[np.floating[Any]], alpha: float = 0.45
) -> npt.NDArray[np.uint8]:
    """Lay heat over a picture. Where the heat is 0 the picture stays as it is; cover grows with heat up to `alpha`.

    Parameters
    ----------
    picture
        uint8 [rows, columns, 3] RGB.
    heat
        [rows, columns], 0 to 1.
    alpha
        Cover where the heat is 1.

    Returns
    -------
    uint8 [rows, columns, 3] RGB.

    Raises
    ------
    ExplanationError
        Heat and picture are not of one size.
    """
    if picture.shape != (*heat.shape, 3):
        raise ExplanationError(f"heat of shape {heat.shape} over a picture of shape {picture.shape}")
    level = (heat * np.float32(LEVELS - 1) + np.float32(0.5)).astype(np.uint8)
    colours = Image.fromarray(level, mode="P")
    colours.putpalette(COLOUR_MAP.tobytes())
    cover = Image.fromarray(level, mode="L").point([int(v) for v in cover_levels(alpha)])
    return np.asarray(Image.composite(colours.convert("RGB"), Image.fromarray(picture), cover))


def cover_levels(alpha: float) -> npt.NDArray[np.int64]:
    """Cover, 0 to 255, for each of the 256 levels of heat: a smooth step, so that faint heat hides nothing."""
    heat = np.arange(LEVELS) / (LEVELS - 1)
    return np.asarray(np.rint(255 * alpha * heat * heat * (3 - 2 * heat)), dtype=np.int64)
