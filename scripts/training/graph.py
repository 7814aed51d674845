"""The network as an ONNX graph that a bundle ships, and a session to run it while training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from tqdm import tqdm
from training.network import EMBEDDING, Weights, layers, same_padding

OPSET = 17
_IR_VERSION = 8


def build_graph(
    weights: Weights, head_weight: npt.NDArray[np.float32], head_bias: npt.NDArray[np.float32], side: int
) -> onnx.ModelProto:
    """Model with the input ``image`` [N, 3, side, side] and outputs ``logits``, ``embedding`` and ``feature_map``.

    The convolutions' weights are stored as float16 and cast on load; the head stays float32.
    """
    initializers = [
        numpy_helper.from_array(np.float32(0), "zero"),
        numpy_helper.from_array(np.float32(6), "six"),
        numpy_helper.from_array(head_weight.astype(np.float32), "head.weight"),
        numpy_helper.from_array(head_bias.astype(np.float32), "head.bias"),
    ]
    nodes = []
    for name in weights:
        initializers.append(numpy_helper.from_array(weights[name].astype(np.float16), f"{name}.float16"))
        nodes.append(helper.make_node("Cast", [f"{name}.float16"], [name], name=f"{name}.cast", to=TensorProto.FLOAT))
    value, block_input, block, size = "image", "image", None, side
    for layer in layers():
        if layer.block != block:
            block_input, block = value, layer.block
        before, after = same_padding(size, layer)
        size = -(-size // layer.stride)
        nodes.append(
            helper.make_node(
                "Conv",
                [value, f"{layer.name}.weight", f"{layer.name}.bias"],
                [f"{layer.name}.out"],
                name=layer.name,
                kernel_shape=[layer.kernel, layer.kernel],
                strides=[layer.stride, layer.stride],
                pads=[before, before, after, after],
                group=layer.groups,
            )
        )
        value = f"{layer.name}.out"
        if layer.activates:
            output = "feature_map" if layer.name == "last" else f"{layer.name}.relu6"
            nodes.append(helper.make_node("Clip", [value, "zero", "six"], [output], name=f"{layer.name}.clip"))
            value = output
        if layer.adds_block_input:
            nodes.append(helper.make_node("Add", [value, block_input], [f"{layer.name}.sum"], name=f"{layer.name}.add"))
            value = f"{layer.name}.sum"
    nodes.append(helper.make_node("ReduceMean", ["feature_map"], ["embedding"], name="pool", axes=[2, 3], keepdims=0))
    nodes.append(helper.make_node("Gemm", ["embedding", "head.weight", "head.bias"], ["logits"], name="head", transB=1))
    graph = helper.make_graph(
        nodes,
        "efficientnet-lite0",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, side, side])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", len(head_bias)]),
            helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", EMBEDDING]),
            helper.make_tensor_value_info("feature_map", TensorProto.FLOAT, ["N", EMBEDDING, size, size]),
        ],
        initializers,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="dicom-ai-gateway", ir_version=_IR_VERSION
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def open_session(model: onnx.ModelProto, threads: int, also: Sequence[str] = ()) -> onnxruntime.InferenceSession:
    """Session on the CPU; `also` names values inside the graph that are wanted as outputs too."""
    known = {value.name for value in model.graph.output}
    missing = [name for name in also if name not in known]
    if missing:
        extended = onnx.ModelProto()
        extended.CopyFrom(model)
        extended.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in missing)
        model = extended
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run_graph(
    session: onnxruntime.InferenceSession,
    tensors: Sequence[npt.NDArray[np.float32]],
    outputs: Sequence[str],
    title: str,
) -> dict[str, npt.NDArray[np.float32]]:
    """Outputs over all `tensors` [C, H, W], stacked."""
    found: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in outputs}
    batch = 8
    for start in tqdm(range(0, len(tensors), batch), desc=title, leave=False):
        values = session.run(list(outputs), {"image": np.stack(tensors[start : start + batch])})
        for name, value in zip(outputs, values, strict=True):
            found[name].append(value)
    return {name: np.concatenate(values) for name, values in found.items()}
