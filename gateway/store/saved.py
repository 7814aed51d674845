"""Saved studies as rows: what was kept of a study, and what each model version said about its images.

A row promises that its folder is there, whole: the folder is renamed into place before the row is written, and the row
is marked as removed before the folder goes. So a kill in between leaves a folder that no row needs, never the reverse.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import takewhile
from typing import Any

from sqlalchemy import Connection, Select, delete, exists, func, insert, or_, select, update

from gateway.saved.characteristics import WITHHELD, laterality
from gateway.store.engine import Store
from gateway.store.schema import alarm, instance, prediction, saved_image, saved_study, saving_place, study

Place = tuple[datetime, str]
"""Where a walk over saved studies stands: when the last one was received, and its key."""
_PLACE_NAME = "predictions"
_STUDY_COLUMNS = tuple(column for column in saved_study.c if column.name != "removed_at")


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedPrediction:
    """What one model version said about one frame when it was judged."""

    model_name: str
    model_version: int
    role: str
    """As what the version judged: champion, canary, shadow."""
    device_key: str
    laterality: str
    judged_at: datetime
    content: Mapping[str, Any]
    """findings, probabilities, logits, ungradable_reasons, acquisition_findings, parameters, statistics, model_sha256,
    provenance, inference_ms; without what tells a patient's age or sex."""

    @property
    def findings(self) -> Sequence[Mapping[str, Any]]:
        """Findings with score, operating point and whether they are present."""
        found: Sequence[Mapping[str, Any]] = self.content["findings"]
        return found

    @property
    def is_ungradable(self) -> bool:
        """Whether the picture was too poor for this version to say anything."""
        return bool(self.content["ungradable_reasons"])


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedImage:
    """One frame of a saved study, with every prediction of it that is kept."""

    instance_key: str
    frame_index: int
    file_name: str
    """In the study's folder."""
    sha256: str
    """Of the file."""
    predictions: tuple[SavedPrediction, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedStudyRow:
    """One saved study. Holds no PHI."""

    saved_key: str
    study_key: str
    rule: str
    reason: str
    person: str
    """Pseudonym of the patient."""
    folder: str
    """Relative to the data folder."""
    instance_count: int
    size_bytes: int
    received_at: datetime
    saved_at: datetime
    modality: str
    characteristics: Mapping[str, str]
    images: tuple[SavedImage, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NewPrediction:
    """A prediction to be kept with a saved study."""

    instance_key: str
    frame_index: int
    file_name: str
    sha256: str
    prediction: SavedPrediction


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """How much is saved."""

    studies: int
    size_bytes: int


def add_saved_study(store: Store, row: SavedStudyRow, predictions: Iterable[NewPrediction]) -> str | None:
    """Write down a study whose folder is in place, all of it in one transaction.

    A study that was saved before gets the new folder, and what is new about its images is added.

    Returns
    -------
    A folder that is needed no more: the one that was replaced, or the new one where the study was removed meanwhile.
    """
    values = {column.name: getattr(row, column.name) for column in _STUDY_COLUMNS}
    values["characteristics"] = dict(row.characteristics)
    replaced: str | None = None
    with store.write() as connection:
        same = saved_study.c.saved_key == row.saved_key
        known = connection.execute(
            select(saved_study.c.folder, saved_study.c.removed_at).where(same).with_for_update()
        ).one_or_none()
        if known is None:
            connection.execute(insert(saved_study).values(values))
        elif known.removed_at is not None:
            return row.folder
        else:
            replaced = known.folder if known.folder != row.folder else None
            changed = {name: values[name] for name in ("folder", "instance_count", "size_bytes")}
            connection.execute(update(saved_study).where(same).values(changed))
        _put_predictions(connection, row.saved_key, predictions)
    return replaced


def add_predictions(store: Store, saved_key: str, predictions: Iterable[NewPrediction]) -> None:
    """Keep further predictions of images that are saved, such as those of a version that came later."""
    there = saved_study.c.saved_key == saved_key, saved_study.c.removed_at.is_(None)
    with store.write() as connection:
        if connection.execute(select(saved_study.c.saved_key).where(*there).with_for_update()).first() is None:
            return
        _put_predictions(connection, saved_key, predictions)


def _put_predictions(connection: Connection, saved_key: str, predictions: Iterable[NewPrediction]) -> None:
    for new in predictions:
        said = new.prediction
        same = (
            (saved_image.c.instance_key == new.instance_key)
            & (saved_image.c.frame_index == new.frame_index)
            & (saved_image.c.model_name == said.model_name)
            & (saved_image.c.model_version == said.model_version)
        )
        connection.execute(delete(saved_image).where(same))
        connection.execute(
            insert(saved_image).values(
                saved_key=saved_key,
                instance_key=new.instance_key,
                frame_index=new.frame_index,
                file_name=new.file_name,
                sha256=new.sha256,
                model_name=said.model_name,
                model_version=said.model_version,
                role=said.role,
                device_key=said.device_key,
                laterality=said.laterality,
                prediction=dict(said.content),
                judged_at=said.judged_at,
            )
        )


def saved_page(
    store: Store,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    models: frozenset[tuple[str, int | None]] = frozenset(),
    saved_before: datetime | None = None,
    place: Place | None = None,
    limit: int = 200,
) -> tuple[SavedStudyRow, ...]:
    """The next saved studies in order of arrival, each with all its images and predictions.

    Parameters
    ----------
    since, until
        Received at or after the first and before the second.
    models
        Names with a version, or with ``None`` for any: studies that one of them judged. Empty: all.
    saved_before
        What was saved at or before it; leaves out what came since a walk began.
    place
        ``received_at`` and ``saved_key`` of the last study of the page before.
    """
    found = select(*_STUDY_COLUMNS).where(saved_study.c.removed_at.is_(None))
    when, key = saved_study.c.received_at, saved_study.c.saved_key
    if since is not None:
        found = found.where(when >= since)
    if until is not None:
        found = found.where(when < until)
    if saved_before is not None:
        found = found.where(saved_study.c.saved_at <= saved_before)
    if models:
        found = found.where(_judged_by(models))
    if place is not None:
        found = found.where(when >= place[0], or_(when > place[0], key > place[1]))
    return _with_images(store, found.order_by(when, key).limit(limit))


def _judged_by(models: frozenset[tuple[str, int | None]]) -> Any:
    wanted = [
        (saved_image.c.model_name == name) & (True if version is None else saved_image.c.model_version == version)
        for name, version in sorted(models, key=str)
    ]
    return exists().where(saved_image.c.saved_key == saved_study.c.saved_key, or_(*wanted))


def find_saved(store: Store, key: str) -> SavedStudyRow | None:
    """The saved study of that saved key or study key, unless it was removed."""
    either = (saved_study.c.saved_key == key) | (saved_study.c.study_key == key)
    found = _with_images(store, select(*_STUDY_COLUMNS).where(either, saved_study.c.removed_at.is_(None)))
    return found[0] if found else None


def _with_images(store: Store, statement: Select[Any]) -> tuple[SavedStudyRow, ...]:
    with store.read() as connection:
        rows = connection.execute(statement).mappings().all()
        keys = [row["saved_key"] for row in rows]
        images = connection.execute(
            select(saved_image)
            .where(saved_image.c.saved_key.in_(keys))
            .order_by(saved_image.c.instance_key, saved_image.c.frame_index, saved_image.c.saved_image_id)
        ).mappings()
        by_study: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for image in images:
            by_study[image["saved_key"]].append(dict(image))
    return tuple(SavedStudyRow(**dict(row), images=_images(by_study[row["saved_key"]])) for row in rows)


def _images(rows: Sequence[Mapping[str, Any]]) -> tuple[SavedImage, ...]:
    frames: dict[tuple[str, int], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        frames[row["instance_key"], row["frame_index"]].append(row)
    return tuple(
        SavedImage(
            instance_key=instance_key,
            frame_index=frame_index,
            file_name=of_frame[0]["file_name"],
            sha256=of_frame[0]["sha256"],
            predictions=tuple(
                SavedPrediction(
                    model_name=row["model_name"],
                    model_version=row["model_version"],
                    role=row["role"],
                    device_key=row["device_key"],
                    laterality=row["laterality"],
                    judged_at=row["judged_at"],
                    content=row["prediction"],
                )
                for row in of_frame
            ),
        )
        for (instance_key, frame_index), of_frame in frames.items()
    )


def original_identifiers(store: Store, study_key: str) -> dict[str, dict[str, str]]:
    """Instance key -> what the study's and the image's originals are called, as long as their rows are kept. PHI."""
    columns = (study.c.study_instance_uid, study.c.accession_number, instance.c.sop_instance_uid)
    query = (
        select(instance.c.instance_key, *columns)
        .join(study, study.c.study_key == instance.c.study_key)
        .where(instance.c.study_key == study_key)
    )
    with store.read() as connection:
        rows = connection.execute(query).mappings().all()
    return {
        row["instance_key"]: {column.name: row[column.name] for column in columns if row[column.name]} for row in rows
    }


def was_removed(store: Store, study_key: str) -> bool:
    """Whether a study was saved once and then removed by a person: it is not saved again."""
    with store.read() as connection:
        found = connection.execute(
            select(saved_study.c.removed_at).where(saved_study.c.study_key == study_key)
        ).one_or_none()
    return found is not None and found.removed_at is not None


def mark_removed(connection: Connection, saved_keys: Sequence[str], now: datetime) -> tuple[str, ...]:
    """Mark saved studies as removed and drop what was said about their images; returns the folders that go."""
    going = saved_study.c.saved_key.in_(saved_keys) & saved_study.c.removed_at.is_(None)
    rows = connection.execute(select(saved_study.c.saved_key, saved_study.c.folder).where(going)).all()
    keys = [row.saved_key for row in rows]
    connection.execute(delete(saved_image).where(saved_image.c.saved_key.in_(keys)))
    # What is left says that there was a study and that it was removed: neither whose it was nor what it showed.
    gone = update(saved_study).where(saved_study.c.saved_key.in_(keys))
    connection.execute(gone.values(removed_at=now, person="", characteristics={}))
    return tuple(row.folder for row in rows)


def needed_folders(store: Store, folders: Sequence[str]) -> frozenset[str]:
    """Those of these folders, relative to the data folder, that a row promises."""
    query = select(saved_study.c.folder).where(saved_study.c.folder.in_(folders), saved_study.c.removed_at.is_(None))
    with store.read() as connection:
        return frozenset(connection.execute(query).scalars())


def holdings(store: Store) -> Holdings:
    """How much is saved now."""
    query = select(func.count(), func.coalesce(func.sum(saved_study.c.size_bytes), 0))
    with store.read() as connection:
        studies, size_bytes = connection.execute(query.where(saved_study.c.removed_at.is_(None))).one()
    return Holdings(studies=studies, size_bytes=int(size_bytes))


def saved_since(store: Store, rule: str, since: datetime) -> int:
    """How many studies a rule has saved since; those that were removed count, too."""
    query = select(func.count()).where(saved_study.c.rule == rule, saved_study.c.saved_at >= since)
    with store.read() as connection:
        return connection.execute(query).scalar_one()


def read_place(store: Store) -> int | None:
    """Up to which prediction studies have been looked at for saving; ``None`` while no rule saves."""
    query = select(saving_place.c.prediction_id).where(saving_place.c.name == _PLACE_NAME)
    with store.read() as connection:
        return connection.execute(query).scalar()


def write_place(store: Store, prediction_id: int | None) -> None:
    """Remember up to which prediction studies have been looked at; ``None`` forgets it."""
    with store.write() as connection:
        connection.execute(delete(saving_place))
        if prediction_id is not None:
            connection.execute(insert(saving_place).values(name=_PLACE_NAME, prediction_id=prediction_id))


def judged_after(
    store: Store, prediction_id: int, *, settled_before: datetime, limit: int
) -> tuple[tuple[int, str], ...]:
    """The next predictions in the order in which they were written: number and study.

    Ends before the first that is not `settled_before`: one with a lower number may be on its way still.
    """
    query = (
        select(prediction.c.prediction_id, prediction.c.study_key, prediction.c.judged_at)
        .where(prediction.c.prediction_id > prediction_id)
        .order_by(prediction.c.prediction_id)
        .limit(limit)
    )
    with store.read() as connection:
        rows = connection.execute(query).all()
    return tuple((row[0], row[1]) for row in takewhile(lambda row: row[2] <= settled_before, rows))


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedFrame:
    """One frame of a study as one version judged it: what saving decides on."""

    instance_key: str
    frame_index: int
    prediction: SavedPrediction

    @property
    def verdicts(self) -> dict[str, str]:
        """Finding -> present, absent, or ungradable where the picture was too poor to say."""
        poor = self.prediction.is_ungradable
        return {
            each["name"]: "ungradable" if poor else "present" if each["present"] else "absent"
            for each in self.prediction.findings
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedStudy:
    """A judged study, as far as saving looks at it. Its files hold PHI."""

    study_key: str
    modality: str
    received_at: datetime
    frames: tuple[JudgedFrame, ...]
    files: Mapping[str, str]
    """Instance key -> path in the object folder, of judged images whose original is there still."""
    size_bytes: int
    """Of these files together."""
    sources: Mapping[str, tuple[str, str]]
    """Instance key -> calling AE title, modality."""


_KEPT = (
    *("findings", "probabilities", "logits", "ungradable_reasons", "acquisition_findings", "statistics"),
    *("model_sha256", "inference_ms", "provenance"),
)


def judged_study(store: Store, study_key: str) -> JudgedStudy | None:
    """A study with all its predictions; ``None`` where there is none of that key, or nothing was judged."""
    images = select(instance).where(
        instance.c.study_key == study_key,
        exists().where(prediction.c.instance_key == instance.c.instance_key),
    )
    frames = select(prediction).where(prediction.c.study_key == study_key).order_by(prediction.c.prediction_id)
    with store.read() as connection:
        found = connection.execute(select(study).where(study.c.study_key == study_key)).mappings().one_or_none()
        image_rows = connection.execute(images).mappings().all()
        frame_rows = connection.execute(frames).mappings().all()
    if found is None or not frame_rows:
        return None
    there = [row for row in image_rows if row["removed_at"] is None]
    return JudgedStudy(
        study_key=study_key,
        modality=found["modality"],
        received_at=found["last_received_at"],
        frames=tuple(_judged_frame(dict(row)) for row in frame_rows),
        files={row["instance_key"]: row["path"] for row in there},
        size_bytes=sum(row["size_bytes"] for row in there),
        sources={row["instance_key"]: (row["calling_ae_title"], row["modality"]) for row in image_rows},
    )


def _judged_frame(row: Mapping[str, Any]) -> JudgedFrame:
    parameters = {name: value for name, value in row["parameters"].items() if name not in WITHHELD}
    return JudgedFrame(
        instance_key=row["instance_key"],
        frame_index=row["frame_index"],
        prediction=SavedPrediction(
            model_name=row["model_name"],
            model_version=row["model_version"],
            role=row["role"],
            device_key=row["device_key"],
            laterality=laterality(row["parameters"]),
            judged_at=row["judged_at"],
            content={name: row[name] for name in _KEPT} | {"parameters": parameters},
        ),
    )


def age_and_sex(store: Store, study_key: str) -> Mapping[str, Any]:
    """The acquisition parameters of a study's first prediction, those that tell of the patient included."""
    query = select(prediction.c.parameters).where(prediction.c.study_key == study_key)
    with store.read() as connection:
        found: Mapping[str, Any] | None = connection.execute(
            query.order_by(prediction.c.prediction_id).limit(1)
        ).scalar()
    return found or {}


def alarmed(store: Store) -> frozenset[tuple[str, int, str]]:
    """Model, version and scope of every alarm that is not closed."""
    columns = (alarm.c.model_name, alarm.c.model_version, alarm.c.scope)
    with store.read() as connection:
        return frozenset(
            (row[0], row[1], row[2]) for row in connection.execute(select(*columns).where(alarm.c.state != "closed"))
        )


def oldest_saved(store: Store, *, limit: int) -> tuple[tuple[str, int], ...]:
    """Key and size of the saved studies that were received first."""
    query = (
        select(saved_study.c.saved_key, saved_study.c.size_bytes)
        .where(saved_study.c.removed_at.is_(None))
        .order_by(saved_study.c.received_at, saved_study.c.saved_key)
        .limit(limit)
    )
    with store.read() as connection:
        return tuple((row[0], row[1]) for row in connection.execute(query))
