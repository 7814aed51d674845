"""Storage commitment as the sender process does it: answers to peers, and requests to destinations.

Each peer and each destination has a thread of its own, so that one that is dead or slow never holds the others. All
they know stands in the store: killed at any moment, they say at most the same thing again.

References
----------
PS3.4 Annex J; PS3.7 section D.3.3.4 (the provider proposes the SCP role on an association that it asks for).
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import N_ACTION, N_EVENT_REPORT
from pynetdicom.dsutils import encode
from pynetdicom.presentation import build_context, build_role
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance

from gateway.commitment import (
    ALL_COMMITTED,
    FAILURES_EXIST,
    CommitmentService,
    action_information,
    event_information,
)
from gateway.dimse import CLASS_INSTANCE_CONFLICT, NO_SUCH_INSTANCE, PROCESSING_FAILURE, SUCCESS
from gateway.errors import DeliveryError
from gateway.rounds import doubling_delay, keep_working, unless_too_late
from gateway.send import Address, Timeouts, association_with, is_accepted
from gateway.settings import CommitmentSettings, Destination, KnownPeer, Settings
from gateway.spool import Peer
from gateway.store import Store
from gateway.store.commitment import (
    PROVIDER,
    USER,
    Reference,
    StoredInstance,
    Transaction,
    ask_again,
    due_transactions,
    mark_asked,
    mark_done,
    mark_failed,
    open_transaction,
    overdue_transactions,
    stored_instances,
)

logger = logging.getLogger(__name__)

POLL_S = 0.5
LINGER_S = 1.0
"""How long an association stays open after a request, for a destination that answers on it (PS3.4 J.3.3)."""
TRANSACTIONS_A_ROUND = 50
REFERENCES_A_REQUEST = 500
LARGEST_HASHED_BYTES = 64 << 20
"""Of a larger file, presence and size are looked at; it was hashed when it came."""
_REQUEST_COMMITMENT = 1  # Action Type ID, PS3.4 Table J.3-1
_FILE_META_OFFSET = 144  # preamble, DICM, (0002,0000) File Meta Information Group Length


def loops(
    store: Store, objects: Path, settings: Settings, *, clock: Callable[[], datetime], stop: threading.Event
) -> list[CommitmentLoop]:
    """One for each peer that listens and for each destination that commits; to be run in a thread each."""
    shared: dict[str, Any] = {"store": store, "settings": settings, "clock": clock, "stop": stop}
    listening: dict[str, KnownPeer] = {}
    for peer in settings.peers:
        if peer.host and peer.port:
            listening.setdefault(peer.ae_title.strip(" "), peer)
    return [
        *(Provider(objects=objects, peer=peer, **shared) for peer in listening.values()),
        *(User(destination=each, **shared) for each in settings.destinations if each.storage_commitment),
    ]


@dataclass(slots=True, kw_only=True)
class CommitmentLoop(ABC):
    """Works for one partner until told to stop."""

    store: Store
    settings: Settings
    clock: Callable[[], datetime]
    stop: threading.Event
    timeouts: Timeouts | None = None

    @property
    @abstractmethod
    def name(self) -> str:
        """Of its thread."""

    def run(self) -> None:
        """Do what is due, until told to stop."""
        keep_working(self.round, self.stop, poll_s=POLL_S)

    @abstractmethod
    def round(self) -> bool:
        """Do what is due now; false when nothing was."""

    def _failed(self, transaction: Transaction, error: DeliveryError, what: str) -> None:
        again_at = next_try(transaction, self.clock(), self.settings.commitment)
        mark_failed(self.store, transaction.commitment_key, error=str(error), next_attempt_at=again_at)
        if again_at is None:
            logger.error("gave up on %s after %d tries: %s", what, transaction.attempts + 1, error)
        else:
            logger.warning("%s failed: %s", what, error)


def next_try(transaction: Transaction, now: datetime, settings: CommitmentSettings) -> datetime | None:
    """When to try again after a failure at `now`; ``None``: never."""
    delay = doubling_delay(transaction.attempts, first_s=settings.first_delay_s, longest_s=settings.longest_delay_s)
    return unless_too_late(now + delay, transaction.created_at, give_up_after_s=settings.give_up_after_s)


@dataclass(slots=True, kw_only=True)
class Provider(CommitmentLoop):
    """Answers one peer's requests."""

    objects: Path
    peer: KnownPeer

    @property
    def name(self) -> str:
        return f"commitment-to-{self.peer.ae_title.strip(' ')}"

    def round(self) -> bool:
        partner = self.peer.ae_title.strip(" ")
        due = due_transactions(self.store, self.clock(), role=PROVIDER, partner=partner, limit=TRANSACTIONS_A_ROUND)
        if not due:
            return False
        waiting = list(due)
        try:
            with self._association() as association:
                while waiting and association.is_established and not self.stop.is_set():
                    transaction = waiting[0]
                    try:
                        self._answer(association, transaction)
                    except DeliveryError as error:
                        self._failed(transaction, error, f"the storage commitment answer to {partner}")
                    waiting.pop(0)
        except DeliveryError as error:
            # It cannot be reached, which is no one transaction's fault.
            for transaction in waiting:
                self._failed(transaction, error, f"the storage commitment answer to {partner}")
        return True

    @contextmanager
    def _association(self) -> Iterator[Association]:
        address = Address(
            host=self.peer.host,
            port=self.peer.port,
            called_ae_title=self.peer.ae_title,
            calling_ae_title=self.settings.dicom.ae_title,
            tls=self.settings.tls if self.peer.tls else None,
        )
        role = build_role(StorageCommitmentPushModel, scp_role=True)
        with _commitment_association(address, self.timeouts, role) as association:
            yield association

    def _answer(self, association: Association, transaction: Transaction) -> None:
        committed, failed = verdict(self.store, self.objects, transaction.references)
        event = N_EVENT_REPORT()
        event.MessageID = 1
        event.AffectedSOPClassUID = StorageCommitmentPushModel
        event.AffectedSOPInstanceUID = StorageCommitmentPushModelInstance
        event.EventTypeID = FAILURES_EXIST if failed else ALL_COMMITTED
        content = event_information(transaction.transaction_uid, committed, failed)
        event.EventInformation = _encoded(association, content)
        status = _exchange(association, event)
        if not is_accepted(status):
            raise DeliveryError(f"refused with status 0x{status:04X}")
        mark_done(self.store, transaction.commitment_key, self.clock())
        logger.info(
            "told %s that %d instances are committed and %d are not",
            self.peer.ae_title.strip(" "),
            len(committed),
            len(failed),
        )


def verdict(
    store: Store, objects: Path, references: tuple[Reference, ...]
) -> tuple[list[Reference], list[tuple[Reference, int]]]:
    """Which of `references` the gateway holds, and the failure reason of each other one (PS3.3 C.14.1.1).

    It holds an instance whose row says so and whose file is there, of the size and, up to 64 MB, with the hash that it
    had when Success was answered.
    """
    known = stored_instances(store, [each.sop_instance_uid for each in references])
    committed: list[Reference] = []
    failed: list[tuple[Reference, int]] = []
    for each in references:
        stored = known.get(each.sop_instance_uid)
        if stored is None or stored.removed:
            failed.append((each, NO_SUCH_INSTANCE))
        elif stored.sop_class_uid != each.sop_class_uid:
            failed.append((each, CLASS_INSTANCE_CONFLICT))
        elif not is_whole(objects, stored):
            logger.error("the file of instance %s is missing or is not what was received", stored.instance_key)
            failed.append((each, PROCESSING_FAILURE))
        else:
            committed.append(each)
    return committed, failed


def is_whole(objects: Path, stored: StoredInstance) -> bool:
    """Whether the file is what was received; reads it, up to 64 MB."""
    try:
        with (objects / stored.path).open("rb") as file:
            if file.seek(0, 2) != stored.size_bytes:
                return False
            if stored.size_bytes > LARGEST_HASHED_BYTES:
                return True
            file.seek(_FILE_META_OFFSET - 4)
            file.seek(_FILE_META_OFFSET + int.from_bytes(file.read(4), "little"))
            return hashlib.file_digest(file, "sha256").hexdigest() == stored.sha256
    except OSError:
        return False


@dataclass(slots=True, kw_only=True)
class User(CommitmentLoop):
    """Asks one destination to commit what was sent to it."""

    destination: Destination

    @property
    def name(self) -> str:
        return f"commitment-of-{self.destination.name}"

    def round(self) -> bool:
        now, name = self.clock(), self.destination.name
        late = overdue_transactions(self.store, now, partner=name, limit=TRANSACTIONS_A_ROUND)
        for transaction in late:
            self._not_answered(transaction, now)
        opened = open_transaction(
            self.store, destination=name, transaction_uid=generate_uid(None), limit=REFERENCES_A_REQUEST, now=now
        )
        due = due_transactions(self.store, now, role=USER, partner=name, limit=TRANSACTIONS_A_ROUND)
        what = f"the storage commitment request to {name}"
        waiting = list(due)
        if waiting:
            try:
                with _commitment_association(self._address(), self.timeouts) as association:
                    association.bind(evt.EVT_N_EVENT_REPORT, self._on_report)
                    while waiting and association.is_established and not self.stop.is_set():
                        try:
                            self._ask(association, waiting[0])
                        except DeliveryError as error:
                            self._failed(waiting[0], error, what)
                        waiting.pop(0)
                    self._linger(association)
            except DeliveryError as error:
                for transaction in waiting:
                    self._failed(transaction, error, what)
        return bool(late or opened or due)

    def _address(self) -> Address:
        return Address(
            host=self.destination.host,
            port=self.destination.port,
            called_ae_title=self.destination.ae_title,
            calling_ae_title=self.settings.sender.ae_title,
            tls=self.settings.tls if self.destination.tls else None,
        )

    def _not_answered(self, transaction: Transaction, now: datetime) -> None:
        settings, name = self.settings.commitment, self.destination.name
        if now >= transaction.created_at + timedelta(seconds=settings.give_up_after_s):
            error = "no answer in time"
            mark_failed(self.store, transaction.commitment_key, error=error, next_attempt_at=None)
            logger.error("gave up on storage commitment of %d results by %s", len(transaction.references), name)
            return
        ask_again(self.store, transaction, transaction_uid=generate_uid(None), now=now)
        logger.warning("%s has not answered a storage commitment request in time; it is asked again", name)

    def _ask(self, association: Association, transaction: Transaction) -> None:
        action = N_ACTION()
        action.MessageID = 1
        action.RequestedSOPClassUID = StorageCommitmentPushModel
        action.RequestedSOPInstanceUID = StorageCommitmentPushModelInstance
        action.ActionTypeID = _REQUEST_COMMITMENT
        content = action_information(transaction.transaction_uid, transaction.references)
        action.ActionInformation = _encoded(association, content)
        status = _exchange(association, action)
        if not is_accepted(status):
            raise DeliveryError(f"refused with status 0x{status:04X}")
        answer_by = self.clock() + timedelta(seconds=self.settings.commitment.answer_within_s)
        mark_asked(self.store, transaction.commitment_key, answer_by=answer_by)
        logger.info("asked %s to commit %d results", self.destination.name, len(transaction.references))

    def _linger(self, association: Association) -> None:
        """Leave the destination a moment to answer on the same association."""
        until = time.monotonic() + LINGER_S
        while association.is_established and time.monotonic() < until and not self.stop.is_set():
            time.sleep(0.02)

    def _on_report(self, event: evt.Event) -> tuple[int, None]:
        """Take what the destination says on our association; pynetdicom calls this from a thread of its own."""
        service = CommitmentService(self.store, self.settings)
        peer = Peer(calling_ae_title=self.destination.ae_title, address=self.destination.host)
        information = event.request.EventInformation
        content = b"" if information is None else information.getvalue()
        return service.report(content, str(event.context.transfer_syntax), event.event_type, peer), None


# --- messages -----------------------------------------------------------------------------------------------------


@contextmanager
def _commitment_association(
    address: Address, timeouts: Timeouts | None, *extended_negotiation: Any
) -> Iterator[Association]:
    contexts = [build_context(StorageCommitmentPushModel, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])]
    with association_with(address, contexts, timeouts, extended_negotiation=extended_negotiation) as association:
        yield association


def _syntax(association: Association) -> str:
    return str(association.accepted_contexts[0].transfer_syntax[0])


def _encoded(association: Association, content: Dataset) -> BytesIO:
    syntax = UID(_syntax(association))
    encoded = encode(content, syntax.is_implicit_VR, syntax.is_little_endian)
    if encoded is None:
        raise DeliveryError("the message cannot be encoded")
    return BytesIO(encoded)


def _exchange(association: Association, request: N_ACTION | N_EVENT_REPORT) -> int:
    """Send a request and wait for the response; returns its status.

    pynetdicom's own ``send_n_event_report`` refuses where the peer did not answer the role selection; many do not, and
    take the report all the same.

    Raises
    ------
    DeliveryError
        The association ended, or no response came in time.
    """
    association.dimse.send_msg(request, association.accepted_contexts[0].context_id)
    _, message = association.dimse.get_msg(block=True)
    if type(message) is type(request) and message.MessageIDBeingRespondedTo == request.MessageID:
        return SUCCESS if message.Status is None else int(message.Status)
    if association.is_established:
        association.abort()
    raise DeliveryError("the association ended before an answer, or none came in time")
