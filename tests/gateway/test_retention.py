"""What may be deleted and what never is, on SQLite and on PostgreSQL; holds."""

from __future__ import annotations

import threading
from datetime import timedelta
from pathlib import Path

import pytest
from house_rig import DAY, NOW, Sending, Shelf, house_settings
from sqlalchemy import event, select, text, update

from gateway.errors import StoreError, TransitionError
from gateway.housekeeping import Housekeeper, committing_destinations
from gateway.store import Store, open_store
from gateway.store.audit import entries
from gateway.store.deliveries import resend
from gateway.store.predictions import FailureRow, record_failures
from gateway.store.retention import ROWS_A_STEP, candidates, hold, release, remove_originals
from gateway.store.schema import delivery, instance, model_failure, prediction, quarantine, result, study
from gateway.store.studies import claim_studies, complete_now, load_study
from gateway.studies_view import study_detail
from gateway.study import StudyState

OLD = NOW - 200 * DAY
YOUNG = NOW - 5 * DAY


@pytest.fixture
def shelf(store: Store, tmp_path: Path) -> Shelf:
    return Shelf(store, tmp_path)


def keep(shelf: Shelf) -> Housekeeper:
    return Housekeeper(
        settings=house_settings(),
        data_dir=shelf.data_dir,
        store=shelf.store,
        stop=threading.Event(),
        clock=lambda: NOW,
    )


def test_each_kind_goes_at_its_own_age(shelf: Shelf) -> None:
    young, middle, old = (shelf.add(received_at=NOW - days * DAY) for days in (29, 31, 91))
    ancient = shelf.add(received_at=NOW - 366 * DAY)
    kept, gone = shelf.refuse(received_at=NOW - 9 * DAY), shelf.refuse(received_at=NOW - 11 * DAY)
    assert keep(shelf).round() > 0
    assert shelf.studies_with("instances") == {young}
    assert shelf.studies_with("results") == {young, middle}
    assert shelf.studies() == {young, middle, old}
    assert ancient not in shelf.studies()
    assert shelf.files("quarantine") == {f"quarantine/{kept}.dcm"}
    assert len(shelf.files("pictures")) == len(shelf.files("heat")) == 2
    with shelf.store.read() as connection:
        marks = dict(connection.execute(select(quarantine.c.quarantine_key, quarantine.c.removed_at)).all())
    assert marks == {kept: None, gone: NOW}
    assert keep(shelf).round() == 0


def test_what_is_kept_for_ever_stays(shelf: Shelf) -> None:
    ever = {f"retention.{kind}_days": 0 for kind in ("originals", "results", "quarantine", "records")}
    key = shelf.add(received_at=NOW - 5000 * DAY)
    shelf.refuse(received_at=NOW - 5000 * DAY)
    housekeeper = Housekeeper(
        settings=house_settings(**ever),
        data_dir=shelf.data_dir,
        store=shelf.store,
        stop=threading.Event(),
        clock=lambda: NOW,
    )
    assert housekeeper.round() == 0
    assert shelf.studies_with("instances") == shelf.studies_with("results") == {key}
    assert len(shelf.files("quarantine")) == 1


NEVER = {
    "receiving": {"state": StudyState.RECEIVING},
    "queued": {"state": StudyState.QUEUED},
    "processing": {"state": StudyState.PROCESSING},
    "pending": {"sendings": [Sending(state="pending")]},
    "one of two pending": {"sendings": [Sending(), Sending(destination="other", state="pending")]},
    "dead letter": {"sendings": [Sending(state="dead")]},
    "not committed": {"sendings": [Sending(destination="commits")]},
    "on hold": {"on_hold": True},
    "judged lately": {"judged_at": YOUNG},
    "delivered lately": {"sendings": [Sending(delivered_at=YOUNG)]},
}


@pytest.mark.parametrize("why", NEVER)
def test_never_goes(shelf: Shelf, why: str) -> None:
    stays = shelf.add(received_at=OLD - 300 * DAY, **NEVER[why])
    goes = shelf.add(received_at=OLD, sendings=[Sending(), Sending(destination="commits", committed_at=OLD)])
    keep(shelf).round()
    assert shelf.studies_with("instances") == shelf.studies_with("results") == {stays}
    assert shelf.studies() == {stays, goes}


def test_studies_that_nobody_judged_go_by_age_too(shelf: Shelf) -> None:
    for state in (StudyState.NOT_MATCHED, StudyState.FAILED):
        shelf.add(received_at=OLD, state=state, judged=False)
    keep(shelf).round()
    assert shelf.studies_with("instances") == set()


def test_a_late_image_keeps_its_study(shelf: Shelf) -> None:
    key = shelf.add(received_at=OLD, images=2)
    with shelf.store.write() as connection:
        connection.execute(update(study).where(study.c.study_key == key).values(last_received_at=YOUNG))
    keep(shelf).round()
    assert shelf.studies_with("instances") == {key}


def test_a_record_stays_as_long_as_a_file_of_it(shelf: Shelf) -> None:
    key = shelf.add(received_at=NOW - 400 * DAY)
    settings = house_settings(**{"retention.originals_days": 0})
    housekeeper = Housekeeper(
        settings=settings, data_dir=shelf.data_dir, store=shelf.store, stop=threading.Event(), clock=lambda: NOW
    )
    housekeeper.round()
    assert shelf.studies() == shelf.studies_with("instances") == {key}
    assert shelf.studies_with("results") == set()


def test_records_take_all_their_rows_with_them(shelf: Shelf) -> None:
    key = shelf.add(received_at=NOW - 400 * DAY, images=2, sendings=[Sending()])
    record_failures(shelf.store, key, [FailureRow(model_name="m", version=1, role="shadow", reason="no")], NOW)
    shelf.refuse(received_at=NOW - 400 * DAY)
    keep(shelf).round()
    with shelf.store.read() as connection:
        for table in (study, instance, prediction, model_failure, result, delivery, quarantine):
            assert connection.execute(select(table)).all() == [], table.name
    assert not any(shelf.files(name) for name in ("instances", "results", "heat", "pictures", "quarantine"))


def test_the_oldest_come_first_and_a_walk_comes_by_each_once(shelf: Shelf) -> None:
    ages = [timedelta(days=100 + number % 7) for number in range(12)]
    for age in ages:
        shelf.add(received_at=NOW - age, judged=False)
    seen: list[str] = []
    place = None
    while True:
        found = candidates(shelf.store, "originals", before=NOW - 30 * DAY, place=place, limit=5)
        seen += found.keys
        place = found.place
        if place is None:
            break
    assert len(seen) == len(set(seen)) == 12
    with shelf.store.read() as connection:
        received = dict(connection.execute(select(instance.c.instance_key, instance.c.received_at)).all())
    assert [received[key] for key in seen] == sorted(NOW - age for age in ages)


def test_what_changed_since_it_was_looked_at_stays(shelf: Shelf) -> None:
    key = shelf.add(received_at=OLD)
    found = candidates(shelf.store, "originals", before=YOUNG)
    assert len(found.keys) == 1
    hold(shelf.store, key, by="somebody", reason="a question", now=NOW)
    removed = remove_originals(shelf.store, found.keys, before=YOUNG, committing=(), now=NOW)
    assert (removed.rows, removed.paths) == (0, ())
    assert shelf.studies_with("instances") == {key}


def test_committing_destinations() -> None:
    assert committing_destinations(house_settings()) == ("commits",)


def test_hold_and_release_are_recorded(shelf: Shelf) -> None:
    key = shelf.add(received_at=OLD)
    assert hold(shelf.store, key, by="anna", reason=" asked for by the court ", now=NOW) == 0
    keep(shelf).round()
    assert shelf.studies_with("instances") == {key}
    view = study_detail(shelf.store, key)
    assert view["hold"] == {"reason": "asked for by the court", "by": "anna", "at": NOW.isoformat()}
    release(shelf.store, key, by="bert", now=NOW + DAY)
    assert study_detail(shelf.store, key)["hold"] is None
    told = [(each["actor"], each["action"], each["subject"], each["detail"]) for each in entries(shelf.store, limit=9)]
    reason = "asked for by the court"
    assert told == [("bert", "release", key, reason), ("anna", "hold", key, reason)]
    keep(shelf).round()
    assert shelf.studies_with("instances") == set()


def test_holds_that_make_no_sense(shelf: Shelf) -> None:
    key = shelf.add(received_at=OLD)
    with pytest.raises(StoreError, match="no study"):
        hold(shelf.store, "0" * 32, by="anna", reason="a question", now=NOW)
    with pytest.raises(StoreError, match="needs a reason"):
        hold(shelf.store, key, by="anna", reason=" ", now=NOW)
    with pytest.raises(StoreError, match="not on hold"):
        release(shelf.store, key, by="anna", now=NOW)
    with pytest.raises(StoreError, match="no study"):
        release(shelf.store, "0" * 32, by="anna", now=NOW)
    assert entries(shelf.store, limit=9) == []


def test_a_hold_says_what_had_gone_before(shelf: Shelf) -> None:
    key = shelf.add(received_at=OLD, images=3)
    keep(shelf).round()
    assert hold(shelf.store, key, by="anna", reason="a question", now=NOW) == 3


def test_expired_images_are_shown_and_not_judged_again(shelf: Shelf) -> None:
    key = shelf.add(received_at=OLD)
    keep(shelf).round()
    view = study_detail(shelf.store, key)
    assert [each["expired_at"] for each in view["images"]] == [NOW.isoformat()]
    assert view["predictions"][0]["heat_map_expired"]
    with pytest.raises(TransitionError, match="the images have expired"):
        complete_now(shelf.store, key, NOW)
    assert study_detail(shelf.store, key)["state"] == "judged"
    with pytest.raises(StoreError, match="expired"):
        load_study(shelf.store, key, shelf.objects.root)


def test_a_queued_study_without_images_fails_with_the_reason_and_holds_up_no_other(shelf: Shelf) -> None:
    empty, whole = shelf.add(received_at=OLD), shelf.add(received_at=YOUNG)
    keep(shelf).round()
    with shelf.store.write() as connection:
        connection.execute(update(study).values(state=StudyState.QUEUED, queued_at=NOW, not_before=NOW))
    claimed = claim_studies(
        shelf.store, owner="worker", now=NOW, lease=timedelta(minutes=1), limit=8, objects=shelf.objects.root
    )
    assert [each.study.study_key for each in claimed] == [whole]
    view = study_detail(shelf.store, empty)
    assert (view["state"], view["reason"]) == ("failed", "the images have expired")


def test_a_study_grown_late_is_judged_by_what_is_left(shelf: Shelf) -> None:
    key = shelf.add(received_at=OLD, images=2)
    with shelf.store.write() as connection:
        first = connection.execute(select(instance.c.instance_key).limit(1)).scalar_one()
        connection.execute(update(instance).where(instance.c.instance_key == first).values(removed_at=NOW))
    loaded = load_study(shelf.store, key, shelf.objects.root)
    assert len(loaded.instances) == 1
    assert loaded.instances[0].instance_key != first


def test_an_expired_result_is_not_sent_again(shelf: Shelf) -> None:
    shelf.add(received_at=OLD, sendings=[Sending()])
    keep(shelf).round()
    with shelf.store.read() as connection:
        number = connection.execute(select(delivery.c.delivery_id)).scalar_one()
    with pytest.raises(StoreError, match="the result has expired"):
        resend(shelf.store, number, NOW)


def test_the_walks_read_an_index_in_its_order(tmp_path: Path) -> None:
    store = open_store("", data_dir=tmp_path, migrate=True)
    asked: list[tuple[str, object]] = []

    @event.listens_for(store.engine, "before_cursor_execute")
    def note(_: object, __: object, statement: str, parameters: object, *___: object) -> None:
        if statement.startswith("SELECT"):
            asked.append((statement, parameters))

    place = (OLD, "a" * 32)
    for kind, index in (
        ("originals", "ix_instance_removed_at_received_at"),
        ("results", "ix_result_removed_at_created_at"),
        ("quarantine", "ix_quarantine_removed_at_received_at"),
        ("records", "ix_study_last_received_at"),
    ):
        asked.clear()
        candidates(store, kind, before=NOW, committing=("commits",), place=place, limit=ROWS_A_STEP)  # type: ignore[arg-type]
        statement, parameters = asked[-1]
        with store.engine.connect() as connection:
            plan = [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)]  # type: ignore[arg-type]
        assert index in plan[0], (kind, plan)
        assert not any("SCAN" in line for line in plan), (kind, plan)
    store.close()


def test_no_step_of_a_round_reads_a_table_whole(tmp_path: Path) -> None:
    store = open_store("", data_dir=tmp_path, migrate=True)
    shelf = Shelf(store, tmp_path)
    asked: list[tuple[str, object]] = []

    @event.listens_for(store.engine, "before_cursor_execute")
    def note(_: object, __: object, statement: str, parameters: object, *___: object) -> None:
        if statement.startswith(("SELECT", "UPDATE", "DELETE")):
            asked.append((statement, parameters))

    shelf.add(received_at=NOW - 400 * DAY, sendings=[Sending()])
    shelf.refuse(received_at=NOW - 400 * DAY)
    asked.clear()
    keeper = keep(shelf)
    keeper.round()
    keeper.round()
    looked_at = list(asked)
    assert len(looked_at) > 20
    for statement, parameters in looked_at:
        with store.engine.connect() as connection:
            plan = [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)]  # type: ignore[arg-type]
        for line in plan:
            whole = line.startswith("SCAN") or line.endswith("(removed_at=?)")
            assert not whole or "quarantine" in line or "process" in line or "VIRTUAL" in line, (statement, plan)
    store.close()


def test_postgresql_too_walks_by_index(store: Store, store_url: str) -> None:
    if not store_url:
        pytest.skip("SQLite's plan is looked at above")
    with store.read() as connection:
        connection.execute(text("SET LOCAL enable_seqscan = off"))
        plan = "\n".join(
            row[0]
            for row in connection.execute(
                text(
                    "EXPLAIN SELECT received_at, instance_key FROM instance WHERE removed_at IS NULL AND "
                    "received_at < now() ORDER BY received_at, instance_key LIMIT 200"
                )
            )
        )
    assert "ix_instance_removed_at_received_at" in plan
