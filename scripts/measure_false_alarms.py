"""Measure how often the drift monitors cry without drift, on the reference embeddings of a bundle.

    python scripts/measure_false_alarms.py models/bundled/chest-triage/1 --draws 40

Each draw splits the reference at random: most of it becomes the reference, the rest a stream of studies in random
order, which by construction has not drifted. Prints one JSON object: the share of tests at or under several p-values
on windows that share no study, and alarms on the stream as the monitor looks at it, every ten studies. The part left as
a reference is smaller than the one that ships, so the figures lean to the pessimistic side.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from tqdm import tqdm

from drift.mmd import BuiltinMmd
from drift.monitors import DriftKind, DriftState, Subject, WindowRule, judge_embeddings, summary_shift
from drift.reference import Reference, load_reference, whiten_reference

SUBJECT = Subject(model_name="measured", model_version=1)
LEVELS = (0.05, 0.01, 0.001)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    reference: Reference
    stream: Reference


def draws(reference: Reference, count: int, stream_studies: int, seed: int) -> Iterator[Draw]:
    """Random splits into a reference and a stream, the same for the same seed."""
    generator = np.random.default_rng(seed)
    for _ in range(count):
        order = generator.permutation(len(reference.embeddings))
        yield Draw(reference=rows(reference, order[stream_studies:]), stream=rows(reference, order[:stream_studies]))


def rows(reference: Reference, chosen: np.ndarray) -> Reference:
    return replace(
        reference,
        embeddings=reference.embeddings[chosen],
        scores=reference.scores[chosen],
        explanations=reference.explanations[chosen],
        statistics=reference.statistics[chosen],
    )


def p_values_of(draw: Draw, ends: range, rule: WindowRule) -> dict[str, list[float]]:
    """p-values of every monitor on the windows that end at `ends`."""
    now = datetime.now(UTC)
    test = BuiltinMmd(whiten_reference(draw.reference))
    found: dict[str, list[float]] = {kind: [] for kind in DriftKind}
    for end in ends:
        part = slice(max(0, end - rule.size), end)
        results = (
            judge_embeddings(test, draw.stream.embeddings[part], SUBJECT, rule=rule, now=now),
            summary_shift(
                draw.reference.explanations, draw.reference.explanation_names, draw.stream.explanations[part], SUBJECT,
                kind=DriftKind.EXPLANATION, rule=rule, now=now,
            ),
            summary_shift(
                draw.reference.statistics, draw.reference.statistic_names, draw.stream.statistics[part], SUBJECT,
                kind=DriftKind.STATISTICS, rule=rule, now=now,
            ),
        )  # fmt: skip
        for result in results:
            if result.state is not DriftState.NOT_JUDGED and result.p_value is not None:
                found[result.kind].append(result.p_value)
    return found


def measure(reference: Reference, options: argparse.Namespace) -> dict[str, object]:
    rule = WindowRule()
    apart: dict[str, list[float]] = {kind: [] for kind in DriftKind}
    looks: dict[str, list[float]] = {kind: [] for kind in DriftKind}
    streams_with_alarm = dict.fromkeys(DriftKind, 0)
    splits = draws(reference, options.draws, options.stream, options.seed)
    for draw in tqdm(splits, total=options.draws, disable=None):
        found = p_values_of(draw, range(rule.minimum, options.stream + 1, rule.stride), rule)
        for kind, p_values in found.items():
            looks[kind] += p_values
            streams_with_alarm[DriftKind(kind)] += min(p_values, default=1.0) <= rule.threshold_p
        for kind, p_values in p_values_of(draw, range(rule.size, options.stream + 1, rule.size), rule).items():
            apart[kind] += p_values
    return {
        "reference_studies": len(reference.embeddings) - options.stream,
        "stream_studies": options.stream,
        "draws": options.draws,
        "monitors": {
            kind.value: {
                "windows_apart": len(apart[kind]),
                "share_at_or_under": {
                    str(level): round(float(np.mean(np.array(apart[kind]) <= level)), 4) for level in LEVELS
                },
                "looks": len(looks[kind]),
                "looks_at_or_under_threshold": int(np.sum(np.array(looks[kind]) <= rule.threshold_p)),
                "streams_with_an_alarm": streams_with_alarm[kind],
            }
            for kind in DriftKind
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="folder with reference.npz")
    parser.add_argument("--draws", type=int, default=40)
    parser.add_argument("--stream", type=int, default=100, help="studies taken out of the reference as the stream")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    began = time.monotonic()
    found = measure(load_reference(options.bundle / "reference.npz"), options)
    print(json.dumps(found | {"took_s": round(time.monotonic() - began)}, indent=2))


if __name__ == "__main__":
    main()
