"""Where a secret key comes from: a file, an environment variable, or a command that asks a key management system.

A key never appears in a message, a representation or a log; what went wrong with one is said by where it should have
come from.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import shlex
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

from gateway.deidentification.keys import KEY_BYTES, check_key
from gateway.errors import DeidentificationError

COMMAND_TIMEOUT_S = 30.0
LONGEST_BYTES = 4096
_HEXADECIMAL = re.compile(rb"[0-9A-Fa-f]+")
_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]+={0,2}")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySource:
    """One place that a key comes from; at most one is named.

    Raises
    ------
    DeidentificationError
        If two are named.
    """

    file: str = ""
    environment: str = ""
    """Name of an environment variable that holds the key as text."""
    command: str = ""
    """Words as a shell would part them, run without a shell; what it prints is the key."""

    def __post_init__(self) -> None:
        if sum(map(bool, (self.file, self.environment, self.command))) > 1:
            raise DeidentificationError("a key comes from one place: a file, an environment variable or a command")
        for name, text in (("file", self.file), ("environment variable", self.environment)):
            if _looks_like_a_key(text):
                # It would stand in messages, and stands in the settings, where no key may be.
                raise DeidentificationError(
                    f"a key is given where the name of a {name} is expected; it is secret no more"
                )

    def __bool__(self) -> bool:
        return bool(self.file or self.environment or self.command)

    def load(self) -> bytes:
        """The key: as the bytes found, or as those that hexadecimal or base64 text stands for.

        Raises
        ------
        DeidentificationError
            It is missing or weak, other users may read or write its file, or the command failed.
        """
        if self.file:
            found, where = _read_file(Path(self.file)), f"key file {self.file}"
        elif self.environment:
            text = os.environ.get(self.environment)
            if not text:
                raise DeidentificationError(
                    f"the environment variable {self.environment} is not set: expected a key of at least "
                    f"{KEY_BYTES} bytes as hexadecimal or base64 text"
                )
            found, where = text.encode("utf-8", "surrogateescape"), f"environment variable {self.environment}"
        elif self.command:
            found, where = _run(self.command), "key command"
        else:
            raise DeidentificationError("no key: expected a key file, an environment variable or a command")
        return decode_key(found, where)


def _looks_like_a_key(text: str) -> bool:
    return len(text) >= 2 * KEY_BYTES and _HEXADECIMAL.fullmatch(text.encode("utf-8", "surrogateescape")) is not None


def decode_key(found: bytes, where: str) -> bytes:
    """The key that `found` is or stands for; raises :class:`DeidentificationError`, naming `where`, if it is weak."""
    if len(found) > LONGEST_BYTES:
        raise DeidentificationError(f"{where}: over {LONGEST_BYTES} bytes, which is no key")
    key = found
    text = found.strip()
    try:
        if _HEXADECIMAL.fullmatch(text):
            if len(text) < 2 * KEY_BYTES or len(text) % 2:
                raise DeidentificationError(
                    f"{where}: {len(text)} hexadecimal digits: expected an even number of at least {2 * KEY_BYTES}"
                )
            key = bytes.fromhex(text.decode("ascii"))
        elif _BASE64.fullmatch(text) and len(text) >= KEY_BYTES * 4 // 3 and _is_like_random(text):
            key = base64.b64decode(text.translate(bytes.maketrans(b"-_", b"+/")) + b"=" * (-len(text) % 4))
    except (ValueError, binascii.Error):
        key = found
    try:
        return check_key(key)
    except DeidentificationError as error:
        raise DeidentificationError(f"{where}: {error}") from None


def _is_like_random(text: bytes) -> bool:
    """Whether base64 text has the capitals and small letters that random bytes give (fewer: 1 in 100,000), and a
    pass-phrase, which may be written in the same characters, has not."""
    letters = text.decode("ascii")
    return sum(map(str.isupper, letters)) > len(text) // 10 and sum(map(str.islower, letters)) > len(text) // 10


def _read_file(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise DeidentificationError(f"key file {path} is not a file")
            if status.st_mode & 0o077:
                raise DeidentificationError(
                    f"key file {path} may be read or written by other users (mode {status.st_mode & 0o777:o}): "
                    f"expected 600, by chmod 600 {path}"
                )
            return stream.read(LONGEST_BYTES + 1)
    except OSError as error:
        raise DeidentificationError(f"key file {path} cannot be read: {error.strerror}") from None


def _run(command: str) -> bytes:
    try:
        words = shlex.split(command)
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
    except (OSError, ValueError, IndexError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DeidentificationError(f"the key command cannot be run: {reason}") from None
    except subprocess.TimeoutExpired:
        raise DeidentificationError(f"the key command did not end within {COMMAND_TIMEOUT_S:g} s") from None
    if done.returncode:
        raise DeidentificationError(f"the key command failed with exit status {done.returncode}")
    return done.stdout[: LONGEST_BYTES + 1]
