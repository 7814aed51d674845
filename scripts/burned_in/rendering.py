"""Pictures with text rendered into them, and where its glyphs are: the generated set of the benchmark.

Backgrounds are real pictures where they are at hand (fundus photographs and chest radiographs of the shared folder,
radiographs, CT and MR of pydicom's own test files) and generated otherwise. Lines differ in font, height, contrast,
polarity and angle; what they say is made up.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Picture = npt.NDArray[np.uint8]

HEIGHTS_PX = (5, 6, 8, 10, 14, 20, 32, 60)
"""Of capital letters."""
LARGE_HEIGHTS_PX = (10, 14, 20, 32, 60, 120, 200)
"""On pictures of several megapixels."""
CONTRASTS = (24, 48, 96, 192)
"""Between text and the mean around it, of 255."""
ANGLES_DEGREES = (0, 0, 0, 0, 0, 0, 90, 270, 180, 10, -20, 45)
_FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono", "DejaVuSerif", "STIXGeneral", "cmss10", "cmtt10", "")
"""Of matplotlib; "" is the one that Pillow has inside, like Arial."""
_FAMILY = ("ANDERSON", "OKONKWO", "Schneider", "GARCIA LOPEZ", "Nguyen", "O'BRIEN", "Kowalska", "YILMAZ", "Rossi")
_GIVEN = ("MARIA", "John P", "Wei", "FATIMA", "Ingrid", "TOMAS", "Aisha", "LEE", "Jean-Luc")
_PLACES = ("ST. MARY HOSPITAL", "University Clinic", "CITY RADIOLOGY", "Dr. Haddad", "Dept. of Ophthalmology")
_GAP_PX = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of text in a picture."""

    row: int
    column: int
    glyphs: npt.NDArray[np.bool_]
    """[rows, columns] from `row` and `column` on: True where a glyph is."""
    height_px: int
    contrast: int
    is_light: bool
    angle_degrees: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A picture and all lines of text in it."""

    kind: str
    picture: Picture
    lines: tuple[Line, ...]


def samples(repository: Path, *, copies: int, seed: int = 20261124) -> Iterator[Sample]:
    """Each background without text, then `copies` times with it."""
    chance = random.Random(seed)
    for kind, background in backgrounds(repository):
        yield Sample(kind=kind, picture=background, lines=())
        for _ in range(copies):
            yield with_text(kind, background, chance)


def with_text(kind: str, background: Picture, chance: random.Random) -> Sample:
    """`background` with up to a dozen lines that do not touch."""
    picture = background.copy()
    taken = np.zeros(background.shape[:2], dtype=np.bool_)
    lines = []
    heights = LARGE_HEIGHTS_PX if background.shape[0] * background.shape[1] > 3_000_000 else HEIGHTS_PX
    for number in range(12):
        line = _write(picture, taken, heights[(number + chance.randrange(2)) % len(heights)], chance)
        if line is not None:
            lines.append(line)
    return Sample(kind=kind, picture=picture, lines=tuple(lines))


def backgrounds(repository: Path) -> Iterator[tuple[str, Picture]]:
    """(kind, uint8 [rows, columns] or [rows, columns, 3]), none with text in it."""
    shared = repository.parent / "shared" / "data"
    for path in sorted((shared / "fundus" / "images").glob("*.jpg"))[:240:60]:
        yield "fundus", np.asarray(Image.open(path).convert("RGB"))
    for path in sorted((shared / "fundus" / "full_size").glob("*.jpg"))[:1]:
        yield "fundus, 12 megapixels", np.asarray(Image.open(path).convert("RGB"))
    for path in sorted((shared / "cxr" / "train" / "NORMAL").glob("*.jpeg"))[:300:100]:
        yield "chest, 672 px", np.asarray(Image.open(path).convert("L").resize((672, 672), Image.Resampling.BICUBIC))
    yield from _radiographs()
    noise = np.random.default_rng(7)
    rows, columns = np.mgrid[:600, :800]
    fan = (np.hypot(rows + 60, columns - 400) < 600) & (np.abs(columns - 400) < (rows + 60) * 0.75)
    speckle = np.clip(noise.rayleigh(40, (600, 800)), 0, 255)
    yield "generated fan", (speckle * fan).astype(np.uint8)
    yield "generated slope", np.clip(columns / 4 + noise.normal(0, 6, (600, 800)), 0, 255).astype(np.uint8)
    yield "black", np.zeros((480, 640), np.uint8)
    yield "white", np.full((480, 640), 255, np.uint8)


def _radiographs() -> Iterator[tuple[str, Picture]]:
    import pydicom
    from pydicom.data import get_testdata_file

    for kind, name in (("CR", "RG1_UNCR.dcm"), ("CT", "CT_small.dcm"), ("MR", "MR_small.dcm")):
        path = get_testdata_file(name)
        if path is None:
            continue
        image = pydicom.dcmread(str(path))
        stored = image.pixel_array.astype(np.float64)
        low, high = np.percentile(stored, (0.5, 99.5))
        grey = np.clip((stored - low) / (high - low) * 255, 0, 255)
        if image.PhotometricInterpretation == "MONOCHROME1":
            grey = 255 - grey
        picture = Image.fromarray(grey.astype(np.uint8))
        if max(picture.size) < 512:
            picture = picture.resize((512, 512), Image.Resampling.BICUBIC)
        yield kind, np.asarray(picture)


def _write(picture: Picture, taken: npt.NDArray[np.bool_], height_px: int, chance: random.Random) -> Line | None:
    """Write one line at a free place; None where there is none."""
    contrast, is_light = chance.choice(CONTRASTS), chance.random() < 0.65
    angle = chance.choice(ANGLES_DEGREES)
    opacity = _rendered(_text(chance), chance.choice(_FONTS), height_px, angle)
    rows, columns = opacity.shape
    room = (taken.shape[0] - rows, taken.shape[1] - columns)
    if min(room) <= 0:
        return None
    for _ in range(60):
        row, column = chance.randrange(room[0]), chance.randrange(room[1])
        around = (
            slice(max(row - _GAP_PX, 0), row + rows + _GAP_PX),
            slice(max(column - _GAP_PX, 0), column + columns + _GAP_PX),
        )
        place = picture[row : row + rows, column : column + columns]
        level = float(place.mean())
        value = level + contrast if is_light else level - contrast
        if taken[around].any() or not -1 <= value <= 256 or float(place.std()) > contrast:
            continue
        taken[row : row + rows, column : column + columns] = True
        alpha = opacity[..., None] if picture.ndim == 3 else opacity
        place[...] = np.clip(place + alpha * (value - place), 0, 255).astype(np.uint8)
        return Line(
            row=row,
            column=column,
            glyphs=opacity > 0.5,
            height_px=height_px,
            contrast=contrast,
            is_light=is_light,
            angle_degrees=angle,
        )
    return None


def _text(chance: random.Random) -> str:
    name = f"{chance.choice(_FAMILY)}, {chance.choice(_GIVEN)}"
    date = f"{chance.randrange(1, 29):02}/{chance.randrange(1, 13):02}/{chance.randrange(1930, 2026)}"
    return chance.choice(
        (name, date, f"ID {chance.randrange(10**6, 10**8)}", f"{name}  {date}", f"DOB: {date}", chance.choice(_PLACES))
    )


@cache
def _font(name: str, height_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """A font whose capital letters are `height_px` high."""
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"

    def at(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
        return ImageFont.truetype(str(path), size) if name else ImageFont.load_default(size)

    top, bottom = at(100).getbbox("H")[1::2]
    return at(height_px * 100 / (bottom - top))


def _rendered(text: str, font_name: str, height_px: int, angle_degrees: int) -> npt.NDArray[np.float64]:
    """Opacity 0 to 1 [rows, columns] of a line, cut to its glyphs."""
    font = _font(font_name, height_px)
    left, top, right, bottom = font.getbbox(text)
    canvas = Image.new("L", (int(right - left) + 4, int(bottom - top) + 4))
    ImageDraw.Draw(canvas).text((2 - left, 2 - top), text, fill=255, font=font)
    if angle_degrees:
        canvas = canvas.rotate(angle_degrees, Image.Resampling.BICUBIC, expand=True)
    canvas = canvas.crop(canvas.getbbox())
    return np.asarray(canvas, dtype=np.float64) / 255
