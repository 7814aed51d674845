"""The gateway's own marks on a result: its name, its UIDs and the codes of its private scheme."""

from __future__ import annotations

import hashlib
import hmac
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

MANUFACTURER = "Imaging Gateway project"
MODEL_NAME = "Imaging Gateway"
DEVICE_NAME = "GATEWAY"
PRIVATE_SCHEME = "99GATEWAY"

TRIAGE_ONLY = "For triage, not for diagnosis."
DEMONSTRATION = "Demonstration model, no clinical validation."


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """The gateway as the device that observed and wrote."""

    device_uid: str
    serial_number: str
    software_version: str


def device_of(key: bytes, gateway_version: str) -> Device:
    """This installation. UID and serial number follow from the installation's key, so they stay over restarts."""
    serial_number = hmac.new(key, b"device serial number", hashlib.sha256).hexdigest()[:12].upper()
    return Device(
        device_uid=derive_uid(key, "device", ()),
        serial_number=serial_number,
        software_version=ascii_text(gateway_version),
    )


def derive_uid(key: bytes, kind: str, parts: Sequence[str]) -> str:
    """A UID that the same key, kind and parts always give, and from which they cannot be told.

    Notes
    -----
    HMAC-SHA-256 cut to a UUID of version 8, under the root 2.25. Each part is preceded by its length, so that no two
    lists of parts read alike.

    References
    ----------
    PS3.5 B.2 (UUID derived UID); RFC 9562 section 5.8.
    """
    message = b"".join(len(part).to_bytes(8, "big") + part for part in (text.encode() for text in (kind, *parts)))
    number = int.from_bytes(hmac.new(key, message, hashlib.sha256).digest()[:16], "big")
    number = number & ~(0xF << 76) | 8 << 76
    number = number & ~(0x3 << 62) | 2 << 62
    return f"2.25.{number}"


def ascii_text(text: str, length: int | None = None) -> str:
    """`text` in printable ASCII, which every character set of DICOM includes; backslashes become slashes."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", errors="ignore").decode("ascii")
    plain = " ".join("".join(letter if letter.isprintable() else " " for letter in plain).replace("\\", "/").split())
    return plain if length is None else plain[:length].rstrip()
