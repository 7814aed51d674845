"""The SCP: several receiver processes that share one listening socket.

The supervisor binds and listens; the receivers inherit the socket and accept from it in turn. A connection waits in one
queue of the kernel, so that none is lost when a receiver dies, as it would be in the queue of its own that
SO_REUSEPORT gives each process (socket(7)).
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydicom import config as pydicom_config
from pynetdicom import AE, _config, evt
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.service_class import ServiceClass
from pynetdicom.sop_class import _STORAGE_CLASSES, Verification, uid_to_service_class
from pynetdicom.transport import AssociationServer, RequestHandler

from gateway import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from gateway.errors import StoreError
from gateway.objects import ObjectFolder
from gateway.settings import Settings
from gateway.spool import Intake, make_folders, sweep
from gateway.store import open_store
from gateway.store.intake import new_key
from gateway.store.monitoring import report_process
from gateway.upper_layer import ReceiverAssociation, WaitingSocket
from gateway.validate import encoding_of

__all__ = ["run", "sweep"]

logger = logging.getLogger(__name__)

REPORT_S = 5.0
ACCEPT_POLL_S = 0.2
FULL_PAUSE_S = 0.05
GRACE_S = 5.0
_STORAGE_UIDS = frozenset(str(each) for each in _STORAGE_CLASSES.values())
_VERIFICATION_UID = str(Verification)


def run(settings: Settings, data_dir: Path, stop: threading.Event, *, name: str, listener: socket.socket) -> None:
    """A receiver process: accept associations from `listener`, which is bound and shared, until `stop` is set."""
    _configure_libraries()
    store = open_store(settings.store.url, data_dir=data_dir)
    objects = ObjectFolder.in_data_dir(data_dir)
    make_folders(objects.root)
    intake = Intake(store=store, root=objects.root, rules=settings.rules, completion=settings.completion)
    server = _Server(settings, intake, listener)
    accepting = threading.Thread(target=server.serve_forever, args=(ACCEPT_POLL_S,), name="accept", daemon=True)
    started_at = time.monotonic()
    accepting.start()
    try:
        while not stop.is_set():
            detail = {
                "stored": intake.stored,
                "refused": intake.refused,
                "associations": len(server.active_associations),
                "uptime_s": round(time.monotonic() - started_at),
            }
            try:
                report_process(store, name=name, pid=os.getpid(), now=datetime.now(UTC), detail=detail)
            except StoreError as error:
                logger.error("%s", error)
            stop.wait(REPORT_S)
    finally:
        server.stop(GRACE_S)
        store.close()


def _configure_libraries() -> None:
    """This process's settings of pydicom and pynetdicom."""
    # Their messages quote what peers sent, which may be PHI; the gateway logs its own.
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    pydicom_config.settings.reading_validation_mode = pydicom_config.IGNORE
    _config.LOG_HANDLER_LEVEL = "none"


def supported_contexts(proposed: Sequence[PresentationContext]) -> list[PresentationContext]:
    """What the gateway accepts of what a peer proposes, for pynetdicom to negotiate with (PS3.8 section 9.3.3.2).

    Verification; and every storage class, private and future ones included, in every transfer syntax whose encoding
    is known, in the peer's order: the gateway stores what it is sent, so that the peer's choice is as good as any.
    """
    syntaxes: dict[str, dict[str, None]] = {}
    for context in proposed:
        abstract_syntax = str(context.abstract_syntax)
        if abstract_syntax == _VERIFICATION_UID or _may_be_storage(abstract_syntax):
            known = syntaxes.setdefault(abstract_syntax, {})
            known.update(dict.fromkeys(str(each) for each in context.transfer_syntax if encoding_of(str(each))))
    return [build_context(abstract, list(known)) for abstract, known in syntaxes.items() if known]


def _may_be_storage(abstract_syntax: str) -> bool:
    """Whether it is a storage class, or one that pynetdicom does not know as anything else."""
    if abstract_syntax in _STORAGE_UIDS:
        return True
    return uid_to_service_class(abstract_syntax) is ServiceClass


class _Handler(RequestHandler):  # type: ignore[misc]
    """Makes an association of a connection."""

    server: _Server

    def _create_association(self) -> ReceiverAssociation:
        server = self.server
        association = ReceiverAssociation(self.ae, server.intake, new_key()[:12])
        association._server = server
        association.name = f"AcceptorThread@{association.key}"  # `active_associations` looks for this
        self.request.settimeout(self.ae.network_timeout)  # a recv waits no longer
        association.set_socket(WaitingSocket(association, self.request))
        association.acceptor.maximum_length = self.ae.maximum_pdu_size
        association.acceptor.ae_title = server.ae_title
        association.acceptor.address_info = self.local
        association.acceptor.implementation_class_uid = self.ae.implementation_class_uid
        association.acceptor.implementation_version_name = self.ae.implementation_version_name
        association.acceptor.supported_contexts = []
        association.requestor.address_info = self.remote
        association.bind(evt.EVT_REQUESTED, _on_requested)
        association.bind(evt.EVT_ACCEPTED, _on_accepted)
        association.bind(evt.EVT_REJECTED, _on_rejected)
        association.bind(evt.EVT_ABORTED, _on_aborted)
        return association


class _Server(AssociationServer):  # type: ignore[misc]
    """pynetdicom's server on a socket that it neither binds nor owns.

    ``socketserver.TCPServer.__init__`` makes a socket and, by ``bind_and_activate``, calls :meth:`server_bind` and
    :meth:`server_activate`; both are replaced so that the inherited socket takes its place. pynetdicom's
    ``server_close`` shuts the socket down, which would end it for every process that shares it: replaced too.
    """

    def __init__(self, settings: Settings, intake: Intake, listener: socket.socket) -> None:
        dicom = settings.dicom
        entity = AE(ae_title=dicom.ae_title)
        entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
        entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        entity.maximum_pdu_size = dicom.maximum_pdu_bytes
        entity.acse_timeout = dicom.association_timeout_s
        entity.network_timeout = dicom.network_timeout_s
        entity.require_called_aet = dicom.require_called_ae_title
        # Shared out among the receivers, rounded up; a full receiver leaves new connections to the others for a moment.
        self._most = -(-dicom.maximum_associations // dicom.receivers)
        entity.maximum_associations = self._most
        self.intake = intake
        self._listener = listener
        super().__init__(entity, listener.getsockname(), dicom.ae_title, [], request_handler=_Handler)
        entity._servers.append(self)

    def server_bind(self) -> None:
        """Take the inherited socket in place of the one that was just made."""
        self.socket.close()
        self.socket: socket.socket = self._listener
        # Another receiver may take the connection between select and accept.
        self._listener.setblocking(False)
        self.server_address = self._listener.getsockname()

    def server_activate(self) -> None:
        """The supervisor listens already."""

    def server_close(self) -> None:
        """Leave the socket to the others."""

    def get_request(self) -> tuple[Any, Any]:
        if len(self.active_associations) >= self._most:
            time.sleep(FULL_PAUSE_S)
        connection, address = self._listener.accept()
        connection.setblocking(True)
        return connection, address

    def stop(self, grace_s: float) -> None:
        """Accept no more, let what is under way end within `grace_s`, then abort it."""
        super(AssociationServer, self).shutdown()
        deadline = time.monotonic() + grace_s
        while self.active_associations and time.monotonic() < deadline:
            time.sleep(0.05)
        for association in self.active_associations:
            association.abort()


def _on_requested(event: evt.Event) -> None:
    association = event.assoc
    proposed = association.requestor.primitive.presentation_context_definition_list
    association.acceptor.supported_contexts = supported_contexts(proposed)


def _on_accepted(event: evt.Event) -> None:
    association = event.assoc
    logger.info(
        "association %s accepted: %s at %s, %d of %d contexts",
        association.key,
        association.peer.calling_ae_title,
        association.peer.address,
        len(association.accepted_contexts),
        len(association.accepted_contexts) + len(association.rejected_contexts),
    )


def _on_rejected(event: evt.Event) -> None:
    association = event.assoc
    logger.warning(
        "association %s rejected: %s at %s",
        association.key,
        association.peer.calling_ae_title,
        association.peer.address,
    )


def _on_aborted(event: evt.Event) -> None:
    _warn(event.assoc, "aborted")


def _warn(association: ReceiverAssociation, what: str) -> None:
    peer = association.peer
    logger.warning("association %s %s: %s at %s", association.key, what, peer.calling_ae_title, peer.address)
