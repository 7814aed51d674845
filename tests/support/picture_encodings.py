"""Two drawn scenes, and any picture in any DICOM encoding: for tests of decoding and ``scripts/make_fixtures.py``.

The encoders are other programs than the decoders under test wherever there is a choice.
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)

Codes = NDArray[Any]

LOSSLESS = {
    "explicit little endian": ExplicitVRLittleEndian,
    "implicit little endian": ImplicitVRLittleEndian,
    "big endian": ExplicitVRBigEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
    "RLE": RLELossless,
    "JPEG lossless": JPEGLossless,
    "JPEG lossless SV1": JPEGLosslessSV1,
    "JPEG-LS lossless": JPEGLSLossless,
    "JPEG 2000 lossless": JPEG2000Lossless,
}
_NATIVE = {ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian}


def grey_scene(rows: int = 72, columns: int = 96) -> NDArray[np.uint16]:
    """uint16 [rows, columns], 12 bits: a ramp, two discs, noise; lowest 0 and highest 4095 both occur."""
    row, column = np.mgrid[0:rows, 0:columns]
    scene = 600 + 2400 * column / columns + 300 * np.sin(row / 5.0)
    scene[(row - rows * 0.35) ** 2 + (column - columns * 0.3) ** 2 < (rows * 0.2) ** 2] += 700
    scene[(row - rows * 0.6) ** 2 + (column - columns * 0.7) ** 2 < (rows * 0.25) ** 2] -= 500
    scene += np.random.default_rng(7).normal(0, 25, scene.shape)
    scene[:4, :4], scene[-4:, -4:] = 0, 4095
    return np.clip(scene, 0, 4095).astype(np.uint16)


def colour_scene(rows: int = 72, columns: int = 96) -> NDArray[np.uint8]:
    """uint8 [rows, columns, 3]: smooth colours that JPEG keeps well, with one red, one green and one blue patch."""
    row, column = np.mgrid[0:rows, 0:columns]
    scene = np.stack(
        [90 + 120 * column / columns, 60 + 90 * row / rows, 40 + 60 * (row + column) / (rows + columns)], 2
    )
    for channel in range(3):
        top, left = 8 + 20 * channel, 8 + 28 * channel
        scene[top : top + 16, left : left + 16] = 40
        scene[top : top + 16, left : left + 16, channel] = 215
    return np.rint(scene).astype(np.uint8)


def image_dataset(
    codes: Codes,
    *,
    photometric_interpretation: str,
    bits_stored: int | None = None,
    frame_count: int | None = None,
    **elements: Any,
) -> Dataset:
    """An image in explicit little endian around `codes`, [rows, columns] or [rows, columns, 3], frames first."""
    allocated = codes.dtype.itemsize * 8
    shape = codes.shape if frame_count is None else codes.shape[1:]
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = (
        SecondaryCaptureImageStorage if frame_count is None else MultiFrameGrayscaleWordSecondaryCaptureImageStorage
    )
    seed = [photometric_interpretation, str(bits_stored), str(codes.shape), str(sorted(elements))]
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=[*seed, "instance"])
    dataset.StudyInstanceUID = generate_uid(entropy_srcs=["study of the fixtures"])
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=["series of the fixtures"])
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.Modality, dataset.ConversionType = "OT", "SYN"
    dataset.PatientName, dataset.PatientID = "Fixture^Drawn", "FIXTURE"
    dataset.SamplesPerPixel = shape[2] if len(shape) > 2 else 1
    dataset.PhotometricInterpretation = photometric_interpretation
    if dataset.SamplesPerPixel > 1:
        dataset.PlanarConfiguration = 0
    if frame_count is not None:
        dataset.NumberOfFrames = frame_count
    dataset.Rows, dataset.Columns = shape[:2]
    dataset.BitsAllocated = allocated
    dataset.BitsStored = bits_stored or allocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = 0
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    content = codes.astype(codes.dtype.newbyteorder("<")).tobytes()
    dataset.PixelData = content + b"\0" * (len(content) % 2)
    dataset["PixelData"].VR = "OW" if allocated > 8 else "OB"
    return dataset


def encoded(dataset: Dataset, transfer_syntax_uid: UID) -> Dataset:
    """A copy of a native `dataset` in another transfer syntax, written and read once."""
    copy = reread(dataset)
    if transfer_syntax_uid in {JPEGLossless, JPEGLosslessSV1}:
        return _by_gdcm(copy, transfer_syntax_uid)
    if transfer_syntax_uid not in _NATIVE:
        plugin = {RLELossless: "pydicom", JPEGLSLossless: "pyjpegls", JPEG2000Lossless: "pylibjpeg"}
        copy.compress(transfer_syntax_uid, encoding_plugin=plugin[transfer_syntax_uid], generate_instance_uid=False)
        return reread(copy)
    if transfer_syntax_uid == ExplicitVRBigEndian and copy.BitsAllocated == 16:
        copy.PixelData = np.frombuffer(copy.PixelData, "<u2").astype(">u2").tobytes()
        copy["PixelData"].VR = "OW"
    if transfer_syntax_uid == ImplicitVRLittleEndian:
        copy["PixelData"].VR = "OW"
    copy.file_meta.TransferSyntaxUID = transfer_syntax_uid
    return reread(copy)


def around_codestream(dataset: Dataset, codestreams: bytes | list[bytes], transfer_syntax_uid: UID) -> Dataset:
    """A copy of `dataset` whose pixel data are ready codestreams, one a frame."""
    copy = reread(dataset)
    copy.PixelData = encapsulate([codestreams] if isinstance(codestreams, bytes) else codestreams)
    copy["PixelData"].VR = "OB"
    copy["PixelData"].is_undefined_length = True
    copy.file_meta.TransferSyntaxUID = transfer_syntax_uid
    return reread(copy)


def jpeg_dataset(codestream: bytes, *, photometric_interpretation: str) -> Dataset:
    """A colour image around a JPEG codestream."""
    with Image.open(io.BytesIO(codestream)) as picture:
        blank = np.zeros((picture.height, picture.width, 3), dtype=np.uint8)
    dataset = image_dataset(blank, photometric_interpretation=photometric_interpretation)
    return around_codestream(dataset, codestream, JPEGBaseline8Bit)


def jpeg(
    pixels: NDArray[np.uint8], *, ycbcr: bool = True, subsampling: str = "4:2:2", quality: int = 95, mark: str = "JFIF"
) -> bytes:
    """A baseline JPEG with the mark asked for: ``JFIF``, ``Adobe`` (telling the truth) or ``none``.

    RGB kept as RGB is made by passing its planes off as YCbCr, so that no conversion takes place.
    """
    rows, columns = pixels.shape[:2]
    picture = Image.fromarray(pixels)
    if not ycbcr:
        picture = Image.frombytes("YCbCr", (columns, rows), pixels.tobytes())
        subsampling = "4:4:4"
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=quality, subsampling=subsampling)
    content = stream.getvalue()
    length = 2 + int.from_bytes(content[4:6], "big")
    if content[2:4] != b"\xff\xe0":
        raise AssertionError("Pillow is expected to begin with a JFIF segment")
    if mark == "JFIF":
        return content
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([1 if ycbcr else 0])
    return content[:2] + (adobe if mark == "Adobe" else b"") + content[2 + length :]


def as_palette(pixels: NDArray[np.uint8]) -> Dataset:
    """A PALETTE COLOR image of a picture of at most 65,535 colours, lossless."""
    colours, codes = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)
    count = len(colours)
    dataset = image_dataset(
        codes.reshape(pixels.shape[:2]).astype(np.uint16), photometric_interpretation="PALETTE COLOR", bits_stored=16
    )
    for channel, name in enumerate(("Red", "Green", "Blue")):
        setattr(dataset, f"{name}PaletteColorLookupTableDescriptor", [count % 65536, 0, 16])
        table = (colours[:, channel].astype("<u2") * 257).tobytes()
        setattr(dataset, f"{name}PaletteColorLookupTableData", table)
    return reread(dataset)


def reread(dataset: Dataset) -> Dataset:
    """`dataset` written as a Part 10 file and read again."""
    return dcmread(io.BytesIO(part10(dataset)))


def part10(dataset: Dataset) -> bytes:
    stream = io.BytesIO()
    dcmwrite(stream, dataset, enforce_file_format=True)
    return stream.getvalue()


def _by_gdcm(dataset: Dataset, transfer_syntax_uid: UID) -> Dataset:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "source.dcm"), Path(folder, "target.dcm")
        source.write_bytes(part10(dataset))
        reader = gdcm.ImageReader()
        reader.SetFileName(str(source))
        change = gdcm.ImageChangeTransferSyntax()
        syntax = gdcm.TransferSyntax.GetTSType(str(transfer_syntax_uid))
        change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
        writer = gdcm.ImageWriter()
        writer.SetFileName(str(target))
        if not reader.Read():
            raise AssertionError("GDCM cannot read the source")
        change.SetInput(reader.GetImage())
        if not change.Change():
            raise AssertionError("GDCM cannot encode")
        writer.SetImage(change.GetOutput())
        writer.SetFile(reader.GetFile())
        if not writer.Write():
            raise AssertionError("GDCM cannot write")
        return dcmread(io.BytesIO(target.read_bytes()))
