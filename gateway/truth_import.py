"""From a truth table to words in the store: which study, which finding, whose word. All of it, or none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from pydantic import ValidationError
from sqlalchemy import Connection

from gateway.errors import Problem
from gateway.store import Store
from gateway.store.audit import add_entry
from gateway.store.models import known_versions
from gateway.store.truth import Place, Taken, Word, add_words, models_of, places_of
from gateway.truth import TruthFile, TruthKey, TruthRow, file_error
from models.card import CARD_FILE, Card

UNNAMED = "unnamed"
"""Reader of a table that does not say whose it is."""
_SLACK = timedelta(days=1)
"""A clock elsewhere may be ahead, and a date be of another time zone."""

Findings = Mapping[str, tuple[str, ...]]
"""Model name -> its findings' names, of all its versions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportReport:
    """What became of a table."""

    rows: int
    added: int
    superseding: int
    """The same reader had said something else before."""
    older: int
    """The same reader has said something else since."""
    unchanged: int
    unknown_lines: tuple[int, ...]
    """Of studies and images that this gateway does not have; left aside because that was asked for."""
    ignored_columns: tuple[str, ...]
    dry_run: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class _DryRunError(Exception):
    """Ends a transaction of which nothing shall stay."""


def import_truth(
    store: Store,
    table: TruthFile,
    *,
    name: str,
    now: datetime,
    actor: str,
    skip_unknown: bool = False,
    dry_run: bool = False,
) -> ImportReport:
    """Take in a table in one transaction.

    Parameters
    ----------
    name
        The file's, for messages.
    actor
        Who imports it, for the record.
    skip_unknown
        Leave rows of studies that this gateway does not have aside, and say which; otherwise they are problems.
    dry_run
        Say what would become of it, and change nothing.

    Raises
    ------
    TruthFileError
        Rows name no study, several, or a finding that no model has; carries all problems. Nothing was taken in.
    """
    findings = known_findings(store)
    with store.read() as connection:
        resolver = _Resolver(connection, table.rows, findings)
        made = [resolver.resolve(row, now) for row in table.rows]
    problems = [
        problem
        for problem, is_unknown in (each for each in made if isinstance(each, tuple))
        if not (is_unknown and skip_unknown)
    ]
    if problems:
        raise file_error(name, problems)
    taken = [each for each in made if isinstance(each, Word)]
    unknown = tuple(each[0].line for each in made if isinstance(each, tuple))
    counts: Counter[str] = Counter()
    try:
        with store.write() as connection:
            counts.update(add_words(connection, taken, now))
            if dry_run:
                raise _DryRunError
            detail = ", ".join(f"{counts[outcome]} {outcome}" for outcome in Taken)
            add_entry(connection, now=now, actor=actor, action="truth imported", detail=detail)
    except _DryRunError:
        pass
    return ImportReport(
        rows=len(table.rows),
        added=counts[Taken.ADDED],
        superseding=counts[Taken.SUPERSEDING],
        older=counts[Taken.OLDER],
        unchanged=counts[Taken.UNCHANGED],
        unknown_lines=unknown,
        ignored_columns=table.ignored_columns,
        dry_run=dry_run,
    )


def known_findings(store: Store) -> Findings:
    """The findings of every model that this gateway knows, by its cards."""
    found: dict[str, dict[str, None]] = {}
    for version in known_versions(store):
        names = found.setdefault(version.model_name, {})
        names.update(dict.fromkeys(_card_findings(version.folder)))
    return {model_name: tuple(names) for model_name, names in found.items()}


def _card_findings(folder: str) -> tuple[str, ...]:
    """Names of the findings of a bundle that was verified when it was taken in; none where it is gone."""
    try:
        card = Card.model_validate(yaml.safe_load((Path(folder) / CARD_FILE).read_text("utf-8")))
    except (OSError, yaml.YAMLError, ValidationError):
        return ()
    return tuple(finding.name for finding in card.findings)


class _Resolver:
    """Looks all of a table's names up at once, then gives each row's word, or what is wrong with it."""

    def __init__(self, connection: Connection, rows: Sequence[TruthRow], findings: Findings) -> None:
        self._findings = findings
        self._places: dict[TruthKey, Mapping[str, tuple[Place, ...]]] = {}
        for key in TruthKey:
            names = {_stored_name(key, row.keys[key]) for row in rows if key in row.keys}
            kind = "instance_key" if key is TruthKey.FILE else key.value
            self._places[key] = places_of(connection, kind, names) if names else {}
        studies = {place.study_key for found in self._places.values() for places in found.values() for place in places}
        self._models = models_of(connection, studies)

    def resolve(self, row: TruthRow, now: datetime) -> Word | tuple[Problem, bool]:
        """The row's word; or the problem, and whether it is that nothing here goes by that name."""
        place = self._place(row)
        if not isinstance(place, Place):
            return place
        finding = self._finding(row, place.study_key)
        if isinstance(finding, Problem):
            return finding, False
        if row.read_at is not None and row.read_at > now + _SLACK:
            found = f"'{row.read_at.isoformat()}'"
            return Problem(line=row.line, column="date", found=found, expected="a date that has been"), False
        return Word(
            study_key=place.study_key,
            instance_key=place.instance_key,
            laterality=row.laterality,
            model_name=finding[0],
            finding_name=finding[1],
            value=row.value.value,
            source="import",
            reader=row.reader or UNNAMED,
            comment=row.comment,
            read_at=row.read_at,
        )

    def _place(self, row: TruthRow) -> Place | tuple[Problem, bool]:
        image, study_keys = "", set()
        for key, text in row.keys.items():
            places = self._places[key].get(_stored_name(key, text), ())
            if not places:
                return Problem(line=row.line, column=key, found="", expected=f"{_WORDS[key]} that is here"), True
            if len(places) > 1:
                expected = f"{_WORDS[key]} of one study; {len(places)} go by it, so give study_instance_uid"
                if len(row.keys) == 1:
                    return Problem(line=row.line, column=key, found="", expected=expected), False
            study_keys.add(frozenset(place.study_key for place in places))
            image = image or places[0].instance_key
        common = frozenset.intersection(*study_keys)
        if len(common) != 1:
            columns = " and ".join(row.keys)
            return Problem(line=row.line, column="", found="", expected=f"{columns} of one and the same study"), False
        return Place(next(iter(common)), image)

    def _finding(self, row: TruthRow, study_key: str) -> tuple[str, str] | Problem:
        """(model, finding) that the row means."""
        known = [(model, finding) for model, findings in self._findings.items() for finding in findings]
        fits = [each for each in known if row.model_name in ("", each[0]) and row.finding_name in ("", each[1])]
        if not fits:
            column = "model" if row.model_name and row.model_name not in self._findings else "finding"
            found = row.model_name if column == "model" else row.finding_name
            return Problem(
                line=row.line,
                column=column,
                found=f"'{found}'" if found else "nothing",
                expected="one of "
                + (", ".join(f"{finding} ({model})" for model, finding in known) or "none known here"),
            )
        judged = [each for each in fits if each[0] in self._models.get(study_key, frozenset())]
        if len(fits) > 1 and len(judged) == 1:
            return judged[0]
        if len(fits) > 1:
            several = ", ".join(f"{finding} ({model})" for model, finding in judged or fits)
            column = "finding" if not row.finding_name else "model"
            return Problem(line=row.line, column=column, found="nothing", expected=f"which is meant: {several}")
        return fits[0]


_WORDS: Mapping[TruthKey, str] = {
    TruthKey.STUDY_KEY: "the key of a study",
    TruthKey.STUDY_INSTANCE_UID: "the UID of a study",
    TruthKey.ACCESSION_NUMBER: "the accession number of a study",
    TruthKey.SOP_INSTANCE_UID: "the UID of an image",
    TruthKey.FILE: "a file <instance key>.dcm of an image",
}


def _stored_name(key: TruthKey, text: str) -> str:
    """What the store has for it: of a file name, the instance key before its ending."""
    return PurePosixPath(text.replace("\\", "/")).stem if key is TruthKey.FILE else text
