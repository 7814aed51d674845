"""One displayed picture, and the reduced copies that the rest of this room measures and cuts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from models.errors import PixelError

WORKING_LEAST_SIDE = 640
"""A picture is first reduced by a whole factor that keeps its short side at least this long (pixels)."""
THUMBNAIL_LONG_SIDE = 256
"""Long side of the copy on which the field of view and the image statistics are measured (pixels)."""

_COLOUR_AXES = 3
_GREYSCALE_AXES = 2
_LEAST_SIDE = 8
_ROW_SKIPPING_FACTOR = 4
"""From this reduction on every second row is left out: half the memory traffic, and blocks still average 8 pixels."""
_STRIP_ROWS = 32
"""Rows of the reduced picture made at a time: a strip of the source fits the processor's cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One displayed picture, free of how it was stored.

    Attributes
    ----------
    pixels
        Colour: uint8 [rows, columns, 3] RGB. Greyscale: float32 [rows, columns] in 0 to 1 after modality and VOI LUT,
        1 is white (MONOCHROME1 is inverted). May be smaller than the stored image when it was decoded at a reduced
        scale.
    source_rows, source_columns
        Grid of the stored image: (0028,0010) *Rows*, (0028,0011) *Columns*.
    """

    pixels: npt.NDArray[np.uint8] | npt.NDArray[np.float32]
    source_rows: int
    source_columns: int

    def __post_init__(self) -> None:
        colour = self.pixels.ndim == _COLOUR_AXES and self.pixels.shape[2] == _COLOUR_AXES
        greyscale = self.pixels.ndim == _GREYSCALE_AXES
        if not (colour and self.pixels.dtype == np.uint8) and not (greyscale and self.pixels.dtype == np.float32):
            raise PixelError(
                f"a frame is uint8 [rows, columns, 3] or float32 [rows, columns], "
                f"not {self.pixels.dtype} {list(self.pixels.shape)}"
            )
        if min(self.pixels.shape[:2]) < _LEAST_SIDE:
            raise PixelError(f"a frame of {self.pixels.shape[0]} x {self.pixels.shape[1]} pixels is too small to read")
        if self.source_rows < self.pixels.shape[0] or self.source_columns < self.pixels.shape[1]:
            raise PixelError("a frame has more pixels than the image that it was decoded from")

    @property
    def is_colour(self) -> bool:
        """Whether `pixels` is RGB."""
        return self.pixels.ndim == _COLOUR_AXES

    @classmethod
    def from_rgb(
        cls, pixels: npt.NDArray[np.uint8], *, source_rows: int | None = None, source_columns: int | None = None
    ) -> Frame:
        """Colour frame of uint8 [rows, columns, 3]; the source grid is that of `pixels` unless stated.

        Raises
        ------
        PixelError
            Another shape or dtype.
        """
        rows, columns = pixels.shape[:2]
        return cls(pixels=pixels, source_rows=source_rows or rows, source_columns=source_columns or columns)

    @classmethod
    def from_greyscale(
        cls, pixels: npt.NDArray[np.float32], *, source_rows: int | None = None, source_columns: int | None = None
    ) -> Frame:
        """Greyscale frame of float32 [rows, columns] in 0 to 1; the source grid is that of `pixels` unless stated.

        Raises
        ------
        PixelError
            Another shape or dtype.
        """
        rows, columns = pixels.shape[:2]
        return cls(pixels=pixels, source_rows=source_rows or rows, source_columns=source_columns or columns)


def working_picture(frame: Frame) -> Image.Image:
    """The frame reduced by averaging whole blocks of pixels, short side at least `WORKING_LEAST_SIDE`.

    Mode RGB (0 to 255) or F (0 to 1). One such reduction serves the crop, the tensor and the statistics, which is what
    keeps a 12-megapixel frame cheap.
    """
    factor = min(frame.pixels.shape[:2]) // WORKING_LEAST_SIDE
    if factor < _ROW_SKIPPING_FACTOR:
        picture = Image.fromarray(np.ascontiguousarray(frame.pixels))
        return picture.reduce(factor) if factor > 1 else picture
    factor -= factor % 2
    rows, columns = (-(-side // factor) for side in frame.pixels.shape[:2])
    reduced = Image.new("RGB" if frame.is_colour else "F", (columns, rows))
    for row in range(0, rows, _STRIP_ROWS):
        strip = np.ascontiguousarray(frame.pixels[row * factor : (row + _STRIP_ROWS) * factor : 2])
        reduced.paste(Image.fromarray(strip).reduce((factor, factor // 2)), (0, row))
    return reduced


def thumbnail(picture: Image.Image) -> npt.NDArray[np.float32]:
    """float32 [rows, columns] or [rows, columns, 3] in 0 to 1, long side at most `THUMBNAIL_LONG_SIDE`.

    Raises
    ------
    PixelError
        A pixel is not a finite number.
    """
    scale = THUMBNAIL_LONG_SIDE / max(picture.size)
    if scale < 1:
        columns, rows = (max(1, round(side * scale)) for side in picture.size)
        picture = picture.resize((columns, rows), Image.Resampling.BOX)
    pixels = np.asarray(picture, dtype=np.float32)
    if pixels.ndim == _COLOUR_AXES:
        pixels = pixels / np.float32(255)
    if not np.isfinite(pixels).all():
        raise PixelError("the picture holds values that are not finite")
    return pixels
