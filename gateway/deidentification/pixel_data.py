"""Pixel data in the copy: without what compressed streams say besides the picture, and without bits of no pixel."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import numpy.typing as npt
from pydicom import DataElement, Dataset
from pydicom.uid import UID

from gateway.deidentification.elements import Element, number_of, text_of
from gateway.deidentification.streams import Layout, clean_encapsulated, frame_bytes, trim_native
from gateway.deidentification.values import vr_of
from gateway.errors import DeidentificationError

PIXEL_DATA = 0x7FE00010


def clean_pixel_data(original: Dataset, element: Element, transfer_syntax_uid: str) -> DataElement:
    """Pixel data with the metadata inside compressed streams and what lies behind the last pixel gone.

    Native pixel data are not copied, encapsulated ones once.

    Raises
    ------
    DeidentificationError
        If the compressed streams cannot be walked.
    """
    value = element.value
    if not isinstance(value, bytes):
        raise DeidentificationError("pixel data that are not bytes; expected them to be read")
    frames = number_of(original, 0x00280008, 1)
    rows, columns, samples, allocated = (
        number_of(original, tag, 0) for tag in (0x00280010, 0x00280011, 0x00280002, 0x00280100)
    )
    photometric = text_of(original, 0x00280004)
    if UID(transfer_syntax_uid).is_encapsulated:
        layout = Layout(
            rows=rows,
            columns=columns,
            samples=samples,
            bits_allocated=allocated,
            photometric_interpretation=photometric,
        )
        cleaned = clean_encapsulated(value, transfer_syntax_uid, frames, layout)
        encapsulated = DataElement(element.tag, "OB", cleaned)
        encapsulated.is_undefined_length = True
        return encapsulated
    value = trim_native(value, frame_bytes([rows, columns, samples, allocated, frames], photometric))
    if int(element.tag) == PIXEL_DATA:
        value = _without_unused_bits(original, value, ">" if transfer_syntax_uid == "1.2.840.10008.1.2.2" else "<")
    vr = element.VR or ("OW" if int(element.tag) == PIXEL_DATA else vr_of(int(element.tag)))
    return DataElement(element.tag, vr if vr in ("OB", "OW", "OF", "OD") else "OW", value)


def _without_unused_bits(original: Dataset, value: bytes, order: str) -> bytes:
    """Pixels whose bits beyond (0028,0101) *Bits Stored* are empty, or go on with the sign of the number.

    Those bits belong to no pixel (PS3.5 8.1.1): they may hold a retired overlay (PS3.3-2004 C.9.2), or anything. A
    padding value stays as it is.
    """
    allocated, stored, high = (number_of(original, 0x00280000 | n, 0) for n in (0x0100, 0x0101, 0x0102))
    if allocated not in (8, 16, 32) or not 0 < stored < allocated or not stored - 1 <= high < allocated:
        return value
    size = allocated // 8
    words = np.frombuffer(value, dtype=f"{order}u{size}", count=len(value) // size)
    mask = words.dtype.type(((1 << stored) - 1) << (high + 1 - stored))
    if not _bits_in_use(words) & ~mask:
        return value
    pixels = words & mask
    good = words == pixels
    if number_of(original, 0x00280103, 0) == 1 and high == stored - 1:
        left = allocated - stored
        extended = ((words.astype(f"=u{size}") << left).astype(f"=i{size}") >> left).astype(f"=u{size}")
        good |= words == extended
        pixels = extended
    for tag in (0x00280120, 0x00280121):
        if tag in original:
            good |= words == words.dtype.type(number_of(original, tag, 0) % (1 << allocated))
    if good.all():
        return value
    return np.where(good, words, pixels).astype(words.dtype).tobytes() + value[words.nbytes :]


def _bits_in_use(words: npt.NDArray[np.unsignedinteger[Any]]) -> np.unsignedinteger[Any]:
    """The bits that any of the words has; eight bytes at a time, which is several times faster."""
    whole = words.nbytes // 8 * 8
    rows = words.view(np.uint8)[:whole].view(np.uint64)
    folded = np.array([np.bitwise_or.reduce(rows)], np.uint64).view(words.dtype)
    rest = words[whole // words.itemsize :]
    return cast("np.unsignedinteger[Any]", np.bitwise_or.reduce(np.concatenate([folded, rest])))
