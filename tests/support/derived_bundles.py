"""Versions that differ from a shipped one in what a test is about: threshold, weights, or a graph that fails."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml
from onnx import helper, numpy_helper

from models.card import CARD_FILE, GOLDEN_FILE, MODEL_FILE, Bundle, Card, file_sha256, load_bundle
from models.golden import golden_arrays, read_golden
from models.session import ModelSession

Change = Callable[[onnx.ModelProto], None]


def derive(source: Bundle, folder: Path, *, change: Change | None = None, **card_fields: Any) -> Bundle:
    """Copy a bundle with other fields of its card and, with `change`, another graph; its golden run is made anew."""
    shutil.copytree(source.folder, folder)
    pictures = read_golden(source).pictures
    if change is not None:
        model = onnx.load(folder / MODEL_FILE)
        change(model)
        onnx.save(model, folder / MODEL_FILE)
    fields = source.card.model_dump(mode="json") | card_fields
    _write_card(folder, fields)
    session = ModelSession(load_bundle(folder))
    np.savez_compressed(folder / GOLDEN_FILE, **golden_arrays(session, list(pictures)))
    _write_card(folder, fields)
    return load_bundle(folder)


def _write_card(folder: Path, fields: Mapping[str, Any]) -> None:
    files = {path.name: file_sha256(path) for path in sorted(folder.iterdir()) if path.name != CARD_FILE}
    card = Card.model_validate(dict(fields) | {"files": files})
    text = yaml.safe_dump(card.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    (folder / CARD_FILE).write_text(text, encoding="utf-8")


def with_scaled_head(factor: float) -> Change:
    """Scale the head's weights and biases: -1 says the opposite, 0.99 nearly the same."""

    def change(model: onnx.ModelProto) -> None:
        for initializer in model.graph.initializer:
            if initializer.name in ("head.weight", "head.bias"):
                values = numpy_helper.to_array(initializer)
                scaled = (values.astype(np.float32) * factor).astype(values.dtype)
                initializer.CopyFrom(numpy_helper.from_array(scaled, initializer.name))

    return change


def failing_between(low: float, high: float) -> Change:
    """Let the graph fail at run time for an input whose mean lies between the two.

    Elsewhere nothing is changed, so that it loads and its golden run passes. The index of a Gather leaves its table,
    which ONNX Runtime refuses.
    """

    def change(model: onnx.ModelProto) -> None:
        graph = model.graph
        first = next(node for node in graph.node if "image" in node.input)
        position = list(graph.node).index(first)
        for name, value in (("trap.low", low), ("trap.high", high)):
            graph.initializer.append(numpy_helper.from_array(np.array(value, dtype=np.float32), name))
        graph.initializer.append(numpy_helper.from_array(np.zeros(1, dtype=np.float32), "trap.table"))
        nodes = [
            helper.make_node("ReduceMean", ["image"], ["trap.mean"], keepdims=0),
            helper.make_node("Greater", ["trap.mean", "trap.low"], ["trap.above"]),
            helper.make_node("Less", ["trap.mean", "trap.high"], ["trap.below"]),
            helper.make_node("And", ["trap.above", "trap.below"], ["trap.between"]),
            helper.make_node("Cast", ["trap.between"], ["trap.index"], to=onnx.TensorProto.INT64),
            helper.make_node("Gather", ["trap.table", "trap.index"], ["trap.zero"]),
            helper.make_node("Add", ["image", "trap.zero"], ["trap.image"]),
        ]
        for number, node in enumerate(nodes):
            graph.node.insert(position + number, node)
        for node in graph.node:
            if not node.output[0].startswith("trap."):
                node.input[:] = ["trap.image" if name == "image" else name for name in node.input]

    return change
