"""Measure the charts: false alarms on fresh studies, delay after a change, cost; beside MMD on raw embeddings.

    python scripts/benchmark_drift.py synthetic fundus chest --json drift.json

Parts are ``synthetic`` (normal embeddings of 512 dimensions, references drawn anew) and ``fundus`` and ``chest``: real
pictures through the shipped models, altered before the gateway's own preprocessing. The latter need ``../shared/data``
beside the repository and are left out, which is said, where it is absent.

*Raw* is alibi-detect's MMDDrift as it comes, on raw embeddings with its own bandwidth, over the last 50 studies at each
new one. Its statistic is computed from cached kernel sums; where alibi-detect is installed, one window is held against
it. Its height is set to the same rate of false alarms as the charts of a device, on streams in control.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter
from scipy.stats import chi2

from drift.calibration import Budget, calibrate
from drift.change_point import find_signal
from drift.charts import ChartReference, advance, begin, make_chart_reference, whiten_study
from drift.reference import load_reference, median_bandwidth, squared_distances
from drift.streams import levels_of_streams
from models.card import load_bundle
from models.frame import Frame
from models.preprocess import prepare
from models.session import ModelSession

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT / "../shared/data"
NOW = datetime(2026, 1, 5, tzinfo=UTC)
RATE = Budget().device_rate
RAW_WINDOW = 50
BEFORE = 50
"""Studies in control before each change."""
Array = np.ndarray
Change = Callable[[Image.Image], Image.Image]


class RawMmd:
    """MMD of raw embeddings over the last 50 studies."""

    def __init__(self, known: Array) -> None:
        self.known = known
        self.bandwidth = median_bandwidth(known)
        kernel = self._kernel(known, known)
        self.within = (kernel.sum() - len(known)) / (len(known) * (len(known) - 1))
        self.height = np.inf

    def _kernel(self, left: Array, right: Array) -> Array:
        return np.exp(squared_distances(left, right) / (-2 * self.bandwidth**2))

    def levels(self, stream: Array) -> Array:
        """[studies], minus infinity until the window is full."""
        across = np.convolve(self._kernel(stream, self.known).mean(axis=1), np.ones(RAW_WINDOW) / RAW_WINDOW, "valid")
        kernel = self._kernel(stream, stream)
        np.fill_diagonal(kernel, 0.0)
        sums = np.zeros((len(stream) + 1, len(stream) + 1))
        sums[1:, 1:] = kernel.cumsum(axis=0).cumsum(axis=1)
        ends = np.arange(RAW_WINDOW, len(stream) + 1)
        starts = ends - RAW_WINDOW
        inside = sums[ends, ends] - sums[starts, ends] - sums[ends, starts] + sums[starts, starts]
        levels = np.full(len(stream), -np.inf)
        levels[RAW_WINDOW - 1 :] = inside / (RAW_WINDOW * (RAW_WINDOW - 1)) - 2 * across + self.within
        return levels

    def set_height(self, draw: Callable[[int], Array], *, streams: int, studies: int) -> None:
        """The height that streams in control cross at the charts' rate, every stream being watched until its first."""
        records = np.array([np.maximum.accumulate(self.levels(draw(studies))) for _ in range(streams)])
        low, high = float(np.median(records[:, -1])), float(records.max())
        for _ in range(40):
            middle = 0.5 * (low + high)
            before = (records <= middle).sum(axis=1)
            rate = (before < studies).sum() / np.minimum(before + 1, studies).sum()
            low, high = (middle, high) if rate > RATE else (low, middle)
        self.height = high


def difference_from_alibi(known: Array, window: Array) -> float | None:
    """Between the statistic here and MMDDrift's, of one window."""
    if not importlib.util.find_spec("alibi_detect") or not importlib.util.find_spec("torch"):
        return None
    from alibi_detect.cd import MMDDrift

    theirs = MMDDrift(known, backend="pytorch", device="cpu", n_permutations=2).score(window)[1]
    return abs(float(theirs) - float(RawMmd(known).levels(window)[-1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Delays of one scenario, ``inf`` where the change was not found."""

    charts: list[float]
    raw: list[float]
    first: list[str]
    """The chart that signalled."""
    errors: list[float]
    """Of the change point, in studies."""
    held: list[bool]
    """Whether its interval held the truth."""


def delays(reference: ChartReference, heights: Array, raw: RawMmd, streams: Sequence[Array], *, before: int) -> Outcome:
    """Of streams that change after `before` studies; those that alarm earlier are left out."""
    made = Outcome(charts=[], raw=[], first=[], errors=[], held=[])
    for stream in streams:
        state = begin(reference)
        delay = np.inf
        for number, embedding in enumerate(stream, start=1):
            state, levels = advance(reference, state, whiten_study(reference, embedding), at=NOW)
            signal = find_signal(reference, state, levels, heights)
            if signal is not None:
                delay = number - before
                break
        if delay > 0:
            made.charts.append(delay)
            if signal is not None:
                made.first.append(signal.charts[0])
                made.errors.append(abs(signal.change.studies_ago - delay))
                made.held.append(signal.change.latest <= delay <= signal.change.earliest)
        over = np.flatnonzero(raw.levels(stream) > raw.height)
        delay = over[0] + 1 - before if len(over) else np.inf
        if delay > 0:
            made.raw.append(delay)
    return made


def summary(outcome: Outcome) -> dict[str, Any]:
    def quantile(values: list[float], share: float) -> float | None:
        found = float(np.quantile(values, share, method="higher")) if values else np.inf
        return found if np.isfinite(found) else None

    return {
        "median": quantile(outcome.charts, 0.5),
        "p90": quantile(outcome.charts, 0.9),
        "missed": float(np.mean(np.isinf(outcome.charts))) if outcome.charts else None,
        "raw_median": quantile(outcome.raw, 0.5),
        "raw_p90": quantile(outcome.raw, 0.9),
        "raw_missed": float(np.mean(np.isinf(outcome.raw))) if outcome.raw else None,
        "streams": len(outcome.charts),
        "first_chart": {name: outcome.first.count(name) for name in sorted(set(outcome.first))},
        "change_point_error_median": quantile(outcome.errors, 0.5),
        "change_point_error_p90": quantile(outcome.errors, 0.9),
        "interval_held": float(np.mean(outcome.held)) if outcome.held else None,
    }


def count_signals(levels: Array, heights: Array) -> tuple[int, int]:
    """First signals of [7, streams, studies], and the studies until them."""
    above = (levels > heights[:, None, None]).any(axis=0)
    first = np.where(above.any(axis=1), above.argmax(axis=1) + 1, above.shape[1])
    return int(above.any(axis=1).sum()), int(first.sum())


def per_10000(signals: int, studies: int) -> dict[str, Any]:
    """With the exact Poisson interval of 95 %."""
    low = chi2.ppf(0.025, 2 * signals) / 2 if signals else 0.0
    high = chi2.ppf(0.975, 2 * signals + 2) / 2
    scale = 10_000 / studies
    return {
        "signals": signals,
        "studies": studies,
        "per_10000": round(signals * scale, 3),
        "interval_95": [round(low * scale, 3), round(high * scale, 3)],
    }


def cost_ms(reference: ChartReference, embeddings: Array) -> float:
    """Processor time a study, through the charts of its device and those of all devices."""
    states = [begin(reference), begin(reference)]
    began = time.process_time()
    for embedding in embeddings:
        point = whiten_study(reference, embedding)
        states = [advance(reference, state, point, at=NOW)[0] for state in states]
    return round(1e3 * (time.process_time() - began) / len(embeddings), 3)


def synthetic(options: argparse.Namespace) -> dict[str, Any]:
    """Normal embeddings; the standard deviations fall as those of the shipped chest model's."""
    width = 512
    spectrum = np.arange(1, width + 1) ** -0.55
    rng = np.random.default_rng(options.seed)
    made: dict[str, Any] = {}

    def draw(*shape: int) -> Array:
        return rng.standard_normal((*shape, width)) * spectrum

    for count in (389, 2000):
        rates, signals, studies = [], 0, 0
        kept: tuple[ChartReference, Array] | None = None
        for _ in range(options.references):
            reference = make_chart_reference(draw(count))
            heights = calibrate(reference, replicas=options.replicas).heights_at(RATE)
            kept = kept or (reference, heights)
            own = np.sum([count_signals(levels_of_streams(reference, draw(20, 2_000)), heights) for _ in range(4)], 0)
            rates.append(own[0] / own[1] / RATE)
            signals, studies = signals + int(own[0]), studies + int(own[1])
        assert kept is not None
        reference, heights = kept
        raw = RawMmd(draw(count))
        raw.set_height(draw, streams=60, studies=2_000)
        entry: dict[str, Any] = {
            "components": reference.components,
            "nominal_per_10000": RATE * 10_000,
            "false_alarms_of_a_device": per_10000(signals, studies),
            "references": options.references,
            "ratio_to_nominal_median": round(float(np.median(rates)), 2),
            "ratio_to_nominal_worst": round(float(np.max(rates)), 2),
            "cost_ms": cost_ms(reference, draw(300)),
            "scenarios": {},
        }
        if count == 389:
            entry["statistic_minus_alibi"] = difference_from_alibi(raw.known, draw(RAW_WINDOW))
        for name, change in _synthetic_changes(reference, rng).items():
            streams = []
            for _ in range(options.streams):
                stream = draw(BEFORE + 400)
                stream[BEFORE:] = change(stream[BEFORE:])
                streams.append(stream)
            entry["scenarios"][name] = summary(delays(reference, heights, raw, streams, before=BEFORE))
        made[f"reference of {count}"] = entry
    return made


def _synthetic_changes(reference: ChartReference, rng: np.random.Generator) -> dict[str, Callable[[Array], Array]]:
    whitening = reference.whitening

    def shift(sd: float) -> Callable[[Array], Array]:
        def moved(embeddings: Array) -> Array:
            direction = rng.standard_normal(reference.components)
            return embeddings + whitening.rotation @ (whitening.scale * direction * (sd / np.linalg.norm(direction)))

        return moved

    def some(embeddings: Array) -> Array:
        return np.where(rng.random(len(embeddings))[:, None] < 0.3, shift(3.0)(embeddings), embeddings)

    return {
        "mean 1 sd": shift(1.0),
        "mean 2 sd": shift(2.0),
        "mean 3 sd": shift(3.0),
        "mean 5 sd": shift(5.0),
        "3 sd on 30 % of the studies": some,
        "spread x1.25": lambda embeddings: 1.25 * embeddings,
        "spread x0.8": lambda embeddings: 0.8 * embeddings,
    }


def _levels(function: Callable[[Array], Array]) -> Change:
    def change(picture: Image.Image) -> Image.Image:
        values = np.asarray(picture, dtype=np.float64)
        return Image.fromarray(np.clip(np.rint(function(values)), 0, 255).astype(np.uint8), picture.mode)

    return change


def _jpeg(quality: int) -> Change:
    def change(picture: Image.Image) -> Image.Image:
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=quality)
        return Image.open(stream).convert(picture.mode)

    return change


def _gamma(gamma: float) -> Change:
    return _levels(lambda values: 255 * (values / 255) ** gamma)


def _blur(radius: float) -> Change:
    return lambda picture: picture.filter(ImageFilter.GaussianBlur(radius))


def _crop(share: float) -> Change:
    """A narrower field of view: the middle, at the old size."""

    def change(picture: Image.Image) -> Image.Image:
        width, height = picture.size
        cut = (share / 2 * width, share / 2 * height)
        return picture.resize(picture.size, Image.Resampling.BICUBIC, box=(*cut, width - cut[0], height - cut[1]))

    return change


def _noise(sd: float) -> Change:
    random = np.random.default_rng(11)
    return _levels(lambda values: values + sd * random.standard_normal(values.shape))


def _vignette(strength: float) -> Change:
    def darken(values: Array) -> Array:
        rows, columns = np.indices(values.shape[:2])
        middle = (np.array(values.shape[:2]) - 1) / 2
        square = ((rows - middle[0]) ** 2 + (columns - middle[1]) ** 2) / (middle**2).sum()
        return values * (1 - strength * square)[(...,) + (None,) * (values.ndim - 2)]

    return _levels(darken)


FUNDUS: dict[str, Change] = {
    "gamma 1.1": _gamma(1.1),
    "gamma 1.3": _gamma(1.3),
    "red gain 5 %": _levels(lambda values: values * np.array([1.05, 1.0, 1.0])),
    "white balance (red +10 %, blue -10 %)": _levels(lambda values: values * np.array([1.1, 1.0, 0.9])),
    "blur 0.5 px": _blur(0.5),
    "blur 1 px": _blur(1.0),
    "JPEG quality 75": _jpeg(75),
    "JPEG quality 30": _jpeg(30),
    "field of view 5 % narrower": _crop(0.05),
    "noise 4 of 255": _noise(4),
    "vignetting 30 %": _vignette(0.3),
}
CHEST: dict[str, Change] = {
    "gamma 1.1": _gamma(1.1),
    "gamma 1.3": _gamma(1.3),
    "blur 0.5 px": _blur(0.5),
    "blur 1 px": _blur(1.0),
    "JPEG quality 75": _jpeg(75),
    "JPEG quality 30": _jpeg(30),
    "field of view 5 % narrower": _crop(0.05),
    "noise 2 of 255": _noise(2),
    "noise 6 of 255": _noise(6),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """A shipped model, its pictures, and which of them are held out of the reference."""

    bundle: Path
    mode: str
    paths: list[Path]
    positive: Array | None
    """[paths], bool, for the prevalence stream; ``None`` where too few of them are labelled."""


def fundus_pictures(held_out: int, rng: np.random.Generator) -> Pictures:
    every = sorted((SHARED / "fundus" / "images").glob("*.jpg"))
    paths = [every[number] for number in rng.permutation(len(every))[:held_out]]
    return Pictures(bundle=ROOT / "models/bundled/retinopathy/2", mode="RGB", paths=paths, positive=None)


def chest_pictures(held_out: int, rng: np.random.Generator) -> Pictures:
    """Of the persons whose pictures the reference holds; the test folder differs from them, unchanged."""
    every = _reference_of_chest(SHARED / "cxr")
    paths = [every[number] for number in rng.permutation(len(every))[:held_out]]
    positive = np.array(["PNEUMONIA" in path.parts for path in paths])
    return Pictures(bundle=ROOT / "models/bundled/chest-triage/2", mode="L", paths=paths, positive=positive)


def _reference_of_chest(folder: Path) -> list[Path]:
    """As scripts/train_chest_triage.py chooses them."""
    from sklearn.model_selection import StratifiedGroupKFold

    def person(path: Path) -> str:
        found = re.match(r"(person|IM-|NORMAL2-IM-)(\d+)", path.name)
        return found.group(0) if found else path.name

    tested = {person(path) for path in (folder / "test").rglob("*.jpeg")}
    train = [path for name in ("NORMAL", "PNEUMONIA") for path in sorted((folder / "train" / name).glob("*.jpeg"))]
    names = sorted({person(path) for path in train})
    free = [path for path in train if person(path) not in tested]
    truth = [path.parent.name == "PNEUMONIA" for path in free]
    folds = StratifiedGroupKFold(6, shuffle=True, random_state=20)
    _, outside = next(iter(folds.split(free, truth, [names.index(person(path)) for path in free])))
    return [free[number] for number in outside]


def embed(pictures: Pictures, change: Change | None) -> Array:
    """[pictures, D], through the gateway's preprocessing and the shipped graph."""
    bundle = load_bundle(pictures.bundle)
    session = ModelSession(bundle, providers=["CPUExecutionProvider"], threads=1)
    found = []
    for path in pictures.paths:
        picture = Image.open(path).convert(pictures.mode)
        pixels = np.asarray(change(picture) if change else picture)
        frame = Frame.from_rgb(pixels) if pictures.mode == "RGB" else _grey(pixels)
        tensor = prepare(frame, bundle.card.pixel_contract).tensor
        found.append(session.run(tensor[None])[0].embedding)
    return np.stack(found).astype(np.float64)


def _grey(pixels: Array) -> Frame:
    return Frame(pixels=pixels.astype(np.float32) / 255, source_rows=pixels.shape[0], source_columns=pixels.shape[1])


def real(pictures: Pictures, changes: dict[str, Change], options: argparse.Namespace) -> dict[str, Any]:
    """Delays on held-out pictures, and false alarms on the reference's own, split again and again."""
    rng = np.random.default_rng(options.seed)
    everything = load_reference(pictures.bundle / "reference.npz").embeddings
    unchanged = embed(pictures, None)
    gaps = np.sqrt(squared_distances(unchanged, everything))
    # Stored as float16, so a picture's own row is near, not equal.
    own = gaps.min(axis=1) < 0.1 * np.median(gaps)
    known = np.delete(everything, np.unique(gaps.argmin(axis=1)[own]), axis=0)
    reference = make_chart_reference(known)
    heights = calibrate(reference, replicas=options.replicas).heights_at(RATE)
    order = rng.permutation(len(known))
    raw, rest = RawMmd(known[order[: len(known) // 2]]), known[order[len(known) // 2 :]]
    raw.set_height(lambda studies: rest[rng.integers(len(rest), size=studies)], streams=100, studies=1_000)
    made: dict[str, Any] = {
        "model": "/".join(pictures.bundle.parts[-2:]),
        "reference": len(known),
        "components": reference.components,
        "held_out": len(unchanged),
        "of_them_were_in_the_reference": int(own.sum()),
        "studies_after_the_change": len(unchanged) - BEFORE,
        "cost_ms": cost_ms(reference, unchanged),
        "scenarios": {},
    }

    def orders(changed: Array) -> list[Array]:
        found = []
        for _ in range(options.streams):
            shuffled = rng.permutation(len(unchanged))
            found.append(np.concatenate([unchanged[shuffled[:BEFORE]], changed[shuffled[BEFORE:]]]))
        return found

    made["scenarios"]["none"] = summary(delays(reference, heights, raw, orders(unchanged), before=0))
    for name, change in changes.items():
        changed = embed(pictures, change)
        made["scenarios"][name] = summary(delays(reference, heights, raw, orders(changed), before=BEFORE))
        print(name, made["scenarios"][name]["median"], flush=True)
    if pictures.positive is not None:
        streams = _prevalence_streams(unchanged, pictures.positive, rng, options.streams)
        made["scenarios"]["benign: half as many positives"] = summary(
            delays(reference, heights, raw, streams, before=BEFORE)
        )
    if options.references:
        made["false_alarms_of_a_device"] = _false_alarms(everything, options, rng)
    return made


def _prevalence_streams(embeddings: Array, positive: Array, rng: np.random.Generator, count: int) -> list[Array]:
    """Fifty studies with the share of positives that all have, then as many as there are with half of it."""
    share = float(positive.mean())
    found = []
    for _ in range(count):
        ill, well = rng.permutation(np.flatnonzero(positive)), rng.permutation(np.flatnonzero(~positive))
        first = round(share * BEFORE)
        before = np.concatenate([ill[:first], well[: BEFORE - first]])
        left_well = well[BEFORE - first :]
        wanted = round(len(left_well) * (share / 2) / (1 - share / 2))
        after = np.concatenate([ill[first : first + wanted], left_well])
        found.append(embeddings[np.concatenate([rng.permutation(before), rng.permutation(after)])])
    return found


def _false_alarms(everything: Array, options: argparse.Namespace, rng: np.random.Generator) -> dict[str, Any]:
    """Charts fitted on most of a reference, run over the rest of it in random orders."""
    out = len(everything) // 4
    rates, signals, studies = [], 0, 0
    for _ in range(options.references):
        order = rng.permutation(len(everything))
        reference = make_chart_reference(everything[order[out:]])
        heights = calibrate(reference, replicas=options.replicas).heights_at(RATE)
        streams = np.stack([everything[rng.permutation(order[:out])] for _ in range(20)])
        own = count_signals(levels_of_streams(reference, streams), heights)
        rates.append(own[0])
        signals, studies = signals + own[0], studies + own[1]
    return per_10000(signals, studies) | {
        "splits": options.references,
        "splits_with_a_signal": int(np.count_nonzero(rates)),
        "nominal_per_10000": RATE * 10_000,
        "kept": len(everything) - out,
        "stream": out,
    }


def table(results: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = []
    for part, found in results.items():
        for name, entry in found.items() if part == "synthetic" else [(part, found)]:
            lines.append(f"\n{part}, {name}: {entry['cost_ms']} ms a study")
            alarms = entry.get("false_alarms_of_a_device")
            if alarms:
                low, high = alarms["interval_95"]
                lines.append(
                    f"False alarms of a device: {alarms['signals']} in {alarms['studies']} studies,"
                    f" {alarms['per_10000']} in 10,000 (95 %: {low} to {high}; stated {RATE * 10_000:.2f})"
                )
            lines.append("")
            lines.append("| change | charts, median | p90 | missed | raw MMD, median | p90 | missed |")
            lines.append("|---|---|---|---|---|---|---|")
            for scenario, row in entry["scenarios"].items():
                cells = [row[key] for key in ("median", "p90", "missed", "raw_median", "raw_p90", "raw_missed")]
                lines.append(
                    f"| {scenario} | " + " | ".join("-" if cell is None else f"{cell:g}" for cell in cells) + " |"
                )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=["synthetic", "fundus", "chest"])
    parser.add_argument("--references", type=int, default=6, help="reference draws or splits for false alarms; 0: none")
    parser.add_argument("--replicas", type=int, default=16, help="bootstrap references of a calibration (shipped: 64)")
    parser.add_argument("--streams", type=int, default=30, help="streams a scenario")
    parser.add_argument("--held-out", type=int, default=130, help="pictures taken out of the reference")
    parser.add_argument("--only", nargs="*", help="these changes of pictures, by name")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where to write all figures")
    options = parser.parse_args()
    results: dict[str, Any] = {}
    for part in dict.fromkeys(options.parts):
        if part == "synthetic":
            results[part] = synthetic(options)
        elif not SHARED.is_dir():
            print(f"{part}: left out, there is no ../shared/data beside the repository")
        else:
            make, changes = (fundus_pictures, FUNDUS) if part == "fundus" else (chest_pictures, CHEST)
            wanted = {name: change for name, change in changes.items() if not options.only or name in options.only}
            results[part] = real(make(options.held_out, np.random.default_rng(options.seed)), wanted, options)
    if options.json:
        options.json.write_text(json.dumps({"options": {**vars(options), "json": None}, **results}, indent=1))
    print(table(results))


if __name__ == "__main__":
    main()
