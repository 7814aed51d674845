"""Model versions in MLflow's model registry. With :mod:`models.tracking` the only file that imports MLflow.

A bundle is registered as a run (its card as parameters, metrics and tags, its files as artifacts) with a model version
that points at them, so that ``mlflow ui`` shows what the gateway may run. The aliases ``champion``, ``shadow`` and
``canary`` say what runs.

Embedded by default: a SQLite file and a folder beside it. A tracking server is used by giving its URL.

Importing MLflow takes about two and a half seconds, so it happens when a registry is made and not with this module.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.card import CARD_FILE, Bundle, Card, file_sha256, load_bundle
from models.errors import BundleError, RegistryError
from models.tracking import LONGEST_PARAMETER, Tracking, mapped, mlflow_key

ALIASES = ("champion", "shadow", "canary")
EXPERIMENT = "bundles"

_BUNDLE_FOLDER = "bundle"
_CARD_VERSION, _BUNDLE_SHA256, _MODEL_SHA256 = "card_version", "bundle_sha256", "model_sha256"


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredVersion:
    """One model version as the registry knows it."""

    model_name: str
    card_version: int
    registry_version: str
    """MLflow's own number, given in the order of registration."""
    bundle_sha256: str
    model_sha256: str
    aliases: tuple[str, ...]


class ModelRegistry:
    """The model registry.

    Parameters
    ----------
    tracking_uri
        ``sqlite:///FILE``, another SQLAlchemy URL, or the URL of an MLflow tracking server.
    artifact_root
        Folder for the files of embedded bundles, and for copies of those that a server keeps.

    Raises
    ------
    RegistryError
        The registry cannot be opened or reached.
    """

    def __init__(self, tracking_uri: str, artifact_root: Path) -> None:
        self._tracking = Tracking(tracking_uri, artifact_root)
        self._client = self._tracking.client

    def register(self, bundle: Bundle) -> str:
        """Register a bundle, once: the same bytes again give the same version.

        Returns
        -------
        str
            MLflow's version.

        Raises
        ------
        RegistryError
            The same card version is registered with other bytes, or the registry cannot be reached.
        """
        card, sha256 = bundle.card, bundle_sha256(bundle.folder)
        with mapped(f"could not register {card.name} version {card.version}"), self._tracking.lock():
            for known in self._versions(card.name):
                if known.card_version != card.version:
                    continue
                if known.bundle_sha256 != sha256:
                    raise RegistryError(
                        f"{card.name} version {card.version} is registered with other bytes (sha256 "
                        f"{known.bundle_sha256}, this one has {sha256}); a bundle never changes: a new threshold is a "
                        "new version"
                    )
                return known.registry_version
            run_id = self._log_run(bundle, sha256)
            self._make_model(card)
            version = self._client.create_model_version(
                card.name,
                source=f"runs:/{run_id}/{_BUNDLE_FOLDER}",
                run_id=run_id,
                tags=_identity(bundle, sha256),
                description=card.intended_use,
            )
            self._client.set_terminated(run_id)
            return str(version.version)

    def set_alias(self, model_name: str, alias: str, version: int) -> None:
        """Let `alias` mean a version of a model.

        Parameters
        ----------
        version
            The card's version, which results and pages show; not MLflow's number.

        Raises
        ------
        RegistryError
            The gateway knows no such alias, the version is not registered, or the registry cannot be reached.
        """
        if alias not in ALIASES:
            raise RegistryError(f"there is no alias {alias}; aliases are {', '.join(ALIASES)}")
        with mapped(f"could not set {alias} of {model_name}"):
            for known in self._versions(model_name):
                if known.card_version == version:
                    if alias not in known.aliases:
                        self._client.set_registered_model_alias(model_name, alias, known.registry_version)
                    return
        raise RegistryError(f"{model_name} has no registered version {version}")

    def remove_alias(self, model_name: str, alias: str) -> None:
        """Take an alias off a model; nothing happens where it is not set."""
        with mapped(f"could not remove {alias} of {model_name}"):
            self._client.delete_registered_model_alias(model_name, alias)

    def versions(self, model_name: str | None = None) -> list[RegisteredVersion]:
        """List registered versions of one model or of all, by name and card version.

        Raises
        ------
        RegistryError
            The registry cannot be reached.
        """
        with mapped("could not list versions"):
            return self._versions(model_name)

    def resolve(self, model_name: str, alias: str) -> Bundle:
        """Give the bundle that `alias` means, in a local folder, every file of it verified.

        Raises
        ------
        RegistryError
            There is no such model or alias, or the registry cannot be reached.
        BundleError
            The files are not those that were registered.
        """
        with mapped(f"could not resolve {model_name} {alias}"):
            found = next((known for known in self._versions(model_name) if alias in known.aliases), None)
        if found is None:
            raise RegistryError(f"{model_name} has no version with the alias {alias}")
        return self.bundle(found)

    def bundle(self, version: RegisteredVersion) -> Bundle:
        """Give a version's bundle, in a local folder, every file of it verified.

        Raises
        ------
        RegistryError
            The registry cannot be reached.
        BundleError
            The files are not those that were registered.
        """
        model_name = version.model_name
        with mapped(f"could not fetch {model_name} version {version.card_version}"):
            run_id = self._client.get_model_version(model_name, version.registry_version).run_id
            folder = self._local_folder(str(run_id))
        bundle = load_bundle(folder)
        if bundle_sha256(folder) != version.bundle_sha256:
            raise BundleError(
                f"{model_name} version {version.card_version}: the files are not those that were registered"
            )
        return bundle

    def _local_folder(self, run_id: str) -> Path:
        """Folder of a run's bundle: where this registry keeps it, or a copy of what the server keeps.

        The folder is found by the run and not by the location that MLflow recorded, so that a data folder can be moved.
        """
        own = self._tracking.artifact_root / run_id / "artifacts" / _BUNDLE_FOLDER
        if own.is_dir() or not self._tracking.is_served:
            return own
        with self._tracking.lock():
            copy = self._tracking.artifact_root / "downloaded" / run_id
            if not (copy / _BUNDLE_FOLDER / CARD_FILE).is_file():
                copy.mkdir(parents=True, exist_ok=True)
                self._client.download_artifacts(run_id, _BUNDLE_FOLDER, str(copy))
        return copy / _BUNDLE_FOLDER

    def _versions(self, model_name: str | None) -> list[RegisteredVersion]:
        where = f"name = '{_checked_name(model_name)}'" if model_name is not None else None
        found: list[RegisteredVersion] = []
        token: str | None = None
        while True:
            page = self._client.search_model_versions(where, max_results=1000, page_token=token)
            found.extend(_registered(entry) for entry in page if _CARD_VERSION in entry.tags)
            token = page.token
            if not token:
                break
        aliases = {name: self._aliases(name) for name in {entry.model_name for entry in found}}
        return sorted(
            (_with_aliases(entry, aliases[entry.model_name]) for entry in found),
            key=lambda entry: (entry.model_name, entry.card_version),
        )

    def _aliases(self, model_name: str) -> dict[str, str]:
        """Alias to MLflow's version; the search above does not give them on every backend."""
        return dict(self._client.get_registered_model(model_name).aliases)

    def _make_model(self, card: Card) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(card.name, description=card.title)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _log_run(self, bundle: Bundle, sha256: str) -> str:
        """Write the card's facts and the bundle's files as one run."""
        card = bundle.card
        run_id = self._tracking.create_run(EXPERIMENT, f"{card.name}-{card.version}", _identity(bundle, sha256))
        self._tracking.log(run_id, params=card_parameters(card), metrics=card_metrics(card))
        self._client.log_artifacts(run_id, str(bundle.folder), _BUNDLE_FOLDER)
        return run_id


def bundle_sha256(folder: Path) -> str:
    """sha256 over the sorted names and sha256 of all files of a bundle, the card included."""
    digest = hashlib.sha256()
    for path in sorted(entry for entry in folder.iterdir() if entry.is_file()):
        digest.update(f"{path.name}\0{file_sha256(path)}\n".encode())
    return digest.hexdigest()


def card_parameters(card: Card) -> dict[str, str]:
    """A card's facts as MLflow run parameters."""
    contract = card.pixel_contract
    facts = {
        "title": card.title,
        "demonstration": str(card.demonstration),
        "licence": card.licence,
        "activation": card.activation,
        "opset": str(card.opset),
        "modalities": ", ".join(card.modalities),
        "labels": ", ".join(label.name for label in card.labels),
        "input": f"{contract.photometric_interpretation} {contract.channels} x {contract.size.rows} x "
        f"{contract.size.columns}, crop {contract.crop}, intensity {contract.intensity}",
        "limits": " ".join(card.limits),
    }
    for finding in card.findings:
        facts[f"operating_point.{finding.name}"] = str(finding.operating_point)
    for index, source in enumerate(card.training_data):
        facts[f"training_data.{index}"] = (
            f"{source.name}, {source.count} images, {source.licence}, sha256 {source.sha256}"
        )
        facts[f"training_data.{index}.dvc_hash"] = source.dvc_hash
    if card.acceptance is not None:
        facts["acceptance"] = f"{card.acceptance.written_at}, {card.acceptance.written_by}: {card.acceptance.studies}"
        for criterion in card.acceptance.criteria:
            facts[f"acceptance.{criterion.name}"] = criterion.in_words()
    return {mlflow_key(name): value[:LONGEST_PARAMETER] for name, value in facts.items() if value}


def card_metrics(card: Card) -> dict[str, float]:
    """A card's metrics with their confidence bounds, as MLflow metrics."""
    values: dict[str, float] = {}
    for metric in card.metrics:
        key = mlflow_key(f"{metric.name}/{metric.dataset}")
        for suffix, value in (("", metric.value), (".low", metric.low), (".high", metric.high)):
            if value is not None:
                values[key + suffix] = value
    return values


def _checked_name(model_name: str) -> str:
    """Refuse a name that could not be a card's, before it stands in a filter expression."""
    if not re.fullmatch(r"[a-z][a-z0-9-]*", model_name):
        raise RegistryError("a model name has small letters, digits and hyphens only")
    return model_name


def _identity(bundle: Bundle, sha256: str) -> dict[str, str]:
    return {_CARD_VERSION: str(bundle.card.version), _BUNDLE_SHA256: sha256, _MODEL_SHA256: bundle.model_sha256}


def _registered(entry: Any) -> RegisteredVersion:
    return RegisteredVersion(
        model_name=str(entry.name),
        card_version=int(entry.tags[_CARD_VERSION]),
        registry_version=str(entry.version),
        bundle_sha256=str(entry.tags[_BUNDLE_SHA256]),
        model_sha256=str(entry.tags[_MODEL_SHA256]),
        aliases=(),
    )


def _with_aliases(entry: RegisteredVersion, aliases: dict[str, str]) -> RegisteredVersion:
    own = sorted(alias for alias, version in aliases.items() if str(version) == entry.registry_version)
    return RegisteredVersion(
        model_name=entry.model_name,
        card_version=entry.card_version,
        registry_version=entry.registry_version,
        bundle_sha256=entry.bundle_sha256,
        model_sha256=entry.model_sha256,
        aliases=tuple(own),
    )
