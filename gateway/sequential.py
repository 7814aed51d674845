"""Feeds each judged study to the charts of its device and to those of all devices, and raises their alarms.

What the charts have seen, where they stand, and the alarms that follow are written in one transaction. A monitor that
is killed at any moment goes on with the same bits, counts no study twice and loses no alarm.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt

from drift.alarms import Alarm, decide_alarm
from drift.calibration import Budget, Calibration, load_or_calibrate
from drift.change_point import Signal, find_signal
from drift.charts import (
    ChartReference,
    ChartState,
    advance,
    begin,
    make_chart_reference,
    mean_shift_now,
    state_from_bytes,
    whiten_study,
)
from drift.errors import ChartStateError, DriftError, WindowError
from drift.monitors import ALL_DEVICES, DriftKind, DriftResult, DriftState
from drift.reference import load_reference
from gateway.settings import Settings
from gateway.store import Store
from gateway.store.charts import (
    ChartRecord,
    ChartStateRow,
    chart_states,
    highest_charted_prediction,
    record_charts,
    uncharted_rows,
)
from gateway.store.models import known_versions
from gateway.store.monitoring import JudgedRow, add_drift_result, alarm_of, latest_drift, open_alarm, result_values
from models.card import load_bundle
from models.errors import ModelError

logger = logging.getLogger(__name__)

ROWS_AT_A_TIME = 200
OVERLAP = 100
"""Ids looked at once more: on a database with several writers, a lower one may be committed after a higher."""
STRIDE = 10
"""Studies after which a scope's standing is written down again; a signal is written at once."""
BACKEND = "charts"
_AGAIN = ". Again: "
SHIPPED = Path(__file__).parent.parent / "drift" / "calibrated"

Heights = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What the charts of a model version need, or why there are none."""

    reference: ChartReference | None = None
    calibration: Calibration | None = None
    reason: str = ""


def prepare_charts(bundle_folder: Path, kept_in: Path, stopped: Callable[[], bool]) -> Prepared:
    """Reference and heights of a bundle; the first time, the heights take most of a minute to simulate."""
    try:
        reference = make_chart_reference(load_reference(load_bundle(bundle_folder).reference_path).embeddings)
        calibration = load_or_calibrate(reference, kept_in, shipped=SHIPPED, stop=stopped)
    except (ModelError, DriftError) as error:
        return Prepared(reason=f"no charts of this model version: {error}")
    return Prepared(reference=reference, calibration=calibration)


@dataclass(slots=True, kw_only=True)
class ModelCharts:
    """The charts of one model version."""

    name: str
    version: int
    reference: ChartReference
    calibration: Calibration
    pooled_rate: float
    device_rate: float
    states: dict[str, ChartState]
    cursor: int
    notes: dict[str, str]
    """Scope -> what is to be said of it with its next result."""
    told: dict[str, int]
    """Scope -> studies at its last result."""
    pooled_heights: Heights = field(init=False)
    device_heights: Heights = field(init=False)

    def __post_init__(self) -> None:
        self.pooled_heights = self.calibration.heights_at(self.pooled_rate)
        self.device_heights = self.calibration.heights_at(self.device_rate)

    def heights_of(self, scope: str) -> Heights:
        return self.pooled_heights if scope == ALL_DEVICES else self.device_heights

    def rate_of(self, scope: str) -> float:
        return self.pooled_rate if scope == ALL_DEVICES else self.device_rate


@dataclass(slots=True, kw_only=True)
class Step:
    """What one batch of studies has done so far; kept together."""

    seen: list[tuple[str, int]] = field(default_factory=list)
    states: dict[str, ChartState] = field(default_factory=dict)
    levels: dict[str, Heights] = field(default_factory=dict)
    """Of the newest study."""
    results: list[tuple[DriftResult, int]] = field(default_factory=list)
    """With the studies that the scope had."""


class ChartWatch:
    """The charts of all model versions that an alias names, kept up to date with the store."""

    def __init__(self, settings: Settings, store: Store, folder: Path, *, in_background: bool = True) -> None:
        """`folder` keeps simulated heights; `in_background` simulates them in a thread while looks go on."""
        self._store = store
        self._folder = folder
        self._in_background = in_background
        self._budget = Budget(studies_between_false_alarms=settings.monitor.studies_between_false_alarms)
        self._prepared: dict[tuple[str, int], Prepared] = {}
        self._thread: threading.Thread | None = None
        self._charts: dict[tuple[str, int], ModelCharts] = {}
        self._said: dict[tuple[str, int], str] = {}

    def look(self, stop: threading.Event) -> None:
        """Take in what was judged since.

        Raises
        ------
        StoreError
            What was not written down is taken in again at the next look.
        """
        folders = {(entry.model_name, entry.version): Path(entry.folder) for entry in known_versions(self._store)}
        for (name, version), folder in sorted(folders.items()):
            if stop.is_set():
                return
            prepared = self._prepare((name, version), folder, stop)
            if prepared.reference is None or prepared.calibration is None:
                self._say_not_judged(name, version, prepared.reason)
            else:
                self._follow(name, version, prepared.reference, prepared.calibration, stop)

    def _prepare(self, key: tuple[str, int], folder: Path, stop: threading.Event) -> Prepared:
        if key not in self._prepared:
            if not self._in_background:
                self._prepared[key] = prepare_charts(folder, self._folder, stop.is_set)
            elif self._thread is None or not self._thread.is_alive():

                def work() -> None:
                    self._prepared[key] = prepare_charts(folder, self._folder, stop.is_set)

                self._thread = threading.Thread(target=work, name="charts", daemon=True)
                self._thread.start()
        return self._prepared.get(key) or Prepared(reason="the heights of the charts are being simulated")

    def _say_not_judged(self, name: str, version: int, reason: str) -> None:
        """Write down once that this version's charts judge nothing, and why."""
        if self._said.get((name, version)) == reason:
            return
        rows, _ = uncharted_rows(self._store, model_name=name, model_version=version, after=0, limit=1)
        if rows:
            logger.warning("%s version %d: %s", name, version, reason)
            result = _not_judged(name, version, ALL_DEVICES, reason, n=0, rate=self._budget.pooled_rate)
            add_drift_result(self._store, result_values(result, seen=0))
            self._said[name, version] = reason

    def _follow(
        self, name: str, version: int, reference: ChartReference, calibration: Calibration, stop: threading.Event
    ) -> None:
        key = (name, version)
        if key not in self._charts:
            self._charts[key] = self._restore(name, version, reference, calibration)
        charts = self._charts.pop(key)  # forgotten if a step fails, and then restored from the store
        after = charts.cursor - OVERLAP
        while not stop.is_set():
            rows, last = uncharted_rows(
                self._store, model_name=name, model_version=version, after=after, limit=ROWS_AT_A_TIME
            )
            if last is None:
                break
            taken = self._take_in(charts, rows) if rows else 0
            after = rows[taken - 1].prediction_id if taken < len(rows) else last
            charts.cursor = max(charts.cursor, after)
        self._charts[key] = charts

    def _restore(self, name: str, version: int, reference: ChartReference, calibration: Calibration) -> ModelCharts:
        states: dict[str, ChartState] = {}
        notes: dict[str, str] = {}
        for row in chart_states(self._store, model_name=name, model_version=version):
            try:
                if row.fingerprint != reference.fingerprint:
                    raise ChartStateError("the charts' state was of another reference")
                states[row.scope] = state_from_bytes(row.state)
            except ChartStateError as error:
                notes[row.scope] = f"{error}; the charts began anew"
                states[row.scope] = begin(reference, total=row.studies)
                logger.warning("%s version %d on %s: %s", name, version, row.scope, notes[row.scope])
        told = {
            row["scope"]: row["seen"]
            for row in latest_drift(self._store)
            if (row["model_name"], row["model_version"], row["kind"]) == (name, version, DriftKind.CHARTS)
        }
        return ModelCharts(
            name=name,
            version=version,
            reference=reference,
            calibration=calibration,
            pooled_rate=self._budget.pooled_rate,
            device_rate=self._budget.device_rate,
            states=states,
            cursor=highest_charted_prediction(self._store, model_name=name, model_version=version),
            notes=notes,
            told=told,
        )

    def _take_in(self, charts: ModelCharts, rows: Sequence[JudgedRow]) -> int:
        """Take in rows up to the first signal, write it down, and return how many they were."""
        step = Step()
        for row in rows:
            _take_in_study(charts, step, row)
            if any(result.state is DriftState.DRIFT for result, _ in step.results):
                break  # the next signal is to find this one's alarm in the store
        for scope, state in step.states.items():
            reported = any(result.scope == scope for result, _ in step.results)
            if not reported and state.total - charts.told.get(scope, -STRIDE) >= STRIDE:
                step.results.append((_standing(charts, scope, state, step.levels[scope]), state.total))
        self._keep(charts, step)
        return len(step.seen)

    def _keep(self, charts: ModelCharts, step: Step) -> None:
        alarms = [change for result, _ in step.results if (change := self._alarm(result)) is not None]
        states = [
            ChartStateRow(scope=scope, fingerprint=each.fingerprint, studies=each.total, state=each.to_bytes())
            for scope, each in step.states.items()
        ]
        record = ChartRecord(
            model_name=charts.name,
            model_version=charts.version,
            seen=step.seen,
            states=states,
            results=[result_values(result, seen=seen) for result, seen in step.results],
            alarms=alarms,
        )
        raised = iter(record_charts(self._store, record, datetime.now(UTC)))
        charts.states |= step.states
        for result, seen in step.results:
            charts.told[result.scope] = seen
        for key, alarm in alarms:
            if key is None:
                logger.warning("alarm %s: %s on %s: %s", next(raised), alarm.model_name, alarm.scope, alarm.reason)

    def _alarm(self, result: DriftResult) -> tuple[str | None, Alarm] | None:
        row = open_alarm(
            self._store,
            model_name=result.model_name,
            model_version=result.model_version,
            scope=result.scope,
            kind=result.kind,
        )
        change = decide_alarm(None if row is None else alarm_of(row), result)
        if change is None:
            return None
        if row is None:
            return None, change.alarm
        # Charts that began anew know nothing of what was before: the first signal knows best when it began.
        first = str(row["message"]).split(_AGAIN)[0]
        return row["alarm_key"], replace(change.alarm, reason=f"{first}{_AGAIN}{change.alarm.reason}")


def _take_in_study(charts: ModelCharts, step: Step, row: JudgedRow) -> None:
    """One study through the charts of all devices and of its own; after a signal they begin anew."""
    step.seen.append((row.study_key, row.prediction_id))
    scopes = (ALL_DEVICES, row.device_key)
    try:
        point = whiten_study(charts.reference, row.embedding)
    except WindowError as error:
        logger.error("%s version %d: not judged by charts: %s", charts.name, charts.version, error)
        for scope in {*scopes} - {result.scope for result, _ in step.results}:
            result = _not_judged(charts.name, charts.version, scope, str(error), n=0, rate=charts.rate_of(scope))
            before = step.states.get(scope) or charts.states.get(scope)
            step.results.append((result, before.total if before else 0))
        return
    for scope in scopes:
        before = step.states.get(scope) or charts.states.get(scope) or begin(charts.reference)
        state, levels = advance(charts.reference, before, point, at=row.judged_at)
        signal = find_signal(charts.reference, state, levels, charts.heights_of(scope))
        if signal is not None:
            step.results.append((_signalled(charts, scope, signal, levels), state.total))
            state = begin(charts.reference, total=state.total)
        step.states[scope], step.levels[scope] = state, levels


def _signalled(charts: ModelCharts, scope: str, signal: Signal, levels: Heights) -> DriftResult:
    reason = signal_words(signal)
    if scope in charts.notes:
        reason += f" ({charts.notes.pop(scope)}.)"
    return DriftResult(
        kind=DriftKind.CHARTS,
        model_name=charts.name,
        model_version=charts.version,
        scope=scope,
        n=signal.studies,
        statistic=float((levels / charts.heights_of(scope)).max()),
        p_value=charts.calibration.rate_at(levels),
        effect=signal.shift_in_sd,
        statistic_in_null_sd=None,
        threshold_p=charts.rate_of(scope),
        state=DriftState.DRIFT,
        reason=reason,
        computed_at=datetime.now(UTC),
        backend=BACKEND,
    )


def signal_words(signal: Signal) -> str:
    """Which chart, when it began, and how far it went, in plain words."""
    change = signal.change
    since = "the last study" if change.studies_ago == 1 else f"the last {change.studies_ago} studies"
    between = f"between {change.latest} and {change.earliest} studies ago"
    if change.latest == change.earliest:
        between = f"{change.earliest} {'study' if change.earliest == 1 else 'studies'} ago"
    return (
        f"{' and '.join(signal.charts)}: {since} differ{'s' if change.studies_ago == 1 else ''} from the reference,"
        f" since {change.began_at:%Y-%m-%d %H:%M} UTC (began {between}{', or earlier' if change.reaches_back else ''});"
        f" mean moved by {signal.shift_in_sd:.1f} sd, distance from the centre {signal.length_ratio:.2f} of the usual"
    )


def _standing(charts: ModelCharts, scope: str, state: ChartState, levels: Heights) -> DriftResult:
    """Where quiet charts stand, and whether they had to begin anew."""
    return DriftResult(
        kind=DriftKind.CHARTS,
        model_name=charts.name,
        model_version=charts.version,
        scope=scope,
        n=state.studies,
        statistic=float((levels / charts.heights_of(scope)).max()),
        p_value=charts.calibration.rate_at(levels),
        effect=mean_shift_now(state),
        statistic_in_null_sd=None,
        threshold_p=charts.rate_of(scope),
        state=DriftState.NO_DRIFT,
        reason=charts.notes.pop(scope, ""),
        computed_at=datetime.now(UTC),
        backend=BACKEND,
    )


def _not_judged(name: str, version: int, scope: str, reason: str, *, n: int, rate: float) -> DriftResult:
    return DriftResult(
        kind=DriftKind.CHARTS,
        model_name=name,
        model_version=version,
        scope=scope,
        n=n,
        statistic=None,
        p_value=None,
        effect=None,
        statistic_in_null_sd=None,
        threshold_p=rate,
        state=DriftState.NOT_JUDGED,
        reason=reason,
        computed_at=datetime.now(UTC),
        backend=BACKEND,
    )
