"""How far do rates differ between devices, sexes, age groups?

The gaps are fairlearn's (``MetricFrame.difference`` and ``ratio`` between groups). Its own bootstrap resamples rows;
here persons are resampled, since two eyes of a person are not two independent cases.

A gap is a maximum minus a minimum and so is never below 0: some gap appears between groups that do not differ at all,
and the more groups, the larger. Hence the p-value: how often the draws' deviations from the observed rates, which have
no gap between them, spread as far as the observed rates do.

References
----------
Bird et al., "Fairlearn: a toolkit for assessing and improving fairness in AI", Microsoft MSR-TR-2020-32.
Hall, Wilson, "Two guidelines for bootstrap hypothesis testing", Biometrics 1991;47:757-762 (draws centred at the
estimate).
Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 1979;6:65-70.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from fairlearn.metrics import MetricFrame, selection_rate
from numpy.typing import NDArray

from evaluation.bootstrap import (
    CELLS,
    CellCounter,
    cell_codes,
    decisions_from_cells,
    distance_from_noise,
    group_weights,
    percentile,
)
from evaluation.figures import FairnessGap, Figure, Gap, GapGroup
from evaluation.slices import DRAWN, Part, generator

METRICS = {"sensitivity_gap": "sensitivity", "specificity_gap": "specificity", "selection_rate_gap": "selection_rate"}
_ONE_GROUP = "fewer than two groups that are not small"
_ONE_GROUP_AT_ALL = "fewer than two groups with such cases"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Spread:
    """What one gap is made from: a rate's draws, by group."""

    values: tuple[str, ...]
    """Groups of the key that hold a case which counts."""
    counts: NDArray[np.intp]
    small: NDArray[np.bool_]
    drawn: NDArray[np.float64]
    """[draws, groups, versions]."""
    method: str


def fairness_gaps(
    part: Part, key: str, values: NDArray[np.str_], *, seed: int, draws: int, least_cases: int
) -> tuple[FairnessGap, ...]:
    """Work out the gaps of one slice key.

    Parameters
    ----------
    part
        The cases for which the key is known.
    values
        [n], the key's value.
    least_cases
        A group is small in a gap where fewer cases than this count: positive ones for the sensitivity.
    """
    names, place = np.unique(values, return_inverse=True)
    drawn = _draw(part, place.astype(np.intp), names.size, draws, generator(seed, f"fairness {key}"))
    method = DRAWN.format(draws=draws, what="groups" if part.repeated else "cases", seed=seed)
    found = []
    for gap_name, metric in METRICS.items():
        counted = {"sensitivity": part.truth == 1, "specificity": part.truth == 0}.get(metric)
        if counted is None:
            counted = np.ones(part.truth.size, dtype=np.bool_)
        counts = np.bincount(place[counted], minlength=names.size)
        there = np.flatnonzero(counts)
        spread = _Spread(
            values=tuple(str(names[one]) for one in there),
            counts=counts[there],
            small=counts[there] < least_cases,
            drawn=drawn[metric][:, there, :],
            method=f"fairlearn, between groups; {method}",
        )
        hits = [~present if metric == "specificity" else present for present in part.present]
        gaps = [_gap(spread, one[counted], values[counted], version) for version, one in enumerate(hits)]
        found.append(
            FairnessGap(
                metric=gap_name,
                key=key,
                candidate=gaps[0],
                baseline=gaps[1] if len(gaps) == 2 else None,
                change=_change(spread, gaps[0], gaps[1]) if len(gaps) == 2 else None,
            )
        )
    return tuple(found)


def _draw(
    part: Part, place: NDArray[np.intp], groups_of_key: int, draws: int, rng: np.random.Generator
) -> dict[str, NDArray[np.float64]]:
    groups = int(part.groups.max()) + 1
    codes = place * CELLS + cell_codes(part.truth, part.present)
    count_cells = CellCounter(codes, groups_of_key * CELLS, groups)
    collected: dict[str, list[NDArray[np.float64]]] = {metric: [] for metric in METRICS.values()}
    for weights in group_weights(groups, draws, part.truth.size, rng):
        cells = count_cells(weights[:, part.groups] if part.repeated else weights)
        figures = decisions_from_cells(cells.reshape(-1, groups_of_key, CELLS))
        for metric, parts in collected.items():
            parts.append(figures[metric])
    return {metric: np.concatenate(parts) for metric, parts in collected.items()}


def _gap(spread: _Spread, hits: NDArray[np.bool_], values: NDArray[np.str_], version: int) -> Gap:
    count = int(hits.size)
    if count == 0:
        nothing = Figure(value=None, n=0, method=spread.method, reason="no case with a truth that counts")
        return Gap(
            difference=nothing, ratio=nothing, difference_of_all=nothing, ratio_of_all=nothing, p_value=None,
            adjusted_p_value=None, lowest="", highest="", groups=(),
        )  # fmt: skip
    drawn = spread.drawn[:, :, version]
    rates = np.array([float(hits[values == value].mean()) for value in spread.values])
    large = ~spread.small
    within = np.isin(values, [value for value, small in zip(spread.values, spread.small, strict=True) if not small])
    difference, ratio = _figures(hits[within], values[within], drawn[:, large], spread.method, _ONE_GROUP)
    of_all, ratio_of_all = difference, ratio
    if not large.all():
        of_all, ratio_of_all = _figures(hits, values, drawn, spread.method, _ONE_GROUP_AT_ALL)
    ranked = rates[large]
    names = [value for value, small in zip(spread.values, spread.small, strict=True) if not small]
    return Gap(
        difference=difference,
        ratio=ratio,
        difference_of_all=of_all,
        ratio_of_all=ratio_of_all,
        p_value=_p_value(ranked, drawn[:, large]),
        adjusted_p_value=None,
        lowest=names[int(ranked.argmin())] if names else "",
        highest=names[int(ranked.argmax())] if names else "",
        groups=tuple(
            GapGroup(value=value, n=int(n), rate=float(rate), small=bool(small))
            for value, n, rate, small in zip(spread.values, spread.counts, rates, spread.small, strict=True)
        ),
    )


def _figures(
    hits: NDArray[np.bool_], values: NDArray[np.str_], drawn: NDArray[np.float64], method: str, too_few: str
) -> tuple[Figure, Figure]:
    count = int(hits.size)
    if drawn.shape[1] < 2:
        nothing = Figure(value=None, n=count, method=method, reason=too_few)
        return nothing, nothing
    # Among the cases that count, the rate of hits is a selection rate; fairlearn's own rates give 0 for a group
    # without a case that counts.
    frame = MetricFrame(metrics=selection_rate, y_true=hits, y_pred=hits, sensitive_features=values)
    rates = frame.by_group.to_numpy(dtype=np.float64)
    value = float(frame.difference(method="between_groups"))
    difference = percentile(
        value,
        np.ptp(drawn, axis=1),
        n=count,
        method=method,
        low=distance_from_noise(value, np.ptp(drawn - rates, axis=1)),
        limits=(0.0, 1.0),
    )
    if not hits.any():
        return difference, Figure(value=None, n=count, method=method, reason="the highest rate is 0")
    highest = drawn.max(axis=1)
    shares = np.full(highest.shape, np.nan)
    np.divide(drawn.min(axis=1), highest, out=shares, where=highest > 0)
    # The ratio is 1 where there is no gap; its bound on that side is where the difference's is.
    closest = min(1.0, 1.0 - (difference.low or 0.0) / float(rates.max()))
    ratio = percentile(
        float(frame.ratio(method="between_groups")), shares, n=count, method=method, high=closest, limits=(0.0, 1.0)
    )
    return difference, ratio


def _p_value(rates: NDArray[np.float64], drawn: NDArray[np.float64]) -> float | None:
    usable = drawn[~np.isnan(drawn).any(axis=1)]
    if rates.size < 2 or usable.shape[0] < drawn.shape[0] / 2:
        return None
    spreads = np.ptp(usable - rates, axis=1)
    if float(spreads.max()) <= 0:
        return None
    return float((1 + (spreads >= rates.max() - rates.min() - 1e-12).sum()) / (1 + spreads.size))


def _change(spread: _Spread, candidate: Gap, baseline: Gap) -> Figure:
    first, second = candidate.difference, baseline.difference
    if first.value is None or second.value is None:
        return Figure(value=None, n=first.n, method=spread.method, reason=first.reason or second.reason)
    drawn = spread.drawn[:, ~spread.small, :]
    spans = np.ptp(drawn, axis=1)
    return percentile(
        first.value - second.value, spans[:, 0] - spans[:, 1], n=first.n, method=f"{spread.method}, paired"
    )


def with_adjusted(gaps: Sequence[FairnessGap]) -> tuple[FairnessGap, ...]:
    """Adjust the p-values of each version over all gaps (Holm)."""
    mine = _holm([gap.candidate.p_value for gap in gaps])
    theirs = _holm([gap.baseline.p_value if gap.baseline else None for gap in gaps])
    return tuple(
        replace(
            gap,
            candidate=replace(gap.candidate, adjusted_p_value=first),
            baseline=None if gap.baseline is None else replace(gap.baseline, adjusted_p_value=second),
        )
        for gap, first, second in zip(gaps, mine, theirs, strict=True)
    )


def _holm(p_values: Sequence[float | None]) -> list[float | None]:
    adjusted: list[float | None] = [None] * len(p_values)
    known = sorted((p_value, place) for place, p_value in enumerate(p_values) if p_value is not None)
    largest = 0.0
    for rank, (p_value, place) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p_value))
        adjusted[place] = largest
    return adjusted
