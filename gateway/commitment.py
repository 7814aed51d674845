"""Storage commitment: what its messages say, and what the receivers do with those that arrive.

As provider the gateway answers a peer's N-ACTION with Success when the request is durable, and later says by
N-EVENT-REPORT which instances it holds (:mod:`gateway.commitment_sender`). As user it takes the N-EVENT-REPORT of a
destination that it asked.

References
----------
PS3.4 Annex J (Storage Commitment Push Model: J.3.2 N-ACTION, J.3.3 N-EVENT-REPORT); PS3.3 C.14.1.1 (failure reasons);
PS3.7 sections 10.1.1.1.8 and 10.1.4.1.10 (statuses).
"""

from __future__ import annotations

import logging
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from io import BytesIO
from typing import Any

from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.filereader import read_dataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from gateway.dimse import (
    INVALID_ARGUMENT_VALUE,
    NO_SUCH_EVENT_TYPE,
    PROCESSING_FAILURE,
    RESOURCE_LIMITATION,
    SUCCESS,
)
from gateway.errors import StoreError
from gateway.peers import PeerRegister, quoted
from gateway.settings import Settings
from gateway.spool import Peer
from gateway.store import Store
from gateway.store.commitment import Entry, Reference, enter_request, find_asked, settle

logger = logging.getLogger(__name__)

ALL_COMMITTED = 1
"""Event Type ID: PS3.4 J.3.3.1.1, Storage Commitment Request Successful."""
FAILURES_EXIST = 2
"""Event Type ID: PS3.4 J.3.3.1.2, Storage Commitment Request Complete - Failures Exist."""

FAILURE_REASONS: Mapping[int, str] = {
    0x0110: "processing failure",
    0x0112: "no such object instance",
    0x0213: "resource limitation",
    0x0122: "referenced SOP class not supported",
    0x0119: "class-instance conflict",
    0x0131: "duplicate transaction UID",
}
"""PS3.3 C.14.1.1, (0008,1197) *Failure Reason*."""

LONGEST_BYTES = 4 << 20
LONGEST_INFLATED_BYTES = 16 << 20
_TRANSACTION_UID = 0x00081195
_REFERENCED_SOP_SEQUENCE = 0x00081199
_FAILED_SOP_SEQUENCE = 0x00081198
_FAILURE_REASON = 0x00081197
_REFERENCED_SOP_CLASS_UID = 0x00081150
_REFERENCED_SOP_INSTANCE_UID = 0x00081155
_UID = re.compile(r"[0-9.]{1,64}")
_SYNTAXES = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
# What pydicom raises on bytes that are no data set.
_UNREADABLE = (
    struct.error,
    zlib.error,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
)


class NotUnderstood(ValueError):  # noqa: N818 - reads as what is said of the message
    """A message's data set is not what PS3.4 Annex J asks for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The Action Information of an N-ACTION (PS3.4 Table J.3-1)."""

    transaction_uid: str
    references: tuple[Reference, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The Event Information of an N-EVENT-REPORT (PS3.4 Table J.3-2)."""

    transaction_uid: str
    committed: tuple[Reference, ...]
    failed: tuple[tuple[Reference, int], ...]
    """With the failure reason."""


def read_request(data_set: bytes, transfer_syntax_uid: str) -> Request:
    """Read the Action Information; duplicates are named once.

    Raises
    ------
    NotUnderstood
        It cannot be read, lacks the Transaction UID, or references nothing.
    """
    content = _read(data_set, transfer_syntax_uid)
    with _Understanding():
        transaction_uid = _uid(content, _TRANSACTION_UID)
        references = tuple(dict.fromkeys(_reference(item) for item in _items(content, _REFERENCED_SOP_SEQUENCE)))
    if not references:
        raise NotUnderstood("nothing is referenced")
    return Request(transaction_uid=transaction_uid, references=references)


def read_report(data_set: bytes, transfer_syntax_uid: str) -> Report:
    """Read the Event Information. Raises :class:`NotUnderstood` as :func:`read_request` does."""
    content = _read(data_set, transfer_syntax_uid)
    with _Understanding():
        return Report(
            transaction_uid=_uid(content, _TRANSACTION_UID),
            committed=tuple(_reference(item) for item in _items(content, _REFERENCED_SOP_SEQUENCE)),
            failed=tuple((_reference(item), _reason(item)) for item in _items(content, _FAILED_SOP_SEQUENCE)),
        )


class _Understanding:
    """Turns what pydicom raises on garbage into :class:`NotUnderstood`."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, _UNREADABLE) and not isinstance(error, NotUnderstood):
            raise NotUnderstood("it cannot be read as a data set") from error


def _read(data_set: bytes, transfer_syntax_uid: str) -> Dataset:
    if len(data_set) > LONGEST_BYTES:
        raise NotUnderstood(f"it is longer than {LONGEST_BYTES} bytes")
    if transfer_syntax_uid not in _SYNTAXES:
        raise NotUnderstood("its transfer syntax is none for messages")
    with _Understanding():
        if transfer_syntax_uid == DeflatedExplicitVRLittleEndian:
            inflater = zlib.decompressobj(-zlib.MAX_WBITS)
            data_set = inflater.decompress(data_set, LONGEST_INFLATED_BYTES)
            if inflater.unconsumed_tail:
                raise NotUnderstood(f"it inflates to more than {LONGEST_INFLATED_BYTES} bytes")
            transfer_syntax_uid = ExplicitVRLittleEndian
        syntax = UID(transfer_syntax_uid)
        return read_dataset(BytesIO(data_set), syntax.is_implicit_VR, syntax.is_little_endian)


def _value(item: Dataset, tag: int) -> Any:
    """An element's value, its bytes where pydicom has not looked at it."""
    element = item.get_item(tag)
    return None if element is None else element.value


def _uid(item: Dataset, tag: int) -> str:
    value = _value(item, tag)
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value or "")
    text = text.rstrip("\0 ")
    if not _UID.fullmatch(text):
        raise NotUnderstood(f"({tag >> 16:04X},{tag & 0xFFFF:04X}) holds no UID")
    return text


def _items(content: Dataset, tag: int) -> Sequence[Dataset]:
    if tag not in content:
        return ()
    element = content[tag]
    if element.VR != "SQ":
        raise NotUnderstood(f"({tag >> 16:04X},{tag & 0xFFFF:04X}) is no sequence")
    return tuple(element.value or ())


def _reference(item: Dataset) -> Reference:
    return Reference(
        sop_class_uid=_uid(item, _REFERENCED_SOP_CLASS_UID), sop_instance_uid=_uid(item, _REFERENCED_SOP_INSTANCE_UID)
    )


def _reason(item: Dataset) -> int:
    element = item.get_item(_FAILURE_REASON)
    if element is None or element.value in (None, b"", ""):
        return PROCESSING_FAILURE
    if isinstance(element, RawDataElement):
        return int.from_bytes((element.value or b"")[:2], "little" if element.is_little_endian else "big")
    return int(element.value)


def action_information(transaction_uid: str, references: Sequence[Reference]) -> Dataset:
    """What an N-ACTION asks (PS3.4 Table J.3-1)."""
    content = Dataset()
    content.TransactionUID = transaction_uid
    content.ReferencedSOPSequence = [_item(each) for each in references]
    return content


def event_information(
    transaction_uid: str, committed: Sequence[Reference], failed: Sequence[tuple[Reference, int]]
) -> Dataset:
    """What an N-EVENT-REPORT says (PS3.4 Table J.3-2); a sequence that would be empty is left out."""
    content = Dataset()
    content.TransactionUID = transaction_uid
    if failed:
        content.FailedSOPSequence = [_item(each, reason) for each, reason in failed]
    if committed:
        content.ReferencedSOPSequence = [_item(each) for each in committed]
    return content


def _item(reference: Reference, reason: int | None = None) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = reference.sop_class_uid
    item.ReferencedSOPInstanceUID = reference.sop_instance_uid
    if reason is not None:
        item.FailureReason = reason
    return item


class CommitmentService:
    """Takes storage commitment messages in; called by the receivers' threads."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store = store
        self._settings = settings
        self._peers = PeerRegister(settings)

    def request(self, data_set: bytes, transfer_syntax_uid: str, peer: Peer) -> int:
        """Take a peer's request (N-ACTION, Action Type ID 1); returns the DIMSE status.

        When it returns Success the request is durable, and is answered whatever happens next.
        """
        who, partner = f"{quoted(peer.calling_ae_title)} at {peer.address}", peer.calling_ae_title.strip(" ")
        known = self._peers.find(partner)
        if known is None or not (known.host and known.port):
            logger.warning("%s", _unanswerable(who, partner, peer.address, known is not None))
            return PROCESSING_FAILURE
        try:
            asked = read_request(data_set, transfer_syntax_uid)
        except NotUnderstood as error:
            logger.warning("refused a storage commitment request of %s: %s", who, error)
            return INVALID_ARGUMENT_VALUE
        entry = self._enter(partner, asked)
        if entry is Entry.ENTERED:
            logger.info("%s asks for storage commitment of %d instances", who, len(asked.references))
            return SUCCESS
        logger.warning("refused a storage commitment request of %s: %s", who, _REFUSALS[entry][1])
        return _REFUSALS[entry][0]

    def _enter(self, partner: str, asked: Request) -> Entry | None:
        """Write the request down; tried twice, since PostgreSQL refuses one of two equal ones at once."""
        for _ in range(2):
            try:
                return enter_request(
                    self._store,
                    partner=partner,
                    transaction_uid=asked.transaction_uid,
                    references=asked.references,
                    now=datetime.now(UTC),
                )
            except StoreError as error:
                logger.error("%s", error)
        return None

    def report(self, data_set: bytes, transfer_syntax_uid: str, event_type_id: int, peer: Peer) -> int:
        """Take the answer of a destination that was asked (N-EVENT-REPORT); returns the DIMSE status.

        Only the destination that was asked may answer. Results that it did not commit are sent again.
        """
        title = peer.calling_ae_title.strip(" ")
        who = f"{quoted(title)} at {peer.address}"
        if event_type_id not in (ALL_COMMITTED, FAILURES_EXIST):
            logger.warning("refused a storage commitment report of %s: its event type is unknown", who)
            return NO_SUCH_EVENT_TYPE
        try:
            told = read_report(data_set, transfer_syntax_uid)
        except NotUnderstood as error:
            logger.warning("refused a storage commitment report of %s: %s", who, error)
            return INVALID_ARGUMENT_VALUE
        names = [each.name for each in self._settings.destinations if each.ae_title.strip(" ") == title]
        try:
            return self._settle(told, names, who)
        except StoreError as error:
            logger.error("%s", error)
            return PROCESSING_FAILURE

    def _settle(self, told: Report, names: Sequence[str], who: str) -> int:
        found = find_asked(self._store, destinations=names, transaction_uid=told.transaction_uid)
        if found is None:
            logger.warning("refused a storage commitment report of %s: it was not asked so", who)
            return INVALID_ARGUMENT_VALUE
        transaction, _ = found
        asked = {each.sop_instance_uid for each in transaction.references}
        failed = {
            each.sop_instance_uid: f"not committed: {FAILURE_REASONS.get(reason, 'failure')} (0x{reason:04X})"
            for each, reason in told.failed
            if each.sop_instance_uid in asked
        }
        committed = {each.sop_instance_uid for each in told.committed} & asked - failed.keys()
        failed |= dict.fromkeys(asked - committed - failed.keys(), "not committed: the answer does not name it")
        sender = self._settings.sender
        settled = settle(
            self._store,
            transaction,
            committed=sorted(committed),
            failed=sorted(failed.items()),
            now=datetime.now(UTC),
            first_delay=timedelta(seconds=sender.first_delay_s),
            longest_delay=timedelta(seconds=sender.longest_delay_s),
            give_up_after=timedelta(seconds=sender.give_up_after_s),
        )
        logger.info("%s has committed %d results to %s", who, settled.committed, transaction.partner)
        if failed:
            logger.warning(
                "%s did not commit %d results: %d are sent again, %d are given up; first reason: %s",
                *(who, len(failed), settled.again, settled.dead, next(iter(failed.values()))),
            )
        return SUCCESS


_REFUSALS: Mapping[Entry | None, tuple[int, str]] = {
    Entry.OTHER_CONTENT: (INVALID_ARGUMENT_VALUE, "its transaction UID is that of an open one for other instances"),
    Entry.TOO_MANY: (RESOURCE_LIMITATION, "too many of its requests wait for their answers"),
    None: (PROCESSING_FAILURE, "the store failed"),
}


def _unanswerable(who: str, partner: str, address: str, known: bool) -> str:
    """What to log of a peer whose answer could go nowhere."""
    lines = [f"host = {quoted(address)}", "port = 104  # where it listens"]
    if known:
        advice = "to answer it, its [[peers]] entry needs these lines, with its own port:"
    else:
        advice = "to answer it, add to the settings, with its own port, and restart:"
        lines = ["[[peers]]", f"ae_title = {quoted(partner)}", *lines]
    return "\n    ".join(
        [f"refused a storage commitment request of {who}: nobody knows where it listens; {advice}", *lines]
    )
