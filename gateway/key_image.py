"""The key image: the source picture under its heat map, with a scale and a legend, for a reader without our pages.

Everything that says what it is stands in a panel under the picture, so that no pixel of the picture is written over.
No patient text is burned in.

References
----------
PS3.3 A.8.1 (Secondary Capture Image IOD), C.8.6.1, C.8.6.2; PS3.5 8.2.1 and A.4.1 (JPEG baseline).
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from gateway.judgement import FindingResult, JudgedImage
from gateway.result_identity import ascii_text
from gateway.structured_report import is_severity_label, most_probable_label
from xai.colour_map import COLOUR_MAP
from xai.overlay import blend

JPEG_QUALITY = 90
LEAST_LONG_SIDE = 768
"""Smaller pictures are enlarged to this, so that the legend stays readable."""

_BACKGROUND = (16, 18, 22)
_TEXT = (236, 238, 240)
_MUTED = (166, 172, 180)
_PRESENT = (255, 190, 90)
_WARNING = (255, 214, 120)
_LINE = 1.35
"""Distance of base lines, in font sizes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    text: str
    colour: tuple[int, int, int]
    scale: float = 1.0
    """Font size over that of the panel."""
    space_before: float = 0.0
    """In font sizes of the panel."""


def render(judged: JudgedImage, side: str) -> npt.NDArray[np.uint8]:
    """The key image of one judged image.

    Parameters
    ----------
    judged
        With its picture, and its heat on the picture's grid where the explanation was judged.
    side
        ``left``, ``right``... as the source says, or empty.

    Returns
    -------
    uint8 [rows, columns, 3] RGB, an even number of rows and columns.
    """
    picture = judged.picture
    explanation = None if judged.ungradable_reasons else judged.explanation  # nothing asserted, nothing to explain
    if explanation is not None:
        picture = blend(picture, explanation.heat)
    shown = _enlarged(Image.fromarray(picture))
    width = shown.width + shown.width % 2
    size = _font_size(width)
    margin = size
    lines = [piece for line in _legend(judged, side) for piece in _wrapped(line, width - 2 * margin, size)]
    bar_height = round(size * 2.6) if explanation is not None else 0
    text_height = sum(round(size * (line.scale * _LINE + line.space_before)) for line in lines)
    height = shown.height + margin + bar_height + text_height + margin
    canvas = Image.new("RGB", (width, height + height % 2), _BACKGROUND)
    canvas.paste(shown, ((width - shown.width) // 2, 0))
    top = shown.height + margin
    if bar_height:
        _draw_scale(canvas, margin, top, width - 2 * margin, size)
        top += bar_height
    for line in lines:
        top += round(size * line.space_before)
        _write(canvas, (margin, top), line.text, line.colour, round(size * line.scale))
        top += round(size * line.scale * _LINE)
    return np.asarray(canvas)


def encode(pixels: npt.NDArray[np.uint8]) -> bytes:
    """JPEG baseline, YCbCr 4:2:2: photometric interpretation YBR_FULL_422."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=JPEG_QUALITY, subsampling="4:2:2")
    return stream.getvalue()


def _enlarged(picture: Image.Image) -> Image.Image:
    factor = LEAST_LONG_SIDE / max(picture.size)
    if factor <= 1:
        return picture
    return picture.resize((round(picture.width * factor), round(picture.height * factor)), Image.Resampling.BICUBIC)


def _font_size(width: int) -> int:
    """Readable when the whole image fills a screen: a fortieth of the width, within bounds."""
    return max(18, min(26, width // 40))


@lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise TypeError("Pillow was built without FreeType, so its default font does not scale")
    # Plain left to right text, so the basic layout does, in a third of the time.
    basic: ImageFont.FreeTypeFont = font.font_variant(layout_engine=ImageFont.Layout.BASIC)  # type: ignore[no-untyped-call]
    return basic


@lru_cache(maxsize=256)
def _mask(text: str, size: int) -> Image.Image:
    """A line of text as cover, 0 to 255. Kept, since most lines stand on every key image and cost 1 ms to draw."""
    font = _font(size)
    mask = Image.new("L", (max(1, round(font.getlength(text))), round(size * _LINE)))
    ImageDraw.Draw(mask).text((0, 0), text, fill=255, font=font)
    return mask


@lru_cache(maxsize=1024)
def _length(text: str, size: int) -> float:
    """Width of a line of text (pixels). Kept, since the same findings are broken into the same lines each time."""
    return float(_font(size).getlength(text))


def _write(canvas: Image.Image, at: tuple[int, int], text: str, colour: tuple[int, int, int], size: int) -> int:
    """Write a line and return the column after it."""
    mask = _mask(text, size)
    canvas.paste(colour, at, mask)
    return at[0] + mask.width


def _legend(judged: JudgedImage, side: str) -> list[_Line]:
    lines = []
    prefix = f"{side.capitalize()}: " if side else ""
    if judged.ungradable_reasons:
        lines.append(_Line(text=f"{prefix}UNGRADABLE - no finding asserted", colour=_WARNING, scale=1.25))
        lines.append(_Line(text="; ".join(judged.ungradable_reasons), colour=_TEXT))
    for finding in () if judged.ungradable_reasons else judged.findings:
        lines.append(
            _Line(
                text=f"{prefix}{finding.title}: {'PRESENT' if finding.present else 'absent'}",
                colour=_PRESENT if finding.present else _TEXT,
                scale=1.25,
            )
        )
        lines.append(_Line(text=_score_text(judged, finding), colour=_TEXT))
    lines += [
        _Line(text=f"Acquisition: {item.message}", colour=_WARNING)
        for item in judged.acquisition_findings
        if item.severity != "info"
    ]
    card = judged.card
    model = f"Model {card.name} version {card.version}" + (", demonstration model" if card.demonstration else "")
    lines.append(_Line(text=model, colour=_MUTED, space_before=0.35))
    lines.append(_Line(text="TRIAGE ONLY - NOT A DIAGNOSIS", colour=_WARNING, scale=1.1, space_before=0.35))
    return lines


def _score_text(judged: JudgedImage, finding: FindingResult) -> str:
    text = f"Score {finding.score:.3f}, operating point {finding.operating_point:.3f}"
    label = most_probable_label(judged)
    if is_severity_label(label):
        text += f", most probable grade: {label.title}"
    if judged.explanation is None:
        text += ", heat map: not judged"
    return text


def _wrapped(line: _Line, width: int, size: int) -> list[_Line]:
    """`line` broken at spaces so that each piece is at most `width` pixels wide."""
    font_size = round(size * line.scale)
    pieces: list[str] = []
    current = ""
    text = ascii_text(line.text)
    for word in [text] if _mask(text, font_size).width <= width else text.split():
        longer = f"{current} {word}".strip()
        if current and _length(longer, font_size) > width:
            pieces.append(current)
            current = word
        else:
            current = longer
    pieces.append(current)
    return [
        _Line(text=piece, colour=line.colour, scale=line.scale, space_before=line.space_before if place == 0 else 0.0)
        for place, piece in enumerate(pieces)
    ]


def _draw_scale(canvas: Image.Image, left: int, top: int, width: int, size: int) -> None:
    """The colour scale with what its ends mean. Heat is relative: each picture has its own 1."""
    small = round(size * 0.85)
    gap = round(size * 0.4)
    low = _write(canvas, (left, top), "Weight for the score, relative:", _MUTED, small) + 2 * gap
    bar_left = _write(canvas, (low, top), "none", _MUTED, small) + gap
    bar_right = min(left + width - _mask("most", small).width - gap, bar_left + size * 16)
    bar = Image.fromarray(COLOUR_MAP[np.newaxis]).resize(
        (max(bar_right - bar_left, 1), small), Image.Resampling.BILINEAR
    )
    canvas.paste(bar, (bar_left, top + round(size * 0.1)))
    _write(canvas, (bar_right + gap, top), "most", _MUTED, small)
