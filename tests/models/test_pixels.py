"""Decoding, held against drawn scenes, pydicom's own pipeline and DCMTK."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from picture_encodings import (
    LOSSLESS,
    around_codestream,
    colour_scene,
    encoded,
    grey_scene,
    image_dataset,
    jpeg,
    jpeg_dataset,
    reread,
)
from PIL import Image
from pydicom import Dataset, Sequence, dcmread
from pydicom.data import get_testdata_file
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, pixel_array
from pydicom.uid import MPEG2MPML, JPEG2000Lossless, JPEGBaseline8Bit

from models.codestreams import read_jpeg2000_header, read_jpeg_header
from models.decoding import DecodingLimits, DirectDecoder
from models.errors import PixelError, UnsafePixelError
from models.greyscale import window
from models.palette import expand_segments
from models.pixels import displayed_frame_count, read_frame

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests/fixtures/dicom"
FLOAT32_ROUNDING = 1e-7

LOSSY_GREY = {"grey_jpeg_extended_12_bit": 10 / 4095, "grey_jpeg_ls_near_lossless": 4 / 4095}
"""Largest difference, as the README of the fixtures states it."""
LOSSY_COLOUR_MEAN = 1.5
"""Mean difference in levels of 255 that JPEG may make of the colour scene: 4:2:2 smears the edges of its patches."""


def fixture_names(prefix: str) -> list[str]:
    return sorted(path.stem for path in FIXTURES.glob(f"{prefix}_*.dcm"))


def fixture_frame(name: str) -> np.ndarray:
    index = 1 if name == "grey_multi_frame" else 0
    return read_frame(dcmread(FIXTURES / f"{name}.dcm"), frame_index=index).pixels


class TestFixtures:
    @pytest.mark.parametrize("name", fixture_names("grey"))
    def test_grey(self, name: str) -> None:
        found = fixture_frame(name)
        assert found.dtype == np.float32
        difference = np.abs(found - grey_scene() / 4095).max()
        assert difference <= LOSSY_GREY.get(name, 0) + FLOAT32_ROUNDING

    @pytest.mark.parametrize("name", fixture_names("colour"))
    def test_colour(self, name: str) -> None:
        found = fixture_frame(name)
        assert found.dtype == np.uint8
        difference = np.abs(found.astype(int) - colour_scene())
        if "_ybr" in name or "_jpeg_rgb" in name or name.endswith("_ict"):
            assert difference.mean() < LOSSY_COLOUR_MEAN
        else:
            assert difference.max() == 0

    def test_there_are_all(self) -> None:
        listed = (FIXTURES / "README.md").read_text(encoding="utf-8")
        assert len(fixture_names("grey") + fixture_names("colour")) == 36
        assert sum(path.stat().st_size for path in FIXTURES.glob("*.dcm")) < 1_000_000
        assert "grey_high_bit_15" in listed


PYDICOM_GREY = [
    "693_J2KI.dcm", "693_UNCR.dcm", "CT_small.dcm", "J2K_pixelrep_mismatch.dcm", "JPEG-LL.dcm", "JPEG2000.dcm",
    "JPEGLSNearLossless_08.dcm", "JPEGLSNearLossless_16.dcm", "JPGLosslessP14SV1_1s_1f_8b.dcm", "MR2_UNCI.dcm",
    "MR_small.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm",
    "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "RG1_J2KI.dcm", "RG1_UNCI.dcm", "RG3_UNCR.dcm",
    "emri_small.dcm", "emri_small_RLE.dcm", "emri_small_big_endian.dcm", "emri_small_jpeg_ls_lossless.dcm",
    "examples_overlay.dcm", "image_dfl.dcm", "mlut_18.dcm", "vlut_04.dcm",
]  # fmt: skip
PYDICOM_COLOUR = [
    "ExplVR_BigEnd.dcm", "GDCMJ2K_TextGBR.dcm", "SC_jpeg_no_color_transform.dcm", "SC_jpeg_no_color_transform_2.dcm",
    "SC_rgb_16bit.dcm", "SC_rgb_dcmtk_+eb+cr.dcm", "SC_rgb_dcmtk_+eb+cy+n1.dcm", "SC_rgb_dcmtk_+eb+cy+np.dcm",
    "SC_rgb_dcmtk_+eb+cy+s4.dcm", "SC_rgb_expb.dcm", "SC_rgb_gdcm_KY.dcm", "SC_rgb_jls_lossy_line.dcm",
    "SC_rgb_jls_lossy_sample.dcm", "SC_rgb_jpeg_app14_dcmd.dcm", "SC_rgb_jpeg_dcmtk.dcm", "SC_rgb_jpeg_gdcm.dcm",
    "SC_rgb_jpeg_lossy_gdcm.dcm", "SC_rgb_rle_16bit_2frame.dcm", "SC_ybr_full_422_uncompressed.dcm",
    "SC_ybr_full_uncompressed.dcm", "US1_J2KI.dcm", "US1_J2KR.dcm", "color-pl.dcm", "color-px.dcm",
    "color3d_jpeg_baseline.dcm", "examples_jpeg2k.dcm", "examples_ybr_color.dcm",
]  # fmt: skip
PYDICOM_PALETTE = ["OBXXXX1A.dcm", "OBXXXX1A_rle_2frame.dcm", "examples_palette.dcm", "gdcm-US-ALOKA-16.dcm"]


def public(name: str) -> Dataset:
    """A file that pydicom or pydicom-data carries, without asking the network for it."""
    path = get_testdata_file(name, download=False)
    if path is None:
        pytest.fail(f"{name} is in neither pydicom nor pydicom-data")
    return dcmread(str(path))


def pydicom_array(dataset: Dataset) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pixel_array(dataset, index=0)


class TestAgainstPydicom:
    @pytest.mark.parametrize("name", PYDICOM_GREY)
    def test_grey(self, name: str) -> None:
        dataset = public(name)
        codes = pydicom_array(dataset)
        values = apply_modality_lut(codes, dataset)
        shown = apply_voi_lut(values, dataset).astype(np.float64)
        if "VOILUTSequence" in dataset:
            shown /= (1 << dataset.VOILUTSequence[0].LUTDescriptor[2]) - 1
        elif "WindowCenter" in dataset:
            # pydicom scales a window's output to the range that the modality LUT can give
            low = -(1 << (dataset.BitsStored - 1)) if dataset.PixelRepresentation else 0
            ends = apply_modality_lut(np.array([low, low + (1 << dataset.BitsStored) - 1]), dataset)
            shown = (shown - ends[0]) / (ends[1] - ends[0])
        elif dataset.BitsStored == 8:
            shown /= 255
        else:
            shown = (shown - shown.min()) / (shown.max() - shown.min())
        if dataset.PhotometricInterpretation == "MONOCHROME1":
            shown = 1 - shown
        if "PixelPaddingValue" in dataset:
            shown[codes == dataset.PixelPaddingValue] = 0
        found = read_frame(dataset)
        assert not found.is_colour
        np.testing.assert_allclose(found.pixels, shown, atol=FLOAT32_ROUNDING)

    @pytest.mark.parametrize("name", PYDICOM_COLOUR)
    def test_colour(self, name: str) -> None:
        dataset = public(name)
        expected = pydicom_array(dataset).astype(int)
        if dataset.BitsAllocated == 16:
            expected >>= 8
        rounding = 1 if dataset.PhotometricInterpretation.startswith("YBR_FULL") else 0
        assert np.abs(read_frame(dataset).pixels - expected).max() <= rounding

    @pytest.mark.parametrize("name", PYDICOM_PALETTE)
    def test_palette(self, name: str) -> None:
        dataset = public(name)
        expected = apply_color_lut(pydicom_array(dataset), dataset)
        if expected.dtype == np.uint16:
            expected = expected >> 8
        np.testing.assert_array_equal(read_frame(dataset).pixels, expected)

    def test_palette_in_big_endian_is_that_in_little_endian(self) -> None:
        little, big = read_frame(public("OBXXXX1A.dcm")), read_frame(public("OBXXXX1A_expb.dcm"))
        np.testing.assert_array_equal(little.pixels, big.pixels)

    def test_last_frame(self) -> None:
        dataset = public("color3d_jpeg_baseline.dcm")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = pixel_array(dataset, index=119).astype(int)
        assert displayed_frame_count(dataset) == 120
        assert np.abs(read_frame(dataset, frame_index=119).pixels - expected).max() <= 1

    def test_four_transfer_syntaxes_of_one_radiograph(self) -> None:
        first = read_frame(public("RG1_UNCI.dcm")).pixels
        assert np.abs(first - read_frame(public("RG1_J2KI.dcm")).pixels).max() < 0.01
        second = read_frame(public("RG1_UNCR.dcm")).pixels
        np.testing.assert_array_equal(second, read_frame(public("RG1_J2KR.dcm")).pixels)


class TestAgainstDcmtk:
    @pytest.fixture(autouse=True)
    def dcmtk(self) -> None:
        if shutil.which("dcmj2pnm") is None:
            pytest.skip("DCMTK's dcmj2pnm is not installed")

    @staticmethod
    def rendered(path: str | Path, tmp_path: Path, *options: str) -> np.ndarray:
        target = tmp_path / "rendered.pnm"
        subprocess.run(["dcmj2pnm", *options, "--write-raw-pnm", str(path), str(target)], check=True)
        with Image.open(target) as picture:
            return np.asarray(picture).astype(int)

    @pytest.mark.parametrize(
        ("source", "options"),
        [
            ("RG1_UNCI.dcm", ["--use-window", "1"]),
            ("MR2_UNCI.dcm", ["--use-window", "1"]),
            ("vlut_04.dcm", ["--use-voi-lut", "1"]),
            ("grey_signed_rescaled", ["--use-window", "1"]),
        ],
    )
    def test_grey(self, source: str, options: list[str], tmp_path: Path) -> None:
        path = FIXTURES / f"{source}.dcm" if source.startswith("grey") else get_testdata_file(source, download=False)
        expected = self.rendered(path, tmp_path, *options)
        found = read_frame(dcmread(path)).pixels * 255
        # DCMTK rounds to whole numbers after the modality LUT too
        assert np.abs(found - expected).max() <= 1.2

    @pytest.mark.parametrize("source", ["OBXXXX1A.dcm", "examples_palette.dcm", "SC_rgb_jpeg_dcmtk.dcm"])
    def test_colour(self, source: str, tmp_path: Path) -> None:
        path = get_testdata_file(source, download=False)
        expected = self.rendered(path, tmp_path)
        assert np.abs(read_frame(dcmread(path)).pixels - expected).max() <= 3

    @pytest.mark.parametrize("source", ["JPGExtended.dcm", "JPEG-lossy.dcm", "JPEG-LL.dcm", "bad_sequence.dcm"])
    def test_decoded_values(self, source: str, tmp_path: Path) -> None:
        path = get_testdata_file(source, download=False)
        target = tmp_path / "native.dcm"
        subprocess.run(["dcmdjpeg", str(path), str(target)], check=True, capture_output=True)
        np.testing.assert_array_equal(read_frame(dcmread(path)).pixels, read_frame(dcmread(target)).pixels)


def grey(scene: np.ndarray | None = None, **elements: Any) -> Dataset:
    codes = grey_scene() if scene is None else scene
    elements.setdefault("bits_stored", 12)
    return image_dataset(codes, photometric_interpretation=elements.pop("photometric", "MONOCHROME2"), **elements)


def lut_item(values: list[int], first: int, bits: int) -> Sequence:
    item = Dataset()
    item.LUTDescriptor = [len(values), first, bits]
    item.add_new(0x00283006, "US", values)
    return Sequence([item])


class TestGreyscale:
    def test_linear_window_as_the_standard_s_pseudo_code(self) -> None:
        """PS3.3 C.11.2.1.2.1, spelled out value by value."""
        centre, width = 2048.0, 4096.0
        for value in (0, 1, 2047, 2048, 4094, 4095, -5, 5000):
            if value <= centre - 0.5 - (width - 1) / 2:
                expected = 0.0
            elif value > centre - 0.5 + (width - 1) / 2:
                expected = 1.0
            else:
                expected = (value - (centre - 0.5)) / (width - 1) + 0.5
            found = window(np.array([float(value)]), centre=centre, width=width, function="LINEAR")
            assert found is not None
            assert found[0] == pytest.approx(expected, abs=1e-12)

    def test_the_standard_s_own_examples(self) -> None:
        """C.11.2.1.2.1 note: c=2048, w=4096 is the identity of 12 bits; c=2048, w=1 a threshold; c=0, w=1 a step."""

        def linear(values: list[float], centre: float, width: float) -> np.ndarray:
            found = window(np.array(values), centre=centre, width=width, function="LINEAR")
            assert found is not None
            return found

        np.testing.assert_allclose(linear([0, 4095], 2048, 4096), [0, 1])
        np.testing.assert_allclose(linear([2047, 2048], 2048, 1), [0, 1])
        np.testing.assert_allclose(linear([-50, 49], 0, 100), [0, 1])
        np.testing.assert_allclose(linear([-1, 0], 0, 1), [0, 1])

    def test_sigmoid_and_linear_exact(self) -> None:
        values = np.array([-1e9, 0.0, 40.0, 50.0, 1e9])
        sigmoid = window(values, centre=40, width=20, function="SIGMOID")
        exact = window(values, centre=40, width=20, function="LINEAR_EXACT")
        np.testing.assert_allclose(sigmoid, [0, 1 / (1 + np.exp(8)), 0.5, 1 / (1 + np.exp(-2)), 1], atol=1e-12)
        np.testing.assert_allclose(exact, [0, 0, 0.5, 1, 1])

    def test_a_window_in_the_data_set_comes_after_the_rescale(self) -> None:
        dataset = grey(
            RescaleSlope="2", RescaleIntercept="-1000", WindowCenter=["1000", "40"], WindowWidth=["2000", "80"]
        )
        values = grey_scene() * 2.0 - 1000
        expected = np.clip((values - 999.5) / 1999 + 0.5, 0, 1)
        np.testing.assert_allclose(read_frame(dataset).pixels, expected, atol=FLOAT32_ROUNDING)

    def test_a_window_that_the_standard_forbids_is_passed_over(self) -> None:
        np.testing.assert_array_equal(
            read_frame(grey(WindowCenter="100", WindowWidth="0")).pixels, read_frame(grey()).pixels
        )

    def test_an_unknown_function_is_refused(self) -> None:
        with pytest.raises(PixelError, match="VOILUTFunction"):
            read_frame(grey(WindowCenter="100", WindowWidth="50", VOILUTFunction="CUBIC"))

    def test_deep_pictures_without_window_use_what_occurs(self) -> None:
        scene = grey_scene() // 4 + 100
        shown = read_frame(grey(scene)).pixels
        np.testing.assert_allclose(shown, (scene - 100.0) / (scene.max() - 100.0), atol=FLOAT32_ROUNDING)

    def test_eight_bit_pictures_without_window_use_all(self) -> None:
        scene = (grey_scene() // 32 + 20).astype(np.uint8)
        np.testing.assert_allclose(read_frame(grey(scene, bits_stored=8)).pixels, scene / 255.0, atol=FLOAT32_ROUNDING)

    @pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
    def test_padding_is_black_and_does_not_stretch(self, photometric: str) -> None:
        scene = grey_scene() // 4 + 1000
        scene[:10] = 63
        scene[10:12] = 60
        dataset = grey(scene, photometric=photometric, PixelPaddingValue=63, PixelPaddingRangeLimit=60)
        shown = read_frame(dataset).pixels
        assert (shown[:12] == 0).all()
        inside = scene[12:].astype(float)
        expected = (inside - inside.min()) / (inside.max() - inside.min())
        np.testing.assert_allclose(
            shown[12:], expected if photometric == "MONOCHROME2" else 1 - expected, atol=FLOAT32_ROUNDING
        )

    def test_signed_padding(self) -> None:
        signed = grey_scene().astype(np.int16) // 4
        signed[:10] = -2000
        codes = signed.view(np.uint16) & 0x0FFF
        dataset = grey(codes, PixelRepresentation=1, PixelPaddingValue=-2000)
        shown = read_frame(reread(dataset)).pixels
        assert (shown[:10] == 0).all()
        inside = signed[10:].astype(float)
        np.testing.assert_allclose(
            shown[10:], (inside - inside.min()) / (inside.max() - inside.min()), atol=FLOAT32_ROUNDING
        )

    def test_modality_lut_then_voi_lut(self) -> None:
        scene = (grey_scene() % 4).astype(np.uint16)
        dataset = grey(scene, ModalityLUTSequence=lut_item([500, 501, 502, 503], 0, 16))
        dataset.ModalityLUTSequence[0].ModalityLUTType = "US"
        dataset.VOILUTSequence = lut_item([0, 255, 51], 501, 8)
        expected = np.array([0, 0, 1, 0.2])[scene]
        np.testing.assert_allclose(read_frame(reread(dataset)).pixels, expected, atol=FLOAT32_ROUNDING)

    def test_a_voi_lut_comes_before_a_window(self) -> None:
        dataset = grey(WindowCenter="1", WindowWidth="1", VOILUTSequence=lut_item([0, 4095], 0, 12))
        assert set(np.unique(read_frame(reread(dataset)).pixels)) == {0.0, 1.0}
        assert (read_frame(reread(dataset)).pixels == (grey_scene() > 0)).all()

    def test_a_lut_that_starts_below_zero(self) -> None:
        """First mapped value -2 written in an unsigned word, as old files have it."""
        codes = np.tile(np.array([-3, -2, -1, 0, 1, 2, 3, 4], dtype=np.int16), (8, 1)).view(np.uint16)
        dataset = grey(codes, bits_stored=16, PixelRepresentation=1)
        dataset.VOILUTSequence = lut_item([0, 50, 100, 200], 65534, 8)
        shown = read_frame(dataset).pixels[0] * 255
        np.testing.assert_allclose(shown, [0, 0, 50, 100, 200, 200, 200, 200], atol=1e-4)

    @pytest.mark.parametrize("shared", [True, False])
    def test_luts_of_functional_groups(self, shared: bool) -> None:
        scene = np.stack([grey_scene()] * 2)
        dataset = grey(scene, frame_count=2)
        groups = []
        for centre in ("1000", "3000"):
            voi, group = Dataset(), Dataset()
            voi.WindowCenter, voi.WindowWidth = centre, "500"
            group.FrameVOILUTSequence = Sequence([voi])
            groups.append(group)
        if shared:
            dataset.SharedFunctionalGroupsSequence = Sequence(groups[1:])
        else:
            dataset.PerFrameFunctionalGroupsSequence = Sequence(groups)
        expected = np.clip((grey_scene() - 2999.5) / 499 + 0.5, 0, 1)
        np.testing.assert_allclose(read_frame(reread(dataset), frame_index=1).pixels, expected, atol=FLOAT32_ROUNDING)


class TestPalette:
    def test_segments(self) -> None:
        """Discrete, linear, and an indirect segment that repeats both (PS3.3 C.7.9.2)."""
        words = np.array([0, 2, 10, 20, 1, 4, 60, 2, 2, 0, 0], dtype=np.uint16)
        expected = [10, 20, 30, 40, 50, 60, 10, 20, 30, 40, 50, 60]
        np.testing.assert_array_equal(expand_segments(words, 12), expected)

    @pytest.mark.parametrize("words", [[1, 4, 60], [0, 5, 1], [7, 1, 1], [0], [2, 1, 0, 0]])
    def test_broken_segments(self, words: list[int]) -> None:
        with pytest.raises(PixelError):
            expand_segments(np.array(words, dtype=np.uint16), 8)

    def test_segmented_palette_of_a_picture(self) -> None:
        codes = (grey_scene() >> 4).astype(np.uint8)
        dataset = image_dataset(codes, photometric_interpretation="PALETTE COLOR")
        for name in ("Red", "Green", "Blue"):
            setattr(dataset, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
            words = np.array([0, 1, 0, 1, 255, 65280], dtype="<u2").tobytes()
            setattr(dataset, f"Segmented{name}PaletteColorLookupTableData", words)
        expected = apply_color_lut(codes, dataset) >> 8
        np.testing.assert_array_equal(read_frame(reread(dataset)).pixels, expected)


class TestJpegColour:
    @pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL_422"])
    @pytest.mark.parametrize("mark", ["JFIF", "Adobe", "none"])
    def test_ycbcr(self, mark: str, photometric: str) -> None:
        """Subsampled YCbCr is YCbCr, whatever the mark and whatever the data set say."""
        dataset = jpeg_dataset(jpeg(colour_scene(), mark=mark), photometric_interpretation=photometric)
        assert np.abs(read_frame(dataset).pixels.astype(int) - colour_scene()).mean() < LOSSY_COLOUR_MEAN

    @pytest.mark.parametrize(("mark", "photometric"), [("Adobe", "RGB"), ("Adobe", "YBR_FULL_422"), ("none", "RGB")])
    def test_rgb(self, mark: str, photometric: str) -> None:
        codestream = jpeg(colour_scene(), ycbcr=False, mark=mark)
        dataset = jpeg_dataset(codestream, photometric_interpretation=photometric)
        assert np.abs(read_frame(dataset).pixels.astype(int) - colour_scene()).mean() < LOSSY_COLOUR_MEAN

    def test_unsubsampled_ycbcr_without_mark_is_what_the_data_set_says(self) -> None:
        codestream = jpeg(colour_scene(), subsampling="4:4:4", mark="none")
        dataset = jpeg_dataset(codestream, photometric_interpretation="YBR_FULL")
        assert np.abs(read_frame(dataset).pixels.astype(int) - colour_scene()).mean() < LOSSY_COLOUR_MEAN

    @pytest.mark.parametrize(("photometric", "ycbcr"), [("RGB", False), ("YBR_FULL_422", True)])
    def test_marks_that_contradict_each_other(self, photometric: str, ycbcr: bool) -> None:
        """A JFIF segment and an Adobe one that says RGB: the data set decides."""
        codestream = jpeg(colour_scene(), ycbcr=ycbcr, subsampling="4:4:4", mark="JFIF")
        adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"
        dataset = jpeg_dataset(codestream[:20] + adobe + codestream[20:], photometric_interpretation=photometric)
        assert read_jpeg_header(codestream[:20] + adobe + codestream[20:]).adobe_transform == 0
        assert np.abs(read_frame(dataset).pixels.astype(int) - colour_scene()).mean() < LOSSY_COLOUR_MEAN

    @pytest.mark.parametrize("ycbcr", [True, False])
    def test_reduced_scale_keeps_colour_and_place(self, ycbcr: bool) -> None:
        rows, columns = 700, 930
        scene = np.asarray(Image.fromarray(colour_scene()).resize((columns, rows), Image.Resampling.BICUBIC))
        codestream = jpeg(scene, ycbcr=ycbcr, mark="none")
        dataset = jpeg_dataset(codestream, photometric_interpretation="YBR_FULL_422" if ycbcr else "RGB")
        whole, reduced = read_frame(dataset), read_frame(dataset, least_side=150)
        assert whole.pixels.shape == (rows, columns, 3)
        assert reduced.pixels.shape == (175, 233, 3)
        assert (reduced.source_rows, reduced.source_columns) == (rows, columns)
        blocks = np.pad(scene, ((0, 0), (0, 2), (0, 0)), mode="edge").reshape(175, 4, 233, 4, 3).mean(axis=(1, 3))
        assert np.abs(reduced.pixels - blocks).mean() < LOSSY_COLOUR_MEAN

    @pytest.mark.parametrize(
        ("least_side", "rows"), [(701, 700), (351, 700), (350, 350), (175, 175), (90, 175), (10, 88)]
    )
    def test_reduced_scale_never_goes_below(self, least_side: int, rows: int) -> None:
        scene = np.asarray(Image.fromarray(colour_scene()).resize((930, 700)))
        dataset = jpeg_dataset(jpeg(scene), photometric_interpretation="YBR_FULL_422")
        assert read_frame(dataset, least_side=least_side).pixels.shape[0] == rows

    def test_greyscale_is_never_reduced(self) -> None:
        scene = np.asarray(Image.fromarray((grey_scene() >> 4).astype(np.uint8)).resize((960, 720)))
        stream = io.BytesIO()
        Image.fromarray(scene).save(stream, "JPEG", quality=95)
        plain = image_dataset(scene, photometric_interpretation="MONOCHROME2")
        dataset = around_codestream(plain, stream.getvalue(), JPEGBaseline8Bit)
        shown = read_frame(dataset, least_side=100).pixels
        assert shown.shape == (720, 960)
        assert np.abs(shown * 255 - scene).mean() < LOSSY_COLOUR_MEAN

    def test_jpeg_2000_at_reduced_scale(self) -> None:
        scene = np.asarray(Image.fromarray(colour_scene()).resize((960, 720), Image.Resampling.BICUBIC))
        dataset = encoded(image_dataset(scene, photometric_interpretation="RGB"), JPEG2000Lossless)
        reduced = read_frame(dataset, least_side=170)
        assert reduced.pixels.shape == (180, 240, 3)
        blocks = scene.reshape(180, 4, 240, 4, 3).mean(axis=(1, 3))
        # The low-pass filter of the 5/3 wavelet is no block average: edges may differ, the picture may not.
        assert np.abs(reduced.pixels - blocks).mean() < 2 * LOSSY_COLOUR_MEAN
        np.testing.assert_array_equal(read_frame(dataset).pixels, scene)


def changed(dataset: Dataset, **elements: Any) -> Dataset:
    for keyword, value in elements.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    return dataset


def colour(**elements: Any) -> Dataset:
    return changed(image_dataset(colour_scene(), photometric_interpretation="RGB"), **elements)


def in_syntax(dataset: Dataset, transfer_syntax_uid: str | None) -> Dataset:
    if transfer_syntax_uid is None:
        del dataset.file_meta
    else:
        dataset.file_meta.TransferSyntaxUID = transfer_syntax_uid
    return dataset


REFUSED: dict[str, tuple[Callable[[], Dataset], str]] = {
    "no pixels": (lambda: changed(grey(), PixelData=None), "no Pixel Data"),
    "no transfer syntax": (lambda: in_syntax(grey(), None), "transfer syntax"),
    "video": (lambda: in_syntax(grey(), MPEG2MPML), "MPEG2"),
    "short": (lambda: changed(grey(), PixelData=b"\0" * 100), "100 bytes found, 13824 expected"),
    "no rows": (lambda: changed(grey(), Rows=None), "Rows is missing"),
    "zero columns": (lambda: changed(grey(), Columns=0), "Columns is 0"),
    "bits": (lambda: changed(grey(), BitsAllocated=32), "BitsAllocated is 32"),
    "packed": (lambda: changed(grey(), BitsAllocated=12), "BitsAllocated is 12"),
    "stored": (lambda: changed(grey(), BitsStored=17), "BitsStored is 17"),
    "high bit": (lambda: changed(grey(), HighBit=5), "HighBit is 5"),
    "photometric": (lambda: changed(grey(), PhotometricInterpretation="DOE JOHN"), "not one that is read here"),
    "samples": (lambda: changed(colour(), PhotometricInterpretation="MONOCHROME2"), "SamplesPerPixel 3"),
    "two samples": (lambda: changed(colour(), SamplesPerPixel=2), "SamplesPerPixel 2"),
    "native ict": (lambda: changed(colour(), PhotometricInterpretation="YBR_ICT"), "JPEG 2000"),
    "422 of full length": (lambda: changed(colour(), PhotometricInterpretation="YBR_FULL_422"), "full sampling"),
    "slope": (lambda: grey(RescaleSlope="0"), "RescaleSlope"),
    "palette": (
        lambda: image_dataset(grey_scene(), photometric_interpretation="PALETTE COLOR"),
        "RedPaletteColorLookupTableDescriptor",
    ),
    "lut": (lambda: grey(VOILUTSequence=lut_item([1, 2], 0, 8)), "LUTData has 2 entries"),
    "other grid": (
        lambda: changed(jpeg_dataset(jpeg(colour_scene()), photometric_interpretation="YBR_FULL_422"), Rows=71),
        "72 rows and 96 columns",
    ),
    "grey jpeg named colour": (
        lambda: around_codestream(colour(), grey_jpeg(), JPEGBaseline8Bit),
        r"1 component\(s\)",
    ),
    "no jpeg": (lambda: around_codestream(colour(), b"no jpeg at all", JPEGBaseline8Bit), "SOI"),
    "no jpeg 2000": (lambda: around_codestream(colour(), b"no jpeg at all", JPEG2000Lossless), "SOC"),
    "cut jpeg": (
        lambda: around_codestream(colour(), jpeg(colour_scene())[:700], JPEGBaseline8Bit),
        "cannot be decoded",
    ),
    "rle segments": (
        lambda: changed(encoded(colour(), LOSSLESS["RLE"]), SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2"),
        r"3 segment\(s\)",
    ),
    "no fragments": (lambda: in_syntax(changed(grey(), PixelData=b"\1" * 64), JPEGBaseline8Bit), "fragments"),
}


def grey_jpeg() -> bytes:
    stream = io.BytesIO()
    Image.fromarray((grey_scene() >> 4).astype(np.uint8)).save(stream, "JPEG")
    return stream.getvalue()


class TestRefusals:
    @pytest.mark.parametrize("case", REFUSED)
    def test_is_a_pixel_error_that_says_why(self, case: str) -> None:
        make, message = REFUSED[case]
        dataset = make()
        if case == "lut":
            dataset.VOILUTSequence[0].LUTDescriptor = [5, 0, 8]
        with pytest.raises(PixelError, match=message) as caught:
            read_frame(dataset)
        assert "Fixture" not in str(caught.value)
        assert "DOE" not in str(caught.value)

    @pytest.mark.parametrize("index", [-1, 1, 10**9])
    def test_frame_that_is_not_there(self, index: int) -> None:
        with pytest.raises(PixelError, match="the image has 1"):
            read_frame(grey(), frame_index=index)

    def test_frames_that_the_pixel_data_lack(self) -> None:
        with pytest.raises(PixelError, match="13824 bytes found, 27648 expected"):
            read_frame(changed(grey(), NumberOfFrames=2), frame_index=1)

    def test_a_cut_jpeg_ls_stream_is_refused_at_once(self) -> None:
        """CharLS takes ten seconds to find out for itself."""
        dataset = dcmread(FIXTURES / "grey_jpeg_ls_lossless.dcm")
        start = dataset.PixelData.index(b"\xff\xd8")
        cut = around_codestream(grey(), dataset.PixelData[start : start + 1500], LOSSLESS["JPEG-LS lossless"])
        with pytest.raises(PixelError, match="cut off"):
            read_frame(cut)

    def test_frame_counts(self) -> None:
        assert displayed_frame_count(grey()) == 1
        assert displayed_frame_count(Dataset()) == 0
        with pytest.raises(PixelError, match="NumberOfFrames"):
            displayed_frame_count(changed(grey(), NumberOfFrames=0))

    def test_declared_bomb(self) -> None:
        dataset = changed(grey(), Rows=65535, Columns=65535)
        with pytest.raises(PixelError, match="the limit is 268435456"):
            read_frame(dataset)

    def test_codestream_bomb(self) -> None:
        """pydicom's own file: 256 columns by its data set, 3,722,445,056 by its codestream."""
        with pytest.raises(PixelError, match="3722445056 columns"):
            read_frame(public("JPEG2000-embedded-sequence-delimiter.dcm"))

    def test_limit_is_exact(self) -> None:
        def limited(maximum_frame_bytes: int) -> DirectDecoder:
            return DirectDecoder(limits=DecodingLimits(maximum_frame_bytes=maximum_frame_bytes))

        read_frame(grey(), decoder=limited(72 * 96 * 2))
        with pytest.raises(UnsafePixelError, match="limit"):
            read_frame(grey(), decoder=limited(72 * 96 * 2 - 1))

    @pytest.mark.parametrize("name", fixture_names("grey") + fixture_names("colour"))
    def test_damage_gives_a_picture_or_a_pixel_error(self, name: str) -> None:
        """Bytes changed and cut at random places of the pixel data; nothing else may be raised."""
        random = np.random.default_rng(len(name))
        dataset = dcmread(FIXTURES / f"{name}.dcm")
        content = dataset.PixelData
        outcomes = set()
        own_process = "jpeg_lossless" in name or "extended" in name
        for attempt in range(4 if own_process else 20):
            damaged = bytearray(content)
            for place in random.integers(0, len(damaged), 8 if attempt % 2 else 1):
                damaged[place] = random.integers(0, 256)
            if attempt % 3 == 0:
                del damaged[random.integers(1, len(damaged)) :]
            dataset.PixelData = bytes(damaged)
            try:
                outcomes.add(read_frame(dataset).pixels.shape)
            except PixelError:
                outcomes.add("refused")
        assert "refused" in outcomes
        assert outcomes <= {"refused", grey_scene().shape, colour_scene().shape}


class TestHeaders:
    def test_jpeg(self) -> None:
        header = read_jpeg_header(jpeg(colour_scene()))
        assert (header.rows, header.columns, header.precision, header.frame_marker) == (72, 96, 8, 0xC0)
        assert header.component_ids == (1, 2, 3)
        assert header.has_jfif
        assert header.subsampled

    def test_jpeg_2000(self) -> None:
        dataset = encoded(image_dataset(colour_scene(), photometric_interpretation="RGB"), JPEG2000Lossless)
        start = dataset.PixelData.index(b"\xff\x4f\xff\x51")
        header = read_jpeg2000_header(dataset.PixelData[start:])
        assert (header.rows, header.columns, header.components, header.precision) == (72, 96, 3, 8)
        assert not header.multiple_component_transform
        assert not header.in_jp2

    @pytest.mark.parametrize("name", ["US1_J2KI.dcm", "US1_J2KR.dcm"])
    def test_jpeg_2000_with_colour_transform(self, name: str) -> None:
        pixel_data = public(name).PixelData
        header = read_jpeg2000_header(pixel_data[pixel_data.index(b"\xff\x4f\xff\x51") :])
        assert (header.rows, header.columns, header.multiple_component_transform) == (480, 640, True)

    def test_jpeg_2000_in_its_container(self) -> None:
        stream = io.BytesIO()
        Image.fromarray(colour_scene()).save(stream, "JPEG2000", irreversible=False)
        assert read_jpeg2000_header(stream.getvalue()).in_jp2
        dataset = around_codestream(colour(), stream.getvalue(), JPEG2000Lossless)
        np.testing.assert_array_equal(read_frame(dataset).pixels, colour_scene())


def test_the_gpl_decoder_is_never_loaded() -> None:
    """Every fixture decoded in a process of its own; pylibjpeg-libjpeg stays out of it even where it is installed."""
    code = (
        "import pathlib, sys\nfrom pydicom import dcmread\nfrom models.pixels import read_frame\n"
        "paths = sorted(pathlib.Path(sys.argv[1]).glob('*.dcm'))\n"
        "for path in paths: read_frame(dcmread(path))\n"
        "print(len(paths), sorted({'libjpeg', '_libjpeg', 'torch', 'mlflow'} & sys.modules.keys()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(FIXTURES)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert done.stdout == "36 []\n"
