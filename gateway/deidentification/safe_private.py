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

    def tags_in(self, source: Dataset) -> frozenset[int]:
        """The private attributes of `source` that are on the list, and the creators of their blocks."""
        found = set()
        creators: dict[int, str] = {}
        for tag in map(int, source.keys()):
            group, element = tag >> 16, tag & 0xFFFF
            if group not in self._groups or element < 0x1000:
                continue
            creator_tag = tag & 0xFFFF0000 | element >> 8
            if creator_tag not in creators:
                creators[creator_tag] = decoded_text_of(source, creator_tag)
            if (creators[creator_tag], group, element & 0xFF) in self._safe:
                found |= {tag, creator_tag}
        return frozenset(found)
