"""Grad-CAM from what one run gives: the last feature map, and how each logit depends on it.

Where a network ends in global average pooling and one linear layer, that dependence is a row of weights. Any other
head has its gradient in the graph (output ``logit_gradients``, put there when the model was imported). Either way the
run that made the prediction is enough: no second pass, no torch.

References
----------
Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV 2017,
equations 1 and 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from xai.errors import ExplanationError

FEATURE_MAP_AXES = 3


def gradcam(
    feature_map: npt.NDArray[np.floating[Any]],
    probabilities: npt.NDArray[np.floating[Any]],
    head_weight_or_gradients: npt.NDArray[np.floating[Any]],
    label_indices: Sequence[int],
    activation: Literal["softmax", "sigmoid"],
) -> npt.NDArray[np.float32]:
    """Grad-CAM of a finding's score.

    The target is the log odds of the score, ``log(P / (1 - P))`` with ``P`` the sum of the probabilities of
    `label_indices`. Log odds, since the gradient of ``P`` itself vanishes where the model is sure, and since a single
    logit of a softmax says nothing about the labels it competes with.

    Parameters
    ----------
    feature_map
        [c, h, w], the last feature map, before pooling.
    probabilities
        [K], what the activation made of the logits.
    head_weight_or_gradients
        [K, c], weights of the linear layer; for another head the gradient of each logit with respect to `feature_map`,
        summed over its positions (which for the linear layer is the same thing).
    label_indices
        Positions on the K axis that the finding sums; exactly one with ``sigmoid``.
    activation
        Of the head.

    Returns
    -------
    float32 [h, w], at least 0, not normalised: log odds that each cell adds.

    Raises
    ------
    ExplanationError
        Shapes that do not fit, values that are not finite, or a target without a gradient.
    """
    features = np.asarray(feature_map, dtype=np.float64)
    weight = np.asarray(head_weight_or_gradients, dtype=np.float64)
    if features.ndim != FEATURE_MAP_AXES or 0 in features.shape:
        raise ExplanationError(f"feature map has shape {features.shape}, not [c, h, w]")
    if weight.shape != (len(probabilities), features.shape[0]):
        raise ExplanationError(
            f"head weight or gradient has shape {weight.shape}, not ({len(probabilities)}, {features.shape[0]})"
        )
    gradient = logit_gradient(probabilities, label_indices, activation)
    _, rows, columns = features.shape
    # Global average pooling spreads the gradient evenly: d target / d A[c, i, j] = (gradient @ weight)[c] / (h w),
    # whose mean over h and w (equation 1) is the same number.
    channel_weight = gradient @ weight / (rows * columns)
    cam = np.tensordot(channel_weight, features, axes=(0, 0))
    if not np.isfinite(cam).all():
        raise ExplanationError("feature map or head holds values that are not finite")
    return np.asarray(np.maximum(cam, 0.0), dtype=np.float32)


def logit_gradient(
    probabilities: npt.NDArray[np.floating[Any]],
    label_indices: Sequence[int],
    activation: Literal["softmax", "sigmoid"],
) -> npt.NDArray[np.float64]:
    """Gradient of the log odds of the summed probabilities with respect to the logits, float64 [K].

    Raises
    ------
    ExplanationError
        Positions that do not exist or repeat, several with ``sigmoid``, all of them with ``softmax``, or probabilities
        that a float cannot tell from zero, so that the gradient is lost.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    chosen = np.zeros(p.shape, dtype=bool)
    if not label_indices or len(set(label_indices)) != len(label_indices):
        raise ExplanationError(f"label positions {tuple(label_indices)} are empty or repeat")
    if not all(0 <= index < len(p) for index in label_indices):
        raise ExplanationError(f"label positions {tuple(label_indices)} do not fit {len(p)} labels")
    chosen[list(label_indices)] = True
    if activation == "sigmoid":
        if len(label_indices) != 1:
            raise ExplanationError("the score of a sigmoid head comes from one label")
        return chosen.astype(np.float64)
    if chosen.all():
        raise ExplanationError("a score over every label is always 1 and has no gradient")
    return _shares(p, chosen) - _shares(p, ~chosen)


def _shares(p: npt.NDArray[np.float64], members: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """``p / sum(p)`` over `members`, 0 elsewhere. One member has the share 1 however small its probability is."""
    if members.sum() == 1:
        return members.astype(np.float64)
    total = p[members].sum()
    if not total > 0 or not np.isfinite(total):
        raise ExplanationError("probabilities are too near zero, or not finite: their gradient is lost")
    return np.where(members, p / total, 0.0)
