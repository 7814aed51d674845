"""A gateway starts with the key that its store's pseudonyms follow from, and with no other."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from running import running_gateway

from gateway.deidentification.keys import fingerprint_of
from gateway.errors import DeidentificationError
from gateway.settings import DeidentificationSettings, load_settings
from gateway.site_key import FILE_NAME, load_site_key, prepare_site_key
from gateway.store import Store, open_store

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


def settings(**changes: object) -> DeidentificationSettings:
    overrides = {f"deidentification.{name}": value for name, value in changes.items()}
    return load_settings(environment={}, overrides=overrides).deidentification


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store("", data_dir=tmp_path, migrate=True)


def test_the_first_start_makes_a_key_and_later_ones_take_it(store: Store, tmp_path: Path) -> None:
    prepare_site_key(store, settings(), tmp_path, now=NOW)
    made = (tmp_path / FILE_NAME).read_bytes()
    prepare_site_key(store, settings(), tmp_path, now=NOW)
    assert load_site_key(settings(), tmp_path) == made
    assert len(made) == 32


def test_a_key_that_has_gone_is_not_made_anew(store: Store, tmp_path: Path) -> None:
    prepare_site_key(store, settings(), tmp_path, now=NOW)
    (tmp_path / FILE_NAME).unlink()
    with pytest.raises(DeidentificationError, match=r"secret\.key is missing.*backup"):
        prepare_site_key(store, settings(), tmp_path, now=NOW)
    assert not (tmp_path / FILE_NAME).exists()


def test_another_key_is_refused(store: Store, tmp_path: Path) -> None:
    prepare_site_key(store, settings(), tmp_path, now=NOW)
    other = os.urandom(32)
    (tmp_path / FILE_NAME).write_bytes(other)
    with pytest.raises(DeidentificationError, match="another one") as refusal:
        prepare_site_key(store, settings(), tmp_path, now=NOW)
    assert fingerprint_of(other)[:16] in str(refusal.value)
    assert other.hex() not in str(refusal.value)


@pytest.mark.parametrize("weak", [b"", b"secret", bytes(32), b"0" * 64, b"changeme" * 8])
def test_a_weak_key_is_refused(store: Store, tmp_path: Path, weak: bytes) -> None:
    path = tmp_path / "site.key"
    path.write_bytes(weak)
    path.chmod(0o600)
    with pytest.raises(DeidentificationError):
        prepare_site_key(store, settings(key_file=str(path)), tmp_path, now=NOW)


def test_a_key_that_the_settings_name_is_never_made(store: Store, tmp_path: Path) -> None:
    with pytest.raises(DeidentificationError):
        prepare_site_key(store, settings(key_file=str(tmp_path / "absent.key")), tmp_path, now=NOW)
    assert not (tmp_path / "absent.key").exists()
    assert not (tmp_path / FILE_NAME).exists()


def test_the_key_may_come_from_the_environment(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = os.urandom(32)
    monkeypatch.setenv("SITE_KEY", key.hex())
    chosen = settings(key_environment="SITE_KEY")
    prepare_site_key(store, chosen, tmp_path, now=NOW)
    assert load_site_key(chosen, tmp_path) == key


def test_serve_refuses_another_key_and_says_so(tmp_path: Path) -> None:
    with running_gateway(tmp_path / "gateway", "") as gateway:
        data_dir = gateway.data_dir
    (data_dir / FILE_NAME).write_bytes(os.urandom(32))
    done = gateway.command("serve", "--data-dir", str(data_dir), "--dicom-port", "0", "--http-port", "0")
    assert done.returncode != 0
    assert "site key is another one" in done.stderr
    assert "Traceback" not in done.stderr
