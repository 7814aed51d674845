"""Encodes elements by hand, so that values a library would refuse to write can be planted; nothing of the gateway."""

from __future__ import annotations

import struct

LONG_VRS = {b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"SQ", b"UC", b"UN", b"UR", b"UT", b"SV", b"UV"}
UNDEFINED = 0xFFFFFFFF
SEQUENCE_END = b"\xfe\xff\xdd\xe0" + bytes(4)
ITEM_END = b"\xfe\xff\x0d\xe0" + bytes(4)


def element(tag: int, vr: str, value: bytes, *, length: int | None = None) -> bytes:
    """One element, explicit VR little endian; `length` stands in for the true one."""
    if len(value) % 2:
        value += b"\x00" if vr in ("UI", "OB", "UN") else b" "
    name = vr.encode()
    declared = len(value) if length is None else length
    return (
        struct.pack("<HH", tag >> 16, tag & 0xFFFF)
        + name
        + struct.pack("<2xL" if name in LONG_VRS else "<H", declared)
        + value
    )


def implicit(tag: int, value: bytes, *, length: int | None = None) -> bytes:
    """One element, implicit VR little endian."""
    value += b" " * (len(value) % 2)
    return struct.pack("<HHL", tag >> 16, tag & 0xFFFF, len(value) if length is None else length) + value


def item(content: bytes) -> bytes:
    """One item, or one fragment of encapsulated pixel data."""
    return b"\xfe\xff\x00\xe0" + struct.pack("<L", len(content)) + content


def sequence(tag: int, *items: bytes) -> bytes:
    """A sequence of defined length."""
    return element(tag, "SQ", b"".join(item(content) for content in items))


def open_sequence(tag: int, *items: bytes) -> bytes:
    """A sequence and items of undefined length."""
    content = b"".join(b"\xfe\xff\x00\xe0" + struct.pack("<L", UNDEFINED) + each + ITEM_END for each in items)
    return element(tag, "SQ", content + SEQUENCE_END, length=UNDEFINED)


def fragments(*streams: bytes, table: bytes = b"") -> bytes:
    """(7FE0,0010) *Pixel Data* of these fragments behind an offset table."""
    return element(0x7FE00010, "OB", b"".join(map(item, (table, *streams))) + SEQUENCE_END, length=UNDEFINED)


def joined(elements: dict[int, bytes]) -> bytes:
    """Elements by tag, in order."""
    return b"".join(elements[tag] for tag in sorted(elements))


def part10(
    content: bytes, *, syntax: str = "1.2.840.10008.1.2.1", more_meta: bytes = b"", preamble: bytes = b""
) -> bytes:
    """A file of an encoded data set."""
    meta = element(0x00020010, "UI", syntax.encode()) + more_meta
    group = element(0x00020000, "UL", struct.pack("<L", len(meta)))
    return preamble.ljust(128, b"\0")[:128] + b"DICM" + group + meta + content


def us(*numbers: int) -> bytes:
    """Numbers of 16 bits."""
    return struct.pack(f"<{len(numbers)}H", *numbers)


def image(
    sop_class: str, *, side: int = 8, bits: int = 8, stored: int | None = None, colour: bool = False, frames: int = 1
) -> dict[int, bytes]:
    """The attributes of a small square image; grey pixels count up from zero."""
    samples, stored = (3, 8) if colour else (1, stored or bits)
    photometric = b"RGB" if colour else b"MONOCHROME2"
    count = side * side * samples * frames
    pixels = bytes(n % 256 for n in range(count)) if bits == 8 else us(*(n % (1 << stored) for n in range(count)))
    made = {
        0x00080016: element(0x00080016, "UI", sop_class.encode()),
        0x00080018: element(0x00080018, "UI", b"1.2.826.1.3"),
        0x00100010: element(0x00100010, "PN", b"Doe^Jane"),
        0x00100020: element(0x00100020, "LO", b"PAT-1"),
        0x0020000D: element(0x0020000D, "UI", b"1.2.826.1.1"),
        0x0020000E: element(0x0020000E, "UI", b"1.2.826.1.2"),
        0x00280002: element(0x00280002, "US", us(samples)),
        0x00280004: element(0x00280004, "CS", photometric),
        0x00280010: element(0x00280010, "US", us(side)),
        0x00280011: element(0x00280011, "US", us(side)),
        0x00280100: element(0x00280100, "US", us(bits)),
        0x00280101: element(0x00280101, "US", us(stored)),
        0x00280102: element(0x00280102, "US", us(stored - 1)),
        0x00280103: element(0x00280103, "US", us(0)),
        0x7FE00010: element(0x7FE00010, "OW" if bits == 16 else "OB", pixels),
    }
    if colour:
        made[0x00280006] = element(0x00280006, "US", us(0))
    if frames > 1:
        made[0x00280008] = element(0x00280008, "IS", str(frames).encode())
    return made
