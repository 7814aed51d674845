"""Private attributes that a site declared safe, found by their private creator (PS3.5 7.8.1, PS3.15 E.3.10)."""

from __future__ import annotations

from collections.abc import Iterable

from pydicom import Dataset

from gateway.deidentification.elements import decoded_text_of
from gateway.deidentification.options import SafePrivate


class SafePrivateList:
    """The site's list. A creator is looked up in the data set or item where the attribute is, per block."""

    def __init__(self, safe: Iterable[SafePrivate]) -> None:
        self._safe = frozenset((row.creator.strip(), row.group, row.element) for row in safe)
        self._groups = frozenset(row.group for row in safe)

    def holds(self, source: Dataset, tag: int) -> bool:
        """Whether the private attribute `tag` of `source` is on the list, or is the creator of one that is there."""
        group, element = tag >> 16, tag & 0xFFFF
        if group not in self._groups:
            return False
        if 0x0010 <= element <= 0x00FF:
            block = range(tag & 0xFFFF0000 | element << 8, (tag & 0xFFFF0000 | element << 8) + 0x100)
            return any(int(other) in block and self.holds(source, int(other)) for other in source.keys())  # noqa: SIM118
        if element < 0x1000:
            return False
        creator = decoded_text_of(source, tag & 0xFFFF0000 | element >> 8)
        return (creator, group, element & 0xFF) in self._safe
