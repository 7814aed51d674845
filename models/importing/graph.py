"""Small operations on ONNX graphs: who makes and who reads a value, running values inside, renaming."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from models.errors import ImportRefusedError

Floats = NDArray[np.float32]

SHAPE_OPERATORS = frozenset({"Shape", "Size", "ArgMax", "ArgMin", "NonZero"})
"""Through these no value flows that could be differentiated."""
SUBGRAPH_OPERATORS = frozenset({"If", "Loop", "Scan"})
ORT_FAILED: tuple[type[Exception], ...] = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    RuntimeError,
    ValueError,
)


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Attributes of a node as Python values; text as str."""
    values = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


def outer_inputs(node: onnx.NodeProto) -> list[str]:
    """Values that a node reads, those that its subgraphs take from outside included."""
    names = [name for name in node.input if name]
    for entry in node.attribute:
        for subgraph in [entry.g] if entry.type == onnx.AttributeProto.GRAPH else entry.graphs:
            made = {output for inner in subgraph.node for output in inner.output}
            made |= {value.name for value in (*subgraph.input, *subgraph.initializer)}
            read = [name for inner in subgraph.node for name in outer_inputs(inner)]
            names.extend(name for name in [*read, *(value.name for value in subgraph.output)] if name not in made)
    return names


class GraphView:
    """Lookups over a model's main graph. Made anew after each change."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.graph = model.graph
        self.producer: dict[str, onnx.NodeProto] = {}
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        self._tensors = {tensor.name: tensor for tensor in self.graph.initializer}
        self._constants: dict[str, NDArray[Any]] = {}
        for node in self.graph.node:
            for name in node.output:
                self.producer[name] = node
            for name in outer_inputs(node):
                self.consumers.setdefault(name, []).append(node)

    @property
    def opset(self) -> int:
        """Version of ONNX's own operators."""
        return opset_of(self.model)

    def is_constant(self, name: str) -> bool:
        """Whether a value is an initializer (constants have been folded into those)."""
        return name in self._tensors

    def constant(self, name: str) -> NDArray[Any]:
        """The array of an initializer."""
        if name not in self._constants:
            self._constants[name] = numpy_helper.to_array(self._tensors[name])
        return self._constants[name]

    def ancestors(self, targets: Iterable[str], stop: Iterable[str] = ()) -> list[onnx.NodeProto]:
        """Nodes that `targets` need, in the graph's order, not looking behind `stop`."""
        seen, stack = set(stop), [name for name in targets if name not in set(stop)]
        needed: set[int] = set()
        while stack:
            name = stack.pop()
            if name in seen:
                continue
            seen.add(name)
            node = self.producer.get(name)
            if node is not None:
                needed.add(id(node))
                stack.extend(outer_inputs(node))
        return [node for node in self.graph.node if id(node) in needed]


def opset_of(model: onnx.ModelProto) -> int:
    """Version of ONNX's own operators that `model` is written in; 0 where it states none."""
    return max((entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"}), default=0)


def open_session(
    model: onnx.ModelProto, *, optimise: bool = True, save_as: str | None = None
) -> onnxruntime.InferenceSession:
    """CPU session of a model in memory; `save_as` keeps what ONNX Runtime's basic optimisations made of it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_BASIC if optimise else level.ORT_DISABLE_ALL
    options.intra_op_num_threads = 2
    if save_as is not None:
        options.optimized_model_filepath = save_as
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run_values(
    model: onnx.ModelProto, names: Sequence[str], feeds: Sequence[Mapping[str, NDArray[Any]]]
) -> list[dict[str, NDArray[Any]]]:
    """Values inside a model, one mapping for each of `feeds`."""
    kept = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in model.graph.output]
    del model.graph.output[:]
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    try:
        session = open_session(model, optimise=False)
        return [dict(zip(names, session.run(list(names), dict(feed)), strict=True)) for feed in feeds]
    finally:
        del model.graph.output[:]
        model.graph.output.extend(kept)


def rename_value(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Call a value something else, wherever it stands."""
    if old == new:
        return
    for entry in (*graph.initializer, *graph.input, *graph.output, *graph.value_info):
        if entry.name == old:
            entry.name = new
    for node in graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name == old:
                    names[place] = new
        for attribute in node.attribute:
            for subgraph in [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs:
                rename_value(subgraph, old, new)


def free_name(graph: onnx.GraphProto, name: str) -> None:
    """Give the value that is called `name` another name, if there is one."""
    rename_value(graph, name, f"source.{name}")


def add_constant(graph: onnx.GraphProto, name: str, value: NDArray[Any]) -> str:
    """Put an initializer into `graph`; returns its name."""
    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
    return name


def float_input(name: str, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    """A float32 tensor of an interface."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


def extract_head(view: GraphView, feature_map: str, logits: str, shape: tuple[int, int, int]) -> onnx.ModelProto:
    """The part between two values as a model: input `feature_map` [N, c, h, w], output `logits`.

    Raises
    ------
    ImportRefusedError
        Something else than `feature_map` flows into it.
    """
    nodes = view.ancestors([logits], stop=[feature_map])
    made = {name for node in nodes for name in node.output} | {feature_map}
    read = {name for node in nodes for name in outer_inputs(node)}
    foreign = sorted(name for name in read - made if not view.is_constant(name))
    if foreign:
        raise ImportRefusedError(
            f"what follows the last feature map also reads {', '.join(foreign)}, which does not come from it"
        )
    graph = helper.make_graph(
        nodes,
        "head",
        [float_input(feature_map, ["N", *shape])],
        [helper.make_empty_tensor_value_info(logits)],
        [tensor for tensor in view.graph.initializer if tensor.name in read],
    )
    return helper.make_model(graph, opset_imports=view.model.opset_import, ir_version=view.model.ir_version)
