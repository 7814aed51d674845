"""A multipart body, read as it arrives: no part is held in memory, and every count and length has a limit.

What looks for boundaries is python-multipart's streaming parser; this adds what it leaves to its caller (a preamble
before the first boundary, an end that never comes) and gives parts to a receiver.

References
----------
RFC 2046 section 5.1 (multipart), RFC 2387 (multipart/related). PS3.18 section 8.6.1.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

LONGEST_BOUNDARY = 200
"""RFC 2046 allows 70 characters; Orthanc sends 73."""


class MultipartError(Exception):
    """The body is not the multipart message that its header promised; says how, and quotes nothing of it."""


class TooManyPartsError(MultipartError):
    """More parts than are taken at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MultipartLimits:
    """What a message may hold. The length of a part is the receiver's business."""

    parts: int = 10_000
    headers: int = 16
    """Of one part."""
    header_bytes: int = 4096
    """Of one header of a part."""
    outside_bytes: int = 64 * 1024
    """Before the first boundary, and again after the last."""


class PartReceiver(Protocol):
    """What takes parts in, one after the other."""

    def begin(self, headers: Mapping[str, str]) -> None:
        """A part begins; `headers` by lower-case name."""

    def data(self, piece: memoryview) -> None:
        """More of the part. The memory is used again after the call."""

    def end(self) -> None:
        """The part is whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaType:
    """A media type with its parameters (RFC 9110 section 8.3.1)."""

    name: str
    """Lower case; empty where there was none."""
    parameters: Mapping[str, str]

    @classmethod
    def parse(cls, text: str) -> MediaType:
        """Read a Content-Type or one member of an Accept header."""
        name, parameters = parse_options_header(text)
        return cls(
            name=name.decode("latin-1").strip().lower(),
            parameters={key.decode("latin-1").lower(): value.decode("latin-1") for key, value in parameters.items()},
        )


@dataclass(slots=True)
class _HeaderBuffer:
    name: bytearray = field(default_factory=bytearray)
    value: bytearray = field(default_factory=bytearray)
    headers: dict[str, str] = field(default_factory=dict)


class MultipartReader:
    """Give the parts of one message to `receiver`, in order, while pieces of the message are fed.

    Raises
    ------
    MultipartError
        The boundary is empty or too long.
    """

    def __init__(self, boundary: str, receiver: PartReceiver, limits: MultipartLimits | None = None) -> None:
        if not 0 < len(boundary) <= LONGEST_BOUNDARY:
            raise MultipartError(f"the boundary must have 1 to {LONGEST_BOUNDARY} characters")
        self._limits = limits or MultipartLimits()
        self._receiver = receiver
        self._delimiter = b"\r\n--" + boundary.encode("latin-1", "replace")
        # The first boundary may stand at the very start, without the line end that belongs to all others.
        self._preamble: bytearray | None = bytearray(b"\r\n")
        self._header = _HeaderBuffer()
        self._epilogue_bytes = 0
        self._in_part = False
        self.parts = 0
        self.ended = False
        self._parser = MultipartParser(
            boundary.encode("latin-1", "replace"),
            callbacks={
                "on_part_begin": self._on_part_begin,
                "on_header_field": self._on_header_field,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": self._on_part_data,
                "on_part_end": self._on_part_end,
                "on_end": self._on_end,
            },
            max_header_count=self._limits.headers,
            max_header_size=self._limits.header_bytes,
        )

    def feed(self, piece: bytes) -> None:
        """Read on.

        Raises
        ------
        MultipartError
            A limit was exceeded, or what stands at a boundary or in a header cannot stand there.
        """
        if self.ended:
            self._epilogue_bytes += len(piece)
            if self._epilogue_bytes > self._limits.outside_bytes:
                raise MultipartError(f"more than {self._limits.outside_bytes} bytes after the last boundary")
            return
        if self._preamble is not None:
            found = self._skip_preamble(piece)
            if found is None:
                return
            piece = found
        try:
            self._parser.write(piece)
        except FormParserError as error:
            where = "header" if self._in_part else "boundary"
            raise MultipartError(f"part {self.parts}: a malformed or too long {where}") from error

    def finish(self) -> None:
        """The message has ended. Raises :class:`MultipartError` where its last boundary never came."""
        if not self.ended:
            what = "no boundary was found" if self._preamble is not None else "it ends before its last boundary"
            raise MultipartError(f"the multipart body is cut short: {what}")

    def _skip_preamble(self, piece: bytes) -> bytes | None:
        """What follows the text before the first boundary, from that boundary on, once it is there."""
        assert self._preamble is not None
        searched_from = max(0, len(self._preamble) - len(self._delimiter) + 1)
        self._preamble += piece
        at = self._preamble.find(self._delimiter, searched_from)
        if at < 0:
            if len(self._preamble) > self._limits.outside_bytes:
                raise MultipartError(f"no boundary in the first {self._limits.outside_bytes} bytes")
            return None
        found = bytes(memoryview(self._preamble)[at + 2 :])
        self._preamble = None
        return found

    def _on_part_begin(self) -> None:
        self.parts += 1
        if self.parts > self._limits.parts:
            raise TooManyPartsError(f"more than {self._limits.parts} parts")
        self._header = _HeaderBuffer()
        self._in_part = True

    def _on_header_field(self, piece: bytes, start: int, end: int) -> None:
        self._header.name += piece[start:end]

    def _on_header_value(self, piece: bytes, start: int, end: int) -> None:
        self._header.value += piece[start:end]

    def _on_header_end(self) -> None:
        name = self._header.name.decode("latin-1").lower()
        self._header.headers[name] = self._header.value.decode("latin-1").strip()
        self._header.name.clear()
        self._header.value.clear()

    def _on_headers_finished(self) -> None:
        self._receiver.begin(self._header.headers)

    def _on_part_data(self, piece: bytes, start: int, end: int) -> None:
        self._receiver.data(memoryview(piece)[start:end])

    def _on_part_end(self) -> None:
        self._in_part = False
        self._receiver.end()

    def _on_end(self) -> None:
        self.ended = True
