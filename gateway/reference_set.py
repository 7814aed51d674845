"""The reference set of a bundle, from pictures: what the model says and looks at where all is as it should be.

Drift is judged against it, so the pictures ought to be like those that the model will read, and not be the ones that
it was fitted on. DICOM files, JPEG and PNG go through the same reading and preprocessing as a study.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from PIL import Image, UnidentifiedImageError
from pydicom.errors import BytesLengthException, InvalidDicomError

from gateway.pipeline import head_gradients
from models.card import Card
from models.errors import DecoderUnavailableError, ModelError
from models.pixels import displayed_frame_count, read_frame
from models.prediction import Prediction
from models.preprocess import Frame, ModelInput, prepare
from models.quality import judge_quality
from models.session import ModelSession
from xai.errors import XaiError
from xai.gradcam import gradcam
from xai.summary import EXPLANATION_NAMES, summarise

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff"})
_BATCH = 8
_NOT_READ = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    NotImplementedError,
    EOFError,
    OverflowError,
    struct.error,
    BytesLengthException,
    InvalidDicomError,
    UnidentifiedImageError,
    Image.DecompressionBombError,
)
"""What pydicom and Pillow raise on damaged files; found by damaging some."""


@dataclass(slots=True, kw_only=True)
class ReferenceCount:
    """How many pictures there were, and why some were left out."""

    taken: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def words(self) -> str:
        """For people."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.left_out.most_common())
        return f"{self.taken} pictures" + (f"; left out: {reasons}" if reasons else "")


def picture_files(folder: Path, most: int) -> list[Path]:
    """Files below `folder`, in order of their names; evenly thinned to `most`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    if len(files) <= most:
        return files
    return [files[place] for place in np.linspace(0, len(files) - 1, most).round().astype(int)]


def reference_arrays(
    session: ModelSession,
    files: Iterable[Path],
    count: ReferenceCount,
    progress: Callable[[], Any] = lambda: None,
) -> dict[str, npt.NDArray[Any]]:
    """Arrays of ``reference.npz`` over the gradable ones of some pictures, in the form that drift reads.

    Explanations are of the finding with the highest score, as they are for a study.

    Raises
    ------
    InferenceError
        The model failed.
    DecoderUnavailableError
        No decoding process can be started.
    """
    card = session.bundle.card
    rows = _Rows(card)
    batch: list[ModelInput] = []
    for model_input in _inputs(files, card, count, progress):
        batch.append(model_input)
        if len(batch) == _BATCH:
            rows.add(session, batch)
            batch = []
    if batch:
        rows.add(session, batch)
    return rows.arrays()


def _inputs(
    files: Iterable[Path], card: Card, count: ReferenceCount, progress: Callable[[], Any]
) -> Iterator[ModelInput]:
    """Gradable pictures as the model reads them; the others are counted with the reason."""
    for path in files:
        progress()
        try:
            model_input = prepare(_read(path, card), card.pixel_contract)
        except DecoderUnavailableError:
            raise
        except ModelError as error:
            reason = "of the wrong kind (colour or greyscale)" if "the model reads" in str(error) else "unreadable"
            count.left_out[reason] += 1
            continue
        except _NOT_READ:
            count.left_out["no picture"] += 1
            continue
        if judge_quality(model_input.statistics, card.quality):
            count.left_out["ungradable"] += 1
            continue
        count.taken += 1
        yield model_input


def _read(path: Path, card: Card) -> Frame:
    """The first frame of a DICOM file, or a photograph; nothing of a header but the pixels is looked at."""
    contract = card.pixel_contract
    if path.suffix.lower() not in PICTURE_SUFFIXES:
        dataset = pydicom.dcmread(path)
        if displayed_frame_count(dataset) == 0:
            raise ValueError("no image")
        return read_frame(dataset, least_side=max(640, contract.size.rows * 3 // 2, contract.size.columns * 3 // 2))
    with Image.open(path) as image:
        if contract.photometric_interpretation == "RGB":
            return Frame.from_rgb(np.asarray(image.convert("RGB")))
        if image.mode.startswith("I"):
            levels = np.asarray(image, dtype=np.float32)
            return Frame.from_greyscale(levels / np.float32(65535))
        return Frame.from_greyscale(np.asarray(image.convert("L"), dtype=np.float32) / np.float32(255))


class _Rows:
    """What is kept of each picture."""

    def __init__(self, card: Card) -> None:
        self._card = card
        self._embeddings: list[npt.NDArray[np.float16]] = []
        self._scores: list[list[float]] = []
        self._explanations: list[list[float]] = []
        self._statistics: list[dict[str, float]] = []
        self._map_sum: npt.NDArray[np.float64] | None = None

    def add(self, session: ModelSession, inputs: list[ModelInput]) -> None:
        predictions = session.run(np.stack([each.tensor for each in inputs]))
        for model_input, prediction in zip(inputs, predictions, strict=True):
            self._embeddings.append(prediction.embedding.astype(np.float16))
            self._scores.append([prediction.scores[finding.name] for finding in self._card.findings])
            self._statistics.append(dict(model_input.statistics))
            self._explain(session, model_input, prediction)

    def _explain(self, session: ModelSession, model_input: ModelInput, prediction: Prediction) -> None:
        card = self._card
        finding = max(card.findings, key=lambda each: prediction.scores[each.name])
        if self._map_sum is None:
            self._map_sum = np.zeros(prediction.feature_map.shape[1:], dtype=np.float64)
        try:
            heat = gradcam(
                prediction.feature_map,
                prediction.probabilities,
                head_gradients(prediction, session),
                card.label_indices(finding),
                card.activation,
            )
        except XaiError:
            self._explanations.append([float("nan")] * len(EXPLANATION_NAMES))
            return
        summary = summarise(heat, model_input.grid)
        self._explanations.append([summary[name] for name in EXPLANATION_NAMES])
        self._map_sum += heat / heat.sum() if heat.sum() > 0 else heat

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """As ``numpy.savez`` takes them; empty where there was no picture."""
        if not self._embeddings or self._map_sum is None:
            return {}
        names = list(self._statistics[0])
        return {
            "embeddings": np.stack(self._embeddings),
            "scores": np.asarray(self._scores, dtype=np.float32),
            "finding_names": np.array([finding.name for finding in self._card.findings]),
            "explanations": np.asarray(self._explanations, dtype=np.float32),
            "explanation_names": np.array(EXPLANATION_NAMES),
            "statistics": np.asarray([[row[name] for name in names] for row in self._statistics], dtype=np.float32),
            "statistic_names": np.array(names),
            "mean_map": (self._map_sum / len(self._embeddings)).astype(np.float32),
        }
