"""Sending by C-STORE: the parts that the sender and ``gateway send`` share, and the latter's client."""

from __future__ import annotations

import logging
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydicom import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import dcmread
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, _config, evt
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext, build_context

from gateway import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from gateway.errors import DeliveryError, SettingsError
from gateway.settings import TlsSettings
from gateway.tls import sender_context

logger = logging.getLogger(__name__)

MAXIMUM_PDU_BYTES = 131072
_CONTEXTS = 128  # PS3.8 section 9.3.2.2: context ids are the odd numbers from 1 to 255
_UNCOMPRESSED = (str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian))


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Of an association that the gateway asks for."""

    connection_s: float = 10
    association_s: float = 30
    response_s: float = 120
    network_s: float = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a peer listens, and the names to use."""

    host: str
    port: int
    called_ae_title: str
    calling_ae_title: str
    tls: TlsSettings | None = None
    """With what certificate and authorities to talk TLS; ``None``: without."""


def contexts_for(kinds: Iterable[tuple[str, str]], *, convertible: bool) -> list[PresentationContext]:
    """Presentation contexts for SOP Class and transfer syntax UIDs of what is to be sent, at most 128.

    Each pair has its own context, so that the peer decides on each syntax alone. With `convertible`, a second one
    offers the class uncompressed. Explicit and implicit VR share a context: a peer takes either.
    """
    contexts: dict[tuple[str, tuple[str, ...]], PresentationContext] = {}
    for sop_class_uid, transfer_syntax_uid in kinds:
        wanted: list[tuple[str, ...]] = [(transfer_syntax_uid,)]
        if convertible or transfer_syntax_uid in _UNCOMPRESSED:
            wanted.append(_UNCOMPRESSED)
        for syntaxes in wanted:
            if syntaxes != (_UNCOMPRESSED[0],):
                key = (sop_class_uid, syntaxes)
                contexts.setdefault(key, build_context(sop_class_uid, list(syntaxes)))
    return list(contexts.values())[:_CONTEXTS]


@contextmanager
def association_with(
    address: Address,
    contexts: Sequence[PresentationContext],
    timeouts: Timeouts | None = None,
    *,
    extended_negotiation: Sequence[Any] = (),
) -> Iterator[Association]:
    """An established association, released at the end.

    Parameters
    ----------
    extended_negotiation
        User information items, such as a role selection (PS3.7 section D.3.3.4).

    Raises
    ------
    DeliveryError
        The peer cannot be reached, does not answer, or rejects the association; or TLS fails, since a certificate is
        refused by either side or a file cannot be read. The message says which.
    """
    timeouts = timeouts or Timeouts()
    try:
        tls_context = sender_context(address.tls) if address.tls is not None else None
    except SettingsError as error:
        raise DeliveryError(str(error)) from error
    # Send files piece by piece as they are; and say nothing of what is sent.
    _config.STORE_SEND_CHUNKED_DATASET = True
    _config.LOG_HANDLER_LEVEL = "none"
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)
    entity = AE(ae_title=address.calling_ae_title)
    entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    entity.connection_timeout = timeouts.connection_s
    entity.acse_timeout = timeouts.association_s
    entity.dimse_timeout = timeouts.response_s
    entity.network_timeout = timeouts.network_s
    association = entity.associate(
        address.host,
        address.port,
        contexts=list(contexts),
        ae_title=address.called_ae_title,
        max_pdu=MAXIMUM_PDU_BYTES,
        ext_neg=list(extended_negotiation) or None,
        evt_handlers=[(evt.EVT_DATA_SENT, _hurry)],
        tls_args=(tls_context, address.host) if tls_context is not None else None,
    )
    if not association.is_established:
        failure = tls_context.failure if tls_context is not None else ""
        raise DeliveryError(_why_not(association, address, failure))
    _keep_answers_from_reactor(association)
    try:
        yield association
    finally:
        if association.is_established:
            association.release()


def _keep_answers_from_reactor(association: Association) -> None:
    """Let only those who wait for an answer take it.

    An association is a thread of its own that serves what the peer asks. pynetdicom 3.0.4 pauses it while something is
    sent, by a flag that may be out of date; then it takes the answer, drops it, and the sender waits for its timeout
    (``Association._run_reactor`` against ``send_c_store``; on busy cores once in some thousand objects). Nobody asks
    anything of a storage SCU, so its thread gets no messages at all.
    """
    take = association.dimse.get_msg

    def take_unless_reactor(block: bool = False) -> tuple[int | None, Any]:
        if threading.current_thread() is association:
            return None, None
        message: tuple[int | None, Any] = take(block)
        return message

    association.dimse.get_msg = take_unless_reactor


def _hurry(event: evt.Event) -> None:
    """Spare each object the 40 ms for which Nagle's algorithm and delayed ACKs wait for each other.

    Without NODELAY our data set waits for the peer's ACK of the command; without QUICKACK the second part of the
    peer's answer (DCMTK writes a PDU in two) waits for ours. The kernel forgets QUICKACK, so it is set after each PDU
    (tcp(7)).
    """
    connection = event.assoc.dul.socket
    if connection is not None and connection.socket is not None:
        with suppress(OSError):  # it ended just now, which the reactor will see
            connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def _why_not(association: Association, address: Address, tls_failure: str) -> str:
    where = f"{address.called_ae_title} at {address.host}:{address.port}"
    if tls_failure:
        return f"{where}: TLS failed: {tls_failure}"
    if association.is_rejected:
        primitive = association.acceptor.primitive
        return f"{where} rejected the association: {primitive.result_str}, {primitive.reason_str}"
    if association.acceptor.primitive is not None:
        refuses = not association.accepted_contexts
        return f"{where} {'accepts none of these kinds of object' if refuses else 'aborted the association'}"
    return f"{where} could not be reached"


def send_one(association: Association, what: Path | Dataset) -> int:
    """Send one file as it is, or a data set; returns the status of the peer's answer.

    Raises
    ------
    DeliveryError
        The peer accepted no presentation context for it, or the association ended before the answer.
    """
    try:
        response = association.send_c_store(what)
    except (ValueError, AttributeError) as error:
        raise DeliveryError(f"cannot be sent: {error}") from error
    except RuntimeError as error:
        raise DeliveryError("the association ended") from error
    except OSError as error:
        raise DeliveryError(f"cannot be read: {error.strerror}") from error
    if "Status" not in response:
        raise DeliveryError("the association ended before an answer, or none came in time")
    return int(response.Status)


def is_accepted(status: int) -> bool:
    """Whether the peer has the object: Success or a warning (PS3.4 Table B.2-1, PS3.7 Annex C.4)."""
    return status == 0x0000 or status & 0xF000 == 0xB000 or status in (0x0001, 0x0107, 0x0116)


# --- the client of `gateway send` ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class SentFile:
    """What became of one file."""

    path: Path
    size_bytes: int
    status: int | None
    """The peer's answer; ``None``: it was not sent, or no answer came."""
    error: str = ""

    @property
    def accepted(self) -> bool:
        """Whether the peer has it."""
        return self.status is not None and is_accepted(self.status)


@dataclass(frozen=True, slots=True, kw_only=True)
class SendReport:
    """What became of all files."""

    files: tuple[SentFile, ...]
    duration_s: float

    @property
    def accepted(self) -> int:
        """How many files the peer has."""
        return sum(each.accepted for each in self.files)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sendable:
    path: Path
    size_bytes: int
    sop_class_uid: str
    transfer_syntax_uid: str


def find_files(paths: Iterable[Path]) -> list[Path]:
    """The files named, and all files in the folders named, in order."""
    found: list[Path] = []
    for path in paths:
        found.extend(sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path])
    return found


def send_files(
    paths: Iterable[Path],
    *,
    host: str,
    port: int,
    called_ae_title: str,
    calling_ae_title: str = "GATEWAY_SEND",
    associations: int = 1,
    tls: TlsSettings | None = None,
    progress: Callable[[SentFile], None] | None = None,
    timeouts: Timeouts | None = None,
) -> SendReport:
    """Send DICOM files, as they are, over `associations` associations at once.

    Parameters
    ----------
    paths
        Files and folders; folders are searched for files. Files that are not DICOM are reported, not sent.
    progress
        Called for each file when its fate is known; calls come one at a time, from several threads.

    Returns
    -------
    SendReport
        One entry a file, in the order found. A peer that cannot be reached shows as each file's error.
    """
    started = time.monotonic()
    address = Address(host=host, port=port, called_ae_title=called_ae_title, calling_ae_title=calling_ae_title, tls=tls)
    found = find_files(paths)
    outcomes: dict[Path, SentFile] = {}
    lock = threading.Lock()

    def note(outcome: SentFile) -> None:
        with lock:
            outcomes[outcome.path] = outcome
            if progress is not None:
                progress(outcome)

    waiting: queue.SimpleQueue[list[_Sendable]] = queue.SimpleQueue()
    sendable = [each for each in (_examine(path, note) for path in found) if each is not None]
    batches = _batches(sendable, max(1, min(associations, len(sendable))))
    for batch in batches:
        waiting.put(batch)

    def work() -> None:
        while True:
            try:
                batch = waiting.get_nowait()
            except queue.Empty:
                return
            _send_batch(batch, address, timeouts, note)

    threads = [
        threading.Thread(target=work, name=f"send-{number}") for number in range(min(associations, len(batches)))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return SendReport(files=tuple(outcomes[path] for path in found), duration_s=time.monotonic() - started)


def _examine(path: Path, note: Callable[[SentFile], None]) -> _Sendable | None:
    """What a file is, from its file meta; one that cannot be sent is noted."""
    try:
        meta = dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID"]).file_meta
        return _Sendable(
            path=path,
            size_bytes=path.stat().st_size,
            sop_class_uid=str(meta.MediaStorageSOPClassUID),
            transfer_syntax_uid=str(meta.TransferSyntaxUID),
        )
    except OSError as error:
        note(SentFile(path=path, size_bytes=0, status=None, error=f"cannot be read: {error.strerror}"))
    except (InvalidDicomError, AttributeError, ValueError, NotImplementedError):
        note(SentFile(path=path, size_bytes=0, status=None, error="is not a DICOM file"))
    return None


def _batches(files: Sequence[_Sendable], count: int) -> list[list[_Sendable]]:
    """Share files out among `count` associations, and more where one would need over 128 presentation contexts."""
    batches: list[list[_Sendable]] = []
    for start in range(count):
        batch: list[_Sendable] = []
        kinds: set[tuple[str, str]] = set()
        for each in files[start::count]:
            kinds.add((each.sop_class_uid, each.transfer_syntax_uid))
            if len(kinds) > _CONTEXTS // 2:
                batches.append(batch)
                batch, kinds = [], {(each.sop_class_uid, each.transfer_syntax_uid)}
            batch.append(each)
        if batch:
            batches.append(batch)
    return batches


def _send_batch(
    batch: Sequence[_Sendable], address: Address, timeouts: Timeouts | None, note: Callable[[SentFile], None]
) -> None:
    kinds = [(each.sop_class_uid, each.transfer_syntax_uid) for each in batch]
    contexts = [build_context(*kind) for kind in dict.fromkeys(kinds)]
    left = list(batch)
    try:
        with association_with(address, contexts, timeouts) as association:
            while left:
                each = left[0]
                status, error = None, ""
                try:
                    status = send_one(association, each.path)
                except DeliveryError as failure:
                    if not association.is_established:
                        raise
                    error = str(failure)
                left.pop(0)
                if status is not None and not is_accepted(status):
                    error = f"refused with status 0x{status:04X}"
                note(SentFile(path=each.path, size_bytes=each.size_bytes, status=status, error=error))
    except DeliveryError as failure:
        for each in left:
            note(SentFile(path=each.path, size_bytes=each.size_bytes, status=None, error=str(failure)))


def uncompressed(path: Path) -> Dataset:
    """The data set of a file in Explicit VR Little Endian, its pixels decompressed, colour as RGB.

    Raises
    ------
    DeliveryError
        The file cannot be read or its pixels cannot be decoded.
    """
    try:
        dataset = cast(Dataset, dcmread(path))
        if dataset.file_meta.TransferSyntaxUID.is_compressed:
            dataset.decompress(as_rgb=True, generate_instance_uid=False)
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    except (OSError, InvalidDicomError, AttributeError, RuntimeError, ValueError, KeyError) as error:
        raise DeliveryError(f"cannot be decompressed: {type(error).__name__}") from error
    return dataset
