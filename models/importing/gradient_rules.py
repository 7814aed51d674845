"""How the gradient passes back through each ONNX operator that a head may be made of.

A rule gets the builder, the node, one of its outputs with that output's cotangent, and gives each input its share. The
formulae are the usual ones; they are checked at each import against torch's autograd and finite differences.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

from models.errors import ImportRefusedError
from models.importing.activation_slopes import (
    elu_slope,
    erf_slope,
    gelu_slope,
    hard_sigmoid_slope,
    hard_swish_slope,
    is_positive,
    leaky_slope,
    mish_slope,
    sigmoid_slope,
    softsign_slope,
    tanh_slope,
)
from models.importing.gradients import Cotangent, GradientBuilder
from models.importing.graph import attributes

Rule = Callable[[GradientBuilder, onnx.NodeProto, str, Cotangent], None]


def _refuse(node: onnx.NodeProto, why: str) -> ImportRefusedError:
    return ImportRefusedError(f"no gradient of {node.op_type} ({node.output[0]}): {why}")


# Element by element --------------------------------------------------------------------------------------------------
def _elementwise(slope: Callable[[GradientBuilder, onnx.NodeProto, str, str], str]) -> Rule:
    """Rule of a function of one value, from its derivative (given input and output)."""

    def rule(b: GradientBuilder, node: onnx.NodeProto, output: str, cotangent: Cotangent) -> None:
        b.give(node.input[0], b.scaled(cotangent, slope(b, node, node.input[0], output)))

    return rule


def _clip_rule(b: GradientBuilder, node: onnx.NodeProto, output: str, cotangent: Cotangent) -> None:
    factor = b.number(1.0)
    for place, operator in ((1, "GreaterOrEqual"), (2, "LessOrEqual")):
        if len(node.input) > place and node.input[place]:
            if b.depends(node.input[place]):
                raise _refuse(node, "its limit is no constant")
            inside = b.as_float(b.emit(operator, node.input[0], node.input[place]))
            factor = b.emit("Mul", factor, inside)
    b.give(node.input[0], b.scaled(cotangent, factor))


def _prelu_rule(b: GradientBuilder, node: onnx.NodeProto, output: str, cotangent: Cotangent) -> None:
    x, slope = node.input
    if b.depends(slope):
        raise _refuse(node, "its slope is no constant")
    factor = b.emit("Where", b.emit("Greater", x, b.number(0.0)), b.number(1.0), slope)
    b.give(x, b.scaled(cotangent, factor))


def _passing(b: GradientBuilder, node: onnx.NodeProto, output: str, cotangent: Cotangent) -> None:
    b.give(node.input[0], cotangent)


def _cast(b: GradientBuilder, node: onnx.NodeProto, output: str, cotangent: Cotangent) -> None:
    if attributes(node)["to"] != onnx.TensorProto.FLOAT:
        raise _refuse(node, "it leaves float32")
    b.give(node.input[0], cotangent)


# Two values ----------------------------------------------------------------------------------------------------------
def _same_shape(b: GradientBuilder, name: str, output: str) -> bool:
    return b.full_shape(name) == b.full_shape(output)


def _share(b: GradientBuilder, name: str, output: str, cotangent: Cotangent, factor: str | None) -> None:
    """Give `name` the cotangent times a factor, summed where it was repeated."""
    if not b.depends(name):
        return
    scaled = cotangent if factor is None else b.scaled(cotangent, factor)
    if _same_shape(b, name, output):
        b.give(name, scaled)
    else:
        b.give_whole(name, b.unbroadcast(b.whole(scaled, output), name, output))


def _add(b: GradientBuilder, node: onnx.NodeProto, output: str, cotangent: Cotangent) -> None:
    for name in node.input:
        _share(b, name, output, cotangent, None)


def _mean(b: GradientBuilder, node: onnx.NodeProto, output: str, cotangent: Cotangent) -> None:
    _add(b, node, output, b.times(cotangent, 1 / len(node.input)))


def _sub(b: GradientBuilder, node: onnx.NodeProto, output: str, cotangent: Cotangent) -> None:
    _share(b, node.input[0], output, cotangent, None)
    _share(b, node.input[1], output, cotangent, b.number(-1.0))


def _mul(b: GradientBuilder, node: onnx.NodeProto, output: str, cotangent: Cotangent) -> None:
    first, second = node.input
    _share(b, first, output, cotangent, second)
    _share(b, second, output, cotangent, first)


def _div(b: GradientBuilder, node: onnx.NodeProto, output: str, cotangent: Cotangent) -> None:
    above, below = node.input
    inverse = b.emit("Reciprocal", below)
    _share(b, above, output, cotangent, inverse)
    if b.depends(below):
        _share(b, below, output, cotangent, b.emit("Neg", b.emit("Mul", output, inverse)))


def _pow(b: GradientBuilder, node: onnx.NodeProto, output: str, cotangent: Cotangent) -> None:
    base, power = node.input
    if b.depends(power):
        raise _refuse(node, "its exponent is no constant")
    if not _same_shape(b, base, output):
        raise _refuse(node, "its base is repeated")
    exponent = np.asarray(b.view.constant(power), dtype=np.float32)
    slope = b.emit("Mul", b.emit("Pow", base, b.number(exponent - 1)), b.number(exponent))
    b.give(base, b.scaled(cotangent, slope))


def _extreme(operator: str) -> Rule:
    """Max or Min of two values; where they are equal each gets half."""

    def rule(b: GradientBuilder, node: onnx.NodeProto, output: str, cotangent: Cotangent) -> None:
        if len(node.input) != 2:
            raise _refuse(node, f"it has {len(node.input)} inputs")
        first, second = node.input
        wins = b.as_float(b.emit("Greater" if operator == "Max" else "Less", first, second))
        ties = b.emit("Mul", b.as_float(b.emit("Equal", first, second)), b.number(0.5))
        share = b.emit("Add", wins, ties)
        _share(b, first, output, cotangent, share)
        _share(b, second, output, cotangent, b.emit("Sub", b.number(1.0), share))

    return rule


def _nothing(b: GradientBuilder, node: onnx.NodeProto, output: str, cotangent: Cotangent) -> None:
    """Steps: their gradient is zero wherever there is one."""


def _where(b: GradientBuilder, node: onnx.NodeProto, output: str, cotangent: Cotangent) -> None:
    condition, yes, no = node.input
    chosen = b.as_float(condition)
    _share(b, yes, output, cotangent, chosen)
    _share(b, no, output, cotangent, b.emit("Sub", b.number(1.0), chosen))


# Linear layers -------------------------------------------------------------------------------------------------------
def _transposed(b: GradientBuilder, name: str) -> str:
    """A matrix, or a stack of them, with its last two axes exchanged."""
    rank = len(b.full_shape(name))
    return b.emit("Transpose", name, perm=[*range(rank - 2), rank - 1, rank - 2])


def _gemm(b: GradientBuilder, node: onnx.NodeProto, output: str, cotangent: Cotangent) -> None:
    values = attributes(node)
    first, second = node.input[:2]
    if values.get("transA", 0) or b.depends(second):
        raise _refuse(node, "its second matrix is no constant, or its first is turned")
    gradient = b.whole(cotangent, output)
    if b.depends(first):
        matrix = second if values.get("transB", 0) else _transposed(b, second)
        product = b.emit("MatMul", gradient, matrix)
        alpha = values.get("alpha", 1.0)
        b.give_whole(first, product if alpha == 1.0 else b.emit("Mul", product, b.number(alpha)))
    if len(node.input) > 2 and b.depends(node.input[2]):
        beta = b.emit("Mul", gradient, b.number(values.get("beta", 1.0)))
        b.give_whole(node.input[2], b.unbroadcast(beta, node.input[2], output))


def _matmul(b: GradientBuilder, node: onnx.NodeProto, output: str, cotangent: Cotangent) -> None:
    first, second = node.input
    if len(b.full_shape(first)) < 2 or len(b.full_shape(second)) < 2:
        raise _refuse(node, "one side is a vector")
    gradient = b.whole(cotangent, output)
    if b.depends(first):
        product = b.emit("MatMul", gradient, _transposed(b, second))
        b.give_whole(first, _summed_to(b, product, first, output))
    if b.depends(second):
        product = b.emit("MatMul", _transposed(b, first), gradient)
        b.give_whole(second, _summed_to(b, product, second, output))


def _summed_to(b: GradientBuilder, product: str, name: str, output: str) -> str:
    """Sum over axes before the matrices along which `name` was repeated."""
    wanted, found = b.full_shape(name), b.full_shape(output)
    if len(wanted) != len(found):
        raise ImportRefusedError(f"{name} is repeated over the batch, which is not differentiated")
    axes = [axis for axis in range(-len(wanted) + 1, -2) if wanted[axis] == 1 and found[axis] != 1]
    return b.reduce("ReduceSum", product, axes, keep=True) if axes else product


def _conv(b: GradientBuilder, node: onnx.NodeProto, output: str, cotangent: Cotangent) -> None:
    values = attributes(node)
    x, kernel = node.input[:2]
    if not b.depends(x) or b.depends(kernel) or values.get("auto_pad", "NOTSET") != "NOTSET":
        raise _refuse(node, "its kernel is no constant, or its padding is automatic")
    channels, *sides = b.shapes[x]
    out_sides = b.shapes[output][1:]
    size = b.view.constant(kernel).shape[2:]
    count = len(size)
    strides, dilations = (values.get(name, [1] * count) for name in ("strides", "dilations"))
    pads = values.get("pads", [0] * 2 * count)
    reached = [
        (out - 1) * stride + dilation * (side - 1) + 1 - pads[axis] - pads[axis + count]
        for axis, (out, stride, dilation, side) in enumerate(zip(out_sides, strides, dilations, size, strict=True))
    ]
    left_over = [side - end for side, end in zip(sides, reached, strict=True)]
    folded = b.folded(b.whole(cotangent, output), b.shapes[output])
    back = b.emit(
        "ConvTranspose",
        folded,
        kernel,
        group=values.get("group", 1),
        strides=strides,
        dilations=dilations,
        pads=pads,
        output_padding=left_over,
    )
    b.give_whole(x, b.reshaped(back, (channels, *sides)))


def _batch_normalization(b: GradientBuilder, node: onnx.NodeProto, output: str, cotangent: Cotangent) -> None:
    x, scale, _, _, variance = node.input
    if b.depends(scale) or attributes(node).get("training_mode", 0):
        raise _refuse(node, "its statistics are not constants")
    gain = b.view.constant(scale) / np.sqrt(b.view.constant(variance) + attributes(node).get("epsilon", 1e-5))
    rank = len(b.shapes[x])
    b.give(x, b.scaled(cotangent, b.number(gain.reshape(-1, *[1] * (rank - 1)))))


def _layer_normalization(b: GradientBuilder, node: onnx.NodeProto, output: str, cotangent: Cotangent) -> None:
    if output != node.output[0] or b.depends(node.input[1]):
        raise _refuse(node, "its scale is no constant, or its statistics are read")
    values, x = attributes(node), node.input[0]
    rank = len(b.shapes[x]) + 1
    axes = list(range(values.get("axis", -1) % rank - rank, 0))
    centred = b.emit("Sub", x, b.reduce("ReduceMean", x, axes, keep=True))
    spread = b.reduce("ReduceMean", b.emit("Mul", centred, centred), axes, keep=True)
    inverse = b.emit("Reciprocal", b.emit("Sqrt", b.emit("Add", spread, b.number(values.get("epsilon", 1e-5)))))
    normal = b.emit("Mul", centred, inverse)
    gradient = b.emit("Mul", b.whole(cotangent, output), node.input[1])
    level = b.reduce("ReduceMean", gradient, axes, keep=True)
    along = b.reduce("ReduceMean", b.emit("Mul", gradient, normal), axes, keep=True)
    rest = b.emit("Sub", b.emit("Sub", gradient, level), b.emit("Mul", normal, along))
    b.give_whole(x, b.emit("Mul", rest, inverse))


def _softmax(b: GradientBuilder, node: onnx.NodeProto, output: str, cotangent: Cotangent) -> None:
    axis = _axis_from_end(b, node, output, -1)
    weighted = b.emit("Mul", b.whole(cotangent, output), output)
    total = b.reduce("ReduceSum", weighted, [axis], keep=True)
    b.give_whole(node.input[0], b.emit("Sub", weighted, b.emit("Mul", output, total)))


def _log_softmax(b: GradientBuilder, node: onnx.NodeProto, output: str, cotangent: Cotangent) -> None:
    axis = _axis_from_end(b, node, output, -1)
    gradient = b.whole(cotangent, output)
    total = b.reduce("ReduceSum", gradient, [axis], keep=True)
    b.give_whole(node.input[0], b.emit("Sub", gradient, b.emit("Mul", b.emit("Exp", output), total)))


def _axis_from_end(b: GradientBuilder, node: onnx.NodeProto, name: str, default: int) -> int:
    rank = len(b.shapes[name]) + 1
    axis = int(attributes(node).get("axis", default)) % rank - rank
    if axis == -rank:
        raise _refuse(node, "it goes over the batch")
    return axis


# Pools and reductions ------------------------------------------------------------------------------------------------
def _global_average(b: GradientBuilder, node: onnx.NodeProto, output: str, cotangent: Cotangent) -> None:
    x = node.input[0]
    axes = list(range(-len(b.shapes[x]) + 1, 0))
    name = b.whole(b.times(cotangent, 1 / _count(b, x, axes)), output)
    b.give(x, Cotangent(name=name, spread=frozenset(axes)))


def _global_maximum(b: GradientBuilder, node: onnx.NodeProto, output: str, cotangent: Cotangent) -> None:
    x = node.input[0]
    axes = list(range(-len(b.shapes[x]) + 1, 0))
    share = _share_of_maximum(b, x, output, axes)
    b.give(x, Cotangent(name=b.whole(cotangent, output), spread=frozenset(axes), factor=share))


def _count(b: GradientBuilder, x: str, axes: list[int]) -> int:
    return int(np.prod([b.full_shape(x)[axis] for axis in axes], dtype=np.int64))


def _share_of_maximum(b: GradientBuilder, x: str, kept: str, axes: list[int]) -> str:
    """1 at the maximum, divided among equal ones."""
    at = b.as_float(b.emit("Equal", x, kept))
    return b.emit("Div", at, b.reduce("ReduceSum", at, axes, keep=True))


def _reduction(operator: str) -> Rule:
    def rule(b: GradientBuilder, node: onnx.NodeProto, output: str, cotangent: Cotangent) -> None:
        from models.importing.anatomy import reduced_axes

        x = node.input[0]
        rank = len(b.shapes[x]) + 1
        found = reduced_axes(b.view, node, rank)
        if found is None or 0 in found:
            raise _refuse(node, "it goes over the batch, or its axes are no constant")
        axes = sorted(axis - rank for axis in found)
        keep = bool(attributes(node).get("keepdims", 1))
        kept, small = output, Cotangent(name=b.whole(cotangent, output))
        if not keep:
            kept = b.emit("Unsqueeze", output, b.integers([axis + rank for axis in axes]))
            small = Cotangent(name=b.emit("Unsqueeze", small.name, b.integers([axis + rank + 1 for axis in axes])))
        spread = frozenset(axes)
        if operator == "ReduceMean":
            b.give(x, Cotangent(name=b.times(small, 1 / _count(b, x, axes)).name, spread=spread))
        elif operator == "ReduceSum":
            b.give(x, Cotangent(name=small.name, spread=spread))
        elif operator == "ReduceMax":
            b.give(x, Cotangent(name=small.name, spread=spread, factor=_share_of_maximum(b, x, kept, axes)))
        elif operator == "ReduceL2":
            b.give(x, Cotangent(name=small.name, spread=spread, factor=b.emit("Div", x, kept)))
        elif operator == "ReduceSumSquare":
            b.give(x, Cotangent(name=small.name, spread=spread, factor=b.emit("Mul", x, b.number(2.0))))
        else:
            share = b.emit("Exp", b.emit("Sub", x, kept))
            b.give(x, Cotangent(name=small.name, spread=spread, factor=share))

    return rule


def _average_pool(b: GradientBuilder, node: onnx.NodeProto, output: str, cotangent: Cotangent) -> None:
    values, x = attributes(node), node.input[0]
    channels, *sides = b.shapes[x]
    out_sides, kernel = b.shapes[output][1:], values["kernel_shape"]
    strides = values.get("strides", [1] * len(kernel))
    if any(values.get("pads", [0])) or values.get("auto_pad", "NOTSET") not in {"NOTSET", "VALID"}:
        raise _refuse(node, "it pads")
    if values.get("ceil_mode", 0) or any(each != 1 for each in values.get("dilations", [1])):
        raise _refuse(node, "it rounds up or skips")
    weight = b.number(np.full((channels, 1, *kernel), 1 / math.prod(kernel), dtype=np.float32))
    left_over = [
        side - ((out - 1) * stride + size)
        for side, out, stride, size in zip(sides, out_sides, strides, kernel, strict=True)
    ]
    if any(rest >= stride for rest, stride in zip(left_over, strides, strict=True)):
        left_over_pads: list[int] | None = left_over
    else:
        left_over_pads = None
    folded = b.folded(b.whole(cotangent, output), b.shapes[output])
    back = b.emit(
        "ConvTranspose",
        folded,
        weight,
        group=channels,
        strides=strides,
        **({} if left_over_pads is not None else {"output_padding": left_over}),
    )
    if left_over_pads is not None:
        back = b.emit("Pad", back, b.integers([0, 0, *[0] * len(sides), 0, 0, *left_over_pads]))
    b.give_whole(x, b.reshaped(back, (channels, *sides)))


def _max_pool(b: GradientBuilder, node: onnx.NodeProto, output: str, cotangent: Cotangent) -> None:
    values, x = attributes(node), node.input[0]
    if list(values["kernel_shape"]) != list(b.shapes[x][1:]) or any(values.get("pads", [0])):
        raise _refuse(node, "only a maximum over the whole map has one here")
    _global_maximum(b, node, output, cotangent)


# What moves values ---------------------------------------------------------------------------------------------------
def _reshape(b: GradientBuilder, node: onnx.NodeProto, output: str, cotangent: Cotangent) -> None:
    b.give_whole(node.input[0], b.reshaped(b.whole(cotangent, output), b.shapes[node.input[0]]))


def _transpose(b: GradientBuilder, node: onnx.NodeProto, output: str, cotangent: Cotangent) -> None:
    rank = len(b.shapes[output]) + 1
    perm = list(attributes(node).get("perm", range(rank - 1, -1, -1)))
    if perm[0] != 0:
        raise _refuse(node, "it moves the batch")
    inverse = [perm.index(axis) for axis in range(rank)]
    turned = [0, *(axis + 1 for axis in inverse)]
    if cotangent.factor is not None:
        b.give_whole(node.input[0], b.emit("Transpose", b.whole(cotangent, output), perm=turned))
        return
    spread = frozenset(perm[axis + rank] - rank for axis in cotangent.spread)
    b.give(node.input[0], Cotangent(name=b.emit("Transpose", cotangent.name, perm=turned), spread=spread))


def _concat(b: GradientBuilder, node: onnx.NodeProto, output: str, cotangent: Cotangent) -> None:
    axis = _axis_from_end(b, node, output, 1)
    gradient, start = b.whole(cotangent, output), 0
    for name in node.input:
        length = int(b.full_shape(name)[axis])
        if b.depends(name):
            bounds = [b.integers([start]), b.integers([start + length]), b.integers([axis])]
            b.give_whole(name, b.emit("Slice", gradient, *bounds))
        start += length


def _padded(b: GradientBuilder, gradient: str, rank: int, axis: int, before: int, after: int) -> str:
    """[K, N, ...] with zeros before and after along one axis (from the end); `rank` without K."""
    pads = np.zeros((2, rank + 1), dtype=np.int64)
    pads[:, axis] = before, after
    return b.emit("Pad", gradient, b.integers(pads.ravel()))


def _slice(b: GradientBuilder, node: onnx.NodeProto, output: str, cotangent: Cotangent) -> None:
    x = node.input[0]
    shape = b.full_shape(x)
    rest = [b.view.constant(name) if b.view.is_constant(name) else None for name in node.input[1:] if name]
    if any(each is None for each in rest):
        raise _refuse(node, "its bounds are no constants")
    starts, ends, *more = (np.asarray(each).ravel() for each in rest if each is not None)
    axes = more[0] if more else np.arange(len(starts))
    steps = more[1] if len(more) > 1 else np.ones(len(starts), dtype=np.int64)
    gradient = b.whole(cotangent, output)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        place = int(axis) % len(shape)
        if place == 0 or step != 1:
            raise _refuse(node, "it cuts the batch, or skips")
        low, high, _ = slice(int(start), int(end)).indices(shape[place])
        gradient = _padded(b, gradient, len(shape), place - len(shape), low, shape[place] - high)
    b.give_whole(x, gradient)


def _gather(b: GradientBuilder, node: onnx.NodeProto, output: str, cotangent: Cotangent) -> None:
    x, indices = node.input
    if not b.depends(x) or not b.view.is_constant(indices) or b.view.constant(indices).size != 1:
        raise _refuse(node, "only one constant position has one here")
    position = b.view.constant(indices)
    shape = b.full_shape(x)
    axis = int(attributes(node).get("axis", 0)) % len(shape)
    if axis == 0 or position.ndim > 1:
        raise _refuse(node, "it picks from the batch")
    gradient = b.whole(cotangent, output)
    if position.ndim == 0:
        gradient = b.emit("Unsqueeze", gradient, b.integers([axis + 1]))
    place = int(position.ravel()[0]) % shape[axis]
    b.give_whole(x, _padded(b, gradient, len(shape), axis - len(shape), place, shape[axis] - place - 1))


def _split(b: GradientBuilder, node: onnx.NodeProto, output: str, cotangent: Cotangent) -> None:
    axis = _axis_from_end(b, node, node.input[0], 0)
    lengths: list[Any] = [int(b.full_shape(name)[axis]) for name in node.output]
    place = list(node.output).index(output)
    before, after = sum(lengths[:place]), sum(lengths[place + 1 :])
    rank = len(b.shapes[node.input[0]]) + 1
    b.give_whole(node.input[0], _padded(b, b.whole(cotangent, output), rank, axis, before, after))


def _expand(b: GradientBuilder, node: onnx.NodeProto, output: str, cotangent: Cotangent) -> None:
    b.give_whole(node.input[0], b.unbroadcast(b.whole(cotangent, output), node.input[0], output))


RULES: dict[str, Rule] = {
    "Abs": _elementwise(lambda b, node, x, y: b.emit("Sign", x)),
    "Add": _add,
    "And": _nothing,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_normalization,
    "Cast": _cast,
    "Clip": _clip_rule,
    "Concat": _concat,
    "Conv": _conv,
    "Div": _div,
    "Dropout": _passing,
    "Elu": _elementwise(elu_slope),
    "Equal": _nothing,
    "Erf": _elementwise(erf_slope),
    "Exp": _elementwise(lambda b, node, x, y: y),
    "Expand": _expand,
    "Flatten": _reshape,
    "Gather": _gather,
    "Gelu": _elementwise(gelu_slope),
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average,
    "GlobalMaxPool": _global_maximum,
    "Greater": _nothing,
    "GreaterOrEqual": _nothing,
    "HardSigmoid": _elementwise(hard_sigmoid_slope),
    "HardSwish": _elementwise(hard_swish_slope),
    "Identity": _passing,
    "LayerNormalization": _layer_normalization,
    "LeakyRelu": _elementwise(leaky_slope),
    "Less": _nothing,
    "LessOrEqual": _nothing,
    "Log": _elementwise(lambda b, node, x, y: b.emit("Reciprocal", x)),
    "LogSoftmax": _log_softmax,
    "MatMul": _matmul,
    "Max": _extreme("Max"),
    "MaxPool": _max_pool,
    "Mean": _mean,
    "Min": _extreme("Min"),
    "Mish": _elementwise(mish_slope),
    "Mul": _mul,
    "Neg": _elementwise(lambda b, node, x, y: b.number(-1.0)),
    "Not": _nothing,
    "Or": _nothing,
    "PRelu": _prelu_rule,
    "Pow": _pow,
    "Reciprocal": _elementwise(lambda b, node, x, y: b.emit("Neg", b.emit("Mul", y, y))),
    "ReduceL2": _reduction("ReduceL2"),
    "ReduceLogSumExp": _reduction("ReduceLogSumExp"),
    "ReduceMax": _reduction("ReduceMax"),
    "ReduceMean": _reduction("ReduceMean"),
    "ReduceSum": _reduction("ReduceSum"),
    "ReduceSumSquare": _reduction("ReduceSumSquare"),
    "Relu": _elementwise(lambda b, node, x, y: is_positive(b, x)),
    "Reshape": _reshape,
    "Sigmoid": _elementwise(sigmoid_slope),
    "Sign": _nothing,
    "Slice": _slice,
    "Softmax": _softmax,
    "Softplus": _elementwise(lambda b, node, x, y: b.emit("Sigmoid", x)),
    "Softsign": _elementwise(softsign_slope),
    "Split": _split,
    "Sqrt": _elementwise(lambda b, node, x, y: b.emit("Div", b.number(0.5), y)),
    "Squeeze": _reshape,
    "Sub": _sub,
    "Sum": _add,
    "Tanh": _elementwise(tanh_slope),
    "Transpose": _transpose,
    "Unsqueeze": _reshape,
    "Where": _where,
}
"""Operator -> its rule."""
