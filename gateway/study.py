"""Studies, before and after de-identification.

:class:`Study` holds protected health information; :class:`DeidentifiedStudy` does not. They are different types so that
handing the first to a model is a type error. Only the builder of results sees the original again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import cast

import pydicom
from pydicom import Dataset, config
from pydicom.errors import InvalidDicomError

from gateway.errors import UnreadableError

# A mistyped keyword otherwise only warns and writes nothing.
config.INVALID_KEYWORD_BEHAVIOR = "RAISE"


class StudyState(StrEnum):
    """Where a study stands. :data:`TRANSITIONS` says what may follow what."""

    RECEIVING = "receiving"
    """Images still arrive, or its quiet time has not passed."""
    QUEUED = "queued"
    """Complete; waits for a worker."""
    PROCESSING = "processing"
    """A worker holds it, by a lease that ends by itself."""
    JUDGED = "judged"
    """Every image a rule chose has been through its models; results are with the sender."""
    NOT_MATCHED = "not matched"
    """No rule chose any of its images: kept, shown, sent nowhere."""
    FAILED = "failed"
    """Could not be judged; the reason is stored and shown."""


TRANSITIONS: Mapping[StudyState, frozenset[StudyState]] = {
    StudyState.RECEIVING: frozenset({StudyState.QUEUED}),
    StudyState.QUEUED: frozenset({StudyState.PROCESSING, StudyState.RECEIVING}),
    StudyState.PROCESSING: frozenset(
        {StudyState.JUDGED, StudyState.NOT_MATCHED, StudyState.FAILED, StudyState.QUEUED, StudyState.RECEIVING}
    ),
    StudyState.JUDGED: frozenset({StudyState.RECEIVING, StudyState.QUEUED}),
    StudyState.NOT_MATCHED: frozenset({StudyState.RECEIVING, StudyState.QUEUED}),
    StudyState.FAILED: frozenset({StudyState.RECEIVING, StudyState.QUEUED}),
}
"""What may follow what. An image that arrives late takes a study back to RECEIVING."""

UNFINISHED = (StudyState.RECEIVING, StudyState.QUEUED, StudyState.PROCESSING)
"""Not judged yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedInstance:
    """One stored SOP instance. Holds PHI."""

    instance_key: str
    """The gateway's own key: 32 hexadecimal digits, made here, never derived from what a peer sent."""
    path: Path
    """Part 10 file; the data set's bytes are those received."""
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str
    transfer_syntax_uid: str
    calling_ae_title: str
    received_at: datetime

    def read(self, *, pixels: bool = True) -> Dataset:
        """The data set, with its file meta; ``pixels=False`` stops before (7FE0,0010) *Pixel Data*.

        Raises
        ------
        UnreadableError
            The file is gone or no longer DICOM.
        """
        try:
            return cast(Dataset, pydicom.dcmread(self.path, stop_before_pixels=not pixels))
        # ValueError and NotImplementedError: pydicom's on values of a wrong length or an unknown VR.
        except (OSError, InvalidDicomError, RecursionError, ValueError, NotImplementedError) as error:
            raise UnreadableError(f"image {self.instance_key} cannot be read: {type(error).__name__}") from error


def kept_instance(instance_key: str, path: Path) -> ReceivedInstance:
    """An image of the object folder by key and file alone, for who needs nothing of how it came."""
    return ReceivedInstance(
        instance_key=instance_key,
        path=path,
        sop_class_uid="",
        sop_instance_uid="",
        series_instance_uid="",
        study_instance_uid="",
        transfer_syntax_uid="",
        calling_ae_title="",
        received_at=datetime.min.replace(tzinfo=UTC),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A complete study as received. Holds PHI."""

    study_key: str
    instances: tuple[ReceivedInstance, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeidentifiedInstance:
    """One instance without PHI, its pixel data and file meta included."""

    instance_key: str
    dataset: Dataset


@dataclass(frozen=True, slots=True, kw_only=True)
class DeidentifiedStudy:
    """A study that models, monitors and saved copies may see."""

    study_key: str
    instances: tuple[DeidentifiedInstance, ...]
