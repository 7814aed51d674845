"""What is done to one file, in a worker's process: hashed, inspected, read, de-identified, written.

What the file says reaches pydicom only after the walk over its bytes that the gateway makes before it acknowledges an
object: nothing that ends early, nests without end or inflates without end gets further.

References
----------
PS3.10 section 7.1; PS3.15 Annex E.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom import Dataset
from pydicom.errors import InvalidDicomError

from gateway.bulk.finish import TOO_LARGE, NotDoneError, reason_of
from gateway.bulk.manifest import kib
from gateway.bulk.names import OutputNames
from gateway.deidentification.changes import Change, ChangeRecord
from gateway.deidentification.elements import UNREADABLE
from gateway.deidentification.options import CODES
from gateway.errors import DeidentificationError, NotUnderstoodError, OutOfResourcesError
from gateway.part10 import FileHead, HeadReader
from gateway.validate import Inspection, encoding_of, inspect
from models.errors import DecoderUnavailableError, PixelError

if TYPE_CHECKING:
    from gateway.deidentification.burned_in_text import TextBox, TextFinder
    from gateway.deidentify import Deidentifier

Claim = Callable[[str, str | None], Mapping[str, Any]]
"""Asks whether a source with this SHA-256, and later the instance with this name, is this worker's to do."""

_PIECE_BYTES = 1 << 16
_DICOMDIR = "1.2.840.10008.1.3.10"
_PSEUDONYM = re.compile(r"[0-9A-F]{16}")
_ITEM_NUMBER = re.compile(r"\[\d+\]")
_UNFORESEEN = (*UNREADABLE, InvalidDicomError, RecursionError, ArithmeticError, AssertionError, RuntimeError)


class CountingFinder:
    """A text finder that counts what it was shown and what it found."""

    def __init__(self, finder: TextFinder) -> None:
        self._finder = finder
        self.pictures = 0
        self.boxes = 0

    def find(self, picture: npt.NDArray[np.uint8]) -> tuple[TextBox, ...]:
        """See ``TextFinder``."""
        found = self._finder.find(picture)
        self.pictures += 1
        self.boxes += len(found)
        return found


class _HashingFile:
    """A file that is written from its beginning to its end, and hashed meanwhile."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def write(self, content: bytes | bytearray | memoryview, /) -> int:
        self.sha256.update(content)
        return self._file.write(content)

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        place = self._file.tell()
        if self._file.seek(offset, whence) != place:
            raise NotDoneError("the writer of DICOM files went back, which it does not do")
        return place


class FileWork:
    """Does one file after the other.

    Parameters
    ----------
    root
        The folder that paths are below.
    unfinished
        A folder of this run, on the file system of the outputs, for what is not whole yet.
    """

    def __init__(
        self,
        deidentifier: Deidentifier,
        names: OutputNames,
        *,
        root: Path,
        unfinished: Path,
        finder: CountingFinder | None = None,
    ) -> None:
        self._deidentifier = deidentifier
        self._names = names
        self._root = root
        self._unfinished = unfinished
        self._finder = finder
        self._scratch = tempfile.TemporaryDirectory(prefix="gateway-")

    def do(self, path: str, claim: Claim) -> dict[str, Any]:
        """De-identify the file at `path`; returns its manifest row, but for what the parent adds."""
        started_s = time.monotonic()
        row: dict[str, Any] = {"state": "failed", "reason": ""}
        try:
            self._do(path, claim, row)
        except NotDoneError as error:
            row["state"], row["reason"] = error.state, str(error)
        except (DeidentificationError, NotUnderstoodError, PixelError) as error:
            row["state"], row["reason"] = "refused", str(error)
        except (OutOfResourcesError, DecoderUnavailableError) as error:
            row["reason"] = str(error)
        except MemoryError:
            row["reason"] = TOO_LARGE
        except OSError as error:
            row["reason"] = reason_of(error)
        except _UNFORESEEN as error:
            # The text of such an error may quote a value.
            row["state"], row["reason"] = "refused", f"it cannot be read: {type(error).__name__}"
        row["ms"] = round((time.monotonic() - started_s) * 1000, 1)
        return row

    def _do(self, path: str, claim: Claim, row: dict[str, Any]) -> None:
        with _open_source(self._root / path) as source:
            before = os.fstat(source.fileno())
            row["source_kib"] = kib(before.st_size)
            row["source_sha256"] = hashlib.file_digest(source, "sha256").hexdigest()  # type: ignore[arg-type]
            answer = claim(row["source_sha256"], None)
            if answer.get("go"):
                inspection = self._inspect(source)
                instance = self._names.instance(inspection.sop_instance_uid)
                answer = claim(row["source_sha256"], instance)
            if answer.get("go") and answer.get("reason"):
                row["reason"] = str(answer["reason"])
                instance = self._names.again(inspection.sop_instance_uid, row["source_sha256"])
            if not answer.get("go"):
                row.update({name: answer[name] for name in ("state", "reason", "output") if name in answer})
                return
            row["reason"] = "; ".join(filter(None, (row["reason"], inspection.incomplete)))
            source.seek(0)
            copy, changes = self._deidentify(source, inspection, row)
            after = os.fstat(source.fileno())
            if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
                raise NotDoneError("it was changed while it was read")
        self._write(copy, row)
        patient, study = copy.PatientID.lower(), self._names.study(inspection.study_instance_uid)
        row["state"], row["output"] = "done", f"{patient}/{study}/{instance}.dcm"
        row["options"] = _options_in(copy)
        row["changes"] = changes

    def _inspect(self, source: IO[bytes]) -> Inspection:
        head, offset = _read_head(source)
        if head.sop_class_uid == _DICOMDIR:
            raise NotDoneError("a DICOMDIR: it lists files by their old names, none of which stay", refused=True)
        encoding = encoding_of(head.transfer_syntax_uid)
        path = Path(f"/proc/self/fd/{source.fileno()}")
        if encoding is None or not encoding.deflated:
            return inspect(path, offset=offset, transfer_syntax_uid=head.transfer_syntax_uid, complete=False)
        # What is inflated lies beside the path meanwhile, which must not be in the input.
        link = Path(self._scratch.name) / "source"
        link.unlink(missing_ok=True)
        link.symlink_to(path)
        return inspect(link, offset=offset, transfer_syntax_uid=head.transfer_syntax_uid, complete=False)

    def _deidentify(
        self, source: IO[bytes], inspection: Inspection, row: dict[str, Any]
    ) -> tuple[Dataset, list[dict[str, Any]]]:
        original = pydicom.dcmread(source)
        if str(original.get("SOPInstanceUID", "")).rstrip("\0 ") != inspection.sop_instance_uid:
            raise NotDoneError("two readers find two SOP Instance UIDs in it", refused=True)
        record = ChangeRecord()
        if self._finder is not None:
            self._finder.pictures = self._finder.boxes = 0
        copy = self._deidentifier.dataset(original, changes=record)
        if self._finder is not None:
            row["pixels"] = {"pictures": self._finder.pictures, "boxes": self._finder.boxes}
        if _PSEUDONYM.fullmatch(str(copy.PatientID)) is None:
            raise NotDoneError("the copy has no pseudonym", refused=True)
        return copy, grouped(record.changes)

    def _write(self, copy: Dataset, row: dict[str, Any]) -> None:
        """Write to a file of a name that is nobody's; the parent makes it durable and puts it in its place."""
        name = f"{os.getpid()}-{secrets.token_hex(8)}.part"
        unfinished = self._unfinished / name
        try:
            with unfinished.open("xb") as file:
                hashing = _HashingFile(file)
                pydicom.dcmwrite(hashing, copy, enforce_file_format=True)
            row["output_kib"] = kib(unfinished.stat().st_size)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        row["output_sha256"], row["unfinished"] = hashing.sha256.hexdigest(), name


def grouped(changes: Iterable[Change]) -> list[dict[str, Any]]:
    """What was done, by action and reason.

    Item numbers become a star, and an attribute that met the same in several items is named once, with how often.
    """
    groups: dict[tuple[str, str], dict[str, int]] = {}
    for change in changes:
        path = _ITEM_NUMBER.sub("[*]", change.path) if "[" in change.path else change.path
        label = f"{path} {change.keyword}" if change.keyword else path
        counts = groups.setdefault((change.action, change.reason), {})
        counts[label] = counts.get(label, 0) + 1
    return [
        {
            "action": action,
            "reason": reason,
            "attributes": [label if count == 1 else f"{label} x{count}" for label, count in counts.items()],
        }
        for (action, reason), counts in groups.items()
    ]


def _options_in(copy: Dataset) -> list[str]:
    """The options that the copy says were used: Clean Pixel Data, for one, only where there were pixels."""
    codes = {str(each.CodeValue) for each in copy.DeidentificationMethodCodeSequence}
    return sorted(option for option, (code, _) in CODES.items() if code in codes)


def _open_source(path: Path) -> IO[bytes]:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        raise NotDoneError(f"it cannot be opened: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotDoneError("not a regular file", refused=True)
    return os.fdopen(descriptor, "rb")


def _read_head(source: IO[bytes]) -> tuple[FileHead, int]:
    """The file's head, and where its data set begins."""
    source.seek(0)
    reader = HeadReader()
    while piece := source.read(_PIECE_BYTES):
        read = reader.feed(memoryview(piece))
        if read is not None:
            return read[0], source.tell() - len(read[1])
    return reader.end(), 0
