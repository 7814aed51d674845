"""Is the picture one that the model can read at all? Statistics of its thumbnail, held against the card's limits.

The statistics serve twice: they say whether a picture is gradable, and drift monitors watch their distribution. They
are measured on a copy of at most 256 pixels, so that they hardly depend on resolution.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from models.card import QualityLimits
from models.field_of_view import FieldOfView, find_field_of_view
from models.frame import Frame, thumbnail, working_picture

STATISTIC_NAMES = (
    "level",
    "contrast",
    "sharpness",
    "noise",
    "clipped_fraction",
    "entropy_bits",
    "border_level",
)
"""Statistics of every picture, in a fixed order."""
COLOUR_STATISTIC_NAMES = (*STATISTIC_NAMES, "field_of_view_fraction", "red_share", "blue_share", "saturation")
"""Statistics of a colour picture, in a fixed order."""

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_TINY = 1e-6


def image_statistics(frame: Frame) -> dict[str, float]:
    """Statistics of a picture; all but `entropy_bits` (0 to 8) are fractions.

    ``level`` mean luminance; ``contrast`` standard deviation of luminance; ``sharpness`` fine detail relative to the
    level; ``noise`` standard deviation of uncorrelated grain (Immerkaer 1996); ``clipped_fraction`` pixels at white;
    ``entropy_bits`` of the luminance histogram; ``border_level`` luminance of the outermost ring of the picture.
    Of colour pictures also ``field_of_view_fraction`` of the picture that is brighter than the border, ``red_share``
    and ``blue_share`` of the sum of the three channels, and ``saturation``. All but ``border_level`` and
    ``field_of_view_fraction`` are taken inside the field of view of a colour picture.

    Raises
    ------
    PixelError
        A pixel is not a finite number.

    References
    ----------
    J. Immerkaer, Fast noise variance estimation, CVIU 64(2), 1996.
    """
    small = thumbnail(working_picture(frame))
    return statistics_of_thumbnail(small, find_field_of_view(small) if frame.is_colour else None)


def statistics_of_thumbnail(pixels: npt.NDArray[np.float32], field: FieldOfView | None) -> dict[str, float]:
    """Statistics as of :func:`image_statistics`, of float32 [rows, columns(, 3)] in 0 to 1.

    `field` is where the retina lies; ``None`` measures the whole picture.
    """
    colour = pixels.ndim == 3
    luminance = pixels @ _LUMA if colour else pixels
    mask = np.ones(luminance.shape, dtype=np.bool_)
    if field is not None and field.mask.any():
        mask = field.mask
    inner = _shrunk(mask)
    values = luminance[mask]
    level = float(values.mean())
    statistics = {
        "level": level,
        "contrast": float(values.std()),
        "sharpness": _fine_detail(luminance, inner) / max(level, 0.02),
        "noise": _noise(luminance, inner),
        "clipped_fraction": float((values >= 0.98).mean()),
        "entropy_bits": _entropy_bits(values),
        "border_level": _border_level(luminance),
    }
    if colour:
        statistics |= _colour_statistics(*(pixels[:, :, channel][mask] for channel in range(3)))
        statistics["field_of_view_fraction"] = float(mask.mean()) if field is None else float(field.mask.mean())
        statistics = {name: statistics[name] for name in COLOUR_STATISTIC_NAMES}
    return statistics


def judge_quality(statistics: Mapping[str, float], limits: QualityLimits | None) -> tuple[str, ...]:
    """Reasons why a picture is ungradable, in the order of the limits; ``()`` is gradable.

    A limited statistic that is absent or not finite is a reason too: what could not be measured is not vouched for.
    """
    if limits is None:
        return ()
    reasons = []
    for bounds, above in ((limits.minimum, False), (limits.maximum, True)):
        for name, bound in bounds.items():
            value = statistics.get(name, math.nan)
            title = name.replace("_", " ")
            if not math.isfinite(value):
                reasons.append(f"{title} could not be measured")
            elif value > bound if above else value < bound:
                reasons.append(f"{title} {value:.3g} is {'above' if above else 'below'} {bound:.3g}")
    return tuple(reasons)


def _shrunk(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The mask less its rim (3 % of the short side), so that the disc's edge does not count as detail."""
    margin = max(2, round(0.03 * min(mask.shape)))
    padded = np.pad(mask, margin, constant_values=False)
    rows, columns = mask.shape
    shrunk = mask.copy()
    for step in (margin, margin // 2):
        for row, column in ((0, step), (0, -step), (step, 0), (-step, 0)):
            top, left = margin + row, margin + column
            shrunk &= padded[top : top + rows, left : left + columns]
    shrunk[:2] = shrunk[-2:] = False
    shrunk[:, :2] = shrunk[:, -2:] = False
    return shrunk if shrunk.any() else mask


def _fine_detail(luminance: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_]) -> float:
    """Root mean square of luminance less its 5 x 5 mean."""
    padded = np.pad(luminance, 2, mode="edge")
    rows, columns = luminance.shape
    across = padded[:, :columns].copy()
    for shift in range(1, 5):
        across += padded[:, shift : shift + columns]
    smooth = across[:rows].copy()
    for shift in range(1, 5):
        smooth += across[shift : shift + rows]
    smooth /= np.float32(25)
    return float(np.sqrt(np.mean((luminance - smooth)[mask] ** 2)))


def _noise(luminance: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_]) -> float:
    """Grain that no edge explains: mean absolute response to Immerkaer's Laplacian difference, his equation 5."""
    padded = np.pad(luminance, 1, mode="edge")
    across = padded[:, :-2] - 2 * padded[:, 1:-1] + padded[:, 2:]
    response = across[:-2] - 2 * across[1:-1] + across[2:]
    return float(np.sqrt(np.pi / 2) / 6 * np.abs(response[mask]).mean())


def _entropy_bits(values: npt.NDArray[np.float32]) -> float:
    counts = np.bincount(np.clip(np.rint(values * 255), 0, 255).astype(np.intp), minlength=256)
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum()) + 0.0


def _border_level(luminance: npt.NDArray[np.float32]) -> float:
    width = max(1, round(0.03 * min(luminance.shape)))
    ring = (luminance[:width], luminance[-width:], luminance[:, :width], luminance[:, -width:])
    return float(np.mean([side.mean() for side in ring]))


def _colour_statistics(
    red: npt.NDArray[np.float32], green: npt.NDArray[np.float32], blue: npt.NDArray[np.float32]
) -> dict[str, float]:
    """Shares of red and blue, and saturation as HSV defines it, of three channels [N]."""
    total = max(float(red.mean() + green.mean() + blue.mean()), _TINY)
    highest = np.maximum(np.maximum(red, green), blue)
    lowest = np.minimum(np.minimum(red, green), blue)
    return {
        "red_share": float(red.mean()) / total,
        "blue_share": float(blue.mean()) / total,
        "saturation": float(np.mean((highest - lowest) / np.maximum(highest, _TINY))),
    }
