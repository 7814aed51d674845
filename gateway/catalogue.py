"""What models there are: the registry's versions with their cards, for people and for ``gateway models``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gateway.settings import Settings
from models import bundled_folders
from models.card import load_bundle
from models.registry import ModelRegistry


def embedded_registry_uri(data_dir: Path) -> str:
    """MLflow's tracking URI of the registry that lives in the data folder."""
    return f"sqlite:///{data_dir / 'mlflow.db'}"


def list_models(settings: Settings, data_dir: Path) -> list[dict[str, Any]]:
    """Every registered version, or the shipped ones where no registry has been made yet.

    Returns
    -------
    list of dict
        ``name``, ``version``, ``aliases``, ``registered``, ``title``, ``demonstration``, ``model_sha256``, ``metrics``.
    """
    bundles = {(bundle.card.name, bundle.card.version): bundle for bundle in map(load_bundle, bundled_folders())}
    rows: dict[tuple[str, int], dict[str, Any]] = {
        key: {
            "name": bundle.card.name,
            "version": bundle.card.version,
            "aliases": [],
            "registered": False,
            "title": bundle.card.title,
            "demonstration": bundle.card.demonstration,
            "model_sha256": bundle.model_sha256,
            "metrics": [metric.model_dump() for metric in bundle.card.metrics],
        }
        for key, bundle in bundles.items()
    }
    uri = settings.models.tracking_uri
    if uri or (data_dir / "mlflow.db").is_file():
        registry = ModelRegistry(uri or embedded_registry_uri(data_dir), data_dir / "mlflow-artifacts")
        for version in registry.versions():
            key = (version.model_name, version.card_version)
            row = rows.setdefault(
                key,
                {
                    "name": version.model_name,
                    "version": version.card_version,
                    "title": "",
                    "demonstration": None,
                    "model_sha256": version.model_sha256,
                    "metrics": [],
                },
            )
            row.update(aliases=list(version.aliases), registered=True)
    return [rows[key] for key in sorted(rows)]
