"""Heads, reference sets and the writing of a bundle, the same for both models."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import yaml
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from training.golden_pictures import golden_pictures
from training.graph import OPSET, open_session, run_graph
from training.pictures import Picture, to_tensor

from models.bundle_check import check_bundle
from models.card import (
    CARD_FILE,
    GOLDEN_FILE,
    MODEL_FILE,
    REFERENCE_FILE,
    Bundle,
    Card,
    PixelContract,
    file_sha256,
    load_bundle,
)
from models.golden import golden_arrays
from models.quality import judge_quality
from models.session import CPU, ModelSession
from xai.gradcam import gradcam
from xai.summary import EXPLANATION_NAMES, summarise

LARGEST_BUNDLE_BYTES = 10_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The linear layer: `weight` [K, D], `bias` [K]."""

    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]

    def probabilities(self, embeddings: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
        """[N, K] by softmax."""
        return softmax(embeddings @ self.weight.T + self.bias)


def softmax(logits: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """Along the last axis, in float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True), dtype=np.float64)


def fit_head(embeddings: npt.NDArray[np.float32], labels: npt.NDArray[np.int_], strength: float) -> Head:
    """Multinomial logistic regression with balanced classes; standardisation is folded into the weights.

    `strength` is scikit-learn's C. Two labels become two rows of opposite sign.
    """
    scaler = StandardScaler().fit(embeddings)
    model = LogisticRegression(C=strength, class_weight="balanced", max_iter=2000)
    model.fit(scaler.transform(embeddings), labels)
    weight, bias = model.coef_ / scaler.scale_, model.intercept_
    bias = bias - weight @ scaler.mean_
    if len(weight) == 1:
        weight, bias = np.concatenate((-weight, weight)) / 2, np.concatenate((-bias, bias)) / 2
    return Head(weight=weight.astype(np.float32), bias=bias.astype(np.float32))


def reference_arrays(
    card: Card, model: onnx.ModelProto, pictures: Sequence[Picture], trained_on: Sequence[bool], threads: int
) -> dict[str, npt.NDArray[Any]]:
    """What drift is judged against, over the gradable ones of `pictures`. Arrays as in the README of bundles."""
    gradable = [not judge_quality(picture.statistics, card.quality) for picture in pictures]
    kept = [picture for picture, keep in zip(pictures, gradable, strict=True) if keep]
    session = open_session(model, threads)
    weight = next(onnx.numpy_helper.to_array(i) for i in model.graph.initializer if i.name == "head.weight")
    finding = card.findings[0]
    indices = card.label_indices(finding)
    embeddings, scores, explanations, maps = [], [], [], []
    for start in range(0, len(kept), 64):
        part = kept[start : start + 64]
        tensors = [to_tensor(picture.values, card.pixel_contract) for picture in part]
        outputs = run_graph(session, tensors, ("logits", "embedding", "feature_map"), "reference")
        probabilities = softmax(outputs["logits"])
        embeddings.append(outputs["embedding"])
        scores.append(probabilities[:, indices].sum(axis=1))
        for picture, feature_map, chances in zip(part, outputs["feature_map"], probabilities, strict=True):
            heat = gradcam(feature_map, chances, weight, indices, card.activation)
            summary = summarise(heat, picture.grid)
            explanations.append([summary[name] for name in EXPLANATION_NAMES])
            maps.append(heat / heat.sum() if heat.sum() > 0 else heat)
    statistic_names = list(kept[0].statistics)
    return {
        "embeddings": np.concatenate(embeddings).astype(np.float16),
        "scores": np.concatenate(scores).astype(np.float32)[:, None],
        "finding_names": np.array([finding.name]),
        "explanations": np.asarray(explanations, dtype=np.float32),
        "explanation_names": np.array(EXPLANATION_NAMES),
        "statistics": np.asarray(
            [[picture.statistics[name] for name in statistic_names] for picture in kept], dtype=np.float32
        ),
        "statistic_names": np.array(statistic_names),
        "mean_map": np.mean(maps, axis=0).astype(np.float32),
        "trained_on": np.array([seen for seen, keep in zip(trained_on, gradable, strict=True) if keep]),
    }


def write_bundle(
    out: Path, card_values: dict[str, Any], model: onnx.ModelProto, pictures: Sequence[Picture], **more: Any
) -> Bundle:
    """Write ``out/<name>/<version>/`` whole, then read it back, its hashes and all that registration asks for checked.

    `card_values` are the fields of :class:`models.card.Card` but ``files`` and ``opset``; `more` goes to
    :func:`reference_arrays`.
    """
    folder = out / card_values["name"] / str(card_values["version"])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    onnx.save(model, folder / MODEL_FILE)
    pending = dict.fromkeys((MODEL_FILE, REFERENCE_FILE, GOLDEN_FILE), "")
    card = Card.model_validate(card_values | {"opset": OPSET, "files": pending})
    np.savez_compressed(folder / REFERENCE_FILE, **reference_arrays(card, model, pictures, **more))
    return finish_bundle(folder, card)


def finish_bundle(folder: Path, card: Card) -> Bundle:
    """Write the golden inputs and the card into a folder that has its model and reference set, and check it all.

    Raises
    ------
    SystemExit
        A check of registration fails, or the bundle is too large.
    """
    names = (MODEL_FILE, REFERENCE_FILE, GOLDEN_FILE)
    card = Card.model_validate(card.model_dump() | {"files": dict.fromkeys(names, "")})
    session = ModelSession(Bundle(folder=folder, card=card), providers=[CPU])
    np.savez_compressed(folder / GOLDEN_FILE, **golden_arrays(session, golden_pictures(card.name)))
    card = card.model_copy(update={"files": {name: file_sha256(folder / name) for name in names}})
    text = yaml.safe_dump(card.model_dump(mode="json"), sort_keys=False, width=110, allow_unicode=True)
    (folder / CARD_FILE).write_text(text, encoding="utf-8")
    size_bytes = sum(path.stat().st_size for path in folder.iterdir())
    if size_bytes > LARGEST_BUNDLE_BYTES:
        raise SystemExit(f"{folder}: {size_bytes} bytes, more than {LARGEST_BUNDLE_BYTES}")
    bundle = load_bundle(folder)
    failed = [result for result in check_bundle(bundle) if not result.passed]
    if failed:
        raise SystemExit(f"{folder}: " + "; ".join(f"{result.name}: {result.detail}" for result in failed))
    print(f"{folder}: {size_bytes / 1e6:.2f} MB")
    return bundle


def largest_difference(
    weights: dict[str, npt.NDArray[np.float32]],
    head: Head,
    model: onnx.ModelProto,
    pictures: Sequence[Picture],
    contract: PixelContract,
) -> float:
    """Largest difference of a probability between torch and ONNX Runtime over `pictures`.

    Checks the graph against a second implementation.
    """
    import torch
    from training.network import Network

    tensors = [to_tensor(picture.values, contract) for picture in pictures]
    network = Network(weights, len(head.bias)).eval()
    network.head.weight.data = torch.from_numpy(head.weight.copy())
    network.head.bias.data = torch.from_numpy(head.bias.copy())
    with torch.no_grad():
        expected = softmax(network(torch.from_numpy(np.stack(tensors))).numpy())
    found = softmax(run_graph(open_session(model, 1), tensors, ("logits",), "check")["logits"])
    return float(np.abs(expected - found).max())
