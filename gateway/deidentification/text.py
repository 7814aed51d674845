"""Clean Descriptors: of a free text only the words stay that are known to be terms of imaging.

A list of what to remove can never be complete, so this is a list of what may stay. A name, a number or a date is not on
it. Terms that are also names (HEAD, LONG) stay only where nothing beside them is unknown, numbers only where nothing in
the text is, or with a unit; and nothing stays that is part of an identifier of the object itself.

References
----------
PS3.15 E.3.5 (Clean Descriptors Option), E.3.4 (Clean Structured Content Option).
"""

from __future__ import annotations

import functools
import importlib.resources
import itertools
import json
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

_LONGEST_CHARACTERS = 20_000
"""Twice the longest LT (PS3.5 Table 6.2-1); what is longer is no descriptor."""
_LEAST_PART_CHARACTERS = 4
"""A shorter part of an identifier goes as a word of its own, not inside longer words."""
_LEAST_WHOLE_CHARACTERS = 5
_TOKEN = re.compile(r"w/w?o(?![^\W_])|x[- ]?rays?(?![^\W_])|[0-9]+[.,][0-9]+[a-z%]*|[^\W_]+|%")
_WORD = re.compile(r"[^\W_]+")
_DIGITS = re.compile(r"[0-9]{3,}")
_NUMBER = re.compile(r"[0-9]{1,2}|0[.,][0-9]{1,2}|[0-9][.,](?:00?|25|50?|75)")
_MEASURED = re.compile(r"[0-9]{1,4}(?:[.,][0-9]{1,3})?")
_MEASURE = re.compile(r"([0-9]{1,4}(?:[.,][0-9]{1,3})?)([a-z]+|%)")
_COUNTED = re.compile(r"([0-9]{1,2})([a-z]{4,})")
_SEPARATOR = re.compile(r"[ \t\r\n]{0,4}[-_/+.,:;&()\[\]*#=<>^|']{0,2}[ \t\r\n]{0,4}")
_JOINTS = frozenset(["-", "_", "/", "+", ", ", ". ", "; ", ": ", "&", " & ", ""])

_PHRASES = ("w/o", "w/wo", *(f"x{joint}ray{plural}" for joint in ("-", " ") for plural in ("", "s")))
"""Terms of words that are none by themselves."""

_STROKES = str.maketrans("łŁøØđĐ", "lLoOdD")
"""Letters that Unicode does not take apart."""

UNITS = frozenset(
    [
        *("mm", "cm", "kv", "kvp", "ma", "mas", "kev", "mev", "mgy", "cgy", "gy", "hz", "khz", "mhz", "t", "ms"),
        *("msec", "s", "sec", "secs", "min", "mins", "hu", "deg", "degrees", "ml", "cc", "mg", "mci", "mbq", "kbq"),
        *("bq", "bpm", "fps", "%", "percent"),
    ]
)
"""After a number. Years, months, weeks and days are not among them: they tell an age or a date."""

FUNCTION_WORDS = frozenset(["and", "for", "of", "the"])
"""Parts of names of hospitals that tell nothing."""

_WEAK_WORDS = frozenset(
    [
        *("a", "an", "and", "are", "as", "at", "be", "but", "for", "in", "is", "of", "on", "or", "than", "that", "the"),
        *("this", "to", "was", "were", "with"),
    ]
)
"""Do not make a term of a name that stands beside them."""


class _Kind:
    """What a word is; whole numbers, since an enumeration's members cost more to compare."""

    GONE = 0
    GONE_NUMBER = 1
    NUMBER = 2
    """A number of one or two digits, or of one and decimals."""
    MEASURE = 3
    """A number with a unit."""
    NAME = 4
    """A term that is also a name, but not beside certain other terms."""
    ANATOMY = 5
    """A part of the body that is also a name."""
    DATE = 6
    """A term that is also short for a month or a day."""
    LETTER = 7
    TERM = 8


_NUMERIC = (_Kind.GONE_NUMBER, _Kind.NUMBER, _Kind.MEASURE)
_STRICT = (_Kind.LETTER, _Kind.ANATOMY, _Kind.DATE)
_LOST = (_Kind.GONE, _Kind.GONE_NUMBER)


@dataclass(slots=True)
class _Token:
    text: str
    start: int
    end: int
    kind: int


@functools.cache
def _loaded() -> dict[str, Any]:
    text = (importlib.resources.files("gateway.deidentification") / "imaging_words.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


@functools.cache
def vocabulary() -> dict[str, int]:
    """Each word that may stay, in lower case and without accents, and how strictly."""
    kinds = {
        "words": _Kind.TERM,
        "anatomy_that_is_a_name": _Kind.ANATOMY,
        "letters": _Kind.LETTER,
        "terms_beside": _Kind.NAME,
        "terms_that_are_dates": _Kind.DATE,
    }
    known = {word: kind for part, kind in kinds.items() for word in _loaded()[part]}
    return known | dict.fromkeys(_PHRASES, _Kind.TERM)


class TextCleaner:
    """Cleans the texts of one object.

    Parameters
    ----------
    identifiers
        All texts of the object that say who or where: names, IDs, places, as they are. Their words never stay, whatever
        the vocabulary says, not even inside longer words.
    """

    def __init__(self, identifiers: Iterable[str]) -> None:
        parts: set[str] = set()
        wholes: set[str] = set()
        for identifier in set(identifiers):
            words = _WORD.findall(_folded(identifier).lower())
            parts.update(words)
            wholes.add("".join(words))
            for digits in _DIGITS.findall(" ".join(words)):
                parts.update((digits, digits.lstrip("0")))
        parts.difference_update(FUNCTION_WORDS)
        self._excluded = frozenset(part for part in parts if len(part) > 1 or part.isdigit())
        self._inside = tuple(part for part in self._excluded if len(part) >= _LEAST_PART_CHARACTERS)
        self._known: dict[str, int] = {}
        self._wholes = tuple(whole for whole in wholes if len(whole) >= _LEAST_WHOLE_CHARACTERS)

    def clean(self, text: str) -> str:
        """The text without all that is not known to be harmless; "" if nothing may stay.

        What was removed leaves no gap, so that its length cannot be told.
        """
        if len(text) > _LONGEST_CHARACTERS:
            return ""
        folded = _folded(text)
        lowered = folded.lower() if folded.isascii() else "".join(map(_lower, folded))
        tokens = [
            _Token(found.group(), found.start(), found.end(), self._kind(found.group()))
            for found in _TOKEN.finditer(lowered)
        ]
        for token in tokens:
            if token.kind == _Kind.NUMBER and folded[token.end : token.end + 1] == "." and not token.text.isdigit():
                token.kind = _Kind.GONE_NUMBER  # 1.5. is a day
            if token.text == "mr" and folded[token.start : token.end] != "MR":  # a title, not the modality
                token.kind = _Kind.GONE
        if any(token.kind != _Kind.TERM for token in tokens):
            self._judge_numbers(tokens)
            _judge_companions(tokens)
            _judge_names(tokens)
        if not _says_something(tokens):
            return ""
        kept = [token for token in tokens if token.kind not in _LOST]
        cleaned = _whole(text, folded, tokens) if len(kept) == len(tokens) else ""
        cleaned = cleaned or _joined(folded, tokens)
        if self._wholes:
            compact = "".join(_WORD.findall(_folded(cleaned).lower()))
            if any(whole in compact for whole in self._wholes):
                return ""
        return cleaned

    def _kind(self, word: str) -> int:
        kind = self._known.get(word)
        if kind is None:
            kind = self._known[word] = self._judged(word)
        return kind

    def _judged(self, word: str) -> int:
        kind = vocabulary().get(word)
        if kind is None:
            return self._kind_of_number(word) if word[0].isdigit() or word == "%" else _Kind.GONE
        return _Kind.GONE if word in self._excluded or any(part in word for part in self._inside) else kind

    def _kind_of_number(self, word: str) -> int:
        if word.isdigit() or not word[-1].isalpha():
            return _Kind.NUMBER if _NUMBER.fullmatch(word) and self._is_free(word) else _Kind.GONE_NUMBER
        measure = _MEASURE.fullmatch(word)
        if measure and measure[2] in UNITS:
            return _Kind.MEASURE if self._is_free(measure[1]) else _Kind.GONE_NUMBER
        counted = _COUNTED.fullmatch(word)  # 2VIEWS
        if counted and self._is_free(counted[1]) and self._kind(counted[2]) == _Kind.TERM:
            return _Kind.NUMBER
        return _Kind.GONE if not word.isdigit() else _Kind.GONE_NUMBER

    def _is_free(self, number: str) -> bool:
        return number not in self._excluded and number.lstrip("0") not in self._excluded

    def _judge_numbers(self, tokens: list[_Token]) -> None:
        """Numbers before a unit, numbers side by side, and months and days beside numbers."""
        for this, following in itertools.pairwise(tokens):
            if this.kind in (_Kind.NUMBER, _Kind.GONE_NUMBER) and following.text in UNITS:
                measured = _MEASURED.fullmatch(this.text) and self._is_free(this.text)
                this.kind = _Kind.MEASURE if measured and following.start - this.end <= 1 else this.kind
                following.kind = _Kind.TERM if this.kind == _Kind.MEASURE else following.kind
        for token in tokens:
            if token.text in UNITS and token.kind == _Kind.GONE_NUMBER:  # a stray %
                token.kind = _Kind.GONE
        before = [token.kind for token in tokens]
        for index, token in enumerate(tokens):
            beside = before[max(index - 1, 0) : index] + before[index + 1 : index + 2]
            if token.kind == _Kind.NUMBER and any(kind in (_Kind.NUMBER, _Kind.GONE_NUMBER) for kind in beside):
                token.kind = _Kind.GONE_NUMBER
            elif (token.kind == _Kind.MEASURE and _Kind.GONE_NUMBER in beside) or (
                token.kind == _Kind.DATE and any(kind in _NUMERIC for kind in beside)
            ):
                token.kind = _Kind.GONE


@functools.cache
def _companions() -> dict[str, frozenset[str]]:
    return {word: frozenset(beside) for word, beside in _loaded()["terms_beside"].items()}


def _judge_companions(tokens: list[_Token]) -> None:
    """Terms that are names stay beside the words that make them terms."""
    for index, token in enumerate(tokens):
        if token.kind != _Kind.NAME:
            continue
        companions = _companions()[token.text]
        beside = [other for other in tokens[max(index - 1, 0) : index + 2] if other.kind not in _LOST]
        met = any(other.text in companions or ("#" in companions and other.kind in _NUMERIC) for other in beside)
        token.kind = _Kind.TERM if met else _Kind.GONE


def _judge_names(tokens: list[_Token]) -> None:
    """Parts of the body that are names, and letters, go where anything beside them went; bare numbers anywhere then."""
    start = 0
    while start < len(tokens):
        if tokens[start].kind not in _STRICT:
            start += 1
            continue
        end = start
        while end < len(tokens) and tokens[end].kind in _STRICT:
            end += 1
        beside = tokens[max(start - 1, 0) : start] + tokens[end : end + 1]
        run = tokens[start:end]
        letters = any(len(token.text) == 1 for token in run)
        alone = len(run) < len(tokens) and all(token.text in _WEAK_WORDS for token in beside)
        if alone or any(token.kind == _Kind.GONE or (letters and token.kind == _Kind.GONE_NUMBER) for token in beside):
            for token in run:
                token.kind = _Kind.GONE
        start = end
    if any(token.kind in _LOST for token in tokens):
        for token in tokens:
            if token.kind == _Kind.NUMBER:
                token.kind = _Kind.GONE_NUMBER


def _says_something(tokens: list[_Token]) -> bool:
    """Whether a term is left that is no name, or the text is one such word and nothing else."""
    if any(token.kind == _Kind.TERM for token in tokens):
        return True
    return len(tokens) == 1 and tokens[0].kind in (_Kind.ANATOMY, _Kind.DATE)


def _whole(text: str, folded: str, tokens: list[_Token]) -> str:
    """The text as it is, if nothing had to go and nothing hides between its words; else ""."""
    ends = [0, *(token.end for token in tokens)]
    starts = [*(token.start for token in tokens), len(folded)]
    plain = text.isascii() or (
        unicodedata.is_normalized("NFC", text) and all(letter.isalpha() for letter in text if not letter.isascii())
    )
    between = (folded[end:start] for end, start in zip(ends, starts, strict=True))
    return text.strip() if plain and all(_SEPARATOR.fullmatch(gap) for gap in between) else ""


def _joined(folded: str, tokens: list[_Token]) -> str:
    """What is kept, with simple joints as they were and one space in place of all else."""
    pieces: list[str] = []
    last: _Token | None = None
    for token in tokens:
        if token.kind not in _LOST:
            if pieces:
                gap = folded[last.end : token.start] if last is not None else " "
                pieces.append(gap if gap in _JOINTS else " ")
            pieces.append(folded[token.start : token.end])
            last = token
        else:
            last = None
    return "".join(pieces)


def _folded(text: str) -> str:
    """Without accents, in the same case."""
    if text.isascii():
        return text
    decomposed = unicodedata.normalize("NFD", text.translate(_STROKES))
    return "".join(letter for letter in decomposed if not unicodedata.combining(letter))


def _lower(letter: str) -> str:
    """In lower case where that is one letter, so that places in the text stay the same."""
    lowered = letter.lower()
    return lowered if len(lowered) == 1 else letter
