"""What a compressed frame says of itself, read from its header before any decoder sees it.

A decoder allocates what the codestream's own header asks for, so the header is read first and held against *Rows*,
*Columns* and *Samples per Pixel*. The header also decides the colour space, on which the data set is often wrong.

References
----------
ITU-T T.81 Annex B (JPEG markers), ITU-T T.871 (JFIF), ITU-T T.872 6.5.3 (Adobe APP14), ITU-T T.87 C.2.2 (JPEG-LS),
ITU-T T.800 Annex A and I (JPEG 2000 codestream and JP2).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from models.errors import PixelError

_SOF = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7})
_STANDALONE = frozenset({0x01, 0xD8, *range(0xD0, 0xD8)})
_SOS, _EOI, _APP0, _APP14 = 0xDA, 0xD9, 0xE0, 0xEE
_JP2_SIGNATURE = b"\x00\x00\x00\x0cjP  \r\n\x87\n"
_YCBCR_IDS, _RGB_IDS = (1, 2, 3), (0x52, 0x47, 0x42)


@dataclass(frozen=True, slots=True, kw_only=True)
class JpegHeader:
    """Header of a JPEG (ITU-T T.81) or JPEG-LS (ITU-T T.87) codestream."""

    frame_marker: int
    """Second byte of the SOF marker: 0xC0 baseline, 0xC1 extended, 0xC2 progressive, 0xC3 lossless, 0xF7 JPEG-LS."""
    precision: int
    rows: int
    columns: int
    component_ids: tuple[int, ...]
    subsampled: bool
    """True where the components do not all share one sampling grid."""
    has_jfif: bool
    adobe_transform: int | None
    """Colour transform of the Adobe APP14 segment (0 none, 1 YCbCr, 2 YCCK); None where there is no such segment."""
    application_segments: tuple[tuple[int, int], ...]
    """(start, stop) in bytes of the JFIF and Adobe segments, marker included."""

    @property
    def is_lossless_process(self) -> bool:
        return self.frame_marker == 0xC3

    def is_ycbcr(self, photometric_interpretation: str) -> bool:
        """Whether three components are YCbCr rather than RGB.

        The codestream's own marks come first: the data set is wrong more often (a camera's JPEG wrapped as *RGB*).
        Where JFIF (YCbCr by definition) and Adobe (no transform) contradict each other, and where there is no mark,
        (0028,0004) *Photometric Interpretation* decides. A subsampled picture is YCbCr: nobody subsamples green.
        """
        says_ycbcr = photometric_interpretation.startswith("YBR")
        if self.adobe_transform == 0 and self.has_jfif:
            return says_ycbcr or self.subsampled
        if self.adobe_transform is not None:
            return self.adobe_transform != 0
        if self.has_jfif or self.subsampled:
            return True
        if self.component_ids == _RGB_IDS:
            return False
        return says_ycbcr

    @property
    def libjpeg_takes_for_ycbcr(self) -> bool:
        """What libjpeg assumes of three components (``default_decompress_parms`` in its ``jdapimin.c``)."""
        if self.has_jfif:
            return True
        if self.adobe_transform is not None:
            return self.adobe_transform != 0
        return self.component_ids != _RGB_IDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Jpeg2000Header:
    """Header of a JPEG 2000 or High-Throughput JPEG 2000 codestream."""

    rows: int
    columns: int
    components: int
    precision: int
    is_signed: bool
    subsampled: bool
    multiple_component_transform: bool
    """True where the decoder itself turns the components back into RGB (ICT or RCT)."""
    decomposition_levels: int
    in_jp2: bool
    """True inside the JP2 container, which DICOM forbids and some senders use."""


def _segments(codestream: bytes) -> Iterator[tuple[int, int, int]]:
    """Give (marker, start, stop) of each marker segment up to the first scan; the marker itself is included."""
    position, end = 2, len(codestream)
    while position + 4 <= end:
        if codestream[position] != 0xFF:
            raise PixelError(f"JPEG header is broken at byte {position}: no marker where one is due")
        marker = codestream[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        if marker in _STANDALONE:
            position += 2
            continue
        if marker == _EOI:
            return
        length = int.from_bytes(codestream[position + 2 : position + 4], "big")
        stop = position + 2 + length
        if length < 2 or stop > end:
            raise PixelError(f"JPEG header is broken at byte {position}: a segment of {length} bytes does not fit")
        yield marker, position, stop
        if marker == _SOS:
            return
        position = stop


def read_jpeg_header(codestream: bytes) -> JpegHeader:
    """Read the header of a JPEG or JPEG-LS codestream.

    Raises
    ------
    PixelError
        No start of image, a broken segment, or no start of frame before the first scan.
    """
    if codestream[:2] != b"\xff\xd8":
        raise PixelError("compressed frame is no JPEG: it does not start with the SOI marker FFD8")
    has_jfif, adobe_transform, frame = False, None, None
    marks: list[tuple[int, int]] = []
    for marker, start, stop in _segments(codestream):
        body = codestream[start + 4 : stop]
        if marker == _APP0 and body[:5] == b"JFIF\0":
            has_jfif = True
            marks.append((start, stop))
        elif marker == _APP14 and body[:5] == b"Adobe" and len(body) >= 12:
            adobe_transform = body[11]
            marks.append((start, stop))
        elif marker in _SOF and frame is None:
            frame = marker, body
    if frame is None:
        raise PixelError("JPEG frame has no start-of-frame marker before its first scan")
    marker, body = frame
    count = body[5] if len(body) > 5 else 0
    if count == 0 or len(body) < 6 + 3 * count:
        raise PixelError("JPEG start-of-frame segment is too short for its components")
    precision, rows, columns = struct.unpack(">BHH", body[:5])
    components = [body[6 + 3 * index : 9 + 3 * index] for index in range(count)]
    return JpegHeader(
        frame_marker=marker,
        precision=precision,
        rows=rows,
        columns=columns,
        component_ids=tuple(component[0] for component in components),
        subsampled=len({component[1] for component in components}) > 1,
        has_jfif=has_jfif,
        adobe_transform=adobe_transform,
        application_segments=tuple(marks),
    )


def with_colour_mark(codestream: bytes, header: JpegHeader, *, ycbcr: bool) -> bytes:
    """Copy a JPEG with its JFIF and Adobe segments replaced by one Adobe segment that states the colour space.

    libjpeg believes these segments and nothing else, so this is how a decoder is told the truth by public means.
    """
    adobe = b"\xff\xee" + struct.pack(">H5sHHHB", 14, b"Adobe", 100, 0, 0, 1 if ycbcr else 0)
    parts, position = [codestream[:2], adobe], 2
    for start, stop in header.application_segments:
        parts.append(codestream[position:start])
        position = stop
    parts.append(codestream[position:])
    return b"".join(parts)


def _jp2_codestream_offset(frame: bytes) -> int:
    """Find the contiguous codestream box of a JP2 file (T.800 I.5.4)."""
    position = 0
    while position + 8 <= len(frame):
        length = int.from_bytes(frame[position : position + 4], "big")
        kind, header = frame[position + 4 : position + 8], 8
        if length == 1:
            length, header = int.from_bytes(frame[position + 8 : position + 16], "big"), 16
        if kind == b"jp2c":
            return position + header
        if length < header:
            break
        position += length
    raise PixelError("JP2 container holds no codestream box")


def read_jpeg2000_header(frame: bytes) -> Jpeg2000Header:
    """Read the SIZ and COD segments of a JPEG 2000 codestream, raw or in a JP2 container.

    Raises
    ------
    PixelError
        No codestream, or one whose SIZ or COD segment is missing or too short.
    """
    in_jp2 = frame.startswith(_JP2_SIGNATURE)
    start = _jp2_codestream_offset(frame) if in_jp2 else 0
    if frame[start : start + 4] != b"\xff\x4f\xff\x51":
        raise PixelError("compressed frame is no JPEG 2000: it does not start with the SOC and SIZ markers")
    siz = frame[start + 4 : start + 4 + int.from_bytes(frame[start + 4 : start + 6], "big")]
    if len(siz) < 41:
        raise PixelError("JPEG 2000 SIZ segment is too short")
    _, _, right, bottom, left, top = struct.unpack(">HHIIII", siz[:20])
    components = int.from_bytes(siz[36:38], "big")
    if components == 0 or len(siz) < 38 + 3 * components:
        raise PixelError("JPEG 2000 SIZ segment is too short for its components")
    depths = {siz[38 + 3 * index] for index in range(components)}
    steps = {siz[39 + 3 * index : 41 + 3 * index] for index in range(components)}
    if len(depths) != 1:
        raise PixelError("JPEG 2000 components differ in bit depth; one depth for all is expected")
    depth = depths.pop()
    transform, levels = _coding_style(frame, start + 4 + len(siz))
    return Jpeg2000Header(
        rows=bottom - top,
        columns=right - left,
        components=components,
        precision=(depth & 0x7F) + 1,
        is_signed=bool(depth & 0x80),
        subsampled=steps != {b"\x01\x01"},
        multiple_component_transform=transform,
        decomposition_levels=levels,
        in_jp2=in_jp2,
    )


def _coding_style(frame: bytes, position: int) -> tuple[bool, int]:
    """Read (multiple component transform, decomposition levels) from the COD segment (T.800 table A.14)."""
    while position + 12 <= len(frame) and frame[position] == 0xFF:
        if frame[position + 1] == 0x52:
            return frame[position + 8] == 1, frame[position + 9]
        length = int.from_bytes(frame[position + 2 : position + 4], "big")
        if length < 2:
            break
        position += 2 + length
    raise PixelError("JPEG 2000 codestream has no COD segment in its main header")
