"""Real ultrasounds with burned-in text, of PyPI's ``deid-data`` 0.0.20 (MIT), and where their text is, marked by eye.

The hospital that gave them made up their patients ("ZZZ TEST", "ZZZDOWNTIME"). Nothing of them is kept here but the
places of the lines: row, column, rows, columns.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from burned_in.rendering import Line, Sample
from PIL import Image

PACKAGE = "deid-data==0.0.20"
_FOLDER = "deid_data/data/ultrasounds"
_GLYPH_LEVELS = 40
"""By which a glyph differs from the median of its line's place."""

LINES = {
    "GREYSCALE_IMAGE": (
        *((4, 8, 18, 275), (4, 391, 18, 295), (4, 822, 18, 188), (25, 13, 22, 126), (25, 827, 22, 158)),
        *((54, 14, 18, 62), (78, 14, 18, 56), (99, 14, 18, 28), (139, 13, 20, 27), (160, 26, 18, 41)),
        *((180, 14, 20, 83), (201, 14, 18, 58), (220, 20, 18, 35), (240, 20, 18, 47), (77, 962, 18, 24)),
        *((319, 904, 20, 20), (698, 856, 20, 56)),
    ),
    "RGB_IMAGE": (
        *((6, 3, 22, 226), (35, 3, 18, 134), (7, 403, 18, 30), (6, 503, 22, 214), (6, 775, 20, 108)),
        *((35, 503, 18, 267), (64, 928, 16, 90), (84, 954, 16, 64), (102, 965, 16, 54), (120, 954, 16, 65)),
        *((146, 958, 16, 61), (164, 959, 16, 60), (182, 966, 16, 53), (200, 976, 18, 44), (226, 932, 17, 87)),
        *((245, 990, 15, 29), (262, 928, 16, 91), (280, 920, 17, 99), (298, 967, 16, 52), (316, 951, 16, 68)),
        *((334, 929, 17, 90), (741, 518, 26, 175), (744, 798, 17, 48)),
    ),
    "ultrasound-multiframe": (
        *((60, 12, 14, 38), (77, 12, 14, 41), (107, 10, 16, 22), (123, 18, 14, 33), (139, 10, 14, 36)),
        *((153, 11, 14, 45), (168, 14, 14, 42), (201, 10, 16, 22), (217, 18, 14, 33), (232, 18, 15, 57)),
        *((248, 10, 14, 77), (263, 15, 14, 54), (60, 749, 15, 48), (77, 760, 14, 38), (269, 764, 14, 35)),
        *((286, 763, 13, 34), (568, 735, 15, 57), (282, 706, 22, 24)),
    ),
}
"""The first frame of the last."""


def ultrasounds(archive: Path) -> Iterator[Sample]:
    """The three ultrasounds that the package holds as single files."""
    import pydicom

    with tarfile.open(archive) as package:
        for member in package:
            path = Path(member.name)
            content = package.extractfile(member) if path.parent.as_posix().endswith(_FOLDER) else None
            if path.stem not in LINES or content is None:
                continue
            pixels = pydicom.dcmread(io.BytesIO(content.read())).pixel_array
            picture = np.ascontiguousarray(pixels[0] if path.stem == "ultrasound-multiframe" else pixels)
            grey = np.asarray(Image.fromarray(picture).convert("L")).astype(np.int16)
            yield Sample(
                kind=f"ultrasound {path.stem}",
                picture=picture,
                lines=tuple(_line(grey, *place) for place in LINES[path.stem]),
            )


def _line(grey: np.ndarray, row: int, column: int, rows: int, columns: int) -> Line:
    place = grey[row : row + rows, column : column + columns]
    difference = place - np.median(place)
    glyphs = np.abs(difference) > _GLYPH_LEVELS
    return Line(
        row=row,
        column=column,
        glyphs=glyphs,
        height_px=int(np.ptp(np.nonzero(glyphs)[0])) + 1,
        contrast=int(np.abs(difference).max()),
        is_light=bool(difference[glyphs].mean() > 0),
        angle_degrees=0,
    )


def download(requirement: str, folder: Path) -> Path:
    """Fetch one package by pip, without what it depends on, and without installing it."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), requirement]
    subprocess.run(command, check=True)
    return max(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
