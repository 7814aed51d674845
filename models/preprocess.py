"""From a displayed picture to the tensor a model reads, by the card's pixel contract, and back to where it lay."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from models.card import PixelContract
from models.errors import PixelError
from models.field_of_view import find_field_of_view
from models.frame import Frame, thumbnail, working_picture
from models.quality import statistics_of_thumbnail

__all__ = ["Frame", "Grid", "ModelInput", "prepare"]

_PERCENTILES = (0.5, 99.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Where the model's tensor lies in the source picture.

    `top`, `left`, `height` and `width` are the crop box in source pixels; it sticks out of the picture where the crop
    was padded to a square.
    """

    source_rows: int
    source_columns: int
    top: float
    left: float
    height: float
    width: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInput:
    """What a model reads of one picture.

    Attributes
    ----------
    tensor
        float32 [C, rows, columns], normalised by the contract's mean and std.
    grid
        Where the tensor lies in the source picture.
    statistics
        Image statistics by name, see :mod:`models.quality`.
    """

    tensor: npt.NDArray[np.float32]
    grid: Grid
    statistics: Mapping[str, float]


def prepare(frame: Frame, contract: PixelContract) -> ModelInput:
    """Crop, scale and normalise a picture as `contract` says.

    A frame decoded at 1/2, 1/4 or 1/8 of its size gives nearly the same tensor, as long as it is no smaller than the
    tensor.

    Raises
    ------
    PixelError
        A greyscale picture for a colour model or the reverse, or pixels that are not finite.
    """
    if frame.is_colour != (contract.photometric_interpretation == "RGB"):
        kind = "colour" if frame.is_colour else "greyscale"
        raise PixelError(f"the model reads {contract.photometric_interpretation}, the picture is {kind}")
    picture = working_picture(frame)
    small = thumbnail(picture)
    field = find_field_of_view(small) if frame.is_colour or contract.crop == "field_of_view" else None
    crop = (0.0, 0.0, 1.0, 1.0)
    if contract.crop == "field_of_view" and field is not None:
        crop = (field.top, field.left, field.height, field.width)
    top, left, height, width = crop
    values = _cut(picture, crop, rows=contract.size.rows, columns=contract.size.columns)
    if contract.intensity == "percentile":
        low, high = (float(level) for level in np.percentile(small, _PERCENTILES))
        values = np.clip((values - np.float32(low)) / np.float32(max(high - low, 1e-6)), 0, 1)
    tensor = np.empty((contract.channels, *values.shape[:2]), dtype=np.float32)
    for channel, (mean, deviation) in enumerate(zip(contract.mean, contract.std, strict=True)):
        plane = values[:, :, channel] if values.ndim == 3 else values
        np.multiply(plane, np.float32(1 / deviation), out=tensor[channel])
        tensor[channel] -= np.float32(mean / deviation)
    return ModelInput(
        tensor=tensor,
        grid=Grid(
            source_rows=frame.source_rows,
            source_columns=frame.source_columns,
            top=top * frame.source_rows,
            left=left * frame.source_columns,
            height=height * frame.source_rows,
            width=width * frame.source_columns,
        ),
        statistics=statistics_of_thumbnail(small, field),
    )


def _cut(
    picture: Image.Image, crop: tuple[float, float, float, float], *, rows: int, columns: int
) -> npt.NDArray[np.float32]:
    """A crop (top, left, height, width as fractions of the picture), antialiased, black outside; float32, 0 to 1."""
    top, left, height, width = crop
    across, down = picture.size
    box = (left * across, top * down, (left + width) * across, (top + height) * down)
    before = (max(0, math.ceil(-box[0])), max(0, math.ceil(-box[1])))
    after = (max(0, math.ceil(box[2] - across)), max(0, math.ceil(box[3] - down)))
    if any(before + after):
        canvas = Image.new(picture.mode, (across + before[0] + after[0], down + before[1] + after[1]))
        canvas.paste(picture, before)
        picture = canvas
    box = (
        max(0.0, box[0] + before[0]),
        max(0.0, box[1] + before[1]),
        min(float(picture.size[0]), box[2] + before[0]),
        min(float(picture.size[1]), box[3] + before[1]),
    )
    resized = np.asarray(picture.resize((columns, rows), Image.Resampling.BILINEAR, box=box), dtype=np.float32)
    return resized / np.float32(255) if picture.mode == "RGB" else resized
