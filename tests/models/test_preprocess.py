"""A picture becomes a tensor by the card's contract, and its place in the source is known."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw

from models.card import PixelContract, Size
from models.errors import PixelError
from models.field_of_view import find_field_of_view
from models.preprocess import Frame, prepare

SHARED = Path(__file__).resolve().parents[2] / "../shared"
FULL_SIZE = SHARED / "data/fundus/full_size"


def contract(photometric: str = "RGB", *, crop: str = "field_of_view", side: int = 96, **more: object) -> PixelContract:
    channels = 3
    values = {
        "photometric_interpretation": photometric,
        "channels": channels,
        "size": Size(rows=side, columns=side),
        "crop": crop,
        "intensity": "eight_bit",
        "mean": (0.0,) * channels,
        "std": (1.0,) * channels,
        "reason": "test",
    }
    return PixelContract.model_validate(values | more)


def disc(
    rows: int, columns: int, centre: tuple[float, float], radius: float, *, noise: float = 4.0
) -> npt.NDArray[np.uint8]:
    """A reddish disc with a darker rim on a black, slightly grainy border; `centre` is row, column."""
    random = np.random.default_rng(7)
    row, column = np.mgrid[:rows, :columns] + 0.5
    distance = np.hypot(row - centre[0], column - centre[1]) / radius
    shade = np.where(distance <= 1, 1 - 0.45 * distance**2, 0)[:, :, None] * np.array([190.0, 95.0, 45.0])
    return np.clip(shade + 3 + random.normal(0, noise, (rows, columns, 3)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("rows", "columns", "centre", "radius"),
    [
        pytest.param(600, 800, (300, 400), 250, id="whole disc, centred"),
        pytest.param(425, 640, (212, 296), 255, id="cut at top and bottom, as Kowa"),
        pytest.param(500, 500, (250, 250), 249, id="fills the square"),
        pytest.param(900, 1200, (430, 520), 300, id="off centre"),
        pytest.param(600, 800, (220, 400), 280, id="cut at the top only"),
        pytest.param(2000, 3000, (1000, 1510), 1150, id="large, cut"),
    ],
)
def test_disc_is_found_where_it_was_drawn(rows: int, columns: int, centre: tuple[float, float], radius: float) -> None:
    grid = prepare(Frame.from_rgb(disc(rows, columns, centre, radius)), contract()).grid

    assert (grid.source_rows, grid.source_columns) == (rows, columns)
    tolerance = 0.02 * radius + 1
    assert grid.top == pytest.approx(centre[0] - radius, abs=tolerance)
    assert grid.left == pytest.approx(centre[1] - radius, abs=tolerance)
    assert grid.height == pytest.approx(2 * radius, abs=2 * tolerance)
    assert grid.width == pytest.approx(2 * radius, abs=2 * tolerance)


def test_notch_and_burnt_in_text_do_not_move_the_disc() -> None:
    plain = disc(600, 800, (300, 400), 250)
    image = Image.fromarray(plain)
    draw = ImageDraw.Draw(image)
    draw.polygon([(630, 170), (670, 170), (670, 210)], fill=(180, 90, 40))
    draw.text((10, 10), "OD 50 deg 2024", fill=(255, 255, 255))
    grid = prepare(Frame.from_rgb(np.asarray(image)), contract()).grid

    assert grid.top == pytest.approx(50, abs=6)
    assert grid.left == pytest.approx(150, abs=6)
    assert grid.width == pytest.approx(500, abs=12)


def test_picture_without_a_border_is_kept_whole() -> None:
    pixels = np.random.default_rng(0).integers(90, 160, (300, 420, 3), dtype=np.uint8)
    grid = prepare(Frame.from_rgb(pixels), contract()).grid

    assert (grid.height, grid.width) == pytest.approx((420, 420), abs=0.5)
    assert (grid.top, grid.left) == pytest.approx((-60, 0), abs=0.5)


def test_black_picture_gives_the_whole_square_and_no_error() -> None:
    prepared = prepare(Frame.from_rgb(np.zeros((64, 96, 3), dtype=np.uint8)), contract())

    assert (prepared.grid.top, prepared.grid.height) == pytest.approx((-16, 96))
    assert not prepared.tensor.any()
    assert prepared.statistics["field_of_view_fraction"] == 0


def test_grid_says_where_a_tensor_pixel_came_from() -> None:
    """A bright spot at a known place in the source is found in the tensor, and the grid maps it back."""
    pixels = disc(425, 640, (212, 296), 255, noise=0)
    spot = (120, 380)
    pixels[spot[0] - 4 : spot[0] + 5, spot[1] - 4 : spot[1] + 5] = (40, 60, 255)
    side = 192
    prepared = prepare(Frame.from_rgb(pixels), contract(side=side))
    row, column = np.unravel_index(int(prepared.tensor[2].argmax()), (side, side))
    grid = prepared.grid

    assert grid.top + (row + 0.5) / side * grid.height == pytest.approx(spot[0] + 0.5, abs=4)
    assert grid.left + (column + 0.5) / side * grid.width == pytest.approx(spot[1] + 0.5, abs=4)


def test_padding_outside_the_picture_is_black_before_normalisation() -> None:
    made = contract(mean=(0.5,) * 3, std=(0.25,) * 3)
    prepared = prepare(Frame.from_rgb(disc(425, 640, (212, 296), 255)), made)

    outside_rows = int(-prepared.grid.top / prepared.grid.height * 96) - 1
    assert outside_rows > 4
    np.testing.assert_allclose(prepared.tensor[:, :outside_rows], -2.0)


def test_normalisation_against_arithmetic() -> None:
    pixels = np.full((64, 64, 3), (200, 100, 50), dtype=np.uint8)
    made = contract(crop="none", side=32, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.125))
    tensor = prepare(Frame.from_rgb(pixels), made).tensor

    assert tensor.shape == (3, 32, 32)
    assert tensor.dtype == np.float32
    for channel, expected in enumerate(((200 / 255 - 0.1) / 0.5, (100 / 255 - 0.2) / 0.25, (50 / 255 - 0.3) / 0.125)):
        np.testing.assert_allclose(tensor[channel], expected, rtol=1e-5)


def test_percentiles_make_window_and_depth_irrelevant() -> None:
    random = np.random.default_rng(3)
    smooth = Image.fromarray(random.random((40, 40)).astype(np.float32)).resize((400, 300), Image.Resampling.BICUBIC)
    pixels = np.clip(np.asarray(smooth, dtype=np.float32), 0, 1)
    made = contract("MONOCHROME2", crop="none", intensity="percentile")
    first = prepare(Frame.from_greyscale(pixels), made).tensor
    second = prepare(Frame.from_greyscale((0.3 + 0.2 * pixels).astype(np.float32)), made).tensor

    np.testing.assert_allclose(first, second, atol=1e-4)
    np.testing.assert_array_equal(first[0], first[2])
    assert first.min() == 0
    assert first.max() == 1


def test_averaging_is_antialiased() -> None:
    """Alternate black and white columns become grey, whatever the reduction."""
    pixels = np.zeros((3000, 3000, 3), dtype=np.uint8)
    pixels[:, ::2] = 200
    tensor = prepare(Frame.from_rgb(pixels), contract(crop="none", side=100)).tensor

    np.testing.assert_allclose(tensor, 100 / 255, atol=0.01)


@pytest.mark.parametrize("photometric", ["RGB", "MONOCHROME2"])
def test_wrong_kind_of_picture_is_refused(photometric: str) -> None:
    colour = Frame.from_rgb(np.zeros((32, 32, 3), dtype=np.uint8))
    greyscale = Frame.from_greyscale(np.zeros((32, 32), dtype=np.float32))
    with pytest.raises(PixelError, match="the picture is"):
        prepare(greyscale if photometric == "RGB" else colour, contract(photometric))


def test_values_that_are_not_finite_are_refused() -> None:
    pixels = np.zeros((64, 64), dtype=np.float32)
    pixels[20, 20] = np.nan
    with pytest.raises(PixelError, match="not finite"):
        prepare(Frame.from_greyscale(pixels), contract("MONOCHROME2", crop="none"))


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((32, 32), dtype=np.uint8),
        np.zeros((32, 32, 3), dtype=np.float32),
        np.zeros((32, 32, 4), dtype=np.uint8),
        np.zeros((4, 32, 3), dtype=np.uint8),
    ],
)
def test_frame_of_another_shape_or_type_does_not_exist(pixels: npt.NDArray[np.uint8]) -> None:
    with pytest.raises(PixelError):
        Frame(pixels=pixels, source_rows=32, source_columns=32)


def test_frame_larger_than_its_source_does_not_exist() -> None:
    with pytest.raises(PixelError, match="more pixels"):
        Frame.from_rgb(np.zeros((32, 32, 3), dtype=np.uint8), source_rows=16, source_columns=32)


@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_reduced_jpeg_scale_gives_nearly_the_same_tensor(reduction: int) -> None:
    pixels = disc(2136, 3216, (1068, 1500), 1280, noise=8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=95)
    made = contract(side=192)
    full = prepare(Frame.from_rgb(pixels), made)
    reduced = prepare(_decoded(stream, reduction, pixels.shape[:2]), made)

    assert float(np.abs(full.tensor - reduced.tensor).mean()) < 0.006
    for name in ("top", "left", "height", "width"):
        assert getattr(reduced.grid, name) == pytest.approx(getattr(full.grid, name), abs=12)


@pytest.mark.skipif(not FULL_SIZE.is_dir(), reason="the shared photographs are not here")
def test_reduced_scale_of_real_photographs() -> None:
    """Mean difference below 1/255 of the range at every scale that the decoder offers."""
    made = contract(side=320)
    for path in sorted(FULL_SIZE.glob("*.jpg"))[:3]:
        stream = io.BytesIO(path.read_bytes())
        with Image.open(stream) as image:
            source = (image.size[1], image.size[0])
        full = prepare(_decoded(stream, 1, source), made)
        for reduction in (2, 4, 8):
            reduced = prepare(_decoded(stream, reduction, source), made)
            assert float(np.abs(full.tensor - reduced.tensor).mean()) < 1 / 255
            assert reduced.grid.top == pytest.approx(full.grid.top, abs=0.002 * source[0])
            assert reduced.grid.width == pytest.approx(full.grid.width, rel=0.002)
            for name, value in full.statistics.items():
                assert reduced.statistics[name] == pytest.approx(value, rel=0.06, abs=0.004), name


def test_field_of_view_of_a_thumbnail_is_a_circle() -> None:
    field = find_field_of_view(disc(170, 256, (85, 120), 70).astype(np.float32) / 255)

    assert field.is_circle
    area = np.pi * 70**2 / (170 * 256)
    assert float(field.mask.mean()) == pytest.approx(area, rel=0.03)


def _decoded(stream: io.BytesIO, reduction: int, source: tuple[int, ...]) -> Frame:
    """The JPEG decoded at 1 / `reduction` of its size by the DCT scaling of libjpeg."""
    stream.seek(0)
    with Image.open(stream) as image:
        image.draft("RGB", (source[1] // reduction, source[0] // reduction))
        pixels = np.asarray(image)
    assert pixels.shape[0] <= -(-source[0] // reduction) + 1
    return Frame.from_rgb(pixels, source_rows=source[0], source_columns=source[1])
