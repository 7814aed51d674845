"""What is kept of a patient beside the de-identified images: a band of age, the sex, a pseudonym of the site.

Age and sex are quasi-identifiers, which the Basic Profile takes out of the objects. Here they stay outside of the
objects, as coarse as slices of a comparison need them: ages in decades, 90 and above together.

References
----------
PS3.15 Annex E.3.7 (Retain Patient Characteristics Option); HIPAA Privacy Rule, 45 CFR 164.514(b)(2)(i)(C): ages over
89 are one category.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydicom import Dataset

from gateway.deidentification.keys import KeyedHash

OLDEST_GROUP = "90+"
WITHHELD = ("patient_age_years", "patient_sex")
"""Acquisition parameters that are not kept with a saved study: the characteristics tell what is told of a patient."""
_DECADE = 10
_OLDEST_YEARS = 90
_SITE_DIGITS = 8
_LATERALITY_KEYS = ("image_laterality", "laterality")


def age_group(age_years: object) -> str:
    """The decade of an age, as ``60-69``; ``90+`` from 90 on; empty where the age is not known."""
    if isinstance(age_years, bool) or not isinstance(age_years, int | float) or not age_years >= 0:
        return ""
    if age_years >= _OLDEST_YEARS:
        return OLDEST_GROUP
    low = int(age_years) // _DECADE * _DECADE
    return f"{low}-{low + _DECADE - 1}"


def sex(parameters: Mapping[str, Any]) -> str:
    """F, M or O; empty where it is not known."""
    found = parameters.get("patient_sex")
    return found if found in ("F", "M", "O") else ""


def laterality(parameters: Mapping[str, Any]) -> str:
    """(0020,0062) *Image Laterality*, or (0020,0060) *Laterality*: R, L, B, U; empty where it is not stated."""
    for key in _LATERALITY_KEYS:
        found = str(parameters.get(key) or "").strip().upper()
        if found in ("R", "L", "B", "U"):
            return found
    return ""


def site(original: Dataset, calling_ae_title: str, site_key: bytes) -> str:
    """A pseudonym of where a study comes from: by (0008,0080) *Institution Name*, or else by who sent it.

    Without the site key it tells nothing but that two studies come from one place.
    """
    name = " ".join(str(original.get("InstitutionName") or "").split()).casefold()
    return KeyedHash(site_key, "site").hexadecimal(name or f"\\{calling_ae_title.strip()}", _SITE_DIGITS)


def characteristics(
    parameters: Mapping[str, Any], original: Dataset, calling_ae_title: str, site_key: bytes
) -> dict[str, str]:
    """What a saved study keeps of its patient and its origin; only what is known."""
    found = {
        "age_group": age_group(parameters.get("patient_age_years")),
        "sex": sex(parameters),
        "site": site(original, calling_ae_title, site_key),
    }
    return {name: value for name, value in found.items() if value}
