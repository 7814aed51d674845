"""The versions that a worker runs: loaded beside its work, swapped between two batches, kept warm for a rollback.

The store says which versions run, and is asked between batches. A version is loaded in a thread, and what judged until
then goes on judging, so that nothing waits for a change. Breakers' probes run in a thread too.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gateway.breaker import BreakerRule, Breakers, BreakerState, Clock
from gateway.canary import Beside
from gateway.fuse import Fuse
from gateway.settings import Settings
from gateway.store import Store
from gateway.store.models import ServedVersion, VersionState, served_versions
from models.card import load_bundle
from models.errors import BundleError, InferenceError
from models.golden import run_golden
from models.session import ModelSession

logger = logging.getLogger(__name__)

Key = tuple[str, int]
"""Model name and version."""
LONGEST_WAIT_S = 30.0
"""For a former champion to be loaded again, before what was taken back goes on."""
TRY_AGAIN_S = 60.0
"""After which a version that could not be loaded is tried once more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """A version that could not be loaded."""

    reason: str
    at: float


@dataclass(slots=True)
class Versions:
    """Sessions and breakers of the versions that the store wants run."""

    settings: Settings
    store: Store
    threads: int
    cache_folder: Path
    fuse: Fuse = field(default_factory=Fuse)
    clock: Clock = time.monotonic
    sessions: dict[str, ModelSession] = field(default_factory=dict)
    """Model name -> its champion's."""
    beside: Mapping[str, Beside] = field(default_factory=dict)
    broken: dict[Key, Broken] = field(default_factory=dict)
    breakers: Breakers = field(init=False)
    _served: tuple[ServedVersion, ...] = ()
    _loaded: dict[Key, ModelSession] = field(default_factory=dict)
    _loading: dict[Key, Future[ModelSession]] = field(default_factory=dict)
    _probing: dict[Key, Future[str]] = field(default_factory=dict)
    _former: dict[str, Key] = field(default_factory=dict)
    _loader: ThreadPoolExecutor = field(init=False)
    _prober: ThreadPoolExecutor = field(init=False)

    def __post_init__(self) -> None:
        rule = BreakerRule(**self.settings.breaker.model_dump(exclude={"policy"}))
        self.breakers = Breakers(rule=rule, clock=self.clock)
        # Two to load, so that a rollback waits for no other version; probes of a slow version delay no loading.
        self._loader = ThreadPoolExecutor(2, thread_name_prefix="load")
        self._prober = ThreadPoolExecutor(1, thread_name_prefix="probe")

    def close(self) -> None:
        """Give the threads back."""
        self._loader.shutdown(cancel_futures=True)
        self._prober.shutdown(cancel_futures=True)

    def follow(self) -> bool:
        """Do what the store says; false while it knows of no version yet. True also where nothing has changed.

        Raises
        ------
        StoreError
            The store cannot be read; what runs goes on.
        """
        named = {name for rule in self.settings.rules for name in rule.models}
        waited = True
        while waited:  # what the store says may have changed while a champion was loaded
            everything = served_versions(self.store)
            self._served = tuple(entry for entry in everything if entry.model_name in named)
            champions_first = sorted(self._served, key=lambda each: each.state is not VersionState.CHAMPION)
            waited = sum(self._want(entry) for entry in champions_first) > 0  # each of them, so not any()
        self._take_in()
        self._arrange()
        self._forget()
        self._probe()
        return bool(everything)

    def settle(self) -> None:
        """Wait until what is being loaded or probed is done, and take it in."""
        while self._loading or self._probing:
            wait(set[Future[Any]]({*self._loading.values(), *self._probing.values()}))
            self.follow()

    def describe(self) -> dict[str, Any]:
        """What a worker's sign of life says of its versions."""
        besides = self.beside.items()
        return {
            "models": {name: session.bundle.card.version for name, session in self.sessions.items()},
            "canaries": {name: each.canary.bundle.card.version for name, each in besides if each.canary},
            "shadows": {name: each.shadow.bundle.card.version for name, each in besides if each.shadow},
            "kept": dict(self._former.values()),
            "providers": {name: list(session.providers_in_use) for name, session in self.sessions.items()},
            "broken": {f"{name} {version}": each.reason for (name, version), each in self.broken.items()},
            "breakers": [self._describe(entry) for entry in self._served],
        }

    def _describe(self, entry: ServedVersion) -> dict[str, Any]:
        breaker = self.breakers.of(entry.model_name, entry.version)
        return {
            "model": entry.model_name,
            "version": entry.version,
            "role": entry.state.value,
            "state": breaker.state.value,
            "reason": breaker.reason,
            "failures": breaker.failures,
            "openings": breaker.openings,
            "wait_s": round(breaker.wait_s, 1),
        }

    def fingerprint(self) -> tuple[Any, ...]:
        """Another one after anything that ought to be reported at once."""
        breakers = [self.breakers.of(entry.model_name, entry.version) for entry in self._served]
        states = [(breaker.state, breaker.openings) for breaker in breakers]
        return (*states, *self._served, *self.broken, *(id(session) for session in self._loaded.values()))

    # --- loading ---

    def _want(self, entry: ServedVersion) -> bool:
        """See to it that a version is loaded, or is being loaded; whether that was waited for."""
        key = (entry.model_name, entry.version)
        if key in self._loaded or key in self._loading:
            return False
        deadly = "" if entry.state is VersionState.CHAMPION else self.fuse.why_broken(*key)
        if deadly:
            self.broken[key] = Broken(reason=deadly, at=self.clock())
            return False
        broken = self.broken.get(key)
        if broken is not None and self.clock() - broken.at < TRY_AGAIN_S:
            return False
        loading = self._loading[key] = self._loader.submit(self._load, Path(entry.folder))
        if entry.state is not VersionState.CHAMPION or broken is not None:
            return False
        sitting = self.sessions.get(entry.model_name)
        if sitting is None:
            wait([loading])  # there is nothing yet that could judge meanwhile
            return True
        if entry.version < sitting.bundle.card.version:
            # Taken back: what judges now is to judge no more, unless the former one takes long.
            wait([loading], timeout=LONGEST_WAIT_S)
            return True
        return False

    def _load(self, folder: Path) -> ModelSession:
        return ModelSession(
            load_bundle(folder),
            providers=self.settings.worker.providers or None,
            threads=self.threads,
            cache_folder=self.cache_folder,
        )

    def _take_in(self) -> None:
        for key, loading in list(self._loading.items()):
            if not loading.done():
                continue
            del self._loading[key]
            error = loading.exception()
            if error is None:
                self._loaded[key] = loading.result()
                self.broken.pop(key, None)
                continue
            # What ran before goes on; a study that needs a model that never loaded says so.
            expected = isinstance(error, (BundleError, InferenceError))
            reason = str(error) if expected else f"internal error: {type(error).__name__}"
            logger.error("%s version %d cannot be loaded: %s", *key, reason)
            self.broken[key] = Broken(reason=reason, at=self.clock())

    def _arrange(self) -> None:
        """Let what is loaded do what the store says."""
        champions = {each.model_name: each for each in self._served if each.state is VersionState.CHAMPION}
        for name in self.sessions.keys() - champions.keys():
            del self.sessions[name]
        for name, entry in champions.items():
            session = self._loaded.get((name, entry.version))
            before = self.sessions.get(name)
            if session is None or session is before:
                continue
            self.sessions[name] = session
            if before is not None:
                self._former[name] = (name, before.bundle.card.version)
                logger.info("%s version %d judges now, after version %d", name, entry.version, self._former[name][1])
        besides: dict[str, dict[str, Any]] = {}
        for entry in self._served:
            session = self._loaded.get((entry.model_name, entry.version))
            if session is None or session is self.sessions.get(entry.model_name):
                continue
            if entry.state is VersionState.CANARY:
                besides.setdefault(entry.model_name, {}).update(canary=session, traffic=entry.traffic)
            elif entry.state is VersionState.SHADOW:
                besides.setdefault(entry.model_name, {})["shadow"] = session
        self.beside = {name: Beside(**each) for name, each in besides.items()}

    def _forget(self) -> None:
        """Let go of what runs no more, but for the former champion where there is room for it."""
        wanted = {(entry.model_name, entry.version) for entry in self._served}
        wanted |= {(name, session.bundle.card.version) for name, session in self.sessions.items()}
        self._former = {name: key for name, key in self._former.items() if key in self._loaded}
        if not (
            self.settings.models.keep_former and free_memory_bytes() >= self.settings.models.keep_former_free_bytes
        ):
            self._former = {name: key for name, key in self._former.items() if key in wanted}
        for key in self._loaded.keys() - wanted - set(self._former.values()):
            del self._loaded[key]
            self.breakers.forget(*key)
        for key in self.broken.keys() - wanted:
            del self.broken[key]
            self.fuse.forgive(*key)

    # --- probing ---

    def _probe(self) -> None:
        """Begin the probes that are due, and take in those that have ended."""
        for key, probing in list(self._probing.items()):
            if probing.done():
                del self._probing[key]
                breaker = self.breakers.of(*key)
                if breaker.state is BreakerState.HALF_OPEN:
                    breaker.end_probe(_outcome(probing))
                    logger.warning("%s version %d: circuit breaker %s after a probe", *key, breaker.state)
        for key, session in self._loaded.items():
            waiting = self.breakers.of(*key)
            if waiting.probe_is_due and key not in self._probing:
                waiting.begin_probe()
                self._probing[key] = self._prober.submit(probe, session, self.settings.breaker.slow_s)


def _outcome(probing: Future[str]) -> str:
    error = probing.exception()
    if error is None:
        return probing.result()
    return str(error) if isinstance(error, (BundleError, InferenceError)) else f"internal error: {type(error).__name__}"


def probe(session: ModelSession, slow_s: float) -> str:
    """Try a version on its bundle's golden inputs, or on an empty picture where it has none; why not, or nothing.

    Raises
    ------
    BundleError, InferenceError
        It failed.
    """
    started = time.perf_counter()
    if session.bundle.card.golden is None:
        contract = session.bundle.card.pixel_contract
        session.run(np.zeros((1, contract.channels, contract.size.rows, contract.size.columns), dtype=np.float32))
        count = 1
    else:
        report = run_golden(session, session.bundle)
        if not report.passed:
            return "; ".join(report.reasons)
        count = report.count
    each_s = (time.perf_counter() - started) / count
    return f"slow: {each_s:.1f} s a picture, {slow_s:g} s or more" if each_s >= slow_s else ""


def free_memory_bytes() -> int:
    """What the system could give (``MemAvailable`` of proc(5)); very much where it does not say."""
    try:
        text = Path("/proc/meminfo").read_text("ascii")
    except OSError:
        return 1 << 62
    found = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 1 << 62
