"""What is done to an attribute: PS3.15 Table E.1-1 with the options in use, and a rule for all that is not in it.

Attributes that the table does not list may stay by the standard. Here they stay only when their value cannot say who:
numbers, terms, UIDs after replacement, sequences after their items are cleaned; and the texts in :data:`KEPT_TEXTS`.

References
----------
PS3.15 Annex E.1.1 and Table E.1-1a (action codes); PS3.3 Annex A (which IOD needs what).
"""

from __future__ import annotations

import functools
import importlib.resources
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from pydicom.datadict import dictionary_VR


class Action(Enum):
    """What is done to one attribute."""

    REMOVE = "remove"
    EMPTY = "empty"
    DUMMY = "dummy"
    KEEP = "keep"
    """As it is, if its value looks like what its VR promises; otherwise as the IOD demands."""
    REPLACE_UID = "replace UID"
    CLEAN_ITEMS = "clean items"
    CODE = "code"
    """Value or meaning of a code: kept when the coding scheme is a public one."""
    PATIENT_ID = "patient ID"
    PATIENT_NAME = "patient name"
    PIXELS = "pixels"
    ICC_PROFILE = "ICC profile"


RETAIN_DEVICE_IDENTITY = "retain_device_identity"

KEPT_TEXTS: Mapping[int, str] = {
    0x00080070: "Manufacturer: device",
    0x00081090: "Manufacturer's Model Name: device",
    0x00080102: "Coding Scheme Designator: code",
    0x00080103: "Coding Scheme Version: code",
    0x00180024: "Sequence Name: acquisition, set by the device",
    0x00181016: "Secondary Capture Device Manufacturer: device",
    0x00181018: "Secondary Capture Device Manufacturer's Model Name: device",
    0x00181019: "Secondary Capture Device Software Versions: device",
    0x00181020: "Software Versions: device",
    0x00181022: "Video Image Format Acquired: device",
    0x00181023: "Digital Image Format Acquired: device",
    0x00181210: "Convolution Kernel: acquisition",
    0x00181250: "Receive Coil Name: acquisition",
    0x00181401: "Acquisition Device Processing Code: acquisition, the device's own processing",
    0x00185010: "Transducer Data: device",
    0x00185020: "Processing Function: device",
    0x0018702A: "Detector Manufacturer Name: device",
    0x0018702B: "Detector Manufacturer's Model Name: device",
    0x00281054: "Rescale Type: display",
    0x00283004: "Modality LUT Type: display",
}
"""Texts that the table does not list and that stay, each with what it tells. Others do not stay."""

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
    0x00120063: "De-identification Method: written anew",
    0x00120064: "De-identification Method Code Sequence: written anew",
    0x00281055: "Window Center & Width Explanation: free text",
    0x54000100: "Waveform Sequence: an ECG or a voice can identify",
    0x7FE00001: "Extended Offset Table: frames move when the streams in them are cleaned",
    0x7FE00002: "Extended Offset Table Lengths: so",
    0x7FE00003: "Encapsulated Pixel Data Value Total Length: so",
}
"""What goes although the table does not list it."""

_SPECIAL: Mapping[int, Action] = {
    0x00080100: Action.CODE,
    0x00080104: Action.CODE,
    0x00080119: Action.CODE,
    0x00100010: Action.PATIENT_NAME,
    0x00100020: Action.PATIENT_ID,
    0x00282000: Action.ICC_PROFILE,
    0x7FE00008: Action.PIXELS,
    0x7FE00009: Action.PIXELS,
    0x7FE00010: Action.PIXELS,
}
_SAFE_VRS = frozenset(["AS", "AT", "CS", "DS", "FD", "FL", "IS", "SL", "SS", "SV", "UL", "US", "UV", "US or SS"])
"""VRs whose values can be checked to hold a number or a term and nothing else."""
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


class Profile:
    """The Basic Profile with options, as a function from attribute to action.

    Parameters
    ----------
    options
        Columns of Table E.1-1 in use, by their names in the table file.
    """

    def __init__(self, options: frozenset[str]) -> None:
        self.options = options
        self._types = AttributeTypes()
        self._rows = {int(tag, 16): row for tag, row in table().items() if "x" not in tag and tag != "PRIVATE"}
        self._known: dict[tuple[int, int | None, str], Action] = {}

    def action(self, tag: int, parent: int | None, sop_class_uid: str) -> Action:
        """What is done to the attribute `tag` in a sequence `parent` (None at the top level) of such an object."""
        key = (tag, parent, sop_class_uid)
        found = self._known.get(key)
        if found is None:
            found = self._decide(tag, parent, sop_class_uid)
            if len(self._known) < 100_000:  # tags come from peers: the memory of them has an end
                self._known[key] = found
        return found

    def fallback(self, tag: int, parent: int | None, sop_class_uid: str) -> Action:
        """What is done when a value cannot stay: as little as the IOD allows."""
        return {1: Action.DUMMY, 2: Action.EMPTY}.get(self._types.of(tag, parent, sop_class_uid), Action.REMOVE)

    def _decide(self, tag: int, parent: int | None, sop_class_uid: str) -> Action:
        group = tag >> 16
        if group % 2 or group <= 0x0007 or not tag & 0xFFFF or group in (0xFFFA, 0xFFFC, 0xFFFE) or tag in REMOVED:
            return Action.REMOVE
        if 0x5000 <= group <= 0x50FF or 0x6000 <= group <= 0x60FF:  # rows 50xxxxxx, 60xx3000, 60xx4000; whole groups
            return Action.REMOVE
        if tag in _SPECIAL:
            return _SPECIAL[tag]
        try:
            vr = dictionary_VR(tag)
        except KeyError:
            return Action.REMOVE
        row = self._rows.get(tag)
        if row is None:
            return self._unlisted(tag, vr, parent, sop_class_uid)
        code = row.basic
        if any(row.options.get(option) == "K" for option in self.options):
            code = "K"
        return self._resolve(code, tag, vr, self._types.of(tag, parent, sop_class_uid))

    def _unlisted(self, tag: int, vr: str, parent: int | None, sop_class_uid: str) -> Action:
        if vr == "UI":
            return Action.REPLACE_UID
        if vr == "SQ":
            return Action.CLEAN_ITEMS
        if vr in _SAFE_VRS or tag in KEPT_TEXTS or tag in KEPT_BULK:
            return Action.KEEP
        return self.fallback(tag, parent, sop_class_uid)

    @staticmethod
    def _resolve(code: str, tag: int, vr: str, attribute_type: int) -> Action:
        """One action from a code of the table, compound codes by the Type of the attribute (Table E.1-1a)."""
        if code == "K":
            return Action.CLEAN_ITEMS if vr == "SQ" else Action.KEEP
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
