"""``gateway performance``: how versions do on what readers have said, and what is estimated where they have not."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gateway.settings import Settings
    from gateway.store import Store
    from gateway.store.performance import PerformanceRow

OpenSite = Callable[[argparse.Namespace], "tuple[Settings, Path, Store]"]
SHOWN = ("auc_roc", "auc_pr", "sensitivity", "specificity", "ppv", "npv")


def add_performance_commands(
    commands: Any, add_place: Callable[[argparse.ArgumentParser], None], open_site: OpenSite
) -> None:
    """Add ``performance`` to the parsers of the commands."""
    parser = commands.add_parser("performance", help="how versions do on what readers have said; computed now")
    add_place(parser)
    parser.add_argument("--model", metavar="NAME", help="this model alone")
    parser.add_argument("--stored", action="store_true", help="what was computed last")
    parser.add_argument("--no-estimate", action="store_true", help="nothing where no truth is known, which is faster")
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.set_defaults(run=lambda options: _run(options, open_site))


def _run(options: argparse.Namespace, open_site: OpenSite) -> int:
    settings, _, store = open_site(options)
    try:
        rows = _rows(options, settings, store)
    finally:
        store.close()
    if options.json:
        print(json.dumps([_plain(row) for row in rows], indent=2, allow_nan=False))
        return 0
    for row in rows:
        print("\n".join(_lines(row)))
    if not rows:
        print("no model has judged anything that it could be held against")
    return 0


def _rows(options: argparse.Namespace, settings: Settings, store: Store) -> tuple[PerformanceRow, ...]:
    if options.stored:
        from gateway.store.performance import performance_rows

        return performance_rows(store, options.model)
    from gateway.performance import refresh

    now = datetime.now(UTC)
    return refresh(store, settings.truth, now=now, model_name=options.model, estimate=not options.no_estimate)


def _plain(row: PerformanceRow) -> dict[str, Any]:
    return {
        "model_name": row.model_name,
        "model_version": row.model_version,
        "finding_name": row.finding_name,
        "figures": row.figures,
        "estimate": row.estimate,
        "computed_at": row.computed_at.isoformat(),
    }


def _lines(row: PerformanceRow) -> Iterator[str]:
    """One row for a person."""
    figures = row.figures
    yield f"{row.model_name} {row.model_version}, {row.finding_name}: {figures['cases']} cases with truth"
    if figures["evaluation"] is not None:
        overall = figures["evaluation"]["overall"]
        for name in SHOWN:
            yield f"    {name:<12} {_figure(overall['candidate']['figures'][name])}"
        for each in figures["evaluation"]["slices"]:
            found = ", ".join(
                f"{name} {_figure(each['candidate']['figures'][name])}" for name in ("auc_roc", "sensitivity")
            )
            small = " (small)" if each["small"] else ""
            yield f"    {each['key']}={each['value'] or '?'}: {each['cases']} cases{small}, {found}"
    seen = figures["verification"]
    if seen["uneven"]:
        yield (
            f"    readers did not look at all alike: truth is known of {seen['present']['with_truth']} of "
            f"{seen['present']['judged']} called present and {seen['absent']['with_truth']} of "
            f"{seen['absent']['judged']} others"
        )
    if figures["paired"] is not None:
        paired = figures["paired"]
        difference = _figure(paired["paired"]["differences"]["auc_roc"])
        yield f"    AUC minus that of version {paired['baseline_version']} on {paired['cases']} cases: {difference}"
    if row.estimate is not None:
        yield from _estimate_lines(row.estimate)


def _estimate_lines(estimate: Mapping[str, Any]) -> Iterator[str]:
    reasons = f" ({'; '.join(estimate['reasons'])})" if estimate["reasons"] else ""
    yield f"    where no truth is known, {estimate['cases']} cases: {estimate['state']}{reasons}"
    for name, figure in (estimate["figures"] or {}).items():
        yield f"    {name:<12} {_figure(figure)} estimated"


def _figure(figure: Mapping[str, Any]) -> str:
    if figure["value"] is None:
        return "–"
    bounds = "" if figure["low"] is None else f" ({figure['low']:.3f} to {figure['high']:.3f})"
    return f"{figure['value']:.3f}{bounds}"
