#!/usr/bin/env python
"""De-identify one corpus with this engine and with its peers, and print what each leaks, loses, breaks and takes.

The corpus is made by ``tests/support/deidentification_corpus.py``: about 270 identifiers are planted in each object, of
all kinds and in all places where real ones occur, and the answers are kept beside it. Each peer runs in a process of
its own, in a virtual environment of its own that is made with pip, as its documentation shows
(``scripts/deidentification/`` says how). What is printed:

places, tokens
    Places from which a planted identifier survives in an output's bytes (deflated data sets inflated), and how many
    identifiers of how many. What the option Retain Device Identity keeps is not counted for any of them, nor what other
    options keep with which a tool runs.
lost
    Attributes with needed values (none is in Table E.1-1 of PS3.15) that are gone or changed, of how many.
pixels
    Objects without burned-in text whose decoded pixels differ.
errors
    Errors of dciodvfy that the output has and the original has not.
failed
    Objects for which nothing was written.
hostile
    Tokens that survive in objects that are invalid on purpose; those may be refused.
ms, cpu ms
    Median of the least times, by the clock and of the processor, of one object: read from disk, de-identify, write, all
    inside the tool's process, without imports and set-up. For an 8 MB DX, and over the corpus of small objects.
    Orthanc's are over HTTP.
MIDI
    Right answers to the ten actions of the MIDI benchmark (``tests/support/deidentification_score.py``).

Run ``scripts/benchmark_deidentify.py [--json FILE] [--files N] [--repeats N] [--peers NAME ...]``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "scripts" / "deidentification"
sys.path.insert(0, str(ROOT / "tests" / "support"))

from deidentification_corpus import Corpus, CorpusFile, build, large_radiograph  # noqa: E402
from deidentification_score import (  # noqa: E402
    ACTIONS,
    Outputs,
    frames_differ,
    leaks,
    midi,
    read,
    searchable,
    validator_errors,
    wrongly_removed,
)

FOR_RESEARCH = frozenset(
    {"retain_device_identity", "retain_patient_characteristics", "retain_longitudinal_modified_dates"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A de-identifier, how it is run and where it is from."""

    name: str
    adapter: str
    argument: str = ""
    requirement: str = ""
    """What pip installs; empty for this engine and for programs."""
    options: frozenset[str] = frozenset({"retain_device_identity"})
    """Options of PS3.15 that it runs with, and Retain Device Identity for all: what they keep is no leak."""


TOOLS = (
    Tool(name="gateway", adapter="with_gateway.py", argument="default"),
    Tool(name="gateway, MIDI options", adapter="with_gateway.py", argument="midi", options=FOR_RESEARCH),
    Tool(
        name="dentdeid research",
        adapter="with_dentdeid.py",
        argument="research",
        requirement="dentdeid==0.1.0",
        options=FOR_RESEARCH,
    ),
    Tool(name="dentdeid share", adapter="with_dentdeid.py", argument="share", requirement="dentdeid==0.1.0"),
    Tool(
        name="dentdeid attributes",
        adapter="with_dentdeid.py",
        argument="attributes",
        requirement="dentdeid==0.1.0",
        options=FOR_RESEARCH,
    ),
    Tool(name="dicom-anonymizer", adapter="with_dicom_anonymizer.py", requirement="dicom-anonymizer==2.1.0"),
    Tool(name="deid", adapter="with_deid.py", requirement="deid==0.4.13"),
    Tool(name="dicognito", adapter="with_dicognito.py", requirement="dicognito==0.19.0"),
    Tool(name="Orthanc", adapter="with_orthanc.py"),
)


@dataclass(slots=True, kw_only=True)
class Result:
    """All that is said of one tool."""

    tool: str
    failed: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    leaking_places: dict[str, int] = field(default_factory=dict)
    leaking_tokens: int = 0
    planted_tokens: int = 0
    hostile_tokens: int = 0
    hostile_refused: int = 0
    lost: dict[str, int] = field(default_factory=dict)
    needed: int = 0
    pixels_changed: int = 0
    new_errors: dict[str, int] = field(default_factory=dict)
    """By family."""
    radiograph_ms: float | None = None
    radiograph_processor_ms: float | None = None
    corpus_ms: float | None = None
    corpus_processor_ms: float | None = None
    midi_score: float = 0.0
    midi_right: dict[str, int] = field(default_factory=dict)
    midi_asked: dict[str, int] = field(default_factory=dict)
    midi_wrong: dict[str, int] = field(default_factory=dict)


def python_of(tool: Tool, environments: Path) -> Path | None:
    """The interpreter that runs a tool; makes its virtual environment if there is none; None if it cannot be had."""
    if not tool.requirement:
        if (
            tool.adapter == "with_orthanc.py"
            and shutil.which("Orthanc", path=f"{os.environ['PATH']}:/usr/sbin") is None
        ):
            return None
        return Path(sys.executable)
    folder = environments / tool.requirement
    python, done = folder / "bin" / "python", folder / "installed"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        installed = subprocess.run([python, "-m", "pip", "install", "--quiet", tool.requirement], check=False)
        if installed.returncode:
            return None
        done.touch()
    return python


def run_tool(python: Path, tool: Tool, files: list[tuple[Path, Path]], repeats: int, scratch: Path) -> dict[str, Any]:
    """Times and failures of a tool over (original, result) files."""
    job, answer = scratch / "job.json", scratch / "answer.json"
    job.write_text(json.dumps({"files": [[str(one), str(two)] for one, two in files], "repeats": repeats}), "utf-8")
    answer.unlink(missing_ok=True)
    environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONDONTWRITEBYTECODE="1")
    finished = subprocess.run(
        [python, HERE / tool.adapter, job, answer, *([tool.argument] if tool.argument else [])],
        capture_output=True, text=True, check=False, env=environment, timeout=3600,
    )  # fmt: skip
    if not answer.exists():
        print(f"{tool.name} ended with {finished.returncode}: {finished.stderr[-400:]}", file=sys.stderr)
        return {"times_ms": {}, "processor_ms": {}, "failures": {str(one): "the tool ended" for one, _ in files}}
    return dict(json.loads(answer.read_text("utf-8")))


def median(times: dict[str, float], of: set[str] | None = None) -> float | None:
    """Of the times of these files, in ms."""
    chosen = [spent for name, spent in times.items() if of is None or name in of]
    return round(statistics.median(chosen), 2) if chosen else None


def judge(
    result: Result,
    kept: frozenset[str],
    corpus: Corpus,
    outputs: Outputs,
    errors_before: dict[Path, Counter[str]],
    scratch: Path,
) -> None:
    """Everything but times."""
    places: Counter[str] = Counter()
    lost: Counter[str] = Counter()
    new_errors: Counter[str] = Counter({file.family: 0 for file in corpus.files})
    for file in corpus.files:
        output = outputs.get(file.path)
        if file.is_hostile:
            result.hostile_refused += output is None
            result.hostile_tokens += 0 if output is None else len(leaks(output.read_bytes(), file.plants, kept))
            continue
        result.planted_tokens += len({plant.token for plant in file.plants if not plant.may_stay(kept)})
        result.needed += len(file.retained)
        if output is None:
            continue
        left = leaks(output.read_bytes(), file.plants, kept)
        result.leaking_tokens += len(left)
        places.update({plant.place for plant in left})
        dataset = read(output)
        lost.update(wrongly_removed(dataset, file.retained))
        result.pixels_changed += file.burned_in is None and frames_differ(dataset, read(file.path))
        if errors_before:
            more = validator_errors(output, VALIDATOR, scratch) - errors_before[file.path]
            new_errors[file.family] += sum(more.values())
    result.leaking_places, result.lost = dict(places.most_common()), dict(lost.most_common())
    result.new_errors = dict(new_errors) if errors_before else {}
    wrong: list[tuple[str, str, str]] = []
    tally = midi(corpus, outputs, wrong=wrong)
    result.midi_score = tally.score
    result.midi_right, result.midi_asked = dict(tally.right), dict(tally.asked)
    result.midi_wrong = dict(Counter(f"{action}: {where}" for action, _, where in wrong).most_common(30))


VALIDATOR = Path(sys.executable).parent / "dciodvfy"


def measure(
    tool: Tool, corpus: Corpus, options: argparse.Namespace, errors: dict[Path, Counter[str]], work: Path
) -> Result | None:
    """One tool over the corpus and over the large radiograph."""
    python = python_of(tool, options.environments)
    if python is None:
        print(f"{tool.name}: not here, left out", file=sys.stderr)
        return None
    folder = work / tool.name.replace(" ", "-").replace(",", "")
    folder.mkdir()
    files = [(file.path, folder / file.path.name) for file in corpus.files]
    answer = run_tool(python, tool, files, options.repeats, work)
    result = Result(tool=answer.get("name", tool.name))
    valid = {str(file.path) for file in corpus.files if not file.is_hostile}
    failures = {name: why for name, why in answer["failures"].items() if name in valid}
    result.failed, result.failures = len(failures), dict(Counter(failures.values()))
    result.corpus_ms = median(answer["times_ms"], valid)
    result.corpus_processor_ms = median(answer.get("processor_ms", {}), valid)
    outputs = {one: two for one, two in files if two.exists() and str(one) not in answer["failures"]}
    judge(result, tool.options, corpus, outputs, errors, work)
    if not options.quick:
        large = work / "large.dcm"
        answer = run_tool(python, tool, [(large, folder / "large.dcm")], options.repeats, work)
        result.radiograph_ms, result.radiograph_processor_ms = (
            median(answer["times_ms"]),
            median(answer.get("processor_ms", {})),
        )
    return result


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def print_tables(results: list[Result]) -> None:
    """What was found, for people."""
    head = (
        "",
        "places",
        "tokens",
        "lost",
        "pixels",
        "errors",
        "failed",
        "hostile",
        "DX ms",
        "cpu ms",
        "ms",
        "cpu ms",
        "MIDI",
    )
    rows = [head]
    for each in results:
        rows.append(
            (
                each.tool, str(len(each.leaking_places)), f"{each.leaking_tokens}/{each.planted_tokens}",
                f"{sum(each.lost.values())}/{each.needed}", str(each.pixels_changed),
                str(sum(each.new_errors.values())) if each.new_errors else "-", str(each.failed),
                str(each.hostile_tokens),
                _shown(each.radiograph_ms), _shown(each.radiograph_processor_ms), _shown(each.corpus_ms),
                _shown(each.corpus_processor_ms), f"{100 * each.midi_score:.2f}%",
            )
        )  # fmt: skip
    _print_rows(rows)
    print("\nNew errors of dciodvfy by family")
    families = list(results[0].new_errors)
    _print_rows(
        [
            ("", *families),
            *((each.tool, *(str(each.new_errors.get(name, "-")) for name in families)) for each in results),
        ]
    )
    print("\nRight answers by action of the MIDI benchmark")
    rows = [("", *ACTIONS)]
    rows += [
        (each.tool, *(f"{each.midi_right[action]}/{each.midi_asked[action]}" for action in ACTIONS)) for each in results
    ]
    _print_rows(rows)


def _print_rows(rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        first, *rest = (
            cell.ljust(width) if not n else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join((first, *rest)))


def main() -> None:
    """Make the corpus, run each tool, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for all figures")
    parser.add_argument("--files", type=int, default=24, help="valid objects in the corpus (default 24)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each file (default 5)")
    parser.add_argument("--peers", nargs="*", help="names of tools; all if left away, none but this engine if empty")
    parser.add_argument("--quick", action="store_true", help="eight objects, once, by this engine alone, no large one")
    parser.add_argument(
        "--environments", type=Path, default=Path(tempfile.gettempdir()) / "deidentification-peers",
        help="folder in which the peers' virtual environments are kept",
    )  # fmt: skip
    options = parser.parse_args()
    if options.quick:
        options.files, options.repeats, options.peers = 8, 1, []
    chosen = [tool for tool in TOOLS if options.peers is None or tool.name in options.peers or tool.name == "gateway"]
    options.environments.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "in").mkdir()
        corpus = build(work / "in", files=options.files, hostile=0 if options.quick else 8)
        if not options.quick:
            large_radiograph(work / "large.dcm")
        check_the_scorer(corpus.files)
        errors = {}
        if VALIDATOR.exists():
            errors = {
                file.path: validator_errors(file.path, VALIDATOR, work) for file in corpus.files if not file.is_hostile
            }
        results = [found for tool in chosen if (found := measure(tool, corpus, options, errors, work))]
    print_tables(results)
    if options.json:
        figures = {
            "machine": f"{platform.machine()}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f} at the end",
            "python": platform.python_version(), "files": options.files, "repeats": options.repeats,
            "originals_with_errors": sum(bool(each) for each in errors.values()),
            "results": [asdict(each) for each in results],
        }  # fmt: skip
        options.json.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", "utf-8")


def check_the_scorer(files: tuple[CorpusFile, ...]) -> None:
    """Stop unless every planted token is found in the originals: else no figure means anything."""
    for file in files:
        found = {plant.token for plant in leaks(file.path.read_bytes(), file.plants)}
        missing = {plant.token for plant in file.plants} - found
        if missing or not searchable(file.path.read_bytes()):
            raise SystemExit(f"{len(missing)} planted tokens are not found in {file.path.name}: the scorer is broken")


if __name__ == "__main__":
    main()
