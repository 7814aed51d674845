"""The sender: delivers result objects by C-STORE, again and again until they have arrived or a day has passed.

All it knows stands in the store. Killed at any moment, it sends at most the object again whose answer it had not
recorded; since a result's SOP Instance UID follows from what was judged, the PACS still ends up with one.

Each destination has a thread of its own, so that one that is dead or slow never holds the others; so has each partner
in storage commitment (:mod:`gateway.commitment_sender`).
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydicom import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pynetdicom.association import Association

from gateway import commitment_sender
from gateway.errors import (
    DeliveryError,
    GatewayError,
    IdentityError,
    ResultMismatchError,
    StoreError,
    UnreadableError,
    VaultError,
)
from gateway.last_check import LastCheck
from gateway.rounds import doubling_delay, keep_working, unless_too_late
from gateway.send import Address, Timeouts, association_with, contexts_for, is_accepted, send_one, uncompressed
from gateway.settings import Destination, SenderSettings, Settings, TlsSettings
from gateway.store import Store, open_store
from gateway.store.commitment import forget_old
from gateway.store.deliveries import STOPPED, Delivery, due_deliveries, mark_delivered, mark_failed
from gateway.store.monitoring import report_process
from gateway.vault import open_vault

logger = logging.getLogger(__name__)

POLL_S = 0.3
REPORT_S = 5.0
FORGET_S = 3600.0
QUICK_DELAY_S = 1.0
DELIVERIES_A_ROUND = 200
ASSOCIATIONS_A_ROUND = 3
DUPLICATE_SOP_INSTANCE = 0x0111
"""PS3.7 Annex C.5: some archives answer so to an object that they have. Since UIDs are deterministic, they have it."""


def run(settings: Settings, data_dir: Path, stop: threading.Event) -> None:
    """The sender process, until `stop` is set."""
    store = open_store(settings.store.url, data_dir=data_dir)
    vault = open_vault(settings.vault, data_dir)
    check = LastCheck(store=store, objects=data_dir / "objects", vault=vault)
    couriers = [
        Courier(
            store=store,
            objects=data_dir / "objects",
            destination=each,
            settings=settings.sender,
            clock=_now,
            stop=stop,
            tls=settings.tls if each.tls else None,
            check=check,
        )
        for each in settings.destinations
    ]
    threads = [threading.Thread(target=each.run, name=f"to-{each.destination.name}", daemon=True) for each in couriers]
    commitments = commitment_sender.loops(store, data_dir / "objects", settings, clock=_now, stop=stop)
    threads += [threading.Thread(target=each.run, name=each.name, daemon=True) for each in commitments]
    for thread in threads:
        thread.start()
    forget_at = time.monotonic()
    try:
        while not stop.is_set():
            detail = {each.destination.name: {"delivered": each.delivered, "error": each.error} for each in couriers}
            try:
                report_process(store, name="sender", pid=os.getpid(), now=_now(), detail=detail)
                if settings.retention.records_days and time.monotonic() >= forget_at:
                    forget_old(store, _now() - timedelta(days=settings.retention.records_days))
                    forget_at = time.monotonic() + FORGET_S
            except StoreError as error:
                logger.error("%s", error)
            stop.wait(REPORT_S)
        for thread in threads:
            thread.join(timeout=10)
    finally:
        if vault is not None:
            vault.close()
        store.close()


def _now() -> datetime:
    return datetime.now(UTC)


def next_attempt(delivery: Delivery, now: datetime, settings: SenderSettings) -> datetime | None:
    """When to try again after a failure at `now`; ``None``: never, it is a dead letter.

    A few tries follow each other quickly; then the pause doubles from `first_delay_s` to `longest_delay_s`.
    """
    tries = delivery.attempts + 1
    if tries < settings.quick_tries:
        delay = timedelta(seconds=QUICK_DELAY_S)
    else:
        delay = doubling_delay(
            tries - settings.quick_tries, first_s=settings.first_delay_s, longest_s=settings.longest_delay_s
        )
    return unless_too_late(now + delay, delivery.created_at, give_up_after_s=settings.give_up_after_s)


@dataclass(slots=True, kw_only=True)
class Courier:
    """Delivers to one destination."""

    store: Store
    objects: Path
    destination: Destination
    settings: SenderSettings
    clock: Callable[[], datetime]
    stop: threading.Event
    timeouts: Timeouts | None = None
    tls: TlsSettings | None = None
    """Our certificate and the authorities, for a destination that is sent to by TLS; read for each association."""
    check: LastCheck | None = None
    """Asked about every result right before it leaves."""
    delivered: int = 0
    error: str = ""
    """The last failure, empty after a delivery."""

    def run(self) -> None:
        """Deliver what is due, until told to stop."""
        keep_working(self.round, self.stop, poll_s=POLL_S)

    def round(self) -> bool:
        """Deliver what is due now over one association; false when nothing was.

        Raises
        ------
        StoreError
            The store failed; what was sent and not recorded is sent again later.
        """
        due = due_deliveries(self.store, self.clock(), destinations=[self.destination.name], limit=DELIVERIES_A_ROUND)
        if not due:
            return False
        syntaxes: dict[int, str] = {}
        for each in due:
            try:
                syntaxes[each.delivery_id] = _transfer_syntax(self.objects / each.path)
            except DeliveryError as error:
                self._failed([each], error)
        waiting = [each for each in due if each.delivery_id in syntaxes]
        for _ in range(ASSOCIATIONS_A_ROUND):
            if not waiting or self.stop.is_set():
                return True
            try:
                self._send_all(waiting, syntaxes)
            except DeliveryError as error:
                self._failed(waiting, error)
                return True
        self._failed(waiting, DeliveryError("the destination ends associations"))
        return True

    def _send_all(self, waiting: list[Delivery], syntaxes: dict[int, str]) -> None:
        """Send and take off `waiting` one after the other, until it is empty or the association ends.

        An object at which the association ends is taken off as failed, so that it does not hold those after it.

        Raises
        ------
        DeliveryError
            No association could be had.
        """
        address = Address(
            host=self.destination.host,
            port=self.destination.port,
            called_ae_title=self.destination.ae_title,
            calling_ae_title=self.settings.ae_title,
            tls=self.tls,
        )
        kinds = {(each.sop_class_uid, syntaxes[each.delivery_id]): None for each in waiting}
        contexts = contexts_for(kinds, convertible=True)
        with association_with(address, contexts, self.timeouts) as association:
            while waiting and association.is_established and not self.stop.is_set():
                each = waiting[0]
                try:
                    self._send(association, each, syntaxes[each.delivery_id])
                except DeliveryError as error:
                    self._failed([each], error)
                except (ResultMismatchError, IdentityError, UnreadableError) as error:
                    self._stopped(each, error)
                waiting.pop(0)

    def _send(self, association: Association, delivery: Delivery, transfer_syntax_uid: str) -> None:
        path = self.objects / delivery.path
        accepted = {
            str(context.transfer_syntax[0])
            for context in association.accepted_contexts
            if context.abstract_syntax == delivery.sop_class_uid
        }
        if not accepted:
            raise DeliveryError("the destination does not accept this kind of object")
        self._require_right_patient(delivery)
        what: Path | Dataset = path if transfer_syntax_uid in accepted else uncompressed(path)
        status = send_one(association, what)
        if not is_accepted(status) and status != DUPLICATE_SOP_INSTANCE:
            raise DeliveryError(f"refused with status 0x{status:04X}")
        mark_delivered(self.store, [delivery.delivery_id], self.clock())
        self.delivered += 1
        self.error = ""
        logger.info("delivered %s of study %s to %s", delivery.kind, delivery.study_key, delivery.destination)

    def _require_right_patient(self, delivery: Delivery) -> None:
        if self.check is None:
            return
        try:
            self.check.require_right_patient(delivery.study_key, self.objects / delivery.path)
        except (VaultError, OSError) as error:
            # Nobody can say now whose it is; what is not known to be right waits.
            reason = str(error) if isinstance(error, VaultError) else error.strerror
            raise DeliveryError(f"whose result it is cannot be checked: {reason}") from error

    def _stopped(self, delivery: Delivery, error: GatewayError) -> None:
        """What would reach the wrong patient goes nowhere until a person has looked."""
        self.error = str(error)
        mark_failed(self.store, [delivery.delivery_id], error=f"{STOPPED}: {error}", next_attempt_at=None)
        logger.critical(
            "STOPPED %s of study %s to %s, not sent: %s",
            *(delivery.kind, delivery.study_key, delivery.destination, error),
        )

    def _failed(self, deliveries: Sequence[Delivery], error: DeliveryError) -> None:
        now = self.clock()
        self.error = str(error)
        for each in deliveries:
            again_at = next_attempt(each, now, self.settings)
            mark_failed(self.store, [each.delivery_id], error=str(error), next_attempt_at=again_at)
            if again_at is None:
                logger.error(
                    "gave up on %s of study %s to %s after %d tries: %s",
                    *(each.kind, each.study_key, each.destination, each.attempts + 1, error),
                )
        if deliveries:
            logger.warning("%d not delivered to %s: %s", len(deliveries), self.destination.name, error)


def _transfer_syntax(path: Path) -> str:
    try:
        return str(read_file_meta_info(path).TransferSyntaxUID)
    except (OSError, InvalidDicomError, AttributeError) as error:
        raise DeliveryError(f"the result's file cannot be read: {type(error).__name__}") from error
