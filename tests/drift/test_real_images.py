"""Power and quiet on real fundus photographs, through the shipped model's own preprocessing and graph.

The window's photographs are taken out of the reference first, since a window that is part of its reference looks too
much like it. That every one of them is found there also shows that the bundle's reference was made as the gateway
makes embeddings.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from drift.mmd import BuiltinMmd
from drift.monitors import (
    DriftKind,
    DriftResult,
    DriftState,
    Subject,
    WindowRule,
    judge_embeddings,
    summary_shift,
)
from drift.reference import Array, Reference, load_reference, squared_distances, whiten_reference
from models.card import load_bundle
from models.frame import Frame
from models.preprocess import prepare
from models.session import ModelSession

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "models" / "bundled" / "retinopathy" / "1"
PHOTOGRAPHS = ROOT / "../shared" / "data" / "fundus" / "images"
WINDOW = 50
NOW = datetime(2026, 11, 24, tzinfo=UTC)
SUBJECT = Subject(model_name="retinopathy", model_version=1)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (BUNDLE / "card.yaml").is_file(), reason="the bundle retinopathy 1 is not there"),
    pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="no ../shared/data/fundus/images beside the repository"),
]


def _gamma(picture: Image.Image) -> Image.Image:
    return picture.point([round(255 * (level / 255) ** 1.3) for level in range(256)] * 3)


def _blur(picture: Image.Image) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(1))


def _jpeg_30(picture: Image.Image) -> Image.Image:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=30)
    return Image.open(stream).convert("RGB")


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "none": lambda picture: picture,
    "gamma 1.3": _gamma,
    "blur of 1 pixel": _blur,
    "JPEG quality 30": _jpeg_30,
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Windows:
    reference: Reference
    rest: Array
    """Rows of the reference that are not in the window."""
    test: BuiltinMmd
    embeddings: dict[str, Array]
    statistics: dict[str, Array]


@pytest.fixture(scope="module")
def windows() -> Windows:
    bundle = load_bundle(BUNDLE)
    session = ModelSession(bundle, providers=["CPUExecutionProvider"], threads=1)
    reference = load_reference(bundle.reference_path)
    paths = np.random.default_rng(17).choice(np.array(sorted(PHOTOGRAPHS.glob("*.jpg"))), WINDOW, replace=False)
    embeddings: dict[str, Array] = {}
    statistics: dict[str, Array] = {}
    for name, change in CHANGES.items():
        frames = [Frame.from_rgb(np.asarray(change(Image.open(path).convert("RGB")))) for path in paths]
        inputs = [prepare(frame, bundle.card.pixel_contract) for frame in frames]
        predictions = session.run(np.stack([each.tensor for each in inputs]))
        embeddings[name] = np.stack([prediction.embedding for prediction in predictions]).astype(np.float64)
        statistics[name] = np.array(
            [[each.statistics[column] for column in reference.statistic_names] for each in inputs]
        )
    distances = squared_distances(embeddings["none"], reference.embeddings)
    assert np.sqrt(distances.min(axis=1)).max() < 0.05  # two different photographs are 7 apart
    rest = np.setdiff1d(np.arange(len(reference.embeddings)), distances.argmin(axis=1))
    left = _rows(reference, rest)
    return Windows(
        reference=left,
        rest=rest,
        test=BuiltinMmd(whiten_reference(left)),
        embeddings=embeddings,
        statistics=statistics,
    )


def _rows(reference: Reference, rows: Array) -> Reference:
    return Reference(
        embeddings=reference.embeddings[rows],
        scores=reference.scores[rows],
        finding_names=reference.finding_names,
        explanations=reference.explanations[rows],
        explanation_names=reference.explanation_names,
        statistics=reference.statistics[rows],
        statistic_names=reference.statistic_names,
        mean_map=reference.mean_map,
    )


def _on_embeddings(windows: Windows, change: str) -> DriftResult:
    return judge_embeddings(windows.test, windows.embeddings[change], SUBJECT, rule=WindowRule(), now=NOW)


def _on_statistics(windows: Windows, change: str) -> DriftResult:
    return summary_shift(
        windows.reference.statistics,
        windows.reference.statistic_names,
        windows.statistics[change],
        SUBJECT,
        kind=DriftKind.STATISTICS,
        rule=WindowRule(),
        now=NOW,
    )


@pytest.mark.parametrize("change", ["gamma 1.3", "blur of 1 pixel", "JPEG quality 30"])
def test_change_is_found(windows: Windows, change: str) -> None:
    result = _on_embeddings(windows, change)
    assert result.state is DriftState.DRIFT
    assert result.effect is not None
    assert result.effect > 1.5


def test_fresh_photographs_of_the_same_camera_are_quiet(windows: Windows) -> None:
    for result in (_on_embeddings(windows, "none"), _on_statistics(windows, "none")):
        assert result.state is DriftState.NO_DRIFT
        assert result.p_value is not None
        assert result.p_value > 0.01


@pytest.mark.parametrize(("change", "named"), [("gamma 1.3", "level"), ("blur of 1 pixel", "noise")])
def test_statistics_name_what_changed(windows: Windows, change: str, named: str) -> None:
    drivers = {driver.name: driver.shift_in_sd for driver in _on_statistics(windows, change).drivers}
    assert drivers[named] < 0
