"""One stored frame to its samples, whatever the transfer syntax.

Every decoder here is permissively licensed: Pillow (libjpeg-turbo), pyjpegls (CharLS), pylibjpeg-openjpeg,
pylibjpeg-rle and GDCM. ``pylibjpeg-libjpeg`` is GPL and is never asked, even where it is installed: pydicom's own
choice of decoder is therefore not used.

What comes out are raw codes: unsigned, sign not yet extended, bits above the value not yet masked.

References
----------
PS3.5 Annex A (transfer syntaxes), 8.2 (encapsulated pixel data), Annex G (RLE).
"""

from __future__ import annotations

import io
import zlib
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Jpeg2KImagePlugin, JpegImagePlugin

from models.codestreams import JpegHeader, read_jpeg2000_header, read_jpeg_header, with_colour_mark
from models.errors import PixelError, UnsafePixelError

Codes = NDArray[Any]
"""uint8 or uint16 [rows, columns] or [rows, columns, 3]."""

BIG_ENDIAN = "1.2.840.10008.1.2.2"
NATIVE = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", BIG_ENDIAN})
ENCAPSULATED_NATIVE = "1.2.840.10008.1.2.1.98"
DEFLATED_FRAME = "1.2.840.10008.1.2.8.1"
RLE = "1.2.840.10008.1.2.5"
JPEG = frozenset(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 53, 55, 57, 70))
JPEG_LS = frozenset(f"1.2.840.10008.1.2.4.{number}" for number in (80, 81))
JPEG_2000 = frozenset(f"1.2.840.10008.1.2.4.{number}" for number in (90, 91, 201, 202, 203))
ENCAPSULATED = JPEG | JPEG_LS | JPEG_2000 | {RLE, DEFLATED_FRAME, ENCAPSULATED_NATIVE}

_EIGHT = 8
_RLE_HEADER_BYTES = 64
_RLE_LARGEST_GAIN = 64
"""Bytes that one byte of an RLE segment can stand for: two make a run of up to 128 (PS3.5 G.3.1)."""
_FAILED = (ValueError, TypeError, RuntimeError, OSError, SyntaxError, MemoryError, EOFError, OverflowError, KeyError)
"""What the decoders raise on a broken codestream (Pillow's plug-ins do raise SyntaxError)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How the frames of an image are stored, checked (PS3.3 C.7.6.3)."""

    transfer_syntax_uid: str
    rows: int
    columns: int
    samples_per_pixel: int
    photometric_interpretation: str
    bits_allocated: int
    bits_stored: int
    high_bit: int
    is_signed: bool
    by_plane: bool
    """(0028,0006) *Planar Configuration* is 1."""
    frame_count: int
    is_ow: bool
    """Pixel Data have VR OW, which in big endian swaps the bytes of 8 bit samples too."""

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint8 if self.bits_allocated == _EIGHT else np.uint16)

    @property
    def samples_a_frame(self) -> int:
        """Samples stored in one native frame: YBR_FULL_422 stores two for each pixel (PS3.3 C.7.6.3.1.2)."""
        if self.samples_per_pixel == 3 and self.photometric_interpretation == "YBR_FULL_422":
            return self.rows * (self.columns + self.columns % 2) * 2
        return self.rows * self.columns * self.samples_per_pixel

    @property
    def frame_bytes(self) -> int:
        """Size of one native frame in bytes."""
        return self.samples_a_frame * self.bits_allocated // _EIGHT


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """One frame's samples."""

    codes: Codes
    """[rows, columns] or [rows, columns, 3]; smaller than the stored grid where decoded at reduced scale."""
    precision: int
    """Bits a sample that the codestream itself states; *Bits Stored* where there is no codestream."""
    is_ycbcr: bool
    """Three components are YCbCr (full range) and still have to become RGB."""


def decode_native(layout: Layout, pixels: bytes, frame_index: int) -> Decoded:
    """Read frame `frame_index` of uncompressed pixel data, all frames of which are in `pixels`.

    Raises
    ------
    PixelError
        `pixels` ends before the frame does.
    """
    start, size = frame_index * layout.frame_bytes, layout.frame_bytes
    big_endian = layout.transfer_syntax_uid == BIG_ENDIAN
    swapped = big_endian and layout.bits_allocated == _EIGHT and layout.is_ow
    available = len(pixels) - start
    if available < size:
        raise PixelError(
            f"Pixel Data are too short: {len(pixels)} bytes found, {size * layout.frame_count} expected for "
            f"{layout.frame_count} frame(s)"
        )
    if swapped:
        first = start // 2 * 2
        words = np.frombuffer(pixels[first : start + size + (start + size) % 2], dtype=np.uint8)
        samples = words[: len(words) // 2 * 2].reshape(-1, 2)[:, ::-1].reshape(-1)[start - first :][:size]
    else:
        dtype = layout.dtype.newbyteorder(">" if big_endian else "<")
        samples = np.frombuffer(pixels, dtype=dtype, count=layout.samples_a_frame, offset=start)
    return Decoded(codes=_arrange(layout, samples), precision=layout.bits_stored, is_ycbcr=_says_ycbcr(layout))


def decode_encapsulated(layout: Layout, frame: bytes, *, least_side: int | None) -> Decoded:
    """Decode one encapsulated frame, in this process; :mod:`models.decoding` has it done in one with limits.

    Parameters
    ----------
    layout
        What the data set says of the frame.
    frame
        The frame's codestream, its fragments joined.
    least_side
        Colour JPEG and JPEG 2000 may be decoded at a reduced scale that keeps both sides at least this long.

    Raises
    ------
    PixelError
        The codestream is broken, or is not what `layout` says.
    UnsafePixelError
        It claims more than `layout` says, or than it can hold.
    MemoryError
        The limit of this process.
    """
    syntax = layout.transfer_syntax_uid
    if syntax in JPEG:
        return _jpeg(layout, frame, least_side)
    if syntax in JPEG_LS:
        return _jpeg_ls(layout, frame)
    if syntax in JPEG_2000:
        return _jpeg_2000(layout, frame, least_side)
    if syntax == RLE:
        return _rle(layout, frame)
    if syntax == DEFLATED_FRAME:
        frame = _inflated(frame, layout.frame_bytes)
    if len(frame) < layout.frame_bytes:
        raise PixelError(f"the frame is too short: {len(frame)} bytes found, {layout.frame_bytes} expected")
    samples = np.frombuffer(frame, dtype=layout.dtype.newbyteorder("<"), count=layout.samples_a_frame)
    return Decoded(codes=_arrange(layout, samples), precision=layout.bits_stored, is_ycbcr=_says_ycbcr(layout))


def _says_ycbcr(layout: Layout) -> bool:
    return layout.photometric_interpretation in {"YBR_FULL", "YBR_FULL_422"}


def _arrange(layout: Layout, samples: NDArray[Any]) -> Codes:
    """Shape a flat run of native samples to [rows, columns] or [rows, columns, 3]."""
    rows, columns = layout.rows, layout.columns
    if layout.samples_per_pixel == 1:
        return samples.reshape(rows, columns)
    if layout.photometric_interpretation == "YBR_FULL_422":
        pairs = samples.reshape(rows, -1, 4)  # Y1 Y2 CB CR, PS3.3 C.7.6.3.1.2
        picture = np.empty((rows, pairs.shape[1] * 2, 3), dtype=samples.dtype)
        picture[:, 0::2, 0], picture[:, 1::2, 0] = pairs[..., 0], pairs[..., 1]
        picture[:, 0::2, 1:] = picture[:, 1::2, 1:] = pairs[..., 2:]
        return picture[:, :columns]
    if layout.by_plane:
        return samples.reshape(3, rows, columns).transpose(1, 2, 0)
    return samples.reshape(rows, columns, 3)


def _same_grid(layout: Layout, kind: str, rows: int, columns: int, components: int) -> None:
    """Refuse a codestream whose own header disagrees with the data set, before anything is allocated for it."""
    if (rows, columns) != (layout.rows, layout.columns):
        larger = rows > layout.rows or columns > layout.columns
        raise (UnsafePixelError if larger else PixelError)(
            f"the {kind} codestream has {rows} rows and {columns} columns, Rows and Columns say {layout.rows} and "
            f"{layout.columns}"
        )
    if components != layout.samples_per_pixel:
        raise PixelError(
            f"the {kind} codestream has {components} component(s), SamplesPerPixel says {layout.samples_per_pixel}"
        )


def _broken(kind: str, error: BaseException) -> PixelError:
    if isinstance(error, MemoryError):
        raise error  # the limit of the process
    return PixelError(f"the {kind} codestream cannot be decoded ({type(error).__name__})")


def _jpeg(layout: Layout, frame: bytes, least_side: int | None) -> Decoded:
    """JPEG: the process is taken from the codestream, since the transfer syntax may name another."""
    header = read_jpeg_header(frame)
    _same_grid(layout, "JPEG", header.rows, header.columns, len(header.component_ids))
    if not 2 <= header.precision <= 16:
        raise PixelError(f"the JPEG codestream has {header.precision} bits a sample, 2 to 16 are expected")
    ycbcr = layout.samples_per_pixel > 1 and header.is_ycbcr(layout.photometric_interpretation)
    if header.is_lossless_process:
        # Lossless JPEG defines no colour transform, and encoders do not mark one: the data set decides.
        return Decoded(codes=_gdcm(layout, frame, header), precision=header.precision, is_ycbcr=_says_ycbcr(layout))
    if header.frame_marker not in {0xC0, 0xC1, 0xC2}:
        raise PixelError(f"JPEG process SOF {header.frame_marker:02X} has no decoder; SOF C0 to C3 have")
    if header.precision == _EIGHT:
        return Decoded(codes=_pillow_jpeg(layout, frame, header, least_side, ycbcr), precision=_EIGHT, is_ycbcr=False)
    return Decoded(codes=_gdcm(layout, frame, header), precision=header.precision, is_ycbcr=ycbcr)


def _pillow_jpeg(layout: Layout, frame: bytes, header: JpegHeader, least_side: int | None, ycbcr: bool) -> Codes:
    """Eight bit DCT JPEG by libjpeg-turbo, colour at a reduced DCT scale where that is enough.

    The plug-in class is called itself: ``Image.open`` would try others, and its pixel limit is below ours.
    """
    if layout.samples_per_pixel == 3 and ycbcr != header.libjpeg_takes_for_ycbcr:
        frame = with_colour_mark(frame, header, ycbcr=ycbcr)
    mode = "L" if layout.samples_per_pixel == 1 else "RGB"
    try:
        with JpegImagePlugin.JpegImageFile(io.BytesIO(frame)) as picture:  # type: ignore[no-untyped-call]
            if picture.mode != mode:
                raise PixelError(f"the JPEG codestream is of mode {picture.mode}, {mode} is expected")
            if least_side is not None and mode == "RGB" and min(picture.size) >= 2 * least_side:
                picture.draft(mode, (least_side, least_side))
            return np.asarray(picture)
    except _FAILED as error:
        raise _broken("JPEG", error) from error


def _gdcm(layout: Layout, frame: bytes, header: JpegHeader) -> Codes:
    """Lossless JPEG and 12 bit DCT JPEG by GDCM, as coded: nothing is converted.

    The stream's colour marks are replaced by one that asks for no conversion; GDCM dies of marks that it does not know.
    It ends the process on some damaged streams, too: an exception thrown through libjpeg's C frames.
    """
    import gdcm

    for silence in (gdcm.Trace.WarningOff, gdcm.Trace.ErrorOff, gdcm.Trace.DebugOff):
        silence()
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(with_colour_mark(frame, header, ycbcr=False))
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((layout.columns, layout.rows, 1))
    image.SetDataElement(element)
    # Named RGB or MONOCHROME2 whatever it is, so that GDCM converts nothing.
    kind = gdcm.PhotometricInterpretation.MONOCHROME2
    if layout.samples_per_pixel > 1:
        kind = gdcm.PhotometricInterpretation.RGB
        image.SetPlanarConfiguration(0)
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    lossless, extended = gdcm.TransferSyntax.JPEGLosslessProcess14, gdcm.TransferSyntax.JPEGExtendedProcess2_4
    image.SetTransferSyntax(gdcm.TransferSyntax(lossless if header.is_lossless_process else extended))
    bits = _EIGHT if header.precision <= _EIGHT else 2 * _EIGHT
    image.SetPixelFormat(gdcm.PixelFormat(layout.samples_per_pixel, bits, header.precision, header.precision - 1, 0))
    try:
        content = image.GetBuffer()
    except _FAILED as error:
        raise _broken("JPEG", error) from error
    if content is None:
        raise PixelError("the JPEG codestream cannot be decoded")
    # GDCM gives its bytes as a str.
    return _shaped("JPEG", layout, content.encode("utf-8", "surrogateescape"), f"<u{bits // _EIGHT}")


def _shaped(kind: str, layout: Layout, content: bytes | bytearray, dtype: str, *, by_plane: bool = False) -> Codes:
    """Shape decoded bytes, after making sure that there are as many as expected."""
    count = layout.rows * layout.columns * layout.samples_per_pixel
    expected = count * np.dtype(dtype).itemsize
    if len(content) < expected:
        raise PixelError(f"the {kind} codestream gave {len(content)} bytes, {expected} are expected")
    samples = np.frombuffer(content, dtype=dtype, count=count)
    if layout.samples_per_pixel == 1:
        return samples.reshape(layout.rows, layout.columns)
    if by_plane:
        return samples.reshape(layout.samples_per_pixel, layout.rows, layout.columns).transpose(1, 2, 0)
    return samples.reshape(layout.rows, layout.columns, layout.samples_per_pixel)


def _jpeg_ls(layout: Layout, frame: bytes) -> Decoded:
    import jpeg_ls

    header = read_jpeg_header(frame)
    _same_grid(layout, "JPEG-LS", header.rows, header.columns, len(header.component_ids))
    if not frame.rstrip(b"\0").endswith(b"\xff\xd9"):
        # CharLS spends ten seconds on a stream that just stops, however small the picture
        raise PixelError("the JPEG-LS codestream is cut off: it does not end with the EOI marker FFD9")
    try:
        content, found = jpeg_ls.decode_pixel_data(frame)
    except _FAILED as error:
        raise _broken("JPEG-LS", error) from error
    by_plane = found["components"] > 1 and found["interleave_mode"] == 0
    dtype = "u1" if header.precision <= _EIGHT else "<u2"
    codes = _shaped("JPEG-LS", layout, content, dtype, by_plane=by_plane)
    return Decoded(codes=codes, precision=header.precision, is_ycbcr=_says_ycbcr(layout))


def _jpeg_2000(layout: Layout, frame: bytes, least_side: int | None) -> Decoded:
    """JPEG 2000 and High-Throughput JPEG 2000 by OpenJPEG."""
    import openjpeg

    header = read_jpeg2000_header(frame)
    _same_grid(layout, "JPEG 2000", header.rows, header.columns, header.components)
    if not 1 <= header.precision <= 16:
        raise PixelError(f"the JPEG 2000 codestream has {header.precision} bits a sample, at most 16 are expected")
    # The decoder undoes ICT and RCT itself. What is then left of YCbCr is what the data set names YBR_FULL.
    ycbcr = _says_ycbcr(layout) and not header.multiple_component_transform
    plain = header.components == 3 and header.precision == _EIGHT and not (header.is_signed or header.subsampled)
    if least_side is not None and plain and not header.in_jp2:
        reduction = min((min(header.rows, header.columns) // least_side).bit_length() - 1, header.decomposition_levels)
        if reduction > 0:
            return Decoded(codes=_pillow_jpeg_2000(frame, reduction), precision=_EIGHT, is_ycbcr=ycbcr)
    try:
        codes = openjpeg.decode(frame)
    except _FAILED as error:
        raise _broken("JPEG 2000", error) from error
    wanted = (layout.rows, layout.columns, 3)[: 2 if layout.samples_per_pixel == 1 else 3]
    if codes.shape != wanted:
        raise PixelError(f"the JPEG 2000 codestream gave an array of {codes.shape}, {wanted} is expected")
    return Decoded(codes=codes.view(f"u{codes.dtype.itemsize}"), precision=header.precision, is_ycbcr=ycbcr)


def _pillow_jpeg_2000(frame: bytes, reduction: int) -> Codes:
    """Decode without the `reduction` finest resolution levels, which is each side halved that often."""
    try:
        with Jpeg2KImagePlugin.Jpeg2KImageFile(io.BytesIO(frame)) as picture:  # type: ignore[no-untyped-call]
            if picture.mode != "RGB":
                raise PixelError(f"the JPEG 2000 codestream is of mode {picture.mode}, RGB is expected")
            picture.reduce = reduction  # the plug-in's documented interface
            picture.load()
            return np.asarray(picture)
    except _FAILED as error:
        raise _broken("JPEG 2000", error) from error


def _rle(layout: Layout, frame: bytes) -> Decoded:
    """RLE: one segment a byte of each sample, most significant first (PS3.5 Annex G).

    Decoded segment by segment: the package's whole-frame decoder ends in a Rust panic, which is no ``Exception``, where
    a segment holds more than it should.
    """
    from rle.rle import decode_segment

    width = layout.bits_allocated // _EIGHT
    expected = layout.samples_per_pixel * width
    found = int.from_bytes(frame[:4], "little")
    if found != expected or len(frame) < _RLE_HEADER_BYTES:
        raise PixelError(f"the RLE frame has {found} segment(s), {expected} are expected")
    offsets = [int(offset) for offset in np.frombuffer(frame, dtype="<u4", count=found, offset=4)]
    if offsets[0] < _RLE_HEADER_BYTES or sorted(set(offsets)) != offsets or offsets[-1] >= len(frame):
        raise PixelError("the RLE frame has segment offsets that are out of order or outside it")
    count = layout.rows * layout.columns
    segments = list(pairwise([*offsets, len(frame)]))
    for index, (start, stop) in enumerate(segments):
        if (stop - start) * _RLE_LARGEST_GAIN < count:
            raise UnsafePixelError(f"RLE segment {index} of {stop - start} bytes cannot hold {count} pixels")
    planes = np.empty((expected, count), dtype=np.uint8)
    for index, (start, stop) in enumerate(segments):
        try:
            content = decode_segment(frame[start:stop])
        except _FAILED as error:
            raise _broken("RLE", error) from error
        if len(content) < count:
            raise PixelError(f"RLE segment {index} gives {len(content)} bytes, {count} are expected")
        planes[index] = np.frombuffer(content, dtype=np.uint8, count=count)
    samples = planes.reshape(layout.samples_per_pixel, width, count)
    codes = samples[:, 0] if width == 1 else samples[:, 0].astype(np.uint16) << _EIGHT | samples[:, 1]
    codes = codes.reshape(layout.samples_per_pixel, layout.rows, layout.columns)
    picture = codes[0] if layout.samples_per_pixel == 1 else codes.transpose(1, 2, 0)
    return Decoded(codes=picture, precision=layout.bits_stored, is_ycbcr=_says_ycbcr(layout))


def _inflated(frame: bytes, limit: int) -> bytes:
    """Inflate a raw deflate stream to at most `limit` bytes, however much more it holds."""
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(frame, limit)
    except zlib.error as error:
        raise _broken("deflated", error) from error
