"""A version meets its card only if every criterion was shown to hold."""

from __future__ import annotations

import json
from datetime import date
from typing import Any

import numpy as np
import pytest

from evaluation.cases import ScoredCases
from evaluation.criteria import CriterionVerdict, judge_criteria, overall_verdict
from evaluation.evaluate import evaluate
from evaluation.figures import Evaluation
from models.card import Acceptance, Criterion


def _evaluation(**others: Any) -> Evaluation:
    """100 positive and 100 negative cases; 90 and 80 of them right; device B is worse, device C has four cases."""
    truth = np.repeat([1, 0], 100)
    right = np.concatenate([np.arange(100) < 90, np.arange(100) < 80])
    scores = np.where(right == (truth == 1), 0.8, 0.2)
    # The wrong ones are the last of each class: device B holds them all.
    device = np.tile(np.array(["A"] * 48 + ["C"] * 2 + ["B"] * 50), 2)
    values: dict[str, Any] = {
        "case_keys": np.arange(200).astype(str),
        "scores": scores,
        "baseline_scores": np.where(truth == 1, 0.7, 0.3),
        "truth": truth,
        "groups": np.arange(200).astype(str),
        "slices": {"device": device},
        "operating_point": 0.5,
        "baseline_operating_point": 0.5,
    }
    return evaluate(ScoredCases(**(values | others)), finding_name="dr", draws=100)


EVALUATION = _evaluation()


def _judge(evaluation: Evaluation = EVALUATION, least_cases: int = 30, **fields: Any) -> CriterionVerdict:
    criterion = Criterion(**({"name": "c", "finding": "dr"} | fields))
    acceptance = Acceptance(
        written_at=date(2026, 1, 1), written_by="a", studies="s", least_cases=least_cases, criteria=(criterion,)
    )
    (verdict,) = judge_criteria({"dr": evaluation}, acceptance)
    return verdict


@pytest.mark.parametrize(
    ("fields", "observed", "passed"),
    [
        ({"metric": "sensitivity", "minimum": 0.9}, 0.9, True),
        ({"metric": "sensitivity", "minimum": 0.91}, 0.9, False),
        ({"metric": "sensitivity", "maximum": 0.9}, 0.9, True),
        ({"metric": "specificity", "minimum": 0.7, "maximum": 0.75}, 0.8, False),
        # Wilson's bounds of 90 / 100.
        ({"metric": "sensitivity", "statistic": "low", "minimum": 0.85}, 0.82563, False),
        ({"metric": "sensitivity", "statistic": "low", "minimum": 0.82}, 0.82563, True),
        ({"metric": "sensitivity", "statistic": "high", "maximum": 0.95}, 0.94477, True),
        ({"metric": "sensitivity", "statistic": "difference", "minimum": -0.05}, -0.1, False),
        ({"metric": "sensitivity", "statistic": "difference", "minimum": -0.1}, -0.1, True),
        ({"metric": "agreement", "minimum": 0.8}, 0.85, True),
        ({"metric": "sensitivity", "slice": "device=A", "minimum": 1.0}, 1.0, True),
        ({"metric": "sensitivity", "slice": "device=B", "minimum": 0.81}, 0.8, False),
        ({"metric": "sensitivity", "slice": "each:device", "minimum": 0.81}, 0.8, False),
        ({"metric": "sensitivity", "slice": "each:device", "minimum": 0.8}, 0.8, True),
        ({"metric": "sensitivity_gap", "slice": "each:device", "maximum": 0.19}, 0.2, False),
        ({"metric": "sensitivity_gap", "maximum": 0.21}, 0.2, True),
        ({"metric": "sensitivity_gap", "statistic": "difference", "maximum": 0.1}, 0.2, False),
    ],
)
def test_judged(fields: dict[str, Any], observed: float, passed: bool) -> None:
    verdict = _judge(**fields)
    assert verdict.observed == pytest.approx(observed, abs=5e-6)
    assert verdict.passed is passed
    assert verdict.reason.startswith("Passed: " if passed else "Failed: ")
    assert fields["metric"] in verdict.reason


def test_a_small_slice_decides_nothing_and_is_named() -> None:
    verdict = _judge(metric="sensitivity", slice="each:device", minimum=0.8)
    assert verdict.passed is True
    assert "device=C (4)" in verdict.reason
    named = _judge(metric="sensitivity", slice="device=C", minimum=0.8)
    assert (named.passed, named.observed) == (None, None)
    assert "fewer than the 30 cases" in named.reason


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"metric": "sensitivity", "slice": "device=Z"}, "no case lies in the slice device=Z"),
        ({"metric": "sensitivity", "slice": "each:site"}, "no case lies in the slice site"),
        ({"metric": "beauty"}, "no figure beauty"),
        ({"metric": "agreement", "statistic": "difference"}, "no figure agreement"),
        ({"metric": "sensitivity", "finding": "other"}, "no evaluation of the finding other"),
        ({"metric": "sensitivity_gap", "slice": "device=A"}, "a gap lies between slices"),
        ({"metric": "auc_roc", "slice": "device=C"}, "fewer than"),
    ],
)
def test_not_judged(fields: dict[str, Any], says: str) -> None:
    verdict = _judge(minimum=0.0, **fields)
    assert (verdict.passed, verdict.observed) == (None, None)
    assert says in verdict.reason


def test_without_truth_or_baseline_nothing_is_shown() -> None:
    untold = _evaluation(truth=np.full(200, -1))
    assert _judge(untold, metric="sensitivity", minimum=0.0).passed is None
    assert _judge(untold, metric="auc_roc", minimum=0.0).passed is None
    assert _judge(untold, metric="agreement", minimum=0.5).passed is True
    alone = _evaluation(baseline_scores=None, baseline_operating_point=None)
    for metric in ("auc_roc", "sensitivity_gap"):
        verdict = _judge(alone, metric=metric, statistic="difference_low", minimum=-1.0)
        assert verdict.passed is None
        assert "there is no baseline" in verdict.reason
    assert "there is no baseline" in _judge(alone, metric="agreement", minimum=0.0).reason


def test_too_few_cases_are_not_judged_however_good() -> None:
    # 100 of the 200 cases are positive: the cases of the slice count, not the figure's own.
    assert _judge(least_cases=200, metric="sensitivity", minimum=0.5).passed is True
    verdict = _judge(least_cases=201, metric="sensitivity", minimum=0.5)
    assert verdict.passed is None
    assert "all cases (200)" in verdict.reason
    untold = _evaluation(truth=np.where(np.arange(200) % 2, -1, np.repeat([1, 0], 100)))
    assert _judge(untold, least_cases=150, metric="sensitivity", minimum=0.5).passed is None
    assert _judge(untold, least_cases=150, metric="agreement", minimum=0.5).passed is True


def test_a_value_on_a_handful_of_cases_decides_nothing_and_its_bound_does() -> None:
    truth = np.array([1] * 5 + [0] * 195)
    rare = _evaluation(truth=truth, scores=np.where(truth == 1, 0.9, 0.1))
    verdict = _judge(rare, metric="sensitivity", minimum=0.9)
    assert verdict.passed is None
    assert "5 cases are too few for a value without its interval" in verdict.reason
    assert _judge(rare, metric="sensitivity", statistic="low", minimum=0.9).passed is False
    assert _judge(rare, metric="specificity", minimum=0.9).passed is True


def test_a_gap_between_groups_that_the_card_calls_small_decides_nothing() -> None:
    verdict = _judge(least_cases=60, metric="selection_rate_gap", maximum=1.0)
    assert verdict.passed is True
    verdict = _judge(least_cases=60, metric="sensitivity_gap", maximum=1.0)
    assert verdict.passed is None
    assert "a group of 48 cases takes part, where the card asks for 60" in verdict.reason


def test_a_figure_without_an_interval_does_not_pass_by_its_value() -> None:
    equal = _evaluation(scores=np.full(200, 0.6))
    verdict = _judge(equal, metric="auc_roc", statistic="low", minimum=0.0)
    assert verdict.passed is None
    assert "all scores are equal" in verdict.reason


def test_a_difference_on_the_bound_passes_whatever_its_last_bit() -> None:
    truth = np.repeat([1, 0], 100)
    worse = np.where(np.arange(200) % 100 < 70, truth, 1 - truth)
    better = np.where(np.arange(200) % 100 < 80, truth, 1 - truth)
    evaluation = _evaluation(scores=worse * 0.8, baseline_scores=better * 0.8)
    verdict = _judge(evaluation, metric="sensitivity", statistic="difference", minimum=-0.1)
    assert verdict.observed is not None
    assert verdict.observed < -0.1
    assert verdict.passed is True


def test_verdict_of_all() -> None:
    met = _judge(metric="sensitivity", minimum=0.5)
    failed = _judge(metric="sensitivity", minimum=0.99)
    unknown = _judge(metric="beauty", minimum=0.5)
    assert overall_verdict([met, met]) == "met"
    assert overall_verdict([met, failed, unknown]) == "not met"
    assert overall_verdict([met, unknown]) == "not judged"
    assert overall_verdict([]) == "not judged"
    tree = json.loads(json.dumps(failed.to_json(), allow_nan=False))
    assert tree["criterion"]["metric"] == "sensitivity"
    assert tree["passed"] is False
