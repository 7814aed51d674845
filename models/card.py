"""The model card: everything about a model version that is not its weights.

A *bundle* is a folder with ``model.onnx``, ``card.yaml``, ``reference.npz`` and ``golden.npz``. The card states labels
and codes, the pixel contract, operating points, the acquisition range the version was validated on, its training data,
its metrics, what it must show before it is let in, and the sha256 of every other file. A bundle never changes; a new
threshold is a new version.

Cards written before golden inputs and acceptance criteria were asked for stay valid; :mod:`models.bundle_check` says
what a new version lacks.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from models.errors import BundleError

CARD_FILE = "card.yaml"
MODEL_FILE = "model.onnx"
REFERENCE_FILE = "reference.npz"
GOLDEN_FILE = "golden.npz"

DVC_HASH = r"md5:[0-9a-f]{32}(\.dir)?"
"""How a card spells DVC's hash of a file, or with ``.dir`` of a folder."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class CodedConcept(_Strict):
    """A coded concept as DICOM spells it (PS3.3 section 8)."""

    value: str = Field(max_length=16)
    """(0008,0100) *Code Value*, or the long or URN form where it does not fit."""
    scheme: str = Field(max_length=16)
    """(0008,0102) *Coding Scheme Designator*: ``SCT``, ``LN``, ``DCM``, or a private ``99...``."""
    meaning: str = Field(max_length=64)
    """(0008,0104) *Code Meaning*."""


class Label(_Strict):
    """One output of the network, in the order of the ``logits`` axis."""

    name: str
    title: str
    code: CodedConcept | None = None


class Finding(_Strict):
    """A decision the model makes: a score (a probability) held against an operating point.

    The score is the sum of the probabilities of ``labels``.
    """

    name: str
    title: str
    labels: tuple[str, ...] = Field(min_length=1)
    operating_point: float = Field(gt=0, lt=1)
    """The finding is *present* when its score is at or above this."""
    high_priority_from: float | None = Field(default=None, gt=0, le=1)
    """Score at or above which a present finding is HIGH in the worklist; below it MEDIUM; ``None``: always HIGH."""
    code: CodedConcept


class Size(_Strict):
    rows: int = Field(gt=0)
    columns: int = Field(gt=0)


class PixelContract(_Strict):
    """How a source picture becomes the tensor ``image`` float32 [N, C, rows, columns]."""

    photometric_interpretation: Literal["RGB", "MONOCHROME2"]
    """What the model reads. Colour models refuse greyscale sources; greyscale models refuse colour ones."""
    channels: Literal[1, 3]
    """Channels of the tensor; a greyscale source is repeated where this is 3."""
    size: Size
    crop: Literal["none", "field_of_view"]
    """``field_of_view``: crop to the bright disc of a fundus photograph, pad to a square, before resizing."""
    intensity: Literal["eight_bit", "percentile"]
    """``eight_bit``: value / 255. ``percentile``: 0.5th to 99.5th percentile of the picture mapped to 0 to 1."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    reason: str
    """Why these choices: which training pipeline the network's weights expect."""

    @model_validator(mode="after")
    def _one_value_a_channel(self) -> PixelContract:
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(f"mean and std need {self.channels} values each, one a channel")
        return self


class QualityLimits(_Strict):
    """Limits outside which a picture is *ungradable*; each is set on training pictures with a margin.

    Keys are names of image statistics (see :mod:`models.quality`), values are inclusive bounds.
    """

    minimum: dict[str, float] = Field(default_factory=dict)
    maximum: dict[str, float] = Field(default_factory=dict)


class NumericRange(_Strict):
    minimum: float | None = None
    maximum: float | None = None


class AcquisitionRange(_Strict):
    """What acquisition the version was validated on. Keys are snake_case PS3 keywords (``manufacturer``, ``rows``).

    A parameter in neither mapping is not judged.
    """

    values: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Allowed values, compared without case and surrounding space. An empty tuple means: none was validated."""
    ranges: dict[str, NumericRange] = Field(default_factory=dict)
    severity: dict[str, Literal["info", "warning", "critical"]] = Field(default_factory=dict)
    """Severity of a finding on that parameter; ``warning`` where not stated."""


class TrainingData(_Strict):
    name: str
    source: str
    licence: str
    count: int
    split: str
    sha256: str
    """Hash over the sorted (relative path, file sha256) list."""
    dvc_hash: str = Field(default="", pattern=rf"^({DVC_HASH})?$")
    """What DVC calls these files, ``md5:<32 digits>.dir`` for a folder; empty where not stated. See
    :mod:`models.dvc`."""
    remarks: str = ""


class Metric(_Strict):
    name: str
    dataset: str
    value: float
    low: float | None = None
    high: float | None = None
    """Bounds of the 95 % confidence interval."""
    method: str


class Criterion(_Strict):
    """One thing that a version must show in a comparison: a figure within inclusive bounds."""

    name: str
    """Unique in the card; reports name it."""
    finding: str
    metric: str
    """``auc_roc``, ``sensitivity``, ... as :mod:`evaluation` names them."""
    statistic: Literal["value", "low", "high", "difference", "difference_low", "difference_high"] = "value"
    """The figure itself, a bound of its 95 % interval, or the same of candidate minus champion."""
    slice: str = Field(default="", pattern=r"^(|each:[a-z_]+|[a-z_]+=.+)$")
    """``""``: all cases; ``sex=F``: one slice; ``each:device``: every slice of at least ``least_cases`` cases."""
    minimum: float | None = Field(default=None, allow_inf_nan=False)
    maximum: float | None = Field(default=None, allow_inf_nan=False)

    @model_validator(mode="after")
    def _has_a_bound(self) -> Criterion:
        if self.minimum is None and self.maximum is None:
            raise ValueError(f"criterion {self.name} has neither a minimum nor a maximum")
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise ValueError(f"criterion {self.name} has a minimum above its maximum")
        return self

    def in_words(self) -> str:
        """``sensitivity (low) of referable_dr, sex=F: at least 0.8``."""
        statistic = "" if self.statistic == "value" else f" ({self.statistic.replace('_', ', ')})"
        bounds = [
            f"at {which} {bound:g}"
            for which, bound in (("least", self.minimum), ("most", self.maximum))
            if bound is not None
        ]
        where = f", {self.slice}" if self.slice else ""
        return f"{self.metric}{statistic} of {self.finding}{where}: {' and '.join(bounds)}"


class Acceptance(_Strict):
    """What a version must show before it may replace the champion, written down before it is tried.

    References
    ----------
    FDA, "Marketing Submission Recommendations for a Predetermined Change Control Plan", 2024: acceptance criteria are
    set before the modification is verified.
    """

    written_at: date
    written_by: str = Field(min_length=1)
    studies: str = Field(min_length=1)
    """What the version is to be tried on, in words."""
    least_cases: int = Field(gt=0)
    """Cases below which a figure decides nothing."""
    criteria: tuple[Criterion, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_are_unique(self) -> Acceptance:
        names = [criterion.name for criterion in self.criteria]
        if len(set(names)) != len(names):
            raise ValueError("two criteria share a name")
        return self


class GoldenRun(_Strict):
    """How far a run on the golden inputs may lie from what ``golden.npz`` says. See :mod:`models.golden`."""

    score_tolerance: float = Field(gt=0, le=0.05)
    """Largest absolute difference of a score. Above 0.05 a check would let another model pass."""
    logit_tolerance: float = Field(gt=0, allow_inf_nan=False)
    """Largest absolute difference of a logit."""
    embedding_tolerance: float = Field(default=0.01, gt=0, allow_inf_nan=False)
    """Largest absolute difference of a component of the embedding, which drift is judged on."""


class Card(_Strict):
    """A model card, complete and valid once constructed."""

    name: str = Field(pattern=r"^[a-z][a-z0-9-]*$")
    version: int = Field(gt=0)
    title: str
    demonstration: bool
    """True for models with no clinical validation; every result then says so."""
    intended_use: str
    limits: tuple[str, ...]
    modalities: tuple[str, ...]
    labels: tuple[Label, ...] = Field(min_length=2)
    activation: Literal["softmax", "sigmoid"]
    findings: tuple[Finding, ...] = Field(min_length=1)
    pixel_contract: PixelContract
    quality: QualityLimits | None = None
    acquisition: AcquisitionRange
    training_data: tuple[TrainingData, ...]
    metrics: tuple[Metric, ...]
    opset: int
    licence: str
    algorithm_family: CodedConcept
    """TID 4019 *Algorithm Family* (CID 7162)."""
    golden: GoldenRun | None = None
    acceptance: Acceptance | None = None
    files: dict[str, str]
    """sha256 (hexadecimal) of every file of the bundle but the card."""

    @field_validator("files")
    @classmethod
    def _has_needed_files(cls, files: dict[str, str]) -> dict[str, str]:
        missing = {MODEL_FILE, REFERENCE_FILE} - files.keys()
        if missing:
            raise ValueError(f"no sha256 of {', '.join(sorted(missing))}")
        return files

    @model_validator(mode="after")
    def _findings_name_labels(self) -> Card:
        names = [label.name for label in self.labels]
        if len(set(names)) != len(names):
            raise ValueError("two labels share a name")
        for finding in self.findings:
            unknown = set(finding.labels) - set(names)
            if unknown:
                raise ValueError(f"finding {finding.name} names labels that do not exist: {sorted(unknown)}")
        return self

    @model_validator(mode="after")
    def _golden_run_has_its_file(self) -> Card:
        if self.golden is not None and GOLDEN_FILE not in self.files:
            raise ValueError(f"a golden run is stated, but no sha256 of {GOLDEN_FILE}")
        if self.golden is None and GOLDEN_FILE in self.files:
            raise ValueError(f"{GOLDEN_FILE} is listed, but golden does not state tolerances")
        return self

    @model_validator(mode="after")
    def _criteria_name_findings(self) -> Card:
        known = {finding.name for finding in self.findings}
        for criterion in self.acceptance.criteria if self.acceptance else ():
            if criterion.finding not in known:
                raise ValueError(f"criterion {criterion.name} is about {criterion.finding}, which is no finding")
        return self

    def label_indices(self, finding: Finding) -> tuple[int, ...]:
        """Positions on the logits axis of the labels that `finding` sums."""
        names = [label.name for label in self.labels]
        return tuple(names.index(name) for name in finding.labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A model version on disk, its files verified against its card."""

    folder: Path
    card: Card

    @property
    def model_path(self) -> Path:
        return self.folder / MODEL_FILE

    @property
    def reference_path(self) -> Path:
        return self.folder / REFERENCE_FILE

    @property
    def golden_path(self) -> Path:
        return self.folder / GOLDEN_FILE

    @property
    def model_sha256(self) -> str:
        """sha256 of ``model.onnx``, hexadecimal: the identity of what ran."""
        return self.card.files[MODEL_FILE]


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def load_bundle(folder: Path) -> Bundle:
    """Read and verify the bundle in `folder`.

    Raises
    ------
    BundleError
        No card, a card that does not validate, or a file whose hash differs from the card's.
    """
    card_path = folder / CARD_FILE
    try:
        content = yaml.safe_load(card_path.read_text(encoding="utf-8"))
        card = Card.model_validate(content)
    except FileNotFoundError as error:
        raise BundleError(f"{folder}: no {CARD_FILE}") from error
    except (yaml.YAMLError, ValidationError) as error:
        raise BundleError(f"{card_path}: {error}") from error
    for name, expected in card.files.items():
        path = folder / name
        if not path.is_file():
            raise BundleError(f"{folder}: the card lists {name}, which is not there")
        found = file_sha256(path)
        if found != expected:
            raise BundleError(f"{path}: sha256 is {found}, the card says {expected}")
    return Bundle(folder=folder, card=card)
