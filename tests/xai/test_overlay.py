"""Heat in the right place of the source picture, and a picture left alone where it is cold."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import pytest

from xai.colour_map import COLOUR_MAP
from xai.errors import ExplanationError
from xai.overlay import blend, to_source_grid


@dataclass(frozen=True, kw_only=True)
class Box:
    """What models.preprocess.Grid has."""

    source_rows: int
    source_columns: int
    top: float
    left: float
    height: float
    width: float


BOXES = {
    "cropped": Box(source_rows=600, source_columns=900, top=40, left=150, height=520, width=520),
    "padded above and below": Box(source_rows=400, source_columns=800, top=-200, left=0, height=800, width=800),
    "padded left and right": Box(source_rows=900, source_columns=500, top=0, left=-200, height=900, width=900),
    "cropped and padded": Box(source_rows=700, source_columns=1000, top=-60.5, left=120.25, height=820, width=820),
}


@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES)
@pytest.mark.parametrize("reduction", [1, 2.5])
@pytest.mark.parametrize("cell", [(2, 2), (3, 3), (4, 4), (3, 4)])
def test_a_hot_cell_lands_where_the_model_saw_it(box, reduction, cell):
    cells = 7
    cam = np.zeros((cells, cells), dtype=np.float32)
    cam[cell] = 3.0
    rows, columns = round(box.source_rows / reduction), round(box.source_columns / reduction)

    heat = to_source_grid(cam, box, rows, columns)

    assert heat.shape == (rows, columns)
    assert heat.dtype == np.float32
    # The cell's centre, in source pixels by hand, and a tent of one cell to each side.
    centre_row = box.top + (cell[0] + 0.5) * box.height / cells
    centre_column = box.left + (cell[1] + 0.5) * box.width / cells
    scale_row, scale_column = rows / box.source_rows, columns / box.source_columns
    peak_row, peak_column = np.unravel_index(heat.argmax(), heat.shape)
    assert (peak_row + 0.5) / scale_row == pytest.approx(centre_row, abs=1.5 / scale_row)
    assert (peak_column + 0.5) / scale_column == pytest.approx(centre_column, abs=1.5 / scale_column)
    assert heat.max() == pytest.approx(1.0, abs=0.06)
    hot_rows, hot_columns = np.nonzero(heat)
    reach_row, reach_column = box.height / cells + 1 / scale_row, box.width / cells + 1 / scale_column
    assert np.abs((hot_rows + 0.5) / scale_row - centre_row).max() <= reach_row
    assert np.abs((hot_columns + 0.5) / scale_column - centre_column).max() <= reach_column


def test_equals_torch_where_the_box_is_the_picture():
    torch = pytest.importorskip("torch")
    cam = np.random.default_rng(0).random((7, 10)).astype(np.float32)
    box = Box(source_rows=350, source_columns=640, top=0, left=0, height=350, width=640)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(cam / cam.max())[None, None], size=(350, 640), mode="bilinear", align_corners=False
    )[0, 0].numpy()
    np.testing.assert_allclose(to_source_grid(cam, box, 350, 640), expected, atol=1e-5)


def test_no_heat_outside_the_box():
    box = BOXES["cropped"]
    heat = to_source_grid(np.ones((7, 7), dtype=np.float32), box, 600, 900)
    expected = np.zeros((600, 900), dtype=np.float32)
    expected[40:560, 150:670] = 1
    np.testing.assert_allclose(heat, expected, atol=1e-6)


def test_no_heat_at_all():
    heat = to_source_grid(np.zeros((7, 7), dtype=np.float32), BOXES["cropped"], 60, 90)
    assert not heat.any()


def test_one_cell():
    box = Box(source_rows=10, source_columns=10, top=0, left=0, height=10, width=10)
    np.testing.assert_array_equal(to_source_grid(np.full((1, 1), 0.3), box, 10, 10), np.ones((10, 10)))


def test_is_quick():
    box = Box(source_rows=2848, source_columns=4288, top=-300, left=400, height=3448, width=3448)
    cam = np.random.default_rng(0).random((10, 10)).astype(np.float32)
    elapsed_ms = []
    for _ in range(7):
        start = time.perf_counter()
        to_source_grid(cam, box, 680, 1024)
        elapsed_ms.append((time.perf_counter() - start) * 1e3)
    assert min(elapsed_ms) < 5


def test_refuses_what_has_no_area():
    box = Box(source_rows=10, source_columns=10, top=0, left=0, height=0, width=10)
    with pytest.raises(ExplanationError):
        to_source_grid(np.ones((2, 2)), box, 10, 10)
    with pytest.raises(ExplanationError):
        to_source_grid(np.ones(4), BOXES["cropped"], 10, 10)
    with pytest.raises(ExplanationError):
        blend(np.zeros((4, 5, 3), dtype=np.uint8), np.zeros((5, 4)))


def test_cold_stays_and_hot_is_the_maps_colour():
    picture = np.random.default_rng(1).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    heat = np.zeros((30, 40), dtype=np.float32)
    heat[10:20, 10:20] = 1
    mixed = blend(picture, heat, alpha=0.45)
    cold = heat == 0
    np.testing.assert_array_equal(mixed[cold], picture[cold])
    expected = 0.55 * picture[~cold].astype(float) + 0.45 * COLOUR_MAP[255].astype(float)
    np.testing.assert_allclose(mixed[~cold], expected, atol=1.5)


def test_cover_grows_with_heat():
    black = np.zeros((1, 256, 3), dtype=np.uint8)
    ramp = np.linspace(0, 1, 256, dtype=np.float32)[np.newaxis]
    brightness = blend(black, ramp, alpha=1.0).sum(axis=2).astype(int)[0]
    assert (np.diff(brightness) >= -2).all()
    assert brightness[0] == 0
    np.testing.assert_array_equal(blend(black, ramp, alpha=0.0), black)


def test_the_map_rises_evenly_in_lightness_for_every_colour_vision():
    """CIE lightness from the sRGB definition, not from our own code."""
    linear = (COLOUR_MAP / 255.0).astype(np.float64)
    linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
    luminance = linear @ np.array([0.2126, 0.7152, 0.0722])
    lightness = np.where(luminance > 216 / 24389, 116 * np.cbrt(luminance) - 16, luminance * 24389 / 27)
    steps = np.diff(lightness)
    assert COLOUR_MAP.shape == (256, 3)
    assert steps.mean() > 0.25
    smooth = np.convolve(steps, np.ones(16) / 16, mode="valid")
    assert smooth.min() > 0.7 * smooth.mean()
    assert smooth.max() < 1.3 * smooth.mean()
