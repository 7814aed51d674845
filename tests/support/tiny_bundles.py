"""A whole bundle of a few kilobytes, and the ways in which one can be wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import yaml
from onnx import TensorProto, helper, numpy_helper

from models.card import CARD_FILE, GOLDEN_FILE, MODEL_FILE, REFERENCE_FILE, Bundle, file_sha256, load_bundle

SIZE, CHANNELS, WIDTH, LABELS = 16, 3, 4, 2
REFERENCES = 80
GOLDEN_TOLERANCES = {"score_tolerance": 0.001, "logit_tolerance": 0.01}
STATISTICS = ("level", "contrast", "sharpness", "noise", "clipped_fraction", "entropy_bits", "border_level")
EXPLANATIONS = (
    "entropy",
    "effective_area_fraction",
    "centre_row_fraction",
    "centre_column_fraction",
    "border_mass_fraction",
    "outside_mass_fraction",
    "peak",
)


def write_tiny_bundle(
    folder: Path, graph: onnx.ModelProto | bytes | None = None, *, version: int = 1, name: str = "tiny", **card: Any
) -> Bundle:
    """Write a whole bundle into the new `folder`: one that passes every check of registration as it is.

    `graph` replaces the model, but neither the golden run nor the reference set; `card` replaces fields of the card.
    """
    folder.mkdir(parents=True)
    content = graph if isinstance(graph, bytes) else (graph or tiny_graph()).SerializeToString()
    (folder / MODEL_FILE).write_bytes(content)
    np.savez(folder / REFERENCE_FILE, **tiny_reference())
    np.savez(folder / GOLDEN_FILE, **tiny_golden())
    values = tiny_card(folder, version=version, name=name) | card
    (folder / CARD_FILE).write_text(yaml.safe_dump(values), encoding="utf-8")
    return load_bundle(folder)


def tiny_outputs(pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits [M, 2] and embeddings [M, 4] of uint8 [M, 16, 16], by ONNX Runtime and the arithmetic of the card."""
    session = onnxruntime.InferenceSession(tiny_graph().SerializeToString(), providers=["CPUExecutionProvider"])
    tensors = np.repeat((pictures[:, None].astype(np.float32) / 255 - 0.5) / 0.5, CHANNELS, axis=1)
    logits, embeddings = session.run(["logits", "embedding"], {"image": tensors.astype(np.float32)})
    return logits, embeddings


def tiny_scores(logits: np.ndarray) -> np.ndarray:
    """float32 [M, 2]: ``there`` and ``either``."""
    powers = np.exp(logits.astype(np.float64))
    there = powers[:, 1] / powers.sum(axis=1)
    return np.stack((there, np.ones_like(there)), axis=1).astype(np.float32)


def tiny_golden() -> dict[str, np.ndarray]:
    """Arrays of ``golden.npz``: three pictures."""
    pictures = np.random.default_rng(5).integers(0, 256, (3, SIZE, SIZE), dtype=np.uint8)
    logits, embeddings = tiny_outputs(pictures)
    return {"pictures": pictures, "logits": logits, "scores": tiny_scores(logits), "embeddings": embeddings}


def tiny_reference() -> dict[str, np.ndarray]:
    """Arrays of ``reference.npz``, of random pictures."""
    random = np.random.default_rng(6)
    logits, embeddings = tiny_outputs(random.integers(0, 256, (REFERENCES, SIZE, SIZE), dtype=np.uint8))
    return {
        "embeddings": embeddings.astype(np.float16),
        "scores": tiny_scores(logits)[:, :1],
        "finding_names": np.array(["there"]),
        "explanations": random.random((REFERENCES, len(EXPLANATIONS))).astype(np.float32),
        "explanation_names": np.array(EXPLANATIONS),
        "statistics": random.random((REFERENCES, len(STATISTICS))).astype(np.float32),
        "statistic_names": np.array(STATISTICS),
        "mean_map": np.full((4, 4), 1 / 16, dtype=np.float32),
    }


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
    source = {"name": "none", "source": "drawn", "licence": "CC0", "count": 1, "split": "none", "sha256": "0" * 64}
    criterion = {"name": "auc", "finding": "there", "metric": "auc_roc", "statistic": "low", "minimum": 0.6}
    return {
        "name": name,
        "version": version,
        "title": "Tiny",
        "demonstration": True,
        "intended_use": "Tests.",
        "limits": ["Everything."],
        "modalities": ["OT"],
        "labels": [{"name": name, "title": name.title(), "code": code} for name in ("absent", "there")],
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
        "acquisition": {"ranges": {"rows": {"minimum": SIZE}}},
        "training_data": [source | {"dvc_hash": "md5:" + "0" * 32 + ".dir"}],
        "metrics": [
            {"name": "AUC (there)", "dataset": "none", "value": 0.75, "low": 0.5, "high": 0.9, "method": "counted"}
        ],
        "opset": 17,
        "licence": "Apache-2.0",
        "algorithm_family": code,
        "golden": GOLDEN_TOLERANCES,
        "acceptance": {
            "written_at": "2026-11-24",
            "written_by": "The tests",
            "studies": "Drawn ones.",
            "least_cases": 10,
            "criteria": [criterion],
        },
        "files": {name: file_sha256(folder / name) for name in (MODEL_FILE, REFERENCE_FILE, GOLDEN_FILE)},
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


def with_gradients(*, factor: float = 1.0, labels: int = LABELS) -> onnx.ModelProto:
    """A graph that gives its gradient as an output, as one whose head is not linear does."""
    model = with_renamed_initializer("head.weight", "w")
    for entry in model.graph.initializer:
        entry.name = "b" if entry.name == "head.bias" else entry.name
    for node in model.graph.node:
        node.input[:] = ["b" if name == "head.bias" else name for name in node.input]
    constants = {"zero": np.float32(0), "factor": np.float32(factor), "axes": np.array([2], dtype=np.int64)}
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()
    )
    starts = {"start": 0, "end": labels, "axis": 1}
    model.graph.initializer.extend(
        numpy_helper.from_array(np.array([value], dtype=np.int64), name) for name, value in starts.items()
    )
    model.graph.node.extend(
        [
            helper.make_node("Unsqueeze", ["logits", "axes"], ["column"]),
            helper.make_node("Mul", ["column", "zero"], ["nothing"]),
            helper.make_node("Mul", ["weight", "factor"], ["scaled"]),
            helper.make_node("Add", ["nothing", "scaled"], ["all_gradients"]),
            helper.make_node("Slice", ["all_gradients", "start", "end", "axis"], ["logit_gradients"]),
        ]
    )
    model.graph.output.append(helper.make_tensor_value_info("logit_gradients", TensorProto.FLOAT, ["N", labels, WIDTH]))
    return model
