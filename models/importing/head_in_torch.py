"""A head's ONNX nodes carried out by torch in float64, so that autograd says what their gradient is.

Written apart from :mod:`models.importing.gradient_rules` on purpose: here each operator is torch's own function, there
each derivative is a formula. Imports torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import numpy_helper

from models.errors import ImportRefusedError
from models.importing.graph import attributes

Tensor = Any
Values = dict[str, Any]


class TorchHead:
    """The part from ``feature_map`` [N, c, h, w] to ``logits`` [N, K]."""

    def __init__(self, head: onnx.ModelProto) -> None:
        self._nodes = list(head.graph.node)
        self._input, self._output = head.graph.input[0].name, head.graph.output[0].name
        self._constants: Values = {}
        for tensor in head.graph.initializer:
            array = torch.from_numpy(np.array(numpy_helper.to_array(tensor)))
            self._constants[tensor.name] = array.double() if array.is_floating_point() else array

    def __call__(self, feature_map: Tensor) -> Tensor:
        """Logits of float64 maps."""
        values: Values = {"": None, self._input: feature_map, **self._constants}
        for node in self._nodes:
            function = OPERATORS.get(node.op_type)
            if function is None or node.domain:
                raise ImportRefusedError(f"{node.op_type} in the head cannot be checked")
            results = function(node, attributes(node), [values[name] for name in node.input])
            results = results if isinstance(results, tuple) else (results,)
            values.update(zip(node.output, results, strict=False))
        return values[self._output]

    def jacobian(self, feature_map: NDArray[np.float32], labels: list[int]) -> NDArray[np.float64]:
        """Gradient of some logits with respect to the map, summed over its positions: [N, len(labels), c]."""
        rows = []
        for label in labels:
            leaf = torch.from_numpy(feature_map).double().requires_grad_()
            (gradient,) = torch.autograd.grad(self(leaf)[:, label].sum(), leaf)
            rows.append(gradient.sum(dim=(2, 3)).numpy())
        return np.stack(rows, axis=1)

    def gradcam(
        self, feature_map: NDArray[np.float32], label_indices: list[int], activation: Literal["softmax", "sigmoid"]
    ) -> NDArray[np.float64]:
        """Grad-CAM [h, w] of the log odds of a finding's score, for one map [c, h, w] (Selvaraju 2017, eq. 1, 2)."""
        leaf = torch.from_numpy(feature_map[None]).double().requires_grad_()
        logits = self(leaf)[0]
        if activation == "sigmoid":
            target = logits[label_indices[0]]
        else:
            others = [index for index in range(len(logits)) if index not in label_indices]
            target = torch.logsumexp(logits[label_indices], 0) - torch.logsumexp(logits[others], 0)
        (gradient,) = torch.autograd.grad(target, leaf)
        weight = gradient[0].mean(dim=(1, 2))
        heat = torch.relu((weight[:, None, None] * leaf[0]).sum(dim=0))
        return np.asarray(heat.detach().numpy(), dtype=np.float64)


def _ints(value: Any) -> list[int]:
    return [int(each) for each in value.reshape(-1)]


def _gemm(node: onnx.NodeProto, a: Values, x: list[Any]) -> Tensor:
    first = x[0].T if a.get("transA") else x[0]
    second = x[1].T if a.get("transB") else x[1]
    product = a.get("alpha", 1.0) * (first @ second)
    return product if len(x) < 3 or x[2] is None else product + a.get("beta", 1.0) * x[2]


def _conv(node: onnx.NodeProto, a: Values, x: list[Any]) -> Tensor:
    count = x[1].ndim - 2
    pads = a.get("pads", [0] * 2 * count)
    sides = [each for axis in reversed(range(count)) for each in (pads[axis], pads[axis + count])]
    function = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[count]
    bias = x[2] if len(x) > 2 else None
    strides, dilations = a.get("strides", [1] * count), a.get("dilations", [1] * count)
    return function(F.pad(x[0], sides), x[1], bias, tuple(strides), 0, tuple(dilations), a.get("group", 1))


def _batch_norm(node: onnx.NodeProto, a: Values, x: list[Any]) -> Tensor:
    return F.batch_norm(x[0], x[3], x[4], x[1], x[2], eps=a.get("epsilon", 1e-5))


def _layer_norm(node: onnx.NodeProto, a: Values, x: list[Any]) -> Tensor:
    shape = x[0].shape[a.get("axis", -1) % x[0].ndim :]
    return F.layer_norm(x[0], shape, x[1], x[2] if len(x) > 2 else None, a.get("epsilon", 1e-5))


def _clip(node: onnx.NodeProto, a: Values, x: list[Any]) -> Tensor:
    low, high = (x[place] if len(x) > place else None for place in (1, 2))
    return torch.clamp(x[0], None if low is None else low.item(), None if high is None else high.item())


def _reduction(function: Callable[[Tensor, list[int], bool], Tensor]) -> Callable[..., Tensor]:
    def run(node: onnx.NodeProto, a: Values, x: list[Any]) -> Tensor:
        axes = _ints(x[1]) if len(x) > 1 and x[1] is not None else list(a.get("axes", range(x[0].ndim)))
        return function(x[0], axes, bool(a.get("keepdims", 1)))

    return run


def _pool(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(node: onnx.NodeProto, a: Values, x: list[Any]) -> Tensor:
        if any(a.get("pads", [0])):
            raise ImportRefusedError(f"{node.op_type} pads")
        kernel = a["kernel_shape"]
        return function(x[0], kernel, a.get("strides", [1] * len(kernel)))

    return run


def _reshape(node: onnx.NodeProto, a: Values, x: list[Any]) -> Tensor:
    target = _ints(x[1])
    shape = [x[0].shape[axis] if side == 0 and not a.get("allowzero") else side for axis, side in enumerate(target)]
    return x[0].reshape(shape)


def _flatten(node: onnx.NodeProto, a: Values, x: list[Any]) -> Tensor:
    axis = a.get("axis", 1) % x[0].ndim
    return x[0].reshape(int(np.prod(x[0].shape[:axis])), -1)


def _squeeze(node: onnx.NodeProto, a: Values, x: list[Any]) -> Tensor:
    if len(x) < 2:
        return x[0].squeeze()
    return x[0].squeeze(tuple(_ints(x[1])))


def _unsqueeze(node: onnx.NodeProto, a: Values, x: list[Any]) -> Tensor:
    axes = _ints(x[1])
    for axis in sorted(axis % (x[0].ndim + len(axes)) for axis in axes):
        x[0] = x[0].unsqueeze(axis)
    return x[0]


def _slice(node: onnx.NodeProto, a: Values, x: list[Any]) -> Tensor:
    starts, ends = _ints(x[1]), _ints(x[2])
    axes = _ints(x[3]) if len(x) > 3 and x[3] is not None else list(range(len(starts)))
    index: list[Any] = [slice(None)] * x[0].ndim
    for axis, start, end in zip(axes, starts, ends, strict=True):
        index[axis] = slice(start, end)
    return x[0][tuple(index)]


def _split(node: onnx.NodeProto, a: Values, x: list[Any]) -> tuple[Tensor, ...]:
    axis = a.get("axis", 0)
    if len(x) > 1 and x[1] is not None:
        return tuple(torch.split(x[0], _ints(x[1]), dim=axis))
    return tuple(torch.split(x[0], -(-x[0].shape[axis] // len(node.output)), dim=axis))


def _gather(node: onnx.NodeProto, a: Values, x: list[Any]) -> Tensor:
    axis = a.get("axis", 0)
    index = x[1]
    if index.ndim == 0:
        return x[0].select(axis, int(index))
    return torch.index_select(x[0], axis, index.reshape(-1) % x[0].shape[axis])


def _elementwise(function: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda node, a, x: function(x[0])


def _sum(x: list[Any]) -> Tensor:
    total = x[0]
    for each in x[1:]:
        total = total + each
    return total


def _whole_map(x: Tensor) -> list[int]:
    return list(range(2, x.ndim))


OPERATORS: dict[str, Callable[..., Any]] = {
    "Abs": _elementwise(torch.abs),
    "Add": lambda node, a, x: x[0] + x[1],
    "And": lambda node, a, x: x[0] & x[1],
    "AveragePool": _pool(F.avg_pool2d),
    "BatchNormalization": _batch_norm,
    "Cast": _elementwise(lambda x: x.double()),
    "Clip": _clip,
    "Concat": lambda node, a, x: torch.cat(x, dim=a["axis"]),
    "Conv": _conv,
    "Div": lambda node, a, x: x[0] / x[1],
    "Dropout": _elementwise(lambda x: x),
    "Elu": lambda node, a, x: F.elu(x[0], a.get("alpha", 1.0)),
    "Equal": lambda node, a, x: x[0] == x[1],
    "Erf": _elementwise(torch.erf),
    "Exp": _elementwise(torch.exp),
    "Expand": lambda node, a, x: x[0] * torch.ones(_ints(x[1]), dtype=x[0].dtype),
    "Flatten": _flatten,
    "Gather": _gather,
    "Gelu": lambda node, a, x: F.gelu(x[0], approximate=a.get("approximate", "none")),
    "Gemm": _gemm,
    "GlobalAveragePool": _elementwise(lambda x: x.mean(dim=_whole_map(x), keepdim=True)),
    "GlobalMaxPool": _elementwise(lambda x: x.amax(dim=_whole_map(x), keepdim=True)),
    "Greater": lambda node, a, x: x[0] > x[1],
    "GreaterOrEqual": lambda node, a, x: x[0] >= x[1],
    "HardSigmoid": lambda node, a, x: torch.clamp(a.get("alpha", 0.2) * x[0] + a.get("beta", 0.5), 0, 1),
    "HardSwish": _elementwise(F.hardswish),
    "Identity": _elementwise(lambda x: x),
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda node, a, x: F.leaky_relu(x[0], a.get("alpha", 0.01)),
    "Less": lambda node, a, x: x[0] < x[1],
    "LessOrEqual": lambda node, a, x: x[0] <= x[1],
    "Log": _elementwise(torch.log),
    "LogSoftmax": lambda node, a, x: torch.log_softmax(x[0], a.get("axis", -1)),
    "MatMul": lambda node, a, x: x[0] @ x[1],
    "Max": lambda node, a, x: torch.maximum(x[0], x[1]),
    "MaxPool": _pool(F.max_pool2d),
    "Mean": lambda node, a, x: _sum(x) / len(x),
    "Min": lambda node, a, x: torch.minimum(x[0], x[1]),
    "Mish": _elementwise(F.mish),
    "Mul": lambda node, a, x: x[0] * x[1],
    "Neg": _elementwise(torch.neg),
    "Not": _elementwise(torch.logical_not),
    "Or": lambda node, a, x: x[0] | x[1],
    "PRelu": lambda node, a, x: torch.where(x[0] > 0, x[0], x[0] * x[1]),
    "Pow": lambda node, a, x: x[0] ** x[1],
    "Reciprocal": _elementwise(torch.reciprocal),
    "ReduceL2": _reduction(lambda x, axes, keep: torch.linalg.vector_norm(x, dim=axes, keepdim=keep)),
    "ReduceLogSumExp": _reduction(lambda x, axes, keep: torch.logsumexp(x, axes, keep)),
    "ReduceMax": _reduction(lambda x, axes, keep: x.amax(dim=axes, keepdim=keep)),
    "ReduceMean": _reduction(lambda x, axes, keep: x.mean(dim=axes, keepdim=keep)),
    "ReduceSum": _reduction(lambda x, axes, keep: x.sum(dim=axes, keepdim=keep)),
    "ReduceSumSquare": _reduction(lambda x, axes, keep: (x * x).sum(dim=axes, keepdim=keep)),
    "Relu": _elementwise(torch.relu),
    "Reshape": _reshape,
    "Sigmoid": _elementwise(torch.sigmoid),
    "Sign": _elementwise(torch.sign),
    "Slice": _slice,
    "Softmax": lambda node, a, x: torch.softmax(x[0], a.get("axis", -1)),
    "Softplus": _elementwise(lambda x: torch.logaddexp(x, torch.zeros((), dtype=x.dtype))),
    "Softsign": _elementwise(F.softsign),
    "Split": _split,
    "Sqrt": _elementwise(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": lambda node, a, x: x[0] - x[1],
    "Sum": lambda node, a, x: _sum(x),
    "Tanh": _elementwise(torch.tanh),
    "Transpose": lambda node, a, x: x[0].permute(*a.get("perm", range(x[0].ndim - 1, -1, -1))),
    "Unsqueeze": _unsqueeze,
    "Where": lambda node, a, x: torch.where(x[0], x[1], x[2]),
}
"""Operator -> torch's function, given the node, its attributes and its inputs."""
