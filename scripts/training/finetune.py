"""Fine-tuning of the network's last blocks, on cached inputs of the first of them.

The earlier blocks stay as published, so that their output is computed once for every view of every image; that is what
makes this feasible on two CPU cores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from tqdm import tqdm
from training.bundle import Head, softmax
from training.network import Network, Weights, layers


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """What is tuned, how long and how fast."""

    first_block: int
    """This block and all after it are tuned; see :func:`block_input`."""
    epochs: int
    batch: int
    rate: float
    """Peak learning rate of the convolutions; the head's is three times as high."""
    tuned_share: float = 1.0
    """The result is this share of the tuned and the rest of the initial weights and head. Below 1 it holds up better on
    pictures unlike those trained on (Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022)."""
    decay: float = 0.02
    smoothing: float = 0.05


def block_input(first_block: int) -> str:
    """Name in the graph of what goes into a block."""
    last = [layer for layer in layers() if layer.block == first_block - 1][-1]
    return f"{last.name}.sum" if last.adds_block_input else f"{last.name}.out"


def fine_tune(
    views: npt.NDArray[np.floating[Any]],
    labels: npt.NDArray[np.int_],
    start: tuple[Weights, Head],
    schedule: Schedule,
    seed: int,
) -> Network:
    """Train on `views` [V, N, c, h, w], one random view of each image an epoch, from the weights and head of `start`.

    Cross-entropy with balanced classes, AdamW, one cosine cycle.
    """
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    weights, head = start
    network = Network(weights, len(head.bias), schedule.first_block).to(memory_format=torch.channels_last)
    network.head.weight.data = torch.from_numpy(head.weight.copy())
    network.head.bias.data = torch.from_numpy(head.bias.copy())
    initial = {name: value.clone() for name, value in network.state_dict().items()}
    counts = np.bincount(labels, minlength=len(head.bias))
    balance = torch.tensor(len(labels) / len(counts) / np.maximum(counts, 1), dtype=torch.float32)
    loss_of = nn.CrossEntropyLoss(weight=balance, label_smoothing=schedule.smoothing)
    optimiser = torch.optim.AdamW(
        [
            {"params": network.convolutions.parameters(), "lr": schedule.rate},
            {"params": network.head.parameters(), "lr": 3 * schedule.rate},
        ],
        weight_decay=schedule.decay,
    )
    batches = -(-len(labels) // schedule.batch)
    steps = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, [schedule.rate, 3 * schedule.rate], total_steps=batches * schedule.epochs, pct_start=0.15
    )
    network.train()
    for _ in tqdm(range(schedule.epochs), desc="epochs", leave=False):
        order = random.permutation(len(labels))
        view = random.integers(0, len(views), len(labels))
        for first in range(0, len(order), schedule.batch):
            chosen = order[first : first + schedule.batch]
            values = _tensor(views[view[chosen], chosen])
            loss = loss_of(network(values), torch.from_numpy(labels[chosen]))
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            steps.step()
    tuned = network.state_dict()
    network.load_state_dict({name: torch.lerp(initial[name], tuned[name], schedule.tuned_share) for name in tuned})
    return network.eval()


def _tensor(values: npt.NDArray[np.floating[Any]]) -> torch.Tensor:
    """[N, c, h, w] with channels last in memory, which the CPU's convolutions like better."""
    return torch.from_numpy(values.astype(np.float32)).contiguous(memory_format=torch.channels_last)


def predict(network: Network, inputs: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """Probabilities [N, K] for block inputs [N, c, h, w]."""
    found: list[npt.NDArray[Any]] = []
    with torch.no_grad():
        for first in range(0, len(inputs), 32):
            found.append(network(_tensor(inputs[first : first + 32])).numpy())
    return softmax(np.concatenate(found))


def tuned_head(network: Network) -> Head:
    """The head of a tuned network."""
    return Head(weight=network.head.weight.detach().numpy().copy(), bias=network.head.bias.detach().numpy().copy())
