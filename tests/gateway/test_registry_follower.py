"""The follower: what the registry holds is taken in, its aliases follow, and what was there before stays as it was."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from model_rig import NAME, ModelRig, model_rig, write_bundle
from running import wait_until

from gateway import registry_follower
from gateway.catalogue import embedded_registry_uri
from gateway.lifecycle import Action, roll_back
from gateway.model_record import verify
from gateway.registry_follower import RegistryFollower
from gateway.settings import Settings, load_settings
from gateway.store import Store, open_store
from gateway.store.models import known_versions
from models.card import Bundle
from models.errors import RegistryError
from models.registry import ModelRegistry, RegisteredVersion, bundle_sha256

SETTINGS = load_settings(environment={})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store("", data_dir=tmp_path, migrate=True)
    yield opened
    opened.close()


@pytest.fixture
def rig(store: Store, tmp_path: Path) -> Iterator[ModelRig]:
    with model_rig(store, tmp_path) as rig:
        yield rig
        assert verify(store, rig.key) == []


class Registry:
    """A registry in memory, with :class:`ModelRegistry`'s methods; one that is away raises what that one raises."""

    def __init__(self) -> None:
        self.bundles: dict[tuple[str, int], Bundle] = {}
        self.aliases: dict[tuple[str, str], int] = {}
        self.is_away = False
        self.changes = 0

    def __call__(self, uri: str, artifacts: Path) -> Registry:
        return self

    def register(self, bundle: Bundle) -> str:
        self.bundles[bundle.card.name, bundle.card.version] = bundle
        return "1"

    def versions(self, model_name: str | None = None) -> list[RegisteredVersion]:
        if self.is_away:
            raise RegistryError("the model registry could not list versions (URLError)")
        return [
            RegisteredVersion(
                model_name=name,
                card_version=version,
                registry_version="1",
                bundle_sha256=bundle_sha256(bundle.folder),
                model_sha256=bundle.model_sha256,
                aliases=tuple(alias for (of, alias), value in self.aliases.items() if (of, value) == (name, version)),
            )
            for (name, version), bundle in sorted(self.bundles.items())
        ]

    def bundle(self, version: RegisteredVersion) -> Bundle:
        return self.bundles[version.model_name, version.card_version]

    def set_alias(self, model_name: str, alias: str, version: int) -> None:
        self.aliases[model_name, alias] = version
        self.changes += 1

    def remove_alias(self, model_name: str, alias: str) -> None:
        self.aliases.pop((model_name, alias), None)
        self.changes += 1


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    made = Registry()
    monkeypatch.setattr(registry_follower, "ModelRegistry", made)
    monkeypatch.setattr(registry_follower, "bundled_folders", lambda: ())
    return made


def ship(monkeypatch: pytest.MonkeyPatch, *bundles: Bundle) -> None:
    monkeypatch.setattr(registry_follower, "bundled_folders", lambda: tuple(each.folder for each in bundles))


def bundle(rig: ModelRig, version: int, name: str = NAME) -> Bundle:
    return write_bundle(rig.data_dir / "made" / f"{name}-{version}", version, name=name, acceptance=None)


def test_first_start(rig: ModelRig, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    ship(monkeypatch, bundle(rig, 1), bundle(rig, 10), bundle(rig, 9))
    follower = RegistryFollower(SETTINGS, rig.data_dir, rig.store)
    follower.follow()
    assert rig.states() == {1: "draft", 9: "draft", 10: "champion"}
    assert registry.aliases == {(NAME, "champion"): 10}
    told = rig.actions("action", "version", "actor", "reason")
    assert told[-1] == ("set up", 10, "gateway", registry_follower.FIRST_START)
    assert [each[0] for each in told] == ["register"] * 3 + ["set up"]
    changes = registry.changes
    follower.follow()
    assert (registry.changes, len(rig.actions())) == (changes, 4)


def test_a_data_folder_of_before_stays_as_it_was(
    rig: ModelRig, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its registry has an alias, its store no versions; a newer version that ships now is a draft."""
    old, newer = bundle(rig, 1), bundle(rig, 2)
    registry.register(old)
    registry.aliases[NAME, "champion"] = 1
    ship(monkeypatch, old, newer)
    RegistryFollower(SETTINGS, rig.data_dir, rig.store).follow()
    assert rig.states() == {1: "champion", 2: "draft"}
    assert rig.actions("action", "actor", "reason")[-1] == ("set up", "gateway", registry_follower.AS_IT_WAS)


def test_a_version_that_comes_later_is_a_draft(rig: ModelRig, registry: Registry) -> None:
    """Also of a model that nobody ships: a champion comes by a request."""
    follower = RegistryFollower(SETTINGS, rig.data_dir, rig.store)
    registry.register(bundle(rig, 1))
    follower.follow()
    registry.register(bundle(rig, 2))
    follower.follow()
    assert rig.states() == {1: "draft", 2: "draft"}


def test_a_version_with_other_bytes_than_registered_is_not_taken_in(
    rig: ModelRig, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """With MLflow itself: one file was changed behind it; the other versions come in all the same."""
    registry = ModelRegistry(embedded_registry_uri(rig.data_dir), rig.data_dir / "mlflow-artifacts")
    for version in (1, 2):
        registry.register(bundle(rig, version))
    first = next(each for each in registry.versions() if each.card_version == 1)
    (registry.bundle(first).folder / "reference.npz").write_bytes(b"")
    follower = RegistryFollower(SETTINGS, rig.data_dir, store)
    follower.follow()
    follower.follow()
    assert rig.states() == {2: "draft"}
    assert caplog.text.count("tiny@1 is not taken in") == 1
    shipped = {each.model_name for each in known_versions(store)} - {NAME}
    champions = {each.model_name for each in known_versions(store) if each.state == "champion"}
    assert shipped == champions != set()


def test_aliases_follow_what_was_decided(rig: ModelRig, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    ship(monkeypatch, bundle(rig, 1), bundle(rig, 2))
    follower = RegistryFollower(SETTINGS, rig.data_dir, rig.store)
    follower.follow()
    rig.step(1, Action.SHADOW)
    follower.follow()
    assert registry.aliases == {(NAME, "champion"): 2, (NAME, "shadow"): 1}
    rig.step(1, Action.STOP_SHADOW)
    follower.follow()
    assert registry.aliases == {(NAME, "champion"): 2}


def test_an_alias_moved_in_the_registry_is_not_followed_and_said_once(
    rig: ModelRig, registry: Registry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ship(monkeypatch, bundle(rig, 1), bundle(rig, 2))
    follower = RegistryFollower(SETTINGS, rig.data_dir, rig.store)
    follower.follow()
    follower.follow()
    registry.aliases[NAME, "champion"] = 1
    stop = threading.Event()
    monkeypatch.setattr(registry_follower, "INTERVAL_S", 0.01)
    with caplog.at_level(logging.WARNING):
        following = threading.Thread(target=follower.run, args=(stop,))
        following.start()
        wait_until(lambda: follower.report().notices, "the notice", 10)
        stop.set()
        following.join()
    (notice,) = follower.report().notices
    assert notice.startswith("the registry's alias champion of tiny is version 1, and version 2 is champion")
    assert caplog.text.count("alias champion of tiny") == 1
    assert rig.states() == {1: "draft", 2: "champion"}
    assert registry.aliases == {(NAME, "champion"): 1}
    registry.aliases[NAME, "champion"] = 2
    follower.follow()
    assert follower._notices == {}
    registry.aliases[NAME, "champion"] = 1
    RegistryFollower(SETTINGS, rig.data_dir, rig.store).follow()
    assert registry.aliases == {(NAME, "champion"): 2}, "a monitor that starts sets it right"


def test_a_registry_that_is_away_costs_no_roll_back(
    rig: ModelRig, registry: Registry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for version in (1, 2):
        registry.register(rig.register(version))
    rig.set_up(1)
    rig.promote(2, champion=1)
    registry.is_away = True
    monkeypatch.setattr(registry_follower, "INTERVAL_S", 0.01)
    monkeypatch.setattr(registry_follower, "LONGEST_INTERVAL_S", 0.02)
    follower, stop = RegistryFollower(SETTINGS, rig.data_dir, rig.store), threading.Event()
    following = threading.Thread(target=follower.run, args=(stop,))
    following.start()
    wait_until(lambda: follower.report().error, "the error", 10)
    assert follower.has_read.is_set()
    roll_back(rig.store, model_name=NAME, reason="it misses", actor="bob", now=rig.later(), key=rig.key)
    assert rig.states() == {1: "champion", 2: "retired"}
    registry.is_away = False
    wait_until(lambda: registry.aliases == {(NAME, "champion"): 1}, "the alias", 10)
    stop.set()
    following.join()
    assert follower.report().error == ""
    assert caplog.text.count("what runs goes on") == 1


def test_a_data_folder_that_was_moved(rig: ModelRig, registry: Registry) -> None:
    registry.register(rig.register(1))
    old = registry.bundles[NAME, 1].folder
    moved = old.rename(rig.data_dir / "elsewhere")
    registry.bundles[NAME, 1] = Bundle(folder=moved, card=registry.bundles[NAME, 1].card)
    RegistryFollower(SETTINGS, rig.data_dir, rig.store).follow()
    assert [each.folder for each in known_versions(rig.store)] == [str(moved)]


def test_settings_name_the_registry(tmp_path: Path, store: Store) -> None:
    settings: Settings = load_settings(environment={}, overrides={"models.tracking_uri": "http://127.0.0.1:1"})
    assert RegistryFollower(settings, tmp_path, store)._uri == "http://127.0.0.1:1"
