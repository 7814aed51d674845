"""Golden inputs: pictures that a bundle carries with what the model must say of them.

They show that a version that is registered, moved, replayed or brought back computes what it computed when it was made,
preprocessing included, on whatever processor or execution provider. The pictures are synthetic, so that no bundle
carries a patient's. What is asked is whether the numbers are the same, not whether they are right.

``golden.npz`` holds, without pickle:

======================  ==================================================================================
``pictures``            uint8 [M, rows, columns, 3] RGB, or [M, rows, columns] where 255 is white
``logits``              float32 [M, K]
``scores``              float32 [M, F], in the order of the card's findings
``embeddings``          float32 [M, D]
======================  ==================================================================================
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.card import Bundle, GoldenRun, PixelContract
from models.errors import BundleError, PixelError
from models.prediction import Prediction
from models.preprocess import Frame, ModelInput, prepare
from models.session import ModelSession

_ARRAYS = ("pictures", "logits", "scores", "embeddings")
MOST_PICTURES = 64
"""A probe of a failing model runs them all, so that there may not be many."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Golden:
    """The arrays of ``golden.npz``, their shapes fitting the card."""

    pictures: NDArray[np.uint8]
    logits: NDArray[np.float32]
    scores: NDArray[np.float32]
    embeddings: NDArray[np.float32]

    @property
    def tells_pictures_apart(self) -> bool:
        """Whether no two pictures have the same logits: a model that ignores its input would otherwise pass."""
        return len(np.unique(self.logits, axis=0)) == len(self.logits) > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenReport:
    """How far a run lay from what ``golden.npz`` says; the largest of absolute differences."""

    count: int
    """Pictures run."""
    largest_score_difference: float
    largest_logit_difference: float
    largest_embedding_difference: float
    passed: bool
    reasons: tuple[str, ...]
    """Why not, naming what was expected and what was found."""


def run_golden(session: ModelSession, bundle: Bundle) -> GoldenReport:
    """Run a bundle's golden inputs, preprocessing included, and hold the outputs against what the bundle says.

    Raises
    ------
    BundleError
        The bundle has no golden inputs, or they do not fit its card.
    InferenceError
        The model failed on them.
    """
    golden = read_golden(bundle)
    if bundle.card.golden is None:
        raise BundleError(f"{_where(bundle)}: the card states no golden run")
    found = golden_outputs(session, golden.pictures)
    if found["embeddings"].shape != golden.embeddings.shape:
        raise BundleError(
            f"{_where(bundle)}: golden embeddings are {list(golden.embeddings.shape)}, the model gives "
            f"{list(found['embeddings'].shape)}"
        )
    differences = {
        name: float(np.abs(found[name].astype(np.float64) - getattr(golden, name)).max())
        for name in ("scores", "logits", "embeddings")
    }
    reasons = _reasons(differences, bundle.card.golden)
    return GoldenReport(
        count=len(golden.pictures),
        largest_score_difference=differences["scores"],
        largest_logit_difference=differences["logits"],
        largest_embedding_difference=differences["embeddings"],
        passed=not reasons,
        reasons=reasons,
    )


def _reasons(differences: Mapping[str, float], stated: GoldenRun) -> tuple[str, ...]:
    tolerances = {
        "scores": stated.score_tolerance,
        "logits": stated.logit_tolerance,
        "embeddings": stated.embedding_tolerance,
    }
    return tuple(
        f"{name} lie up to {differences[name]:.3g} from the expected ones, {tolerance:g} is allowed"
        for name, tolerance in tolerances.items()
        if not differences[name] <= tolerance
    )


def golden_outputs(session: ModelSession, pictures: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    """Arrays ``logits``, ``scores`` and ``embeddings`` as of ``golden.npz``, from a run on `pictures`.

    Raises
    ------
    BundleError
        The card's pixel contract does not take such pictures.
    InferenceError
        The model failed on them.
    """
    card = session.bundle.card
    tensors = [prepared.tensor for prepared in golden_inputs(pictures, card.pixel_contract)]
    predictions: list[Prediction] = session.run(np.stack(tensors))
    return {
        "logits": np.stack([prediction.logits for prediction in predictions]).astype(np.float32),
        "scores": np.array(
            [[prediction.scores[finding.name] for finding in card.findings] for prediction in predictions],
            dtype=np.float32,
        ),
        "embeddings": np.stack([prediction.embedding for prediction in predictions]).astype(np.float32),
    }


def golden_inputs(pictures: NDArray[np.uint8], contract: PixelContract) -> list[ModelInput]:
    """Pictures [M, ...] as a model reads them.

    Raises
    ------
    BundleError
        The pixel contract does not take them.
    """
    try:
        return [prepare(golden_frame(picture), contract) for picture in pictures]
    except PixelError as error:
        raise BundleError(f"golden inputs do not fit the pixel contract: {error}") from error


def golden_frame(picture: NDArray[np.uint8]) -> Frame:
    """One of the pictures as a displayed picture."""
    if picture.ndim == 3:
        return Frame.from_rgb(picture)
    return Frame.from_greyscale(picture.astype(np.float32) / np.float32(255))


def golden_arrays(session: ModelSession, pictures: Sequence[NDArray[np.uint8]]) -> dict[str, NDArray[Any]]:
    """All that goes into ``golden.npz``, for :func:`numpy.savez_compressed`.

    Raises
    ------
    BundleError
        The card's pixel contract does not take such pictures.
    InferenceError
        The model failed on them.
    """
    stacked = np.stack(pictures)
    return {"pictures": stacked, **golden_outputs(session, stacked)}


def read_golden(bundle: Bundle) -> Golden:
    """Read ``golden.npz``, without pickle.

    Raises
    ------
    BundleError
        There is none, it is no archive of plain arrays, or the arrays do not fit each other or the card.
    """
    where = f"{_where(bundle)}, {bundle.golden_path.name}"
    if bundle.golden_path.name not in bundle.card.files:
        raise BundleError(f"{where}: the bundle has no golden inputs")
    try:
        with bundle.golden_path.open("rb") as stream:
            archive = np.load(stream, allow_pickle=False)
            stored = {name: archive[name] for name in _ARRAYS}
    except (
        OSError,
        ValueError,
        EOFError,
        KeyError,
        TypeError,
        AttributeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise BundleError(f"{where}: no archive of the arrays {', '.join(_ARRAYS)} ({type(error).__name__})") from error
    pictures = stored["pictures"]
    count, axes = len(pictures) if pictures.ndim else 0, 4 if _is_colour(bundle) else 3
    if pictures.dtype != np.uint8 or pictures.ndim != axes or (axes == 4 and pictures.shape[3] != 3):
        raise BundleError(f"{where}: pictures are {pictures.dtype} {list(pictures.shape)}, not uint8 of {axes} axes")
    if not 0 < count <= MOST_PICTURES:
        raise BundleError(f"{where}: {count} pictures, 1 to {MOST_PICTURES} are expected")
    widths = {"logits": len(bundle.card.labels), "scores": len(bundle.card.findings), "embeddings": None}
    for name, width in widths.items():
        array = stored[name]
        if array.dtype != np.float32 or array.ndim != 2 or len(array) != count or width not in (None, array.shape[1]):
            raise BundleError(
                f"{where}: {name} are {array.dtype} {list(array.shape)}, float32 [{count}, {width or 'D'}] is expected"
            )
        if not np.isfinite(array).all():
            raise BundleError(f"{where}: {name} hold values that are not finite")
    return Golden(**stored)


def _is_colour(bundle: Bundle) -> bool:
    return bundle.card.pixel_contract.photometric_interpretation == "RGB"


def _where(bundle: Bundle) -> str:
    return f"{bundle.card.name} version {bundle.card.version}"
