"""The values that pass between the stages of :mod:`gateway.pipeline`."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from gateway.acquisition import Value
from gateway.breaker import Breakers
from gateway.canary import Beside
from gateway.deidentify import Deidentifier
from gateway.errors import GatewayError
from gateway.fuse import Fuse
from gateway.inference import Said
from gateway.judgement import JudgedImage, Priority, Role
from gateway.results import ResultObject
from gateway.settings import Rule
from gateway.study import ReceivedInstance, Study
from gateway.vault import Vault
from models.decoding import Decoder
from models.errors import ModelError
from models.preprocess import ModelInput
from models.session import ModelSession
from xai.errors import XaiError


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What stays in memory between studies."""

    rules: tuple[Rule, ...]
    sessions: Mapping[str, ModelSession]
    """Model name -> the session of its champion."""
    deidentifier: Deidentifier
    decoder: Decoder
    """Where compressed frames are decoded: processes with limits."""
    key: bytes
    """Site key from which pseudonyms and result UIDs are derived."""
    gateway_version: str
    threads: Executor
    """For what can be done for several studies at once before and after inference."""
    vault: Vault | None = None
    """The way back from pseudonyms; ``None`` where the site keeps none."""
    beside: Mapping[str, Beside] = field(default_factory=dict)
    """Model name -> its canary and its shadow."""
    breakers: Breakers = field(default_factory=Breakers)
    fuse: Fuse = field(default_factory=Fuse)
    paused: Literal["wait", "not judged"] = "wait"
    """What becomes of a study whose champion is left alone by its breaker."""
    profile_sha256: str = ""
    """Of the de-identification profile; for the record of how a prediction came about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenImage:
    """An image that a rule chose."""

    instance: ReceivedInstance
    rule: Rule


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedFrame:
    """One frame, ready for one version."""

    study_key: str
    instance_key: str
    frame_index: int
    session: ModelSession
    role: Role
    model_input: ModelInput
    picture: npt.NDArray[np.uint8]
    """[rows, columns, 3], long side at most :data:`PICTURE_LONG_SIDE`."""
    parameters: Mapping[str, Value]
    least_side: int
    """That the picture was decoded for."""
    decoded: tuple[int, int]
    """Rows and columns that it was decoded to."""
    stands_by: bool = False
    """Of the champion beside a canary: it judges where the canary fails."""

    @property
    def model_name(self) -> str:
        return self.session.bundle.card.name

    @property
    def key(self) -> tuple[str, int, str]:
        """What a judging prediction there is one of."""
        return self.instance_key, self.frame_index, self.model_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A version that gave no prediction for a study though it should have."""

    model_name: str
    version: int
    role: Role
    reason: str


@dataclass(slots=True, kw_only=True)
class StudyJudgement:
    """What became of one study. Filled stage by stage; ``error`` ends it."""

    study: Study
    chosen: tuple[ChosenImage, ...] = ()
    not_judged_reasons: dict[str, str] = field(default_factory=dict)
    """Instance key -> why it has no prediction."""
    quarantine_reasons: dict[str, str] = field(default_factory=dict)
    """Instance key -> why it belongs in quarantine: it cannot be de-identified, or its pixels harmed the decoder."""
    frames: tuple[PreparedFrame, ...] = ()
    """Of the versions that judge."""
    companions: tuple[PreparedFrame, ...] = ()
    """Of the versions that run beside them, unseen."""
    said: dict[tuple[str, int, str], Said] = field(default_factory=dict)
    """By :attr:`PreparedFrame.key`."""
    failures: dict[tuple[str, int, Role], Failure] = field(default_factory=dict)
    judged: tuple[JudgedImage, ...] = ()
    results: tuple[ResultObject, ...] = ()
    error: GatewayError | ModelError | XaiError | None = None

    @property
    def priority(self) -> Priority:
        """The highest priority of its images."""
        return max((image.priority for image in self.judged), default=Priority.LOW)

    def add_failure(self, session: ModelSession, role: Role, reason: str) -> None:
        """Note that a version gave no prediction; the first reason stands."""
        card = session.bundle.card
        failure = Failure(model_name=card.name, version=card.version, role=role, reason=reason)
        self.failures.setdefault((card.name, card.version, role), failure)

    def fall_back(self, model_name: str) -> tuple[PreparedFrame, ...]:
        """Let the champion judge where the canary failed; returns the champion's frames, which are still to be run.

        An image that the canary takes and the champion does not is then judged by neither, which is said.
        """
        stand_ins = [each for each in self.companions if each.model_name == model_name and each.stands_by]
        left = {each.instance_key for each in self.frames if each.model_name == model_name}
        for key in left - {each.instance_key for each in stand_ins}:
            reason = f"{model_name}: the canary failed on the study, and the champion does not take the image"
            known = self.not_judged_reasons.get(key)
            self.not_judged_reasons[key] = f"{known}; {reason}" if known else reason
        instead = tuple(replace(each, role=Role.CHAMPION, stands_by=False) for each in stand_ins)
        others = [each for each in self.frames if each.model_name != model_name]
        place = {instance.instance_key: number for number, instance in enumerate(self.study.instances)}
        self.frames = tuple(sorted([*others, *instead], key=lambda each: (place[each.instance_key], each.frame_index)))
        self.companions = tuple(
            each for each in self.companions if not (each.model_name == model_name and each.stands_by)
        )
        return instead
