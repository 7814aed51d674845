"""One weighted pass against scikit-learn on the cases written out."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    cohen_kappa_score,
    confusion_matrix,
    roc_auc_score,
)

from evaluation import bootstrap, calibration


def _cases(seed: int, count: int, decimals: int) -> bootstrap.Resampled:
    rng = np.random.default_rng(seed)
    truth = rng.integers(-1, 2, count).astype(np.int8)
    scores = tuple(np.round(np.clip(rng.random(count) * 0.7 + 0.2 * (truth == 1), 0, 1), decimals) for _ in range(2))
    known = truth >= 0
    bins = tuple(
        (
            calibration.binned(truth[known] == 1, one[known], equal_mass=False).index,
            calibration.binned(truth[known] == 1, one[known], equal_mass=True).index,
        )
        for one in scores
    )
    groups = np.unique(rng.integers(0, count // 2, count), return_inverse=True)[1]
    present = tuple(one >= 0.5 for one in scores)
    return bootstrap.Resampled(groups=groups, truth=truth, scores=scores, present=present, bins=bins)


@pytest.mark.parametrize(("seed", "count", "decimals"), [(0, 60, 1), (1, 200, 2), (2, 500, 12)])
def test_a_draw_is_what_scikit_learn_gives_on_the_drawn_cases(seed: int, count: int, decimals: int) -> None:
    cases = _cases(seed, count, decimals)
    groups = int(cases.groups.max()) + 1
    drawn = bootstrap.bootstrap(cases, 5, np.random.default_rng(9))
    weights = np.concatenate(list(bootstrap.group_weights(groups, 5, count, np.random.default_rng(9))))
    assert (weights.sum(axis=1) == groups).all()
    for draw in range(5):
        taken = np.repeat(np.arange(count), weights[draw, cases.groups].astype(int))
        known = taken[cases.truth[taken] >= 0]
        truth = cases.truth[known] == 1
        assert drawn["agreement"][draw, 0] == pytest.approx((cases.present[0] == cases.present[1])[taken].mean())
        assert drawn["kappa"][draw, 0] == pytest.approx(
            cohen_kappa_score(cases.present[0][taken], cases.present[1][taken])
        )
        for version in range(2):
            scores = cases.scores[version][known]
            found = {name: values[draw, min(version, values.shape[1] - 1)] for name, values in drawn.items()}
            assert found["auc_roc"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
            assert found["auc_pr"] == pytest.approx(average_precision_score(truth, scores), abs=1e-12)
            assert found["brier"] == pytest.approx(brier_score_loss(truth, scores), abs=1e-12)
            (tn, fp), (fn, tp) = confusion_matrix(truth, cases.present[version][known])
            assert found["sensitivity"] == pytest.approx(tp / (tp + fn))
            assert found["specificity"] == pytest.approx(tn / (tn + fp))
            assert found["ppv"] == pytest.approx(tp / (tp + fp))
            assert found["npv"] == pytest.approx(tn / (tn + fn))
            assert found["accuracy"] == pytest.approx((tp + tn) / truth.size)
            assert found["selection_rate"] == pytest.approx(cases.present[version][taken].mean())
            assert found["calibration_in_the_large"] == pytest.approx(scores.mean() - truth.mean(), abs=1e-12)
            fractions, means = calibration_curve(truth, scores, n_bins=10)
            edges = np.linspace(0, 1, 11)
            counts = np.bincount(np.searchsorted(edges[1:-1], scores), minlength=10)
            expected = np.abs(fractions - means) @ counts[counts > 0] / truth.size
            assert found["ece"] == pytest.approx(expected, abs=1e-12)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = _cases(3, 90, 2)
    whole = bootstrap.bootstrap(cases, 40, np.random.default_rng(1))
    monkeypatch.setattr(bootstrap, "BLOCK", 200)
    pieces = bootstrap.bootstrap(cases, 40, np.random.default_rng(1))
    for name, values in whole.items():
        assert values.shape[0] == 40
        np.testing.assert_allclose(pieces[name], values, atol=1e-12)


def test_draws_without_a_class_are_left_out_and_said() -> None:
    truth = np.array([1, 1] + [0] * 30, dtype=np.int8)
    scores = np.linspace(1, 0, 32)
    cases = bootstrap.Resampled(
        groups=np.arange(32), truth=truth, scores=(scores,), present=(scores >= 0.5,), bins=(None,)
    )
    drawn = bootstrap.bootstrap(cases, 500, np.random.default_rng(0))
    missing = int(np.isnan(drawn["auc_roc"]).sum())
    # Neither positive is drawn with a chance of (30 / 32) ** 32, about one in eight.
    assert 35 < missing < 95
    figure = bootstrap.percentile(
        0.9, np.where(np.isnan(drawn["auc_roc"][:, 0]), np.nan, np.arange(500)), n=32, method="m"
    )
    assert f"{missing} draws without" in figure.method


def test_an_interval_of_equal_draws_is_none() -> None:
    figure = bootstrap.percentile(1.0, np.ones(100), n=10, method="m")
    assert (figure.value, figure.low, figure.high) == (1.0, None, None)
    assert "every draw gave the same" in figure.reason


def test_draws_are_cut_for_many_cases_alone() -> None:
    assert bootstrap.cut_draws(2000, 1000, 100_000_000) == 2000
    assert bootstrap.cut_draws(2000, 100_000, 100_000_000) == 1000
    assert bootstrap.cut_draws(2000, 10_000_000, 100_000_000) == bootstrap.LEAST_DRAWS
    assert bootstrap.cut_draws(50, 10_000_000, 100_000_000) == 50
