"""Native pixel data that can be changed at chosen places, every other byte staying as it is.

References
----------
PS3.3 C.7.6.3.1.2 (YBR_FULL_422), C.7.6.3.1.3 (planar configuration); PS3.5 8.2 (packing), 7.3 (big endian words).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gateway.deidentification.burned_in_text import TextBox
from models.decoders import BIG_ENDIAN, Codes, Layout

_EIGHT = 8
_COLOURS = 3
Colour = tuple[int, ...]
"""A sample, or three, as stored."""


class NativePixels:
    """The frames of an image in native form.

    Parameters
    ----------
    layout
        Of the image. Native pixels keep its arrangement; of encapsulated ones the samples of a pixel lie together.
    original
        Native pixel data to be changed; None makes room for all frames, which :meth:`put` fills.
    """

    def __init__(self, layout: Layout, original: bytes | None = None) -> None:
        self.is_original = original is not None
        self._layout = layout
        self._is_paired = self.is_original and layout.samples_a_frame < (
            layout.rows * layout.columns * layout.samples_per_pixel
        )
        self._is_by_plane = self.is_original and layout.by_plane and not self._is_paired
        big_endian = self.is_original and layout.transfer_syntax_uid == BIG_ENDIAN
        self._is_swapped = big_endian and layout.bits_allocated == _EIGHT and layout.is_ow
        self._dtype = layout.dtype.newbyteorder(">" if big_endian else "<")
        count = layout.samples_a_frame if self.is_original else layout.rows * layout.columns * layout.samples_per_pixel
        self._count = count
        if original is None:
            size = count * layout.frame_count * layout.dtype.itemsize
            self._buffer = np.zeros(size + size % 2, dtype=np.uint8)
        else:
            self._buffer = np.frombuffer(bytearray(original), dtype=np.uint8)
            self._swap()

    def put(self, frame_index: int, codes: Codes) -> None:
        """Fill a frame with samples, [rows, columns] or [rows, columns, 3]."""
        self._frame(frame_index)[...] = codes

    def blank(self, frame_index: int, box: TextBox, colour: Colour) -> None:
        """Give every pixel in `box` one colour; in YBR_FULL_422 a column that shares samples with it goes too."""
        rows, first, last = slice(box.row, box.row + box.rows), box.column, box.column + box.columns
        frame = self._frame(frame_index)
        if self._is_paired:
            luma, *chroma = colour
            frame[rows, first // 2 : -(-last // 2)] = (luma, luma, *chroma)
        elif self._is_by_plane:
            frame[:, rows, first:last] = np.array(colour)[:, None, None]
        elif self._layout.samples_per_pixel == _COLOURS:
            frame[rows, first:last] = colour
        else:
            frame[rows, first:last] = colour[0]

    def to_bytes(self) -> bytes:
        """Pixel data as they are written."""
        self._swap()
        try:
            return self._buffer.tobytes()
        finally:
            self._swap()

    def _frame(self, frame_index: int) -> npt.NDArray[Any]:
        """A frame in its own arrangement; what is written to it is written to the pixel data."""
        layout, size = self._layout, self._count * self._layout.dtype.itemsize
        samples = self._buffer[frame_index * size : (frame_index + 1) * size].view(self._dtype)
        if self._is_paired:
            return samples.reshape(layout.rows, -1, 4)
        if self._is_by_plane:
            return samples.reshape(_COLOURS, layout.rows, layout.columns)
        if layout.samples_per_pixel == _COLOURS:
            return samples.reshape(layout.rows, layout.columns, _COLOURS)
        return samples.reshape(layout.rows, layout.columns)

    def _swap(self) -> None:
        """Bytes of 8 bit samples lie in big endian words: put in order, or back."""
        if self._is_swapped:
            pairs = self._buffer[: len(self._buffer) // 2 * 2].reshape(-1, 2)
            pairs[...] = pairs[:, ::-1].copy()
