"""What readers said: rows that are never changed, of which a later word of the same reader supersedes the former.

A row carries the gateway's own keys alone. Accession numbers and UIDs are looked up and not kept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, insert, select, text, update

from gateway.store.engine import Store
from gateway.store.schema import instance, prediction, saved_image, saved_study, study, truth

AT_A_TIME = 500
"""Values in one IN list; SQLite's own limit is larger."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """What one reader says of one finding of a study, of one side of it, or of one image."""

    study_key: str
    instance_key: str = ""
    """Empty: of the whole study."""
    laterality: str = ""
    """``R``, ``L``; empty: both, or not known."""
    model_name: str
    finding_name: str
    value: str
    """``present``, ``absent``, ``ungradable``."""
    source: str
    """``import``, ``viewer``, ``api``."""
    reader: str
    agrees: bool | None = None
    """With what the reader had been shown; ``None``: was shown nothing."""
    shown_version: int | None = None
    comment: str = field(default="", repr=False)
    read_at: datetime | None
    """``None``: not said; it is then taken to be later than all before."""

    @property
    def subject(self) -> Subject:
        """What the word is about."""
        return Subject(
            study_key=self.study_key,
            instance_key=self.instance_key,
            laterality=self.laterality,
            model_name=self.model_name,
            finding_name=self.finding_name,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What readers can agree or disagree about."""

    study_key: str
    instance_key: str
    laterality: str
    model_name: str
    finding_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptWord(Word):
    """A word in the store."""

    truth_id: int
    entered_at: datetime
    superseded_at: datetime | None

    def view(self) -> dict[str, Any]:
        """Plain values, by the columns of a truth table and what the store knows beside."""
        return {
            "study_key": self.study_key,
            "instance_key": self.instance_key,
            "file": f"{self.instance_key}.dcm" if self.instance_key else "",
            "laterality": self.laterality,
            "model": self.model_name,
            "finding": self.finding_name,
            "value": self.value,
            "reader": self.reader,
            "date": None if self.read_at is None else self.read_at.isoformat(),
            "comment": self.comment,
            "source": self.source,
            "agrees": self.agrees,
            "shown_version": self.shown_version,
            "entered_at": self.entered_at.isoformat(),
            "superseded_at": None if self.superseded_at is None else self.superseded_at.isoformat(),
        }


class Taken(StrEnum):
    """What became of a word."""

    ADDED = "added"
    SUPERSEDING = "superseding"
    """The same reader had said something else before."""
    OLDER = "older"
    """The same reader has said something else since; kept, and superseded at once."""
    UNCHANGED = "unchanged"
    """The store has it already."""


@dataclass(frozen=True, slots=True)
class Place:
    """A study, or one image of it."""

    study_key: str
    instance_key: str = ""


def add_words(connection: Connection, words: Sequence[Word], now: datetime) -> list[Taken]:
    """Take in words in their order; says what became of each.

    A word that its reader has said before, with the same date and comment, changes nothing. One without a date is held
    against the reader's present word.
    """
    if connection.dialect.name == "postgresql":
        # Of two who write at once, the second sees what the first has said. On SQLite, Store.write() has the only turn.
        connection.execute(text("LOCK TABLE truth IN EXCLUSIVE MODE"))
    history = _history(connection, {word.study_key for word in words})
    taken: list[Taken] = []
    rows: list[dict[str, Any]] = []
    superseded: list[int] = []
    for word in words:
        said = history[word.subject, word.reader]
        current = next((each for each in said if each["superseded_at"] is None), None)
        outcome = _outcome(word, said, current)
        taken.append(outcome)
        if outcome is Taken.UNCHANGED:
            continue
        row = asdict(word) | {"read_at": word.read_at or now, "entered_at": now, "superseded_at": None}
        if outcome is Taken.OLDER:
            row["superseded_at"] = now
        elif current is not None:
            current["superseded_at"] = now  # also where it is one of this call's own rows
            if "truth_id" in current:
                superseded.append(current["truth_id"])
        said.append(row)
        rows.append(row)
    for ids in _chunks(superseded):
        connection.execute(update(truth).where(truth.c.truth_id.in_(ids)).values(superseded_at=now))
    if rows:
        connection.execute(insert(truth), rows)
    return taken


def _outcome(word: Word, said: Sequence[Mapping[str, Any]], current: Mapping[str, Any] | None) -> Taken:
    def same(row: Mapping[str, Any]) -> bool:
        return all(row[name] == getattr(word, name) for name in ("value", "comment", "shown_version"))

    if word.read_at is None:
        if current is None:
            return Taken.ADDED
        return Taken.UNCHANGED if same(current) else Taken.SUPERSEDING
    if any(same(row) and row["read_at"] == word.read_at for row in said):
        return Taken.UNCHANGED
    if current is None:
        return Taken.ADDED
    return Taken.OLDER if current["read_at"] > word.read_at else Taken.SUPERSEDING


def _history(
    connection: Connection, study_keys: Collection[str]
) -> defaultdict[tuple[Subject, str], list[dict[str, Any]]]:
    found: defaultdict[tuple[Subject, str], list[dict[str, Any]]] = defaultdict(list)
    for keys in _chunks(sorted(study_keys)):
        for row in connection.execute(select(truth).where(truth.c.study_key.in_(keys))).mappings():
            kept = dict(row)
            found[_subject(kept), kept["reader"]].append(kept)
    return found


def _subject(row: Mapping[str, Any]) -> Subject:
    names = ("study_key", "instance_key", "laterality", "model_name", "finding_name")
    return Subject(**{name: row[name] for name in names})


def words(
    store: Store,
    *,
    study_key: str | None = None,
    model_name: str | None = None,
    finding_name: str | None = None,
    reader: str | None = None,
    superseded: bool = False,
) -> list[KeptWord]:
    """Words in the order in which they were entered; with `superseded` also those that no longer hold."""
    statement = select(truth).order_by(truth.c.truth_id)
    if not superseded:
        statement = statement.where(truth.c.superseded_at.is_(None))
    asked = {"study_key": study_key, "model_name": model_name, "finding_name": finding_name, "reader": reader}
    for name, value in asked.items():
        if value is not None:
            statement = statement.where(truth.c[name] == value)
    with store.read() as connection:
        return [KeptWord(**row) for row in connection.execute(statement).mappings()]


# --- from what peers call a study to what the gateway calls it ---


def places_of(connection: Connection, kind: str, names: Collection[str]) -> Mapping[str, tuple[Place, ...]]:
    """Every study or image that goes by each of `names`.

    Parameters
    ----------
    kind
        ``study_key``, ``study_instance_uid``, ``accession_number``, ``sop_instance_uid``, or ``instance_key``.
    """
    found: defaultdict[str, set[Place]] = defaultdict(set)
    for chunk in _chunks(sorted(names)):
        for name, place in _looked_up(connection, kind, chunk):
            found[name].add(place)
    return {name: tuple(sorted(places, key=lambda place: place.study_key)) for name, places in found.items()}


def _looked_up(connection: Connection, kind: str, names: Sequence[str]) -> Iterator[tuple[str, Place]]:
    if kind in ("study_key", "study_instance_uid", "accession_number"):
        column = study.c[kind]
        for name, key in connection.execute(select(column, study.c.study_key).where(column.in_(names))):
            yield name, Place(key)
        if kind == "study_key":  # the study may have expired, and its de-identified copy have been saved
            saved = select(saved_study.c.study_key).where(saved_study.c.study_key.in_(names))
            for (key,) in connection.execute(saved):
                yield key, Place(key)
        return
    column = instance.c[kind]
    for name, key, image in connection.execute(
        select(column, instance.c.study_key, instance.c.instance_key).where(column.in_(names))
    ):
        yield name, Place(key, image)
    if kind == "instance_key":
        saved_images = (
            select(saved_image.c.instance_key, saved_study.c.study_key)
            .join(saved_study, saved_study.c.saved_key == saved_image.c.saved_key)
            .where(saved_image.c.instance_key.in_(names))
        )
        for image, key in connection.execute(saved_images):
            yield image, Place(key, image)


def models_of(connection: Connection, study_keys: Collection[str]) -> Mapping[str, frozenset[str]]:
    """Study key -> names of the models that judged it."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for keys in _chunks(sorted(study_keys)):
        judged = select(prediction.c.study_key, prediction.c.model_name).where(prediction.c.study_key.in_(keys))
        kept = (
            select(saved_study.c.study_key, saved_image.c.model_name)
            .join(saved_image, saved_image.c.saved_key == saved_study.c.saved_key)
            .where(saved_study.c.study_key.in_(keys))
        )
        for statement in (judged.distinct(), kept.distinct()):
            for key, model_name in connection.execute(statement):
                found[key].add(model_name)
    return {key: frozenset(names) for key, names in found.items()}


def _chunks(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), AT_A_TIME):
        yield values[start : start + AT_A_TIME]
