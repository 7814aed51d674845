"""The saver: which studies, what is in them, once and whole however often it is killed, and when it stops."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pydicom
import pytest
from intake_rig import stop_on_sigterm
from photographs import drawn_jpeg, op_dataset
from pydicom import Dataset
from pydicom.encaps import generate_frames
from pydicom.uid import generate_uid
from saving_rig import JUDGED, NOW, assert_rows_and_files_agree, judge, receive, saver_of, saving
from sqlalchemy import delete, event, insert, select

from gateway.disk import DiskGuard
from gateway.objects import ObjectFolder
from gateway.saved import process
from gateway.saved.folders import remove_saved, sweep
from gateway.saved.saver import SETTLED, Saver
from gateway.settings import Settings
from gateway.store import Store, open_store
from gateway.store.intake import new_key
from gateway.store.monitoring import processes
from gateway.store.retention import remove_originals
from gateway.store.saved import SavedStudyRow, find_saved, judged_study, read_place, write_place
from gateway.store.schema import alarm, audit, prediction
from gateway.web.health import expected_processes

EVERYTHING = {"name": "everything"}


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Store]:
    store = open_store("", data_dir=tmp_path, migrate=True)
    write_place(store, 0)
    yield store
    store.close()


def photograph(seed: int = 1, **values: Any) -> Dataset:
    return op_dataset(drawn_jpeg(seed), patient=f"Zqfamily{seed}^Zqgiven", **values)


def judged(store: Store, data_dir: Path, dataset: Dataset | None = None, **said: Any) -> str:
    """A study of one image with one prediction; its key."""
    dataset = dataset or photograph()
    study_key, instance_key = receive(store, data_dir, dataset)
    judge(store, study_key, instance_key, dataset, **said)
    return study_key


def row_of(store: Store, study_key: str) -> SavedStudyRow:
    row = find_saved(store, study_key)
    assert row is not None
    return row


def test_what_is_saved_is_what_the_models_saw_and_said_and_not_who_it_was(shelf: Store, tmp_path: Path) -> None:
    original = photograph()
    original.PatientAge, original.InstitutionName = "093Y", "Zqhospital"
    study_key = judged(shelf, tmp_path, original)
    saver = saver_of(shelf, tmp_path, saving(EVERYTHING))
    assert saver.look() == 1
    assert assert_rows_and_files_agree(shelf, tmp_path) == {study_key: 1}
    row = row_of(shelf, study_key)
    (image,) = row.images
    (said,) = image.predictions
    assert (said.model_name, said.model_version, said.role, said.laterality) == ("retinopathy", 1, "champion", "R")
    assert said.findings[0]["score"] == 0.7
    assert said.content["probabilities"] == {"a": 0.7}
    assert said.device_key.startswith("KOWA VX-10 ALPHA")
    assert row.characteristics == {"age_group": "90+", "sex": "F", "site": row.characteristics["site"]}
    assert "patient_age_years" not in said.content["parameters"]
    assert "patient_sex" not in said.content["parameters"]
    path = tmp_path / row.folder / image.file_name
    copy = pydicom.dcmread(path)
    assert copy.PatientID == row.person
    assert list(generate_frames(copy.PixelData)) == [drawn_jpeg(1)]
    planted = ("Zqfamily", "ZQFAMILY", "Zqhospital", "ACC7", "19600203")
    uids = (original.StudyInstanceUID, original.SeriesInstanceUID, original.SOPInstanceUID)
    content = path.read_bytes() + repr(row).encode()
    for text in (*planted, *uids):
        assert text.encode() not in content


def test_a_study_is_saved_once(shelf: Store, tmp_path: Path) -> None:
    study_key = judged(shelf, tmp_path)
    saver = saver_of(shelf, tmp_path, saving(EVERYTHING))
    assert [saver.look() for _ in range(3)] == [1, 0, 0]
    write_place(shelf, 0)
    assert saver.look() == 0, "looked at again, and known"
    assert assert_rows_and_files_agree(shelf, tmp_path) == {study_key: 1}


def test_rules_are_for_what_comes_after_they_were_made(shelf: Store, tmp_path: Path) -> None:
    write_place(shelf, None)
    judged(shelf, tmp_path)
    saver = saver_of(shelf, tmp_path, saving(EVERYTHING))
    assert saver.look() == 0
    later = judged(shelf, tmp_path, photograph(2))
    assert saver.look() == 1
    assert set(assert_rows_and_files_agree(shelf, tmp_path)) == {later}


def test_what_may_still_be_on_its_way_is_waited_for(shelf: Store, tmp_path: Path) -> None:
    """A row that is not settled holds back those after it: the place never passes what was not looked at."""
    first = judged(shelf, tmp_path, photograph(1), judged_at=NOW - SETTLED / 2)
    second = judged(shelf, tmp_path, photograph(2), judged_at=NOW - 2 * SETTLED)
    settings = saving(EVERYTHING)
    assert saver_of(shelf, tmp_path, settings).look() == 0
    assert read_place(shelf) == 0
    assert saver_of(shelf, tmp_path, settings, NOW + SETTLED).look() == 2
    assert set(assert_rows_and_files_agree(shelf, tmp_path)) == {first, second}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({}, "plain absent poor odd shadowed chest"),
        ({"models": ["chest-triage"]}, "chest"),
        ({"devices": ["KOWA*"]}, "plain absent poor odd shadowed chest"),
        ({"devices": "TOPCON*"}, ""),
        ({"findings": ["referable_dr:present"]}, "plain odd shadowed chest"),
        ({"findings": ["referable_dr:absent"]}, "absent shadowed"),
        ({"models": ["retinopathy"], "findings": ["referable_dr:present", "other:absent"]}, "plain odd shadowed"),
        ({"only": ["ungradable"]}, "poor"),
        ({"only": ["acquisition"]}, "odd"),
        ({"only": ["disagreement"]}, "shadowed"),
        ({"only": ["disagreement", "ungradable"]}, "poor shadowed"),
        ({"only": ["alarm"]}, "chest"),
    ],
)
def test_rules_choose(shelf: Store, tmp_path: Path, rule: dict[str, Any], expected: str) -> None:
    said: dict[str, dict[str, Any]] = {
        "plain": {},
        "absent": {"score": 0.2},
        "poor": {"ungradable": True},
        "odd": {"acquisition": True},
        "shadowed": {"score": 0.4},
        "chest": {"model": "chest-triage"},
    }
    names = {}
    for name, values in said.items():
        dataset = photograph()
        study_key, instance_key = receive(shelf, tmp_path, dataset)
        judge(shelf, study_key, instance_key, dataset, **values)
        if name == "shadowed":
            judge(shelf, study_key, instance_key, dataset, version=2, role="shadow", score=0.6)
        names[study_key] = name
    _open_alarm(shelf, "chest-triage", "all", "acknowledged")
    _open_alarm(shelf, "retinopathy", "all", "closed")
    saver_of(shelf, tmp_path, saving(EVERYTHING | rule)).look(budget_s=60)
    found = {names[key] for key in assert_rows_and_files_agree(shelf, tmp_path)}
    assert found == set(expected.split())


def _open_alarm(store: Store, model: str, scope: str, state: str) -> None:
    with store.write() as connection:
        connection.execute(
            insert(alarm).values(
                alarm_key=new_key(),
                model_name=model,
                model_version=1,
                scope=scope,
                kind="embedding",
                state=state,
                message="",
                count=1,
                first_seen_at=JUDGED,
                last_seen_at=JUDGED,
            )
        )


def test_the_first_rule_that_chooses_a_study_is_named_with_why(shelf: Store, tmp_path: Path) -> None:
    poor, plain = judged(shelf, tmp_path, ungradable=True), judged(shelf, tmp_path, photograph(2))
    rules = {"name": "poor", "only": ["ungradable"]}, {"name": "rest", "fraction": 0.999999}
    saver_of(shelf, tmp_path, saving(*rules)).look(budget_s=60)
    assert (row_of(shelf, poor).rule, row_of(shelf, poor).reason) == ("poor", "ungradable")
    assert (row_of(shelf, plain).rule, row_of(shelf, plain).reason) == ("rest", "0.999999 of all")


def test_a_fraction_is_of_the_same_studies_each_time(shelf: Store, tmp_path: Path) -> None:
    saver = saver_of(shelf, tmp_path, saving(EVERYTHING))
    keys = saver.site()
    shares = {key: keys.share(key) for key in (new_key() for _ in range(4000))}
    tenth = sum(share < 0.1 for share in shares.values())
    assert 320 <= tenth <= 480, "4000 draws of 0.1: mean 400, standard deviation 19"
    again = saver_of(shelf, tmp_path, saving(EVERYTHING)).site()
    assert {key: again.share(key) for key in shares} == shares
    assert len({keys.saved_key(key) for key in shares}) == 4000
    assert not {keys.saved_key(key) for key in shares} & set(shares)


def test_no_more_than_so_many_a_day(shelf: Store, tmp_path: Path) -> None:
    for seed in range(1, 4):
        judged(shelf, tmp_path, photograph(seed))
    settings = saving(EVERYTHING | {"at_most_a_day": 2})
    saver = saver_of(shelf, tmp_path, settings)
    assert saver.look(budget_s=60) == 2
    judged(shelf, tmp_path, photograph(4))
    assert saver.look() == 0
    judged(shelf, tmp_path, photograph(5))
    assert saver_of(shelf, tmp_path, settings, NOW + timedelta(days=1)).look() == 1


def test_predictions_that_come_later_are_added(shelf: Store, tmp_path: Path) -> None:
    dataset = photograph()
    study_key, instance_key = receive(shelf, tmp_path, dataset)
    judge(shelf, study_key, instance_key, dataset)
    saver = saver_of(shelf, tmp_path, saving(EVERYTHING))
    saver.look()
    judge(shelf, study_key, instance_key, dataset, version=2, role="shadow", score=0.1)
    assert saver.look() == 0
    with shelf.write() as connection:  # judged again
        connection.execute(delete(prediction).where(prediction.c.model_version == 1))
    judge(shelf, study_key, instance_key, dataset, score=0.8, judged_at=JUDGED + timedelta(minutes=1))
    saver.look()
    (image,) = row_of(shelf, study_key).images
    assert {each.model_version: each.findings[0]["score"] for each in image.predictions} == {1: 0.8, 2: 0.1}


def test_a_disagreement_that_a_shadow_shows_later_is_seen(shelf: Store, tmp_path: Path) -> None:
    dataset = photograph()
    study_key, instance_key = receive(shelf, tmp_path, dataset)
    judge(shelf, study_key, instance_key, dataset)
    saver = saver_of(shelf, tmp_path, saving(EVERYTHING | {"only": ["disagreement"]}))
    assert saver.look() == 0
    judge(shelf, study_key, instance_key, dataset, version=2, role="shadow", score=0.1)
    assert saver.look() == 1


def test_an_image_that_comes_late_joins_its_study_whose_first_original_has_expired(
    shelf: Store, tmp_path: Path
) -> None:
    study_uid = generate_uid()
    study_key = judged(shelf, tmp_path, photograph(study_instance_uid=study_uid))
    saver = saver_of(shelf, tmp_path, saving(EVERYTHING))
    saver.look()
    (first,) = row_of(shelf, study_key).images
    with shelf.write() as connection:
        from gateway.store.schema import study

        connection.execute(study.update().values(state="judged"))
    gone = remove_originals(shelf, [first.instance_key], before=NOW, committing=(), now=NOW)
    for path in gone.paths:
        ObjectFolder.in_data_dir(tmp_path).remove(path)
    assert gone.rows == 1
    late = judged(shelf, tmp_path, photograph(2, study_instance_uid=study_uid, laterality="L"))
    assert late == study_key
    saver.look()
    assert assert_rows_and_files_agree(shelf, tmp_path) == {study_key: 2}
    row = row_of(shelf, study_key)
    assert row.folder.endswith("-2")
    assert {image.sha256 for image in row.images} >= {first.sha256}, "as it was"


def test_what_was_removed_is_not_saved_again(shelf: Store, tmp_path: Path) -> None:
    study_key = judged(shelf, tmp_path)
    saver = saver_of(shelf, tmp_path, saving(EVERYTHING))
    saver.look()
    key = row_of(shelf, study_key).saved_key
    assert remove_saved(shelf, tmp_path, [key], actor="command", reason="asked for", now=NOW) == 1
    assert assert_rows_and_files_agree(shelf, tmp_path) == {}
    write_place(shelf, 0)
    assert saver.look() == 0
    with shelf.read() as connection:
        (entry,) = connection.execute(select(audit)).mappings()
    assert (entry["action"], entry["subject"], entry["detail"]) == ("saved study removed", key, "asked for")


def test_a_study_without_files_left_is_passed_by(shelf: Store, tmp_path: Path) -> None:
    judged(shelf, tmp_path)
    other = judged(shelf, tmp_path, photograph(2))
    for number, path in enumerate(sorted((tmp_path / "objects" / "instances").rglob("*.dcm"))):
        if number == 0:
            lost = path.stem
            path.unlink()
    saver_of(shelf, tmp_path, saving(EVERYTHING)).look(budget_s=60)
    found = assert_rows_and_files_agree(shelf, tmp_path)
    assert len(found) == 1
    with shelf.read() as connection:
        missing = connection.execute(
            select(prediction.c.study_key).where(prediction.c.instance_key == lost)
        ).scalar_one()
    assert missing not in found
    assert other == missing or other in found


def _spoil(data_dir: Path, instance_key: str) -> None:
    (path,) = (data_dir / "objects" / "instances").rglob(f"{instance_key}.dcm")
    path.write_bytes(b"no DICOM")


def test_an_image_that_cannot_be_read_costs_neither_its_study_nor_the_next(shelf: Store, tmp_path: Path) -> None:
    study_uid = generate_uid()
    images = []
    for seed in (1, 2):
        dataset = photograph(seed, study_instance_uid=study_uid)
        study_key, instance_key = receive(shelf, tmp_path, dataset)
        judge(shelf, study_key, instance_key, dataset)
        images.append(instance_key)
    lost = judged_study(shelf, study_key)
    assert lost is not None
    _spoil(tmp_path, next(iter(lost.files)))
    after = judged(shelf, tmp_path, photograph(3))
    saver = saver_of(shelf, tmp_path, saving(EVERYTHING))
    assert saver.look(budget_s=60) == 2
    assert saver.waiting == ""
    assert assert_rows_and_files_agree(shelf, tmp_path) == {study_key: 1, after: 1}
    assert row_of(shelf, study_key).person, "from the image that could be copied"


def test_a_saved_file_that_is_gone_holds_up_no_other_study(shelf: Store, tmp_path: Path) -> None:
    study_uid = generate_uid()
    study_key = judged(shelf, tmp_path, photograph(study_instance_uid=study_uid))
    saver = saver_of(shelf, tmp_path, saving(EVERYTHING))
    saver.look()
    row = row_of(shelf, study_key)
    (tmp_path / row.folder / row.images[0].file_name).unlink()
    late = photograph(2, study_instance_uid=study_uid)
    judged(shelf, tmp_path, late)
    after = judged(shelf, tmp_path, photograph(3))
    assert saver.look(budget_s=60) == 1
    assert saver.waiting == ""
    assert row_of(shelf, after).instance_count == 1
    assert row_of(shelf, study_key).folder == row.folder
    assert not list((tmp_path / "saved").glob(".unfinished*"))


def _status(free_bytes: int) -> Any:
    values = {"f_frsize": 1, "f_bavail": free_bytes, "f_blocks": 10**12, "f_favail": 10**9, "f_files": 10**9}
    return SimpleNamespace(**values)


def test_saving_stops_first_when_the_disk_is_short_and_goes_on_where_it_stopped(shelf: Store, tmp_path: Path) -> None:
    settings = saving(EVERYTHING, **{"disk.expire_below_bytes": 10**9, "disk.refuse_below_bytes": 10**6})
    free = 10**8  # enough to receive
    clock = itertools.count()
    guard = DiskGuard(tmp_path, settings.disk, ask=lambda _: _status(free), clock=lambda: float(next(clock)))
    saver = Saver(settings=settings, data_dir=tmp_path, store=shelf, disk=guard, clock=lambda: NOW)
    study_key = judged(shelf, tmp_path)
    assert guard.refusal() is None
    assert saver.look() == 0
    assert "the disk is short of room" in saver.waiting
    free = 10**10
    assert saver.look() == 1
    assert saver.waiting == ""
    assert set(assert_rows_and_files_agree(shelf, tmp_path)) == {study_key}


def test_a_disk_that_fills_in_the_middle_leaves_nothing_half(
    shelf: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study_uid = generate_uid()
    for seed in (1, 2):
        study_key = judged(shelf, tmp_path, photograph(seed, study_instance_uid=study_uid))
    saver = saver_of(shelf, tmp_path, saving(EVERYTHING))
    calls = itertools.count()
    fsync = os.fsync

    def full(descriptor: int) -> None:
        if next(calls) == 1:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as failing:
        failing.setattr(os, "fsync", full)
        assert saver.look() == 0
    assert saver.waiting == "studies cannot be saved: No space left on device"
    assert assert_rows_and_files_agree(shelf, tmp_path) == {}
    assert saver.look() == 1
    assert assert_rows_and_files_agree(shelf, tmp_path) == {study_key: 2}


@pytest.mark.parametrize(("when_full", "expected"), [("stop", {0, 1}), ("remove oldest", {1, 2})])
def test_what_is_saved_stays_below_its_limit(shelf: Store, tmp_path: Path, when_full: str, expected: set[int]) -> None:
    keys = [judged(shelf, tmp_path, photograph(1)) for _ in range(3)]
    size = next((tmp_path / "objects" / "instances").rglob("*.dcm")).stat().st_size
    overrides = {"saved.maximum_bytes": int(size * 2.5), "saved.when_full": when_full}
    saver = saver_of(shelf, tmp_path, saving(EVERYTHING, **overrides))
    saver.look(budget_s=60)
    saved = assert_rows_and_files_agree(shelf, tmp_path)
    received = {keys.index(key) for key in saved}
    if when_full == "stop":
        assert received == expected
    else:  # all were received at the same moment: the one just saved stays
        assert len(received) == 2
        assert 2 in received
    assert saver.holdings().size_bytes <= size * 2.5


def test_a_folder_that_no_row_promises_is_swept(shelf: Store, tmp_path: Path) -> None:
    study_key = judged(shelf, tmp_path)
    saver_of(shelf, tmp_path, saving(EVERYTHING)).look()
    for name in ("ab/" + "ab" * 16, ".unfinished-" + "cd" * 16):
        (tmp_path / "saved" / name).mkdir(parents=True)
        (tmp_path / "saved" / name / "x.dcm").write_bytes(b"x")
    assert sweep(shelf, tmp_path) == 2
    assert assert_rows_and_files_agree(shelf, tmp_path) == {study_key: 1}


def test_two_savers_do_not_save_at_once(shelf: Store, tmp_path: Path) -> None:
    from gateway.saved.saver import _alone

    judged(shelf, tmp_path)
    saver = saver_of(shelf, tmp_path, saving(EVERYTHING))
    with _alone(tmp_path) as alone:
        assert alone
        assert saver.look() == 0
    assert saver.look() == 1


def _save_and_die(data_dir: Path, at: int) -> None:
    """Save until the step `at`, of those after which something else is on the disk than before; then kill -9."""
    steps = itertools.count(1)

    def step(*_: Any, **__: Any) -> None:
        if next(steps) == at:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(function: Any) -> Any:
        def called(*arguments: Any, **named: Any) -> Any:
            step()
            result = function(*arguments, **named)
            step()
            return result

        return called

    store = open_store("", data_dir=data_dir)
    os.fsync = before(os.fsync)
    Path.rename = before(Path.rename)  # type: ignore[method-assign]
    shutil.rmtree = before(shutil.rmtree)
    event.listen(store.engine, "commit", step)
    saver_of(store, data_dir, saving(EVERYTHING)).look(budget_s=60)
    store.close()


def _run_and_kill(data_dir: Path, at: int) -> bool:
    """Whether it was killed."""
    child = multiprocessing.get_context("fork").Process(target=_save_and_die, args=(data_dir, at))
    child.start()
    child.join(60)
    assert child.exitcode in (0, -signal.SIGKILL)
    return child.exitcode != 0


def test_killed_at_any_step_each_study_is_saved_once_and_whole(tmp_path: Path) -> None:
    """Two new studies, and one that grew; killed before and after every step that changes the disk."""
    origin = tmp_path / "origin"
    origin.mkdir()
    store = open_store("", data_dir=origin, migrate=True)
    write_place(store, 0)
    study_uid = generate_uid()
    grown = judged(store, origin, photograph(1, study_instance_uid=study_uid))
    saver_of(store, origin, saving(EVERYTHING)).look()
    judged(store, origin, photograph(2, study_instance_uid=study_uid))
    others = [judged(store, origin, photograph(seed)) for seed in (3, 4)]
    expected = {grown: 2, **dict.fromkeys(others, 1)}
    store.close()
    kills = 0
    for at in itertools.count(1):
        data_dir = tmp_path / f"run-{at}"
        shutil.copytree(origin, data_dir)
        killed = _run_and_kill(data_dir, at)
        store = open_store("", data_dir=data_dir)
        saver = saver_of(store, data_dir, saving(EVERYTHING))
        saved_now = saver.look(budget_s=60)
        assert saver.waiting == ""
        assert assert_rows_and_files_agree(store, data_dir) == expected, f"killed at step {at}"
        store.close()
        shutil.rmtree(data_dir)
        if not killed:
            assert saved_now == 0
            break
        kills += 1
    assert kills > 20


def test_killed_while_removing_nothing_is_left_that_a_row_promises(tmp_path: Path) -> None:
    store = open_store("", data_dir=tmp_path, migrate=True)
    write_place(store, 0)
    study_key = judged(store, tmp_path)
    saver_of(store, tmp_path, saving(EVERYTHING)).look()
    key = row_of(store, study_key).saved_key

    def remove_and_die() -> None:
        def dies(*_: Any, **__: Any) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        shutil.rmtree = dies  # type: ignore[assignment]
        remove_saved(open_store("", data_dir=tmp_path), tmp_path, [key], actor="a", reason="b", now=NOW)

    child = multiprocessing.get_context("fork").Process(target=remove_and_die)
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert find_saved(store, key) is None
    assert sweep(store, tmp_path) == 1
    assert assert_rows_and_files_agree(store, tmp_path) == {}
    store.close()


def _run_saver(data_dir: Path, settings: Settings) -> None:
    process.run(settings, data_dir, stop_on_sigterm())


def test_the_process_saves_says_that_it_lives_and_ends_when_told(shelf: Store, tmp_path: Path) -> None:
    study_key = judged(shelf, tmp_path)
    child = multiprocessing.get_context("fork").Process(target=_run_saver, args=(tmp_path, saving(EVERYTHING)))
    child.start()
    try:
        deadline = time.monotonic() + 60
        while find_saved(shelf, study_key) is None:
            assert time.monotonic() < deadline
            assert child.is_alive()
            time.sleep(0.05)
        (row,) = processes(shelf)
        assert (row["name"], row["pid"]) == ("saver", child.pid)
    finally:
        child.terminate()
        child.join(30)
    assert child.exitcode == 0
    assert assert_rows_and_files_agree(shelf, tmp_path) == {study_key: 1}


def test_there_is_a_saver_only_where_a_rule_saves(tmp_path: Path) -> None:
    assert "saver" in expected_processes(saving(EVERYTHING))
    assert "saver" not in expected_processes(saving())
    store = open_store("", data_dir=tmp_path, migrate=True)
    write_place(store, 7)
    process.prepare_saving(saving(EVERYTHING), store)
    assert read_place(store) == 7
    process.prepare_saving(saving(), store)
    assert read_place(store) is None, "rules that are made later are for what comes later"
    store.close()
