"""When is a study complete? After a quiet time that depends on its images, or at a hard cap.

DICOM has no message that all modalities send to say "this was the last image". A study is therefore complete when none
of its images has arrived for a while. Single-frame radiographs and photographs come one or two at a time and wait a
short while; what comes in long series waits longer.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from pydicom import Dataset

from gateway.routing import attribute_values, choose_rule
from gateway.settings import CompletionSettings, Rule

_SINGLE_IMAGE_MODALITIES = frozenset({"CR", "DX", "OP"})
_SINGLE_IMAGE_CLASSES = frozenset(
    {
        # PS3.4 Table B.5-1
        "1.2.840.10008.5.1.4.1.1.1",  # Computed Radiography Image Storage
        "1.2.840.10008.5.1.4.1.1.1.1",  # Digital X-Ray Image Storage - For Presentation
        "1.2.840.10008.5.1.4.1.1.1.1.1",  # Digital X-Ray Image Storage - For Processing
        "1.2.840.10008.5.1.4.1.1.7",  # Secondary Capture Image Storage
        "1.2.840.10008.5.1.4.1.1.77.1.5.1",  # Ophthalmic Photography 8 Bit Image Storage
        "1.2.840.10008.5.1.4.1.1.77.1.5.2",  # Ophthalmic Photography 16 Bit Image Storage
    }
)


def quiet_time(header: Dataset, rules: Sequence[Rule], settings: CompletionSettings) -> timedelta:
    """How long a study waits for more images after this one.

    The quiet time of the rule that chooses the image, where it names one; else the short one for single-frame CR,
    DX, OP and SC; else the long one.
    """
    # Reception waits for this: rules are asked only where one of them has something to say.
    rule = choose_rule(header, rules) if any(each.quiet_time_s is not None for each in rules) else None
    if rule is not None and rule.quiet_time_s is not None:
        return timedelta(seconds=rule.quiet_time_s)
    if is_single_image(header):
        return timedelta(seconds=settings.single_image_quiet_time_s)
    return timedelta(seconds=settings.other_quiet_time_s)


def hard_cap(settings: CompletionSettings) -> timedelta:
    """How long after its first image a study is complete, whatever still arrives."""
    return timedelta(seconds=settings.hard_cap_s)


def is_single_image(header: Dataset) -> bool:
    """Whether an image is a single frame of a kind that comes alone or in pairs: CR, DX, OP, SC."""
    frames = attribute_values(header, "NumberOfFrames")
    if frames and frames[0] not in ("0", "1"):
        return False
    return bool(
        _SINGLE_IMAGE_MODALITIES.intersection(attribute_values(header, "Modality"))
        or _SINGLE_IMAGE_CLASSES.intersection(attribute_values(header, "SOPClassUID"))
    )
