"""Pixel data in the copy: without what compressed streams say besides the picture, and without embedded overlays."""

from __future__ import annotations

import numpy as np
from pydicom import DataElement, Dataset
from pydicom.uid import UID

from gateway.deidentification.elements import Element, number_of, text_of
from gateway.deidentification.streams import clean_encapsulated, frame_bytes, trim_native
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
        raise DeidentificationError("pixel data that are not in memory")
    frames = number_of(original, 0x00280008, 1)
    if UID(transfer_syntax_uid).is_encapsulated:
        encapsulated = DataElement(element.tag, "OB", clean_encapsulated(value, transfer_syntax_uid, frames))
        encapsulated.is_undefined_length = True
        return encapsulated
    sizes = [number_of(original, tag, 0) for tag in (0x00280010, 0x00280011, 0x00280002, 0x00280100)]
    value = trim_native(value, frame_bytes([*sizes, frames], text_of(original, 0x00280004)))
    value = _without_embedded_overlays(original, value, transfer_syntax_uid)
    vr = element.VR or ("OW" if int(element.tag) == PIXEL_DATA else vr_of(int(element.tag)))
    return DataElement(element.tag, vr if vr in ("OB", "OW", "OF", "OD") else "OW", value)


def _without_embedded_overlays(original: Dataset, value: bytes, transfer_syntax_uid: str) -> bytes:
    """Retired overlays may lie in the unused bits of each pixel (PS3.3-2004 C.9.2): those bits are emptied."""
    groups = {int(tag) & 0xFFFF0000 for tag in original.keys() if 0x6000 <= tag >> 16 <= 0x60FF}  # noqa: SIM118
    embedded = any(number_of(original, group | 0x0102, 0) for group in groups)
    allocated, stored, high = (number_of(original, 0x00280000 | n, 0) for n in (0x0100, 0x0101, 0x0102))
    if not embedded or allocated not in (8, 16, 32) or not 0 < stored < allocated:
        return value
    order = ">" if transfer_syntax_uid == "1.2.840.10008.1.2.2" else "<"
    words = np.frombuffer(value, dtype=f"{order}u{allocated // 8}")
    mask = ((1 << stored) - 1) << max(high + 1 - stored, 0)
    return bytes((words & words.dtype.type(mask)).astype(words.dtype).tobytes())
