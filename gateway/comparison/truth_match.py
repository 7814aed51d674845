"""From readers' words to the truth of each unit that is compared.

What identifies a study or an image in a table is compared with what a case goes by, and kept nowhere: after the match a
word belongs to a case key.
"""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Literal

from evaluation.cases import UNKNOWN
from gateway.comparison.versions import Pair
from gateway.errors import TruthError
from gateway.reference_standard import UNDECIDED, Rule, standing_value
from gateway.saved.cases import Case
from gateway.store.engine import Store
from gateway.store.truth import words
from gateway.truth import TruthKey, TruthOptions, read_truth
from models.card import file_sha256

Kind = Literal["image", "side", "study"]
KINDS: tuple[Kind, ...] = ("image", "side", "study")
"""What a word may be about, narrowest first."""
_INSTANCE = "instance_key"
_VALUES = {"present": 1, "absent": 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class TruthWord:
    """One reader's word about one finding."""

    line: int
    keys: Mapping[str, str] = field(repr=False)
    kind: Kind
    finding_name: str
    value: str
    laterality: str
    reader: str
    read_at: datetime | None


@dataclass(slots=True, kw_only=True)
class TruthBook:
    """The words of one source, and what each unit gets of them once every case was met."""

    name: str
    """The table's file name, or what else the words come from."""
    sha256: str
    """Of the table; empty where there is none."""
    words: tuple[TruthWord, ...]
    other_words: int = 0
    """About findings or models that are not compared."""
    rule: Rule = "majority"
    """What holds where readers differ, as the site's `truth.rule`."""
    adjudicators: frozenset[str] = frozenset()
    _places: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    _said: dict[tuple[Kind, str], dict[str, tuple[int, ...]]] = field(default_factory=lambda: defaultdict(dict))
    """Kind and finding -> unit -> places of its words. Small, since there may be one a study."""
    _files: array[int] = field(default_factory=lambda: array("q"))
    """Of each word a hash of the file that it was taken for; 0: none yet."""

    def __post_init__(self) -> None:
        self._files = array("q", [0]) * len(self.words)
        for place, word in enumerate(self.words):
            for key in word.keys.items():
                self._places.setdefault(key, []).append(place)

    def meet(self, case: Case) -> None:
        """Take the words about a case.

        Raises
        ------
        TruthError
            A file name of the table fits several files.
        """
        names = _names_of(case)
        for place in {place for key in names for place in self._places.get(key, ())}:
            word = self.words[place]
            kinds = {kind for kind, _ in names}
            if any((kind, text) not in names for kind, text in word.keys.items() if kind in kinds):
                continue
            side = case.slices.get("laterality", "")
            if word.laterality and side in ("R", "L") and side != word.laterality:
                continue
            if word.kind == "image" and TruthKey.FILE in word.keys:
                self._take_file(place, word, case.identifiers.get("file", ""))
            of_kind = self._said[word.kind, word.finding_name]
            unit = unit_key(word.kind, case, word.laterality)
            if place not in of_kind.get(unit, ()):
                of_kind[unit] = (*of_kind.get(unit, ()), place)

    def _take_file(self, place: int, word: TruthWord, file: str) -> None:
        found = hash(file) or 1
        if self._files[place] not in (0, found):
            where = f"{self.name}, line {word.line}"
            raise TruthError(f"{where}: the file name fits several files; expected the path in the folder")
        self._files[place] = found

    @property
    def matched(self) -> int:
        """Words that are about a case."""
        return len({place for units in self._said.values() for places in units.values() for place in places})

    @property
    def kind(self) -> Kind:
        """What most of the matched words are about: the unit that is compared. ``image`` where there are none."""
        counts: Counter[Kind] = Counter()
        for (kind, _), units in self._said.items():
            counts[kind] += sum(map(len, units.values()))
        return max(KINDS, key=lambda kind: (counts[kind], -KINDS.index(kind)))

    def truth(self, kind: Kind, key: str, finding_name: str) -> tuple[int, str]:
        """1, 0, or -1 with the reason why the truth of a unit is unknown."""
        places = self._said.get((kind, finding_name), {}).get(key, ())
        if not places:
            return UNKNOWN, "nobody has read it"
        latest: dict[str, int] = {}
        for place in sorted(places):
            word = self.words[place]
            if word.reader not in latest or _age(word) >= _age(self.words[latest[word.reader]]):
                latest[word.reader] = place
        said = [self.words[place] for place in sorted(latest.values())]
        value = standing_value(said, self.rule, self.adjudicators)
        if value == UNDECIDED:
            return UNKNOWN, "readers differ"
        return _VALUES.get(value, UNKNOWN), "" if value in _VALUES else "ungradable to the readers"


def _age(word: TruthWord) -> tuple[bool, float]:
    return word.read_at is not None, 0.0 if word.read_at is None else word.read_at.timestamp()


def unit_key(kind: Kind, case: Case, laterality: str = "") -> str:
    """Key of the unit that a case belongs to."""
    return unit_key_of(kind, case.case_key, case.study_key, laterality or case.slices.get("laterality", ""))


def unit_key_of(kind: Kind, case_key: str, study_key: str, laterality: str) -> str:
    """As :func:`unit_key`, of a case that has been scored."""
    return {"image": case_key, "side": f"{study_key}-{laterality}", "study": study_key}[kind]


def _names_of(case: Case) -> set[tuple[str, str]]:
    """What a case goes by. A file also goes by its bare name, and by the gateway's name for it."""
    names = {(kind, text) for kind, text in case.identifiers.items() if text}
    file = case.identifiers.get("file", "")
    if file:
        names.add((TruthKey.FILE.value, PurePosixPath(file).name))
    if case.identifiers.get(_INSTANCE):
        names.add((TruthKey.FILE.value, f"{case.identifiers[_INSTANCE]}.dcm"))
    return names


def read_table(path: Path, pair: Pair, options: TruthOptions) -> TruthBook:
    """The words of a truth table about the findings that are compared.

    Raises
    ------
    TruthError
        The table is wrong, or does not say which finding it is about where there are several.
    """
    models = {version.bundle.card.name for version in pair.versions}
    findings = [finding.name for finding in pair.findings]
    found: list[TruthWord] = []
    others = 0
    for row in read_truth(path, options):
        if row.model_name and row.model_name not in models:
            others += 1
            continue
        if not row.finding_name and len(findings) > 1:
            raise TruthError(
                f"{path.name}, line {row.line}: says no finding; expected one of {', '.join(findings)} (or --finding)"
            )
        finding_name = row.finding_name or findings[0]
        if finding_name not in findings:
            others += 1
            continue
        found.append(
            TruthWord(
                line=row.line,
                keys={key.value: text for key, text in row.keys.items()},
                kind="image" if row.names_image else "side" if row.laterality else "study",
                finding_name=finding_name,
                value=row.value.value,
                laterality=row.laterality,
                reader=row.reader,
                read_at=row.read_at,
            )
        )
    if not found:
        raise TruthError(f"{path.name}: no row is about {', '.join(findings)} of {' or '.join(sorted(models))}")
    return TruthBook(name=path.name, sha256=file_sha256(path), words=tuple(found), other_words=others)


def stored_truth(store: Store, pair: Pair) -> TruthBook | None:
    """The words that the gateway has taken in about the candidate's findings; ``None`` where there are none."""
    findings = {finding.name for finding in pair.findings}
    kept = [each for each in words(store, model_name=pair.candidate.bundle.card.name) if each.finding_name in findings]
    if not kept:
        return None
    found = tuple(
        TruthWord(
            line=each.truth_id,
            keys={_INSTANCE: each.instance_key} if each.instance_key else {TruthKey.STUDY_KEY.value: each.study_key},
            kind="image" if each.instance_key else "side" if each.laterality else "study",
            finding_name=each.finding_name,
            value=each.value,
            laterality=each.laterality,
            reader=each.reader,
            read_at=each.read_at,
        )
        for each in kept
    )
    return TruthBook(name="words that this gateway has taken in", sha256="", words=found)


def known_readers(books: Sequence[TruthWord]) -> int:
    """How many readers spoke."""
    return len({word.reader for word in books})
