"""Synthetic pictures for the golden inputs of an imported model: drawn with a seed, of no patient.

What a model says of them means nothing; that it says the same again does.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

_SEED = 2026
_COUNT = 4
_SIDE = 320
_COARSE = 12


def golden_pictures(*, colour: bool) -> list[npt.NDArray[np.uint8]]:
    """uint8 [320, 320, 3] with a bright disc on black, or [320, 320]; the same at each call."""
    return [_draw(number, colour=colour) for number in range(_COUNT)]


def _draw(number: int, *, colour: bool) -> npt.NDArray[np.uint8]:
    random = np.random.default_rng((_SEED, number))
    y, x = np.mgrid[:_SIDE, :_SIDE] / _SIDE - 0.5
    channels = 3 if colour else 1
    level = np.array([0.7, 0.4, 0.25]) if colour else np.array([0.5])
    picture = np.empty((_SIDE, _SIDE, channels))
    for channel in range(channels):
        picture[:, :, channel] = level[channel] + 0.15 * _texture(random, _COARSE) + 0.05 * _texture(random, _SIDE // 4)
    for _ in range(3 + 6 * number):
        row, column, radius = random.uniform(-0.3, 0.3), random.uniform(-0.3, 0.3), random.uniform(0.01, 0.05)
        picture[np.hypot(y - row, x - column) < radius] += random.uniform(-0.3, 0.3)
    if colour:
        picture[np.hypot(y, x) > 0.47] = 0
    eight_bit = (np.clip(picture, 0, 1) * 255).round().astype(np.uint8)
    return eight_bit if colour else eight_bit[:, :, 0]


def _texture(random: np.random.Generator, cells: int) -> npt.NDArray[np.float64]:
    """Smooth noise [320, 320] of unit variance before smoothing, with so many cells across."""
    coarse = Image.fromarray(random.standard_normal((cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC), dtype=np.float64)
