"""The report as values: ``report.json`` (documented in ``docs/compare.md``), ``cases.csv``, metrics for MLflow.

Nothing in ``report.json`` depends on the clock or the machine's load, so that a comparison that was interrupted writes
the same bytes. What does is in ``run.json``: when, by whom, how fast.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.metadata
import platform
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.criteria import CriterionVerdict, overall_verdict
from evaluation.figures import Evaluation, as_json
from gateway import __version__
from gateway.comparison.heat import Choice
from gateway.comparison.scores import ScoreBook, ScoredCase
from gateway.comparison.truth_match import TruthBook, known_readers, unit_key_of
from gateway.comparison.units import TRUTHS, Gathered
from gateway.comparison.versions import Pair, Version
from gateway.reference_standard import RULES
from gateway.saved.cases import SLICE_NAMES
from models.card import Acceptance

SCHEMA, SCHEMA_VERSION = "dicom-ai-gateway/comparison", 1
REPORT_FILE, CASES_FILE, RUN_FILE, PAGE_FILE = "report.json", "cases.csv", "run.json", "report.html"
NOT_JUDGED = "not judged"
SHOWN_FAILURES = 200
SHOWN_REASONS = 40
_PACKAGES = ("numpy", "onnxruntime-gpu", "pydicom", "pillow", "scikit-learn", "scipy", "fairlearn")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What was compared on."""

    kind: str
    """``query``, ``export`` or ``folder``."""
    text: str
    """The query; of a folder its name."""
    skipped: Mapping[str, int]
    """Why -> files that gave no case."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How many cases there were, and what became of them."""

    cases: int
    studies: int
    persons: int
    cases_sha256: str
    """Over key and file hash of every case: the same where the same was compared."""
    failed: Mapping[str, Mapping[str, int]]
    """Version -> why -> cases without a score."""
    ungradable: Mapping[str, Mapping[str, int]]
    """Version -> why -> cases too poor for it."""
    failures: Sequence[Mapping[str, str]]
    """The first of them, one by one; ``cases.csv`` has all."""


def count_cases(book: ScoreBook, pair: Pair) -> Counts:
    """Count what is in the book, in one pass."""
    roles = ("candidate", "baseline")[: len(pair.versions)]
    failed: dict[str, Counter[str]] = {role: Counter() for role in roles}
    ungradable: dict[str, Counter[str]] = {role: Counter() for role in roles}
    studies, persons = set[bytes](), set[bytes]()
    digest, count = hashlib.sha256(), 0
    failures: list[dict[str, str]] = []
    for _, scored in book.rows():
        count += 1
        digest.update(f"{scored.case_key} {scored.case_sha256}\n".encode())
        studies.add(hashlib.blake2b(scored.study_key.encode(), digest_size=8).digest())
        persons.add(hashlib.blake2b(scored.group_key.encode(), digest_size=8).digest())
        for role, said in zip(roles, scored.versions, strict=True):
            ungradable[role].update(_kind_of_reason(reason) for reason in said.ungradable)
            if said.failure:
                failed[role][said.failure] += 1
                if len(failures) < SHOWN_FAILURES:
                    failures.append({"case_key": scored.case_key, "version": role, "reason": said.failure})
    return Counts(
        cases=count,
        studies=len(studies),
        persons=len(persons),
        cases_sha256=digest.hexdigest(),
        failed={role: _most_common(each) for role, each in failed.items()},
        ungradable={role: _most_common(each) for role, each in ungradable.items()},
        failures=failures,
    )


def _most_common(reasons: Counter[str]) -> dict[str, int]:
    """The reasons that come most; the others together."""
    ranked = sorted(reasons.items(), key=lambda each: (-each[1], each[0]))
    kept, rest = dict(ranked[:SHOWN_REASONS]), sum(count for _, count in ranked[SHOWN_REASONS:])
    return {**kept, "other reasons, see cases.csv": rest} if rest else kept


def _kind_of_reason(reason: str) -> str:
    """``level 0.01 is below 0.05`` as ``level is below 0.05``: without the case's own number."""
    words = reason.split(" ")
    return " ".join(word for place, word in enumerate(words) if not (place and words[place + 1 : place + 2] == ["is"]))


def why_not_judged(acceptance: Acceptance | None, truth: TruthBook | None, pair: Pair) -> str:
    """In words, where there is no verdict."""
    if acceptance is None:
        return f"the card of {pair.candidate.name} states no acceptance criteria"
    if truth is None:
        return "no truth was given"
    return "some criteria could not be judged"


def report_tree(
    *,
    pair: Pair,
    source: Source,
    counts: Counts,
    truth: TruthBook | None,
    gathered: Mapping[str, Gathered],
    evaluations: Mapping[str, Evaluation],
    verdicts: Sequence[CriterionVerdict],
    shown: Mapping[str, Sequence[Choice]],
    seed: int,
    draws: int,
    least_cases: int,
) -> dict[str, Any]:
    """The content of ``report.json``."""
    acceptance = pair.candidate.bundle.card.acceptance
    verdict = overall_verdict(verdicts)
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "demonstration": any(version.bundle.card.demonstration for version in pair.versions),
        "candidate": _version(pair.candidate),
        "baseline": None if pair.baseline is None else _version(pair.baseline),
        "verdict": verdict,
        "verdict_reason": why_not_judged(acceptance, truth, pair) if verdict == NOT_JUDGED else "",
        "acceptance": None if acceptance is None else acceptance.model_dump(mode="json"),
        "criteria": [{**each.to_json(), "in_words": each.criterion.in_words()} for each in verdicts],
        "studies": {"source": source.kind, "text": source.text, "skipped_files": dict(sorted(source.skipped.items()))},
        "cases": as_json(counts),
        "truth": None if truth is None else _truth(truth),
        "findings": {
            finding.name: {
                "title": finding.title,
                "unit": gathered[finding.name].kind,
                "left_out": gathered[finding.name].left_out,
                "truth_unknown": gathered[finding.name].unknown,
                "evaluation": evaluations[finding.name].to_json() if finding.name in evaluations else None,
                "shown": [as_json(each) for each in shown.get(finding.name, ())],
            }
            for finding in pair.findings
        },
        "method": {"seed": seed, "draws": draws, "least_cases": least_cases, "truth_rule": _truth_rule(truth)},
        "software": software(),
    }


def _truth_rule(truth: TruthBook | None) -> str:
    return "" if truth is None else f"the newest word of each reader counts; {RULES[truth.rule]}"


def _version(version: Version) -> dict[str, Any]:
    card = version.bundle.card
    return {
        "name": card.name,
        "version": card.version,
        "title": card.title,
        "bundle_sha256": version.bundle_sha256,
        "model_sha256": version.bundle.model_sha256,
        "model_bytes": version.bundle.model_path.stat().st_size,
        "operating_points": {finding.name: finding.operating_point for finding in card.findings},
        "licence": card.licence,
    }


def _truth(truth: TruthBook) -> dict[str, Any]:
    return {
        "name": truth.name,
        "sha256": truth.sha256,
        "words": len(truth.words),
        "matched_words": truth.matched,
        "other_words": truth.other_words,
        "readers": known_readers(truth.words),
        "unit": truth.kind,
    }


def software() -> dict[str, str]:
    """Versions of what the figures come from."""
    found = {"gateway": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def write_cases(path: Path, book: ScoreBook, pair: Pair, truth: TruthBook | None, kind: str) -> None:
    """Write ``cases.csv``: every case with what was said of it, in the order in which they came."""
    roles = ("candidate", "baseline")[: len(pair.versions)]
    names = [finding.name for finding in pair.findings]
    points = [{each.name: each.operating_point for each in version.bundle.card.findings} for version in pair.versions]
    columns = ["case_key", "unit", "study_key", "group_key", "frame_index", "sha256", *SLICE_NAMES]
    columns += [f"{role}_{what}" for role in roles for what in ("failure", "ungradable")]
    columns += [f"{name}.truth" for name in names]
    columns += [f"{name}.{role}_{what}" for name in names for role in roles for what in ("score", "present")]
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        for _, scored in book.rows():
            writer.writerow(_case_row(scored, names, points, truth, kind))


def _case_row(
    scored: ScoredCase, names: Sequence[str], points: Sequence[Mapping[str, float]], truth: TruthBook | None, kind: Any
) -> Iterable[object]:
    unit = unit_key_of(kind, scored.case_key, scored.study_key, scored.slices.get("laterality", ""))
    yield from (scored.case_key, unit, scored.study_key, scored.group_key, scored.frame_index, scored.case_sha256)
    yield from (_plain(scored.slices.get(name, "")) for name in SLICE_NAMES)
    for said in scored.versions:
        yield from (_plain(said.failure), _plain("; ".join(said.ungradable)))
    for name in names:
        yield "" if truth is None else TRUTHS[truth.truth(kind, unit, name)[0]]
    for name in names:
        for said, point in zip(scored.versions, points, strict=True):
            score = said.scores.get(name)
            yield "" if score is None else repr(score)
            yield "" if score is None or said.ungradable else "present" if score >= point[name] else "absent"


def _plain(text: str) -> str:
    """Text that no spreadsheet takes for a formula: a device may call itself ``=cmd()``."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def metrics(report: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, float]:
    """The figures of all cases together, by names for MLflow."""
    found: dict[str, float] = {}

    def take(name: str, figure: Mapping[str, Any]) -> None:
        for suffix, part in (("", "value"), (".low", "low"), (".high", "high")):
            if figure.get(part) is not None:
                found[name + suffix] = float(figure[part])

    for finding_name, finding in report["findings"].items():
        if finding["evaluation"] is None:
            continue
        overall = finding["evaluation"]["overall"]
        found[f"{finding_name}/cases"] = overall["cases"]
        for role in ("candidate", "baseline"):
            for name, figure in (overall[role] or {"figures": {}})["figures"].items():
                take(f"{finding_name}/{role}/{name}", figure)
        for name, figure in (overall["paired"] or {"differences": {}})["differences"].items():
            take(f"{finding_name}/difference/{name}", figure)
        for name, figure in (overall["paired"] or {"figures": {}})["figures"].items():
            take(f"{finding_name}/{name}", figure)
    for role, measured in run.get("measured", {}).items():
        found[f"speed/{role}/p50_ms_at_1"] = measured["batches"][0]["p50_ms"]
        found[f"memory/{role}/resident_mib"] = measured["resident_mib"]
    return found
