"""The site key, from which every pseudonym and UID is derived."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import itertools
import os
import secrets
import stat
from pathlib import Path

from gateway.errors import DeidentificationError

KEY_BYTES = 32
_LEAST_DISTINCT = 16  # 32 random bytes have fewer than 16 distinct values with a probability below 1e-10


def check_key(key: bytes) -> bytes:
    """Return `key` unless it could be guessed.

    Raises
    ------
    DeidentificationError
        If it is shorter than 32 bytes, repeats, counts up or down, has few distinct values, or is typed text: what a
        key protects is only as hidden as the key.
    """
    if not isinstance(key, bytes) or len(key) < KEY_BYTES:
        raise DeidentificationError(f"the de-identification key must be at least {KEY_BYTES} bytes")
    steps = {(after - before) % 256 for before, after in itertools.pairwise(key)}
    repeats = any(
        key == (key[:period] * (len(key) // period + 1))[: len(key)] for period in range(1, len(key) // 2 + 1)
    )
    if repeats or len(set(key)) < _LEAST_DISTINCT or len(steps) < _LEAST_DISTINCT:
        raise DeidentificationError("the de-identification key is not random: it repeats, counts, or has few values")
    if all(0x20 <= byte < 0x7F or byte in b"\t\r\n" for byte in key):
        raise DeidentificationError("the de-identification key is typed text; let the gateway make one of random bytes")
    return key


def load_or_create_key(path: Path) -> bytes:
    """Read the key at `path`, or make one there.

    A new key is written to a file beside it, made durable, and linked into place, so that of two processes that race
    one wins and both read the same key. A key that is there is never overwritten. Mode 0600.

    Raises
    ------
    DeidentificationError
        If the file holds a weak key, or other users may write it.
    """
    with contextlib.suppress(FileExistsError):
        if not path.exists():
            _create(path)
    if path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise DeidentificationError("other users may write the de-identification key file")
    return check_key(path.read_bytes())


def _create(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(os.urandom(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        os.link(unfinished, path)
    finally:
        unfinished.unlink()
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class KeyedHash:
    """HMAC-SHA-256 with one key per purpose, derived from the site key, so that no two purposes share a value."""

    __slots__ = ("_start",)

    def __init__(self, key: bytes, purpose: str) -> None:
        derived = hmac.digest(check_key(key), f"gateway de-identification: {purpose}".encode(), "sha256")
        self._start = hmac.new(derived, digestmod=hashlib.sha256)

    def digest(self, text: str) -> bytes:
        """32 bytes."""
        keyed = self._start.copy()
        keyed.update(text.encode("utf-8", "surrogatepass"))
        return keyed.digest()

    def hexadecimal(self, text: str, digits: int) -> str:
        """The first `digits` hexadecimal digits, upper case."""
        return self.digest(text).hex()[:digits].upper()

    def uid(self, text: str) -> str:
        """A UID of the form ``2.25.`` and a 128-bit UUID as a decimal number (PS3.5 B.2), at most 44 characters.

        The UUID is of version 8, for values made by other means (RFC 9562 section 5.8).
        """
        number = int.from_bytes(self.digest(text)[:16], "big")
        number = number & ~(0xF << 76) | 0x8 << 76
        number = number & ~(0x3 << 62) | 0x2 << 62
        return f"2.25.{number}"


def fingerprint_of(key: bytes) -> str:
    """64 hexadecimal digits that tell keys apart, and from which the key cannot be told."""
    return KeyedHash(key, "fingerprint").hexadecimal("", 64)
