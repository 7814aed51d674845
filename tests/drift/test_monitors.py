from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from scipy.stats import ks_2samp, kstwo

from drift.errors import WindowError
from drift.mmd import BuiltinMmd
from drift.monitors import DriftKind, DriftResult, DriftState, Subject, WindowRule, holm, judge_embeddings, mean_shift
from drift.monitors import summary_shift as judge_summaries
from drift.reference import Array, WhitenedReference, fit_whitening, median_bandwidth

NOW = datetime(2026, 11, 24, 9, 30, tzinfo=UTC)
SUBJECT = Subject(model_name="retinopathy", model_version=2, scope="d41d8cd9")
RULE = WindowRule()
WIDTH = 160
SPECTRUM = np.geomspace(1.0, 0.1, WIDTH)
NAMES = ("entropy", "border_mass_fraction", "peak")


def _embeddings(seed: int, count: int) -> Array:
    return np.random.default_rng(seed).standard_normal((count, WIDTH)) * SPECTRUM


@pytest.fixture(scope="module")
def mmd_test() -> BuiltinMmd:
    whitening, points = fit_whitening(_embeddings(0, 400))
    reference = WhitenedReference(whitening=whitening, points=points, bandwidth=median_bandwidth(points))
    return BuiltinMmd(reference)


def _judge(mmd_test: BuiltinMmd, embeddings: Array) -> DriftResult:
    return judge_embeddings(mmd_test, embeddings, SUBJECT, rule=RULE, now=NOW)


def test_too_few_studies_are_not_judged(mmd_test: BuiltinMmd) -> None:
    result = _judge(mmd_test, _embeddings(1, 7))
    assert (result.state, result.reason, result.n) == (DriftState.NOT_JUDGED, "7 of 25 studies", 7)
    assert result.p_value is result.effect is result.statistic is None
    assert result.computed_at == NOW


def test_no_studies_at_all_are_not_judged(mmd_test: BuiltinMmd) -> None:
    assert _judge(mmd_test, np.empty((0, WIDTH))).reason == "0 of 25 studies"


def test_fresh_studies_show_no_drift(mmd_test: BuiltinMmd) -> None:
    result = _judge(mmd_test, _embeddings(2, 50))
    assert (result.state, result.reason) == (DriftState.NO_DRIFT, "")
    assert result.scope == "d41d8cd9"
    assert result.kind == "embedding"


def test_shift_of_two_sd_in_one_component_is_drift_and_sized_right(mmd_test: BuiltinMmd) -> None:
    move = np.zeros(WIDTH)
    move[0] = 2.0
    result = _judge(mmd_test, _embeddings(3, 50) + move)
    assert result.state is DriftState.DRIFT
    assert result.p_value is not None
    assert result.p_value <= 0.001
    moved, unmoved = mmd_test.reference.whitening.apply(np.stack([move, 0 * move]))
    true_length = np.linalg.norm(moved - unmoved)
    assert 1.8 < true_length < 3
    assert result.effect == pytest.approx(true_length, abs=0.4)
    assert "50 studies" in result.reason


def test_only_the_last_studies_count(mmd_test: BuiltinMmd) -> None:
    shifted = _embeddings(4, 50)
    shifted[:, 0] += 3.0
    fresh = _embeddings(5, 50)
    assert _judge(mmd_test, np.concatenate([shifted, fresh])).state is DriftState.NO_DRIFT
    assert _judge(mmd_test, np.concatenate([fresh, shifted])) == _judge(mmd_test, shifted)


def test_embedding_of_another_model_is_refused(mmd_test: BuiltinMmd) -> None:
    with pytest.raises(WindowError, match="160"):
        _judge(mmd_test, np.zeros((50, 512)))


def test_effect_is_unbiased_by_the_size_of_the_window() -> None:
    """Without the correction 64 components and 25 studies would show 1.7 sd where nothing moved."""
    generator = np.random.default_rng(11)
    known = generator.standard_normal((300, 64))
    still = [mean_shift(known, generator.standard_normal((25, 64))) for _ in range(50)]
    assert np.mean(still) < 0.6
    direction = generator.standard_normal(64)
    direction *= 1.5 / np.linalg.norm(direction)
    moved = [mean_shift(known, generator.standard_normal((25, 64)) + direction) for _ in range(50)]
    assert np.mean(moved) == pytest.approx(1.5, abs=0.15)


@pytest.mark.parametrize(
    ("seen", "last", "due"),
    [(0, None, False), (1, None, True), (8, 7, True), (25, 24, True), (34, 25, False), (35, 25, True), (7, 7, False)],
)
def test_when_a_test_is_due(seen: int, last: int | None, due: bool) -> None:
    assert RULE.is_due(seen=seen, seen_at_last_test=last) is due


@pytest.mark.parametrize("wrong", [{"minimum": 60}, {"stride": 0}, {"threshold_p": 0.0}, {"minimum": 1}])
def test_rule_that_cannot_work_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not a window rule"):
        WindowRule(**wrong)


def _summaries(seed: int, count: int) -> Array:
    return np.random.default_rng(seed).gamma(3.0, 1.0, (count, len(NAMES)))


def _judge_summary(reference: Array, window: Array) -> DriftResult:
    return judge_summaries(reference, NAMES, window, SUBJECT, kind=DriftKind.EXPLANATION, rule=RULE, now=NOW)


def test_one_moved_column_is_named() -> None:
    reference, window = _summaries(0, 300), _summaries(1, 50)
    window[:, 1] += 2.0
    result = _judge_summary(reference, window)
    assert result.state is DriftState.DRIFT
    assert [driver.name for driver in result.drivers] == ["border_mass_fraction"]
    moved = (window[:, 1].mean() - reference[:, 1].mean()) / reference[:, 1].std(ddof=1)
    assert result.drivers[0].shift_in_sd == pytest.approx(moved)
    assert result.reason == f"border mass fraction is higher by {moved:.1f} sd"
    raw = [ks_2samp(reference[:, column], window[:, column]).pvalue for column in range(3)]
    assert result.p_value == pytest.approx(3 * min(raw))
    assert result.kind == "explanation"


def test_still_columns_show_no_drift() -> None:
    result = _judge_summary(_summaries(0, 300), _summaries(2, 50))
    assert (result.state, result.drivers, result.reason) == (DriftState.NO_DRIFT, (), "")


def test_change_of_spread_alone_is_found_and_said() -> None:
    generator = np.random.default_rng(3)
    reference = generator.standard_normal((400, 3))
    window = generator.standard_normal((50, 3))
    window[:, 2] *= 0.05
    window[:, 2] -= window[:, 2].mean() - reference[:, 2].mean()
    result = _judge_summary(reference, window)
    assert result.reason == "peak is spread differently"


def test_studies_without_an_explanation_do_not_count() -> None:
    window = _summaries(4, 50)
    window[:26] = np.nan
    result = _judge_summary(_summaries(0, 300), window)
    assert (result.state, result.reason) == (DriftState.NOT_JUDGED, "24 of 25 studies")


def test_a_constant_column_neither_breaks_nor_alarms() -> None:
    reference, window = _summaries(0, 300), _summaries(5, 50)
    reference[:, 0] = window[:, 0] = 1.0
    assert _judge_summary(reference, window).state is DriftState.NO_DRIFT
    window[:, 0] = 2.0
    result = _judge_summary(reference, window)
    assert result.drivers[0].name == "entropy"
    assert np.isfinite(result.drivers[0].shift_in_sd)


def test_p_value_of_a_column_is_near_the_asymptotic_one() -> None:
    """Against Kolmogorov's one-sample law at the effective size, another formula than the exact two-sample count."""
    reference, window = _summaries(0, 1_000), _summaries(6, 50)
    window[:, 0] *= 1.3
    result = judge_summaries(
        reference[:, :1], NAMES[:1], window[:, :1], SUBJECT, kind=DriftKind.STATISTICS, rule=RULE, now=NOW
    )
    assert result.statistic is not None
    expected = kstwo.sf(result.statistic, round(1_000 * 50 / 1_050))
    assert result.p_value == pytest.approx(expected, rel=0.35)


def test_columns_of_another_reference_are_refused() -> None:
    with pytest.raises(WindowError):
        _judge_summary(_summaries(0, 300), np.zeros((50, 2)))


def test_holm_rejects_what_the_step_down_procedure_rejects() -> None:
    generator = np.random.default_rng(9)
    for _ in range(200):
        p_values = list(generator.random(7) ** 4)
        rejected = set()
        for rank, (p_value, position) in enumerate(sorted(zip(p_values, range(7), strict=True))):
            if p_value > 0.05 / (7 - rank):
                break
            rejected.add(position)
        assert {position for position, value in enumerate(holm(p_values)) if value <= 0.05} == rejected


def test_a_wrong_alarm_on_summaries_is_as_rare_as_stated() -> None:
    generator = np.random.default_rng(10)
    rule = WindowRule(threshold_p=0.05)
    alarms = 0
    for _ in range(200):
        reference, window = generator.standard_normal((200, 7)), generator.standard_normal((50, 7))
        result = judge_summaries(
            reference, tuple("abcdefg"), window, SUBJECT, kind=DriftKind.EXPLANATION, rule=rule, now=NOW
        )
        alarms += result.state is DriftState.DRIFT
    assert alarms <= 20  # 10 expected; 21 or more has probability under 0.001
