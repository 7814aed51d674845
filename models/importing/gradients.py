"""The gradient of each logit with respect to the last feature map, as ONNX nodes: reverse differentiation of the head.

A cotangent has one axis more than the value that it belongs to, K, in front: it holds all K gradients at once. What
does not depend on the label is kept apart as a factor without that axis, so that K copies of a feature map are rarely
needed. The rule of each operator is in :mod:`models.importing.gradient_rules`; an operator without one is refused by
name.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from models.errors import ImportRefusedError
from models.importing.graph import GraphView, add_constant

LARGEST_GRADIENT_BYTES = 64_000_000
"""Of one gradient inside the head, for all labels of one picture."""
_FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Cotangent:
    """``name`` times ``factor``.

    Attributes
    ----------
    name
        [K, N, ...]; length 1 along `spread`, where every element is the same.
    spread
        Axes counted from the end (-1 is the last).
    factor
        Of the value's own shape, or repeated to it; None is 1.
    """

    name: str
    spread: frozenset[int] = frozenset()
    factor: str | None = None


class GradientBuilder:
    """Adds nodes that differentiate `head_nodes` to a graph.

    Parameters
    ----------
    view
        Of the whole graph, its values named as in the bundle.
    shapes
        Shapes of every value of the head that depends on the picture, without the batch: () for [N].
    label_count
        K.
    """

    def __init__(self, view: GraphView, shapes: dict[str, tuple[int, ...]], label_count: int) -> None:
        self.view = view
        self.shapes = shapes
        self.label_count = label_count
        self.nodes: list[onnx.NodeProto] = []
        self._cotangents: dict[str, list[Cotangent]] = {}
        self._constants = 0

    # What rules use ------------------------------------------------------------------------------------------------
    def emit(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; returns its output."""
        name = f"gradient.{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    def number(self, value: float | NDArray[Any]) -> str:
        """A float32 constant."""
        self._constants += 1
        return add_constant(self.view.graph, f"gradient.constant.{self._constants}", np.asarray(value, np.float32))

    def integers(self, values: Any) -> str:
        """An int64 constant [n]."""
        self._constants += 1
        array = np.atleast_1d(np.asarray(values, dtype=np.int64))
        return add_constant(self.view.graph, f"gradient.constant.{self._constants}", array)

    def reduce(self, operator: str, name: str, axes: list[int], *, keep: bool) -> str:
        """A reduction in the form that the graph's opset wants."""
        if operator == "ReduceSum" or self.view.opset >= 18:
            return self.emit(operator, name, self.integers(axes), keepdims=int(keep))
        return self.emit(operator, name, axes=axes, keepdims=int(keep))

    def depends(self, name: str) -> bool:
        """Whether a value depends on the feature map."""
        return name in self.shapes

    def full_shape(self, name: str) -> tuple[int, ...]:
        """Shape of a value with -1 for the batch; a constant's own shape."""
        return (-1, *self.shapes[name]) if self.depends(name) else self.view.constant(name).shape

    def as_float(self, condition: str) -> str:
        """0 and 1 of a condition."""
        return self.emit("Cast", condition, to=TensorProto.FLOAT)

    def scaled(self, cotangent: Cotangent, factor: str) -> Cotangent:
        """Times something of the value's own shape."""
        both = factor if cotangent.factor is None else self.emit("Mul", cotangent.factor, factor)
        return replace(cotangent, factor=both)

    def times(self, cotangent: Cotangent, number: float) -> Cotangent:
        """Times a number."""
        return replace(cotangent, name=self.emit("Mul", cotangent.name, self.number(number)))

    def whole(self, cotangent: Cotangent, value: str) -> str:
        """[K, N, ...], multiplied out and of full length along each axis.

        Raises
        ------
        ImportRefusedError
            That would take more memory than is sensible.
        """
        self._refuse_large(value)
        name = cotangent.name
        if cotangent.factor is not None:
            name = self.emit("Mul", name, cotangent.factor)
        if cotangent.spread:
            # The factor may be a constant of fewer axes; where it is not, this does nothing.
            lengths = [1] * (len(self.shapes[value]) + 2)
            for axis in cotangent.spread:
                lengths[axis] = self.full_shape(value)[axis]
            name = self.emit("Expand", name, self.integers(lengths))
        return name

    def _refuse_large(self, value: str) -> None:
        size_bytes = _FLOAT_BYTES * self.label_count * int(np.prod(self.shapes[value], dtype=np.int64))
        if size_bytes > LARGEST_GRADIENT_BYTES:
            raise ImportRefusedError(
                f"the gradient of {self.label_count} labels with respect to {value} {list(self.shapes[value])} takes "
                f"{size_bytes / 1e6:.0f} MB a picture; at most {LARGEST_GRADIENT_BYTES / 1e6:.0f} MB are allowed. "
                "Export the network with fewer labels"
            )

    def give(self, name: str, cotangent: Cotangent) -> None:
        """Add to the cotangent of an input; nothing where it does not depend on the feature map."""
        if name and self.depends(name):
            self._cotangents.setdefault(name, []).append(cotangent)

    def give_whole(self, name: str, gradient: str) -> None:
        """The same with [K, N, ...] as it is."""
        self.give(name, Cotangent(name=gradient))

    def reshaped(self, gradient: str, shape: tuple[int, ...]) -> str:
        """[K, N, ...] of another shape (without the batch)."""
        return self.emit("Reshape", gradient, self.integers([self.label_count, -1, *shape]))

    def folded(self, gradient: str, shape: tuple[int, ...]) -> str:
        """[K, N, ...] as [K * N, ...], for operators that know one batch axis."""
        return self.emit("Reshape", gradient, self.integers([-1, *shape]))

    def unbroadcast(self, gradient: str, value: str, result: str) -> str:
        """Sum a gradient [K, N, ...] of `result` over the axes along which `value` was repeated."""
        rank = len(self.shapes[value]) + 1
        result_rank = len(self.shapes[result]) + 1
        extra = list(range(1, 1 + result_rank - rank))
        if extra:
            raise ImportRefusedError(f"{value} is repeated over the batch, which is not differentiated")
        axes = [
            axis
            for axis in range(-rank + 1, 0)
            if self.full_shape(value)[axis] == 1 and self.full_shape(result)[axis] != 1
        ]
        return self.reduce("ReduceSum", gradient, axes, keep=True) if axes else gradient

    # The walk --------------------------------------------------------------------------------------------------------
    def build(self, head_nodes: list[onnx.NodeProto], logits: str, feature_map: str) -> None:
        """Add the nodes, the last of which gives ``logit_gradients`` [N, K, c].

        Raises
        ------
        ImportRefusedError
            An operator without a rule, or one that is used in a way that has none.
        """
        from models.importing.gradient_rules import RULES

        known = sorted({node.op_type for node in head_nodes if node.op_type not in RULES or node.domain})
        if known:
            raise ImportRefusedError(
                f"no gradient is known of {', '.join(known)}, which stand between the last feature map and the logits. "
                f"Known are {', '.join(sorted(RULES))}"
            )
        identity = self.number(np.eye(self.label_count, dtype=np.float32)[:, None, :])
        zeros = self.emit("Mul", logits, self.number(0.0))
        self._cotangents[logits] = [Cotangent(name=self.emit("Add", identity, zeros))]
        for node in reversed(head_nodes):
            for output in node.output:
                if output in self._cotangents:
                    RULES[node.op_type](self, node, output, self.total(output))
        if feature_map not in self._cotangents:
            raise ImportRefusedError("the logits do not depend on the last feature map in a way that has a gradient")
        self._finish(feature_map)

    def total(self, name: str) -> Cotangent:
        """The sum of what the readers of a value gave."""
        parts = self._cotangents[name]
        if len(parts) == 1:
            return parts[0]
        first = parts[0]
        if all((part.name, part.spread) == (first.name, first.spread) for part in parts):
            factors = [part.factor or self.number(1.0) for part in parts]
            total = factors[0]
            for factor in factors[1:]:
                total = self.emit("Add", total, factor)
            merged = replace(first, factor=total)
        else:
            sum_name = self.whole(first, name)
            for part in parts[1:]:
                sum_name = self.emit("Add", sum_name, self.whole(part, name))
            merged = Cotangent(name=sum_name)
        self._cotangents[name] = [merged]
        return merged

    def _finish(self, feature_map: str) -> None:
        """Sum over positions, [K, N, c, h, w] to [N, K, c], what each reader of the map gave by itself."""
        sums = [self._summed(feature_map, part) for part in self._cotangents[feature_map]]
        total = sums[0]
        for each in sums[1:]:
            total = self.emit("Add", total, each)
        self.nodes.append(
            helper.make_node("Transpose", [total], ["logit_gradients"], name="logit_gradients", perm=[1, 0, 2])
        )

    def _summed(self, feature_map: str, cotangent: Cotangent) -> str:
        """[K, N, c]; where the gradient is even, only the factor is summed, which no label has a copy of."""
        if not cotangent.spread >= {-1, -2}:
            return self.reduce("ReduceSum", self.whole(cotangent, feature_map), [-2, -1], keep=False)
        small = self.emit("Squeeze", cotangent.name, self.integers([-2, -1]))
        _, rows, columns = self.shapes[feature_map]
        if cotangent.factor is None:
            return self.emit("Mul", small, self.number(float(rows * columns)))
        # A factor may be a constant of fewer axes.
        full = self.emit("Add", cotangent.factor, self.emit("Mul", feature_map, self.number(0.0)))
        return self.emit("Mul", small, self.reduce("ReduceSum", full, [-2, -1], keep=False))
