"""Rules, phantoms and the rule tester: pure functions of a header."""

from __future__ import annotations

import re

import pytest
from pydicom import Dataset, Sequence
from pydicom.dataelem import RawDataElement
from pydicom.tag import BaseTag

from gateway.routing import attribute_values, choose_rule, explain, is_quality_control
from gateway.settings import Rule, load_settings

DEFAULTS = load_settings(environment={})
OP8 = "1.2.840.10008.5.1.4.1.1.77.1.5.1"


def image(**attributes: object) -> Dataset:
    dataset = Dataset()
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


def rule(name: str = "r", **parts: object) -> Rule:
    return Rule.model_validate({"name": name, "models": ["m"], **parts})


@pytest.mark.parametrize(
    ("condition", "attributes", "matches"),
    [
        ({"Modality": "CR"}, {"Modality": "CR"}, True),
        ({"Modality": "CR"}, {"Modality": "DX"}, False),
        ({"Modality": ["CR", "DX"]}, {"Modality": "DX"}, True),
        ({"Modality": "cr"}, {"Modality": "CR"}, True),
        ({"Modality": "CR"}, {"Modality": "CR "}, True),
        ({"BodyPartExamined": "*CHEST*"}, {"BodyPartExamined": "UPPERCHEST"}, True),
        ({"BodyPartExamined": "CHEST"}, {"BodyPartExamined": "UPPERCHEST"}, False),
        ({"BodyPartExamined": "CHES?"}, {"BodyPartExamined": "CHEST"}, True),
        ({"BodyPartExamined": "CHES?"}, {"BodyPartExamined": "CHES"}, False),
        ({"BodyPartExamined": "*"}, {}, False),
        ({"BodyPartExamined": "*"}, {"BodyPartExamined": ""}, False),
        ({"BodyPartExamined": ""}, {}, True),
        ({"BodyPartExamined": ""}, {"BodyPartExamined": ""}, True),
        ({"BodyPartExamined": ""}, {"BodyPartExamined": "CHEST"}, False),
        ({"BodyPartExamined": ["", "CHEST"]}, {"BodyPartExamined": "CHEST"}, True),
        ({"ImageType": "PRIMARY"}, {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"]}, True),
        ({"ImageType": "LOCALIZER"}, {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"]}, False),
        ({"StudyDescription": "[CT]*"}, {"StudyDescription": "[CT] head"}, True),  # brackets mean themselves
        ({"StudyDescription": "[CT]*"}, {"StudyDescription": "Chest"}, False),
        ({"StudyDescription": "C.T"}, {"StudyDescription": "CAT"}, False),
        ({"Rows": "512"}, {"Rows": 512}, True),
        ({"Modality": "CR", "BodyPartExamined": "CHEST"}, {"Modality": "CR"}, False),
        ({"StudyDescription|SeriesDescription": "*CHEST*"}, {"SeriesDescription": "Chest PA"}, True),
        ({"StudyDescription|SeriesDescription": "*CHEST*"}, {"SeriesDescription": "Hand"}, False),
        ({"StudyDescription|SeriesDescription": ""}, {"SeriesDescription": "Hand"}, True),
        ({}, {}, True),
    ],
)
def test_conditions(condition: dict[str, object], attributes: dict[str, object], matches: bool) -> None:
    rules = (rule(when=condition),)
    assert (choose_rule(image(**attributes), rules) is rules[0]) is matches


def test_first_rule_that_matches_decides_and_unless_excludes() -> None:
    lateral = rule("lateral", when={"Modality": "DX"}, unless={"ViewPosition": ["AP", "PA"]})
    others = rule("others", when={"Modality": ["DX", "CR"]})
    rules = (lateral, others)
    assert choose_rule(image(Modality="DX", ViewPosition="LL"), rules) is lateral
    assert choose_rule(image(Modality="DX", ViewPosition="PA"), rules) is others
    assert choose_rule(image(Modality="CR", ViewPosition="LL"), rules) is others
    assert choose_rule(image(Modality="MR"), rules) is None


def test_all_conditions_of_unless_must_hold() -> None:
    rules = (rule(unless={"Modality": "DX", "ViewPosition": "LL"}),)
    assert choose_rule(image(Modality="DX", ViewPosition="LL"), rules) is None
    assert choose_rule(image(Modality="DX", ViewPosition="PA"), rules) is rules[0]


@pytest.mark.parametrize(
    ("attributes", "name"),
    [
        ({"Modality": "OP", "SOPClassUID": OP8}, "fundus photographs"),
        ({"Modality": "OP", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.77.1.5.4"}, None),  # OCT
        ({"Modality": "XC", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.77.1.4"}, "fundus photographs"),
        ({"Modality": "DX", "BodyPartExamined": "CHEST", "ViewPosition": "PA"}, "frontal chest radiographs"),
        ({"Modality": "DX", "BodyPartExamined": "CHEST", "ViewPosition": "LL"}, None),
        ({"Modality": "CR", "BodyPartExamined": "CHEST"}, "frontal chest radiographs"),
        ({"Modality": "CR", "StudyDescription": "Thorax pa"}, "frontal chest radiographs, by description"),
        ({"Modality": "CR", "BodyPartExamined": "HAND", "StudyDescription": "Thorax pa"}, None),
        ({"Modality": "MG", "BodyPartExamined": "CHEST"}, None),
    ],
)
def test_shipped_rules(attributes: dict[str, object], name: str | None) -> None:
    chosen = choose_rule(image(**attributes), DEFAULTS.rules)
    assert (chosen.name if chosen else None) == name


def test_unreadable_and_sequence_values_are_as_good_as_absent() -> None:
    dataset = Dataset({BaseTag(0x00280010): RawDataElement(BaseTag(0x00280010), "US", 3, b"\1\2\3", 0, False, True)})
    dataset.AnatomicRegionSequence = Sequence([image(CodeValue="1")])
    assert attribute_values(dataset, "Rows") == ()
    assert attribute_values(dataset, "AnatomicRegionSequence") == ()


PHANTOMS = [
    {"QualityControlImage": "YES"},
    {"ImageType": ["ORIGINAL", "PRIMARY", "PHANTOM"]},
    {"PatientName": "PHANTOM^CR"},
    {"PatientName": "Phantom_Test"},
    {"PatientName": "QC^Daily"},
    {"PatientName": "QA^TEST"},
    {"PatientName": "DAILY^QC^20260102"},
    {"PatientID": "PHANTOM01 PHANTOM"},
    {"PatientID": "QC"},
    {"PatientID": "QC20260115"},
    {"PatientID": "TG18-QC"},
    {"StudyDescription": "Weekly QA"},
    {"StudyDescription": "CR QC flatness"},
    {"StudyDescription": "Konstanzprüfung"},
    {"StudyDescription": "Quality-Control"},
    {"SeriesDescription": "FLAT FIELD 70kV"},
    {"BodyPartExamined": "PHANTOM"},
]
PATIENTS = [
    {},
    {"QualityControlImage": "NO"},
    {"PatientName": "QATAR^ALI"},
    {"PatientName": "MACQUARIE^JO"},
    {"PatientName": "LE^QUANG QA"},
    {"PatientID": "QA-000123"},
    {"PatientID": "QC7781"},
    {"PatientID": "HOSP QA 77123"},
    {"StudyDescription": "MRI phantom limb pain"},
    {"StudyDescription": "Chest PA, QA review by Dr X"},
    {"StudyDescription": "Aquatic injury"},
    {"ImageType": ["ORIGINAL", "PRIMARY", ""]},
    {"PatientName": "TEST^PATIENT"},  # a trainee's test patient is a patient for all the gateway knows
]


@pytest.mark.parametrize("attributes", PHANTOMS, ids=str)
def test_phantoms(attributes: dict[str, object]) -> None:
    reason = is_quality_control(image(**attributes))
    assert reason
    for value in attributes.values():
        assert not isinstance(value, str) or value == "YES" or value not in reason


@pytest.mark.parametrize("attributes", PATIENTS, ids=str)
def test_patients(attributes: dict[str, object]) -> None:
    assert is_quality_control(image(**attributes)) is None


# --- the rule tester ----------------------------------------------------------------------------------------------


def test_explanation_says_why_without_saying_who() -> None:
    dataset = image(
        Modality="DX",
        BodyPartExamined="HAND",
        ViewPosition="LL",
        PatientName="Secret^Person",
        PatientSex="F",
        StudyDescription="Hand of Secret",
        SOPClassUID="1.2.840.10008.5.1.4.1.1.1.1",
    )
    extra = rule("extra", when={"StudyDescription": "*", "PatientSex": "F"})
    lines = explain(dataset, (*DEFAULTS.rules, extra))
    text = "\n".join(lines)
    assert "Secret" not in text
    assert "PatientSex is F" not in text
    assert "FAILS: Modality is DX; wanted OP or XC" in text
    assert "FAILS: BodyPartExamined is HAND; wanted *CHEST* or *THORAX* or *LUNG*" in text
    assert "FAILS: BodyPartExamined is HAND; wanted (absent or empty)" in text
    assert "EXCLUDES: ViewPosition is LL" in text
    assert "rule 'extra': matches, and is the first to: m" in text
    assert "StudyDescription is not shown here" in text


def test_explanation_of_phantom_and_of_nothing() -> None:
    assert re.match("reaches no model: Quality Control", explain(image(QualityControlImage="YES"), DEFAULTS.rules)[0])
    assert explain(image(Modality="MR"), DEFAULTS.rules)[-1] == "no rule matches: the image is kept, and sent nowhere"
