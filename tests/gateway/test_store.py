"""The store's functions, each on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import insert, select, update

from gateway.errors import StoreError, TransitionError
from gateway.store import Store, open_store
from gateway.store.deliveries import due_deliveries, mark_delivered, mark_failed, resend
from gateway.store.intake import Admission, NewInstance, StudyHeader, admit_all, known_paths, new_key, put_in_quarantine
from gateway.store.schema import delivery, instance, metadata, quarantine, result, study
from gateway.store.studies import (
    claim_studies,
    complete_now,
    give_back,
    load_study,
    move_study,
    queue_complete_studies,
    release_leases,
    renew_leases,
)
from gateway.study import TRANSITIONS, StudyState

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
QUIET, CAP, LEASE = timedelta(seconds=5), timedelta(seconds=100), timedelta(seconds=60)


def admit(store: Store, new: NewInstance) -> Admission:
    """One instance in a transaction of its own."""
    (admission,) = admit_all(store, [new])
    return admission


def arrival(study_uid: str, sop_uid: str, *, at: datetime = NOW, sha256: str = "a" * 64) -> NewInstance:
    key = new_key()
    return NewInstance(
        instance_key=key,
        header=StudyHeader(study_instance_uid=study_uid, patient_name="Ä^Ö=漢字", modality="CR"),
        sop_instance_uid=sop_uid,
        sop_class_uid="1.2.840.10008.5.1.4.1.1.1",
        series_instance_uid="1.5",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        modality="CR",
        sha256=sha256,
        size_bytes=5 << 30,
        path=f"instances/{key[:2]}/{key}.dcm",
        calling_ae_title="PEER",
        peer_address="127.0.0.1",
        received_at=at,
        quiet_time=QUIET,
        hard_cap=CAP,
    )


@pytest.fixture(scope="module")
def lasting_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    opened = open_store("", data_dir=tmp_path_factory.mktemp("lasting"), migrate=True)
    yield opened
    opened.close()


def the_study(store: Store) -> object:
    with store.read() as connection:
        return connection.execute(select(study)).one()


def key_of(store: Store) -> str:
    return str(the_study(store).study_key)  # type: ignore[attr-defined]


def test_migrations_make_what_the_schema_says(store: Store) -> None:
    with store.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_migrating_twice_changes_nothing(store: Store, store_url: str, tmp_path: Path) -> None:
    admit(store, arrival("1.1", "1.1.1"))
    again = open_store(store_url, data_dir=tmp_path, migrate=True)
    assert len(known_paths(again)) == 1
    again.close()


def test_unreachable_store_says_so_without_the_password(tmp_path: Path) -> None:
    with pytest.raises(StoreError) as raised:
        open_store("postgresql+psycopg://me:hush@127.0.0.1:1/none", data_dir=tmp_path, migrate=True)
    assert "hush" not in str(raised.value)
    with pytest.raises(StoreError):
        open_store("nonsense", data_dir=tmp_path)


# --- admission ----------------------------------------------------------------------------------------------------


def test_admission(store: Store) -> None:
    first = arrival("1.1", "1.1.1")
    assert admit(store, first) is Admission.STORED
    assert admit(store, arrival("1.1", "1.1.1")) is Admission.ALREADY_THERE
    assert admit(store, arrival("1.1", "1.1.1", sha256="b" * 64)) is Admission.OTHER_BYTES
    with store.read() as connection:
        row = connection.execute(select(instance)).one()
    assert (row.path, row.size_bytes, row.received_at) == (first.path, 5 << 30, NOW)
    found = the_study(store)
    assert (found.patient_name, found.instance_count, found.revision) == ("Ä^Ö=漢字", 1, 1)  # type: ignore[attr-defined]


def test_study_grows_until_quiet_and_no_longer_than_the_cap(store: Store) -> None:
    for number in range(30):
        admit(store, arrival("1.1", f"1.1.{number}", at=NOW + timedelta(seconds=4 * number)))
    found = the_study(store)
    assert found.instance_count == 30  # type: ignore[attr-defined]
    assert found.first_received_at == NOW  # type: ignore[attr-defined]
    assert found.complete_at == NOW + CAP  # type: ignore[attr-defined]


def test_longer_quiet_time_of_an_earlier_image_holds(store: Store) -> None:
    admit(store, replace(arrival("1.1", "1.1.1"), quiet_time=timedelta(seconds=60)))
    admit(store, arrival("1.1", "1.1.2", at=NOW + timedelta(seconds=1)))
    assert the_study(store).complete_at == NOW + timedelta(seconds=60)  # type: ignore[attr-defined]


def test_many_admit_the_same_at_once(store: Store) -> None:
    """Four threads, one study, each instance sent by two of them: a row for each instance, one study."""
    outcomes: list[Admission] = []
    errors: list[StoreError] = []
    barrier = threading.Barrier(4)

    def work(half: int) -> None:
        barrier.wait()
        for number in range(20):
            for _ in range(5):
                try:
                    outcomes.append(admit(store, arrival("1.1", f"1.1.{half}.{number}")))
                    break
                except (
                    StoreError
                ) as error:  # PostgreSQL refuses one of two that insert the same; the intake tries again
                    errors.append(error)

    threads = [threading.Thread(target=work, args=(number % 2,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 80
    assert outcomes.count(Admission.STORED) == outcomes.count(Admission.ALREADY_THERE) == 40
    found = the_study(store)
    assert (found.instance_count, found.revision) == (40, 40)  # type: ignore[attr-defined]


def test_quarantine(store: Store) -> None:
    put_in_quarantine(
        store,
        key=new_key(),
        reason="truncated",
        path="quarantine/x.dcm",
        size_bytes=7,
        calling_ae_title="PEER",
        peer_address="::1",
        received_at=NOW,
    )
    with store.read() as connection:
        row = connection.execute(select(quarantine)).one()
    assert (row.reason, row.peer_address, row.received_at) == ("truncated", "::1", NOW)
    assert known_paths(store) == {"quarantine/x.dcm"}


def test_naive_time_is_refused(store: Store) -> None:
    with pytest.raises((StoreError, ValueError)):
        admit(store, replace(arrival("1.1", "1.1.1"), received_at=NOW.replace(tzinfo=None)))
    assert known_paths(store) == frozenset()


# --- studies ------------------------------------------------------------------------------------------------------


def test_completion_and_claims(store: Store, tmp_path: Path) -> None:
    admit(store, arrival("1.1", "1.1.1"))
    admit(store, arrival("1.1", "1.1.2"))
    assert queue_complete_studies(store, NOW + QUIET - timedelta(seconds=1)) == 0
    assert queue_complete_studies(store, NOW + QUIET) == 1
    assert queue_complete_studies(store, NOW + QUIET) == 0
    later = NOW + QUIET
    (claimed,) = claim_studies(store, owner="w1", now=later, lease=LEASE, limit=5, objects=tmp_path)
    assert len(claimed.study.instances) == 2
    assert (claimed.attempts, claimed.revision, claimed.queued_at) == (1, 2, later)
    assert claim_studies(store, owner="w2", now=later, lease=LEASE, limit=5, objects=tmp_path) == ()
    # Its lease ends: another takes it.
    (again,) = claim_studies(store, owner="w2", now=later + LEASE * 2, lease=LEASE, limit=5, objects=tmp_path)
    assert (again.study.study_key, again.attempts) == (claimed.study.study_key, 2)


def test_leases_are_renewed_and_released(store: Store, tmp_path: Path) -> None:
    admit(store, arrival("1.1", "1.1.1"))
    complete_now(store, key_of(store), NOW)
    claim_studies(store, owner="w1", now=NOW, lease=LEASE, limit=5, objects=tmp_path)
    renew_leases(store, owner="w1", now=NOW + LEASE, lease=LEASE)
    after = NOW + LEASE + timedelta(seconds=1)
    assert claim_studies(store, owner="w2", now=after, lease=LEASE, limit=5, objects=tmp_path) == ()
    assert release_leases(store, owner="w2") == 0
    assert release_leases(store, owner="w1") == 1
    assert len(claim_studies(store, owner="w2", now=after, lease=LEASE, limit=5, objects=tmp_path)) == 1


def test_many_claim_at_once_and_each_study_goes_to_one(store: Store, tmp_path: Path) -> None:
    for number in range(30):
        admit(store, arrival(f"1.{number}", f"1.{number}.1"))
    assert queue_complete_studies(store, NOW + QUIET) == 30
    claimed: list[str] = []
    barrier = threading.Barrier(4)

    def work(owner: str) -> None:
        barrier.wait()
        for _ in range(12):
            claimed.extend(
                each.study.study_key
                for each in claim_studies(store, owner=owner, now=NOW + QUIET, lease=LEASE, limit=3, objects=tmp_path)
            )

    threads = [threading.Thread(target=work, args=(f"w{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(claimed) == len(set(claimed)) == 30


def test_most_urgent_first(store: Store, tmp_path: Path) -> None:
    for number in range(3):
        admit(store, arrival(f"1.{number}", f"1.{number}.1"))
    with store.write() as connection:
        connection.execute(update(study).where(study.c.study_instance_uid == "1.2").values(priority=2))
    queue_complete_studies(store, NOW + QUIET)
    (first,) = claim_studies(store, owner="w", now=NOW + QUIET, lease=LEASE, limit=1, objects=tmp_path)
    assert first.study.instances[0].study_instance_uid == "1.2"


def test_late_image_reopens_a_study(store: Store, tmp_path: Path) -> None:
    admit(store, arrival("1.1", "1.1.1"))
    key = key_of(store)
    complete_now(store, key, NOW)
    claim_studies(store, owner="w", now=NOW, lease=LEASE, limit=1, objects=tmp_path)
    with store.write() as connection:
        move_study(connection, key, StudyState.JUDGED)
    late = NOW + timedelta(hours=3)
    admit(store, arrival("1.1", "1.1.2", at=late))
    found = the_study(store)
    assert (found.state, found.complete_at) == ("receiving", late + QUIET)  # type: ignore[attr-defined]
    # While a worker holds it, it stays with the worker.
    complete_now(store, key, late)
    claim_studies(store, owner="w", now=late, lease=LEASE, limit=1, objects=tmp_path)
    admit(store, arrival("1.1", "1.1.3", at=late))
    assert the_study(store).state == "processing"  # type: ignore[attr-defined]


def test_given_back_waits(store: Store, tmp_path: Path) -> None:
    admit(store, arrival("1.1", "1.1.1"))
    key = key_of(store)
    complete_now(store, key, NOW)
    claim_studies(store, owner="w", now=NOW, lease=LEASE, limit=1, objects=tmp_path)
    give_back(store, key, to=StudyState.QUEUED, reason="busy", now=NOW, delay=timedelta(seconds=30))
    assert claim_studies(store, owner="w", now=NOW, lease=LEASE, limit=1, objects=tmp_path) == ()
    assert len(claim_studies(store, owner="w", now=NOW + LEASE, lease=LEASE, limit=1, objects=tmp_path)) == 1


@pytest.mark.parametrize("before", list(StudyState))
@pytest.mark.parametrize("after", list(StudyState))
def test_every_transition(lasting_store: Store, before: StudyState, after: StudyState) -> None:
    store = lasting_store
    admit(store, arrival(f"1.{before}.{after}"[:64], f"1.{before}.{after}"[:64]))
    with store.write() as connection:
        row = connection.execute(
            select(study.c.study_key).where(study.c.study_instance_uid == f"1.{before}.{after}"[:64])
        ).one()
        connection.execute(update(study).where(study.c.study_key == row.study_key).values(state=before))
    if after in TRANSITIONS[before]:
        with store.write() as connection:
            move_study(connection, row.study_key, after)
    else:
        with pytest.raises(TransitionError, match=f"from {before} to {after}"), store.write() as connection:
            move_study(connection, row.study_key, after)


def test_no_such_study(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no study"):
        load_study(store, new_key(), tmp_path)
    with pytest.raises(TransitionError, match="from nowhere"):
        complete_now(store, new_key(), NOW)


# --- deliveries ---------------------------------------------------------------------------------------------------


def add_delivery(store: Store, *destinations: str) -> None:
    admit(store, arrival("1.1", "1.1.1"))
    key = new_key()
    with store.write() as connection:
        connection.execute(
            insert(result).values(
                result_key=key,
                study_key=connection.execute(select(study.c.study_key)).scalar_one(),
                kind="SR",
                sop_class_uid="1.2",
                sop_instance_uid="1.3",
                path="results/x.dcm",
                created_at=NOW,
            )
        )
        for destination in destinations:
            connection.execute(
                insert(delivery).values(
                    result_key=key,
                    study_key=connection.execute(select(study.c.study_key)).scalar_one(),
                    destination=destination,
                    state="pending",
                    next_attempt_at=NOW,
                    created_at=NOW,
                )
            )


def test_deliveries(store: Store) -> None:
    add_delivery(store, "a", "b")
    (due,) = due_deliveries(store, NOW, destinations=["a"], limit=10)
    assert (due.destination, due.kind, due.path, due.attempts) == ("a", "SR", "results/x.dcm", 0)
    assert len(due_deliveries(store, NOW, destinations=["a", "b"], limit=10)) == 2
    assert due_deliveries(store, NOW - timedelta(seconds=1), destinations=["a", "b"], limit=10) == ()
    mark_failed(store, [due.delivery_id], error="x" * 900, next_attempt_at=NOW + LEASE)
    assert due_deliveries(store, NOW, destinations=["a"], limit=10) == ()
    (again,) = due_deliveries(store, NOW + LEASE, destinations=["a"], limit=10)
    assert again.attempts == 1
    mark_failed(store, [due.delivery_id], error="never", next_attempt_at=None)
    assert due_deliveries(store, NOW + LEASE, destinations=["a"], limit=10) == ()
    resend(store, due.delivery_id, NOW)
    (fresh,) = due_deliveries(store, NOW, destinations=["a"], limit=10)
    assert fresh.attempts == 0
    mark_delivered(store, [fresh.delivery_id], NOW)
    assert due_deliveries(store, NOW, destinations=["a"], limit=10) == ()
    with pytest.raises(StoreError, match="no delivery"):
        resend(store, 10**6, NOW)
