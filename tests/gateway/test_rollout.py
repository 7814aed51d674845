"""Shadow, canary, circuit breaker and rollback with real workers, a real store and real sessions."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from odd_versions import LONG_AGO, MODEL, House, biased, failing_on_white, photograph, slow
from running import wait_until
from sqlalchemy import select

from gateway import worker as worker_module
from gateway.breaker import BreakerState
from gateway.canary_guard import CanaryGuard
from gateway.fuse import Fuse
from gateway.model_record import entries, record_key
from gateway.serving import Versions
from gateway.shadow import shadow_work
from gateway.site_key import load_site_key
from gateway.store.models import VersionState, find_version
from gateway.store.monitoring import processes
from gateway.store.schema import delivery, result
from gateway.studies_view import count_studies, list_studies, study_detail
from models.card import MODEL_FILE

CHAMPION, CANARY, SHADOW, RETIRED = (
    VersionState.CHAMPION,
    VersionState.CANARY,
    VersionState.SHADOW,
    VersionState.RETIRED,
)
MakeHouse = Callable[..., House]


@pytest.fixture
def make_house(tmp_path: Path) -> Iterator[MakeHouse]:
    made: list[House] = []

    def make(**overrides: Any) -> House:
        made.append(House(tmp_path, {name.replace("__", "."): value for name, value in overrides.items()}))
        return made[-1]

    yield make
    for house in made:
        house.close()


def deliveries(house: House, study_key: str) -> int:
    with house.store.read() as connection:
        joined = select(delivery.c.delivery_id).join(result, result.c.result_key == delivery.c.result_key)
        return len(connection.execute(joined.where(result.c.study_key == study_key)).all())


# --- shadow ---


def test_a_shadow_is_kept_beside_and_seen_by_nobody_outside(make_house: MakeHouse) -> None:
    house = make_house()
    house.version(1, CHAMPION, biased(-50.0))
    house.version(2, SHADOW, biased(50.0))  # would call every picture urgent
    house.start()
    key = house.receive(photograph(40))
    house.work()
    said = house.said(key)
    assert said.keys() == {(1, "champion"), (2, "shadow")}
    shadow = said[2, "shadow"]
    assert (shadow.paired_version, shadow.agrees) == (1, False)
    assert shadow.inference_ms > 0
    assert shadow.provenance["tensor_sha256"] == said[1, "champion"].provenance["tensor_sha256"]
    (listed,) = list_studies(house.store)
    assert listed["priority"] == "HIGH", "by the finding that is always present"
    assert {each["model_version"] for each in listed["predictions"]} == {1}
    assert {each["model_version"] for each in listed["findings"] if each["kind"] == "model"} == {1}
    assert "shadows" not in study_detail(house.store, key)
    assert [each["model_version"] for each in study_detail(house.store, key, shadows=True)["shadows"]] == [2]
    assert count_studies(house.store, state="ungradable") == 0
    assert deliveries(house, key) == 2, "the champion's report and key image"


def test_the_shadow_runs_after_results_are_recorded(make_house: MakeHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    house = make_house()
    house.version(1, CHAMPION)
    house.version(2, SHADOW)
    house.start()
    run_shadow, seen = worker_module.run_shadow, []

    def watched(work: Any, engine: Any) -> Any:
        seen.append((house.state(work.study_key)[0], set(house.said(work.study_key))))
        return run_shadow(work, engine)

    monkeypatch.setattr(worker_module, "run_shadow", watched)
    house.receive(photograph(40))
    house.work()
    assert seen == [("judged", {(1, "champion")})]


def test_a_study_that_comes_meanwhile_goes_before_the_shadow(
    make_house: MakeHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = make_house(worker__batch=1)
    house.version(1, CHAMPION)
    house.version(2, SHADOW)
    house.start()
    order: list[tuple[str, str]] = []
    run_shadow, judge_studies = worker_module.run_shadow, worker_module.judge_studies

    def judged(studies: Any, *rest: Any) -> Any:
        order.extend(("judged", each.study_key) for each in studies)
        return judge_studies(studies, *rest)

    def shadowed(work: Any, engine: Any) -> Any:
        order.append(("shadow", work.study_key))
        return run_shadow(work, engine)

    monkeypatch.setattr(worker_module, "judge_studies", judged)
    monkeypatch.setattr(worker_module, "run_shadow", shadowed)
    keys = [house.receive(photograph(None, seed)) for seed in range(3)]
    house.work()
    assert [kind for kind, _ in order] == ["judged"] * 3 + ["shadow"] * 3
    assert {key for _, key in order} == set(keys)


def test_a_study_of_many_frames_goes_through_the_shadow_in_small_pieces() -> None:
    frames = tuple(range(11))
    judgement: Any = SimpleNamespace(companions=frames, judged=(), study=SimpleNamespace(study_key="k"))
    pieces = shadow_work(judgement)
    assert [len(piece.frames) for piece in pieces] == [4, 4, 3]
    assert sum((piece.frames for piece in pieces), ()) == frames


@pytest.mark.parametrize(("when_full", "pairs"), [("run", 3), ("skip", 0)])
def test_when_too_much_waits_studies_wait_or_the_shadow_misses_some(
    make_house: MakeHouse, when_full: str, pairs: int
) -> None:
    house = make_house(shadow__memory_bytes=0, shadow__when_full=when_full)
    house.version(1, CHAMPION)
    house.version(2, SHADOW)
    house.start()
    keys = [house.receive(photograph(None, seed)) for seed in range(3)]
    house.work()
    assert sum((2, "shadow") in house.said(key) for key in keys) == pairs
    assert all((1, "champion") in house.said(key) for key in keys)
    assert [reason for *_, reason in house.failures()] == ["skipped: too much waited"] * (3 - pairs)


def test_a_shadow_that_fails_costs_its_own_prediction_alone(make_house: MakeHouse) -> None:
    house = make_house()
    house.version(1, CHAMPION)
    house.version(2, SHADOW, failing_on_white())
    house.start()
    white, grey = house.receive(photograph(255)), house.receive(photograph(100))
    house.work()
    assert house.said(white).keys() == {(1, "champion")}
    assert house.said(grey).keys() == {(1, "champion"), (2, "shadow")}
    assert [house.state(key)[:2] for key in (white, grey)] == [("judged", "")] * 2
    ((study_key, version, role, reason),) = house.failures()
    assert (study_key, version, role) == (white, 2, "shadow")
    assert reason.startswith("ONNX Runtime failed")


def test_a_bug_in_the_shadow_costs_nothing_else(make_house: MakeHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    house = make_house()
    house.version(1, CHAMPION)
    house.version(2, SHADOW)
    house.start()

    def crashes(*_: Any) -> Any:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(worker_module, "run_shadow", crashes)
    key = house.receive(photograph(100))
    house.work()
    assert house.state(key)[0] == "judged"
    assert house.failures() == [(key, 2, "shadow", "internal error: ZeroDivisionError")]


def test_what_was_said_outside_stays_when_the_version_becomes_a_shadow(make_house: MakeHouse) -> None:
    house = make_house()
    house.version(1, RETIRED)
    house.version(2, CHAMPION)
    house.start()
    key = house.receive(photograph(100))
    house.work()
    before = house.said(key)[2, "champion"].prediction_id
    house.move(2, SHADOW)
    house.move(1, CHAMPION)
    judge_again(house, key)
    said = house.said(key)
    assert said.keys() == {(2, "champion"), (1, "champion")}
    assert said[2, "champion"].prediction_id == before
    current = [each for each in study_detail(house.store, key)["predictions"] if not each["superseded"]]
    assert [each["model_version"] for each in current] == [1]


def judge_again(house: House, study_key: str) -> None:
    from gateway.store.studies import complete_now

    complete_now(house.store, study_key, datetime.now(UTC))
    house.work()


# --- canary ---


def test_a_canary_judges_in_the_champions_place_and_the_champion_runs_in_its_shadow(make_house: MakeHouse) -> None:
    house = make_house()
    house.version(1, CHAMPION, biased(-50.0))
    house.version(2, CANARY, biased(50.0))
    house.version(3, SHADOW)
    house.move(2, CANARY, fraction=1.0)
    house.start()
    key = house.receive(photograph(100))
    house.work()
    said = house.said(key)
    assert said.keys() == {(2, "canary"), (1, "shadow"), (3, "shadow")}
    assert (said[1, "shadow"].paired_version, said[1, "shadow"].agrees) == (2, False)
    (shown,) = study_detail(house.store, key)["predictions"]
    assert (shown["model_version"], shown["role"], shown["superseded"]) == (2, "canary", False)
    assert deliveries(house, key) == 2


def test_without_a_share_the_champion_judges(make_house: MakeHouse) -> None:
    house = make_house()
    house.version(1, CHAMPION)
    house.version(2, CANARY)
    house.move(2, CANARY, fraction=0.0, devices=["TOPCON*"])
    house.start()
    key = house.receive(photograph(100))
    house.work()
    assert house.said(key).keys() == {(1, "champion")}


def test_a_chosen_device_gets_the_canary(make_house: MakeHouse) -> None:
    house = make_house()
    house.version(1, CHAMPION)
    house.version(2, CANARY)
    house.move(2, CANARY, fraction=0.0, devices=["KOWA*"])
    house.start()
    key = house.receive(photograph(100))
    house.work()
    assert (2, "canary") in house.said(key)


def test_where_the_canary_fails_the_champion_judges_and_nothing_is_lost(make_house: MakeHouse) -> None:
    house = make_house()
    house.version(1, CHAMPION)
    house.version(2, CANARY, failing_on_white())
    house.move(2, CANARY, fraction=1.0)
    house.start()
    white, grey = house.receive(photograph(255)), house.receive(photograph(100))
    house.work()
    assert house.said(white).keys() == {(1, "champion")}
    assert house.said(grey).keys() == {(2, "canary"), (1, "shadow")}
    assert [house.state(key) for key in (white, grey)] == [("judged", "", 1)] * 2
    assert [deliveries(house, key) for key in (white, grey)] == [2, 2]
    assert [failure[:3] for failure in house.failures()] == [(white, 2, "canary")]


def test_a_canary_that_does_not_take_the_picture_leaves_it_to_the_champion(make_house: MakeHouse) -> None:
    house = make_house()
    house.version(1, CHAMPION)
    house.version(2, CANARY)
    grey_only = {"photometric_interpretation": "MONOCHROME2"}
    replace_card(house.data_dir / "bundle-2", grey_only)
    house.move(2, CANARY, fraction=1.0)
    house.start()
    key = house.receive(photograph(100))
    house.work()
    assert house.said(key).keys() == {(1, "champion")}
    assert house.failures() == [(key, 2, "canary", "the model reads MONOCHROME2, the picture is colour")]


def replace_card(folder: Path, contract: dict[str, Any]) -> None:
    import yaml

    card = yaml.safe_load((folder / "card.yaml").read_text())
    card["pixel_contract"] |= contract
    (folder / "card.yaml").write_text(yaml.safe_dump(card))


def guard_of(house: House) -> CanaryGuard:
    key = record_key(load_site_key(house.settings.deidentification, house.data_dir), house.data_dir)
    return CanaryGuard(house.store, house.settings, key)


def state_of(house: House, version: int) -> VersionState:
    with house.store.read() as connection:
        return find_version(connection, MODEL, version).state


def last_entry(house: House) -> Any:
    with house.store.read() as connection:
        return list(entries(connection))[-1]


def test_a_canary_that_cannot_be_loaded_ends_at_once_and_studies_go_on(make_house: MakeHouse) -> None:
    house = make_house()
    house.version(1, CHAMPION)
    folder = house.version(2, CANARY)
    (folder / MODEL_FILE).write_bytes(b"not ONNX")
    house.move(2, CANARY, fraction=1.0)
    house.start()
    key = house.receive(photograph(100))
    house.work()
    assert house.said(key).keys() == {(1, "champion")}
    (row,) = processes(house.store)
    assert row["detail"]["broken"].keys() == {"tiny 2"}
    assert guard_of(house).look(datetime.now(UTC)) == ((MODEL, 2),)
    assert state_of(house, 2) is SHADOW
    assert last_entry(house).reason == "worker-0 cannot load it"


def test_the_guard_ends_a_canary_that_fails_too_often(make_house: MakeHouse) -> None:
    house = make_house(breaker__failures=100)
    house.version(1, CHAMPION)
    house.version(2, CANARY, failing_on_white())
    house.move(2, CANARY, fraction=1.0, limits={"error_fraction": 0.05, "least_studies": 6})
    house.start()
    guard = guard_of(house)
    for number in range(5):
        house.receive(photograph(255 if number < 2 else None, number))
    house.work()
    assert guard.look(datetime.now(UTC)) == (), "not by the first bad studies"
    for _ in range(4):
        house.receive(photograph(255))
    house.work()
    assert guard.look(datetime.now(UTC)) == ((MODEL, 2),)
    entry = last_entry(house)
    assert entry.reason.startswith("failed in 6 of 9 studies (66.7%")
    (errors,) = [each for each in entry.detail["figures"] if each["name"] == "error_fraction"]
    assert (errors["count"], errors["studies"]) == (6, 9)
    assert 0.05 < errors["lower_bound"] < errors["low"]
    assert state_of(house, 2) is SHADOW
    key = house.receive(photograph(100))
    house.work()
    assert house.said(key).keys() == {(1, "champion"), (2, "shadow")}
    assert guard.look(datetime.now(UTC)) == ()


def test_the_guard_ends_a_canary_that_decides_otherwise_or_is_slow(make_house: MakeHouse) -> None:
    house = make_house(canary__least_studies=8)
    house.version(1, CHAMPION, biased(-50.0))
    house.version(2, CANARY, biased(50.0))
    house.version(3, RETIRED, slow())
    house.move(2, CANARY, fraction=1.0)
    house.start()
    for seed in range(8):
        house.receive(photograph(None, seed))
    house.work()
    assert guard_of(house).look(datetime.now(UTC)) == ((MODEL, 2),)
    assert last_entry(house).reason.startswith("decided otherwise than the champion in 8 of 8 studies")
    house.move(2, RETIRED)
    house.move(3, CANARY, since=datetime.now(UTC), fraction=1.0, limits={"disagreement_fraction": 0.999})
    for seed in range(12):
        house.receive(photograph(None, 100 + seed))
    house.work()
    assert guard_of(house).look(datetime.now(UTC)) == ((MODEL, 3),)
    assert last_entry(house).reason.startswith("took more than 2 times the champion's time in 12 of 12 studies")


def die_while_it_runs(house: House, version: int) -> None:
    """A worker process that ends without a word while a version runs."""
    program = (
        "import os, sys; from pathlib import Path; from gateway.fuse import Fuse\n"
        f"with Fuse(Path(sys.argv[1])).around({MODEL!r}, {version}): os._exit(1)"
    )
    path = str(house.data_dir / "worker-0.fuse")
    assert subprocess.run([sys.executable, "-c", program, path], check=False).returncode == 1


@pytest.mark.parametrize(("deaths", "runs"), [(1, True), (2, False)])
def test_a_version_that_takes_workers_down_is_not_run_again(make_house: MakeHouse, deaths: int, runs: bool) -> None:
    house = make_house()
    house.version(1, CHAMPION)
    house.version(2, CANARY)
    house.move(2, CANARY, fraction=1.0)
    for _ in range(deaths):
        die_while_it_runs(house, 2)
    house.start()
    key = house.receive(photograph(100))
    house.work()
    assert ((2, "canary") in house.said(key)) is runs
    assert house.state(key)[0] == "judged"
    assert guard_of(house).look(datetime.now(UTC)) == (() if runs else ((MODEL, 2),))
    if runs:
        die_while_it_runs(house, 2)
        assert Fuse(house.data_dir / "worker-0.fuse").why_broken(MODEL, 2) == "", "a run in between ended well"


# --- circuit breaker ---


def test_studies_wait_while_the_champion_is_left_alone_and_are_judged_after_a_probe(make_house: MakeHouse) -> None:
    house = make_house(breaker__failures=3, breaker__first_pause_s=0.4)
    house.version(1, CHAMPION, failing_on_white())
    house.start()
    bad = [house.receive(photograph(255)) for _ in range(3)]
    house.work()
    breaker = house.worker.versions.breakers.of(MODEL, 1)
    assert breaker.state is BreakerState.OPEN
    good = house.receive(photograph(100))
    house.worker.work_once()
    state, reason, attempts = house.state(good)
    assert (state, attempts) == ("queued", 0), "waiting is no attempt"
    assert reason.startswith("waits for tiny 1: circuit breaker open (ONNX Runtime failed")
    (row,) = processes(house.store)
    (shown,) = row["detail"]["breakers"]
    assert (shown["version"], shown["role"], shown["state"], shown["openings"]) == (1, "champion", "open", 1)

    def is_judged() -> bool:
        house.worker.work_once()
        return house.state(good)[0] == "judged"

    wait_until(is_judged, "the breaker to close and the study to be judged")
    assert house.state(good) == ("judged", "", 1)
    assert breaker.is_closed
    assert {failure[:3] for failure in house.failures()} == {(key, 1, "champion") for key in bad}
    assert {house.state(key)[0] for key in bad} == {"queued"}, "they are tried again, as ever"


def test_or_studies_go_on_without_it(make_house: MakeHouse) -> None:
    house = make_house(breaker__failures=2, breaker__first_pause_s=600, breaker__policy="not judged")
    house.version(1, CHAMPION, failing_on_white())
    house.start()
    for _ in range(2):
        house.receive(photograph(255))
    house.work()
    key = house.receive(photograph(100))
    house.work()
    state, reason, _ = house.state(key)
    assert state == "failed"
    assert reason.startswith("not judged, tiny 1: circuit breaker open")
    (not_judged,) = study_detail(house.store, key)["not_judged"]
    assert not_judged["reason"] == reason
    assert house.failures()[-1][:3] == (key, 1, "champion")


def test_a_slow_version_opens_its_breaker_and_a_slow_probe_keeps_it_open(make_house: MakeHouse) -> None:
    house = make_house(breaker__failures=2, breaker__slow_s=0.02, breaker__first_pause_s=0.1)
    house.version(1, CHAMPION, slow())
    house.start()
    keys = [house.receive(photograph(None, seed)) for seed in range(2)]
    house.work()
    assert {house.state(key)[0] for key in keys} == {"judged"}, "slow results are results"
    breaker = house.worker.versions.breakers.of(MODEL, 1)
    assert breaker.openings == 1

    def probed() -> bool:
        house.worker.work_once()
        return breaker.openings > 1

    wait_until(probed, "a probe")
    assert breaker.reason.startswith("probe: slow")


def test_a_canary_that_is_left_alone_leaves_its_studies_to_the_champion(make_house: MakeHouse) -> None:
    house = make_house(breaker__failures=2, breaker__first_pause_s=600)
    house.version(1, CHAMPION)
    house.version(2, CANARY, failing_on_white())
    house.move(2, CANARY, fraction=1.0)
    house.start()
    for _ in range(2):
        house.receive(photograph(255))
    house.work()
    key = house.receive(photograph(100))
    house.work()
    assert house.said(key).keys() == {(1, "champion")}
    study_key, version, role, reason = house.failures()[-1]
    assert (study_key, version, role) == (key, 2, "canary")
    assert reason.startswith("circuit breaker open")


# --- changing versions ---


def judged_bytes(house: House, study_key: str, version: int) -> bytes:
    row = house.said(study_key)[version, "champion"]
    return np.array(row.logits, np.float64).tobytes() + bytes(row.embedding)


@pytest.mark.parametrize("keep", [True, False])
def test_after_a_rollback_outputs_are_the_former_ones_bit_for_bit(make_house: MakeHouse, keep: bool) -> None:
    house = make_house(models__keep_former=keep, models__keep_former_free_bytes=0)
    house.version(1, CHAMPION)
    house.version(2, RETIRED, biased(3.0))
    house.start()
    key = house.receive(photograph(None, 7))
    house.work()
    before = judged_bytes(house, key, 1)
    session = house.worker.versions.sessions[MODEL]
    house.move(1, RETIRED)
    house.move(2, CHAMPION)
    house.work()
    assert house.worker.versions.sessions[MODEL].bundle.card.version == 2
    assert house.said(key).keys() == {(1, "champion")}, "nothing is judged again by itself"
    judge_again(house, key)
    house.move(2, RETIRED)
    house.move(1, CHAMPION)
    house.worker.versions.follow()
    assert house.worker.versions.sessions[MODEL].bundle.card.version == 1, "what was taken back judges no more"
    assert (house.worker.versions.sessions[MODEL] is session) is keep
    house.work()
    judge_again(house, key)
    assert judged_bytes(house, key, 1) == before
    assert house.said(key).keys() == {(1, "champion"), (2, "champion")}


def test_what_judges_goes_on_while_the_next_is_loaded(make_house: MakeHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    house = make_house()
    house.version(1, CHAMPION)
    house.version(2, RETIRED)
    house.start()
    house.work()
    loaded, load = threading.Event(), Versions._load

    def slowly(self: Versions, folder: Path) -> Any:
        assert loaded.wait(30)
        return load(self, folder)

    monkeypatch.setattr(Versions, "_load", slowly)
    house.move(1, RETIRED)
    house.move(2, CHAMPION)
    first = house.receive(photograph(100))
    assert house.worker.work_once()
    assert house.said(first).keys() == {(1, "champion")}
    loaded.set()
    house.work()
    second = house.receive(photograph(100))
    house.work()
    assert house.said(second).keys() == {(2, "champion")}


def test_a_champion_that_does_not_load_leaves_the_former_judging(make_house: MakeHouse) -> None:
    house = make_house()
    house.version(1, CHAMPION)
    (house.version(2, RETIRED) / MODEL_FILE).write_bytes(b"not ONNX")
    house.start()
    house.work()
    house.move(1, RETIRED)
    house.move(2, CHAMPION)
    key = house.receive(photograph(100))
    house.work()
    assert house.said(key).keys() == {(1, "champion")}
    assert house.worker.versions.describe()["broken"].keys() == {"tiny 2"}


def test_provenance_says_what_a_replay_has_to_know(make_house: MakeHouse) -> None:
    house = make_house()
    house.version(1, CHAMPION)
    house.start()
    keys = [house.receive(photograph(None, seed)) for seed in range(3)]
    house.work()
    rows = [house.said(key)[1, "champion"] for key in keys]
    assert {row.provenance["batch"] for row in rows} == {3}
    for row in rows:
        assert row.provenance.keys() >= {"gateway_version", "onnxruntime", "providers", "deidentification"}
        assert len(row.provenance["tensor_sha256"]) == 64
        assert (row.provenance["least_side"], row.provenance["decoder_scale"]) == (640, 1.0)
    assert len({row.provenance["tensor_sha256"] for row in rows}) == 3
    assert rows[0].judged_at > LONG_AGO
