"""Gauges of how versions do, from what was computed last: reading them computes nothing."""

from __future__ import annotations

from datetime import UTC, datetime

from prometheus_client.core import GaugeMetricFamily

from gateway.store import Store
from gateway.store.performance import performance_rows

_FINDING = ("model", "version", "finding")
_FIGURE = (*_FINDING, "figure", "bound")
MEASURED = ("auc_roc", "sensitivity", "specificity")


def performance_families(store: Store) -> list[GaugeMetricFamily]:
    """Measured and estimated figures with their bounds, what they rest on, and how old they are."""
    measured = GaugeMetricFamily("gateway_performance", "On what readers have said; bounds are 95 %.", labels=_FIGURE)
    cases = GaugeMetricFamily("gateway_performance_cases", "Cases with truth and a score.", labels=_FINDING)
    estimated = GaugeMetricFamily(
        "gateway_performance_estimate", "Estimated where nobody has said anything yet.", labels=_FIGURE
    )
    trusted = GaugeMetricFamily(
        "gateway_performance_estimate_checked",
        "1 where the estimate passed its check and no drift alarm is open.",
        labels=_FINDING,
    )
    age = GaugeMetricFamily("gateway_performance_age_seconds", "Since the figures were computed.", labels=_FINDING)
    now = datetime.now(UTC)
    for row in performance_rows(store):
        labels = [row.model_name, str(row.model_version), row.finding_name]
        cases.add_metric(labels, row.figures["cases"])
        age.add_metric(labels, max(0.0, (now - row.computed_at).total_seconds()))
        evaluation = row.figures["evaluation"]
        sources = [(measured, evaluation["overall"]["candidate"]["figures"] if evaluation else {})]
        if row.estimate is not None:
            trusted.add_metric(labels, float(row.estimate["state"] == "checked"))
            sources.append((estimated, row.estimate["figures"] or {}))
        for family, figures in sources:
            for name in MEASURED:
                for bound in ("value", "low", "high"):
                    value = figures.get(name, {}).get(bound)
                    if value is not None:
                        family.add_metric([*labels, name, bound], value)
    return [measured, cases, estimated, trusted, age]
