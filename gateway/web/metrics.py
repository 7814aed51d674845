"""What Prometheus reads: counted in the store at each scrape, so that every process and every restart is in it.

No label names a patient, a study or a peer.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import JSON, Connection, Select, Text, case, cast, column, func, select

from gateway.store import Store
from gateway.store.deliveries import STOPPED
from gateway.store.models import VersionState, served_versions
from gateway.store.monitoring import latest_drift, processes
from gateway.store.predictions import OUTWARD
from gateway.store.schema import alarm, commitment, delivery, instance, model_failure, prediction, quarantine, study
from gateway.study import StudyState
from gateway.web.health import is_up
from gateway.web.performance_metrics import performance_families

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_MODEL = ("model", "version")
_SCOPE = (*_MODEL, "scope", "kind")
Family = CounterMetricFamily | GaugeMetricFamily


def metrics_text(store: Store) -> bytes:
    """The whole answer to a scrape.

    Raises
    ------
    StoreError
        The store cannot be read.
    """
    registry = CollectorRegistry(auto_describe=False)
    families = [
        *_store_families(store),
        *_rollout_families(store),
        *_drift_families(store),
        *performance_families(store),
        _process_family(store),
        *_disk_families(store),
    ]
    registry.register(_Ready(families))
    return generate_latest(registry)


class _Ready(Collector):
    def __init__(self, families: list[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Family]:
        yield from self._families


def _store_families(store: Store) -> list[Family]:
    with store.read() as connection:
        return [
            *_study_families(connection),
            *_prediction_families(connection, store.engine.dialect.name),
            _delivery_family(connection),
            _stopped_family(connection),
            _commitment_family(connection),
            _alarm_family(connection),
        ]


def _study_families(connection: Connection) -> Iterator[Family]:
    counts: dict[str, int] = dict.fromkeys(StudyState, 0)
    for state, count in connection.execute(select(study.c.state, func.count()).group_by(study.c.state)):
        counts[state] = count
    studies = GaugeMetricFamily("gateway_studies", "Studies by state.", labels=["state"])
    for state, count in counts.items():
        studies.add_metric([str(state)], count)
    yield studies
    received = connection.execute(select(func.count()).select_from(instance)).scalar_one()
    yield CounterMetricFamily("gateway_instances_received", "Instances stored and acknowledged.", value=received)
    refused = connection.execute(select(func.count()).select_from(quarantine)).scalar_one()
    yield CounterMetricFamily("gateway_instances_refused", "Objects put in quarantine.", value=refused)
    oldest: datetime | None = connection.execute(
        select(func.min(study.c.queued_at)).where(study.c.state == StudyState.QUEUED)
    ).scalar_one()
    age_s = 0.0 if oldest is None else max(0.0, (datetime.now(UTC) - oldest).total_seconds())
    yield GaugeMetricFamily(
        "gateway_oldest_queued_study_age_seconds", "Age of the longest waiting queued study; 0 where none.", value=age_s
    )


def _prediction_families(connection: Connection, dialect: str) -> Iterator[Family]:
    model = (prediction.c.model_name, prediction.c.model_version)
    poor = case((cast(prediction.c.ungradable_reasons, Text) != "[]", 1), else_=0)
    made = CounterMetricFamily("gateway_predictions", "Predictions by model version, without shadows.", labels=_MODEL)
    ungradable = CounterMetricFamily("gateway_ungradable", "Predictions on ungradable pictures.", labels=_MODEL)
    for name, version, count, too_poor in connection.execute(
        select(*model, func.count(), func.sum(poor)).where(OUTWARD).group_by(*model)
    ):
        made.add_metric([name, str(version)], count)
        ungradable.add_metric([name, str(version)], too_poor)
    yield made
    yield ungradable
    unnest = func.json_each if dialect == "sqlite" else func.json_array_elements
    each = unnest(prediction.c.findings).table_valued(column("value", JSON))
    named = each.c.value["name"].as_string()
    present = CounterMetricFamily("gateway_findings_present", "Findings present.", labels=(*_MODEL, "finding"))
    for name, version, finding, count in connection.execute(
        select(*model, named, func.count())
        .select_from(prediction.join(each, each.c.value["present"].as_boolean()))
        .where(cast(prediction.c.ungradable_reasons, Text) == "[]", OUTWARD)
        .group_by(*model, named)
    ):
        present.add_metric([name, str(version), finding], count)
    yield present


def _rollout_families(store: Store) -> list[Family]:
    """Shadows, canaries and circuit breakers. Reads indexes; pairs were compared when they were written."""
    shadow = CounterMetricFamily("gateway_shadow_predictions", "Predictions that nobody outside sees.", labels=_MODEL)
    pair = (*_MODEL, "paired_version")
    pairs = CounterMetricFamily("gateway_shadow_pairs", "Of these, compared with what was said outside.", labels=pair)
    disagreements = CounterMetricFamily("gateway_shadow_disagreements", "Pairs decided otherwise.", labels=pair)
    canary = CounterMetricFamily("gateway_canary_predictions", "Predictions in the champion's place.", labels=_MODEL)
    failures = CounterMetricFamily(
        "gateway_model_failures", "Studies for which a version gave no prediction.", labels=[*_MODEL, "role"]
    )
    with store.read() as connection:
        for family, role in ((shadow, "shadow"), (canary, "canary")):
            for name, version, count in connection.execute(_by_model(role)):
                family.add_metric([name, str(version)], count)
        counts: dict[tuple[str, str, str], tuple[int, int]] = {}
        for name, version, other, agrees, count in connection.execute(_by_pair()):
            key = (name, str(version), str(other))
            known = counts.get(key, (0, 0))
            counts[key] = (known[0] + count, known[1] + (0 if agrees else count))
        for labels, (count, otherwise) in counts.items():
            pairs.add_metric(labels, count)
            disagreements.add_metric(labels, otherwise)
        failed = (model_failure.c.model_name, model_failure.c.version, model_failure.c.role)
        for name, version, role, count in connection.execute(select(*failed, func.count()).group_by(*failed)):
            failures.add_metric([name, str(version), role], count)
    return [shadow, pairs, disagreements, canary, failures, *_serving_families(store)]


def _by_model(role: str) -> Select[Any]:
    model = (prediction.c.model_name, prediction.c.model_version)
    return select(*model, func.count()).where(prediction.c.role == role).group_by(*model)


def _by_pair() -> Select[Any]:
    columns = (
        prediction.c.model_name,
        prediction.c.model_version,
        prediction.c.paired_version,
        prediction.c.agrees,
    )
    paired = (prediction.c.role == "shadow") & prediction.c.agrees.is_not(None)
    return select(*columns, func.count()).where(paired).group_by(*columns)


_BREAKER_STATES = {"closed": 0, "half open": 1, "open": 2}


def _serving_families(store: Store) -> list[Family]:
    """Which versions run as what, and the breakers that workers last reported."""
    served = GaugeMetricFamily("gateway_model_served", "1 for each version that runs.", labels=[*_MODEL, "role"])
    fraction = GaugeMetricFamily("gateway_canary_fraction", "Part of the studies that a canary gets.", labels=_MODEL)
    for entry in served_versions(store):
        served.add_metric([entry.model_name, str(entry.version), entry.state.value], 1)
        if entry.state is VersionState.CANARY:
            labels = [entry.model_name, str(entry.version)]
            fraction.add_metric(labels, float(entry.traffic.get("fraction") or 0.0))
    of_worker = ["process", *_MODEL, "role"]
    states = GaugeMetricFamily(
        "gateway_breaker_state", "Circuit breakers: 0 closed, 1 half open, 2 open.", labels=of_worker
    )
    openings = CounterMetricFamily("gateway_breaker_openings", "Times a circuit breaker opened.", labels=of_worker)
    for row in processes(store):
        for each in row["detail"].get("breakers", ()):
            labels = [row["name"], each["model"], str(each["version"]), each["role"]]
            states.add_metric(labels, _BREAKER_STATES[each["state"]])
            openings.add_metric(labels, each["openings"])
    return [served, fraction, states, openings]


def _delivery_family(connection: Connection) -> Family:
    family = GaugeMetricFamily("gateway_deliveries", "Results by state.", labels=["destination", "state"])
    key = (delivery.c.destination, delivery.c.state)
    for destination, state, count in connection.execute(select(*key, func.count()).group_by(*key)):
        family.add_metric([destination, state], count)
    return family


def _stopped_family(connection: Connection) -> Family:
    family = GaugeMetricFamily(
        "gateway_deliveries_stopped", "Results not sent because they may be another patient's.", labels=["destination"]
    )
    stopped = (delivery.c.state == "dead") & delivery.c.last_error.startswith(f"{STOPPED}: ")
    rows = connection.execute(
        select(delivery.c.destination, func.sum(case((stopped, 1), else_=0))).group_by(delivery.c.destination)
    )
    for destination, count in rows:
        family.add_metric([destination], count)
    return family


def _commitment_family(connection: Connection) -> Family:
    family = GaugeMetricFamily(
        "gateway_commitments", "Storage commitment transactions by state.", labels=["role", "state"]
    )
    key = (commitment.c.role, commitment.c.state)
    for role, state, count in connection.execute(select(*key, func.count()).group_by(*key)):
        family.add_metric([role, state], count)
    return family


def _alarm_family(connection: Connection) -> Family:
    family = GaugeMetricFamily("gateway_alarms_open", "Alarms that are not closed.", labels=[*_SCOPE, "state"])
    key = (alarm.c.model_name, alarm.c.model_version, alarm.c.scope, alarm.c.kind, alarm.c.state)
    rows = connection.execute(select(*key, func.count()).where(alarm.c.state != "closed").group_by(*key))
    for name, version, scope, kind, state, count in rows:
        family.add_metric([name, str(version), scope, kind, state], count)
    return family


def _drift_families(store: Store) -> list[Family]:
    """p-value, effect and number of studies of the newest tests; what could not be judged has neither p nor effect."""
    p_value = GaugeMetricFamily("gateway_drift_p_value", "p-value of the newest drift test.", labels=_SCOPE)
    effect = GaugeMetricFamily("gateway_drift_effect", "Effect size of the newest drift test.", labels=_SCOPE)
    studies = GaugeMetricFamily("gateway_drift_studies", "Studies in the newest drift test.", labels=_SCOPE)
    detected = GaugeMetricFamily("gateway_drift_detected", "1 where the newest drift test found drift.", labels=_SCOPE)
    for row in latest_drift(store):
        labels = [row["model_name"], str(row["model_version"]), row["scope"], row["kind"]]
        studies.add_metric(labels, row["n"])
        detected.add_metric(labels, float(row["state"] == "drift"))
        for family, name in ((p_value, "p_value"), (effect, "effect")):
            value: Any = row[name]
            if value is not None:
                family.add_metric(labels, value)
    return [p_value, effect, studies, detected]


def _process_family(store: Store) -> Family:
    family = GaugeMetricFamily("gateway_process_up", "1 where a process has reported lately.", labels=["process"])
    now = datetime.now(UTC)
    for row in processes(store):
        family.add_metric([row["name"]], float(is_up(row["name"], row["seen_at"], now)))
    return family


def _disk_families(store: Store) -> list[Family]:
    """What the housekeeper last reported of the disk, and what it has deleted since it started."""
    reported = (row["detail"] for row in processes(store) if row["name"] == "housekeeper")
    detail: dict[str, Any] = next(reported, {})
    disk: dict[str, Any] = detail.get("disk", {})
    families: list[Family] = []
    if "free_bytes" in disk:
        families += [
            GaugeMetricFamily("gateway_disk_free_bytes", "Free on the data folder's disk.", value=disk["free_bytes"]),
            GaugeMetricFamily("gateway_disk_total_bytes", "Size of that disk.", value=disk["total_bytes"]),
        ]
        marks = GaugeMetricFamily(
            "gateway_disk_mark_bytes", "Free bytes below which data expires at once, or is refused.", labels=["mark"]
        )
        for mark in ("expire", "refuse"):
            marks.add_metric([mark], disk[f"{mark}_below_bytes"])
        families.append(marks)
    refusing = float(bool(disk.get("refusing")))
    families += [
        GaugeMetricFamily("gateway_disk_refusing", "1 where the disk is too full to take data in.", value=refusing),
        CounterMetricFamily(
            "gateway_disk_refusals", "Times the disk became too full.", value=float(disk.get("refusals", 0))
        ),
    ]
    files = CounterMetricFamily("gateway_expired_files", "Files deleted by retention.", labels=["kind"])
    size_bytes = CounterMetricFamily("gateway_expired_bytes", "Bytes deleted by retention.", labels=["kind"])
    for kind, size in detail.get("expired", {}).items():
        files.add_metric([kind], size["files"])
        size_bytes.add_metric([kind], size["size_bytes"])
    held = GaugeMetricFamily("gateway_quarantine_bytes", "Bytes in quarantine.")
    held.add_metric([], detail.get("quarantine", {}).get("size_bytes", 0))
    return [*families, files, size_bytes, held]
