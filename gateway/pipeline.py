"""The flow, in one file: from a complete study to result objects.

    study -> chosen images -> who judges -> de-identified study -> tensors -> predictions -> explanations
      -> acquisition findings -> judged images -> result objects

:func:`judge_studies` is the whole of it. Each stage is one call, data in, data out; no stage calls the next. Studies
share one thing, the batch that goes through a model. What fails for one image costs that image and says why; what fails
for one study costs that study. What runs in the shadow comes after, in :mod:`gateway.shadow`.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from datetime import datetime

import numpy as np
import numpy.typing as npt
import onnxruntime
from pydicom import Dataset

from drift.acquisition import AcquisitionFinding, judge_acquisition
from gateway.acquisition import Value, device_key, read_parameters
from gateway.canary import Assignment, assign, paused_words
from gateway.deidentify import Deidentifier
from gateway.errors import DeidentificationError, GatewayError, PausedError
from gateway.frames import Decoding, prepare_frame
from gateway.inference import Said, predict
from gateway.judgement import Explanation, FindingResult, JudgedImage, Priority, Role
from gateway.results import build_results
from gateway.routing import choose_rule, is_quality_control
from gateway.settings import Rule
from gateway.stages import ChosenImage, Engine, PreparedFrame, StudyJudgement
from gateway.study import DeidentifiedInstance, DeidentifiedStudy, Study
from gateway.vault import Vault
from models.card import Card
from models.errors import DecoderUnavailableError, InferenceError, ModelError, UnsafePixelError
from models.pixels import displayed_frame_count
from models.prediction import Prediction
from models.quality import judge_quality
from models.session import ModelSession
from xai.errors import ExplanationError, XaiError
from xai.gradcam import gradcam
from xai.overlay import to_source_grid
from xai.summary import summarise

logger = logging.getLogger(__name__)

MAXIMUM_FRAMES = 32
"""Frames of a multi-frame image that are judged; the rest is said to be not judged."""


def judge_studies(studies: Sequence[Study], engine: Engine, now: datetime) -> tuple[StudyJudgement, ...]:
    """Judge complete studies together. Raises nothing that concerns a single study: that stands in its judgement."""

    def prepare_study(study: Study) -> StudyJudgement:
        judgement = StudyJudgement(study=study)
        try:
            headers = read_headers(study)
            judgement.chosen = choose_images(study, headers, engine.rules, judgement.not_judged_reasons)
            parameters = acquisition_parameters(judgement.chosen, headers, engine.key)
            assignments = choose_versions(judgement, parameters, engine)
            deidentified = deidentify(
                judgement.chosen,
                study,
                engine.deidentifier,
                judgement.not_judged_reasons,
                judgement.quarantine_reasons,
            )
            if engine.vault is not None:
                remember_identity(deidentified, study, engine.vault, now)
            prepare_frames(deidentified, parameters, assignments, engine, judgement)
        except (GatewayError, DecoderUnavailableError) as error:
            judgement.error = error
        return judgement

    def finish_study(judgement: StudyJudgement) -> StudyJudgement:
        if judgement.error is not None:
            return judgement
        try:
            judgement.judged = tuple(
                judge_frame(frame, judgement.said[frame.key], engine) for frame in judgement.frames
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
    run_models(prepared, engine)
    return tuple(engine.threads.map(finish_study, prepared))


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


def acquisition_parameters(
    chosen: Sequence[ChosenImage], headers: Mapping[str, Dataset], key: bytes
) -> dict[str, dict[str, Value]]:
    """Instance key -> its acquisition parameters.

    They come from the original `headers`, since de-identification removes some of them; they hold no PHI.
    """
    keys = [image.instance.instance_key for image in chosen]
    return {each: dict(read_parameters(headers[each], site_key=key)) for each in keys}


def choose_versions(
    judgement: StudyJudgement, parameters: Mapping[str, Mapping[str, Value]], engine: Engine
) -> dict[str, dict[str, Assignment]]:
    """Instance key -> model name -> which version judges it, and which run beside; the same for a whole study.

    Raises
    ------
    PausedError
        A champion that should judge is left alone by its breaker, and studies are to wait for it.
    """
    devices: dict[str, set[str]] = {}
    for image in judgement.chosen:
        for name in image.rule.models:
            devices.setdefault(name, set()).add(device_key(parameters[image.instance.instance_key]))
    assignments, reasons = {}, {}
    for name, made_by in devices.items():
        champion = engine.sessions.get(name)
        if champion is None:
            reasons[name] = f"{name}: no champion version is loaded"
            continue
        chosen = assign(
            champion,
            engine.beside.get(name),
            engine.breakers,
            engine.key,
            study_key=judgement.study.study_key,
            devices=made_by,
        )
        canary = engine.beside[name].canary if chosen.skipped else None
        if canary is not None:
            judgement.add_failure(canary, Role.CANARY, chosen.skipped)
        reasons[name] = "" if chosen.role is Role.CANARY else why_paused(champion, engine)
        if reasons[name]:
            judgement.add_failure(champion, Role.CHAMPION, reasons[name])
        else:
            assignments[name] = chosen
    found = {}
    for image in judgement.chosen:
        key, names = image.instance.instance_key, image.rule.models
        found[key] = {name: assignments[name] for name in names if name in assignments}
        problems = [reasons[name] for name in names if reasons[name]]
        if problems:
            judgement.not_judged_reasons[key] = "; ".join(problems)
    return found


def why_paused(champion: ModelSession, engine: Engine) -> str:
    """Why a champion may not be asked, empty where it may.

    Raises
    ------
    PausedError
        It may not, and studies are to wait for it.
    """
    card = champion.bundle.card
    breaker = engine.breakers.of(card.name, card.version)
    if breaker.is_closed:
        return ""
    reason = f"{card.name} {card.version}: {paused_words(breaker.reason)}"
    if engine.paused == "wait":
        raise PausedError(f"waits for {reason}", wait_s=breaker.wait_s)
    return f"not judged, {reason}"


def prepare_frames(
    study: DeidentifiedStudy,
    parameters: Mapping[str, Mapping[str, Value]],
    assignments: Mapping[str, Mapping[str, Assignment]],
    engine: Engine,
    judgement: StudyJudgement,
) -> None:
    """Decode each image once, at no more than the size that is needed, and make each version's tensor of it.

    An image whose pixels harm the decoder ends there: its other frames are left alone.
    """
    made: list[PreparedFrame] = []
    for instance in study.instances:
        key, here = instance.instance_key, assignments[instance.instance_key]
        problems = [judgement.not_judged_reasons[key]] if key in judgement.not_judged_reasons else []
        try:
            count = displayed_frame_count(instance.dataset)
            if count > MAXIMUM_FRAMES:
                problems.append(f"{count} frames, of which the first {MAXIMUM_FRAMES} were judged")
            for index in range(min(count, MAXIMUM_FRAMES) if here else 0):
                decoding = Decoding(instance=instance, frame_index=index, decoder=engine.decoder)
                made.extend(prepare_frame(decoding, here, parameters[key], judgement, problems))
        except DecoderUnavailableError:
            raise
        except ModelError as error:
            problems.append(str(error))
            if isinstance(error, UnsafePixelError):
                judgement.quarantine_reasons[key] = str(error)
        if problems:
            judgement.not_judged_reasons[key] = "; ".join(dict.fromkeys(problems))
    judgement.frames = tuple(each for each in made if each.role is not Role.SHADOW)
    judgement.companions = tuple(each for each in made if each.role is Role.SHADOW)
    for name in {failure.model_name for failure in judgement.failures.values() if failure.role is Role.CANARY}:
        if any(each.stands_by and each.model_name == name for each in judgement.companions):
            judgement.fall_back(name)


def run_models(judgements: Sequence[StudyJudgement], engine: Engine) -> None:
    """Predictions of the versions that judge; where a canary fails on a study, the champion judges it."""
    todo = [(each, frame) for each in judgements if each.error is None for frame in each.frames]
    while todo:
        answers = predict([frame for _, frame in todo], engine.breakers, engine.fuse)
        fallen: dict[tuple[int, str], StudyJudgement] = {}
        for (judgement, frame), answer in zip(todo, answers, strict=True):
            if not isinstance(answer, InferenceError):
                judgement.said[frame.key] = answer
                continue
            judgement.add_failure(frame.session, frame.role, str(answer))
            if frame.role is Role.CANARY:
                fallen[id(judgement), frame.model_name] = judgement
            else:
                judgement.error = judgement.error or answer
        todo = []
        for (_, name), judgement in fallen.items():
            stand_ins = judgement.fall_back(name)
            if stand_ins and (reason := _why_paused(stand_ins[0].session, judgement, engine)):
                judgement.frames = tuple(each for each in judgement.frames if each.model_name != name)
                for frame in stand_ins:
                    judgement.not_judged_reasons[frame.instance_key] = reason
            else:
                todo.extend((judgement, frame) for frame in stand_ins)


def _why_paused(champion: ModelSession, judgement: StudyJudgement, engine: Engine) -> str:
    """As :func:`why_paused`, with waiting as the study's error."""
    try:
        reason = why_paused(champion, engine)
    except PausedError as error:
        judgement.error = error
        return str(error)
    if reason:
        judgement.add_failure(champion, Role.CHAMPION, reason)
    return reason


def judge_frame(frame: PreparedFrame, said: Said, engine: Engine) -> JudgedImage:
    """Findings, quality, explanation and acquisition findings of one frame."""
    card = frame.session.bundle.card
    return JudgedImage(
        instance_key=frame.instance_key,
        frame_index=frame.frame_index,
        prediction=said.prediction,
        card=card,
        findings=decide(said.prediction, card),
        ungradable_reasons=judge_quality(frame.model_input.statistics, card.quality),
        explanation=explain(frame, said.prediction),
        acquisition_findings=check_acquisition(frame, card),
        statistics=frame.model_input.statistics,
        parameters=frame.parameters,
        device_key=device_key(frame.parameters),
        picture=frame.picture,
        role=frame.role,
        inference_ms=said.inference_ms,
        provenance={
            "gateway_version": engine.gateway_version,
            "onnxruntime": onnxruntime.__version__,
            "providers": list(frame.session.providers_in_use),
            "batch": said.batch,
            "tensor_sha256": hashlib.sha256(np.ascontiguousarray(frame.model_input.tensor).data).hexdigest(),
            "deidentification": engine.profile_sha256,
            "least_side": frame.least_side,
            "decoder_scale": frame.decoded[0] / frame.model_input.grid.source_rows,
        },
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


def explain(frame: PreparedFrame, prediction: Prediction) -> Explanation | None:
    """Grad-CAM of the finding with the highest score; ``None`` where there is none, which is shown as not judged."""
    card = frame.session.bundle.card
    finding = max(card.findings, key=lambda each: prediction.scores[each.name])
    grid = frame.model_input.grid
    try:
        cam = gradcam(
            prediction.feature_map,
            prediction.probabilities,
            head_gradients(prediction, frame.session),
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
