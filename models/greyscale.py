"""Stored values of a greyscale picture to what a display shows, as one table.

A greyscale picture has at most 65,536 different stored values, so the whole chain (sign, modality LUT, VOI LUT,
inversion of MONOCHROME1, padding) is worked out once a value and then looked up once a pixel: exact, and quick at any
size.

What is decided here, where the standard leaves it open:

- several windows or LUTs: the first is used; a VOI LUT is preferred to a window;
- no usable VOI: 8 bit pictures show their full range 0 to 255 (signed: -128 to 127); deeper ones show the lowest to the
  highest value that occurs in the frame, padding excluded, since their used range is unknown and often a small part;
- a window whose width the standard forbids (PS3.3 C.11.2.1.2) is passed over as if it were absent;
- padded pixels are black, in MONOCHROME1 too;
- *Presentation LUT Shape* is not applied: in DX it repeats what MONOCHROME1 and MONOCHROME2 say already.

References
----------
PS3.3 C.7.5.1.1.2 (padding), C.7.6.3.1.2 (photometric interpretation), C.11.1 (modality LUT), C.11.2 (VOI LUT).
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.multival import MultiValue

from models.errors import PixelError

log = logging.getLogger(__name__)

Floats = NDArray[np.float64]
_EIGHT_BITS = 8
_FULL_TABLE = 65536
BAD_VALUE = (
    struct.error,
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    IndexError,
    NotImplementedError,
    OverflowError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attributes:
    """Where attributes of one frame are looked for."""

    items: Sequence[pydicom.Dataset]
    """In this order: the data set, then the functional group items that hold for the frame."""
    big_endian: bool
    """Byte order of OW values, which pydicom leaves as they are."""

    def find(self, keyword: str) -> Any:
        """First present, non-empty value of `keyword`, or None."""
        for item in self.items:
            try:
                value = item.get(keyword)
            except BAD_VALUE as error:
                raise PixelError(f"{keyword} cannot be read as its value representation asks") from error
            if value is None or (isinstance(value, str | bytes | MultiValue | pydicom.Sequence) and len(value) == 0):
                continue
            return value
        return None

    def number(self, keyword: str) -> float | None:
        """First value of a numeric attribute, or None where it is absent."""
        value = self.find(keyword)
        if isinstance(value, MultiValue):
            value = value[0]
        if value is None:
            return None
        try:
            number = float(value)
        except BAD_VALUE as error:
            raise PixelError(f"{keyword} is not a number") from error
        if not np.isfinite(number):
            raise PixelError(f"{keyword} is not a finite number")
        return number


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRange:
    """How the bits of one sample are to be read."""

    bits: int
    """Bits that carry the value: at most (0028,0101) *Bits Stored*, at most 16."""
    is_signed: bool
    """(0028,0103) *Pixel Representation* is 1: two's complement."""

    def values(self) -> NDArray[np.int64]:
        """Stored value of each code 0 to 2**bits - 1."""
        codes = np.arange(1 << self.bits, dtype=np.int64)
        if self.is_signed:
            codes[codes >= 1 << (self.bits - 1)] -= 1 << self.bits
        return codes


@dataclass(frozen=True, slots=True, kw_only=True)
class LookupTable:
    """A modality or VOI LUT (PS3.3 C.11.1.1, C.11.2.1.1)."""

    first_mapped: int
    entries: Floats
    """Output values, [entry]."""
    bits: int

    def __call__(self, values: Floats) -> Floats:
        """Look `values` up; those outside the table take its first or last entry."""
        positions = np.rint(values).astype(np.int64) - self.first_mapped
        return self.entries[np.clip(positions, 0, len(self.entries) - 1)]


def displayed_table(
    attributes: Attributes, *, stored: StoredRange, used: Callable[[], NDArray[np.bool_]], inverted: bool
) -> NDArray[np.float32]:
    """Make the table from code to displayed value, float32 [2**bits] in 0 to 1, 1 being white.

    Parameters
    ----------
    attributes
        Where padding, modality and VOI attributes are looked for.
    stored
        How a code is to be read.
    used
        Gives bool [2**bits]: which codes occur in the frame. Called only where there is no usable VOI.
    inverted
        MONOCHROME1: the lowest value is white.

    Raises
    ------
    PixelError
        A modality LUT, rescale or VOI LUT is there but cannot be read.
    """
    stored_values = stored.values()
    padding = _padding(attributes, stored, stored_values)
    modality = _modality(attributes, stored_values.astype(np.float64))
    table = _voi(attributes, modality)
    if table is None:
        table = _full_range(modality, used() & ~padding, whole=stored.bits <= _EIGHT_BITS)
    if inverted:
        table = 1.0 - table
    table[padding] = 0.0
    return table.astype(np.float32)


def _wrapped(value: float, stored: StoredRange) -> int:
    """Read a padding value as a stored one: senders write it with either sign and either width."""
    code = int(value) & ((1 << stored.bits) - 1)
    return int(stored.values()[code])


def _padding(attributes: Attributes, stored: StoredRange, stored_values: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which codes are padding: (0028,0120) up or down to (0028,0121), PS3.3 C.7.5.1.1.2."""
    value = attributes.number("PixelPaddingValue")
    if value is None:
        return np.zeros(stored_values.shape, dtype=np.bool_)
    first = _wrapped(value, stored)
    limit = attributes.number("PixelPaddingRangeLimit")
    last = first if limit is None else _wrapped(limit, stored)
    padding: NDArray[np.bool_] = (stored_values >= min(first, last)) & (stored_values <= max(first, last))
    return padding


def _modality(attributes: Attributes, values: Floats) -> Floats:
    """Apply the modality LUT or the rescale, PS3.3 C.11.1."""
    sequence = attributes.find("ModalityLUTSequence")
    if sequence is not None:
        return lookup_table(sequence[0], big_endian=attributes.big_endian, lowest_input=float(values.min()))(values)
    slope = attributes.number("RescaleSlope")
    intercept = attributes.number("RescaleIntercept")
    slope = 1.0 if slope is None else slope
    if slope == 0.0:
        raise PixelError("RescaleSlope is 0, which maps every value to one")
    return values * slope + (0.0 if intercept is None else intercept)


def _voi(attributes: Attributes, values: Floats) -> Floats | None:
    """Apply the first VOI LUT, else the first window; None where neither is usable. Output 0 to 1."""
    sequence = attributes.find("VOILUTSequence")
    if sequence is not None:
        table = lookup_table(sequence[0], big_endian=attributes.big_endian, lowest_input=float(values.min()))
        return np.clip(table(values) / ((1 << table.bits) - 1), 0.0, 1.0)
    centre, width = attributes.number("WindowCenter"), attributes.number("WindowWidth")
    if centre is None or width is None:
        return None
    function = str(attributes.find("VOILUTFunction") or "LINEAR").strip().upper()
    return window(values, centre=centre, width=width, function=function)


def window(values: Floats, *, centre: float, width: float, function: str) -> Floats | None:
    """Apply a window, output 0 to 1; None where the width is one that the standard forbids.

    References
    ----------
    PS3.3 C.11.2.1.2.1 (LINEAR), C.11.2.1.3.1 (SIGMOID), C.11.2.1.3.2 (LINEAR_EXACT).

    Raises
    ------
    PixelError
        `function` is none of the three.
    """
    if function not in {"LINEAR", "LINEAR_EXACT", "SIGMOID"}:
        raise PixelError("VOILUTFunction is none of LINEAR, LINEAR_EXACT, SIGMOID")
    if width <= 0 or (function == "LINEAR" and width < 1):
        log.warning("a %s window of width %g is not allowed by PS3.3 C.11.2.1.2 and is passed over", function, width)
        return None
    if function == "SIGMOID":
        exponent = np.clip(-4.0 * (values - centre) / width, -700.0, 700.0)
        return np.asarray(1.0 / (1.0 + np.exp(exponent)))
    if function == "LINEAR_EXACT":
        return np.clip((values - centre) / width + 0.5, 0.0, 1.0)
    if width == 1:
        return (values > centre - 0.5).astype(np.float64)
    return np.clip((values - (centre - 0.5)) / (width - 1.0) + 0.5, 0.0, 1.0)


def _full_range(modality: Floats, used: NDArray[np.bool_], *, whole: bool) -> Floats:
    """Stretch 0 to 1 over the whole range (`whole`) or over the values that occur."""
    chosen = modality if whole or not used.any() else modality[used]
    low, high = float(chosen.min()), float(chosen.max())
    if high <= low:
        return np.zeros_like(modality)
    return np.clip((modality - low) / (high - low), 0.0, 1.0)


def lookup_table(item: pydicom.Dataset, *, big_endian: bool, lowest_input: float) -> LookupTable:
    """Read a modality or VOI LUT item.

    Senders get the descriptor wrong in three known ways, each mended here: a first mapped value written as unsigned
    though the input has negative values; a bit count too small for the entries; 8 bit entries two to a word.

    Raises
    ------
    PixelError
        Descriptor or data are missing, or the data are shorter than the descriptor says.
    """
    try:
        descriptor = [int(value) for value in item.LUTDescriptor]
        content = item.LUTData
    except BAD_VALUE as error:
        raise PixelError("a LUT item lacks a readable LUTDescriptor or LUTData") from error
    if len(descriptor) != 3:
        raise PixelError(f"LUTDescriptor has {len(descriptor)} values, 3 are expected")
    count, first, bits = descriptor
    count = count & 0xFFFF or _FULL_TABLE
    entries = words_of(content, count, big_endian=big_endian)
    if entries.size < count:
        raise PixelError(f"LUTData has {entries.size} entries, its descriptor says {count}")
    outputs: Floats = entries[:count].astype(np.float64)
    if lowest_input < 0 and first >= 1 << 15:
        first -= 1 << 16
    elif lowest_input >= 0 and first < 0:
        first += 1 << 16
    needed = max(int(outputs.max()).bit_length(), 1)
    return LookupTable(first_mapped=first, entries=outputs, bits=max(min(bits, 16), needed))


def words_of(content: Any, count: int, *, big_endian: bool) -> NDArray[np.uint16]:
    """Give LUT data, a list of words (US, SS) or bytes (OW), as unsigned words."""
    if isinstance(content, bytes | bytearray):
        order = ">" if big_endian else "<"
        words = np.frombuffer(content[: len(content) // 2 * 2], dtype=f"{order}u2").astype(np.uint16)
    else:
        listed = content if isinstance(content, MultiValue | list | tuple) else [content]
        words = np.asarray([int(value) & 0xFFFF for value in listed], dtype=np.uint16)
    if words.size < count <= 2 * words.size:
        return words.view(np.uint8).astype(np.uint16)
    return words
