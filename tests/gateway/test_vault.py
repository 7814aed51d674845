"""The vault: sealed rows that are no one else's, keys that change while it runs, patients that are gone for good."""

from __future__ import annotations

import os
import pickle
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from running import running_gateway
from sqlalchemy import create_engine, select, text, update

from gateway.errors import IdentityError, VaultError
from gateway.result_header import copy_identity, raw_value
from gateway.settings import VaultSettings, load_settings
from gateway.vault import Vault, open_vault, prepare_vault
from gateway.vault_keys import FILE_NAME, Keyring, former_keys, key_id_of, make_next_key, remove_former_keys
from gateway.vault_rows import vault_patient, vault_state, vault_study

sys.path.insert(0, str(Path(__file__).parent))
from result_sources import source_dataset
from result_sources import store as keep

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
PATIENT, OTHER = "0123456789ABCDEF", "FEDCBA9876543210"
STUDY, OTHER_STUDY = "a" * 32, "b" * 32
IMAGE = "c" * 32
PHI = ("Müller", "P-4711", "A-0815", "19600519", "1.2.826.0.1.3680043.8.498.1", "Weiß")


def settings(**changes: object) -> VaultSettings:
    return load_settings(environment={}, overrides={f"vault.{name}": value for name, value in changes.items()}).vault


@pytest.fixture
def chosen(store_url: str) -> VaultSettings:
    """A file, and PostgreSQL."""
    return settings(url=store_url)


@pytest.fixture
def vault(chosen: VaultSettings, tmp_path: Path) -> Iterator[Vault]:
    prepare_vault(chosen, tmp_path)
    opened = open_vault(chosen, tmp_path)
    assert opened is not None
    yield opened
    opened.close()


_OPENED: list[Vault] = []


def opened(chosen: VaultSettings, folder: Path) -> Vault:
    made = open_vault(chosen, folder)
    assert made is not None
    _OPENED.append(made)
    return made


@pytest.fixture(autouse=True)
def _close_all() -> Iterator[None]:
    yield
    while _OPENED:
        _OPENED.pop().close()


def source(folder: Path, **attributes: object) -> Any:
    """An image's header as the worker reads it."""
    folder.mkdir(exist_ok=True)
    return keep(folder, source_dataset("OP", **attributes)).read(pixels=False)


def remember(vault: Vault, header: Any, pseudonym: str = PATIENT, study_key: str = STUDY) -> None:
    vault.remember(pseudonym=pseudonym, study_key=study_key, instance_key=IMAGE, source=header, now=NOW)


def tamper(vault: Vault, statement: Any) -> None:
    with vault._engine.begin() as connection:
        connection.execute(statement)


def column(vault: Vault, table: Any, name: str, **where: str) -> Any:
    with vault._engine.begin() as connection:
        condition = [table.c[key] == value for key, value in where.items()]
        return connection.execute(select(table.c[name]).where(*condition)).scalar_one()


# --- in and out


def test_what_comes_back_is_what_was_received_byte_by_byte(vault: Vault, tmp_path: Path) -> None:
    header = source(tmp_path / "o", IssuerOfPatientID="Hôpital", PatientWeight="70.5", TimezoneOffsetFromUTC="+0100")
    remember(vault, header)
    found = vault.recall(STUDY)
    assert (found.pseudonym, found.study_key, found.instance_key, found.sealed_at) == (PATIENT, STUDY, IMAGE, NOW)
    assert raw_value(found.header, "PatientName") == "Müller^Änne".encode("latin-1")
    for ours, theirs in ((found.header, header), (copy_identity(found.header), copy_identity(header))):
        for keyword in ours.dir():
            assert raw_value(ours, keyword) == raw_value(theirs, keyword), keyword
    assert copy_identity(found.header) == copy_identity(header)


def test_bytes_of_no_character_set_come_back_too(vault: Vault, tmp_path: Path) -> None:
    folder = tmp_path / "o"
    folder.mkdir()
    stored = keep(
        folder, source_dataset("OP", SpecificCharacterSet=..., PatientName="DOE^JOHN", ReferringPhysicianName="X")
    )
    stored.path.write_bytes(stored.path.read_bytes().replace(b"DOE^JOHN", b"D\xd6E^J\xc3\x96N"))
    remember(vault, stored.read(pixels=False))
    assert raw_value(vault.recall(STUDY).header, "PatientName") == b"D\xd6E^J\xc3\x96N"
    assert "SpecificCharacterSet" not in vault.recall(STUDY).header


def test_a_patient_is_found_with_all_studies(vault: Vault, tmp_path: Path) -> None:
    remember(vault, source(tmp_path / "o"))
    remember(vault, source(tmp_path / "o", AccessionNumber="A-2"), study_key=OTHER_STUDY)
    remember(vault, source(tmp_path / "o", PatientID="P-1"), pseudonym=OTHER, study_key="d" * 32)
    assert [each.study_key for each in vault.find(PATIENT)] == [STUDY, OTHER_STUDY]
    assert vault.find("0" * 16) == ()
    with pytest.raises(IdentityError, match="holds no identity"):
        vault.recall("0" * 32)


def test_the_same_again_writes_nothing_and_another_patient_replaces(vault: Vault, tmp_path: Path) -> None:
    header = source(tmp_path / "o")
    remember(vault, header)
    before = column(vault, vault_study, "sealed", study_key=STUDY)
    remember(vault, source(tmp_path / "o", PatientName="Müller^Änne^^", PatientID="P-4711 "))  # padding is no other
    assert column(vault, vault_study, "sealed", study_key=STUDY) == before
    remember(vault, source(tmp_path / "o", AccessionNumber="A-0816"))
    assert raw_value(vault.recall(STUDY).header, "AccessionNumber") == b"A-0816"
    remember(vault, source(tmp_path / "o", PatientID="P-1"), pseudonym=OTHER)
    assert vault.find(PATIENT) == ()
    assert vault.recall(STUDY).pseudonym == OTHER


def test_nothing_in_the_files_says_who_and_nobody_else_may_read_them(tmp_path: Path) -> None:
    chosen = settings()
    prepare_vault(chosen, tmp_path)
    vault = opened(chosen, tmp_path)
    remember(vault, source(tmp_path / "o"))
    files = [path for path in tmp_path.iterdir() if path.name.startswith("vault")]
    assert {"vault.db", "vault.db-wal", FILE_NAME} <= {path.name for path in files}
    key = (tmp_path / FILE_NAME).read_bytes()
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name
        content = path.read_bytes()
        for secret in PHI:
            assert secret.encode("latin-1") not in content
            assert secret.encode() not in content
        if path.name != FILE_NAME:
            assert key not in content
            assert key.hex().encode() not in content
    vault.close()


def test_a_dump_of_the_database_holds_no_key(vault: Vault, tmp_path: Path) -> None:
    remember(vault, source(tmp_path / "o"))
    key = (tmp_path / FILE_NAME).read_bytes()
    ring = Keyring(settings(), tmp_path)
    dumped = b""
    with vault._engine.begin() as connection:
        for table in (vault_state, vault_patient, vault_study):
            for row in connection.execute(select(table)):
                dumped += repr(tuple(row)).encode() + b"".join(each for each in row if isinstance(each, bytes))
    for secret in (key, key.hex().encode(), ring.key(ring.key_id), ring.key(ring.key_id).hex().encode()):
        assert secret not in dumped
    assert key_id_of(key).encode() in dumped


def test_keys_are_shown_nowhere(vault: Vault, tmp_path: Path) -> None:
    ring = vault._keyring
    raw = ring.key(ring.key_id)
    key = (tmp_path / FILE_NAME).read_bytes()
    with vault._engine.begin() as connection:
        vault._write(connection, PATIENT, STUDY, b"{}", NOW)
        data_key = vault._data_key(connection, PATIENT)
    assert data_key is not None
    for secret in (raw, key, data_key.raw):
        for shown in (repr(ring), str(ring), repr(vault), repr(data_key), repr(settings())):
            assert repr(secret)[2:-1] not in shown
            assert secret.hex() not in shown
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        pickle.dumps(ring)  # holds a lock


# --- altered rows


def test_an_altered_row_does_not_open(vault: Vault, tmp_path: Path) -> None:
    remember(vault, source(tmp_path / "o"))
    sealed = bytearray(column(vault, vault_study, "sealed", study_key=STUDY))
    for place in (0, 11, 12, len(sealed) // 2, len(sealed) - 1):
        changed = bytes(sealed[:place]) + bytes([sealed[place] ^ 1]) + bytes(sealed[place + 1 :])
        tamper(vault, update(vault_study).values(sealed=changed))
        with pytest.raises(IdentityError, match="altered") as caught:
            vault.recall(STUDY)
        assert not any(secret in str(caught.value) for secret in PHI)
    for cut in (b"x", bytes(sealed[:12]), bytes(sealed[:-1])):
        tamper(vault, update(vault_study).values(sealed=cut))
        with pytest.raises(IdentityError):
            vault.recall(STUDY)


def two_patients(vault: Vault, folder: Path) -> None:
    remember(vault, source(folder / "o"))
    remember(
        vault, source(folder / "o", PatientID="P-1", PatientName="Other^One"), pseudonym=OTHER, study_key=OTHER_STUDY
    )


def test_another_patients_row_does_not_open_in_this_ones_place(vault: Vault, tmp_path: Path) -> None:
    two_patients(vault, tmp_path)
    names = ("pseudonym", "key_id", "sealed")
    others = {name: column(vault, vault_study, name, study_key=OTHER_STUDY) for name in names}
    own = {name: column(vault, vault_study, name, study_key=STUDY) for name in names}
    for stolen in (("sealed",), ("sealed", "key_id"), ("sealed", "key_id", "pseudonym")):
        values = own | {name: others[name] for name in stolen}
        tamper(vault, update(vault_study).where(vault_study.c.study_key == STUDY).values(values))
        with pytest.raises(IdentityError):
            vault.recall(STUDY)
    tamper(vault, update(vault_study).where(vault_study.c.study_key == STUDY).values(own))
    assert raw_value(vault.recall(STUDY).header, "PatientID") == b"P-4711"


def test_another_study_of_the_same_patient_does_not_open_in_this_ones_place(vault: Vault, tmp_path: Path) -> None:
    remember(vault, source(tmp_path / "o"))
    remember(vault, source(tmp_path / "o", AccessionNumber="A-2"), study_key=OTHER_STUDY)
    stolen = column(vault, vault_study, "sealed", study_key=OTHER_STUDY)
    tamper(vault, update(vault_study).where(vault_study.c.study_key == STUDY).values(sealed=stolen))
    with pytest.raises(IdentityError, match="altered"):
        vault.recall(STUDY)


def test_another_patients_key_does_not_open_in_this_ones_place(vault: Vault, tmp_path: Path) -> None:
    two_patients(vault, tmp_path)
    stolen = {name: column(vault, vault_patient, name, pseudonym=OTHER) for name in ("data_key_id", "wrapped_key")}
    tamper(vault, update(vault_patient).where(vault_patient.c.pseudonym == PATIENT).values(stolen))
    with pytest.raises(IdentityError, match="patient's key"):
        vault.recall(STUDY)


def test_a_row_says_by_which_key_and_believes_no_other(vault: Vault, tmp_path: Path) -> None:
    remember(vault, source(tmp_path / "o"))
    tamper(vault, update(vault_study).values(key_id="0" * 16))
    with pytest.raises(IdentityError, match="holds no key"):
        vault.recall(STUDY)


# --- keys


def test_the_first_start_makes_a_key_and_later_ones_take_it(chosen: VaultSettings, tmp_path: Path) -> None:
    prepare_vault(chosen, tmp_path)
    key = (tmp_path / FILE_NAME).read_bytes()
    prepare_vault(chosen, tmp_path)
    assert (tmp_path / FILE_NAME).read_bytes() == key
    assert len(key) == 32
    assert stat.S_IMODE((tmp_path / FILE_NAME).stat().st_mode) == 0o600


def test_a_key_that_has_gone_is_not_made_anew(vault: Vault, chosen: VaultSettings, tmp_path: Path) -> None:
    remember(vault, source(tmp_path / "o"))
    (tmp_path / FILE_NAME).unlink()
    with pytest.raises(VaultError, match=r"vault\.key is missing.*backup"):
        prepare_vault(chosen, tmp_path)
    with pytest.raises(VaultError, match="cannot be read"):
        open_vault(chosen, tmp_path)
    assert not (tmp_path / FILE_NAME).exists()


def test_another_key_is_refused(vault: Vault, chosen: VaultSettings, tmp_path: Path) -> None:
    remember(vault, source(tmp_path / "o"))
    other = os.urandom(32)
    (tmp_path / FILE_NAME).write_bytes(other)
    with pytest.raises(VaultError, match="not at hand") as caught:
        prepare_vault(chosen, tmp_path)
    assert other.hex() not in str(caught.value)


def test_a_key_that_others_may_read_is_refused(vault: Vault, chosen: VaultSettings, tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).chmod(0o640)
    with pytest.raises(VaultError, match="expected 600"):
        prepare_vault(chosen, tmp_path)


@pytest.mark.parametrize("weak", [b"", b"secret", bytes(32), b"changeme" * 8])
def test_a_weak_key_is_refused(weak: bytes, tmp_path: Path) -> None:
    path = tmp_path / "site.key"
    path.write_bytes(weak)
    path.chmod(0o600)
    with pytest.raises(VaultError, match="key"):
        prepare_vault(settings(key_file=str(path)), tmp_path)


def test_the_key_may_come_from_the_environment_or_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = os.urandom(32)
    monkeypatch.setenv("VAULT_KEY", key.hex())
    by_environment = settings(key_environment="VAULT_KEY")
    prepare_vault(by_environment, tmp_path)
    remember(opened(by_environment, tmp_path), source(tmp_path / "o"))
    by_command = settings(key_command="printenv VAULT_KEY")
    prepare_vault(by_command, tmp_path)
    assert opened(by_command, tmp_path).recall(STUDY).pseudonym == PATIENT
    assert not (tmp_path / FILE_NAME).exists()


def test_keys_change_while_others_read_and_write(vault: Vault, chosen: VaultSettings, tmp_path: Path) -> None:
    """`vault` is a process that started before."""
    for number in range(5):
        remember(vault, source(tmp_path / "o", PatientID=f"P-{number}"), f"{number:016X}", f"{number:032x}")
    make_next_key(tmp_path)
    rotating = opened(chosen, tmp_path)
    steps = rotating.rotate()
    assert next(steps) == 5
    remember(vault, source(tmp_path / "o", PatientID="P-9"), "9" * 16, "9" * 32)
    assert list(steps) == []
    status = rotating.status()
    assert status.patients_by_key_id == {status.key_id: 6}
    assert remove_former_keys(tmp_path) == 1
    for study_key in (f"{number:032x}" for number in (0, 1, 2, 3, 4)):
        assert vault.recall(study_key).study_key == study_key
    fresh = opened(chosen, tmp_path)
    assert raw_value(fresh.recall("9" * 32).header, "PatientID") == b"P-9"
    prepare_vault(chosen, tmp_path)


def test_a_rotation_that_was_killed_goes_on(
    vault: Vault, chosen: VaultSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.vault.ROWS_A_STEP", 2)
    for number in range(5):
        remember(vault, source(tmp_path / "o", PatientID=f"P-{number}"), f"{number:016X}", f"{number:032x}")
    make_next_key(tmp_path)
    killed = opened(chosen, tmp_path)
    next(killed.rotate())
    killed.close()
    assert sorted(vault.status().patients_by_key_id.values()) == [2, 3]
    prepare_vault(chosen, tmp_path)  # the gateway starts in the middle
    again = opened(chosen, tmp_path)
    assert all(again.recall(f"{number:032x}") for number in range(5)), "old key ids stay readable"
    assert list(again.rotate()) == [2, 3]
    assert len(again.status().patients_by_key_id) == 1


def test_a_kill_while_the_key_file_is_changed_leaves_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_vault(settings(), tmp_path)
    old = (tmp_path / FILE_NAME).read_bytes()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        make_next_key(tmp_path)
    monkeypatch.undo()
    assert (tmp_path / FILE_NAME).read_bytes() == old
    prepare_vault(settings(), tmp_path)
    make_next_key(tmp_path)
    assert (tmp_path / FILE_NAME).read_bytes() != old
    assert [path.read_bytes() for path in former_keys(tmp_path)] == [old]
    prepare_vault(settings(), tmp_path)


def test_a_key_that_the_settings_name_changes_by_naming_the_former(tmp_path: Path) -> None:
    first, second = tmp_path / "1.key", tmp_path / "2.key"
    for path in (first, second):
        path.write_bytes(os.urandom(32))
        path.chmod(0o600)
    before, between = settings(key_file=str(first)), settings(key_file=str(second), former_key_files=[str(first)])
    prepare_vault(before, tmp_path)
    remember(opened(before, tmp_path), source(tmp_path / "o"))
    with pytest.raises(VaultError, match="former_key_files"):
        prepare_vault(settings(key_file=str(second)), tmp_path)
    prepare_vault(between, tmp_path)
    running = opened(between, tmp_path)
    remember(running, source(tmp_path / "o", PatientID="P-1"), OTHER, OTHER_STUDY)  # before the rotation
    assert list(opened(between, tmp_path).rotate()) == [2]
    after = settings(key_file=str(second))
    prepare_vault(after, tmp_path)
    assert opened(after, tmp_path).recall(STUDY).pseudonym == PATIENT


# --- removal


def test_a_shredded_patient_is_gone_and_the_others_are_not(vault: Vault, tmp_path: Path) -> None:
    two_patients(vault, tmp_path)
    remember(vault, source(tmp_path / "o", AccessionNumber="A-2"), study_key="d" * 32)
    assert vault.shred(PATIENT) == 2
    assert vault.find(PATIENT) == ()
    for study_key in (STUDY, "d" * 32):
        with pytest.raises(IdentityError, match="was removed"):
            vault.recall(study_key)
    assert vault.recall(OTHER_STUDY).pseudonym == OTHER
    with pytest.raises(IdentityError, match="was removed"):
        remember(vault, source(tmp_path / "o"))  # judging again must not undo it
    remember(vault, source(tmp_path / "o"), study_key="e" * 32)  # a new study is a new matter
    assert vault.recall("e" * 32).pseudonym == PATIENT
    assert vault.shred("0" * 16) == 0


def test_no_byte_of_a_shredded_patient_is_left_in_the_files(tmp_path: Path) -> None:
    """Among a thousand patients, put in and taken out in no order, so that pages were split and joined."""
    prepare_vault(settings(), tmp_path)
    vault = opened(settings(), tmp_path)
    header = source(tmp_path / "o")
    with vault._writing() as connection:
        for number in range(1000):
            pseudonym = f"{number * 7919 % 65536:04X}{number:012X}"
            vault._write(connection, pseudonym, f"{number * 104729 % 2**32:032x}", os.urandom(900), NOW)
    remember(vault, header)
    with vault._writing() as connection:
        for number in range(1000, 1200):
            vault._write(connection, f"{number:016X}", f"{number:032x}", os.urandom(700), NOW)
    sought = [
        column(vault, vault_patient, "wrapped_key", pseudonym=PATIENT),
        column(vault, vault_study, "sealed", study_key=STUDY),
    ]
    pieces = [each[start : start + 16] for each in sought for start in range(0, len(each) - 16, 16)]

    def on_disk() -> bytes:
        return b"".join(path.read_bytes() for path in sorted(tmp_path.glob("vault.db*")))

    assert all(piece in on_disk() for piece in pieces), "the search finds what is there"
    backup = (
        column(vault, vault_study, "sealed", study_key=STUDY),
        column(vault, vault_study, "key_id", study_key=STUDY),
    )
    assert vault.shred(PATIENT) == 1
    assert not any(piece in on_disk() for piece in pieces)
    assert (tmp_path / "vault.db-wal").stat().st_size == 0
    # A copy of the sealed row, put back, does not open without its key.
    sealed, key_id = backup
    tamper(
        vault,
        update(vault_study)
        .where(vault_study.c.study_key == STUDY)
        .values(sealed=sealed, key_id=key_id, pseudonym=PATIENT),
    )
    with pytest.raises(IdentityError, match="holds no key"):
        vault.recall(STUDY)
    vault.close()


def test_a_reader_that_stays_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite cannot empty its journal under a reader: that is said, and the same again does it."""
    monkeypatch.setattr("gateway.store.engine.BUSY_TIMEOUT_S", 0)
    prepare_vault(settings(), tmp_path)
    vault = opened(settings(), tmp_path)
    remember(vault, source(tmp_path / "o"))
    with vault._engine.connect() as reader:
        reader.execute(select(vault_study)).all()
        with pytest.raises(VaultError, match="do the same again"):
            vault.shred(PATIENT)
    assert vault.shred(PATIENT) == 0
    assert (tmp_path / "vault.db-wal").stat().st_size == 0
    vault.close()


# --- being away, and side by side


def test_a_vault_that_is_away_says_so_without_values(tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    away = settings(url="postgresql+psycopg://u:PASSWORD@127.0.0.1:1/none?connect_timeout=2")
    with pytest.raises(VaultError) as caught:
        prepare_vault(away, tmp_path)
    assert "PASSWORD" not in str(caught.value)
    ring = Keyring(settings(), tmp_path, make=True)
    vault = Vault(away.url, tmp_path, ring)
    with pytest.raises(VaultError) as caught:
        vault.check()
    assert "PASSWORD" not in str(caught.value)
    with pytest.raises(VaultError):
        remember(vault, source(tmp_path / "o"))


def test_many_write_at_once(vault: Vault, chosen: VaultSettings, tmp_path: Path) -> None:
    header = source(tmp_path / "o")
    failures: list[Exception] = []

    def work(name: int) -> None:
        own = opened(chosen, tmp_path)
        try:
            for number in range(10):
                remember(own, header, study_key=f"{name:016x}{number:016x}")
        except (VaultError, IdentityError) as error:
            failures.append(error)
        finally:
            own.close()

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert failures == []
    assert len(vault.find(PATIENT)) == 40
    assert vault.status().patients == 1


def test_tables_of_a_later_version_are_refused(vault: Vault, chosen: VaultSettings, tmp_path: Path) -> None:
    tamper(vault, update(vault_state).values(schema_version=99))
    with pytest.raises(VaultError, match="version 99"):
        prepare_vault(chosen, tmp_path)


def test_a_schema_of_its_own_beside_the_store(postgresql: Callable[[], str], tmp_path: Path) -> None:
    url = postgresql()
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA vault"))
    chosen = settings(url=f"{url}?options=-csearch_path%3Dvault")
    prepare_vault(chosen, tmp_path)
    vault = opened(chosen, tmp_path)
    remember(vault, source(tmp_path / "o"))
    with engine.begin() as connection:
        assert connection.execute(text("SELECT count(*) FROM vault.vault_study")).scalar_one() == 1
    vault.close()
    engine.dispose()


def test_a_site_may_keep_no_vault(tmp_path: Path) -> None:
    none = settings(enabled=False)
    prepare_vault(none, tmp_path)
    assert open_vault(none, tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_two_sources_of_the_key_are_one_too_many() -> None:
    with pytest.raises(Exception, match="one place"):
        settings(key_file="a", key_command="b")


def test_serve_refuses_to_start_without_the_key_and_says_so(tmp_path: Path) -> None:
    with running_gateway(tmp_path / "gateway", "") as gateway:
        data_dir = gateway.data_dir
        assert stat.S_IMODE((data_dir / "vault.db").stat().st_mode) == 0o600
    vault = opened(settings(), data_dir)
    remember(vault, source(tmp_path / "o"))
    (data_dir / FILE_NAME).unlink()
    done = gateway.command("serve", "--data-dir", str(data_dir), "--dicom-port", "0", "--http-port", "0")
    assert done.returncode != 0
    assert "vault.key is missing, and the vault was sealed with it: put it back from its backup" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (data_dir / FILE_NAME).exists()
