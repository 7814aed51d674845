"""One picture in many encodings gives one score, by the models that ship.

The pictures: `RG1_UNCI.dcm` of pydicom-data, a real chest radiograph, cut to 12 bits; and a drawn fundus. Tolerances
are differences of scores, which are probabilities: none but rounding for lossless encodings, 0.02 (greyscale) and 0.05
(colour) for lossy ones. That is what compression does to these two pictures, whose scores lie on the steep part; that
it is not the decoder's doing is shown by decoding the same codestream without DICOM, which leaves no difference.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from picture_encodings import (
    LOSSLESS,
    around_codestream,
    as_palette,
    encoded,
    image_dataset,
    jpeg,
    jpeg_dataset,
    reread,
)
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import JPEG2000, JPEGBaseline8Bit, JPEGLSNearLossless

from gateway.demo_images import draw_fundus
from models.card import load_bundle
from models.frame import Frame
from models.pixels import read_frame
from models.preprocess import prepare
from models.session import ModelSession

ROOT = Path(__file__).resolve().parents[2]
FULL_SIZE = ROOT / "../shared/data/fundus/full_size"
LOSSLESS_TOLERANCE = 1e-6
GREY_LOSSY_TOLERANCE, COLOUR_LOSSY_TOLERANCE = 0.02, 0.05


@cache
def session_of(model_name: str) -> ModelSession:
    folder = ROOT / "models/bundled" / model_name / "1"
    if not folder.is_dir():
        pytest.fail(f"the bundle {model_name} 1 is not there")
    return ModelSession(load_bundle(folder))


def frame_score(model_name: str, frame: Frame) -> float:
    session = session_of(model_name)
    (prediction,) = session.run(prepare(frame, session.bundle.card.pixel_contract).tensor[np.newaxis])
    return float(prediction.scores[session.bundle.card.findings[0].name])


@cache
def radiograph_score() -> float:
    """Score of the picture displayed here by hand: no DICOM, no decoder."""
    return frame_score("chest-triage", Frame.from_greyscale((radiograph() / 4095).astype(np.float32)))


@cache
def fundus_score() -> float:
    """Score of the picture as drawn."""
    return frame_score("retinopathy", Frame.from_rgb(fundus()))


def score(model_name: str, dataset: Dataset, *, frame_index: int = 0, least_side: int | None = None) -> float:
    return frame_score(model_name, read_frame(dataset, frame_index=frame_index, least_side=least_side))


@cache
def radiograph() -> np.ndarray:
    """uint16 [rows, columns], 12 bits, low is dark: the radiograph inverted, every second row and column."""
    dataset = dcmread(str(get_testdata_file("RG1_UNCI.dcm", download=False)))
    codes = np.frombuffer(dataset.PixelData, "<u2").reshape(dataset.Rows, dataset.Columns)[::2, ::2]
    return 4095 - (codes >> 3)


WINDOW = {"WindowCenter": "2047.5", "WindowWidth": "4095", "VOILUTFunction": "LINEAR_EXACT"}


def grey(codes: np.ndarray, photometric_interpretation: str = "MONOCHROME2", **elements: object) -> Dataset:
    elements = {"bits_stored": 12} | WINDOW | elements
    return image_dataset(codes, photometric_interpretation=photometric_interpretation, **elements)


def near_lossless() -> Dataset:
    dataset = reread(grey(radiograph()))
    dataset.compress(JPEGLSNearLossless, encoding_plugin="pyjpegls", jls_error=8, generate_instance_uid=False)
    return reread(dataset)


def lossy_jpeg_2000(dataset: Dataset) -> Dataset:
    copy = reread(dataset)
    copy.compress(JPEG2000, encoding_plugin="pylibjpeg", j2k_cr=[10], generate_instance_uid=False)
    return reread(copy)


def eight_bit_jpeg() -> Dataset:
    codes = (radiograph() >> 4).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(codes).save(stream, "JPEG", quality=95)
    return around_codestream(grey(codes, bits_stored=8, WindowCenter="127.5", WindowWidth="255"), stream.getvalue(),
                             JPEGBaseline8Bit)  # fmt: skip


def signed(unused_bits: int = 0) -> Dataset:
    """Twelve bit two's complement; `unused_bits` says which of the bits above keep copies of the sign."""
    codes = (radiograph().astype(np.int32) - 2048).astype(np.int16).view(np.uint16)
    return grey(codes & (0x0FFF | unused_bits), PixelRepresentation=1, RescaleSlope="1", RescaleIntercept="2048")


GREY_LOSSLESS: dict[str, Callable[[], Dataset]] = {
    **{name: (lambda uid=uid: encoded(grey(radiograph()), uid)) for name, uid in LOSSLESS.items()},
    "MONOCHROME1": lambda: grey(4095 - radiograph(), "MONOCHROME1"),
    "signed, rescaled": signed,
    "high bit 15": lambda: grey(radiograph() << 4, HighBit=15),
    "16 bits": lambda: grey(radiograph() * 16, bits_stored=16, WindowCenter="32760", WindowWidth="65520"),
    "signed JPEG 2000": lambda: encoded(signed(0xF000), LOSSLESS["JPEG 2000 lossless"]),
}
GREY_LOSSY: dict[str, Callable[[], Dataset]] = {
    "JPEG-LS within 8 of 4095": near_lossless,
    "JPEG 2000 at 10:1": lambda: lossy_jpeg_2000(grey(radiograph())),
    "8 bit JPEG": eight_bit_jpeg,
}


class TestRadiograph:
    def test_the_score_would_show_a_difference(self) -> None:
        """A score at its end would stay there whatever the decoder did."""
        inverted = score("chest-triage", grey(radiograph(), "MONOCHROME1"))
        assert 0.001 < radiograph_score() < 0.999
        assert abs(inverted - radiograph_score()) > GREY_LOSSY_TOLERANCE

    @pytest.mark.parametrize("name", GREY_LOSSLESS)
    def test_lossless(self, name: str) -> None:
        assert score("chest-triage", GREY_LOSSLESS[name]()) == pytest.approx(radiograph_score(), abs=LOSSLESS_TOLERANCE)

    @pytest.mark.parametrize("name", GREY_LOSSY)
    def test_lossy(self, name: str) -> None:
        assert score("chest-triage", GREY_LOSSY[name]()) == pytest.approx(radiograph_score(), abs=GREY_LOSSY_TOLERANCE)

    def test_second_of_three_frames(self) -> None:
        picture = radiograph()
        native = grey(np.stack([picture[::-1], picture, picture // 2]), frame_count=3)
        for dataset in (native, encoded(native, LOSSLESS["JPEG-LS lossless"])):
            found = score("chest-triage", dataset, frame_index=1)
            assert found == pytest.approx(radiograph_score(), abs=LOSSLESS_TOLERANCE)

    def test_four_transfer_syntaxes_as_they_came(self) -> None:
        """The same radiograph as its maker wrote it: little endian and JPEG 2000, lossless (R) and lossy (I)."""
        scores = {
            kind: score("chest-triage", dcmread(str(get_testdata_file(f"RG1_{kind}.dcm", download=False))))
            for kind in ("UNCR", "J2KR", "UNCI", "J2KI")
        }
        assert scores["J2KR"] == pytest.approx(scores["UNCR"], abs=LOSSLESS_TOLERANCE)
        assert scores["J2KI"] == pytest.approx(scores["UNCI"], abs=GREY_LOSSY_TOLERANCE)
        assert scores["UNCI"] == pytest.approx(scores["UNCR"], abs=GREY_LOSSY_TOLERANCE)


@cache
def fundus() -> np.ndarray:
    """uint8 [rows, columns, 3], at most 65,535 colours so that a palette holds them all."""
    drawn = draw_fundus(seed=3, lesions=12, blur_pixels=0.0, eye="R")
    picture = Image.fromarray(drawn).resize((768, 512), Image.Resampling.LANCZOS)
    return np.asarray(picture) & np.uint8(0xFC)


def rgb(**elements: object) -> Dataset:
    return image_dataset(fundus(), photometric_interpretation="RGB", **elements)


def by_plane() -> Dataset:
    dataset = reread(rgb())
    dataset.PlanarConfiguration, dataset.PixelData = 1, fundus().transpose(2, 0, 1).tobytes()
    return reread(dataset)


def ybr_full() -> Dataset:
    rows, columns = fundus().shape[:2]
    converted = np.asarray(Image.fromarray(fundus()).convert("YCbCr")).reshape(rows, columns, 3)
    return image_dataset(converted, photometric_interpretation="YBR_FULL")


def ict() -> Dataset:
    dataset = rgb()
    dataset.PhotometricInterpretation = "YBR_ICT"
    return lossy_jpeg_2000(dataset)


COLOUR_LOSSLESS: dict[str, Callable[[], Dataset]] = {
    **{name: (lambda uid=uid: encoded(rgb(), uid)) for name, uid in LOSSLESS.items()},
    "by plane": by_plane,
    "PALETTE COLOR": lambda: as_palette(fundus()),
    "16 bits a sample": lambda: image_dataset(fundus().astype(np.uint16) * 257, photometric_interpretation="RGB"),
}
COLOUR_LOSSY: dict[str, Callable[[], Dataset]] = {
    "YBR_FULL": ybr_full,
    "YBR_FULL_422 JPEG": lambda: jpeg_dataset(jpeg(fundus()), photometric_interpretation="YBR_FULL_422"),
    "JPEG named RGB": lambda: jpeg_dataset(jpeg(fundus()), photometric_interpretation="RGB"),
    "JPEG of RGB": lambda: jpeg_dataset(jpeg(fundus(), ycbcr=False, mark="none"), photometric_interpretation="RGB"),
    "YBR_ICT JPEG 2000": ict,
}


class TestFundus:
    def test_the_score_would_show_a_difference(self) -> None:
        swapped = image_dataset(np.ascontiguousarray(fundus()[..., ::-1]), photometric_interpretation="RGB")
        assert 0.001 < fundus_score() < 0.999
        assert abs(score("retinopathy", swapped) - fundus_score()) > COLOUR_LOSSY_TOLERANCE

    @pytest.mark.parametrize("name", COLOUR_LOSSLESS)
    def test_lossless(self, name: str) -> None:
        assert score("retinopathy", COLOUR_LOSSLESS[name]()) == pytest.approx(fundus_score(), abs=LOSSLESS_TOLERANCE)

    @pytest.mark.parametrize("name", COLOUR_LOSSY)
    def test_lossy(self, name: str) -> None:
        assert score("retinopathy", COLOUR_LOSSY[name]()) == pytest.approx(fundus_score(), abs=COLOUR_LOSSY_TOLERANCE)

    @pytest.mark.parametrize("ycbcr", [True, False])
    def test_what_jpeg_changes_is_not_the_decoder_s_doing(self, ycbcr: bool) -> None:
        codestream = jpeg(fundus(), ycbcr=ycbcr, mark="Adobe")
        with Image.open(io.BytesIO(codestream)) as picture:
            expected = frame_score("retinopathy", Frame.from_rgb(np.asarray(picture.convert("RGB"))))
        plain = jpeg(fundus(), ycbcr=ycbcr, mark="none")
        dataset = jpeg_dataset(plain, photometric_interpretation="YBR_FULL_422" if ycbcr else "RGB")
        assert score("retinopathy", dataset) == pytest.approx(expected, abs=LOSSLESS_TOLERANCE)

    def test_full_size_photographs_at_a_reduced_scale(self) -> None:
        """12-megapixel JPEG decoded whole and at the scale that the gateway asks for."""
        if not FULL_SIZE.is_dir():
            pytest.skip("the photographs of ../shared/data are not here")
        for path in sorted(FULL_SIZE.glob("*.jpg"))[:3]:
            dataset = jpeg_dataset(path.read_bytes(), photometric_interpretation="YBR_FULL_422")
            whole, reduced = score("retinopathy", dataset), score("retinopathy", dataset, least_side=640)
            assert reduced == pytest.approx(whole, abs=COLOUR_LOSSY_TOLERANCE)
