"""Codes: a public scheme's stay where they have the form of that scheme, a hospital's own become opaque.

The parts of a code are texts, and any text fits into them. So a public code's meaning stays if it is the one that
PS3.16 gives, or is made of imaging terms alone; otherwise PS3.16's stands in, or what the terms leave.

References
----------
PS3.3 section 8 (code sequence macro); PS3.16 section 8 (coding schemes), and the context groups of Annex B.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import cast

from gateway.deidentification.values import PUBLIC_SCHEMES

VALUE, SCHEME, VERSION, MEANING, LONG_VALUE = 0x00080100, 0x00080102, 0x00080103, 0x00080104, 0x00080119
LOCAL_SCHEME, LOCAL_MEANING, UNSAID_MEANING = "99LOCAL", "Local code", "Code of its scheme"

_SNOMED_RT = r"[A-Z][A-Z0-9]?-[A-Z0-9]{4,6}"
_FORMS = {
    "SCT": r"\d{6,18}",
    "DCM": r"\d{6}|[A-Z]{2,8}",
    "SRT": _SNOMED_RT,
    "SNM3": _SNOMED_RT,
    "LN": r"(?:LP|LA|MTHU)?\d{1,7}-\d",
    "UCUM": r"[A-Za-z0-9./*%\[\]'^+\-]{1,16}",
    "RADLEX": r"RID\d{1,8}",
    "FMA": r"\d{1,7}",
    "NCIt": r"C\d{1,7}",
    "UMLS": r"C\d{7}",
    "RXNORM": r"\d{1,8}",
    "MSH": r"[DQCM]\d{6,9}",
    "UBERON": r"\d{7}",
    "ISO3166_1": r"[A-Z]{2,3}|\d{3}",
    "ISO639_1": r"[a-z]{2}",
    "RFC5646": r"[A-Za-z]{2,3}(?:-[A-Za-z0-9]{2,8}){0,2}",
    "ACR": r"\d{1,4}(?:\.\d{1,4})?",
    "I10": r"[A-Z]\d\d(?:\.[A-Z0-9]{1,4})?",
    "I9C": r"[VE]?\d{2,4}(?:\.\d{1,2})?",
    "I9": r"[VE]?\d{2,4}(?:\.\d{1,2})?",
}
"""Regular expressions of whole code values; those of other public schemes are short and without spaces."""
_OTHER_FORM = r"[A-Za-z]{0,4}[0-9]{1,6}(?:[.\-:][A-Za-z0-9]{1,6}){0,3}|[A-Za-z]{1,8}"
_VERSION = re.compile(r"[vV]?\d{1,4}(?:[a-z]|(?:\.\d{1,4}){1,3})?|\d{8}|\d{4}-\d\d-\d\d")
_NOT_A_WORD = re.compile(r"[\W_]+")
_SEMANTIC_TAG = re.compile(r" \([a-z ]+\)$")
"""Of SNOMED's fully specified names: ``(body structure)``."""
_MOST_REMEMBERED = 10_000


def is_public(scheme: str, value: str) -> bool:
    """Whether anyone can look the code up: a public scheme, and a value of its form or of the lists of PS3.16."""
    if scheme not in PUBLIC_SCHEMES:
        return False
    if re.fullmatch(_FORMS.get(scheme, _OTHER_FORM), value):
        return True
    return bool(_known_meanings(scheme, value))


def is_version(text: str) -> bool:
    """Whether a coding scheme's version looks like one: a number, an edition or a day."""
    return bool(_VERSION.fullmatch(text))


class MeaningRule:
    """What may stand in (0008,0104) *Code Meaning* of a public code; remembers what it has decided.

    Parameters
    ----------
    clean_text
        Keeps the imaging terms of a text.
    """

    def __init__(self, clean_text: Callable[[str], str]) -> None:
        self._clean_text = clean_text
        self._decided: dict[tuple[str, str, str], str] = {}

    def meaning(self, scheme: str, value: str, given: str) -> str:
        """The meaning as given, as PS3.16 has it, or its imaging terms."""
        key = (scheme, value, given)
        decided = self._decided.get(key)
        if decided is None:
            decided = self._decide(*key)
            if len(self._decided) < _MOST_REMEMBERED:
                self._decided[key] = decided
        return decided

    def _decide(self, scheme: str, value: str, given: str) -> str:
        cleaned = self._clean_text(given)
        if cleaned and _words(cleaned) == _words(given):
            return given
        known = _known_meanings(scheme, value)
        if any(_words(meaning) == _words(given) for meaning in known):
            return given
        return min(known, key=len) if known else cleaned or UNSAID_MEANING


def _words(text: str) -> str:
    return _NOT_A_WORD.sub(" ", text).strip().casefold()


def _known_meanings(scheme: str, value: str) -> tuple[str, ...]:
    """The meanings that PS3.16 has for a code."""
    return _meanings(scheme).get(value, ())


@functools.cache
def _meanings(scheme: str) -> dict[str, tuple[str, ...]]:
    from pydicom.sr._concepts_dict import concepts  # 2 MB of source: read when a code needs it

    found: dict[str, tuple[str, ...]] = {}
    by_scheme = cast("dict[str, dict[str, dict[str, tuple[str, list[int]]]]]", concepts)
    for codes in by_scheme.get(scheme, {}).values():
        for value, (meaning, _) in codes.items():
            found[value] = (*found.get(value, ()), _SEMANTIC_TAG.sub("", meaning)[:64])
    return found
