"""The monitor: follows the model registry, and asks whether today is like the reference.

The only process that loads MLflow, torch and alibi-detect. It never stands in the way of triage: workers run what the
store last said of the registry, and go on when the monitor is down.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from drift.alarms import decide_alarm
from drift.errors import DriftError
from drift.mmd import MmdTest, make_mmd_test
from drift.monitors import (
    ALL_DEVICES,
    WINDOW_KINDS,
    DriftKind,
    DriftResult,
    Subject,
    WindowRule,
    judge_embeddings,
    not_judged,
    summary_shift,
)
from drift.reference import Reference, load_reference, whiten_reference
from gateway.canary_guard import CanaryGuard
from gateway.errors import StoreError
from gateway.model_record import RecordWatch, load_record_key
from gateway.performance_watch import PerformanceWatch
from gateway.registry_follower import RegistryFollower
from gateway.sequential import ChartWatch
from gateway.settings import Settings
from gateway.store import Store, open_store
from gateway.store.models import known_versions
from gateway.store.monitoring import (
    JudgedRow,
    add_drift_result,
    alarm_of,
    alarm_subject,
    alarm_values,
    change_alarm,
    highest_prediction_id,
    judged_scopes,
    last_rows,
    latest_drift,
    open_alarm,
    raise_alarm,
    report_process,
    result_values,
    rows_after,
)
from models.card import load_bundle
from models.errors import ModelError

logger = logging.getLogger(__name__)

INTERVAL_S = 3.0
REGISTRY_PATIENCE_S = 60.0
STOP_PATIENCE_S = 2.0
ROWS_AT_A_TIME = 1000
NICENESS = 15
"""Added to the process's own when the workers have what they need: drift is never judged at the cost of a study."""


def run(settings: Settings, data_dir: Path, stop: threading.Event) -> None:
    """The monitor process, until `stop` is set."""
    store = open_store(settings.store.url, data_dir=data_dir)
    performance = PerformanceWatch(settings, data_dir, store)
    try:
        report(store, {"backend": choose_backend(settings)})
        registry = RegistryFollower(settings, data_dir, store)
        following = threading.Thread(target=registry.run, args=(stop,), name="registry", daemon=True)
        following.start()
        wait_for_registry(registry, stop)
        # The registry's first reading is waited for; all that follows may wait for triage.
        os.nice(NICENESS)
        watch: Watch | None = None
        charts = ChartWatch(settings, store, data_dir / "charts")
        key = load_record_key(settings.deidentification, data_dir)
        guard = CanaryGuard(store, settings, key)
        record = RecordWatch(store, key)
        waited_s = settings.monitor.interval_s
        while not stop.is_set():
            try:
                guard.look(datetime.now(UTC))
                record.look(time.monotonic())
                detail = {**registry.detail(), **guard.detail(), **record.detail()}
                report(store, {"backend": choose_backend(settings), **detail})
                watch = watch or Watch(settings, store)
                if waited_s >= settings.monitor.interval_s:
                    waited_s = 0.0
                    watch.look(stop)
                    charts.look(stop)
                performance.look()
            except (StoreError, ModelError) as error:
                logger.error("%s", error)
            stop.wait(INTERVAL_S)
            waited_s += INTERVAL_S
        following.join(STOP_PATIENCE_S)
    finally:
        performance.end()
        store.close()


def wait_for_registry(registry: RegistryFollower, stop: threading.Event) -> None:
    """Wait for the registry's first reading, but not for one that does not answer."""
    deadline = time.monotonic() + REGISTRY_PATIENCE_S
    while not (registry.has_read.wait(0.2) or stop.is_set() or time.monotonic() > deadline):
        pass


def report(store: Store, detail: Mapping[str, Any]) -> None:
    """A sign of life."""
    report_process(store, name="monitor", pid=os.getpid(), now=datetime.now(UTC), detail=detail)


def choose_backend(settings: Settings) -> Literal["alibi", "builtin"]:
    """As set; with ``auto``, alibi-detect where it is installed."""
    if settings.monitor.backend != "auto":
        return settings.monitor.backend
    installed = importlib.util.find_spec("alibi_detect") and importlib.util.find_spec("torch")
    return "alibi" if installed else "builtin"


@dataclass(slots=True, kw_only=True)
class Scope:
    """The window of one subject: a model version on one device, or on all."""

    subject: Subject
    seen: int = 0
    """Studies ever."""
    window: OrderedDict[str, JudgedRow] = field(default_factory=OrderedDict)
    """Study key -> one image of it, since two images of a patient are not two pieces of evidence."""
    tested_at: dict[DriftKind, int] = field(default_factory=dict)

    def add(self, row: JudgedRow, size: int) -> None:
        """Take in one prediction; a study that is judged again replaces itself."""
        if row.study_key not in self.window:
            self.seen += 1
        self.window[row.study_key] = row
        while len(self.window) > size:
            self.window.popitem(last=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """What one model version is held against."""

    reference: Reference
    test: MmdTest


class Watch:
    """The windows of all subjects, kept up to date with the store, and the tests on them."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._store = store
        self._backend = choose_backend(settings)
        self._rule = WindowRule(
            size=settings.monitor.window, minimum=settings.monitor.least, threshold_p=settings.monitor.p_value
        )
        self._judges: dict[tuple[str, int], Judge | None] = {}
        self._scopes: dict[tuple[str, int, str], Scope] = {}
        self._last_id = highest_prediction_id(store)
        self._restore()

    def _restore(self) -> None:
        """Windows as they were: from the last rows of each scope, and from what was tested last."""
        totals: dict[tuple[str, int, str], int] = {}
        for model_name, model_version, device_key, studies in judged_scopes(self._store):
            totals[model_name, model_version, device_key] = studies
            everything = (model_name, model_version, ALL_DEVICES)
            totals[everything] = totals.get(everything, 0) + studies
        for (model_name, model_version, scope_name), studies in totals.items():
            scope = self._scope(model_name, model_version, scope_name)
            rows = last_rows(
                self._store,
                model_name=model_name,
                model_version=model_version,
                device_key=None if scope_name == ALL_DEVICES else scope_name,
                limit=4 * self._rule.size,
            )
            for row in rows:
                scope.add(row, self._rule.size)
            scope.seen = studies
        for result in latest_drift(self._store):
            if result["kind"] not in WINDOW_KINDS:
                continue
            scope = self._scope(result["model_name"], result["model_version"], result["scope"])
            scope.tested_at[DriftKind(result["kind"])] = result["seen"]
            scope.seen = max(scope.seen, result["seen"])  # older studies' records may have expired

    def _scope(self, model_name: str, model_version: int, scope_name: str) -> Scope:
        subject = Subject(model_name=model_name, model_version=model_version, scope=scope_name)
        return self._scopes.setdefault((model_name, model_version, scope_name), Scope(subject=subject))

    def look(self, stop: threading.Event) -> None:
        """Take in what was judged since, and test every scope that is due.

        Raises
        ------
        StoreError
            What was tested and not written down is tested again at the next look.
        """
        while not stop.is_set():
            rows, self._last_id = rows_after(self._store, self._last_id, limit=ROWS_AT_A_TIME)
            for row in rows:
                for scope_name in (ALL_DEVICES, row.device_key):
                    self._scope(row.model_name, row.model_version, scope_name).add(row, self._rule.size)
            if len(rows) < ROWS_AT_A_TIME:
                break
        for scope in list(self._scopes.values()):
            if stop.is_set():
                return
            self._test(scope)

    def _test(self, scope: Scope) -> None:
        judge = self._judge(scope.subject)
        for kind in WINDOW_KINDS:
            if not self._rule.is_due(seen=scope.seen, seen_at_last_test=scope.tested_at.get(kind)):
                continue
            try:
                result = self._result(kind, scope, judge)
            except DriftError as error:
                logger.error(
                    "%s of %s on %s: not judged: %s", kind, scope.subject.model_name, scope.subject.scope, error
                )
                result = self._not_judged(kind, scope, str(error))
            self._keep(result, scope)
            scope.tested_at[kind] = scope.seen

    def _not_judged(self, kind: DriftKind, scope: Scope, reason: str) -> DriftResult:
        return not_judged(
            scope.subject,
            kind=kind,
            n=len(scope.window),
            rule=self._rule,
            reason=reason,
            now=datetime.now(UTC),
            backend=self._backend,
        )

    def _result(self, kind: DriftKind, scope: Scope, judge: Judge | None) -> DriftResult:
        if judge is None:
            return self._not_judged(kind, scope, "no usable reference of this model version")
        rows = list(scope.window.values())
        now = datetime.now(UTC)
        if kind is DriftKind.EMBEDDING:
            embeddings = np.stack([row.embedding for row in rows])
            return judge_embeddings(judge.test, embeddings, scope.subject, rule=self._rule, now=now)
        reference = judge.reference
        if kind is DriftKind.EXPLANATION:
            known, names = reference.explanations, reference.explanation_names
            values: list[Mapping[str, Any]] = [row.explanation or {} for row in rows]
        else:
            known, names = reference.statistics, reference.statistic_names
            values = [row.statistics for row in rows]
        window = np.array([[value.get(name, np.nan) for name in names] for value in values], dtype=np.float64)
        return summary_shift(known, names, window, scope.subject, kind=kind, rule=self._rule, now=now)

    def _judge(self, subject: Subject) -> Judge | None:
        """Reference and test of a model version; ``None`` where it has none that can be used, which is logged once."""
        key = (subject.model_name, subject.model_version)
        if key not in self._judges:
            folders = {(entry.model_name, entry.version): Path(entry.folder) for entry in known_versions(self._store)}
            if key not in folders:
                return None
            try:
                reference = load_reference(load_bundle(folders[key]).reference_path)
                test = make_mmd_test(self._backend, whiten_reference(reference))
                self._judges[key] = Judge(reference=reference, test=test)
            except (ModelError, DriftError) as error:
                logger.error("%s version %d: drift is not judged: %s", *key, error)
                self._judges[key] = None
        return self._judges[key]

    def _keep(self, result: DriftResult, scope: Scope) -> None:
        add_drift_result(self._store, result_values(result, seen=scope.seen))
        if result.kind is not DriftKind.EMBEDDING:  # of embeddings, the charts raise alarms
            self._alarm(result)

    def _alarm(self, result: DriftResult) -> None:
        row = open_alarm(
            self._store,
            model_name=result.model_name,
            model_version=result.model_version,
            scope=result.scope,
            kind=result.kind,
        )
        change = decide_alarm(None if row is None else alarm_of(row), result)
        if change is None:
            return
        alarm = change.alarm
        if row is not None:
            change_alarm(self._store, row["alarm_key"], alarm_values(alarm))
            return
        key = raise_alarm(self._store, alarm_subject(alarm) | alarm_values(alarm))
        logger.warning("alarm %s: %s on %s: %s", key, alarm.model_name, alarm.scope, alarm.reason)
