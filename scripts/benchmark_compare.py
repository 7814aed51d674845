"""Compare two versions on up to 100,000 studies made of saved tensors: time a study, and memory while it runs.

The tensors are drawn once, saved, and handed out again under new keys, so that what is measured is the comparison
itself: chunks, scores on disk, figures, report. Decoding costs the same for every study and holds one chunk at a time;
it is left out, as is a network of any size: both versions are tiny. Truth is known for every study.

    python scripts/benchmark_compare.py OUT [--studies 1000 10000 100000]

writes OUT/benchmark_compare.json and OUT/benchmark_compare.svg.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests" / "support")]

SAVED = 512
"""Tensors that are drawn and saved."""
SAMPLE_S = 0.1


def main() -> None:
    """Measure each number of studies in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--studies", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.draws)))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    runs = []
    for count in options.studies:
        command = [sys.executable, __file__, str(options.out), "--one", str(count), "--draws", str(options.draws)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
        last = runs[-1]
        print(
            f"{count:7} studies: {last['scoring_ms_a_study']:.3f} ms a study scoring, {last['figures_ms_a_study']:.3f} "
            f"ms a study figures, report {last['report_s']:.1f} s, memory {last['before_mib']:.0f} MiB before, "
            f"{last['scoring_peak_mib']:.0f} scoring, {last['peak_mib']:.0f} at most"
        )
    (options.out / "benchmark_compare.json").write_text(json.dumps({"runs": runs}, indent=2) + "\n")
    draw(runs, options.out / "benchmark_compare.svg")


def measure(count: int, draws: int) -> dict[str, Any]:
    """One comparison of `count` studies, its phases timed and its memory sampled."""
    from tiny_bundles import tiny_graph, write_tiny_bundle

    from evaluation.evaluate import evaluate
    from gateway.comparison.measure import resident_mib
    from gateway.comparison.report import count_cases
    from gateway.comparison.scores import ScoreBook
    from gateway.comparison.scoring import Listed, PreparedCase, score_all
    from gateway.comparison.truth_match import TruthBook, TruthWord
    from gateway.comparison.units import gather
    from gateway.comparison.versions import Pair, find_version
    from gateway.saved.cases import Case
    from models.preprocess import Grid, ModelInput
    from models.session import ModelSession

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_tiny_bundle(folder / "one", version=1)
        model = tiny_graph()
        for entry in model.graph.initializer:
            if entry.name == "head.bias":
                entry.raw_data = np.array([0.3, -0.3], dtype=np.float32).tobytes()
        write_tiny_bundle(folder / "two", model, version=2)
        pair = Pair(candidate=find_version(str(folder / "two"), None), baseline=find_version(str(folder / "one"), None))
        sessions = [ModelSession(version.bundle, providers=["CPUExecutionProvider"]) for version in pair.versions]
        random = np.random.default_rng(1)
        np.save(folder / "tensors.npy", random.normal(0, 1, (SAVED, 3, 16, 16)).astype(np.float32))
        tensors = np.load(folder / "tensors.npy", mmap_mode="r")
        grid = Grid(source_rows=16, source_columns=16, top=0, left=0, height=16, width=16)
        devices = [f"DEVICE {letter} · 1.0 · 0123ABCD" for letter in "ABCDEFGH"]

        def cases() -> Iterator[Listed]:
            for number in range(count):
                case = Case(
                    case_key=f"{number:032x}-0",
                    study_key=f"{number:032x}",
                    group_key=f"{number // 2:032x}",
                    frame_index=0,
                    slices={
                        "device": devices[number % 8],
                        "sex": "FM"[number % 2],
                        "age_group": f"{10 * (number % 7)}-{10 * (number % 7) + 9}",
                        "laterality": "RL"[number // 2 % 2],
                    },
                    identifiers={"file": f"{number}.dcm"},
                    reader=lambda: None,  # type: ignore[arg-type,return-value]
                )
                truth.meet(case)
                yield Listed(case=case, sha256=f"{number:064x}")

        def prepare(case: Case) -> PreparedCase:
            shift = np.float32(int(case.study_key, 16) % 997 / 997)
            tensor = np.asarray(tensors[int(case.study_key, 16) % SAVED]) + shift
            return PreparedCase(inputs=(ModelInput(tensor=tensor, grid=grid, statistics={}),) * 2)

        truth = TruthBook(
            name="drawn",
            sha256="",
            words=tuple(
                TruthWord(
                    line=number,
                    keys={"file": f"{number}.dcm"},
                    kind="image",
                    finding_name="there",
                    value="present" if number % 3 == 0 else "absent",
                    laterality="",
                    reader="",
                    read_at=None,
                )
                for number in range(count)
            ),
        )
        samples: list[tuple[float, float]] = []
        began, stop = time.perf_counter(), threading.Event()

        def sample() -> None:
            while not stop.wait(SAMPLE_S):
                samples.append((round(time.perf_counter() - began, 2), round(resident_mib(), 1)))

        before = resident_mib()
        sampler = threading.Thread(target=sample, daemon=True)
        sampler.start()
        book = ScoreBook(folder / "work")
        with ThreadPoolExecutor(1) as executor:
            score_all(cases(), sessions, prepare, book, executor)
        scored = time.perf_counter()
        finding = pair.findings[0]
        gathered = gather(book, pair, finding, truth)
        counts = count_cases(book, pair)
        assert gathered.cases is not None and counts.cases == count
        gathered_at = time.perf_counter()
        evaluation = evaluate(gathered.cases, finding_name=finding.name, draws=draws)
        figured = time.perf_counter()
        report_bytes = len(json.dumps(evaluation.to_json()))
        stop.set()
        sampler.join()
        book.close()
        scoring = [memory for at, memory in samples if at <= scored - began]
        return {
            "studies": count,
            "before_mib": round(before, 1),
            "scoring_peak_mib": max(scoring, default=before),
            "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
            "scoring_s": round(scored - began, 2),
            "gathering_s": round(gathered_at - scored, 2),
            "figures_s": round(figured - gathered_at, 2),
            "report_s": round(time.perf_counter() - figured, 2),
            "scoring_ms_a_study": round((scored - began) / count * 1000, 4),
            "figures_ms_a_study": round((figured - scored) / count * 1000, 4),
            "report_bytes": report_bytes,
            "draws": evaluation.overall.draws,
            "scoring_until_s": round(scored - began, 2),
            "samples": samples[:: max(1, len(samples) // 400)],
        }


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """Memory over the run, and time a study over the number of studies."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for run in runs:
        end = run["samples"][-1][0] if run["samples"] else 1
        xs = [100 * at / end for at, _ in run["samples"]]
        left.plot(xs, [memory for _, memory in run["samples"]], label=f"{run['studies']:,} studies")
    left.set(xlabel="share of the run (%)", ylabel="resident memory (MiB)", ylim=(0, None), title="Memory")
    left.legend()
    counts = [run["studies"] for run in runs]
    for name, title in (("scoring_ms_a_study", "scoring"), ("figures_ms_a_study", "gathering and figures")):
        right.plot(counts, [run[name] for run in runs], marker="o", label=title)
    right.set(xscale="log", ylim=(0, None), xlabel="studies", ylabel="ms a study", title="Time a study")
    right.legend()
    figure.savefig(path)


if __name__ == "__main__":
    main()
