"""Derivatives of activations, as ONNX nodes: from the builder, the node, its input and its output."""

from __future__ import annotations

import math

import onnx

from models.importing.gradients import GradientBuilder
from models.importing.graph import attributes


def is_positive(b: GradientBuilder, x: str) -> str:
    return b.as_float(b.emit("Greater", x, b.number(0.0)))


def _between(b: GradientBuilder, x: str, low: float, high: float) -> str:
    """1 where `low` < x < `high`."""
    above = b.as_float(b.emit("Greater", x, b.number(low)))
    return b.emit("Mul", above, b.as_float(b.emit("Less", x, b.number(high))))


def leaky_slope(b: GradientBuilder, node: onnx.NodeProto, x: str, y: str) -> str:
    alpha = attributes(node).get("alpha", 0.01)
    return b.emit("Add", b.emit("Mul", is_positive(b, x), b.number(1 - alpha)), b.number(alpha))


def elu_slope(b: GradientBuilder, node: onnx.NodeProto, x: str, y: str) -> str:
    alpha = attributes(node).get("alpha", 1.0)
    below = b.emit("Mul", b.emit("Exp", b.emit("Min", x, b.number(0.0))), b.number(alpha))
    return b.emit("Where", b.emit("Greater", x, b.number(0.0)), b.number(1.0), below)


def sigmoid_slope(b: GradientBuilder, node: onnx.NodeProto, x: str, y: str) -> str:
    return b.emit("Mul", y, b.emit("Sub", b.number(1.0), y))


def tanh_slope(b: GradientBuilder, node: onnx.NodeProto, x: str, y: str) -> str:
    return b.emit("Sub", b.number(1.0), b.emit("Mul", y, y))


def hard_sigmoid_slope(b: GradientBuilder, node: onnx.NodeProto, x: str, y: str) -> str:
    return b.emit("Mul", _between(b, y, 0.0, 1.0), b.number(attributes(node).get("alpha", 0.2)))


def hard_swish_slope(b: GradientBuilder, node: onnx.NodeProto, x: str, y: str) -> str:
    ramp = b.emit("Add", b.emit("Mul", x, b.number(1 / 3)), b.number(0.5))
    above = b.as_float(b.emit("GreaterOrEqual", x, b.number(3.0)))
    return b.emit("Add", b.emit("Mul", _between(b, x, -3.0, 3.0), ramp), above)


def erf_slope(b: GradientBuilder, node: onnx.NodeProto, x: str, y: str) -> str:
    bell = b.emit("Exp", b.emit("Neg", b.emit("Mul", x, x)))
    return b.emit("Mul", bell, b.number(2 / math.sqrt(math.pi)))


def gelu_slope(b: GradientBuilder, node: onnx.NodeProto, x: str, y: str) -> str:
    half, one = b.number(0.5), b.number(1.0)
    if attributes(node).get("approximate", "none") == "tanh":
        root, cubic = math.sqrt(2 / math.pi), 0.044715
        square = b.emit("Mul", x, x)
        inner = b.emit(
            "Mul",
            b.emit("Mul", x, b.number(root)),
            b.emit("Add", one, b.emit("Mul", square, b.number(cubic))),
        )
        tanh = b.emit("Tanh", inner)
        rise = b.emit("Add", b.number(root), b.emit("Mul", square, b.number(3 * root * cubic)))
        bend = b.emit("Mul", b.emit("Mul", x, b.emit("Sub", one, b.emit("Mul", tanh, tanh))), rise)
        return b.emit("Mul", half, b.emit("Add", b.emit("Add", one, tanh), bend))
    share = b.emit("Mul", half, b.emit("Add", one, b.emit("Erf", b.emit("Mul", x, b.number(math.sqrt(0.5))))))
    bell = b.emit("Exp", b.emit("Mul", b.emit("Mul", x, x), b.number(-0.5)))
    return b.emit("Add", share, b.emit("Mul", b.emit("Mul", x, bell), b.number(1 / math.sqrt(2 * math.pi))))


def mish_slope(b: GradientBuilder, node: onnx.NodeProto, x: str, y: str) -> str:
    tanh = b.emit("Tanh", b.emit("Softplus", x))
    bend = b.emit("Mul", b.emit("Mul", x, b.emit("Sigmoid", x)), tanh_slope(b, node, x, tanh))
    return b.emit("Add", tanh, bend)


def softsign_slope(b: GradientBuilder, node: onnx.NodeProto, x: str, y: str) -> str:
    width = b.emit("Add", b.emit("Abs", x), b.number(1.0))
    return b.emit("Reciprocal", b.emit("Mul", width, width))
