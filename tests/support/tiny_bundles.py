"""A whole bundle of a few kilobytes, and the ways in which one can be wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from models.card import MODEL_FILE, REFERENCE_FILE, file_sha256

SIZE, CHANNELS, WIDTH, LABELS = 16, 3, 4, 2


def tiny_graph(*, weight_type: Any = np.float32, pool: str = "GlobalAveragePool") -> onnx.ModelProto:
    """image [N, 3, 16, 16] -> one convolution, ReLU, average, a linear head of two labels."""
    random = np.random.default_rng(11)
    kernel = random.normal(0, 0.3, (WIDTH, CHANNELS, 4, 4)).astype(np.float32)
    weight = random.normal(0, 1, (LABELS, WIDTH)).astype(weight_type)
    bias = np.array([0.1, -0.2], dtype=weight_type)
    initializers = [
        numpy_helper.from_array(kernel, "kernel"),
        numpy_helper.from_array(weight, "head.weight"),
        numpy_helper.from_array(bias, "head.bias"),
    ]
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["convolved"], strides=[4, 4]),
        helper.make_node("Relu", ["convolved"], ["feature_map"]),
        helper.make_node(pool, ["feature_map"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["embedding"]),
        helper.make_node("Cast", ["head.weight"], ["weight"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["head.bias"], ["bias"], to=TensorProto.FLOAT),
        helper.make_node("Gemm", ["embedding", "weight", "bias"], ["logits"], transB=1),
    ]
    outputs = {"logits": ["N", LABELS], "embedding": ["N", WIDTH], "feature_map": ["N", WIDTH, 4, 4]}
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", CHANNELS, SIZE, SIZE])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def tiny_card(folder: Path, *, version: int = 1, name: str = "tiny") -> dict[str, Any]:
    """A card for the files of `folder`."""
    code = {"value": "1", "scheme": "99TEST", "meaning": "Test"}
    return {
        "name": name,
        "version": version,
        "title": "Tiny",
        "demonstration": True,
        "intended_use": "Tests.",
        "limits": ["Everything."],
        "modalities": ["OT"],
        "labels": [{"name": "absent", "title": "Absent"}, {"name": "there", "title": "There"}],
        "activation": "softmax",
        "findings": [
            {"name": "there", "title": "There", "labels": ["there"], "operating_point": 0.5, "code": code},
            {"name": "either", "title": "Either", "labels": ["absent", "there"], "operating_point": 0.5, "code": code},
        ],
        "pixel_contract": {
            "photometric_interpretation": "MONOCHROME2",
            "channels": CHANNELS,
            "size": {"rows": SIZE, "columns": SIZE},
            "crop": "none",
            "intensity": "eight_bit",
            "mean": [0.5] * CHANNELS,
            "std": [0.5] * CHANNELS,
            "reason": "Small.",
        },
        "acquisition": {},
        "training_data": [
            {"name": "none", "source": "drawn", "licence": "CC0", "count": 1, "split": "none", "sha256": "0" * 64}
        ],
        "metrics": [
            {"name": "AUC (there)", "dataset": "none", "value": 0.75, "low": 0.5, "high": 0.9, "method": "counted"}
        ],
        "opset": 17,
        "licence": "Apache-2.0",
        "algorithm_family": code,
        "files": {MODEL_FILE: file_sha256(folder / MODEL_FILE), REFERENCE_FILE: file_sha256(folder / REFERENCE_FILE)},
    }


def with_renamed_initializer(old: str, new: str) -> onnx.ModelProto:
    model = tiny_graph()
    for entry in model.graph.initializer:
        entry.name = new if entry.name == old else entry.name
    for node in model.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
    return model


def without_output(name: str) -> onnx.ModelProto:
    model = tiny_graph()
    kept = [entry for entry in model.graph.output if entry.name != name]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    return model


def with_fixed_batch(count: int) -> onnx.ModelProto:
    model = tiny_graph()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = count
    return model


def with_doubled_logits() -> onnx.ModelProto:
    model = tiny_graph()
    model.graph.node[-1].output[0] = "halves"
    model.graph.node.append(helper.make_node("Add", ["halves", "halves"], ["logits"]))
    return model


def with_external_kernel() -> onnx.ModelProto:
    model = tiny_graph()
    kernel = model.graph.initializer[0]
    kernel.ClearField("raw_data")
    kernel.data_location = TensorProto.EXTERNAL
    entry = kernel.external_data.add()
    entry.key, entry.value = "location", "../../elsewhere.bin"
    return model
