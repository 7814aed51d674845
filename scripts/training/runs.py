"""Each training as a run in MLflow: what it was made of, what came out, and the bundle itself."""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from models.card import Bundle
from models.registry import bundle_sha256, card_metrics, card_parameters
from models.tracking import TRAINING, log_run

DEFAULT_FOLDER = Path("mlruns")
LIBRARIES = ("numpy", "scikit-learn", "torch", "onnxruntime-gpu", "pillow")
QUICK = "Trained on a few images, to try the script. Not even a demonstration."


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Options of every training script."""
    parser.add_argument(
        "--mlflow",
        default=str(DEFAULT_FOLDER),
        metavar="FOLDER|URL|none",
        help="where the runs go: a folder (a gateway's data folder too, as far as it is not a server's), a tracking "
        f"server, or none (default: {DEFAULT_FOLDER})",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="few images, folds and epochs, to see whether it all works; the bundle says so and is good for nothing",
    )


def log_training(
    options: argparse.Namespace,
    bundle: Bundle,
    *,
    settings: Mapping[str, Any],
    measured: Mapping[str, float],
) -> str | None:
    """Write the training of `bundle` as a run; gives MLflow's run id, or None where none is wanted.

    Parameters
    ----------
    settings
        Seeds and hyperparameters by name; a dataclass is spread over several parameters.
    measured
        Figures that are not on the card.
    """
    if options.mlflow == "none":
        return None
    card = bundle.card
    tags = {"bundle_sha256": bundle_sha256(bundle.folder), "model_sha256": bundle.model_sha256}
    run_id = log_run(
        *_place(options.mlflow),
        experiment=TRAINING,
        name=f"{card.name}-{card.version}" + (" (quick)" if options.quick else ""),
        params=_parameters(settings) | card_parameters(card) | _libraries(),
        metrics=dict(measured) | card_metrics(card),
        tags=tags | _commit(),
        artifacts=bundle.folder,
        artifact_folder="bundle",
    )
    print(f"  run {run_id} in {options.mlflow}")
    return run_id


def _place(text: str) -> tuple[str, Path]:
    """Tracking URI and artifact folder; of a folder those of a gateway's data folder."""
    if "://" in text:
        return text, DEFAULT_FOLDER / "artifacts"
    folder = Path(text).resolve()
    return f"sqlite:///{folder / 'mlflow.db'}", folder / "mlflow-artifacts"


def _parameters(settings: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if is_dataclass(value) and not isinstance(value, type):
            found |= {f"{name}.{field}": part for field, part in asdict(value).items()}
        else:
            found[name] = value
    return found


def _libraries() -> dict[str, str]:
    return {f"library.{name}": version(name) for name in LIBRARIES}


def _commit() -> dict[str, str]:
    """The commit of the scripts, where Git knows it."""
    here = Path(__file__).parent
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    return {"mlflow.source.git.commit": done.stdout.strip()} if done.returncode == 0 else {}


def marked_quick(card_values: dict[str, Any]) -> dict[str, Any]:
    """A card of a quick run, which says so first."""
    return card_values | {
        "title": f"{card_values['title']}: quick run",
        "limits": (QUICK, *card_values["limits"]),
    }
