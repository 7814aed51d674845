"""``gateway vault``: look-ups with a reason and a record, keys that change, patients that are shredded."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from photographs import drawn_jpeg, op_dataset, write
from pydicom import dcmread
from sqlalchemy import insert

from gateway.cli import main
from gateway.settings import load_settings
from gateway.store import Store, open_store
from gateway.store.audit import entries
from gateway.store.schema import study
from gateway.vault import Vault, open_vault, prepare_vault
from gateway.vault_keys import FILE_NAME

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
PATIENT = "0123456789ABCDEF"
STUDY = "a" * 32


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store("", data_dir=tmp_path, migrate=True)
    yield opened
    opened.close()


@pytest.fixture
def vault(store: Store, tmp_path: Path) -> Iterator[Vault]:
    settings = load_settings(environment={}).vault
    prepare_vault(settings, tmp_path)
    opened = open_vault(settings, tmp_path)
    assert opened is not None
    source = op_dataset(drawn_jpeg(1), patient="Müller^Änne")
    source.SpecificCharacterSet = "ISO_IR 192"
    path = write(source, tmp_path / "source.dcm")
    opened.remember(pseudonym=PATIENT, study_key=STUDY, instance_key="c" * 32, source=dcmread(path), now=NOW)
    yield opened
    opened.close()


def run(folder: Path, step: str, *rest: str) -> int:
    return main(["vault", step, "--data-dir", str(folder), *rest])


def recorded(store: Store) -> list[tuple[str, str, str, str]]:
    return [(row["actor"], row["action"], row["subject"], row["detail"]) for row in entries(store, limit=100)]


def who() -> str:
    import getpass

    return f"command:{getpass.getuser()}"


def test_find_shows_the_patient_and_leaves_a_record(
    vault: Vault, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "find", f"PSEUDONYM^{PATIENT.lower()}", "--reason", "call back", "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["patient_name"], found["patient_id"]) == ("Müller^Änne", "MÜLLER-ÄNNE")
    assert found["accession_number"] == "ACC7"
    assert run(tmp_path, "find", PATIENT, "--reason", "call back") == 0
    assert "Müller^Änne  ID MÜLLER-ÄNNE  born 19600203" in capsys.readouterr().out
    assert recorded(store) == [(who(), "identity look-up", PATIENT, "call back")] * 2
    assert not any("ller" in "".join(row) for row in recorded(store))


def test_a_look_up_of_nobody_is_recorded_too(
    vault: Vault, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "find", "F" * 16, "--reason", "call back") == 1
    assert "nobody of that pseudonym" in capsys.readouterr().err
    assert [row[2] for row in recorded(store)] == ["F" * 16]


@pytest.mark.parametrize("arguments", [("Müller^Änne", "--reason", "x"), (PATIENT, "--reason", " "), (PATIENT,)])
def test_no_pseudonym_or_no_reason_is_refused_and_not_written_down(
    arguments: tuple[str, ...], vault: Vault, store: Store, tmp_path: Path
) -> None:
    """What is no pseudonym may be a name that somebody typed."""
    if "--reason" in arguments:
        assert run(tmp_path, "find", *arguments) == 1
    else:
        with pytest.raises(SystemExit):
            run(tmp_path, "find", *arguments)
    assert recorded(store) == []


def test_rotate_changes_the_key_and_destroys_the_former(
    vault: Vault, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, row = (tmp_path / FILE_NAME).read_bytes(), vault.status()
    assert run(tmp_path, "rotate") == 0
    after = (tmp_path / FILE_NAME).read_bytes()
    assert after != before
    assert sorted(path.name for path in tmp_path.glob("vault.key*")) == [FILE_NAME]
    status = vault.status()  # a process that runs on
    assert status.key_id != row.key_id
    assert status.patients_by_key_id == {status.key_id: 1}
    assert vault.recall(STUDY).pseudonym == PATIENT
    assert recorded(store) == [(who(), "vault key changed", status.key_id, "")]
    shown = capsys.readouterr()
    for key in (before, after):
        assert key.hex() not in shown.out + shown.err


def test_rotate_again_ends_what_was_killed(vault: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Vault, "rotate", killed)
    assert run(tmp_path, "rotate") == 130
    monkeypatch.undo()
    new = (tmp_path / FILE_NAME).read_bytes()
    assert len(list(tmp_path.glob("vault.key*"))) == 2
    assert vault.recall(STUDY).pseudonym == PATIENT
    assert run(tmp_path, "rotate") == 0
    assert (tmp_path / FILE_NAME).read_bytes() == new, "the one that was begun, not a third"
    assert len(list(tmp_path.glob("vault.key*"))) == 1
    assert vault.recall(STUDY).pseudonym == PATIENT


def test_rotate_after_a_kill_between_two_names_of_the_key_file(
    vault: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The former name is then the current file: overwriting it would destroy the key in use."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    assert run(tmp_path, "rotate") == 130
    monkeypatch.undo()
    assert run(tmp_path, "rotate") == 0
    assert vault.recall(STUDY).pseudonym == PATIENT
    assert len(list(tmp_path.glob("vault.key*"))) == 1


def test_shred_is_final_recorded_and_says_what_is_left(
    vault: Vault, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with store.write() as connection:
        times = dict.fromkeys(("first_received_at", "last_received_at", "complete_at"), NOW)
        connection.execute(insert(study).values(study_key=STUDY, study_instance_uid="1.2", state="judged", **times))
    assert run(tmp_path, "shred", PATIENT, "--reason", "asked to be forgotten", "--yes") == 0
    out = capsys.readouterr().out
    assert f"{PATIENT}: the identity of 1 studies cannot be read any more" in out
    assert STUDY in out
    assert recorded(store) == [(who(), "identity shredded", PATIENT, "asked to be forgotten")]
    assert run(tmp_path, "find", PATIENT, "--reason", "x") == 1


@pytest.mark.parametrize(("typed", "gone"), [(PATIENT.lower(), True), ("yes", False), ("", False)])
def test_shred_asks_a_person(
    typed: str, gone: bool, vault: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.StringIO(f"{typed}\n")
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stdin", terminal)
    assert run(tmp_path, "shred", PATIENT, "--reason", "x") == (0 if gone else 1)
    assert (vault.find(PATIENT) == ()) is gone


def test_shred_without_anybody_to_ask_wants_yes(vault: Vault, store: Store, tmp_path: Path) -> None:
    assert run(tmp_path, "shred", PATIENT, "--reason", "x") == 1
    assert vault.find(PATIENT)
    assert recorded(store) == []


def test_status(vault: Vault, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "status", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {"patients": 1, "studies": 1, "key_id": found["key_id"], "patients_by_key_id": {found["key_id"]: 1}}
    assert run(tmp_path, "status") == 0
    assert capsys.readouterr().out == f"1 patients, 1 studies; key in use {found['key_id']}\n"


def test_where_no_vault_is_none_is_made(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (("status",), ("find", PATIENT, "--reason", "x"), ("rotate",)):
        assert run(tmp_path, *arguments) == 1
        assert "vault.db" in capsys.readouterr().err
    assert not list(tmp_path.glob("vault*"))


def test_a_key_from_the_environment_is_rotated_by_naming_the_former(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = os.urandom(32), os.urandom(32)
    monkeypatch.setenv("GATEWAY_VAULT__KEY_ENVIRONMENT", "VAULT_KEY")
    monkeypatch.setenv("VAULT_KEY", old.hex())
    settings = load_settings().vault
    prepare_vault(settings, tmp_path)
    made = open_vault(settings, tmp_path)
    assert made is not None
    path = write(op_dataset(drawn_jpeg(1)), tmp_path / "source.dcm")
    made.remember(pseudonym=PATIENT, study_key=STUDY, instance_key="c" * 32, source=dcmread(path), now=NOW)
    made.close()
    former = tmp_path / "former.key"
    former.write_bytes(old)
    former.chmod(0o600)
    monkeypatch.setenv("VAULT_KEY", new.hex())
    assert run(tmp_path, "rotate") == 1
    assert "former_key_files" in capsys.readouterr().err
    monkeypatch.setenv("GATEWAY_VAULT__FORMER_KEY_FILES", json.dumps([str(former)]))
    assert run(tmp_path, "rotate") == 0
    monkeypatch.delenv("GATEWAY_VAULT__FORMER_KEY_FILES")
    assert run(tmp_path, "find", PATIENT, "--reason", "x") == 0
    shown = capsys.readouterr()
    assert old.hex() not in shown.out + shown.err
    assert new.hex() not in shown.out + shown.err
