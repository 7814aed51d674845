"""From predictions and readers' words to cases: one score and one truth each, for one version and one finding.

A case is what the readers spoke of: a study, one side of it, or one image. Its score is the highest among the images
that it is about and that the version could grade, as a study's finding is that of its most suspicious image.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import Select, select

from drift.acquisition import normalise
from gateway.reference_standard import Standard
from gateway.saved.characteristics import age_group, laterality, sex
from gateway.store import Store
from gateway.store.schema import prediction, saved_image, saved_study, study
from gateway.store.truth import Subject

ROWS_A_PAGE = 2000
SLICES = ("device", "manufacturer", "laterality", "age_group", "sex", "site", "month")
UNITS = ("image", "side", "study")
_UNDESCRIBED: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageScore:
    """One finding of one version on one image."""

    study_key: str
    instance_key: str
    laterality: str
    score: float
    operating_point: float
    ungradable: bool
    judged_at: datetime
    person: str
    """Of whom the study is, to resample their studies together: never written anywhere. Empty where nobody spoke of
    the study, as `slices` are."""
    slices: Mapping[str, str]


Scores = Mapping[str, list[ImageScore]]
"""Study key -> its images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A subject without model and finding."""

    study_key: str
    instance_key: str = ""
    laterality: str = ""

    @property
    def kind(self) -> str:
        """One of :data:`UNITS`."""
        return "image" if self.instance_key else "side" if self.laterality else "study"

    @property
    def key(self) -> str:
        """Unique, and made of the gateway's own keys."""
        return "-".join(filter(None, (self.study_key, self.instance_key, self.laterality)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Cases:
    """Cases of one version and one finding, and what was left out."""

    units: tuple[Unit, ...]
    scores: npt.NDArray[np.float64]
    """[N]."""
    truth: npt.NDArray[np.int8]
    """[N], 1 present, 0 absent."""
    groups: npt.NDArray[np.str_]
    """[N]."""
    slices: Mapping[str, npt.NDArray[np.str_]]
    judged_at: tuple[datetime, ...]
    operating_point: float


# --- predictions ---


def image_scores(
    store: Store, model_name: str, finding_name: str, spoken_of: Collection[str] | None = None
) -> Mapping[int, Scores]:
    """Version -> every score of that finding, from predictions and, where those have expired, from saved studies.

    Parameters
    ----------
    spoken_of
        Keys of the studies that readers spoke of: of the others, which may be a million, neither person nor slices are
        kept in memory. ``None``: of all.
    """
    found: defaultdict[int, defaultdict[str, list[ImageScore]]] = defaultdict(lambda: defaultdict(list))
    seen: set[tuple[int, str, int]] = set()
    for row in _rows(store, model_name):
        key = (row["model_version"], row["instance_key"], row["frame_index"])
        finding = next((each for each in row["findings"] if each["name"] == finding_name), None)
        if finding is None or key in seen:
            continue
        seen.add(key)
        found[row["model_version"]][row["study_key"]].append(
            _image_score(row, finding, spoken_of is None or row["study_key"] in spoken_of)
        )
    return {version: dict(scores) for version, scores in found.items()}


def _image_score(row: Mapping[str, Any], finding: Mapping[str, Any], described: bool) -> ImageScore:
    return ImageScore(
        study_key=row["study_key"],
        instance_key=row["instance_key"],
        laterality=laterality(row["parameters"]),
        score=float(finding["score"]),
        operating_point=float(finding["operating_point"]),
        ungradable=bool(row["ungradable_reasons"]),
        judged_at=row["judged_at"],
        person=row["person"] if described else "",
        slices=_slices(row) if described else _UNDESCRIBED,
    )


def _slices(row: Mapping[str, Any]) -> dict[str, str]:
    parameters, told = row["parameters"], row["characteristics"]
    return {
        "device": row["device_key"],
        "manufacturer": normalise("manufacturer", str(parameters.get("manufacturer") or "")).upper(),
        "laterality": laterality(parameters),
        "age_group": told.get("age_group", "") or age_group(parameters.get("patient_age_years")),
        "sex": told.get("sex", "") or sex(parameters),
        "site": told.get("site", ""),
        "month": f"{row['judged_at']:%Y-%m}",
    }


def _rows(store: Store, model_name: str) -> Iterator[dict[str, Any]]:
    names = ("study_key", "instance_key", "frame_index", "model_version", "findings", "ungradable_reasons")
    described = ("parameters", "device_key", "judged_at")
    live = (
        select(
            prediction.c.prediction_id.label("place"),
            *(prediction.c[name] for name in (*names, *described)),
            study.c.patient_id,
            saved_study.c.person,
            saved_study.c.characteristics,
        )
        .join(study, study.c.study_key == prediction.c.study_key)
        .outerjoin(saved_study, saved_study.c.study_key == prediction.c.study_key)
        .where(prediction.c.model_name == model_name)
    )
    for row in _pages(store, live, prediction.c.prediction_id):
        live_person = f"live {row['patient_id']}" if row["patient_id"] else ""
        yield {
            **row,
            "person": _person(row) if row["person"] else live_person or _person(row),
            "characteristics": row["characteristics"] or {},
        }
    kept = (
        select(
            saved_image.c.saved_image_id.label("place"),
            saved_study.c.study_key,
            *(saved_image.c[name] for name in ("instance_key", "frame_index", "model_version")),
            *(saved_image.c[name] for name in ("prediction", "device_key", "judged_at", "laterality")),
            saved_study.c.person,
            saved_study.c.characteristics,
        )
        .join(saved_study, saved_study.c.saved_key == saved_image.c.saved_key)
        .where(saved_image.c.model_name == model_name)
    )
    for row in _pages(store, kept, saved_image.c.saved_image_id):
        content = row["prediction"]
        yield {
            **row,
            "findings": content["findings"],
            "ungradable_reasons": content["ungradable_reasons"],
            "parameters": {**content["parameters"], "image_laterality": row["laterality"]},
            "person": _person(row),
        }


def _person(row: Mapping[str, Any]) -> str:
    """The pseudonym of a saved study's patient; who has none is nobody's twin."""
    return f"saved {row['person']}" if row["person"] else f"study {row['study_key']}"


def _pages(store: Store, statement: Select[Any], column: Any) -> Iterator[dict[str, Any]]:
    place = 0
    while True:
        page = statement.where(column > place).order_by(column).limit(ROWS_A_PAGE)
        with store.read() as connection:
            rows = connection.execute(page).mappings().all()
        for row in rows:
            yield dict(row)
        if len(rows) < ROWS_A_PAGE:
            return
        place = rows[-1]["place"]


# --- cases ---


def settle(standards: Mapping[Subject, Standard]) -> tuple[Mapping[Unit, Standard], int]:
    """Subjects of one finding as units, none counted twice; and how many were left aside for that.

    Where readers spoke of a whole study, words on its sides and images are left aside; where they spoke of sides, those
    on images.
    """
    by_study: defaultdict[str, dict[Unit, Standard]] = defaultdict(dict)
    for subject, standard in standards.items():
        unit = Unit(study_key=subject.study_key, instance_key=subject.instance_key, laterality=subject.laterality)
        if unit.instance_key:
            unit = Unit(study_key=unit.study_key, instance_key=unit.instance_key)
        by_study[subject.study_key][unit] = standard
    kept: dict[Unit, Standard] = {}
    for units in by_study.values():
        kinds = {unit.kind for unit in units}
        widest = next(kind for kind in reversed(UNITS) if kind in kinds)
        kept.update({unit: standard for unit, standard in units.items() if unit.kind == widest})
    return kept, sum(map(len, by_study.values())) - len(kept)


def usual_kind(units: Sequence[Unit]) -> str:
    """What readers speak of most; ``study`` where they have said nothing."""
    counts = Counter(unit.kind for unit in units)
    return counts.most_common(1)[0][0] if counts else "study"


def units_of(scores: Scores, kind: str) -> Iterator[Unit]:
    """Every unit of that kind that a version judged."""
    for study_key, images in scores.items():
        if kind == "image":
            yield from (Unit(study_key=study_key, instance_key=key) for key in {each.instance_key for each in images})
        elif kind == "side":
            sides = {each.laterality for each in images} & {"R", "L"}
            yield from (Unit(study_key=study_key, laterality=side) for side in sides)
        else:
            yield Unit(study_key=study_key)


def top_image(scores: Scores, unit: Unit) -> ImageScore | str:
    """The image that decides for `unit`, or why there is none."""
    images = scores.get(unit.study_key, [])
    if unit.instance_key:
        images = [each for each in images if each.instance_key == unit.instance_key]
    elif unit.laterality:
        images = [each for each in images if each.laterality == unit.laterality]
    if not images:
        return "not judged by this version"
    gradable = [each for each in images if not each.ungradable]
    if not gradable:
        return "ungradable to the model"
    return max(gradable, key=lambda each: each.score)


def fates(scores: Scores, standards: Mapping[Unit, Standard]) -> Iterator[tuple[Unit, ImageScore | str, int]]:
    """For each unit that readers spoke of: the image that decides, or why it is no case; and its truth, 1 or 0."""
    for unit, standard in standards.items():
        if standard.value == "":
            yield unit, "readers differ", 0
        elif standard.value == "ungradable":
            yield unit, "ungradable to the readers", 0
        else:
            yield unit, top_image(scores, unit), int(standard.value == "present")


def left_out(scores: Scores, standards: Mapping[Unit, Standard]) -> Mapping[str, int]:
    """Why -> how many units that readers spoke of are no case."""
    return Counter(fate for _, fate, _ in fates(scores, standards) if isinstance(fate, str))


def make_cases(scores: Scores, standards: Mapping[Unit, Standard]) -> Cases | None:
    """The cases of one version; ``None`` where there is none."""
    kept = [(unit, fate, truth) for unit, fate, truth in fates(scores, standards) if not isinstance(fate, str)]
    if not kept:
        return None
    return Cases(
        units=tuple(unit for unit, _, _ in kept),
        scores=np.array([image.score for _, image, _ in kept], dtype=np.float64),
        truth=np.array([value for _, _, value in kept], dtype=np.int8),
        groups=np.array([image.person for _, image, _ in kept], dtype=np.str_),
        slices={
            name: np.array([_slice(unit, image, name) for unit, image, _ in kept], dtype=np.str_) for name in SLICES
        },
        judged_at=tuple(image.judged_at for _, image, _ in kept),
        operating_point=kept[-1][1].operating_point,
    )


def _slice(unit: Unit, image: ImageScore, name: str) -> str:
    return unit.laterality or image.slices[name] if name == "laterality" else image.slices[name]
