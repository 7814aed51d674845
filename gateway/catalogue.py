"""What models there are: the versions that the store knows with their cards, for people and for ``gateway models``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gateway.model_record import entries
from gateway.models_view import version_view
from gateway.store import Store
from gateway.store.models import SERVING, known_versions
from models import bundled_folders
from models.card import Bundle, load_bundle
from models.errors import BundleError


def embedded_registry_uri(data_dir: Path) -> str:
    """MLflow's tracking URI of the registry that lives in the data folder."""
    return f"sqlite:///{data_dir / 'mlflow.db'}"


def list_models(store: Store | None) -> list[dict[str, Any]]:
    """Every version that the store knows, and the shipped ones that it does not know yet.

    Parameters
    ----------
    store
        ``None`` where no gateway has run yet.

    Returns
    -------
    list of dict
        ``name``, ``version``, ``aliases``, ``registered``, ``title``, ``demonstration``, ``model_sha256``, ``metrics``;
        of those that the store knows also ``state``, ``state_since``, ``by``, ``reason``, ``traffic``.
    """
    shipped = {(bundle.card.name, bundle.card.version): bundle for bundle in map(load_bundle, bundled_folders())}
    rows: dict[tuple[str, int], dict[str, Any]] = {key: _row(bundle) for key, bundle in shipped.items()}
    if store is not None:
        with store.read() as connection:
            recorded = entries(connection)
        for known in known_versions(store):
            key = (known.model_name, known.version)
            view = version_view(known, tuple(each for each in recorded if each.model_name == known.model_name))
            row = {name: view[name] for name in ("title", "demonstration", "model_sha256")}
            row |= {"name": known.model_name, "version": known.version, "registered": True}
            row |= {name: view[name] for name in ("state", "by", "reason", "traffic", "bundle_sha256")}
            row |= {"state_since": known.state_since.isoformat()}
            row |= {"aliases": [view["state"]] if known.state in SERVING else [], "metrics": _metrics(known.folder)}
            rows[key] = row
    return [rows[key] for key in sorted(rows)]


def _row(bundle: Bundle) -> dict[str, Any]:
    return {
        "name": bundle.card.name,
        "version": bundle.card.version,
        "aliases": [],
        "registered": False,
        "state": "",
        "title": bundle.card.title,
        "demonstration": bundle.card.demonstration,
        "model_sha256": bundle.model_sha256,
        "metrics": [metric.model_dump() for metric in bundle.card.metrics],
    }


def _metrics(folder: str) -> list[dict[str, Any]]:
    try:
        card = load_bundle(Path(folder)).card
    except (BundleError, OSError):
        return []
    return [metric.model_dump() for metric in card.metrics]
