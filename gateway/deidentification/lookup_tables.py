"""Palettes and look-up tables: as many entries as their descriptor says, and nothing behind them.

References
----------
PS3.3 C.7.9 (Palette Color Lookup Table), C.11.1 (Modality LUT), C.11.2 (VOI LUT).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping

from pydicom import Dataset
from pydicom.multival import MultiValue

from gateway.deidentification.elements import decoded, element_of, is_empty

DESCRIPTORS: Mapping[int, int] = {
    0x00281201: 0x00281101,
    0x00281202: 0x00281102,
    0x00281203: 0x00281103,
    0x00281204: 0x00281104,
    0x00281221: 0x00281101,
    0x00281222: 0x00281102,
    0x00281223: 0x00281103,
    0x00283006: 0x00283002,
}
"""Table to its descriptor: number of entries, first value mapped, bits of an entry."""

_SEGMENTED = frozenset([0x00281221, 0x00281222, 0x00281223])


def trimmed(source: Dataset, tag: int, value: bytes) -> bytes | None:
    """The table without what lies behind its last entry; None if it has no descriptor or is shorter than that says.

    A segmented table has no fixed length and stays as it is.
    """
    entries = _entries(source, tag)
    if entries is None:
        return None
    if tag in _SEGMENTED:
        return value
    for size in (2 * entries, entries + entries % 2, entries):  # 16 bits an entry, or two entries in 16 bits
        if len(value) >= size:
            return value[:size]
    return None


def trimmed_numbers(source: Dataset, tag: int, table: int | Iterable[int]) -> list[int] | None:
    """:func:`trimmed` for a table that was read as numbers."""
    entries = _entries(source, tag)
    numbers = [table] if isinstance(table, int) else list(table)
    if entries is None or tag in _SEGMENTED:
        return None if entries is None else numbers
    return numbers[:entries] if len(numbers) >= (entries + 1) // 2 else None


def _entries(source: Dataset, tag: int) -> int | None:
    element = element_of(source, DESCRIPTORS[tag])
    readable = None if element is None or is_empty(element) else decoded(source, element)
    parts = readable.value if readable is not None else None
    if isinstance(parts, bytes) and len(parts) == 6:  # implicit VR: whether it is signed is said elsewhere
        parts = list(struct.unpack(">3H" if source.original_encoding[1] is False else "<3H", parts))
    if not isinstance(parts, MultiValue | list | tuple) or len(parts) != 3:
        return None
    try:
        return (int(parts[0]) & 0xFFFF) or 0x10000
    except (TypeError, ValueError):
        return None
