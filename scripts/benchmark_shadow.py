#!/usr/bin/env python
"""What a shadow costs: time from a complete study to its recorded results, with a version in the shadow and without.

One worker judges drawn fundus photographs with the shipped retinopathy model; the shadow is that model's other version.
Studies come one after the other (``paced``: at random times, so that some come while the shadow runs) and all at once
(``burst``). Blocks with and without a shadow alternate, so that what else the machine does falls on both. How long each
paced study had to wait for a shadow that was under way when it came is measured by itself: that hardly depends on what
else the machine does, while the times to results do.

Run ``scripts/benchmark_shadow.py [--studies N] [--blocks N] [--interval-s S] [--json FILE]``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from known_versions import serve  # noqa: E402
from odd_versions import LONG_AGO, House  # noqa: E402
from photographs import drawn_jpeg, op_dataset  # noqa: E402
from pydicom import Dataset  # noqa: E402
from sqlalchemy import select, update  # noqa: E402

from gateway.store.models import VersionState  # noqa: E402
from gateway.store.schema import model_version, study  # noqa: E402
from models import bundled_folders  # noqa: E402
from models.card import load_bundle  # noqa: E402

MODEL = "retinopathy"


@dataclass
class Times:
    """Milliseconds to results of each study, and studies a second."""

    paced_ms: list[float] = field(default_factory=list)
    burst_per_s: list[float] = field(default_factory=list)
    waited_ms: list[float] = field(default_factory=list)
    """Of each paced study, for a shadow that was under way when it came."""


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        rules = [{"name": "photographs", "when": {"Modality": "OP"}, "models": [MODEL]}]
        house = House(Path(folder), {"rules": rules})
        *_, former, newest = sorted(
            (load_bundle(each) for each in bundled_folders() if each.parent.name == MODEL), key=lambda b: b.card.version
        )
        for bundle, state in ((former, VersionState.RETIRED), (newest, VersionState.CHAMPION)):
            serve(house.store, MODEL, bundle.card.version, bundle.folder, LONG_AGO, state=state)
        house.start()
        jpegs = [drawn_jpeg(seed) for seed in range(4)]
        _warm_up(house, jpegs)
        found = {False: Times(), True: Times()}
        for number in range(2 * options.blocks):
            with_shadow = number % 2 == 1
            _set_shadow(house, former.card.version, with_shadow)
            taken_ms, waited_ms = _paced(house, jpegs, options)
            found[with_shadow].paced_ms += taken_ms
            found[with_shadow].waited_ms += waited_ms
            found[with_shadow].burst_per_s.append(_burst(house, jpegs, options.studies))
        house.close()
    report = {("with" if shadow else "without"): _figures(times) for shadow, times in found.items()}
    report["ratio of medians"] = _ratio(found[True].paced_ms, found[False].paced_ms)
    print(json.dumps(report, indent=2))
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=15, help="a block")
    parser.add_argument("--blocks", type=int, default=4, help="with a shadow, and as many without")
    parser.add_argument("--interval-s", type=float, default=0.8, help="mean time between studies, paced")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _dataset(jpegs: list[bytes], number: int) -> Dataset:
    return op_dataset(jpegs[number % len(jpegs)])


def _warm_up(house: House, jpegs: list[bytes]) -> None:
    house.receive(_dataset(jpegs, 0))
    house.work()


def _set_shadow(house: House, version: int, wanted: bool) -> None:
    state = VersionState.SHADOW if wanted else VersionState.RETIRED
    with house.store.write() as connection:
        connection.execute(update(model_version).where(model_version.c.version == version).values(state=state.value))
    house.work()  # loaded


def _paced(house: House, jpegs: list[bytes], options: argparse.Namespace) -> tuple[list[float], list[float]]:
    """Milliseconds from arrival to recorded results, and of these, waited for a shadow."""
    arrived: dict[str, float] = {}
    shadows: list[tuple[float, float]] = []
    run_shadow = house.worker._run_shadow

    def timed(work: Any) -> None:
        began = time.time()
        run_shadow(work)
        shadows.append((began, time.time()))

    house.worker._run_shadow = timed  # type: ignore[method-assign]
    done = threading.Event()

    def send() -> None:
        random = np.random.default_rng(1)  # the same times with and without
        for number in range(options.studies):
            time.sleep(random.exponential(options.interval_s))
            arrived[house.receive(_dataset(jpegs, number))] = time.time()
        done.set()

    sender = threading.Thread(target=send)
    sender.start()
    while not done.is_set() or _unfinished(house):
        if not house.worker.work_once():
            time.sleep(0.02)
    sender.join()
    house.work()
    house.worker._run_shadow = run_shadow  # type: ignore[method-assign]
    waited_ms = [
        max((ended - at for began, ended in shadows if began < at < ended), default=0.0) * 1000
        for at in arrived.values()
    ]
    with house.store.read() as connection:
        rows = connection.execute(select(study.c.study_key, study.c.judged_at).where(study.c.study_key.in_(arrived)))
        taken_ms = [(row.judged_at.timestamp() - arrived[row.study_key]) * 1000 for row in rows]
    return taken_ms, waited_ms


def _unfinished(house: House) -> bool:
    with house.store.read() as connection:
        waiting = select(study.c.study_key).where(study.c.state.in_(("receiving", "queued", "processing")))
        return connection.execute(waiting.limit(1)).first() is not None


def _burst(house: House, jpegs: list[bytes], count: int) -> float:
    """Studies a second until the last one's results are recorded; what waits in the shadow comes after."""
    for number in range(count):
        house.receive(_dataset(jpegs, number))
    started = time.perf_counter()
    while _unfinished(house):
        house.worker.work_once()
    took_s = time.perf_counter() - started
    house.work()
    return count / took_s


def _figures(times: Times) -> dict[str, Any]:
    return {
        "studies": len(times.paced_ms),
        "median_ms": round(statistics.median(times.paced_ms), 1),
        "p95_ms": round(float(np.quantile(times.paced_ms, 0.95)), 1),
        "mean_ms": round(statistics.mean(times.paced_ms), 1),
        "mean_wait_for_shadow_ms": round(statistics.mean(times.waited_ms), 1),
        "longest_wait_for_shadow_ms": round(max(times.waited_ms), 1),
        "burst_studies_per_s": round(statistics.median(times.burst_per_s), 2),
    }


def _ratio(shadowed: list[float], alone: list[float]) -> dict[str, float]:
    """With its 95 % bootstrap interval."""
    random = np.random.default_rng(0)
    draws = [
        np.median(random.choice(shadowed, len(shadowed))) / np.median(random.choice(alone, len(alone)))
        for _ in range(2000)
    ]
    low, high = np.quantile(draws, (0.025, 0.975))
    value = statistics.median(shadowed) / statistics.median(alone)
    return {"value": round(value, 3), "low": round(float(low), 3), "high": round(float(high), 3)}


if __name__ == "__main__":
    main()
