"""Networks that people use, with seeded random weights, from their libraries to a checked graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from odd_networks import contract, pictures

from models.errors import ImportRefusedError
from models.importing.network import ImportedNetwork, load_network, make_graph

timm = pytest.importorskip("timm", reason="needs the extra training")
from torchvision import models as torchvision_models  # noqa: E402


def brought_in(source: str, made: Any, folder: Path, side: int) -> tuple[ImportedNetwork, dict[str, np.ndarray], Any]:
    """Import `made` by its name and its weights; returns the graph's outputs for two pictures, and the pictures."""
    torch.save(made.state_dict(), folder / "weights.pth")
    chosen = contract(side)
    loaded = load_network(source, contract=chosen, label_count=2, weights=folder / "weights.pth")
    result = make_graph(loaded, contract=chosen, activation="softmax")
    tensors = pictures(2, side)
    session = onnxruntime.InferenceSession(
        result.assembled.model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [entry.name for entry in session.get_outputs()]
    return result, dict(zip(names, session.run(names, {"image": tensors.numpy()}), strict=True)), tensors


def made_by_torchvision(name: str) -> Any:
    torch.manual_seed(1)
    network = getattr(torchvision_models, name)(weights=None, num_classes=2)
    return network.eval()


def feature_map_of(network: Any, name: str, tensors: Any) -> Any:
    """The last map before the pool, by each library's own names."""
    if name == "resnet18":
        layers = (network.conv1, network.bn1, network.relu, network.maxpool)
        layers += (network.layer1, network.layer2, network.layer3, network.layer4)
        return torch.nn.Sequential(*layers)(tensors)
    features = network.features(tensors)
    return torch.relu(features) if name == "densenet121" else features


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "side", "linear", "width"),
    [
        ("resnet18", 96, True, 512),
        ("densenet121", 64, True, 1024),
        ("efficientnet_b0", 96, True, 1280),
        ("mobilenet_v3_small", 96, False, 576),
        ("convnext_tiny", 64, False, 768),
        ("vgg11", 224, False, 512),
    ],
)
def test_torchvision(name: str, side: int, linear: bool, width: int, tmp_path: Path) -> None:
    network = made_by_torchvision(name)
    result, found, tensors = brought_in(f"torchvision:{name}", network, tmp_path, side)
    with torch.no_grad():
        expected = network(tensors).numpy()
        features = feature_map_of(network, name, tensors).numpy()
    scale = max(float(np.abs(expected).max()), 1e-9)
    np.testing.assert_allclose(found["logits"], expected, atol=1e-4 * scale)
    assert result.assembled.linear_head == linear
    assert found["feature_map"].shape == features.shape
    assert features.shape[1] == width
    np.testing.assert_allclose(found["feature_map"], features, atol=1e-4 * float(np.abs(features).max()))
    np.testing.assert_allclose(found["embedding"], features.mean((2, 3)), atol=1e-4 * float(np.abs(features).max()))
    names = [check.name for check in result.checks]
    assert "gradient against torch's autograd of the network" in names


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["avg", "catavgmax"])
def test_timm(pool: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    network = timm.create_model("resnet18", num_classes=2, global_pool=pool).eval()
    result, found, tensors = brought_in(f"timm:resnet18,global_pool={pool}", network, tmp_path, 96)
    with torch.no_grad():
        features = network.forward_features(tensors)
        expected = network.forward_head(features).numpy()
    np.testing.assert_allclose(found["logits"], expected, atol=1e-4)
    np.testing.assert_allclose(found["feature_map"], features.numpy(), atol=1e-4 * float(features.abs().max()))
    assert result.assembled.linear_head == (pool == "avg")


@pytest.mark.slow
def test_a_vision_transformer_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(1)
    network = timm.create_model("vit_tiny_patch16_224", num_classes=2)
    with pytest.raises(ImportRefusedError, match=r"no spatial feature map before pooling.*12 attention layers"):
        brought_in("timm:vit_tiny_patch16_224", network, tmp_path, 224)
