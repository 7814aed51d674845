"""``gateway truth import|list|export``: what readers said, taken in and given out."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from gateway.errors import TruthError, TruthFileError
from gateway.system_account import command_actor

if TYPE_CHECKING:
    from gateway.settings import Settings
    from gateway.store import Store
    from gateway.store.truth import KeptWord

OpenSite = Callable[[argparse.Namespace], "tuple[Settings, Path, Store]"]
SHOWN_LINES = 20
EXPORTED = (
    "study_key",
    "instance_key",
    "file",
    "laterality",
    "model",
    "finding",
    "value",
    "reader",
    "date",
    "comment",
    "source",
    "agrees",
    "shown_version",
    "entered_at",
    "superseded_at",
)


def add_truth_commands(
    commands: Any, add_place: Callable[[argparse.ArgumentParser], None], open_site: OpenSite
) -> None:
    """Add ``truth`` to the parsers of the commands."""
    truth = commands.add_parser("truth", help="what readers said of studies: take in, list, give out")
    steps = truth.add_subparsers(dest="step", required=True, metavar="STEP")

    taken = steps.add_parser("import", help="take in a table of readers' words (docs/truth.md)")
    add_place(taken)
    taken.add_argument("file", type=Path, metavar="CSV")
    taken.add_argument("--model", default="", metavar="NAME", help="whose finding, where the table does not say")
    taken.add_argument("--finding", default="", metavar="NAME", help="which, where the table does not say")
    taken.add_argument("--reader", default="", metavar="NAME", help="who said so, where the table does not say")
    taken.add_argument(
        "--positive-from", type=float, metavar="GRADE", help="values are grades; from this one on it is present"
    )
    taken.add_argument(
        "--column", action="append", default=[], metavar="COLUMN=HEADER", help="which header stands for a column"
    )
    taken.add_argument(
        "--skip-unknown", action="store_true", help="leave studies aside that this gateway does not have"
    )
    taken.add_argument("--dry-run", action="store_true", help="only say what would become of it")
    taken.add_argument("--json", action="store_true", help="for machines")
    taken.set_defaults(run=lambda options: _import(options, open_site))

    listed = steps.add_parser("list", help="every word that holds")
    exported = steps.add_parser("export", help="the same as CSV, which `import` reads")
    exported.add_argument("file", type=Path, nargs="?", metavar="CSV", help="standard output without")
    for parser, run in ((listed, _list), (exported, _export)):
        add_place(parser)
        parser.add_argument("--model", metavar="NAME")
        parser.add_argument("--finding", metavar="NAME")
        parser.add_argument("--reader", metavar="NAME")
        parser.add_argument("--study", metavar="KEY")
        parser.add_argument("--superseded", action="store_true", help="with those that no longer hold")
        parser.set_defaults(run=lambda options, run=run: run(options, open_site))
    listed.add_argument("--json", action="store_true", help="for machines")


def _columns(pairs: Iterable[str]) -> dict[str, str]:
    chosen = {}
    for pair in pairs:
        column, sign, header = pair.partition("=")
        if not sign or not header.strip():
            raise TruthError(f"--column {pair!r}: expected COLUMN=HEADER, as value=icdr")
        chosen[column.strip().casefold()] = header.strip()
    return chosen


def _import(options: argparse.Namespace, open_site: OpenSite) -> int:
    from gateway.truth import TruthOptions, read_truth_file
    from gateway.truth_import import import_truth

    try:
        table = read_truth_file(
            options.file,
            TruthOptions(
                model_name=options.model,
                finding_name=options.finding,
                reader=options.reader,
                positive_from=options.positive_from,
                columns=_columns(options.column),
            ),
        )
        _, _, store = open_site(options)
        try:
            report = import_truth(
                store,
                table,
                name=options.file.name,
                now=datetime.now(UTC),
                actor=command_actor(),
                skip_unknown=options.skip_unknown,
                dry_run=options.dry_run,
            )
        finally:
            store.close()
    except TruthFileError as error:
        if not options.json:
            raise
        problems = [
            {"line": each.line, "column": each.column, "found": each.found, "expected": each.expected}
            for each in error.problems
        ]
        print(json.dumps({"problems": problems}, indent=2))
        return 1
    if options.json:
        print(json.dumps(report.to_json(), indent=2))
        return 0
    would = "would be " if report.dry_run else ""
    print(
        f"{report.rows} rows: {report.added} {would}added, {report.superseding} {would}superseding what their readers "
        f"said before, {report.older} older than what their readers said since, {report.unchanged} known already"
    )
    if report.unknown_lines:
        shown = ", ".join(map(str, report.unknown_lines[:SHOWN_LINES]))
        more = ", ..." if len(report.unknown_lines) > SHOWN_LINES else ""
        print(f"{len(report.unknown_lines)} rows name what is not here and were left aside: line {shown}{more}")
    if report.ignored_columns:
        print(f"columns that mean nothing here: {', '.join(report.ignored_columns)}")
    return 0


def _words(options: argparse.Namespace, open_site: OpenSite) -> list[KeptWord]:
    from gateway.store.truth import words

    _, _, store = open_site(options)
    try:
        return words(
            store,
            study_key=options.study,
            model_name=options.model,
            finding_name=options.finding,
            reader=options.reader,
            superseded=options.superseded,
        )
    finally:
        store.close()


def _list(options: argparse.Namespace, open_site: OpenSite) -> int:
    said = _words(options, open_site)
    if options.json:
        print(json.dumps([word.view() for word in said], indent=2))
        return 0
    for word in said:
        place = word.study_key + (f" image {word.instance_key}" if word.instance_key else "")
        side = f" {word.laterality}" if word.laterality else ""
        shown = "" if word.agrees is None else f", {'agrees' if word.agrees else 'disagrees'} with {word.shown_version}"
        gone = " (superseded)" if word.superseded_at else ""
        when = "" if word.read_at is None else f"{word.read_at:%Y-%m-%d %H:%M}"
        print(f"{place}{side}  {word.model_name} {word.finding_name} {word.value}  {word.reader} {when}{shown}{gone}")
    return 0


def _export(options: argparse.Namespace, open_site: OpenSite) -> int:
    said = _words(options, open_site)
    if options.file is None:
        _write(sys.stdout, said)
        return 0
    try:
        with options.file.open("w", encoding="utf-8", newline="") as stream:
            _write(stream, said)
    except OSError as error:
        raise TruthError(f"{options.file}: cannot be written: {error.strerror}") from error
    print(f"{len(said)} rows in {options.file}")
    return 0


def _write(stream: TextIO, said: Iterable[KeptWord]) -> None:
    writer = csv.DictWriter(stream, EXPORTED, lineterminator="\n")
    writer.writeheader()
    for word in said:
        writer.writerow(word.view())
