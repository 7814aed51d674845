"""Each leaf of the error trees has a disposition; the intake's have a DICOM status."""

from __future__ import annotations

from collections.abc import Iterator

import models.errors
from gateway import errors


def leaves(cls: type[Exception]) -> Iterator[type[Exception]]:
    below = cls.__subclasses__()
    if not below:
        yield cls
    for each in below:
        yield from leaves(each)


def test_every_leaf_has_a_disposition() -> None:
    every = [*leaves(errors.GatewayError), *leaves(models.errors.ModelError)]
    assert len(every) > 10
    missing = [cls.__name__ for cls in every if errors.disposition(cls("")) is not errors.DISPOSITIONS.get(cls)]
    assert missing == []


def test_every_intake_error_has_a_status_of_its_range() -> None:
    statuses = {cls: errors.INTAKE_STATUSES[cls] for cls in leaves(errors.IntakeError)}
    # PS3.4 Table B.2-1: A7xx out of resources, A9xx mismatch, Cxxx cannot understand.
    assert statuses[errors.OutOfResourcesError] >> 8 == 0xA7
    assert statuses[errors.MismatchError] >> 8 == 0xA9
    assert statuses[errors.NotUnderstoodError] >> 12 == 0xC
    assert statuses[errors.OtherContentError] >> 12 == 0xC
    assert len(set(statuses.values())) == len(statuses)


def test_an_unknown_error_needs_a_person() -> None:
    assert errors.disposition(ValueError("")) is errors.Disposition.FAIL
