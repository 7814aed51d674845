"""``gateway compare``: two versions on the same studies, or one against the truth."""

from __future__ import annotations

import argparse
import glob
import json
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.errors import ComparisonError
from gateway.system_account import command_actor

if TYPE_CHECKING:
    from gateway.comparison.run import Comparison, Job, Site
    from gateway.saved.query import Query
    from gateway.settings import Settings
    from gateway.store import Store

OpenSite = Callable[[argparse.Namespace], "tuple[Settings, Path, Store]"]
NOT_MET = 3
"""Exit status of a comparison that was made, and in which the acceptance criteria are not met."""


def add_compare_command(
    commands: Any, add_place: Callable[[argparse.ArgumentParser], None], open_site: OpenSite
) -> None:
    """Add ``compare`` to the parsers of the commands."""
    parser = commands.add_parser(
        "compare",
        help="hold a model version against another, or against the truth, on the same studies",
        description="gateway compare BASELINE CANDIDATE, or gateway compare CANDIDATE for one against the truth "
        "alone. A version is MODEL@VERSION, MODEL@champion, MODEL@canary, MODEL@shadow, or the folder of a bundle. A "
        "comparison that was stopped goes on where it was when it is started again. Exit status 3: the acceptance "
        "criteria of the candidate's card are not met.",
    )
    add_place(parser)
    parser.add_argument("versions", nargs="+", metavar="VERSION", help="the baseline, then the candidate")
    parser.add_argument(
        "--studies",
        required=True,
        metavar="QUERY|DIR",
        help="a query for saved studies, a folder of DICOM files, or an export of saved studies",
    )
    parser.add_argument("--truth", type=Path, metavar="CSV", help="what readers found (docs/truth.md)")
    parser.add_argument("--finding", default="", metavar="NAME", help="whose truth it is, where the table does not say")
    parser.add_argument(
        "--positive-from", type=float, metavar="GRADE", help="the table has grades; from this one on it is present"
    )
    parser.add_argument(
        "--column", action="append", default=[], metavar="NAME=HEADER", help="which header stands for a column"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="also write the report here; needed without a gateway")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the bootstrap and of what is shown (0)")
    parser.add_argument("--draws", type=int, default=2000, metavar="N", help="of the bootstrap (2000)")
    parser.add_argument("--least-cases", type=int, default=30, metavar="N", help="slices of fewer are small (30)")
    parser.add_argument("--threads", type=int, metavar="N", help="for decoding and inference (one a core)")
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.set_defaults(run=lambda options: _compare(options, open_site))


def _compare(options: argparse.Namespace, open_site: OpenSite) -> int:
    from tqdm import tqdm

    from gateway.comparison.run import compare

    with ExitStack() as stack:
        job = _job(options, open_site, stack)
        quiet = options.json or not sys.stderr.isatty()
        with tqdm(total=_expected(job), unit="case", disable=quiet) as bar:

            def count(cases: int) -> None:
                bar.update(cases)

            made = compare(job, now=lambda: datetime.now(UTC), by=command_actor(), progress=count)
    if options.json:
        print(json.dumps(_as_json(made), indent=2))
    else:
        print("\n".join(lines(made)))
    return NOT_MET if made.verdict == "not met" else 0


def _job(options: argparse.Namespace, open_site: OpenSite, stack: ExitStack) -> Job:
    """What is asked for; raises for all that can be wrong before a case is opened."""
    if len(options.versions) > 2:
        raise ComparisonError("expected one version, or two: the baseline, then the candidate")
    if options.draws < 1 or options.least_cases < 1 or options.seed < 0:
        raise ComparisonError("--draws and --least-cases: expected 1 or more; --seed: 0 or more")
    from gateway.bulk.workers import make_finder
    from gateway.catalogue import embedded_registry_uri
    from gateway.comparison.run import Job, make_pair
    from gateway.deidentification.keys import load_or_create_key
    from gateway.deidentify import Deidentifier
    from gateway.site_key import load_site_key
    from gateway.truth import TruthOptions
    from models.decoding import DecodingLimits

    settings, site = _site(options, open_site, stack)
    *baseline, candidate = options.versions
    pair = make_pair(baseline[0] if baseline else None, candidate, None if site is None else site.store)
    if site is not None:
        key = load_site_key(settings.deidentification, site.data_dir)
    elif options.out is None:
        raise ComparisonError(f"no gateway has run on {options.data_dir}; expected --data-dir, or --out for the report")
    else:
        # Pseudonyms have to be the same when it goes on after an interruption.
        options.out.parent.mkdir(parents=True, exist_ok=True)
        path = options.out.parent / f".{options.out.name}.key"
        key = load_or_create_key(path)
        stack.callback(lambda: _forget(path, options.out))
    profile = settings.deidentification.profile
    return Job(
        pair=pair,
        source=_source(options.studies),
        deidentifier=Deidentifier(key, profile, text_finder=make_finder(profile)),
        site_key=key,
        site=site,
        out=options.out,
        truth_file=options.truth,
        truth_options=TruthOptions(
            finding_name=options.finding, positive_from=options.positive_from, columns=_columns(options.column)
        ),
        truth_rule=settings.truth.rule,
        adjudicators=settings.truth.adjudicators,
        seed=options.seed,
        draws=options.draws,
        least_cases=options.least_cases,
        threads=options.threads or os.cpu_count() or 1,
        providers=settings.worker.providers or None,
        decoding=DecodingLimits(**settings.decoding.model_dump()),
        tracking_uri=settings.models.tracking_uri or ("" if site is None else embedded_registry_uri(site.data_dir)),
    )


def _site(options: argparse.Namespace, open_site: OpenSite, stack: ExitStack) -> tuple[Settings, Site | None]:
    """The settings, and the gateway where there is one."""
    from gateway.comparison.run import Site
    from gateway.settings import load_settings

    settings = load_settings(options.config)
    if not settings.store.url and not (options.data_dir / "gateway.db").is_file():
        return settings, None
    settings, data_dir, store = open_site(options)
    stack.callback(store.close)
    return settings, Site(store=store, data_dir=data_dir)


def _forget(key_file: Path, out: Path) -> None:
    """Delete the key of a comparison that is done, or that left nothing to go on with."""
    if not any(out.parent.glob(f".{glob.escape(out.name)}-*")):
        key_file.unlink(missing_ok=True)


def _source(text: str) -> Query | Path:
    """A folder where there is one of that name, else a query."""
    from gateway.saved.query import parse_query

    if Path(text).is_dir():
        return Path(text)
    if "=" not in text:
        raise ComparisonError(
            f"{text} is neither a folder nor a query; a query is like 'model=retinopathy state=champion'"
        )
    return parse_query(text)


def _columns(given: list[str]) -> dict[str, str]:
    pairs = [each.partition("=") for each in given]
    if any(not (name and sign and header) for name, sign, header in pairs):
        raise ComparisonError("--column: expected NAME=HEADER, as value=icdr_grade")
    return {name: header for name, _, header in pairs}


def _expected(job: Job) -> int | None:
    """How many cases there will be, about; ``None`` where counting would cost a walk through the store."""
    from gateway.saved.cases import walk_files

    return sum(1 for _ in walk_files(job.source)) if isinstance(job.source, Path) else None


def _as_json(made: Comparison) -> dict[str, Any]:
    return {
        "comparison_key": made.comparison_key,
        "folder": str(made.folder),
        "verdict": made.verdict,
        "verdict_reason": made.report["verdict_reason"],
        "criteria": made.report["criteria"],
        "mlflow_run": made.mlflow_run,
    }


def lines(made: Comparison) -> list[str]:
    """A comparison for a person at a terminal."""
    report = made.report
    cases = report["cases"]
    shown = [f"{cases['cases']} cases of {cases['studies']} studies"]
    for role in ("candidate", "baseline"):
        failed, poor = (sum(cases[what].get(role, {}).values()) for what in ("failed", "ungradable"))
        if failed or poor:
            shown.append(f"    {role}: {failed} without a score, {poor} reasons of ungradable pictures")
    for name, finding in report["findings"].items():
        shown.extend(_finding_lines(name, finding))
    for each in report["criteria"]:
        mark = {True: "passed", False: "FAILED", None: "not judged"}[each["passed"]]
        shown.append(f"    {mark:10} {each['criterion']['name']}: {each['reason']}")
    why = f": {report['verdict_reason']}" if report["verdict_reason"] else ""
    shown.append(f"acceptance criteria {report['verdict']}{why}")
    shown.append(f"{made.folder / 'report.html'}")
    return shown


def _finding_lines(name: str, finding: dict[str, Any]) -> list[str]:
    evaluation = finding["evaluation"]
    if evaluation is None:
        return [f"{name}: no case has a gradable score of every version"]
    overall = evaluation["overall"]
    shown = [f"{name}: {overall['cases']} compared, {overall['with_truth']} with truth"]
    for role in ("baseline", "candidate"):
        if overall[role] is None:
            continue
        figures = overall[role]["figures"]
        parts = [
            f"{title} {figures[metric]['value']:.3f} ({figures[metric]['low']:.3f} to {figures[metric]['high']:.3f})"
            for metric, title in (("auc_roc", "AUC"), ("sensitivity", "sensitivity"), ("specificity", "specificity"))
            if None not in (figures[metric]["value"], figures[metric]["low"], figures[metric]["high"])
        ]
        shown.append(f"    {role:10} {', '.join(parts) or 'no figure'}")
    if overall["paired"] is not None:
        agreement = overall["paired"]["figures"]["agreement"]["value"]
        shown.append(f"    agreement {agreement:.3f}, {len(evaluation['changed'])} change side")
    return shown
