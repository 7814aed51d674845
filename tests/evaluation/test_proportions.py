"""Intervals of proportions against scipy, published tables and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from evaluation.proportions import interval, mcnemar, paired_difference, proportion


@pytest.mark.parametrize(
    ("hits", "size"), [(0, 12), (3, 12), (12, 12), (39, 39), (0, 40), (17, 40), (40, 40), (880, 900)]
)
def test_interval_is_scipys(hits: int, size: int) -> None:
    method = "wilson" if size >= 40 else "exact"
    expected = stats.binomtest(hits, size).proportion_ci(0.95, method=method)
    assert interval(hits / size, size) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_interval_of_newcombes_table() -> None:
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I: Wilson 81/263, exact 15/148.
    assert interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    low, high = interval(1 / 29, 29)
    assert (low, high) == pytest.approx((0.0009, 0.1776), abs=5e-5)


# Newcombe 1998 (paired), table II, method 10: counts e, f, g, h of the four cells and the limits.
@pytest.mark.parametrize(
    ("cells", "low", "high"),
    [((36, 12, 2, 0), 0.0569, 0.3404), ((0, 12, 2, 36), 0.0569, 0.3404), ((54, 0, 0, 0), -0.0664, 0.0664)],
)
def test_paired_difference_of_newcombes_table(cells: tuple[int, int, int, int], low: float, high: float) -> None:
    both, first, second, neither = cells
    candidate = np.repeat([True, True, False, False], cells)
    baseline = np.repeat([True, False, True, False], cells)
    figure = paired_difference(candidate, baseline, np.arange(sum(cells)), nothing="")
    assert figure.value == pytest.approx((first - second) / (both + first + second + neither))
    assert (figure.low, figure.high) == pytest.approx((low, high), abs=6e-5)


def test_repeating_every_case_adds_no_knowledge() -> None:
    rng = np.random.default_rng(0)
    hits = rng.random(400) < 0.8
    codes = np.arange(400)
    once = proportion(hits, codes, nothing="")
    twice = proportion(np.tile(hits, 2), np.tile(codes, 2), nothing="")
    assert twice.value == once.value
    assert (twice.low, twice.high) == pytest.approx((once.low, once.high), abs=2e-3)
    assert "groups repeat" in twice.method
    other = rng.random(400) < 0.7
    first = paired_difference(hits, other, codes, nothing="")
    second = paired_difference(np.tile(hits, 2), np.tile(other, 2), np.tile(codes, 2), nothing="")
    assert (second.low, second.high) == pytest.approx((first.low, first.high), abs=2e-3)


def test_all_hits_of_few_persons_is_no_certainty() -> None:
    figure = proportion(np.ones(100, dtype=bool), np.repeat(np.arange(5), 20), nothing="")
    assert figure.low == pytest.approx(stats.binomtest(5, 5).proportion_ci(0.95).low)
    assert figure.n == 100


def test_no_case_no_figure() -> None:
    figure = proportion(np.zeros(0, dtype=bool), np.zeros(0, dtype=np.intp), nothing="no case is positive")
    assert (figure.value, figure.low, figure.n, figure.reason) == (None, None, 0, "no case is positive")


def test_mcnemar_of_a_published_table() -> None:
    # Agresti, "Categorical data analysis", approval of the prime minister: 150 went one way, 86 the other.
    candidate = np.repeat([True, True, False, False], [794, 150, 86, 570])
    baseline = np.repeat([True, False, True, False], [794, 150, 86, 570])
    found = mcnemar(candidate, baseline, np.arange(1600))
    assert found is not None
    assert (found.candidate_only_right, found.baseline_only_right) == (150, 86)
    assert found.p_value == pytest.approx(2 * stats.binom.cdf(86, 236, 0.5), rel=1e-9)
    assert found.p_value_of_groups is None


def test_mcnemar_counts_a_person_once() -> None:
    # One person with six pictures, all won, is one win.
    candidate, baseline = np.ones(8, dtype=bool), np.array([False] * 6 + [True, False])
    found = mcnemar(candidate, baseline, np.array([0] * 6 + [1, 2]))
    assert found is not None
    assert found.p_value == pytest.approx(2 * 0.5**7)
    assert found.p_value_of_groups == pytest.approx(0.5)
    same = mcnemar(candidate, candidate, np.arange(8))
    assert same is not None
    assert same.p_value == 1.0


@pytest.mark.parametrize(("share", "persons", "pictures"), [(0.9, 60, 1), (0.9, 60, 4), (0.7, 25, 3)])
def test_intervals_hold_the_true_proportion(share: float, persons: int, pictures: int) -> None:
    rng = np.random.default_rng(7)
    groups = np.repeat(np.arange(persons), pictures)
    # Pictures of a person are alike: each takes the person's own outcome half of the time.
    held = 0
    runs = 400
    for _ in range(runs):
        own = rng.random(persons) < share
        hits = np.where(rng.random(groups.size) < 0.5, own[groups], rng.random(groups.size) < share)
        figure = proportion(hits, groups, nothing="")
        assert figure.low is not None
        assert figure.high is not None
        held += figure.low <= share <= figure.high
    # 95 % +- 3 standard errors of 400 runs; too wide is allowed, too narrow is not.
    assert held / runs >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / runs)
