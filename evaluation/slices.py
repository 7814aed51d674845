"""All figures of one slice, or of all cases."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import average_precision_score, brier_score_loss, cohen_kappa_score

from evaluation import bootstrap, calibration, roc
from evaluation.cases import ScoredCases
from evaluation.figures import (
    CONFIDENCE,
    Confusion,
    Figure,
    Histogram,
    PairedEvaluation,
    ScoreDifferences,
    SliceEvaluation,
    VersionEvaluation,
)
from evaluation.proportions import Z, mcnemar, paired_difference, proportion

CURVE_POINTS = 201
SLICE_CURVE_POINTS = 61
HISTOGRAM_BINS = 50
DRAWN = "bootstrap, {draws} draws of {what}, seed {seed}"
_NO_POSITIVE = "no case is positive"
_NO_NEGATIVE = "no case is negative"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """Cases of one slice, ready to be judged."""

    key: str
    value: str
    groups: NDArray[np.intp]
    """[n], codes from 0 without a gap."""
    truth: NDArray[np.int8]
    scores: tuple[NDArray[np.float64], ...]
    """Candidate's, then baseline's if there is one; each [n]."""
    operating_points: tuple[float, ...]

    @property
    def present(self) -> tuple[NDArray[np.bool_], ...]:
        return tuple(scores >= point for scores, point in zip(self.scores, self.operating_points, strict=True))

    @property
    def repeated(self) -> bool:
        return bool(self.groups.max() + 1 < self.groups.size)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Judged:
    """What the figures of one part are made from."""

    part: Part
    known: NDArray[np.bool_]
    bins: tuple[tuple[calibration.Bins, calibration.Bins] | None, ...]
    """Equal width and equal mass, a version."""
    areas: roc.Areas | None
    drawn: bootstrap.Draws
    drawn_method: str


def part_of(
    cases: ScoredCases, codes: NDArray[np.intp], index: NDArray[np.intp], key: str = "", value: str = ""
) -> Part:
    """Cut the cases at ``index`` out; ``codes`` [N] are the groups as numbers."""
    scores = [cases.scores[index]]
    points = [cases.operating_point]
    if cases.baseline_scores is not None and cases.baseline_operating_point is not None:
        scores.append(cases.baseline_scores[index])
        points.append(cases.baseline_operating_point)
    return Part(
        key=key,
        value=value,
        groups=np.unique(codes[index], return_inverse=True)[1].astype(np.intp),
        truth=cases.truth[index],
        scores=tuple(scores),
        operating_points=tuple(points),
    )


def generator(seed: int, name: str) -> np.random.Generator:
    """Give each slice its own stream, so that one slice more changes no other's figures."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def evaluate_part(part: Part, *, seed: int, draws: int, least_cases: int) -> SliceEvaluation:
    """Judge one slice."""
    judged = _judge(part, seed, draws)
    positives, negatives = int((part.truth == 1).sum()), int((part.truth == 0).sum())
    versions = [_version(judged, version) for version in range(len(part.scores))]
    paired = _paired(judged, versions[0], versions[1]) if len(versions) == 2 else None
    return SliceEvaluation(
        key=part.key,
        value=part.value,
        cases=int(part.truth.size),
        groups=int(part.groups.max()) + 1,
        with_truth=positives + negatives,
        positives=positives,
        negatives=negatives,
        small=part.truth.size < least_cases,
        draws=draws,
        candidate=versions[0],
        baseline=versions[1] if len(versions) == 2 else None,
        paired=paired,
    )


def _judge(part: Part, seed: int, draws: int) -> _Judged:
    known = part.truth >= 0
    truth = part.truth[known] == 1
    bins: list[tuple[calibration.Bins, calibration.Bins] | None] = []
    for scores in part.scores:
        probabilities = calibration.as_probabilities(scores[known]) if known.any() else None
        bins.append(
            None
            if probabilities is None
            else (
                calibration.binned(truth, probabilities, equal_mass=False),
                calibration.binned(truth, probabilities, equal_mass=True),
            )
        )
    areas = None
    if truth.any() and not truth.all():
        areas = roc.areas([scores[known] for scores in part.scores], truth, part.groups[known])
    resampled = bootstrap.Resampled(
        groups=part.groups,
        truth=part.truth,
        scores=part.scores,
        present=part.present,
        bins=tuple(None if pair is None else (pair[0].index, pair[1].index) for pair in bins),
    )
    name = f"{part.key}={part.value}" if part.key else ""
    what = "groups" if part.repeated else "cases"
    return _Judged(
        part=part,
        known=known,
        bins=tuple(bins),
        areas=areas,
        drawn=bootstrap.bootstrap(resampled, draws, generator(seed, name)),
        drawn_method=DRAWN.format(draws=draws, what=what, seed=seed),
    )


def _drawn(judged: _Judged, name: str, version: int) -> NDArray[np.float64] | None:
    values = judged.drawn.get(name)
    return None if values is None else values[:, version]


def _version(judged: _Judged, version: int) -> VersionEvaluation:
    part, known = judged.part, judged.known
    scores, truth = part.scores[version][known], part.truth[known] == 1
    figures = _ranking(judged, version) | _decisions(judged, version) | _calibration(judged, version)
    curves = judged.areas is not None
    points = SLICE_CURVE_POINTS if part.key else CURVE_POINTS
    pair = judged.bins[version]
    confusion = None
    if known.any():
        present = part.present[version][known]
        confusion = Confusion(
            true_positives=int((present & truth).sum()),
            false_positives=int((present & ~truth).sum()),
            true_negatives=int((~present & ~truth).sum()),
            false_negatives=int((~present & truth).sum()),
        )
    return VersionEvaluation(
        operating_point=part.operating_points[version],
        figures=figures,
        confusion=confusion,
        roc=roc.roc_points(truth, scores, points) if curves else None,
        precision_recall=roc.precision_recall_points(truth, scores, points) if curves else None,
        reliability_equal_width=() if pair is None else calibration.reliability(pair[0], truth, part.groups[known]),
        reliability_equal_mass=() if pair is None else calibration.reliability(pair[1], truth, part.groups[known]),
        brier_parts=None if pair is None else calibration.brier_parts(pair[0], truth, np.clip(scores, 0.0, 1.0)),
        histogram=_histogram(part.scores[version], part.truth),
    )


def _ranking(judged: _Judged, version: int) -> dict[str, Figure]:
    known = judged.known
    scores, truth = judged.part.scores[version][known], judged.part.truth[known] == 1
    count = int(truth.size)
    reason = roc.ONE_CLASS if count else roc.NO_TRUTH
    if judged.areas is None:
        nothing = {
            name: Figure(value=None, n=count, method=method, reason=reason)
            for name, method in (("auc_roc", "DeLong"), ("auc_roc_bootstrap", judged.drawn_method))
        }
        precision = Figure(value=None, n=count, method="average precision", reason=reason)
        return {**nothing, "auc_pr": precision}
    equal = bool(scores.min() == scores.max())
    area = roc.area_figure(judged.areas, version, n=count, equal=equal)
    drawn = bootstrap.percentile(
        area.value, _drawn(judged, "auc_roc", version), n=count, method=f"percentile {judged.drawn_method}"
    )
    precision = bootstrap.percentile(
        float(average_precision_score(truth, scores)),
        _drawn(judged, "auc_pr", version),
        n=count,
        method=f"average precision; percentile {judged.drawn_method}",
    )
    return {"auc_roc": area, "auc_roc_bootstrap": drawn, "auc_pr": precision}


def _decisions(judged: _Judged, version: int) -> dict[str, Figure]:
    part, known = judged.part, judged.known
    present = part.present[version]
    positive, negative = part.truth == 1, part.truth == 0
    right = np.where(positive, present, ~present)
    no_truth = "" if known.any() else f"{roc.NO_TRUTH}: "
    rows = {
        "sensitivity": (present, positive, no_truth + _NO_POSITIVE),
        "specificity": (~present, negative, no_truth + _NO_NEGATIVE),
        "ppv": (positive, known & present, no_truth + "no case with truth was called present"),
        "npv": (negative, known & ~present, no_truth + "no case with truth was called absent"),
        "accuracy": (right, known, roc.NO_TRUTH),
        "selection_rate": (present, np.ones_like(known), ""),
    }
    return {
        name: proportion(hits[counted], part.groups[counted], nothing=nothing)
        for name, (hits, counted, nothing) in rows.items()
    }


def _calibration(judged: _Judged, version: int) -> dict[str, Figure]:
    known, pair = judged.known, judged.bins[version]
    count = int(known.sum())
    methods = {
        "brier": f"Brier score; percentile {judged.drawn_method}",
        "ece": f"{calibration.BINS} bins of equal width; {judged.drawn_method}",
        "ece_equal_mass": f"{calibration.BINS} bins of equal mass; {judged.drawn_method}",
        "calibration_in_the_large": f"mean score minus fraction positive; percentile {judged.drawn_method}",
    }
    if pair is None:
        reason = calibration.OUTSIDE if count else roc.NO_TRUTH
        return {name: Figure(value=None, n=count, method=method, reason=reason) for name, method in methods.items()}
    truth = judged.part.truth[known] == 1
    probabilities = np.clip(judged.part.scores[version][known], 0.0, 1.0)
    values = {
        "brier": float(brier_score_loss(truth, probabilities, pos_label=True)),
        "ece": pair[0].expected_error,
        "ece_equal_mass": pair[1].expected_error,
        "calibration_in_the_large": float(probabilities.mean() - truth.mean()),
    }
    return {
        name: bootstrap.percentile(
            value,
            _drawn(judged, name, version),
            n=count,
            method=methods[name],
            low=bootstrap.distance_from_noise(value, _drawn(judged, f"{name}_deviation", version))
            if name.startswith("ece")
            else None,
            limits=(-1.0, 1.0) if name == "calibration_in_the_large" else (0.0, 1.0),
        )
        for name, value in values.items()
    }


def _histogram(scores: NDArray[np.float64], truth: NDArray[np.int8]) -> Histogram:
    low, high = min(0.0, float(scores.min())), max(1.0, float(scores.max()))
    edges = np.linspace(low, high, HISTOGRAM_BINS + 1)
    counts = [tuple(int(one) for one in np.histogram(scores[truth == label], edges)[0]) for label in (1, 0, -1)]
    return Histogram(
        edges=tuple(float(one) for one in edges), positive=counts[0], negative=counts[1], unknown=counts[2]
    )


def _paired(judged: _Judged, candidate: VersionEvaluation, baseline: VersionEvaluation) -> PairedEvaluation:
    part = judged.part
    mine, theirs = part.present
    differences, area_p_value = _differences(judged, candidate.figures, baseline.figures)
    tests = {
        name: mcnemar(right[0][counted], right[1][counted], part.groups[counted])
        for name, right, counted in (
            ("sensitivity", (mine, theirs), part.truth == 1),
            ("specificity", (~mine, ~theirs), part.truth == 0),
        )
    }
    return PairedEvaluation(
        figures={
            "agreement": proportion(mine == theirs, part.groups, nothing=""),
            "kappa": _kappa(judged),
        },
        differences=differences,
        auc_roc_p_value=area_p_value,
        mcnemar={name: test for name, test in tests.items() if test is not None},
        score_differences=_score_differences(part),
        changed_to_present=int((mine & ~theirs).sum()),
        changed_to_absent=int((~mine & theirs).sum()),
    )


def _kappa(judged: _Judged) -> Figure:
    mine, theirs = judged.part.present
    method = f"Cohen's kappa; percentile {judged.drawn_method}"
    if mine.all() == theirs.all() and mine.any() == theirs.any() and mine.all() == mine.any():
        return Figure(value=None, n=int(mine.size), method=method, reason="both versions decide the same on every case")
    value = float(cohen_kappa_score(mine, theirs))
    return bootstrap.percentile(value, _drawn(judged, "kappa", 0), n=int(mine.size), method=method)


def _differences(
    judged: _Judged, candidate: Mapping[str, Figure], baseline: Mapping[str, Figure]
) -> tuple[dict[str, Figure], float | None]:
    part, known = judged.part, judged.known
    identical = bool(np.array_equal(part.scores[0][known], part.scores[1][known]))
    found: dict[str, Figure] = {}
    area_p_value = None
    for name, first in candidate.items():
        second = baseline[name]
        if first.value is None or second.value is None:
            reason = first.reason or second.reason
            found[name] = Figure(value=None, n=min(first.n, second.n), method="difference", reason=reason)
        elif name == "auc_roc" and judged.areas is not None:
            found[name], area_p_value = roc.area_difference(judged.areas, first, second, identical=identical)
        elif name in _COUNTED:
            hits = [present if name in _HITS_ARE_PRESENT else ~present for present in part.present]
            if name == "accuracy":
                hits = [np.where(part.truth == 1, present, ~present) for present in part.present]
            counted = {"sensitivity": part.truth == 1, "specificity": part.truth == 0, "accuracy": known}.get(
                name, np.ones_like(known)
            )
            found[name] = paired_difference(
                hits[0][counted], hits[1][counted], part.groups[counted], nothing=first.reason
            )
        else:
            found[name] = _drawn_difference(judged, name, first.value - second.value, min(first.n, second.n), identical)
    return found, area_p_value


_HITS_ARE_PRESENT = ("sensitivity", "selection_rate")
_COUNTED = ("sensitivity", "specificity", "accuracy", "selection_rate")
"""Both versions are held against the same cases; ppv and npv against each version's own calls."""
_OF_DECISIONS = ("ppv", "npv")


def _drawn_difference(judged: _Judged, name: str, value: float, n: int, identical: bool) -> Figure:
    if identical and name not in _OF_DECISIONS:
        return Figure(value=0.0, low=0.0, high=0.0, n=n, method="same scores")
    values = judged.drawn.get("auc_roc" if name == "auc_roc_bootstrap" else name)
    drawn = None if values is None else values[:, 0] - values[:, 1]
    return bootstrap.percentile(value, drawn, n=n, method=f"percentile {judged.drawn_method}, paired")


def _score_differences(part: Part) -> ScoreDifferences:
    change = part.scores[0] - part.scores[1]
    count, clusters = int(change.size), int(part.groups.max()) + 1
    bias = float(change.mean())
    method = "mean difference, t interval" + (" over groups" if part.repeated else "")
    largest = float(np.abs(change).max())
    if clusters < 2:
        nothing = Figure(value=None, n=count, method="Bland-Altman", reason="a single group has no spread")
        alone = Figure(value=bias, n=count, method=method, reason="a single group has no spread")
        return ScoreDifferences(
            bias=alone, standard_deviation=None, lower_limit=nothing, upper_limit=nothing, largest_absolute=largest
        )
    residuals = np.bincount(part.groups, weights=change - bias)
    error = math.sqrt(clusters / (clusters - 1) * float(residuals @ residuals)) / count
    quantile = float(stats.t.ppf(0.5 + CONFIDENCE / 2, clusters - 1))
    deviation = float(change.std(ddof=1))
    # Bland and Altman 1986: the standard error of a limit is about the root of 3 s^2 / n.
    around = quantile * math.sqrt(3 / clusters) * deviation
    lower, upper = bias - Z * deviation, bias + Z * deviation

    def limit(value: float) -> Figure:
        return Figure(value=value, low=value - around, high=value + around, n=count, method="Bland-Altman")

    return ScoreDifferences(
        bias=Figure(value=bias, low=bias - quantile * error, high=bias + quantile * error, n=count, method=method),
        standard_deviation=deviation,
        lower_limit=limit(lower),
        upper_limit=limit(upper),
        largest_absolute=largest,
    )
