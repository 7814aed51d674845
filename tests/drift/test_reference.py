from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.distance import pdist

from drift.errors import ReferenceFileError, WindowError
from drift.reference import fit_whitening, load_reference, median_bandwidth, whiten_reference


def _arrays(count: int = 120, width: int = 40) -> dict[str, Any]:
    generator = np.random.default_rng(1)
    return {
        "embeddings": generator.random((count, width)).astype(np.float16),
        "scores": generator.random((count, 2)).astype(np.float32),
        "finding_names": np.array(["referable", "severe"]),
        "explanations": generator.random((count, 3)).astype(np.float32),
        "explanation_names": np.array(["entropy", "peak", "border_mass_fraction"]),
        "statistics": generator.random((count, 1)).astype(np.float32),
        "statistic_names": np.array(["level"]),
        "mean_map": generator.random((7, 7)).astype(np.float32),
    }


def _write(folder: Path, **changed: Any) -> Path:
    path = folder / "reference.npz"
    np.savez(path, **{name: value for name, value in (_arrays() | changed).items() if value is not None})
    return path


def test_arrays_come_back_with_their_names(tmp_path: Path) -> None:
    reference = load_reference(_write(tmp_path))
    np.testing.assert_array_equal(reference.embeddings, _arrays()["embeddings"].astype(float))
    assert reference.explanation_names == ("entropy", "peak", "border_mass_fraction")
    assert reference.finding_names == ("referable", "severe")
    assert reference.mean_map.shape == (7, 7)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"scores": None}, "no array scores"),
        ({"statistic_names": np.array(["level", "noise"])}, "statistics has shape"),
        ({"embeddings": _arrays(count=119)["embeddings"]}, "expected (119, 2)"),
        ({"embeddings": np.full((120, 4), np.nan, np.float16)}, "not finite"),
        ({"embeddings": np.zeros((120, 4), np.int64)}, "expected floats"),
        ({"mean_map": np.zeros(7, np.float32)}, "mean_map"),
        ({"finding_names": np.array([{"a": 1}, None], dtype=object)}, "reference.npz"),
    ],
)
def test_unfit_file_is_refused(tmp_path: Path, changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ReferenceFileError, match=words.replace("(", r"\(").replace(")", r"\)")):
        load_reference(_write(tmp_path, **changed))


def test_too_small_a_reference_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReferenceFileError, match="at least 64"):
        load_reference(_write(tmp_path, **_arrays(count=63)))


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 cut short"])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "reference.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ReferenceFileError):
        load_reference(path)


def test_split_fit_leaves_fresh_images_at_unit_variance_where_one_fit_does_not() -> None:
    """Pitfall of in-sample whitening: new images look too far out when PCA and scale saw the same images."""
    generator = np.random.default_rng(5)
    spectrum = np.geomspace(1.0, 0.2, 512)
    known = generator.standard_normal((256, 512)) * spectrum
    fresh = generator.standard_normal((10_000, 512)) * spectrum
    whitening, _ = fit_whitening(known)
    split = whitening.apply(fresh).var(axis=0).mean()
    _, singular, axes = np.linalg.svd(known - known.mean(axis=0), full_matrices=False)
    in_sample = ((fresh @ axes[:32].T) / (singular[:32] / np.sqrt(255))).var(axis=0).mean()
    assert abs(split - 1) < 0.05
    assert in_sample < 0.5


def test_second_half_is_exactly_standardised_and_rotation_orthonormal() -> None:
    whitening, points = fit_whitening(np.random.default_rng(2).random((400, 100)))
    assert points.shape == (200, 50)
    np.testing.assert_allclose(points.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(points.std(axis=0, ddof=1), 1, rtol=1e-5)
    np.testing.assert_allclose(whitening.rotation.T @ whitening.rotation, np.eye(50), atol=1e-10)


def test_units_that_never_fire_stay_finite() -> None:
    rows = np.maximum(np.random.default_rng(3).standard_normal((200, 30)), 0)
    rows[:, 10:] = 0.0
    whitening, points = fit_whitening(rows)
    assert points.shape[1] == 10
    assert np.isfinite(whitening.apply(rows + 1e-3)).all()


def test_the_same_reference_gives_the_same_bits(tmp_path: Path) -> None:
    one, two = (whiten_reference(load_reference(_write(tmp_path))) for _ in range(2))
    assert one.bandwidth == two.bandwidth
    assert (one.points == two.points).all()


def test_identical_embeddings_are_refused() -> None:
    with pytest.raises(ReferenceFileError, match="all the same"):
        fit_whitening(np.ones((100, 5)))


def test_bandwidth_is_the_median_distance() -> None:
    points = np.random.default_rng(4).standard_normal((150, 8))
    assert np.isclose(median_bandwidth(points), np.sqrt(np.median(pdist(points, "sqeuclidean")) / 2), rtol=1e-3)


@pytest.mark.parametrize("window", [np.zeros((3, 39)), np.zeros(40), np.full((3, 40), np.inf)])
def test_window_that_does_not_fit_is_refused(window: np.ndarray[Any, Any]) -> None:
    whitening, _ = fit_whitening(np.random.default_rng(0).random((100, 40)))
    with pytest.raises(WindowError):
        whitening.apply(window)


def test_a_single_array_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "reference.npz"
    with path.open("wb") as stream:
        np.save(stream, np.zeros((100, 4)))
    with pytest.raises(ReferenceFileError, match="expected an archive"):
        load_reference(path)


def test_thinning_keeps_whitening_and_bandwidth(tmp_path: Path) -> None:
    full = whiten_reference(load_reference(_write(tmp_path)))
    thin = full.thinned(20)
    assert thin.points.shape == (20, full.points.shape[1])
    assert thin.bandwidth == full.bandwidth
    assert full.thinned(1_000) is full
