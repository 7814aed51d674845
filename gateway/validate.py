"""Is a received data set whole, and whose is it? Asked before Success is answered, without loading pixel data.

The file is mapped, not read, and walked by :mod:`gateway.data_set_walk`. What ends early, overlaps, ends before the
content that its SOP class cannot do without, has fewer pixels than it says, or lacks the four UIDs that every composite
instance has, is not understood.

References
----------
PS3.5 section 8.1.1 (native pixel data), 9.1 (UIDs), Annex A (transfer syntaxes); PS3.3 Annex A by way of
:mod:`gateway.content_elements`.
"""

from __future__ import annotations

import mmap
import re
import tempfile
import zlib
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pydicom import Dataset

from gateway.content_elements import LAST_ELEMENTS, PIXEL_DATA
from gateway.data_set_walk import Encoding, Limits, Walk, header_of, text_of
from gateway.errors import NotUnderstoodError, OutOfResourcesError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["UID_PATTERN", "Encoding", "Inspection", "Limits", "encoding_of", "inspect"]

UID_PATTERN = re.compile(r"(?=.{1,64}\Z)[0-9]+(?:\.[0-9]+)*\Z")
"""What is taken for a UID. Looser than PS3.5 section 9.1 (components may start with 0), since devices are."""

_ENCODINGS: Mapping[str, Encoding] = {
    # PS3.5 Annex A; UIDs in PS3.6 Table A-1.
    "1.2.840.10008.1.2": Encoding(implicit=True),
    "1.2.840.10008.1.2.1": Encoding(),
    "1.2.840.10008.1.2.1.98": Encoding(),
    "1.2.840.10008.1.2.1.99": Encoding(deflated=True),
    "1.2.840.10008.1.2.2": Encoding(little_endian=False),
    "1.2.840.10008.1.2.4.95": Encoding(deflated=True),
    "1.2.840.10008.1.2.4.205": Encoding(deflated=True),
    "1.2.840.10008.1.2.5": Encoding(),
    "1.2.840.10008.1.2.8.1": Encoding(),
}
_ENCAPSULATED_ROOT = "1.2.840.10008.1.2.4."
_NATIVE = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"})
_BY_REFERENCE = frozenset(f"1.2.840.10008.1.2.4.{number}" for number in (94, 95, 204, 205))
"""JPIP: the pixel data are elsewhere, at (0028,7FE0) *Pixel Data Provider URL* (PS3.5 section A.6)."""
_PROVIDER_URL = 0x00287FE0

_ROWS, _COLUMNS, _SAMPLES, _BITS_ALLOCATED = 0x00280010, 0x00280011, 0x00280002, 0x00280100
_FRAMES, _PHOTOMETRIC_INTERPRETATION = 0x00280008, 0x00280004


def encoding_of(transfer_syntax_uid: str) -> Encoding | None:
    """How the transfer syntax encodes a data set; ``None`` when the gateway does not know.

    All syntaxes under 1.2.840.10008.1.2.4 (JPEG, JPEG-LS, JPEG 2000, HTJ2K, JPEG XL, MPEG, HEVC), those to come
    included, are explicit VR little endian with encapsulated pixel data by PS3.5 Annex A.4.
    """
    known = _ENCODINGS.get(transfer_syntax_uid)
    if known is None and transfer_syntax_uid.startswith(_ENCAPSULATED_ROOT):
        return Encoding()
    return known


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What the gateway needs to know of an instance before it answers. Holds PHI."""

    header: Dataset
    """Top-level attributes without sequences, pixel data and values over 64 KiB; decoded when asked for."""
    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str
    incomplete: str = ""
    """What is missing in a data set that need not be complete; empty in one that is."""


def inspect(
    path: Path, *, offset: int, transfer_syntax_uid: str, limits: Limits | None = None, complete: bool = True
) -> Inspection:
    """Walk the data set that starts at `offset` in the file and say whose it is.

    Parameters
    ----------
    complete
        Whether it has to hold the content that its SOP class cannot do without, to say its study and series, and to end
        with its last element. A receiver that promises to keep an object asks for that; who only reads one need not.

    Raises
    ------
    NotUnderstoodError
        It is truncated, malformed, over a limit, or lacks a UID that every composite instance has; the message says
        where, by tag and byte, and holds no value.
    OutOfResourcesError
        A deflated data set could not be inflated for want of space.
    """
    limits = limits or _LIMITS
    encoding = encoding_of(transfer_syntax_uid)
    if encoding is None:
        raise NotUnderstoodError("unknown transfer syntax")
    with path.open("rb", buffering=0) as stream:
        if encoding.deflated:
            with _inflated(stream, offset, path, limits) as inflated:
                return _inspect_stream(inflated, 0, encoding, transfer_syntax_uid, limits, complete)
        return _inspect_stream(stream, offset, encoding, transfer_syntax_uid, limits, complete)


def _inspect_stream(
    stream: IO[bytes], offset: int, encoding: Encoding, transfer_syntax_uid: str, limits: Limits, complete: bool
) -> Inspection:
    try:
        buffer = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError as error:  # an empty file
        raise NotUnderstoodError("the data set is empty") from error
    with buffer:
        walk = Walk(buffer=buffer, encoding=encoding, limits=limits, may_be_padded=not complete)
        walk.whole(offset)
    sop_class_uid = _uid(walk, 0x00080016, "SOP Class UID")
    missing = _missing_content(walk, sop_class_uid, transfer_syntax_uid)
    if missing and complete:
        raise NotUnderstoodError(missing)
    inspection = Inspection(
        header=header_of(walk.kept, encoding),
        sop_class_uid=sop_class_uid,
        sop_instance_uid=_uid(walk, 0x00080018, "SOP Instance UID"),
        study_instance_uid=_uid(walk, 0x0020000D, "Study Instance UID", needed=complete),
        series_instance_uid=_uid(walk, 0x0020000E, "Series Instance UID", needed=complete),
        incomplete=missing,
    )
    if transfer_syntax_uid in _NATIVE:
        _require_pixels(walk)
    return inspection


def _uid(walk: Walk, tag: int, name: str, *, needed: bool = True) -> str:
    """The UID; the empty text where it is neither there nor `needed`."""
    kept = walk.kept.get(tag)
    if kept is None or not kept[1]:
        if not needed:
            return ""
        raise NotUnderstoodError(f"the data set has no {name}")
    text = kept[1].decode("ascii", "replace").rstrip("\0 ")
    if UID_PATTERN.match(text) is None:
        raise NotUnderstoodError(f"the {name} is not a UID of at most 64 digits and dots")
    return text


def _missing_content(walk: Walk, sop_class_uid: str, transfer_syntax_uid: str) -> str:
    """What is wrong with a data set that ends before the last element that its SOP class cannot do without.

    Whatever the class, (0028,0100) *Bits Allocated* says that pixel data follow: it is of the Image Pixel Module.
    """
    last = LAST_ELEMENTS.get(sop_class_uid, 0)
    if _BITS_ALLOCATED in walk.kept:
        last = max(last, PIXEL_DATA)
    if walk.last_tag >= last:
        return ""
    if transfer_syntax_uid in _BY_REFERENCE and last == PIXEL_DATA and _PROVIDER_URL in walk.kept:
        return ""
    return f"the data set is truncated: it ends with {text_of(walk.last_tag)}, before its content"


def _require_pixels(walk: Walk) -> None:
    """Refuse native pixel data that are shorter than the picture they are of (PS3.5 section 8.1.1)."""
    if walk.pixel_bytes is None:
        return
    rows, columns, bits = (_number(walk, tag, 0) for tag in (_ROWS, _COLUMNS, _BITS_ALLOCATED))
    samples = 2 if _text(walk, _PHOTOMETRIC_INTERPRETATION) == "YBR_FULL_422" else _number(walk, _SAMPLES, 1)
    frames = _text(walk, _FRAMES)
    count = int(frames) if frames.isdecimal() and len(frames) <= 12 else 1
    expected = (rows * columns * samples * count * bits + 7) // 8
    if walk.pixel_bytes < expected:
        raise NotUnderstoodError(
            f"the data set is truncated: {walk.pixel_bytes} bytes of pixel data where {expected} are due"
        )


def _number(walk: Walk, tag: int, default: int) -> int:
    """A whole number of VR US."""
    kept = walk.kept.get(tag)
    if kept is None or len(kept[1]) < 2:
        return default
    return int.from_bytes(kept[1][:2], "little" if walk.encoding.little_endian else "big")


def _text(walk: Walk, tag: int) -> str:
    kept = walk.kept.get(tag)
    return "" if kept is None else kept[1].decode("ascii", "replace").strip(" \0")


@contextmanager
def _inflated(stream: IO[bytes], offset: int, path: Path, limits: Limits) -> Iterator[IO[bytes]]:
    """The inflated data set (PS3.5 section A.5, raw deflate) as a file without a name beside `path`."""
    decompressor = zlib.decompressobj(-zlib.MAX_WBITS)
    total = 0
    longest = max(limits.inflated_freely_bytes, limits.inflation * (path.stat().st_size - offset))
    longest = min(longest, limits.inflated_bytes)
    stream.seek(offset)
    with tempfile.TemporaryFile(dir=path.parent, buffering=0) as inflated:
        try:
            while not decompressor.eof:
                chunk = decompressor.unconsumed_tail or stream.read(1 << 16)
                if not chunk:
                    raise NotUnderstoodError("the deflated data set is truncated")
                piece = memoryview(decompressor.decompress(chunk, 1 << 20))
                total += len(piece)
                if total > longest:
                    raise NotUnderstoodError(f"the data set inflates to more than {longest} bytes")
                while piece:
                    piece = piece[inflated.write(piece) :]
        except zlib.error as error:
            raise NotUnderstoodError("the deflated data set is damaged") from error
        except OSError as error:
            raise OutOfResourcesError(f"no space to inflate the data set: {error.strerror}") from error
        yield inflated


_LIMITS = Limits()
