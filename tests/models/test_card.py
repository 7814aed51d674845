"""What a card may say of golden inputs, acceptance criteria and the hash of training data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from models.card import Acceptance, Bundle, Card, Criterion
from models.errors import BundleError

CRITERION = {"name": "finds it", "finding": "there", "metric": "sensitivity", "statistic": "low", "minimum": 0.8}
ACCEPTANCE = {
    "written_at": "2026-11-24",
    "written_by": "Tests",
    "studies": "Drawn ones.",
    "least_cases": 30,
    "criteria": [CRITERION],
}


def test_a_card_without_any_of_it_stays_valid(make_bundle: Callable[..., Bundle]) -> None:
    bundle = make_bundle()
    content = bundle.card.model_dump(mode="json", exclude={"golden", "acceptance"})
    content["files"].pop("golden.npz", None)
    for source in content["training_data"]:
        del source["dvc_hash"]
    card = Card.model_validate(content)
    assert (card.golden, card.acceptance, card.training_data[0].dvc_hash) == (None, None, "")


def test_criteria_come_back_as_they_were_written(make_bundle: Callable[..., Bundle]) -> None:
    card = make_bundle(acceptance=ACCEPTANCE).card
    assert card.acceptance == Acceptance.model_validate(ACCEPTANCE)
    assert card.acceptance is not None
    assert card.acceptance.criteria[0].in_words() == "sensitivity (low) of there: at least 0.8"
    assert Card.model_validate(card.model_dump(mode="json")) == card


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"minimum": None}, "neither a minimum nor a maximum"),
        ({"maximum": 0.7}, "a minimum above its maximum"),
        ({"statistic": "median"}, "statistic"),
        ({"slice": "sex"}, "slice"),
        ({"finding": "elsewhere"}, "is no finding"),
        ({"minimum": float("nan")}, "minimum"),
        ({"unit": "%"}, "unit"),
    ],
)
def test_what_a_criterion_may_not_be(make_bundle: Callable[..., Bundle], change: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        make_bundle(acceptance=ACCEPTANCE | {"criteria": [CRITERION | change]})


def test_two_criteria_of_one_name_are_refused(make_bundle: Callable[..., Bundle]) -> None:
    with pytest.raises(BundleError, match="share a name"):
        make_bundle(acceptance=ACCEPTANCE | {"criteria": [CRITERION, CRITERION | {"finding": "either"}]})


@pytest.mark.parametrize("name", ["", "each:device", "sex=F", "age_group=40 to 60"])
def test_slices_that_a_criterion_may_name(name: str) -> None:
    assert Criterion.model_validate(CRITERION | {"slice": name}).slice == name


@pytest.mark.parametrize("value", ["", "md5:" + "0" * 32, "md5:" + "a" * 32 + ".dir"])
def test_hashes_that_dvc_gives(make_bundle: Callable[..., Bundle], value: str) -> None:
    sources = [source.model_dump() | {"dvc_hash": value} for source in make_bundle().card.training_data]
    assert make_bundle(training_data=sources).card.training_data[0].dvc_hash == value


@pytest.mark.parametrize("value", ["0" * 32, "md5:" + "A" * 32, "md5:" + "0" * 32 + ".dir\n", "sha256:" + "0" * 64])
def test_hashes_that_dvc_does_not_give(make_bundle: Callable[..., Bundle], value: str) -> None:
    sources = [source.model_dump() | {"dvc_hash": value} for source in make_bundle().card.training_data]
    with pytest.raises(BundleError, match="dvc_hash"):
        make_bundle(training_data=sources)


def test_golden_inputs_and_their_tolerances_go_together(make_bundle: Callable[..., Bundle]) -> None:
    files = make_bundle().card.files
    without = {name: digest for name, digest in files.items() if name != "golden.npz"}
    with pytest.raises(BundleError, match=r"no sha256 of golden\.npz"):
        make_bundle(golden={"score_tolerance": 0.01, "logit_tolerance": 0.1}, files=without)
    with pytest.raises(BundleError, match="does not state tolerances"):
        make_bundle(golden=None, files=without | {"golden.npz": "0" * 64})
