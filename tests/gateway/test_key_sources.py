"""Keys from a file, the environment and a command: what is taken, what is refused, and that none is ever shown."""

from __future__ import annotations

import base64
import json
import logging
import os
import stat
import sys
import time
import traceback
from pathlib import Path

import pytest

from gateway import key_sources
from gateway.check import check
from gateway.cli import main
from gateway.errors import DeidentificationError
from gateway.key_sources import KeySource, decode_key
from gateway.settings import load_settings

KEY = bytes.fromhex("8f3a61c4d20b97e5714c08fd5e92ab36d9e04f7713bc6825a0917dc2563e8bf4")
FORMS = {
    "raw": KEY,
    "hexadecimal": KEY.hex().encode(),
    "capitals": KEY.hex().upper().encode() + b"\n",
    "base64": base64.b64encode(KEY),
    "base64 for URLs, unpadded": base64.urlsafe_b64encode(KEY).rstrip(b"=") + b"\n",
}


def key_file(folder: Path, content: bytes, mode: int = 0o600) -> Path:
    path = folder / "a.key"
    path.write_bytes(content)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("form", FORMS)
def test_a_file_in_each_form(form: str, tmp_path: Path) -> None:
    assert KeySource(file=str(key_file(tmp_path, FORMS[form]))).load() == KEY


@pytest.mark.parametrize("form", [form for form in FORMS if form != "raw"])
def test_the_environment_in_each_form(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SITE_KEY", FORMS[form].decode())
    assert KeySource(environment="SITE_KEY").load() == KEY


@pytest.mark.parametrize("form", FORMS)
def test_a_command_in_each_form(form: str, tmp_path: Path) -> None:
    assert KeySource(command=f"cat '{key_file(tmp_path, FORMS[form])}'").load() == KEY


def test_random_keys_are_taken_in_every_form() -> None:
    """Not one in a thousand is taken for a pass-phrase."""
    for _ in range(1000):
        key = os.urandom(32)
        assert decode_key(base64.b64encode(key), "x") == key
        assert decode_key(key.hex().encode(), "x") == key


@pytest.mark.parametrize(
    "mode", [bit | 0o600 for bit in (stat.S_IRGRP, stat.S_IWGRP, stat.S_IROTH, stat.S_IWOTH, stat.S_IXGRP)]
)
def test_a_file_that_others_may_use_is_refused(mode: int, tmp_path: Path) -> None:
    path = key_file(tmp_path, KEY, mode)
    with pytest.raises(DeidentificationError, match=rf"mode {mode:o}\): expected 600, by chmod 600"):
        KeySource(file=str(path)).load()


WEAK = {
    "empty": b"",
    "short": KEY[:31],
    "zeros": bytes(32),
    "one byte": b"\xa5" * 64,
    "counting": bytes(range(32)),
    "repeating": b"\x8f\x3a\x61\xc4" * 16,
    "default": b"changeme",
    "typed": b"this is the secret key of our hospital, which is long",
    "typed without spaces": b"correcthorsebatterystaplecorrecthorsebatterystapler",
    "typed in capitals": b"CORRECTHORSEBATTERYSTAPLEANDAGAINCORRECTHORSE",
    "zeros in hexadecimal": b"0" * 64,
    "counting in hexadecimal": bytes(range(32)).hex().encode(),
    "short in hexadecimal": KEY[:31].hex().encode(),
    "a digit of it lost": KEY.hex()[:-1].encode(),
    "a digit of a longer one lost": (KEY.hex() + "abc").encode(),
    "zeros in base64": base64.b64encode(bytes(32)),
    "short in base64": base64.b64encode(KEY[:24]),
    "too long": KEY * 200,
}


@pytest.mark.parametrize("weak", WEAK)
@pytest.mark.parametrize("place", ["file", "environment", "command"])
def test_weak_keys_are_refused_wherever_they_come_from(
    weak: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = key_file(tmp_path, WEAK[weak])
    if place == "environment":
        if b"\0" in WEAK[weak] or not WEAK[weak].isascii():
            pytest.skip("an environment variable is text")
        monkeypatch.setenv("SITE_KEY", WEAK[weak].decode())
    source = {
        "file": KeySource(file=str(path)),
        "environment": KeySource(environment="SITE_KEY"),
        "command": KeySource(command=f"cat {path}"),
    }[place]
    with pytest.raises(DeidentificationError) as caught:
        source.load()
    assert not WEAK[weak] or WEAK[weak].hex() not in str(caught.value)
    assert len(WEAK[weak]) < 9 or WEAK[weak].decode("latin-1") not in str(caught.value)


def test_what_is_missing_says_where_it_was_expected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SITE_KEY", raising=False)
    for source, words in (
        (KeySource(), "expected a key file, an environment variable or a command"),
        (KeySource(file=str(tmp_path / "absent")), "absent cannot be read: No such file"),
        (KeySource(file=str(tmp_path)), "cannot be read: Is a directory"),
        (KeySource(environment="SITE_KEY"), "SITE_KEY is not set: expected a key of at least 32 bytes"),
        (KeySource(command="/absent/kms get"), "cannot be run: No such file"),
        (KeySource(command="'"), "cannot be run: No closing quotation"),
        (KeySource(command="false"), "failed with exit status 1"),
        (KeySource(command="true"), "at least 32 bytes"),
    ):
        with pytest.raises(DeidentificationError, match=words):
            source.load()


def test_a_device_is_no_key_file() -> None:
    with pytest.raises(DeidentificationError):
        KeySource(file="/dev/urandom").load()


def test_a_command_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_sources, "COMMAND_TIMEOUT_S", 0.3)
    started = time.monotonic()
    with pytest.raises(DeidentificationError, match=r"did not end within 0\.3 s"):
        KeySource(command="sleep 60").load()
    assert time.monotonic() - started < 20


def test_no_shell_reads_the_command(tmp_path: Path) -> None:
    """Words are parted as a shell would, and nothing in them is carried out."""
    path = key_file(tmp_path, KEY)
    mark = tmp_path / "mark"
    with pytest.raises(DeidentificationError):
        KeySource(command=f"cat {path}; touch {mark}").load()
    with pytest.raises(DeidentificationError):
        KeySource(command=f"cat $(touch {mark})").load()
    assert not mark.exists()
    spaced = tmp_path / "a key"
    spaced.write_bytes(KEY)
    assert KeySource(command=f"cat '{spaced}'").load() == KEY


def test_two_places_are_one_too_many() -> None:
    with pytest.raises(DeidentificationError, match="one place"):
        KeySource(file="a", environment="B")


def test_a_key_in_place_of_a_name_is_refused_and_not_repeated() -> None:
    for place in ("file", "environment"):
        with pytest.raises(DeidentificationError, match="is expected") as caught:
            KeySource(**{place: KEY.hex()})
        assert KEY.hex() not in str(caught.value)


def test_the_key_is_shown_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Not by repr, log, message, traceback, `gateway check --json`, or a dump of the settings."""
    caplog.set_level(logging.DEBUG)
    printer = tmp_path / "kms.py"
    printer.write_text(
        f"import sys\nprint('{KEY.hex()}')\nprint('{KEY.hex()}', file=sys.stderr)\nsys.exit(len(sys.argv) - 1)\n"
    )
    monkeypatch.setenv("SITE_KEY", KEY.hex())
    good = KeySource(command=f"{sys.executable} {printer}")
    bad = KeySource(command=f"{sys.executable} {printer} fail")
    assert good.load() == KEY
    shown = repr(good) + repr(KeySource(environment="SITE_KEY")) + str(bad)
    try:
        bad.load()
    except DeidentificationError as error:
        shown += str(error) + "".join(traceback.format_exception(error))
        assert error.__cause__ is None
    monkeypatch.setenv("WEAK_KEY", KEY.hex()[:40])
    try:
        KeySource(environment="WEAK_KEY").load()
    except DeidentificationError as error:
        shown += str(error) + "".join(traceback.format_exception(error))
    config = tmp_path / "gateway.toml"
    config.write_text(
        f'[vault]\nkey_environment = "SITE_KEY"\n[deidentification]\nkey_command = "{sys.executable} {printer}"\n'
    )
    settings = load_settings(config, environment={})
    shown += repr(settings) + settings.model_dump_json() + json.dumps(check(config, []))
    assert main(["check", "--config", str(config), "--json"]) == 0
    out, err = capfd.readouterr()
    shown += out + err + caplog.text
    assert "SITE_KEY" in shown
    for secret in (KEY.hex(), KEY.hex()[:40], base64.b64encode(KEY).decode(), repr(KEY)):
        assert secret not in shown
