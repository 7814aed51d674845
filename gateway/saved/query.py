"""Which saved studies: a small language of conditions, and the walk over what fits.

``model=retinopathy@2 device=KOWA* from=2026-01-01 finding=referable_dr:present`` names the images of which one
prediction meets every condition. Conditions of different fields must all hold; of one field, or of values with commas
between them, one is enough; ``!=`` turns a condition round. ``*`` and ``?`` stand for any text and any one character.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from fnmatch import translate
from types import MappingProxyType

from gateway.errors import QueryError
from gateway.store.engine import Store
from gateway.store.models import VersionState, known_versions
from gateway.store.saved import SavedPrediction, SavedStudyRow, saved_page

STUDIES_A_PAGE = 200
ROLES = (VersionState.CHAMPION.value, VersionState.CANARY.value, VersionState.SHADOW.value)
QUALITIES = ("gradable", "ungradable")
LATERALITIES = ("R", "L", "B", "U")
_TOKEN = re.compile(r'(?P<field>[^\s=!"]+)(?P<sign>!?=)(?P<value>(?:"[^"]*"|[^\s"])*)')
_VALUE = re.compile(r'(?:"[^"]*"|[^,"])+')
_VERSIONED = re.compile(r"([a-z*?][a-z0-9*?-]*)(?:@(\d+))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What conditions are asked about: one prediction of one image."""

    study: SavedStudyRow
    prediction: SavedPrediction
    states: Mapping[tuple[str, int], str]
    """The state that each version has now."""


Test = Callable[[Facts], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One field of a query."""

    field: str
    negated: bool
    tests: tuple[Test, ...]
    """Of which one is enough."""

    def holds(self, facts: Facts) -> bool:
        """Whether a prediction meets it."""
        return any(test(facts) for test in self.tests) != self.negated


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A query that was understood."""

    text: str
    conditions: tuple[Condition, ...] = ()
    since: datetime | None = None
    """Received at or after."""
    until: datetime | None = None
    """Received before."""
    models: frozenset[tuple[str, int | None]] = frozenset()
    """What can be asked of the store at once: names, with versions or for any; empty where the query says nothing."""

    def holds(self, facts: Facts) -> bool:
        """Whether a prediction meets all conditions."""
        return all(condition.holds(facts) for condition in self.conditions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """What a field takes."""

    expected: str
    make: Callable[[str], Test]
    """Raises :class:`ValueError` where a value is not what is expected."""


def _pattern(read: Callable[[Facts], str]) -> Callable[[str], Test]:
    def make(value: str) -> Test:
        # Only * and ? are patterns: device names hold brackets.
        fits = re.compile(translate(value.replace("[", "[[]").casefold())).match
        return lambda facts: fits(read(facts).casefold()) is not None

    return make


def _one_of(read: Callable[[Facts], str], known: tuple[str, ...]) -> Callable[[str], Test]:
    def make(value: str) -> Test:
        wanted = next((each for each in known if each.casefold() == value.casefold()), None)
        if wanted is None:
            raise ValueError(value)
        return lambda facts: read(facts) == wanted

    return make


def _model(value: str) -> Test:
    found = _VERSIONED.fullmatch(value)
    if found is None:
        raise ValueError(value)
    fits, version = re.compile(translate(found[1])).match, found[2]
    return lambda facts: (
        fits(facts.prediction.model_name) is not None
        and (version is None or facts.prediction.model_version == int(version))
    )


def _version(value: str) -> Test:
    wanted = int(value)
    return lambda facts: facts.prediction.model_version == wanted


def _finding(value: str) -> Test:
    name, _, verdict = value.partition(":")
    if not name or verdict not in ("present", "absent"):
        raise ValueError(value)
    present = verdict == "present"
    return lambda facts: (
        not facts.prediction.is_ungradable
        and any(each["name"] == name and each["present"] is present for each in facts.prediction.findings)
    )


def _score(value: str) -> Test:
    name, _, bounds = value.partition(":")
    low_text, dots, high_text = bounds.partition("..")
    low, high = float(low_text or 0), float(high_text or 1)
    if not (name and dots and math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ValueError(value)
    return lambda facts: any(
        each["name"] == name and low <= each["score"] <= high for each in facts.prediction.findings
    )


def _characteristic(name: str) -> Callable[[Facts], str]:
    return lambda facts: facts.study.characteristics.get(name, "")


def _now(facts: Facts) -> str:
    return facts.states.get((facts.prediction.model_name, facts.prediction.model_version), "")


FIELDS: Mapping[str, Field] = MappingProxyType(
    {
        "model": Field(expected="a model's name, or name@version", make=_model),
        "version": Field(expected="a version's number", make=_version),
        "state": Field(
            expected=f"as what the version judged: {', '.join(ROLES)}",
            make=_one_of(lambda facts: facts.prediction.role, ROLES),
        ),
        "now": Field(
            expected=f"the state that the version has now: {', '.join(VersionState)}",
            make=_one_of(_now, tuple(VersionState)),
        ),
        "device": Field(
            expected="a device's name, * and ? allowed", make=_pattern(lambda facts: facts.prediction.device_key)
        ),
        "finding": Field(expected="finding:present or finding:absent", make=_finding),
        "score": Field(expected="finding:low..high, as referable_dr:0.4..0.6", make=_score),
        "quality": Field(
            expected="gradable or ungradable",
            make=_one_of(lambda facts: QUALITIES[facts.prediction.is_ungradable], QUALITIES),
        ),
        "laterality": Field(
            expected="R, L, B or U", make=_one_of(lambda facts: facts.prediction.laterality, LATERALITIES)
        ),
        "rule": Field(
            expected="the name of a [[saving]] rule, * and ? allowed", make=_pattern(lambda facts: facts.study.rule)
        ),
        "modality": Field(expected="a modality, as OP or DX", make=_pattern(lambda facts: facts.study.modality)),
        "age_group": Field(expected="an age group, as 60-69 or 90+", make=_pattern(_characteristic("age_group"))),
        "sex": Field(expected="F, M or O", make=_one_of(_characteristic("sex"), ("F", "M", "O"))),
        "site": Field(expected="a site's pseudonym", make=_pattern(_characteristic("site"))),
        "person": Field(
            expected="the pseudonym of a patient, 16 digits", make=_pattern(lambda facts: facts.study.person)
        ),
        "key": Field(
            expected="the key of a saved study, or the study's",
            make=lambda value: lambda facts: value in (facts.study.saved_key, facts.study.study_key),
        ),
    }
)
DATES = {"from": "a day as 2026-01-31, or a time as 2026-01-31T08:00+01:00", "to": "the same; a day is taken whole"}


def parse_query(text: str) -> Query:
    """Understand a query; the empty one means all that is saved.

    Raises
    ------
    QueryError
        Says at which character, what was found there and what was expected.
    """
    tests: dict[tuple[str, bool], list[Test]] = {}
    query = Query(text=" ".join(text.split()))
    models: set[tuple[str, int | None]] = set()
    place = 0
    while place < len(text):
        if text[place].isspace():
            place += 1
            continue
        found = _TOKEN.match(text, place)
        if found is None or not (found.end() == len(text) or text[found.end()].isspace()):
            raise _wrong(text, place if found is None else found.end(), f"a condition as {_example()}")
        field, negated, start = found["field"], found["sign"] == "!=", found.start("value")
        if field in DATES:
            query = _with_date(query, text, found)
        elif field in FIELDS:
            for value, at in _values(text, found["value"], start, field):
                tests.setdefault((field, negated), []).append(_test(text, field, value, at))
                if field == "model":
                    models.add(_named(value, negated=negated))
        else:
            raise _wrong(text, found.start(), f"one of {', '.join((*FIELDS, *DATES))}")
        place = found.end()
    conditions = tuple(Condition(field=key[0], negated=key[1], tests=tuple(each)) for key, each in tests.items())
    return replace(query, conditions=conditions, models=frozenset() if ("", None) in models else frozenset(models))


def _named(value: str, *, negated: bool) -> tuple[str, int | None]:
    """Name and version that the store can be asked for; an empty name where it cannot."""
    name, _, version = value.partition("@")
    if negated or "*" in name or "?" in name:
        return "", None
    return name, int(version) if version else None


def _example() -> str:
    return "model=retinopathy@2, device=KOWA*, finding=referable_dr:present"


def _wrong(text: str, at: int, expected: str) -> QueryError:
    found = text[at : at + 24].split()
    words = f"found {found[0]!r}" if found else "the query ends"
    return QueryError(f"query, character {at + 1}: {words}; expected {expected}")


def _values(text: str, value: str, start: int, field: str) -> Iterator[tuple[str, int]]:
    """The values between commas with where each stands; quotes keep what is between them together."""
    place = 0
    while True:
        found = _VALUE.match(value, place)
        if found is None:
            raise _wrong(text, start + place, FIELDS[field].expected)
        yield found[0].replace('"', ""), start + place
        place = found.end()
        if place == len(value):
            return
        place += 1  # the comma


def _test(text: str, field: str, value: str, at: int) -> Test:
    try:
        if not value:
            raise ValueError(value)
        return FIELDS[field].make(value)
    except ValueError:
        raise _wrong(text, at, FIELDS[field].expected) from None


def _with_date(query: Query, text: str, found: re.Match[str]) -> Query:
    field, at = found["field"], found.start("value")
    already = query.since if field == "from" else query.until
    if found["sign"] == "!=" or already is not None:
        raise _wrong(text, found.start(), f"{field}= once")
    try:
        begin, end = _period(found["value"])
    except ValueError:
        raise _wrong(text, at, DATES[field]) from None
    return replace(query, since=begin) if field == "from" else replace(query, until=end)


def _period(value: str) -> tuple[datetime, datetime]:
    """Begin and end of a day in UTC, or one moment; a moment without a zone is in UTC."""
    if re.fullmatch(r"\d{4}-\d\d-\d\d", value):
        day = datetime.combine(date.fromisoformat(value), datetime.min.time(), tzinfo=UTC)
        return day, day + timedelta(days=1)
    moment = datetime.fromisoformat(value)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return moment, moment


def select_saved(
    store: Store, query: Query, *, saved_before: datetime | None = None, page: int = STUDIES_A_PAGE
) -> Iterator[SavedStudyRow]:
    """Saved studies with an image that fits, in order of arrival; each has those images alone, with all predictions.

    One page of studies is in memory at a time, and no transaction stays open between pages.

    Raises
    ------
    StoreError
        The store cannot be reached.
    """
    states = {(each.model_name, each.version): each.state.value for each in known_versions(store)}
    place: tuple[datetime, str] | None = None
    while True:
        rows = saved_page(
            store,
            since=query.since,
            until=query.until,
            models=query.models,
            saved_before=saved_before,
            place=place,
            limit=page,
        )
        for row in rows:
            images = tuple(
                image
                for image in row.images
                if any(query.holds(Facts(study=row, prediction=said, states=states)) for said in image.predictions)
            )
            if images:
                yield replace(row, images=images)
        if len(rows) < page:
            return
        place = (rows[-1].received_at, rows[-1].saved_key)
