"""Evaluate one version, or two against each other, on scored cases: overall, by slice, and between groups."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evaluation.bootstrap import cut_draws
from evaluation.cases import ScoredCases
from evaluation.fairness import fairness_gaps, with_adjusted
from evaluation.figures import ChangedCase, Evaluation, FairnessGap, SliceEvaluation
from evaluation.slices import Part, evaluate_part, part_of

OVERALL_BUDGET = 100_000_000
SLICE_BUDGET = 300_000_000
"""Draws x cases, of all cases together and of all slices together, above which draws are cut (never below 500)."""


def evaluate(
    cases: ScoredCases, *, finding_name: str, seed: int = 0, draws: int = 2000, least_cases: int = 30
) -> Evaluation:
    """Work out every figure.

    Parameters
    ----------
    seed
        Of the bootstrap; the same cases and seed give the same figures.
    draws
        Of the bootstrap; cut where there are many cases, as each slice states.
    least_cases
        Slices of fewer cases are marked small.
    """
    codes = np.unique(cases.groups, return_inverse=True)[1].astype(np.intp)
    everything = part_of(cases, codes, np.arange(cases.count))
    overall = evaluate_part(
        everything, seed=seed, draws=cut_draws(draws, cases.count, OVERALL_BUDGET), least_cases=least_cases
    )
    slice_draws = cut_draws(draws, cases.count * len(cases.slices), SLICE_BUDGET)
    parts = _parts(cases, codes)
    slices = tuple(evaluate_part(part, seed=seed, draws=slice_draws, least_cases=least_cases) for part in parts)
    fairness: list[FairnessGap] = []
    for key, values in sorted(cases.slices.items()):
        index = np.flatnonzero(values != "")
        if index.size:
            known = part_of(cases, codes, index)
            fairness += fairness_gaps(known, key, values[index], seed=seed, draws=slice_draws, least_cases=least_cases)
    return Evaluation(
        finding_name=finding_name,
        seed=seed,
        draws=draws,
        least_cases=least_cases,
        overall=overall,
        slices=slices,
        fairness=with_adjusted(fairness),
        changed=_changed(cases),
        notes=_notes(overall, slices, len(fairness), draws),
    )


def _parts(cases: ScoredCases, codes: NDArray[np.intp]) -> list[Part]:
    parts = []
    for key in sorted(cases.slices):
        values, place = np.unique(cases.slices[key], return_inverse=True)
        order = np.argsort(place, kind="stable")
        runs = np.split(order, np.flatnonzero(np.diff(place[order])) + 1)
        # The cases for which the key is unknown come last.
        for value, index in sorted(zip(values, runs, strict=True), key=lambda pair: (pair[0] == "", str(pair[0]))):
            parts.append(part_of(cases, codes, index, key, str(value)))
    return parts


def _notes(overall: SliceEvaluation, slices: tuple[SliceEvaluation, ...], gaps: int, draws: int) -> tuple[str, ...]:
    notes = []
    if overall.with_truth < overall.cases:
        notes.append(
            f"{overall.cases - overall.with_truth} of {overall.cases} cases have no truth: they count in agreement, "
            "score differences and selection rate alone. If those with truth are others in kind, the rest is off."
        )
    if overall.groups < overall.cases:
        notes.append(
            f"{overall.cases} cases come from {overall.groups} groups (persons or studies): intervals allow for "
            "cases of one group being alike. McNemar's p-value does not; its p-value of groups does."
        )
    fewest = min([overall.draws, *(one.draws for one in slices)])
    if fewest < draws:
        notes.append(
            f"Because of the number of cases, draws were cut from {draws}: to {overall.draws} for all cases"
            + (f", to {slices[0].draws} for each slice and gap." if slices else ".")
        )
    small = [one for one in slices if one.small]
    if small:
        notes.append(f"{len(small)} of {len(slices)} slices are small: their figures are shown, and prove nothing.")
    if slices:
        notes.append(
            f"{len(slices)} slices and {gaps} gaps were looked at: about one in twenty 95 % intervals misses the true "
            "value by chance, and the worst slice of many looks worse than it is. The gaps' adjusted p-values "
            "(Holm) allow for that; the slices' intervals do not."
        )
    return tuple(notes)


def _changed(cases: ScoredCases) -> tuple[ChangedCase, ...]:
    if cases.baseline_scores is None or cases.baseline_operating_point is None:
        return ()
    present = cases.scores >= cases.operating_point
    before = cases.baseline_scores >= cases.baseline_operating_point
    index = np.flatnonzero(present != before)
    change = np.abs(cases.scores[index] - cases.baseline_scores[index])
    return tuple(
        ChangedCase(
            case_key=str(cases.case_keys[one]),
            score=float(cases.scores[one]),
            baseline_score=float(cases.baseline_scores[one]),
            present=bool(present[one]),
            baseline_present=bool(before[one]),
            truth=None if cases.truth[one] < 0 else int(cases.truth[one]),
        )
        for one in index[np.argsort(-change, kind="stable")]
    )
