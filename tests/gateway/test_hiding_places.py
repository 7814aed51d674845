"""Every place in which an identifier can hide, one by one: what was planted is in no byte of what leaves.

Each place is a small file encoded by hand. The token must be found in it (negative control), and not be found in the
output, nor in what a compressed output inflates to. A place whose object cannot be vouched for is refused instead.
"""

from __future__ import annotations

import hashlib
import io
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pydicom
import pytest
from PIL import Image, ImageCms
from pydicom import Dataset
from raw_elements import (
    SEQUENCE_END,
    UNDEFINED,
    element,
    fragments,
    image,
    implicit,
    item,
    joined,
    open_sequence,
    part10,
    sequence,
    us,
)

from gateway.deidentification.options import DeidentificationProfile, Option
from gateway.deidentify import Deidentifier
from gateway.errors import DeidentificationError

KEY = hashlib.sha256(b"a key of these tests").digest()
DX, CR, CT, SC = (f"1.2.840.10008.5.1.4.1.1.{n}" for n in ("1.1", "1", "2", "7"))
OP = "1.2.840.10008.5.1.4.1.1.77.1.5.1"
JPEG, JPEG_LS, JPEG_2000, RLE = (f"1.2.840.10008.1.2.{n}" for n in ("4.50", "4.80", "4.90", "5"))
IMPLICIT, DEFLATED, BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"
TOKEN = b"ZQ48XKPLUM"
NUMBER = b"4711008151"

DEFAULT = DeidentificationProfile()
CLEANING = DeidentificationProfile(
    options=frozenset(
        {
            *(Option.RETAIN_DEVICE_IDENTITY, Option.RETAIN_PATIENT_CHARACTERISTICS, Option.CLEAN_DESCRIPTORS),
            *(Option.RETAIN_LONGITUDINAL_MODIFIED_DATES, Option.CLEAN_STRUCTURED_CONTENT, Option.CLEAN_GRAPHICS),
        }
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a token hides."""

    name: str
    make: Callable[[bytes], bytes]
    token: bytes = TOKEN
    refused: bool = False
    """Whether the object must be refused, not cleaned."""
    keeps_pixels: bool = True


PLACES: list[Place] = []


def place(
    name: str, *, token: bytes = TOKEN, refused: bool = False, keeps_pixels: bool = True
) -> Callable[[Callable[[bytes], bytes]], Callable[[bytes], bytes]]:
    def register(make: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
        PLACES.append(Place(name=name, make=make, token=token, refused=refused, keeps_pixels=keeps_pixels))
        return make

    return register


def with_elements(*more: bytes, sop_class: str = DX, **kind: object) -> bytes:
    """An explicit little endian file of an image with these elements."""
    made = image(sop_class, **kind)  # type: ignore[arg-type]
    for each in more:
        group, number = struct.unpack("<HH", each[:4])
        made[group << 16 | number] = each
    return part10(joined(made))


def simple(name: str, *make: Callable[[bytes], bytes], **how: object) -> None:
    """A place that is one or more elements of an otherwise ordinary object."""
    place(name, **how)(lambda token: with_elements(*(each(token) for each in make)))  # type: ignore[arg-type]


def text(tag: int, vr: str, before: bytes = b"", after: bytes = b"") -> Callable[[bytes], bytes]:
    return lambda token: element(tag, vr, before + token + after)


# --- outside the data set -----------------------------------------------------------------------------------------

place("preamble")(lambda token: part10(joined(image(DX)), preamble=b"II*\0" + token))
for _tag, _vr in (
    *((0x00020013, "SH"), (0x00020016, "AE"), (0x00020017, "AE"), (0x00020018, "AE"), (0x00020026, "UR")),
    *((0x00020027, "UR"), (0x00020028, "UR"), (0x00020102, "OB"), (0x00020050, "LO"), (0x00020500, "UT")),
):
    place(f"file meta {_tag:08X}")(
        lambda token, tag=_tag, vr=_vr: part10(joined(image(DX)), more_meta=element(tag, vr, token))  # type: ignore[misc]
    )
for _tag in (0x00020002, 0x00020003, 0x00020012, 0x00020100):
    place(f"file meta {_tag:08X}", token=NUMBER)(
        lambda token, tag=_tag: part10(joined(image(DX)), more_meta=element(tag, "UI", b"1.2.999." + token))  # type: ignore[misc]
    )


@place("behind the deflated data set")
def _(token: bytes) -> bytes:
    return part10(deflated(joined(image(DX))), syntax=DEFLATED) + token


@place("in a deflated data set")
def _(token: bytes) -> bytes:
    content = image(DX) | {0x00081030: element(0x00081030, "LO", token)}
    return part10(deflated(joined(content)), syntax=DEFLATED)


def deflated(content: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    packed = packer.compress(content) + packer.flush()
    return packed + bytes(len(packed) % 2)


simple("trailing padding", text(0xFFFCFFFC, "OB"))
simple("group length as text", text(0x00100000, "LO"))
simple("group length of four letters", lambda token: element(0x00080000, "UL", token[:4]), token=b"ZQ48")
simple("group 0001 to 0007", text(0x00041130, "CS"), text(0x00071001, "LO"), text(0x00010010, "LO"))
simple("group FFFE in the data set", text(0xFFFFFFF1, "LO"))

# --- named attributes ---------------------------------------------------------------------------------------------

simple("Retrieve URL", text(0x00081190, "UR", b"https://pacs/"))
simple("Retrieve URI", text(0x0040E010, "UR", b"https://pacs/"))
simple("Issuer of Accession Number", lambda token: sequence(0x00080051, element(0x00400031, "UT", token)))
simple("Window Explanation", text(0x00281055, "LO"))
simple("Accession Number", text(0x00080050, "SH"))
simple("Study ID", text(0x00200010, "SH"))
simple("Image Comments", text(0x00204000, "LT"))
simple("Derivation Description", text(0x00082111, "ST"))
simple("Protocol Name", text(0x00181030, "LO"))
simple("Filter Type", text(0x00181160, "SH"))
simple("Plate Type", text(0x00181260, "SH"))
simple("Position Reference Indicator", text(0x00201040, "LO"))
simple("Contrast Route", text(0x00181040, "LO"))
simple("Imaged Nucleus", text(0x00180085, "SH"))
simple("Detector Description", text(0x00187006, "LT"))
simple("Frame Comments", text(0x00209158, "LT"))
simple("overlay label", text(0x60001500, "LO"))
simple("overlay label of another group", text(0x601E1500, "LO"))
simple("overlay description", text(0x60000022, "LO"))
simple("overlay comment", text(0x60004000, "LT"))
simple("overlay activation layer", text(0x60001001, "CS"))
simple("overlay data", text(0x60003000, "OW"))
simple("overlay subtype", text(0x60000045, "LO"))
simple("overlay of a private group", text(0x60010010, "LO"), text(0x60011001, "UN"))
simple("curve data", text(0x50003000, "OW"))
simple("curve label", text(0x50022500, "LO"))
simple("curve axis labels", text(0x50000040, "SH"))
simple("audio comments", text(0x50002000, "US"), text(0x5000200E, "LT"))
simple("retired repeating attribute", text(0x00203101, "CS"), text(0x7F020010, "OW"), text(0x10000010, "US"))
simple("unknown attribute without value form", text(0x00084ABC, "LO"), refused=True)
simple("signature", lambda token: sequence(0xFFFAFFFA, element(0x04000120, "OB", token)))
simple("certificate", lambda token: sequence(0xFFFAFFFA, element(0x04000115, "OB", token)))
simple("certified timestamp", lambda token: sequence(0xFFFAFFFA, element(0x04000310, "OB", token)))
simple("encrypted attributes", lambda token: sequence(0x04000500, element(0x04000520, "OB", token)))
simple(
    "original attributes",
    lambda token: sequence(0x04000561, sequence(0x04000550, element(0x00100010, "PN", token))),
)
simple("encapsulated document", text(0x00420011, "OB"), text(0x00420012, "LO"), text(0x00420010, "ST"))
simple("waveform", lambda token: sequence(0x54000100, element(0x54001010, "OW", token)))
simple("graphic text", lambda token: sequence(0x00700001, sequence(0x00700008, element(0x00700006, "ST", token))))
simple("graphic layer", lambda token: sequence(0x00700060, element(0x00700002, "CS", token)))
simple("graphic layer description", lambda token: sequence(0x00700060, element(0x00700068, "LO", token)))
simple("content label", text(0x00700080, "CS"), text(0x00700081, "LO"), text(0x00700084, "PN"))
simple("content item", lambda token: sequence(0x0040A730, element(0x0040A160, "UT", token)))
simple("content item's name", lambda token: sequence(0x0040A730, element(0x0040A123, "PN", token)))
simple("acquisition context", lambda token: sequence(0x00400555, element(0x0040A160, "UT", token)))
simple("specimen", lambda token: sequence(0x00400560, element(0x00400551, "LO", token)), text(0x00400512, "LO"))
simple("contributing equipment", lambda token: sequence(0x0018A001, element(0x00080080, "LO", token)))
simple("request", lambda token: sequence(0x00400275, element(0x00400007, "LO", token)))
simple("referenced study", lambda token: sequence(0x00081110, element(0x00081190, "UR", token)))
simple("icon", lambda token: sequence(0x00880200, element(0x7FE00010, "OB", token)))
simple(
    "icon with a JPEG",
    lambda token: sequence(0x00880200, *[fragments(jpeg(com(token)))]),
)
simple("icon in a sequence", lambda token: sequence(0x00081140, sequence(0x00880200, element(0x7FE00010, "OB", token))))
simple("pixel data in a sequence", lambda token: sequence(0x00082112, element(0x7FE00010, "OW", token)))

# --- private and unknown ------------------------------------------------------------------------------------------


def private(content: bytes) -> bytes:
    return element(0x00090010, "LO", b"MAKER") + content


simple("private creator", text(0x00090010, "LO"))
simple("private text", lambda token: element(0x00091001, "LO", token))
simple("private group without creator", lambda token: element(0x00111001, "LT", token))
simple("private UN", lambda token: element(0x00091001, "UN", token))
simple(
    "private sequence in a private sequence",
    lambda token: sequence(0x00091002, private(sequence(0x00091003, private(element(0x00091004, "LO", token))))),
)
simple(
    "private sequence of undefined length",
    lambda token: open_sequence(0x00091002, private(open_sequence(0x00091003, element(0x00100010, "PN", token)))),
)
simple("private element in a sequence", lambda token: sequence(0x00081140, private(element(0x00091001, "LO", token))))
simple(
    "private UN with implicit content",
    lambda token: element(0x00091005, "UN", item(implicit(0x00100010, token)) + SEQUENCE_END, length=UNDEFINED),
)
simple(
    "standard sequence as UN",
    lambda token: element(0x00081140, "UN", item(implicit(0x00100010, token)) + SEQUENCE_END, length=UNDEFINED),
)
simple(
    "standard sequence as UN of defined length",
    lambda token: element(0x00081140, "UN", item(implicit(0x00100010, token))),
)
simple("name as UN", text(0x00100010, "UN"))
simple("number as UN", text(0x00180060, "UN"))
simple(
    "kept text's tag as UN sequence",
    lambda token: element(0x00280010, "UN", item(implicit(0x00100010, token))),
    keeps_pixels=False,
)

# --- values that are not what their VR says -----------------------------------------------------------------------

simple("text in a DS", text(0x00180060, "DS"))
simple("text in a list of DS", text(0x00280030, "DS", b"0.1\\"))
simple("text behind a DS", text(0x00180060, "DS", b"120 "))
simple("text in an IS", text(0x00200013, "IS"))
simple("text in a list of IS", text(0x00081160, "IS", b"1\\2\\"))
simple("number that is too long for a DS", text(0x00180060, "DS"), token=b"31415926535897932384")
simple("number that is too long for an IS", text(0x00181152, "IS"), token=b"3141592653589")
simple("telephone number in a DS", text(0x00180060, "DS"), token=b"+49-30-471100")
simple("date in a DS", text(0x00180060, "DS"), token=b"1963-04-17")
simple("list in a DS of one value", text(0x00180060, "DS", b"120\\"), token=b"471100815")
simple("term in a list of terms that is not one", text(0x00080008, "CS", b"ORIGINAL\\", b"^X\\AP"))
simple("term that is too long", text(0x00180015, "CS"), token=b"ZQ48XKPLUMANDMUCHMORE")
simple("term of small letters", text(0x00180015, "CS"), token=b"zq48xkplum")
simple("term behind a NUL", text(0x00180015, "CS", b"CHEST\0"))
simple("term that is none of the standard's", text(0x00180015, "CS"))
simple("term in a list that is none of the standard's", text(0x00080008, "CS", b"ORIGINAL\\PRIMARY\\"))
simple("term of another attribute's kind", text(0x00080060, "CS"))
simple("age with text", text(0x00101010, "AS"))
simple("text in a binary number", text(0x00280106, "US"))
simple("text in several binary numbers", text(0x00280009, "AT"), token=b"ZQ48XKPL")
simple(
    "text in a list of binary numbers",
    lambda token: sequence(0x00603000, element(0x00603020, "UL", token)),
    token=b"ZQ48XKPLUMAB",
)
simple("text in doubles", text(0x00189309, "FD"), token=b"ZQ48XKPLUMABCDEFGHIJKLMN")
simple("wrong VR for a number", text(0x00280107, "LO"))
simple("wrong VR for a name", text(0x00100010, "CS"))
simple("sequence where a term belongs", lambda token: sequence(0x00080060, element(0x00100010, "PN", token)))
simple("bytes where a term belongs", text(0x00180015, "OB"))
simple("text longer than its VR allows", text(0x00080070, "LO", b"A" * 70))
simple("short text longer than its VR allows", text(0x00181210, "SH", b"B" * 20))
simple("many values where one belongs", text(0x00080070, "LO", b"MAKER\\"))
simple("character set", text(0x00080005, "CS", b"ISO_IR 100\\"))
simple("time zone", text(0x00080201, "SH", b"+0100 "))
simple("UTF-16", lambda token: element(0x00081030, "LO", token), token="ZQ48XK".encode("utf-16-le"))
simple(
    "ISO 2022 text",
    lambda token: element(0x00080005, "CS", b"\\ISO 2022 IR 87"),
    lambda token: element(
        0x00100010,
        "PN",
        b"Yamada^Tarou=" + token + b"^=",
    ),
    token=b"\x1b$B;3ED\x1b(B",
)
simple(
    "ISO 2022 text in a description",
    lambda token: element(0x00080005, "CS", b"\\ISO 2022 IR 87"),
    text(0x0008103E, "LO"),
    token=b"\x1b$B;3ED\x1b(B",
)

# --- UIDs ---------------------------------------------------------------------------------------------------------

for _tag in (
    *(0x00080018, 0x0020000D, 0x0020000E, 0x00200052, 0x00080014, 0x00081150, 0x00081155, 0x0008001A, 0x0008001B),
    *(0x00080017, 0x00080019, 0x00083010, 0x00189367, 0x00200200, 0x00081195),
    *(0x00880140, 0x0040DB0D, 0x30060024, 0x00041511, 0x0008010C, 0x0008010D, 0x00080117, 0x00080118, 0x00091101),
):
    simple(f"UID {_tag:08X}", text(_tag, "UI", b"1.2.999."), token=NUMBER)
simple(
    "SOP class of a reference",
    lambda token: sequence(0x00081140, element(0x00081150, "UI", b"1.2.840.10008.5.1.4.1.1." + token)),
    token=NUMBER,
)
simple(
    "UID of a coding scheme",
    lambda token: sequence(
        0x00082218, code(b"T-1", b"SCT", b"Eye") + element(0x0008010C, "UI", b"2.16.840.1.113883.6." + token)
    ),
    token=NUMBER,
)
simple("letters in a UID", lambda token: sequence(0x00081140, element(0x00081155, "UI", b"1.2." + token)))
simple("list of UIDs", text(0x0008001A, "UI", DX.encode() + b"\\1.2.999."), token=NUMBER)
simple("own SOP class", text(0x00080016, "UI", b"1.2.840.10008.5.1.4.1.1."), token=NUMBER, refused=True)

# --- codes --------------------------------------------------------------------------------------------------------


def code(value: bytes, scheme: bytes, meaning: bytes) -> bytes:
    return element(0x00080100, "SH", value) + element(0x00080102, "SH", scheme) + element(0x00080104, "LO", meaning)


REGION, PROCEDURE = 0x00082218, 0x00081032
simple("meaning of a local code", lambda token: sequence(REGION, code(b"X1", b"99LOCAL", token)))
simple("value of a local code", lambda token: sequence(REGION, code(token, b"99LOCAL", b"Meaning")))
simple("scheme of a local code", lambda token: sequence(REGION, code(b"X1", b"99" + token, b"Meaning")))
simple(
    "version of a local scheme",
    lambda token: sequence(REGION, code(b"X1", b"99LOCAL", b"M") + element(0x00080103, "SH", token)),
)
simple(
    "version of a public scheme",
    lambda token: sequence(REGION, code(b"51185008", b"SCT", b"Chest") + element(0x00080103, "SH", token)),
)
simple(
    "code without a scheme",
    lambda token: sequence(REGION, element(0x00080100, "SH", token) + element(0x00080104, "LO", token)),
)
simple(
    "long code value",
    lambda token: sequence(REGION, element(0x00080119, "UC", token) + element(0x00080102, "SH", b"99LOCAL")),
)
simple(
    "URN code value",
    lambda token: sequence(REGION, element(0x00080120, "UR", b"urn:oid:" + token) + element(0x00080104, "LO", b"M")),
)
simple("meaning of a public code", lambda token: sequence(REGION, code(b"51185008", b"SCT", token)))
simple("value of a public code", lambda token: sequence(REGION, code(token, b"SCT", b"Chest")))
simple(
    "context of a code",
    lambda token: sequence(REGION, code(b"51185008", b"SCT", b"Chest") + element(0x0008010F, "CS", token)),
)
simple(
    "mapping resource of a code",
    lambda token: sequence(
        REGION,
        code(b"51185008", b"SCT", b"Chest") + element(0x00080105, "CS", token) + element(0x00080122, "LO", token),
    ),
)
simple("code at the top level", text(0x00080100, "SH"), text(0x00080104, "LO"))
simple("procedure code", lambda token: sequence(PROCEDURE, code(token, b"99LOCAL", token)))
simple(
    "coding scheme's responsible organization",
    lambda token: sequence(
        0x00080110,
        element(0x00080116, "ST", token) + element(0x00080115, "ST", token) + element(0x00080102, "SH", b"DCM"),
    ),
)
simple(
    "coding scheme's registry",
    lambda token: sequence(
        0x00080110,
        element(0x00080112, "LO", token) + element(0x00080114, "ST", token) + element(0x00080102, "SH", b"DCM"),
    ),
)

# --- look-up tables and colour profiles ---------------------------------------------------------------------------


def lut(tag: int, more: bytes = b"", explanation: bytes = b"") -> bytes:
    parts = element(0x00283002, "US", us(4, 0, 16))
    parts += element(0x00283003, "LO", explanation) if explanation else b""
    return sequence(tag, parts + element(0x00283006, "OW", us(0, 100, 200, 300) + more))


simple("explanation of a VOI LUT", lambda token: lut(0x00283010, explanation=token))
simple("explanation of a modality LUT", lambda token: lut(0x00283000, explanation=token))
simple("behind the entries of a VOI LUT", lambda token: lut(0x00283010, more=token))
simple("modality LUT type", lambda token: sequence(0x00283000, element(0x00283004, "LO", token)))


@place("behind the entries of a palette", keeps_pixels=False)
def _(token: bytes) -> bytes:
    palette = us(*range(256))
    descriptors = [element(0x00281100 | n, "US", us(256, 0, 16)) for n in (1, 2, 3)]
    tables = [element(0x00281200 | n, "OW", palette + token) for n in (1, 2, 3)]
    return with_elements(*descriptors, *tables, element(0x00280004, "CS", b"PALETTE COLOR"), sop_class=SC)


@place("palette without a descriptor")
def _(token: bytes) -> bytes:
    return with_elements(element(0x00281201, "OW", token), sop_class=SC)


def icc_profile() -> bytearray:
    return bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())


@place("description in an ICC profile")
def _(token: bytes) -> bytes:
    profile = icc_profile()
    (count,) = struct.unpack_from(">L", profile, 128)
    for number in range(count):
        name, offset, size = struct.unpack_from(">4sLL", profile, 132 + 12 * number)
        if name == b"desc":
            profile[offset + size - len(token) : offset + size] = token
    return with_elements(element(0x00282000, "OB", bytes(profile)))


@place("behind an ICC profile")
def _(token: bytes) -> bytes:
    return with_elements(element(0x00282000, "OB", bytes(icc_profile()) + token))


@place("header of an ICC profile")
def _(token: bytes) -> bytes:
    profile = icc_profile()
    profile[100 : 100 + len(token)] = token
    return with_elements(element(0x00282000, "OB", bytes(profile)))


@place("colour spaces of an ICC profile")
def _(token: bytes) -> bytes:
    profile = icc_profile()
    profile[12 : 12 + len(token)] = token
    return with_elements(element(0x00282000, "OB", bytes(profile)))


@place("behind a colour of an ICC profile")
def _(token: bytes) -> bytes:
    profile = icc_profile()
    (count,) = struct.unpack_from(">L", profile, 128)
    for number in range(count):
        if profile[132 + 12 * number : 136 + 12 * number] == b"rXYZ":
            struct.pack_into(">LL", profile, 136 + 12 * number, len(profile), 20 + len(token))
    return with_elements(element(0x00282000, "OB", bytes(profile) + b"XYZ " + bytes(16) + token))


simple("ICC profile that is none", text(0x00282000, "OB"))
simple("colour space", text(0x00282002, "CS"))

# --- pixels -------------------------------------------------------------------------------------------------------


@place("behind the last pixel")
def _(token: bytes) -> bytes:
    made = image(DX)
    return with_elements(element(0x7FE00010, "OB", made[0x7FE00010][12:] + token))


@place("behind the last pixel, big endian")
def _(token: bytes) -> bytes:
    source = pydicom.dcmread(io.BytesIO(with_elements(bits=16)))
    source.PixelData = source.PixelData + token
    source.file_meta.TransferSyntaxUID = BIG_ENDIAN
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, source, little_endian=False, implicit_vr=False)
    return buffer.getvalue()


def in_high_bytes(token: bytes) -> bytes:
    pixels = np.arange(64, dtype="<u2")
    pixels[: len(token)] |= np.frombuffer(token, np.uint8).astype("<u2") << 8
    return pixels.tobytes()


SPREAD = bytes(byte for pair in zip(range(len(TOKEN)), TOKEN, strict=True) for byte in pair)
"""The token in the high bytes of the first pixels."""


@place("unused high bits of pixels", token=SPREAD, keeps_pixels=False)
def _(token: bytes) -> bytes:
    return with_elements(element(0x7FE00010, "OW", in_high_bytes(token[1::2])), bits=16, stored=8)


@place(
    "unused high bits of pixels in a big-endian object",
    token=bytes(b for p in zip(TOKEN, range(10), strict=True) for b in p),
    keeps_pixels=False,
)
def _(token: bytes) -> bytes:
    source = pydicom.dcmread(io.BytesIO(with_elements(bits=16, stored=8)))
    source.PixelData = np.frombuffer(in_high_bytes(token[::2]), "<u2").astype(">u2").tobytes()
    source.file_meta.TransferSyntaxUID = BIG_ENDIAN
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, source, little_endian=False, implicit_vr=False)
    return buffer.getvalue()


@place("overlay in the bits of pixels", token=SPREAD, keeps_pixels=False)
def _(token: bytes) -> bytes:
    overlay = [element(0x60000100, "US", us(16)), element(0x60000102, "US", us(8))]
    return with_elements(*overlay, element(0x7FE00010, "OW", in_high_bytes(token[1::2])), bits=16, stored=8)


simple(
    "extended offset table",
    lambda token: element(0x7FE00001, "OV", token + bytes(6)),
    lambda token: element(0x7FE00002, "OV", token + bytes(6)),
)
simple("provider of the pixels", text(0x00287FE0, "UR"))

# --- compressed streams -------------------------------------------------------------------------------------------


def compressed(
    streams: list[bytes],
    syntax: str,
    *,
    colour: bool = True,
    table: bytes = b"",
    frames: int = 1,
    side: int = 16,
    bits: int = 8,
) -> bytes:
    made = image(OP if colour else DX, side=side, colour=colour, frames=frames, bits=bits)
    if syntax == JPEG:
        made[0x00280004] = element(0x00280004, "CS", b"YBR_FULL_422")
    made[0x7FE00010] = fragments(*streams, table=table)
    return part10(joined(made), syntax=syntax)


def picture(side: int = 16) -> Image.Image:
    ramp = np.arange(side * side * 3, dtype=np.uint8).reshape(side, side, 3)
    return Image.fromarray(ramp)


def jpeg(*segments: bytes, behind: bytes = b"", before_end: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    picture().save(buffer, "JPEG", quality=90)
    stream = buffer.getvalue()
    return stream[:2] + b"".join(segments) + stream[2:-2] + before_end + stream[-2:] + behind


def segment(marker: int, payload: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(payload) + 2) + payload


def com(token: bytes) -> bytes:
    return segment(0xFE, token)


def exif(token: bytes) -> bytes:
    made = Image.Exif()
    made[0x010E], made[0x0132] = token.decode(), f"2013:04:05 {token.decode()}"
    made.get_ifd(0x8769)[0x927C] = b"Maker note " + token
    return segment(0xE1, made.tobytes())


for _name, _segments in {
    "a JPEG comment": com,
    "EXIF and maker notes": exif,
    "XMP": lambda token: segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta>" + token),
    "an ICC profile in a JPEG": lambda token: segment(0xE2, b"ICC_PROFILE\0\1\1" + token),
    "a Photoshop segment": lambda token: segment(0xED, b"Photoshop 3.0\0" + token),
    "a JFIF thumbnail": lambda token: segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\2\2" + token + b"\0\0"),
    "a JFIF extension": lambda token: segment(0xE0, b"JFXX\0\x10" + token),
    "an Adobe segment": lambda token: segment(0xEE, b"Adobe\0\x64" + token[:4] + b"\1" + token),
    **{f"APP{n}": lambda token, n=n: segment(0xE0 + n, token) for n in range(3, 16)},  # type: ignore[misc]
}.items():
    place(_name)(lambda token, segments=_segments: compressed([jpeg(segments(token))], JPEG))  # type: ignore[misc]

place("flags of an Adobe segment", token=b"ZQ48")(
    lambda token: compressed([jpeg(segment(0xEE, b"Adobe\0\x64" + token + b"\1"))], JPEG)
)
place("behind the end of a JPEG")(lambda token: compressed([jpeg(behind=token)], JPEG))
place("a picture behind the end of a JPEG")(lambda token: compressed([jpeg(behind=jpeg(com(token)))], JPEG))
place("a table of a JPEG that no component uses")(
    lambda token: compressed([jpeg(segment(0xDB, b"\x03" + token.ljust(64, b"\1")))], JPEG)
)
place("offset table", token=TOKEN[:8])(lambda token: compressed([jpeg()], JPEG, table=bytes(4) + token))
place("a comment in a stream of several fragments")(
    lambda token: compressed([jpeg(com(token))[:30], jpeg(com(token))[30:]], JPEG)
)
place("the second frame")(lambda token: compressed([jpeg(), jpeg(com(token))], JPEG, frames=2))
place("a fragment behind the last frame")(lambda token: compressed([jpeg(), token], JPEG))


def encoded_with(syntax: str, *, side: int = 16) -> tuple[Dataset, bytes]:
    source = pydicom.dcmread(io.BytesIO(with_elements(side=side)))
    source.compress(syntax, generate_instance_uid=False)
    (stream,) = pydicom.encaps.generate_frames(source.PixelData, number_of_frames=1)
    return source, stream


def jpeg_ls(*segments: bytes, behind: bytes = b"") -> bytes:
    _, stream = encoded_with(JPEG_LS)
    stream = stream[: stream.rindex(b"\xff\xd9") + 2]
    return stream[:2] + b"".join(segments) + stream[2:] + behind


def grey(stream: bytes, syntax: str) -> bytes:
    return compressed([stream], syntax, colour=False, side=64 if syntax == JPEG_2000 else 16)


place("a JPEG-LS comment")(lambda token: grey(jpeg_ls(com(token)), JPEG_LS))
place("a JPEG-LS application segment")(lambda token: grey(jpeg_ls(segment(0xE4, token)), JPEG_LS))
place("behind the end of a JPEG-LS")(lambda token: grey(jpeg_ls(behind=token), JPEG_LS))


def codestream(extra: bytes = b"", behind: bytes = b"") -> bytes:
    _, stream = encoded_with(JPEG_2000, side=64)
    end = stream.rindex(b"\xff\xd9") + 2
    first = stream.index(b"\xff\x52")
    return stream[:first] + extra + stream[first:end] + behind


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">L4s", len(content) + 8, kind) + content


def jp2(*boxes: bytes, behind: bytes = b"") -> bytes:
    head = box(b"jP  ", b"\r\n\x87\n") + box(b"ftyp", b"jp2 \0\0\0\0jp2 ")
    return head + b"".join(boxes) + box(b"jp2c", codestream()) + behind


place("a JPEG 2000 comment")(lambda token: grey(codestream(segment(0x64, b"\0\1" + token)), JPEG_2000))
place("an unknown JPEG 2000 segment", refused=True)(lambda token: grey(codestream(segment(0x6F, token)), JPEG_2000))
place("behind the end of a JPEG 2000")(lambda token: grey(codestream(behind=token), JPEG_2000))
place("a JP2 XML box", keeps_pixels=False)(lambda token: grey(jp2(box(b"xml ", token)), JPEG_2000))
place("a JP2 UUID box", keeps_pixels=False)(lambda token: grey(jp2(box(b"uuid", bytes(16) + token)), JPEG_2000))
place("a JP2 box behind the codestream", keeps_pixels=False)(
    lambda token: grey(jp2(behind=box(b"xml ", token)), JPEG_2000)
)


def rle(*, unused_offsets: bytes = b"", before: bytes = b"", behind: bytes = b"") -> bytes:
    rows = bytes(n % 256 for n in range(256))
    packed = b"".join(b"\x0f" + rows[16 * n : 16 * n + 16] for n in range(16))
    header = struct.pack("<LL", 1, 64 + len(before)) + unused_offsets
    return header.ljust(64, b"\0") + before + packed + behind


place("unused offsets of an RLE header")(lambda token: grey(rle(unused_offsets=token), RLE))
place("before an RLE segment")(lambda token: grey(rle(before=token), RLE))
place("runs behind the last pixel of an RLE segment")(
    lambda token: grey(rle(behind=bytes([len(token) - 1]) + token), RLE)
)
place("behind an RLE segment", keeps_pixels=False)(lambda token: grey(rle(behind=token), RLE))


# --- the tests ----------------------------------------------------------------------------------------------------


def inflated(encoded: bytes) -> bytes:
    """What a deflated file inflates to; nothing for others."""
    if DEFLATED.encode() not in encoded[:400]:
        return b""
    start = 132 + 12 + struct.unpack_from("<L", encoded, 140)[0]
    return zlib.decompressobj(wbits=-15).decompress(encoded[start:])


def contains(encoded: bytes, token: bytes) -> bool:
    return token in encoded or token in inflated(encoded)


def read(encoded: bytes) -> Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, of values that are not what they should be
        return pydicom.dcmread(io.BytesIO(encoded), force=True)


def written(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("profile", [DEFAULT, CLEANING], ids=["default", "cleaning"])
@pytest.mark.parametrize("where", PLACES, ids=lambda where: where.name)
def test_nothing_hides(where: Place, profile: DeidentificationProfile) -> None:
    encoded = where.make(where.token)
    assert contains(encoded, where.token), "negative control"
    deidentifier = Deidentifier(KEY, profile)
    if where.refused:
        with pytest.raises(DeidentificationError) as caught:
            deidentifier.dataset(read(encoded))
        assert where.token.decode("ascii", "replace") not in str(caught.value)
        assert "; expected " in str(caught.value)
        return
    result = written(deidentifier.dataset(read(encoded)))
    assert not contains(result, where.token)
    if where.keeps_pixels:
        assert np.array_equal(read(result).pixel_array, read(encoded).pixel_array)


REPEATING = (
    *(
        ("Manufacturer", "Doe Devices"),
        ("ManufacturerModelName", "Model 471108"),
        ("SoftwareVersions", ["1.2", "JANE"]),
    ),
    *(("StationName", "ROOM-DOE"), ("DeviceSerialNumber", "471108"), ("BodyPartExamined", "DOE")),
    *(("ImageType", ["ORIGINAL", "PRIMARY", "DOE"]), ("ConvolutionKernel", "doe"), ("DetectorID", "xjaneway-1")),
    *(("DetectorDescription", "Doe, chest"), ("SequenceName", "4.7/JANE")),
)


@pytest.mark.parametrize(("keyword", "value"), REPEATING)
def test_texts_of_devices_do_not_repeat_the_patient(keyword: str, value: str | list[str]) -> None:
    original = read(with_elements())
    original.PatientName, original.PatientID = "Doe^Janeway^Jane", "471108"
    setattr(original, keyword, value)
    result = written(Deidentifier(KEY).dataset(original)).upper()
    assert b"DOE" in written(original).upper()
    assert not any(token in result for token in (b"DOE", b"JANE", b"471108"))
    other = read(with_elements())
    other.PatientName, other.PatientID = "Roe^Richard", "1"
    setattr(other, keyword, value)
    if keyword not in ("BodyPartExamined", "ImageType", "DetectorDescription"):
        assert Deidentifier(KEY).dataset(other)[keyword].value == value


def test_terms_stay_even_if_the_patient_is_called_so() -> None:
    original = read(with_elements())
    original.PatientName, original.BodyPartExamined, original.ImageType = (
        "Head^Primary",
        "HEAD",
        ["ORIGINAL", "PRIMARY"],
    )
    result = Deidentifier(KEY).dataset(original)
    assert result.BodyPartExamined == "HEAD" and result.ImageType == ["ORIGINAL", "PRIMARY"]


def test_places_have_names_of_their_own() -> None:
    names = [each.name for each in PLACES]
    assert len(names) == len(set(names)) > 150
