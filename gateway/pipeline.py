"""The flow, in one file: from a complete study to result objects.

    study -> chosen images -> de-identified study -> tensors -> predictions -> explanations -> acquisition findings
      -> judged images -> result objects

:func:`judge_studies` is the whole of it. Each stage is one call, data in, data out; no stage calls the next. Studies
share one thing, the batch that goes through a model. What fails for one image costs that image and says why; what fails
for one study costs that study.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydicom import Dataset

from drift.acquisition import AcquisitionFinding, judge_acquisition
from gateway.acquisition import Value, device_key, read_parameters
from gateway.deidentify import Deidentifier
from gateway.errors import DeidentificationError, GatewayError
from gateway.judgement import Explanation, FindingResult, JudgedImage, Priority
from gateway.results import ResultObject, build_results
from gateway.routing import choose_rule, is_quality_control
from gateway.settings import Rule
from gateway.study import DeidentifiedInstance, DeidentifiedStudy, ReceivedInstance, Study
from gateway.vault import Vault
from models.card import Card
from models.decoding import Decoder
from models.errors import DecoderUnavailableError, ModelError, UnsafePixelError
from models.pixels import displayed_frame_count, read_frame
from models.prediction import Prediction
from models.preprocess import Frame, ModelInput, prepare
from models.quality import judge_quality
from models.session import ModelSession
from xai.errors import ExplanationError, XaiError
from xai.gradcam import gradcam
from xai.overlay import to_source_grid
from xai.summary import summarise

logger = logging.getLogger(__name__)

PICTURE_LONG_SIDE = 1152
"""Of the key image's and the viewer's picture (pixels); 12 megapixels decoded at a quarter fit as they are."""
MAXIMUM_FRAMES = 32
"""Frames of a multi-frame image that are judged; the rest is said to be not judged."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenImage:
    """An image that a rule chose."""

    instance: ReceivedInstance
    rule: Rule


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedFrame:
    """One frame, ready for one model."""

    instance_key: str
    frame_index: int
    model_name: str
    model_input: ModelInput
    picture: npt.NDArray[np.uint8]
    """[rows, columns, 3], long side at most :data:`PICTURE_LONG_SIDE`."""
    parameters: Mapping[str, Value]


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
    judged: tuple[JudgedImage, ...] = ()
    results: tuple[ResultObject, ...] = ()
    error: GatewayError | ModelError | XaiError | None = None

    @property
    def priority(self) -> Priority:
        """The highest priority of its images."""
        return max((image.priority for image in self.judged), default=Priority.LOW)


def judge_studies(studies: Sequence[Study], engine: Engine, now: datetime) -> tuple[StudyJudgement, ...]:
    """Judge complete studies together. Raises nothing that concerns a single study: that stands in its judgement."""

    def prepare_study(study: Study) -> StudyJudgement:
        judgement = StudyJudgement(study=study)
        try:
            headers = read_headers(study)
            judgement.chosen = choose_images(study, headers, engine.rules, judgement.not_judged_reasons)
            deidentified = deidentify(
                judgement.chosen,
                study,
                engine.deidentifier,
                judgement.not_judged_reasons,
                judgement.quarantine_reasons,
            )
            if engine.vault is not None:
                remember_identity(deidentified, study, engine.vault, now)
            judgement.frames = prepare_frames(
                deidentified,
                headers,
                judgement.chosen,
                engine,
                judgement.not_judged_reasons,
                judgement.quarantine_reasons,
            )
        except (GatewayError, DecoderUnavailableError) as error:
            judgement.error = error
        return judgement

    def finish_study(judgement: StudyJudgement, predictions: Sequence[Prediction]) -> StudyJudgement:
        try:
            judgement.judged = tuple(
                judge_frame(frame, prediction, engine.sessions[frame.model_name])
                for frame, prediction in zip(judgement.frames, predictions, strict=True)
            )
            if judgement.judged:
                judgement.results = build_results(
                    judgement.study,
                    judgement.judged,
                    key=engine.key,
                    now=now,
                    gateway_version=engine.gateway_version,
                    identity=None if engine.vault is None else recall_identity(judgement.study, engine.vault),
                )
        except GatewayError as error:
            judgement.error = error
        return judgement

    prepared = list(engine.threads.map(prepare_study, studies))
    predictions = predict([frame for judgement in prepared for frame in judgement.frames], engine.sessions)
    return tuple(
        engine.threads.map(finish_study, prepared, split(predictions, [len(each.frames) for each in prepared]))
    )


def read_headers(study: Study) -> dict[str, Dataset]:
    """Instance key -> its data set without pixels. Holds PHI."""
    return {instance.instance_key: instance.read(pixels=False) for instance in study.instances}


def choose_images(
    study: Study, headers: Mapping[str, Dataset], rules: Sequence[Rule], reasons: dict[str, str]
) -> tuple[ChosenImage, ...]:
    """The images that a rule sends to a model; why the others are not goes into `reasons`."""
    chosen = []
    for instance in study.instances:
        header = headers[instance.instance_key]
        phantom = is_quality_control(header)
        rule = None if phantom else choose_rule(header, rules)
        if phantom:
            reasons[instance.instance_key] = f"quality control or phantom image: {phantom}"
        elif rule is None:
            reasons[instance.instance_key] = "no rule matches"
        elif not rule.models:
            reasons[instance.instance_key] = f"rule {rule.name!r} names no model"
        else:
            chosen.append(ChosenImage(instance=instance, rule=rule))
    return tuple(chosen)


def deidentify(
    chosen: Sequence[ChosenImage],
    study: Study,
    deidentifier: Deidentifier,
    reasons: dict[str, str],
    quarantine_reasons: dict[str, str],
) -> DeidentifiedStudy:
    """The chosen images without PHI; an image that cannot be de-identified goes to quarantine and says why."""
    instances: list[DeidentifiedInstance] = []
    for image in chosen:
        alone = Study(study_key=study.study_key, instances=(image.instance,))
        try:
            instances.extend(deidentifier.study(alone).instances)
        except GatewayError as error:
            reasons[image.instance.instance_key] = str(error)
            if isinstance(error, DeidentificationError):
                quarantine_reasons[image.instance.instance_key] = str(error)
    return DeidentifiedStudy(study_key=study.study_key, instances=tuple(instances))


def remember_identity(deidentified: DeidentifiedStudy, study: Study, vault: Vault, now: datetime) -> None:
    """Seal who and what a study belongs to, under the pseudonym that its images have from here on.

    The image is read again: the headers of :func:`read_headers` have been looked at, and no longer hold the bytes that
    were received.
    """
    if not deidentified.instances:
        return
    first = min(deidentified.instances, key=lambda each: str(each.dataset.SOPInstanceUID))
    (received,) = (each for each in study.instances if each.instance_key == first.instance_key)
    vault.remember(
        pseudonym=str(first.dataset.PatientID),
        study_key=deidentified.study_key,
        instance_key=first.instance_key,
        source=received.read(pixels=False),
        now=now,
    )


def recall_identity(study: Study, vault: Vault) -> Dataset:
    """The patient and study that results are for."""
    return vault.recall(study.study_key).header


def prepare_frames(
    study: DeidentifiedStudy,
    headers: Mapping[str, Dataset],
    chosen: Sequence[ChosenImage],
    engine: Engine,
    reasons: dict[str, str],
    quarantine_reasons: dict[str, str],
) -> tuple[PreparedFrame, ...]:
    """Decode each image once, at no more than the size that is needed, and make each model's tensor of it.

    An image whose pixels harm the decoder ends there: its other frames are left alone.

    Acquisition parameters come from the original `headers`, since de-identification removes some of them; they hold
    no PHI.
    """
    models = {image.instance.instance_key: image.rule.models for image in chosen}
    frames: list[PreparedFrame] = []
    for instance in study.instances:
        key = instance.instance_key
        sessions = {name: engine.sessions[name] for name in models[key] if name in engine.sessions}
        problems = [f"{name}: no champion version is loaded" for name in models[key] if name not in sessions]
        try:
            count = displayed_frame_count(instance.dataset)
            if count > MAXIMUM_FRAMES:
                problems.append(f"{count} frames, of which the first {MAXIMUM_FRAMES} were judged")
            parameters = read_parameters(headers[key], site_key=engine.key)
            for index in range(min(count, MAXIMUM_FRAMES) if sessions else 0):
                frame = read_frame(
                    instance.dataset,
                    frame_index=index,
                    least_side=_least_side(sessions.values()),
                    decoder=engine.decoder,
                )
                inputs = model_inputs(frame, sessions, problems)
                picture = display_picture(frame)
                frames.extend(
                    PreparedFrame(
                        instance_key=key,
                        frame_index=index,
                        model_name=name,
                        model_input=model_input,
                        picture=picture,
                        parameters=parameters,
                    )
                    for name, model_input in inputs.items()
                )
        except DecoderUnavailableError:
            raise
        except ModelError as error:
            problems.append(str(error))
            if isinstance(error, UnsafePixelError):
                quarantine_reasons[key] = str(error)
        if problems:
            reasons[key] = "; ".join(dict.fromkeys(problems))
    return tuple(frames)


def model_inputs(frame: Frame, sessions: Mapping[str, ModelSession], problems: list[str]) -> dict[str, ModelInput]:
    """Each model's tensor of a frame; one that does not take it goes into `problems`, and costs the others nothing."""
    inputs: dict[str, ModelInput] = {}
    for name, session in sessions.items():
        try:
            inputs[name] = prepare(frame, session.bundle.card.pixel_contract)
        except ModelError as error:
            problems.append(f"{name}: {error}")
    return inputs


def _least_side(sessions: Iterable[ModelSession]) -> int:
    """Shortest side at which a picture may be decoded: enough for the tensor's crop and for the key image."""
    sizes = (session.bundle.card.pixel_contract.size for session in sessions)
    return max(640, *(max(size.rows, size.columns) * 3 // 2 for size in sizes))


def display_picture(frame: Frame) -> npt.NDArray[np.uint8]:
    """uint8 [rows, columns, 3], the frame as displayed, long side at most :data:`PICTURE_LONG_SIDE`."""
    if frame.is_colour and max(frame.pixels.shape) <= PICTURE_LONG_SIDE:
        return np.asarray(frame.pixels, dtype=np.uint8)
    if frame.is_colour:
        picture = Image.fromarray(np.asarray(frame.pixels, dtype=np.uint8))
    else:
        levels = np.asarray(frame.pixels, dtype=np.float32)
        picture = Image.fromarray((np.clip(levels, 0, 1) * 255 + 0.5).astype(np.uint8))
    scale = PICTURE_LONG_SIDE / max(picture.size)
    if scale < 1:
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    return np.asarray(picture.convert("RGB"))


def predict(frames: Sequence[PreparedFrame], sessions: Mapping[str, ModelSession]) -> list[Prediction]:
    """One prediction a frame, in order; frames of one model go through it together, whatever study they are of."""
    predictions: dict[int, Prediction] = {}
    for name, session in sessions.items():
        places = [place for place, frame in enumerate(frames) if frame.model_name == name]
        if places:
            tensors = np.stack([frames[place].model_input.tensor for place in places])
            predictions.update(zip(places, session.run(tensors), strict=True))
    return [predictions[place] for place in range(len(frames))]


def split(predictions: Sequence[Prediction], counts: Sequence[int]) -> list[Sequence[Prediction]]:
    """Cut a batch's predictions into those of each study."""
    ends = np.cumsum(counts).tolist()
    return [predictions[end - count : end] for end, count in zip(ends, counts, strict=True)]


def judge_frame(frame: PreparedFrame, prediction: Prediction, session: ModelSession) -> JudgedImage:
    """Findings, quality, explanation and acquisition findings of one frame."""
    card = session.bundle.card
    return JudgedImage(
        instance_key=frame.instance_key,
        frame_index=frame.frame_index,
        prediction=prediction,
        card=card,
        findings=decide(prediction, card),
        ungradable_reasons=judge_quality(frame.model_input.statistics, card.quality),
        explanation=explain(frame, prediction, session),
        acquisition_findings=check_acquisition(frame, card),
        statistics=frame.model_input.statistics,
        parameters=frame.parameters,
        device_key=device_key(frame.parameters),
        picture=frame.picture,
    )


def decide(prediction: Prediction, card: Card) -> tuple[FindingResult, ...]:
    """Hold each finding's score against its operating point."""
    results = []
    for finding in card.findings:
        score = prediction.scores[finding.name]
        present = score >= finding.operating_point
        urgent = finding.high_priority_from is None or score >= finding.high_priority_from
        results.append(
            FindingResult(
                name=finding.name,
                title=finding.title,
                code=finding.code,
                score=score,
                operating_point=finding.operating_point,
                present=present,
                priority=(Priority.HIGH if urgent else Priority.MEDIUM) if present else Priority.LOW,
            )
        )
    return tuple(results)


def explain(frame: PreparedFrame, prediction: Prediction, session: ModelSession) -> Explanation | None:
    """Grad-CAM of the finding with the highest score; ``None`` where there is none, which is shown as not judged."""
    card = session.bundle.card
    finding = max(card.findings, key=lambda each: prediction.scores[each.name])
    grid = frame.model_input.grid
    try:
        cam = gradcam(
            prediction.feature_map,
            prediction.probabilities,
            head_gradients(prediction, session),
            card.label_indices(finding),
            card.activation,
        )
        rows, columns = frame.picture.shape[:2]
        return Explanation(
            finding_name=finding.name,
            heat=to_source_grid(cam, grid, rows, columns),
            cam=cam,
            summary=summarise(cam, grid),
        )
    except XaiError as error:
        logger.warning("image %s: explanation not judged: %s", frame.instance_key, error)
        return None


def head_gradients(prediction: Prediction, session: ModelSession) -> npt.NDArray[np.float32]:
    """[K, c], how each logit depends on the feature map: the head's weights, or the gradient that the run gave."""
    gradients = session.head_weight if prediction.logit_gradients is None else prediction.logit_gradients
    if gradients is None:
        raise ExplanationError(f"{prediction.model_name} gives neither a linear head nor gradients")
    return gradients


def check_acquisition(frame: PreparedFrame, card: Card) -> tuple[AcquisitionFinding, ...]:
    """Hold the acquisition parameters against the range that the model version was validated on."""
    return judge_acquisition(frame.parameters, card.acquisition)
