"""``gateway users`` and ``gateway tokens``: passwords from standard input only, and a record of what was done."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from gateway.accounts import Accounts
from gateway.cli import main
from gateway.roles import Role
from gateway.store import open_store
from gateway.store.audit import entries

PASSWORD = "correct horse battery"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    open_store("", data_dir=tmp_path, migrate=True).close()
    return tmp_path


def run(folder: Path, *arguments: str) -> int:
    command, step, *rest = arguments
    return main([command, step, "--data-dir", str(folder), *rest])


def typed(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


def listed(folder: Path, command: str, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert run(folder, command, "list", "--json") == 0
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return rows


def test_an_account_from_first_to_last(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed(monkeypatch, PASSWORD + "\n")
    assert run(folder, "users", "add", "Anna", "--role", "viewer", "--password-stdin") == 0
    assert run(folder, "users", "role", "anna", "radiologist") == 0
    typed(monkeypatch, "another battery staple\n")
    assert run(folder, "users", "password", "anna", "--password-stdin", "--must-change") == 0
    assert run(folder, "users", "disable", "anna") == 0
    (row,) = listed(folder, "users", capsys)
    assert (row["name"], row["role"], row["disabled"], row["must_change"]) == ("anna", "radiologist", True, True)
    assert "password_hash" not in row
    assert run(folder, "users", "enable", "anna") == 0
    store = open_store("", data_dir=folder)
    assert Accounts(store, folder).verify("anna", "another battery staple") is not None
    rows = entries(store, limit=100)
    store.close()
    assert {row["actor"] for row in rows} == {"command"}
    assert [row["action"] for row in reversed(rows)] == [
        "account made",
        "role changed",
        "password changed",
        "account disabled",
        "account enabled",
    ]


def test_what_is_wrong_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed(monkeypatch, "short\n")
    assert run(folder, "users", "add", "anna", "--role", "viewer", "--password-stdin") == 1
    assert "at least 12 characters" in capsys.readouterr().err
    typed(monkeypatch, PASSWORD)
    assert run(folder, "users", "add", "anna", "--role", "viewer") == 1
    assert "--password-stdin" in capsys.readouterr().err
    assert run(folder, "users", "disable", "anna") == 1
    assert "no account anna" in capsys.readouterr().err
    for arguments in (["--role", "sender"], ["--role", "viewer", "--password", PASSWORD]):
        with pytest.raises(SystemExit):
            run(folder, "users", "add", "anna", *arguments)
    assert main(["users", "list", "--data-dir", str(folder / "nothing")]) == 1
    assert "no gateway has run" in capsys.readouterr().err


def test_a_token_from_first_to_last(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "tokens", "make", "--purpose", "CT 1", "--role", "sender", "--days", "2") == 0
    secret = capsys.readouterr().out.strip()
    (row,) = listed(folder, "tokens", capsys)
    assert (row["purpose"], row["role"], row["revoked_at"]) == ("CT 1", "sender", None)
    days = datetime.fromisoformat(row["expires_at"]) - datetime.now(UTC)
    assert 1.9 < days.total_seconds() / 86400 <= 2
    store = open_store("", data_dir=folder)
    found = Accounts(store, folder).bearer(secret, now=datetime.now(UTC))
    assert found is not None
    assert found.role is Role.SENDER
    assert run(folder, "tokens", "revoke", row["token_key"]) == 0
    assert Accounts(store, folder).bearer(secret, now=datetime.now(UTC)) is None
    store.close()
    assert run(folder, "tokens", "revoke", row["token_key"]) == 1
    assert secret not in str(listed(folder, "tokens", capsys))
