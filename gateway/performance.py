"""How versions do on what readers have said, computed by the command or by a process of the monitor's, and stored.

scikit-learn, pandas and NannyML are loaded here and nowhere else in the gateway; pages read what was stored.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gateway.performance_cases import (
    Cases,
    Scores,
    Unit,
    image_scores,
    left_out,
    make_cases,
    settle,
    top_image,
    units_of,
    usual_kind,
)
from gateway.reference_standard import Standard, reference_standard
from gateway.settings import TruthSettings
from gateway.store import Store
from gateway.store.models import VersionState, known_versions
from gateway.store.performance import PerformanceRow, open_alarm_count, replace_performance
from gateway.store.truth import KeptWord, words
from gateway.truth_import import known_findings

if TYPE_CHECKING:
    from evaluation.cases import ScoredCases

Floats = npt.NDArray[np.float64]

logger = logging.getLogger(__name__)

DRAWS = 1000
"""Bootstrap draws, of live figures and of the corrected ones."""
SEED = 20261124
CURVES = ("roc", "precision_recall", "reliability_equal_width", "reliability_equal_mass", "histogram")
"""Of one version, for plots."""
PAIRED = ("cases", "groups", "positives", "negatives", "small", "paired")
"""Of an evaluation of two versions, what the single ones do not say."""
UNEVEN_P = 0.01
"""Below it, readers look at what the model calls present more often than at the rest, or less often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """What one finding of one model is judged on."""

    model_name: str
    finding_name: str
    scores: Mapping[int, Scores]
    """By version."""
    standards: Mapping[Unit, Standard]
    said: tuple[KeptWord, ...]
    left_aside: int
    """Subjects that a wider one covers."""
    champion: int | None
    folders: Mapping[int, Path]
    """Of the versions' bundles."""


def refresh(
    store: Store, settings: TruthSettings, *, now: datetime, model_name: str | None = None, estimate: bool = True
) -> tuple[PerformanceRow, ...]:
    """Compute everything anew and store it.

    Parameters
    ----------
    model_name
        That model alone; all where ``None``.
    estimate
        Also estimate how versions do where no truth is known, which takes seconds more.
    """
    made: list[PerformanceRow] = []
    findings = {name: list(known) for name, known in known_findings(store).items()}
    for word in words(store):  # of models whose bundle is gone, too
        known = findings.setdefault(word.model_name, [])
        if word.finding_name not in known:
            known.append(word.finding_name)
    for name, known in findings.items():
        if model_name is not None and name != model_name:
            continue
        rows: list[PerformanceRow] = []
        for finding_name in known:
            basis = make_basis(store, settings, name, finding_name)
            rows += [
                _row(store, settings, basis, version, now=now, estimate=estimate) for version in sorted(basis.scores)
            ]
        replace_performance(store, name, rows)
        made += rows
    return tuple(made)


def make_basis(store: Store, settings: TruthSettings, model_name: str, finding_name: str) -> Basis:
    """Predictions and truth of one finding."""
    known = known_versions(store, model_name)
    said = tuple(words(store, model_name=model_name, finding_name=finding_name))
    standards, left_aside = settle(reference_standard(said, settings.rule, settings.adjudicators))
    return Basis(
        model_name=model_name,
        finding_name=finding_name,
        scores=image_scores(store, model_name, finding_name, {word.study_key for word in said}),
        standards=standards,
        said=said,
        left_aside=left_aside,
        champion=next((each.version for each in known if each.state is VersionState.CHAMPION), None),
        folders={each.version: Path(each.folder) for each in known},
    )


def _row(
    store: Store, settings: TruthSettings, basis: Basis, version: int, *, now: datetime, estimate: bool
) -> PerformanceRow:
    figures = live_figures(basis, version, least_cases=settings.least_cases)
    estimated: Mapping[str, Any] | None = None
    if estimate:
        from gateway.estimate import estimate_version

        alarms = open_alarm_count(store, basis.model_name, version)
        estimated = estimate_version(basis, version, open_alarms=alarms, bundle_folder=basis.folders.get(version))
    return PerformanceRow(
        model_name=basis.model_name,
        model_version=version,
        finding_name=basis.finding_name,
        figures=figures,
        estimate=estimated,
        computed_at=now,
    )


# --- live figures ---


def live_figures(basis: Basis, version: int, *, least_cases: int) -> dict[str, Any]:
    """What readers' words say of one version, as plain values."""
    from evaluation.evaluate import evaluate

    scores = basis.scores[version]
    cases = make_cases(scores, basis.standards)
    said = {
        "words": len(basis.said),
        "readers": len({word.reader for word in basis.said}),
        "agreeing": sum(word.agrees is True for word in basis.said),
        "disagreeing": sum(word.agrees is False for word in basis.said),
        "subjects": len(basis.standards),
        "differing": sum(standard.differ for standard in basis.standards.values()),
        "shown": sum(standard.all_were_shown for standard in basis.standards.values()),
        "left_aside": basis.left_aside,
    }
    made: dict[str, Any] = {
        "unit": usual_kind(tuple(basis.standards)),
        "said": said,
        "cases": 0 if cases is None else len(cases.units),
        "left_out": dict(left_out(scores, basis.standards)),
        "verification": verification(basis, version, cases),
        "evaluation": None,
        "paired": None,
    }
    if cases is None:
        return made
    evaluation = evaluate(
        scored(cases), finding_name=basis.finding_name, seed=SEED, draws=DRAWS, least_cases=least_cases
    ).to_json()
    # Pages and scrapes read all of it each time: the curves are those of all cases alone.
    evaluation["slices"] = [without_curves(each) for each in evaluation["slices"]]
    made["evaluation"] = evaluation
    if basis.champion is not None and version != basis.champion and basis.champion in basis.scores:
        made["paired"] = paired_figures(basis, version, basis.champion, least_cases=least_cases)
    return made


def scored(cases: Cases) -> ScoredCases:
    """Cases as the room of figures takes them."""
    from evaluation.cases import ScoredCases

    return ScoredCases(
        case_keys=np.array([unit.key for unit in cases.units], dtype=np.str_),
        scores=cases.scores,
        truth=cases.truth,
        groups=cases.groups,
        slices={name: values for name, values in cases.slices.items() if (values != "").any()},
        operating_point=cases.operating_point,
    )


def without_curves(part: Mapping[str, Any]) -> dict[str, Any]:
    """A slice without what plots are drawn from."""
    return {**part, "candidate": {name: value for name, value in part["candidate"].items() if name not in CURVES}}


def paired_figures(basis: Basis, version: int, baseline: int, *, least_cases: int) -> dict[str, Any] | None:
    """One version and another on the same truth: subjects that both could score. ``None`` where there is none."""
    from evaluation.cases import ScoredCases
    from evaluation.evaluate import evaluate

    both = {
        unit: standard
        for unit, standard in basis.standards.items()
        if not any(isinstance(top_image(basis.scores[each], unit), str) for each in (version, baseline))
    }
    mine, theirs = (make_cases(basis.scores[each], both) for each in (version, baseline))
    if mine is None or theirs is None:
        return None
    evaluation = evaluate(
        ScoredCases(
            case_keys=np.array([unit.key for unit in mine.units], dtype=np.str_),
            scores=mine.scores,
            baseline_scores=theirs.scores,
            truth=mine.truth,
            groups=mine.groups,
            operating_point=mine.operating_point,
            baseline_operating_point=theirs.operating_point,
        ),
        finding_name=basis.finding_name,
        seed=SEED,
        draws=DRAWS,
        least_cases=least_cases,
    ).to_json()
    return {"baseline_version": baseline, **{name: evaluation["overall"][name] for name in PAIRED}}


# --- whom readers looked at ---


def verification(basis: Basis, version: int, cases: Cases | None) -> dict[str, Any]:
    """How much of what a version judged has truth, by what the version said of it.

    Where readers look at the present ones first, sensitivity on what they looked at is too high and specificity too
    low. If whom they looked at depended on nothing but the version's decision, the corrected figures are unbiased.

    References
    ----------
    Begg and Greenes, "Assessment of diagnostic tests when disease verification is subject to selection bias",
    Biometrics 39 (1983) 207-215.
    """
    from scipy.stats import fisher_exact

    kind = usual_kind(tuple(basis.standards))
    scores = basis.scores[version]
    judged: Counter[bool] = Counter()
    for unit in units_of(scores, kind):
        image = top_image(scores, unit)
        if not isinstance(image, str):
            judged[image.score >= image.operating_point] += 1
    known: Counter[bool] = Counter()
    counts = np.zeros((2, 2), dtype=np.int64)  # [decision absent, present] x [truth absent, present]
    if cases is not None:
        present = cases.scores >= cases.operating_point
        for unit, decision, truth in zip(cases.units, present, cases.truth, strict=True):
            counts[int(decision), int(truth)] += 1
            known[bool(decision)] += unit.kind == kind
    unknown = {side: max(0, judged[side] - known[side]) for side in (True, False)}
    table = [[known[True], unknown[True]], [known[False], unknown[False]]]
    p_value = float(fisher_exact(table).pvalue) if sum(known.values()) else 1.0
    return {
        "unit": kind,
        "present": {"judged": judged[True], "with_truth": known[True]},
        "absent": {"judged": judged[False], "with_truth": known[False]},
        "uneven_p_value": p_value,
        "uneven": p_value < UNEVEN_P,
        "corrected": corrected_figures(counts, judged[True], judged[False]),
    }


def corrected_figures(counts: npt.NDArray[np.int64], judged_present: int, judged_absent: int) -> dict[str, Any] | None:
    """Sensitivity and specificity after Begg and Greenes, with 95 % percentile intervals of a parametric bootstrap.

    Parameters
    ----------
    counts
        [2, 2], decision (absent, present) by truth (absent, present), of what was verified.

    Returns
    -------
    ``None`` where nothing that was called present, or nothing that was called absent, has truth.
    """
    verified = counts.sum(axis=1)
    total = judged_present + judged_absent
    if not verified.all() or not judged_present or not judged_absent:
        return None
    share = judged_present / total
    ppv, npv = counts[1, 1] / verified[1], counts[0, 0] / verified[0]
    random = np.random.default_rng(SEED)
    drawn = _begg_greenes(
        random.binomial(verified[1], ppv, DRAWS) / verified[1],
        random.binomial(verified[0], npv, DRAWS) / verified[0],
        random.binomial(total, share, DRAWS) / total,
    )
    figures = {}
    values = _begg_greenes(np.array([ppv]), np.array([npv]), np.array([share]))
    for name, value, draws in zip(("sensitivity", "specificity"), values, drawn, strict=True):
        finite = draws[np.isfinite(draws)]
        low, high = np.percentile(finite, (2.5, 97.5)) if finite.size else (math.nan, math.nan)
        figures[name] = {
            "value": _number(float(value[0])),
            "low": _number(float(low)),
            "high": _number(float(high)),
            "n": int(verified.sum()),
        }
    return figures


def _begg_greenes(ppv: Floats, npv: Floats, share: Floats) -> tuple[Floats, Floats]:
    """Sensitivity and specificity from predictive values and the share of what is called present; NaN without cases."""
    true_present, false_absent = ppv * share, (1 - npv) * (1 - share)
    true_absent, false_present = npv * (1 - share), (1 - ppv) * share
    with np.errstate(invalid="ignore", divide="ignore"):
        return true_present / (true_present + false_absent), true_absent / (true_absent + false_present)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
