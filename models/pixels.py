"""From a DICOM image to the picture that a display would show.

Taken: MONOCHROME1 and 2, PALETTE COLOR, RGB, YBR_FULL, YBR_FULL_422, YBR_ICT, YBR_RCT; 8 and 16 bits allocated; every
native transfer syntax, RLE, deflated frames, JPEG (DCT of 8 and 12 bits, lossless), JPEG-LS, JPEG 2000 and HTJ2K; any
frame of a multi-frame image.

Refused with a :class:`~models.errors.PixelError`: everything else (video, JPEG XL, bit-packed and floating-point
pixels, YBR_PARTIAL), and everything whose data and description disagree. A wrong picture is worse than none.

Left aside on purpose: ICC profiles (the models were trained on pictures whose profile was ignored too), overlays,
supplemental palettes, *Pixel Aspect Ratio*.

References
----------
PS3.3 C.7.6.3 (image pixel), C.7.6.16 (functional groups), C.11.1, C.11.2; PS3.5 section 8 and Annex A.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image
from pydicom.encaps import generate_fragments, get_frame, parse_basic_offsets

from models.decoders import BIG_ENDIAN, ENCAPSULATED, NATIVE, RLE, Codes, Decoded, Layout, decode_native
from models.decoding import Decoder, default_decoder
from models.errors import PixelError, UnsafePixelError
from models.frame import Frame
from models.greyscale import BAD_VALUE, Attributes, StoredRange, displayed_table
from models.palette import palette_table

__all__ = ["StoredFrame", "displayed_frame_count", "read_frame", "read_stored_frame", "stored_layout"]

_GREYSCALE = ("MONOCHROME1", "MONOCHROME2")
_ONE_SAMPLE = (*_GREYSCALE, "PALETTE COLOR")
_THREE_SAMPLES = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_EIGHT, _SIXTEEN = 8, 16
T = TypeVar("T", np.uint8, np.float32)

_FUNCTIONAL_GROUPS = ("PixelValueTransformationSequence", "FrameVOILUTSequence")


def displayed_frame_count(dataset: pydicom.Dataset) -> int:
    """Count the frames that :func:`read_frame` can be asked for; 0 where the object is no image.

    Raises
    ------
    PixelError
        (0028,0008) *Number of Frames* is no positive number.
    """
    if "Rows" not in dataset or "Columns" not in dataset:
        return 0
    return _integer(dataset, "NumberOfFrames", lowest=1, highest=2**31 - 1, default=1)


def read_frame(
    dataset: pydicom.Dataset,
    *,
    frame_index: int = 0,
    least_side: int | None = None,
    decoder: Decoder | None = None,
) -> Frame:
    """Decode one frame and bring it to what a display would show.

    Parameters
    ----------
    dataset
        An image with pixel data and ``file_meta`` (for the transfer syntax). It is not changed.
    frame_index
        From 0.
    least_side
        Colour JPEG and JPEG 2000 may be decoded at a reduced scale that keeps both sides at least this long, in pixels.
        Greyscale never is: its LUTs belong before any averaging.
    decoder
        Where compressed frames are decoded; without one, in a process with the default limits.

    Returns
    -------
    Frame
        Colour as RGB, greyscale after all LUTs, 1 being white.

    Raises
    ------
    PixelError
        The pixels cannot be read; the message says what was found and what is expected, never a patient's or a peer's
        text.
    UnsafePixelError
        They are over a limit of `decoder`, claim more than they can hold, or crashed it.
    DecoderUnavailableError
        No decoding process can be started at present.
    """
    decoder = default_decoder() if decoder is None else decoder
    layout = _layout(dataset, decoder.limits.maximum_frame_bytes)
    if not 0 <= frame_index < layout.frame_count:
        raise PixelError(f"frame {frame_index} was asked for, the image has {layout.frame_count} (counted from 0)")
    pixels = _pixel_bytes(dataset)
    if layout.transfer_syntax_uid in NATIVE:
        _refuse_ambiguous_422(layout, pixels)
        picture = _picture(dataset, layout, decode_native(layout, pixels, frame_index), frame_index)
    else:
        codestream = _encoded_frame(dataset, pixels, layout, frame_index)
        with decoder.decode(layout, codestream, least_side=least_side) as decoded:
            picture = _picture(dataset, layout, decoded, frame_index)
            if np.may_share_memory(picture, decoded.codes):
                picture = picture.copy()
    return Frame(pixels=picture, source_rows=layout.rows, source_columns=layout.columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFrame:
    """One frame's samples as they are stored, for those who change pixels."""

    layout: Layout
    codes: Codes
    """As in :class:`~models.decoders.Decoded`, but the caller's own."""
    precision: int
    is_ycbcr: bool
    values: NDArray[Any] | None
    """One sample a pixel: its value, *Bits Stored* or more, with its sign. None for colour."""


def stored_layout(dataset: pydicom.Dataset, *, decoder: Decoder | None = None) -> Layout:
    """Read and check what `dataset` says of its pixels; raises as :func:`read_frame` does."""
    return _layout(dataset, (decoder or default_decoder()).limits.maximum_frame_bytes)


def read_stored_frame(dataset: pydicom.Dataset, *, frame_index: int = 0, decoder: Decoder | None = None) -> StoredFrame:
    """Decode one frame and apply nothing to it. Parameters and errors are those of :func:`read_frame`."""
    decoder = default_decoder() if decoder is None else decoder
    layout = stored_layout(dataset, decoder=decoder)
    if not 0 <= frame_index < layout.frame_count:
        raise PixelError(f"frame {frame_index} was asked for, the image has {layout.frame_count} (counted from 0)")
    pixels = _pixel_bytes(dataset)
    if layout.transfer_syntax_uid in NATIVE:
        _refuse_ambiguous_422(layout, pixels)
        return _stored(layout, decode_native(layout, pixels, frame_index))
    codestream = _encoded_frame(dataset, pixels, layout, frame_index)
    with decoder.decode(layout, codestream, least_side=None) as decoded:
        return _stored(layout, decoded)


def _stored(layout: Layout, decoded: Decoded) -> StoredFrame:
    values = None
    if layout.samples_per_pixel == 1:
        masked = layout.transfer_syntax_uid in NATIVE or layout.transfer_syntax_uid == RLE
        cut, stored = _codes(layout, decoded, masked=masked)
        values = cut.astype(np.int32)
        if stored.is_signed:
            values -= (values >> (stored.bits - 1)) << stored.bits
    return StoredFrame(
        layout=layout,
        codes=decoded.codes.copy(),
        precision=decoded.precision,
        is_ycbcr=decoded.is_ycbcr,
        values=values,
    )


def _picture(
    dataset: pydicom.Dataset, layout: Layout, decoded: Decoded, frame_index: int
) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Samples as a display shows them."""
    if layout.samples_per_pixel > 1:
        return _colour(layout, decoded)
    masked = layout.transfer_syntax_uid in NATIVE or layout.transfer_syntax_uid == RLE
    return _one_sample(dataset, layout, decoded, frame_index, masked=masked)


def _value(dataset: pydicom.Dataset, keyword: str) -> Any:
    try:
        return dataset.get(keyword)
    except BAD_VALUE as error:
        raise PixelError(f"{keyword} cannot be read as its value representation asks") from error


def _integer(dataset: pydicom.Dataset, keyword: str, *, lowest: int, highest: int, default: int | None = None) -> int:
    """Read one whole number in a range; `default` where it is absent or empty."""
    value = _value(dataset, keyword)
    if value is None or value == "":
        if default is None:
            raise PixelError(f"{keyword} is missing")
        return default
    try:
        number = int(value)
    except BAD_VALUE as error:
        raise PixelError(f"{keyword} is not one whole number") from error
    if not lowest <= number <= highest:
        raise PixelError(f"{keyword} is {number}, {lowest} to {highest} is expected")
    return number


def _layout(dataset: pydicom.Dataset, maximum_frame_bytes: int) -> Layout:
    """Read and check the image pixel module."""
    syntax = str(getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", "") or "")
    if syntax not in NATIVE and syntax not in ENCAPSULATED:
        known = pydicom.uid.UID(syntax)
        name = known.name if known.is_valid and known.name != syntax else "unknown or absent"
        raise PixelError(f"no decoder for the transfer syntax ({name})")
    photometric = str(_value(dataset, "PhotometricInterpretation") or "").strip().upper()
    samples = _integer(dataset, "SamplesPerPixel", lowest=1, highest=3, default=1)
    expected = {1: _ONE_SAMPLE, 3: _THREE_SAMPLES}.get(samples, ())
    if photometric not in expected:
        found = photometric if photometric in (*_ONE_SAMPLE, *_THREE_SAMPLES) else "not one that is read here"
        raise PixelError(
            f"PhotometricInterpretation is {found}; with SamplesPerPixel {samples} one of "
            f"{', '.join(expected) or 'none'} is expected"
        )
    if photometric in {"YBR_ICT", "YBR_RCT"} and (syntax in NATIVE or syntax == RLE):
        raise PixelError(f"PhotometricInterpretation is {photometric}, which only a JPEG 2000 transfer syntax may have")
    allocated = _integer(dataset, "BitsAllocated", lowest=_EIGHT, highest=_SIXTEEN)
    if allocated not in {_EIGHT, _SIXTEEN}:
        raise PixelError(f"BitsAllocated is {allocated}, 8 or 16 is expected")
    stored = _integer(dataset, "BitsStored", lowest=2, highest=allocated, default=allocated)
    layout = Layout(
        transfer_syntax_uid=syntax,
        rows=_integer(dataset, "Rows", lowest=1, highest=65535),
        columns=_integer(dataset, "Columns", lowest=1, highest=65535),
        samples_per_pixel=samples,
        photometric_interpretation=photometric,
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=_integer(dataset, "HighBit", lowest=stored - 1, highest=allocated - 1, default=stored - 1),
        is_signed=_integer(dataset, "PixelRepresentation", lowest=0, highest=1, default=0) == 1,
        by_plane=samples > 1 and _integer(dataset, "PlanarConfiguration", lowest=0, highest=1, default=0) == 1,
        frame_count=displayed_frame_count(dataset),
        is_ow="PixelData" in dataset and dataset.get_item("PixelData").VR == "OW",
    )
    size = layout.rows * layout.columns * samples * allocated // _EIGHT
    if size > maximum_frame_bytes:
        raise UnsafePixelError(f"a frame would take {size} bytes, the limit is {maximum_frame_bytes}")
    return layout


def _pixel_bytes(dataset: pydicom.Dataset) -> bytes:
    value = _value(dataset, "PixelData")
    if not isinstance(value, bytes | bytearray) or not value:
        other = next((word for word in ("FloatPixelData", "DoubleFloatPixelData") if word in dataset), None)
        raise PixelError(f"{other} is not read here" if other else "there are no Pixel Data")
    return value if isinstance(value, bytes) else bytes(value)


def _encoded_frame(dataset: pydicom.Dataset, pixels: bytes, layout: Layout, frame_index: int) -> bytes:
    """Find the codestream of one frame among the fragments (PS3.5 A.4).

    The offset table of a single frame is passed over: it says nothing, and broken ones are about.
    """
    try:
        if layout.frame_count == 1:
            offsets = pydicom.filebase.DicomBytesIO(pixels)
            offsets.is_little_endian = True
            parse_basic_offsets(offsets)
            fragments = list(generate_fragments(offsets))
            frame = fragments[0] if len(fragments) == 1 else b"".join(fragments)
        else:
            table, lengths = _value(dataset, "ExtendedOffsetTable"), _value(dataset, "ExtendedOffsetTableLengths")
            extended = (table, lengths) if table and lengths else None
            frame = get_frame(pixels, frame_index, number_of_frames=layout.frame_count, extended_offsets=extended)
    except (*BAD_VALUE, EOFError, OSError, UserWarning) as error:
        raise PixelError(f"the fragments of frame {frame_index} cannot be found in the Pixel Data") from error
    if not frame:
        raise PixelError(f"frame {frame_index} is empty")
    return frame


def _refuse_ambiguous_422(layout: Layout, pixels: bytes) -> None:
    """Native pixels named YBR_FULL_422 yet long enough for full sampling: RGB or YBR_FULL, and nothing tells which."""
    full = (
        layout.rows * layout.columns * layout.samples_per_pixel * layout.bits_allocated // _EIGHT * layout.frame_count
    )
    if layout.photometric_interpretation == "YBR_FULL_422" and len(pixels) >= full > layout.frame_bytes:
        raise PixelError(
            f"PhotometricInterpretation is YBR_FULL_422, but Pixel Data have the {len(pixels)} bytes of full sampling; "
            f"{layout.frame_bytes * layout.frame_count} are expected"
        )


def _colour(layout: Layout, decoded: Decoded) -> NDArray[np.uint8]:
    """Bring three samples a pixel to uint8 RGB [rows, columns, 3]."""
    codes = decoded.codes
    if codes.dtype != np.uint8 or decoded.precision < _EIGHT:
        depth = min(layout.bits_stored, decoded.precision)
        if depth < _EIGHT:
            raise PixelError(f"colour has {depth} bits a sample, 8 to 16 are expected")
        shift = layout.high_bit + 1 - _EIGHT if decoded.precision > layout.high_bit else depth - _EIGHT
        codes = ((codes >> shift) & 0xFF).astype(np.uint8)
    codes = np.ascontiguousarray(codes)
    if not decoded.is_ycbcr:
        return codes
    rows, columns = codes.shape[:2]
    picture = Image.frombuffer("YCbCr", (columns, rows), codes, "raw", "YCbCr", 0, 1)
    return np.asarray(picture.convert("RGB"))


def _one_sample(
    dataset: pydicom.Dataset, layout: Layout, decoded: Decoded, frame_index: int, *, masked: bool
) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Look one sample a pixel up in the table that displays it."""
    codes, stored = _codes(layout, decoded, masked=masked)
    attributes = Attributes(
        items=_frame_items(dataset, frame_index), big_endian=layout.transfer_syntax_uid == BIG_ENDIAN
    )
    if layout.photometric_interpretation == "PALETTE COLOR":
        return _looked_up(palette_table(attributes, stored), codes)

    def used() -> NDArray[np.bool_]:
        occurs = np.zeros(1 << stored.bits, dtype=np.bool_)
        occurs[codes] = True
        return occurs

    inverted = layout.photometric_interpretation == "MONOCHROME1"
    return _looked_up(displayed_table(attributes, stored=stored, used=used, inverted=inverted), codes)


def _looked_up(table: NDArray[T], codes: NDArray[Any]) -> NDArray[T]:
    return np.take(table, codes, axis=0)


def _codes(layout: Layout, decoded: Decoded, *, masked: bool) -> tuple[NDArray[Any], StoredRange]:
    """Cut the bits that carry the value out of each sample.

    Native and RLE samples are cut to *Bits Stored* below *High Bit*, since old overlays may sit in the rest. In a
    codestream nothing but the value is coded, so that one which needs more bits than *Bits Stored* is believed.
    """
    codes = decoded.codes
    container = codes.dtype.itemsize * _EIGHT
    if masked:
        shift, bits = layout.high_bit + 1 - layout.bits_stored, layout.bits_stored
    else:
        shift, bits = 0, min(layout.bits_stored, decoded.precision)
        if decoded.precision > bits and not layout.is_signed and int(codes.max()) >> bits:
            bits = decoded.precision
    if shift:
        codes = codes >> shift
    if bits < container:
        codes = codes & np.array((1 << bits) - 1, dtype=codes.dtype)
    return codes, StoredRange(bits=bits, is_signed=layout.is_signed)


def _frame_items(dataset: pydicom.Dataset, frame_index: int) -> list[pydicom.Dataset]:
    """Data sets that may hold the LUTs of a frame: the image, then its own and the shared functional groups."""
    items = [dataset]
    for keyword, index in (("PerFrameFunctionalGroupsSequence", frame_index), ("SharedFunctionalGroupsSequence", 0)):
        groups = _value(dataset, keyword)
        if not groups or index >= len(groups):
            continue
        for name in _FUNCTIONAL_GROUPS:
            group = _value(groups[index], name)
            if group:
                items.append(group[0])
    return items
