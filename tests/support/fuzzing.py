"""What is fuzzed, from what, and how a case is changed. Used by the short run in the tests and by ``scripts/fuzz.py``.

A *case* is bytes; a *target* is a function of a case that returns a word for its outcome. Whatever else comes out of a
target than an outcome is a finding.
"""

from __future__ import annotations

import hashlib
import random
import re
import signal
import struct
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit
from small_objects import TINY_JPEG, every_object

from gateway import acse, dimse
from gateway.acquisition import read_parameters
from gateway.association import LONGEST_HELD_DATA_SET_BYTES, MOST_OUTGOING_BYTES, Acceptance, Association, Message
from gateway.deidentification.streams import clean_encapsulated
from gateway.deidentify import Deidentifier
from gateway.errors import DeidentificationError, NotUnderstoodError, UnreadableError
from gateway.routing import attribute_values, is_quality_control
from gateway.spool import file_meta
from gateway.study import ReceivedInstance
from gateway.validate import Inspection, inspect
from models.codestreams import read_jpeg2000_header, read_jpeg_header
from models.errors import PixelError

SYNTAXES = (
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.4.50",
    "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.5",
    "1.2.840.10008.1.2.4.95",
    "1.2.840.10008.1.2.8.1",
)
"""The first byte of a data set's case chooses among these."""
CORPUS = Path(__file__).resolve().parents[1] / "fuzz" / "corpus"
OPEN: dict[str, str] = {}
"""Kept cases that are findings still, and where; they are no seeds, since their changes would be findings as well."""
KEYWORDS = ("PatientName", "PatientID", "StudyDate", "Modality", "ImageType", "Rows", "NumberOfFrames", "PixelSpacing")
LONGEST_CASE_S = 4
_MAXIMUM_PDU_BYTES = 16384
_DEIDENTIFIER = Deidentifier(hashlib.sha256(b"fuzzing").digest())


class TooSlow(BaseException):
    """A case took longer than :data:`LONGEST_CASE_S`; nothing that is fuzzed catches it."""


class Broken(AssertionError):  # noqa: N818 - the finding of a target that raised nothing
    """Something that always holds did not."""


# --- targets ------------------------------------------------------------------------------------------------------


def _outcome(error: Exception) -> str:
    """A refusal without the numbers in it."""
    return re.sub(r"\([0-9A-F]{4},[0-9A-F]{4}\)|\d+", "#", f"{type(error).__name__}: {error}")[:100]


def _inspected(case: bytes, path: Path) -> Inspection:
    syntax = SYNTAXES[case[0] % len(SYNTAXES)]
    meta = file_meta("1.2.840.10008.5.1.4.1.1.2", "1.2.3.4.5", syntax)
    path.write_bytes(meta + case[1:])
    return inspect(path, offset=len(meta), transfer_syntax_uid=syntax)


def fuzz_inspect(case: bytes, folder: Path) -> str:
    """A data set is inspected, and the header of what is taken is read."""
    try:
        inspection = _inspected(case or b"\0", folder / "case")
    except NotUnderstoodError as error:
        return _outcome(error)
    for keyword in KEYWORDS:
        attribute_values(inspection.header, keyword)
    for each in (inspection.sop_instance_uid, inspection.study_instance_uid, inspection.series_instance_uid):
        if re.fullmatch(r"[0-9.]{1,64}", each) is None or ".." in each:
            raise Broken("a UID that is none was taken")
    return "taken"


def fuzz_flow(case: bytes, folder: Path) -> str:
    """What is taken goes on as in the worker: read, its parameters read, de-identified."""
    path = folder / "case"
    try:
        _inspected(case or b"\0", path)
    except NotUnderstoodError as error:
        return _outcome(error)
    received = ReceivedInstance(
        instance_key="0" * 32,
        path=path,
        sop_class_uid="",
        sop_instance_uid="",
        series_instance_uid="",
        study_instance_uid="",
        transfer_syntax_uid=SYNTAXES[case[0] % len(SYNTAXES)],
        calling_ae_title="",
        received_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    try:
        dataset = received.read()
        is_quality_control(dataset)
        read_parameters(dataset)
        deidentified = _DEIDENTIFIER.dataset(dataset)
    except (UnreadableError, DeidentificationError) as error:
        return _outcome(error)
    if b"SECRET-1" in repr(deidentified.get_item("PatientID")).encode():
        raise Broken("a de-identified data set holds the patient's ID")
    return "de-identified"


def fuzz_codestream(case: bytes, folder: Path) -> str:
    """The headers of a compressed frame are read, and its metadata removed."""
    del folder
    outcomes = []
    for read in (read_jpeg_header, read_jpeg2000_header):
        try:
            read(case)
            outcomes.append("read")
        except PixelError as error:
            outcomes.append(_outcome(error))
    value = b"\xfe\xff\x00\xe0\0\0\0\0\xfe\xff\x00\xe0" + struct.pack("<I", len(case)) + case
    for syntax in (JPEGBaseline8Bit, JPEG2000Lossless):
        try:
            clean_encapsulated(value, str(syntax), 1)
            outcomes.append("cleaned")
        except DeidentificationError as error:
            outcomes.append(_outcome(error))
    return "; ".join(outcomes)


@dataclass
class _Spool:
    """Where a data set goes: only its length and a sum of it are kept."""

    length: int = 0
    total: int = 0
    discarded: bool = False

    def write(self, piece: memoryview | bytes) -> None:
        self.length += len(piece)
        self.total = (self.total + sum(bytes(piece))) & 0xFFFFFFFF

    def discard(self) -> None:
        self.discarded = True


@dataclass
class _Host:
    """A process that takes every association and every message."""

    waiting: list[Message] = field(default_factory=list)
    spools: list[_Spool] = field(default_factory=list)
    end: str = ""

    def decide(self, association: Association, request: acse.Request) -> Acceptance:
        contexts = acse.negotiate(
            request, supports=lambda _: acse.Supported(), understands=lambda syntax: syntax in SYNTAXES
        )
        pdu = acse.accept_pdu(
            request,
            contexts,
            supports=lambda _: acse.Supported(),
            maximum_length=_MAXIMUM_PDU_BYTES,
            implementation_class_uid="1.2.3",
            implementation_version_name="FUZZ",
        )
        return Acceptance(contexts=contexts, pdu=pdu)

    def open(self, association: Association, context: acse.Context, command: dimse.Command) -> Any:
        self.spools.append(_Spool())
        return self.spools[-1]

    def may_hold(self, association: Association, context: acse.Context, command: dimse.Command) -> None:
        return None

    def answer_later(self, association: Association, message: Message) -> None:
        self.waiting.append(message)

    def ended(self, association: Association, reason: str) -> None:
        if self.end:
            raise Broken("an association that ended twice")
        self.end = reason


def _fed(stream: bytes, sizes: Iterator[int]) -> tuple[str, bytes, list[tuple[int, int]]]:
    """Feed a stream in pieces, answering as it goes; gives how it ended, what was sent, what was spooled."""
    host, sent, position = _Host(), bytearray(), 0
    association = Association(host, maximum_pdu_bytes=_MAXIMUM_PDU_BYTES)
    while True:
        while host.waiting:
            association.answer(host.waiting.pop(), dimse.SUCCESS)
        sent += association.outgoing
        association.outgoing.clear()
        if not association.takes_more:
            raise Broken("an association that neither takes nor waits")
        association.resume()
        if host.waiting:
            continue
        if position >= len(stream) or host.end:
            break
        size = next(sizes)
        association.feed(memoryview(stream[position : position + size]))
        position += size
        held = len(association._body) + len(association._command_bytes) + len(association._data_set or b"")
        if held > acse.LONGEST_REQUEST_BYTES + LONGEST_HELD_DATA_SET_BYTES + size:
            raise Broken(f"{held} bytes are held")
        if len(association.outgoing) > 2 * MOST_OUTGOING_BYTES + (1 << 18):
            raise Broken(f"{len(association.outgoing)} bytes wait to be sent")
    sent += association.outgoing
    end = re.sub(r"0x[0-9A-F]+|\d+", "#", host.end) or f"waits, {association.state.value}"
    return end, bytes(sent), [(each.length, each.total) for each in host.spools if not each.discarded]


def fuzz_association(case: bytes, folder: Path) -> str:
    """A peer's bytes, from the first of a PDU, in pieces of any size: the outcome does not depend on the pieces."""
    del folder
    stream = case[1:]
    chance = random.Random(len(stream) * 256 + (case[0] if case else 0))
    whole = _fed(stream, iter(lambda: max(1, len(stream)), None))
    pieces = _fed(stream, iter(lambda: chance.choice((1, 2, 3, 7, 64, 1000)), None))
    if whole[0] != pieces[0] or whole[1] != pieces[1]:
        raise Broken(f"{whole[0]!r} became {pieces[0]!r} in smaller pieces")
    if whole[2] != pieces[2]:
        raise Broken("another data set was spooled in smaller pieces")
    return whole[0]


TARGETS: Mapping[str, Callable[[bytes, Path], str]] = {
    "inspect": fuzz_inspect,
    "flow": fuzz_flow,
    "codestream": fuzz_codestream,
    "association": fuzz_association,
}


@contextmanager
def case_folder() -> Iterator[Path]:
    """A folder for the one file that a case needs, in memory where there is such a place."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="gateway-fuzz-", dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


def run_case(target: str, case: bytes, folder: Path) -> str:
    """The outcome of one case; raises whatever the target does, and :class:`TooSlow`."""

    def too_slow(*_: object) -> None:
        raise TooSlow(f"longer than {LONGEST_CASE_S} s")

    before = signal.signal(signal.SIGALRM, too_slow)
    signal.setitimer(signal.ITIMER_REAL, LONGEST_CASE_S)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return TARGETS[target](case, folder)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# --- seeds --------------------------------------------------------------------------------------------------------


def seeds(target: str) -> list[bytes]:
    """Whole cases to start from, and those that were once findings, which are kept in the corpus."""
    kept = [path.read_bytes() for path in sorted((CORPUS / target).glob("*.bin")) if path.stem not in OPEN]
    if target == "codestream":
        return [TINY_JPEG, _jpeg_2000(), *kept]
    if target == "association":
        return [b"\0" + stream for stream in _streams()] + kept
    objects = [bytes([SYNTAXES.index(syntax)]) + content for _, syntax, content, _ in every_object()]
    return objects + kept + [path.read_bytes() for path in sorted((CORPUS / "data_sets").glob("*.bin"))]


def _jpeg_2000() -> bytes:
    """The main header and one tile-part of a codestream; its packets are no picture."""
    siz = struct.pack(">HHIIIIIIIIH", 0, 16, 16, 0, 0, 16, 16, 0, 0, 1, 1)[2:] + b"\x07\x01\x01"
    siz = b"\xff\x51" + struct.pack(">HH", len(siz) + 4, 0) + siz
    cod = b"\xff\x52\x00\x0c\x00\x00\x00\x01\x00\x01\x04\x04\x00\x01"
    comment = b"\xff\x64\x00\x08\x00\x01NAME"
    tile = b"\xff\x90\x00\x0a\x00\x00" + struct.pack(">I", 22) + b"\x00\x01\xff\x93" + bytes(8)
    return b"\xff\x4f" + siz + cod + comment + tile + b"\xff\xd9"


def _request(abstract_syntaxes: Sequence[str]) -> bytes:
    def item(kind: int, value: bytes) -> bytes:
        return struct.pack(">BxH", kind, len(value)) + value

    contexts = b"".join(
        item(
            0x20,
            bytes([2 * number + 1, 0, 0, 0])
            + item(0x30, syntax.encode())
            + b"".join(item(0x40, each.encode()) for each in SYNTAXES[:2]),
        )
        for number, syntax in enumerate(abstract_syntaxes)
    )
    role = struct.pack(">H", 20) + b"1.2.840.10008.1.20.1" + b"\1\1"
    user = item(0x51, struct.pack(">I", 16384)) + item(0x52, b"1.2.3") + item(0x54, role) + item(0x55, b"FUZZ")
    user += item(0x58, b"\2\0\0\4USER\0\4PASS")
    body = struct.pack(">HH", 1, 0) + b"GATEWAY".ljust(16) + b"PEER".ljust(16) + bytes(32)
    body += item(0x10, b"1.2.840.10008.3.1.1.1") + contexts + item(0x50, user)
    return struct.pack(">BxI", 1, len(body)) + body


def _command(elements: Sequence[tuple[int, bytes]]) -> bytes:
    return b"".join(struct.pack("<HHI", 0, number, len(value)) + value for number, value in elements)


def _p_data(values: Sequence[tuple[int, int, bytes]]) -> bytes:
    body = b"".join(struct.pack(">IBB", len(value) + 2, context, control) + value for context, control, value in values)
    return struct.pack(">BxI", 4, len(body)) + body


def _streams() -> list[bytes]:
    """What good peers say."""
    request = _request(["1.2.840.10008.1.1", "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.20.1"])
    release, abort = b"\5\0\0\0\0\4\0\0\0\0", b"\7\0\0\0\0\4\0\0\0\0"
    us = struct.Struct("<H").pack
    echo = _command([(2, b"1.2.840.10008.1.1\0"), (0x100, us(0x30)), (0x110, us(1)), (0x800, us(0x101))])
    store = _command(
        [
            *((2, b"1.2.840.10008.5.1.4.1.1.2\0"), (0x100, us(1)), (0x110, us(2)), (0x700, us(0)), (0x800, us(1))),
            (0x1000, b"1.2.3.4.5\0"),
        ]
    )
    action = _command(
        [
            *((3, b"1.2.840.10008.1.20.1"), (0x100, us(0x130)), (0x110, us(3)), (0x800, us(1))),
            *((0x1001, b"1.2.840.10008.1.20.1.1"), (0x1008, us(1))),
        ]
    )
    content = every_object()[0][2]
    store_pdus = _p_data([(3, 3, store), (3, 0, content[:100])]) + _p_data(
        [(3, 0, content[100:200]), (3, 2, content[200:])]
    )
    return [
        request + _p_data([(1, 3, echo)]) + release,
        request + _p_data([(1, 1, echo[:20])]) + _p_data([(1, 3, echo[20:])]) + abort,
        request + store_pdus + store_pdus + _p_data([(1, 3, echo)]) + release,
        request + _p_data([(5, 3, action)]) + _p_data([(5, 2, content)]) + release,
        request + release,
    ]


# --- changes ------------------------------------------------------------------------------------------------------

_VRS = [
    b"AE",
    b"AS",
    b"AT",
    b"CS",
    b"DA",
    b"DS",
    b"FD",
    b"IS",
    b"LO",
    b"OB",
    b"OW",
    b"PN",
    b"SH",
    b"SQ",
    b"UI",
    b"UL",
    b"UN",
    b"US",
    b"UT",
]
_DATA_SET_TOKENS = [
    *(
        struct.pack(f"{order}I", value)
        for order in "<>"
        for value in (0, 1, 8, 0xFFFE, 0xFFFFFFFF, 0xFFFFFFFE, 1 << 31)
    ),
    *(struct.pack("<H", value) for value in (0, 1, 2, 3, 0xFFFF, 0xFFFE)),
    *_VRS,
    b"\xfe\xff\x00\xe0\xff\xff\xff\xff",
    b"\xfe\xff\x0d\xe0\0\0\0\0",
    b"\xfe\xff\xdd\xe0\0\0\0\0",
    b"\xff\xfe\xe0\x00\xff\xff\xff\xff",
    b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff",
    b"\x08\x00\x40\x11UN\0\0\xff\xff\xff\xff",
    b"\x08\x00\x40\x11\xff\xff\xff\xff",
    b"\x05\x20\x02\x14UN\0\0\x20\0\0\0",
    b"\x08\x00\x05\x00CS\x0e\x00ISO 2022 IR 87",
    b"\x08\x00\x05\x00CS\x04\x00GBK ",
    b"\x1b$B",
    b"\x10\x00\x10\x00PN\x04\x00a^b=",
    b"\x10\x00\x20\x00LO\x08\x00SECRET-1",
    b"\xe0\x7f\x10\x00OW\0\0",
    b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff",
    b"\x28\x00\x08\x00IS\x04\x009999",
    b"../../",
    b"\0",
    b"\\",
]
_STREAM_TOKENS = [
    *(bytes([kind, 0, 0, 0, 0, length]) for kind in range(1, 9) for length in (0, 4, 12)),
    b"\xff\xff\xff\xff",
    b"\0\0\0\2",
    b"\0\0\0\1",
    *(bytes([context, control]) for context in (1, 3, 5) for control in range(4)),
    *(struct.pack("<H", value) for value in (0x101, 1, 0x8001, 0x30, 0x130, 0x100, 0xFFF)),
]
_CODESTREAM_TOKENS = [
    *(
        bytes([0xFF, marker])
        for marker in (0x4F, 0x51, 0x52, 0x64, 0x90, 0x93, 0xC0, 0xC3, 0xD0, 0xD8, 0xD9, 0xDA, 0xE0, 0xEE)
    ),
    *(b"\0\0", b"\0\1", b"\0\2", b"\xff\xff", b"\0\0\0\x0e", b"JFIF\0", b"Adobe", b"\0\0\0\x0cjP  \r\n\x87\n", b"jp2c"),
]
TOKENS: Mapping[str, Sequence[bytes]] = {
    "inspect": _DATA_SET_TOKENS,
    "flow": _DATA_SET_TOKENS,
    "association": _STREAM_TOKENS,
    "codestream": _CODESTREAM_TOKENS,
}
OPERATIONS = ("set", "insert", "delete", "cut", "repeat", "splice", "add")
LONGEST_CHANGED_BYTES = 1 << 16

Change = tuple[str, int, bytes]
"""Operation, place (any number; it is taken modulo the length), bytes."""


def changed(case: bytes, changes: Sequence[Change], other: bytes = b"") -> bytes:
    """A case with changes made, one after the other; `other` is what a splice takes its tail from."""
    for operation, place, token in changes:
        at = place % (len(case) + 1)
        if operation == "set":
            case = case[:at] + token + case[at + len(token) :]
        elif operation == "insert":
            case = case[:at] + token + case[at:]
        elif operation == "delete":
            case = case[:at] + case[at + len(token) :]
        elif operation == "cut":
            case = case[:at]
        elif operation == "repeat":
            case = case[:at] + case[at : at + 4 * len(token)] * 3 + case[at + 4 * len(token) :]
        elif operation == "splice":
            case = case[:at] + other[place % (len(other) + 1) :]
        elif at < len(case):
            case = case[:at] + bytes([(case[at] + len(token) - 3) % 256]) + case[at + 1 :]
    return case[:LONGEST_CHANGED_BYTES]


def random_changes(target: str, chance: random.Random) -> list[Change]:
    """One to six changes."""
    tokens = TOKENS[target]
    changes = []
    for _ in range(chance.choice((1, 1, 1, 2, 2, 3, 4, 6))):
        operation = chance.choices(OPERATIONS, (8, 4, 2, 1, 2, 1, 4))[0]
        token = chance.choice(tokens) if chance.random() < 0.7 else chance.randbytes(chance.choice((1, 1, 2, 4, 9)))
        changes.append((operation, chance.getrandbits(16), token))
    return changes


def random_case(target: str, number: int, seed: int, start: Sequence[bytes]) -> tuple[bytes, bytes, list[Change]]:
    """Case `number` of a run: what it starts from, the other seed, and its changes. The same at any time."""
    chance = random.Random(f"{seed} {target} {number}")
    return chance.choice(start), chance.choice(start), random_changes(target, chance)
