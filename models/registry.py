"""Model versions in MLflow's model registry. The only file that imports MLflow.

A bundle is registered as a run (its card as parameters, metrics and tags, its files as artifacts) with a model version
that points at them, so that ``mlflow ui`` shows what the gateway may run. Which version runs is decided by the aliases
``champion``, ``shadow`` and ``canary``.

Embedded by default: a SQLite file and a folder beside it. A tracking server is used by giving its URL.

Importing MLflow takes about two and a half seconds, so it happens when a registry is made and not with this module.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.card import CARD_FILE, Bundle, Card, file_sha256, load_bundle
from models.errors import BundleError, RegistryError

ALIASES = ("champion", "shadow", "canary")
EXPERIMENT = "bundles"

_BUNDLE_FOLDER = "bundle"
_SQLITE = "sqlite:///"
_LONGEST_PARAMETER = 500
_CARD_VERSION, _BUNDLE_SHA256, _MODEL_SHA256 = "card_version", "bundle_sha256", "model_sha256"
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "GIT_PYTHON_REFRESH": "quiet",
}
"""Read by MLflow when it is imported or asked; a value that is already set in the environment is kept."""


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
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self._artifact_root = artifact_root.resolve()
        self._is_served = tracking_uri.startswith(("http://", "https://", "databricks"))
        self._experiment_id: str | None = None
        with _mapped("cannot be opened"):
            self._artifact_root.mkdir(parents=True, exist_ok=True)
            if tracking_uri.startswith(_SQLITE):
                database = Path(tracking_uri.removeprefix(_SQLITE))
                with self._lock():
                    _create_database(database, self._artifact_root)
            self._client = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)

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
        with _mapped(f"could not register {card.name} version {card.version}"), self._lock():
            for known in self._versions(card.name):
                if known.card_version != card.version:
                    continue
                if known.bundle_sha256 != sha256:
                    raise RegistryError(
                        f"{card.name} version {card.version} is registered with other bytes (sha256 "
                        f"{known.bundle_sha256}, this one has {sha256}); a bundle never changes: give it a new version"
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
        with _mapped(f"could not set {alias} of {model_name}"):
            for known in self._versions(model_name):
                if known.card_version == version:
                    if alias not in known.aliases:
                        self._client.set_registered_model_alias(model_name, alias, known.registry_version)
                    return
        raise RegistryError(f"{model_name} has no registered version {version}")

    def remove_alias(self, model_name: str, alias: str) -> None:
        """Take an alias off a model; nothing happens where it is not set."""
        with _mapped(f"could not remove {alias} of {model_name}"):
            self._client.delete_registered_model_alias(model_name, alias)

    def versions(self, model_name: str | None = None) -> list[RegisteredVersion]:
        """List registered versions of one model or of all, by name and card version.

        Raises
        ------
        RegistryError
            The registry cannot be reached.
        """
        with _mapped("could not list versions"):
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
        with _mapped(f"could not resolve {model_name} {alias}"):
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
        with _mapped(f"could not fetch {model_name} version {version.card_version}"):
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
        own = self._artifact_root / run_id / "artifacts" / _BUNDLE_FOLDER
        if own.is_dir() or not self._is_served:
            return own
        with self._lock():
            copy = self._artifact_root / "downloaded" / run_id
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
        from mlflow.entities import Metric, Param

        card = bundle.card
        run = self._client.create_run(
            self._experiment(), run_name=f"{card.name}-{card.version}", tags=_identity(bundle, sha256)
        )
        run_id = str(run.info.run_id)
        started_ms = int(run.info.start_time)
        self._client.log_batch(
            run_id,
            metrics=[Metric(name, value, started_ms, 0) for name, value in card_metrics(card).items()],
            params=[Param(name, value) for name, value in card_parameters(card).items()],
        )
        self._client.log_artifacts(run_id, str(bundle.folder), _BUNDLE_FOLDER)
        return run_id

    def _experiment(self) -> str:
        if self._experiment_id is None:
            known = self._client.get_experiment_by_name(EXPERIMENT)
            if known is not None:
                self._experiment_id = str(known.experiment_id)
            else:
                location = None if self._is_served else self._artifact_root.as_uri()
                self._experiment_id = str(self._client.create_experiment(EXPERIMENT, artifact_location=location))
        return self._experiment_id

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """Keep two processes of this machine from creating or registering the same thing at once."""
        with (self._artifact_root / ".lock").open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield


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
    return {_key(name): value[:_LONGEST_PARAMETER] for name, value in facts.items() if value}


def card_metrics(card: Card) -> dict[str, float]:
    """A card's metrics with their confidence bounds, as MLflow metrics."""
    values: dict[str, float] = {}
    for metric in card.metrics:
        key = _key(f"{metric.name}/{metric.dataset}")
        for suffix, value in (("", metric.value), (".low", metric.low), (".high", metric.high)):
            if value is not None:
                values[key + suffix] = value
    return values


def _key(name: str) -> str:
    """A name in MLflow's alphabet."""
    return re.sub(r"[^\w\-. /]", "_", name, flags=re.ASCII)[:240].strip("/ .") or "_"


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


@contextlib.contextmanager
def _mapped(what: str) -> Iterator[None]:
    """Map what MLflow, its database and the disk raise. Messages are left out: they may hold a server's credentials."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except MlflowException as error:
        raise RegistryError(f"the model registry {what} ({error.error_code})") from error
    except (SQLAlchemyError, OSError) as error:
        raise RegistryError(f"the model registry {what} ({type(error).__name__})") from error


def _create_database(database: Path, artifact_root: Path) -> None:
    """Make MLflow's database where there is none yet.

    MLflow runs a hundred migrations with hundreds of commits, each of which waits for the disk. They are run on a file
    beside the final one without waiting, then that file is written through and renamed: quicker by seconds, and a kill
    leaves either no database or a whole one.
    """
    if database.exists():
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def without_waiting(connection: Any, _record: object) -> None:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA journal_mode = MEMORY")

    database.parent.mkdir(parents=True, exist_ok=True)
    unfinished = database.with_name(f"{database.name}.{os.getpid()}.new")
    event.listen(Engine, "connect", without_waiting)
    try:
        SqlAlchemyStore(f"{_SQLITE}{unfinished}", artifact_root.as_uri()).engine.dispose()
    finally:
        event.remove(Engine, "connect", without_waiting)
    with unfinished.open("rb") as stream:
        os.fsync(stream.fileno())
    unfinished.replace(database)
