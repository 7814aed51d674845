"""A whole comparison, in one file: one call a stage.

versions -> cases -> scores -> truth -> figures -> verdict -> heat maps -> report -> store, MLflow
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from evaluation.criteria import CriterionVerdict, judge_criteria
from evaluation.evaluate import evaluate
from evaluation.figures import Evaluation
from gateway.comparison.heat import Choice, HeatMaps, choose, heat_maps
from gateway.comparison.measure import machine, measure
from gateway.comparison.page import make_page
from gateway.comparison.report import (
    CASES_FILE,
    PAGE_FILE,
    REPORT_FILE,
    RUN_FILE,
    Source,
    count_cases,
    metrics,
    report_tree,
    write_cases,
)
from gateway.comparison.scores import ScoreBook, working_name
from gateway.comparison.scoring import CHUNK, Listed, Preparation, reference_sharpness, score_all
from gateway.comparison.truth_match import TruthBook, read_table, stored_truth
from gateway.comparison.units import Gathered, gather
from gateway.comparison.versions import Pair, find_version
from gateway.deidentify import Deidentifier
from gateway.errors import ComparisonError
from gateway.objects import fsync_folder
from gateway.reference_standard import Rule
from gateway.saved.cases import Case, Skipped, is_export, iterate
from gateway.saved.query import Query
from gateway.store.comparisons import ComparisonRow, add_comparison
from gateway.store.engine import Store
from gateway.store.intake import new_key
from gateway.truth import TruthOptions
from models.card import Finding, file_sha256
from models.decoding import DecodingLimits, DecodingPool
from models.errors import ModelError
from models.session import ModelSession

logger = logging.getLogger(__name__)

FOLDER = "comparisons"
"""Below the data folder: one folder a comparison, by its key, and ``.work`` for those that are under way."""
_WORK = ".work"
DEFAULT_LEAST_CASES = 30
DEFAULT_DRAWS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """The gateway whose data folder is used."""

    store: Store
    data_dir: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is to be compared, and how."""

    pair: Pair
    source: Query | Path
    deidentifier: Deidentifier
    site_key: bytes
    site: Site | None
    """``None``: the report goes to `out` alone."""
    out: Path | None
    truth_file: Path | None = None
    truth_options: TruthOptions = field(default_factory=TruthOptions)
    truth_rule: Rule = "majority"
    """What holds where readers differ."""
    adjudicators: tuple[str, ...] = ()
    seed: int = 0
    draws: int = DEFAULT_DRAWS
    least_cases: int = DEFAULT_LEAST_CASES
    """Slices of fewer cases are small. What the criteria ask for stands in the card."""
    threads: int = 1
    providers: tuple[str, ...] | None = None
    decoding: DecodingLimits = field(default_factory=DecodingLimits)
    tracking_uri: str = ""
    """Where the MLflow run goes; empty: nowhere."""

    def __post_init__(self) -> None:
        if self.site is None and self.out is None:
            raise ComparisonError("no gateway's data folder; expected --out DIR for the report")
        if self.site is None and isinstance(self.source, Query):
            raise ComparisonError(
                "a query is about saved studies, and no gateway has run there; expected --data-dir, or a folder"
            )
        if self.out is not None and self.out.exists() and not _is_empty(self.out):
            raise ComparisonError(f"{self.out} is there already; expected a folder that is not, or is empty")

    @property
    def work(self) -> Path:
        """The working folder: the same for the same job, so that one that was stopped is found again."""
        source = self.source.text if isinstance(self.source, Query) else str(self.source.resolve())
        machinery = f"{self.threads} threads, {self.providers}"  # may round otherwise
        name = working_name(*(version.bundle_sha256 for version in self.pair.versions), source, machinery)
        if self.site is not None:
            return self.site.data_dir / FOLDER / _WORK / name
        assert self.out is not None
        return self.out.parent / f".{self.out.name}-{name[:8]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A comparison that was made."""

    comparison_key: str
    folder: Path
    report: Mapping[str, Any]
    run: Mapping[str, Any]
    mlflow_run: str
    """Empty: none was written."""

    @property
    def verdict(self) -> str:
        """``met``, ``not met``, ``not judged``."""
        return str(self.report["verdict"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What the scores say."""

    gathered: Mapping[str, Gathered]
    evaluations: Mapping[str, Evaluation]
    verdicts: tuple[CriterionVerdict, ...]
    chosen: Mapping[str, tuple[Choice, ...]]


def make_pair(baseline: str | None, candidate: str, store: Store | None) -> Pair:
    """The versions of that name; raises :class:`ComparisonError` where they cannot be compared."""
    return Pair(
        candidate=find_version(candidate, store),
        baseline=None if baseline is None else find_version(baseline, store),
    )


def compare(
    job: Job, *, now: Callable[[], datetime], by: str, progress: Callable[[int], None] = lambda _: None
) -> Comparison:
    """Compare, and write the report. What a former run of the same job has scored is taken from it.

    Parameters
    ----------
    now
        The clock.
    by
        Who asks, for the record.
    progress
        Told how many further cases are done.

    Raises
    ------
    ComparisonError
        There is nothing to compare, or the same comparison runs already.
    TruthError
        The truth table is wrong.
    """
    truth = _truth(job)
    skipped: Counter[str] = Counter()
    began = time.monotonic()
    with ExitStack() as stack:
        book = ScoreBook(job.work)
        stack.callback(book.close)
        decoder = DecodingPool(job.decoding, size=job.threads)
        stack.callback(decoder.close)
        executor = stack.enter_context(ThreadPoolExecutor(job.threads, thread_name_prefix="case"))
        sessions = _sessions(job)
        preparation = Preparation(
            bundles=tuple(version.bundle for version in job.pair.versions),
            decoder=decoder,
            modalities=job.pair.modalities,
            sharpness=reference_sharpness(job.pair.candidate.bundle),
        )
        count = score_all(_listed(job, truth, skipped), sessions, preparation, book, executor, progress=progress)
        if count == 0:
            shutil.rmtree(job.work, ignore_errors=True)  # nothing to go on with
            raise ComparisonError(_nothing(job, skipped))
        scoring_s = time.monotonic() - began
        judged = judge(job, book, truth)
        pictures = _pictures(job, judged, preparation, sessions)
        report = report_tree(
            pair=job.pair,
            source=_source(job, skipped),
            counts=count_cases(book, job.pair),
            truth=truth,
            gathered=judged.gathered,
            evaluations=judged.evaluations,
            verdicts=judged.verdicts,
            shown=judged.chosen,
            seed=job.seed,
            draws=job.draws,
            least_cases=job.least_cases,
        )
        run = _run_facts(job, now=now(), by=by, scoring_s=scoring_s, count=count)
        made = _write(job, book, truth, judged, report, run, pictures)
    shutil.rmtree(job.work, ignore_errors=True)
    return made


def judge(job: Job, book: ScoreBook, truth: TruthBook | None) -> Judged:
    """Figures of every finding, the verdict on each criterion, and which cases to show."""
    gathered = {finding.name: gather(book, job.pair, finding, truth) for finding in job.pair.findings}
    evaluations = {
        name: evaluate(each.cases, finding_name=name, seed=job.seed, draws=job.draws, least_cases=job.least_cases)
        for name, each in gathered.items()
        if each.cases is not None
    }
    acceptance = job.pair.candidate.bundle.card.acceptance
    return Judged(
        gathered=gathered,
        evaluations=evaluations,
        verdicts=() if acceptance is None else judge_criteria(evaluations, acceptance),
        chosen={name: choose(each.cases, seed=job.seed) for name, each in gathered.items() if each.cases is not None},
    )


def _truth(job: Job) -> TruthBook | None:
    book = None
    if job.truth_file is not None:
        book = read_table(job.truth_file, job.pair, job.truth_options)
    elif job.site is not None and isinstance(job.source, Query):
        book = stored_truth(job.site.store, job.pair)
    if book is not None:
        book.rule, book.adjudicators = job.truth_rule, frozenset(job.adjudicators)
    return book


def _sessions(job: Job) -> list[ModelSession]:
    try:
        return [
            ModelSession(version.bundle, providers=job.providers or None, threads=job.threads)
            for version in job.pair.versions
        ]
    except ModelError as error:
        raise ComparisonError(str(error)) from error


def _cases(job: Job, skip: Callable[[Skipped], None]) -> Iterator[Case]:
    return iterate(
        job.source,
        store=None if job.site is None else job.site.store,
        data_dir=None if job.site is None else job.site.data_dir,
        deidentifier=job.deidentifier,
        site_key=job.site_key,
        skip=skip,
    )


def _listed(job: Job, truth: TruthBook | None, skipped: Counter[str]) -> Iterator[Listed]:
    """Every case with the hash of its file; on the way the truth meets it."""

    def skip(file: Skipped) -> None:
        skipped[file.reason] += 1

    known = ("", "")
    for case in _cases(job, skip):
        if truth is not None:
            truth.meet(case)
        file = case.identifiers.get("file", "")
        if isinstance(job.source, Query) or not file:
            # A saved study's files never change; reading holds each against the hash that was kept with it.
            yield Listed(case=case, sha256=f"saved {case.case_key}")
            continue
        if known[0] != file:
            known = (file, _sha256(job.source / file))
        yield Listed(case=case, sha256=known[1])


def _sha256(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError:
        return ""  # gone since it was listed; opening it will say so


def _nothing(job: Job, skipped: Mapping[str, int]) -> str:
    if isinstance(job.source, Query):
        return f"no saved study fits {job.source.text!r}"
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))
    return f"{job.source}: no DICOM image to compare on ({f'files: {reasons}' if reasons else 'no file in it'})"


def _source(job: Job, skipped: Mapping[str, int]) -> Source:
    if isinstance(job.source, Query):
        return Source(kind="query", text=job.source.text, skipped=dict(skipped))
    kind = "export" if is_export(job.source) else "folder"
    return Source(kind=kind, text=job.source.resolve().name, skipped=dict(skipped))


def _pictures(
    job: Job, judged: Judged, preparation: Preparation, sessions: Sequence[ModelSession]
) -> dict[str, HeatMaps]:
    """Case key -> pictures of those that are shown."""
    wanted: dict[str, Finding] = {}
    for finding in job.pair.findings:
        for choice in judged.chosen.get(finding.name, ()):
            wanted[judged.gathered[finding.name].top_case.get(choice.unit, choice.unit)] = finding
    return dict(heat_maps(_cases(job, lambda _: None), wanted, preparation, sessions))


def _run_facts(job: Job, *, now: datetime, by: str, scoring_s: float, count: int) -> dict[str, Any]:
    """What depends on the clock and the machine: ``run.json``."""
    roles = ("candidate", "baseline")
    return {
        "comparison_key": new_key(),
        "created_at": now.isoformat(timespec="microseconds"),
        "created_by": by,
        "machine": machine(),
        "cases": count,
        "scoring_s": round(scoring_s, 1),
        "measured": {
            role: measure(version, batch=CHUNK, threads=job.threads, providers=job.providers)
            for role, version in zip(roles, job.pair.versions, strict=False)
        },
    }


def _write(
    job: Job,
    book: ScoreBook,
    truth: TruthBook | None,
    judged: Judged,
    report: Mapping[str, Any],
    run: Mapping[str, Any],
    pictures: Mapping[str, HeatMaps],
) -> Comparison:
    """Write the folder whole, then its row and the MLflow run."""
    staging = job.work / "report"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir()
        _write_json(staging / REPORT_FILE, report)
        _write_json(staging / RUN_FILE, run)
        write_cases(staging / CASES_FILE, book, job.pair, truth, "image" if truth is None else truth.kind)
        (staging / PAGE_FILE).write_text(make_page(report, run, pictures, judged.gathered), encoding="utf-8")
        folder = _place(staging, job, str(run["comparison_key"]))
    except OSError as error:
        raise ComparisonError(f"the report cannot be written: {error.strerror}") from error
    if job.site is not None:
        add_comparison(job.site.store, _row(job, report, run, file_sha256(folder / REPORT_FILE)))
    return Comparison(
        comparison_key=str(run["comparison_key"]),
        folder=job.out or folder,
        report=report,
        run=run,
        mlflow_run=_log(job, report, run, folder),
    )


def _write_json(path: Path, tree: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(tree, indent=1, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")


def _place(staging: Path, job: Job, key: str) -> Path:
    """Move the finished folder to where it belongs, its bytes on the disk before its name."""
    for path in (*staging.iterdir(), staging):
        with _opened(path) as descriptor:
            os.fsync(descriptor)
    if job.site is None:
        assert job.out is not None
        return _renamed(staging, job.out)
    folder = _renamed(staging, job.site.data_dir / FOLDER / key)
    if job.out is not None:
        copy = job.out.with_name(f".{job.out.name}.{os.getpid()}")
        job.out.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(folder, copy)
        _renamed(copy, job.out)
    return folder


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _renamed(folder: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    folder.replace(target)
    fsync_folder(target.parent)
    return target


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and next(folder.iterdir(), None) is None


def _row(job: Job, report: Mapping[str, Any], run: Mapping[str, Any], report_sha256: str) -> ComparisonRow:
    candidate, baseline = job.pair.candidate, job.pair.baseline
    overall = [
        finding["evaluation"]["overall"] for finding in report["findings"].values() if finding["evaluation"] is not None
    ]
    return ComparisonRow(
        comparison_key=str(run["comparison_key"]),
        model_name=candidate.bundle.card.name,
        version=candidate.bundle.card.version,
        baseline_name="" if baseline is None else baseline.bundle.card.name,
        baseline_version=None if baseline is None else baseline.bundle.card.version,
        studies=job.source.text if isinstance(job.source, Query) else str(job.source),
        case_count=min((each["cases"] for each in overall), default=0),
        truth_count=min((each["with_truth"] for each in overall), default=0),
        verdict=str(report["verdict"]),
        verdicts=report["criteria"],
        bundle_sha256=candidate.bundle_sha256,
        baseline_sha256="" if baseline is None else baseline.bundle_sha256,
        folder=f"{FOLDER}/{run['comparison_key']}",
        report_sha256=report_sha256,
        created_at=datetime.fromisoformat(str(run["created_at"])),
        created_by=str(run["created_by"]),
    )


def _log(job: Job, report: Mapping[str, Any], run: Mapping[str, Any], folder: Path) -> str:
    """Write the MLflow run; its absence costs nobody the report, and is said."""
    if not job.tracking_uri or job.site is None:
        return ""
    from models.tracking import log_comparison

    baseline = job.pair.baseline
    held = "truth alone" if baseline is None else baseline.name
    try:
        return log_comparison(
            job.tracking_uri,
            job.site.data_dir / "mlflow-artifacts",
            name=f"{job.pair.candidate.name} against {held}",
            params={
                "candidate": job.pair.candidate.name,
                "baseline": held,
                "studies": report["studies"]["text"],
                "truth": "" if report["truth"] is None else report["truth"]["sha256"] or report["truth"]["name"],
                **report["method"],
            },
            metrics=metrics(report, run),
            tags={
                "verdict": str(report["verdict"]),
                "comparison_key": str(run["comparison_key"]),
                "bundle_sha256": job.pair.candidate.bundle_sha256,
                "baseline_sha256": "" if baseline is None else baseline.bundle_sha256,
            },
            artifacts=folder,
        )
    except ModelError as error:
        logger.warning("the comparison has no MLflow run: %s", error)
        return ""
