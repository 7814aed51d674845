"""All texts of an object that say who: what no cleaned text may repeat."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from pydicom import Dataset

from gateway.deidentification.elements import decoded, element_of, is_empty, texts
from gateway.deidentification.options import Option
from gateway.deidentification.profile import table
from gateway.deidentification.values import vr_in_dictionary, vr_of

_TEXT_VRS = frozenset(["LO", "LT", "PN", "SH", "ST", "UC", "UT"])
_DESCRIBING = frozenset(
    [Option.CLEAN_DESCRIPTORS, Option.RETAIN_DEVICE_IDENTITY, Option.RETAIN_PATIENT_CHARACTERISTICS]
)
"""Rows of these options describe a study, a device or a body: their words are no one's name."""


@functools.cache
def _identifying_tags() -> frozenset[int]:
    """Rows of Table E.1-1 with a text that names a person, a place or a number of one."""
    found = set()
    for tag, row in table().items():
        if "x" in tag or tag == "PRIVATE" or _DESCRIBING.intersection(row.options):
            continue
        number = int(tag, 16)
        if vr_of(number) in _TEXT_VRS:
            found.add(number)
    return frozenset(found)


def identifying_texts(original: Dataset) -> Iterator[str]:
    """Names, IDs and places at any depth, private sequences included."""
    work = [original]
    identifying = _identifying_tags()
    while work:
        source = work.pop()
        for tag in map(int, source.keys()):
            if tag not in identifying and not _may_name(source, tag):
                continue
            element = element_of(source, tag)
            readable = None if element is None or is_empty(element) else decoded(source, element)
            if readable is None:
                continue
            if readable.VR == "SQ":
                work += list(readable.value)
            elif readable.VR in _TEXT_VRS:
                yield from texts(readable)


def _may_name(source: Dataset, tag: int) -> bool:
    """Whether an attribute that is not in the table is a name or a sequence."""
    element = source.get_item(tag, keep_deferred=True)
    vr = getattr(element, "VR", None)
    if vr in (None, "UN"):
        try:
            vr = vr_in_dictionary(tag)
        except KeyError:
            vr = "SQ" if getattr(element, "length", 0) == 0xFFFFFFFF else vr
    return vr in ("PN", "SQ")
