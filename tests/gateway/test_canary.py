"""Who gets a canary: stable, keyed, the right fraction, and chosen devices."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from scipy.stats import binomtest, kstest

from gateway.canary import gets_canary, study_share
from gateway.judgement import Role
from gateway.stages import PreparedFrame, StudyJudgement
from gateway.study import Study, kept_instance
from models.preprocess import ModelInput
from models.session import ModelSession

KEY = hashlib.sha256(b"the key of this test").digest()
STUDIES = [hashlib.sha256(f"study {number}".encode()).hexdigest()[:32] for number in range(20_000)]
ONE = {"model_name": "retinopathy", "version": 2}


def chosen(fraction: float, key: bytes = KEY, version: int = 2) -> set[str]:
    of = {"model_name": "retinopathy", "version": version, "devices": ()}
    return {study for study in STUDIES if gets_canary({"fraction": fraction}, key, study_key=study, **of)}


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5])
def test_the_fraction_is_that_asked_for(fraction: float) -> None:
    assert binomtest(len(chosen(fraction)), len(STUDIES), fraction).pvalue > 1e-4


def test_shares_look_uniform() -> None:
    assert kstest([study_share(KEY, study_key=study, **ONE) for study in STUDIES], "uniform").pvalue > 1e-4


def test_none_and_all() -> None:
    assert chosen(0.0) == set()
    assert chosen(1.0) == set(STUDIES)


def test_the_same_study_gets_the_same_answer_and_a_larger_fraction_keeps_who_was_in() -> None:
    assert chosen(0.1) == chosen(0.1)
    assert chosen(0.1) < chosen(0.2)


def test_who_knows_no_key_cannot_tell_and_each_version_draws_anew() -> None:
    others = chosen(0.1, key=hashlib.sha256(b"another").digest()), chosen(0.1, version=3)
    for other in others:
        both = len(chosen(0.1) & other)
        assert binomtest(both, len(STUDIES), 0.01).pvalue > 1e-4, "as many as chance makes"


def test_chosen_devices_get_it_whatever_the_fraction() -> None:
    def gets(*devices: str, pattern: str = "KOWA*", fraction: float = 0.0) -> bool:
        traffic = {"fraction": fraction, "devices": [pattern]}
        return gets_canary(traffic, KEY, study_key=STUDIES[0], devices=devices, **ONE)

    assert gets("KOWA VX-10 · 1.0 · 0123ABCD")
    assert gets("OTHER", "KOWA VX-10 · 1.0 · 0123ABCD"), "one image of the study is enough"
    assert not gets("TOPCON · 1.0")
    assert gets("ODD [1] · 1.0", pattern="ODD [1] · 1.0"), "a key is itself, whatever characters it has"
    assert gets("ODD [1] · 1.0", pattern="ODD [1]*")
    assert not gets("ODD 1 · 1.0", pattern="ODD [1]*"), "brackets are no pattern"
    assert not gets()


def test_an_image_that_only_the_canary_takes_says_why_nobody_judged_it() -> None:
    def frame(instance_key: str, role: Role, *, stands_by: bool = False) -> PreparedFrame:
        session = SimpleNamespace(bundle=SimpleNamespace(card=SimpleNamespace(name="retinopathy")))
        return PreparedFrame(
            study_key="s",
            instance_key=instance_key,
            frame_index=0,
            session=cast(ModelSession, session),
            role=role,
            model_input=cast(ModelInput, None),
            picture=np.zeros((1, 1, 3), dtype=np.uint8),
            parameters={},
            least_side=1,
            decoded=(1, 1),
            stands_by=stands_by,
        )

    instances = tuple(kept_instance(key, Path(key)) for key in ("a", "b"))
    judgement = StudyJudgement(study=Study(study_key="s", instances=instances))
    judgement.frames = (frame("a", Role.CANARY), frame("b", Role.CANARY))
    judgement.companions = (frame("a", Role.SHADOW, stands_by=True),)
    (instead,) = judgement.fall_back("retinopathy")
    assert (instead.instance_key, instead.role, judgement.frames) == ("a", Role.CHAMPION, (instead,))
    assert judgement.not_judged_reasons.keys() == {"b"}
    assert "the champion does not take the image" in judgement.not_judged_reasons["b"]
