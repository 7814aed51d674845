"""Reading the training images through the gateway's own preprocessing, and altering them for training."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter
from tqdm import tqdm

from models.card import PixelContract, file_sha256
from models.preprocess import Frame, Grid, prepare


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A training image after preprocessing."""

    path: Path
    values: npt.NDArray[np.uint8]
    """uint8 [rows, columns] or [rows, columns, 3]: the tensor before normalisation, rounded."""
    grid: Grid
    statistics: dict[str, float]


def read_pictures(paths: Sequence[Path], contract: PixelContract, title: str) -> list[Picture]:
    """Images cropped and scaled as `contract` says."""
    plain = contract.model_copy(update={"mean": (0.0,) * 3, "std": (1.0,) * 3})
    found = []
    for path in tqdm(paths, desc=title, leave=False):
        with Image.open(path) as image:
            if contract.photometric_interpretation == "RGB":
                frame = Frame.from_rgb(np.asarray(image.convert("RGB")))
            else:
                frame = Frame.from_greyscale(np.asarray(image.convert("L"), dtype=np.float32) / np.float32(255))
        prepared = prepare(frame, plain)
        values = np.rint(prepared.tensor.transpose(1, 2, 0) * 255).astype(np.uint8)
        values = values if frame.is_colour else values[:, :, 0]
        found.append(Picture(path=path, values=values, grid=prepared.grid, statistics=dict(prepared.statistics)))
    return found


def to_tensor(values: npt.NDArray[np.uint8], contract: PixelContract) -> npt.NDArray[np.float32]:
    """float32 [3, rows, columns], normalised."""
    colour = values if values.ndim == 3 else np.repeat(values[:, :, np.newaxis], 3, axis=2)
    scaled = colour.astype(np.float32) / np.float32(255)
    normalised = (scaled - np.asarray(contract.mean, np.float32)) / np.asarray(contract.std, np.float32)
    return np.ascontiguousarray(normalised.transpose(2, 0, 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Alteration:
    """How far training images are altered. Moderate: what other cameras and operators would do."""

    rotation_degrees: float
    zoom_fraction: float
    shift_fraction: float
    flips: bool


def altered(
    values: npt.NDArray[np.uint8], alteration: Alteration, random: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """A randomly turned, scaled, shifted, flipped, re-lit, blurred and JPEG-compressed copy."""
    image = Image.fromarray(values)
    if alteration.flips:
        for operation in (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM):
            if random.random() < 0.5:
                image = image.transpose(operation)
    angle = np.deg2rad(random.uniform(-alteration.rotation_degrees, alteration.rotation_degrees))
    zoom = 1 + random.uniform(-alteration.zoom_fraction, alteration.zoom_fraction)
    side = image.size[0]
    shift = random.uniform(-alteration.shift_fraction, alteration.shift_fraction, size=2) * side
    cosine, sine, centre = np.cos(angle) / zoom, np.sin(angle) / zoom, side / 2
    matrix = (
        cosine,
        sine,
        centre - cosine * (centre + shift[0]) - sine * (centre + shift[1]),
        -sine,
        cosine,
        centre + sine * (centre + shift[0]) - cosine * (centre + shift[1]),
    )
    image = image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    if random.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(random.uniform(0.3, 1.0) * side / 384))
    table = _tone_curve(random)
    if image.mode == "RGB":
        image = image.point([value for _ in range(3) for value in _tone_curve(random, table)])
    else:
        image = image.point(table)
    if random.random() < 0.5:
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=int(random.integers(40, 95)))
        image = Image.open(stream)
    return np.asarray(image)


def _tone_curve(random: np.random.Generator, onto: list[int] | None = None) -> list[int]:
    """Look-up table of 256 values: gamma, contrast, brightness; given `onto`, a slight change of that one (tint)."""
    if onto is not None:
        return [min(255, round(value * gain)) for gain in [random.uniform(0.93, 1.07)] for value in onto]
    level = np.linspace(0, 1, 256) ** np.exp(random.uniform(-0.25, 0.25))
    level = level * random.uniform(0.85, 1.15) * random.uniform(0.9, 1.1)
    return [int(value) for value in np.clip(np.rint(level * 255), 0, 255)]


def folder_sha256(paths: Sequence[Path], folder: Path) -> str:
    """Hash over the sorted (relative path, file sha256) list: which images these were."""
    digest = hashlib.sha256()
    for name, path in sorted((path.relative_to(folder).as_posix(), path) for path in paths):
        digest.update(f"{name} {file_sha256(path)}\n".encode())
    return digest.hexdigest()
