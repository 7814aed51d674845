"""Do the figures meet what the card asked for before they were known?

A criterion is passed, failed, or not judged: too few cases, no truth, no such figure. Only a version that passes every
one meets its card; what could not be judged was not shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from evaluation.fairness import METRICS as GAPS
from evaluation.figures import Evaluation, Figure, SliceEvaluation, as_json
from models.card import Acceptance, Criterion

LEAST_OF_A_VALUE = 10
"""Cases of its own (of a sensitivity: positive ones) below which a figure decides nothing without its interval: with
fewer, the interval of a proportion spans 0.3 and more, and a bound of it says so where the value does not."""

ROUNDING = 1e-12
"""How far outside a bound is still on it: 0.7 - 0.8 is below -0.1 by the last bit alone."""

Verdict = Literal["met", "not met", "not judged"]
_EACH = "each:"


@dataclass(frozen=True, slots=True, kw_only=True)
class CriterionVerdict:
    criterion: Criterion
    observed: float | None
    """The number held against the bounds; with several slices the one furthest from passing."""
    passed: bool | None
    """``None``: not judged."""
    reason: str
    """One sentence."""

    def to_json(self) -> dict[str, Any]:
        return {
            "criterion": self.criterion.model_dump(mode="json"),
            "observed": as_json(self.observed),
            "passed": self.passed,
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Observed:
    """A number to be judged, or why there is none."""

    where: str
    value: float | None
    cases: int
    """Of the slice, with truth where the figure needs it."""
    n: int
    """Of them, those that the figure rests on."""
    why_not: str


def judge_criteria(evaluations: Mapping[str, Evaluation], acceptance: Acceptance) -> tuple[CriterionVerdict, ...]:
    """Judge every criterion of a card.

    Parameters
    ----------
    evaluations
        Finding name -> its evaluation.
    """
    return tuple(
        _judge(criterion, evaluations.get(criterion.finding), acceptance.least_cases)
        for criterion in acceptance.criteria
    )


def overall_verdict(verdicts: Sequence[CriterionVerdict]) -> Verdict:
    """``met`` only if all are passed; ``not met`` if one failed; else, and without any, ``not judged``."""
    if any(verdict.passed is False for verdict in verdicts):
        return "not met"
    return "met" if verdicts and all(verdict.passed for verdict in verdicts) else "not judged"


def _judge(criterion: Criterion, evaluation: Evaluation | None, least_cases: int) -> CriterionVerdict:
    if evaluation is None:
        return _not_judged(criterion, f"Not judged: no evaluation of the finding {criterion.finding}.")
    in_gaps = criterion.metric in GAPS
    candidates = _gaps(criterion, evaluation, least_cases) if in_gaps else _figures(criterion, evaluation)
    if not candidates:
        where = criterion.slice.removeprefix(_EACH)
        lacking = f"no case lies in the slice {where}" if where else "there is no slice key to find a gap in"
        return _not_judged(criterion, f"Not judged: {lacking}.")
    enough = [one for one in candidates if one.cases >= least_cases]
    few = [one for one in candidates if one.cases < least_cases]
    left_out = _left_out(few, least_cases)
    if not enough:
        return _not_judged(criterion, f"Not judged: {left_out}.")
    judged = [one for one in enough if one.value is not None]
    failed = [one for one in judged if _shortfall(criterion, one) > ROUNDING]
    without = [one for one in enough if one.value is None]
    bounds = _bounds(criterion)
    aside = f"; {left_out}" if few else ""
    if failed:
        worst = max(failed, key=lambda one: _shortfall(criterion, one))
        return CriterionVerdict(
            criterion=criterion,
            observed=worst.value,
            passed=False,
            reason=f"Failed: {_named(criterion, worst)}, where {bounds} was asked for{aside}.",
        )
    if without:
        one = without[0]
        return _not_judged(criterion, f"Not judged: {_what(criterion, one.where)} has no value: {one.why_not}{aside}.")
    worst = max(judged, key=lambda one: _shortfall(criterion, one))
    return CriterionVerdict(
        criterion=criterion,
        observed=worst.value,
        passed=True,
        reason=f"Passed: {_named(criterion, worst)}, where {bounds} was asked for{aside}.",
    )


def _figures(criterion: Criterion, evaluation: Evaluation) -> list[_Observed]:
    wanted = criterion.slice
    if not wanted:
        return [_observed(criterion, evaluation.overall)]
    if wanted.startswith(_EACH):
        key = wanted.removeprefix(_EACH)
        # The cases for which the key is unknown are no slice of it.
        return [_observed(criterion, one) for one in evaluation.slices if one.key == key and one.value]
    key, _, value = wanted.partition("=")
    found = evaluation.slice(key, value)
    return [] if found is None else [_observed(criterion, found)]


def _observed(criterion: Criterion, judged: SliceEvaluation) -> _Observed:
    metric, statistic, paired = criterion.metric, criterion.statistic, judged.paired
    cases = judged.cases if metric in _WITHOUT_TRUTH else judged.with_truth
    needs_baseline = statistic.startswith("difference") or metric in _OF_TWO
    if needs_baseline and paired is None:
        return _Observed(where=judged.name, value=None, cases=judged.cases, n=0, why_not=_NO_BASELINE)
    figures = judged.candidate.figures
    if paired is not None and needs_baseline:
        figures = paired.differences if statistic.startswith("difference") else paired.figures
    figure = figures.get(metric)
    if figure is None:
        why_not = f"no figure {metric} with statistic {statistic} is known"
        return _Observed(where=judged.name, value=None, cases=judged.cases, n=0, why_not=why_not)
    return _of_figure(judged.name, figure, statistic, cases)


_OF_TWO = ("agreement", "kappa")
_WITHOUT_TRUTH = (*_OF_TWO, "selection_rate")
_NO_BASELINE = "there is no baseline"


def _gaps(criterion: Criterion, evaluation: Evaluation, least_cases: int) -> list[_Observed]:
    """Give the gaps of one key (``each:sex``), or of every key; small groups have no part in them."""
    wanted = criterion.slice
    if wanted and not wanted.startswith(_EACH):
        why_not = "a gap lies between slices, so that the criterion's slice has to be empty or each:KEY"
        return [_Observed(where=wanted, value=None, cases=evaluation.overall.cases, n=0, why_not=why_not)]
    key = wanted.removeprefix(_EACH)
    found = []
    for gap in evaluation.fairness:
        if gap.metric != criterion.metric or (key and gap.key != key):
            continue
        figure = gap.change if criterion.statistic.startswith("difference") else gap.candidate.difference
        where = f"by {gap.key}"
        cases = gap.candidate.difference.n
        fewest = min((one.n for one in gap.candidate.groups if not one.small), default=least_cases)
        if fewest < least_cases:
            # The evaluation called fewer groups small than the card does.
            why_not = f"a group of {fewest} cases takes part, where the card asks for {least_cases}"
            found.append(_Observed(where=where, value=None, cases=cases, n=cases, why_not=why_not))
        elif figure is None:
            found.append(_Observed(where=where, value=None, cases=cases, n=cases, why_not=_NO_BASELINE))
        else:
            found.append(_of_figure(where, figure, criterion.statistic, cases))
    return found


def _of_figure(where: str, figure: Figure, statistic: str, cases: int) -> _Observed:
    bound = statistic.removeprefix("difference").removeprefix("_") or "value"
    value = {"value": figure.value, "low": figure.low, "high": figure.high}[bound]
    why_not = "" if value is not None else figure.reason or "it has no interval"
    if value is not None and bound == "value" and figure.n < LEAST_OF_A_VALUE:
        value, why_not = None, f"{figure.n} cases are too few for a value without its interval"
    return _Observed(where=where, value=value, cases=cases, n=figure.n, why_not=why_not)


def _shortfall(criterion: Criterion, one: _Observed) -> float:
    """How far outside the bounds a number lies; below 0 within them. The bounds themselves pass."""
    assert one.value is not None
    short = [] if criterion.minimum is None else [criterion.minimum - one.value]
    if criterion.maximum is not None:
        short.append(one.value - criterion.maximum)
    return max(short)


def _bounds(criterion: Criterion) -> str:
    least = None if criterion.minimum is None else f"at least {criterion.minimum:g}"
    most = None if criterion.maximum is None else f"at most {criterion.maximum:g}"
    return " and ".join(one for one in (least, most) if one)


def _what(criterion: Criterion, where: str) -> str:
    statistics = {
        "value": criterion.metric,
        "low": f"the lower bound of {criterion.metric}",
        "high": f"the upper bound of {criterion.metric}",
        "difference": f"the difference of {criterion.metric}",
        "difference_low": f"the lower bound of the difference of {criterion.metric}",
        "difference_high": f"the upper bound of the difference of {criterion.metric}",
    }
    return statistics[criterion.statistic] + (f" ({where})" if where else "")


def _named(criterion: Criterion, one: _Observed) -> str:
    return f"{_what(criterion, one.where)} is {one.value:.4f} on {one.n} cases"


def _left_out(few: Sequence[_Observed], least_cases: int) -> str:
    names = ", ".join(f"{one.where or 'all cases'} ({one.cases})" for one in few)
    return f"fewer than the {least_cases} cases asked for in {names}"


def _not_judged(criterion: Criterion, reason: str) -> CriterionVerdict:
    return CriterionVerdict(criterion=criterion, observed=None, passed=None, reason=reason)
