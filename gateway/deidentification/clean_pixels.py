"""Clean Pixel Data: text burned into the pixels of a de-identified copy is looked for, blanked and counted.

Every frame is looked at as a display shows it, and greyscale of more than eight bits over its whole range too: text
often lies above all anatomy, where a window cuts it off. What a :class:`TextFinder` finds becomes one value, black as
displayed: nothing of the text can be recovered, and a reader sees that something was removed, where a filling like the
surroundings would pass for tissue. A box is blanked in every frame that shows the same at its place, whether the finder
saw it there or not.

If nothing is found, the pixel data stay as they are, compressed or not. Otherwise native pixel data are changed in
place, sample by sample and in their own arrangement. Encapsulated ones become native, Explicit VR Little Endian: every
reader takes it, no other encoder can go wrong on the way, and a second lossy compression would change pixels all over.
They get larger. Colour stays as the decoder gave it: RGB where the codestream says how to get there, YBR_FULL where the
data set alone says so.

References
----------
PS3.15 E.3.1 (Clean Pixel Data Option); PS3.3 C.7.6.1.1.5 (lossy compression), C.7.6.3 (image pixel), C.7.6.3.1.2
(photometric interpretation); PS3.5 8.1.1, 8.2, A.4.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from pydicom import DataElement, Dataset
from pydicom.uid import ExplicitVRLittleEndian

from gateway.deidentification.burned_in_text import Picture, TextBox, TextFinder
from gateway.deidentification.native_pixels import NativePixels
from gateway.deidentification.pixel_data import PIXEL_DATA
from gateway.errors import DeidentificationError
from models.decoders import DEFLATED_FRAME, ENCAPSULATED_NATIVE, NATIVE, RLE, Codes, Layout
from models.errors import PixelError
from models.pixels import StoredFrame, read_frame, read_stored_frame, stored_layout

_EIGHT, _COLOUR_AXES = 8, 3
_SAME_LEVELS = 6.0
"""Mean difference, of 255, up to which two frames show the same in a box: compression noise is below."""
_MOST_NATIVE_BYTES = 2 << 30
"""Of all frames decompressed; Pixel Data of Explicit VR Little Endian end at twice that (PS3.5 7.1.2)."""
_SIMILAR_LEVELS = 16
"""Largest difference up to which a second rendering shows nothing new."""
_MAY_BE_LOSSY = {
    "1.2.840.10008.1.2.4.50": "ISO_10918_1",
    "1.2.840.10008.1.2.4.51": "ISO_10918_1",
    "1.2.840.10008.1.2.4.81": "ISO_14495_1",
    "1.2.840.10008.1.2.4.91": "ISO_15444_1",
    "1.2.840.10008.1.2.4.203": "ISO_15444_15",
}
"""Method by transfer syntax, PS3.3 C.7.6.1.1.5.1."""
_RAW = frozenset({RLE, DEFLATED_FRAME, ENCAPSULATED_NATIVE})
"""Encapsulated, yet the samples are as native ones: *High Bit* says where their value is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelCleaning:
    """What was looked at and blanked: frames, and boxes in all of them together."""

    frames: int
    boxes: int


def clean_pixels(dataset: Dataset, finder: TextFinder) -> PixelCleaning:
    """Blank the text that `finder` finds in any frame of `dataset`, which is changed in place.

    Afterwards (0028,0301) *Burned In Annotation* is NO. Where something was found in encapsulated pixel data, they, the
    transfer syntax in ``file_meta`` and the attributes that describe the pixels are replaced.

    Raises
    ------
    DeidentificationError
        A frame cannot be decoded, or all of them are too large: then nobody looked at them. `dataset` is as before.
    DecoderUnavailableError
        No decoding process can be started at present.
    """
    try:
        layout = stored_layout(dataset)
        size = layout.frame_count * layout.rows * layout.columns * layout.samples_per_pixel * layout.dtype.itemsize
        if layout.transfer_syntax_uid not in NATIVE and size > _MOST_NATIVE_BYTES:
            raise DeidentificationError(f"the frames take {size} bytes without compression, too many to blank text in")
        search = _search(dataset, layout, finder)
        blanked = _blank(dataset, layout, search) if search.found_anything else 0
    except PixelError as error:
        raise DeidentificationError(f"text in the pixels cannot be looked for: {error}") from error
    dataset.BurnedInAnnotation = "NO"
    return PixelCleaning(frames=layout.frame_count, boxes=blanked)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sight:
    """A box, and what a frame shows in it."""

    box: TextBox
    shown: Picture

    def is_in(self, picture: Picture) -> bool:
        difference = _cut(picture, self.box).astype(np.int16) - self.shown
        return float(np.abs(difference).mean()) <= _SAME_LEVELS


@dataclass(slots=True, kw_only=True)
class _Search:
    """What was found in the frames of one object."""

    by_frame: list[tuple[TextBox, ...]] = field(default_factory=list)
    sights: list[_Sight] = field(default_factory=list)
    """Of different places or contents."""
    bits: int = 0
    """That a sample needs, in the frame that needs most."""

    @property
    def found_anything(self) -> bool:
        return bool(self.sights)

    def add(self, boxes: tuple[TextBox, ...], picture: Picture) -> None:
        self.by_frame.append(boxes)
        for box in boxes:
            if not any(_contains(known.box, box) and known.is_in(picture) for known in self.sights):
                self.sights.append(_Sight(box=box, shown=_cut(picture, box).copy()))

    def boxes_of(self, frame_index: int, picture: Picture) -> tuple[TextBox, ...]:
        """Boxes to blank in a frame: its own, and those of others which it shows too."""
        own = self.by_frame[frame_index]
        if len(self.by_frame) == 1:
            return own
        return (
            *own,
            *(
                known.box
                for known in self.sights
                if not any(_contains(box, known.box) for box in own) and known.is_in(picture)
            ),
        )


def _search(dataset: Dataset, layout: Layout, finder: TextFinder) -> _Search:
    search = _Search(bits=layout.bits_stored)
    previous: tuple[StoredFrame, tuple[TextBox, ...]] | None = None
    for index in range(layout.frame_count):
        stored = read_stored_frame(dataset, frame_index=index)
        search.bits = max(search.bits, _bits(stored))
        displayed = _displayed(dataset, index)
        if previous is not None and np.array_equal(previous[0].codes, stored.codes):
            boxes = previous[1]  # a frame that is repeated
        else:
            boxes = tuple(box for picture in _to_look_at(stored, displayed) for box in finder.find(picture))
        search.add(boxes, displayed)
        previous = stored, boxes
    return search


def _blank(dataset: Dataset, layout: Layout, search: _Search) -> int:
    """Blank all that was found; how many boxes that were."""
    is_native = layout.transfer_syntax_uid in NATIVE
    pixels = NativePixels(layout, dataset.PixelData if is_native else None)
    blanked, is_ycbcr = 0, False
    for index in range(layout.frame_count):
        stored = read_stored_frame(dataset, frame_index=index)
        is_ycbcr = is_ycbcr or stored.is_ycbcr
        picture = _displayed(dataset, index)
        samples = stored.codes if is_native else _written(stored, search.bits)
        if not is_native:
            pixels.put(index, samples)
        boxes = search.boxes_of(index, picture)
        for box in boxes:
            pixels.blank(index, box, _black(stored, samples, picture))
        blanked += len(boxes)
    if is_native:
        dataset[PIXEL_DATA] = DataElement(PIXEL_DATA, dataset[PIXEL_DATA].VR, pixels.to_bytes())
    else:
        _describe_as_native(dataset, layout, bits=search.bits, is_ycbcr=is_ycbcr)
        vr = "OB" if layout.bits_allocated == _EIGHT else "OW"
        dataset[PIXEL_DATA] = DataElement(PIXEL_DATA, vr, pixels.to_bytes())
    for keyword in ("SmallestImagePixelValue", "LargestImagePixelValue"):
        dataset.pop(keyword, None)  # the text may have been it
    return blanked


def _displayed(dataset: Dataset, frame_index: int) -> Picture:
    """The frame as a display shows it: uint8 [rows, columns] or RGB [rows, columns, 3]."""
    shown = read_frame(dataset, frame_index=frame_index).pixels
    if shown.dtype != np.uint8:
        shown = np.clip(shown * 255 + 0.5, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(shown, dtype=np.uint8)


def _to_look_at(stored: StoredFrame, displayed: Picture) -> list[Picture]:
    """Greyscale over its whole range, and as displayed where that shows something else; colour as displayed."""
    if stored.values is None or displayed.ndim == _COLOUR_AXES:
        return [displayed]
    whole = _stretched(stored.values)
    if stored.layout.photometric_interpretation == "MONOCHROME1":
        whole = np.uint8(255) - whole
    difference = np.abs(whole.astype(np.int16) - _stretched(displayed))
    return [whole] if int(difference.max()) <= _SIMILAR_LEVELS else [whole, displayed]


def _stretched(values: Codes) -> Picture:
    low, high = int(values.min()), int(values.max())
    stretched: Picture = ((values.astype(np.float32) - low) * (255 / max(high - low, 1)) + 0.5).astype(np.uint8)
    return stretched


def _black(stored: StoredFrame, samples: Codes, picture: Picture) -> tuple[int, ...]:
    """What is displayed as black, or as the darkest that the frame has: no new extreme for a window to follow."""
    if stored.layout.samples_per_pixel == 1:
        brightness = picture if picture.ndim < _COLOUR_AXES else picture.sum(axis=2, dtype=np.int32)
        return (int(samples.flat[int(brightness.argmin())]),)
    if stored.is_ycbcr:
        middle = 1 << (max(stored.layout.bits_stored, stored.precision) - 1)
        return 0, middle, middle
    return 0, 0, 0


def _bits(stored: StoredFrame) -> int:
    """Bits a sample: *Bits Stored*, unless a codestream needs more."""
    layout = stored.layout
    coded = layout.transfer_syntax_uid not in NATIVE | _RAW and not layout.is_signed
    return stored.precision if coded and int(stored.codes.max()) >> layout.bits_stored else layout.bits_stored


def _written(stored: StoredFrame, bits: int) -> Codes:
    """Samples of a codestream as native ones: value in the lowest bits, sign extended over the rest."""
    layout = stored.layout
    if layout.transfer_syntax_uid in _RAW:
        return stored.codes
    codes = stored.codes.astype(np.int32) & ((1 << bits) - 1)
    if layout.is_signed:
        codes -= (codes >> (bits - 1)) << bits
    return codes.astype(layout.dtype)  # modulo its range, as two's complement asks


def _describe_as_native(dataset: Dataset, layout: Layout, *, bits: int, is_ycbcr: bool) -> None:
    """Attributes of the image pixel module, and the file meta, for what was encapsulated."""
    if layout.samples_per_pixel > 1:
        dataset.PhotometricInterpretation = "YBR_FULL" if is_ycbcr else "RGB"
        dataset.PlanarConfiguration = 0
    if layout.transfer_syntax_uid not in _RAW:
        dataset.BitsStored, dataset.HighBit = bits, bits - 1
    method = _MAY_BE_LOSSY.get(layout.transfer_syntax_uid)
    if method is not None and not dataset.get("LossyImageCompression"):
        # Says so from now on, when the transfer syntax no longer does; JPEG 2000 may have been lossless.
        size = layout.frame_count * layout.rows * layout.columns * layout.samples_per_pixel * layout.bits_allocated / 8
        dataset.LossyImageCompression = "01"
        dataset.LossyImageCompressionRatio = f"{size / max(len(dataset.PixelData), 1):.4g}"
        dataset.LossyImageCompressionMethod = method
    for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths", "EncapsulatedPixelDataValueTotalLength"):
        dataset.pop(keyword, None)
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian


def _cut(picture: Picture, box: TextBox) -> Picture:
    return picture[box.row : box.row + box.rows, box.column : box.column + box.columns]


def _contains(outer: TextBox, inner: TextBox) -> bool:
    return (
        outer.row <= inner.row
        and outer.column <= inner.column
        and outer.row + outer.rows >= inner.row + inner.rows
        and outer.column + outer.columns >= inner.column + inner.columns
    )
