"""The guard's bound: false ends stay below what is promised at every look together, and bad canaries end soon."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import beta, binomtest
from sqlalchemy import insert, update

from gateway.canary_guard import CanaryGuard, Evidence, Limits, figure, limits_of, log_evidence, lower_bound
from gateway.model_record import entries, record_key
from gateway.settings import load_settings
from gateway.store import Store, open_store
from gateway.store.models import KnownVersion, VersionState, add_version, find_version
from gateway.store.monitoring import raise_alarm
from gateway.store.rollout import Pair
from gateway.store.schema import model_failure, model_version

NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)
LIMITS = Limits(
    error_fraction=0.05,
    latency_ratio=2.0,
    disagreement_fraction=0.1,
    drift=True,
    least_studies=30,
    false_end_probability=0.01,
)


@pytest.mark.parametrize(("count", "trials", "limit"), [(3, 10, 0.1), (1, 1, 0.05), (40, 500, 0.05), (7, 7, 0.3)])
def test_evidence_is_the_integral_that_the_module_states(count: int, trials: int, limit: float) -> None:
    weight = max(1.0, 1 / (2 * limit))

    def ratio(fraction: float) -> float:
        likelihoods = (fraction / limit) ** count * ((1 - fraction) / (1 - limit)) ** (trials - count)
        return float(likelihoods * weight * (1 - fraction) ** (weight - 1) / (1 - limit) ** weight)

    expected, _ = quad(ratio, limit, 1, points=[count / trials], limit=200)
    assert log_evidence(count, trials, limit) == pytest.approx(math.log(expected), abs=1e-6)


@pytest.mark.parametrize(("count", "trials"), [(0, 50), (1, 1), (3, 3), (5, 20), (10, 100), (50, 1000)])
def test_the_bound_is_where_the_evidence_reaches_its_threshold_and_below_that_of_one_look(
    count: int, trials: int
) -> None:
    alpha = 0.01
    bound = lower_bound(count, trials, alpha)
    if bound == 0.0:  # too few to exclude any limit
        grid = np.linspace(1e-6, 0.999, 200)
        assert all(log_evidence(count, trials, at) < math.log(1 / alpha) for at in grid)
        return
    assert log_evidence(count, trials, bound) == pytest.approx(math.log(1 / alpha), abs=1e-3)
    grid = np.linspace(1e-4, bound, 50)
    assert all(log_evidence(count, trials, at) >= math.log(1 / alpha) - 1e-3 for at in grid)
    assert bound < beta.ppf(alpha, count, trials - count + 1), "Clopper and Pearson's, good at one look, is closer"


def ever_ends(random: np.random.Generator, fraction: float, *, limit: float, studies: int, alpha: float) -> int:
    """Studies after which a canary of that true fraction is ended, looked at after each; 0: never."""
    failed = np.cumsum(random.random(studies) < fraction)
    for number in range(30, studies + 1):
        # The bound lies above the limit where the evidence at the limit reaches its threshold, and more failures came
        # than the limit allows.
        count = int(failed[number - 1])
        if count > limit * number and log_evidence(count, number, limit) >= math.log(1 / alpha):
            return number
    return 0


@pytest.mark.parametrize("fraction", [0.05, 0.03])
def test_a_canary_at_its_limit_is_seldom_ended_however_often_it_is_looked_at(fraction: float) -> None:
    random, alpha, runs = np.random.default_rng(1), 0.05, 300
    ended = sum(ever_ends(random, fraction, limit=0.05, studies=400, alpha=alpha) > 0 for _ in range(runs))
    assert binomtest(ended, runs, alpha, alternative="greater").pvalue > 0.001, f"{ended} of {runs} ended"


def test_a_fixed_bound_at_every_look_would_end_good_canaries() -> None:
    """Why it is not simply Clopper and Pearson's bound: the same runs, the same level, many more false ends."""
    random, alpha, runs, limit = np.random.default_rng(1), 0.05, 300, 0.05
    ended = 0
    for _ in range(runs):
        failed = np.cumsum(random.random(400) < limit)[29:]
        numbers = np.arange(30, 401)
        ended += bool((beta.ppf(alpha, failed.clip(1), numbers - failed + 1) * (failed > 0) > limit).any())
    assert binomtest(ended, runs, alpha, alternative="greater").pvalue < 1e-6


@pytest.mark.parametrize(("fraction", "within"), [(0.5, 40), (0.2, 120)])
def test_a_bad_canary_ends_soon(fraction: float, within: int) -> None:
    random = np.random.default_rng(2)
    ends = [ever_ends(random, fraction, limit=0.05, studies=400, alpha=0.01 / 3) for _ in range(100)]
    assert all(ends)
    assert np.median(ends) <= within


def test_nothing_ends_before_the_least_studies() -> None:
    evidence = Evidence(judged={"a"}, failed=frozenset(str(number) for number in range(28)))
    assert evidence.figures(LIMITS) == []
    evidence.failed = frozenset(str(number) for number in range(29))
    (errors,) = evidence.figures(LIMITS)
    assert (errors.count, errors.studies, errors.passes) == (29, 30, True)


def test_the_interval_for_readers_is_clopper_and_pearsons() -> None:
    expected = binomtest(7, 60).proportion_ci(0.95, method="exact")
    found = figure("error_fraction", 7, 60, limit=0.05, alpha=0.01)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


# --- on a store ---


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = open_store("", data_dir=tmp_path, migrate=True)
    for version, state in ((1, VersionState.CHAMPION), (2, VersionState.CANARY)):
        with store.write() as connection:
            add_version(
                connection,
                model_name="m",
                version=version,
                title="M",
                demonstration=True,
                folder="nowhere",
                model_sha256="0" * 64,
                bundle_sha256="0" * 64,
                now=NOW,
                by="test",
                state=state,
            )
    yield store
    store.close()


def guard(store: Store, data_dir: Path) -> CanaryGuard:
    return CanaryGuard(store, load_settings(environment={}), record_key(bytes(range(7, 39)), data_dir))


def canary(store: Store) -> KnownVersion:
    with store.read() as connection:
        return find_version(connection, "m", 2)


def fail(store: Store, count: int, at: datetime = NOW) -> None:
    rows = [
        {"study_key": f"{number:032x}", "model_name": "m", "version": 2, "role": "canary", "reason": "no", "at": at}
        for number in range(count)
    ]
    with store.write() as connection:
        connection.execute(insert(model_failure), rows)


def test_a_quiet_canary_goes_on(store: Store, tmp_path: Path) -> None:
    assert guard(store, tmp_path).look(NOW) == ()
    assert canary(store).state is VersionState.CANARY


def test_failures_of_an_earlier_turn_as_canary_do_not_count(store: Store, tmp_path: Path) -> None:
    fail(store, 100, at=NOW - timedelta(days=1))
    assert guard(store, tmp_path).look(NOW) == ()
    fail(store, 100)
    assert guard(store, tmp_path).look(NOW) == (("m", 2),)


def test_its_own_limits_come_before_those_of_the_settings(store: Store, tmp_path: Path) -> None:
    with store.write() as connection:
        connection.execute(
            update(model_version)
            .where(model_version.c.version == 2)
            .values(traffic={"fraction": 0.5, "limits": {"least_studies": 1000}})
        )
    limits = limits_of(canary(store), load_settings(environment={}).canary)
    assert (limits.least_studies, limits.error_fraction) == (1000, 0.02)
    fail(store, 100)
    assert guard(store, tmp_path).look(NOW) == ()


@pytest.mark.parametrize("drift", [True, False])
def test_a_drift_alarm_ends_it_where_that_is_asked_for(store: Store, tmp_path: Path, drift: bool) -> None:
    with store.write() as connection:
        connection.execute(
            update(model_version).where(model_version.c.version == 2).values(traffic={"limits": {"drift": drift}})
        )
    times = {"first_seen_at": NOW, "last_seen_at": NOW}
    values = {"model_name": "m", "model_version": 2, "scope": "all", "kind": "charts", "message": "moved", "count": 1}
    key = raise_alarm(store, values | times)
    ended = guard(store, tmp_path).look(NOW)
    assert ended == ((("m", 2),) if drift else ())
    if drift:
        with store.read() as connection:
            entry = entries(connection)[-1]
        assert (entry.actor, entry.reason) == ("guard", "drift alarm: charts on all")
        assert entry.detail["alarms"] == [key]


def test_a_pair_that_is_looked_at_again_counts_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [
        Pair(prediction_id=number, study_key="s", agrees=True, canary_ms=30.0, champion_ms=10.0 * number)
        for number in range(1, 4)
    ]

    def after(_: Store, *, after: int, **__: object) -> tuple[Pair, ...]:
        return tuple(each for each in pairs if each.prediction_id > after)

    monkeypatch.setattr("gateway.canary_guard.pairs_after", after)
    evidence = Evidence()
    for _ in range(3):
        evidence.take_in(store, canary(store), 1)
    assert (evidence.compared["s"].canary_ms, evidence.compared["s"].champion_ms) == (90.0, 60.0)
    pairs.append(Pair(prediction_id=4, study_key="s", agrees=False, canary_ms=1.0, champion_ms=1.0))
    evidence.take_in(store, canary(store), 1)
    assert (evidence.compared["s"].canary_ms, evidence.compared["s"].disagrees) == (91.0, True)
