"""Which rule decides about an image, which images are of phantoms, and why: pure functions of a data set's header.

A condition maps a keyword, or several joined by ``|``, to patterns. It holds when any of the attributes matches any of
the patterns. ``*`` stands for any text and ``?`` for one character; case and surrounding spaces are ignored; of an
attribute with several values any may match. An attribute that is absent or empty matches the pattern ``""`` alone.
A rule's `when` and `unless` hold when all of their conditions do; an empty `unless` never holds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

from pydicom import Dataset
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.errors import BytesLengthException
from pydicom.multival import MultiValue

from gateway.settings import Rule

# What a foreign value may raise while pydicom converts it: the attribute is then as good as absent.
_CONVERSION_ERRORS = (
    ArithmeticError,
    AttributeError,
    BytesLengthException,
    LookupError,
    NotImplementedError,
    TypeError,
    ValueError,
)

_SHOWN_VRS = frozenset({"CS", "US", "SS", "UL", "SL", "FL", "FD"})
_SHOWN_KEYWORDS = frozenset(
    {
        "SOPClassUID",
        "Manufacturer",
        "ManufacturerModelName",
        "SoftwareVersions",
        "NumberOfFrames",
        "LossyImageCompressionRatio",
        "PixelSpacing",
        "ImagerPixelSpacing",
        "ProtocolName",
    }
)
_PATIENT_GROUP = 0x0010


def attribute_values(dataset: Dataset, keyword: str) -> tuple[str, ...]:
    """The values of an attribute as text, stripped; empty when it is absent, empty, a sequence or unreadable."""
    try:
        value = dataset.get(keyword)
        if value is None or (isinstance(value, (bytes, Sequence)) and not isinstance(value, (str, MultiValue))):
            return ()
        values = list(value) if isinstance(value, MultiValue) else [value]
        texts = tuple(str(each).strip(" \0") for each in values)
    except _CONVERSION_ERRORS:
        return ()
    return texts if any(texts) else ()


@lru_cache(maxsize=4096)
def _pattern(text: str) -> re.Pattern[str]:
    body = "".join(".*" if char == "*" else "." if char == "?" else re.escape(char) for char in text.strip())
    return re.compile(body, re.IGNORECASE | re.DOTALL)


def _matches(values: Sequence[str], patterns: Sequence[str]) -> bool:
    if not values:
        return "" in patterns
    return any(_pattern(pattern).fullmatch(value) for pattern in patterns for value in values if value)


def _condition_holds(dataset: Dataset, key: str, patterns: Sequence[str]) -> bool:
    return any(_matches(attribute_values(dataset, keyword), patterns) for keyword in key.split("|"))


def _all_hold(dataset: Dataset, conditions: Mapping[str, Sequence[str]]) -> bool:
    return all(_condition_holds(dataset, key, patterns) for key, patterns in conditions.items())


def rule_matches(dataset: Dataset, rule: Rule) -> bool:
    """Whether a rule's `when` holds for an image and its `unless` does not."""
    return _all_hold(dataset, rule.when) and not (rule.unless and _all_hold(dataset, rule.unless))


def choose_rule(dataset: Dataset, rules: Sequence[Rule]) -> Rule | None:
    """The first rule that matches an image; phantoms are screened by :func:`is_quality_control`, not here."""
    return next((rule for rule in rules if rule_matches(dataset, rule)), None)


# --- phantoms and quality control ---------------------------------------------------------------------------------
#
# One attribute is standardised: (0028,0300) Quality Control Image, "whether or not this image is a quality control or
# phantom image" (PS3.3 section C.7.6.1). Few devices fill it, so habits are read as well. They are habits of people at
# consoles, seen in several languages, not a standard. Words count only where they stand alone: QATAR is no QA.

_PHANTOM_WORDS = frozenset(
    {
        *("PHANTOM", "PHANTOMS", "FANTOM", "FANTOME", "FANTÔME", "FANTOMA", "CATPHAN", "CDMAM", "CDRAD", "FLATFIELD"),
        *("KONSTANZPRÜFUNG", "KONSTANZPRUEFUNG", "ABNAHMEPRÜFUNG", "ABNAHMEPRUEFUNG"),
        "TG18",  # AAPM TG-18 test patterns
    }
)
_PHANTOM_PHRASES = ("QUALITY CONTROL", "QUALITY ASSURANCE", "FLAT FIELD", "CONSTANCY TEST", "TEST PATTERN")
_CLINICAL_PHANTOM = re.compile(r"\bPHANTOM\s+(LIMB|PAIN|TOOTH|SENSATION)", re.IGNORECASE)
_QUALITY_WORDS = frozenset({"QC", "QA"})
# Words that may stand beside QC or QA without making it part of something else, such as a hospital's prefix.
_TEST_WORDS = _QUALITY_WORDS | frozenset(
    {
        *("DAILY", "WEEKLY", "MONTHLY", "ANNUAL", "YEARLY", "TEST", "TESTS", "IMAGE", "IMAGES", "SCAN", "PHYSICS"),
        *("CHECK", "SERVICE", "CAL", "CALIBRATION", "DETECTOR", "CR", "DX", "DR", "CT", "MR", "MG", "US", "OP", "XA"),
        *("FUNDUS", "CAMERA", "SYSTEM", "ROOM", "PATIENT"),
    }
)
_DATE = re.compile(r"(19|20)\d{6}\Z")
_NAMING_KEYWORDS = ("PatientName", "PatientID")
_DESCRIBING_KEYWORDS = ("StudyDescription", "SeriesDescription", "ProtocolName", "BodyPartExamined")
_IMAGE_TYPES = frozenset(
    {"PHANTOM", "QC", "QA", "CALIBRATION", "FLATFIELD", "FLAT_FIELD", "FLAT FIELD", "TEST PATTERN"}
)


def is_quality_control(dataset: Dataset) -> str | None:
    """Why an image is of a phantom or for quality control, without a value of the patient; ``None`` when it is not.

    Notes
    -----
    A wrong yes keeps a patient's image from a model, visibly and with this reason; a wrong no lets a model judge
    a phantom. In a name or an identifier, ``QC`` and ``QA`` therefore count only among other words of testing and
    dates, and *phantom limb* in a description is clinical.
    """
    if "YES" in (value.upper() for value in attribute_values(dataset, "QualityControlImage")):
        return "Quality Control Image (0028,0300) is YES"
    if any(value.upper() in _IMAGE_TYPES for value in attribute_values(dataset, "ImageType")):
        return "Image Type (0008,0008) names a phantom, a calibration or a test"
    for keyword in (*_NAMING_KEYWORDS, *_DESCRIBING_KEYWORDS):
        for text in attribute_values(dataset, keyword):
            if _speaks_of_phantom(text) or _speaks_of_quality(text, describing=keyword in _DESCRIBING_KEYWORDS):
                return f"{keyword} speaks of a phantom or of quality control"
    return None


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.upper())


def _speaks_of_phantom(text: str) -> bool:
    words = _words(text)
    joined = " ".join(words)
    if _CLINICAL_PHANTOM.search(joined):
        return False
    return bool(_PHANTOM_WORDS.intersection(words)) or any(f" {each} " in f" {joined} " for each in _PHANTOM_PHRASES)


def _speaks_of_quality(text: str, *, describing: bool) -> bool:
    words = _words(text)
    marks = [word for word in words if word in _QUALITY_WORDS or _is_dated_mark(word)]
    if not marks:
        return False
    if describing and "QC" in words:
        return True
    rest = [word for word in words if word not in marks and word not in _TEST_WORDS]
    short = 0 if not describing and len(words) == 2 else 2
    return all(word.isdigit() and (len(word) <= short or _DATE.match(word)) for word in rest)


def _is_dated_mark(word: str) -> bool:
    return word[:2] in _QUALITY_WORDS and _DATE.match(word[2:]) is not None


# --- the rule tester ----------------------------------------------------------------------------------------------


def explain(dataset: Dataset, rules: Sequence[Rule]) -> list[str]:
    """What each rule says about an image and why, a line each, for ``gateway check --study``.

    Values are shown of attributes that identify nobody (coded values, numbers, the device); of others only whether
    there is one.
    """
    reason = is_quality_control(dataset)
    lines = [f"reaches no model: {reason}"] if reason else []
    chosen = None if reason else choose_rule(dataset, rules)
    for rule in rules:
        if rule is chosen:
            models = ", ".join(rule.models) or "no model"
            lines.append(f"rule {rule.name!r}: matches, and is the first to: {models}")
        elif rule_matches(dataset, rule):
            lines.append(f"rule {rule.name!r}: matches, but does not decide")
        else:
            lines.append(f"rule {rule.name!r}: does not match")
        lines.extend(f"    {line}" for line in _explain_rule(dataset, rule))
    if chosen is None and not reason:
        lines.append("no rule matches: the image is kept, and sent nowhere")
    return lines


def _explain_rule(dataset: Dataset, rule: Rule) -> list[str]:
    lines = [
        f"{'holds' if _condition_holds(dataset, key, patterns) else 'FAILS'}: {_describe(dataset, key, patterns)}"
        for key, patterns in rule.when.items()
    ]
    excluded = bool(rule.unless) and _all_hold(dataset, rule.unless)
    for key, patterns in rule.unless.items():
        holds = _condition_holds(dataset, key, patterns)
        word = "EXCLUDES" if excluded else "does not exclude" if not holds else "holds, but others of `unless` do not"
        lines.append(f"{word}: {_describe(dataset, key, patterns)}")
    return lines


def _describe(dataset: Dataset, key: str, patterns: Sequence[str]) -> str:
    found = ", ".join(f"{keyword} is {_shown(dataset, keyword)}" for keyword in key.split("|"))
    return f"{found}; wanted {' or '.join(pattern or '(absent or empty)' for pattern in patterns)}"


def _shown(dataset: Dataset, keyword: str) -> str:
    values = attribute_values(dataset, keyword)
    if not values:
        return "absent or empty"
    tag = tag_for_keyword(keyword)
    shown = keyword in _SHOWN_KEYWORDS or (
        tag is not None and tag >> 16 != _PATIENT_GROUP and dictionary_VR(tag) in _SHOWN_VRS
    )
    return "\\".join(values) if shown else "not shown here, since it may identify a person"
