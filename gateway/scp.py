"""The SCP: several receiver processes that share the listening sockets, each one loop over all of its connections.

The supervisor binds and listens; the receivers inherit the sockets and accept from them. A connection waits in one
queue of the kernel, so that none is lost when a receiver dies, as it would be in the queue of its own that
SO_REUSEPORT gives each process (socket(7)).

A connection costs a kilobyte until it has something to say. The loop reads, never waits for one peer, and looks twice a
second at who is late: who has not asked for an association, who is silent, who lets a message trickle. Data sets are
validated and made durable by a few threads, and answered when that is done.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import ssl
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from pydicom import config as pydicom_config

from gateway import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, acse, dimse
from gateway.association import LONGEST_HELD_DATA_SET_BYTES as _HELD_BYTES
from gateway.association import Acceptance, Association, Message, Refusal, Rejection, State
from gateway.commitment import CommitmentService
from gateway.connections import Connection, Share
from gateway.contexts import (
    STORAGE_COMMITMENT_INSTANCE_UID,
    STORAGE_COMMITMENT_UID,
    VERIFICATION_UID,
    may_be_stored,
    supports,
)
from gateway.disk import DiskGuard, QueueGuard
from gateway.errors import INTAKE_STATUSES, OutOfResourcesError, StoreError
from gateway.load import LoadBoard
from gateway.objects import ObjectFolder
from gateway.peers import PeerRegister
from gateway.settings import Settings
from gateway.spool import Answer, Intake, Peer, Spool, make_folders, sweep
from gateway.store import Store, open_store
from gateway.store.intake import new_key
from gateway.store.monitoring import report_process
from gateway.tls import ReceiverTls, shown_certificate
from gateway.validate import encoding_of

__all__ = ["run", "sweep"]

logger = logging.getLogger(__name__)

REPORT_S = 5.0
GRACE_S = 5.0
CHECK_S = 0.5
"""How often late peers are looked for."""
CLOSE_S = 2.0
"""How long a peer may take to close a connection whose association is over (ARTIM, PS3.8 section 9.1.5)."""
READ_BYTES = 1 << 19
"""At a time, of a data set that streams to the spool; of anything else :data:`SMALL_READ_BYTES`."""
SMALL_READ_BYTES = 1 << 12
READS_A_TURN = 3
"""Then the others have their turn."""
SEND_BUFFER_BYTES = 1 << 16
"""Answers are short; a peer that does not read them shall not fill the kernel's memory."""
ACCEPTS_A_TURN = 16
YIELD_S = 0.004
"""How long a receiver leaves a new connection to one that has fewer."""
STORE_THREADS = 6
MOST_HELD_BYTES = 16 << 20
"""Of data sets other than C-STORE's, over all associations."""
REQUEST_COMMITMENT = 1
"""Action Type ID, PS3.4 Table J.3-1."""
_READ, _WRITE = select.EPOLLIN, select.EPOLLOUT


def run(
    settings: Settings,
    data_dir: Path,
    stop: threading.Event,
    *,
    name: str,
    listener: socket.socket | None,
    tls_listener: socket.socket | None = None,
) -> None:
    """A receiver process: accept associations from the listeners, which are bound and shared, until `stop` is set."""
    _configure_process()
    store = open_store(settings.store.url, data_dir=data_dir)
    objects = ObjectFolder.in_data_dir(data_dir)
    make_folders(objects.root)
    receiver = Receiver(settings, data_dir, store, objects.root, name=name)
    for each, encrypted in ((listener, False), (tls_listener, True)):
        if each is not None:
            receiver.listen(each, encrypted=encrypted)
    reporter = threading.Thread(target=_report, args=(store, name, receiver, stop), name="report", daemon=True)
    reporter.start()
    try:
        receiver.run(stop)
    finally:
        stop.set()
        reporter.join(REPORT_S)
        store.close()


def _report(store: Store, name: str, receiver: Receiver, stop: threading.Event) -> None:
    while True:
        try:
            report_process(store, name=name, pid=os.getpid(), now=datetime.now(UTC), detail=receiver.detail())
        except StoreError as error:
            logger.error("%s", error)
        if stop.wait(REPORT_S):
            return


def _configure_process() -> None:
    """This process's settings of pydicom."""
    # Their messages quote what peers sent, which may be PHI; the gateway logs its own.
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    pydicom_config.settings.reading_validation_mode = pydicom_config.IGNORE


class Receiver:
    """The loop of one process, and the host of its associations."""

    def __init__(self, settings: Settings, data_dir: Path, store: Store, objects: Path, *, name: str) -> None:
        self._settings = settings
        self._share = Share.of(settings.dicom)
        self._peers = PeerRegister(settings)
        self._tls = ReceiverTls(settings.tls) if settings.tls.enabled else None
        self._intake = Intake(store=store, root=objects, rules=settings.rules, completion=settings.completion)
        self._disk = DiskGuard(objects, settings.disk)
        self._queue = QueueGuard(store, settings.dicom.longest_queue)
        self._commitment = CommitmentService(store, settings)
        self._load = LoadBoard(data_dir, name, settings.dicom.receivers)
        self._poll = select.epoll()
        self._listeners: dict[int, tuple[socket.socket, bool]] = {}
        self._connections: dict[int, Connection] = {}
        self._by_association: dict[Association, Connection] = {}
        self._of_address: Counter[str] = Counter()
        self._associations_of_address: Counter[str] = Counter()
        self._associations = 0
        self._held_bytes = 0
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._readable_still: set[Connection] = set()  # TLS has decrypted more than was read
        self._work: SimpleQueue[tuple[Connection, Peer, Message] | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work_on, name=f"store-{number}", daemon=True)
            for number in range(STORE_THREADS)
        ]
        self._done: deque[tuple[Connection, Message, Answer]] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll.register(self._wake, _READ)
        self._listen_again_at: float | None = None
        self._began_at = time.monotonic()
        self._refused_connections = 0
        self._overfull_said_at = 0.0

    def listen(self, listener: socket.socket, *, encrypted: bool) -> None:
        """Accept connections of `listener` too."""
        listener.setblocking(False)  # another receiver may take the connection between poll and accept
        self._listeners[listener.fileno()] = (listener, encrypted)
        self._poll.register(listener, _READ | select.EPOLLEXCLUSIVE)

    def detail(self) -> Mapping[str, Any]:
        """What is reported of this process."""
        return {
            "stored": self._intake.stored,
            "refused": self._intake.refused,
            "connections": len(self._connections),
            "associations": self._associations,
            "refused_connections": self._refused_connections,
            "uptime_s": round(time.monotonic() - self._began_at),
        }

    # --- the loop -------------------------------------------------------------------------------------------------

    def run(self, stop: threading.Event) -> None:
        """Serve until `stop` is set; then let what is under way end for a moment."""
        for thread in self._threads:
            thread.start()
        check_at = time.monotonic() + CHECK_S
        stop_at: float | None = None
        while True:
            now = time.monotonic()
            if stop.is_set() and stop_at is None:
                stop_at = now + GRACE_S
                self._stop_listening()
            if stop_at is not None and (now >= stop_at or not self._associations):
                break
            self._turn(0.0 if self._readable_still else CHECK_S, now)
            now = time.monotonic()
            if self._listen_again_at is not None and now >= self._listen_again_at and stop_at is None:
                self._listen_again()
            if now >= check_at:
                check_at = now + CHECK_S
                for connection in list(self._connections.values()):
                    self._guarded(connection, self._check, now)
        for connection in list(self._connections.values()):
            connection.association.abort("the gateway stops")
            with suppress(OSError):
                self._flush(connection)
            self._close(connection)
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads:
            thread.join(GRACE_S)

    def _turn(self, longest_s: float, now: float) -> None:
        if self._listen_again_at is not None:
            longest_s = max(0.0, min(longest_s, self._listen_again_at - now))
        for descriptor, events in self._poll.poll(longest_s):
            if descriptor == self._wake:
                with suppress(BlockingIOError):
                    os.eventfd_read(self._wake)
            elif descriptor in self._listeners:
                self._accept(descriptor)
            elif (connection := self._connections.get(descriptor)) is not None:
                self._guarded(connection, self._on_events, events)
        for connection in list(self._readable_still):
            self._readable_still.discard(connection)
            self._guarded(connection, self._on_events, _READ)
        while self._done:
            connection, message, answer = self._done.popleft()
            self._held_bytes -= len(message.data_set)
            self._guarded(connection, self._on_answer, message, answer)

    def _guarded(self, connection: Connection, call: Callable[..., None], *arguments: Any) -> None:
        """Whatever goes wrong with one connection costs that connection."""
        try:
            call(connection, *arguments)
        except OSError as error:
            self._lose(connection, f"the connection broke: {error.strerror or type(error).__name__}")
        except Exception as error:  # the association handler: no peer may end what serves all others
            logger.exception("association %s: internal error", connection.key)
            self._lose(connection, f"internal error: {type(error).__name__}")

    def _lose(self, connection: Connection, reason: str) -> None:
        connection.association.end(reason)
        self._close(connection)

    # --- accepting ------------------------------------------------------------------------------------------------

    def _accept(self, descriptor: int, *, has_yielded: bool = False) -> None:
        listener, encrypted = self._listeners[descriptor]
        if not has_yielded and self._load.is_above_others(len(self._connections)):
            self._pause_listening(YIELD_S)
            return
        for _ in range(ACCEPTS_A_TURN):
            try:
                connected, address = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                logger.error("cannot accept connections: %s", error.strerror)
                self._pause_listening(CHECK_S)
                return
            try:
                self._welcome(connected, str(address[0]).removeprefix("::ffff:"), encrypted)
            except OSError as error:  # gone again
                logger.warning("connection from %s: %s", address[0], error.strerror or error)
                connected.close()
            if self._load.is_above_others(len(self._connections)):
                return

    def _welcome(self, connected: socket.socket, address: str, encrypted: bool) -> None:
        if (
            len(self._connections) >= self._share.connections
            or self._of_address[address] >= self._share.connections_an_address
        ):
            self._refused_connections += 1
            now = time.monotonic()
            if now - self._overfull_said_at > 1:
                self._overfull_said_at = now
                logger.warning("too many connections: %s refused, %d so far", address, self._refused_connections)
            connected.close()
            return
        connected.setblocking(False)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        if encrypted:
            assert self._tls is not None
            try:
                connected = self._tls.context().wrap_socket(connected, server_side=True, do_handshake_on_connect=False)
            except OSError as error:
                logger.warning("connection from %s: no TLS: %s", address, error)
                connected.close()
                return
        now = time.monotonic()
        association = Association(self, maximum_pdu_bytes=self._settings.dicom.maximum_pdu_bytes)
        connection = Connection(connected, address, new_key()[:12], association, now, now, handshaking=encrypted)
        self._connections[connected.fileno()] = connection
        self._by_association[association] = connection
        self._of_address[address] += 1
        self._load.tell(len(self._connections))
        self._poll.register(connected, _READ)

    def _pause_listening(self, seconds: float) -> None:
        for descriptor in self._listeners:
            with suppress(FileNotFoundError):
                self._poll.unregister(descriptor)
        self._listen_again_at = time.monotonic() + seconds

    def _listen_again(self) -> None:
        for descriptor in self._listeners:
            with suppress(FileExistsError):
                self._poll.register(descriptor, _READ | select.EPOLLEXCLUSIVE)
        self._listen_again_at = None
        for descriptor in self._listeners:
            self._accept(descriptor, has_yielded=True)  # which may pause again

    def _stop_listening(self) -> None:
        self._pause_listening(0)
        self._listen_again_at = None
        self._listeners.clear()

    # --- one connection -------------------------------------------------------------------------------------------

    def _on_events(self, connection: Connection, events: int) -> None:
        if connection.handshaking:
            self._shake_hands(connection)
            return
        if connection.association.takes_more:
            if events & ~_WRITE:
                self._read(connection)
        elif events & (select.EPOLLHUP | select.EPOLLERR):
            self._lose(connection, "the peer closed the connection before its answer")
        self._after(connection)

    def _after(self, connection: Connection) -> None:
        """Send what is to be sent; close what is over; wait for what is next."""
        if connection.socket.fileno() < 0:
            return
        self._flush(connection)
        if connection.socket.fileno() < 0:
            return
        connection.association.resume()
        events = 0
        if connection.association.outgoing:
            events |= _WRITE
        if connection.association.takes_more:
            events |= _READ
        if events != connection.events:
            connection.events = events
            self._poll.modify(connection.socket, events)

    def _shake_hands(self, connection: Connection) -> None:
        assert isinstance(connection.socket, ssl.SSLSocket)
        try:
            connection.socket.do_handshake()
        except ssl.SSLWantReadError:
            self._wait_for(connection, _READ)
            return
        except ssl.SSLWantWriteError:
            self._wait_for(connection, _WRITE)
            return
        except ssl.SSLError as error:
            self._lose(connection, f"TLS handshake failed: {error.reason or type(error).__name__}")
            return
        connection.handshaking = False
        self._wait_for(connection, _READ)
        self._readable_still.add(connection)

    def _wait_for(self, connection: Connection, events: int) -> None:
        if connection.events != events:
            connection.events = events
            self._poll.modify(connection.socket, events)

    def _read(self, connection: Connection) -> None:
        association = connection.association
        for _ in range(READS_A_TURN):
            try:
                # Little until a data set comes: what cannot be taken at once is held back, for each of many peers.
                room = READ_BYTES if association.is_streaming else SMALL_READ_BYTES
                count = connection.socket.recv_into(self._buffer, room)
            except (BlockingIOError, ssl.SSLWantReadError):
                return
            except ssl.SSLWantWriteError:
                self._wait_for(connection, _WRITE)
                return
            if count == 0:
                self._lose(connection, "the peer closed the connection")
                return
            now = time.monotonic()
            connection.heard_at = now
            if connection.close_at is not None:
                return  # over; what still comes is dropped
            if not association.is_in_message:
                connection.window_began_at, connection.window_bytes = now, 0
            connection.window_bytes += count
            association.feed(self._buffer[:count])
            if not association.is_streaming or count < room:
                break
        if isinstance(connection.socket, ssl.SSLSocket) and connection.socket.pending():
            self._readable_still.add(connection)

    def _flush(self, connection: Connection) -> None:
        outgoing = connection.association.outgoing
        while outgoing:
            try:
                sent = connection.socket.send(outgoing)
            except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                return
            connection.heard_at = time.monotonic()
            del outgoing[:sent]
        if connection.association.state is State.ENDED and connection.close_at is None:
            connection.close_at = time.monotonic() + CLOSE_S
            with suppress(OSError):
                connection.socket.shutdown(socket.SHUT_WR)

    def _close(self, connection: Connection) -> None:
        descriptor = connection.socket.fileno()
        if descriptor < 0:
            return
        with suppress(OSError):
            self._poll.unregister(descriptor)
        connection.socket.close()
        del self._connections[descriptor]
        self._readable_still.discard(connection)
        self._by_association.pop(connection.association, None)
        self._of_address[connection.address] -= 1
        if not self._of_address[connection.address]:
            del self._of_address[connection.address]
        self._load.tell(len(self._connections))

    def _check(self, connection: Connection, now: float) -> None:
        """End what is late."""
        dicom = self._settings.dicom
        association = connection.association
        if connection.close_at is not None:
            if now >= connection.close_at:
                self._close(connection)
            return
        if association.is_busy:
            return
        silent_s = now - connection.heard_at
        if association.state is State.AWAITING:
            if now - connection.opened_at > dicom.association_timeout_s:
                what = "TLS handshake" if connection.handshaking else "A-ASSOCIATE-RQ"
                self._lose(connection, f"no {what} within {dicom.association_timeout_s:g} s")
            return
        if silent_s > dicom.network_timeout_s:
            association.abort(f"silent for {dicom.network_timeout_s:g} s")
        elif association.is_in_message and now - connection.window_began_at > dicom.minimum_rate_window_s:
            if connection.window_bytes < dicom.minimum_bytes_per_s * (now - connection.window_began_at):
                association.abort(f"less than {dicom.minimum_bytes_per_s:g} bytes a second of a message")
            connection.window_began_at, connection.window_bytes = now, 0
        if association.state is State.ENDED:
            self._after(connection)
            if association.outgoing:  # it takes nothing either
                self._close(connection)

    # --- host of associations -------------------------------------------------------------------------------------

    def decide(self, association: Association, request: acse.Request) -> Acceptance | Rejection:
        """Whether a peer may have its association."""
        connection = self._by_association[association]
        shown = connection.socket
        certificate = shown_certificate(shown) if isinstance(shown, ssl.SSLSocket) else None
        verdict = self._peers.judge(
            calling_ae_title=request.calling_ae_title,
            called_ae_title=request.called_ae_title,
            address=connection.address,
            encrypted=isinstance(shown, ssl.SSLSocket),
            certificate=certificate,
        )
        if verdict.message:
            logger.warning("association %s: %s", connection.key, verdict.message)
        if verdict.may == "nothing":
            result, source, reason = verdict.rejection
            return Rejection(result=result, source=source, reason=reason)
        if (
            self._associations >= self._share.associations
            or self._associations_of_address[connection.address] >= self._share.associations_an_address
        ):
            logger.warning("association %s: too many associations; %s refused", connection.key, connection.address)
            return Rejection(result=2, source=3, reason=2)  # transient, presentation provider, local limit exceeded
        supported = supports if verdict.may == "store" else _verification_alone
        contexts = acse.negotiate(request, supports=supported, understands=lambda each: encoding_of(each) is not None)
        self._associations += 1
        self._associations_of_address[connection.address] += 1
        connection.associated = True
        accepted = sum(each.result == acse.ACCEPTED for each in contexts)
        logger.info(
            *("association %s accepted: %s at %s, %d of %d contexts", connection.key),
            *(connection.peer.calling_ae_title, connection.address, accepted, len(contexts)),
        )
        pdu = acse.accept_pdu(
            request,
            contexts,
            supports=supported,
            maximum_length=self._settings.dicom.maximum_pdu_bytes,
            implementation_class_uid=IMPLEMENTATION_CLASS_UID,
            implementation_version_name=IMPLEMENTATION_VERSION_NAME,
        )
        return Acceptance(contexts=contexts, pdu=pdu)

    def open(self, association: Association, context: acse.Context, command: dimse.Command) -> Spool | Refusal:
        """Where the data set of a C-STORE goes, or why it is not taken."""
        connection = self._by_association[association]
        if not may_be_stored(context.abstract_syntax):
            return Refusal(status=dimse.SOP_CLASS_NOT_SUPPORTED, comment="C-STORE in a context of another service")
        reason = self._disk.refusal() or self._queue.refusal()
        if reason is not None:
            self._intake.count_refused()
            logger.warning("association %s: an instance refused with 0xA700: %s", connection.key, reason)
            return Refusal(status=INTAKE_STATUSES[OutOfResourcesError], comment=reason[:64])
        return self._intake.open(
            sop_class_uid=command.sop_class_uid,
            sop_instance_uid=command.sop_instance_uid,
            transfer_syntax_uid=context.transfer_syntax,
        )

    def may_hold(self, association: Association, context: acse.Context, command: dimse.Command) -> Refusal | None:
        """Whether the data set of a storage commitment message may be gathered."""
        if context.abstract_syntax != STORAGE_COMMITMENT_UID:
            return Refusal(status=dimse.UNRECOGNISED_OPERATION)
        if command.sop_instance_uid != STORAGE_COMMITMENT_INSTANCE_UID:
            return Refusal(status=dimse.NO_SUCH_INSTANCE)
        if command.command_field == dimse.N_ACTION_RQ and command.type_id != REQUEST_COMMITMENT:
            return Refusal(status=dimse.NO_SUCH_ACTION)
        if self._held_bytes + sum(each.is_holding for each in self._by_association) * _HELD_BYTES > MOST_HELD_BYTES:
            return Refusal(status=dimse.RESOURCE_LIMITATION, comment="too many such messages at once")
        return None

    def answer_later(self, association: Association, message: Message) -> None:
        """Have a thread work on `message`."""
        connection = self._by_association[association]
        self._held_bytes += len(message.data_set)
        self._work.put((connection, connection.peer, message))

    def ended(self, association: Association, reason: str) -> None:
        """Count and log the end of an association."""
        connection = self._by_association[association]
        if connection.associated:
            connection.associated = False
            self._associations -= 1
            self._associations_of_address[connection.address] -= 1
            if not self._associations_of_address[connection.address]:
                del self._associations_of_address[connection.address]
        peer = connection.peer
        level = logging.INFO if reason == "released" else logging.WARNING
        logger.log(
            level, "association %s: %s; %s at %s", connection.key, reason, peer.calling_ae_title or "-", peer.address
        )

    def _work_on(self) -> None:
        """A thread's life: make data sets durable, and do what other messages ask."""
        while (job := self._work.get()) is not None:
            connection, peer, message = job
            try:
                answer = self._answer(peer, message)
            except Exception as error:  # the association handler: a peer gets an answer, whatever went wrong here
                logger.exception("association %s: could not answer", connection.key)
                answer = Answer(status=dimse.PROCESSING_FAILURE, instance_key="", reason=type(error).__name__)
                if message.spool is not None:
                    message.spool.discard()
            self._done.append((connection, message, answer))
            os.eventfd_write(self._wake, 1)

    def _answer(self, peer: Peer, message: Message) -> Answer:
        if message.spool is not None:
            return self._intake.take(message.spool, peer)
        syntax, command = message.context.transfer_syntax, message.command
        if command.command_field == dimse.N_ACTION_RQ:
            status = self._commitment.request(message.data_set, syntax, peer)
        else:
            status = self._commitment.report(message.data_set, syntax, command.type_id, peer)
        return Answer(status=status, instance_key="", reason="" if status == dimse.SUCCESS else "see the gateway's log")

    def _on_answer(self, connection: Connection, message: Message, answer: Answer) -> None:
        if connection.socket.fileno() < 0:
            return
        connection.heard_at = connection.window_began_at = time.monotonic()
        connection.window_bytes = 0
        connection.association.answer(message, answer.status, answer.comment)
        self._after(connection)


def _verification_alone(abstract_syntax: str) -> acse.Supported | None:
    """What a stranger may ask for."""
    return supports(abstract_syntax) if abstract_syntax == VERIFICATION_UID else None
