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

_CLASSES = frozenset([b"scnr", b"mntr", b"prtr", b"link", b"spac", b"abst", b"nmcl"])
_SPACES = frozenset(
    [
        *(b"XYZ ", b"Lab ", b"Luv ", b"YCbr", b"Yxy ", b"RGB ", b"GRAY", b"HSV ", b"HLS ", b"CMYK", b"CMY "),
        *(f"{count:X}CLR".encode() for count in range(2, 16)),
    ]
)
_PARAMETERS = (1, 3, 4, 5, 7)
"""How many a parametric curve of each function type has (section 10.18)."""


def _used_bytes(content: bytes) -> int:
    """How many bytes of a tag's data its type uses; all for types of varying make."""
    kind = content[:4]
    if kind == b"XYZ ":
        return 20
    if kind == b"curv" and len(content) >= 12:
        return 12 + 2 * int.from_bytes(content[8:12], "big")
    if kind == b"para" and len(content) >= 12:
        function = int.from_bytes(content[8:10], "big")
        return 12 + 4 * _PARAMETERS[function] if function < len(_PARAMETERS) else 12
    if kind == b"sf32":
        return 8 + 4 * 9
    return len(content) if kind in (b"mft1", b"mft2", b"mAB ", b"mBA ", b"mpet") else 0


def clean_icc_profile(profile: bytes) -> bytes | None:
    """The profile with its colour tags alone, its date and maker blank; None if it cannot be read.

    The tags' data keep their places; everything else behind the tag table is zero.
    """
    if len(profile) < _HEADER_BYTES + 4 or profile[36:40] != b"acsp":
        return None
    if profile[12:16] not in _CLASSES or not {profile[16:20], profile[20:24]} <= _SPACES:
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
        content = profile[offset : offset + size]
        used = min(size, _used_bytes(content))
        cleaned[offset : offset + used] = content[:4] + bytes(4) + content[8:used] if used >= 8 else bytes(used)
        entries.append((name, offset, size))
    struct.pack_into(">L", cleaned, _HEADER_BYTES, len(entries))
    for number, entry in enumerate(entries):
        struct.pack_into(">4sLL", cleaned, _HEADER_BYTES + 4 + 12 * number, *entry)
    return bytes(cleaned)
