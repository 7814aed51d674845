"""What is done to an attribute: PS3.15 Table E.1-1 with the options in use, and a rule for all that is not in it.

An option's action stands in place of the Basic Profile's for the rows in its column (PS3.15 E.3). Where two options in
use speak about one row, cleaning (C) goes before keeping (K), since what is cleaned is kept too and less is told: a
calibration date that Retain Device Identity keeps is shifted under Modified Dates, or it would give the shift away. A C
that nothing here can do (AE titles, binary notes) leaves the row to the Basic Profile.

Attributes that the table does not list may stay by the standard. Here they stay only when the allow-list has them for
objects of that kind (:mod:`gateway.deidentification.allow_list`): numbers, terms, UIDs after replacement, sequences
after their items are cleaned, and the texts in :data:`KEPT_TEXTS`.

References
----------
PS3.15 Annex E.1.1 and Table E.1-1a (action codes); PS3.3 Annex A (which IOD needs what).
"""

from __future__ import annotations

import functools
import importlib.resources
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

from pydicom.datadict import keyword_for_tag

from gateway.deidentification.allow_list import allowed
from gateway.deidentification.options import CODES, Option
from gateway.deidentification.values import vr_in_dictionary


class Action(Enum):
    """What is done to one attribute."""

    REMOVE = "remove"
    EMPTY = "empty"
    DUMMY = "dummy"
    KEEP = "keep"
    """As it is, if its value looks like what its VR promises; otherwise as the IOD demands."""
    REPLACE_UID = "replace UID"
    CLEAN_ITEMS = "clean items"
    """A sequence whose items are treated by the same rules."""
    KEEP_ITEMS = "keep items"
    """So, and codes in them stay whatever their coding scheme."""
    CLEAN_TEXT = "clean text"
    SHIFT = "shift"
    """Dates of the patient's shift, times as they are."""
    CLEAN_CONTENT = "clean content"
    """Content items (PS3.3 C.17.3): those that cannot be cleaned go."""
    CLEAN_GRAPHICS = "clean graphics"
    PERSON_NAME = "person name"
    """A pseudonym of the name, where a content item needs one."""
    PRIVATE = "private"
    """Stays only if the site declared it safe."""
    UNKNOWN = "unknown"
    """Of an even group, and not in the standard."""
    CODE = "code"
    """Value, scheme, version or meaning of a code: kept when the coding scheme is a public one."""
    PATIENT_ID = "patient ID"
    PATIENT_NAME = "patient name"
    PIXELS = "pixels"
    ICC_PROFILE = "ICC profile"


class Decision(NamedTuple):
    """An action and the row or rule that demands it."""

    action: Action
    reason: str


KEPT_TEXTS: Mapping[int, str] = {
    0x00080070: "Manufacturer: device",
    0x00081090: "Manufacturer's Model Name: device",
    0x00080102: "Coding Scheme Designator: code",
    0x00080103: "Coding Scheme Version: code",
    0x00180024: "Sequence Name: acquisition, set by the device",
    0x00180085: "Imaged Nucleus: acquisition, a chemical symbol",
    0x00181016: "Secondary Capture Device Manufacturer: device",
    0x00181018: "Secondary Capture Device Manufacturer's Model Name: device",
    0x00181019: "Secondary Capture Device Software Versions: device",
    0x00181020: "Software Versions: device",
    0x00181210: "Convolution Kernel: acquisition",
    0x00181401: "Acquisition Device Processing Code: acquisition, the device's own processing",
    0x0018702A: "Detector Manufacturer Name: device",
    0x0018702B: "Detector Manufacturer's Model Name: device",
    0x00281054: "Rescale Type: display",
    0x00283004: "Modality LUT Type: display",
}
"""Texts that the table does not list and that stay, each with what it tells. Others do not stay."""

CLEANED_TEXTS: Mapping[int, str] = {
    0x00181022: "Video Image Format Acquired: device",
    0x00181023: "Digital Image Format Acquired: device",
    0x00181040: "Contrast/Bolus Route: acquisition",
    0x00181160: "Filter Type: exposure",
    0x00181180: "Collimator/grid Name: acquisition",
    0x00181250: "Receive Coil Name: acquisition",
    0x00181251: "Transmit Coil Name: acquisition",
    0x00181260: "Plate Type: device",
    0x00185010: "Transducer Data: device",
    0x00185020: "Processing Function: device",
    0x00187006: "Detector Description: device",
    0x00187008: "Detector Mode: device",
    0x00189005: "Pulse Sequence Name: acquisition",
    0x00201040: "Position Reference Indicator: geometry",
    0x00209056: "Stack ID: order of frames",
    0x00209421: "Dimension Description Label: order of frames",
    0x00283003: "LUT Explanation: display",
    0x00620005: "Segment Label: what is marked",
}
"""Texts that the table does not list, of which the words of imaging stay whatever the options: they tell how an image
was made and hold what someone typed."""

KEPT_BULK: Mapping[int, str] = {
    0x00281201: "palette: display",
    0x00281202: "palette: display",
    0x00281203: "palette: display",
    0x00281204: "palette: display",
    0x00281221: "segmented palette: display",
    0x00281222: "segmented palette: display",
    0x00281223: "segmented palette: display",
    0x00283006: "LUT Data: display",
}
"""Bytes that stay as they are."""

REMOVED: Mapping[int, str] = {
    0x00080051: "Issuer of Accession Number Sequence: names a hospital or department",
    0x00081190: "Retrieve URL: names a host, and UIDs",
    0x00100024: "Issuer of Patient ID Qualifiers Sequence: names a hospital",
    0x00100026: "Source Patient Group Identification Sequence",
    0x00100027: "Group of Patients Identification Sequence",
    0x00120062: "Patient Identity Removed: written anew",
    0x00120063: "De-identification Method: written anew",
    0x00120064: "De-identification Method Code Sequence: written anew",
    0x00280303: "Longitudinal Temporal Information Modified: written anew",
    0x00281055: "Window Center & Width Explanation: free text",
    0x54000100: "Waveform Sequence: an ECG or a voice can identify",
    0x7FE00001: "Extended Offset Table: frames move when the streams in them are cleaned",
    0x7FE00002: "Extended Offset Table Lengths: so",
    0x7FE00003: "Encapsulated Pixel Data Value Total Length: so",
}
"""What goes although the table does not list it."""

_SPECIAL: Mapping[int, Action] = {
    0x00080100: Action.CODE,
    0x00080102: Action.CODE,
    0x00080103: Action.CODE,
    0x00080104: Action.CODE,
    0x00080119: Action.CODE,
    0x00100010: Action.PATIENT_NAME,
    0x00100020: Action.PATIENT_ID,
    0x00282000: Action.ICC_PROFILE,
    0x7FE00008: Action.PIXELS,
    0x7FE00009: Action.PIXELS,
    0x7FE00010: Action.PIXELS,
}
NOT_ALLOWED = "not in the table and not on the allow-list"
_CODE_SEQUENCE_ROWS = frozenset([0x00080082, 0x00401101])
"""Rows with a D whose sequence is a code, so that a dummy code is a valid dummy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of Table E.1-1."""

    tag: str
    name: str
    basic: str
    options: Mapping[str, str]


@functools.cache
def table() -> Mapping[str, Row]:
    """Table E.1-1 by tag as the standard writes it: ``00100010``, ``60xx3000``, ``PRIVATE``."""
    return {
        row["tag"]: Row(tag=row["tag"], name=row["name"], basic=row["basic"], options=row["options"])
        for row in _load("confidentiality_profile.json")["rows"]
    }


@functools.cache
def edition() -> str:
    """Edition of the standard that the table is from, such as ``2026d``."""
    return str(_load("confidentiality_profile.json")["header"]["edition"])


def _load(name: str) -> dict[str, Any]:
    text = (importlib.resources.files("gateway.deidentification") / name).read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


class AttributeTypes:
    """Type 1 and 2 of the attributes that might go (PS3.3). An unknown SOP class has the strictest of all IODs."""

    def __init__(self) -> None:
        tables = _load("attribute_types.json")
        self._iods: dict[str, dict[str, int]] = tables["iods"]
        self._nested: dict[str, int] = tables["nested"]
        self._sop_classes: dict[str, str] = tables["sop_classes"]
        self._strictest: dict[str, int] = {}
        for types in self._iods.values():
            for tag, kind in types.items():
                self._strictest[tag] = min(kind, self._strictest.get(tag, 2))

    def of(self, tag: int, parent: int | None, sop_class_uid: str) -> int:
        """1, 2, or 3 for an attribute that may be left out."""
        if parent is not None:
            return self._nested.get(f"{parent:08X}>{tag:08X}", 3)
        iod = self._sop_classes.get(sop_class_uid)
        return (self._strictest if iod is None else self._iods[iod]).get(f"{tag:08X}", 3)


CONTENT_PARENTS = frozenset([0x00400555, 0x00400610, 0x00400612, 0x0040A730, 0x0040B020])
"""Sequences of content items; 0x00400612 lies in (0040,0610) *Specimen Preparation Sequence*."""
_LAYERS = frozenset([0x00700060, 0x00700234])
"""What the items of (0070,0001) *Graphic Annotation Sequence* refer to by name: layers and groups."""
_CONTENT_TEXTS = frozenset([0x0040A160, 0x00700006])
_PERSON_NAME = 0x0040A123
_TEXT_VRS = frozenset(["CS", "LO", "LT", "SH", "ST", "UC", "UT"])
_ORDER = tuple(Option)
_NO_CLEANING = frozenset([Option.RETAIN_DEVICE_IDENTITY, Option.RETAIN_SAFE_PRIVATE])
"""Options whose C is not a value's: AE titles cannot be cleaned, private attributes go by the site's list."""
_KEEP_CODES = frozenset(
    [Option.RETAIN_DEVICE_IDENTITY, Option.RETAIN_INSTITUTION_IDENTITY, Option.RETAIN_PATIENT_CHARACTERISTICS]
)


class Profile:
    """The Basic Profile with options, as a function from attribute to action.

    Parameters
    ----------
    options
        Columns of Table E.1-1 in use.
    """

    def __init__(self, options: Iterable[Option]) -> None:
        self.options = frozenset(options)
        self._types = AttributeTypes()
        self._rows = {int(tag, 16): row for tag, row in table().items() if "x" not in tag and tag != "PRIVATE"}
        self._known: dict[tuple[int, int | None, str], Decision] = {}

    def decide(self, tag: int, parent: int | None, sop_class_uid: str) -> Decision:
        """What is done to the attribute `tag` in a sequence `parent` (None at the top level) of such an object."""
        key = (tag, parent, sop_class_uid)
        found = self._known.get(key)
        if found is None:
            found = self._decide(tag, parent, sop_class_uid)
            if len(self._known) < 100_000:  # tags come from peers: the memory of them has an end
                self._known[key] = found
        return found

    def action(self, tag: int, parent: int | None, sop_class_uid: str) -> Action:
        """The action of :meth:`decide`."""
        return self.decide(tag, parent, sop_class_uid).action

    def fallback(self, tag: int, parent: int | None, sop_class_uid: str) -> Action:
        """What is done when a value cannot stay: as little as the IOD allows."""
        attribute_type = self._types.of(tag, parent, sop_class_uid)
        if attribute_type == 1 and vr_in_dictionary(tag) == "SQ" and not keyword_for_tag(tag).endswith("CodeSequence"):
            return Action.REMOVE  # there is no dummy item but a code
        return {1: Action.DUMMY, 2: Action.EMPTY}.get(attribute_type, Action.REMOVE)

    def _decide(self, tag: int, parent: int | None, sop_class_uid: str) -> Decision:
        group = tag >> 16
        if group <= 0x0007 or not tag & 0xFFFF:
            return Decision(Action.REMOVE, "not of a data set")
        if group in (0xFFFA, 0xFFFC, 0xFFFE):
            return Decision(Action.REMOVE, "E.1-1: X")
        if group % 2:
            return Decision(Action.PRIVATE, "E.1-1: X")
        if tag in REMOVED:
            return Decision(Action.REMOVE, REMOVED[tag])
        if 0x5000 <= group <= 0x50FF or 0x6000 <= group <= 0x60FF:  # rows 50xxxxxx, 60xx3000, 60xx4000; whole groups
            if Option.CLEAN_GRAPHICS in self.options:
                return Decision(Action.CLEAN_GRAPHICS, _reason(Option.CLEAN_GRAPHICS, "C"))
            return Decision(Action.REMOVE, "E.1-1: X")
        if tag in _LAYERS and Option.CLEAN_GRAPHICS in self.options:
            return Decision(Action.CLEAN_GRAPHICS, _reason(Option.CLEAN_GRAPHICS, "C"))
        try:
            vr = vr_in_dictionary(tag)
        except KeyError:
            return Decision(Action.UNKNOWN, "not an attribute of the standard")
        if Option.CLEAN_STRUCTURED_CONTENT in self.options and parent in CONTENT_PARENTS:
            if tag in _CONTENT_TEXTS:
                return Decision(Action.CLEAN_TEXT, _reason(Option.CLEAN_STRUCTURED_CONTENT, "C"))
            if tag == _PERSON_NAME:
                return Decision(Action.PERSON_NAME, _reason(Option.CLEAN_STRUCTURED_CONTENT, "C"))
        row = self._rows.get(tag)
        if tag in _SPECIAL:
            reason = f"E.1-1: {row.basic}" if row is not None else _SPECIAL[tag].value
            return Decision(_SPECIAL[tag], reason)
        if row is None:
            return self._unlisted(tag, vr, parent, sop_class_uid)
        return self._listed(row, vr, tag, self._types.of(tag, parent, sop_class_uid))

    def _listed(self, row: Row, vr: str, tag: int, attribute_type: int) -> Decision:
        """A row of the table: cleaned by an option, else kept by one, else as the Basic Profile says."""
        in_use = [option for option in _ORDER if option in self.options and option in row.options]
        for option in in_use:
            if row.options[option] == "C" and option not in _NO_CLEANING:
                cleaning = _cleaning(option, vr)
                if cleaning is not None:
                    return Decision(cleaning, _reason(option, "C"))
        kept_by = [option for option in in_use if row.options[option] == "K"]
        if kept_by:
            action = Action.KEEP
            if vr == "SQ":
                action = Action.KEEP_ITEMS if _KEEP_CODES.intersection(kept_by) else Action.CLEAN_ITEMS
            return Decision(action, _reason(kept_by[0], "K"))
        return Decision(self._resolve(row.basic, tag, vr, attribute_type), f"E.1-1: {row.basic}")

    def _unlisted(self, tag: int, vr: str, parent: int | None, sop_class_uid: str) -> Decision:
        """An attribute that the table does not list: the allow-list decides."""
        reason = allowed(tag, parent, sop_class_uid)
        if reason is None:
            return Decision(self.fallback(tag, parent, sop_class_uid), NOT_ALLOWED)
        if vr == "UI":
            return Decision(Action.KEEP if Option.RETAIN_UIDS in self.options else Action.REPLACE_UID, reason)
        if tag in CLEANED_TEXTS:
            return Decision(Action.CLEAN_TEXT, reason)
        return Decision(Action.CLEAN_ITEMS if vr == "SQ" else Action.KEEP, reason)

    @staticmethod
    def _resolve(code: str, tag: int, vr: str, attribute_type: int) -> Action:
        """One action from a code of the Basic Profile, compound codes by the Type of the attribute (Table E.1-1a)."""
        if code == "U":
            return Action.REPLACE_UID
        if code == "X/Z/U*":  # references stay, with new UIDs: they say nothing else
            return Action.CLEAN_ITEMS
        letters = code.split("/")
        if len(letters) == 1:
            letter = code
        elif attribute_type == 1 and "D" in letters:
            letter = "D"
        elif attribute_type <= 2 and "Z" in letters:
            letter = "Z"
        elif attribute_type <= 2:
            letter = "D"
        else:
            letter = "X" if "X" in letters else "Z"
        if letter == "D" and vr == "SQ" and tag not in _CODE_SEQUENCE_ROWS:
            # A dummy item would have to be made up from modules; none of the image IODs needs one.
            return Action.EMPTY if attribute_type == 2 else Action.REMOVE
        return {"X": Action.REMOVE, "Z": Action.EMPTY, "D": Action.DUMMY}[letter]


def _cleaning(option: Option, vr: str) -> Action | None:
    """How an option's C is done to a value of this VR, None if it cannot be."""
    if option is Option.RETAIN_LONGITUDINAL_MODIFIED_DATES:
        return {"DA": Action.SHIFT, "DT": Action.SHIFT, "TM": Action.KEEP, "SH": Action.KEEP}.get(vr)
    if option is Option.CLEAN_STRUCTURED_CONTENT:
        return Action.CLEAN_CONTENT
    if option is Option.CLEAN_GRAPHICS:
        return Action.CLEAN_GRAPHICS
    if vr == "SQ":
        return Action.CLEAN_ITEMS
    return Action.CLEAN_TEXT if vr in _TEXT_VRS else None


@functools.cache
def _reason(option: Option, code: str) -> str:
    return f"E.1-1 {CODES[option][1].removesuffix(' Option')}: {code}"
