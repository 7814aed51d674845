"""What the benchmark compares the gateway's finder with, behind the same method."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from gateway.deidentification.burned_in_text import TextBox

_MARGIN = 2
_WORD_LEVEL = "5"


@dataclass(frozen=True, slots=True, kw_only=True)
class TesseractFinder:
    """Debian's tesseract 5 (Apache-2.0), sparse text, on both polarities, each at both sizes where asked to."""

    scales: tuple[float, ...] = (1.0, 2.0)
    largest_doubled_pixels: int = 1_500_000
    least_confidence: float = 20

    def find(self, picture: npt.NDArray[np.uint8]) -> tuple[TextBox, ...]:
        grey = np.asarray(Image.fromarray(picture).convert("L"))
        found = []
        for scale in self.scales:
            if scale > 1 and grey.size > self.largest_doubled_pixels:
                continue
            columns, rows = (round(side * scale) for side in grey.shape[::-1])
            scaled = np.asarray(Image.fromarray(grey).resize((columns, rows), Image.Resampling.BICUBIC))
            for polarity in (scaled, 255 - scaled):
                found += self._words(polarity, scale, grey.shape)
        return tuple(found)

    def _words(self, picture: npt.NDArray[np.uint8], scale: float, shape: tuple[int, ...]) -> list[TextBox]:
        header = b"P5 %d %d 255\n" % picture.shape[::-1]
        answer = subprocess.run(
            ["tesseract", "stdin", "stdout", "--psm", "11", "--dpi", "100", "tsv"],
            input=header + picture.tobytes(),
            capture_output=True,
            check=True,
            env={**os.environ, "OMP_THREAD_LIMIT": "1"},
        )
        boxes = []
        for row in answer.stdout.decode(errors="replace").splitlines()[1:]:
            level, *_, left, top, width, height, confidence, text = row.split("\t", 11)
            if level != _WORD_LEVEL or not text.strip() or float(confidence) < self.least_confidence:
                continue
            first_row, first_column = max(int(int(top) / scale) - _MARGIN, 0), max(int(int(left) / scale) - _MARGIN, 0)
            last_row = min(int((int(top) + int(height)) / scale) + 1 + _MARGIN, shape[0])
            last_column = min(int((int(left) + int(width)) / scale) + 1 + _MARGIN, shape[1])
            boxes.append(
                TextBox(
                    row=first_row,
                    column=first_column,
                    rows=last_row - first_row,
                    columns=last_column - first_column,
                    confidence=float(confidence) / 100,
                )
            )
        return boxes
