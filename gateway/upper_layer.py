"""pynetdicom's association, fitted to an intake: data sets go from the socket to the spool, and nobody sleeps.

pynetdicom 3.0.4 reads sockets 4 KB at a time, copies each fragment five times, collects data sets in memory or in a
temporary file of its own, and polls with pauses of 1 ms in two threads for each association. Here its negotiation,
state machine and DIMSE messages stay, and four of its parts are replaced by subclasses:

- :class:`WaitingSocket` waits for data or for something to send, instead of sleeping (``AssociationSocket.ready``).
- :class:`_UpperLayer` reads a PDU into one buffer; P-DATA of a data set goes straight to the spool. In state Sta6 that
  is action DT-2 of PS3.8 section 9.2.3, whose next state is Sta6 again.
- :class:`_Dimse` opens a spool when a C-STORE command has come (PS3.7 section 9.3.1), and bounds everything else.
- :class:`ReceiverAssociation` answers C-STORE of any SOP class.

References
----------
pynetdicom 3.0.4: ``transport.py`` (``AssociationSocket``), ``dul.py`` (``_read_pdu_data``, ``run_reactor``),
``dimse.py`` (``receive_primitive``), ``association.py`` (``_run_reactor``, ``_serve_request``).
"""

from __future__ import annotations

import logging
import queue
import select
import socket
import struct
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from pynetdicom._globals import MODE_ACCEPTOR
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dul import DULServiceProvider
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.transport import AssociationSocket

from gateway.errors import INTAKE_STATUSES, NotUnderstoodError
from gateway.spool import PROCESSING_FAILURE, Answer, Peer, Spool

logger = logging.getLogger(__name__)

IDLE_S = 0.25
"""How often a waiting thread looks whether it is to end; data and messages wake it at once."""
_P_DATA = 0x04
_PDU_TYPES = range(0x01, 0x08)
_LONGEST_OTHER_PDU_BYTES = 1 << 20
"""A-ASSOCIATE-RQ with 128 presentation contexts of 40 transfer syntaxes each takes 160 KB."""
_LONGEST_COMMAND_BYTES = 1 << 16
_LONGEST_OTHER_DATA_SET_BYTES = 1 << 20
_COMMAND = 0x01  # message control header, PS3.8 Annex E.2
_LAST = 0x02

# What pynetdicom and pydicom raise on commands that make no sense.
_DECODING_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)


class Taker(Protocol):
    """Takes data sets in; :class:`gateway.spool.Intake`."""

    def open(self, *, sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str) -> Spool: ...

    def take(self, spool: Spool, peer: Peer) -> Answer: ...


class WaitingSocket(AssociationSocket):  # type: ignore[misc]
    """A connected socket on which one can wait for data and for :meth:`wake` at once."""

    def __init__(self, association: Association, client_socket: socket.socket) -> None:
        super().__init__(association, client_socket=client_socket)
        self._waker, self._sleeper = socket.socketpair()
        self._waker.setblocking(False)
        self._sleeper.setblocking(False)
        self._poll = select.poll()
        self._poll.register(client_socket, select.POLLIN)
        self._poll.register(self._sleeper, select.POLLIN)
        self._descriptor = client_socket.fileno()

    def wake(self) -> None:
        """End a wait in :attr:`ready`; from any thread."""
        with suppress(OSError):  # full: awake anyway
            self._waker.send(b"\0")

    @property
    def ready(self) -> bool:
        """Whether data can be read; waits up to :data:`IDLE_S` when there is nothing else to do."""
        if self.socket is None or not self._is_connected:
            time.sleep(0.001)
            return False
        upper_layer = self.assoc.dul
        busy = not (upper_layer.event_queue.empty() and upper_layer.to_provider_queue.empty())
        return self._wait(0 if busy else IDLE_S)

    @property
    def has_more(self) -> bool:
        """Whether data can be read now and nothing waits to be sent."""
        return self.assoc.dul.to_provider_queue.empty() and self._wait(0)

    def _wait(self, timeout_s: float) -> bool:
        woken = self._poll.poll(timeout_s * 1000)
        for descriptor, _ in woken:
            if descriptor != self._descriptor:
                with suppress(OSError):
                    self._sleeper.recv(4096)
        return any(descriptor == self._descriptor for descriptor, _ in woken)

    def read_into(self, buffer: memoryview) -> bool:
        """Fill `buffer`; false when the connection ended first.

        Raises
        ------
        OSError
            The connection broke, or was silent for the network timeout.
        """
        while buffer:
            if self.socket is None:
                return False
            read = self.socket.recv_into(buffer)
            if read == 0:
                return False
            buffer = buffer[read:]
        return True


class _UpperLayer(DULServiceProvider):  # type: ignore[misc]
    """The upper layer's reactor, reading whole PDUs."""

    socket: WaitingSocket | None

    def __init__(self, association: ReceiverAssociation, maximum_pdu_bytes: int) -> None:
        super().__init__(association)
        self.daemon = True
        self._run_loop_delay = 0
        self._header = memoryview(bytearray(6))
        self._maximum_pdu_bytes = maximum_pdu_bytes
        self._buffer: memoryview | None = None  # made when the first data set comes

    def wake(self) -> None:
        if self.socket is not None:
            self.socket.wake()

    def send_pdu(self, primitive: Any) -> None:
        super().send_pdu(primitive)
        self.wake()

    def kill_dul(self) -> None:
        super().kill_dul()
        self.wake()

    def stop_dul(self) -> bool:
        self.wake()
        return bool(super().stop_dul())

    def _read_pdu_data(self) -> None:
        """Read one PDU, or as many of a data set's as have come, and put the events that they are."""
        try:
            while self._read_pdu():
                self._idle_timer.restart()
                assert self.socket is not None
                if not self.socket.has_more:
                    return
        except OSError:
            self.event_queue.put("Evt17")  # transport connection closed

    def _read_pdu(self) -> bool:
        """Read one PDU; true when it went to the spool, so that the state machine has nothing to do."""
        association, connection = self.assoc, self.socket
        assert connection is not None
        if not connection.read_into(self._header):
            self.event_queue.put("Evt17")
            return False
        kind, _, length = struct.unpack(">BBL", self._header)
        limit = self._maximum_pdu_bytes if kind == _P_DATA else _LONGEST_OTHER_PDU_BYTES
        if kind not in _PDU_TYPES or length > limit:
            logger.warning("association %s: a PDU of type 0x%02X and %d bytes", association.key, kind, length)
            self.event_queue.put("Evt19")  # unrecognised or invalid PDU
            return False
        if kind == _P_DATA:
            if self._buffer is None:
                self._buffer = memoryview(bytearray(self._maximum_pdu_bytes))
            body = self._buffer[:length]
        else:
            body = memoryview(bytearray(length))
        if not connection.read_into(body):
            self.event_queue.put("Evt17")
            return False
        if kind == _P_DATA and self.state_machine.current_state == "Sta6" and association.dimse.take_fragments(body):
            return True
        try:
            pdu, event = self._decode_pdu(bytearray(self._header) + body)
        except _DECODING_ERRORS:
            self.event_queue.put("Evt19")
            return False
        self._recv_pdu.put(pdu)
        self.event_queue.put(event)
        return False


class _NudgingQueue(queue.Queue[Any]):
    """Primitives for the service user; each also wakes it where it waits for messages."""

    def __init__(self, messages: queue.Queue[Any]) -> None:
        super().__init__()
        self._messages = messages

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        super().put(item, block, timeout)
        self._messages.put((None, None))  # "no message", as `get_msg` says it


class _Dimse(DIMSEServiceProvider):  # type: ignore[misc]
    """Messages of one association; the data set of a C-STORE goes to a spool."""

    def __init__(self, association: ReceiverAssociation, taker: Taker) -> None:
        super().__init__(association)
        self._taker = taker
        self._spool: Spool | None = None
        self._context_id = 0
        self._other_bytes = 0
        self.spools: dict[Path, Spool] = {}
        """Complete data sets whose turn has not come, by where they are."""

    def get_msg(self, block: bool = False) -> Any:
        """As pynetdicom's; without `block` it still waits a little, since its caller would only sleep."""
        if block:
            return super().get_msg(block=True)
        try:
            return self.msg_queue.get(timeout=IDLE_S)
        except queue.Empty:
            return None, None

    def take_fragments(self, body: memoryview) -> bool:
        """Write the fragments of a P-DATA-TF PDU to the spool, if all are of the data set that is arriving.

        Parameters
        ----------
        body
            The PDU without its header: presentation data value items (PS3.8 section 9.3.5.1).
        """
        if self._spool is None:
            return False
        fragments, position = [], 0
        while position + 6 <= len(body):
            length, context_id, control = struct.unpack_from(">LBB", body, position)
            stop = position + 4 + length
            if length < 2 or stop > len(body) or context_id != self._context_id or control & _COMMAND:
                return False
            fragments.append((control, body[position + 6 : stop]))
            position = stop
        if position != len(body) or any(control & _LAST for control, _ in fragments[:-1]) or not fragments:
            return False
        for _, fragment in fragments:
            self._spool.write(fragment)
        if fragments[-1][0] & _LAST:
            self._complete()
        return True

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Take the fragments one by one; what breaks the protocol ends the association."""
        try:
            for context_id, value in primitive.presentation_data_value_list:
                self._receive_value(context_id, value)
        except _DECODING_ERRORS as error:
            logger.warning("association %s: a message that makes no sense: %s", self.assoc.key, type(error).__name__)
            self.dul.event_queue.put("Evt19")

    def _receive_value(self, context_id: int, value: bytes) -> None:
        is_data_set = not value[0] & _COMMAND
        if is_data_set and self._spool is not None:
            if context_id != self._context_id:
                raise ValueError("a data set in another presentation context than its command")
            self._spool.write(memoryview(value)[1:])
            if value[0] & _LAST:
                self._complete()
            return
        if self._spool is not None or (is_data_set and self.message is None):
            raise ValueError("a command inside a data set, or a data set without a command")
        self._other_bytes += len(value)
        if self._other_bytes > (_LONGEST_OTHER_DATA_SET_BYTES if is_data_set else _LONGEST_COMMAND_BYTES):
            raise ValueError("too long a command")
        self._pass_on(context_id, value)
        if self.message is None:
            self._other_bytes = 0
        elif isinstance(self.message, C_STORE_RQ):
            command = self.message.command_set
            self._context_id = context_id
            self._spool = self._taker.open(
                sop_class_uid=str(command.get("AffectedSOPClassUID", "")),
                sop_instance_uid=str(command.get("AffectedSOPInstanceUID", "")),
                transfer_syntax_uid=str(self.assoc.accepted_syntax(context_id)),
            )

    def _complete(self) -> None:
        """The data set's last fragment has come: let pynetdicom finish the message, which carries the spool's path."""
        spool, self._spool = self._spool, None
        assert spool is not None and self.message is not None
        self.spools[spool.path] = spool
        self.message._data_set_path = spool.path
        self._pass_on(self._context_id, bytes([_LAST]))
        self._other_bytes = 0

    def _pass_on(self, context_id: int, value: bytes) -> None:
        single = P_DATA()
        single.presentation_data_value_list = [[context_id, value]]
        super().receive_primitive(single)

    def discard(self) -> None:
        """Remove what has not been answered; the association is over."""
        for spool in (*self.spools.values(), *([self._spool] if self._spool else [])):
            spool.discard()
        self.spools.clear()
        self._spool = None


class ReceiverAssociation(Association):  # type: ignore[misc]
    """One association that a peer has asked for."""

    def __init__(self, entity: ApplicationEntity, taker: Taker, key: str) -> None:
        super().__init__(entity, MODE_ACCEPTOR)
        self.key = key
        """The gateway's own name for it, for the log."""
        self._taker = taker
        self.daemon = True
        self.dimse = _Dimse(self, taker)
        self.dul = _UpperLayer(self, entity.maximum_pdu_size)
        self.dul.to_user_queue = _NudgingQueue(self.dimse.msg_queue)
        # The timers belong to the upper layer that was just replaced.
        self.acse_timeout = entity.acse_timeout
        self.network_timeout = entity.network_timeout

    @property
    def peer(self) -> Peer:
        """Who asked for it; the AE title as printable text."""
        title = str(self.requestor.ae_title).strip()
        printable = "".join(char if " " <= char <= "~" else "?" for char in title)[:16]
        return Peer(calling_ae_title=printable, address=str(self.requestor.address_info.address))

    def accepted_syntax(self, context_id: int) -> str:
        """The transfer syntax of an accepted presentation context. KeyError: it was not accepted."""
        return str(self._accepted_cx[context_id].transfer_syntax[0])

    def run_reactor(self) -> None:
        """The association's life; whatever ends it, no unfinished file stays."""
        try:
            super().run_reactor()
        finally:
            self.dul.kill_dul()
            self.dul.join(timeout=30)
            if not self.dul.is_alive():
                self.dimse.discard()

    def _serve_request(self, message: Any, context_id: int) -> None:
        if not isinstance(message, C_STORE):
            super()._serve_request(message, context_id)
            return
        spool = self.dimse.spools.pop(message._dataset_path, None)
        try:
            answer = self._answer(spool)
        except Exception as error:  # the association handler: a peer gets an answer, whatever went wrong here
            logger.exception("association %s: could not take an instance in", self.key)
            answer = Answer(status=PROCESSING_FAILURE, instance_key="", reason=type(error).__name__)
            if spool is not None:
                spool.discard()
        response = C_STORE()
        response.MessageID = message.MessageID
        response.MessageIDBeingRespondedTo = message.MessageID
        response.AffectedSOPInstanceUID = message.AffectedSOPInstanceUID
        response.AffectedSOPClassUID = message.AffectedSOPClassUID
        response.Status = answer.status
        if answer.comment:
            response.ErrorComment = answer.comment
        self.dimse.send_msg(response, context_id)

    def _answer(self, spool: Spool | None) -> Answer:
        if spool is None:
            return Answer(
                status=INTAKE_STATUSES[NotUnderstoodError], instance_key="", reason="a C-STORE without a data set"
            )
        return self._taker.take(spool, self.peer)
