"""Any head gets logits, embedding, feature map and a gradient that are those of torch's own network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from odd_networks import GENERAL_HEADS, LINEAR_HEADS, contract, network, pictures, traced_onnx
from onnx import numpy_helper

from models.importing.network import ImportedNetwork, load_network, make_graph
from xai.gradcam import gradcam


def imported(module: Any, folder: Path, **export: Any) -> ImportedNetwork:
    path = folder / "source.onnx"
    path.write_bytes(traced_onnx(module, **export))
    loaded = load_network(str(path), contract=contract())
    return make_graph(loaded, contract=contract(), activation=None)


def run(model: onnx.ModelProto, tensors: Any) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert [entry.name for entry in session.get_inputs()] == ["image"]
    names = [entry.name for entry in session.get_outputs()]
    return dict(zip(names, session.run(None, {"image": tensors.numpy()}), strict=True))


def torch_jacobian(module: Any, tensors: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Feature map, logits and [N, K, c] of the module itself, in float64."""
    wide = module.double()
    leaf = wide.body(tensors.double()).detach().requires_grad_()
    logits = wide.head(leaf)
    rows = [
        torch.autograd.grad(logits[:, label].sum(), leaf, retain_graph=True)[0].sum((2, 3))
        for label in range(logits.shape[1])
    ]
    module.float()
    return leaf.detach().numpy(), logits.detach().numpy(), torch.stack(rows, 1).numpy()


def torch_gradcam(module: Any, tensor: Any, label: int) -> np.ndarray:
    """Selvaraju's equations 1 and 2 for the log odds of one label, by autograd alone."""
    leaf = module.double().body(tensor[None].double()).detach().requires_grad_()
    logits = module.head(leaf)[0]
    others = [place for place in range(len(logits)) if place != label]
    (gradient,) = torch.autograd.grad(logits[label] - torch.logsumexp(logits[others], 0), leaf)
    module.float()
    weight = gradient.mean((2, 3))[0]
    return torch.relu((weight[:, None, None] * leaf[0]).sum(0)).detach().numpy()


@pytest.mark.parametrize("name", [*LINEAR_HEADS, *GENERAL_HEADS])
def test_outputs_and_gradient_are_torch_s(name: str, tmp_path: Path) -> None:
    module = network({**LINEAR_HEADS, **GENERAL_HEADS}[name])
    result = imported(module, tmp_path)
    tensors = pictures(5)
    found = run(result.assembled.model, tensors)
    feature_map, logits, jacobian = torch_jacobian(module, tensors)
    np.testing.assert_allclose(found["logits"], logits, atol=2e-5, rtol=1e-4)
    np.testing.assert_allclose(found["feature_map"], feature_map, atol=1e-5)
    np.testing.assert_allclose(found["embedding"], feature_map.mean((2, 3)), atol=1e-5)
    assert result.assembled.linear_head == (name in LINEAR_HEADS)
    if result.assembled.linear_head:
        tensor = next(each for each in result.assembled.model.graph.initializer if each.name == "head.weight")
        gradients = np.broadcast_to(numpy_helper.to_array(tensor), jacobian.shape)
        assert "logit_gradients" not in found
    else:
        gradients = found["logit_gradients"]
    scale = np.abs(jacobian).max()
    assert scale > 0
    assert np.abs(gradients - jacobian).max() <= 1e-4 * scale
    probabilities = np.exp(logits[0] - logits[0].max())
    probabilities /= probabilities.sum()
    expected = torch_gradcam(module, tensors[0], 1)
    heat = gradcam(found["feature_map"][0], probabilities, gradients[0], [1], "softmax")
    np.testing.assert_allclose(heat, expected, atol=1e-4 * max(expected.max(), 1e-6))


@pytest.mark.parametrize("opset", [9, 11, 13, 14, 16, 18, 20])
def test_opsets(opset: int, tmp_path: Path) -> None:
    module = network(GENERAL_HEADS["batch norm and relu"])
    result = imported(module, tmp_path, opset=opset)
    assert result.opset == max(opset, 17)
    tensors = pictures(2)
    np.testing.assert_allclose(
        run(result.assembled.model, tensors)["logits"], module(tensors).detach().numpy(), atol=1e-5
    )


@pytest.mark.parametrize("name", ["one layer", "flattened", "attention pool", "parts", "cosine"])
def test_a_fixed_batch_is_freed(name: str, tmp_path: Path) -> None:
    module = network({**LINEAR_HEADS, **GENERAL_HEADS}[name])
    result = imported(module, tmp_path, batch=1)
    assert any("fixed batch of 1" in remark for remark in result.remarks)
    for count in (1, 4):
        tensors = pictures(count)
        np.testing.assert_allclose(
            run(result.assembled.model, tensors)["logits"], module(tensors).detach().numpy(), atol=2e-5
        )


def test_the_graph_is_small_and_says_nothing_of_its_maker(tmp_path: Path) -> None:
    model = imported(network(GENERAL_HEADS["generalised mean"]), tmp_path).assembled.model
    assert str(tmp_path) not in str(model)
    assert all(not node.doc_string and not node.metadata_props for node in model.graph.node)
    read = {name for node in model.graph.node for name in node.input}
    assert {tensor.name for tensor in model.graph.initializer} <= read
    onnx.checker.check_model(model, full_check=True)


def test_a_gradient_of_many_labels_needs_no_copy_of_the_map_for_each(tmp_path: Path) -> None:
    """What does not depend on the label is kept apart, so that 1000 labels cost little."""
    from torch import nn

    from models.importing.graph import GraphView

    class After(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(12, 1000)

        def forward(self, x: Any) -> Any:
            return self.last(torch.tanh(x).mean((2, 3)) * x.amax((2, 3)))

    result = imported(network(After), tmp_path)
    view = GraphView(result.assembled.model)
    assert not any(node.op_type == "Expand" for node in view.ancestors(["logit_gradients"], stop=["feature_map"]))
