"""Small networks with every kind of head, seeded, and their export to ONNX."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from models.card import PixelContract, Size

SIDE, WIDTH = 48, 12


def contract(side: int = SIDE) -> PixelContract:
    return PixelContract(
        photometric_interpretation="RGB",
        channels=3,
        size=Size(rows=side, columns=side),
        crop="none",
        intensity="eight_bit",
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        reason="Tests.",
    )


class Network(nn.Module):
    """A body that ends in a feature map [N, 12, 12, 12], and a head."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, WIDTH, 3, 2, 1), nn.ReLU()
        )
        self.head = head

    def forward(self, image: Any) -> Any:
        return self.head(self.body(image))


class GeneralisedMean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.power = nn.Parameter(torch.tensor(3.0))

    def forward(self, x: Any) -> Any:
        return F.adaptive_avg_pool2d(x.clamp(min=1e-6).pow(self.power), 1).pow(1 / self.power)


class GatedPool(nn.Module):
    """Each position weighs by a softmax over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Conv2d(WIDTH, 1, 1)
        self.last = nn.Linear(WIDTH, 2)

    def forward(self, x: Any) -> Any:
        weight = torch.softmax(self.score(x).flatten(2), -1)
        return self.last((x.flatten(2) * weight).sum(-1))


class AttentionPool(nn.Module):
    """One query, the mean, asks all positions."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.last = nn.Linear(WIDTH, 2)

    def forward(self, x: Any) -> Any:
        tokens = x.flatten(2).transpose(1, 2)
        asked = self.query(tokens.mean(1, keepdim=True)) @ self.key(tokens).transpose(1, 2)
        return self.last((torch.softmax(asked / WIDTH**0.5, -1) @ self.value(tokens))[:, 0])


class AverageAndMaximum(nn.Module):
    def forward(self, x: Any) -> Any:
        return torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)


class LogSumExp(nn.Module):
    def forward(self, x: Any) -> Any:
        return torch.logsumexp(x.flatten(2), -1)


class Cosine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, WIDTH))

    def forward(self, x: Any) -> Any:
        return 10 * F.linear(F.normalize(x.mean((2, 3))), F.normalize(self.weight))


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(2 * WIDTH, 2)

    def forward(self, x: Any) -> Any:
        a, b = x.chunk(2, 1)
        pools = [a.mean((2, 3)), b.amax((2, 3)), b.mean((2, 3)), (a * b).mean((2, 3))]
        return self.last(torch.cat(pools, 1))


class TwoScales(nn.Module):
    """A further block, pooled beside what it read: the last map that all passes through lies before the block."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(WIDTH, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.SiLU())
        self.last = nn.Linear(WIDTH + 16, 2)

    def forward(self, x: Any) -> Any:
        return self.last(torch.cat([x.mean((2, 3)), self.block(x).mean((2, 3))], 1))


def pooled(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), *layers)


def _many(*activations: nn.Module) -> nn.Module:
    layers = [layer for activation in activations for layer in (nn.Linear(WIDTH, WIDTH), activation)]
    return pooled(*layers, nn.Linear(WIDTH, 2))


LINEAR_HEADS: dict[str, Callable[[], nn.Module]] = {
    "one layer": lambda: pooled(nn.Linear(WIDTH, 2)),
    "batch norm": lambda: pooled(nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, 3)),
    "two layers": lambda: pooled(nn.Linear(WIDTH, 5), nn.Dropout(), nn.Linear(5, 3, bias=False)),
    "averaged class maps": lambda: nn.Sequential(
        nn.Dropout(), nn.Conv2d(WIDTH, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ),
}
GENERAL_HEADS: dict[str, Callable[[], nn.Module]] = {
    "gelu and layer norm": lambda: pooled(
        nn.Linear(WIDTH, 16), nn.GELU(), nn.Dropout(), nn.LayerNorm(16), nn.Linear(16, 2)
    ),
    "smooth activations": lambda: _many(nn.Tanh(), nn.ELU(), nn.Softplus(), nn.Mish(), nn.SiLU(), nn.Softsign()),
    "kinked activations": lambda: _many(nn.LeakyReLU(), nn.PReLU(WIDTH), nn.Hardswish(), nn.ReLU6(), nn.Hardsigmoid()),
    "approximate gelu": lambda: _many(nn.GELU(approximate="tanh")),
    "batch norm and relu": lambda: pooled(nn.BatchNorm1d(WIDTH), nn.ReLU(), nn.Linear(WIDTH, 2)),
    "flattened": lambda: nn.Sequential(nn.Flatten(), nn.Linear(WIDTH * 144, 16), nn.ReLU(), nn.Linear(16, 2)),
    "flattened, linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(WIDTH * 144, 2)),
    "maximum": lambda: nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(WIDTH, 2)),
    "average and maximum": lambda: nn.Sequential(AverageAndMaximum(), nn.Linear(2 * WIDTH, 2)),
    "generalised mean": lambda: nn.Sequential(GeneralisedMean(), nn.Flatten(), nn.Linear(WIDTH, 2)),
    "log sum exp": lambda: nn.Sequential(LogSumExp(), nn.Linear(WIDTH, 2)),
    "gated pool": GatedPool,
    "attention pool": AttentionPool,
    "cosine": Cosine,
    "parts": Parts,
    "two scales": TwoScales,
}


def network(head: Callable[[], nn.Module], seed: int = 0) -> Network:
    """Seeded, in evaluation mode, its batch norms with statistics of their own."""
    generator = torch.random.get_rng_state()
    torch.manual_seed(seed)
    made = Network(head())
    for module in made.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.5)
    torch.random.set_rng_state(generator)
    return made.eval()


def traced_onnx(module: nn.Module, *, opset: int = 17, batch: int | None = None, side: int = SIDE) -> bytes:
    """By torch's older exporter, which is quick; `batch` fixes it."""
    stream = io.BytesIO()
    axes = {} if batch else {"dynamic_axes": {"picture": {0: "N"}, "output": {0: "N"}}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (torch.zeros(batch or 2, 3, side, side),),
            stream,
            dynamo=False,
            opset_version=opset,
            input_names=["picture"],
            output_names=["output"],
            **axes,
        )
    return stream.getvalue()


def pictures(count: int = 3, side: int = SIDE, seed: int = 9) -> Any:
    return torch.randn((count, 3, side, side), generator=torch.Generator().manual_seed(seed))
