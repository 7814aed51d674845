"""``gateway deidentify`` and ``gateway key``."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from gateway.errors import DeidentificationError, SettingsError

if TYPE_CHECKING:
    from tqdm import tqdm

    from gateway.bulk.run import Plan, Summary

DONE, NOT_ALL, USAGE, INTERRUPTED = 0, 1, 2, 130
_EPILOG = """exit status: 0 all done (with --audit: nothing suspicious); 1 some files were refused or failed, or none
was found, the outputs of the others are there (with --audit: suspicions); 2 arguments, profile or key are wrong,
nothing was read; 130 interrupted, the same command goes on where it stopped"""


def add_deidentify_commands(commands: Any) -> None:
    """Add ``deidentify`` and ``key`` to the parsers of the commands."""
    deidentify = commands.add_parser(
        "deidentify", help="de-identify the DICOM files of a folder, or look for what looks like PHI", epilog=_EPILOG
    )
    deidentify.add_argument("source", nargs="?", type=Path, metavar="IN", help="folder or file; only read")
    deidentify.add_argument("output", nargs="?", type=Path, metavar="OUT", help="folder, new or of an earlier run")
    deidentify.add_argument("--key-file", type=Path, metavar="FILE", help="site key; `gateway key FILE` makes one")
    deidentify.add_argument("--profile", type=Path, metavar="FILE", help="TOML: options of PS3.15 E.3, see the docs")
    deidentify.add_argument("--processes", type=int, metavar="N", help="default: one a core")
    deidentify.add_argument("--manifest", type=Path, metavar="FILE", help="default: OUT/manifest.jsonl; holds no PHI")
    deidentify.add_argument(
        "--crosswalk", type=Path, metavar="FILE", help="write which file became which; PHI, outside of OUT"
    )
    deidentify.add_argument(
        "--time-limit", type=float, default=120.0, metavar="S", help="a file may take so long (default: 120)"
    )
    deidentify.add_argument(
        "--memory-limit", type=int, default=3072, metavar="MB", help="a file may take so much (default: 3072)"
    )
    deidentify.add_argument("--audit", type=Path, metavar="DIR", help="look for what looks like PHI in DIR, instead")
    deidentify.add_argument(
        "--names", type=Path, metavar="FILE", help="for --audit: names and numbers to look for, one a line"
    )
    deidentify.add_argument("--pixels", action="store_true", help="for --audit: look for text in pixels, too; slow")
    deidentify.add_argument("--json", action="store_true", help="for machines")
    deidentify.set_defaults(run=_deidentify)

    key = commands.add_parser("key", help="make a new site key of 32 random bytes, readable by you alone")
    key.add_argument("file", type=Path, metavar="FILE", help="must not be there yet")
    key.set_defaults(run=_make_key)


def _deidentify(options: argparse.Namespace) -> int:
    try:
        if options.audit is not None:
            return _audit(options)
        plan = _plan(options)
    except (SettingsError, DeidentificationError) as error:
        print(f"gateway deidentify: {error}", file=sys.stderr)
        return USAGE
    return _run(plan, options)


def _plan(options: argparse.Namespace) -> Plan:
    """What is to be done; raises for all that can be wrong before a file is touched."""
    if options.source is None or options.output is None:
        raise SettingsError("expected IN and OUT, or --audit DIR")
    if options.key_file is None:
        raise SettingsError("expected --key-file FILE; `gateway key FILE` makes a key")
    processes = _cores() if options.processes is None else options.processes
    if processes < 1 or options.time_limit <= 0 or options.memory_limit < 1:
        raise SettingsError("--processes, --time-limit and --memory-limit: expected more than 0")
    from gateway.bulk.places import choose_places
    from gateway.bulk.run import Plan
    from gateway.bulk.workers import FileLimits, make_finder
    from gateway.deidentification.keys import fingerprint_of
    from gateway.deidentification.options import DeidentificationProfile, load_profile
    from gateway.deidentify import Deidentifier
    from gateway.key_sources import KeySource

    key = KeySource(file=str(options.key_file)).load()
    profile = DeidentificationProfile() if options.profile is None else load_profile(options.profile)
    Deidentifier(key, profile, text_finder=make_finder(profile))
    places = choose_places(
        options.source,
        options.output,
        manifest=options.manifest,
        crosswalk=options.crosswalk,
        key_file=options.key_file,
    )
    return Plan(
        places=places,
        key=key,
        key_fingerprint=fingerprint_of(key),
        profile=profile,
        processes=processes,
        limits=FileLimits(time_s=options.time_limit, memory_bytes=options.memory_limit << 20),
    )


def _run(plan: Plan, options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from gateway.bulk.run import run

    stops: list[int] = []

    def interrupt(number: int, _: FrameType | None) -> None:
        if stops:
            raise KeyboardInterrupt  # asked twice: files at hand are not waited for
        stops.append(number)

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with tqdm(unit="file", disable=options.json or not sys.stderr.isatty()) as bar:
            if not bar.disable:
                threading.Thread(target=_count_ahead, args=(plan, bar), daemon=True).start()

            def count(_: Mapping[str, Any]) -> None:
                bar.update()

            summary = run(plan, progress=count, stop=lambda: bool(stops))
    except SettingsError as error:
        print(f"gateway deidentify: {error}", file=sys.stderr)
        return USAGE
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if options.json:
        print(json.dumps({"manifest": str(plan.places.manifest), **summary.row()}, indent=2))
    else:
        print("\n".join(_lines(summary, plan)))
    if stops:
        return INTERRUPTED
    return DONE if summary.complete and summary.files else NOT_ALL


def _count_ahead(plan: Plan, bar: tqdm[Any]) -> None:
    """How many files there are, for the progress bar; found beside the work, which does not wait for it."""
    from gateway.bulk.walk import walk

    bar.total = sum(1 for _ in walk(plan.places.source))


def _lines(summary: Summary, plan: Plan) -> list[str]:
    """A run for a person."""
    row = summary.row()
    counts = ", ".join(f"{count} {state}" for state, count in summary.counts.items())
    lines = [f"{summary.files} files: {counts}"]
    lines += [f"{count:8} {reason}" for reason, count in row["reasons"].items()]
    if summary.pixel_boxes:
        lines.append(f"{summary.pixel_boxes} places with text found in pixels, and blanked")
    lines.append(
        f"{summary.duration_s:.1f} s, {row['files_per_s']:.1f} files/s, {row['megabytes_per_s']:.1f} MB/s, "
        f"{plan.processes} processes"
    )
    if summary.stopped:
        lines.append(f"stopped before the end: {summary.stopped}; the same command goes on from here")
    lines.append(f"manifest: {plan.places.manifest}")
    if plan.places.crosswalk is None and summary.counts["refused"] + summary.counts["failed"]:
        lines.append("which files these are: run again with --crosswalk FILE")
    return lines


def _audit(options: argparse.Namespace) -> int:
    if options.source is not None or options.output is not None:
        raise SettingsError("--audit looks at one folder: expected no IN and OUT besides it")
    if not options.audit.is_dir():
        raise SettingsError(f"{options.audit}: expected a folder")
    from gateway.phi_audit import audit_folder

    finder = None
    if options.pixels:
        from gateway.deidentification.burned_in_text import NetworkTextFinder

        finder = NetworkTextFinder()
    found = 0
    names = [] if options.names is None else _names(options.names)
    for suspicion in audit_folder(options.audit, names=names, finder=finder):
        found += 1
        if options.json:
            row = {name: str(getattr(suspicion, name)) for name in ("path", "where", "kind", "excerpt")}
            print(json.dumps(row))
        else:
            print(f"{suspicion.path}: {suspicion.where}: {suspicion.kind}: {suspicion.excerpt}")
    if not options.json:
        print(f"{found} suspicions" if found else "nothing that looks like PHI was found")
    return NOT_ALL if found else DONE


def _names(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: expected a text file in UTF-8, one name a line") from error


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _make_key(options: argparse.Namespace) -> int:
    """A new key; one that is there is never overwritten."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    try:
        descriptor = os.open(options.file, flags, 0o600)
    except FileExistsError:
        print(f"gateway key: {options.file} is there already, and is left as it is", file=sys.stderr)
        return USAGE
    except OSError as error:
        print(f"gateway key: {options.file} cannot be made: {error.strerror}", file=sys.stderr)
        return USAGE
    from gateway.deidentification.keys import KEY_BYTES

    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(os.urandom(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        options.file.unlink()
        print(f"gateway key: {options.file} cannot be written: {error.strerror}", file=sys.stderr)
        return USAGE
    print(f"{options.file}: keep it as the data that it protects; without it no pseudonym can be made again")
    return DONE
