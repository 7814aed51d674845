"""What in a text looks like protected health information: rules for the audit, which knows nothing of the engine.

Each rule has a kind and a pattern. Rules are cheap and a little too eager in free text, where nothing should be at all;
in texts that may stay (devices, codes) only those are asked that no such text fulfils by chance.
"""

from __future__ import annotations

import functools
import importlib.resources
import re
import unicodedata
from collections.abc import Iterable, Iterator

_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec|mai|okt|dez)[a-z]*"
_STREET = r"(?:street|st|road|rd|avenue|ave|lane|ln|drive|blvd|boulevard|court|way|place|square|terrace|rue|via|calle)"

E_MAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
WEB = re.compile(
    r"\b(?:https?|ftps?|file|ldaps?|dicom)://\S+|\bwww\.\S+"
    r"|\b(?:[a-z0-9-]+\.)+(?:com|org|net|edu|gov|mil|int|local|lan|intern|internal|uk|de|fr|at|ch|it|es|nl|eu)\b",
    re.IGNORECASE,
)
PERSON = re.compile(
    r"[^\W\d_]{2,}\^+[^\W\d_]+"
    r"|\b(?:(?:Dr|Mr|Mrs|Ms|Prof|Herr|Frau)\b\.?|(?:DR|MR|MS)\.|(?:MRS|PROF|HERR|FRAU)\b\.?) *[^\W\d_]{2,}"
)
"""With a caret or behind a title; MR and DR without a point are modalities."""
PHONE = re.compile(
    r"\+\d[\d ()/.-]{7,}\d|\(\d{3}\) ?\d{3}[-. ]?\d{4}|(?<![\d.])\d{3}[-. ]\d{3}[-. ]\d{4}(?![\d.])"
    r"|(?<![\d.])0\d{2,4}[/ -]\d{5,8}(?![\d.])|\b(?:tel|phone|fax|mobile)\b\W{0,3}\d[\d ()/-]{4,}",
    re.IGNORECASE,
)
SOCIAL = re.compile(r"(?<![\d.-])\d{3}-\d{2}-\d{4}(?![\d.-])")
INSURANCE = re.compile(r"\b[A-Z]\d{9}\b")
NHS = re.compile(r"(?<![\d.])\d{3} ?\d{3} ?\d{4}(?![\d.])")
ADDRESS = re.compile(
    rf"\b\d{{1,5}},? +(?:[^\W\d_]+\.? +){{1,3}}{_STREET}\b"
    r"|\b[^\W\d_]+(?:straße|strasse|str\.|weg|platz|gasse|allee) +\d+"
    r"|\b[A-Z]{2} \d{5}(?:-\d{4})?\b|\b[A-Z]{1,2}\d[A-Z\d]? \d[A-Z]{2}\b|\b\d{5} [A-Z][^\W\d_]{3,}\b",
    re.IGNORECASE,
)
DATE = re.compile(
    r"(?<![\d.])(?:19|20)\d\d([-./]?)(?:0[1-9]|1[0-2])\1(?:0[1-9]|[12]\d|3[01])(?![\d.]*\d)"
    r"|(?<![\d.])(?:0?[1-9]|[12]\d|3[01])[./-](?:0?[1-9]|[12]\d|3[01])[./-](?:(?:19|20)\d\d|\d\d)(?![\d.])"
    rf"|\b\d{{1,2}}[ .-]{{0,2}}{_MONTH}[ .,-]{{0,2}}\d{{2,4}}\b|\b{_MONTH} +\d{{1,2}},? +\d{{4}}\b",
    re.IGNORECASE,
)
AGE = re.compile(r"\b(?:9\d|1[0-3]\d)[ -]?(?:y|yo|yrs?|years?)\b", re.IGNORECASE)
DOTTED = re.compile(r"(?<![\d.])[0-2](?:\.\d+){4,}(?![\d.])")
LONG_NUMBER = re.compile(r"(?<![\w.])[^\W\d_]{0,4}[-#]?\d{6,}(?![\w]|[\d.]*\d)")
HASH = re.compile(
    r"(?<![^\W_])(?:[0-9a-f]{64}|[0-9a-f]{32}|[0-9a-f]{16}|[0-9A-F]{64}|[0-9A-F]{32}|[0-9A-F]{16})(?![^\W_])"
)
_OPTION_CODE = re.compile(r"1131[01]\d")
"""PS3.16 CID 7050."""
PUBLIC_UID = re.compile(
    r"2\.25\.(?:0|\d{30,39})"
    r"|1\.2\.840\.10008\.(?:1|15|3|5\.1|6\.1|7|8|2\.16)(?:\.\d{1,4}){0,8}"
    r"|2\.16\.840\.1\.113883\.6\.\d{1,6}"
)
"""Random or hashed UIDs of the form ``2.25.``, those of the standard and of coding schemes."""

_ALWAYS = (("e-mail", E_MAIL), ("URL or host name", WEB), ("person name", PERSON), ("phone", PHONE))
_IN_FREE_TEXT = (
    *(("social security number", SOCIAL), ("insurance number", INSURANCE), ("address", ADDRESS), ("date", DATE)),
    *(("age over 89", AGE), ("number", LONG_NUMBER)),
)
_STROKES = str.maketrans("łŁøØđĐı", "lLoOdDi")
"""Letters that Unicode does not take apart."""
_LONG_NAME = 6
"""So long a name is looked for inside words and among bytes too."""
PSEUDONYM = re.compile(r"PSEUDONYM\^[0-9A-F]{16}")


def folded(text: str) -> str:
    """Lower case without accents."""
    if text.isascii():
        return text.lower()
    decomposed = unicodedata.normalize("NFKD", text.translate(_STROKES))
    return "".join(letter for letter in decomposed if not unicodedata.combining(letter)).casefold()


def masked(text: str) -> str:
    """What may be shown of a text: its first letter and its length."""
    text = text.strip(" \x00\r\n")
    first = text[0] if text and text[0].isalnum() else "*"
    return f"{first}... ({len(text)} characters)"


@functools.cache
def common_names() -> frozenset[str]:
    """Frequent family and given names that are no words of imaging."""
    text = (importlib.resources.files("gateway") / "common_names.txt").read_text(encoding="utf-8")
    return frozenset(line for line in text.splitlines() if not line.startswith("#"))


class TextRules:
    """The rules, with names that were given besides.

    Parameters
    ----------
    names
        Names and other texts to look for, such as those of a crosswalk; those of fewer than three characters are not.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        parts = {
            part for name in names for part in re.split(r"[^\w]+", folded(name).replace("_", " ")) if len(part) > 2
        }
        short = "|".join(re.escape(part) for part in parts if len(part) < _LONG_NAME)
        anywhere = "|".join(re.escape(part) for part in parts if len(part) >= _LONG_NAME)
        patterns = ([rf"(?<![^\W_])(?:{short})(?![^\W_])"] if short else []) + ([anywhere] if anywhere else [])
        self._given = re.compile("|".join(patterns)) if patterns else None
        long = [part.encode() for part in parts if len(part) >= _LONG_NAME]
        self.bytes_pattern = re.compile(b"|".join(map(re.escape, long)), re.IGNORECASE) if long else None
        """Of given names so long that they are not in compressed pixels by chance."""

    def given(self, text: str) -> str | None:
        """A name that was given, if one is in the text."""
        found = self._given.search(folded(text)) if self._given else None
        return found.group() if found else None

    def certain(self, text: str, *, clean: bool = False) -> tuple[str, str] | None:
        """Kind and place of what no text that may stay has: given names, addresses of mail and web, persons, phones.

        A cleaned description may have the form of a name (``BRAIN^ROUTINE``).
        """
        name = self.given(text)
        if name is not None:
            return "given name", name
        for kind, pattern in _ALWAYS:
            found = pattern.search(text)
            if (
                found
                and not (kind == "person name" and clean and "^" in found.group())
                and not PSEUDONYM.fullmatch(text.strip())
            ):
                return kind, found.group()
        return None

    def likely(self, text: str, *, clean: bool = False) -> tuple[str, str] | None:
        """Kind and place of what a text that was cleaned should not have either."""
        given = self.given(text)
        if given is not None:
            return "given name", given
        # Digits of a hash are a telephone number by chance; sixteen digits alone may be a number all the same.
        text = HASH.sub(lambda found: found.group() if found.group().isdecimal() else " ", text)
        nhs = NHS.search(text)
        if nhs and is_nhs_number(nhs.group()):
            return "NHS number", nhs.group()
        found = self.certain(text, clean=clean)
        if found is not None:
            return found
        text = HASH.sub(" ", text)
        for kind, pattern in _IN_FREE_TEXT:
            match = pattern.search(text)
            if match and not _OPTION_CODE.fullmatch(match.group()):
                return kind, match.group()
        for uid in DOTTED.findall(text):
            if not PUBLIC_UID.fullmatch(uid):
                return "UID", uid
        name = next(known_names(text), None)
        return None if name is None else ("person name", name)


def known_names(text: str) -> Iterator[str]:
    """Words of a text that are common names."""
    for word in re.findall(r"[^\W\d_]{3,}", text):
        if folded(word) in common_names():
            yield word


def is_nhs_number(text: str) -> bool:
    """Whether ten digits end in the check digit of an NHS number (modulus 11)."""
    digits = [int(character) for character in text if character.isdigit()]
    if len(digits) != 10 or len(set(digits)) == 1:
        return False
    check = 11 - sum(digit * (10 - place) for place, digit in enumerate(digits[:9])) % 11
    return digits[9] == (0 if check == 11 else check)
