"""Areas against DeLong's own patients, a count of all pairs, and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from evaluation import roc

# DeLong, DeLong, Clarke-Pearson 1988: 49 patients, as printed in the SAS/STAT documentation of PROC LOGISTIC
# ("Comparing Receiver Operating Characteristic Curves"): albumin, total protein, K-G score, and whether surgery helped.
PATIENTS = """
3.0 5.8 10 0  3.2 6.3 5 1  3.9 6.8 3 1  2.8 4.8 6 0  3.2 5.8 3 1  0.9 4.0 5 0  2.5 5.7 8 0  1.6 5.6 5 1
3.8 5.7 5 1  3.7 6.7 6 1  3.2 5.4 4 1  3.8 6.6 6 1  4.1 6.6 5 1  3.6 5.7 5 1  4.3 7.0 4 1  3.6 6.7 4 0
2.3 4.4 6 1  4.2 7.6 4 0  4.0 6.6 6 0  3.5 5.8 6 1  3.8 6.8 7 1  3.0 4.7 8 0  4.5 7.4 5 1  3.7 7.4 5 1
3.1 6.6 6 1  4.1 8.2 6 1  4.3 7.0 5 1  4.3 6.5 4 1  3.2 5.1 5 1  2.6 4.7 6 1  3.3 6.8 6 0  1.7 4.0 7 0
3.7 6.1 5 1  3.3 6.3 7 1  4.2 7.7 6 1  3.5 6.2 5 1  2.9 5.7 9 0  2.1 4.8 7 1  2.8 6.2 8 0  4.0 7.0 7 1
3.3 5.7 6 1  3.7 6.9 5 1  3.6 6.6 5 1
"""


def _patients() -> tuple[dict[str, np.ndarray], np.ndarray]:
    table = np.array(PATIENTS.split(), dtype=np.float64).reshape(-1, 4)
    scores = {"albumin": table[:, 0], "protein": table[:, 1], "k-g": 10 - table[:, 2]}
    return scores, table[:, 3] == 1


def _naive(versions: list[np.ndarray], truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """DeLong's equations by comparing every pair."""
    above, below = [], []
    for scores in versions:
        pairs = scores[truth][:, None] - scores[~truth][None, :]
        wins = (pairs > 0) + 0.5 * (pairs == 0)
        above.append(wins.mean(axis=1))
        below.append(wins.mean(axis=0))
    covariance = np.cov(np.stack(above)) / truth.sum() + np.cov(np.stack(below)) / (~truth).sum()
    return np.array([one.mean() for one in above]), covariance


def test_agrees_with_the_published_example_of_delong() -> None:
    scores, truth = _patients()
    found = roc.areas(list(scores.values()), truth, np.arange(truth.size))
    assert found.covariance is not None
    figures = [roc.area_figure(found, one, n=truth.size, equal=False) for one in range(3)]
    # Area, standard error and Wald limits as SAS prints them.
    errors = np.sqrt(np.diag(found.covariance))
    assert [round(float(one.value or 0), 4) for one in figures] == [0.7366, 0.6478, 0.7258]
    assert np.round(errors, 4).tolist() == [0.0927, 0.1000, 0.1028]
    assert [(round(one.low or 0, 4), round(one.high or 0, 4)) for one in figures] == [
        (0.5549, 0.9182),
        (0.4518, 0.8439),
        (0.5243, 0.9273),
    ]


@pytest.mark.parametrize(
    ("name", "difference", "low", "high", "p_value"),
    [("albumin", 0.0108, -0.1761, 0.1976, 0.9102), ("protein", -0.0780, -0.2830, 0.1271, 0.4561)],
)
def test_agrees_with_the_published_paired_test(
    name: str, difference: float, low: float, high: float, p_value: float
) -> None:
    scores, truth = _patients()
    found = roc.areas([scores[name], scores["k-g"]], truth, np.arange(truth.size))
    first, second = (roc.area_figure(found, one, n=truth.size, equal=False) for one in range(2))
    figure, found_p = roc.area_difference(found, first, second, identical=False)
    assert figure.value == pytest.approx(difference, abs=6e-5)
    assert (figure.low, figure.high) == pytest.approx((low, high), abs=6e-5)
    assert found_p == pytest.approx(p_value, abs=6e-5)


COARSE = hnp.arrays(np.float64, st.integers(6, 40), elements=st.integers(0, 8).map(lambda one: one / 8))


@settings(max_examples=60, deadline=None)
@given(first=COARSE, seed=st.integers(0, 10_000))
def test_equals_a_count_of_all_pairs_with_ties(first: np.ndarray, seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.random(first.size) < 0.5
    truth[:4] = [True, True, False, False]
    second = np.round(first + rng.normal(size=first.size) / 4, 1)
    values, covariance = _naive([first, second], truth)
    found = roc.areas([first, second], truth, np.arange(first.size))
    assert found.covariance is not None
    np.testing.assert_allclose(found.values, values, atol=1e-12)
    np.testing.assert_allclose(found.covariance, covariance, atol=1e-12)
    assert found.values[0] == roc_auc_score(truth, first)


@settings(max_examples=40, deadline=None)
@given(scores=COARSE, seed=st.integers(0, 10_000))
def test_order_alone_counts_and_flipping_both_is_the_same(scores: np.ndarray, seed: int) -> None:
    truth = np.random.default_rng(seed).random(scores.size) < 0.4
    truth[:4] = [True, True, False, False]
    codes = np.arange(scores.size)
    plain = roc.areas([scores], truth, codes)
    stretched = roc.areas([np.exp(3 * scores)], truth, codes)
    flipped = roc.areas([-scores], ~truth, codes)
    reversed_only = roc.areas([-scores], truth, codes)
    assert plain.covariance is not None
    for same in (stretched, flipped):
        np.testing.assert_allclose(same.values, plain.values, atol=1e-12)
        np.testing.assert_allclose(same.covariance, plain.covariance, atol=1e-12)
    np.testing.assert_allclose(reversed_only.values, 1 - plain.values, atol=1e-12)


def test_repeating_every_case_adds_no_knowledge() -> None:
    rng = np.random.default_rng(4)
    truth = rng.random(80) < 0.4
    scores = rng.normal(size=80) + truth
    once = roc.areas([scores], truth, np.arange(80))
    thrice = roc.areas([np.tile(scores, 3)], np.tile(truth, 3), np.tile(np.arange(80), 3))
    assert once.covariance is not None
    assert thrice.covariance is not None
    assert thrice.repeated
    assert thrice.values[0] == pytest.approx(once.values[0])
    assert thrice.covariance[0, 0] == pytest.approx(once.covariance[0, 0], rel=1e-9)


def test_perfect_order_of_few_cases_does_not_claim_certainty() -> None:
    truth = np.array([True] * 5 + [False] * 50)
    scores = np.where(truth, 0.9, 0.1)
    found = roc.areas([scores], truth, np.arange(55))
    figure = roc.area_figure(found, 0, n=55, equal=False)
    assert (figure.value, figure.high) == (1.0, 1.0)
    # 0.025 ** (1 / 5): Clopper-Pearson's bound of 5 hits in 5.
    assert figure.low == pytest.approx(0.4781762498950185)


def test_two_perfect_versions_differ_by_an_interval() -> None:
    truth = np.array([True] * 6 + [False] * 9)
    first, second = np.where(truth, 0.9, 0.1), np.where(truth, 0.8, 0.2)
    found = roc.areas([first, second], truth, np.arange(15))
    figures = [roc.area_figure(found, one, n=15, equal=False) for one in range(2)]
    difference, p_value = roc.area_difference(found, figures[0], figures[1], identical=False)
    assert difference.value == 0.0
    assert difference.low is not None
    assert difference.high is not None
    assert difference.low < -0.3
    assert difference.high > 0.3
    assert p_value is None


def test_curves_keep_their_corners_and_lie_on_the_full_curve() -> None:
    rng = np.random.default_rng(2)
    truth = rng.random(3000) < 0.3
    scores = rng.normal(size=3000) + truth
    curve = roc.roc_points(truth, scores, 61)
    assert len(curve.thresholds) <= 63
    assert (curve.false_positive_rate[0], curve.true_positive_rate[0]) == (0.0, 0.0)
    assert (curve.false_positive_rate[-1], curve.true_positive_rate[-1]) == (1.0, 1.0)
    for x, y, threshold in zip(
        curve.false_positive_rate[1:], curve.true_positive_rate[1:], curve.thresholds[1:], strict=True
    ):
        assert threshold is not None
        assert x == pytest.approx((scores >= threshold)[~truth].mean())
        assert y == pytest.approx((scores >= threshold)[truth].mean())
    # The thinned curve is as good as the whole one.
    area = np.trapz(curve.true_positive_rate, curve.false_positive_rate)
    assert area == pytest.approx(roc_auc_score(truth, scores), abs=2e-3)


def test_precision_recall_points_rise_in_recall_and_lie_on_the_full_curve() -> None:
    rng = np.random.default_rng(3)
    truth = rng.random(2000) < 0.2
    scores = np.round(rng.normal(size=2000) + truth, 2)
    curve = roc.precision_recall_points(truth, scores, 201)
    assert list(curve.recall) == sorted(curve.recall)
    assert (curve.recall[0], curve.recall[-1]) == (0.0, 1.0)
    for recall, precision, threshold in zip(curve.recall[1:], curve.precision[1:], curve.thresholds[1:], strict=True):
        assert threshold is not None
        assert recall == pytest.approx((scores >= threshold)[truth].mean())
        assert precision == pytest.approx(truth[scores >= threshold].mean())
    steps = float(np.sum(np.diff(curve.recall) * np.array(curve.precision[1:])))
    assert steps == pytest.approx(average_precision_score(truth, scores), abs=0.02)


def test_intervals_hold_the_true_area_where_persons_repeat_and_naive_ones_do_not() -> None:
    rng = np.random.default_rng(12)
    persons, pictures = 60, 4
    groups = np.repeat(np.arange(persons), pictures)
    # A person is ill or not, with a level of their own: scores differ by 1 with variance 0.8 + 0.2.
    true_area = float(stats.norm.cdf(1 / np.sqrt(2)))
    held = {"by person": 0, "by picture": 0}
    runs = 300
    for _ in range(runs):
        ill = rng.random(persons) < 0.4
        ill[:2], ill[2:4] = True, False
        truth = ill[groups]
        level = rng.normal(size=persons) * np.sqrt(0.8)
        scores = truth + level[groups] + rng.normal(size=groups.size) * np.sqrt(0.2)
        for name, codes in (("by person", groups), ("by picture", np.arange(groups.size))):
            figure = roc.area_figure(roc.areas([scores], truth, codes), 0, n=truth.size, equal=False)
            assert figure.low is not None
            assert figure.high is not None
            held[name] += figure.low <= true_area <= figure.high
    # 95 % less 3 standard errors of 300 runs, and a little for 24 ill persons being few.
    assert held["by person"] / runs >= 0.90
    assert held["by picture"] / runs < 0.80
