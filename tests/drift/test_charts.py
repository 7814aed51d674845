"""The charts against plain loops, tables and alibi-detect; state as bytes; the change point."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from drift.change_point import change_point, find_signal
from drift.charts import (
    CAP_SD,
    CHARTS,
    HISTORY,
    WINDOWS,
    ChartReference,
    ChartState,
    advance,
    begin,
    make_chart_reference,
    mean_shift_now,
    mewma_variance,
    state_from_bytes,
    whiten_study,
)
from drift.errors import ChartStateError, ReferenceFileError, WindowError
from drift.reference import Array, Reference, whiten_reference
from drift.streams import levels_of_streams, run_recursions

NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)
WIDTH = 160
SPECTRUM = np.geomspace(1.0, 0.1, WIDTH)


def _embeddings(seed: int, count: int) -> Array:
    return np.random.default_rng(seed).standard_normal((count, WIDTH)) * SPECTRUM


@pytest.fixture(scope="module")
def reference() -> ChartReference:
    return make_chart_reference(_embeddings(0, 400))


def run(reference: ChartReference, embeddings: Array, state: ChartState | None = None) -> tuple[ChartState, Array]:
    """The state after these studies, a minute apart, and their levels [studies, 7]."""
    state = state or begin(reference)
    levels = []
    for embedding in embeddings:
        at = NOW + timedelta(minutes=state.total)
        state, found = advance(reference, state, whiten_study(reference, embedding), at=at)
        levels.append(found)
    return state, np.array(levels)


def _moved(reference: ChartReference, embeddings: Array, sd: float) -> Array:
    """Shifted by so many sd along the third component."""
    whitening = reference.whitening
    return embeddings + sd * whitening.scale[2] * whitening.rotation[:, 2]


def test_mewma_is_the_plain_one(reference: ChartReference) -> None:
    """Lowry 1992, equations 1 to 3, in a loop with the covariance spelled out and inverted."""
    embeddings = _moved(reference, _embeddings(1, 40), 1.0)
    _, levels = run(reference, embeddings)
    points = reference.whitening.apply(embeddings)
    r = 0.05
    for study in (0, 1, 17, 39):
        z = sum(r * (1 - r) ** (study - i) * points[i] for i in range(study + 1))
        weights = np.array([r * (1 - r) ** (study - i) for i in range(study + 1)])
        covariance = (weights**2).sum() * np.eye(reference.components)
        assert levels[study, 0] == pytest.approx(z @ np.linalg.inv(covariance) @ z, rel=1e-10)


def test_mewma_in_control_is_chi_square() -> None:
    """In one look, of points that are standard normal, T squared has k degrees of freedom at every age."""
    rng = np.random.default_rng(3)
    points = rng.standard_normal((4_000, 60, 8))
    weights = 0.05 * 0.95 ** np.arange(59, -1, -1)
    average = np.einsum("snk,n->sk", points, weights)
    squares = (average**2).sum(axis=1) / mewma_variance(60)
    assert squares.mean() == pytest.approx(8, abs=4 * np.sqrt(16 / 4_000))
    assert squares.var() == pytest.approx(16, rel=0.15)


def test_cusum_is_page_s(reference: ChartReference) -> None:
    embeddings = 1.15 * _embeddings(2, 60)
    _, levels = run(reference, embeddings)
    known = np.log(np.linalg.norm(reference.points, axis=1))
    z = (np.log(np.linalg.norm(reference.whitening.apply(embeddings), axis=1)) - known.mean()) / known.std(ddof=1)
    higher = [max(0.0, max(sum(z[i : n + 1] - 0.5) for i in range(n + 1))) for n in range(60)]
    lower = [max(0.0, max(sum(-z[i : n + 1] - 0.5) for i in range(n + 1))) for n in range(60)]
    assert np.allclose(levels[:, 1], higher, atol=1e-9)
    assert np.allclose(levels[:, 2], lower, atol=1e-9)
    assert levels[-1, 1] > 8


def test_cusum_run_length_is_the_table_s() -> None:
    """Reference value 1/2, height 4, standard normal z: 335.4 studies on one side.

    Montgomery, Introduction to Statistical Quality Control, has 168 for both sides; Siegmund's approximation (1985,
    equation 2.57) gives 338 for one.
    """
    z = np.random.default_rng(4).standard_normal((400, 2_500)).astype(np.float32)
    levels = np.empty((7, 400, 2_500), dtype=np.float32)
    run_recursions(levels, z[:, :, None], z)
    above = levels[1] > 4
    first = np.where(above.any(axis=1), above.argmax(axis=1) + 1, 2_500)
    signals = above.any(axis=1).sum()
    found = first.sum() / signals
    siegmund = (np.exp(2 * 0.5 * (4 + 1.166)) - 2 * 0.5 * (4 + 1.166) - 1) / (2 * 0.5**2)
    assert siegmund == pytest.approx(335.4, rel=0.01)
    assert found == pytest.approx(335.4, rel=4 / np.sqrt(signals))


@pytest.mark.parametrize("studies", [10, 37, 100, 130])
def test_mmd_is_the_direct_formula(reference: ChartReference, studies: int) -> None:
    """Gretton 2012, equation 3, as written, on the last studies; also after the window has slid."""
    embeddings = _moved(reference, _embeddings(5, studies), 2.0)
    _, levels = run(reference, embeddings)
    points = reference.whitening.apply(embeddings)

    def mean_kernel(left: Array, right: Array, *, same: bool) -> float:
        squares = ((left[:, None, :] - right[None, :, :]) ** 2).sum(axis=2)
        kernel = np.exp(-squares / (2 * reference.bandwidth**2))
        if same:
            return float((kernel.sum() - np.trace(kernel)) / (len(left) * (len(left) - 1)))
        return float(kernel.mean())

    for number, window in enumerate(WINDOWS):
        if studies < window:
            assert levels[-1, 3 + number] == -np.inf
            continue
        part = points[-window:]
        direct = mean_kernel(part, part, same=True) + mean_kernel(reference.points, reference.points, same=True)
        direct -= 2 * mean_kernel(part, reference.points, same=False)
        assert levels[-1, 3 + number] == pytest.approx(direct, abs=1e-12)


def test_mmd_is_alibi_detect_s(reference: ChartReference) -> None:
    pytest.importorskip("alibi_detect", reason="alibi-detect is not installed", exc_type=ImportError)
    from drift.mmd import AlibiMmd

    embeddings = _moved(reference, _embeddings(6, 120), 1.5)
    _, levels = run(reference, embeddings)
    points = reference.whitening.apply(embeddings)
    known = replace(
        whiten_reference(_reference_file(_embeddings(0, 400))),
        whitening=reference.whitening,
        points=reference.points,
    )
    assert known.bandwidth == pytest.approx(reference.bandwidth, rel=1e-12)
    for number, window in enumerate(WINDOWS):
        statistic = AlibiMmd(known, permutations=2).score(points[-window:]).statistic
        assert abs(levels[-1, 3 + number] - statistic) < 1e-6


def _reference_file(embeddings: Array) -> Reference:
    empty = np.empty((len(embeddings), 0))
    return Reference(
        embeddings=embeddings,
        scores=empty,
        finding_names=(),
        explanations=empty,
        explanation_names=(),
        statistics=empty,
        statistic_names=(),
        mean_map=np.empty((0, 0)),
    )


def test_fresh_studies_are_centred(reference: ChartReference) -> None:
    """Fitted on what it is compared with, the length would sit at -0.8 sd and the lower side would run away."""
    z = [whiten_study(reference, embedding).z for embedding in _embeddings(7, 3_000)]
    assert np.mean(z) == pytest.approx(0, abs=0.25)
    assert np.std(z) == pytest.approx(1, abs=0.15)


def test_one_odd_study_does_not_alarm(reference: ChartReference) -> None:
    state, _ = run(reference, _embeddings(8, 50))
    _, levels = run(reference, 1_000 * _embeddings(9, 1), state)
    assert levels[0, 1] <= state.higher + CAP_SD - 0.5
    _, usual = run(reference, _embeddings(9, 1), state)
    cap = np.exp(reference.log_length_mean + CAP_SD * reference.log_length_sd)
    shift = 0.05 * cap / np.sqrt(mewma_variance(51))
    assert np.sqrt(levels[0, 0]) <= np.sqrt(usual[0, 0]) + 2 * shift


def test_units_that_never_fire_do_no_harm() -> None:
    rows = np.maximum(_embeddings(10, 400), 0.0)
    rows[:, 40:] = 0.0
    reference = make_chart_reference(rows)
    _, levels = run(reference, rows[:120])
    assert np.isfinite(levels[:, :3]).all()
    dead = rows[0].copy()
    dead[100] = 1.0
    assert np.allclose(whiten_study(reference, dead).whitened, whiten_study(reference, rows[0]).whitened)


def test_state_comes_back_bit_for_bit(reference: ChartReference) -> None:
    """At every study: the restored state is the same bytes, and so is the one after the next study."""
    kept = begin(reference)
    restored = kept
    for number, embedding in enumerate(_embeddings(11, HISTORY + 30)):
        point = whiten_study(reference, embedding)
        at = NOW + timedelta(microseconds=number)
        kept, levels = advance(reference, kept, point, at=at)
        restored, same = advance(reference, state_from_bytes(restored.to_bytes()), point, at=at)
        assert same.tobytes() == levels.tobytes()
    assert restored.to_bytes() == kept.to_bytes()
    assert len(kept.points) == HISTORY


def test_advancing_leaves_the_state_before_alone(reference: ChartReference) -> None:
    state, _ = run(reference, _embeddings(12, 120))
    before = state.to_bytes()
    run(reference, _embeddings(13, 5), state)
    assert state.to_bytes() == before


@pytest.mark.parametrize(
    "damaged", [b"", b"nonsense", b"gwchart1", b"gwchart1\xff\xff\xff\x00[]", b"gwchart1\x02\x00\x00\x00[]"]
)
def test_bytes_that_are_no_state_are_refused(damaged: bytes) -> None:
    with pytest.raises(ChartStateError):
        state_from_bytes(damaged)


def test_a_truncated_state_is_refused(reference: ChartReference) -> None:
    state, _ = run(reference, _embeddings(14, 12))
    stored = state.to_bytes()
    for cut in (1, 8, 8 * reference.components, len(stored) // 2):
        with pytest.raises(ChartStateError):
            state_from_bytes(stored[:-cut])


def test_state_of_another_reference_is_refused(reference: ChartReference) -> None:
    other = make_chart_reference(_embeddings(15, 400))
    point = whiten_study(reference, _embeddings(16, 1)[0])
    with pytest.raises(ChartStateError, match="another reference"):
        advance(reference, begin(other), point, at=NOW)
    with pytest.raises(ChartStateError, match="another reference"):
        advance(other, begin(other), point, at=NOW)


def test_fingerprint_is_the_reference_s() -> None:
    rows = _embeddings(17, 200)
    same = make_chart_reference(rows.copy()).fingerprint
    assert make_chart_reference(rows).fingerprint == same
    changed = rows.copy()
    changed[7, 3] += 1e-9
    assert make_chart_reference(changed).fingerprint != same
    assert make_chart_reference(rows, components=10).fingerprint != same


@pytest.mark.parametrize(
    ("count", "components", "said"),
    [(127, None, "127 embeddings, charts need at least 128"), (200, 40, "too small for 40 components: 100 embeddings")],
)
def test_too_small_a_reference_is_said(count: int, components: int | None, said: str) -> None:
    with pytest.raises(ReferenceFileError, match=said):
        make_chart_reference(_embeddings(18, count), components=components)


@pytest.mark.parametrize("embedding", [np.zeros(WIDTH + 1), np.full(WIDTH, np.nan), np.zeros((1, WIDTH))])
def test_an_embedding_that_does_not_fit_is_refused(reference: ChartReference, embedding: Array) -> None:
    with pytest.raises(WindowError):
        whiten_study(reference, embedding)


def test_streams_have_the_levels_of_single_steps(reference: ChartReference) -> None:
    streams = np.stack([_embeddings(19, 130), 1.1 * _embeddings(20, 130)])
    together = levels_of_streams(reference, streams)
    for number, stream in enumerate(streams):
        _, levels = run(reference, stream)
        known = np.isfinite(levels.T)
        assert (np.isfinite(together[:, number]) == known).all()
        assert np.allclose(together[:3, number], levels.T[:3], rtol=1e-5, atol=1e-4)
        assert np.allclose(together[3:, number][known[3:]], levels.T[3:][known[3:]], atol=1e-6)


@pytest.mark.parametrize("sd", [2.0, 4.0])
def test_change_point_of_a_shift(reference: ChartReference, sd: float) -> None:
    """Forty streams; the error, and how often the interval holds the truth."""
    errors, held = [], 0
    for seed in range(40):
        stream = _embeddings(100 + seed, 80)
        stream[60:] = _moved(reference, stream[60:], sd)
        state, _ = run(reference, stream)
        found = change_point(reference, state)
        errors.append(abs(found.studies_ago - 20))
        held += found.latest <= 20 <= found.earliest
        assert found.began_at == NOW + timedelta(minutes=80 - found.studies_ago)
        assert found.earliest_at <= found.began_at <= found.latest_at
    assert np.median(errors) <= (2 if sd == 2.0 else 0)
    assert held >= 32


def test_change_point_of_a_blur(reference: ChartReference) -> None:
    stream = _embeddings(21, 80)
    stream[65:] *= 0.7
    state, _ = run(reference, stream)
    assert abs(change_point(reference, state).studies_ago - 15) <= 1


def test_a_change_older_than_memory_says_so(reference: ChartReference) -> None:
    state, _ = run(reference, _moved(reference, _embeddings(22, HISTORY + 20), 3.0))
    found = change_point(reference, state)
    assert (found.earliest, found.reaches_back) == (HISTORY, True)


def test_signal_names_the_chart_that_is_farthest_over(reference: ChartReference) -> None:
    state, levels = run(reference, np.concatenate([_embeddings(23, 40), 0.5 * _embeddings(24, 10)]))
    heights = np.full(len(CHARTS), np.inf)
    assert find_signal(reference, state, levels[-1], heights) is None
    heights[2] = levels[-1, 2] / 2
    heights[0] = levels[-1, 0] / 1.5
    signal = find_signal(reference, state, levels[-1], heights)
    assert signal is not None
    assert signal.charts == ("distance, lower", "MEWMA")
    assert signal.studies == 50
    assert signal.change.studies_ago == 10
    assert signal.length_ratio == pytest.approx(0.5, rel=0.1)


def test_effect_is_the_shift(reference: ChartReference) -> None:
    state, levels = run(reference, _moved(reference, _embeddings(25, 100), 3.0))
    signal = find_signal(reference, state, levels[-1], np.full(len(CHARTS), 1e-6))
    assert signal is not None
    assert signal.shift_in_sd == pytest.approx(3.0, abs=0.4)
    assert mean_shift_now(state) == pytest.approx(3.0, abs=0.6)
