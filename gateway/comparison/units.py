"""From kept scores to the arrays that are evaluated: one row a unit, and a count of what was left out."""

from __future__ import annotations

import sys
from array import array
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import numpy as np

from evaluation.cases import UNKNOWN, ScoredCases
from gateway.comparison.scores import ScoreBook, ScoredCase
from gateway.comparison.truth_match import Kind, TruthBook, unit_key_of
from gateway.comparison.versions import Pair
from gateway.saved.cases import SLICE_NAMES
from models.card import Finding

SLICES = tuple(name for name in SLICE_NAMES if name != "modality")
"""What figures are given by; the modality follows from the model."""
TRUTHS = {1: "present", 0: "absent", UNKNOWN: "unknown"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """The units of one finding."""

    cases: ScoredCases | None
    """``None`` where no unit has a score of every version."""
    kind: Kind
    left_out: dict[str, dict[str, int]]
    """Why -> truth -> units without a gradable score of every version."""
    unknown: dict[str, int]
    """Why -> units that are evaluated and whose truth is not known."""
    top_case: dict[str, str]
    """Unit -> the case whose score is the unit's; empty where units are images."""


@dataclass(slots=True)
class _Columns:
    keys: list[str] = field(default_factory=list)
    scores: array[float] = field(default_factory=lambda: array("d"))
    baseline: array[float] = field(default_factory=lambda: array("d"))
    truth: array[int] = field(default_factory=lambda: array("b"))
    groups: list[str] = field(default_factory=list)
    slices: dict[str, list[str]] = field(default_factory=lambda: {name: [] for name in SLICES})
    top: dict[str, str] = field(default_factory=dict)


def status(scored: ScoredCase) -> str:
    """Why a case is not evaluated; empty where it is."""
    failed = [name for name, said in zip(("candidate", "baseline"), scored.versions, strict=False) if said.failure]
    if failed:
        return "no score of " + ("either version" if len(failed) > 1 else f"the {failed[0]}")
    poor = [name for name, said in zip(("candidate", "baseline"), scored.versions, strict=False) if said.ungradable]
    if poor:
        return "ungradable to " + ("both versions" if len(poor) > 1 else f"the {poor[0]}")
    return ""


def gather(book: ScoreBook, pair: Pair, finding: Finding, truth: TruthBook | None) -> Gathered:
    """The units of one finding. A unit of several images counts with its highest score, one version like the other."""
    kind: Kind = "image" if truth is None else truth.kind
    columns, place_of = _Columns(), dict[str, int]()
    left_out: defaultdict[str, str] = defaultdict(str)
    for _, scored in book.rows():
        laterality = scored.slices.get("laterality", "")
        unit = unit_key_of(kind, scored.case_key, scored.study_key, laterality)
        why = status(scored)
        if why:
            left_out[unit] = left_out[unit] or why
        elif unit in place_of:
            _widen(columns, place_of[unit], unit, scored, finding)
        else:
            if kind != "image":
                place_of[unit] = len(columns.keys)
                columns.top[unit] = scored.case_key
            value, _ = (UNKNOWN, "") if truth is None else truth.truth(kind, unit, finding.name)
            _append(columns, unit, scored, finding, value)
    known = set(columns.keys) if kind != "image" else set()
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for unit, why in left_out.items():
        if unit not in known:
            value = UNKNOWN if truth is None else truth.truth(kind, unit, finding.name)[0]
            counts[why][TRUTHS[value]] += 1
    unknown = Counter(
        "no truth was given" if truth is None else truth.truth(kind, key, finding.name)[1]
        for key, value in zip(columns.keys, columns.truth, strict=True)
        if value == UNKNOWN
    )
    return Gathered(
        cases=_cases(columns, pair, finding),
        kind=kind,
        left_out={why: dict(sorted(of.items())) for why, of in sorted(counts.items())},
        unknown=dict(sorted(unknown.items())),
        top_case=columns.top,
    )


def _append(columns: _Columns, unit: str, scored: ScoredCase, finding: Finding, truth: int) -> None:
    columns.keys.append(unit)
    columns.scores.append(scored.candidate.scores[finding.name])
    if scored.baseline is not None:
        columns.baseline.append(scored.baseline.scores[finding.name])
    columns.truth.append(truth)
    columns.groups.append(sys.intern(scored.group_key))
    for name, values in columns.slices.items():
        values.append(sys.intern(scored.slices.get(name, "")))


def _widen(columns: _Columns, place: int, unit: str, scored: ScoredCase, finding: Finding) -> None:
    """Take another image into a unit."""
    score = scored.candidate.scores[finding.name]
    if score > columns.scores[place]:
        columns.scores[place] = score
        columns.top[unit] = scored.case_key
    if scored.baseline is not None:
        columns.baseline[place] = max(columns.baseline[place], scored.baseline.scores[finding.name])
    for name, values in columns.slices.items():
        if values[place] != scored.slices.get(name, ""):
            values[place] = "several"


def _cases(columns: _Columns, pair: Pair, finding: Finding) -> ScoredCases | None:
    if not columns.keys:
        return None
    other = None
    if pair.baseline is not None:
        (other,) = (each for each in pair.baseline.bundle.card.findings if each.name == finding.name)
    # A person's pseudonym is of no use to a figure: numbers take a fifth of the memory.
    numbers: dict[str, int] = {}
    groups = np.array([str(numbers.setdefault(group, len(numbers))) for group in columns.groups], dtype=np.str_)
    return ScoredCases(
        case_keys=np.array(columns.keys, dtype=np.str_),
        scores=np.array(columns.scores, dtype=np.float64),
        baseline_scores=None if other is None else np.array(columns.baseline, dtype=np.float64),
        truth=np.array(columns.truth, dtype=np.int8),
        groups=groups,
        slices={name: np.array(values, dtype=np.str_) for name, values in columns.slices.items() if any(values)},
        operating_point=finding.operating_point,
        baseline_operating_point=None if other is None else other.operating_point,
    )
