"""An ONNX file, brought to one float32 input ``image`` [N, C, H, W] with any N, constants folded."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx import TensorProto, helper

from models.card import PixelContract
from models.errors import ImportRefusedError
from models.importing.graph import (
    ORT_FAILED,
    GraphView,
    add_constant,
    float_input,
    free_name,
    open_session,
    opset_of,
    rename_value,
)

LARGEST_SOURCE_BYTES = 1_500_000_000
"""Of a model with its external data. Protocol buffers end at 2 GB, and the graph is held a few times over."""
LEAST_OPSET = 17
"""What older graphs are converted to; newer ones stay as they are."""
OLDEST_OPSET = 7
_KNOWN_DOMAINS = frozenset({"", "ai.onnx", "com.microsoft"})
_IMAGE_AXES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class InputForm:
    """How the source takes its picture."""

    name: str
    batch: int | None
    """None: any."""
    channels_last: bool
    half: bool
    """float16; the bundle computes in float32."""


def read_onnx(path: Path) -> onnx.ModelProto:
    """Read a model with its external data.

    Raises
    ------
    ImportRefusedError
        Too large, not ONNX, or external data that is missing or lies outside the model's folder.
    """
    size_bytes = path.stat().st_size
    if size_bytes > LARGEST_SOURCE_BYTES:
        raise ImportRefusedError(f"{path.name} has {size_bytes} bytes; at most {LARGEST_SOURCE_BYTES} are taken")
    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise ImportRefusedError(f"{path.name} is not an ONNX file") from error
    if not model.graph.node or not model.opset_import:
        raise ImportRefusedError(f"{path.name} is not an ONNX model: it has no graph or states no opset")
    external = [tensor for tensor in model.graph.initializer if tensor.data_location == TensorProto.EXTERNAL]
    names = {entry.value for tensor in external for entry in tensor.external_data if entry.key == "location"}
    for name in sorted(names):
        part = path.parent / name
        if not part.resolve().is_relative_to(path.parent.resolve()):
            raise ImportRefusedError(f"{path.name} keeps weights outside its folder")
        if not part.is_file():
            raise ImportRefusedError(f"{path.name} keeps weights in {name}, which is not beside it")
        size_bytes += part.stat().st_size
    if size_bytes > LARGEST_SOURCE_BYTES:
        raise ImportRefusedError(
            f"{path.name} has {size_bytes} bytes with its external data; at most {LARGEST_SOURCE_BYTES} are taken"
        )
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except (onnx.checker.ValidationError, OSError, ValueError, RuntimeError) as error:
        raise ImportRefusedError(f"{path.name}: its external data cannot be read ({type(error).__name__})") from error
    return model


def normalise(model: onnx.ModelProto, contract: PixelContract) -> tuple[onnx.ModelProto, InputForm]:
    """A graph that computes the same from one input ``image``, with constants folded and its batch freed.

    Raises
    ------
    ImportRefusedError
        Says what about the graph cannot be used.
    """
    form = _input_form(model, contract)
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    if changed.functions:
        changed = onnx.inliner.inline_local_functions(changed)
    if form.half:
        _widen(changed.graph)
    _refuse_foreign_operators(changed)
    changed = _raise_opset(changed)
    _make_input(changed, form, contract)
    if form.batch is not None:
        _free_batch(changed, form.batch)
    return _fold(changed), form


def _input_form(model: onnx.ModelProto, contract: PixelContract) -> InputForm:
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise ImportRefusedError(f"the graph has {len(inputs)} inputs ({names}); one picture is expected")
    value = inputs[0]
    kind = value.type.tensor_type
    half = kind.elem_type == TensorProto.FLOAT16
    if not value.type.HasField("tensor_type") or (kind.elem_type != TensorProto.FLOAT and not half):
        found = TensorProto.DataType.Name(kind.elem_type) if kind.elem_type else "no tensor"
        raise ImportRefusedError(
            f"input {value.name} is {found}; the gateway gives float32, normalised by the card's pixel contract, so "
            "that conversion and scaling must not be in the graph"
        )
    if not kind.HasField("shape"):
        dims: list[int | None] = [None] * _IMAGE_AXES
    else:
        dims = [dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in kind.shape.dim]
    if len(dims) != _IMAGE_AXES:
        raise ImportRefusedError(f"input {value.name} has {len(dims)} axes; [N, C, H, W] is expected")
    channels, rows, columns = contract.channels, contract.size.rows, contract.size.columns
    first = _fits(dims[1:], (channels, rows, columns))
    last = _fits(dims[1:], (rows, columns, channels))
    if not first and not last:
        shape = ", ".join("any" if dim is None else str(dim) for dim in dims)
        raise ImportRefusedError(
            f"input {value.name} is [{shape}]; the card's pixel contract gives [N, {channels}, {rows}, {columns}]"
        )
    return InputForm(name=value.name, batch=dims[0], channels_last=not first, half=half)


def stated_shape(model: onnx.ModelProto, otherwise: tuple[int, int, int]) -> tuple[int, int, int]:
    """Channels, rows and columns as far as the model's input states them; what it leaves open as in `otherwise`."""
    constants = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        dims = [max(0, dim.dim_value) for dim in value.type.tensor_type.shape.dim]
        if value.name in constants or len(dims) != _IMAGE_AXES:
            continue
        if dims[3] in {1, 3} and dims[1] not in {1, 3}:
            dims = [dims[0], dims[3], dims[1], dims[2]]
        channels, rows, columns = (dim or other for dim, other in zip(dims[1:], otherwise, strict=True))
        return channels, rows, columns
    return otherwise


def _fits(found: list[int | None], wanted: tuple[int, int, int]) -> bool:
    return all(dim is None or dim == side for dim, side in zip(found, wanted, strict=True))


def _refuse_foreign_operators(model: onnx.ModelProto) -> None:
    foreign = sorted(
        {f"{node.domain}.{node.op_type}" for node in model.graph.node if node.domain not in _KNOWN_DOMAINS}
    )
    if foreign:
        raise ImportRefusedError(f"operators that are not ONNX's own: {', '.join(foreign)}")


def _raise_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    """Convert an older graph; a newer one stays as it is, since converting down loses operators."""
    opset = opset_of(model)
    if opset < OLDEST_OPSET:
        raise ImportRefusedError(f"opset {opset}; {OLDEST_OPSET} is the oldest that can be converted")
    if opset >= LEAST_OPSET:
        return model
    try:
        converted = onnx.version_converter.convert_version(model, LEAST_OPSET)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1][:200]
        raise ImportRefusedError(f"opset {opset} cannot be converted to {LEAST_OPSET}: {reason}") from error
    converted.ir_version = max(converted.ir_version, 8)
    return converted


def _widen(graph: onnx.GraphProto) -> None:
    """float32 in place of float16 throughout: casts of weights cost nothing, and a CPU computes in float32 anyway."""
    for place, tensor in enumerate(graph.initializer):
        if tensor.data_type == TensorProto.FLOAT16:
            graph.initializer[place].CopyFrom(_wide(tensor))
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _widen(attribute.g)
            elif attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == TensorProto.FLOAT16:
                attribute.t.CopyFrom(_wide(attribute.t))
            elif attribute.name in {"to", "dtype"} and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.FLOAT


def _wide(tensor: onnx.TensorProto) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float32), tensor.name)


def _make_input(model: onnx.ModelProto, form: InputForm, contract: PixelContract) -> None:
    """Call the input ``image``, of the card's size and any batch; turn it where the source wants channels last."""
    graph = model.graph
    if form.name != "image":
        free_name(graph, "image")
    rename_value(graph, form.name, "image")
    del graph.input[:]
    graph.input.append(float_input("image", ["N", contract.channels, contract.size.rows, contract.size.columns]))
    del graph.value_info[:]
    for output in graph.output:
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")
    if form.channels_last:
        for node in graph.node:
            node.input[:] = ["source.image" if name == "image" else name for name in node.input]
        graph.node.insert(0, helper.make_node("Transpose", ["image"], ["source.image"], perm=[0, 2, 3, 1]))


def _free_batch(model: onnx.ModelProto, batch: int) -> None:
    """Let constant target shapes that name the fixed batch take any; whether that suffices shows when it runs."""
    view = GraphView(model)
    for place, node in enumerate(model.graph.node):
        if node.op_type != "Reshape" or len(node.input) != 2:
            continue
        shape = _constant_of(view, node.input[1])
        if shape is None or shape.ndim != 1 or not len(shape) or shape[0] != batch:
            continue
        freed = shape.astype(np.int64)
        # 0 copies the input's first length; -1 infers it, which is right also where that axis is not the batch.
        freed[0] = -1 if -1 not in freed else 0
        node.input[1] = add_constant(model.graph, f"freed.shape.{place}", freed)


def _constant_of(view: GraphView, name: str) -> NDArray[Any] | None:
    if view.is_constant(name):
        return view.constant(name)
    node = view.producer.get(name)
    if node is not None and node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
        return np.asarray(onnx.numpy_helper.to_array(node.attribute[0].t))
    return None


def _fold(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fold constants and drop what does nothing, by ONNX Runtime's basic optimisations."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "folded.onnx"
        try:
            open_session(model, save_as=str(path))
            folded = onnx.load(path)
        except (*ORT_FAILED, DecodeError, EncodeError, OSError) as error:
            reason = str(error).strip().splitlines()[0][:300]
            raise ImportRefusedError(f"ONNX Runtime does not load the graph: {reason}") from error
    _lift_constants(folded)
    return folded


def _lift_constants(model: onnx.ModelProto) -> None:
    """Make initializers of what ``Constant`` nodes are left."""
    graph = model.graph
    kept = []
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensor = onnx.TensorProto()
            tensor.CopyFrom(node.attribute[0].t)
            tensor.name = node.output[0]
            graph.initializer.append(tensor)
        else:
            kept.append(node)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    del graph.node[:]
    graph.node.extend(copies)
    used = {node.domain for node in graph.node} | {""}
    domains = [entry for entry in model.opset_import if ("" if entry.domain == "ai.onnx" else entry.domain) in used]
    copies_of_domains = [onnx.OperatorSetIdProto.FromString(entry.SerializeToString()) for entry in domains]
    del model.opset_import[:]
    model.opset_import.extend(copies_of_domains)
