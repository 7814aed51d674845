"""Batches through sessions, with each study's failure kept to that study, and told to the version's breaker."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from gateway.breaker import Breakers
from gateway.fuse import Fuse
from gateway.judgement import Role
from models.errors import InferenceError
from models.prediction import Prediction
from models.preprocess import ModelInput
from models.session import CPU, CPU_BATCH, LARGEST_PROFILE_BATCH, ModelSession

NO_FUSE = Fuse()


class Runnable(Protocol):
    """What is needed of a prepared frame."""

    @property
    def study_key(self) -> str:
        """Whose failure it would be."""
        ...

    @property
    def session(self) -> ModelSession:
        """What it goes through."""
        ...

    @property
    def role(self) -> Role:
        """As what the session runs."""
        ...

    @property
    def model_input(self) -> ModelInput:
        """What goes through it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """A prediction, and how it came about."""

    prediction: Prediction
    inference_ms: float
    """Its share of the forward passes of its batch."""
    batch: int
    """Pictures that went through the graph at once, this one included."""


def predict(frames: Sequence[Runnable], breakers: Breakers, fuse: Fuse = NO_FUSE) -> list[Said | InferenceError]:
    """One answer a frame, in order; frames of one session go through it together, whatever study they are of.

    Where that fails, each study's go through by themselves, so that only those of a study that fails are errors.
    """
    answers: dict[int, Said | InferenceError] = {}
    by_session: defaultdict[int, list[int]] = defaultdict(list)
    for place, frame in enumerate(frames):
        by_session[id(frame.session)].append(place)
    for places in by_session.values():
        answers.update(_run(frames, places, breakers, fuse))
    return [answers[place] for place in range(len(frames))]


def _run(
    frames: Sequence[Runnable], places: list[int], breakers: Breakers, fuse: Fuse
) -> dict[int, Said | InferenceError]:
    session = frames[places[0]].session
    card = session.bundle.card
    breaker = breakers.of(card.name, card.version)
    studies: defaultdict[str, list[int]] = defaultdict(list)
    for place in places:
        studies[frames[place].study_key].append(place)
    tensors = np.stack([frames[place].model_input.tensor for place in places])
    started = time.perf_counter()
    is_champion = frames[places[0]].role is Role.CHAMPION
    try:
        with nullcontext() if is_champion else fuse.around(card.name, card.version):
            predictions = session.run(tensors)
    except InferenceError as error:
        if len(studies) == 1:
            breaker.failed(next(iter(studies)), str(error))
            return dict.fromkeys(places, error)
        answers: dict[int, Said | InferenceError] = {}
        for alone in studies.values():
            answers.update(_run(frames, alone, breakers, fuse))
        return answers
    each_s = (time.perf_counter() - started) / len(places)
    for study_key in studies:
        breaker.succeeded(study_key, each_s)
    return {
        place: Said(
            prediction=prediction,
            inference_ms=each_s * 1000,
            batch=piece_size(session, number, len(places)),
        )
        for number, (place, prediction) in enumerate(zip(places, predictions, strict=True))
    }


def piece_size(session: ModelSession, number: int, count: int) -> int:
    """How many of a batch of `count` went through the graph together with its picture `number`."""
    step = CPU_BATCH if session.providers_in_use[0] == CPU else LARGEST_PROFILE_BATCH
    return min(step, count - number // step * step)
