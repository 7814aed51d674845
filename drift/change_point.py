"""When did it begin? The study from which on the last ones differ most from the reference.

Two scans over the studies since the charts began, both backwards from the newest: one for a shift of the mean, one for
a change of length. Each takes, for every possible beginning, the likelihood ratio of *changed since then* against
*never changed*, the reference being known and the size of the change not.

References
----------
Hinkley: Inference about the change-point from cumulative sum tests, Biometrika 58 (1971), 509-523.
Siegmund: Confidence sets in change-point problems, Int. Stat. Rev. 56 (1988), 31-48, for the interval.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np

from drift.charts import CHARTS, ChartReference, ChartState
from drift.reference import Array

DROP = 4.0
"""A beginning whose log likelihood is at most this much lower stays possible."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangePoint:
    """The most likely beginning of a change, and those nearly as likely."""

    studies_ago: int
    """1: only the newest study has changed."""
    earliest: int
    """Studies ago, at least `studies_ago`."""
    latest: int
    began_at: datetime
    """When the first changed study was judged."""
    earliest_at: datetime
    latest_at: datetime
    reaches_back: bool
    """Whether it may have begun before all studies that are remembered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """One or more charts above their heights."""

    charts: tuple[str, ...]
    """Of ``charts.CHARTS``, the one farthest above first."""
    studies: int
    """Since the charts began."""
    change: ChangePoint
    shift_in_sd: float
    """How far the mean of the changed studies lies from the reference's, less what chance adds on average."""
    length_ratio: float
    """Their distance from the reference's centre over the usual one, as geometric means."""


def find_signal(reference: ChartReference, state: ChartState, levels: Array, heights: Array) -> Signal | None:
    """The signal of the study just taken in; ``None`` where no chart stands above its height."""
    over = np.flatnonzero(levels > heights)
    if not len(over):
        return None
    farthest = over[np.argsort(-levels[over] / heights[over], kind="stable")]
    change = change_point(reference, state)
    changed = state.points[-change.studies_ago :]
    mean = changed.mean(axis=0)
    lengths = np.sqrt((changed**2).sum(axis=1))
    return Signal(
        charts=tuple(CHARTS[number] for number in farthest),
        studies=state.studies,
        change=change,
        shift_in_sd=float(np.sqrt(max(0.0, float(mean @ mean) - changed.shape[1] / len(changed)))),
        length_ratio=float(np.exp(np.log(lengths).mean() - reference.log_length_mean)),
    )


def change_point(reference: ChartReference, state: ChartState) -> ChangePoint:
    """The likeliest beginning of a change that lasts until the newest study; the state has at least one study."""
    # Entry m - 1 is about the last m studies having changed.
    newest_first = state.points[::-1]
    lengths = np.sqrt((newest_first**2).sum(axis=1))
    counts = np.arange(1, len(newest_first) + 1)
    capped = newest_first * reference.shortening(lengths)[:, None]
    of_mean = (np.cumsum(capped, axis=0) ** 2).sum(axis=1) / (2.0 * counts)
    of_length = np.cumsum(reference.lengths_in_sd(lengths)) ** 2 / (2.0 * counts)
    width = newest_first.shape[1]
    scan = of_mean if _rarity(2 * of_mean.max(), width) >= _rarity(2 * of_length.max(), 1) else of_length
    best = int(scan.argmax()) + 1
    possible = np.flatnonzero(scan >= scan.max() - DROP) + 1
    first, last = int(possible.max()), int(possible.min())
    return ChangePoint(
        studies_ago=best,
        earliest=first,
        latest=last,
        began_at=_time(state, best),
        earliest_at=_time(state, first),
        latest_at=_time(state, last),
        reaches_back=first == len(newest_first) and state.studies > len(newest_first),
    )


def _rarity(chi_square: float, degrees: int) -> float:
    """A chi-square as a standard normal deviate (Wilson, Hilferty 1931), so that scans of different widths compare."""
    spread = 2.0 / (9.0 * degrees)
    return float(((chi_square / degrees) ** (1 / 3) - (1.0 - spread)) / np.sqrt(spread))


def _time(state: ChartState, studies_ago: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=int(state.times_us[-studies_ago]))
