"""Versions against readers' words: scikit-learn's numbers, whose word holds, what was left out, whom readers saw."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from known_versions import serve
from sklearn.metrics import average_precision_score, recall_score, roc_auc_score
from tiny_bundles import write_tiny_bundle
from truth_rig import FINDING, MODEL, OPERATING_POINT, Patient, drawn_patients, fill, say, truths

from gateway.performance import corrected_figures, live_figures, make_basis, refresh
from gateway.performance_cases import image_scores
from gateway.reference_standard import Rule, reference_standard
from gateway.settings import TruthSettings
from gateway.store import Store, open_store
from gateway.store.models import VersionState
from gateway.store.monitoring import raise_alarm
from gateway.store.performance import last_mark, performance_rows
from gateway.store.truth import KeptWord

NOW = datetime(2026, 3, 1, tzinfo=UTC)
START = datetime(2026, 1, 1, tzinfo=UTC)
CODE = {"value": "1", "scheme": "99TEST", "meaning": "Test"}
SETTINGS = TruthSettings(rule="majority", adjudicators=(), interval_s=0, least_cases=30)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store("", data_dir=tmp_path, migrate=True)
    finding = {"name": FINDING, "title": "Referable", "labels": ["there"], "operating_point": 0.4, "code": CODE}
    write_tiny_bundle(tmp_path / "bundle", name=MODEL, findings=[finding], acceptance=None)
    serve(opened, MODEL, 1, tmp_path / "bundle", NOW)
    serve(opened, MODEL, 2, tmp_path / "bundle", NOW, state=VersionState.SHADOW)
    yield opened
    opened.close()


def figures_of(store: Store, version: int = 1, settings: TruthSettings = SETTINGS) -> dict:
    basis = make_basis(store, settings, MODEL, FINDING)
    return live_figures(basis, version, least_cases=settings.least_cases)


def test_figures_are_scikit_learns_overall_and_by_slice(store: Store) -> None:
    patients = drawn_patients(1, 300, START)
    say(store, fill(store, patients), truths(patients), at=NOW)
    made = figures_of(store)
    overall = made["evaluation"]["overall"]
    scores = np.array([each.scores[1] for each in patients])
    truth = np.array([each.truth for each in patients])
    found = {name: figure["value"] for name, figure in overall["candidate"]["figures"].items()}
    assert made["cases"] == 300
    assert found["auc_roc"] == pytest.approx(roc_auc_score(truth, scores))
    assert found["auc_pr"] == pytest.approx(average_precision_score(truth, scores))
    assert found["sensitivity"] == pytest.approx(recall_score(truth, scores >= OPERATING_POINT))
    assert found["specificity"] == pytest.approx(recall_score(truth, scores >= OPERATING_POINT, pos_label=0))
    assert overall["candidate"]["figures"]["auc_roc"]["low"] < found["auc_roc"]
    assert overall["groups"] == 150  # two studies a person
    slices = {(each["key"], each["value"]): each for each in made["evaluation"]["slices"]}
    topcon = np.array([each.device == "TOPCON NW400" for each in patients])
    assert slices["device", "TOPCON NW400"]["candidate"]["figures"]["auc_roc"]["value"] == pytest.approx(
        roc_auc_score(truth[topcon], scores[topcon])
    )
    assert {key for key, _ in slices} >= {"device", "manufacturer", "age_group", "sex", "month"}
    assert slices["sex", "M"]["cases"] == 150
    assert slices["age_group", "80-89"]["cases"] == 60
    assert slices["month", "2026-01"]["small"] is False
    assert overall["candidate"]["roc"]["true_positive_rate"][-1] == 1
    assert "roc" not in slices["sex", "M"]["candidate"]


def test_a_shadow_and_the_champion_are_paired_on_the_same_truth(store: Store) -> None:
    patients = drawn_patients(2, 200, START, versions=(1, 2))
    patients[0] = replace(patients[0], scores={2: 0.9})  # the champion did not judge it
    say(store, fill(store, patients, shadow=2), truths(patients), at=NOW)
    made = figures_of(store, 2)
    paired = made["paired"]
    both = patients[1:]
    truth = [each.truth for each in both]
    difference = roc_auc_score(truth, [each.scores[2] for each in both]) - roc_auc_score(
        truth, [each.scores[1] for each in both]
    )
    assert (made["cases"], paired["cases"], paired["baseline_version"]) == (200, 199, 1)
    assert paired["paired"]["differences"]["auc_roc"]["value"] == pytest.approx(difference)
    assert figures_of(store, 1)["paired"] is None


def test_the_score_of_a_study_is_that_of_its_most_suspicious_gradable_image(store: Store) -> None:
    patients = drawn_patients(3, 60, START)
    keys = fill(store, patients)
    say(store, keys, truths(patients), at=NOW)
    before = figures_of(store)["evaluation"]["overall"]["candidate"]["figures"]["auc_roc"]["value"]
    # A second image of every study: suspicious beyond doubt, and too poor to say anything.
    from sqlalchemy import insert, select

    from gateway.store.schema import instance, prediction

    with store.write() as connection:
        for number, (key, image) in enumerate(keys):
            second = dict(connection.execute(select(instance).where(instance.c.instance_key == image)).mappings().one())
            second |= {"instance_key": f"{number:032x}", "sop_instance_uid": f"2.25.9{number}"}
            connection.execute(insert(instance).values(second))
            said = dict(connection.execute(select(prediction).where(prediction.c.study_key == key)).mappings().one())
            said["findings"] = [{**said["findings"][0], "score": 0.999}]
            said |= {"instance_key": second["instance_key"], "ungradable_reasons": ["too dark"]}
            del said["prediction_id"]
            connection.execute(insert(prediction).values(said))
    after = figures_of(store)["evaluation"]["overall"]["candidate"]["figures"]["auc_roc"]["value"]
    assert after == before


def test_what_is_no_case_is_counted_with_its_reason(store: Store) -> None:
    patients = [*drawn_patients(4, 40, START)]
    patients[0] = replace(patients[0], ungradable=True)
    patients[1] = replace(patients[1], scores={2: 0.5})
    keys = fill(store, patients)
    said = truths(patients)
    said[2] = "ungradable"
    say(store, keys, said, at=NOW)
    say(store, keys[3:4], ["present" if said[3] == "absent" else "absent"], reader="B", at=NOW)
    made = figures_of(store)
    assert made["cases"] == 36
    assert made["left_out"] == {
        "ungradable to the model": 1,
        "not judged by this version": 1,
        "ungradable to the readers": 1,
        "readers differ": 1,
    }
    assert made["said"] == {
        "words": 41,
        "readers": 2,
        "agreeing": 0,
        "disagreeing": 0,
        "subjects": 40,
        "differing": 1,
        "shown": 0,
        "left_aside": 0,
    }


def test_words_on_images_count_where_nobody_spoke_of_the_study(store: Store) -> None:
    patients = drawn_patients(5, 40, START)
    keys = fill(store, patients)
    say(store, keys, truths(patients), of_images=True, at=NOW, agrees=True)
    assert (figures_of(store)["unit"], figures_of(store)["cases"]) == ("image", 40)
    say(store, keys[:30], truths(patients)[:30], reader="B", at=NOW)
    made = figures_of(store)
    assert (made["unit"], made["cases"], made["said"]["left_aside"], made["said"]["shown"]) == ("study", 40, 30, 10)


def test_a_side_is_scored_by_its_own_images(store: Store) -> None:
    right = Patient(person="P", scores={1: 0.9}, laterality="R", judged_at=START)
    keys = fill(store, [right])
    from gateway.store.truth import Word, add_words

    words = [
        Word(
            study_key=keys[0][0],
            laterality=side,
            model_name=MODEL,
            finding_name=FINDING,
            value="present",
            source="import",
            reader="A",
            read_at=NOW,
        )
        for side in ("R", "L")
    ]
    with store.write() as connection:
        add_words(connection, words, NOW)
    made = figures_of(store)
    assert (made["unit"], made["cases"], made["left_out"]) == ("side", 1, {"not judged by this version": 1})


# --- whose word holds ---


def word(value: str, reader: str, *, day: int = 1, superseded: bool = False, number: int = 0) -> KeptWord:
    return KeptWord(
        study_key="s",
        model_name=MODEL,
        finding_name=FINDING,
        value=value,
        source="import",
        reader=reader,
        read_at=START + timedelta(days=day),
        truth_id=number,
        entered_at=NOW,
        superseded_at=NOW if superseded else None,
    )


PRESENT, ABSENT = "present", "absent"


@pytest.mark.parametrize(
    ("rule", "said", "value"),
    [
        ("majority", [(PRESENT, "A", 1), (ABSENT, "B", 2), (PRESENT, "C", 3)], PRESENT),
        ("majority", [(PRESENT, "A", 1), (ABSENT, "B", 2)], ""),
        ("majority", [(PRESENT, "A", 1), (ABSENT, "B", 2), ("ungradable", "C", 3)], ""),
        ("majority", [("ungradable", "A", 1), ("ungradable", "B", 2), (PRESENT, "C", 3)], "ungradable"),
        ("latest", [(PRESENT, "A", 1), (PRESENT, "B", 2), (ABSENT, "C", 3)], ABSENT),
        ("latest", [(ABSENT, "A", 3), (PRESENT, "B", 2)], ABSENT),
        ("adjudicator", [(PRESENT, "A", 1), (PRESENT, "B", 9), (ABSENT, "chief", 3)], ABSENT),
        ("adjudicator", [(PRESENT, "A", 1), (PRESENT, "B", 2)], PRESENT),
        ("adjudicator", [(PRESENT, "A", 1), (ABSENT, "B", 2), (ABSENT, "C", 2)], ""),
    ],
)
def test_rules(rule: Rule, said: list[tuple[str, str, int]], value: str) -> None:
    words = [word(each, reader, day=day, number=number) for number, (each, reader, day) in enumerate(said)]
    words.append(word(ABSENT if value != ABSENT else PRESENT, "D", day=30, superseded=True))
    (standard,) = reference_standard(words, rule, ("chief",)).values()
    assert standard.value == value
    assert standard.readers == len(said)


def test_a_rule_without_adjudicators_is_refused() -> None:
    with pytest.raises(ValueError, match="needs adjudicators"):
        TruthSettings(rule="adjudicator", adjudicators=(), interval_s=0, least_cases=1)


# --- whom readers looked at ---


def test_readers_who_look_at_suspects_first_are_noticed_and_corrected_for(store: Store) -> None:
    patients = drawn_patients(6, 2000, START)
    truth = np.array([each.truth for each in patients])
    decisions = np.array([each.scores[1] >= OPERATING_POINT for each in patients])
    random = np.random.default_rng(0)
    seen = np.where(decisions, random.random(2000) < 0.9, random.random(2000) < 0.1)
    keys = fill(store, patients)
    say(store, keys, [value if here else "" for value, here in zip(truths(patients), seen, strict=True)], at=NOW)
    made = figures_of(store)
    verification = made["verification"]
    assert verification["present"] == {"judged": int(decisions.sum()), "with_truth": int((decisions & seen).sum())}
    assert verification["absent"] == {"judged": int((~decisions).sum()), "with_truth": int((~decisions & seen).sum())}
    assert verification["uneven"] is True
    naive = made["evaluation"]["overall"]["candidate"]["figures"]["sensitivity"]["value"]
    real = recall_score(truth, decisions)
    corrected = verification["corrected"]["sensitivity"]
    assert naive > real + 0.05
    assert abs(corrected["value"] - real) < 0.04
    assert corrected["low"] < real < corrected["high"]


def test_readers_who_look_at_random_are_not_suspected(store: Store) -> None:
    patients = drawn_patients(7, 600, START)
    keys = fill(store, patients)
    say(store, keys, [value if place % 3 else "" for place, value in enumerate(truths(patients))], at=NOW)
    assert figures_of(store)["verification"]["uneven"] is False


def test_the_correction_is_begg_and_greenes() -> None:
    # Hepatic scintigraphy (Drum and Christacopoulos 1972), the example of Begg and Greenes 1983 and of Zhou et al.,
    # Statistical Methods in Diagnostic Medicine: T+ 429 of which 231 D+, 32 D- verified; T- 221: 27 D+, 54 D-.
    made = corrected_figures(np.array([[54, 27], [32, 231]]), 429, 221)
    assert made is not None
    assert made["sensitivity"]["value"] == pytest.approx(0.836, abs=0.001)
    assert made["specificity"]["value"] == pytest.approx(0.738, abs=0.001)
    assert made["sensitivity"]["low"] < 0.836 < made["sensitivity"]["high"]
    assert corrected_figures(np.array([[0, 0], [32, 231]]), 429, 221) is None


# --- all of it, stored ---


def test_everything_is_computed_and_stored_with_its_time(store: Store) -> None:
    pytest.importorskip("nannyml", reason="NannyML is not installed (extra: estimate)")
    labelled = drawn_patients(8, 600, START, versions=(1, 2))
    later = drawn_patients(9, 200, START + timedelta(days=40))
    keys = fill(store, labelled, shadow=2)
    fill(store, later)
    say(store, keys, truths(labelled), at=NOW)
    before = last_mark(store)
    refresh(store, SETTINGS, now=NOW)
    first, second = performance_rows(store)
    assert (first.model_version, second.model_version, first.computed_at) == (1, 2, NOW)
    assert first.estimate is not None and second.estimate is not None
    assert first.estimate["state"] == "checked", first.estimate["reasons"]
    truth, scores = [each.truth for each in later], [each.scores[1] for each in later]
    assert first.estimate["figures"]["auc_roc"]["value"] == pytest.approx(roc_auc_score(truth, scores), abs=0.05)
    assert first.estimate["cases"] == 200
    assert second.estimate["reasons"] == ["0 cases without truth; fewer than 30 are not estimated on"]
    assert last_mark(store) == before
    alarm = {"scope": "all", "kind": "embedding", "message": "m", "count": 1, "first_seen_at": NOW, "last_seen_at": NOW}
    raise_alarm(store, {"model_name": MODEL, "model_version": 1, **alarm})
    refresh(store, SETTINGS, now=NOW)
    assert performance_rows(store)[0].estimate["state"] == "not to be trusted"
    assert performance_rows(store)[0].estimate["reasons"] == ["1 drift alarm is open for this version"]


def test_noise_in_the_pictures_makes_the_check_fail(store: Store) -> None:
    pytest.importorskip("nannyml", reason="NannyML is not installed (extra: estimate)")
    sharp = drawn_patients(10, 400, START)
    noisy = drawn_patients(11, 700, START + timedelta(days=30), noise=3)
    keys = fill(store, [*sharp, *noisy])
    say(store, keys[:800], truths([*sharp, *noisy])[:800], at=NOW)
    (row, *_) = refresh(store, SETTINGS, now=NOW)
    assert row.estimate is not None
    assert row.estimate["state"] == "not to be trusted"
    assert any("its check failed" in reason for reason in row.estimate["reasons"])


def test_without_nannyml_that_is_said(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.estimate.is_installed", lambda: False)
    fill(store, drawn_patients(12, 20, START))
    (row, *_) = refresh(store, SETTINGS, now=NOW)
    assert row.estimate is not None
    assert row.estimate["state"] == "not estimated"
    assert row.estimate["reasons"][0].startswith("NannyML is not installed")
    assert row.figures["evaluation"] is None


def test_of_studies_that_nobody_spoke_of_neither_person_nor_slices_are_held(store: Store) -> None:
    keys = fill(store, drawn_patients(4, 3, START))
    spoken, silent, _ = (key for key, _ in keys)
    (scores,) = image_scores(store, MODEL, FINDING, {spoken}).values()
    (everything,) = image_scores(store, MODEL, FINDING).values()
    assert scores[spoken] == everything[spoken]
    (image,) = scores[silent]
    assert (image.person, dict(image.slices)) == ("", {})
    assert image.score == everything[silent][0].score
