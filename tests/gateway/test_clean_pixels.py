"""Clean Pixel Data: text goes from every encoding, nothing else changes, and an untouched picture keeps its bytes."""

from __future__ import annotations

import hashlib
import importlib.util
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from burned_in import TOKEN, Recording, glyphs, similarity, tissue, words_of_tesseract, write
from picture_encodings import (
    LOSSLESS,
    around_codestream,
    as_palette,
    colour_scene,
    encoded,
    image_dataset,
    jpeg,
    jpeg_dataset,
    reread,
)
from PIL import Image
from pydicom import Dataset
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)
from valid_images import secondary_capture

from gateway.deidentification.burned_in_text import INSTALL, NetworkTextFinder
from gateway.deidentification.clean_pixels import PixelCleaning, clean_pixels
from gateway.deidentification.options import DeidentificationProfile, Option
from gateway.deidentify import Deidentifier
from gateway.errors import DeidentificationError
from models.pixels import read_frame

KEY = hashlib.sha256(b"a key of these tests").digest()
SHARED = Path(__file__).resolve().parents[2] / "../shared/data"
ROWS, COLUMNS, ROW, COLUMN = 160, 256, 70, 40
SHOWN, GONE = 0.6, 0.3
"""Correlation with the token's glyphs, see :func:`burned_in.similarity`."""

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("rapidocr") is None, reason=f"no text detection network: {INSTALL}"
)


@pytest.fixture(scope="module")
def network() -> NetworkTextFinder:
    return NetworkTextFinder()


@pytest.fixture
def finder(network: NetworkTextFinder) -> Recording:
    return Recording(network)


def grey(value: int = 4095) -> np.ndarray:
    """uint16 [ROWS, COLUMNS] of 12 bits with the token."""
    picture = tissue(ROWS, COLUMNS)
    write(picture, glyphs(), ROW, COLUMN, value)
    return picture


def colour() -> np.ndarray:
    """uint8 [ROWS, COLUMNS, 3] with the token."""
    picture = colour_scene(ROWS, COLUMNS)
    write(picture, glyphs(), ROW, COLUMN, (255, 255, 240))
    return picture


def shown(dataset: Dataset, frame_index: int = 0) -> np.ndarray:
    """The frame as displayed, uint8 [rows, columns]."""
    pixels = read_frame(dataset, frame_index=frame_index).pixels
    if pixels.dtype != np.uint8:
        pixels = np.clip(pixels * 255, 0, 255).astype(np.uint8)
    return np.asarray(Image.fromarray(pixels).convert("L"))


def assert_token_is_gone(dataset: Dataset, network: NetworkTextFinder, frame_index: int = 0) -> None:
    picture = shown(dataset, frame_index)
    assert similarity(picture, glyphs()) < GONE
    assert network.find(picture) == ()
    read = words_of_tesseract(picture)
    assert read is None or not any(part in read.upper() for part in ("KOWAL", "CZYK", "7731"))


@pytest.mark.parametrize("syntax", LOSSLESS.values(), ids=LOSSLESS)
def test_greyscale_of_12_bits_in_every_lossless_encoding(
    syntax: UID, finder: Recording, network: NetworkTextFinder
) -> None:
    original = grey()
    native = image_dataset(original, photometric_interpretation="MONOCHROME2", bits_stored=12)
    dataset = encoded(native, syntax)
    assert similarity(shown(dataset), glyphs()) > SHOWN

    cleaning = clean_pixels(dataset, finder)
    dataset = reread(dataset)

    assert cleaning.frames == 1
    assert cleaning.boxes >= 1
    assert dataset.BurnedInAnnotation == "NO"
    kept_syntax = syntax if not syntax.is_encapsulated else ExplicitVRLittleEndian
    assert dataset.file_meta.TransferSyntaxUID == kept_syntax
    assert_token_is_gone(dataset, network)
    outside = finder.outside(ROWS, COLUMNS)
    assert np.array_equal(dataset.pixel_array[outside], original[outside])
    assert np.unique(dataset.pixel_array[~outside]).tolist() == [original.min()]
    assert "LossyImageCompression" not in dataset


@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, RLELossless, JPEGLSLossless, JPEG2000Lossless], ids=lambda syntax: syntax.name
)
def test_colour_in_lossless_encodings(syntax: UID, finder: Recording, network: NetworkTextFinder) -> None:
    original = colour()
    dataset = encoded(image_dataset(original, photometric_interpretation="RGB"), syntax)
    assert clean_pixels(dataset, finder).boxes >= 1
    dataset = reread(dataset)
    assert dataset.PhotometricInterpretation == "RGB"
    assert dataset.PlanarConfiguration == 0
    assert_token_is_gone(dataset, network)
    outside = finder.outside(ROWS, COLUMNS)
    assert np.array_equal(dataset.pixel_array[outside], original[outside])
    assert not dataset.pixel_array[~outside].any()


def test_a_lossy_jpeg_becomes_native_rgb_and_stays_known_as_lossy(
    finder: Recording, network: NetworkTextFinder
) -> None:
    dataset = jpeg_dataset(jpeg(colour()), photometric_interpretation="YBR_FULL_422")
    encoded_bytes = len(dataset.PixelData)
    with Image.open(io.BytesIO(jpeg(colour()))) as independent:
        decoded = np.asarray(independent.convert("RGB"))
    assert clean_pixels(dataset, finder).boxes >= 1
    dataset = reread(dataset)
    assert (dataset.file_meta.TransferSyntaxUID, dataset.PhotometricInterpretation) == (ExplicitVRLittleEndian, "RGB")
    assert (dataset.LossyImageCompression, dataset.LossyImageCompressionMethod) == ("01", "ISO_10918_1")
    assert float(dataset.LossyImageCompressionRatio) == pytest.approx(ROWS * COLUMNS * 3 / encoded_bytes, rel=1e-3)
    assert_token_is_gone(dataset, network)
    outside = finder.outside(ROWS, COLUMNS)
    assert np.array_equal(dataset.pixel_array[outside], decoded[outside])


def test_a_lossy_history_stays_as_it_was(finder: Recording) -> None:
    dataset = jpeg_dataset(jpeg(colour()), photometric_interpretation="YBR_FULL_422")
    dataset.LossyImageCompression, dataset.LossyImageCompressionRatio = "01", ["20", "2"]
    dataset.LossyImageCompressionMethod = ["ISO_15444_1", "ISO_10918_1"]
    clean_pixels(dataset, finder)
    assert list(dataset.LossyImageCompressionRatio) == [20, 2]
    assert list(dataset.LossyImageCompressionMethod) == ["ISO_15444_1", "ISO_10918_1"]


def planes(pixels: np.ndarray) -> Dataset:
    dataset = image_dataset(pixels, photometric_interpretation="RGB")
    dataset.PlanarConfiguration = 1
    dataset.PixelData = pixels.transpose(2, 0, 1).tobytes()
    return dataset


def ybr_full(pixels: np.ndarray) -> Dataset:
    return image_dataset(np.asarray(Image.fromarray(pixels).convert("YCbCr")), photometric_interpretation="YBR_FULL")


def ybr_full_422(pixels: np.ndarray) -> Dataset:
    dataset = ybr_full(pixels)
    ycbcr = np.frombuffer(dataset.PixelData, np.uint8).reshape(ROWS, COLUMNS // 2, 2, 3)
    pairs = np.concatenate([ycbcr[..., 0], ycbcr[:, :, 0, 1:]], axis=2)
    dataset.PhotometricInterpretation = "YBR_FULL_422"
    dataset.PixelData = pairs.tobytes()
    return dataset


@pytest.mark.parametrize("make", [planes, ybr_full, ybr_full_422])
def test_native_colour_keeps_its_arrangement(
    make: Callable[[np.ndarray], Dataset], finder: Recording, network: NetworkTextFinder
) -> None:
    dataset = make(colour())
    before = shown(dataset)
    described = (dataset.PhotometricInterpretation, dataset.PlanarConfiguration, len(dataset.PixelData))
    assert clean_pixels(dataset, finder).boxes >= 1
    dataset = reread(dataset)
    assert (dataset.PhotometricInterpretation, dataset.PlanarConfiguration, len(dataset.PixelData)) == described
    assert_token_is_gone(dataset, network)
    outside = finder.outside(ROWS, COLUMNS)
    if make is ybr_full_422:  # the column that shares its colour samples with a box
        outside[:, 0::2] &= outside[:, 1::2]
        outside[:, 1::2] &= outside[:, 0::2]
    after = shown(dataset)
    assert np.array_equal(after[outside], before[outside])
    assert after[~outside].max() == 0


def test_big_endian_words_of_8_bit_samples(finder: Recording, network: NetworkTextFinder) -> None:
    original = (grey() >> 4).astype(np.uint8)
    dataset = image_dataset(original, photometric_interpretation="MONOCHROME2")
    dataset.PixelData = original.reshape(-1, 2)[:, ::-1].tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    dataset = reread(dataset)
    assert clean_pixels(dataset, finder).boxes >= 1
    dataset = reread(dataset)
    assert_token_is_gone(dataset, network)
    outside = finder.outside(ROWS, COLUMNS)
    words = np.frombuffer(dataset.PixelData, np.uint8).reshape(-1, 2)[:, ::-1].reshape(ROWS, COLUMNS)
    assert np.array_equal(words[outside], original[outside])


@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, RLELossless, JPEGLSLossless], ids=lambda syntax: syntax.name
)
def test_signed_values_keep_their_sign(syntax: UID, finder: Recording, network: NetworkTextFinder) -> None:
    original = (grey().astype(np.int32) - 2048).astype(np.int16)
    native = image_dataset(
        original,
        photometric_interpretation="MONOCHROME2",
        bits_stored=16,
        PixelRepresentation=1,
        RescaleSlope="1",
        RescaleIntercept="0",
    )
    dataset = encoded(native, syntax)
    assert clean_pixels(dataset, finder).boxes >= 1
    dataset = reread(dataset)
    assert_token_is_gone(dataset, network)
    outside = finder.outside(ROWS, COLUMNS)
    assert np.array_equal(dataset.pixel_array[outside], original[outside])
    assert np.unique(dataset.pixel_array[~outside]).tolist() == [original.min()]


def test_black_of_monochrome1_is_its_highest_value(finder: Recording, network: NetworkTextFinder) -> None:
    original = 4095 - grey()
    dataset = image_dataset(original, photometric_interpretation="MONOCHROME1", bits_stored=12)
    assert clean_pixels(dataset, finder).boxes >= 1
    assert_token_is_gone(dataset, network)
    assert np.unique(dataset.pixel_array[~finder.outside(ROWS, COLUMNS)]).tolist() == [original.max()]


def test_palette_colour_keeps_its_palette(finder: Recording, network: NetworkTextFinder) -> None:
    dataset = as_palette(colour())
    before = dataset.pixel_array.copy()
    table = dataset.RedPaletteColorLookupTableData
    assert clean_pixels(dataset, finder).boxes >= 1
    assert dataset.RedPaletteColorLookupTableData == table
    assert_token_is_gone(dataset, network)
    outside = finder.outside(ROWS, COLUMNS)
    assert np.array_equal(dataset.pixel_array[outside], before[outside])


def frames(texts: dict[int, str], count: int = 4) -> np.ndarray:
    """uint8 [count, ROWS, COLUMNS]: noise that differs, and a text in some."""
    made = []
    for index in range(count):
        picture = (tissue(ROWS, COLUMNS) >> 5).astype(np.uint8)
        picture[: ROWS // 3] = np.random.default_rng(index).integers(0, 30, (ROWS // 3, COLUMNS), dtype=np.uint8)
        if index in texts:
            write(picture, glyphs(texts[index]), ROW, COLUMN, 255)
        made.append(picture)
    return np.stack(made)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless], ids=lambda syntax: syntax.name)
def test_every_frame_is_looked_at(syntax: UID, finder: Recording, network: NetworkTextFinder) -> None:
    original = frames({2: TOKEN})
    native = image_dataset(original, photometric_interpretation="MONOCHROME2", frame_count=4)
    dataset = encoded(native, syntax)
    cleaning = clean_pixels(dataset, finder)
    assert (cleaning.frames, cleaning.boxes) == (4, len(finder.found[2]))
    assert len(finder.found) == 4
    dataset = reread(dataset)
    assert_token_is_gone(dataset, network, 2)
    assert np.array_equal(dataset.pixel_array[[0, 1, 3]], original[[0, 1, 3]])
    outside = finder.outside(ROWS, COLUMNS)
    assert np.array_equal(dataset.pixel_array[2][outside], original[2][outside])


def test_what_was_found_in_one_frame_goes_from_those_that_show_it_too(network: NetworkTextFinder) -> None:
    original = frames({0: TOKEN, 1: TOKEN, 3: TOKEN})
    dataset = image_dataset(original, photometric_interpretation="MONOCHROME2", frame_count=4)
    finder = Recording(network, most=1)  # which sees nothing from the second frame on
    cleaning = clean_pixels(dataset, finder)
    assert cleaning.boxes == 3 * len(finder.found[0])
    for index in (0, 1, 3):
        assert_token_is_gone(dataset, network, index)
    assert np.array_equal(dataset.pixel_array[2], original[2])


def test_text_above_the_window_is_found(finder: Recording, network: NetworkTextFinder) -> None:
    original = tissue(ROWS, COLUMNS) // 8 + 400  # all of it white in the window, the text too
    write(original, glyphs(), ROW, COLUMN, 4095)
    dataset = image_dataset(
        original, photometric_interpretation="MONOCHROME2", bits_stored=12, WindowCenter="100", WindowWidth="200"
    )
    assert shown(dataset).min() == 255
    assert clean_pixels(dataset, finder).boxes >= 1
    del dataset.WindowCenter, dataset.WindowWidth
    assert_token_is_gone(dataset, network)


def test_text_that_one_bright_pixel_hides_in_the_whole_range_is_found(finder: Recording) -> None:
    original = tissue(ROWS, COLUMNS) // 20
    write(original, glyphs(), ROW, COLUMN, 300)
    original[0, 0] = 65535
    dataset = image_dataset(
        original, photometric_interpretation="MONOCHROME2", bits_stored=16, WindowCenter="150", WindowWidth="300"
    )
    assert clean_pixels(dataset, finder).boxes >= 1
    assert similarity(shown(dataset), glyphs()) < GONE
    assert len(np.unique(dataset.pixel_array[~finder.outside(ROWS, COLUMNS)])) == 1


def test_where_nothing_is_found_nothing_changes(finder: Recording) -> None:
    native = image_dataset(tissue(ROWS, COLUMNS), photometric_interpretation="MONOCHROME2", bits_stored=12)
    for syntax in (ExplicitVRLittleEndian, JPEG2000Lossless):
        dataset = encoded(native, syntax)
        pixel_data = dataset.PixelData
        assert clean_pixels(dataset, finder) == PixelCleaning(frames=1, boxes=0)
        assert dataset.PixelData is pixel_data
        assert dataset.file_meta.TransferSyntaxUID == syntax
        assert dataset.BurnedInAnnotation == "NO"


def test_real_pictures_without_text_keep_their_bytes(finder: Recording) -> None:
    paths = sorted((SHARED / "fundus" / "images").glob("*.jpg"))[10:12]
    if not paths:
        pytest.skip("the shared fundus photographs are not here")
    for path in paths:
        dataset = jpeg_dataset(path.read_bytes(), photometric_interpretation="YBR_FULL_422")
        pixel_data = dataset.PixelData
        assert clean_pixels(dataset, finder) == PixelCleaning(frames=1, boxes=0)
        assert dataset.PixelData is pixel_data


def broken_stream() -> Dataset:
    codestream = jpeg(colour())
    return around_codestream(
        image_dataset(colour(), photometric_interpretation="YBR_FULL_422"), codestream[:700], JPEGBaseline8Bit
    )


def missing_frame() -> Dataset:
    dataset = image_dataset(frames({}), photometric_interpretation="MONOCHROME2", frame_count=4)
    dataset.PixelData = dataset.PixelData[: 3 * ROWS * COLUMNS]
    return dataset


def video() -> Dataset:
    dataset = jpeg_dataset(jpeg(colour()), photometric_interpretation="YBR_FULL_422")
    dataset.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.102")
    return dataset


@pytest.mark.parametrize("make", [broken_stream, missing_frame, video])
def test_what_cannot_be_decoded_is_refused_and_not_vouched_for(make: Callable[[], Dataset], finder: Recording) -> None:
    dataset = make()
    pixel_data = dataset.PixelData
    with pytest.raises(DeidentificationError, match="text in the pixels cannot be looked for"):
        clean_pixels(dataset, finder)
    assert "BurnedInAnnotation" not in dataset
    assert dataset.PixelData is pixel_data


def test_the_engine_says_that_it_looked_only_where_it_did(network: NetworkTextFinder) -> None:
    original = secondary_capture()
    pixels = (tissue(ROWS, COLUMNS) >> 4).astype(np.uint8)
    write(pixels, glyphs(), ROW, COLUMN, 255)
    original.Rows, original.Columns, original.PixelData = ROWS, COLUMNS, pixels.tobytes()
    original.BitsAllocated, original.BitsStored, original.HighBit = 8, 8, 7
    original.SamplesPerPixel, original.PhotometricInterpretation = 1, "MONOCHROME2"
    chosen = DeidentificationProfile(options=frozenset({Option.CLEAN_PIXEL_DATA}))
    copy = Deidentifier(KEY, chosen, text_finder=network).dataset(original)
    assert_token_is_gone(copy, network)
    assert copy.BurnedInAnnotation == "NO"
    codes = [item.CodeValue for item in copy.DeidentificationMethodCodeSequence]
    assert codes == ["113100", "113101"]
    assert similarity(shown(original), glyphs()) > SHOWN
