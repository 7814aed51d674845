"""The model registry beside the store: new versions are taken in from it, and its aliases follow the store.

Runs in a thread of the monitor: a registry that is away, or slow to say so, holds up nothing else.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, update

from gateway.catalogue import embedded_registry_uri
from gateway.errors import LifecycleError, StoreError
from gateway.lifecycle import GATEWAY, Action, move_version, take_in_by
from gateway.model_record import keep_head, load_record_key, recording
from gateway.settings import Settings
from gateway.store import Store
from gateway.store.models import known_versions, served_versions
from gateway.store.schema import model_version
from models import bundled_folders
from models.card import Bundle, load_bundle
from models.errors import BundleError, ModelError
from models.registry import ALIASES, ModelRegistry, RegisteredVersion

logger = logging.getLogger(__name__)

INTERVAL_S = 3.0
LONGEST_INTERVAL_S = 60.0
"""Between two tries while the registry cannot be reached."""
AS_IT_WAS = "as it was: the registry's alias champion, from before states were kept"
FIRST_START = "first start: the newest version that ships with the gateway"


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryReport:
    """How it stands with the registry, for ``gateway models`` and the pages."""

    error: str
    """Why it could not be followed at the last try; empty where it could."""
    notices: tuple[str, ...]
    """Aliases that somebody moved in the registry itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewVersions:
    """What the store does not know yet of a model."""

    model_name: str
    bundles: tuple[tuple[Bundle, str], ...]
    """Verified ones, each with its sha256."""
    champion: int | None
    """The version that is to be champion, where the model is new."""
    reason: str


class RegistryFollower:
    """Registers the shipped bundles, takes new versions in, and mirrors the store's decisions to the aliases."""

    def __init__(self, settings: Settings, data_dir: Path, store: Store) -> None:
        self._uri = settings.models.tracking_uri or embedded_registry_uri(data_dir)
        self._artifacts = data_dir / "mlflow-artifacts"
        self._store = store
        self._key = load_record_key(settings.deidentification, data_dir)
        self._registry: ModelRegistry | None = None
        self._shipped: Mapping[str, int] | None = None
        self._broken: set[tuple[str, int]] = set()
        self._mirrored: dict[tuple[str, str], int | None] = {}
        self._notices: dict[tuple[str, str], str] = {}
        self._error = ""
        self._report = RegistryReport(error="", notices=())
        self.has_read = threading.Event()
        """Set once the registry was read, or could not be."""

    def run(self, stop: threading.Event) -> None:
        """Follow until `stop` is set."""
        pause_s = INTERVAL_S
        while not stop.is_set():
            try:
                self.follow()
                if self._error:
                    logger.info("the model registry can be followed again")
                self._error, pause_s = "", INTERVAL_S
            except (StoreError, ModelError, LifecycleError) as error:
                if str(error) != self._error:
                    logger.error("%s; what runs goes on", error)
                self._error, pause_s = str(error), min(2 * pause_s, LONGEST_INTERVAL_S)
            self._report = RegistryReport(error=self._error, notices=tuple(self._notices.values()))
            self.has_read.set()
            stop.wait(pause_s)

    def report(self) -> RegistryReport:
        """How it stood after the last try."""
        return self._report

    def detail(self) -> dict[str, Any]:
        """What the monitor reports of it: nothing where all is as it should be."""
        found = self._report
        return {"registry": asdict(found)} if found.error or found.notices else {}

    def follow(self) -> None:
        """Read the registry once, and let its aliases follow.

        Raises
        ------
        ModelError
            It cannot be reached; what the workers run stays as it is.
        """
        keep_head(self._store, self._key)
        registry = self._registry = self._registry or ModelRegistry(self._uri, self._artifacts)
        if self._shipped is None:
            self._shipped = register_bundled(registry)
        versions = registry.versions()
        self._take_in(registry, versions)
        self._mirror(registry, versions)

    def _take_in(self, registry: ModelRegistry, versions: Sequence[RegisteredVersion]) -> None:
        """New versions become drafts; of a model that the store did not know, one becomes champion."""
        known = {(each.model_name, each.version): each for each in known_versions(self._store)}
        names = {name for name, _ in known}
        by_model: dict[str, list[RegisteredVersion]] = {}
        for each in versions:
            key = (each.model_name, each.card_version)
            if key not in known and key not in self._broken:
                by_model.setdefault(each.model_name, []).append(each)
            elif key in known and not Path(known[key].folder).is_dir():  # the data folder was moved
                self._move_folder(registry.bundle(each))
        found = [self._examine(registry, name, new, is_new=name not in names) for name, new in by_model.items()]
        if not found:
            return
        # All in one transaction: a worker that saw the champion of one model would fail the studies of another.
        with recording(self._store, self._key) as connection:
            for model in found:
                self._write(connection, model, datetime.now(UTC))

    def _examine(
        self, registry: ModelRegistry, name: str, versions: Sequence[RegisteredVersion], *, is_new: bool
    ) -> NewVersions:
        """Verify what the store does not know of a model, and say which of it is champion."""
        usable = [(bundle, each.bundle_sha256) for each in versions if (bundle := self._bundle(registry, each))]
        champion, reason = self._first_champion(name, versions) if is_new else (None, "")
        if champion is not None and champion not in [bundle.card.version for bundle, _ in usable]:
            logger.error("%s has no champion: version %d is broken", name, champion)
            champion = None
        return NewVersions(model_name=name, bundles=tuple(usable), champion=champion, reason=reason)

    def _write(self, connection: Connection, new: NewVersions, now: datetime) -> None:
        for bundle, sha256 in new.bundles:
            take_in_by(connection, key=self._key, bundle=bundle, bundle_sha256=sha256, by="registry", now=now)
        if new.champion is not None:
            move_version(
                connection,
                key=self._key,
                model_name=new.model_name,
                version=new.champion,
                action=Action.SET_UP,
                actor=GATEWAY,
                now=now,
                reason=new.reason,
            )

    def _first_champion(self, name: str, versions: Iterable[RegisteredVersion]) -> tuple[int | None, str]:
        """Which version of a model is champion where the store knows none yet, and why."""
        for each in versions:
            if "champion" in each.aliases:
                return each.card_version, AS_IT_WAS
        return (self._shipped or {}).get(name), FIRST_START

    def _bundle(self, registry: ModelRegistry, version: RegisteredVersion) -> Bundle | None:
        """The verified bundle; ``None`` where its files are not those that were registered, which is logged once."""
        try:
            return registry.bundle(version)
        except BundleError as error:
            logger.error("%s@%d is not taken in: %s", version.model_name, version.card_version, error)
            self._broken.add((version.model_name, version.card_version))
            return None

    def _move_folder(self, bundle: Bundle) -> None:
        same = (model_version.c.model_name == bundle.card.name) & (model_version.c.version == bundle.card.version)
        with self._store.write() as connection:
            connection.execute(update(model_version).where(same).values(folder=str(bundle.folder)))

    def _mirror(self, registry: ModelRegistry, versions: Sequence[RegisteredVersion]) -> None:
        """Let the aliases mean what the store decided.

        One that was moved in the registry after it was mirrored is left alone, logged once and reported, until the
        store decides anew or the monitor starts again.
        """
        wanted: dict[tuple[str, str], int] = {
            (each.model_name, str(each.state)): each.version for each in served_versions(self._store)
        }
        found = {(each.model_name, alias): each.card_version for each in versions for alias in each.aliases}
        there = {(each.model_name, each.card_version) for each in versions}
        stored = {each.model_name for each in known_versions(self._store)}
        for key in [(name, alias) for name in sorted({name for name, _ in there} & stored) for alias in ALIASES]:
            name, alias = key
            want, have = wanted.get(key), found.get(key)
            if want == have:
                self._mirrored[key] = want
                self._notices.pop(key, None)
            elif key in self._mirrored and self._mirrored[key] == want:
                self._notice(key, want, have)
            elif want is None or (name, want) in there:
                if want is None:
                    registry.remove_alias(name, alias)
                else:
                    registry.set_alias(name, alias, want)
                self._mirrored[key] = want
                self._notices.pop(key, None)
            else:
                self._notice(key, want, have)

    def _notice(self, key: tuple[str, str], want: int | None, have: int | None) -> None:
        name, alias = key
        text = (
            f"the registry's alias {alias} of {name} is {_version(have)}, and {_version(want)} is {alias}: "
            "what runs is decided here, not there"
        )
        if self._notices.get(key) != text:
            logger.warning("%s", text)
        self._notices[key] = text


def _version(version: int | None) -> str:
    return "no version" if version is None else f"version {version}"


def register_bundled(registry: ModelRegistry) -> Mapping[str, int]:
    """Register the shipped bundles that the registry lacks; gives the newest shipped version of each model."""
    known = {(version.model_name, version.card_version) for version in registry.versions()}
    newest: dict[str, int] = {}
    for bundle in map(load_bundle, bundled_folders()):
        card = bundle.card
        if (card.name, card.version) not in known:
            registry.register(bundle)
        newest[card.name] = max(card.version, newest.get(card.name, 0))
    return newest
