"""What the object says about its own de-identification, and its new file meta.

References
----------
PS3.15 E.1.1, E.2 and E.3; PS3.3 C.12.1; PS3.16 CID 7050; PS3.10 section 7.1.
"""

from __future__ import annotations

from collections.abc import Iterable

from pydicom import Dataset, Sequence
from pydicom._uid_dict import UID_dictionary
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from gateway.deidentification.options import BASIC_PROFILE_CODE, CODES, Option
from gateway.deidentification.pixel_data import PIXEL_DATA
from gateway.deidentification.profile import edition
from gateway.errors import DeidentificationError

IMPLEMENTATION_CLASS_UID = UID("2.25.219872641105362490867355410296743215098")
"""Of the objects that de-identification writes; made once, at random."""
IMPLEMENTATION_VERSION_NAME = "GATEWAY_DEID_1"

OPHTHALMIC_PHOTOGRAPHY = frozenset([f"1.2.840.10008.5.1.4.1.1.77.1.5.{n}" for n in (1, 2, 5, 6)])
"""8 and 16 bit, wide field: the vessels of a fundus identify, whatever the header says (PS3.4 Annex B.5)."""


def write_evidence(copy: Dataset, options: Iterable[Option], sop_class_uid: str) -> None:
    """Say in `copy` that it is de-identified, and by exactly these options."""
    used = [option for option in CODES if option in frozenset(options)]
    methods = [BASIC_PROFILE_CODE, *sorted(CODES[option] for option in used)]
    copy.PatientIdentityRemoved = "YES"
    copy.DeidentificationMethod = [f"PS3.15 {edition()} Table E.1-1", *(meaning[:64] for _, meaning in methods)]
    codes = []
    for code_value, meaning in methods:
        code = Dataset()
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = code_value, "DCM", meaning
        codes.append(code)
    copy.DeidentificationMethodCodeSequence = Sequence(codes)
    if Option.RETAIN_LONGITUDINAL_FULL_DATES in used:
        copy.LongitudinalTemporalInformationModified = "UNMODIFIED"
    elif Option.RETAIN_LONGITUDINAL_MODIFIED_DATES in used:
        copy.LongitudinalTemporalInformationModified = "MODIFIED"
    else:
        copy.LongitudinalTemporalInformationModified = "REMOVED"
    if sop_class_uid in OPHTHALMIC_PHOTOGRAPHY:
        copy.RecognizableVisualFeatures = "YES"


def new_file_meta(copy: Dataset, sop_class_uid: str, transfer_syntax_uid: str) -> FileMetaDataset:
    """File meta that holds nothing of the original's but the transfer syntax."""
    file_meta = FileMetaDataset()
    file_meta.FileMetaInformationVersion = b"\x00\x01"
    file_meta.MediaStorageSOPClassUID = UID(sop_class_uid)
    file_meta.MediaStorageSOPInstanceUID = copy.get("SOPInstanceUID", "")
    file_meta.TransferSyntaxUID = UID(transfer_syntax_uid)
    file_meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    file_meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    return file_meta


def transfer_syntax_of(original: Dataset) -> str:
    """The transfer syntax from the file meta, or that in which the data set was read.

    Raises
    ------
    DeidentificationError
        If it is private or cannot be known: then neither is what the pixel data hold.
    """
    file_meta = getattr(original, "file_meta", None)
    named = str(file_meta.get("TransferSyntaxUID", "")) if file_meta is not None else ""
    if named:
        if named not in UID_dictionary or not UID(named).is_transfer_syntax:
            raise DeidentificationError("the transfer syntax is private or not known; expected one of PS3.6 Annex A")
        return named
    pixel_data = original.get_item(PIXEL_DATA, keep_deferred=True)
    if getattr(pixel_data, "length", 0) == 0xFFFFFFFF or getattr(pixel_data, "is_undefined_length", False):
        raise DeidentificationError("encapsulated pixel data without a transfer syntax; expected (0002,0010)")
    implicit, little = original.original_encoding
    if little is False:
        return "1.2.840.10008.1.2.2"
    return "1.2.840.10008.1.2" if implicit else str(ExplicitVRLittleEndian)
