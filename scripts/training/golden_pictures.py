"""Synthetic pictures for golden inputs: drawn with a seed, of no patient.

They look enough like what the models read to pass the quality limits and to reach every layer, and resemble nothing
that was trained on. What a model says of them means nothing; that it says the same again does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

SEED = 2026
PICTURES = 4

Pixels = npt.NDArray[np.uint8]


def fundus(number: int) -> Pixels:
    """uint8 [320, 400, 3]: an orange disc, a bright spot, vessels and, growing with `number`, dots."""
    random = np.random.default_rng((SEED, number))
    rows, columns, radius = 320, 400, 152
    centre = (columns / 2, rows / 2)
    y, x = np.mgrid[:rows, :columns].astype(np.float64)
    distance = np.hypot(x - centre[0], y - centre[1]) / radius
    shade = (1 - 0.35 * distance**2)[..., None] * np.array([196.0, 96.0, 44.0]) * random.uniform(0.85, 1.05)
    image = Image.fromarray(np.clip(shade, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    disc = (centre[0] + (-1) ** number * 80, centre[1] + random.uniform(-12, 12))
    draw.ellipse(_box(disc, 24), fill=(244, 196, 120))
    for angle in np.linspace(0, 2 * np.pi, 7)[:-1] + random.uniform(0, 1):
        _vessel(draw, random, disc, float(angle), (128, 36, 26))
    for _ in range(14 * number):
        spot = (centre[0] + random.normal(0, 60), centre[1] + random.normal(0, 60))
        fill = (96, 22, 18) if random.random() < 0.6 else (240, 214, 130)
        draw.ellipse(_box(spot, random.uniform(1.5, 2.5 + 1.5 * number)), fill=fill)
    smooth = np.asarray(image.filter(ImageFilter.GaussianBlur(0.8)), dtype=np.float64)
    smooth[distance > 1] = 0
    return smooth.round().astype(np.uint8)


def _vessel(
    draw: ImageDraw.ImageDraw,
    random: np.random.Generator,
    start: tuple[float, float],
    angle: float,
    fill: tuple[int, int, int],
) -> None:
    """A line that winds away from `start` and thins."""
    place = np.array(start)
    for step in range(26):
        angle += random.normal(0, 0.16)
        following = place + 8 * np.array([np.cos(angle), np.sin(angle)])
        draw.line([*place, *following], fill=fill, width=max(1, 5 - step // 6))
        place = following


def chest(number: int) -> Pixels:
    """uint8 [256, 256]: two dark lungs with ribs and a bright heart; `number` grows a pale patch in one of them."""
    random = np.random.default_rng((SEED, 100 + number))
    side = 256
    image = Image.new("L", (side, side), 150)
    draw = ImageDraw.Draw(image)
    for left in (28, 140):
        draw.ellipse((left, 44, left + 88, 216), fill=46 + 6 * number)
    for rib in range(9):
        top = 36 + 20 * rib + random.uniform(-3, 3)
        for left in (20, 136):
            draw.arc((left, top, left + 104, top + 46), 200, 340, fill=104, width=4)
    draw.rectangle((120, 20, 138, 240), fill=188)
    draw.ellipse((104, 118, 186, 214), fill=196)
    for _ in range(number):
        patch = (random.uniform(48, 96), random.uniform(90, 180))
        draw.ellipse(_box(patch, random.uniform(14, 30)), fill=150 + 10 * number)
    draw.rectangle((0, 222, side, side), fill=206)
    smooth = np.asarray(image.filter(ImageFilter.GaussianBlur(2.0)), dtype=np.float64)
    grain = np.asarray(
        Image.fromarray(random.normal(128, 18, (side // 2, side // 2)).clip(0, 255).astype(np.uint8)).resize(
            (side, side), Image.Resampling.BICUBIC
        ),
        dtype=np.float64,
    )
    return (smooth + (grain - 128) * 0.35).clip(0, 255).round().astype(np.uint8)


def _box(centre: tuple[float, float], radius: float) -> tuple[float, float, float, float]:
    return (centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius)


DRAWN_FOR: Mapping[str, Callable[[int], Pixels]] = {"retinopathy": fundus, "chest-triage": chest}


def golden_pictures(model_name: str) -> list[Pixels]:
    """The golden inputs of a model, the same at each call."""
    draw = DRAWN_FOR[model_name]
    return [draw(number) for number in range(PICTURES)]
