"""Summary numbers, worked out by hand or by scipy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from scipy.ndimage import center_of_mass
from scipy.stats import entropy

from xai.errors import ExplanationError
from xai.summary import EXPLANATION_NAMES, summarise


@dataclass(frozen=True, kw_only=True)
class Box:
    source_rows: int
    source_columns: int
    top: float
    left: float
    height: float
    width: float


WHOLE = Box(source_rows=70, source_columns=70, top=0, left=0, height=70, width=70)
PADDED = Box(source_rows=40, source_columns=80, top=-20, left=0, height=80, width=80)


def test_names_and_order():
    assert tuple(summarise(np.ones((7, 7)), WHOLE)) == EXPLANATION_NAMES


def test_one_hot_cell():
    cam = np.zeros((7, 7), dtype=np.float32)
    cam[2, 5] = 4.0
    assert summarise(cam, WHOLE) == pytest.approx(
        {
            "entropy": 0.0,
            "effective_area_fraction": 1 / 49,
            "centre_row_fraction": 2.5 / 7,
            "centre_column_fraction": 5.5 / 7,
            "border_mass_fraction": 0.0,
            "outside_mass_fraction": 0.0,
            "peak": 4.0,
        },
        abs=1e-9,
    )


def test_even_map_over_a_padded_picture():
    assert summarise(np.full((8, 8), 0.5), PADDED) == pytest.approx(
        {
            "entropy": 1.0,
            "effective_area_fraction": 1.0,
            "centre_row_fraction": 0.5,
            "centre_column_fraction": 0.5,
            "border_mass_fraction": 28 / 64,
            "outside_mass_fraction": 0.5,
            "peak": 0.5,
        }
    )


def test_mass_in_the_padding():
    cam = np.zeros((8, 8))
    cam[0, 3] = 3.0
    cam[4, 3] = 1.0
    assert summarise(cam, PADDED)["outside_mass_fraction"] == pytest.approx(0.75)


def test_random_map_against_scipy():
    cam = np.random.default_rng(3).random((7, 9)).astype(np.float32)
    summary = summarise(cam, WHOLE)
    row, column = center_of_mass(cam.astype(np.float64))
    assert summary["entropy"] == pytest.approx(entropy(cam.ravel(), base=63), rel=1e-6)
    assert summary["centre_row_fraction"] == pytest.approx((row + 0.5) / 7)
    assert summary["centre_column_fraction"] == pytest.approx((column + 0.5) / 9)
    assert summary["peak"] == pytest.approx(float(cam.max()))


def test_no_heat():
    expected = dict.fromkeys(EXPLANATION_NAMES, 0.0) | {"centre_row_fraction": 0.5, "centre_column_fraction": 0.5}
    assert summarise(np.zeros((7, 7)), WHOLE) == expected


def test_refuses_no_cells():
    with pytest.raises(ExplanationError):
        summarise(np.zeros((0, 7)), WHOLE)
