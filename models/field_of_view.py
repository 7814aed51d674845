"""Where the retina lies in a fundus photograph: the bright disc on a black border.

Cameras differ: the disc may be cut at the top and bottom (Kowa, Canon), whole (Topcon), carry a notch, sit off centre,
share its corners with burnt-in text, or fill the picture so that there is no border at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_BORDER_SHARE = 0.14
"""A pixel is retina when its brightest channel is above black by this share of the picture's bright level."""
_LEAST_RISE = 0.025
"""... and by at least this much, so that the grain of an all-black frame is not taken for a retina."""
_LINE_SHARE = 0.08
"""A row or column belongs to the disc when it holds this share of the fullest line's retina pixels."""
_FIT_TOLERANCE_FRACTION = 0.02
"""Largest median distance of rim points from the fitted circle, as a fraction of its radius."""
_LEAST_RIM_POINTS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldOfView:
    """The square around the disc, as fractions of the picture's rows and columns, and what was seen of it.

    `top`, `left`, `height` and `width` may stick out of 0 to 1 where the disc is cut by the picture's edge.
    """

    top: float
    left: float
    height: float
    width: float
    mask: npt.NDArray[np.bool_]
    """[rows, columns] of the thumbnail: pixels brighter than the border, inside the square."""
    is_circle: bool
    """Whether a circle fitted the rim. False: the square surrounds whatever is bright."""


def find_field_of_view(pixels: npt.NDArray[np.float32]) -> FieldOfView:
    """Find the bright disc.

    Parameters
    ----------
    pixels
        Thumbnail, float32 [rows, columns, 3] or [rows, columns], 0 to 1.

    Returns
    -------
    FieldOfView
        The whole picture, padded to a square, where nothing stands out from the border.
    """
    rows, columns = pixels.shape[:2]
    brightness = pixels
    if pixels.ndim == 3:
        brightness = np.maximum(np.maximum(pixels[:, :, 0], pixels[:, :, 1]), pixels[:, :, 2])
    mask = _brighter_than_border(brightness)
    row_span = _span(mask.sum(axis=1))
    column_span = _span(mask.sum(axis=0))
    if row_span is None or column_span is None:
        mask = np.zeros((rows, columns), dtype=np.bool_)
        return _square((0, rows, 0, columns), mask, is_circle=False)
    inside = np.zeros_like(mask)
    inside[row_span[0] : row_span[1], column_span[0] : column_span[1]] = True
    mask &= inside
    circle = _fit_rim(mask)
    if circle is None:
        return _square((*row_span, *column_span), mask, is_circle=False)
    centre_row, centre_column, radius = circle
    box = (centre_row - radius, centre_row + radius, centre_column - radius, centre_column + radius)
    return _square(box, mask, is_circle=True)


def _brighter_than_border(brightness: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Mask [rows, columns] of what stands out from the darkest of the picture."""
    black, bright = np.percentile(brightness, (1.0, 90.0))
    black = min(float(black), 0.25)
    threshold = black + max(_BORDER_SHARE * (float(bright) - black), _LEAST_RISE)
    if _border_is_bright(brightness, threshold):
        return np.ones(brightness.shape, dtype=np.bool_) if float(bright) > _LEAST_RISE else brightness > 1
    return brightness > threshold


def _border_is_bright(brightness: npt.NDArray[np.float32], threshold: float) -> bool:
    """Whether all four corners are retina, that is, the photograph has no border."""
    rows, columns = brightness.shape
    height, width = max(1, rows // 24), max(1, columns // 24)
    corners = (
        brightness[:height, :width],
        brightness[:height, -width:],
        brightness[-height:, :width],
        brightness[-height:, -width:],
    )
    return all(float(np.median(corner)) > threshold for corner in corners)


def _span(counts: npt.NDArray[np.int_]) -> tuple[int, int] | None:
    """First line and one past the last line that hold enough retina; ``None`` where there is none."""
    fullest = int(counts.max())
    if fullest == 0:
        return None
    lines = np.flatnonzero(counts >= max(2, _LINE_SHARE * fullest))
    if lines.size == 0:
        return None
    return int(lines[0]), int(lines[-1]) + 1


def _fit_rim(mask: npt.NDArray[np.bool_]) -> tuple[float, float, float] | None:
    """Centre row, centre column and radius of the circle through the mask's rim, in thumbnail pixels.

    Rim points are the ends of each row and column of the mask that do not touch the picture's edge. The algebraic fit
    (Kasa 1976) is repeated without the points that lie far off it: notches, text, vignetting.
    """
    points = _rim_points(mask)
    rows, columns = mask.shape
    if len(points) < _LEAST_RIM_POINTS:
        return None
    for _ in range(4):
        row, column = points[:, 0], points[:, 1]
        design = np.column_stack((row, column, np.ones(len(points))))
        solution, *_rest = np.linalg.lstsq(design.T @ design, design.T @ (row**2 + column**2), rcond=None)
        centre_row, centre_column = solution[0] / 2, solution[1] / 2
        squared = solution[2] + centre_row**2 + centre_column**2
        if squared <= 0:
            return None
        radius = float(np.sqrt(squared))
        distance = np.abs(np.hypot(row - centre_row, column - centre_column) - radius)
        kept = distance <= max(1.0, 2.5 * float(np.median(distance)))
        if kept.all() or kept.sum() < _LEAST_RIM_POINTS:
            break
        points = points[kept]
    plausible = (
        float(np.median(distance)) <= max(0.6, _FIT_TOLERANCE_FRACTION * radius)
        and 0.2 * min(rows, columns) <= radius <= 0.75 * max(rows, columns)
        and 0 <= centre_row <= rows
        and 0 <= centre_column <= columns
    )
    return (float(centre_row), float(centre_column), radius) if plausible else None


def _rim_points(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """[N, 2] row and column of the rim: pixel edges, not centres, between retina and border."""
    found = []
    for turned in (False, True):
        lines = mask.T if turned else mask
        length = lines.shape[1]
        used = np.flatnonzero(lines.any(axis=1))
        first = lines[used].argmax(axis=1).astype(np.float64)
        last = (length - lines[used][:, ::-1].argmax(axis=1)).astype(np.float64)
        for ends, free in ((first, first > 1), (last, last < length - 1)):
            across = used[free] + 0.5
            along = ends[free]
            found.append(np.column_stack((along, across) if turned else (across, along)))
    return np.concatenate(found)


def _square(box: tuple[float, float, float, float], mask: npt.NDArray[np.bool_], *, is_circle: bool) -> FieldOfView:
    """Square of the longer side around a box (top, bottom, left, right; thumbnail pixels), as fractions."""
    top, bottom, left, right = box
    rows, columns = mask.shape
    side = max(bottom - top, right - left)
    return FieldOfView(
        top=((top + bottom) / 2 - side / 2) / rows,
        left=((left + right) / 2 - side / 2) / columns,
        height=side / rows,
        width=side / columns,
        mask=mask,
        is_circle=is_circle,
    )
