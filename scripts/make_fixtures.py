"""Make ``tests/fixtures/dicom``: two drawn scenes in every encoding that is read, each a small DICOM file.

Nothing here comes from a patient or a scanner. The two files whose encoders are in no package of the test environment
(HTJ2K, 12 bit JPEG) are made only where ``imagecodecs`` (BSD-3-Clause) is installed, and kept otherwise.

Usage: python scripts/make_fixtures.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.uid import JPEG2000, UID, JPEGExtended12Bit, JPEGLSNearLossless

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "tests/fixtures/dicom"
HTJ2K_LOSSLESS = UID("1.2.840.10008.1.2.4.201")

sys.path.insert(0, str(ROOT / "tests/support"))

from picture_encodings import (  # noqa: E402
    LOSSLESS,
    around_codestream,
    as_palette,
    colour_scene,
    encoded,
    grey_scene,
    image_dataset,
    jpeg,
    jpeg_dataset,
    part10,
    reread,
)


def greyscale() -> dict[str, Dataset]:
    """The grey scene, which every one of these displays alike."""
    scene = grey_scene()
    plain = image_dataset(scene, photometric_interpretation="MONOCHROME2", bits_stored=12)
    files = {
        f"grey_{name.replace(' ', '_').replace('-', '_').lower()}": encoded(plain, syntax)
        for name, syntax in LOSSLESS.items()
    }
    files["grey_monochrome1"] = image_dataset(4095 - scene, photometric_interpretation="MONOCHROME1", bits_stored=12)
    signed = (scene.astype(np.int32) - 2048).astype(np.int16).view(np.uint16)
    files["grey_signed_rescaled"] = image_dataset(
        signed & 0x0FFF,
        photometric_interpretation="MONOCHROME2",
        bits_stored=12,
        PixelRepresentation=1,
        RescaleSlope="1",
        RescaleIntercept="2048",
        WindowCenter="2047.5",
        WindowWidth="4095",
        VOILUTFunction="LINEAR_EXACT",
    )
    overlay = np.random.default_rng(3).integers(0, 16, scene.shape).astype(np.uint16)
    files["grey_high_bit_15"] = image_dataset(
        scene << 4 | overlay, photometric_interpretation="MONOCHROME2", bits_stored=12, HighBit=15
    )
    files["grey_high_bit_11_overlay"] = image_dataset(
        scene | overlay << 12, photometric_interpretation="MONOCHROME2", bits_stored=12
    )
    files["grey_multi_frame"] = encoded(
        image_dataset(
            np.stack([scene // 2, scene, scene * 0]),
            photometric_interpretation="MONOCHROME2",
            bits_stored=12,
            frame_count=3,
        ),
        LOSSLESS["JPEG-LS lossless"],
    )
    near = reread(plain)
    near.compress(JPEGLSNearLossless, encoding_plugin="pyjpegls", jls_error=4, generate_instance_uid=False)
    files["grey_jpeg_ls_near_lossless"] = near
    return files


def colour() -> dict[str, Dataset]:
    """The colour scene."""
    scene = colour_scene()
    plain = image_dataset(scene, photometric_interpretation="RGB")
    files = {
        f"colour_{name.replace(' ', '_').replace('-', '_').lower()}": encoded(plain, syntax)
        for name, syntax in LOSSLESS.items()
    }
    planes = reread(plain)
    planes.PlanarConfiguration, planes.PixelData = 1, scene.transpose(2, 0, 1).tobytes()
    files["colour_by_plane"] = planes
    files["colour_palette"] = as_palette(scene)
    files["colour_sixteen_bit"] = image_dataset(scene.astype(np.uint16) * 257, photometric_interpretation="RGB")
    for mark in ("JFIF", "Adobe", "none"):
        files[f"colour_jpeg_ybr_{mark.lower()}"] = jpeg_dataset(
            jpeg(scene, mark=mark), photometric_interpretation="YBR_FULL_422"
        )
    files["colour_jpeg_named_rgb_is_ybr"] = jpeg_dataset(jpeg(scene), photometric_interpretation="RGB")
    files["colour_jpeg_rgb_adobe"] = jpeg_dataset(
        jpeg(scene, ycbcr=False, mark="Adobe"), photometric_interpretation="RGB"
    )
    files["colour_jpeg_rgb_unmarked"] = jpeg_dataset(
        jpeg(scene, ycbcr=False, mark="none"), photometric_interpretation="RGB"
    )
    lossy = reread(plain)
    lossy.PhotometricInterpretation = "YBR_ICT"
    lossy.compress(JPEG2000, encoding_plugin="pylibjpeg", j2k_cr=[8], generate_instance_uid=False)
    files["colour_jpeg_2000_ict"] = lossy
    return files


def from_imagecodecs() -> dict[str, Dataset]:
    """HTJ2K and 12 bit JPEG, where there is an encoder."""
    try:
        import imagecodecs
    except ImportError:
        return {}
    scene = grey_scene()
    plain = image_dataset(scene, photometric_interpretation="MONOCHROME2", bits_stored=12)
    lossless = imagecodecs.htj2k_encode(scene)
    extended = imagecodecs.jpeg_encode(scene, bitspersample=12, level=95)
    return {
        "grey_htj2k_lossless": around_codestream(plain, lossless, HTJ2K_LOSSLESS),
        "grey_jpeg_extended_12_bit": around_codestream(plain, extended, JPEGExtended12Bit),
    }


def main() -> int:
    FOLDER.mkdir(parents=True, exist_ok=True)
    files = greyscale() | colour() | from_imagecodecs()
    for name, dataset in files.items():
        (FOLDER / f"{name}.dcm").write_bytes(part10(dataset))
    kept = sorted(path.name for path in FOLDER.glob("*.dcm") if path.stem not in files)
    size = sum(path.stat().st_size for path in FOLDER.glob("*.dcm"))
    print(f"{len(files)} files written, {size} bytes with those kept ({', '.join(kept) or 'none'})")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
