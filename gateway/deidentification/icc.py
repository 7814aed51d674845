"""ICC profiles without their texts: a profile may carry a description, a copyright, a device and private tags.

References
----------
ISO 15076-1 (ICC.1:2022) sections 7.2 (header), 7.3 (tag table) and 9.2 (tags).
"""

from __future__ import annotations

import struct

_HEADER_BYTES = 128
_COLOUR_TAGS = frozenset(
    name.encode("ascii")
    for row in (
        "A2B0 A2B1 A2B2 B2A0 B2A1 B2A2 D2B0 D2B1 D2B2 B2D0 B2D1 B2D2",
        "rXYZ gXYZ bXYZ rTRC gTRC bTRC kTRC wtpt bkpt chad lumi gamt",
    )
    for name in row.split()
)


def clean_icc_profile(profile: bytes) -> bytes | None:
    """The profile with its colour tags alone, its date and maker blank; None if it cannot be read.

    The tags' data keep their places; everything else behind the tag table is zero.
    """
    if len(profile) < _HEADER_BYTES + 4 or profile[36:40] != b"acsp":
        return None
    (count,) = struct.unpack_from(">L", profile, _HEADER_BYTES)
    if count > 100 or _HEADER_BYTES + 4 + 12 * count > len(profile):
        return None
    cleaned = bytearray(len(profile))
    cleaned[:_HEADER_BYTES] = profile[:_HEADER_BYTES]
    for start, end in ((4, 8), (24, 36), (40, 44), (48, 64), (80, _HEADER_BYTES)):
        cleaned[start:end] = bytes(end - start)
    entries = []
    for number in range(count):
        name, offset, size = struct.unpack_from(">4sLL", profile, _HEADER_BYTES + 4 + 12 * number)
        if name not in _COLOUR_TAGS:
            continue
        if offset < _HEADER_BYTES + 4 + 12 * count or offset + size > len(profile):
            return None
        cleaned[offset : offset + size] = profile[offset : offset + size]
        entries.append((name, offset, size))
    struct.pack_into(">L", cleaned, _HEADER_BYTES, len(entries))
    for number, entry in enumerate(entries):
        struct.pack_into(">4sLL", cleaned, _HEADER_BYTES + 4 + 12 * number, *entry)
    return bytes(cleaned)
