"""Heights of the charts, by simulation, so that all of them together cry once in so many studies.

The reference is a sample. A threshold that takes it for the truth is too low, since fresh studies differ from it by
its own error. So the simulation draws a new reference of the same size again and again, fits the charts on it, and runs
them over studies of the population that it came from: what the gateway does, many times over. The population is the
second half of the reference, which the rotation has not seen, smoothed: directions are blurred, lengths are kept.

One budget covers all charts and all scopes. Every study passes the charts of all devices and those of its own device;
so if the charts of each device cry once in m of *its* studies, those of all devices together cry once in m studies,
however many there are. The rates of the two are added, which bounds their union whatever their dependence.

References
----------
Gandy, Kvaloey: Guaranteed conditional performance of control charts via bootstrap methods, Scand. J. Statist. 40
(2013), 647-668.
Jones, Champ, Rigdon: The performance of EWMA charts with estimated parameters, Technometrics 43 (2001), 156-167.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from drift.charts import CHARTS, WINDOWS, ChartReference, lengths_in_sd, shortening
from drift.errors import CalibrationError
from drift.reference import Array
from drift.streams import Float32, PairSums, fill_window, run_recursions

STUDIES_BETWEEN_FALSE_ALARMS = 10_000
POOLED_SHARE = 0.25
"""Of the budget, for the charts over all devices. The rest goes to the devices, where a change shows undiluted."""
REPLICAS = 64
"""Bootstrap references."""
STREAMS = 64
"""Simulated streams for each."""
STREAM_STUDIES = 2_000
POPULATION = 2_000
SMOOTHING = 0.7
"""How much of a simulated study's direction is not that of the study it was made from."""
_WEIGHTS = np.array([1.0, 0.5, 0.5, *[1.0 / len(WINDOWS)] * len(WINDOWS)])
"""The share of each statistic in its chart's rate: three charts, of equal rates."""
_BLOCK = 20
_SEED = 20260103
_LEAST_RATE, _MOST_RATE = 1e-6, 1e-2
_GRID = 49


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Heights of one reference's charts, for any rate of false alarms that the simulation reaches."""

    fingerprint: str
    """Of the reference."""
    rates: tuple[float, ...]
    """False alarms a study of all charts of a scope together, rising."""
    heights: tuple[tuple[float, ...], ...]
    """For each rate, the height of each of ``charts.CHARTS``."""
    worst_rates: tuple[float, ...]
    """For each rate, the mean rate of the worst twentieth of the bootstrap references."""
    simulated_studies: int
    took_s: float

    def heights_at(self, rate: float) -> Array:
        """[7] heights at which the charts of a scope cry at `rate`, interpolated.

        Raises
        ------
        CalibrationError
            The simulation was too short for so low a rate.
        """
        if not self.rates[0] <= rate <= self.rates[-1]:
            raise CalibrationError(f"a rate of {rate:g} lies outside what was simulated, from {self.rates[0]:g}")
        logs = np.log(self.rates)
        table = np.array(self.heights)
        return np.array([np.interp(np.log(rate), logs, table[:, column]) for column in range(len(CHARTS))])

    def rate_at(self, levels: Array) -> float:
        """False alarms a study that the charts would give if their heights went through the highest of `levels`.

        1 for levels so low that rates were not simulated there; beyond the highest simulated, the lowest rate.
        """
        table = np.array(self.heights)
        logs = np.log(self.rates)
        found = [np.interp(-levels[column], -table[::-1, column][::-1], logs) for column in range(len(CHARTS))]
        lowest = min(found)
        return 1.0 if lowest >= logs[-1] else float(np.exp(lowest))


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How often a model's charts may cry falsely, and who may."""

    studies_between_false_alarms: float = STUDIES_BETWEEN_FALSE_ALARMS
    """Over all charts of all scopes of one model version, in its studies."""

    @property
    def pooled_rate(self) -> float:
        """For the charts over all devices."""
        return POOLED_SHARE / self.studies_between_false_alarms

    @property
    def device_rate(self) -> float:
        """For the charts of a device, in its own studies; the same for each of however many devices."""
        return (1.0 - POOLED_SHARE) / self.studies_between_false_alarms


def calibrate(
    reference: ChartReference,
    *,
    replicas: int = REPLICAS,
    streams: int = STREAMS,
    stream_studies: int = STREAM_STUDIES,
    seed: int = _SEED,
    stop: Callable[[], bool] = lambda: False,
) -> Calibration:
    """Simulate the charts in control; the same reference gives the same heights.

    Raises
    ------
    CalibrationError
        `stop` became true.
    """
    began = time.process_time()
    generator = np.random.default_rng(seed)
    population = smoothed_population(reference.points, generator)
    records = np.empty((replicas, len(CHARTS), streams, stream_studies // _BLOCK), dtype=np.float32)
    for replica in range(replicas):
        if stop():
            raise CalibrationError("the calibration was stopped")
        records[replica] = _simulate(population, reference, streams, stream_studies, generator)
    np.maximum.accumulate(records, axis=3, out=records)
    rates, heights, worst = _solve(records)
    return Calibration(
        fingerprint=reference.fingerprint,
        rates=tuple(rates),
        heights=tuple(tuple(row) for row in heights),
        worst_rates=tuple(worst),
        simulated_studies=replicas * streams * stream_studies,
        took_s=round(time.process_time() - began, 1),
    )


def smoothed_population(points: Array, generator: np.random.Generator) -> Float32:
    """[2000, k] studies as if from where `points` [n, k] came from.

    Draws from the points themselves would repeat, and the kernel takes repeats for structure. Each study gets the
    length of one point, nearly, and a direction between that point's and one at random: in many dimensions neither
    mean nor variance changes much by that.
    """
    count, width = points.shape
    # Every point serves equally often, so that the population's mean is that of the points.
    chosen = generator.permutation(np.resize(generator.permutation(count), POPULATION))
    lengths = np.sqrt((points**2).sum(axis=1))
    spread = 0.25 * lengths.std()
    wanted = lengths.mean() + np.sqrt(1 - 0.25**2) * (lengths[chosen] - lengths.mean())
    wanted = np.maximum(wanted + spread * generator.standard_normal(POPULATION), 0.0)
    noise = generator.standard_normal((POPULATION, width)) * np.sqrt((points**2).mean(axis=0))
    blurred = np.sqrt(1 - SMOOTHING**2) * points[chosen] + SMOOTHING * noise
    made = blurred * (wanted / np.sqrt((blurred**2).sum(axis=1)))[:, None]
    return np.asarray(made, dtype=np.float32)


def _simulate(
    population: Float32, reference: ChartReference, streams: int, studies: int, generator: np.random.Generator
) -> Float32:
    """[7, streams, blocks], highest level of each block of studies, of charts fitted on a reference drawn anew."""
    count = len(reference.points)
    drawn = generator.integers(len(population), size=count)
    others = generator.integers(len(population), size=max(0, reference.studies - count))
    # As make_chart_reference: the location from all, scale, distances and kernel from the second half.
    location = population[np.concatenate([drawn, others])].mean(axis=0)
    scaled = (population - location) / population[drawn].std(axis=0, ddof=1)
    lengths = np.sqrt((scaled**2).sum(axis=1))
    log_lengths = np.log(lengths[drawn])
    spread = (float(log_lengths.mean()), float(log_lengths.std(ddof=1)))
    order = generator.integers(len(population), size=(streams, studies))
    levels = np.empty((len(CHARTS), streams, studies), dtype=np.float32)
    capped = (scaled * shortening(lengths, *spread)[:, None]).astype(np.float32)
    run_recursions(levels, capped[order], lengths_in_sd(lengths, *spread).astype(np.float32)[order])
    _fill_windows(levels, scaled, drawn, order)
    blocks = levels.reshape(len(CHARTS), streams, studies // _BLOCK, _BLOCK)
    return np.asarray(blocks.max(axis=3))


def _fill_windows(levels: Float32, scaled: Float32, drawn: NDArray[np.int64], order: NDArray[np.int64]) -> None:
    squares = (scaled**2).sum(axis=1)
    distances = np.maximum(squares[:, None] + squares[None, :] - 2 * (scaled @ scaled.T), 0)
    count = len(drawn)
    middle = count + (count * count - count) // 2 - 1
    twice_variance = np.partition(distances[np.ix_(drawn, drawn)], middle, axis=None)[middle]
    kernel = np.exp(distances / -twice_variance)
    between = kernel[:, drawn]
    # Drawn with replacement, some points of a reference are one: their pairs count, as those of any two studies do.
    within = (float(between[drawn].sum(dtype=np.float64)) - count) / (count * (count - 1))
    affinities = between.mean(axis=1)[order]
    flat = kernel.ravel()
    rows = order * len(scaled)
    sums = PairSums(*order.shape)
    lag = 0
    for number, window in enumerate(WINDOWS):
        while lag < window - 1:
            lag += 1
            sums.add(lag, flat[rows[:, lag:] + order[:, :-lag]])
        fill_window(levels, number, sums, affinities, within)


def _solve(records: Float32) -> tuple[list[float], list[list[float]], list[float]]:
    """Rates of the union and the heights that give them, from running maxima [replicas, 7, streams, blocks].

    Every statistic gets its share of one rate; the union's rate at those heights is then counted.
    """
    tables: dict[float, tuple[list[float], float]] = {}
    for each in np.geomspace(_LEAST_RATE, _MOST_RATE, _GRID):
        heights = [_height(records[:, column], each * _WEIGHTS[column]) for column in range(len(CHARTS))]
        rates = np.sort(_rates(_first_crossing(records, np.array(heights)), records.shape[3]))
        worst = float(rates[-max(1, len(rates) // 20) :].mean())
        union = float(rates.mean())
        if union > 0 and union not in tables:
            tables[union] = (heights, worst)
    rising = sorted(tables)
    return rising, [tables[rate][0] for rate in rising], [tables[rate][1] for rate in rising]


def _first_crossing(records: Float32, heights: Array) -> NDArray[np.int64]:
    """[replicas, streams], blocks before the first in which any chart stood above its height."""
    before = (records <= heights[None, :, None, None].astype(np.float32)).sum(axis=3)
    return np.asarray(before.min(axis=1))


def _rates(before: NDArray[np.int64], blocks: int) -> Array:
    """[replicas], signals a study: signals over studies at risk, each stream being watched until its first."""
    signals = (before < blocks).sum(axis=1)
    at_risk = np.minimum((before + 0.5) * _BLOCK, blocks * _BLOCK).sum(axis=1)
    return np.asarray(signals / at_risk)


def _height(records: Float32, rate: float) -> float:
    """The height that one statistic, with running maxima [replicas, streams, blocks], crosses at `rate`."""
    low, high = 0.0, float(records[..., -1].max())
    for _ in range(30):
        middle = 0.5 * (low + high)
        found = _rates((records <= np.float32(middle)).sum(axis=2), records.shape[2]).mean()
        low, high = (middle, high) if found > rate else (low, middle)
    return high


def load_or_calibrate(
    reference: ChartReference, folder: Path, *, shipped: Path | None = None, stop: Callable[[], bool] = lambda: False
) -> Calibration:
    """The calibration kept in `folder` or `shipped` under the reference's fingerprint; made and kept if none is.

    Raises
    ------
    CalibrationError
        `stop` became true, or the result cannot be kept.
    """
    name = f"{reference.fingerprint[:32]}.json"
    for path in [folder / name] + ([shipped / name] if shipped else []):
        kept = read_calibration(path)
        if kept is not None and kept.fingerprint == reference.fingerprint:
            return kept
    made = calibrate(reference, stop=stop)
    write_calibration(made, folder / name)
    return made


def read_calibration(path: Path) -> Calibration | None:
    """A kept calibration; ``None`` where there is none that can be read, since it can be made again."""
    try:
        stored = json.loads(path.read_text())
        return Calibration(
            fingerprint=str(stored["fingerprint"]),
            rates=tuple(float(rate) for rate in stored["rates"]),
            heights=tuple(tuple(float(height) for height in row) for row in stored["heights"]),
            worst_rates=tuple(float(rate) for rate in stored["worst_rates"]),
            simulated_studies=int(stored["simulated_studies"]),
            took_s=float(stored["took_s"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_calibration(calibration: Calibration, path: Path) -> None:
    """Keep a calibration.

    Raises
    ------
    CalibrationError
        The file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(calibration)))
        partial.replace(path)
    except OSError as error:
        raise CalibrationError(f"the calibration of the charts cannot be kept: {error}") from error
