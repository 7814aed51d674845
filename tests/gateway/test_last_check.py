"""No result leaves for another patient: files, rows and keys are altered, and what would be wrong is never sent."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pydicom
import pytest
from arrived_images import arrive
from known_versions import serve
from photographs import drawn_jpeg, op_dataset
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit
from pynetdicom import AE, AllStoragePresentationContexts, evt
from sqlalchemy import select, update

from gateway.last_check import LastCheck
from gateway.result_header import raw_value
from gateway.send import Timeouts
from gateway.sender import Courier
from gateway.settings import Destination, Settings, load_settings
from gateway.store import Store, open_store
from gateway.store.deliveries import resend
from gateway.store.schema import delivery, instance, result
from gateway.studies_view import every_study, study_detail
from gateway.vault import Vault, open_vault, prepare_vault
from gateway.vault_keys import FILE_NAME
from gateway.vault_rows import vault_patient, vault_study
from gateway.web.metrics import metrics_text
from gateway.worker import Worker
from models import bundled_folders
from models.card import load_bundle

LONG_AGO = datetime(2026, 1, 5, 12, tzinfo=UTC)
PATIENTS = ("Müller^Änne", "Other^One")


@pytest.fixture
def settings() -> Settings:
    destination = {"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": 104}
    return load_settings(environment={}, overrides={"destinations": [destination], "worker.attempts": 2})


@pytest.fixture
def store(settings: Settings, tmp_path: Path) -> Iterator[Store]:
    store = open_store("", data_dir=tmp_path, migrate=True)
    prepare_vault(settings.vault, tmp_path)
    bundle = next(load_bundle(folder) for folder in bundled_folders() if "retinopathy" in str(folder.parent))
    card = bundle.card
    serve(store, card.name, card.version, bundle.folder, LONG_AGO, model_sha256=bundle.model_sha256)
    yield store
    store.close()


@pytest.fixture
def vault(store: Store, settings: Settings, tmp_path: Path) -> Iterator[Vault]:
    vault = open_vault(settings.vault, tmp_path)
    assert vault is not None
    yield vault
    vault.close()


def receive(store: Store, data_dir: Path, patient: str, **attributes: str) -> str:
    """An image of a complete study; the study's key."""
    dataset = op_dataset(drawn_jpeg(1), patient=patient)
    dataset.SpecificCharacterSet = "ISO_IR 100"
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return arrive(store, data_dir, dataset, LONG_AGO)


@contextmanager
def working(settings: Settings, data_dir: Path) -> Iterator[Worker]:
    worker = Worker(settings, data_dir, name="worker-0", threads=1)
    try:
        yield worker
    finally:
        worker.close()


Judge = Callable[..., str]


@pytest.fixture
def judged(store: Store, vault: Vault, settings: Settings, tmp_path: Path) -> Judge:
    """Receive and judge a study."""

    def make(patient: str = PATIENTS[0], **attributes: str) -> str:
        key = receive(store, tmp_path, patient, **attributes)
        with working(settings, tmp_path) as worker:
            assert worker.work_once()
        (found,) = [each for each in every_study(store) if each["study_key"] == key]
        assert found["state"] == "judged", found["reason"]
        assert len(found["deliveries"]) == 2
        return key

    return make


def results_of(store: Store, study_key: str, data_dir: Path) -> list[Path]:
    with store.read() as connection:
        query = select(result.c.path).where(result.c.study_key == study_key).order_by(result.c.kind)
        return [data_dir / "objects" / path for path in connection.execute(query).scalars()]


def image_of(store: Store, study_key: str, data_dir: Path) -> Path:
    with store.read() as connection:
        query = select(instance.c.path).where(instance.c.study_key == study_key)
        return data_dir / "objects" / str(connection.execute(query).scalar_one())


def rows(store: Store, study_key: str) -> list[Any]:
    with store.read() as connection:
        return list(connection.execute(select(delivery).where(delivery.c.study_key == study_key)).all())


def send(store: Store, data_dir: Path, vault: Vault | None) -> list[Dataset]:
    """One round of the sender to a PACS that takes all; what it got."""
    taken: list[Dataset] = []

    def handle(event: Any) -> int:
        dataset = event.dataset
        taken.append(dataset)
        return 0

    entity = AE("PACS")
    for context in AllStoragePresentationContexts:
        entity.add_supported_context(context.abstract_syntax, [ExplicitVRLittleEndian, JPEGBaseline8Bit])
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, handle)])
    port = int(server.socket.getsockname()[1])
    courier = Courier(
        store=store,
        objects=data_dir / "objects",
        destination=Destination(name="pacs", ae_title="PACS", host="127.0.0.1", port=port),
        settings=load_settings(environment={}).sender,
        clock=lambda: datetime.now(UTC),
        stop=threading.Event(),
        timeouts=Timeouts(connection_s=5, association_s=20, response_s=20, network_s=20),
        check=LastCheck(store=store, objects=data_dir / "objects", vault=vault),
    )
    try:
        courier.round()
    finally:
        server.shutdown()
    return taken


def nothing_left(store: Store, key: str, sent: list[Dataset], words: str, caplog: pytest.LogCaptureFixture) -> None:
    """Dead letters with a reason, in log, page and metric; and no value of a patient in any."""
    assert sent == []
    for row in rows(store, key):
        assert row.state == "dead"
        assert row.last_error.startswith("stopped: ")
        assert words in row.last_error
    stopped = [each for each in caplog.records if each.levelno >= logging.ERROR and "STOPPED" in each.getMessage()]
    assert len(stopped) == 2
    shown = [each["last_error"] for each in study_detail(store, key)["deliveries"]]
    assert all(words in each for each in shown)
    assert b'gateway_deliveries_stopped{destination="pacs"} 2.0' in metrics_text(store)
    for text in (*shown, *(each.getMessage() for each in caplog.records)):
        for secret in ("Müller", "MÜLLER", "Other", "ACC7", "2.25.1"):
            assert secret not in text


# --- what is right leaves


def test_results_carry_the_vaults_bytes_and_leave(judged: Judge, store: Store, vault: Vault, tmp_path: Path) -> None:
    key = judged()
    sent = send(store, tmp_path, vault)
    assert {row.state for row in rows(store, key)} == {"delivered"}
    source = pydicom.dcmread(image_of(store, key, tmp_path), stop_before_pixels=True)
    kept = vault.recall(key)
    assert len(sent) == 2
    for path in results_of(store, key, tmp_path):
        made = pydicom.dcmread(path)
        for keyword in ("PatientName", "PatientID", "IssuerOfPatientID", "StudyInstanceUID", "AccessionNumber"):
            assert raw_value(made, keyword) == raw_value(source, keyword) == raw_value(kept.header, keyword)
    assert raw_value(kept.header, "PatientName") == PATIENTS[0].encode("latin-1")


def test_pseudonyms_of_the_vault_are_those_of_deidentified_objects(
    judged: Judge, vault: Vault, tmp_path: Path, store: Store
) -> None:
    from gateway.deidentify import Deidentifier
    from gateway.site_key import FILE_NAME as SITE_KEY

    key = judged()
    made = Deidentifier((tmp_path / SITE_KEY).read_bytes()).dataset(pydicom.dcmread(image_of(store, key, tmp_path)))
    assert [each.study_key for each in vault.find(str(made.PatientID))] == [key]


def test_an_expired_source_leaves_the_vault_to_compare_with(
    judged: Judge, store: Store, vault: Vault, tmp_path: Path
) -> None:
    key = judged()
    image_of(store, key, tmp_path).unlink()
    with store.write() as connection:
        connection.execute(update(instance).values(removed_at=datetime.now(UTC)))
    assert len(send(store, tmp_path, vault)) == 2


# --- what is wrong does not


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("PatientName", "Other^One"),
        ("PatientName", "MÜLLER^ÄNNE"),
        ("PatientID", "P-4712"),
        ("IssuerOfPatientID", "B"),
        ("AccessionNumber", "ACC8"),
        ("StudyInstanceUID", "2.25.1"),
    ],
)
@pytest.mark.parametrize("with_source", [True, False])
def test_an_altered_result_is_not_sent(
    keyword: str,
    value: str,
    with_source: bool,
    judged: Judge,
    store: Store,
    vault: Vault,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    key = judged()
    for path in results_of(store, key, tmp_path):
        dataset = pydicom.dcmread(path)
        setattr(dataset, keyword, value)
        dataset.save_as(path, enforce_file_format=True)
    if not with_source:
        image_of(store, key, tmp_path).unlink()
    nothing_left(store, key, send(store, tmp_path, vault), f"differ in the bytes of {keyword}", caplog)


def test_the_same_name_in_other_bytes_is_not_sent(
    judged: Judge, store: Store, vault: Vault, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key = judged()
    for path in results_of(store, key, tmp_path):
        dataset = pydicom.dcmread(path)
        dataset.decode()
        dataset.SpecificCharacterSet = "ISO_IR 192"
        dataset.PatientName = PATIENTS[0]
        dataset.save_as(path, enforce_file_format=True)
    nothing_left(store, key, send(store, tmp_path, vault), "PatientName", caplog)


def test_results_of_two_patients_put_in_each_others_place_are_not_sent(
    judged: Judge, store: Store, vault: Vault, tmp_path: Path
) -> None:
    keys = [judged(patient) for patient in PATIENTS]
    files = [results_of(store, key, tmp_path) for key in keys]
    for one, other in zip(*files, strict=True):
        first, second = one.read_bytes(), other.read_bytes()
        one.write_bytes(second)
        other.write_bytes(first)
    assert send(store, tmp_path, vault) == []
    assert {row.state for key in keys for row in rows(store, key)} == {"dead"}


def test_an_altered_row_of_the_vault_stops_results(
    judged: Judge, store: Store, vault: Vault, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key = judged()
    with vault._engine.begin() as connection:
        sealed = connection.execute(select(vault_study.c.sealed)).scalar_one()
        connection.execute(update(vault_study).values(sealed=sealed[:-1] + bytes([sealed[-1] ^ 1])))
    nothing_left(store, key, send(store, tmp_path, vault), "altered", caplog)


def test_another_patients_row_put_in_its_place_stops_results(
    judged: Judge, store: Store, vault: Vault, tmp_path: Path
) -> None:
    keys = [judged(patient) for patient in PATIENTS]
    with vault._engine.begin() as connection:
        columns = (vault_study.c.study_key, vault_study.c.pseudonym, vault_study.c.key_id, vault_study.c.sealed)
        (one, *first), (other, *second) = connection.execute(select(*columns)).all()
        names = ("pseudonym", "key_id", "sealed")
        for study_key, values in ((one, second), (other, first)):
            swapped = dict(zip(names, values, strict=True))
            connection.execute(update(vault_study).where(vault_study.c.study_key == study_key).values(swapped))
    assert send(store, tmp_path, vault) == []
    for key in keys:
        assert {(row.state, "altered, or is another's" in row.last_error) for row in rows(store, key)} == {
            ("dead", True)
        }


def test_a_source_that_is_another_patients_by_now_stops_results(
    judged: Judge, store: Store, vault: Vault, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key = judged()
    path = image_of(store, key, tmp_path)
    dataset = pydicom.dcmread(path)
    dataset.PatientID = "P-4712"
    dataset.save_as(path, enforce_file_format=True)
    nothing_left(store, key, send(store, tmp_path, vault), "result and source differ in the bytes of PatientID", caplog)


def test_a_source_that_is_no_dicom_by_now_stops_results(
    judged: Judge, store: Store, vault: Vault, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key = judged()
    image_of(store, key, tmp_path).write_bytes(b"garbage" * 100)
    nothing_left(store, key, send(store, tmp_path, vault), "cannot be read to see whose it is", caplog)


def test_a_shredded_patients_results_stop_and_say_so(
    judged: Judge, store: Store, vault: Vault, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key = judged()
    vault.shred(vault.recall(key).pseudonym)
    nothing_left(store, key, send(store, tmp_path, vault), f"the patient of study {key} was removed", caplog)


def test_sent_again_by_hand_it_is_looked_at_again(judged: Judge, store: Store, vault: Vault, tmp_path: Path) -> None:
    key = judged()
    path, _ = results_of(store, key, tmp_path)
    good = path.read_bytes()
    dataset = pydicom.dcmread(path)
    dataset.PatientID = "P-4712"
    dataset.save_as(path, enforce_file_format=True)
    assert len(send(store, tmp_path, vault)) == 1
    (dead,) = [row.delivery_id for row in rows(store, key) if row.state == "dead"]
    resend(store, dead, datetime.now(UTC))
    assert send(store, tmp_path, vault) == []
    path.write_bytes(good)
    resend(store, dead, datetime.now(UTC))
    assert len(send(store, tmp_path, vault)) == 1


def test_a_vault_that_is_away_delays_results_and_loses_none(
    judged: Judge, store: Store, vault: Vault, tmp_path: Path
) -> None:
    key = judged()
    with vault._engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE vault_study RENAME TO away")
    assert send(store, tmp_path, vault) == []
    for row in rows(store, key):
        assert (row.state, row.attempts) == ("pending", 1)
        assert "cannot be checked: the vault failed" in row.last_error
    with vault._engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE away RENAME TO vault_study")
    with store.write() as connection:
        connection.execute(update(delivery).values(next_attempt_at=LONG_AGO))
    assert len(send(store, tmp_path, vault)) == 2


# --- before they are queued


def test_while_the_vault_is_away_no_study_is_begun(
    store: Store, vault: Vault, settings: Settings, tmp_path: Path
) -> None:
    key = receive(store, tmp_path, PATIENTS[0])
    with vault._engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE vault_state RENAME TO away")
    with working(settings, tmp_path) as worker:
        for _ in range(4):  # more often than a study may be attempted
            assert not worker.work_once()
        with vault._engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE away RENAME TO vault_state")
        assert worker.work_once()
    (found,) = every_study(store)
    assert (found["study_key"], found["state"]) == (key, "judged")


def test_a_result_that_is_written_wrong_is_never_queued(
    store: Store,
    vault: Vault,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The bytes that go to the disk are looked at, not the object that was in memory."""
    save_as = Dataset.save_as

    def mixed_up(self: Dataset, *rest: Any, **named: Any) -> None:
        self.PatientID = "P-4712"
        save_as(self, *rest, **named)

    key = receive(store, tmp_path, PATIENTS[0])
    monkeypatch.setattr(Dataset, "save_as", mixed_up)
    with working(settings, tmp_path) as worker:
        worker.work_once()
    (found,) = every_study(store)
    assert (found["state"], found["reason"]) == (
        "failed",
        "results stopped: result and the vault's entry differ in the bytes of PatientID",
    )
    assert rows(store, key) == []
    assert "results stopped" in caplog.text


def test_a_shredded_patients_study_is_not_judged_again(
    judged: Judge, store: Store, vault: Vault, settings: Settings, tmp_path: Path
) -> None:
    from gateway.store.studies import complete_now

    key = judged()
    vault.shred(vault.recall(key).pseudonym)
    complete_now(store, key, datetime.now(UTC))
    with working(settings, tmp_path) as worker:
        worker.work_once()
    (found,) = every_study(store)
    assert found["state"] == "failed"
    assert "was removed from the vault" in found["reason"]
    assert vault.status().patients == 0


def test_without_a_vault_the_image_is_compared_with(store: Store, settings: Settings, tmp_path: Path) -> None:
    without = settings.model_copy(update={"vault": settings.vault.model_copy(update={"enabled": False})})
    key = receive(store, tmp_path, PATIENTS[0])
    with working(without, tmp_path) as worker:
        worker.work_once()
    report, _ = results_of(store, key, tmp_path)
    dataset = pydicom.dcmread(report)
    dataset.PatientID = "P-4712"
    dataset.save_as(report, enforce_file_format=True)
    assert len(send(store, tmp_path, None)) == 1
    assert sorted(row.state for row in rows(store, key)) == ["dead", "delivered"]


def test_a_lost_entry_is_not_made_up_for(judged: Judge, store: Store, vault: Vault, tmp_path: Path) -> None:
    """A study that the vault never held (judged before there was one) is compared with its image, else not sent."""
    key = judged()
    with vault._engine.begin() as connection:
        connection.execute(vault_study.delete())
        connection.execute(vault_patient.delete())
    image_of(store, key, tmp_path).unlink()
    assert send(store, tmp_path, vault) == []
    assert {row.last_error for row in rows(store, key)} == {
        "stopped: neither the vault nor an image says whose this is"
    }
    assert (tmp_path / FILE_NAME).exists()
