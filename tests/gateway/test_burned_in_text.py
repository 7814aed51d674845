"""The finder of burned-in text: what it must find, what it must leave, and that only those load it who need it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from burned_in import glyphs, tissue, write
from picture_encodings import colour_scene
from PIL import Image

from gateway.deidentification import burned_in_text
from gateway.deidentification.burned_in_text import NetworkTextFinder, TextBox
from gateway.errors import DeidentificationError

SHARED = Path(__file__).resolve().parents[2] / "../shared/data"
needs_network = pytest.mark.skipif(
    importlib.util.find_spec("rapidocr") is None, reason=f"no text detection network: {burned_in_text.INSTALL}"
)


@pytest.fixture(scope="module")
def finder() -> NetworkTextFinder:
    return NetworkTextFinder()


def covered(boxes: tuple[TextBox, ...], mask: np.ndarray) -> float:
    """The part of the pixels of `mask` that lies in boxes."""
    seen = np.zeros(mask.shape, dtype=np.bool_)
    for box in boxes:
        seen[box.row : box.row + box.rows, box.column : box.column + box.columns] = True
    return float((seen & mask).sum() / mask.sum())


def scene() -> np.ndarray:
    """uint8 [240, 320]."""
    return (tissue(240, 320) >> 4).astype(np.uint8)


@needs_network
@pytest.mark.parametrize("size", [8, 10, 14, 22, 40])
@pytest.mark.parametrize("value", [255, 0], ids=["light", "dark"])
def test_text_of_many_sizes_is_covered_in_both_polarities(finder: NetworkTextFinder, size: int, value: int) -> None:
    picture = np.full((240, 420), 128, np.uint8)
    picture[:, :320] = scene() // 4 + 96
    whole = write(picture, glyphs(size=size), 120, 20, value)
    assert covered(finder.find(picture), whole) == 1.0


@needs_network
def test_colour_and_a_frame_around_the_letters_do_not_hide_them(finder: NetworkTextFinder) -> None:
    picture = colour_scene(240, 320)
    mask = glyphs()
    picture[95 : 105 + mask.shape[0], 35 : 45 + mask.shape[1]] = (20, 20, 90)
    whole = write(picture, mask, 100, 40, (250, 220, 60))
    assert covered(finder.find(picture), whole) == 1.0


@needs_network
@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_text_that_stands_on_its_side_or_head_is_covered(finder: NetworkTextFinder, quarters: int) -> None:
    picture = scene()
    whole = write(picture, np.rot90(glyphs(), quarters), 30, 60, 255)
    assert covered(finder.find(picture), whole) >= 0.98


@needs_network
def test_small_and_huge_text_is_found_on_six_megapixels(finder: NetworkTextFinder) -> None:
    picture = np.full((2048, 3072), 40, np.uint8)
    small = [write(picture, glyphs(size=12), row, column, 200) for row, column in [(10, 10), (1000, 700), (2020, 2900)]]
    huge = write(picture, glyphs("OKONKWO", size=420), 1300, 700, 230)
    boxes = finder.find(picture)
    assert [covered(boxes, whole) for whole in small] == [1.0, 1.0, 1.0]
    assert covered(boxes, huge) >= 0.98


@needs_network
def test_a_line_across_tiles_is_covered(finder: NetworkTextFinder) -> None:
    picture = np.full((200, 2000), 30, np.uint8)
    whole = write(picture, glyphs("SCHNEIDER, INGRID 12/04/1951 " * 4, size=28), 80, 60, 220)
    assert covered(finder.find(picture), whole) >= 0.999


@needs_network
def test_boxes_lie_within_the_picture_and_cover_little_besides(finder: NetworkTextFinder) -> None:
    picture = scene()
    mask = glyphs()
    write(picture, mask, 0, 320 - mask.shape[1], 255)
    boxes = finder.find(picture)
    assert boxes
    for box in boxes:
        assert min(box.row, box.column) >= 0
        assert min(box.rows, box.columns) > 0
        assert box.row + box.rows <= 240
        assert box.column + box.columns <= 320
        assert 0 < box.confidence <= 1
    assert sum(box.rows * box.columns for box in boxes) < 4 * mask.size


@needs_network
def test_pictures_without_text_have_no_boxes(finder: NetworkTextFinder) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (240, 320), dtype=np.uint8)
    for picture in (
        scene(),
        np.stack([scene(), scene() // 2, scene() // 3], axis=2),
        noise,
        np.zeros((64, 64), np.uint8),
        np.zeros((1, 1), np.uint8),
    ):
        assert finder.find(picture) == ()


@needs_network
def test_fundus_photographs_have_no_boxes(finder: NetworkTextFinder) -> None:
    paths = sorted((SHARED / "fundus" / "images").glob("*.jpg"))[10:12]
    if not paths:
        pytest.skip("the shared fundus photographs are not here")
    assert [finder.find(np.asarray(Image.open(path).convert("RGB"))) for path in paths] == [()] * len(paths)


@needs_network
def test_threads_share_a_finder(finder: NetworkTextFinder) -> None:
    pictures = []
    for row in (20, 60, 100, 140):
        picture = scene()
        write(picture, glyphs(), row, 40, 255)
        pictures.append(picture)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(finder.find, pictures)) == [finder.find(picture) for picture in pictures]


@needs_network
@pytest.mark.parametrize(
    "picture", [np.zeros((4, 4), np.uint16), np.zeros((4,), np.uint8), np.zeros((4, 4, 4), np.uint8)]
)
def test_other_arrays_are_refused(finder: NetworkTextFinder, picture: np.ndarray) -> None:
    with pytest.raises(DeidentificationError, match="8 bits, grey or RGB"):
        finder.find(picture)


def test_without_the_network_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(DeidentificationError, match="pip install --no-deps rapidocr=="):
        NetworkTextFinder()


def test_set_up_installs_what_the_message_names() -> None:
    script = (Path(__file__).resolve().parents[2] / "scripts" / "setup").read_text()
    requirement = burned_in_text.INSTALL.removeprefix("pip install ").split(" (")[0]
    assert requirement in script


def test_another_network_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = tmp_path / burned_in_text.MODEL_FILE
    model.parent.mkdir()
    model.write_bytes(b"another")

    class Package:
        submodule_search_locations = (str(tmp_path),)

    monkeypatch.setattr(importlib.util, "find_spec", lambda _: Package)
    with pytest.raises(DeidentificationError, match="not the measured one"):
        NetworkTextFinder()


def test_receivers_workers_and_the_web_do_not_load_it() -> None:
    program = (
        "import sys, gateway.scp, gateway.worker, gateway.pipeline, gateway.web.server\n"
        "assert not {name for name in sys.modules if 'burned_in_text' in name or 'rapidocr' in name}\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).resolve().parents[2])
