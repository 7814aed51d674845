"""Content items of structured reports, acquisition contexts and specimen preparations: which of them can be cleaned.

References
----------
PS3.3 C.17.3 (content items) and 10.2 (content item macro); PS3.15 E.3.4; PS3.16 TID 1007 (subject context).
"""

from __future__ import annotations

import re
from collections.abc import Callable

from pydicom import Dataset

from gateway.deidentification import dates
from gateway.deidentification.elements import decoded_text_of, element_of, is_empty, items_of, text_of, texts
from gateway.deidentification.options import Option
from gateway.deidentification.values import DUMMIES, OLDEST_AGE_YEARS

VALUE_TYPE, CONCEPT_NAME, REFERENCED_ITEM = 0x0040A040, 0x0040A043, 0x0040DB73
NUMERIC_VALUE, MEASURED_VALUES = 0x0040A30A, 0x0040A300
STRUCTURE = frozenset([0x0040A010, CONCEPT_NAME, 0x0040A730, REFERENCED_ITEM])
"""What stays of an item whose value may not, but whose place must: how it hangs in the tree, and its children."""
_TEXT_VALUE, _UNITS = 0x0040A160, 0x004008EA
_DATED = {"DATETIME": (0x0040A120, "DT"), "DATE": (0x0040A121, "DA"), "TIME": (0x0040A122, "TM")}
_CLEANED_BY_THEIR_ATTRIBUTES = frozenset(
    ["CODE", "COMPOSITE", "CONTAINER", "IMAGE", "NUM", "NUMERIC", "PNAME", "SCOORD", "SCOORD3D", "TCOORD", "UIDREF"]
) | {"WAVEFORM"}
"""Value types whose parts are terms, numbers, codes and UIDs, or a name that becomes a pseudonym."""

_NEVER = frozenset(
    [("DCM", "121030"), ("DCM", "121031"), ("SCT", "184099003"), ("SCT", "3950001"), ("LN", "21112-8")],
)
"""Subject ID, and dates of birth."""
_BIRTH = re.compile(r"birth|\bborn\b|\bDOB\b", re.IGNORECASE)
"""In the meaning of the concept of a date."""
_AGES = frozenset([("DCM", "121033"), ("SCT", "397669002"), ("SCT", "424144002"), ("LN", "30525-0"), ("LN", "21612-7")])
_CHARACTERISTICS = _AGES | {
    *(("DCM", "121032"), ("DCM", "121118"), ("SCT", "263495000"), ("SCT", "734000001"), ("LN", "46098-0")),
    *(("LN", "46463-6"), ("SCT", "103579009"), ("SCT", "27113001"), ("SCT", "50373000"), ("LN", "29463-7")),
    *(("LN", "8302-2"), ("SRT", "M-01000")),
}
"""Age, sex, patient characteristics, race, weight, height: (0010,0040), (0010,1010) and their like as content items."""
_PER_YEAR = {"a": 1.0, "mo": 12.0, "wk": 365.25 / 7, "d": 365.25, "h": 365.25 * 24}
"""UCUM codes of units of age."""


class ContentRules:
    """Which content items may stay.

    Parameters
    ----------
    options
        Options in use.
    clean_text
        Gives what may stay of a text.
    date_shift_days
        For dates under Modified Dates.
    """

    def __init__(self, options: frozenset[Option], clean_text: Callable[[str], str], date_shift_days: int) -> None:
        self._characteristics = Option.RETAIN_PATIENT_CHARACTERISTICS in options
        self._shift_days: int | None = None
        if Option.RETAIN_LONGITUDINAL_FULL_DATES in options:
            self._shift_days = 0
        elif Option.RETAIN_LONGITUDINAL_MODIFIED_DATES in options:
            self._shift_days = date_shift_days
        self._clean_text = clean_text

    def keeps(self, item: Dataset) -> bool:
        """Whether the item, without its children, still has a value once it is cleaned."""
        concept = concept_of(item)
        if concept in _NEVER or (concept in _CHARACTERISTICS and not self._characteristics):
            return False
        value_type = text_of(item, VALUE_TYPE)
        if value_type in _CLEANED_BY_THEIR_ATTRIBUTES:
            return True
        if value_type in _DATED:
            return self._keeps_date(item, *_DATED[value_type])
        if value_type == "TEXT":
            return bool(self._clean_text(decoded_text_of(item, _TEXT_VALUE)))
        if value_type:
            return False
        # Items of acquisition contexts may leave the value type out: what they have decides.
        dated = [self._keeps_date(item, *where) for where in _DATED.values() if where[0] in item]
        worded = [bool(self._clean_text(decoded_text_of(item, _TEXT_VALUE)))] if _TEXT_VALUE in item else []
        return all([*dated, *worded])

    def _keeps_date(self, item: Dataset, tag: int, vr: str) -> bool:
        element = element_of(item, tag)
        if self._shift_days is None or element is None or is_empty(element):
            return False
        if any(_BIRTH.search(decoded_text_of(code, 0x00080104)) for code in items_of(item, CONCEPT_NAME)):
            return False
        return dates.shifted(vr, "\\".join(texts(element)).encode("ascii", "replace"), self._shift_days) is not None


def blank(item: Dataset) -> None:
    """Give a copied item, of which only the structure is kept, a value that says nothing."""
    item.ValueType, item.TextValue = "TEXT", str(DUMMIES["UT"])


def concept_of(item: Dataset) -> tuple[str, str]:
    """Coding scheme and value of the item's concept name, empty texts if it has none."""
    for code in items_of(item, CONCEPT_NAME)[:1]:
        return text_of(code, 0x00080102), text_of(code, 0x00080100)
    return "", ""


def is_age(item: Dataset) -> bool:
    """Whether the item is the subject's age."""
    return concept_of(item) in _AGES


def capped_age(measured: Dataset) -> str | None:
    """What to write to (0040,A30A) *Numeric Value* of an age: None if it may stay, ``""`` if it cannot be read."""
    units = [text_of(code, 0x00080100) for code in items_of(measured, _UNITS)]
    per_year = _PER_YEAR.get(units[0] if units else "")
    try:
        age = float(text_of(measured, NUMERIC_VALUE))
    except ValueError:
        return ""
    if per_year is None:
        return ""
    return None if age / per_year < OLDEST_AGE_YEARS else f"{OLDEST_AGE_YEARS * per_year:.0f}"


def refers_by_position(original: Dataset) -> bool:
    """Whether a content item is referred to by its place in the tree, so that no item may go (PS3.3 C.17.3.2.5)."""
    work = [original]
    while work:
        source = work.pop()
        if REFERENCED_ITEM in source:
            return True
        work += items_of(source, 0x0040A730)
    return False
