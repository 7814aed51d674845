"""Is the finished graph the network that it was made of, and is its gradient the gradient?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from models.errors import ImportRefusedError
from models.importing.anatomy import Anatomy
from models.importing.assembly import Assembled
from models.importing.graph import ORT_FAILED, open_session
from models.importing.head_in_torch import TorchHead
from models.session import activate

Floats = NDArray[np.float32]
Activation = Literal["softmax", "sigmoid"]

LARGEST_PROBABILITY_DIFFERENCE = 1e-4
LARGEST_HALF_DIFFERENCE = 5e-3
"""Of a probability against a source that computes in float16 itself."""
LARGEST_GRADIENT_DIFFERENCE = 1e-4
"""Relative to the largest gradient."""
LARGEST_STEP_DIFFERENCE = 2e-2
"""Of finite differences, relative likewise: float32 and a finite step allow no better."""
_MOST_LABELS = 16
_STEPPED_CHANNELS = 16
_STEP_FRACTION = 5e-2


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One comparison that was made."""

    name: str
    found: float
    limit: float

    @property
    def passed(self) -> bool:
        """NaN does not pass."""
        return self.found <= self.limit


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchNetwork:
    """The source network itself, where it is torch's."""

    run: Callable[[Any], Any]


def verify(
    assembled: Assembled,
    anatomy: Anatomy,
    *,
    picture_shape: tuple[int, int, int],
    activation: Activation,
    original: Callable[[Floats], Floats],
    batch: int | None,
    half: bool,
    network: TorchNetwork | None,
) -> tuple[Check, ...]:
    """Make all comparisons.

    Parameters
    ----------
    original
        The source's output for a batch, before anything was changed.
    batch
        The only batch size that `original` takes; None: any.
    half
        Whether the source computes in float16.
    network
        For autograd through the source itself.

    Raises
    ------
    ImportRefusedError
        One is not passed; it names all of them.
    """
    session = open_session(assembled.model)
    count = batch or 3
    pictures = np.random.default_rng(7).standard_normal((count, *picture_shape), dtype=np.float32)
    outputs = _run(session, pictures)
    difference = _probability_difference(outputs, original(pictures), anatomy, activation)
    limit = LARGEST_HALF_DIFFERENCE if half else LARGEST_PROBABILITY_DIFFERENCE
    checks = [Check(name="probabilities against the source", found=difference, limit=limit)]
    checks.append(_rows_alone(session, pictures, outputs, activation))
    head = TorchHead(assembled.head)
    gradients = outputs.get("logit_gradients")
    if gradients is None:
        weight = next(each for each in assembled.model.graph.initializer if each.name == "head.weight")
        gradients = np.broadcast_to(np.asarray(onnx.numpy_helper.to_array(weight)), (count, *tuple(weight.dims)))
    labels = _some_labels(anatomy.label_count)
    expected = head.jacobian(outputs["feature_map"], labels)
    checks.append(_relative("gradient against torch's autograd of the head", gradients[:, labels], expected))
    checks.append(_finite_differences(assembled, outputs["feature_map"][:1], gradients[:1]))
    if network is not None:
        through = _autograd_through(network, pictures, outputs["feature_map"], labels)
        if through is not None:
            through = (
                through if not anatomy.single_output else np.stack([np.zeros_like(through[:, 0]), through[:, 0]], 1)
            )
            checks.append(_relative("gradient against torch's autograd of the network", gradients[:, labels], through))
    failed = [
        f"{check.name}: {check.found:.2g}, at most {check.limit:g} is allowed" for check in checks if not check.passed
    ]
    if failed:
        raise ImportRefusedError(f"the finished graph is not the network: {'; '.join(failed)}")
    return tuple(checks)


def _run(session: onnxruntime.InferenceSession, pictures: Floats) -> dict[str, Floats]:
    names = [value.name for value in session.get_outputs()]
    try:
        return dict(zip(names, session.run(names, {"image": pictures}), strict=True))
    except ORT_FAILED as error:
        raise ImportRefusedError(f"the finished graph does not run on {len(pictures)} pictures") from error


def _probability_difference(
    outputs: dict[str, Floats], original: Floats, anatomy: Anatomy, activation: Activation
) -> float:
    """The source's own output, activated where the source does not do so itself."""
    found = activate(outputs["logits"], activation).astype(np.float64)
    raw = np.asarray(original, dtype=np.float32).reshape(len(found), -1)
    if anatomy.final_activation is None:
        if anatomy.single_output:
            raw = np.concatenate([np.zeros_like(raw), raw], axis=1)
        expected = activate(raw, activation).astype(np.float64)
    else:
        expected = raw.astype(np.float64)
        if expected.min() < 0 or not np.isclose(expected.sum(axis=1), 1).all():
            logarithmic = np.exp(expected)
            if anatomy.final_activation == "softmax" and np.isclose(logarithmic.sum(axis=1), 1, atol=1e-4).all():
                expected = logarithmic
        if anatomy.single_output:
            expected = np.concatenate([1 - expected, expected], axis=1)
    return float(np.abs(found - expected).max())


def _rows_alone(
    session: onnxruntime.InferenceSession, pictures: Floats, outputs: dict[str, Floats], activation: Activation
) -> Check:
    """A picture's result may not depend on those beside it, nor on how many there are."""
    alone = np.concatenate([_run(session, pictures[index : index + 1])["logits"] for index in range(len(pictures))])
    together = outputs["logits"]
    if len(pictures) == 1:
        pair = np.concatenate([pictures, -pictures])
        together, alone = _run(session, pair)["logits"][:1], alone
    difference = np.abs(activate(together, activation).astype(np.float64) - activate(alone, activation)).max()
    return Check(
        name="probabilities in a batch against alone", found=float(difference), limit=LARGEST_PROBABILITY_DIFFERENCE
    )


def _some_labels(count: int) -> list[int]:
    return sorted({int(place) for place in np.linspace(0, count - 1, min(count, _MOST_LABELS))})


def _relative(name: str, found: NDArray[Any], expected: NDArray[Any]) -> Check:
    scale = float(np.abs(expected).max())
    difference = float(np.abs(found.astype(np.float64) - expected).max())
    return Check(name=name, found=difference / scale if scale > 0 else difference, limit=LARGEST_GRADIENT_DIFFERENCE)


def _finite_differences(assembled: Assembled, feature_map: Floats, gradients: NDArray[Any]) -> Check:
    """Raise and lower whole channels of a map a little, and see what the source's own head says.

    A step along a whole channel changes a logit by the gradient summed over positions. Steps may cross the kink of a
    ReLU, so the median over channels is judged, not the worst.
    """
    label = int(np.abs(gradients[0]).max(axis=1).argmax())
    channels = np.argsort(-np.abs(gradients[0, label]))[:_STEPPED_CHANNELS]
    step = _STEP_FRACTION * max(float(feature_map.std()), 1e-6)
    maps = np.repeat(feature_map, 2 * len(channels), axis=0)
    for place, channel in enumerate(channels):
        maps[2 * place, channel] += step
        maps[2 * place + 1, channel] -= step
    session = open_session(assembled.head)
    logits = np.asarray(session.run(None, {"feature_map": maps})[0], dtype=np.float64)[:, label]
    found = (logits[0::2] - logits[1::2]) / (2 * step)
    noise = 4 * np.finfo(np.float32).eps * float(np.abs(logits).max()) / (2 * step)
    expected = gradients[0, label, channels].astype(np.float64)
    scale = float(np.abs(expected).max())
    difference = float(np.clip(np.median(np.abs(found - expected)) - noise, 0, None))
    return Check(
        name="gradient against finite differences",
        found=difference / scale if scale > 0 else difference,
        limit=LARGEST_STEP_DIFFERENCE,
    )


def _autograd_through(
    network: TorchNetwork, pictures: Floats, feature_map: Floats, labels: list[int]
) -> NDArray[np.float64] | None:
    """Autograd in the source network itself, from its own feature map, which is known by its values.

    None where no function of torch's gives that map as a whole.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    wanted = torch.from_numpy(feature_map)
    tolerance = 1e-3 * float(np.abs(feature_map).max())

    class Finder(TorchFunctionMode):  # type: ignore[misc]
        found: Any = None

        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.shape == wanted.shape and result.requires_grad:
                with torch._C.DisableTorchFunction():
                    if bool(torch.allclose(result.detach().float(), wanted, atol=tolerance)):
                        self.found = result
            return result

    leaf = torch.from_numpy(pictures).requires_grad_()
    with Finder() as finder:
        output = network.run(leaf)
    if finder.found is None or not isinstance(output, torch.Tensor):
        return None
    logits = output.reshape(len(pictures), -1)
    if logits.shape[1] < len(labels):
        labels = [0]
    rows = []
    for label in labels:
        (gradient,) = torch.autograd.grad(logits[:, label].sum(), finder.found, retain_graph=True, allow_unused=True)
        if gradient is None:
            return None
        rows.append(gradient.sum(dim=(2, 3)).numpy())
    gradients: NDArray[np.float64] = np.stack(rows, axis=1).astype(np.float64)
    return gradients
