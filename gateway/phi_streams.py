"""What compressed pictures and other bytes carry besides pixels, for the audit: metadata, comments, text.

References
----------
PS3.5 Annex G (RLE); ISO/IEC 10918-1 B (JPEG markers), 14495-1 (JPEG-LS), 15444-1 A (JPEG 2000 codestream) and I (JP2
boxes); PNG, 3rd edition.
"""

from __future__ import annotations

import itertools
import re
import struct
from collections.abc import Iterator

_SCAN_END = re.compile(rb"\xff[\x80-\xcf\xd8-\xfe]", re.DOTALL)
_TEXT = re.compile(rb"[\x20-\x7e]{6,}")
_WORDS = re.compile(rb"[A-Za-z]{3,}[ ,;:^_=@/.-]{1,2}[A-Za-z]{3,}")
_SURE_WORDS = re.compile(rb"(?:[A-Z]?[a-z]{3,}|[A-Z]{4,})[ ,;:^_=@/.-]{1,2}(?:[A-Z]?[a-z]{3,}|[A-Z]{4,})")
"""In one of 300 million places of random bytes."""
_PICTURE_CHUNKS = frozenset(
    [
        *(b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"cHRM", b"gAMA", b"sBIT", b"sRGB", b"cICP", b"bKGD", b"hIST"),
        *(b"pHYs", b"sPLT", b"acTL", b"fcTL", b"fdAT", b"iCCP"),
    ]
)
_PLAIN_BOXES = frozenset([b"jP  ", b"ftyp", b"jp2h", b"jp2c", b"rreq"])

Leftover = tuple[str, bytes]
"""What it is, and its bytes."""


def leftovers(stream: bytes | memoryview) -> Iterator[Leftover]:
    """What a JPEG, JPEG-LS or JPEG 2000 stream carries besides the picture; other streams are searched for words."""
    view = memoryview(stream)
    start = bytes(view[:8])
    if start[:2] == b"\xff\xd8":
        yield from _of_jpeg(view)
    elif start[:4] == b"\xff\x4f\xff\x51":
        yield from _of_codestream(view)
    elif start[4:8] == b"jP  ":
        yield from _of_jp2(view)
    else:
        text = next((run.group() for run in _TEXT.finditer(view) if _SURE_WORDS.search(run.group())), b"")
        if text:
            yield "text between pixels", text


def _of_jpeg(view: memoryview) -> Iterator[Leftover]:
    position = 2
    while position + 4 <= len(view):
        if view[position] != 0xFF:
            yield "bytes that are no JPEG", bytes(view[position : position + 64])
            return
        marker = view[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        if marker == 0xD9:
            break
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:
            position += 2
            continue
        end = position + 2 + int.from_bytes(view[position + 2 : position + 4], "big")
        name = _jpeg_metadata(marker, bytes(view[position + 4 : min(end, position + 68)]), end - position - 4)
        if name:
            yield name, bytes(view[position + 4 : end])
        position = end
        if marker == 0xDA:
            found = _SCAN_END.search(view, end)
            if found is None:
                return
            position = found.start()
    yield from _behind(view, position + 2)


def _jpeg_metadata(marker: int, payload: bytes, length: int) -> str:
    """What a segment is if it is not needed to decode: APPn, JPGn and COM but for JFIF, Adobe and colour transforms."""
    if marker == 0xFE:
        return "JPEG comment"
    if not (0xE0 <= marker <= 0xEF or 0xF0 <= marker <= 0xF6 or 0xF9 <= marker <= 0xFD):
        return ""
    if (marker, payload[:5]) == (0xE0, b"JFIF\x00") and length == 14:
        return ""
    if (marker, payload[:5]) == (0xEE, b"Adobe") and length == 12:
        return ""
    if (marker, payload[:4]) == (0xE8, b"mrfx") and length == 5:
        return ""
    if payload.startswith((b"Exif\x00", b"http://ns.adobe.com/")):
        return "EXIF" if payload.startswith(b"Exif") else "XMP"
    return f"JPEG APP{marker - 0xE0}" if marker <= 0xEF else "JPEG extension"


def _of_codestream(view: memoryview) -> Iterator[Leftover]:
    position, tile_end, in_tile = 2, 0, False
    while position + 4 <= len(view):
        marker, length = struct.unpack_from(">HH", view, position)
        if marker == 0xFFD9:
            yield from _behind(view, position + 2)
            return
        if marker == 0xFF93:  # data: to the next tile-part, or to the end of the codestream
            if tile_end <= position:
                end = bytes(view[position:]).rfind(b"\xff\xd9")
                if end >= 0:
                    yield from _behind(view, position + end + 2)
                return
            position, in_tile = tile_end, False
            continue
        if marker < 0xFF4F or length < 2:
            yield "bytes that are no JPEG 2000", bytes(view[position : position + 64])
            return
        if marker == 0xFF90 and not in_tile:
            parts = struct.unpack_from(">L", view, position + 6)[0] if position + 10 <= len(view) else 0
            tile_end, in_tile = position + parts if parts else 0, True
        if marker == 0xFF64 and any(view[position + 4 : position + 2 + length]):
            yield "JPEG 2000 comment", bytes(view[position + 6 : position + 2 + length])
        position += 2 + length


def _of_jp2(view: memoryview) -> Iterator[Leftover]:
    position = 0
    while position + 8 <= len(view):
        length, kind = struct.unpack_from(">L4s", view, position)
        header = 8
        if length == 1 and position + 16 <= len(view):
            length, header = struct.unpack_from(">Q", view, position + 8)[0], 16
        end = len(view) if length == 0 else position + length
        if kind == b"jp2c":
            yield from _of_codestream(view[position + header : end])
        elif kind not in _PLAIN_BOXES:
            yield "JP2 box", bytes(view[position + header : end])
        if end <= position:
            return
        position = end


def of_rle(stream: bytes | memoryview, pixels: int) -> Iterator[Leftover]:
    """What is behind the last byte that an RLE stream needs (PS3.5 Annex G): each segment is one byte of each pixel."""
    view = memoryview(stream)
    if len(view) < 64 or not pixels:
        yield "bytes that are no RLE", bytes(view[:64])
        return
    segments, *offsets = struct.unpack_from("<16L", view)
    offsets = [*offsets[:segments], len(view)]
    for start, end in itertools.pairwise(offsets):
        position, made = start, 0
        while made < pixels and position < end:
            control = view[position]
            if control < 128:
                position, made = position + control + 2, made + control + 1
            else:
                position, made = position + (2 if control > 128 else 1), made + (257 - control if control > 128 else 0)
        rest = bytes(view[position:end])
        if len(rest) > 2 or rest.strip(b"\x00\x80"):
            yield "trailing bytes", rest
            return


def _behind(view: memoryview, position: int) -> Iterator[Leftover]:
    """Bytes behind the end of a stream; zeros may fill it to an even length."""
    rest = bytes(view[position:])
    if len(rest) > 2 or rest.strip(b"\x00"):
        yield "trailing bytes", rest


def of_png(stream: bytes) -> Iterator[Leftover]:
    """Chunks of a PNG that hold text, times or EXIF, and what is behind its end."""
    position = 8
    while position + 12 <= len(stream):
        length, kind = struct.unpack_from(">L4s", stream, position)
        if kind not in _PICTURE_CHUNKS:
            yield f"PNG {kind.decode('ascii', 'replace')}", stream[position + 8 : position + 8 + length]
        position += 12 + length
        if kind == b"IEND":
            break
    yield from _behind(memoryview(stream), position)


def words_in(value: bytes) -> bytes:
    """The first run of printable bytes with two words side by side; empty if there is none.

    Ramps of a palette, which run through the letters, and the four-letter signatures of a profile are not words.
    """
    for run in _TEXT.finditer(value):
        if _WORDS.search(run.group()):
            return run.group()
    return b""


def texts_in(value: bytes) -> Iterator[str]:
    """Runs of printable bytes, one after the other, as 8 bits a character and as 16."""
    for run in _TEXT.finditer(value):
        yield run.group().decode("ascii")
    for run in re.finditer(rb"(?:[\x20-\x7e]\x00){6,}", value):
        yield run.group().decode("utf-16-le")
