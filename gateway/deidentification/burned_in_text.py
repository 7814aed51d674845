"""Finds text that is burned into pictures, by a text detection network; what the text says is never read.

The network is PP-OCR's detector as the package ``rapidocr`` carries it (Apache-2.0), run by the ONNX Runtime that is
here anyway: one thread of the CPU, and nothing of the package itself is imported. It marks, for each pixel, how likely
it is to lie in the core of a text line (differentiable binarisation). Cores are labelled, grown back to whole lines and
put together over tiles and scales, since the network knows text that is 8 to 100 pixels high.

What it finds and misses is measured in ``docs/burned-in-text.md``. Receivers and workers never load this.

References
----------
Liao et al., Real-time Scene Text Detection with Differentiable Binarization, AAAI 2020, 3.4 (from map to boxes; eq. 10
for the offset by which a core is grown).
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from gateway.errors import DeidentificationError

Picture = npt.NDArray[np.uint8]

INSTALL = "pip install --no-deps rapidocr==3.10.0 (scripts/setup does)"
MODEL_FILE = "models/PP-OCRv6_det_small.onnx"
MODEL_SHA256 = "090f04abcd9d9a7498bc4ebf677e4cb9bdce1fe4197ddb7e529f1ef44e1ff94f"

_GREY_AXES, _COLOUR_AXES = 2, 3
_STRIDE = 32
"""Sides of the network's input are multiples of this."""
_TILE, _OVERLAP = 640, 96
"""In pixels. The network weighs what it sees against the mean of the whole input, so that it misses small text in a
large and empty tile: of 960 pixels five lines of six. A line across a border is covered by two boxes."""
_DOUBLED_BELOW_PIXELS = 1_500_000
"""Largest picture that a thorough finder looks at in double size too."""
_COARSE_SIDE = 960
"""Long side of the reduced picture in which large letters are looked for."""
_CORE_LIKELIHOOD = 0.3
_LEAST_CONFIDENCE = 0.5
_LEAST_CORE_PIXELS, _MOST_CORE_PIXELS = 3, 80
"""Across a core, at the scale looked at: what is thicker is no line of text; larger letters show at a smaller scale."""
_MOST_CORE_FRACTION = 0.2
"""Of the shorter side of the picture, likewise: a line is about 2.5 times as high as its core."""
_LEAST_ASPECTS = ((32, 4.0), (24, 1.5))
"""A core thicker than so many pixels is at least so many times as long: large round things are no text (the optic
disc), and one large letter names nobody."""
_LEAST_LENGTH = 10
"""Pixels of the picture: what is shorter names nobody, and is mostly a mark of a scale."""
_GROWTH_RATIO = 1.8
"""By which a core's area over its perimeter is multiplied (eq. 10); 1.5 in the paper, more here to cover all glyphs."""
_MARGIN = 2
"""Pixels of the picture by which each box is widened."""
_SAME_FRACTION = 0.6
"""Boxes are one if they share this part of the smaller one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextBox:
    """Where text lies in a picture: whole pixels, within it, its edges included."""

    row: int
    column: int
    rows: int
    columns: int
    confidence: float


class TextFinder(Protocol):
    """Looks for text in a picture."""

    def find(self, picture: Picture) -> tuple[TextBox, ...]:
        """Find where there is text; `picture` is uint8 [rows, columns] or RGB [rows, columns, 3]."""
        ...


class NetworkTextFinder:
    """The finder that this gateway uses: one resident session, which any number of threads may share.

    Parameters
    ----------
    model
        The detection network; by default that of the installed package, which has to be the one that was measured.
    threads
        Of ONNX Runtime.
    thorough
        Look at small pictures in double size too: nine times the time, for some more faint letters.

    Raises
    ------
    DeidentificationError
        The network is not installed, is another one, or cannot be loaded; says how to install it.
    """

    def __init__(self, model: Path | None = None, *, threads: int = 1, thorough: bool = False) -> None:
        import onnxruntime

        weights = _measured_model() if model is None else model.read_bytes()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        options.enable_cpu_mem_arena = False  # else the largest tile's memory stays
        self._session = onnxruntime.InferenceSession(weights, options, providers=["CPUExecutionProvider"])
        self._thorough = thorough
        self._input = self._session.get_inputs()[0].name

    def find(self, picture: Picture) -> tuple[TextBox, ...]:
        """See :class:`TextFinder`.

        Raises
        ------
        DeidentificationError
            `picture` has another shape or type.
        """
        if picture.dtype != np.uint8 or not (picture.ndim == _GREY_AXES or picture.shape[2:] == (3,)):
            raise DeidentificationError("text is looked for in pictures of 8 bits, grey or RGB")
        rows, columns = picture.shape[:2]
        found: list[_Box] = []
        for scale in _scales(rows, columns, thorough=self._thorough):
            found += self._at_scale(picture, scale)
        return tuple(
            TextBox(row=top, column=left, rows=bottom - top, columns=right - left, confidence=round(box.confidence, 3))
            for box in _united(found)
            if max(box.bottom - box.top, box.right - box.left) >= _LEAST_LENGTH
            for top, left, bottom, right in [box.within(rows, columns)]
        )

    def _at_scale(self, picture: Picture, scale: float) -> Iterator[_Box]:
        """Boxes in pixels of `picture`, looked for in it at another size."""
        scaled = _resized(picture, scale)
        rows, columns = scaled.shape[:2]
        scale_rows, scale_columns = rows / picture.shape[0], columns / picture.shape[1]
        for (top, bottom), (left, right) in product(_spans(rows), _spans(columns)):
            tile = scaled[top:bottom, left:right]
            if int(tile.max()) - int(tile.min()) <= 1:
                continue
            for box in _boxes(
                self._map(tile), most_pixels=min(_MOST_CORE_PIXELS, _MOST_CORE_FRACTION * min(rows, columns))
            ):
                yield box.moved(top, left).scaled(1 / scale_rows, 1 / scale_columns)

    def _map(self, tile: Picture) -> npt.NDArray[np.float32]:
        """How likely each pixel lies in the core of a text line: float32 [rows, columns] in 0 to 1."""
        rows, columns = tile.shape[:2]
        colours = tile[..., ::-1] if tile.ndim == _COLOUR_AXES else tile[..., None]  # the network was trained on BGR
        below, beside = (_STRIDE * -(-side // _STRIDE) - side for side in (rows, columns))
        filled = np.pad(colours, ((0, below), (0, beside), (0, 0)), mode="edge")
        tensor = np.empty((1, 3, *filled.shape[:2]), dtype=np.float32)
        tensor[0] = np.moveaxis(filled, 2, 0)
        tensor *= np.float32(1 / 127.5)
        tensor -= np.float32(1)
        likelihood: npt.NDArray[np.float32] = self._session.run(None, {self._input: tensor})[0][0, 0, :rows, :columns]
        return likelihood


@dataclass(frozen=True, slots=True)
class _Box:
    top: float
    left: float
    bottom: float
    right: float
    confidence: float

    @property
    def area(self) -> float:
        return (self.bottom - self.top) * (self.right - self.left)

    def moved(self, rows: float, columns: float) -> _Box:
        return _Box(self.top + rows, self.left + columns, self.bottom + rows, self.right + columns, self.confidence)

    def scaled(self, rows: float, columns: float) -> _Box:
        return _Box(self.top * rows, self.left * columns, self.bottom * rows, self.right * columns, self.confidence)

    def shared(self, other: _Box) -> float:
        rows = min(self.bottom, other.bottom) - max(self.top, other.top)
        columns = min(self.right, other.right) - max(self.left, other.left)
        return max(rows, 0.0) * max(columns, 0.0)

    def with_(self, other: _Box) -> _Box:
        return _Box(
            min(self.top, other.top),
            min(self.left, other.left),
            max(self.bottom, other.bottom),
            max(self.right, other.right),
            max(self.confidence, other.confidence),
        )

    def within(self, rows: int, columns: int) -> tuple[int, int, int, int]:
        """Whole pixels: top, left, and bottom and right, which are outside."""
        return (
            max(int(np.floor(self.top)) - _MARGIN, 0),
            max(int(np.floor(self.left)) - _MARGIN, 0),
            min(int(np.ceil(self.bottom)) + _MARGIN, rows),
            min(int(np.ceil(self.right)) + _MARGIN, columns),
        )


def _scales(rows: int, columns: int, *, thorough: bool) -> Sequence[float]:
    scales = [1.0]
    if thorough and rows * columns <= _DOUBLED_BELOW_PIXELS:
        scales.append(2.0)
    if max(rows, columns) > 2 * _COARSE_SIDE:
        scales.append(_COARSE_SIDE / max(rows, columns))
    return scales


def _resized(picture: Picture, scale: float) -> Picture:
    if scale == 1:
        return picture
    rows, columns = (max(round(side * scale), 1) for side in picture.shape[:2])
    image = Image.fromarray(np.ascontiguousarray(picture))
    if scale < 1:
        return np.asarray(image.resize((columns, rows), Image.Resampling.BOX))
    return np.asarray(image.resize((columns, rows), Image.Resampling.BICUBIC))


def _spans(side: int) -> list[tuple[int, int]]:
    """Tiles of about equal size that overlap, along one side."""
    if side <= _TILE:
        return [(0, side)]
    count = -(-(side - _OVERLAP) // (_TILE - _OVERLAP))
    starts = [round(index * (side - _TILE) / (count - 1)) for index in range(count)]
    return [(start, start + _TILE) for start in starts]


def _boxes(likelihood: npt.NDArray[np.float32], *, most_pixels: float) -> Iterator[_Box]:
    """Whole text lines from the map of their cores, which are at most `most_pixels` thick."""
    from scipy import ndimage

    labels, count = ndimage.label(likelihood > _CORE_LIKELIHOOD, structure=np.ones((3, 3)))
    if not count:
        return
    for index, place in enumerate(ndimage.find_objects(labels), start=1):
        core = labels[place] == index
        confidence = float(likelihood[place][core].mean())
        if confidence < _LEAST_CONFIDENCE or min(core.shape) < _LEAST_CORE_PIXELS:
            continue
        length, thickness = _extent(core)
        aspect = next((aspect for pixels, aspect in _LEAST_ASPECTS if thickness > pixels), 0.0)
        if thickness > most_pixels or length < aspect * thickness:
            continue
        offset = int(core.sum()) * _GROWTH_RATIO / (2 * (length + thickness))
        rows, columns = place
        yield _Box(rows.start - offset, columns.start - offset, rows.stop + offset, columns.stop + offset, confidence)


def _extent(core: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Length and thickness in pixels of the rectangle, at any angle, that has the second moments of `core`."""
    places = np.stack(np.nonzero(core)).astype(np.float64)
    variances = np.linalg.eigvalsh(np.cov(places, bias=True)) + 1 / 12  # of a pixel itself
    thickness, length = np.sqrt(12 * np.maximum(variances, 0))
    return float(length), float(thickness)


def _united(boxes: Sequence[_Box]) -> list[_Box]:
    """Boxes of which no two are the same line seen twice."""
    united: list[_Box] = []
    for box in sorted(boxes, key=lambda box: -box.area):
        grown, others = box, []
        for other in united:
            if grown.shared(other) >= _SAME_FRACTION * min(grown.area, other.area):
                grown = grown.with_(other)
            else:
                others.append(other)
        united = [*others, grown]
    return sorted(united, key=lambda box: (box.top, box.left))


def _measured_model() -> bytes:
    """The network of the installed package, if it is the one that was measured."""
    package = importlib.util.find_spec("rapidocr")
    folders = list(package.submodule_search_locations or ()) if package is not None else []
    path = Path(folders[0]) / MODEL_FILE if folders else None
    if path is None or not path.is_file():
        raise DeidentificationError(f"the network that finds burned-in text is not installed: {INSTALL}")
    weights = path.read_bytes()
    if hashlib.sha256(weights).hexdigest() != MODEL_SHA256:
        raise DeidentificationError(f"the network that finds burned-in text is not the measured one: {INSTALL}")
    return weights
