"""A session of a graph that gives its gradients instead of a linear head."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tiny_bundles import tiny_graph, with_gradients, with_renamed_initializer

from models.card import Bundle
from models.errors import BundleError
from models.session import ModelSession
from xai.gradcam import gradcam


def batch(count: int) -> np.ndarray:
    return np.random.default_rng(count).normal(0, 1, (count, 3, 16, 16)).astype(np.float32)


def test_gradients_come_with_each_prediction(make_bundle: Callable[..., Bundle]) -> None:
    general, linear = ModelSession(make_bundle(with_gradients())), ModelSession(make_bundle(tiny_graph()))
    assert general.head_weight is None
    weight = next(each for each in tiny_graph().graph.initializer if each.name == "head.weight")
    tensors = batch(6)
    for one, other in zip(general.run(tensors), linear.run(tensors), strict=True):
        assert one.logit_gradients is not None
        assert other.logit_gradients is None
        assert other.probabilities == pytest.approx(one.probabilities, abs=1e-6)
        np.testing.assert_array_equal(one.logit_gradients, numpy_helper.to_array(weight))
        heats = [
            gradcam(each.feature_map, each.probabilities, weights, (1,), "softmax")
            for each, weights in ((one, one.logit_gradients), (other, linear.head_weight))
        ]
        np.testing.assert_allclose(*heats, atol=1e-6)


@pytest.mark.parametrize(
    ("graph", "words"),
    [
        (with_gradients(labels=1), r"logit_gradients is \[1, 1, 4\]; \[1, 2, 4\] is expected"),
        (with_gradients(factor=np.inf), "not finite"),
        (with_renamed_initializer("head.weight", "w"), "lacks the initializer head.weight, and has no output"),
    ],
    ids=["shape", "infinite", "neither"],
)
def test_graphs_that_do_not_fit_are_refused(
    graph: onnx.ModelProto, words: str, make_bundle: Callable[..., Bundle]
) -> None:
    with pytest.raises(BundleError, match=words):
        ModelSession(make_bundle(graph))
