"""The graph of a bundle, made of a normalised source graph whose parts are known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from models.errors import ImportRefusedError
from models.importing.anatomy import Anatomy, nodes_between
from models.importing.gradients import GradientBuilder
from models.importing.graph import (
    ORT_FAILED,
    GraphView,
    add_constant,
    attributes,
    extract_head,
    float_input,
    free_name,
    open_session,
    outer_inputs,
    rename_value,
    run_values,
)

Floats = NDArray[np.float32]

_AFFINE_OPERATORS = """
    GlobalAveragePool ReduceMean ReduceSum AveragePool Flatten Reshape Squeeze Unsqueeze Identity Dropout Gemm MatMul
    Add Sub Mul Div Neg Sum Mean BatchNormalization Transpose Conv Concat Slice Split Gather Expand Cast
"""
_AFFINE = frozenset(_AFFINE_OPERATORS.split())
_SCALING = frozenset({"Gemm", "MatMul", "Conv", "Mul", "Div", "BatchNormalization", "ReduceSum"})
_ONE_VARYING_INPUT = frozenset({"Gemm", "MatMul", "Mul", "Div", "Conv", "BatchNormalization"})
_AFFINE_TOLERANCE = 1e-4
_CHANNELS_AT_ONCE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembled:
    """A finished graph."""

    model: onnx.ModelProto
    linear_head: bool
    head: onnx.ModelProto
    """The source's own head, from ``feature_map`` to ``logits``, to check against."""
    head_operators: tuple[str, ...]


def assemble(model: onnx.ModelProto, anatomy: Anatomy) -> Assembled:
    """Give a normalised graph the outputs of a bundle. `model` is changed.

    A head that is an affine function of the average becomes one linear layer; any other gets its gradients.

    Raises
    ------
    ImportRefusedError
        The head has no gradient that can be built.
    """
    graph = model.graph
    for name in ("embedding", "logit_gradients", "head.weight", "head.bias"):
        free_name(graph, name)
    _expose(model, anatomy)
    view = GraphView(model)
    head = extract_head(view, "feature_map", "logits", anatomy.map_shape)
    operators = tuple(node.op_type for node in head.graph.node)
    linear = _linear_head(view, head, anatomy)
    outputs: dict[str, list[int | str]] = {
        "logits": ["N", anatomy.label_count],
        "embedding": ["N", anatomy.map_shape[0]],
        "feature_map": ["N", *anatomy.map_shape],
    }
    if linear is not None:
        _replace_head(model, head, *linear)
    else:
        _add_average(model)
        _add_gradients(model, head, anatomy)
        outputs["logit_gradients"] = ["N", anatomy.label_count, anatomy.map_shape[0]]
    del graph.output[:]
    graph.output.extend(float_input(name, shape) for name, shape in outputs.items())
    _tidy(model)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ImportRefusedError(f"the finished graph is not valid ONNX: {str(error).splitlines()[0]}") from error
    return Assembled(model=model, linear_head=linear is not None, head=head, head_operators=operators)


def _expose(model: onnx.ModelProto, anatomy: Anatomy) -> None:
    """Call logits and feature map by the names that a bundle gives them."""
    graph = model.graph
    rename_value(graph, anatomy.feature_map, "found.feature_map")
    rename_value(graph, anatomy.logits, "found.logits")
    for name in ("feature_map", "logits"):
        free_name(graph, name)
        rename_value(graph, f"found.{name}", name)


def _linear_head(view: GraphView, head: onnx.ModelProto, anatomy: Anatomy) -> tuple[Floats, Floats] | None:
    """Weight [K, c] and bias [K], where the logits are an affine function of the map's average."""
    varying = {"feature_map"}
    for node in head.graph.node:
        read = [name for name in node.input if name in varying]
        if not read:
            continue
        if node.op_type not in _AFFINE or (node.op_type in _ONE_VARYING_INPUT and len(read) > 1):
            return None
        if node.op_type == "Div" and node.input[1] in varying:
            return None
        varying.update(node.output)
    channels, rows, columns = anatomy.map_shape
    session = open_session(head)

    def run(maps: Floats) -> Floats:
        return np.asarray(session.run(None, {"feature_map": maps})[0], dtype=np.float32)

    try:
        bias = run(np.zeros((1, *anatomy.map_shape), dtype=np.float32))[0]
        weight = _exact_weight(view, head)
        if weight is None or weight.shape[1] != channels:
            columns_of_weight = []
            for start in range(0, channels, _CHANNELS_AT_ONCE):
                count = min(_CHANNELS_AT_ONCE, channels - start)
                maps = np.zeros((count, *anatomy.map_shape), dtype=np.float32)
                maps[np.arange(count), start + np.arange(count)] = 1
                columns_of_weight.append(run(maps) - bias)
            weight = np.concatenate(columns_of_weight).T
        tried = np.random.default_rng(2).standard_normal((4, channels, rows, columns), dtype=np.float32)
        expected = run(tried)
    except ORT_FAILED:
        return None
    found = tried.mean(axis=(2, 3)) @ weight.T + bias
    scale = max(1.0, float(np.abs(expected).max()))
    if float(np.abs(found - expected).max()) > _AFFINE_TOLERANCE * scale:
        return None
    return np.ascontiguousarray(weight), bias


def _exact_weight(view: GraphView, head: onnx.ModelProto) -> Floats | None:
    """The matrix of a ``Gemm`` that gives the logits, if it reads the average itself; else it has to be measured."""
    node = head.graph.node[-1]
    values = attributes(node)
    if node.op_type != "Gemm" or not view.is_constant(node.input[1]) or values.get("transA", 0):
        return None
    if any(
        each.op_type in {"Gemm", "MatMul", "Conv", "Mul", "Div", "BatchNormalization"} for each in head.graph.node[:-1]
    ):
        return None
    if values.get("alpha", 1.0) != 1.0:
        return None
    matrix = np.asarray(view.constant(node.input[1]), dtype=np.float32)
    return matrix if values.get("transB", 0) else np.ascontiguousarray(matrix.T)


def _add_average(model: onnx.ModelProto) -> None:
    graph = model.graph
    if GraphView(model).opset >= 18:
        axes = add_constant(graph, "embedding.axes", np.array([2, 3], dtype=np.int64))
        graph.node.append(helper.make_node("ReduceMean", ["feature_map", axes], ["embedding"], name="pool", keepdims=0))
    else:
        graph.node.append(
            helper.make_node("ReduceMean", ["feature_map"], ["embedding"], name="pool", axes=[2, 3], keepdims=0)
        )


def _replace_head(model: onnx.ModelProto, head: onnx.ModelProto, weight: Floats, bias: Floats) -> None:
    graph = model.graph
    gone = {name for node in head.graph.node for name in node.output}
    kept = [node for node in graph.node if not gone.intersection(node.output)]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    del graph.node[:]
    graph.node.extend(copies)
    _add_average(model)
    add_constant(graph, "head.weight", weight)
    add_constant(graph, "head.bias", bias)
    graph.node.append(
        helper.make_node("Gemm", ["embedding", "head.weight", "head.bias"], ["logits"], name="head", transB=1)
    )


def _add_gradients(model: onnx.ModelProto, head: onnx.ModelProto, anatomy: Anatomy) -> None:
    view = GraphView(model)
    nodes = nodes_between(view, "feature_map", "logits")
    names = [name for node in nodes for name in node.output if name]
    feeds = [
        {"feature_map": np.random.default_rng(3).standard_normal((count, *anatomy.map_shape), dtype=np.float32)}
        for count in (2, 3)
    ]
    shapes: dict[str, tuple[int, ...]] = {"feature_map": anatomy.map_shape}
    runs = run_values(head, names, feeds)
    for name in names:
        one, other = (np.shape(run[name]) for run in runs)
        if one[:1] != (2,) or other[:1] != (3,) or one[1:] != other[1:]:
            raise ImportRefusedError(
                f"{name} in the head has the shape {list(one)} for two pictures and {list(other)} for three: pictures "
                "are not kept apart along the first axis"
            )
        shapes[name] = one[1:]
    builder = GradientBuilder(view, shapes, anatomy.label_count)
    builder.build(nodes, "logits", "feature_map")
    model.graph.node.extend(builder.nodes)


def _tidy(model: onnx.ModelProto) -> None:
    """Leave out what no output needs, and what exporters write about themselves: stack traces name their machine."""
    graph = model.graph
    view = GraphView(model)
    needed = view.ancestors([value.name for value in graph.output])
    read = {name for node in needed for name in outer_inputs(node)}
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in needed]
    for place, node in enumerate(nodes):
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
        node.name = node.name or f"node.{place}"
    tensors = [tensor for tensor in graph.initializer if tensor.name in read]
    kept = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in tensors]
    for tensor in kept:
        tensor.ClearField("doc_string")
        tensor.ClearField("metadata_props")
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
    graph.ClearField("doc_string")
    graph.ClearField("metadata_props")
    graph.name = "imported"
    model.ClearField("doc_string")
    model.ClearField("metadata_props")
    model.ClearField("producer_version")
    model.producer_name = "dicom-ai-gateway"
