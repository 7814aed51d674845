"""What is done to one file, in a worker's process: hashed, inspected, read, de-identified, written, put in its place.

What the file says reaches pydicom only after the walk over its bytes that the gateway makes before it acknowledges an
object: nothing that ends early, nests without end or inflates without end gets further.

References
----------
PS3.10 section 7.1; PS3.15 Annex E.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom import Dataset
from pydicom.errors import InvalidDicomError

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
_FULL = frozenset([errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
DISK_FULL = "no room for the output"
TOO_LARGE = "it needs more memory than a file may take"
OTHER_CONTENT = "a file with other content has the name of the output"


class NotDoneError(Exception):
    """The file is not done; the text says why and holds no PHI."""

    def __init__(self, reason: str, *, refused: bool = False) -> None:
        super().__init__(reason)
        self.state = "refused" if refused else "failed"


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
    """Does one file after the other, always into the same folder.

    Parameters
    ----------
    root
        The folder that paths are below.
    output
        The folder that outputs are put in.
    unfinished
        A folder of this run in it, for what is not whole yet.
    """

    def __init__(
        self,
        deidentifier: Deidentifier,
        names: OutputNames,
        *,
        root: Path,
        output: Path,
        unfinished: Path,
        finder: CountingFinder | None = None,
    ) -> None:
        self._deidentifier = deidentifier
        self._names = names
        self._root = root
        self._output = os.open(output, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
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
            row["reason"] = _reason_of(error)
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
            if not answer.get("go"):
                row.update({name: answer[name] for name in ("state", "reason", "output") if name in answer})
                return
            source.seek(0)
            copy, changes = self._deidentify(source, inspection, row)
            after = os.fstat(source.fileno())
            if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
                raise NotDoneError("it was changed while it was read")
        folder = copy.PatientID.lower(), self._names.study(inspection.study_instance_uid)
        name = f"{instance}.dcm"
        row["output"] = "/".join((*folder, name))
        try:
            self._write(copy, folder, name, row)
        except BaseException:
            del row["output"]
            raise
        row["state"] = "done"
        row["options"] = _options_in(copy)
        row["changes"] = changes

    def _inspect(self, source: IO[bytes]) -> Inspection:
        head, offset = _read_head(source)
        if head.sop_class_uid == _DICOMDIR:
            raise NotDoneError(
                "a DICOMDIR: it lists files by their old names; make a new one if it is needed", refused=True
            )
        encoding = encoding_of(head.transfer_syntax_uid)
        path = Path(f"/proc/self/fd/{source.fileno()}")
        if encoding is None or not encoding.deflated:
            return inspect(path, offset=offset, transfer_syntax_uid=head.transfer_syntax_uid)
        # What is inflated lies beside the path meanwhile, which must not be in the input.
        link = Path(self._scratch.name) / "source"
        link.unlink(missing_ok=True)
        link.symlink_to(path)
        return inspect(link, offset=offset, transfer_syntax_uid=head.transfer_syntax_uid)

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

    def _write(self, copy: Dataset, folder: tuple[str, str], name: str, row: dict[str, Any]) -> None:
        """Write to a file of another name, make it durable, and link it to its own, where nothing may be yet."""
        unfinished = self._unfinished / f"{secrets.token_hex(8)}.part"
        try:
            with unfinished.open("xb") as file:
                hashing = _HashingFile(file)
                pydicom.dcmwrite(hashing, copy, enforce_file_format=True)
                file.flush()
                os.fsync(file.fileno())
                row["output_kib"] = kib(os.fstat(file.fileno()).st_size)
            row["output_sha256"] = hashing.sha256.hexdigest()
            place = _folder_in(_folder_in(self._output, folder[0]), folder[1], close=True)
            try:
                self._link(unfinished, place, name, row)
            finally:
                os.close(place)
        except BaseException:
            row.pop("output_sha256", None), row.pop("output_kib", None)
            raise
        finally:
            unfinished.unlink(missing_ok=True)

    def _link(self, unfinished: Path, place: int, name: str, row: Mapping[str, Any]) -> None:
        try:
            os.link(unfinished, name, dst_dir_fd=place, follow_symlinks=False)
        except FileExistsError:
            # Of a run that was killed before it could write it down: the same bytes. Anything else stays.
            if _sha256_in(place, name) != row["output_sha256"]:
                raise NotDoneError(OTHER_CONTENT, refused=True) from None
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            # A file system without hard links. Nobody else writes here: the run holds the manifest.
            with suppress(FileNotFoundError):
                os.stat(name, dir_fd=place, follow_symlinks=False)
                if _sha256_in(place, name) != row["output_sha256"]:
                    raise NotDoneError(OTHER_CONTENT, refused=True) from None
            os.rename(unfinished, name, dst_dir_fd=place)


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
        raise NotDoneError(f"it cannot be opened: {_strerror(error)}") from error
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


def _folder_in(parent: int, name: str, *, close: bool = False) -> int:
    """A descriptor of the folder `name`, made if it is not there; a link in its place is an error."""
    try:
        with suppress(FileExistsError):
            os.mkdir(name, dir_fd=parent)
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    except NotADirectoryError as error:
        raise NotDoneError("something that is no folder has the name of an output folder", refused=True) from error
    finally:
        if close:
            os.close(parent)


def _sha256_in(folder: int, name: str) -> str:
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return ""
    with os.fdopen(descriptor, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if stat.S_ISREG(os.fstat(descriptor).st_mode) else ""


def _reason_of(error: OSError) -> str:
    # pydicom wraps errors in others of their class, whose text names the tag and whose number is lost.
    cause: BaseException | None = error
    while isinstance(cause, OSError) and cause.errno is None:
        cause = cause.__cause__
    if not isinstance(cause, OSError):
        return f"reading or writing failed: {type(error).__name__}"
    if cause.errno in _FULL:
        return DISK_FULL
    return TOO_LARGE if cause.errno == errno.ENOMEM else f"reading or writing failed: {_strerror(cause)}"


def _strerror(error: OSError) -> str:
    return error.strerror or type(error).__name__
