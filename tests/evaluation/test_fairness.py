"""Gaps against fairlearn's own figures and its own bootstrap."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fairlearn.metrics import MetricFrame, selection_rate, true_negative_rate, true_positive_rate

from evaluation.cases import ScoredCases
from evaluation.evaluate import evaluate
from evaluation.fairness import _holm, fairness_gaps
from evaluation.figures import FairnessGap
from evaluation.slices import part_of

RATES = {
    "sensitivity_gap": true_positive_rate,
    "specificity_gap": true_negative_rate,
    "selection_rate_gap": selection_rate,
}


def _cases(count: int, seed: int, worse: float, **others: Any) -> ScoredCases:
    """In group C the score of a positive case is lower by ``worse``."""
    rng = np.random.default_rng(seed)
    truth = (rng.random(count) < 0.4).astype(np.int8)
    device = rng.choice(np.array(["A", "B", "C"]), count)
    hidden = rng.normal(size=count) + 2 * truth - worse * truth * (device == "C")
    values: dict[str, Any] = {
        "case_keys": np.arange(count).astype(str),
        "scores": 1 / (1 + np.exp(1 - hidden)),
        "truth": truth,
        "groups": np.arange(count).astype(str),
        "slices": {"device": device},
        "operating_point": 0.5,
    }
    return ScoredCases(**(values | others))


def _gap(cases: ScoredCases, metric: str, **options: Any) -> FairnessGap:
    gaps = evaluate(cases, finding_name="x", **options).fairness
    return next(gap for gap in gaps if gap.metric == metric)


def test_gaps_are_fairlearns_and_so_are_their_intervals_where_no_person_repeats() -> None:
    cases = _cases(900, 1, 1.2)
    frame = MetricFrame(
        metrics=RATES,
        y_true=cases.truth,
        y_pred=(cases.scores >= 0.5).astype(int),
        sensitive_features=cases.slices["device"],
        n_boot=150,
        ci_quantiles=[0.025, 0.975],
        random_state=0,
    )
    lows, highs = frame.difference_ci()
    for gap in evaluate(cases, finding_name="x", draws=1000).fairness:
        found, metric = gap.candidate, gap.metric
        assert found.difference.value == pytest.approx(frame.difference()[metric], abs=1e-12)
        assert found.ratio.value == pytest.approx(frame.ratio()[metric], abs=1e-12)
        # The bound away from no gap is the percentile, as fairlearn's; the other one is further down than its.
        assert found.difference.high == pytest.approx(highs[metric], abs=0.03)
        assert found.difference.low is not None
        assert found.difference.low <= lows[metric] + 0.02
        assert found.ratio.low == pytest.approx(frame.ratio_ci()[0][metric], abs=0.04)
        rates = {one.value: one.rate for one in found.groups}
        assert rates == pytest.approx(frame.by_group[metric].to_dict())
        assert (found.lowest, found.highest) == (min(rates, key=rates.__getitem__), max(rates, key=rates.__getitem__))


def test_a_group_without_a_positive_case_has_no_sensitivity() -> None:
    device = np.array(["A"] * 50 + ["B"] * 50 + ["C"] * 50)
    truth = np.where(device == "C", 0, np.arange(150) % 2)
    found = _gap(
        _cases(150, 0, 0.0, truth=truth, slices={"device": device}), "sensitivity_gap", draws=50, least_cases=5
    )
    assert [one.value for one in found.candidate.groups] == ["A", "B"]


def test_a_small_group_is_shown_and_left_out_of_the_judged_gap() -> None:
    device = np.array(["A"] * 100 + ["B"] * 100 + ["C"] * 4)
    scores = np.array([0.9, 0.1] * 100 + [0.9] * 4)
    cases = _cases(204, 0, 0.0, scores=scores, truth=np.ones(204), slices={"device": device})
    found = _gap(cases, "selection_rate_gap", draws=200).candidate
    assert found.difference.value == 0.0
    assert found.difference_of_all.value == 0.5
    assert [(one.value, one.n, one.small) for one in found.groups] == [
        ("A", 100, False),
        ("B", 100, False),
        ("C", 4, True),
    ]


def test_a_real_gap_is_seen_and_none_is_not_made_up() -> None:
    real = _gap(_cases(900, 2, 1.5), "sensitivity_gap", draws=500).candidate
    assert real.difference.low is not None
    assert real.difference.low > 0.05
    assert real.adjusted_p_value is not None
    assert real.adjusted_p_value < 0.02
    false_alarms, touches_zero = 0, 0
    for seed in range(60):
        cases = _cases(300, seed, 0.0)
        part = part_of(cases, np.arange(300), np.arange(300))
        none = fairness_gaps(part, "device", cases.slices["device"], seed=seed, draws=200, least_cases=30)[1].candidate
        assert none.p_value is not None
        false_alarms += none.p_value < 0.05
        touches_zero += none.difference.low == 0.0
    # Three of 60 are to be expected; nine or more have a chance of 1 in 400.
    assert false_alarms <= 8
    assert touches_zero >= 52


def test_two_pictures_of_a_person_are_no_two_persons() -> None:
    rng = np.random.default_rng(3)
    scores = np.repeat(rng.random(150), 2)
    sex = np.repeat(rng.choice(np.array(["F", "M"]), 150), 2)
    truth = np.repeat((rng.random(150) < 0.5).astype(np.int8), 2)
    shared: dict[str, Any] = {"scores": scores, "truth": truth, "slices": {"sex": sex}}
    apart = _gap(_cases(300, 0, 0.0, **shared), "selection_rate_gap", draws=400).candidate
    pairs = np.repeat(np.arange(150), 2).astype(str)
    together = _gap(_cases(300, 0, 0.0, groups=pairs, **shared), "selection_rate_gap", draws=400).candidate
    assert together.difference.value == apart.difference.value
    assert together.difference.high is not None
    assert apart.difference.high is not None
    assert together.difference.high > apart.difference.high + 0.02
    assert together.p_value is not None
    assert apart.p_value is not None
    assert together.p_value > apart.p_value


def test_change_of_a_gap_against_the_baseline() -> None:
    cases = _cases(900, 4, 1.5)
    fair = _cases(900, 4, 0.0)
    both = _cases(900, 4, 1.5, baseline_scores=fair.scores, baseline_operating_point=0.5)
    assert (both.truth == cases.truth).all()
    gap = _gap(both, "sensitivity_gap", draws=300)
    assert gap.baseline is not None
    assert gap.change is not None
    assert gap.baseline.difference.value is not None
    assert gap.candidate.difference.value is not None
    assert gap.change.value == pytest.approx(gap.candidate.difference.value - gap.baseline.difference.value)
    assert gap.change.low is not None
    assert gap.change.low > 0


def test_holms_adjustment() -> None:
    # Holm 1979: the smallest of m is multiplied by m, the next by m - 1, never falling.
    assert _holm([0.01, None, 0.04, 0.03]) == pytest.approx([0.03, None, 0.06, 0.06])
    assert _holm([0.9, 0.8]) == [1.0, 1.0]
