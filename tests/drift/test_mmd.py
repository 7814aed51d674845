"""One contract over both backends; numbers against alibi-detect, the direct formula, and the exact permutation test."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable

import numpy as np
import pytest

from drift.errors import BackendError, WindowError
from drift.mmd import ALIBI_MOST_POINTS, AlibiMmd, BuiltinMmd, MmdTest, gaussian_kernel, make_mmd_test
from drift.reference import Array, WhitenedReference, Whitening, median_bandwidth

COMPONENTS = 12


def _points(seed: int, count: int, *, shift: float = 0.0) -> Array:
    points = np.random.default_rng(seed).standard_normal((count, COMPONENTS))
    points[:, 0] += shift
    return points


def _reference(points: Array) -> WhitenedReference:
    width = points.shape[1]
    whitening = Whitening(
        centre=np.zeros(width), rotation=np.eye(width), location=np.zeros(width), scale=np.ones(width)
    )
    return WhitenedReference(whitening=whitening, points=points, bandwidth=median_bandwidth(points))


def _direct_mmd2(left: Array, right: Array, bandwidth: float) -> float:
    """Gretton 2012, equation 3, as written: two sums over pairs and one over all."""

    def kernel(one: Array, two: Array) -> float:
        return float(np.exp(-((one - two) ** 2).sum() / (2 * bandwidth**2)))

    n, m = len(left), len(right)
    inside_left = sum(kernel(left[i], left[j]) for i in range(n) for j in range(n) if i != j)
    inside_right = sum(kernel(right[i], right[j]) for i in range(m) for j in range(m) if i != j)
    across = sum(kernel(one, two) for one in left for two in right)
    return inside_left / (n * (n - 1)) + inside_right / (m * (m - 1)) - 2 * across / (n * m)


@pytest.fixture(scope="module")
def reference() -> WhitenedReference:
    return _reference(_points(0, 120))


@pytest.fixture(params=["builtin", "alibi"], scope="module")
def make(request: pytest.FixtureRequest) -> Callable[[WhitenedReference], MmdTest]:
    if request.param == "alibi":
        pytest.importorskip("alibi_detect", reason="alibi-detect is not installed", exc_type=ImportError)
    return lambda reference: make_mmd_test(request.param, reference)


Make = Callable[[WhitenedReference], MmdTest]


def test_statistic_is_the_direct_formula(make: Make, reference: WhitenedReference) -> None:
    window = _points(1, 30, shift=0.5)
    score = make(reference).score(window)
    assert abs(score.statistic - _direct_mmd2(reference.points, window, reference.bandwidth)) < 1e-9


def test_the_same_window_gets_the_same_answer(make: Make, reference: WhitenedReference) -> None:
    window = _points(2, 30)
    test = make(reference)
    assert test.score(window) == test.score(window) == make(reference).score(window)


def test_p_value_of_a_plain_shift_is_small_and_never_zero(make: Make, reference: WhitenedReference) -> None:
    score = make(reference).score(_points(3, 30, shift=5.0))
    assert 0 < score.p_value <= 0.001
    assert score.statistic > 20 * score.null_sd


def test_p_values_without_drift_are_spread_evenly(make: Make, reference: WhitenedReference) -> None:
    """Windows split off the reference's own distribution: exact in theory, so any lean is a defect."""
    pool = _points(4, 120 + 8 * 25)
    test = make(_reference(pool[:120]))
    p_values = [test.score(part).p_value for part in np.split(pool[120:], 8)]
    assert 0.25 < np.mean(p_values) < 0.75
    assert min(p_values) > 0.001


@pytest.mark.parametrize(
    "window", [np.zeros((30, COMPONENTS + 1)), np.zeros((1, COMPONENTS)), np.full((30, COMPONENTS), np.nan)]
)
def test_window_that_does_not_fit_is_refused(make: Make, reference: WhitenedReference, window: Array) -> None:
    with pytest.raises(WindowError):
        make(reference).score(window)


def test_global_random_state_is_left_alone(make: Make, reference: WhitenedReference) -> None:
    test = make(reference)
    np.random.seed(7)
    expected = np.random.random()
    np.random.seed(7)
    test.score(_points(5, 30))
    assert np.random.random() == expected


@pytest.mark.parametrize("shift", [0.0, 0.5, 0.8, 1.5])
def test_backends_agree(reference: WhitenedReference, shift: float) -> None:
    pytest.importorskip("alibi_detect", exc_type=ImportError)
    window = _points(6, 50, shift=shift)
    ours, theirs = BuiltinMmd(reference).score(window), AlibiMmd(reference).score(window)
    assert abs(ours.statistic - theirs.statistic) < 1e-6
    spread = np.sqrt(ours.p_value * (1 - ours.p_value) * (1 / 1_000 + 1 / 9_999))
    assert abs(ours.p_value - theirs.p_value) <= 4 * spread + 2 / 1_001
    assert ours.null_sd == theirs.null_sd


def test_bandwidth_is_the_one_alibi_detect_infers(reference: WhitenedReference) -> None:
    cd = pytest.importorskip("alibi_detect.cd", exc_type=ImportError)
    detector = cd.MMDDrift(reference.points, backend="pytorch", device="cpu")
    assert np.isclose(detector._detector.kernel.sigma.item(), reference.bandwidth, rtol=1e-6)


def test_p_value_equals_the_exact_permutation_test() -> None:
    """Eight points by four: all 495 choices are enumerated, with the direct formula."""
    known, window = _points(8, 8), _points(9, 4, shift=1.0)
    reference = _reference(known)
    pooled = np.concatenate([known, window])
    observed = _direct_mmd2(known, window, reference.bandwidth)
    kernel = gaussian_kernel(pooled, pooled, reference.bandwidth)
    extreme = total = 0
    for chosen in itertools.combinations(range(12), 4):
        rest = [row for row in range(12) if row not in chosen]
        inside = kernel[np.ix_(chosen, chosen)].sum() - 4
        outside = kernel[np.ix_(rest, rest)].sum() - 8
        value = outside / (8 * 7) + inside / (4 * 3) - 2 * kernel[np.ix_(rest, chosen)].mean()
        extreme += value >= observed - 1e-12
        total += 1
    exact = extreme / total
    found = BuiltinMmd(reference, permutations=20_000).score(window).p_value
    assert abs(found - exact) < 5 * np.sqrt(exact * (1 - exact) / 20_000)


def test_null_sd_is_that_of_fresh_windows() -> None:
    """The closed form against 600 pairs of fresh samples; of one size, where the pairs across weigh most."""
    count = 100
    bandwidth = _reference(_points(0, count)).bandwidth
    values = []
    for seed in range(600):
        pooled = _points(1_000 + seed, 2 * count)
        kernel = gaussian_kernel(pooled, pooled, bandwidth)
        np.fill_diagonal(kernel, 0)
        inside = kernel[:count, :count].sum() + kernel[count:, count:].sum()
        values.append(inside / (count * (count - 1)) - 2 * kernel[:count, count:].mean())
    found = BuiltinMmd(_reference(_points(0, count)), permutations=10).score(_points(1, count)).null_sd
    assert abs(found / np.std(values) - 1) < 0.07


def test_alibi_gets_a_reference_that_it_can_afford() -> None:
    pytest.importorskip("alibi_detect", exc_type=ImportError)
    assert len(make_mmd_test("alibi", _reference(_points(0, 700))).reference.points) == ALIBI_MOST_POINTS
    assert len(make_mmd_test("builtin", _reference(_points(0, 700))).reference.points) == 700


def test_unknown_backend_is_named() -> None:
    with pytest.raises(BackendError, match="'keops'"):
        make_mmd_test("keops", _reference(_points(0, 70)))  # type: ignore[arg-type]


def test_alibi_that_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "alibi_detect.cd", None)
    with pytest.raises(BackendError, match="not installed"):
        make_mmd_test("alibi", _reference(_points(0, 70)))
