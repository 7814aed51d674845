"""Pictures of a few cases with both versions' heat maps side by side."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from evaluation.cases import ScoredCases
from gateway.comparison.scoring import Preparation
from gateway.frames import display_picture
from gateway.saved.cases import Case
from models.card import Finding
from models.errors import InferenceError, ModelError
from models.frame import Frame
from models.preprocess import prepare
from models.session import ModelSession
from xai.errors import ExplanationError, XaiError
from xai.gradcam import gradcam
from xai.overlay import blend, to_source_grid

LONG_SIDE = 320
MOST_CHANGED, MOST_WRONG, RANDOM = 8, 3, 4
CHANGED = "changes side"
WRONG_CANDIDATE = "candidate wrong and sure"
WRONG_BASELINE = "baseline wrong and sure"
BY_CHANCE = "chosen by chance"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A unit whose heat maps are shown."""

    unit: str
    reasons: tuple[str, ...]
    score: float
    baseline_score: float | None
    truth: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatMaps:
    """Pictures of one case as JPEG in base64; empty where there is none, and ``problem`` says why."""

    picture: str
    heat: tuple[str, ...]
    """Of each version, candidate first."""
    problem: str = ""


def choose(cases: ScoredCases, *, seed: int) -> tuple[Choice, ...]:
    """Cases that change side, those of which each version is sure and wrong, and a few by chance.

    A version is the surer, the farther its score lies from the operating point, as a share of the way to 0 or 1.
    """
    reasons: dict[int, list[str]] = {}
    for place in _changed(cases):
        reasons.setdefault(place, []).append(CHANGED)
    candidate = _wrong(cases, cases.scores, cases.operating_point)
    for place in candidate:
        reasons.setdefault(place, []).append(WRONG_CANDIDATE)
    if cases.baseline_scores is not None and cases.baseline_operating_point is not None:
        for place in _wrong(cases, cases.baseline_scores, cases.baseline_operating_point):
            reasons.setdefault(place, []).append(WRONG_BASELINE)
    drawn = np.random.default_rng(seed).permutation(cases.count)
    for place in [int(each) for each in drawn if int(each) not in reasons][:RANDOM]:
        reasons[place] = [BY_CHANCE]
    return tuple(
        Choice(
            unit=str(cases.case_keys[place]),
            reasons=tuple(found),
            score=float(cases.scores[place]),
            baseline_score=None if cases.baseline_scores is None else float(cases.baseline_scores[place]),
            truth=int(cases.truth[place]),
        )
        for place, found in reasons.items()
    )


def _changed(cases: ScoredCases) -> list[int]:
    if cases.baseline_scores is None or cases.baseline_operating_point is None:
        return []
    present = cases.scores >= cases.operating_point
    changed = np.flatnonzero(present != (cases.baseline_scores >= cases.baseline_operating_point))
    step = np.abs(cases.scores[changed] - cases.baseline_scores[changed])
    return [int(place) for place in changed[np.argsort(-step, kind="stable")][:MOST_CHANGED]]


def _wrong(cases: ScoredCases, scores: npt.NDArray[np.float64], operating_point: float) -> list[int]:
    present = scores >= operating_point
    wrong = np.flatnonzero((cases.truth >= 0) & (present != (cases.truth == 1)))
    away = np.where(present, (scores - operating_point) / (1 - operating_point), 1 - scores / operating_point)
    return [int(place) for place in wrong[np.argsort(-away[wrong], kind="stable")][:MOST_WRONG]]


def heat_maps(
    cases: Iterable[Case],
    wanted: Mapping[str, Finding],
    preparation: Preparation,
    sessions: Sequence[ModelSession],
) -> Iterator[tuple[str, HeatMaps]]:
    """Case key and pictures of every wanted case, as the cases come by; ends with the last one that is wanted."""
    left = set(wanted)
    for case in cases:
        if not left:
            return
        if case.case_key not in left:
            continue
        left.discard(case.case_key)
        frame = preparation.frame(case)
        if isinstance(frame, str):
            yield case.case_key, HeatMaps(picture="", heat=(), problem=frame)
            continue
        yield case.case_key, _heat_maps(frame, wanted[case.case_key], sessions)


def _heat_maps(frame: Frame, finding: Finding, sessions: Sequence[ModelSession]) -> HeatMaps:
    picture = _small(display_picture(frame))
    size = (picture.shape[0], picture.shape[1])
    heat, problems = [], []
    for session in sessions:
        try:
            heat.append(_jpeg(blend(picture, _heat(frame, finding, session, size), alpha=0.55)))
        except (ModelError, XaiError) as error:
            heat.append("")
            problems.append(str(error))
    return HeatMaps(picture=_jpeg(picture), heat=tuple(heat), problem="; ".join(problems))


def _heat(frame: Frame, finding: Finding, session: ModelSession, size: tuple[int, int]) -> npt.NDArray[np.float32]:
    card = session.bundle.card
    (own,) = (each for each in card.findings if each.name == finding.name)
    model_input = prepare(frame, card.pixel_contract)
    predictions = session.run(model_input.tensor[np.newaxis])
    if not predictions:
        raise InferenceError("no prediction came back")
    prediction = predictions[0]
    gradients = session.head_weight if prediction.logit_gradients is None else prediction.logit_gradients
    if gradients is None:
        raise ExplanationError("the version gives neither a linear head nor gradients")
    cam = gradcam(prediction.feature_map, prediction.probabilities, gradients, card.label_indices(own), card.activation)
    return to_source_grid(cam, model_input.grid, *size)


def _small(picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    image = Image.fromarray(picture)
    image.thumbnail((LONG_SIDE, LONG_SIDE), Image.Resampling.BILINEAR)
    return np.asarray(image)


def _jpeg(picture: npt.NDArray[np.uint8]) -> str:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=82)
    return base64.b64encode(stream.getvalue()).decode("ascii")
