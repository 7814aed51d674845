"""What a kept value may look like, and what stands in for one that may not stay."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

from pydicom._uid_dict import UID_dictionary
from pydicom.datadict import dictionary_VM, dictionary_VR

from gateway.deidentification import dates
from gateway.deidentification.terms import is_term

PUBLIC_SCHEMES = frozenset(
    [
        "ACR",
        "ATC",
        "BARI",
        "BI",
        "CD10",
        "DCM",
        "FMA",
        "HL7",
        "I10",
        "I10P",
        "I11",
        "I9",
        "I9C",
        "ICDO3",
        "IBSI",
        "ISO3166_1",
        "ISO639_1",
        "LN",
        "MSH",
        "NCDR",
        "NCIt",
        "NEU",
        "RADLEX",
        "RFC5646",
        "RXNORM",
        "SCT",
        "SRT",
        "SNM3",
        "UBERON",
        "UCUM",
        "UMLS",
        "UNS",
    ]
)
"""Coding Scheme Designators of PS3.16 Table 8-1 whose codes anyone can look up; a hospital's own are not among them."""

CODING_SCHEME_ATTRIBUTES = frozenset([0x0008010C, 0x0008010D, 0x00080117, 0x00080118])
_CODING_SCHEME = re.compile(r"2\.16\.840\.1\.113883\.6\.\d{1,3}|1\.2\.840\.10008\.(?:2\.16\.\d{1,2}|6\.1\.\d{1,4})")
_NEWER_SOP_CLASS = re.compile(r"1\.2\.840\.10008\.5\.1\.4(?:\.\d{1,3}){1,6}")
_SOP_CLASS_ATTRIBUTES = frozenset([0x0008001A, 0x0008001B, 0x00080016, 0x0008005A, 0x00080062, 0x00081150, 0x0008115A])

_TERM = re.compile(rb"[A-Z0-9_ ]{0,16}")
_CHARACTER_SET = re.compile(rb"(?:ISO_IR [0-9]{1,3}|ISO 2022 IR [0-9]{1,3}|GB18030|GBK|)")
_DECIMAL = re.compile(rb" *[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})? *")
_WHOLE = re.compile(rb" *[+-]?[0-9]+ *")
_LONGEST_NUMBER = {"DS": 16, "IS": 12}
_AGE = re.compile(rb"([0-9]{1,6})([DWMY])")
OLDEST_AGE_YEARS = 90
"""Whoever is older than 89 is as old as this."""
_PER_YEAR = {b"D": 365.25, b"W": 365.25 / 7, b"M": 12.0, b"Y": 1.0}
_TEXT = re.compile(rb"[\x1b\x20-\x7e\x80-\xff]*\x00?")
_UID = re.compile(r"[0-9.]{1,64}")
_ONE_UID = re.compile(rb"[0-9.]{0,64}")
_LOCATOR = re.compile(rb"[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=%]{1,1024} *")
_TITLE = re.compile(rb"[ -\[\]-~\\]{0,64}\x00?")
_UTC_OFFSET = re.compile(rb"[+-](?:0[0-9]|1[0-4])[0-5][0-9] *")
_TIMEZONE_OFFSET = 0x00080201
_PRINTED = re.compile(rb"[\x20-\x7e]+\x00?")
_LEAST_PRINTED_BYTES = 10
"""From here on bytes that all are printable characters are taken for text, whatever number they would be."""
_TERMS_AS_TEXTS = frozenset([0x00180085, 0x00281054, 0x00283004])
"""Imaged Nucleus, Rescale Type and Modality LUT Type: their VR is one of texts, their values are Defined Terms."""
_MODIFYING_DEVICE_ID = 0x00203401
"""Its VR is CS, but it is a name that Retain Device Identity keeps."""
_LONGEST = {"SH": 16, "LO": 64, "ST": 1024, "LT": 10240, "UC": 1024, "UT": 10240}
_SIZES = {"US": 2, "SS": 2, "US or SS": 2, "UL": 4, "SL": 4, "FL": 4, "AT": 4, "FD": 8, "SV": 8, "UV": 8}
_BULK = frozenset(["OB", "OW", "OV", "OL", "OF", "OD", "OB or OW", "US or OW"])

VRS = frozenset(
    [
        *("AE", "AS", "AT", "CS", "DA", "DS", "DT", "FD", "FL", "IS", "LO", "LT", "OB", "OD", "OF", "OL", "OV", "OW"),
        *("PN", "SH", "SL", "SQ", "SS", "ST", "SV", "TM", "UC", "UI", "UL", "UN", "UR", "US", "UT", "UV"),
    ]
)
"""All VRs of PS3.5 Table 6.2-1."""

_NEWER_VRS: Mapping[int, str] = {
    0x00081301: "SQ",
    0x00081302: "SQ",
    0x00081303: "SQ",
    0x00081304: "SQ",
    0x00100011: "SQ",
    0x00100012: "LT",
    0x00100013: "LT",
    0x00100014: "SQ",
    0x00100015: "SQ",
    0x00100016: "LT",
    0x00100041: "SQ",
    0x00100042: "LT",
    0x00100043: "SQ",
    0x00100044: "SQ",
    0x00100045: "LT",
    0x00100046: "SQ",
    0x00100047: "UR",
    0x00102162: "UC",
    0x0040A034: "DT",
    0x0040A035: "DT",
    0x0040B034: "DT",
    0x0040B036: "DT",
    0x0040B03B: "LO",
    0x0040B03F: "LO",
    0x0040E012: "UR",
    0x3004007F: "LO",
}
"""Attributes of Table E.1-1 that are newer than pydicom's dictionary."""


@cache
def vr_in_dictionary(tag: int) -> str:
    """The VR of a standard attribute as the dictionary writes it, such as ``US or SS``.

    Raises
    ------
    KeyError
        If it is not an attribute of the standard.
    """
    newer = _NEWER_VRS.get(tag)
    return dictionary_VR(tag) if newer is None else newer


def vr_of(tag: int) -> str:
    """A VR to write: the dictionary's, or the first of those that it leaves open."""
    return vr_in_dictionary(tag).split(" or ")[0]


DUMMIES: Mapping[str, str | bytes] = {
    "AE": "REMOVED",
    "AS": "000Y",
    "CS": "UNKNOWN",
    "DA": "19000101",
    "DS": "0",
    "DT": "19000101000000",
    "IS": "0",
    "LO": "REMOVED",
    "LT": "REMOVED",
    "PN": "REMOVED",
    "SH": "REMOVED",
    "ST": "REMOVED",
    "TM": "000000",
    "UC": "REMOVED",
    "UR": "urn:removed",
    "UT": "REMOVED",
    "UI": "2.25.0",
} | {vr: bytes(8) for vr in ("OB", "OD", "OF", "OL", "OV", "OW", "UN")}
"""A value of each VR that says nothing."""


def kept_value(tag: int, vr: str, value: bytes) -> bytes | None:
    """The part of an encoded value that may stay, or None if nothing may.

    `vr` is the VR the value is encoded in. A value stays when it has the form of its VR (PS3.5 Table 6.2-1): a number
    where a number belongs, a term of capital letters where a term belongs, no longer than allowed. Of a list of terms,
    those without that form are emptied so that the others keep their places.
    """
    if vr == "CS":
        return _kept_terms(tag, value)
    if vr in ("DS", "IS"):
        return value if _are_numbers(tag, vr, value) else None
    if vr == "AS":
        return _kept_age(value)
    if vr in ("DA", "TM", "DT"):
        return dates.legal(vr, value)
    if tag == _TIMEZONE_OFFSET:
        return value if _UTC_OFFSET.fullmatch(value) else None
    if vr == "UI":
        return value if all(map(_ONE_UID.fullmatch, value.rstrip(b"\x00 ").split(b"\\"))) else None
    if vr in _SIZES:
        return value if _fits(tag, len(value), _SIZES[vr]) and _is_binary(vr, value) else None
    if tag in _TERMS_AS_TEXTS:
        return value if _is_term(tag, value.strip(b" \x00")) else None
    if vr in _LONGEST:
        parts = value.split(b"\\") if vr in ("SH", "LO", "UC") else [value]
        allowed = _multiplicity(tag)
        fits = all(_is_short(vr, part) for part in parts) and (allowed is None or len(parts) <= allowed)
        return value if fits and _TEXT.fullmatch(value) else None
    if vr in ("UR", "AE"):
        return value if (_LOCATOR if vr == "UR" else _TITLE).fullmatch(value) else None
    return value if vr in _BULK else None


def _are_numbers(tag: int, vr: str, value: bytes) -> bool:
    """Whether the value is decimal numbers, each no longer than its VR allows (PS3.5 Table 6.2-1)."""
    numbers = value.rstrip(b"\x00").split(b"\\")
    allowed = _multiplicity(tag)
    if allowed is not None and len(numbers) > allowed:
        return False
    form, longest = _DECIMAL if vr == "DS" else _WHOLE, _LONGEST_NUMBER[vr]
    for number in numbers:
        # A longer one is as common as it is wrong, and stays if it is a fraction: its digits are a computer's.
        if len(number.strip(b" ")) > longest and not (vr == "DS" and _is_fraction(number)):
            return False
        if number.strip(b" ") and not form.fullmatch(number):
            return False
    return True


def _is_fraction(number: bytes) -> bool:
    """Whether it is a number of at most five digits before the point and at most 20 behind it."""
    return re.fullmatch(rb" *[+-]?[0-9]{0,5}\.[0-9]{1,20}(?:[eE][+-]?[0-9]{1,3})? *", number) is not None


def _is_binary(vr: str, value: bytes) -> bool:
    """Whether binary numbers are not text put in their place."""
    if vr == "AT":
        return all(_is_attribute(value[at : at + 4]) for at in range(0, len(value), 4))
    longest = 24 if vr in ("FD", "FL") else _LEAST_PRINTED_BYTES  # fractions use their bytes more freely
    return len(value) < longest or not _PRINTED.fullmatch(value)


def _is_attribute(pointer: bytes) -> bool:
    """Whether the four bytes, little endian as big endian, name an attribute of the standard."""
    little = int.from_bytes(pointer[:2], "little") << 16 | int.from_bytes(pointer[2:], "little")
    for tag in (little, int.from_bytes(pointer, "big")):
        try:
            vr_in_dictionary(tag)
        except KeyError:
            continue
        return True
    return False


def _is_short(vr: str, text: bytes) -> bool:
    """Whether a text has at most as many characters as its VR allows; one outside ASCII may have up to 4 bytes."""
    text = text.strip(b" \x00")
    return len(text) <= _LONGEST[vr] * (1 if text.isascii() and b"\x1b" not in text else 4)


def _kept_age(value: bytes) -> bytes | None:
    """Ages in the form of PS3.5 (three digits and a unit), those over 89 years as 90 years, whatever their unit."""
    ages = [_age(text) for text in value.strip(b" \x00").split(b"\\")]
    kept = b"\\".join(ages)
    return kept + b" " * (len(kept) % 2) if any(ages) else None


def _age(text: bytes) -> bytes:
    found = _AGE.fullmatch(text.strip(b" "))
    if found is None:
        return b""
    if int(found[1]) / _PER_YEAR[found[2]] >= OLDEST_AGE_YEARS:
        return b"%03dY" % OLDEST_AGE_YEARS
    return found[0] if len(found[1]) == 3 else b""


def _kept_terms(tag: int, value: bytes) -> bytes | None:
    if tag == 0x00080005:
        names = (name.strip(b" ") for name in value.split(b"\\"))
        return value if all(map(_CHARACTER_SET.fullmatch, names)) else None
    terms = value.rstrip(b"\x00").split(b"\\")
    good = [term if _is_term(tag, term.strip(b" ")) else b"" for term in terms]
    if good == terms:
        return value
    if len(terms) == 1 or not any(good):
        return None
    kept = b"\\".join(good)
    return kept + b" " * (len(kept) % 2)


def _is_term(tag: int, term: bytes) -> bool:
    """Whether it has the form of a term and is made of words of imaging; a site answers for its private attributes."""
    free = tag >> 16 & 1 == 1 or tag == _MODIFYING_DEVICE_ID
    return bool(_TERM.fullmatch(term)) and (free or is_term(term.decode("ascii")))


def _fits(tag: int, length: int, size: int) -> bool:
    allowed = _multiplicity(tag)
    return length % size == 0 and (allowed is None or length == allowed * size)


@cache
def _multiplicity(tag: int) -> int | None:
    """How many values the dictionary allows, if that is one fixed number."""
    try:
        multiplicity = dictionary_VM(tag)
    except KeyError:
        return None
    return int(multiplicity) if multiplicity.isdigit() else None


def is_well_known_uid(tag: int, value: str) -> bool:
    """Whether a UID names something of the standard or a public coding scheme, and so stays."""
    if not _UID.fullmatch(value):
        return False
    if value in UID_dictionary:
        return True
    if tag in _SOP_CLASS_ATTRIBUTES:  # a class newer than the dictionary
        return bool(_NEWER_SOP_CLASS.fullmatch(value))
    return tag in CODING_SCHEME_ATTRIBUTES and bool(_CODING_SCHEME.fullmatch(value))


@cache
def compatible(tag: int, vr: str) -> bool:
    """Whether a value declared as `vr` can be one of this attribute: the dictionary's VR, or another kind of number."""
    known = vr_in_dictionary(tag)
    if vr in known.split(" or ") or vr == known:
        return True
    numbers = _SIZES.keys() | {"DS", "IS"}
    return vr in numbers and known in numbers
