"""Storage commitment in both roles: against pynetdicom's own SCU and SCP, against Orthanc, and with garbage."""

from __future__ import annotations

import json
import queue
import random
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from intake_rig import PROCESSES, Receivers, deliver, encoded, peer, small_dataset, store_bytes
from pydicom import Dataset, dcmwrite
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
)
from pynetdicom import AE, AllStoragePresentationContexts, build_role, evt
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.dsutils import encode
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance
from running import free_port, running_orthanc, wait_until
from sqlalchemy import insert, select, update

from gateway.commitment import (
    CommitmentService,
    NotUnderstood,
    action_information,
    event_information,
    read_report,
    read_request,
)
from gateway.commitment_sender import User, loops, next_try, verdict
from gateway.objects import ObjectFolder, result_path
from gateway.send import Timeouts
from gateway.settings import Settings, load_settings
from gateway.spool import Peer
from gateway.store import Store, open_store
from gateway.store.commitment import Reference, Transaction, forget_old
from gateway.store.deliveries import mark_delivered
from gateway.store.intake import new_key
from gateway.store.schema import commitment, delivery, instance, result, study
from gateway.studies_view import study_detail
from gateway.web.metrics import metrics_text

SYNTAXES = {
    str(ImplicitVRLittleEndian): (True, True),
    str(ExplicitVRLittleEndian): (False, True),
    str(ExplicitVRBigEndian): (False, False),
}
EXPLICIT = str(ExplicitVRLittleEndian)
PEER = Peer(calling_ae_title="ARCHIVE", address="127.0.0.1")
SHORT = Timeouts(connection_s=3, association_s=5, response_s=5, network_s=5)


def reference(number: int, sop_class_uid: str = str(CTImageStorage)) -> Reference:
    return Reference(sop_class_uid=sop_class_uid, sop_instance_uid=f"1.2.826.0.9.{number}")


def as_bytes(content: Dataset, syntax: str = EXPLICIT) -> bytes:
    made = encode(content, *SYNTAXES[syntax])
    assert made is not None
    return made


def settings_for(port: int, **overrides: Any) -> Settings:
    """ARCHIVE is a peer that listens and a destination that commits."""
    peer = {"ae_title": "ARCHIVE", "host": "127.0.0.1", "port": port}
    destination = {"name": "pacs", "ae_title": "ARCHIVE", "host": "127.0.0.1", "port": port or 1}
    given = {"peers": [peer], "destinations": [{**destination, "storage_commitment": True}], **overrides}
    return load_settings(environment={}, overrides=given)


def rows_of(store: Store, table: Any = commitment) -> list[Any]:
    with store.read() as connection:
        return list(connection.execute(select(table)).all())


# --- the messages -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_request_is_read_in_every_encoding(syntax: str) -> None:
    asked = [reference(1), reference(2, str(MRImageStorage)), reference(1)]
    read = read_request(as_bytes(action_information("1.2.3", asked), syntax), syntax)
    assert (read.transaction_uid, read.references) == ("1.2.3", tuple(asked[:2]))


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_report_is_read_in_every_encoding(syntax: str) -> None:
    content = event_information("1.2.3", [reference(1)], [(reference(2), 0x0112)])
    read = read_report(as_bytes(content, syntax), syntax)
    assert (read.committed, read.failed) == ((reference(1),), ((reference(2), 0x0112),))


def broken_requests() -> dict[str, bytes]:
    good = as_bytes(action_information("1.2.3", [reference(1)]))
    without_uid = action_information("1.2.3", [reference(1)])
    del without_uid.TransactionUID
    half = action_information("1.2.3", [reference(1)])
    del half.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
    item = b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    header = b"\x08\x00\x99\x11SQ\x00\x00\xff\xff\xff\xff"
    return {
        "empty": b"",
        "no transaction UID": as_bytes(without_uid),
        "nothing referenced": as_bytes(action_information("1.2.3", [])),
        "a reference without an instance": as_bytes(half),
        "a sequence that is text": good[:24] + b"\x08\x00\x99\x11LO\x04\x00ABCD",
        "a UID of text": good.replace(b"1.2.3\0", b"../../"),
        "cut": good[: len(good) // 2],
        "4 GiB": b"\x08\x00\x95\x11UN\x00\x00\xfe\xff\xff\xff1.2",
        "20,000 deep": good[:14] + (header + item) * 20_000,
        "too long": good + bytes(4 << 20),
    }


@pytest.mark.parametrize("name", broken_requests())
def test_a_request_that_is_not_one_is_refused(name: str, tmp_path: Path) -> None:
    content = broken_requests()[name]
    with pytest.raises(NotUnderstood):
        read_request(content, EXPLICIT)
    store = open_store("", data_dir=tmp_path, migrate=True)
    assert CommitmentService(store, settings_for(104)).request(content, EXPLICIT, PEER) == 0x0115
    assert rows_of(store) == []
    store.close()


def test_a_deflate_bomb_is_not_inflated() -> None:
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = b"".join(deflater.compress(bytes(1 << 20)) for _ in range(64)) + deflater.flush()
    assert len(bomb) < 1 << 20
    with pytest.raises(NotUnderstood, match="inflates"):
        read_request(bomb, str(DeflatedExplicitVRLittleEndian))


@pytest.mark.filterwarnings("ignore")  # pydicom's, about values; the gateway's processes ignore them too
def test_garbage_is_never_more_than_not_understood() -> None:
    random_source = random.Random(3)
    good = as_bytes(event_information("1.2.3", [reference(1)], [(reference(2), 0x0112)]))
    understood = 0
    for _ in range(3000):
        spoilt = bytearray(good)
        for _ in range(random_source.randrange(1, 6)):
            spoilt[random_source.randrange(len(spoilt))] = random_source.randrange(256)
        content = bytes(spoilt[: random_source.randrange(len(spoilt) + 1)])
        for read in (read_request, read_report):
            try:
                read(content, random_source.choice(list(SYNTAXES)))
                understood += 1
            except NotUnderstood:
                pass
    assert 0 < understood < 6000


# --- the provider -------------------------------------------------------------------------------------------------


def test_the_same_request_twice_is_one(store: Store) -> None:
    service = CommitmentService(store, settings_for(104))
    asked = as_bytes(action_information("1.2.3", [reference(1)]))
    assert [service.request(asked, EXPLICIT, PEER) for _ in range(2)] == [0, 0]
    assert len(rows_of(store)) == 1
    other = as_bytes(action_information("1.2.3", [reference(2)]))
    assert service.request(other, EXPLICIT, PEER) == 0x0115, "the UID is in use"


def test_an_answered_request_that_comes_again_is_answered_again(store: Store) -> None:
    service = CommitmentService(store, settings_for(104))
    asked = as_bytes(action_information("1.2.3", [reference(1)]))
    service.request(asked, EXPLICIT, PEER)
    with store.write() as connection:
        connection.execute(update(commitment).values(state="done", done_at=datetime.now(UTC)))
    assert service.request(asked, EXPLICIT, PEER) == 0
    assert [row.state for row in rows_of(store)] == ["pending"]


@pytest.mark.parametrize("peers", [[], [{"ae_title": "ARCHIVE"}]])
def test_a_peer_that_listens_nowhere_is_refused_with_the_lines_to_add(
    peers: list[Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store("", data_dir=tmp_path, migrate=True)
    service = CommitmentService(store, settings_for(104, peers=peers))
    assert service.request(as_bytes(action_information("1.2.3", [reference(1)])), EXPLICIT, PEER) == 0x0110
    assert 'host = "127.0.0.1"' in caplog.text
    assert ('ae_title = "ARCHIVE"' in caplog.text) is (peers == [])
    assert rows_of(store) == []
    store.close()


def put_instance(receivers: Receivers, **attributes: Any) -> Dataset:
    """Store a small object over the wire."""
    made = small_dataset(**attributes)
    content = encoded(made)
    with peer(receivers.port, calling_ae_title="ARCHIVE") as association:
        response = store_bytes(association, content, sop_instance_uid=str(made.SOPInstanceUID))
        assert response.Status == 0
    return made


@dataclass
class Archive:
    """pynetdicom as a peer in both roles: stores, takes N-ACTIONs and N-EVENT-REPORTs."""

    port: int
    events: queue.Queue[tuple[int, Dataset]] = field(default_factory=queue.Queue)
    actions: queue.Queue[Dataset] = field(default_factory=queue.Queue)
    event_status: int = 0
    action_status: int = 0

    def on_event(self, event: evt.Event) -> tuple[int, None]:
        self.events.put((event.event_type, event.event_information))
        return self.event_status, None

    def on_action(self, event: evt.Event) -> tuple[int, None]:
        self.actions.put(event.action_information)
        return self.action_status, None

    @contextmanager
    def listening(self) -> Iterator[None]:
        entity = AE(ae_title="ARCHIVE")
        entity.supported_contexts = AllStoragePresentationContexts
        entity.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)
        handlers = [
            (evt.EVT_N_EVENT_REPORT, self.on_event),
            (evt.EVT_N_ACTION, self.on_action),
            (evt.EVT_C_STORE, lambda event: 0),
        ]
        server = entity.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)
        try:
            yield
        finally:
            server.shutdown()

    def ask(self, port: int, content: Dataset) -> int:
        """Send an N-ACTION to the gateway; returns its status."""
        entity = AE(ae_title="ARCHIVE")
        entity.add_requested_context(StorageCommitmentPushModel)
        association = entity.associate("127.0.0.1", port, ae_title="GATEWAY")
        assert association.is_established
        status, _ = association.send_n_action(
            content, 1, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
        association.release()
        return int(status.Status)

    def tell(self, port: int, content: Dataset, event_type: int) -> int:
        """Send an N-EVENT-REPORT to the gateway on an association of its own; returns its status."""
        entity = AE(ae_title="ARCHIVE")
        entity.add_requested_context(StorageCommitmentPushModel)
        role = build_role(StorageCommitmentPushModel, scp_role=True)
        association = entity.associate("127.0.0.1", port, ae_title="GATEWAY", ext_neg=[role])
        assert association.is_established and association.accepted_contexts[0].as_scp
        status, _ = association.send_n_event_report(
            content, event_type, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
        association.release()
        return int(status.Status)


@pytest.fixture
def archive() -> Archive:
    return Archive(free_port())


def overrides_for(settings: Settings) -> dict[str, Any]:
    return {
        "peers": [each.model_dump() for each in settings.peers],
        "destinations": [each.model_dump() for each in settings.destinations],
        "commitment.first_delay_s": 0.2,
        "commitment.longest_delay_s": 0.4,
    }


@contextmanager
def running_sender(receivers: Receivers) -> Iterator[Any]:
    process = PROCESSES.Process(target=deliver, args=(receivers.settings, receivers.data_dir))
    process.start()
    try:
        yield process
    finally:
        process.terminate()
        process.join(20)


def uids(sequence: Any) -> set[str]:
    return {str(item.ReferencedSOPInstanceUID) for item in sequence}


def test_a_peer_is_told_on_an_association_of_its_own_what_is_held(
    make_receivers: Callable[..., Receivers], archive: Archive
) -> None:
    receivers = make_receivers(overrides=overrides_for(settings_for(archive.port)))
    held, clashing, spoilt, changed = (put_instance(receivers) for _ in range(4))
    by_uid = {row.sop_instance_uid: receivers.objects / row.path for row in receivers.rows()}
    by_uid[str(spoilt.SOPInstanceUID)].write_bytes(b"short")
    file = by_uid[str(changed.SOPInstanceUID)]
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    asked = [Reference(sop_class_uid=str(CTImageStorage), sop_instance_uid=uid) for uid in by_uid]
    asked = [each for each in asked if each.sop_instance_uid != clashing.SOPInstanceUID]
    asked += [reference(1), Reference(sop_class_uid=str(MRImageStorage), sop_instance_uid=clashing.SOPInstanceUID)]
    with archive.listening(), running_sender(receivers):
        assert archive.ask(receivers.port, action_information("1.2.3", asked)) == 0
        event_type, told = archive.events.get(timeout=30)
    assert event_type == 2
    assert told.TransactionUID == "1.2.3"
    assert uids(told.ReferencedSOPSequence) == {held.SOPInstanceUID}
    assert {str(item.ReferencedSOPInstanceUID): item.FailureReason for item in told.FailedSOPSequence} == {
        "1.2.826.0.9.1": 0x0112,
        str(clashing.SOPInstanceUID): 0x0119,
        str(spoilt.SOPInstanceUID): 0x0110,
        str(changed.SOPInstanceUID): 0x0110,
    }


def test_all_held_is_event_one_and_the_answer_outlives_kills_and_a_dead_peer(
    make_receivers: Callable[..., Receivers], archive: Archive
) -> None:
    receivers = make_receivers(overrides=overrides_for(settings_for(archive.port)))
    held = put_instance(receivers)
    asked = [Reference(sop_class_uid=str(CTImageStorage), sop_instance_uid=str(held.SOPInstanceUID))]
    assert archive.ask(receivers.port, action_information("1.2.3", asked)) == 0
    with running_sender(receivers) as process, receivers.store() as store:
        wait_until(lambda: rows_of(store)[0].attempts >= 1, "a try at the peer that is away")
        process.kill()
    archive.event_status = 0x0110
    with archive.listening(), running_sender(receivers) as process:
        archive.events.get(timeout=30)
        process.kill()
    archive.event_status = 0
    while not archive.events.empty():
        archive.events.get()
    with archive.listening(), running_sender(receivers), receivers.store() as store:
        event_type, told = archive.events.get(timeout=30)
        wait_until(lambda: rows_of(store)[0].state == "done", "the transaction to end")
    assert event_type == 1
    assert uids(told.ReferencedSOPSequence) == {held.SOPInstanceUID}
    assert "FailedSOPSequence" not in told
    assert archive.events.empty(), "it was told once"


def test_what_has_expired_is_not_committed(make_receivers: Callable[..., Receivers]) -> None:
    receivers = make_receivers()
    held = put_instance(receivers)
    asked = (Reference(sop_class_uid=str(CTImageStorage), sop_instance_uid=str(held.SOPInstanceUID)),)
    with receivers.store() as store:
        assert verdict(store, receivers.objects, asked) == ([asked[0]], [])
        with store.write() as connection:
            connection.execute(update(instance).values(removed_at=datetime.now(UTC)))
        assert verdict(store, receivers.objects, asked) == ([], [(asked[0], 0x0112)])


def test_a_peer_is_given_up_after_a_day() -> None:
    settings = settings_for(104).commitment
    now = datetime(2026, 1, 5, tzinfo=UTC)
    made = {"commitment_key": "0" * 32, "transaction_uid": "1.2", "partner": "ARCHIVE", "references": ()}

    def delay(attempts: int, age_s: float) -> float | None:
        old = Transaction(**made, attempts=attempts, created_at=now - timedelta(seconds=age_s))
        again_at = next_try(old, now, settings)
        return None if again_at is None else (again_at - now).total_seconds()

    assert [delay(attempts, 0) for attempts in (0, 1, 2, 10, 1000)] == [5, 10, 20, 600, 600]
    assert delay(1000, 86400 - 601) == 600
    assert delay(1000, 86400 - 599) is None


def test_each_partner_has_a_loop(tmp_path: Path) -> None:
    store = open_store("", data_dir=tmp_path, migrate=True)
    peers = [{"ae_title": "A", "host": "h", "port": 1}, {"ae_title": "B"}, {"ae_title": "A", "host": "i", "port": 2}]
    made = loops(
        store, tmp_path, settings_for(104, peers=peers), clock=lambda: datetime.now(UTC), stop=threading.Event()
    )
    assert [each.name for each in made] == ["commitment-to-A", "commitment-of-pacs"]
    store.close()


# --- the user -----------------------------------------------------------------------------------------------------


class Results:
    """Results that have been delivered to ARCHIVE."""

    def __init__(self, data_dir: Path, count: int, *, state: str = "delivered", url: str = "") -> None:
        data_dir.mkdir(exist_ok=True)
        self.store = open_store(url, data_dir=data_dir, migrate=True)
        self.objects = ObjectFolder.in_data_dir(data_dir)
        self.uids = [self._add(state) for _ in range(count)]

    def _add(self, state: str) -> str:
        made, now, key, study_key = small_dataset(), datetime.now(UTC), new_key(), new_key()
        stream = BytesIO()
        dcmwrite(stream, made, enforce_file_format=True)
        self.objects.write(result_path(key), stream.getvalue())
        with self.store.write() as connection:
            times = {"first_received_at": now, "last_received_at": now, "complete_at": now}
            connection.execute(
                insert(study).values(
                    study_key=study_key, study_instance_uid=str(made.StudyInstanceUID), state="judged", **times
                )
            )
            values = {"result_key": key, "study_key": study_key, "created_at": now}
            connection.execute(
                insert(result).values(
                    **values,
                    kind="SC",
                    sop_class_uid=str(made.SOPClassUID),
                    sop_instance_uid=str(made.SOPInstanceUID),
                    path=result_path(key),
                )
            )
            connection.execute(insert(delivery).values(**values, destination="pacs", state=state, next_attempt_at=now))
        return str(made.SOPInstanceUID)

    def deliveries(self) -> list[Any]:
        return rows_of(self.store, delivery)

    def user(self, settings: Settings, clock: Callable[[], datetime] | None = None) -> User:
        return User(
            store=self.store,
            settings=settings,
            clock=clock or (lambda: datetime.now(UTC)),
            stop=threading.Event(),
            timeouts=SHORT,
            destination=settings.destinations[0],
        )

    def service(self, settings: Settings) -> CommitmentService:
        return CommitmentService(self.store, settings)


@pytest.fixture
def make_results(tmp_path: Path) -> Iterator[Callable[..., Results]]:
    made: list[Results] = []

    def make(count: int, **options: Any) -> Results:
        made.append(Results(tmp_path / "results", count, **options))
        return made[-1]

    yield make
    for each in made:
        each.store.close()


def references(sop_instance_uids: list[str]) -> list[Reference]:
    return [Reference(sop_class_uid=str(CTImageStorage), sop_instance_uid=each) for each in sop_instance_uids]


def test_a_destination_is_asked_once_and_its_answer_is_kept(
    make_results: Callable[..., Results], archive: Archive, store_url: str
) -> None:
    results, settings = make_results(3, url=store_url), settings_for(archive.port)
    user, service = results.user(settings), results.service(settings)
    with archive.listening():
        assert user.round()
        asked = archive.actions.get(timeout=10)
        assert not user.round(), "nothing more to ask"
    assert uids(asked.ReferencedSOPSequence) == set(results.uids)
    assert [row.state for row in rows_of(results.store)] == ["asked"]
    content = event_information(asked.TransactionUID, references(results.uids), [])
    stranger = Peer(calling_ae_title="ELSE", address="127.0.0.1")
    assert service.report(as_bytes(content), EXPLICIT, 1, stranger) == 0x0115, "it was not asked"
    assert service.report(as_bytes(content), EXPLICIT, 3, PEER) == 0x0113
    assert all(row.committed_at is None for row in results.deliveries())
    assert [service.report(as_bytes(content), EXPLICIT, 1, PEER) for _ in range(2)] == [0, 0]
    assert all(row.committed_at is not None for row in results.deliveries())
    assert [row.state for row in rows_of(results.store)] == ["done"]
    shown = study_detail(results.store, results.deliveries()[0].study_key)["deliveries"][0]
    assert shown["committed_at"] == results.deliveries()[0].committed_at.isoformat()
    assert 'gateway_commitments{role="user",state="done"} 1.0' in metrics_text(results.store).decode()


def test_what_was_not_committed_is_sent_again(make_results: Callable[..., Results], archive: Archive) -> None:
    results, settings = make_results(3), settings_for(archive.port)
    user = results.user(settings)
    with archive.listening():
        user.round()
    asked = archive.actions.get(timeout=10)
    first, second, third = references(results.uids)
    content = event_information(asked.TransactionUID, [first], [(second, 0x0112)])
    assert results.service(settings).report(as_bytes(content), EXPLICIT, 2, PEER) == 0
    states = dict(zip(results.uids, results.deliveries(), strict=True))
    assert states[first.sop_instance_uid].committed_at is not None
    for each, reason in ((second, "0x0112"), (third, "does not name it")):
        row = states[each.sop_instance_uid]
        assert (row.state, row.committed_at) == ("pending", None)
        assert reason in row.last_error
        assert row.next_attempt_at > datetime.now(UTC)
    mark_delivered(results.store, [states[second.sop_instance_uid].delivery_id], datetime.now(UTC))
    with archive.listening():
        user.round()
    again = archive.actions.get(timeout=10)
    assert uids(again.ReferencedSOPSequence) == {second.sop_instance_uid}
    assert again.TransactionUID != asked.TransactionUID


def test_one_that_does_not_answer_is_asked_again_and_may_answer_late(
    make_results: Callable[..., Results], archive: Archive
) -> None:
    results, settings = make_results(1), settings_for(archive.port)
    later = [timedelta(0)]
    user = results.user(settings, lambda: datetime.now(UTC) + later[0])
    with archive.listening():
        user.round()
        first = archive.actions.get(timeout=10)
        later[0] = timedelta(seconds=settings.commitment.answer_within_s + 1)
        user.round()
        second = archive.actions.get(timeout=10)
    assert first.TransactionUID != second.TransactionUID
    assert uids(first.ReferencedSOPSequence) == uids(second.ReferencedSOPSequence) == set(results.uids)
    content = event_information(first.TransactionUID, references(results.uids), [])
    assert results.service(settings).report(as_bytes(content), EXPLICIT, 1, PEER) == 0
    assert results.deliveries()[0].committed_at is not None
    assert {row.state for row in rows_of(results.store)} == {"done"}


def test_asking_ends_after_a_day_and_the_result_stays_uncommitted(
    make_results: Callable[..., Results], archive: Archive
) -> None:
    results, settings = make_results(1), settings_for(archive.port)
    later = [timedelta(0)]
    user = results.user(settings, lambda: datetime.now(UTC) + later[0])
    with archive.listening():
        user.round()
        later[0] = timedelta(seconds=settings.commitment.give_up_after_s + 1)
        user.round()
        assert not user.round()
    assert archive.actions.qsize() == 1
    assert [row.state for row in rows_of(results.store)] == ["dead"]
    assert results.deliveries()[0].committed_at is None
    assert forget_old(results.store, datetime.now(UTC) + timedelta(days=1)) == 1


def test_a_refusal_is_tried_again_with_the_same_transaction(
    make_results: Callable[..., Results], archive: Archive
) -> None:
    results, settings = make_results(1), settings_for(archive.port)
    archive.action_status = 0x0110
    later = [timedelta(0)]
    user = results.user(settings, lambda: datetime.now(UTC) + later[0])
    with archive.listening():
        user.round()
        row = rows_of(results.store)[0]
        assert (row.state, row.attempts, "0x0110" in row.last_error) == ("pending", 1, True)
        assert not user.round(), "not before its time"
        later[0] = timedelta(seconds=settings.commitment.first_delay_s + 1)
        archive.action_status = 0
        user.round()
    first, second = archive.actions.get(timeout=10), archive.actions.get(timeout=10)
    assert first.TransactionUID == second.TransactionUID


@pytest.mark.parametrize("before_response", [False, True])
def test_an_answer_on_the_same_association_is_taken(
    before_response: bool, make_results: Callable[..., Results], archive: Archive
) -> None:
    results, settings = make_results(2), settings_for(archive.port)
    statuses: queue.Queue[int] = queue.Queue()

    def report(association: Any, asked: Dataset) -> None:
        content = event_information(asked.TransactionUID, references(results.uids), [])
        status, _ = association.send_n_event_report(
            content, 1, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
        statuses.put(int(status.Status))

    def on_action(event: evt.Event) -> tuple[int, None]:
        if before_response:
            told = N_EVENT_REPORT()
            told.MessageID = 7
            told.AffectedSOPClassUID = StorageCommitmentPushModel
            told.AffectedSOPInstanceUID = StorageCommitmentPushModelInstance
            told.EventTypeID = 1
            content = event_information(event.action_information.TransactionUID, references(results.uids), [])
            told.EventInformation = BytesIO(as_bytes(content, str(event.context.transfer_syntax)))
            event.assoc.dimse.send_msg(told, event.context.context_id)
            _, response = event.assoc.dimse.get_msg(block=True)
            statuses.put(int(response.Status))
        else:
            threading.Timer(0.2, report, (event.assoc, event.action_information)).start()
        return 0, None

    archive.on_action = on_action  # type: ignore[method-assign]
    with archive.listening():
        results.user(settings).round()
        assert statuses.get(timeout=10) == 0
    assert all(row.committed_at is not None for row in results.deliveries())
    assert [row.state for row in rows_of(results.store)] == ["done"]


def test_killed_between_any_steps_a_result_is_committed_once(
    make_receivers: Callable[..., Receivers], archive: Archive
) -> None:
    receivers = make_receivers(overrides=overrides_for(settings_for(archive.port)))
    results = Results(receivers.data_dir, 5, state="pending")
    pauses = random.Random(7)
    pause = threading.Event()
    with archive.listening():
        for _ in range(4):
            with running_sender(receivers) as process:
                pause.wait(pauses.uniform(0.3, 1.5))
                process.kill()
        with running_sender(receivers):
            wait_until(
                lambda: (
                    all(row.commitment_key for row in results.deliveries())
                    and {row.state for row in rows_of(results.store)} == {"asked"}
                ),
                "all to be asked",
            )
            told: dict[str, set[str]] = {}
            while not archive.actions.empty():
                asked = archive.actions.get()
                told[str(asked.TransactionUID)] = uids(asked.ReferencedSOPSequence)
            named = [uid for each in told.values() for uid in each]
            assert sorted(named) == sorted(results.uids), "each result in one transaction"
            for transaction_uid, instances in told.items():
                content = event_information(transaction_uid, references(sorted(instances)), [])
                assert archive.tell(receivers.port, content, 1) == 0
    assert all(row.committed_at is not None and row.state == "delivered" for row in results.deliveries())
    results.store.close()


# --- Orthanc ------------------------------------------------------------------------------------------------------


def test_orthanc_commits_and_asks(make_receivers: Callable[..., Receivers], tmp_path: Path) -> None:
    """The gateway as user: Orthanc takes and commits results. As provider: Orthanc asks for what it sent."""
    port = free_port()
    node = {"ae_title": "ORTHANC", "host": "127.0.0.1", "port": port}
    destination = {**node, "name": "pacs", "storage_commitment": True}
    overrides = {"peers": [node], "destinations": [destination], "commitment.first_delay_s": 0.5}
    receivers = make_receivers(overrides=overrides)
    results = Results(receivers.data_dir, 3, state="pending")
    orthanc_options = {"gateway_port": receivers.port, "dicom_port": port, "forward": False}
    with running_orthanc(tmp_path / "orthanc", **orthanc_options) as orthanc, running_sender(receivers):
        wait_until(lambda: all(row.committed_at for row in results.deliveries()), "Orthanc to commit", 40)
        assert len(orthanc.get("instances")) == 3
        kept = small_dataset()
        stream = BytesIO()
        dcmwrite(stream, kept, enforce_file_format=True)
        sent = orthanc.upload(stream.getvalue())["ID"]
        base = f"http://127.0.0.1:{orthanc.http_port}"
        request = Request(f"{base}/modalities/gateway/store", data=sent.encode())
        with urlopen(request, timeout=30):
            pass
        unknown = {"DicomInstances": [[str(CTImageStorage), "1.2.826.0.9.9"]], "Resources": [sent]}
        request = Request(f"{base}/modalities/gateway/storage-commitment", data=json.dumps(unknown).encode())
        with urlopen(request, timeout=30) as answer:
            where = json.load(answer)["Path"].lstrip("/")
        report = wait_until(
            lambda: (told := orthanc.get(where))["Status"] != "Pending" and told, "the gateway's answer", 40
        )
    assert report["Status"] == "Failure", "one of the two is unknown"
    assert [each["SOPInstanceUID"] for each in report["Success"]] == [str(kept.SOPInstanceUID)]
    assert [each["SOPInstanceUID"] for each in report["Failures"]] == ["1.2.826.0.9.9"]
    assert 0x0112 in report["Failures"][0].values(), report["Failures"]
    results.store.close()
