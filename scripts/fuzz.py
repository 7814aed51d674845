#!/usr/bin/env python
"""Fuzz the reader, from the first byte of a PDU to the de-identified data set; see docs/fuzzing.md.

``scripts/fuzz.py --cases 1000000`` runs that many cases of each target, or until ``--seconds`` are over. Case N of a
target and a seed is the same at any time: ``--first`` goes on where a run ended. Findings are written to ``--output``,
each with its bytes and the fewest changes that show it; the exit status is 1 when there are any.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from fuzzing import TARGETS, TooSlow, case_folder, changed, random_case, run_case, seeds  # noqa: E402

BLOCK = 500
MEMORY_BYTES = 4 << 30
FINDINGS_KEPT_PER_BLOCK = 20


def failure(target: str, case: bytes, folder: Path) -> tuple[str, str]:
    """(outcome, "") or ("", what came out and where)."""
    try:
        return run_case(target, case, folder), ""
    except (Exception, TooSlow) as error:  # noqa: BLE001 - this is the finding
        where = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in where if ROOT in Path(frame.filename).parents and ".venv" not in frame.filename]
        last = (ours or where)[-1]
        return "", f"{type(error).__name__} in {Path(last.filename).name}:{last.lineno} ({where[-1].name})"


def run_block(job: tuple[str, int, int, int]) -> dict[str, Any]:
    """Cases `first` to `last` of a target."""
    target, first, last, seed = job
    start = seeds(target)
    outcomes: Counter[str] = Counter()
    findings = []
    with case_folder() as folder:
        for number in range(first, last):
            case, other, changes = random_case(target, number, seed, start)
            outcome, found = failure(target, changed(case, changes, other), folder)
            outcomes[outcome or f"FINDING {found}"] += 1
            if found and len(findings) < FINDINGS_KEPT_PER_BLOCK:
                for change in list(changes):
                    fewer = [each for each in changes if each is not change]
                    if failure(target, changed(case, fewer, other), folder)[1] == found:
                        changes = fewer
                findings.append({"number": number, "found": found, "bytes": changed(case, changes, other)})
    return {"target": target, "cases": last - first, "outcomes": outcomes, "findings": findings}


def jobs(arguments: argparse.Namespace) -> Iterator[tuple[str, int, int, int]]:
    """Blocks of all targets in turn."""
    end = arguments.first + arguments.cases
    for first in range(arguments.first, end, BLOCK):
        for target in arguments.target:
            yield target, first, min(first + BLOCK, end), arguments.seed


def limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--cases", type=int, default=100_000, help="of each target")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this long")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "fuzz")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    started, cases, outcomes = time.monotonic(), Counter[str](), {target: Counter[str]() for target in arguments.target}
    findings: dict[tuple[str, str], dict[str, Any]] = {}
    total = arguments.cases * len(arguments.target)
    with (
        multiprocessing.Pool(arguments.processes, initializer=limit_memory) as pool,
        tqdm(total=total, unit="case", mininterval=5) as bar,
    ):
        for block in pool.imap_unordered(run_block, jobs(arguments)):
            target = block["target"]
            cases[target] += block["cases"]
            outcomes[target].update(block["outcomes"])
            for each in block["findings"]:
                known = findings.setdefault((target, each["found"]), each)
                if len(each["bytes"]) < len(known["bytes"]):
                    findings[target, each["found"]] = each
            bar.update(block["cases"])
            bar.set_postfix(findings=len(findings))
            if time.monotonic() - started > arguments.seconds:
                pool.terminate()
                break
    for index, ((target, _), each) in enumerate(sorted(findings.items())):
        each["file"] = f"{target}-{index}.bin"
        (arguments.output / each["file"]).write_bytes(each.pop("bytes"))
    report = {
        "seed": arguments.seed,
        "first": arguments.first,
        "seconds": round(time.monotonic() - started, 1),
        "cases": dict(cases),
        "total_cases": sum(cases.values()),
        "distinct_outcomes": {target: len(found) for target, found in outcomes.items()},
        "outcomes": {target: dict(found.most_common()) for target, found in outcomes.items()},
        "findings": [{"target": target, **each} for (target, _), each in sorted(findings.items())],
    }
    (arguments.output / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    print(
        json.dumps(
            {name: report[name] for name in ("cases", "total_cases", "distinct_outcomes", "seconds", "findings")}
        )
    )
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
