"""When a study is complete: the quiet time that an image asks for."""

from __future__ import annotations

from datetime import timedelta

import pytest
from pydicom import Dataset

from gateway.completion import hard_cap, is_single_image, quiet_time
from gateway.settings import Rule, load_settings

DEFAULTS = load_settings(environment={})
OP8 = "1.2.840.10008.5.1.4.1.1.77.1.5.1"


def image(**attributes: object) -> Dataset:
    dataset = Dataset()
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


@pytest.mark.parametrize(
    ("attributes", "single"),
    [
        ({"Modality": "CR"}, True),
        ({"Modality": "DX"}, True),
        ({"Modality": "OP", "NumberOfFrames": 1}, True),
        ({"Modality": "OP", "NumberOfFrames": 30}, False),
        ({"Modality": "OT", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, True),
        ({"Modality": "CT"}, False),
        ({}, False),
    ],
)
def test_single_images(attributes: dict[str, object], single: bool) -> None:
    assert is_single_image(image(**attributes)) is single


def test_quiet_time_is_the_rules_or_the_kinds() -> None:
    settings = DEFAULTS.completion
    own = Rule(name="own", when={"StationName": ("BEDSIDE",)}, quiet_time_s=1.5)
    rules = (own, *DEFAULTS.rules)
    assert quiet_time(image(Modality="CR", StationName="BEDSIDE"), rules, settings) == timedelta(seconds=1.5)
    assert quiet_time(image(Modality="CR"), rules, settings) == timedelta(seconds=5)
    assert quiet_time(image(Modality="MR"), rules, settings) == timedelta(seconds=60)
    assert quiet_time(image(Modality="OP", SOPClassUID=OP8), rules, settings) == timedelta(seconds=5)
    assert hard_cap(settings) == timedelta(seconds=900)
