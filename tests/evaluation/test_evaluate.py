"""Figures of whole evaluations: against scikit-learn, where cases are lacking, and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics
from sklearn.calibration import calibration_curve

from evaluation.cases import ScoredCases
from evaluation.errors import EvaluationError
from evaluation.evaluate import evaluate
from evaluation.figures import Figure


def _cases(count: int = 400, seed: int = 0, *, unknown: float = 0.1, per_group: int = 1, **others: Any) -> ScoredCases:
    rng = np.random.default_rng(seed)
    truth = (rng.random(count) < 0.3).astype(np.int8)
    hidden = rng.normal(size=count) + 1.6 * truth
    values: dict[str, Any] = {
        "case_keys": np.array([f"case-{one}" for one in range(count)]),
        "scores": np.round(1 / (1 + np.exp(1 - hidden)), 2),
        "baseline_scores": np.round(1 / (1 + np.exp(1 - hidden - rng.normal(size=count))), 2),
        "truth": np.where(rng.random(count) < unknown, -1, truth),
        "groups": np.array([f"person-{one // per_group}" for one in range(count)]),
        "slices": {
            "device": rng.choice(np.array(["A", "B", "C", ""]), count),
            "laterality": np.array(["L", "R"])[np.arange(count) % 2],
        },
        "operating_point": 0.5,
        "baseline_operating_point": 0.45,
    }
    return ScoredCases(**(values | others))


def _figures(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        if {"value", "low", "high", "n", "method", "reason"} <= tree.keys():
            yield tree
        for one in tree.values():
            yield from _figures(one)
    elif isinstance(tree, list):
        for one in tree:
            yield from _figures(one)


@pytest.mark.parametrize("which", ["", "device=B"])
def test_values_are_scikit_learns(which: str) -> None:
    cases = _cases()
    evaluation = evaluate(cases, finding_name="x", draws=50)
    judged = next(one for one in (evaluation.overall, *evaluation.slices) if one.name == which)
    chosen = np.ones(cases.count, dtype=bool) if not which else cases.slices["device"] == "B"
    known = chosen & (cases.truth >= 0)
    truth = cases.truth[known]
    assert judged.baseline is not None
    assert cases.baseline_scores is not None
    for version, scores, point in (
        (judged.candidate, cases.scores[known], 0.5),
        (judged.baseline, cases.baseline_scores[known], 0.45),
    ):
        called = (scores >= point).astype(int)
        fractions, means = calibration_curve(truth, scores, n_bins=10, strategy="uniform")
        counts = np.histogram(scores, np.nextafter(np.linspace(0, 1, 11), 2))[0]
        counts[0] += int((scores == 0).sum())
        expected = {
            "auc_roc": metrics.roc_auc_score(truth, scores),
            "auc_roc_bootstrap": metrics.roc_auc_score(truth, scores),
            "auc_pr": metrics.average_precision_score(truth, scores),
            "sensitivity": metrics.recall_score(truth, called),
            "specificity": metrics.recall_score(truth, called, pos_label=0),
            "ppv": metrics.precision_score(truth, called),
            "npv": metrics.precision_score(truth, called, pos_label=0),
            "accuracy": metrics.accuracy_score(truth, called),
            "brier": metrics.brier_score_loss(truth, scores),
            "ece": np.abs(fractions - means) @ counts[counts > 0] / counts.sum(),
        }
        for name, value in expected.items():
            figure = version.figures[name]
            assert figure.value == pytest.approx(value, abs=1e-12), name
            assert figure.low is not None, name
            assert figure.high is not None, name
            assert figure.low <= value + 1e-12, name
            assert figure.high >= value - 1e-12, name
        parts = version.brier_parts
        assert parts is not None
        whole = parts.reliability - parts.resolution + parts.uncertainty + parts.within_bin
        assert whole == pytest.approx(expected["brier"], abs=1e-12)
        assert sum(one.n for one in version.reliability_equal_mass) == truth.size
        histogram = version.histogram
        assert sum(histogram.positive + histogram.negative + histogram.unknown) == chosen.sum()
    assert judged.paired is not None
    mine, theirs = cases.scores[chosen] >= 0.5, cases.baseline_scores[chosen] >= 0.45
    assert judged.paired.figures["agreement"].value == pytest.approx((mine == theirs).mean())
    assert judged.paired.figures["kappa"].value == pytest.approx(metrics.cohen_kappa_score(mine, theirs))
    assert judged.paired.changed_to_present == int((mine & ~theirs).sum())
    change = cases.scores[chosen] - cases.baseline_scores[chosen]
    assert judged.paired.score_differences.bias.value == pytest.approx(change.mean())
    assert judged.paired.score_differences.upper_limit.value == pytest.approx(
        change.mean() + 1.959963984540054 * change.std(ddof=1)
    )


def test_lists_every_case_that_changes_side() -> None:
    cases = _cases(120)
    assert cases.baseline_scores is not None
    changed = evaluate(cases, finding_name="x", draws=20).changed
    expected = {
        str(key)
        for key, mine, theirs in zip(cases.case_keys, cases.scores, cases.baseline_scores, strict=True)
        if (mine >= 0.5) != (theirs >= 0.45)
    }
    assert {one.case_key for one in changed} == expected
    moves = [abs(one.score - one.baseline_score) for one in changed]
    assert moves == sorted(moves, reverse=True)


def test_a_score_at_the_operating_point_is_present() -> None:
    cases = _cases(4, scores=np.array([0.5, 0.49, 0.5, 0.1]), truth=np.array([1, 1, 0, 0]), slices={})
    confusion = evaluate(cases, finding_name="x", draws=20).overall.candidate.confusion
    assert confusion is not None
    assert (confusion.true_positives, confusion.false_negatives) == (1, 1)
    assert (confusion.false_positives, confusion.true_negatives) == (1, 1)


def test_small_and_unknown_slices_are_shown() -> None:
    cases = _cases(200, slices={"sex": np.array(["F"] * 150 + ["M"] * 10 + [""] * 40)})
    evaluation = evaluate(cases, finding_name="x", draws=50, least_cases=30)
    assert [(one.name, one.cases, one.small) for one in evaluation.slices] == [
        ("sex=F", 150, False),
        ("sex=M", 10, True),
        ("sex=", 40, False),
    ]
    assert any("1 of 3 slices are small" in note for note in evaluation.notes)
    gap = next(one for one in evaluation.fairness if one.metric == "selection_rate_gap")
    assert [(one.value, one.small) for one in gap.candidate.groups] == [("F", False), ("M", True)]
    assert gap.candidate.difference.value is None
    assert gap.candidate.difference_of_all.value is not None


DEGENERATE: dict[str, dict[str, Any]] = {
    "one case": {"count": 1},
    "two cases": {"count": 2, "truth": np.array([1, 0])},
    "no truth": {"truth": np.full(40, -1)},
    "all positive": {"truth": np.ones(40)},
    "all negative": {"truth": np.zeros(40)},
    "one positive": {"truth": np.arange(40) == 0},
    "equal scores": {"scores": np.full(40, 0.5), "baseline_scores": np.full(40, 0.5)},
    "all called": {"scores": np.full(40, 1.0), "baseline_scores": np.full(40, 1.0)},
    "none called": {"scores": np.zeros(40), "baseline_scores": np.zeros(40)},
    "perfect": {"scores": np.arange(40) / 40, "truth": np.arange(40) >= 20},
    "no probabilities": {"scores": np.linspace(-5, 5, 40)},
    "one group": {"groups": np.full(40, "person")},
    "no baseline": {"baseline_scores": None, "baseline_operating_point": None},
    "no slice known": {"slices": {"sex": np.full(40, "")}},
    "a slice a case": {"slices": {"device": np.arange(40).astype(str)}},
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_lacking_cases_give_reasons_and_no_nan(name: str) -> None:
    given_values = dict(DEGENERATE[name])
    count = given_values.pop("count", 40)
    cases = _cases(count, **given_values)
    evaluation = evaluate(cases, finding_name="x", draws=40)
    tree = json.loads(json.dumps(evaluation.to_json(), allow_nan=False))
    figures = list(_figures(tree))
    assert len(figures) > 10
    for figure in figures:
        if figure["value"] is None or figure["low"] is None:
            assert figure["reason"], figure
        else:
            assert figure["low"] <= figure["value"] <= figure["high"], figure


def test_degenerate_values() -> None:
    equal = evaluate(_cases(40, **DEGENERATE["equal scores"]), finding_name="x", draws=40).overall
    assert equal.candidate.figures["auc_roc"].value == 0.5
    assert equal.candidate.figures["auc_roc"].low is None
    one_class = evaluate(_cases(40, truth=np.ones(40)), finding_name="x", draws=40).overall
    assert one_class.candidate.figures["auc_roc"].value is None
    assert one_class.candidate.figures["auc_pr"].value is None
    assert one_class.candidate.figures["specificity"].reason == "no case is negative"
    assert one_class.candidate.figures["sensitivity"].value is not None
    untold = evaluate(_cases(40, truth=np.full(40, -1)), finding_name="x", draws=40).overall
    assert untold.paired is not None
    assert untold.paired.figures["agreement"].value is not None
    assert untold.candidate.figures["brier"].value is None


def test_the_same_scores_differ_by_nothing() -> None:
    cases = _cases(100)
    same = _cases(100, baseline_scores=cases.scores, baseline_operating_point=0.5)
    paired = evaluate(same, finding_name="x", draws=40).overall.paired
    assert paired is not None
    assert paired.auc_roc_p_value == 1.0
    assert {name: one.value for name, one in paired.differences.items() if one.value != 0} == {}
    assert (paired.differences["auc_roc"].low, paired.differences["auc_roc"].high) == (0.0, 0.0)
    assert paired.mcnemar["sensitivity"].p_value == 1.0


def test_same_seed_same_figures_and_one_slice_more_changes_no_other() -> None:
    cases = _cases(150)
    first = evaluate(cases, finding_name="x", draws=60, seed=3)
    assert evaluate(cases, finding_name="x", draws=60, seed=3).to_json() == first.to_json()
    fewer = evaluate(_cases(150, slices={"device": cases.slices["device"]}), finding_name="x", draws=60, seed=3)
    assert fewer.slice("device", "A") == first.slice("device", "A")
    other = evaluate(cases, finding_name="x", draws=60, seed=4)
    assert other.overall.candidate.figures["auc_pr"].low != first.overall.candidate.figures["auc_pr"].low


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000))
def test_monotone_change_of_scores_moves_no_ranking_and_no_decision(seed: int) -> None:
    cases = _cases(60, seed, slices={})
    squared = _cases(60, seed, slices={}, scores=cases.scores**2, operating_point=0.25)
    plain = evaluate(cases, finding_name="x", draws=30).overall.candidate.figures
    bent = evaluate(squared, finding_name="x", draws=30).overall.candidate.figures
    for name in ("auc_roc", "auc_pr", "sensitivity", "specificity", "ppv", "npv", "auc_roc_bootstrap"):
        assert plain[name] == bent[name]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000))
def test_swapping_the_classes_swaps_the_figures(seed: int) -> None:
    cases = _cases(60, seed, slices={}, unknown=0.0, operating_point=0.505)
    turned = _cases(60, seed, slices={}, scores=1 - cases.scores, truth=1 - cases.truth, operating_point=0.495)
    plain = evaluate(cases, finding_name="x", draws=30).overall.candidate.figures
    swapped = evaluate(turned, finding_name="x", draws=30).overall.candidate.figures
    for name, other in (("sensitivity", "specificity"), ("ppv", "npv"), ("auc_roc", "auc_roc"), ("brier", "brier")):
        first, second = plain[name].value, swapped[other].value
        assert first == second or first == pytest.approx(second, abs=1e-12), name


def test_person_with_two_eyes_widens_the_interval() -> None:
    rng = np.random.default_rng(5)
    own = rng.random(100)
    truth = np.repeat((rng.random(100) < own).astype(np.int8), 2)
    scores = np.repeat(own, 2)
    alone = {"slices": {}, "unknown": 0.0, "scores": scores, "truth": truth}
    apart = evaluate(_cases(200, **alone), finding_name="x", draws=300).overall.candidate.figures
    together = evaluate(_cases(200, per_group=2, **alone), finding_name="x", draws=300).overall.candidate.figures
    for name in ("auc_roc", "auc_roc_bootstrap", "auc_pr", "brier", "sensitivity", "specificity"):
        wide, narrow = together[name], apart[name]
        assert wide.value == narrow.value
        # Two equal eyes are one: the interval is wider by about the root of 2.
        assert _width(wide) / _width(narrow) == pytest.approx(math.sqrt(2), rel=0.25), name


def _width(figure: Figure) -> float:
    assert figure.low is not None
    assert figure.high is not None
    return figure.high - figure.low


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"scores": np.array([0.1, math.nan, 0.3])}, "1 of the scores are not finite"),
        ({"baseline_scores": np.array([0.1, math.inf, 0.3])}, "1 of the baseline scores are not finite"),
        ({"scores": np.zeros(2)}, "2 scores for 3 cases"),
        ({"truth": np.array([0, 1, 2])}, "neither 1, 0 nor -1"),
        ({"truth": np.array([0, 1, math.nan])}, "neither 1, 0 nor -1"),
        ({"case_keys": np.array(["a", "a", "b"])}, "same key"),
        ({"case_keys": np.array([], dtype=str)}, "no case"),
        ({"baseline_operating_point": None}, "come together"),
        ({"operating_point": math.nan}, "not a finite number"),
        ({"slices": {"sex": np.array(["F"])}}, "1 slice sex for 3 cases"),
        ({"scores": np.zeros((3, 1))}, "2 axes"),
    ],
)
def test_refuses_what_is_no_table_of_cases(changed: dict[str, Any], says: str) -> None:
    values = {"slices": {}, "unknown": 0.0} | changed
    with pytest.raises(EvaluationError, match=says):
        _cases(3, **values)
