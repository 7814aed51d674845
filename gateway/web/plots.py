"""Small plots as numbers for inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

WIDTH, HEIGHT = 180, 36
LOWEST_P = 1e-5
"""Smaller p-values are drawn at the bottom."""


def history_plot(p_values: Sequence[float | None], threshold_p: float) -> dict[str, Any]:
    """p-values over time on a logarithmic axis, oldest left, with the threshold.

    Returns
    -------
    dict
        ``points``: x, y and whether at or below the threshold; ``line``: the path; ``threshold_y``; ``width``,
        ``height``. What was not judged leaves a gap.
    """

    def height_of(value: float) -> float:
        share = math.log10(max(value, LOWEST_P)) / math.log10(LOWEST_P)
        return round(3 + share * (HEIGHT - 6), 1)

    step = (WIDTH - 12) / max(1, len(p_values) - 1)
    points = []
    line = ""
    pen = "M"
    for number, value in enumerate(p_values):
        if value is None:
            pen = "M"
            continue
        x, y = round(6 + number * step, 1), height_of(value)
        points.append({"x": x, "y": y, "drift": value <= threshold_p})
        line += f"{pen}{x} {y}"
        pen = "L"
    return {
        "points": points,
        "line": line,
        "threshold_y": height_of(threshold_p),
        "width": WIDTH,
        "height": HEIGHT,
        "missing": sum(value is None for value in p_values),
    }
