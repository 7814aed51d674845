"""The colour table of a PALETTE COLOR picture, plain or segmented.

References
----------
PS3.3 C.7.6.3.1.5, C.7.6.3.1.6 (palette color lookup table), C.7.9.2 (segmented).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.errors import PixelError
from models.greyscale import BAD_VALUE, Attributes, StoredRange, words_of

_FULL_TABLE = 65536
_EIGHT_BITS = 8
_DISCRETE, _LINEAR, _INDIRECT = 0, 1, 2


def palette_table(attributes: Attributes, stored: StoredRange) -> NDArray[np.uint8]:
    """Make the table from code to colour, uint8 [2**bits, 3].

    Tables of 16 bit entries are cut to their upper byte; where no entry needs more than 8 bits, the entries were
    written into the lower byte (a known habit) and are taken as they are.

    Raises
    ------
    PixelError
        A descriptor or a table is missing, broken or too short.
    """
    planes, firsts, wide = [], [], False
    for colour in ("Red", "Green", "Blue"):
        first, entries, bits = _plane(attributes, colour)
        wide = wide or (bits > _EIGHT_BITS and int(entries.max()) >= 1 << _EIGHT_BITS)
        planes.append(entries)
        firsts.append(first)
    table = np.empty((1 << stored.bits, 3), dtype=np.uint8)
    for channel, (first, entries) in enumerate(zip(firsts, planes, strict=True)):
        if stored.is_signed and first >= 1 << 15:
            first -= 1 << 16
        positions = np.clip(stored.values() - first, 0, len(entries) - 1)
        table[:, channel] = (entries >> _EIGHT_BITS if wide else entries & 0xFF)[positions]
    return table


def _plane(attributes: Attributes, colour: str) -> tuple[int, NDArray[np.uint16], int]:
    """Read (first mapped value, entries, bits) of one colour."""
    name = f"{colour}PaletteColorLookupTable"
    try:
        count, first, bits = (int(value) for value in attributes.find(f"{name}Descriptor"))
    except BAD_VALUE as error:
        raise PixelError(f"{name}Descriptor is missing or has not three values") from error
    count = count & 0xFFFF or _FULL_TABLE
    content = attributes.find(f"{name}Data")
    if content is not None:
        entries = words_of(content, count, big_endian=attributes.big_endian)
    else:
        segments = attributes.find(f"Segmented{name}Data")
        if segments is None:
            raise PixelError(f"{name}Data is missing")
        words = words_of(segments, 0, big_endian=attributes.big_endian)
        if bits == _EIGHT_BITS:
            words = words.view(np.uint8).astype(np.uint16)
        entries = expand_segments(words, count)
    if entries.size < count:
        raise PixelError(f"{name}Data has {entries.size} entries, its descriptor says {count}")
    return first & 0xFFFF, entries[:count], bits


def expand_segments(words: NDArray[np.uint16], count: int) -> NDArray[np.uint16]:
    """Expand segmented data to at most `count` entries.

    Raises
    ------
    PixelError
        An unknown opcode, a linear segment with nothing before it, or a segment that runs out of the data.
    """
    entries: list[int] = []
    listed = [int(word) for word in words]
    try:
        _expand(listed, 0, len(listed), None, entries, count)
    except IndexError as error:
        raise PixelError("segmented palette data end within a segment") from error
    return np.asarray(entries[:count], dtype=np.uint16)


def _expand(words: list[int], position: int, stop: int, segments: int | None, entries: list[int], count: int) -> None:
    """Append the entries of segments from `position` on: up to `stop`, or `segments` of them."""
    done = 0
    while position < stop and len(entries) < count and (segments is None or done < segments):
        opcode, length = words[position], words[position + 1]
        if opcode == _DISCRETE:
            if position + 2 + length > len(words):
                raise PixelError("segmented palette data end within a segment")
            entries.extend(words[position + 2 : position + 2 + length])
            position += 2 + length
        elif opcode == _LINEAR:
            if not entries:
                raise PixelError("segmented palette data begin with a linear segment, which needs a value before it")
            start, end = entries[-1], words[position + 2]
            entries.extend(round(start + (end - start) * step / length) for step in range(1, length + 1))
            position += 3
        elif opcode == _INDIRECT and segments is None:
            target = words[position + 2] | words[position + 3] << 16
            _expand(words, target, len(words), length, entries, count)
            position += 4
        else:
            raise PixelError(f"segmented palette data have opcode {opcode} where 0, 1 or 2 is expected")
        done += 1
