"""The figures on the cards, against independent sources."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score, roc_auc_score


@pytest.fixture(scope="module")
def evaluation() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "scripts/training/evaluation.py"
    spec = importlib.util.spec_from_file_location("training_evaluation", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_area_is_that_of_scikit_learn_ties_included(evaluation: ModuleType) -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        truth = random.random(80) < 0.4
        scores = np.round(random.random(80) + 0.3 * truth, 1)
        assert evaluation.area_under_curve(truth, scores) == pytest.approx(roc_auc_score(truth, scores))


def test_kappa_is_that_of_scikit_learn(evaluation: ModuleType) -> None:
    random = np.random.default_rng(1)
    truth, grades = random.integers(0, 5, (2, 200))
    expected = cohen_kappa_score(truth, grades, weights="quadratic")
    assert evaluation.quadratic_kappa(truth, grades, 5) == pytest.approx(expected)


def test_wilson_interval_of_a_worked_example(evaluation: ModuleType) -> None:
    """81 of 263: 0.2553 to 0.3662 (Newcombe, Statistics in Medicine 17, 1998, table I, method 3)."""
    correct = np.arange(263)[None] < 81
    metric = evaluation.rate_metric("share", "none", correct, np.arange(263), "test")
    assert metric.value == pytest.approx(81 / 263, abs=1e-4)
    assert metric.low == pytest.approx(0.2553, abs=1e-4)
    assert metric.high == pytest.approx(0.3662, abs=1e-4)


def test_operating_point_finds_what_it_promises_and_no_lower_one_is_needed(evaluation: ModuleType) -> None:
    random = np.random.default_rng(2)
    truth = random.random(400) < 0.5
    scores = np.clip(random.normal(0.35 + 0.3 * truth, 0.15, (3, 400)), 0, 1)
    point = evaluation.operating_point(truth, scores, 0.9)
    positives, negatives = scores[:, truth], scores[:, ~truth]
    assert (positives >= point).mean() >= 0.9
    assert (positives >= point + 0.02).mean() < 0.9

    high = evaluation.high_priority_from(truth, scores, 0.97)
    assert (negatives < high).mean() >= 0.97
    assert (negatives < high - 0.02).mean() < 0.97


def test_bootstrap_agrees_with_the_interval_of_a_mean(evaluation: ModuleType) -> None:
    values = np.random.default_rng(3).normal(0, 1, 400)
    low, high = evaluation.interval(lambda drawn: float(values[drawn].mean()), np.arange(400), seed=0)
    reach = 1.96 * values.std(ddof=1) / 20
    assert low == pytest.approx(values.mean() - reach, abs=0.02)
    assert high == pytest.approx(values.mean() + reach, abs=0.02)


def test_bootstrap_draws_persons_whole(evaluation: ModuleType) -> None:
    """100 images of 10 persons that are all alike within a person carry the information of 10."""
    of_person = np.random.default_rng(4).normal(0, 1, 10)
    values, persons = np.repeat(of_person, 10), np.repeat(np.arange(10), 10)
    low, high = evaluation.interval(lambda drawn: float(values[drawn].mean()), persons, seed=0)
    assert high - low == pytest.approx(2 * 1.96 * of_person.std() / np.sqrt(10), rel=0.1)
