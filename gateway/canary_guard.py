"""Ends a canary by itself when it passes its limits; steps in the monitor process, every few seconds.

Looked at after every study, a fixed interval would sooner or later exclude any limit by chance. So each fraction has a
confidence *sequence*: a lower bound that holds at all sample sizes at once. For a limit :math:`p_0` and `s` of `n`,

.. math:: e_n(p_0) = \\int_{p_0}^1 \\frac{q^s (1 - q)^{n - s}}{p_0^s (1 - p_0)^{n - s}} \\,
          \\frac{b (1 - q)^{b - 1}}{(1 - p_0)^b} \\, dq, \\qquad b = \\max(1, 1 / 2 p_0)

is, where the true fraction is at most :math:`p_0`, a non-negative supermartingale that begins at 1: given the past,
each study multiplies a term by :math:`p q / p_0 + (1 - p)(1 - q) / (1 - p_0)`, which is at most 1 for
:math:`p \\le p_0 < q`. By Ville's inequality it ever reaches :math:`1 / \\alpha` with a probability of at most
:math:`\\alpha`. The lower bound is the least :math:`p_0` whose :math:`e_n` is below that; a canary ends when it lies
above the limit. The weights, a Beta(1, b) above :math:`p_0`, look most at fractions of two to three times the limit:
any weights keep the promise, these find what is worth finding sooner than even ones. Three fractions are watched, each
with a third of ``false_end_probability``. Studies count as independent; failures that come in clusters make an end
likelier than that, which is the side to err on.

References
----------
J. Ville, *Étude critique de la notion de collectif*, 1939. H. Robbins, "Statistical methods related to the law of the
iterated logarithm", Ann. Math. Statist. 41 (1970), section 2: mixtures. A. Ramdas, P. Grünwald, V. Vovk and G. Shafer,
"Game-theoretic statistics and safe anytime-valid inference", Statist. Sci. 38 (2023).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, TypeVar

from gateway.errors import LifecycleError
from gateway.lifecycle import end_canary
from gateway.model_record import RecordKey
from gateway.settings import CanarySettings, Settings
from gateway.store import Store
from gateway.store.models import KnownVersion, VersionState, known_versions
from gateway.store.monitoring import processes
from gateway.store.rollout import Pair, alarms_since, canary_studies_after, failed_studies, pairs_after
from gateway.web.health import is_up

logger = logging.getLogger(__name__)

ROWS_AT_A_TIME = 2000
OVERLAP = 100
"""Ids looked at once more: on a database with several writers, a lower one may be committed after a higher."""
WATCHED = 3
"""Fractions that may end a canary: errors, slower studies, disagreements."""
_READABLE = 0.95

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What ends a canary."""

    error_fraction: float
    latency_ratio: float
    disagreement_fraction: float
    drift: bool
    least_studies: int
    false_end_probability: float


def limits_of(canary: KnownVersion, settings: CanarySettings) -> Limits:
    """The canary's own limits, and those of the settings where it has none."""
    return Limits(**settings.model_dump() | dict(canary.traffic.get("limits") or {}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A fraction of studies, held against its limit."""

    name: str
    count: int
    studies: int
    limit: float
    lower_bound: float
    """Of the confidence sequence, good at every look."""
    low: float
    high: float
    """Clopper and Pearson's 95 % interval, for readers; good at one look."""

    @property
    def passes(self) -> bool:
        """Whether it is beyond its limit, surely enough."""
        return self.lower_bound > self.limit


def lower_bound(count: int, trials: int, alpha: float) -> float:
    """Lower bound of a fraction that holds at all numbers of trials at once, with a probability of 1 - `alpha`."""
    if count == 0:
        return 0.0
    low, high = 0.0, count / trials
    threshold = math.log(1.0 / alpha)
    while high - low > 1e-9:
        middle = (low + high) / 2
        if log_evidence(count, trials, middle) >= threshold:
            low = middle
        else:
            high = middle
    return low


def log_evidence(count: int, trials: int, limit: float) -> float:
    """log of :math:`e_n` above: how much more the trials fit fractions over `limit` than `limit` itself."""
    from scipy.special import betaln
    from scipy.stats import beta

    if limit <= 0.0:
        return math.inf
    weight = max(1.0, 1.0 / (2.0 * limit))
    left = trials - count
    above = float(betaln(count + 1, left + weight)) + float(beta.logsf(limit, count + 1, left + weight))
    at_limit = count * math.log(limit) + left * math.log1p(-limit)
    return above - at_limit + math.log(weight) - weight * math.log1p(-limit)


def figure(name: str, count: int, studies: int, *, limit: float, alpha: float) -> Figure:
    """A fraction with its bounds."""
    from scipy.stats import beta

    tail = (1 - _READABLE) / 2
    low = 0.0 if count == 0 else float(beta.ppf(tail, count, studies - count + 1))
    high = 1.0 if count == studies else float(beta.ppf(1 - tail, count + 1, studies - count))
    return Figure(
        name=name,
        count=count,
        studies=studies,
        limit=limit,
        lower_bound=lower_bound(count, studies, alpha),
        low=low,
        high=high,
    )


@dataclass(slots=True)
class Compared:
    """One study that canary and champion both read."""

    disagrees: bool = False
    canary_ms: float = 0.0
    champion_ms: float = 0.0

    def add(self, pair: Pair) -> None:
        """One more of its frames."""
        self.disagrees |= pair.agrees is False
        if pair.canary_ms is not None and pair.champion_ms is not None:
            self.canary_ms += pair.canary_ms
            self.champion_ms += pair.champion_ms


@dataclass(slots=True, kw_only=True)
class Evidence:
    """What is known of one canary against one champion. Kept between looks, so that each row is read once."""

    judged: set[str] = field(default_factory=set)
    compared: dict[str, Compared] = field(default_factory=dict)
    failed: frozenset[str] = frozenset()
    _judged_after: int = 0
    _compared_after: int = 0
    _counted: set[int] = field(default_factory=set)
    """Of pairs, the ids that the next look will come by again."""

    def take_in(self, store: Store, canary: KnownVersion, champion: int) -> None:
        """Read what has come since the last look."""
        name, version, since = canary.model_name, canary.version, canary.state_since

        def studies(after: int) -> tuple[tuple[int, str], ...]:
            return canary_studies_after(
                store, model_name=name, version=version, since=since, after=after, limit=ROWS_AT_A_TIME
            )

        def pairs(after: int) -> tuple[Pair, ...]:
            return pairs_after(
                store,
                model_name=name,
                canary=version,
                champion=champion,
                since=since,
                after=after,
                limit=ROWS_AT_A_TIME,
            )

        for prediction_id, study_key in _all(studies, self._judged_after - OVERLAP, lambda row: row[0]):
            self.judged.add(study_key)
            self._judged_after = max(self._judged_after, prediction_id)
        for pair in _all(pairs, self._compared_after - OVERLAP, lambda row: row.prediction_id):
            if pair.prediction_id not in self._counted:
                self._counted.add(pair.prediction_id)
                self.compared.setdefault(pair.study_key, Compared()).add(pair)
            self._compared_after = max(self._compared_after, pair.prediction_id)
        self._counted = {number for number in self._counted if number > self._compared_after - OVERLAP}
        self.failed = failed_studies(store, model_name=name, version=version, since=since)

    def figures(self, limits: Limits) -> list[Figure]:
        """The fractions that have enough studies."""
        alpha = limits.false_end_probability / WATCHED
        timed = [each for each in self.compared.values() if each.champion_ms > 0]
        slower = sum(each.canary_ms > limits.latency_ratio * each.champion_ms for each in timed)
        otherwise = sum(each.disagrees for each in self.compared.values())
        counted = (
            ("error_fraction", len(self.failed), len(self.judged | self.failed), limits.error_fraction),
            # More than half of the studies: the median ratio, without a word on how times are distributed.
            ("latency_ratio", slower, len(timed), 0.5),
            ("disagreement_fraction", otherwise, len(self.compared), limits.disagreement_fraction),
        )
        return [
            figure(name, count, studies, limit=limit, alpha=alpha)
            for name, count, studies, limit in counted
            if studies >= max(1, limits.least_studies)
        ]


def _all(read: Callable[[int], tuple[Row, ...]], after: int, number: Callable[[Row], int]) -> Iterable[Row]:
    """Rows page by page."""
    while rows := read(after):
        yield from rows
        after = number(rows[-1])


class CanaryGuard:
    """Watches every canary."""

    def __init__(self, store: Store, settings: Settings, key: RecordKey) -> None:
        self._store = store
        self._settings = settings.canary
        self._key = key
        self._evidence: dict[tuple[str, int, datetime, int], Evidence] = {}
        self._figures: dict[tuple[str, int], list[Figure]] = {}

    def detail(self) -> dict[str, Any]:
        """What the monitor reports of the last look, for the pages: of each canary its fractions so far."""
        canaries = [
            {"model_name": name, "version": version, "figures": [_rounded(each) for each in figures]}
            for (name, version), figures in self._figures.items()
        ]
        return {"canaries": canaries} if canaries else {}

    def look(self, now: datetime) -> tuple[tuple[str, int], ...]:
        """Look at every canary once; returns model name and version of those that were ended.

        Raises
        ------
        StoreError
            What could not be read or written is looked at again at the next look.
        """
        known = known_versions(self._store)
        champions = {each.model_name: each.version for each in known if each.state is VersionState.CHAMPION}
        canaries = [each for each in known if each.state is VersionState.CANARY]
        watched = {
            (each.model_name, each.version, each.state_since, champions.get(each.model_name, 0)): each
            for each in canaries
        }
        self._evidence = {key: self._evidence.get(key) or Evidence() for key in watched}
        self._figures = {}
        ended = []
        for key, canary in watched.items():
            evidence = self._evidence[key]
            evidence.take_in(self._store, canary, key[3])
            found = self._why_end(canary, evidence, now)
            if found is not None and self._end(canary, *found, now):
                ended.append((canary.model_name, canary.version))
        return tuple(ended)

    def _why_end(self, canary: KnownVersion, evidence: Evidence, now: datetime) -> tuple[str, dict[str, Any]] | None:
        """The reason and the figures, where it is to end."""
        limits = limits_of(canary, self._settings)
        figures = self._figures[canary.model_name, canary.version] = evidence.figures(limits)
        detail: dict[str, Any] = {"limits": asdict(limits), "figures": [_rounded(each) for each in figures]}
        unloadable = self._who_cannot_load(canary, now)
        if unloadable:
            return f"{unloadable} cannot load it", detail
        for each in figures:
            if each.passes:
                return figure_words(each, limits), detail
        if limits.drift:
            alarms = alarms_since(
                self._store, model_name=canary.model_name, version=canary.version, since=canary.state_since
            )
            if alarms:
                first = alarms[0]
                detail["alarms"] = [each["alarm_key"] for each in alarms]
                return f"drift alarm: {first['kind']} on {first['scope']}", detail
        return None

    def _who_cannot_load(self, canary: KnownVersion, now: datetime) -> str:
        """A worker that says it cannot load the canary."""
        wanted = f"{canary.model_name} {canary.version}"
        for row in processes(self._store):
            if is_up(row["name"], row["seen_at"], now) and wanted in row["detail"].get("broken", {}):
                return str(row["name"])
        return ""

    def _end(self, canary: KnownVersion, reason: str, detail: dict[str, Any], now: datetime) -> bool:
        try:
            became = end_canary(
                self._store,
                key=self._key,
                model_name=canary.model_name,
                version=canary.version,
                reason=reason,
                detail=detail,
                now=now,
            )
        except LifecycleError as error:  # somebody was faster
            logger.warning("%s version %d: %s", canary.model_name, canary.version, error)
            return False
        logger.warning(
            "%s version %d is no canary any more, but %s: %s", canary.model_name, canary.version, became, reason
        )
        return True


def figure_words(found: Figure, limits: Limits) -> str:
    """Why a fraction ends a canary."""
    what, limit = {
        "error_fraction": ("failed in", f"{limits.error_fraction:g}"),
        "latency_ratio": (f"took more than {limits.latency_ratio:g} times the champion's time in", "half"),
        "disagreement_fraction": ("decided otherwise than the champion in", f"{limits.disagreement_fraction:g}"),
    }[found.name]
    return (
        f"{what} {found.count} of {found.studies} studies ({found.count / found.studies:.1%}; surely above "
        f"{found.lower_bound:.1%}, the limit is {limit})"
    )


def _rounded(found: Figure) -> dict[str, Any]:
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in asdict(found).items()}
