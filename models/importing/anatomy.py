"""Where in a graph its logits, its last feature map and its head are, found by how values flow, not by names.

The last feature map is the last value that everything on its way from the picture to the logits passes through, and
that still has rows and columns. So skip connections, squeeze-and-excitation and several pools of one map need no rules
of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from models.errors import ImportRefusedError
from models.importing.graph import (
    ORT_FAILED,
    SHAPE_OPERATORS,
    SUBGRAPH_OPERATORS,
    GraphView,
    add_constant,
    attributes,
    outer_inputs,
    run_values,
)

_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "FusedConv", "QLinearConv", "ConvInteger", "Einsum"})
_MOST_LAYERS_IN_A_HEAD = 8
_MOST_ATTENTION_IN_A_HEAD = 1
_TRIED_BATCHES = (2, 3)
_MAP_AXES = 4
_NEAREST = 60

Shape = tuple[int | str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy:
    """What was found."""

    logits: str
    label_count: int
    final_activation: Literal["softmax", "sigmoid"] | None
    """What the source itself made of the logits; it is left out of the bundle's graph, the card states it."""
    single_output: bool
    """The source has one output: it became two labels, absent and present."""
    feature_map: str
    map_shape: tuple[int, int, int]
    """c, h, w"""
    remarks: tuple[str, ...]


def find_anatomy(model: onnx.ModelProto, picture_shape: tuple[int, int, int], logits: str | None = None) -> Anatomy:
    """Find the parts; `model` gets new nodes where logits or feature map need another form.

    Parameters
    ----------
    model
        As :func:`models.importing.onnx_source.normalise` leaves it.
    picture_shape
        C, H, W of ``image``.
    logits
        Name of the output to take, where there are several.

    Raises
    ------
    ImportRefusedError
        There is no such thing in the graph; says what there is instead.
    """
    output = _choose_output(model, logits)
    final, activation = _before_activation(GraphView(model), output)
    final, count, single = _two_axes(model, final, picture_shape, activation)
    view = GraphView(model)
    passed = _passed_by_all(view, final)
    shapes = _shapes(model, passed[-_NEAREST:], picture_shape)
    name, remarks = _last_map(view, passed, shapes, final, count)
    name = _channels_first(model, view, name, shapes)
    _settle_shapes(model, name, final, picture_shape)
    shape = _shapes(model, [name], picture_shape)[name]
    return Anatomy(
        logits=final,
        label_count=count,
        final_activation=activation,
        single_output=single,
        feature_map=name,
        map_shape=(int(shape[1]), int(shape[2]), int(shape[3])),
        remarks=remarks,
    )


def _choose_output(model: onnx.ModelProto, wanted: str | None) -> str:
    names = [value.name for value in model.graph.output]
    if wanted is not None:
        if wanted not in names:
            raise ImportRefusedError(f"no output {wanted}; the graph has {', '.join(names)}")
        return wanted
    if len(names) != 1:
        raise ImportRefusedError(f"the graph has {len(names)} outputs ({', '.join(names)}); say which by --output")
    return str(names[0])


def _before_activation(view: GraphView, name: str) -> tuple[str, Literal["softmax", "sigmoid"] | None]:
    """The value before a softmax or sigmoid that ends the graph, looking through what only moves values."""
    current = name
    for _ in range(8):
        node = view.producer.get(current)
        if node is None:
            break
        if node.op_type in {"Softmax", "LogSoftmax"}:
            return str(node.input[0]), "softmax"
        if node.op_type == "Sigmoid":
            return str(node.input[0]), "sigmoid"
        if node.op_type not in {"Identity", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Cast", "Dropout"}:
            break
        current = node.input[0]
    return name, None


def _two_axes(
    model: onnx.ModelProto, name: str, picture_shape: tuple[int, int, int], activation: str | None
) -> tuple[str, int, bool]:
    """Logits as [N, K]; one output z becomes the two logits (0, z), whose softmax is (1 - sigmoid(z), sigmoid(z))."""
    shape = _shapes(model, [name], picture_shape)[name]
    sides = [side for side in shape[1:] if side != 1]
    if not shape or shape[0] != "N" or len(sides) > 1 or not all(isinstance(side, int) for side in sides):
        raise ImportRefusedError(
            f"output {name} has the shape {_said(shape)}; logits [N, K], one a label, are expected"
        )
    graph = model.graph
    count = int(sides[0]) if sides else 1
    if len(shape) != 2:
        target = add_constant(graph, "logits.shape", np.array([-1, count], dtype=np.int64))
        graph.node.append(helper.make_node("Reshape", [name, target], ["logits.two_axes"]))
        name = "logits.two_axes"
    if count == 1:
        if activation == "softmax":
            raise ImportRefusedError("a softmax over one output is always 1: the graph decides nothing")
        pair = add_constant(graph, "logits.pair", np.array([[0, 1]], dtype=np.float32))
        graph.node.append(helper.make_node("Mul", [name, pair], ["logits.of_two"]))
        return "logits.of_two", 2, True
    return name, count, False


def _passed_by_all(view: GraphView, logits: str) -> list[str]:
    """Values that every way from ``image`` to `logits` passes through, in order.

    Counted exactly: ways to a value times ways from it equal all ways.
    """
    needed = view.ancestors([logits])
    edges = [
        (source, target)
        for node in needed
        if node.op_type not in SHAPE_OPERATORS
        for source in outer_inputs(node)
        for target in node.output
        if target
    ]
    ways_to: dict[str, int] = {"image": 1}
    for source, target in edges:
        if source in ways_to:
            ways_to[target] = ways_to.get(target, 0) + ways_to[source]
    if logits not in ways_to:
        raise ImportRefusedError("the logits do not depend on the picture")
    ways_from: dict[str, int] = {logits: 1}
    for source, target in reversed(edges):
        if target in ways_from:
            ways_from[source] = ways_from.get(source, 0) + ways_from[target]
    total = ways_to[logits]
    order = ["image", *(name for node in needed for name in node.output)]
    return [name for name in order if name in ways_to and ways_to[name] * ways_from.get(name, 0) == total]


def _shapes(model: onnx.ModelProto, names: list[str], picture_shape: tuple[int, int, int]) -> dict[str, Shape]:
    """Shapes of values, measured; a length that follows the batch is ``N``, another that depends on it ``?``."""
    random = np.random.default_rng(0)
    feeds = [{"image": random.standard_normal((count, *picture_shape), dtype=np.float32)} for count in _TRIED_BATCHES]
    wanted = [name for name in names if name != "image"]
    try:
        runs = run_values(model, wanted, feeds)
    except ORT_FAILED as error:
        reason = str(error).strip().splitlines()[0][:300]
        raise ImportRefusedError(f"the graph does not run on batches of any size: {reason}") from error
    found: dict[str, Shape] = {"image": ("N", *picture_shape)}
    for name in wanted:
        pair = [np.shape(run[name]) for run in runs]
        if len(pair[0]) != len(pair[1]):
            found[name] = ("?",)
            continue
        found[name] = tuple(
            one if one == other else "N" if (one, other) == _TRIED_BATCHES else "?"
            for one, other in zip(*pair, strict=True)
        )
    return found


def _is_map(shape: Shape | None) -> bool:
    if shape is None or len(shape) != _MAP_AXES or shape[0] != "N":
        return False
    sides = [side for side in shape[1:] if isinstance(side, int)]
    return len(sides) == _MAP_AXES - 1


def _has_positions(shape: Shape, *, channels_last: bool) -> bool:
    rows, columns = (shape[1], shape[2]) if channels_last else (shape[2], shape[3])
    return int(rows) * int(columns) > 1


def _last_map(
    view: GraphView, passed: list[str], shapes: dict[str, Shape], logits: str, count: int
) -> tuple[str, tuple[str, ...]]:
    """Choose the last feature map, and refuse one that does not explain the decision."""
    candidates = [
        name
        for name in passed
        if name != "image"
        and _is_map(shapes.get(name))
        and _has_positions(shapes[name], channels_last=_is_last(view, name))
    ]
    if not candidates:
        raise ImportRefusedError(
            "no spatial feature map: nothing that all of the picture passes through before the logits has the form "
            "[N, c, h, w] with more than one position"
        )
    remarks: list[str] = []
    name = candidates[-1]
    name = _before_power(view, name)
    head = view.ancestors([logits], stop=[name])
    if not any(node.op_type in _WEIGHTED for node in head) and len(candidates) > 1:
        # Class maps that are only averaged (SqueezeNet): take what the last convolution reads, which says more.
        for earlier in reversed(candidates[:-1]):
            head = view.ancestors([logits], stop=[earlier])
            if any(node.op_type in _WEIGHTED for node in head):
                remarks.append("the graph ends in averaged class maps; the map before the last convolution is taken")
                name = earlier
                break
    _refuse_deep_head(view, name, head, shapes.get(name, ()))
    return name, tuple(remarks)


def _before_power(view: GraphView, name: str) -> str:
    """Step before the power of a generalised mean: it belongs to the pool.

    The clamp before it stays, since ONNX Runtime merges a ReLU into it.
    """
    while True:
        node = view.producer.get(name)
        if node is None or node.op_type not in {"Pow", "Exp"} or not node.input:
            return name
        if not all(not entry or view.is_constant(entry) for entry in node.input[1:]):
            return name
        name = str(node.input[0])


def _refuse_deep_head(view: GraphView, name: str, head: list[onnx.NodeProto], shape: Shape) -> None:
    before = sum(node.op_type in _WEIGHTED for node in view.ancestors([name]))
    after = sum(node.op_type in _WEIGHTED for node in head)
    attention = sum(node.op_type in {"Softmax", "Attention", "MultiHeadAttention"} for node in head)
    loops = sorted({node.op_type for node in head if node.op_type in SUBGRAPH_OPERATORS})
    if attention > _MOST_ATTENTION_IN_A_HEAD or after > max(_MOST_LAYERS_IN_A_HEAD, before):
        raise ImportRefusedError(
            f"no spatial feature map before pooling: the last one, {name} {_said(shape)}, comes after {before} of "
            f"{before + after} layers, and {attention} attention layers mix its positions afterwards (a vision "
            "transformer). Grad-CAM does not apply to it"
        )
    if loops:
        raise ImportRefusedError(
            f"dynamic control flow between the last feature map and the logits: {', '.join(loops)}"
        )


def _is_last(view: GraphView, name: str) -> bool:
    """Whether a map has its channels last: pooled over axes 1 and 2, or normalised over axis 3."""
    for node in view.consumers.get(name, ()):
        if node.op_type.startswith("Reduce"):
            axes = reduced_axes(view, node, _MAP_AXES)
            if axes is not None and sorted(axes) in ([1, 2], [2, 3]):
                return sorted(axes) == [1, 2]
        if node.op_type == "LayerNormalization" and attributes(node).get("axis", -1) in {-1, 3}:
            return True
    node = view.producer.get(name)
    return node is not None and node.op_type == "LayerNormalization" and attributes(node).get("axis", -1) in {-1, 3}


def reduced_axes(view: GraphView, node: onnx.NodeProto, rank: int) -> list[int] | None:
    """Axes that a reduction goes over, from 0; None where they are not constant."""
    axes: NDArray[Any] | list[int] | None = attributes(node).get("axes")
    if len(node.input) > 1 and node.input[1]:
        if not view.is_constant(node.input[1]):
            return None
        axes = view.constant(node.input[1])
    if axes is None or not len(axes):
        return list(range(rank))
    return [int(axis) % rank for axis in np.asarray(axes).ravel()]


def _channels_first(model: onnx.ModelProto, view: GraphView, name: str, shapes: dict[str, Shape]) -> str:
    """Turn a map that has its channels last, and turn it back for what reads it."""
    if not _is_last(view, name):
        return name
    graph = model.graph
    for node in graph.node:
        node.input[:] = ["map.channels_last" if entry == name else entry for entry in node.input]
    place = next(index for index, node in enumerate(graph.node) if name in node.output)
    turned = helper.make_node("Transpose", [name], ["map.channels_first"], perm=[0, 3, 1, 2])
    back = helper.make_node("Transpose", ["map.channels_first"], ["map.channels_last"], perm=[0, 2, 3, 1])
    graph.node.insert(place + 1, turned)
    graph.node.insert(place + 2, back)
    return "map.channels_first"


def _settle_shapes(model: onnx.ModelProto, feature_map: str, logits: str, picture_shape: tuple[int, int, int]) -> None:
    """Make constants of what the head reads of the picture's shape, and leave out gathers that only copy.

    Exporters compute target shapes and bounds from the picture's shape, which the head does not see.
    """
    view = GraphView(model)
    after = nodes_between(view, feature_map, logits)
    _settle_reshapes(model, [node for node in after if node.op_type == "Reshape"], picture_shape)
    _settle_numbers(model, view, after, feature_map, picture_shape)
    copies = [(node, source) for node in after if (source := _copied(view, node)) is not None]
    random = np.random.default_rng(1)
    feed = {"image": random.standard_normal((3, *picture_shape), dtype=np.float32)}
    for node, source in copies:
        values = run_values(model, [node.output[0], source], [feed])[0]
        if np.array_equal(values[node.output[0]], values[source]):
            _replace_reader(model.graph, node.output[0], source)


def _settle_reshapes(model: onnx.ModelProto, nodes: list[onnx.NodeProto], picture_shape: tuple[int, int, int]) -> None:
    shapes = _shapes(model, sorted(node.output[0] for node in nodes), picture_shape) if nodes else {}
    for node in nodes:
        shape = shapes[node.output[0]]
        if sum(not isinstance(side, int) for side in shape) == 1:
            target = np.array([side if isinstance(side, int) else -1 for side in shape], dtype=np.int64)
            node.input[1] = add_constant(model.graph, f"settled.{node.output[0]}", target)
            for entry in [entry for entry in node.attribute if entry.name == "allowzero"]:
                node.attribute.remove(entry)


def _settle_numbers(
    model: onnx.ModelProto,
    view: GraphView,
    nodes: list[onnx.NodeProto],
    feature_map: str,
    picture_shape: tuple[int, int, int],
) -> None:
    """Values beside the feature map's path that no batch changes; the batch that an ``Expand`` names is not needed."""
    flowing = {feature_map} | {name for node in nodes for name in node.output}
    beside = sorted(
        {name for node in nodes for name in node.input if name and name not in flowing and not view.is_constant(name)}
    )
    if not beside:
        return
    random = np.random.default_rng(0)
    feeds = [{"image": random.standard_normal((count, *picture_shape), dtype=np.float32)} for count in _TRIED_BATCHES]
    one, other = run_values(model, beside, feeds)
    settled: dict[str, str] = {}
    for name in beside:
        if np.array_equal(one[name], other[name]):
            settled[name] = add_constant(model.graph, f"settled.{name}", one[name])
    for node in nodes:
        node.input[:] = [settled.get(name, name) for name in node.input]
        if node.op_type == "Expand" and node.input[1] in one:
            pair = one[node.input[1]], other[node.input[1]]
            if len(pair[0]) == len(pair[1]) and (pair[0][0], pair[1][0]) == _TRIED_BATCHES:
                target = np.array([1, *pair[0][1:]], dtype=np.int64)
                node.input[1] = add_constant(model.graph, f"settled.{node.output[0]}", target)


def _copied(view: GraphView, node: onnx.NodeProto) -> str | None:
    """What a gather may be a copy of: ``as_strided`` is exported as a flattening and a gather of every element."""
    flat = view.producer.get(node.input[0]) if node.op_type == "Gather" else None
    return str(flat.input[0]) if flat is not None and flat.op_type in {"Reshape", "Flatten"} else None


def nodes_between(view: GraphView, feature_map: str, logits: str) -> list[onnx.NodeProto]:
    """Nodes through which values flow from `feature_map` to `logits`."""
    reached = {feature_map}
    found = []
    for node in view.ancestors([logits], stop=[feature_map]):
        if node.op_type not in SHAPE_OPERATORS and reached.intersection(outer_inputs(node)):
            reached.update(node.output)
            found.append(node)
    return found


def _replace_reader(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]


def _said(shape: Shape) -> str:
    return "[" + ", ".join(str(side) for side in shape) + "]"
