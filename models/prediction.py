"""What a model says about one picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Scores of one picture with what explanation and drift need, all from the same run.

    Attributes
    ----------
    model_name, model_version, model_sha256
        The bundle that ran: name and version of its card, sha256 of its ``model.onnx``.
    logits
        float32 [K], one a label, in the order of the card.
    probabilities
        float32 [K], the card's activation of `logits`.
    scores
        Finding name to score in 0 to 1: the sum of the probabilities of the finding's labels.
    embedding
        float32 [D], the average of `feature_map` over its positions.
    feature_map
        float32 [D, h, w], the last feature map before the average.
    logit_gradients
        float32 [K, D], the gradient of each logit with respect to `feature_map`, summed over its positions: what a row
        of the head's weights is where the head is one linear layer on the average. None for such a head.
    """

    model_name: str
    model_version: int
    model_sha256: str
    logits: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    scores: Mapping[str, float]
    embedding: NDArray[np.float32]
    feature_map: NDArray[np.float32]
    logit_gradients: NDArray[np.float32] | None = None
