"""What is no fundus photograph, or no readable one, is ungradable; other cameras' photographs are not."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw, ImageFilter

from models.card import QualityLimits, load_bundle
from models.preprocess import Frame
from models.quality import COLOUR_STATISTIC_NAMES, STATISTIC_NAMES, image_statistics, judge_quality

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT / "../shared/data"
FUNDUS = SHARED / "fundus/images"
CHEST = SHARED / "cxr/test"
needs_images = pytest.mark.skipif(not FUNDUS.is_dir() or not CHEST.is_dir(), reason="the shared images are not here")


def limits_of(name: str) -> QualityLimits:
    limits = load_bundle(ROOT / f"models/bundled/{name}/1").card.quality
    assert limits is not None
    return limits


def reasons(pixels: npt.NDArray[np.uint8] | Image.Image) -> tuple[str, ...]:
    frame = Frame.from_rgb(np.ascontiguousarray(np.asarray(pixels)))
    return judge_quality(image_statistics(frame), limits_of("retinopathy"))


def chest_reasons(pixels: npt.NDArray[np.float32]) -> tuple[str, ...]:
    return judge_quality(image_statistics(Frame.from_greyscale(pixels)), limits_of("chest-triage"))


def report_page() -> Image.Image:
    page = Image.new("RGB", (1024, 768))
    draw = ImageDraw.Draw(page)
    for line in range(30):
        draw.text((40, 20 + 24 * line), "Macula normal, disc normal, vessels normal. " * 2, fill=(255, 255, 255))
    return page


def test_statistics_of_a_flat_picture_by_hand() -> None:
    statistics = image_statistics(Frame.from_rgb(np.full((120, 160, 3), (200, 100, 50), dtype=np.uint8)))

    assert tuple(statistics) == COLOUR_STATISTIC_NAMES
    assert statistics["level"] == pytest.approx((0.299 * 200 + 0.587 * 100 + 0.114 * 50) / 255, rel=1e-4)
    assert statistics["red_share"] == pytest.approx(200 / 350, rel=1e-4)
    assert statistics["blue_share"] == pytest.approx(50 / 350, rel=1e-4)
    assert statistics["saturation"] == pytest.approx(150 / 200, rel=1e-4)
    assert statistics["field_of_view_fraction"] == 1
    for name in ("contrast", "sharpness", "noise", "entropy_bits"):
        assert statistics[name] == pytest.approx(0, abs=1e-5)


def test_noise_is_the_standard_deviation_of_the_grain() -> None:
    random = np.random.default_rng(1)
    pixels = (0.5 + random.normal(0, 0.05, (256, 256))).astype(np.float32)
    statistics = image_statistics(Frame.from_greyscale(pixels))

    assert tuple(statistics) == STATISTIC_NAMES
    assert statistics["noise"] == pytest.approx(0.05, rel=0.03)
    assert statistics["contrast"] == pytest.approx(0.05, rel=0.03)
    assert statistics["level"] == pytest.approx(0.5, rel=0.01)


def test_entropy_of_two_equal_halves_is_one_bit() -> None:
    pixels = np.zeros((64, 64), dtype=np.float32)
    pixels[:32] = 1
    statistics = image_statistics(Frame.from_greyscale(pixels))

    assert statistics["entropy_bits"] == pytest.approx(1)
    assert statistics["clipped_fraction"] == pytest.approx(0.5)


def test_limits_are_inclusive_and_name_what_is_wrong() -> None:
    limits = QualityLimits(minimum={"level": 0.2}, maximum={"level": 0.8, "noise": 0.1})

    assert judge_quality({"level": 0.2, "noise": 0.1}, limits) == ()
    assert judge_quality({"level": 0.8, "noise": 0.0}, limits) == ()
    assert judge_quality({"level": 0.1, "noise": 0.3}, limits) == ("level 0.1 is below 0.2", "noise 0.3 is above 0.1")
    assert judge_quality({"level": math.nan}, limits) == (
        "level could not be measured",
        "level could not be measured",
        "noise could not be measured",
    )
    assert judge_quality({}, None) == ()


@pytest.mark.parametrize(
    "pixels",
    [
        pytest.param(np.zeros((480, 640, 3), dtype=np.uint8), id="black"),
        pytest.param(np.full((480, 640, 3), 255, dtype=np.uint8), id="white"),
        pytest.param(np.full((480, 640, 3), (180, 80, 40), dtype=np.uint8), id="flat red"),
        pytest.param(np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8), id="noise"),
        pytest.param(np.random.default_rng(0).integers(0, 256, (2400, 2400, 3), dtype=np.uint8), id="fine noise"),
        pytest.param(report_page(), id="page of text"),
    ],
)
def test_what_is_no_fundus_photograph_is_ungradable(pixels: npt.NDArray[np.uint8] | Image.Image) -> None:
    assert reasons(pixels)


@needs_images
def test_every_training_photograph_is_gradable() -> None:
    for path in sorted(FUNDUS.glob("*.jpg"))[::13]:
        with Image.open(path) as image:
            assert reasons(image) == (), path.name


@needs_images
def test_strong_blur_is_ungradable() -> None:
    """Gaussian of 12 of 640 pixels: no vessel is left but the broadest."""
    for path in sorted(FUNDUS.glob("*.jpg"))[::40]:
        with Image.open(path) as image:
            found = reasons(image.filter(ImageFilter.GaussianBlur(12)))
        assert any(reason.startswith("sharpness") for reason in found), path.name


@needs_images
def test_other_cameras_are_gradable() -> None:
    """Paler colour, vignetting, a smaller disc, no border, gain, and 12-megapixel sampling."""
    for path in sorted(FUNDUS.glob("*.jpg"))[::60]:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        values = np.asarray(image, dtype=np.float32)
        grey = values.mean(axis=2, keepdims=True)
        row, column = np.mgrid[-1 : 1 : values.shape[0] * 1j, -1 : 1 : values.shape[1] * 1j]
        vignette = (1 - 0.35 * np.clip(row**2 + column**2, 0, 1))[:, :, None]
        canvas = Image.new("RGB", (1000, 800))
        canvas.paste(image, (180, 190))
        variants = {
            "paler": np.clip(0.6 * values + 0.4 * grey, 0, 255).astype(np.uint8),
            "bluer": np.clip(values * (0.95, 1.0, 1.2), 0, 255).astype(np.uint8),
            "vignette": (values * vignette).astype(np.uint8),
            "darker": (0.6 * values).astype(np.uint8),
            "brighter": np.clip(1.4 * values, 0, 255).astype(np.uint8),
            "smaller disc": np.asarray(canvas),
            "no border": values[80:350, 150:430].astype(np.uint8),
            "larger": np.asarray(image.resize((2560, 1700), Image.Resampling.BICUBIC)),
        }
        for name, pixels in variants.items():
            assert reasons(pixels) == (), f"{path.name}, {name}"


@needs_images
def test_chest_radiograph_sent_as_fundus_is_ungradable() -> None:
    for path in sorted(CHEST.glob("*/*.jpeg"))[::40]:
        with Image.open(path) as image:
            assert reasons(image.convert("RGB")), path.name


@needs_images
def test_chest_radiographs_are_gradable() -> None:
    for path in sorted(CHEST.glob("*/*.jpeg"))[::8]:
        with Image.open(path) as image:
            assert chest_reasons(np.asarray(image.convert("L"), dtype=np.float32) / 255) == (), path.name


@pytest.mark.parametrize(
    "pixels",
    [
        pytest.param(np.zeros((300, 300), dtype=np.float32), id="black"),
        pytest.param(np.ones((300, 300), dtype=np.float32), id="white"),
        pytest.param(np.full((300, 300), 0.5, dtype=np.float32), id="flat grey"),
        pytest.param(np.random.default_rng(0).random((300, 300)).astype(np.float32), id="noise"),
        pytest.param(np.asarray(report_page().convert("L"), dtype=np.float32) / 255, id="page of text"),
    ],
)
def test_what_is_no_radiograph_is_ungradable(pixels: npt.NDArray[np.float32]) -> None:
    assert chest_reasons(pixels)


def test_resolution_hardly_matters() -> None:
    random = np.random.default_rng(5)
    smooth = Image.fromarray(random.integers(60, 200, (48, 64, 3), dtype=np.uint8))
    large = smooth.resize((2048, 1536), Image.Resampling.BICUBIC)
    first = image_statistics(Frame.from_rgb(np.asarray(large)))
    second = image_statistics(Frame.from_rgb(np.asarray(large.resize((512, 384), Image.Resampling.BOX))))

    for name, value in first.items():
        assert second[name] == pytest.approx(value, rel=0.02, abs=0.002), name
