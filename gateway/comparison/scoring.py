"""Scores of both versions for every case: decoded once, a chunk ahead of inference, written chunk by chunk."""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import numpy.typing as npt

from gateway.comparison.scores import ScoreBook, ScoredCase, VersionScore
from gateway.errors import ComparisonError, DeidentificationError, UnreadableError
from gateway.saved.cases import Case
from models.card import Bundle
from models.decoding import Decoder
from models.errors import DecoderUnavailableError, InferenceError, ModelError
from models.frame import Frame
from models.pixels import read_frame
from models.preprocess import ModelInput, prepare
from models.quality import judge_quality
from models.session import ModelSession

logger = logging.getLogger(__name__)

CHUNK = 16
"""Cases that are run and written together; so many tensors are in memory, twice."""
LOW_SHARPNESS_QUANTILE = 0.1
_KEY = re.compile(r"(?<= )[0-9a-f]{32}(-[0-9]+)?:? ")
"""Keys in reasons, without which reasons can be counted; the row has the key."""
POOR, USUAL = "low sharpness", "usual sharpness"


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A case with the hash of its file."""

    case: Case
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedCase:
    """What the versions read of one case."""

    inputs: tuple[ModelInput | str, ...]
    """One a version, or why it takes none."""
    quality: str = ""
    """Slice of image quality; empty: as the case says."""


Prepare = Callable[[Case], PreparedCase]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """Opens a case, and makes each version's tensor of it. May be called by several threads."""

    bundles: tuple[Bundle, ...]
    decoder: Decoder
    modalities: frozenset[str]
    sharpness: float | None
    """Below it, a picture is in the slice :data:`POOR`: a low quantile of the candidate's reference set."""

    def __call__(self, case: Case) -> PreparedCase:
        frame = self.frame(case)
        if isinstance(frame, str):
            return PreparedCase(inputs=(frame,) * len(self.bundles))
        inputs = tuple(_input(frame, bundle) for bundle in self.bundles)
        measured = inputs[0]
        sharp = None if isinstance(measured, str) else measured.statistics.get("sharpness")
        quality = "" if sharp is None or self.sharpness is None else POOR if sharp < self.sharpness else USUAL
        return PreparedCase(inputs=inputs, quality=quality)

    def frame(self, case: Case) -> Frame | str:
        """The decoded frame, or why there is none."""
        modality = case.slices.get("modality", "")
        if modality and modality not in self.modalities:
            return f"modality {modality} is none that the versions read ({', '.join(sorted(self.modalities))})"
        try:
            dataset = case.open()
            sizes = [bundle.card.pixel_contract.size for bundle in self.bundles]
            side = max(640, *(max(size.rows, size.columns) * 3 // 2 for size in sizes))
            return read_frame(dataset, frame_index=case.frame_index, least_side=side, decoder=self.decoder)
        except DecoderUnavailableError:
            raise
        except (ModelError, UnreadableError, DeidentificationError) as error:
            return _KEY.sub("", str(error))


def reference_sharpness(bundle: Bundle) -> float | None:
    """The :data:`LOW_SHARPNESS_QUANTILE` of the sharpness of a version's reference set; ``None`` where it has none."""
    with np.load(bundle.reference_path, allow_pickle=False) as reference:
        if "statistic_names" not in reference or "statistics" not in reference:
            return None
        names = [str(name) for name in reference["statistic_names"]]
        if "sharpness" not in names or not len(reference["statistics"]):
            return None
        values = reference["statistics"][:, names.index("sharpness")].astype(np.float64)
    return float(np.quantile(values, LOW_SHARPNESS_QUANTILE))


def _input(frame: Frame, bundle: Bundle) -> ModelInput | str:
    try:
        return prepare(frame, bundle.card.pixel_contract)
    except ModelError as error:
        return str(error)


def score_all(
    cases: Iterable[Listed],
    sessions: Sequence[ModelSession],
    prepare_case: Prepare,
    book: ScoreBook,
    executor: Executor,
    *,
    progress: Callable[[int], None] = lambda _: None,
) -> int:
    """Score every case that has not been; returns how many there are.

    Parameters
    ----------
    sessions
        Of the candidate, and of the baseline where there is one.
    progress
        Told how many cases are done, chunk by chunk.
    """
    waiting: deque[tuple[int, int, Sequence[Listed], list[Future[PreparedCase]]]] = deque()

    def finish() -> None:
        number, place, chunk, futures = waiting.popleft()
        prepared = [each.result() for each in futures]
        book.write(number, place, _names(chunk), _scored(chunk, prepared, sessions))
        progress(len(chunk))

    total, number = 0, 0
    try:
        for number, chunk in enumerate(_chunks(cases), start=1):
            if book.is_done(number - 1, _names(chunk)):
                progress(len(chunk))
            else:
                futures = [executor.submit(prepare_case, each.case) for each in chunk]
                waiting.append((number - 1, total, chunk, futures))
                if len(waiting) > 1:
                    finish()
            total += len(chunk)
        while waiting:
            finish()
    except DecoderUnavailableError as error:
        raise ComparisonError(f"{error}; started again, the comparison goes on where it was") from error
    finally:
        for _, _, _, futures in waiting:
            for future in futures:
                future.cancel()
    book.end(number)
    return total


def _chunks(cases: Iterable[Listed]) -> Iterator[Sequence[Listed]]:
    going = iter(cases)
    while chunk := list(islice(going, CHUNK)):
        yield chunk


def _names(chunk: Sequence[Listed]) -> list[tuple[str, str]]:
    return [(each.case.case_key, each.sha256) for each in chunk]


def _scored(
    chunk: Sequence[Listed], prepared: Sequence[PreparedCase], sessions: Sequence[ModelSession]
) -> list[ScoredCase]:
    said = [run_version(session, [each.inputs[index] for each in prepared]) for index, session in enumerate(sessions)]
    return [
        ScoredCase(
            case_key=each.case.case_key,
            case_sha256=each.sha256,
            study_key=each.case.study_key,
            group_key=each.case.group_key,
            frame_index=each.case.frame_index,
            slices=_slices(each.case.slices, prepared[place].quality),
            candidate=said[0][place],
            baseline=said[1][place] if len(said) > 1 else None,
        )
        for place, each in enumerate(chunk)
    ]


def _slices(slices: Mapping[str, str], quality: str) -> dict[str, str]:
    return {**slices, "quality": quality} if quality else dict(slices)


def run_version(session: ModelSession, inputs: Sequence[ModelInput | str]) -> list[VersionScore]:
    """What one version says of each input; a batch that fails is tried one by one, so that it costs one case."""
    given = [(place, each) for place, each in enumerate(inputs) if not isinstance(each, str)]
    said = [VersionScore(scores={}, failure=each if isinstance(each, str) else "") for each in inputs]
    if not given:
        return said
    limits = session.bundle.card.quality
    for (place, model_input), scores in zip(
        given, _scores(session, np.stack([each.tensor for _, each in given])), strict=True
    ):
        if isinstance(scores, str):
            said[place] = replace(said[place], failure=scores)
        else:
            said[place] = VersionScore(scores=scores, ungradable=judge_quality(model_input.statistics, limits))
    return said


def _scores(session: ModelSession, tensors: npt.NDArray[np.float32]) -> list[dict[str, float] | str]:
    try:
        return [dict(prediction.scores) for prediction in session.run(tensors)]
    except InferenceError as error:
        if len(tensors) == 1:
            return [str(error)]
        logger.warning("a batch of %d failed, and is run one by one: %s", len(tensors), error)
        return [each for tensor in tensors for each in _scores(session, tensor[np.newaxis])]
