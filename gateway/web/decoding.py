"""A stored image as pixels that a browser can window.

Greyscale keeps its values: instead of the picture as displayed, where everything outside the window is cut off, the
browser gets the whole range of modality values (Hounsfield units, for example) in 16 bits, and the window that the
image asks for to start with.

References
----------
PS3.3 C.11.1 (modality LUT), C.11.2 (VOI LUT).
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.errors import UnreadableError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from pydicom import Dataset

    from gateway.settings import DecodingSettings
    from models.decoding import Decoder, DecodingPool
    from models.frame import Frame

FULL_SCALE = 65535
EIGHT_BITS = 8
"""Up to this a picture without a window shows its full range, as :mod:`models.greyscale` has it."""
JPEG_QUALITY = 92
_UNREADABLE = (ValueError, TypeError, AttributeError, KeyError, IndexError, NotImplementedError)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedPixels:
    """An answer: bytes, what they are, and what the viewer must know of them."""

    content: bytes
    media_type: str
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueRange:
    """Which modality values 0 and :data:`FULL_SCALE` stand for, and the window to start with."""

    low: float
    high: float
    centre: float | None
    width: float | None
    bits: int


class LazyDecoder:
    """The web process's decoding children; they, and the libraries for them, are there from the first picture on."""

    def __init__(self, settings: DecodingSettings, *, size: int) -> None:
        self._settings = settings
        self._size = size

    @cached_property
    def pool(self) -> DecodingPool:
        """The children."""
        from models.decoding import DecodingLimits, DecodingPool

        return DecodingPool(DecodingLimits(**self._settings.model_dump()), size=self._size)


def decode_pixels(path: Path, frame_index: int, long_side: int, decoder: Decoder) -> DecodedPixels:
    """One frame, its long side at most `long_side` pixels.

    Raises
    ------
    UnreadableError
        The file is gone or no longer DICOM.
    PixelError
        The pixels cannot be decoded; also where they harm the decoder, which costs a process of `decoder`.
    DecoderUnavailableError
        No decoding process can be started.
    """
    import pydicom
    from pydicom.errors import InvalidDicomError

    from models.pixels import displayed_frame_count, read_frame

    try:
        dataset = pydicom.dcmread(path)
    except (OSError, InvalidDicomError, RecursionError) as error:
        raise UnreadableError(f"the image's file cannot be read: {type(error).__name__}") from error
    frames = {"X-Frame-Count": str(displayed_frame_count(dataset))}
    known = _value_range(dataset, frame_index)
    if known is not None:
        _show_whole_range(dataset, known)
    frame = read_frame(dataset, frame_index=frame_index, least_side=_least_side(dataset, long_side), decoder=decoder)
    if frame.is_colour:
        return _colour(frame, long_side, frames)
    return _greyscale(frame, long_side, frames, known)


def _least_side(dataset: Dataset, long_side: int) -> int | None:
    """The short side of the picture that the viewer wants, so that JPEG is decoded no larger than needed."""
    rows, columns = int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)
    if min(rows, columns) <= 0 or max(rows, columns) <= long_side:
        return None
    return max(1, long_side * min(rows, columns) // max(rows, columns))


def _colour(frame: Frame, long_side: int, headers: Mapping[str, str]) -> DecodedPixels:
    from PIL import Image

    picture = Image.fromarray(frame.pixels)
    picture.thumbnail((long_side, long_side), Image.Resampling.BOX, reducing_gap=None)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    size = {"X-Rows": str(picture.height), "X-Columns": str(picture.width)}
    source = {"X-Source-Rows": str(frame.source_rows), "X-Source-Columns": str(frame.source_columns)}
    return DecodedPixels(
        content=stream.getvalue(), media_type="image/jpeg", headers={**headers, **size, **source, "X-Colour": "1"}
    )


def _greyscale(frame: Frame, long_side: int, headers: Mapping[str, str], known: ValueRange | None) -> DecodedPixels:
    import numpy as np
    from PIL import Image

    pixels: npt.NDArray[Any] = frame.pixels
    low, high = _starting_window(pixels, known)
    picture = Image.fromarray(pixels)
    picture.thumbnail((long_side, long_side), Image.Resampling.BOX, reducing_gap=None)
    content = np.rint(np.asarray(picture) * np.float32(FULL_SCALE)).astype("<u2")
    made = {
        "X-Rows": str(content.shape[0]),
        "X-Columns": str(content.shape[1]),
        "X-Source-Rows": str(frame.source_rows),
        "X-Source-Columns": str(frame.source_columns),
        "X-Colour": "0",
        # The window as fractions of the full scale; black below the first, white above the second.
        "X-Window-Low": f"{low:.6f}",
        "X-Window-High": f"{high:.6f}",
    }
    if known is not None:
        made |= {"X-Value-Low": f"{known.low:g}", "X-Value-High": f"{known.high:g}"}
    return DecodedPixels(content=content.tobytes(), media_type="application/octet-stream", headers={**headers, **made})


def _starting_window(pixels: npt.NDArray[np.float32], known: ValueRange | None) -> tuple[float, float]:
    """Black and white of the window to start with, as fractions of the full scale."""
    if known is None:
        return 0.0, 1.0
    if known.centre is not None and known.width:
        scale = known.high - known.low
        bounds = [(known.centre + half * known.width - known.low) / scale for half in (-0.5, 0.5)]
        inverted = known.low > known.high
        return (bounds[1], bounds[0]) if inverted else (bounds[0], bounds[1])
    if known.bits <= EIGHT_BITS:
        return 0.0, 1.0
    # No window: from the lowest to the highest value, but for padding, which is black.
    shown = pixels[pixels > 0]
    if shown.size == 0 or float(shown.min()) >= float(shown.max()):
        return 0.0, 1.0
    return float(shown.min()), float(shown.max())


def _value_range(dataset: Dataset, frame_index: int) -> ValueRange | None:
    """The range of modality values; ``None`` where the image is shown by a curve, not a window, or is colour."""
    try:
        if int(dataset.get("SamplesPerPixel") or 1) != 1 or "VOILUTSequence" in dataset:
            return None
        if str(dataset.get("PhotometricInterpretation", "")).strip().upper() not in {"MONOCHROME1", "MONOCHROME2"}:
            return None
        if "ModalityLUTSequence" in dataset:
            return None
        groups = _groups(dataset, frame_index)
        if str(_first(groups, "VOILUTFunction") or "LINEAR").strip().upper() == "SIGMOID":
            return None
        slope = 1.0 if (value := _first(groups, "RescaleSlope")) is None else float(value)
        intercept = float(_first(groups, "RescaleIntercept") or 0.0)
        bits = int(dataset.get("BitsStored") or dataset.get("BitsAllocated") or 0)
        lowest = -(1 << (bits - 1)) if dataset.get("PixelRepresentation") == 1 else 0
        ends = sorted(lowest * slope + intercept + step * slope for step in (0, (1 << bits) - 1))
        centre, width = _first(groups, "WindowCenter"), _first(groups, "WindowWidth")
    except _UNREADABLE:
        return None  # the decoder says what is wrong with it
    if bits <= 0 or ends[0] >= ends[1]:
        return None
    found = centre is not None and width is not None and float(width) >= 1
    inverted = str(dataset.PhotometricInterpretation).strip().upper() == "MONOCHROME1"
    return ValueRange(
        low=ends[1] if inverted else ends[0],
        high=ends[0] if inverted else ends[1],
        centre=float(centre) if found else None,
        width=float(width) if found else None,
        bits=bits,
    )


def _show_whole_range(dataset: Dataset, known: ValueRange) -> None:
    """Replace the window by one that cuts nothing off; the data set's own values win over functional groups."""
    dataset.VOILUTFunction = "LINEAR_EXACT"
    dataset.WindowCenter = f"{(known.low + known.high) / 2:.8g}"
    dataset.WindowWidth = f"{abs(known.high - known.low):.8g}"


def _groups(dataset: Dataset, frame_index: int) -> list[Dataset]:
    """Where attributes of one frame stand, as the decoder looks them up (PS3.3 C.7.6.16)."""
    found = [dataset]
    for keyword, place in (("SharedFunctionalGroupsSequence", 0), ("PerFrameFunctionalGroupsSequence", frame_index)):
        items = dataset.get(keyword) or []
        if place < len(items):
            for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
                found.extend(items[place].get(name) or [])
    return found


def _first(groups: list[Dataset], keyword: str) -> Any:
    for group in groups:
        value = group.get(keyword)
        if value is None or value == "":
            continue
        if isinstance(value, str | bytes) or not hasattr(value, "__len__"):
            return value
        if len(value):
            return value[0]
    return None
