"""A reader at the screen agrees or disagrees with what was shown, and that becomes a word in the store.

Shown is what the outside sees: never a version that runs in the shadow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from gateway.errors import TransitionError, TruthError
from gateway.store import Store
from gateway.store.audit import add_entry
from gateway.store.truth import Taken, Word, add_words
from gateway.studies_view import study_detail
from gateway.truth_import import known_findings

OPPOSITE: Mapping[str, str] = {"present": "absent", "absent": "present"}


class Verdict(StrEnum):
    """What a reader may say of a finding."""

    AGREE = "agree"
    DISAGREE = "disagree"
    PRESENT = "present"
    ABSENT = "absent"
    UNGRADABLE = "ungradable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """One word, as a reader gives it."""

    model_name: str
    finding_name: str
    verdict: Verdict
    instance_key: str = ""
    """Empty: of the whole study."""
    laterality: str = ""
    version: int | None = None
    """That the reader believes to see; ``None``: whichever is shown."""
    comment: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What the reader had before the eyes."""

    version: int
    state: str
    """``present``, ``absent``, ``ungradable``."""


def shown_to(study: Mapping[str, Any], read: Read) -> Shown | None:
    """What a study's page shows of that finding; ``None``: nothing.

    Parameters
    ----------
    study
        Of :func:`gateway.studies_view.study_detail`, without shadows.
    """
    if not read.instance_key:
        for each in study["findings"]:
            if each["kind"] == "model" and (each["model_name"], each["name"]) == (read.model_name, read.finding_name):
                return Shown(version=each["model_version"], state=each["state"])
        return None
    states = []
    for each in study["predictions"]:
        if each["superseded"] or (each["instance_key"], each["model_name"]) != (read.instance_key, read.model_name):
            continue
        for finding in each["findings"]:
            if finding["name"] == read.finding_name:
                state = "present" if finding["present"] else "absent"
                states.append((each["model_version"], "ungradable" if each["ungradable_reasons"] else state))
    if not states:
        return None
    # Of an image with several frames: the most suspicious one.
    order = ("ungradable", "absent", "present")
    version, state = max(states, key=lambda each: order.index(each[1]))
    return Shown(version=version, state=state)


def take_read(
    store: Store,
    study_key: str,
    read: Read,
    *,
    reader: str,
    source: Literal["viewer", "api"],
    now: datetime,
    actor: str,
    address: str = "",
) -> Taken:
    """Write down what a reader says, and who said it.

    Raises
    ------
    StoreError
        There is no such study.
    TruthError
        No such image, model or finding, or nothing was shown to agree with.
    TransitionError
        What is shown is no longer what the reader believes to see.
    """
    study = study_detail(store, study_key)
    if read.instance_key and read.instance_key not in {each["instance_key"] for each in study["images"]}:
        raise TruthError("the study has no such image")
    shown = shown_to(study, read)
    if shown is None and read.finding_name not in known_findings(store).get(read.model_name, ()):
        raise TruthError("there is no such finding of that model")
    if read.version is not None and (shown is None or shown.version != read.version):
        raise TransitionError("what is shown has changed meanwhile; look again")
    value = _value(read.verdict, shown)
    word = Word(
        study_key=study_key,
        instance_key=read.instance_key,
        laterality=read.laterality,
        model_name=read.model_name,
        finding_name=read.finding_name,
        value=value,
        source=source,
        reader=reader,
        agrees=None if shown is None else value == shown.state,
        shown_version=None if shown is None else shown.version,
        comment=read.comment,
        read_at=None,
    )
    with store.write() as connection:
        (taken,) = add_words(connection, [word], now)
        if taken is not Taken.UNCHANGED:
            said = f"{read.model_name} {read.finding_name}: {value}"
            if shown is not None:
                said += f", shown {shown.state} by version {shown.version}"
            add_entry(connection, now=now, actor=actor, action="read", subject=study_key, address=address, detail=said)
    return taken


def _value(verdict: Verdict, shown: Shown | None) -> str:
    if verdict not in (Verdict.AGREE, Verdict.DISAGREE):
        return verdict.value
    if shown is None:
        raise TruthError("no model has said anything yet that one could agree with; say present, absent or ungradable")
    if verdict is Verdict.AGREE:
        return shown.state
    if shown.state not in OPPOSITE:
        raise TruthError("the model asserts nothing here; say present or absent")
    return OPPOSITE[shown.state]
