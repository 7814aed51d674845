"""``report.html``: one file that needs nothing else, neither a network nor a script."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from gateway.comparison import plots
from gateway.comparison.heat import HeatMaps
from gateway.comparison.units import Gathered

FOREST_METRICS = (("auc_roc", "AUC-ROC"), ("sensitivity", "Sensitivity"), ("specificity", "Specificity"))
SCORE_FIGURES = (("auc_roc", "AUC-ROC"), ("auc_roc_bootstrap", "AUC-ROC, bootstrap"), ("auc_pr", "AUC-PR"))
POINT_FIGURES = (
    ("sensitivity", "Sensitivity"),
    ("specificity", "Specificity"),
    ("ppv", "Positive predictive value"),
    ("npv", "Negative predictive value"),
    ("accuracy", "Accuracy"),
    ("selection_rate", "Called present"),
)
CALIBRATION_FIGURES = (
    ("brier", "Brier score"),
    ("ece", "ECE, equal width"),
    ("ece_equal_mass", "ECE, equal mass"),
    ("calibration_in_the_large", "Mean score − fraction positive"),
)
SLICE_TITLES = {
    "age_group": "Age group",
    "device": "Device",
    "laterality": "Laterality",
    "manufacturer": "Manufacturer",
    "modality": "Modality",
    "quality": "Image quality",
    "sex": "Sex",
    "site": "Site",
}
GAP_TITLES = {
    "sensitivity_gap": "sensitivity",
    "specificity_gap": "specificity",
    "selection_rate_gap": "share called present",
}
MOST_CHANGED = 200
"""Rows of the list of cases that change side; ``cases.csv`` has all."""
MOST_FOREST_VALUES = 12


def make_page(
    report: Mapping[str, Any],
    run: Mapping[str, Any],
    pictures: Mapping[str, HeatMaps],
    gathered: Mapping[str, Gathered],
) -> str:
    """The report for people.

    Parameters
    ----------
    report, run
        The content of ``report.json`` and ``run.json``.
    pictures
        By case key.
    gathered
        By finding.
    """
    names = _names(report)
    sections = [
        _section(name, finding, gathered[name], names, report["method"]["seed"], pictures)
        for name, finding in report["findings"].items()
    ]
    return (
        _environment()
        .get_template("report.html")
        .render(report=report, run=run, names=names, sections=sections, when=datetime.fromisoformat(run["created_at"]))
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        figure=figure_text, interval=interval_text, p=p_text, signed=signed_text, short=short_key, mib=mib_text
    )
    return environment


def _names(report: Mapping[str, Any]) -> dict[str, str]:
    """Role -> ``retinopathy@2``; with both of one model, ``version 2`` would do, but lists want the whole name."""
    return {
        role: f"{report[role]['name']}@{report[role]['version']}"
        for role in ("candidate", "baseline")
        if report[role] is not None
    }


def figure_text(figure: Mapping[str, Any] | None) -> str:
    """``0.912``; a dash where there is none."""
    if figure is None or figure["value"] is None:
        return "–"
    return f"{figure['value']:.3f}"


def interval_text(figure: Mapping[str, Any] | None) -> str:
    """``0.880 to 0.944``; empty where there is none."""
    if figure is None or figure["low"] is None or figure["high"] is None:
        return ""
    return _minus(f"{figure['low']:.3f} to {figure['high']:.3f}")


def _minus(text: str) -> str:
    """With real minus signs, and none before a zero."""
    return text.replace("-0.000", "0.000").replace("-", "−")


def signed_text(figure: Mapping[str, Any] | None) -> str:
    """``+0.013``."""
    return "–" if figure is None or figure["value"] is None else _minus(f"{figure['value']:+.3f}")


def p_text(value: float | None) -> str:
    """A p-value, never as a bare 0."""
    if value is None:
        return "–"
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"


def short_key(key: str) -> str:
    """The first digits of a key, which are enough to find it; what follows the key itself stays."""
    return re.sub(r"^([0-9a-f]{10})[0-9a-f]{22}", r"\1…", key)


def mib_text(count: int) -> str:
    """``6.4 MiB``."""
    return f"{count / (1 << 20):.1f} MiB"


def _section(
    name: str,
    finding: Mapping[str, Any],
    gathered: Gathered,
    names: Mapping[str, str],
    seed: int,
    pictures: Mapping[str, HeatMaps],
) -> dict[str, Any]:
    """One finding as the template shows it."""
    evaluation = finding["evaluation"]
    section: dict[str, Any] = {"name": name, "title": finding["title"], "finding": finding, "evaluation": evaluation}
    if evaluation is None or gathered.cases is None:
        return section
    overall = evaluation["overall"]
    versions = [
        (kind, names[role], overall[role])
        for kind, role in (("a", "baseline"), ("b", "candidate"))
        if overall[role] is not None
    ]
    judged = overall["with_truth"] > 0
    most = plots.highest([version for _, _, version in versions])
    gaps = [{**gap, "words": GAP_TITLES[gap["metric"]]} for gap in evaluation["fairness"]]
    section |= {
        "overall": overall,
        "versions": versions,
        "judged": judged,
        "score_rows": _rows(SCORE_FIGURES, overall),
        "point_rows": _rows(POINT_FIGURES, overall),
        "calibration_rows": _rows(CALIBRATION_FIGURES, overall),
        "roc": Markup(plots.roc(versions)) if judged else "",
        "precision_recall": Markup(plots.precision_recall(versions)) if judged else "",
        "calibration": Markup(plots.calibration(versions)) if judged else "",
        "histograms": [Markup(plots.histogram(*version, most)) for version in versions],
        "scatter": _scatter(gathered, names, seed),
        "forests": _forests(evaluation, names) if judged else [],
        "slices": _slice_rows(evaluation),
        "gaps": [gap for gap in gaps if gap["candidate"]["difference"]["value"] is not None],
        "gaps_without": _without_gap(gaps),
        "changed": evaluation["changed"][:MOST_CHANGED],
        "shown": _shown(finding["shown"], gathered, pictures),
        "slice_titles": SLICE_TITLES,
    }
    return section


def _rows(wanted: Sequence[tuple[str, str]], overall: Mapping[str, Any]) -> list[dict[str, Any]]:
    baseline, paired = overall["baseline"], overall["paired"]
    return [
        {
            "name": name,
            "title": title,
            "candidate": overall["candidate"]["figures"].get(name),
            "baseline": None if baseline is None else baseline["figures"].get(name),
            "difference": None if paired is None else paired["differences"].get(name),
            "mcnemar": None if paired is None else paired["mcnemar"].get(name),
        }
        for name, title in wanted
    ]


def _scatter(gathered: Gathered, names: Mapping[str, str], seed: int) -> Markup | str:
    cases = gathered.cases
    if cases is None or cases.baseline_scores is None or cases.baseline_operating_point is None:
        return ""
    return Markup(
        plots.scatter(
            cases.scores,
            cases.baseline_scores,
            cases.truth,
            (cases.baseline_operating_point, cases.operating_point),
            (names["baseline"], names["candidate"]),
            seed=seed,
        )
    )


def _forests(evaluation: Mapping[str, Any], names: Mapping[str, str]) -> list[tuple[str, Markup]]:
    made = []
    for metric, title in FOREST_METRICS:
        rows = [_forest_row("All cases", evaluation["overall"], metric, names)]
        for key in dict.fromkeys(each["key"] for each in evaluation["slices"]):
            of_key = [each for each in evaluation["slices"] if each["key"] == key]
            if len(of_key) == 1:
                continue  # the same as all cases
            rows.append(
                plots.ForestRow(title=SLICE_TITLES.get(key, key), count=0, small=False, heading=True, figures=())
            )
            most = sorted(of_key, key=lambda each: -each["cases"])[:MOST_FOREST_VALUES]
            rows.extend(
                _forest_row(each["value"] or "not known", each, metric, names) for each in of_key if each in most
            )
        made.append((title, Markup(plots.forest(rows, f"{title} by slice"))))
    return made


def _forest_row(title: str, slice_: Mapping[str, Any], metric: str, names: Mapping[str, str]) -> plots.ForestRow:
    return plots.ForestRow(
        title=title,
        count=slice_["cases"],
        small=slice_["small"],
        heading=False,
        figures=[
            (kind, names[role], slice_[role]["figures"].get(metric))
            for kind, role in (("a", "baseline"), ("b", "candidate"))
            if slice_[role] is not None
        ],
    )


def _without_gap(gaps: Sequence[Mapping[str, Any]]) -> list[str]:
    """What there is no gap of, in words."""
    found = [gap for gap in gaps if gap["candidate"]["difference"]["value"] is None]
    words: dict[str, list[str]] = {}
    for gap in found:
        words.setdefault(SLICE_TITLES.get(gap["key"], gap["key"]).lower(), []).append(gap["words"])
    every = len(GAP_TITLES)
    return [key if len(metrics) == every else f"{' and '.join(metrics)} by {key}" for key, metrics in words.items()]


def _slice_rows(evaluation: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [evaluation["overall"], *evaluation["slices"]]


def _shown(
    shown: Sequence[Mapping[str, Any]], gathered: Gathered, pictures: Mapping[str, HeatMaps]
) -> list[dict[str, Any]]:
    none = HeatMaps(picture="", heat=(), problem="the case did not come by again")
    return [
        {**choice, "pictures": pictures.get(gathered.top_case.get(choice["unit"], choice["unit"]), none)}
        for choice in shown
    ]
