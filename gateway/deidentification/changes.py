"""What was done to each attribute of one object, by which row or rule, and never a value.

A record is kept only where one is asked for: the gateway's own path to the models asks for none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pydicom.datadict import keyword_for_tag

Verb = Literal["kept", "removed", "emptied", "replaced", "cleaned", "shifted", "capped", "new UID"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What became of one attribute."""

    path: str
    """Tags and item numbers from the top level, such as ``(0008,1140)[0]>(0008,1155)``."""
    keyword: str
    """Keyword of PS3.6, empty for private and unknown attributes."""
    action: Verb
    reason: str
    """The row or rule: ``E.1-1: X``, ``E.1-1 Clean Descriptors: C``, ``allow-list: Image Pixel``."""


@dataclass(slots=True)
class ChangeRecord:
    """The changes of one object, in the order in which its attributes were met."""

    changes: list[Change] = field(default_factory=list)

    def add(self, path: str, tag: int, action: Verb, reason: str) -> None:
        """Note what was done to the attribute `tag` of the data set or item at `path`, which is empty or ends in >."""
        keyword = "" if tag >> 16 & 1 else keyword_for_tag(tag)
        self.changes.append(Change(path=path + tag_text(tag), keyword=keyword, action=action, reason=reason))


def tag_text(tag: int) -> str:
    """A tag as the standard writes it, such as ``(0010,0010)``."""
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
