"""Give the shipped bundles what was not asked for when they were trained.

    python scripts/complete_bundles.py --fundus ../shared/data/fundus --chest ../shared/data/cxr

Golden inputs, acceptance criteria and the DVC hashes of the training data are added; ``model.onnx`` and
``reference.npz``, and with them every score, threshold and figure, stay as they are. A second run changes nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from training import cards
from training.bundle import finish_bundle

from models.card import GOLDEN_FILE, MODEL_FILE, REFERENCE_FILE, Card, TrainingData, file_sha256, load_bundle
from models.dvc import dvc_hash


def completed(card: Card, data_hash: str) -> Card:
    """The card with what was added."""
    own, imagenet = card.training_data
    sources = (
        own.model_copy(update={"dvc_hash": data_hash, "remarks": _with_remark(own, cards.DVC_REMARKS[card.name])}),
        imagenet.model_copy(update={"dvc_hash": cards.WEIGHTS_DVC_HASH, "remarks": cards.IMAGENET_REMARKS}),
    )
    added: dict[str, Any] = {
        "golden": cards.GOLDEN_RUN,
        "acceptance": cards.ACCEPTANCE[card.name],
        "training_data": sources,
    }
    return Card.model_validate(card.model_dump() | added | {"files": card.files | {GOLDEN_FILE: ""}})


def _with_remark(source: TrainingData, remark: str) -> str:
    return source.remarks if remark in source.remarks else f"{source.remarks} {remark}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fundus", type=Path, required=True, help="folder of the photographs and labels.csv")
    parser.add_argument("--chest", type=Path, required=True, help="folder with train and test")
    parser.add_argument("--bundles", type=Path, default=Path("models/bundled"))
    options = parser.parse_args()
    hashes = {"retinopathy": dvc_hash(options.fundus), "chest-triage": dvc_hash(options.chest / "train")}
    for name, data_hash in hashes.items():
        print(f"{name}: training data {data_hash}")
        for folder in sorted((options.bundles / name).iterdir()):
            bundle = load_bundle(folder)
            before = {each: file_sha256(folder / each) for each in (MODEL_FILE, REFERENCE_FILE)}
            after = finish_bundle(folder, completed(bundle.card, data_hash)).card.files
            if any(after[each] != digest for each, digest in before.items()):
                raise SystemExit(f"{folder}: the model or the reference set changed")


if __name__ == "__main__":
    main()
