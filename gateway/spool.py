"""From the bytes of one C-STORE to an acknowledged instance, or to the quarantine.

::

    spool (objects/incoming) -> whole and understood? -> objects/instances/xx/KEY.dcm -> fsync file, folder
      -> row committed -> 0x0000

Nothing that a peer sent becomes part of a file name. Whatever fails leaves either a file that a row refers to, or no
file; what a kill leaves behind was never acknowledged and is removed by :func:`sweep` at the next start.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from pydicom import Dataset
from sqlalchemy import select

from gateway import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, completion
from gateway.dimse import SUCCESS
from gateway.errors import (
    INTAKE_STATUSES,
    IntakeError,
    MismatchError,
    OtherContentError,
    OutOfResourcesError,
    StoreError,
)
from gateway.objects import fsync_folder
from gateway.routing import attribute_values
from gateway.settings import CompletionSettings, Rule
from gateway.store import Store
from gateway.store.intake import (
    Admission,
    NewInstance,
    StudyHeader,
    admit_waiting,
    known_paths,
    new_key,
    put_in_quarantine,
)
from gateway.store.schema import instance
from gateway.validate import Inspection, inspect

logger = logging.getLogger(__name__)


_FLUSH_BYTES = 8 << 20
_ADMIT_TRIES = 3
_HEADERS_KEPT = 64
_ERROR_COMMENT_CHARACTERS = 64  # (0000,0902) is LO


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Who sends."""

    calling_ae_title: str
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What is told to the peer, and what became of the instance."""

    status: int
    instance_key: str
    reason: str = ""
    """Why it was refused; holds no PHI. Empty after Success."""

    @property
    def comment(self) -> str:
        """(0000,0902) *Error Comment*."""
        return self.reason.encode("ascii", "replace").decode("ascii")[:_ERROR_COMMENT_CHARACTERS]


class Spool:
    """One data set on its way in: written as it arrives, hashed as it passes, in a Part 10 file of the gateway's own.

    The preamble is empty and the file meta the gateway's, so that neither can carry anything foreign; the data set's
    bytes are those received. A write that fails is remembered, and the rest of the data set is dropped: the protocol
    offers no way to refuse in the middle of a data set.
    """

    def __init__(self, root: Path, *, sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str) -> None:
        self.key = new_key()
        self.sop_class_uid = sop_class_uid
        self.sop_instance_uid = sop_instance_uid
        self.transfer_syntax_uid = transfer_syntax_uid
        self.path = root / "incoming" / self.key
        self.size_bytes = 0
        self.failure: OSError | None = None
        self.keep_file = False
        self._sha256 = hashlib.sha256()
        self._descriptor = -1
        self._flushing_bytes = 0
        meta = file_meta(sop_class_uid, sop_instance_uid, transfer_syntax_uid)
        self.offset = len(meta)
        try:
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            self.failure = error
        self._write_all(memoryview(meta))

    def write(self, piece: memoryview | bytes) -> None:
        """Add a fragment of the data set."""
        self._write_all(memoryview(piece))
        self._sha256.update(piece)
        if self.size_bytes - self._flushing_bytes >= _FLUSH_BYTES and self.failure is None:
            # Have the kernel begin to write, so that the fsync at the end of a large object finds little left.
            os.posix_fadvise(self._descriptor, self._flushing_bytes, 0, os.POSIX_FADV_DONTNEED)
            self._flushing_bytes = self.size_bytes

    def _write_all(self, piece: memoryview) -> None:
        if self.failure is not None:
            return
        try:
            while piece:
                written = os.write(self._descriptor, piece)
                self.size_bytes += written
                piece = piece[written:]
        except OSError as error:
            self.failure = error

    @property
    def sha256(self) -> str:
        """Of the data set as received, without the gateway's file meta."""
        return self._sha256.hexdigest()

    def move(self, path: Path) -> None:
        """Give the file its place, and make file and name durable.

        Renaming before fsync lets one journal commit serve both; until the row is committed nothing refers to the name.
        """
        self.path = self.path.rename(path)
        os.fsync(self._descriptor)
        fsync_folder(path.parent)

    def close(self) -> None:
        """End writing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def discard(self) -> None:
        """End writing and remove the file, unless a row may refer to it."""
        self.close()
        if self.keep_file:
            return
        with suppress(OSError):
            self.path.unlink(missing_ok=True)


def file_meta(sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str) -> bytes:
    """Preamble and File Meta Information (PS3.10 section 7.1), the same bytes for the same instance."""
    values = (
        (0x0002, b"UI", sop_class_uid),
        (0x0003, b"UI", sop_instance_uid),
        (0x0010, b"UI", transfer_syntax_uid),
        (0x0012, b"UI", IMPLEMENTATION_CLASS_UID),
        (0x0013, b"SH", IMPLEMENTATION_VERSION_NAME),
    )
    elements = bytearray(b"\x02\x00\x01\x00OB\x00\x00\x02\x00\x00\x00\x00\x01")
    for number, vr, text in values:
        value = text.encode("ascii", "replace")
        if len(value) % 2:
            value += b"\0" if vr == b"UI" else b" "
        elements += b"\x02\x00" + number.to_bytes(2, "little") + vr + len(value).to_bytes(2, "little") + value
    group_length = b"\x02\x00\x00\x00UL\x04\x00" + len(elements).to_bytes(4, "little")
    return bytes(128) + b"DICM" + group_length + bytes(elements)


@dataclass(slots=True)
class _Arrival:
    """A row that waits for the next commit."""

    new: NewInstance
    outcome: Admission | StoreError | None = None


@dataclass(slots=True, kw_only=True)
class Intake:
    """Takes spooled data sets in. One a process; its methods may be called by many threads."""

    store: Store
    root: Path
    """The object folder."""
    rules: Sequence[Rule]
    completion: CompletionSettings
    stored: int = 0
    refused: int = 0
    _counting: threading.Lock = field(default_factory=threading.Lock)
    _committing: threading.Lock = field(default_factory=threading.Lock)
    _arrivals: deque[_Arrival] = field(default_factory=deque)
    _headers: dict[str, StudyHeader] = field(default_factory=dict)

    def open(self, *, sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str) -> Spool:
        """A spool for a data set that is about to arrive."""
        return Spool(
            self.root,
            sop_class_uid=sop_class_uid,
            sop_instance_uid=sop_instance_uid,
            transfer_syntax_uid=transfer_syntax_uid,
        )

    def take(self, spool: Spool, peer: Peer, *, study_instance_uid: str = "") -> Answer:
        """Validate, keep and record one data set; what it returns is the answer to the peer.

        When it answers Success the instance is on disk and its row is committed, whatever happens next.

        Parameters
        ----------
        study_instance_uid
            The study that it must be of; empty: any.
        """
        try:
            answer = self._take(spool, peer, study_instance_uid)
        except (IntakeError, StoreError, OSError) as error:
            answer = self._refuse(spool, peer, error)
        finally:
            spool.close()
        if answer.status == SUCCESS:
            with self._counting:
                self.stored += 1
        else:
            self.count_refused()
            logger.warning(
                "refused %s from %s at %s with 0x%04X: %s",
                answer.instance_key,
                peer.calling_ae_title,
                peer.address,
                answer.status,
                answer.reason,
            )
        return answer

    def count_refused(self) -> None:
        """Count an instance that is not taken."""
        with self._counting:
            self.refused += 1

    def _take(self, spool: Spool, peer: Peer, study_instance_uid: str) -> Answer:
        if spool.failure is not None:
            raise spool.failure
        inspection = inspect(spool.path, offset=spool.offset, transfer_syntax_uid=spool.transfer_syntax_uid)
        for name, told, found in (
            ("Class", spool.sop_class_uid, inspection.sop_class_uid),
            ("Instance", spool.sop_instance_uid, inspection.sop_instance_uid),
        ):
            if told != found:
                raise MismatchError(f"the SOP {name} UID of command and data set disagree")
        if study_instance_uid not in ("", inspection.study_instance_uid):
            raise MismatchError("the Study Instance UIDs of request and data set disagree")
        relative = f"instances/{spool.key[:2]}/{spool.key}.dcm"
        spool.move(self.root / relative)
        new = self._new_instance(spool, inspection, relative, peer)
        admission = self._admit(new, spool)
        if admission is Admission.OTHER_BYTES:
            raise OtherContentError("this SOP Instance UID is stored already with other content")
        if admission is Admission.ALREADY_THERE:
            spool.discard()
        return Answer(status=SUCCESS, instance_key=spool.key)

    def _admit(self, new: NewInstance, spool: Spool) -> Admission:
        """Commit the row; tried again where two processes made the same study at once, which PostgreSQL refuses.

        Raises
        ------
        StoreError
            It failed for good. Where the store cannot even say whether the row is there, the file stays for the sweep
            at the next start.
        """
        for tries_left in reversed(range(_ADMIT_TRIES)):
            try:
                return self._commit(new)
            except StoreError:
                spool.keep_file = True
                if self._is_committed(new.instance_key):
                    return Admission.STORED
                spool.keep_file = False
                if not tries_left:
                    raise
        raise AssertionError("unreachable")

    def _commit(self, new: NewInstance) -> Admission:
        """Commit a row together with those of all other threads that wait: one transaction, one fsync.

        Raises
        ------
        StoreError
            The transaction failed.
        """
        own = _Arrival(new)
        self._arrivals.append(own)
        with self._committing:
            if own.outcome is None:
                self._commit_waiting()
        assert own.outcome is not None
        if isinstance(own.outcome, StoreError):
            raise StoreError(str(own.outcome)) from own.outcome
        return own.outcome

    def _commit_waiting(self) -> None:
        batch: list[_Arrival] = []

        def take() -> list[NewInstance]:
            batch.extend(self._arrivals.popleft() for _ in range(len(self._arrivals)))
            return [each.new for each in batch]

        try:
            outcomes: Sequence[Admission | StoreError] = admit_waiting(self.store, take)
        except StoreError as error:
            take()  # where not even the transaction began
            outcomes = [error] * len(batch)
        for arrival, outcome in zip(batch, outcomes, strict=True):
            arrival.outcome = outcome

    def _is_committed(self, instance_key: str) -> bool:
        with self.store.read() as connection:
            row = connection.execute(select(instance.c.path).where(instance.c.instance_key == instance_key)).first()
        return row is not None

    def _new_instance(self, spool: Spool, inspection: Inspection, relative: str, peer: Peer) -> NewInstance:
        header = inspection.header
        modality = _text(header, "Modality", 16)
        return NewInstance(
            instance_key=spool.key,
            header=self._study_header(inspection, modality),
            sop_instance_uid=inspection.sop_instance_uid,
            sop_class_uid=inspection.sop_class_uid,
            series_instance_uid=inspection.series_instance_uid,
            transfer_syntax_uid=spool.transfer_syntax_uid,
            modality=modality,
            sha256=spool.sha256,
            size_bytes=spool.size_bytes,
            path=relative,
            calling_ae_title=peer.calling_ae_title,
            peer_address=peer.address,
            received_at=datetime.now(UTC),
            quiet_time=completion.quiet_time(header, self.rules, self.completion),
            hard_cap=completion.hard_cap(self.completion),
        )

    def _study_header(self, inspection: Inspection, modality: str) -> StudyHeader:
        """What the reading list shows of the study, by its first instance: those after it need not be decoded."""
        known = self._headers.get(inspection.study_instance_uid)
        if known is not None:
            return known
        header = inspection.header
        made = StudyHeader(
            study_instance_uid=inspection.study_instance_uid,
            patient_name=_text(header, "PatientName"),
            patient_id=_text(header, "PatientID"),
            patient_birth_date=_text(header, "PatientBirthDate", 16),
            patient_sex=_text(header, "PatientSex", 16),
            accession_number=_text(header, "AccessionNumber"),
            study_date=_text(header, "StudyDate", 16),
            study_time=_text(header, "StudyTime", 16),
            study_description=_text(header, "StudyDescription"),
            modality=modality,
        )
        with self._counting:
            while len(self._headers) >= _HEADERS_KEPT:
                self._headers.pop(next(iter(self._headers)))
            self._headers[inspection.study_instance_uid] = made
        return made

    def _refuse(self, spool: Spool, peer: Peer, error: IntakeError | StoreError | OSError) -> Answer:
        if isinstance(error, (StoreError, OSError, OutOfResourcesError)):
            spool.discard()
            reason = f"the disk failed: {error.strerror}" if isinstance(error, OSError) else str(error)
            status = INTAKE_STATUSES[OutOfResourcesError]
            return Answer(status=status, instance_key=spool.key, reason=reason)
        reason = str(error)
        try:
            self._quarantine(spool, peer, reason)
        except (StoreError, OSError) as failure:
            spool.discard()
            logger.error("could not quarantine %s: %s", spool.key, type(failure).__name__)
        status = next(INTAKE_STATUSES[cls] for cls in type(error).__mro__ if cls in INTAKE_STATUSES)
        return Answer(status=status, instance_key=spool.key, reason=reason)

    def _quarantine(self, spool: Spool, peer: Peer, reason: str) -> None:
        relative = f"quarantine/{spool.key}.dcm"
        spool.move(self.root / relative)
        put_in_quarantine(
            self.store,
            key=spool.key,
            reason=reason,
            path=relative,
            size_bytes=spool.size_bytes,
            calling_ae_title=peer.calling_ae_title,
            peer_address=peer.address,
            received_at=datetime.now(UTC),
        )


def _text(header: Dataset, keyword: str, length: int = 1024) -> str:
    """An attribute's text as a column can hold it: PostgreSQL takes no NUL, and short columns no long text."""
    return "\\".join(attribute_values(header, keyword)).replace("\0", "")[:length]


def sweep(store: Store, objects: Path) -> int:
    """Remove what was never acknowledged: all of ``incoming``, and files to which no row refers; returns how many.

    Called before receivers start, when nothing else writes there.

    Raises
    ------
    StoreError
        The store cannot say what it refers to; nothing was removed.
    """
    known = known_paths(store)
    found = [
        *(path for path in (objects / "incoming").iterdir() if path.is_file()),
        *(
            path
            for path in (*(objects / "instances").glob("*/*"), *(objects / "quarantine").iterdir())
            if path.is_file() and str(path.relative_to(objects)) not in known
        ),
    ]
    for path in found:
        path.unlink(missing_ok=True)
    return len(found)


def make_folders(objects: Path) -> None:
    """Make all folders of instances, so that none need be made, and its name made durable, while peers wait."""
    for number in range(256):
        (objects / "instances" / f"{number:02x}").mkdir(parents=True, exist_ok=True)
    fsync_folder(objects / "instances")
