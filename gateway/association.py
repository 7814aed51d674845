"""One association from its bytes alone: the acceptor's upper layer and DIMSE, without a socket or a clock.

::

    AWAITING (Sta2) --A-ASSOCIATE-RQ--> ESTABLISHED (Sta6) --A-RELEASE-RQ, A-ABORT, error--> ENDED (Sta13)
                    --rejected or error----------------------------------------------------> ENDED

Bytes go in by :meth:`Association.feed` in pieces of any size and come out of :attr:`Association.outgoing`. Nothing is
gathered that a peer only declares: fragments of a data set go to the spool as they come, a command set and a request
grow as they arrive and up to a limit. While a message is being answered the association takes nothing more in
(:attr:`Association.is_busy`), which is how a peer without negotiated asynchronous operations behaves anyway.

References
----------
PS3.8 section 9.2 (state machine), 9.3 (PDUs); PS3.7 section 7.5 (service primitives), 8.1, 9.3, 10.3.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from gateway import acse, dimse
from gateway.acse import ProtocolError
from gateway.dimse import Command
from gateway.errors import INTAKE_STATUSES, NotUnderstoodError
from gateway.spool import Spool

LONGEST_HELD_DATA_SET_BYTES = 1 << 20
"""Of a message other than C-STORE: a storage commitment request of some 8,000 instances."""
MOST_OUTGOING_BYTES = 1 << 16
"""Of answers that the peer has not read; then it has to, before more is taken in."""
_P_DATA_HEADER_BYTES = 6
_PDU_HEADER_BYTES = 6
_LONGEST_SHORT_PDU_BYTES = 1 << 10
"""Release and abort have four bytes."""


class State(Enum):
    """Where an association stands."""

    AWAITING = "awaiting a request"
    ESTABLISHED = "established"
    ENDED = "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class Acceptance:
    """A request is granted."""

    contexts: tuple[acse.Context, ...]
    pdu: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """A request is refused; PS3.8 Table 9-21."""

    result: int
    source: int
    reason: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A message is answered with a failure at once, and its data set dropped."""

    status: int
    comment: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A complete message that waits for its answer."""

    context: acse.Context
    command: Command
    spool: Spool | None = None
    """The data set of a C-STORE."""
    data_set: bytes = b""
    """The data set of another message."""


class Host(Protocol):
    """What an association asks of the process that it lives in."""

    def decide(self, association: Association, request: acse.Request) -> Acceptance | Rejection:
        """Whether a peer may have its association."""

    def open(self, association: Association, context: acse.Context, command: Command) -> Spool | Refusal:
        """Where the data set of a C-STORE goes, or why it is not taken."""

    def may_hold(self, association: Association, context: acse.Context, command: Command) -> Refusal | None:
        """Whether the data set of another message may be gathered."""

    def answer_later(self, association: Association, message: Message) -> None:
        """Work on `message` and call :meth:`Association.answer`."""

    def ended(self, association: Association, reason: str) -> None:
        """The association is over; `reason` is for the log, without PHI."""


class Association:
    """One peer's association."""

    __slots__ = (
        "_body",
        "_command",
        "_command_bytes",
        "_context",
        "_contexts",
        "_control",
        "_data_set",
        "_early",
        "_fragment_context",
        "_header",
        "_held",
        "_host",
        "_maximum_pdu_bytes",
        "_pdu_kind",
        "_pdu_left",
        "_pdv_header",
        "_pdv_left",
        "_peer_maximum_length",
        "_pieces",
        "_spool",
        "is_busy",
        "outgoing",
        "request",
        "state",
    )

    def __init__(self, host: Host, *, maximum_pdu_bytes: int) -> None:
        self._host = host
        self._maximum_pdu_bytes = maximum_pdu_bytes
        self.state = State.AWAITING
        self.outgoing = bytearray()
        """What is to be sent."""
        self.is_busy = False
        """Whether a message waits for its answer; nothing should be fed until then."""
        self.request: acse.Request | None = None
        self._contexts: dict[int, acse.Context] = {}
        self._peer_maximum_length = 0
        self._held = b""  # came with a message that is being answered
        # The PDU that arrives.
        self._header = bytearray()
        self._pdu_kind = 0
        self._pdu_left = 0
        self._body = bytearray()
        # The presentation data value that arrives.
        self._pdv_header = bytearray()
        self._pdv_left = 0
        self._fragment_context = 0
        self._control = 0
        # The message that arrives.
        self._command_bytes = bytearray()
        self._command: Command | None = None  # read; its data set is arriving
        self._context: acse.Context | None = None
        self._spool: Spool | None = None
        self._data_set: bytearray | None = None
        self._early: Refusal | None = None  # answered already; the data set is dropped
        self._pieces: list[memoryview] = []  # of the spool's data set, valid during one feed

    @property
    def is_streaming(self) -> bool:
        """Whether a data set is on its way to the spool."""
        return self._spool is not None

    @property
    def is_holding(self) -> bool:
        """Whether a data set is gathered in memory."""
        return self._data_set is not None

    @property
    def takes_more(self) -> bool:
        """Whether bytes may be fed; not while a message waits for its answer, or the peer does not read its answers."""
        return not self.is_busy and len(self.outgoing) <= MOST_OUTGOING_BYTES

    @property
    def is_in_message(self) -> bool:
        """Whether something has begun to arrive that is not complete."""
        return bool(self._header or self._pdu_left or self._command_bytes or self._command is not None)

    def feed(self, piece: memoryview) -> None:
        """Take bytes in; they need stay valid during this call only."""
        try:
            while piece and self.state is not State.ENDED and self.takes_more:
                if self._pdu_left == 0:
                    piece = self._take_header(piece)
                elif self._pdu_kind == acse.P_DATA_TF:
                    piece = self._take_p_data(piece)
                else:
                    piece = self._take_body(piece)
            self._write_pieces()
        except ProtocolError as error:
            self.abort(str(error))
            return
        self._held = bytes(piece) if self.state is not State.ENDED else b""

    def answer(self, message: Message, status: int, comment: str = "") -> None:
        """Send the response to a message that :meth:`Host.answer_later` was given, and go on."""
        if self.state is not State.ESTABLISHED:
            return
        self._respond(message.context, message.command, status, comment)
        self.is_busy = False
        self.resume()

    def resume(self) -> None:
        """Go on with what was held back, if there is any."""
        if self._held and self.takes_more:
            held, self._held = self._held, b""
            self.feed(memoryview(held))

    def abort(self, reason: str) -> None:
        """End it from this side with an A-ABORT (AA-1, AA-8)."""
        if self.state is State.ENDED:
            return
        self.outgoing += acse.abort_pdu()
        self.end(reason)

    def end(self, reason: str) -> None:
        """It is over, without a word to the peer; an unfinished data set is removed."""
        if self.state is State.ENDED:
            return
        self.state = State.ENDED
        self._pieces.clear()
        if self._spool is not None:
            self._spool.discard()
            self._spool = None
        self._data_set = None
        self._held = b""
        self._body = bytearray()
        self._command_bytes = bytearray()
        self._host.ended(self, reason)

    # --- PDUs -----------------------------------------------------------------------------------------------------

    def _take_header(self, piece: memoryview) -> memoryview:
        wanted = _PDU_HEADER_BYTES - len(self._header)
        self._header += piece[:wanted]
        if len(self._header) == _PDU_HEADER_BYTES:
            kind, length = struct.unpack(">BxL", self._header)
            self._header.clear()
            if not acse.ASSOCIATE_RQ <= kind <= acse.ABORT:
                raise ProtocolError(f"a PDU of unknown type 0x{kind:02X}")
            most = {acse.P_DATA_TF: self._maximum_pdu_bytes, acse.ASSOCIATE_RQ: acse.LONGEST_REQUEST_BYTES}.get(
                kind, _LONGEST_SHORT_PDU_BYTES
            )
            if not 4 <= length <= most:
                raise ProtocolError(f"a PDU of type 0x{kind:02X} and {length} bytes")
            expected = State.AWAITING if kind == acse.ASSOCIATE_RQ else State.ESTABLISHED
            if kind != acse.ABORT and self.state is not expected:
                raise ProtocolError(f"a PDU of type 0x{kind:02X} in an association that is {self.state.value}")
            self._pdu_kind, self._pdu_left = kind, length
        return piece[wanted:]

    def _take_body(self, piece: memoryview) -> memoryview:
        taken = piece[: self._pdu_left]
        self._body += taken
        self._pdu_left -= len(taken)
        if self._pdu_left == 0:
            body, self._body = bytes(self._body), bytearray()
            self._on_pdu(body)
        return piece[len(taken) :]

    def _on_pdu(self, body: bytes) -> None:
        if self._pdu_kind == acse.ASSOCIATE_RQ:
            self._on_request(acse.read_request(body))
        elif self._pdu_kind == acse.RELEASE_RQ:
            if self._command is not None or self._command_bytes:
                raise ProtocolError("an A-RELEASE-RQ inside a message")
            self.outgoing += acse.release_pdu()
            self.end("released")
        elif self._pdu_kind == acse.ABORT:
            self.end("aborted by the peer")
        else:
            raise ProtocolError(f"a PDU of type 0x{self._pdu_kind:02X} from a requestor")

    def _on_request(self, request: acse.Request) -> None:
        self.request = request
        decision = self._host.decide(self, request)
        if isinstance(decision, Rejection):
            self.outgoing += acse.reject_pdu(decision.result, decision.source, decision.reason)
            self.end("rejected")
            return
        self.outgoing += decision.pdu
        self._contexts = {each.context_id: each for each in decision.contexts if each.result == acse.ACCEPTED}
        self._peer_maximum_length = request.maximum_length
        self.state = State.ESTABLISHED

    # --- presentation data values ---------------------------------------------------------------------------------

    def _take_p_data(self, piece: memoryview) -> memoryview:
        if self._pdv_left == 0:
            wanted = _P_DATA_HEADER_BYTES - len(self._pdv_header)
            taken = piece[: min(wanted, self._pdu_left)]
            self._pdv_header += taken
            self._pdu_left -= len(taken)
            if len(self._pdv_header) == _P_DATA_HEADER_BYTES:
                self._begin_fragment()
            elif self._pdu_left == 0:
                raise ProtocolError("a P-DATA-TF that ends inside a presentation data value's header")
        else:
            taken = piece[: self._pdv_left]
            self._pdv_left -= len(taken)
            self._pdu_left -= len(taken)
            self._take_fragment(taken)
            if self._pdv_left == 0:
                self._end_fragment()
        return piece[len(taken) :]

    def _begin_fragment(self) -> None:
        length, self._fragment_context, self._control = struct.unpack(">LBB", self._pdv_header)
        self._pdv_header.clear()
        if length < 2 or length - 2 > self._pdu_left:
            raise ProtocolError("a presentation data value that is longer than its PDU")
        if self._fragment_context not in self._contexts:
            raise ProtocolError("a presentation data value in a context that was not accepted")
        is_command = bool(self._control & dimse.COMMAND_FRAGMENT)
        if is_command != (self._command is None):
            raise ProtocolError("a command inside a data set, or a data set without a command")
        begun = self._context if self._command is not None or self._command_bytes else None
        if begun is not None and begun.context_id != self._fragment_context:
            raise ProtocolError("a message in two presentation contexts")
        self._context = self._contexts[self._fragment_context]
        self._pdv_left = length - 2
        if self._pdv_left == 0:
            self._end_fragment()

    def _take_fragment(self, piece: memoryview) -> None:
        if self._command is None:
            self._command_bytes += piece
            if len(self._command_bytes) > dimse.LONGEST_COMMAND_BYTES:
                raise ProtocolError(f"a command set of more than {dimse.LONGEST_COMMAND_BYTES} bytes")
        elif self._spool is not None:
            self._pieces.append(piece)
        elif self._data_set is not None:
            self._data_set += piece
            if len(self._data_set) > LONGEST_HELD_DATA_SET_BYTES:
                raise ProtocolError(f"a data set of more than {LONGEST_HELD_DATA_SET_BYTES} bytes for such a message")

    def _end_fragment(self) -> None:
        if not self._control & dimse.LAST_FRAGMENT:
            return
        if self._command is None:
            content = bytes(self._command_bytes)
            self._command_bytes.clear()
            self._on_command(dimse.read_command(content))
        else:
            self._on_data_set()

    def _write_pieces(self) -> None:
        """Hand the spool what has come: in one piece, since each costs a system call and a round of the hash."""
        if not self._pieces:
            return
        assert self._spool is not None
        pieces: Sequence[memoryview] = self._pieces
        self._spool.write(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        self._pieces = []

    # --- messages -------------------------------------------------------------------------------------------------

    def _on_command(self, command: Command) -> None:
        assert self._context is not None
        if command.command_field & dimse.RESPONSE:
            raise ProtocolError("a response to nothing that was asked")
        if command.command_field == dimse.C_CANCEL_RQ:
            return
        outcome = self._begin_message(self._context, command)
        if outcome is not None:
            self._respond(self._context, command, outcome.status, outcome.comment)
        if command.has_data_set:
            self._command, self._early = command, outcome
        elif outcome is None:
            self._wait_for_answer(Message(context=self._context, command=command))

    def _begin_message(self, context: acse.Context, command: Command) -> Refusal | None:
        """What to answer at once; ``None``: the answer follows the data set or the work.

        A failure needs no data set: it is sent while the rest arrives, and that is dropped (PS3.7 section 9.3.1).
        """
        if command.command_field == dimse.C_ECHO_RQ:
            return Refusal(status=dimse.SUCCESS)
        if command.command_field == dimse.C_STORE_RQ:
            if not command.has_data_set:
                return Refusal(status=INTAKE_STATUSES[NotUnderstoodError], comment="a C-STORE without a data set")
            opened = self._host.open(self, context, command)
            if isinstance(opened, Refusal):
                return opened
            self._spool = opened
            return None
        if command.command_field in (dimse.N_ACTION_RQ, dimse.N_EVENT_REPORT_RQ):
            refusal = self._host.may_hold(self, context, command)
            if refusal is None and command.has_data_set:
                self._data_set = bytearray()
            return refusal
        return Refusal(status=dimse.UNRECOGNISED_OPERATION)

    def _on_data_set(self) -> None:
        self._write_pieces()
        command, context = self._command, self._context
        assert command is not None and context is not None
        self._command = None
        if self._early is not None:
            self._early = None
            return
        spool, self._spool = self._spool, None
        held, self._data_set = self._data_set, None
        self._wait_for_answer(Message(context=context, command=command, spool=spool, data_set=bytes(held or b"")))

    def _wait_for_answer(self, message: Message) -> None:
        self.is_busy = True
        self._host.answer_later(self, message)

    def _respond(self, context: acse.Context, command: Command, status: int, comment: str) -> None:
        self.outgoing += dimse.command_pdus(
            dimse.response(command, status, comment), context.context_id, self._peer_maximum_length
        )
