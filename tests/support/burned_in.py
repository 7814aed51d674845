"""Text drawn into pictures, and whether it still shows, judged without the finder under test."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import signal

from gateway.deidentification.burned_in_text import TextBox, TextFinder

TOKEN = "KOWALCZYK 7731"
Mask = NDArray[np.bool_]


def tissue(rows: int, columns: int) -> NDArray[np.uint16]:
    """uint16 [rows, columns], 12 bits, 400 to 2900 or so: soft waves and noise, nothing that looks like a letter."""
    row, column = np.mgrid[0:rows, 0:columns]
    waves = 1600 + 700 * np.sin(column / 90.0) + 400 * np.cos((row + column) / 70.0)
    return np.rint(waves + np.random.default_rng(7).normal(0, 40, waves.shape)).astype(np.uint16)


def glyphs(text: str = TOKEN, *, size: int = 18) -> Mask:
    """[rows, columns], True where a glyph is."""
    font = ImageFont.load_default(size)
    left, top, right, bottom = font.getbbox(text)
    canvas = Image.new("L", (int(right - left), int(bottom - top)))
    ImageDraw.Draw(canvas).text((-left, -top), text, fill=255, font=font)
    return np.asarray(canvas) > 127


def write(picture: NDArray[Any], mask: Mask, row: int, column: int, value: Any) -> Mask:
    """Write `mask` into a copy-free [rows, columns] or [rows, columns, 3]; the mask on the whole picture."""
    whole = np.zeros(picture.shape[:2], dtype=np.bool_)
    whole[row : row + mask.shape[0], column : column + mask.shape[1]] = mask
    picture[whole] = value
    return whole


def similarity(picture: NDArray[Any], mask: Mask) -> float:
    """Highest normalised correlation of `mask` with any place of a greyscale `picture`, of either polarity."""
    template = mask - mask.mean()
    area = np.ones(mask.shape)
    grey = picture.astype(np.float64) - picture.mean()
    mean = signal.fftconvolve(grey, area, "valid") / mask.size
    variance = signal.fftconvolve(grey**2, area, "valid") / mask.size - mean**2
    product = signal.fftconvolve(grey, template[::-1, ::-1], "valid")
    spread = np.sqrt(np.maximum(variance, 1e-3 * grey.var() + 1e-9) * mask.size * (template**2).sum())
    return float(np.abs(product / spread).max())


def words_of_tesseract(picture: NDArray[np.uint8]) -> str | None:
    """What Debian's tesseract reads on both polarities; None where it is not installed."""
    if shutil.which("tesseract") is None:
        return None
    read = ""
    for polarity in (picture, 255 - picture):
        doubled = polarity.repeat(2, axis=0).repeat(2, axis=1)
        header = b"P5 %d %d 255\n" % doubled.shape[::-1]
        command = ["tesseract", "stdin", "stdout", "--psm", "11"]
        answer = subprocess.run(command, input=header + doubled.tobytes(), capture_output=True, check=True)
        read += answer.stdout.decode(errors="replace")
    return read


@dataclass
class Recording:
    """A finder that remembers what another one found, and can be told to look only at the first pictures."""

    finder: TextFinder
    most: int | None = None
    found: list[tuple[TextBox, ...]] = field(default_factory=list)

    def find(self, picture: NDArray[np.uint8]) -> tuple[TextBox, ...]:
        boxes = () if self.most is not None and len(self.found) >= self.most else self.finder.find(picture)
        self.found.append(boxes)
        return boxes

    def outside(self, rows: int, columns: int) -> Mask:
        """True outside of all boxes."""
        mask = np.ones((rows, columns), dtype=np.bool_)
        for box in (box for boxes in self.found for box in boxes):
            mask[box.row : box.row + box.rows, box.column : box.column + box.columns] = False
        return mask
