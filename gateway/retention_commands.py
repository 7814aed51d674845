"""``gateway studies hold``, ``gateway studies release`` and ``gateway retention``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gateway.settings import Settings
    from gateway.store import Store

OpenSite = Callable[[argparse.Namespace], "tuple[Settings, Path, Store]"]
ACTOR = "command"


def add_retention_commands(
    commands: Any,
    studies: argparse.ArgumentParser,
    add_place: Callable[[argparse.ArgumentParser], None],
    open_site: OpenSite,
) -> Any:
    """Add ``retention`` to the commands, and ``hold`` and ``release`` to the steps of ``studies``, which it returns."""
    steps = studies.add_subparsers(dest="step", metavar="STEP")
    hold = steps.add_parser("hold", help="keep all of a study, whatever its age")
    hold.add_argument("key", metavar="KEY")
    hold.add_argument("--reason", required=True, help="why; no patient's name, it is shown and recorded")
    hold.set_defaults(run=lambda options: _hold(options, open_site))
    release = steps.add_parser("release", help="end a hold; what has expired meanwhile goes with the next round")
    release.add_argument("key", metavar="KEY")
    release.set_defaults(run=lambda options: _release(options, open_site))
    for step in (hold, release):
        # Without defaults, which would undo what was given before the step.
        step.add_argument("--data-dir", type=Path, metavar="DIR", default=argparse.SUPPRESS)
        step.add_argument("--config", type=Path, metavar="FILE", default=argparse.SUPPRESS)

    retention = commands.add_parser("retention", help="say what the next round of retention would delete")
    add_place(retention)
    retention.add_argument(
        "--dry-run", action="store_true", required=True, help="only say it; rounds run by themselves"
    )
    retention.add_argument("--json", action="store_true", help="for machines")
    retention.set_defaults(run=lambda options: _retention(options, open_site))
    return steps


def _hold(options: argparse.Namespace, open_site: OpenSite) -> int:
    from gateway.store.retention import hold

    _, _, store = open_site(options)
    try:
        gone = hold(store, options.key, by=ACTOR, reason=options.reason, now=datetime.now(UTC))
    finally:
        store.close()
    print(f"study {options.key} is on hold" + (f"; {gone} of its images had expired before" if gone else ""))
    return 0


def _release(options: argparse.Namespace, open_site: OpenSite) -> int:
    from gateway.store.retention import release

    _, _, store = open_site(options)
    try:
        release(store, options.key, by=ACTOR, now=datetime.now(UTC))
    finally:
        store.close()
    print(f"study {options.key} is no longer on hold")
    return 0


def _retention(options: argparse.Namespace, open_site: OpenSite) -> int:
    from gateway.housekeeping import forecast

    settings, data_dir, store = open_site(options)
    try:
        lines = forecast(settings, data_dir, store, datetime.now(UTC))
    finally:
        store.close()
    if options.json:
        print(json.dumps(lines, indent=2))
        return 0
    for line in lines:
        age = f"older than {line['days']:g} days" if line["days"] else "kept for ever"
        print(f"{line['kind']:<11} {age:<24} {line['rows']} rows, {line['files']} files, {line['size_bytes']} bytes")
    return 0
