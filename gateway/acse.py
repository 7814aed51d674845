"""The association's own PDUs, seen by the acceptor: read a request, choose contexts, write the answers.

pynetdicom reads and negotiates a request of 128 contexts in 22 ms, which a loop that serves every peer cannot give to
one; here it takes under one. What a request may hold is bounded before anything is made of it. Tests hold each function
against pynetdicom's.

References
----------
PS3.8 section 9.3 (PDU structures), PS3.7 Annex D.3.3 (user information), PS3.8 Table 9-21 (rejections).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA_TF, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)
"""PDU types, PS3.8 section 9.3.1."""
LONGEST_REQUEST_BYTES = 1 << 18
"""Of 128 presentation contexts with 40 transfer syntaxes each, a request takes 160 KB."""
MOST_TRANSFER_SYNTAXES = 8192
APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
_FIXED_BYTES = 68
_PROTOCOL_VERSION = 1

_APPLICATION_CONTEXT_ITEM = 0x10
_CONTEXT_RQ_ITEM = 0x20
_CONTEXT_AC_ITEM = 0x21
_ABSTRACT_SYNTAX = 0x30
_TRANSFER_SYNTAX = 0x40
_USER_INFORMATION_ITEM = 0x50
_MAXIMUM_LENGTH = 0x51
_IMPLEMENTATION_CLASS_UID = 0x52
_ROLE_SELECTION = 0x54
_IMPLEMENTATION_VERSION_NAME = 0x55

ACCEPTED, USER_REJECTION, NO_REASON, ABSTRACT_SYNTAX_UNKNOWN, TRANSFER_SYNTAXES_UNKNOWN = range(5)
"""Results of a presentation context, PS3.8 Table 9-18."""


class ProtocolError(Exception):
    """The bytes are not what PS3.8 or PS3.7 has here; the association is aborted. Says what was wrong, without PHI."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposedContext:
    """One presentation context of a request."""

    context_id: int
    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """An A-ASSOCIATE-RQ."""

    called_ae_title: str
    calling_ae_title: str
    contexts: tuple[ProposedContext, ...]
    maximum_length: int = 0
    """Longest P-DATA-TF that the peer takes, in bytes after its header; 0: any."""
    roles: dict[str, tuple[bool, bool]] = field(default_factory=dict)
    """SOP Class UID to whether the peer proposes to be SCU, SCP of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What was answered to a proposed context."""

    context_id: int
    abstract_syntax: str
    transfer_syntax: str
    result: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Supported:
    """What the acceptor has to say of an abstract syntax."""

    peer_may_be_scu: bool = True
    peer_may_be_scp: bool = False


def read_request(body: bytes) -> Request:
    """The request in an A-ASSOCIATE-RQ PDU, given without its six-byte header.

    Raises
    ------
    ProtocolError
        It is malformed, or holds more than the standard lets it.
    """
    if len(body) < _FIXED_BYTES:
        raise ProtocolError("an A-ASSOCIATE-RQ that is too short")
    if not struct.unpack_from(">H", body)[0] & _PROTOCOL_VERSION:
        raise ProtocolError("an A-ASSOCIATE-RQ of another protocol version")
    contexts: dict[int, ProposedContext] = {}
    application_context = ""
    maximum_length, roles = 0, dict[str, tuple[bool, bool]]()
    syntaxes_left = MOST_TRANSFER_SYNTAXES
    for kind, start, stop in _items(body, _FIXED_BYTES, len(body)):
        if kind == _APPLICATION_CONTEXT_ITEM:
            application_context = _uid(body[start:stop])
        elif kind == _CONTEXT_RQ_ITEM:
            context = _read_context(body, start, stop, syntaxes_left)
            syntaxes_left -= len(context.transfer_syntaxes)
            if context.context_id in contexts:
                raise ProtocolError("two presentation contexts with one ID")
            contexts[context.context_id] = context
        elif kind == _USER_INFORMATION_ITEM:
            maximum_length, roles = _read_user_information(body, start, stop)
    if application_context != APPLICATION_CONTEXT:
        raise ProtocolError("another application context than DICOM's")
    if not contexts:
        raise ProtocolError("no presentation context")
    return Request(
        called_ae_title=body[4:20].decode("latin-1").strip(" \0"),
        calling_ae_title=body[20:36].decode("latin-1").strip(" \0"),
        contexts=tuple(contexts.values()),
        maximum_length=maximum_length,
        roles=roles,
    )


def _items(body: bytes, position: int, stop: int) -> list[tuple[int, int, int]]:
    """Type, start and stop of each item between two places."""
    found = []
    while position < stop:
        if stop - position < 4:
            raise ProtocolError("a cut item in an A-ASSOCIATE-RQ")
        kind, length = struct.unpack_from(">BxH", body, position)
        position += 4
        if length > stop - position:
            raise ProtocolError("an item of an A-ASSOCIATE-RQ that is longer than what holds it")
        found.append((kind, position, position + length))
        position += length
    return found


def _uid(value: bytes) -> str:
    """A UID as text; what is no ASCII matches nothing."""
    return value.decode("latin-1").rstrip("\0 ")


def _read_context(body: bytes, start: int, stop: int, most_syntaxes: int) -> ProposedContext:
    if stop - start < 4:
        raise ProtocolError("a presentation context that is too short")
    context_id = body[start]
    if context_id % 2 == 0:
        raise ProtocolError("a presentation context with an even ID")
    abstract_syntax, transfer_syntaxes = "", []
    for kind, begin, end in _items(body, start + 4, stop):
        if kind == _ABSTRACT_SYNTAX:
            abstract_syntax = _uid(body[begin:end])
        elif kind == _TRANSFER_SYNTAX:
            transfer_syntaxes.append(_uid(body[begin:end]))
    if not abstract_syntax or not transfer_syntaxes:
        raise ProtocolError("a presentation context without abstract or transfer syntax")
    if len(transfer_syntaxes) > most_syntaxes:
        raise ProtocolError("too many transfer syntaxes")
    return ProposedContext(
        context_id=context_id, abstract_syntax=abstract_syntax, transfer_syntaxes=tuple(transfer_syntaxes)
    )


def _read_user_information(body: bytes, start: int, stop: int) -> tuple[int, dict[str, tuple[bool, bool]]]:
    """Maximum length and roles; what else a peer says of itself is not needed, its user identity included."""
    maximum_length, roles = 0, {}
    for kind, begin, end in _items(body, start, stop):
        if kind == _MAXIMUM_LENGTH and end - begin == 4:
            (maximum_length,) = struct.unpack_from(">L", body, begin)
        elif kind == _ROLE_SELECTION and end - begin >= 4:
            (length,) = struct.unpack_from(">H", body, begin)
            if length + 4 != end - begin:
                raise ProtocolError("a role selection of another length than it says")
            roles[_uid(body[begin + 2 : begin + 2 + length])] = (body[end - 2] == 1, body[end - 1] == 1)
    return maximum_length, roles


def negotiate(
    request: Request,
    *,
    supports: Callable[[str], Supported | None],
    understands: Callable[[str], bool],
) -> tuple[Context, ...]:
    """An answer to each proposed context, with the first of the peer's transfer syntaxes that is understood."""
    answers = []
    for proposed in request.contexts:
        supported = supports(proposed.abstract_syntax)
        syntax = next((each for each in proposed.transfer_syntaxes if understands(each)), None)
        if supported is None:
            result = ABSTRACT_SYNTAX_UNKNOWN
        elif syntax is None:
            result = TRANSFER_SYNTAXES_UNKNOWN
        else:
            result = ACCEPTED if any(_roles(request, proposed.abstract_syntax, supported)) else USER_REJECTION
        answers.append(
            Context(
                context_id=proposed.context_id,
                abstract_syntax=proposed.abstract_syntax,
                transfer_syntax=syntax if syntax is not None else proposed.transfer_syntaxes[0],
                result=result,
            )
        )
    return tuple(answers)


def _roles(request: Request, abstract_syntax: str, supported: Supported) -> tuple[bool, bool]:
    """Whether the peer is to be SCU, SCP; without a proposal it is SCU (PS3.7 Annex D.3.3.4)."""
    scu, scp = request.roles.get(abstract_syntax, (True, False))
    return scu and supported.peer_may_be_scu, scp and supported.peer_may_be_scp


def accept_pdu(
    request: Request,
    contexts: Sequence[Context],
    *,
    supports: Callable[[str], Supported | None],
    maximum_length: int,
    implementation_class_uid: str,
    implementation_version_name: str,
) -> bytes:
    """An A-ASSOCIATE-AC PDU."""
    items = [_item(_APPLICATION_CONTEXT_ITEM, APPLICATION_CONTEXT.encode())]
    for context in contexts:
        head = struct.pack(">BxBx", context.context_id, context.result)
        syntax = _item(_TRANSFER_SYNTAX, context.transfer_syntax.encode("latin-1"))
        items.append(_item(_CONTEXT_AC_ITEM, head + syntax))
    user = [
        _item(_MAXIMUM_LENGTH, struct.pack(">L", maximum_length)),
        _item(_IMPLEMENTATION_CLASS_UID, implementation_class_uid.encode()),
    ]
    accepted = {context.abstract_syntax for context in contexts if context.result == ACCEPTED}
    for abstract_syntax in request.roles:
        supported = supports(abstract_syntax)
        if abstract_syntax in accepted and supported is not None:
            name = abstract_syntax.encode("latin-1")
            roles = _roles(request, abstract_syntax, supported)
            user.append(_item(_ROLE_SELECTION, struct.pack(">H", len(name)) + name + bytes(roles)))
    user.append(_item(_IMPLEMENTATION_VERSION_NAME, implementation_version_name.encode()))
    items.append(_item(_USER_INFORMATION_ITEM, b"".join(user)))
    titles = request.called_ae_title.ljust(16)[:16] + request.calling_ae_title.ljust(16)[:16]
    fixed = struct.pack(">HH", _PROTOCOL_VERSION, 0) + titles.encode("latin-1") + bytes(32)
    return _pdu(ASSOCIATE_AC, fixed + b"".join(items))


def _item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(value)) + value


def _pdu(kind: int, body: bytes) -> bytes:
    return struct.pack(">BxL", kind, len(body)) + body


def reject_pdu(result: int, source: int, reason: int) -> bytes:
    """An A-ASSOCIATE-RJ PDU."""
    return _pdu(ASSOCIATE_RJ, bytes([0, result, source, reason]))


def abort_pdu(source: int = 2, reason: int = 0) -> bytes:
    """An A-ABORT PDU; source 2 is the service provider, PS3.8 Table 9-26."""
    return _pdu(ABORT, bytes([0, 0, source, reason]))


def release_pdu() -> bytes:
    """An A-RELEASE-RP PDU."""
    return _pdu(RELEASE_RP, bytes(4))
