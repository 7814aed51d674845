"""Texts of devices that repeat the patient: kept attributes into which someone typed a name or a number.

Manufacturers, models, stations and terms stay since they say nothing about the patient. Where one of them holds a word
of the patient's own names or numbers, it does, and goes.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

from pydicom import Dataset

from gateway.deidentification.elements import decoded_text_of
from gateway.deidentification.options import Option
from gateway.deidentification.profile import KEPT_TEXTS, table
from gateway.deidentification.terms import STANDARD_WORDS
from gateway.deidentification.values import vr_in_dictionary

_OF_THE_PATIENT = (
    *(0x00100010, 0x00100020, 0x00101000, 0x00101001, 0x00101005, 0x00101060, 0x00100030, 0x00102154, 0x00101040),
    *(0x00080050, 0x00380010, 0x00401001),
)
"""Names, IDs, other and birth names, birth date, telephone, address; accession, admission and procedure numbers."""

_WORD = re.compile(r"[^\W_]+")
_LEAST_CHARACTERS = 3
_LEAST_INSIDE_CHARACTERS = 5
"""A word of the patient that is shorter goes as a word of its own, not inside longer words."""
_LEAST_CLIPPED_CHARACTERS = 6
"""The beginning of a word of the patient goes too from this length on: fields are short, and cut names."""
_TEXT_VRS = frozenset(["AE", "CS", "LO", "LT", "SH", "ST", "UC", "UT"])


@functools.cache
def may_repeat(tag: int) -> bool:
    """Whether the attribute is a text that is kept since it is about a device or a term."""
    try:
        vr = vr_in_dictionary(tag)
    except KeyError:
        return False
    if vr not in _TEXT_VRS or tag == 0x00080005:
        return False
    row = table().get(f"{tag:08X}")
    if row is None:
        return vr == "CS" or tag in KEPT_TEXTS
    return Option.RETAIN_DEVICE_IDENTITY in row.options


class PatientWords:
    """The words of the patient's names and numbers in one object."""

    def __init__(self, original: Dataset) -> None:
        from gateway.deidentification.text import vocabulary

        words = {
            word
            for tag in _OF_THE_PATIENT
            for word in _WORD.findall(decoded_text_of(original, tag).casefold())
            if len(word) >= _LEAST_CHARACTERS
        }
        self._words = {word for word in words if word not in vocabulary() and word.upper() not in STANDARD_WORDS}
        self._inside = [word for word in self._words if len(word) >= _LEAST_INSIDE_CHARACTERS]

    def are_in(self, parts: Iterable[str]) -> bool:
        """Whether any of the texts has one of the words."""
        text = "\\".join(parts).casefold()
        words = _WORD.findall(text)
        return (
            not self._words.isdisjoint(words)
            or any(word in text for word in self._inside)
            or any(
                own.startswith(word) for word in words if len(word) >= _LEAST_CLIPPED_CHARACTERS for own in self._words
            )
        )
