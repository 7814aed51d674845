"""Images that hurt a decoder that believes them."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from picture_encodings import around_codestream, grey_scene, image_dataset
from PIL import Image
from pydicom import Dataset
from pydicom.uid import UID, JPEG2000Lossless, JPEGBaseline8Bit, RLELossless

from models.codestreams import read_jpeg_header


def described(
    rows: int, columns: int, codestream: bytes, transfer_syntax_uid: UID, *, bits: int = 8, colour: bool = False
) -> Dataset:
    """A data set that says `rows` and `columns` of a codestream that may say something else."""
    small = np.zeros((16, 16, 3) if colour else (16, 16), np.uint8 if bits == 8 else np.uint16)
    dataset = around_codestream(
        image_dataset(small, photometric_interpretation="RGB" if colour else "MONOCHROME2"),
        codestream,
        transfer_syntax_uid,
    )
    dataset.Rows, dataset.Columns = rows, columns
    return dataset


def jpeg_2000_saying(rows: int, columns: int) -> bytes:
    """A real JPEG 2000 codestream of 72 x 96 whose SIZ segment claims one tile of `rows` x `columns` (T.800 A.5.1)."""
    stream = io.BytesIO()
    Image.fromarray((grey_scene() >> 4).astype(np.uint8)).save(stream, "JPEG2000", irreversible=False, no_jp2=True)
    content = bytearray(stream.getvalue())
    place = content.index(b"\xff\x51")
    struct.pack_into(">II", content, place + 6, columns, rows)
    struct.pack_into(">II", content, place + 22, columns, rows)
    return bytes(content)


def jpeg_saying(rows: int, columns: int, *, colour: bool = False) -> bytes:
    """A real JPEG codestream of 72 x 96 whose SOF segment claims `rows` x `columns` (T.81 B.2.2)."""
    scene = (grey_scene() >> 4).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(np.repeat(scene[..., None], 3, axis=2) if colour else scene).save(stream, "JPEG")
    content = bytearray(stream.getvalue())
    marker = b"\xff" + bytes([read_jpeg_header(bytes(content)).frame_marker])
    struct.pack_into(">HH", content, content.index(marker) + 5, rows, columns)
    return bytes(content)


def rle_bomb(rows: int, columns: int) -> Dataset:
    """An RLE frame of a hundred bytes for `rows` x `columns` (PS3.5 G.5)."""
    frame = struct.pack("<16L", 1, 64, *[0] * 14) + b"\x81\x00" * 50
    return described(rows, columns, frame, RLELossless)


def deflate_bomb(inflated_bytes: int) -> Dataset:
    """A deflated frame of 72 x 96 that inflates to `inflated_bytes`."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    piece = bytes(1 << 20)
    frame = b"".join(deflate.compress(piece) for _ in range(inflated_bytes >> 20)) + deflate.flush()
    dataset = described(72, 96, frame, JPEG2000Lossless)
    dataset.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.8.1")  # Deflated Image Frame Compression
    return dataset


BOMBS = {
    "JPEG 2000 of 60000 x 60000, as described": lambda: described(
        60000, 60000, jpeg_2000_saying(60000, 60000), JPEG2000Lossless
    ),
    "JPEG 2000 of 60000 x 60000 in an image of 64 x 64": lambda: described(
        64, 64, jpeg_2000_saying(60000, 60000), JPEG2000Lossless
    ),
    "JPEG of 65535 x 65535, as described": lambda: described(65535, 65535, jpeg_saying(65535, 65535), JPEGBaseline8Bit),
    "JPEG of 65535 x 65535 in an image of 64 x 64": lambda: described(
        64, 64, jpeg_saying(65535, 65535), JPEGBaseline8Bit
    ),
    "RLE of a hundred bytes for 16000 x 16000": lambda: rle_bomb(16000, 16000),
    "RLE of a hundred bytes for 60000 x 60000": lambda: rle_bomb(60000, 60000),
}
"""Each has to be refused as unsafe before anything is decoded."""
