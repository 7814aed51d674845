"""Clean Graphics: what stays of overlays, graphic annotations and their layers; curves never do.

Nothing is copied but what the tables here name: geometry as numbers, terms that PS3.3 defines, text after cleaning. An
overlay's bit plane can show any text, so it stays only where a text finder has looked at it and found none.

References
----------
PS3.15 E.3.3 (option); PS3.3 C.9.2 (Overlay Plane), C.10.5 (Graphic Annotation), C.10.7 (Graphic Layer), C.10.12
(Graphic Group); PS3.5 8.1.2 (bits of an overlay).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Several
from typing import Protocol

import numpy as np
import numpy.typing as npt
from pydicom import DataElement, Dataset, Sequence
from pydicom.datadict import dictionary_VR

from gateway.deidentification.elements import (
    decoded,
    element_of,
    empty_like,
    is_empty,
    items_of,
    number_of,
    text_of,
    texts,
)

GRAPHIC_ANNOTATION_SEQUENCE = 0x00700001
GRAPHIC_LAYER_SEQUENCE = 0x00700060
GRAPHIC_GROUP_SEQUENCE = 0x00700234

_MOST_OVERLAY_BYTES = 64 << 20
"""Of one group, as one byte a pixel; a larger one goes unseen."""
_TEXT_OBJECTS, _COMPOUND_GRAPHICS, _GRAPHIC_OBJECTS = 0x00700008, 0x00700209, 0x00700009
_UNFORMATTED_TEXT, _COMPOUND_TYPE = 0x00700006, 0x00700294
_LAYER, _LAYER_DESCRIPTION, _GROUP_LABEL = 0x00700002, 0x00700068, 0x00700207
_REFERENCED_IMAGES, _SOP_CLASS, _SOP_INSTANCE, _FRAMES = 0x00081140, 0x00081150, 0x00081155, 0x00081160

_YES_NO = ("Y", "N")
_UNITS = ("PIXEL", "DISPLAY", "MATRIX")
_TERMS: Mapping[int, tuple[str, ...]] = {
    0x00700003: _UNITS,
    0x00700004: _UNITS,
    0x00700005: _UNITS,
    0x00700282: _UNITS,
    0x00700012: ("LEFT", "RIGHT", "CENTER"),
    0x00700015: _YES_NO,
    0x00700023: ("POINT", "POLYLINE", "INTERPOLATED", "CIRCLE", "ELLIPSE"),
    0x00700024: _YES_NO,
    0x00700242: ("LEFT", "RIGHT", "CENTER"),
    0x00700243: ("TOP", "BOTTOM", "CENTER"),
    0x00700244: ("NORMAL", "OUTLINED", "OFF"),
    0x00700248: _YES_NO,
    0x00700249: _YES_NO,
    0x00700250: _YES_NO,
    0x00700254: ("SOLID", "DASHED"),
    0x00700257: ("SOLID", "STIPPELED"),  # so spelt in PS3.3
    0x00700274: ("BOTTOM", "CENTER", "TOP"),
    0x00700278: _YES_NO,
    0x00700279: ("BOTTOM", "TOP"),
    0x00700294: (
        *("MULTILINE", "INFINITELINE", "CUTLINE", "RANGELINE", "RULER", "AXIS", "CROSSHAIR", "ARROW"),
        *("RECTANGLE", "ELLIPSE"),
    ),
}
"""Code strings of the graphic modules, each with the terms that PS3.3 defines for it; other values go."""

_NUMBERS = frozenset(
    [
        *(0x00700010, 0x00700011, 0x00700014, 0x00700020, 0x00700021, 0x00700022, 0x00700062, 0x00700066, 0x00700067),
        *(0x00700226, 0x00700230, 0x00700241, 0x00700245, 0x00700246, 0x00700247, 0x00700251, 0x00700252, 0x00700253),
        *(0x00700255, 0x00700258, 0x00700261, 0x00700262, 0x00700273, 0x00700284, 0x00700285, 0x00700288, 0x00700295),
        *(0x00700401,),
    ]
)
_SEQUENCES = frozenset(
    [_TEXT_OBJECTS, _GRAPHIC_OBJECTS, _COMPOUND_GRAPHICS, 0x00700231, 0x00700232, 0x00700233, 0x00700287]
)
_CLEANED_TEXTS = frozenset([_UNFORMATTED_TEXT, _LAYER_DESCRIPTION, 0x00700208, 0x00700289])
_FIXED: Mapping[int, str | bytes] = {0x00700229: "sans-serif", 0x00700256: bytes(128)}
"""CSS Font Name and Fill Pattern are Type 1 where they stand, and could hold anything."""
_DEEPEST = 5  # annotation > compound graphic > ticks or text style > shadow: no module nests deeper

_OVERLAY_TERMS: Mapping[int, tuple[str, ...]] = {
    0x0040: ("G", "R"),
    0x0045: ("USER", "AUTOMATED", "ACTIVE IMAGE AREA"),
}
_OVERLAY_NUMBERS = frozenset([0x0010, 0x0011, 0x0015, 0x0050, 0x0051, 0x0100, 0x0102, 0x1301, 0x1302, 0x1303])
_PRINTABLE = re.compile(rb"[0-9A-Za-z ^.@_-]{5,}|(?:[0-9A-Za-z ^.@_-]\x00){5,}")
_LEAST_DISTINCT = 4
_SPELT_BY_NUMBERS = re.compile(rb"[0-9A-Za-z ^.@_-]{10,}")
"""Ten letters side by side in the bytes of coordinates are no chance."""
_OVERLAY_ACTIVATION_LAYER, _OVERLAY_DATA = 0x1001, 0x3000


class Finder(Protocol):
    """Looks for text in a picture: what :class:`~gateway.deidentification.burned_in_text.TextFinder` does."""

    def find(self, picture: npt.NDArray[np.uint8]) -> Several[object]:
        """Boxes around text in uint8 [rows, columns]."""
        ...


class Cleaner(Protocol):
    """Cleans text: what :class:`~gateway.deidentification.text.TextCleaner` does."""

    def clean(self, text: str) -> str:
        """What may stay of a text, "" if nothing."""
        ...


class GraphicsCleaner:
    """Cleans the graphics of one object; one for each object, so that the neutral names of its layers agree.

    Parameters
    ----------
    cleaner
        For the texts of annotations.
    new_uid
        What stands for a SOP Instance UID, as everywhere in the object.
    finder
        Looks at overlays; without one all overlays go.
    """

    def __init__(self, cleaner: Cleaner, new_uid: Callable[[str], str], finder: Finder | None = None) -> None:
        self._cleaner = cleaner
        self._new_uid = new_uid
        self._finder = finder
        self._layers: dict[str, str] = {}
        self._groups: dict[str, str] = {}

    def overlays(self, source: Dataset) -> Iterator[DataElement]:
        """What stays of the groups 60xx of a data set: whole planes with their geometry, or nothing.

        Labels, descriptions and comments go, and so do planes in the unused bits of pixels (retired).
        """
        tags = [int(tag) for tag in source.keys()]  # noqa: SIM118 - iterating the data set would decode every value
        for group in sorted({tag & 0xFFFF0000 for tag in tags if 0x6000 <= tag >> 16 <= 0x601E and not tag >> 16 & 1}):
            plane = self._plane(source, group)
            if plane is None:
                continue
            for tag in sorted(tag for tag in tags if tag & 0xFFFF0000 == group):
                kept = self._overlay_attribute(source, tag)
                if kept is not None:
                    yield kept
            yield plane

    def sequence(self, source: Dataset, tag: int) -> DataElement | None:
        """What stays of *Graphic Annotation*, *Graphic Layer* or *Graphic Group Sequence*; None if nothing does."""
        return self._sequence(source, tag, 0)

    def _sequence(self, source: Dataset, tag: int, depth: int) -> DataElement | None:
        if depth > _DEEPEST:
            return None
        cleaned = [self._item(item, tag, depth) for item in items_of(source, tag)]
        items = [item for item in cleaned if item is not None]
        return DataElement(tag, "SQ", Sequence(items)) if items else None

    def _item(self, source: Dataset, parent: int, depth: int) -> Dataset | None:
        """A cleaned item, None if it says nothing any more."""
        item = empty_like(source)
        for tag in source.keys():  # noqa: SIM118
            kept = self._attribute(source, int(tag), depth)
            if kept is not None:
                item[tag] = kept
        if parent == _TEXT_OBJECTS and _UNFORMATTED_TEXT not in item:
            return None
        if parent == _COMPOUND_GRAPHICS and _COMPOUND_TYPE not in item:
            return None
        if parent == _GRAPHIC_OBJECTS and not {0x00700022, 0x00700023} <= {int(tag) for tag in item.keys()}:  # noqa: SIM118
            return None
        drawn = {_TEXT_OBJECTS, _GRAPHIC_OBJECTS, _COMPOUND_GRAPHICS} & {int(tag) for tag in item.keys()}  # noqa: SIM118
        return None if parent == GRAPHIC_ANNOTATION_SEQUENCE and not drawn else item

    def _attribute(self, source: Dataset, tag: int, depth: int) -> DataElement | None:
        if tag in _SEQUENCES:
            return self._sequence(source, tag, depth + 1)
        if tag == _REFERENCED_IMAGES:
            return self._references(source)
        if tag in _FIXED:
            return DataElement(tag, dictionary_VR(tag), _FIXED[tag])
        if tag in _NUMBERS:
            return _numbers(source, tag, dictionary_VR(tag))
        if tag in _TERMS:
            term = text_of(source, tag)
            return DataElement(tag, "CS", term) if term in _TERMS[tag] else None
        if tag == _LAYER:
            return DataElement(tag, "CS", _neutral(self._layers, "LAYER", text_of(source, tag)))
        if tag == _GROUP_LABEL:
            return DataElement(tag, "LO", _neutral(self._groups, "GROUP", text_of(source, tag)))
        return self._cleaned_text(source, tag) if tag in _CLEANED_TEXTS else None

    def _cleaned_text(self, source: Dataset, tag: int) -> DataElement | None:
        element = element_of(source, tag)
        readable = None if element is None else decoded(source, element)
        if readable is None:
            return None
        text = self._cleaner.clean(" ".join(texts(readable)))
        return DataElement(tag, dictionary_VR(tag), text) if text else None

    def _references(self, source: Dataset) -> DataElement | None:
        references = []
        for original in items_of(source, _REFERENCED_IMAGES):
            sop_class_uid, sop_instance_uid = text_of(original, _SOP_CLASS), text_of(original, _SOP_INSTANCE)
            if not sop_class_uid.startswith("1.2.840.10008.5.1.4.") or not sop_instance_uid:
                continue
            item = empty_like(original)
            item.ReferencedSOPClassUID = sop_class_uid
            item.ReferencedSOPInstanceUID = self._new_uid(sop_instance_uid)
            frames = _numbers(original, _FRAMES, "IS")
            if frames is not None:
                item[_FRAMES] = frames
            references.append(item)
        return DataElement(_REFERENCED_IMAGES, "SQ", Sequence(references)) if references else None

    def _overlay_attribute(self, source: Dataset, tag: int) -> DataElement | None:
        element = tag & 0xFFFF
        if element in _OVERLAY_NUMBERS:
            return _numbers(source, tag, dictionary_VR(tag))
        if element in _OVERLAY_TERMS:
            term = text_of(source, tag)
            return DataElement(tag, dictionary_VR(tag), term) if term in _OVERLAY_TERMS[element] else None
        if element == _OVERLAY_ACTIVATION_LAYER:
            layer = text_of(source, tag)
            return DataElement(tag, "CS", _neutral(self._layers, "LAYER", layer)) if layer else None
        return None

    def _plane(self, source: Dataset, group: int) -> DataElement | None:
        """The bit plane of a group, without what lies behind its last bit; None if it may hold text."""
        rows, columns = number_of(source, group | 0x0010, 0), number_of(source, group | 0x0011, 0)
        frames = number_of(source, group | 0x0015, 1)
        bits = rows * columns * frames
        unusual = number_of(source, group | 0x0100, 1) != 1 or number_of(source, group | 0x0102, 0) != 0
        element = element_of(source, group | _OVERLAY_DATA)
        value = None if element is None else element.value
        if unusual or not isinstance(value, bytes) or len(value) % 2:
            return None
        if not 0 < bits <= _MOST_OVERLAY_BYTES or min(rows, columns, frames) < 1 or len(value) * 8 < bits:
            return None
        plane = _bits(value, bits)
        shape = (frames, rows, columns)
        swapped = source.original_encoding[1] is False and element is not None and element.VR != "OB"
        if swapped:  # words of 16 bits; some devices leave them as they are, so that both orders are looked at
            unswapped, plane = plane, _bits(_swap_bytes(value), bits)
            if self._shows_text(unswapped.reshape(shape)):
                return None
        if self._shows_text(plane.reshape(shape)):
            return None
        kept = np.packbits(plane, bitorder="little").tobytes()
        if _spells(kept) or _spells(_swap_bytes(kept)):
            return None
        kept += bytes(len(kept) % 2)
        return DataElement(group | _OVERLAY_DATA, "OW", _swap_bytes(kept) if swapped else kept)

    def _shows_text(self, pictures: npt.NDArray[np.uint8]) -> bool:
        """Whether any of several pictures of zeros and ones does; without a finder all do."""
        if self._finder is None:
            return True
        return any(len(self._finder.find(picture * np.uint8(255))) for picture in pictures if picture.any())


def _spells(plane: bytes) -> bool:
    """Whether bytes of a plane are letters, which no finder sees in the picture; hatching repeats, and is none."""
    return any(len(set(run.group())) >= _LEAST_DISTINCT for run in _PRINTABLE.finditer(plane))


def _bits(value: bytes, count: int) -> npt.NDArray[np.uint8]:
    return np.unpackbits(np.frombuffer(value, np.uint8, (count + 7) // 8), count=count, bitorder="little")


def _numbers(source: Dataset, tag: int, vr: str) -> DataElement | None:
    """An element made anew from its numbers, None if they are not all numbers."""
    element = element_of(source, tag)
    if element is None or is_empty(element):
        return None
    readable = decoded(source, element)
    if readable is None or readable.is_empty:
        return None
    value = readable.value
    parts = [value] if isinstance(value, str | int | float) or not hasattr(value, "__iter__") else list(value)
    if not all(isinstance(part, int | float) or hasattr(part, "as_tuple") for part in parts):
        return None
    # As numbers, not as the text that was read: that text may have been padded with more than it should.
    made = [int(part) if vr == "IS" else float(part) if vr in ("DS", "FL", "FD") else part for part in parts]
    if vr in ("FL", "FD") and _SPELT_BY_NUMBERS.search(np.asarray(made, "<f4" if vr == "FL" else "<f8").tobytes()):
        return None
    if vr == "DS":
        return DataElement(tag, vr, [f"{part:.10g}" for part in made])
    return DataElement(tag, vr, made if len(made) > 1 else made[0])


def _neutral(names: dict[str, str], stem: str, original: str) -> str:
    """The same neutral name for the same name within one object."""
    return names.setdefault(original, f"{stem}{len(names) + 1}")


def _swap_bytes(value: bytes) -> bytes:
    return np.frombuffer(value[: len(value) & ~1], np.uint16).byteswap().tobytes()
