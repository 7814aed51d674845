"""What the gateway says about one image: the values that pass from inference to results, store and worklist."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from drift.acquisition import AcquisitionFinding
from gateway.acquisition import Value
from models.card import Card, CodedConcept
from models.prediction import Prediction


class Priority(IntEnum):
    """The worklist's priority. The gateway only ever raises it, never lowers it."""

    LOW = 0
    MEDIUM = 1
    HIGH = 2


class Role(StrEnum):
    """As what a version gave a prediction."""

    CHAMPION = "champion"
    CANARY = "canary"
    """In the champion's place; its results are sent."""
    SHADOW = "shadow"
    """Beside whoever judged; nobody outside sees it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingResult:
    """One finding of a card, decided for one image."""

    name: str
    title: str
    code: CodedConcept
    score: float
    """Probability, 0 to 1."""
    operating_point: float
    present: bool
    priority: Priority


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Grad-CAM of one finding."""

    finding_name: str
    heat: npt.NDArray[np.float32]
    """[rows, columns] on the grid of :attr:`JudgedImage.picture`, 0 to 1."""
    cam: npt.NDArray[np.float32]
    """[h, w] on the model's own grid, un-normalised, >= 0."""
    summary: Mapping[str, float]
    """Named by :data:`xai.summary.EXPLANATION_NAMES`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedImage:
    """Everything that is known about one frame that a model read."""

    instance_key: str
    frame_index: int
    prediction: Prediction
    card: Card
    findings: tuple[FindingResult, ...]
    ungradable_reasons: tuple[str, ...]
    """Not empty: the picture is too poor, and no finding is asserted, present or absent."""
    explanation: Explanation | None
    """``None``: not judged, which differs from "nothing found"."""
    acquisition_findings: tuple[AcquisitionFinding, ...]
    statistics: Mapping[str, float]
    """Image statistics, named by :mod:`models.quality`."""
    parameters: Mapping[str, Value]
    """Acquisition parameters, read by :mod:`gateway.acquisition`."""
    device_key: str
    picture: npt.NDArray[np.uint8]
    """[rows, columns, 3], the source picture as displayed, long side at most 1152."""
    role: Role = Role.CHAMPION
    inference_ms: float | None = None
    """Its share of the forward passes of its batch."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """What else running it again has to know."""

    @property
    def priority(self) -> Priority:
        """The highest priority of its findings; LOW where the picture is ungradable."""
        if self.ungradable_reasons:
            return Priority.LOW
        return max((finding.priority for finding in self.findings), default=Priority.LOW)

    @property
    def decisions(self) -> dict[str, str]:
        """Finding name -> ``present``, ``absent``, or ``ungradable`` where the picture is too poor to say."""
        if self.ungradable_reasons:
            return {finding.name: "ungradable" for finding in self.findings}
        return {finding.name: "present" if finding.present else "absent" for finding in self.findings}
