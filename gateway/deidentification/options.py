"""Which options of the confidentiality profile are used: what a site may choose, and its codes.

References
----------
PS3.15 Annex E.3 (options); PS3.16 CID 7050 (De-identification Method).
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from gateway.errors import SettingsError


class Option(StrEnum):
    """An option of PS3.15 E.3; the values are the column names in ``confidentiality_profile.json``."""

    RETAIN_SAFE_PRIVATE = "retain_safe_private"
    RETAIN_UIDS = "retain_uids"
    RETAIN_DEVICE_IDENTITY = "retain_device_identity"
    RETAIN_INSTITUTION_IDENTITY = "retain_institution_identity"
    RETAIN_PATIENT_CHARACTERISTICS = "retain_patient_characteristics"
    RETAIN_LONGITUDINAL_FULL_DATES = "retain_longitudinal_full_dates"
    RETAIN_LONGITUDINAL_MODIFIED_DATES = "retain_longitudinal_modified_dates"
    CLEAN_DESCRIPTORS = "clean_descriptors"
    CLEAN_STRUCTURED_CONTENT = "clean_structured_content"
    CLEAN_GRAPHICS = "clean_graphics"
    CLEAN_PIXEL_DATA = "clean_pixel_data"
    """Not a column: it concerns pixels (PS3.15 E.3.1)."""


BASIC_PROFILE_CODE = ("113100", "Basic Application Confidentiality Profile")

CODES: Mapping[Option, tuple[str, str]] = {
    Option.CLEAN_PIXEL_DATA: ("113101", "Clean Pixel Data Option"),
    Option.CLEAN_GRAPHICS: ("113103", "Clean Graphics Option"),
    Option.CLEAN_STRUCTURED_CONTENT: ("113104", "Clean Structured Content Option"),
    Option.CLEAN_DESCRIPTORS: ("113105", "Clean Descriptors Option"),
    Option.RETAIN_LONGITUDINAL_FULL_DATES: (
        "113106",
        "Retain Longitudinal Temporal Information Full Dates Option",
    ),
    Option.RETAIN_LONGITUDINAL_MODIFIED_DATES: (
        "113107",
        "Retain Longitudinal Temporal Information Modified Dates Option",
    ),
    Option.RETAIN_PATIENT_CHARACTERISTICS: ("113108", "Retain Patient Characteristics Option"),
    Option.RETAIN_DEVICE_IDENTITY: ("113109", "Retain Device Identity Option"),
    Option.RETAIN_UIDS: ("113110", "Retain UIDs Option"),
    Option.RETAIN_SAFE_PRIVATE: ("113111", "Retain Safe Private Option"),
    Option.RETAIN_INSTITUTION_IDENTITY: ("113112", "Retain Institution Identity Option"),
}
"""Code value (scheme DCM) and meaning of each option, PS3.16 CID 7050."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SafePrivate:
    """A private attribute that a site declares free of PHI.

    Raises
    ------
    ValueError
        If the group is even, the element is not one byte, or the creator is empty.
    """

    creator: str
    """(gggg,00xx) *Private Creator*, exactly."""
    group: int
    element: int
    """The low byte of the element number: 0x00 to 0xFF."""

    def __post_init__(self) -> None:
        if not self.creator.strip():
            raise ValueError("a safe private attribute needs its private creator")
        if not (0x0009 <= self.group <= 0xFFFF and self.group % 2):
            raise ValueError(f"group {self.group:#06x} of {self.creator!r} is not private: expected an odd group")
        if not 0 <= self.element <= 0xFF:
            raise ValueError(f"element {self.element:#x} of {self.creator!r}: expected its low byte, 0x00 to 0xff")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeidentificationProfile:
    """The Basic Profile with a site's choice of options.

    Raises
    ------
    ValueError
        If choices contradict each other.
    """

    options: frozenset[Option] = frozenset({Option.RETAIN_DEVICE_IDENTITY})
    safe_private: tuple[SafePrivate, ...] = ()
    further_sop_classes: frozenset[str] = frozenset()
    """SOP Class UIDs that are taken besides those that models take."""
    unknown_attributes: Literal["quarantine", "remove"] = "quarantine"
    """What becomes of an object with a standard attribute that the dictionary does not know."""
    largest_date_shift_days: int = 3650
    """Dates of a patient move into the past by 1 to this many days (Modified Dates)."""

    def __post_init__(self) -> None:
        both = {Option.RETAIN_LONGITUDINAL_FULL_DATES, Option.RETAIN_LONGITUDINAL_MODIFIED_DATES}
        if both <= self.options:
            raise ValueError("dates are either kept or shifted: choose one of " + " and ".join(sorted(both)))
        if self.safe_private and Option.RETAIN_SAFE_PRIVATE not in self.options:
            raise ValueError("safe_private lists attributes, but the option retain_safe_private is not chosen")
        if Option.RETAIN_SAFE_PRIVATE in self.options and not self.safe_private:
            raise ValueError("retain_safe_private needs the site's list of attributes, safe_private")
        if not 1 <= self.largest_date_shift_days <= 36_500:
            raise ValueError("largest_date_shift_days: expected 1 to 36500")


def profile_from(tree: Mapping[str, Any]) -> DeidentificationProfile:
    """A profile from the keys of ``[deidentification]`` in the settings.

    Raises
    ------
    ValueError
        On an unknown key or a value that is not of its kind; says what was expected.
    """
    known = set(DeidentificationProfile.__slots__)
    unknown = sorted(set(tree) - known)
    if unknown:
        raise ValueError(f"unknown key {', '.join(unknown)}; expected {', '.join(sorted(known))}")
    values: dict[str, Any] = dict(tree)
    if "options" in values:
        values["options"] = frozenset(_option(name) for name in _texts(values["options"], "options"))
    if "safe_private" in values:
        values["safe_private"] = tuple(_safe_private(row) for row in _rows(values["safe_private"]))
    if "further_sop_classes" in values:
        values["further_sop_classes"] = frozenset(_texts(values["further_sop_classes"], "further_sop_classes"))
        for each in values["further_sop_classes"]:
            if not re.fullmatch(r"[0-9.]{3,64}", each):
                raise ValueError(f"further_sop_classes: {each!r} is not a SOP Class UID")
    if values.get("unknown_attributes", "remove") not in ("quarantine", "remove"):
        raise ValueError('unknown_attributes: expected "quarantine" or "remove"')
    days = values.get("largest_date_shift_days", 1)
    if not isinstance(days, int) or isinstance(days, bool):
        raise ValueError("largest_date_shift_days: expected a whole number")
    return DeidentificationProfile(**values)


def load_profile(path: Path) -> DeidentificationProfile:
    """The profile in a TOML file with the keys of ``[deidentification]``, with or without that heading.

    Raises
    ------
    SettingsError
        If the file cannot be read, is not TOML, or has an unknown key or value.
    """
    try:
        tree = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: is not TOML: {error}") from error
    section = tree.get("deidentification", tree)
    try:
        return profile_from(section)
    except ValueError as error:
        raise SettingsError(f"{path}: {error}") from error


def _option(name: str) -> Option:
    try:
        return Option(name)
    except ValueError:
        raise ValueError(f"options: {name!r} is not one of {', '.join(Option)}") from None


def _texts(value: object, key: str) -> list[str]:
    if not isinstance(value, list | tuple | frozenset) or not all(isinstance(each, str) for each in value):
        raise ValueError(f"{key}: expected a list of texts")
    return list(value)


def _rows(value: object) -> list[Mapping[str, Any]]:
    if not isinstance(value, list | tuple) or not all(isinstance(row, Mapping) for row in value):
        raise ValueError("safe_private: expected tables with creator, group and element")
    return list(value)


def _safe_private(row: Mapping[str, Any]) -> SafePrivate:
    kinds = {"creator": str, "group": int, "element": int}
    if set(row) != set(kinds) or not all(isinstance(row[name], kind) for name, kind in kinds.items()):
        raise ValueError("safe_private: expected creator (text), group and element (numbers, such as 0x0029)")
    return SafePrivate(**row)
