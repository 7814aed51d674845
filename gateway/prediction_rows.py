"""What a worker knows of an image or of a failure, as rows of the store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any

from gateway.judgement import JudgedImage
from gateway.objects import heat_map_path
from gateway.shadow import ShadowImage
from gateway.stages import Failure
from gateway.store.predictions import FailureRow, PredictionRow


def prediction_row(image: JudgedImage) -> PredictionRow:
    """The row of one judged image."""
    prediction = image.prediction
    explanation = image.explanation
    return PredictionRow(
        instance_key=image.instance_key,
        frame_index=image.frame_index,
        model_name=prediction.model_name,
        model_version=prediction.model_version,
        model_sha256=prediction.model_sha256,
        demonstration=image.card.demonstration,
        logits=prediction.logits.tolist(),
        probabilities={
            label.name: float(value) for label, value in zip(image.card.labels, prediction.probabilities, strict=True)
        },
        findings=[
            {
                "name": finding.name,
                "title": finding.title,
                "score": float(finding.score),
                "operating_point": finding.operating_point,
                "present": finding.present,
                "priority": finding.priority.name,
                "code": finding.code.model_dump(),
            }
            for finding in image.findings
        ],
        ungradable_reasons=list(image.ungradable_reasons),
        explanation=None
        if explanation is None
        else {"finding_name": explanation.finding_name, **_plain(explanation.summary)},
        heat_map_path=None
        if explanation is None
        else heat_map_path(image.instance_key, image.frame_index, prediction.model_name, prediction.model_version),
        acquisition_findings=[asdict(finding) for finding in image.acquisition_findings],
        parameters=dict(image.parameters),
        statistics=_plain(image.statistics),
        device_key=image.device_key,
        embedding=prediction.embedding,
        role=image.role.value,
        inference_ms=image.inference_ms,
        provenance=dict(image.provenance),
    )


def shadow_row(shadow: ShadowImage) -> PredictionRow:
    """The row of what a shadow said."""
    return replace(prediction_row(shadow.image), paired_version=shadow.paired_version, agrees=shadow.agrees)


def failure_rows(failures: Iterable[Failure]) -> tuple[FailureRow, ...]:
    """The rows of versions that gave nothing."""
    return tuple(
        FailureRow(
            model_name=failure.model_name, version=failure.version, role=failure.role.value, reason=failure.reason
        )
        for failure in failures
    )


def _plain(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}
