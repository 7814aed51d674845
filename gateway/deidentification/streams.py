"""Metadata inside encapsulated pixel data: removed without decoding, so that no pixel changes.

JPEG and JPEG-LS streams (ISO/IEC 10918-1 Annex B, 14495-1 Annex C) carry names, dates and thumbnails in APPn and COM
segments and after the end of the image; JPEG 2000 codestreams (ISO/IEC 15444-1 Annex A) in COM segments. RLE (PS3.5
Annex G) has room in its header and behind its segments: it is packed anew, which is lossless.
"""

from __future__ import annotations

import functools
import itertools
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pydicom import uid

from gateway.errors import DeidentificationError

JPEG_SYNTAXES = frozenset([f"1.2.840.10008.1.2.4.{n}" for n in (*range(50, 67), 70, 80, 81)])
JPEG_2000_SYNTAXES = frozenset([f"1.2.840.10008.1.2.4.{n}" for n in (90, 91, 92, 93, 201, 202, 203)])
ENCAPSULATED_UNCOMPRESSED = "1.2.840.10008.1.2.1.98"

_SCAN_END = re.compile(rb"\xff[\x80-\xcf\xd8-\xfe]", re.DOTALL)
"""A marker after entropy-coded bytes: in JPEG, 0xFF is followed by 0; in JPEG-LS, by less than 0x80; RSTn go on."""
_STAND_ALONE = frozenset([0x01, *range(0xD0, 0xD8)])
_CODING = frozenset([*range(0xC0, 0xD0), 0xDA, 0xDB, 0xDC, 0xDD, 0xDE, 0xDF, 0xF7, 0xF8])
_APP0, _APP8, _APP14, _COM = 0xE0, 0xE8, 0xEE, 0xFE
_DQT, _DHT = 0xDB, 0xC4
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of frame headers, which name the quantization table of each component."""
_CODESTREAM_MARKERS = frozenset(
    [
        *(0xFF50, 0xFF51, 0xFF52, 0xFF53, 0xFF55, 0xFF56, 0xFF57, 0xFF58, 0xFF59, 0xFF5C, 0xFF5D, 0xFF5E, 0xFF5F),
        *(0xFF60, 0xFF61, 0xFF63, 0xFF64, 0xFF90, 0xFF91),  # ISO/IEC 15444-1 Table A.2
        *range(0xFF70, 0xFF7A),  # 15444-2: transforms over components
    ]
)

Pieces = list[bytes | memoryview]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How the pixels of one frame lie in memory."""

    rows: int
    columns: int
    samples: int
    bits_allocated: int
    photometric_interpretation: str = ""

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame, uncompressed."""
        return frame_bytes(
            [self.rows, self.columns, self.samples, self.bits_allocated, 1], self.photometric_interpretation
        )


def clean_encapsulated(
    value: bytes, transfer_syntax_uid: str, number_of_frames: int, layout: Layout | None = None
) -> bytes:
    """Encapsulated (7FE0,0010) *Pixel Data* with the metadata of every frame gone.

    Frames become one fragment each, behind an empty offset table. The bytes are copied once. RLE and uncompressed
    frames need the `layout`.

    Raises
    ------
    DeidentificationError
        If the streams cannot be walked, or their kind is not known: what cannot be read cannot be vouched for.
    """
    clean: Callable[[memoryview], Pieces]
    if transfer_syntax_uid == uid.RLELossless and layout is not None:
        clean = functools.partial(clean_rle, layout=layout)
    elif transfer_syntax_uid == ENCAPSULATED_UNCOMPRESSED and layout is not None:
        clean = functools.partial(_uncompressed, layout=layout)
    elif transfer_syntax_uid in JPEG_SYNTAXES:
        clean = clean_jpeg
    elif transfer_syntax_uid in JPEG_2000_SYNTAXES:
        clean = clean_jpeg_2000
    else:
        raise DeidentificationError(
            "pixel data in a transfer syntax that cannot be cleaned; expected native, RLE, JPEG, JPEG-LS or JPEG 2000"
        )
    try:
        frames = split_frames(value, number_of_frames)
        pieces: Pieces = [b"\xfe\xff\x00\xe0\x00\x00\x00\x00"]
        for frame in frames:
            cleaned = clean(frame)
            length = sum(len(piece) for piece in cleaned)
            pieces.append(b"\xfe\xff\x00\xe0" + struct.pack("<L", length + length % 2))
            pieces += cleaned
            if length % 2:
                pieces.append(b"\x00")
    except (struct.error, IndexError) as error:
        raise DeidentificationError("a compressed stream ends inside a segment; expected an end marker") from error
    return b"".join(pieces)


def _uncompressed(stream: memoryview, *, layout: Layout) -> Pieces:
    if len(stream) < layout.frame_bytes:
        raise DeidentificationError("an uncompressed frame is too short; expected rows x columns x samples")
    return [stream[: layout.frame_bytes]]


def clean_rle(stream: memoryview, *, layout: Layout) -> Pieces:
    """An RLE frame packed anew from its pixels: a header and segments with nothing beside them."""
    from rle.rle import decode_segment, encode_segment

    expected = layout.samples * (layout.bits_allocated // 8)
    (count, *offsets) = struct.unpack_from("<16L", stream)
    offsets = offsets[:count]
    if not count == expected > 0 or offsets != sorted(offsets) or not 64 <= offsets[0] <= offsets[-1] <= len(stream):
        raise DeidentificationError("an RLE header does not fit; expected one segment a byte of a pixel, in order")
    pixels = layout.rows * layout.columns
    if pixels < 1:
        raise DeidentificationError("RLE pixels without rows or columns; expected both")
    segments = []
    for start, end in zip(offsets, [*offsets[1:], len(stream)], strict=True):
        try:  # no-operation bytes let a run that reaches beyond the segment come to an end
            decoded = decode_segment(bytes(stream[start:end]) + b"\x80" * 130)
        except ValueError as error:
            raise DeidentificationError("an RLE segment cannot be unpacked; expected whole runs") from error
        if len(decoded) < pixels:
            raise DeidentificationError("an RLE segment is too short; expected rows x columns bytes")
        packed = encode_segment(bytes(decoded[:pixels]), layout.columns)
        segments.append(bytes(packed) + bytes(len(packed) % 2))
    starts = itertools.accumulate([64, *map(len, segments[:-1])])
    return [struct.pack(f"<L{count}L", count, *starts).ljust(64, b"\0"), *segments]


def split_frames(value: bytes, number_of_frames: int) -> list[memoryview]:
    """The compressed stream of each frame (PS3.5 A.4); copied only where a frame has several fragments."""
    view = memoryview(value)
    fragments: list[tuple[int, memoryview]] = []
    position = 0
    while position + 8 <= len(view) and value[position : position + 4] == b"\xfe\xff\x00\xe0":
        (length,) = struct.unpack_from("<L", value, position + 4)
        if position + 8 + length > len(view):
            raise DeidentificationError("a fragment is longer than the pixel data; expected items one after another")
        fragments.append((position, view[position + 8 : position + 8 + length]))
        position += 8 + length
    if len(fragments) < 1 + number_of_frames:
        raise DeidentificationError("too few fragments; expected an offset table and at least one fragment a frame")
    table, rest = fragments[0][1], fragments[1:]
    if len(rest) == number_of_frames:
        return [fragment for _, fragment in rest]
    if number_of_frames == 1:
        return [memoryview(b"".join(fragment for _, fragment in rest))]
    if len(table) != 4 * number_of_frames:
        raise DeidentificationError("frames of several fragments; expected an offset table with an entry a frame")
    starts = [rest[0][0] + offset for offset in struct.unpack(f"<{number_of_frames}L", table)]
    ends = [*starts[1:], len(value)]
    frames = [
        memoryview(b"".join(fragment for at, fragment in rest if start <= at < end))
        for start, end in zip(starts, ends, strict=True)
    ]
    if starts != sorted(starts) or not all(len(frame) for frame in frames):
        raise DeidentificationError("the offset table does not fit; expected the place of each frame's first fragment")
    return frames


def clean_jpeg(stream: memoryview) -> Pieces:
    """Pieces of a JPEG or JPEG-LS stream without APPn and COM segments and without what follows its end.

    JFIF's APP0 stays without its thumbnail, Adobe's APP14 and the colour transform of JPEG-LS's APP8 stay: they say how
    the components are to be read. Tables that no component uses go.
    """
    if bytes(stream[:2]) != b"\xff\xd8":
        raise DeidentificationError("a JPEG stream begins with other bytes; expected FFD8")
    kept = _Ranges(stream, 2)
    tables = _Tables(kept)
    position = 2
    while True:
        if stream[position] != 0xFF:
            raise DeidentificationError("a JPEG stream has other bytes between its segments; expected a marker")
        while stream[position + 1] == 0xFF:
            position += 1
        marker = stream[position + 1]
        if marker == 0xD9:
            return tables.finish(position + 2)
        if marker in _STAND_ALONE:
            position += 2
            continue
        end = position + 2 + int.from_bytes(stream[position + 2 : position + 4], "big")
        if end > len(stream) or end < position + 4:
            raise DeidentificationError(
                "a JPEG segment is longer than its stream, or shorter than its length; expected at least two bytes"
            )
        if marker not in _CODING:
            if not (0xE0 <= marker <= 0xEF or 0xF0 <= marker <= _COM):
                raise DeidentificationError("a JPEG stream has a reserved marker; expected those of ISO/IEC 10918-1")
            kept.replace(position, end, _application_segment(marker, bytes(stream[position + 4 : end])))
        else:
            tables.note(marker, position, end)
        position = end
        if marker == 0xDA:
            found = _SCAN_END.search(stream, end)
            if found is None:  # cut off, or without its end marker: nothing can follow
                return tables.finish(len(stream))
            position = found.start()


class _Tables:
    """Quantization and Huffman tables of a JPEG stream, and which of them its components use (10918-1 B.2)."""

    __slots__ = ("_huffman", "_kept", "_quantization", "_segments")

    def __init__(self, kept: _Ranges) -> None:
        self._kept = kept
        self._segments: list[tuple[int, int]] = []
        self._quantization: set[int] = set()
        self._huffman: set[int] = set()

    def note(self, marker: int, start: int, end: int) -> None:
        """Take note of the segment with these bounds."""
        payload = self._kept.bytes_between(start + 4, end)
        if marker in (_DQT, _DHT):
            self._segments.append((marker, self._kept.set_aside(start, end)))
        elif marker in _FRAMES:
            self._quantization.update(payload[8::3])
        elif marker == 0xDA:
            for selector in payload[2 : 1 + 2 * payload[0] : 2]:
                self._huffman |= {selector >> 4, selector & 15 | 16}

    def finish(self, end: int) -> Pieces:
        """All that is kept of the stream, up to `end`."""
        for marker, place in self._segments:
            segment = self._kept.piece(place)
            read, used = (
                (_quantization_tables, self._quantization) if marker == _DQT else (_huffman_tables, self._huffman)
            )
            tables = [table for key, table in read(segment[4:]) if key in used]
            if sum(map(len, tables)) + 4 == len(segment):
                continue
            content = b"".join(tables)
            header = bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big")
            self._kept.put_back(place, header + content if content else b"")
        return self._kept.finish(end)


def _quantization_tables(payload: bytes) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position < len(payload):
        size = 65 + 64 * (payload[position] >> 4)
        if position + size > len(payload) or payload[position] >> 4 > 1:
            raise DeidentificationError("a JPEG quantization table is cut off; expected 64 values")
        yield payload[position] & 15, payload[position : position + size]
        position += size


def _huffman_tables(payload: bytes) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position < len(payload):
        size = 17 + sum(payload[position + 1 : position + 17])
        if position + size > len(payload):
            raise DeidentificationError("a JPEG Huffman table is cut off; expected as many values as its counts say")
        yield payload[position] & 31, payload[position : position + size]
        position += size


def _application_segment(marker: int, payload: bytes) -> bytes:
    """What stays of an APPn, JPGn or COM segment: all of it made anew, nothing copied but the numbers in it."""
    if marker == _APP0 and payload[:5] == b"JFIF\x00" and len(payload) >= 14:
        return b"\xff\xe0\x00\x10" + payload[:12] + b"\x00\x00"
    if marker == _APP14 and payload[:5] == b"Adobe" and len(payload) >= 12:
        return b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + payload[11:12]
    if marker == _APP8 and payload[:4] == b"mrfx" and len(payload) == 5:
        return b"\xff\xe8\x00\x07" + payload
    return b""


def clean_jpeg_2000(stream: memoryview) -> Pieces:
    """Pieces of a JPEG 2000 or HTJ2K codestream with its comments blanked, no byte moved, and nothing behind its end.

    A JP2 file in place of a codestream loses its boxes.
    """
    if bytes(stream[4:8]) == b"jP  ":
        stream = _codestream_of_jp2(stream)
    if bytes(stream[:4]) != b"\xff\x4f\xff\x51":
        raise DeidentificationError("a JPEG 2000 stream begins with other bytes; expected FF4F FF51 or a JP2 file")
    kept = _Ranges(stream, 2)
    position, tile_start, tile_length = 2, 0, 0
    while True:
        marker, length = struct.unpack_from(">HH", stream, position) if position + 4 <= len(stream) else (0xFFD9, 0)
        if marker == 0xFFD9:
            return kept.finish(min(position + 2, len(stream)))
        if marker == 0xFF93:  # start of data: on to the next tile-part
            if tile_length == 0:  # the last tile-part runs to the end of the codestream
                return kept.finish(_end_of_codestream(stream, position))
            if tile_start + tile_length < position + 2:
                raise DeidentificationError("a JPEG 2000 tile-part ends inside its header; expected a greater length")
            position = tile_start + tile_length
            continue
        if marker not in _CODESTREAM_MARKERS or position + 2 + length > len(stream) or length < 2:
            raise DeidentificationError(
                "a JPEG 2000 segment is not of the standard; expected a marker of ISO/IEC 15444-1 or -2"
            )
        if marker == 0xFF90:
            tile_start, tile_length = position, struct.unpack_from(">L", stream, position + 6)[0]
            if tile_length and tile_length < 14:
                raise DeidentificationError(
                    "a JPEG 2000 tile-part is shorter than its header; expected 14 bytes or more"
                )
        if marker == 0xFF64:
            kept.replace(position + 4, position + 2 + length, bytes(length - 2))
        position += 2 + length


def _end_of_codestream(stream: memoryview, position: int) -> int:
    """Where the last tile-part ends: in packet data 0xFF is never followed by more than 0x8F (15444-1 B.10.1)."""
    found = re.compile(rb"\xff\xd9").search(stream, position)
    return found.end() if found else len(stream)


def _codestream_of_jp2(stream: memoryview) -> memoryview:
    position = 0
    while position + 8 <= len(stream):
        length, kind = struct.unpack_from(">L4s", stream, position)
        header = 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", stream, position + 8)
            header = 16
        end = len(stream) if length == 0 else position + length
        if kind == b"jp2c":
            return stream[position + header : end]
        if length and length < header:
            break
        position = end
    raise DeidentificationError("a JP2 file has no codestream; expected a box jp2c")


class _Ranges:
    """Collects what is kept of a stream as slices that share its memory."""

    __slots__ = ("_kept", "_pieces", "_stream")

    def __init__(self, stream: memoryview, start: int) -> None:
        self._stream = stream
        self._pieces: Pieces = [stream[:start]]
        self._kept = start

    def replace(self, start: int, end: int, by: bytes) -> None:
        self._pieces += [self._stream[self._kept : start], by]
        self._kept = end

    def bytes_between(self, start: int, end: int) -> bytes:
        return bytes(self._stream[start:end])

    def set_aside(self, start: int, end: int) -> int:
        """The place of a range that may still be replaced."""
        self.replace(start, end, self.bytes_between(start, end))
        return len(self._pieces) - 1

    def piece(self, place: int) -> bytes:
        return bytes(self._pieces[place])

    def put_back(self, place: int, by: bytes) -> None:
        self._pieces[place] = by

    def finish(self, end: int) -> Pieces:
        self._pieces.append(self._stream[self._kept : end])
        return [piece for piece in self._pieces if len(piece)]


def trim_native(value: bytes, expected_bytes: int) -> bytes:
    """Native pixel data without bytes behind the last pixel but the padding to an even length."""
    expected_bytes += expected_bytes % 2
    return value if len(value) <= expected_bytes else value[:expected_bytes]


def frame_bytes(values: Sequence[int], photometric_interpretation: str) -> int:
    """Bytes of native pixel data: rows, columns, samples per pixel, bits allocated, frames (PS3.5 8.1.1)."""
    rows, columns, samples, bits, frames = values
    samples_in_all = rows * columns * samples * frames
    if photometric_interpretation == "YBR_FULL_422":
        samples_in_all = rows * columns * 2 * frames
    return (samples_in_all * bits + 7) // 8
