"""What runs in the shadow: the same tensors, after everybody else has what they wait for.

A worker keeps what is to be run here until it has nothing else to do, or until so much waits that studies have to (see
the settings of [shadow]). Whatever goes wrong costs the shadow's own prediction, and is written down.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from gateway.canary import paused_words
from gateway.inference import predict
from gateway.judgement import JudgedImage, Role
from gateway.pipeline import judge_frame
from gateway.stages import Engine, Failure, PreparedFrame, StudyJudgement
from models.errors import InferenceError

FRAMES_AT_A_TIME = 4
"""Small pieces, so that a study that comes meanwhile waits little: a CPU takes no more at once anyway."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """What was said outside of one frame."""

    version: int
    decisions: Mapping[str, str]
    """By finding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowWork:
    """Some frames of one study, for the versions that run in its shadow."""

    study_key: str
    frames: tuple[PreparedFrame, ...]
    decided: Mapping[tuple[str, int, str], Decided]
    """By :attr:`~gateway.stages.PreparedFrame.key`."""

    @property
    def size_bytes(self) -> int:
        """Memory that waits with it, about: tensors are often the judging version's too."""
        return sum(frame.model_input.tensor.nbytes + frame.picture.nbytes for frame in self.frames)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowImage:
    """What a shadow said of one frame, held against what was said outside."""

    image: JudgedImage
    paired_version: int | None
    agrees: bool | None


@dataclass(slots=True, kw_only=True)
class ShadowOutcome:
    """What became of one piece in the shadow."""

    study_key: str
    images: list[ShadowImage] = field(default_factory=list)
    failures: dict[tuple[str, int], Failure] = field(default_factory=dict)

    def add_failure(self, frame: PreparedFrame, reason: str) -> None:
        """A version gave no prediction; the first reason stands."""
        card = frame.session.bundle.card
        failure = Failure(model_name=card.name, version=card.version, role=Role.SHADOW, reason=reason)
        self.failures.setdefault((card.name, card.version), failure)


def shadow_work(judgement: StudyJudgement) -> tuple[ShadowWork, ...]:
    """What is left to do in the shadow of a study that has been judged, in small pieces."""
    frames = judgement.companions
    decided = {
        (image.instance_key, image.frame_index, image.prediction.model_name): Decided(
            version=image.prediction.model_version, decisions=image.decisions
        )
        for image in judgement.judged
    }
    return tuple(
        ShadowWork(
            study_key=judgement.study.study_key, frames=frames[start : start + FRAMES_AT_A_TIME], decided=decided
        )
        for start in range(0, len(frames), FRAMES_AT_A_TIME)
    )


def run_shadow(work: ShadowWork, engine: Engine) -> ShadowOutcome:
    """Run the shadows of a piece. What the breaker of a version keeps away is a failure of it as well."""
    outcome = ShadowOutcome(study_key=work.study_key)
    allowed = []
    for frame in work.frames:
        card = frame.session.bundle.card
        breaker = engine.breakers.of(card.name, card.version)
        if breaker.is_closed:
            allowed.append(frame)
        else:
            outcome.add_failure(frame, paused_words(breaker.reason))
    for frame, answer in zip(allowed, predict(allowed, engine.breakers, engine.fuse), strict=True):
        if isinstance(answer, InferenceError):
            outcome.add_failure(frame, str(answer))
        else:
            outcome.images.append(paired(judge_frame(frame, answer, engine), work.decided.get(frame.key)))
    return outcome


def paired(image: JudgedImage, other: Decided | None) -> ShadowImage:
    """Hold a shadow's decisions against those of the version that judged, on the findings that both have."""
    if other is None:
        return ShadowImage(image=image, paired_version=None, agrees=None)
    own = image.decisions
    common = own.keys() & other.decisions.keys()
    agrees = all(own[name] == other.decisions[name] for name in common)
    return ShadowImage(image=image, paired_version=other.version, agrees=agrees if common else None)


@dataclass(slots=True, kw_only=True)
class Backlog:
    """Shadow work that waits, oldest first."""

    limit_bytes: int
    _waiting: deque[ShadowWork] = field(default_factory=deque)
    _size_bytes: int = 0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def is_full(self) -> bool:
        """Whether more waits than may."""
        return self._size_bytes > self.limit_bytes

    def extend(self, pieces: Iterable[ShadowWork]) -> None:
        """Let them wait."""
        for work in pieces:
            self._waiting.append(work)
            self._size_bytes += work.size_bytes

    def take(self) -> ShadowWork | None:
        """The one that has waited longest."""
        if not self._waiting:
            return None
        work = self._waiting.popleft()
        self._size_bytes -= work.size_bytes
        return work


def failures_of(frames: Sequence[PreparedFrame], reason: str) -> tuple[Failure, ...]:
    """A failure for each version of `frames`."""
    outcome = ShadowOutcome(study_key="")
    for frame in frames:
        outcome.add_failure(frame, reason)
    return tuple(outcome.failures.values())
