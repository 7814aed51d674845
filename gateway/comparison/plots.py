"""Plots of a report as inline SVG, whose colours follow the page: classes only, no colour of their own.

The baseline is class ``a``, the candidate class ``b``; they differ by dash and shape, too, so that no meaning hangs on
colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt

SIDE = 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 12, 38
_TICKS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
MOST_POINTS = 1500
"""Of a scatter; more are thinned by chance."""
SHAPES = {"a": "circle", "b": "square"}


@dataclass(frozen=True, slots=True)
class Axes:
    """A square of 0 to 1 by 0 to 1 in the picture."""

    x_title: str
    y_title: str
    width: int = SIDE
    height: int = SIDE

    def x(self, value: float) -> float:
        """Where a value lies, in the picture's units."""
        return round(_LEFT + value * (self.width - _LEFT - _RIGHT), 1)

    def y(self, value: float) -> float:
        """Where a value lies, from the top."""
        return round(self.height - _BOTTOM - value * (self.height - _TOP - _BOTTOM), 1)

    def frame(self, *, x_ticks: bool = True, y_ticks: bool = True) -> str:
        """Grid, ticks and titles."""
        parts = []
        for tick in _TICKS:
            x, y = self.x(tick), self.y(tick)
            if x_ticks:
                parts.append(_line("grid", x, self.y(0), x, self.y(1)))
                parts.append(f'<text class="tick" x="{x}" y="{self.y(0) + 14}" text-anchor="middle">{tick:g}</text>')
            if y_ticks:
                parts.append(_line("grid", self.x(0), y, self.x(1), y))
                parts.append(f'<text class="tick" x="{self.x(0) - 6}" y="{y + 3.5}" text-anchor="end">{tick:g}</text>')
        middle_x, middle_y = self.x(0.5), self.y(0.5)
        parts.append(
            f'<text class="title" x="{middle_x}" y="{self.height - 6}" text-anchor="middle">{self.x_title}</text>'
        )
        parts.append(
            f'<text class="title" x="12" y="{middle_y}" text-anchor="middle" transform="rotate(-90 12 {middle_y})">'
            f"{self.y_title}</text>"
        )
        return "".join(parts)


def _svg(width: int, height: int, label: str, *parts: str) -> str:
    return (
        f'<svg class="plot" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def _line(name: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{name}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'


def _path(name: str, points: Iterable[tuple[float, float]]) -> str:
    return f'<path class="{name}" d="M{" L".join(f"{x} {y}" for x, y in points)}"/>'


def mark(name: str, x: float, y: float, title: str, size: float = 4.5) -> str:
    """A point: circle or square by version, with words on hover."""
    words = f"<title>{escape(title)}</title>"
    if SHAPES.get(name.split(" ")[0]) == "square":
        return (
            f'<rect class="mark {name}" x="{x - size:.1f}" y="{y - size:.1f}" width="{2 * size}" height="{2 * size}">'
            f"{words}</rect>"
        )
    return f'<circle class="mark {name}" cx="{x:.1f}" cy="{y:.1f}" r="{size}">{words}</circle>'


Versions = Sequence[tuple[str, str, Mapping[str, Any]]]
"""Class, name and VersionEvaluation as JSON; baseline first, so that the candidate lies on top."""


def roc(versions: Versions) -> str:
    """ROC curves with the operating points."""
    axes = Axes("1 - specificity", "sensitivity")
    parts = [axes.frame(), _line("chance", axes.x(0), axes.y(0), axes.x(1), axes.y(1))]
    for name, title, version in versions:
        curve = version["roc"]
        if curve is None:
            continue
        rates = zip(curve["false_positive_rate"], curve["true_positive_rate"], strict=True)
        parts.append(_path(f"curve {name}", [(axes.x(x), axes.y(y)) for x, y in rates]))
        sensitivity, specificity = (version["figures"][each]["value"] for each in ("sensitivity", "specificity"))
        if sensitivity is not None and specificity is not None:
            where = f"{title} at {version['operating_point']:g}"
            words = f"{where}: sensitivity {sensitivity:.3f}, specificity {specificity:.3f}"
            parts.append(mark(name, axes.x(1 - specificity), axes.y(sensitivity), words))
    return _svg(SIDE, SIDE, "ROC curves", *parts)


def precision_recall(versions: Versions) -> str:
    """Precision-recall curves as steps, with the operating points and what chance gives."""
    axes = Axes("recall (sensitivity)", "precision (PPV)")
    parts = [axes.frame()]
    for place, (name, title, version) in enumerate(versions):
        curve, confusion = version["precision_recall"], version["confusion"]
        if curve is None or confusion is None:
            continue
        if place == 0:
            share = (confusion["true_positives"] + confusion["false_negatives"]) / max(1, sum(confusion.values()))
            parts.append(_line("chance", axes.x(0), axes.y(share), axes.x(1), axes.y(share)))
        steps: list[tuple[float, float]] = []
        for recall, precision in zip(curve["recall"], curve["precision"], strict=True):
            if steps:
                steps.append((steps[-1][0], axes.y(precision)))
            steps.append((axes.x(recall), axes.y(precision)))
        parts.append(_path(f"curve {name}", steps))
        sensitivity, ppv = (version["figures"][each]["value"] for each in ("sensitivity", "ppv"))
        if sensitivity is not None and ppv is not None:
            parts.append(
                mark(name, axes.x(sensitivity), axes.y(ppv), f"{title}: recall {sensitivity:.3f}, precision {ppv:.3f}")
            )
    return _svg(SIDE, SIDE, "Precision-recall curves", *parts)


def calibration(versions: Versions) -> str:
    """Fraction positive by mean score, bins of equal mass, with 95 % intervals."""
    axes = Axes("mean score of the bin", "fraction positive")
    parts = [axes.frame(), _line("chance", axes.x(0), axes.y(0), axes.x(1), axes.y(1))]
    for name, title, version in versions:
        bins = [each for each in version["reliability_equal_mass"] if each["fraction"]["value"] is not None]
        points = [(axes.x(each["mean_score"]), axes.y(each["fraction"]["value"])) for each in bins]
        if len(points) > 1:
            parts.append(_path(f"curve thin {name}", points))
        for each, (x, y) in zip(bins, points, strict=True):
            fraction = each["fraction"]
            if fraction["low"] is not None and fraction["high"] is not None:
                parts.append(_line(f"interval {name}", x, axes.y(fraction["low"]), x, axes.y(fraction["high"])))
            parts.append(
                mark(
                    name,
                    x,
                    y,
                    f"{title}: {each['n']} cases, mean {each['mean_score']:.3f}, positive {fraction['value']:.3f}",
                    3.5,
                )
            )
    return _svg(SIDE, SIDE, "Calibration curves", *parts)


def highest(versions: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """Most cases in a bin, upwards and downwards, so that histograms side by side have one scale."""
    up, down = 1, 0
    for version in versions:
        bins = version["histogram"]
        up = max([up, *(p + u for p, u in zip(bins["positive"], bins["unknown"], strict=True))])
        down = max([down, *bins["negative"]])
    return up, down


def histogram(name: str, title: str, version: Mapping[str, Any], most_of_both: tuple[int, int]) -> str:
    """How scores are spread: positive and unknown cases upwards, negative ones downwards."""
    axes = Axes(f"score of {escape(title)}", "cases", SIDE, 220)
    bins = version["histogram"]
    edges = bins["edges"]
    most_up, most_down = most_of_both
    most = most_up + most_down
    zero = most_down / most
    parts = [axes.frame(y_ticks=False)]
    for index, (positive, negative, unknown) in enumerate(
        zip(bins["positive"], bins["negative"], bins["unknown"], strict=True)
    ):
        x, width = axes.x(edges[index]), axes.x(edges[index + 1]) - axes.x(edges[index])
        words = (
            f"{edges[index]:.2f} to {edges[index + 1]:.2f}: {positive} positive, {negative} negative, {unknown} unknown"
        )
        bars = (
            ("positive", zero, zero + positive / most),
            ("unknown", zero + positive / most, zero + (positive + unknown) / most),
            ("negative", zero - negative / most, zero),
        )
        for kind, low, high in bars:
            if high > low:
                parts.append(
                    f'<rect class="bar {kind}" x="{x:.1f}" y="{axes.y(high)}" width="{max(width - 0.6, 0.6):.1f}" '
                    f'height="{axes.y(low) - axes.y(high):.1f}"><title>{words}</title></rect>'
                )
    point = version["operating_point"]
    parts.append(_line(f"point {name}", axes.x(point), axes.y(0), axes.x(point), axes.y(1)))
    parts.append(_line("axis", axes.x(0), axes.y(zero), axes.x(1), axes.y(zero)))
    if most_up:
        parts.append(f'<text class="tick" x="{axes.x(0) - 6}" y="{axes.y(1) + 9}" text-anchor="end">{most_up}</text>')
    if most_down:
        parts.append(f'<text class="tick" x="{axes.x(0) - 6}" y="{axes.y(0)}" text-anchor="end">{most_down}</text>')
    return _svg(SIDE, 220, f"Scores of {title}", *parts)


def scatter(
    scores: npt.NDArray[np.float64],
    baseline: npt.NDArray[np.float64],
    truth: npt.NDArray[np.int8],
    points: tuple[float, float],
    titles: tuple[str, str],
    *,
    seed: int,
) -> str:
    """Candidate's score over the baseline's, a mark a case; in the shaded corners the decision differs.

    Parameters
    ----------
    points, titles
        Operating point and name, of the baseline and of the candidate.
    """
    axes = Axes(f"score of {escape(titles[0])}", f"score of {escape(titles[1])}")
    x, y = axes.x(points[0]), axes.y(points[1])
    shaded = (
        (axes.x(0), axes.y(1), x - axes.x(0), y - axes.y(1)),
        (x, y, axes.x(1) - x, axes.y(0) - y),
    )
    parts = [f'<rect class="differ" x="{a}" y="{b}" width="{c:.1f}" height="{d:.1f}"/>' for a, b, c, d in shaded]
    parts += [axes.frame(), _line("chance", axes.x(0), axes.y(0), axes.x(1), axes.y(1))]
    parts += [_line("point a", x, axes.y(0), x, axes.y(1)), _line("point b", axes.x(0), y, axes.x(1), y)]
    places = np.arange(len(scores))
    if len(places) > MOST_POINTS:
        places = np.sort(np.random.default_rng(seed).choice(places, MOST_POINTS, replace=False))
    kinds = {1: "positive", 0: "negative", -1: "unknown"}
    for place in places:
        across, up, kind = axes.x(float(baseline[place])), axes.y(float(scores[place])), kinds[int(truth[place])]
        if kind == "positive":
            parts.append(f'<path class="case {kind}" d="M{across} {up - 3.2:.1f} l3 5.4 h-6 z"/>')
        else:
            parts.append(f'<circle class="case {kind}" cx="{across}" cy="{up}" r="2.4"/>')
    return _svg(SIDE, SIDE, "Scores of both versions", *parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class ForestRow:
    """A line of a forest plot."""

    title: str
    count: int
    small: bool
    heading: bool
    figures: Sequence[tuple[str, str, Mapping[str, Any] | None]]
    """Class, name of the version, figure."""


def forest(rows: Sequence[ForestRow], title: str) -> str:
    """Figures with intervals, a line a slice, each version its own mark; small slices are hollow."""
    width, line_height, label = 720, 34, 300
    figures = [figure for row in rows for _, _, figure in row.figures if figure is not None]
    lows = [each["low"] if each["low"] is not None else each["value"] for each in figures]
    lowest = min([each for each in lows if each is not None], default=0.0)
    start = max(0.0, math.floor((lowest - 0.02) * 10) / 10)
    start = min(start, 0.9)
    height = 26 + sum(line_height if not row.heading else 24 for row in rows)

    def across(value: float) -> float:
        return round(label + (max(value, start) - start) / (1 - start) * (width - label - 118), 1)

    parts = [_line("grid", across(tick), 4, across(tick), height - 20) for tick in _ticks(start)]
    parts += [
        f'<text class="tick" x="{across(tick)}" y="{height - 6}" text-anchor="middle">{tick:g}</text>'
        for tick in _ticks(start)
    ]
    top = 4.0
    for row in rows:
        if row.heading:
            parts.append(f'<text class="heading" x="0" y="{top + 17}">{escape(row.title)}</text>')
            top += 24
            continue
        name = escape(row.title if len(row.title) <= 29 else row.title[:28] + "…")
        small = ' <tspan class="small">small</tspan>' if row.small else ""
        parts.append(
            f'<text class="label" x="8" y="{top + 21}">{name} <tspan class="count">n {row.count}</tspan>{small}'
            f"<title>{escape(row.title)}</title></text>"
        )
        for place, (version, words, figure) in enumerate(row.figures):
            y = top + (11 if len(row.figures) > 1 and place == 0 else 24 if len(row.figures) > 1 else 17)
            parts.append(_forest_mark(version, words, figure, y, across, row.small, width))
        top += line_height
    return _svg(width, int(height), title, *parts)


def _ticks(start: float) -> list[float]:
    step = 0.1 if start >= 0.5 else 0.2
    count = round((1 - start) / step)
    return [round(1 - index * step, 1) for index in range(count + 1) if 1 - index * step >= start - 1e-9]


def _forest_mark(
    version: str, words: str, figure: Mapping[str, Any] | None, y: float, across: Any, small: bool, width: int
) -> str:
    if figure is None or figure["value"] is None:
        reason = "" if figure is None else str(figure["reason"])
        text = escape(reason if len(reason) < 60 else reason[:58] + "…")
        return f'<text class="none" x="{across(0)}" y="{y + 4}">{text}</text>'
    value, low, high = figure["value"], figure["low"], figure["high"]
    hollow = " hollow" if small else ""
    parts = []
    numbers = f"{value:.3f}"
    if low is not None and high is not None:
        parts.append(_line(f"interval {version}", across(low), y, across(high), y))
        numbers += f" ({low:.2f}–{high:.2f})"
    parts.append(mark(f"{version}{hollow}" if hollow else version, across(value), y, f"{words}: {numbers}", 4))
    parts.append(f'<text class="number" x="{width}" y="{y + 4}" text-anchor="end">{numbers}</text>')
    return "".join(parts)
