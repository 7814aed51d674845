"""The multipart reader: the same parts wherever the pieces are cut, and an end to everything that has none."""

from __future__ import annotations

from collections.abc import Mapping
from email import message_from_bytes
from email.message import Message
from typing import cast

import pytest

from gateway.multipart import LONGEST_BOUNDARY, MultipartError, MultipartLimits, MultipartReader, TooManyPartsError

CONTENTS = (
    b"\r\n--b",
    b"\r\r\n--b\r\n-b1",
    b"\n--b1--\r\n--bx",
    b"x\r\n--b2\r\n",
    b"",
    b"\r\n-\r\n--b\r",
    b"--b1\r",
)
"""Almost boundaries, in every part of the data."""


class Parts:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.headers: list[Mapping[str, str]] = []
        self.contents: list[bytearray] = []
        self.whole = 0

    def begin(self, headers: Mapping[str, str]) -> None:
        self.headers.append(headers)
        self.contents.append(bytearray())

    def data(self, piece: memoryview) -> None:
        self.contents[-1] += piece

    def end(self) -> None:
        self.whole += 1


def message(*contents: bytes) -> bytes:
    parts = b"".join(b"--b1\r\nContent-Type: application/dicom\r\n\r\n" + each + b"\r\n" for each in contents)
    return b"before\r\n" + parts + b"--b1--\r\nafter"


def read(pieces: list[bytes], limits: MultipartLimits | None = None) -> Parts:
    parts = Parts()
    reader = MultipartReader("b1", parts, limits)
    for piece in pieces:
        reader.feed(piece)
    reader.finish()
    return parts


def test_the_same_parts_wherever_the_pieces_are_cut() -> None:
    body = message(*CONTENTS)
    for size in range(1, len(body) + 1):
        for pieces in ([body[:size], body[size:]], [body[at : at + size] for at in range(0, len(body), size)]):
            parts = read(pieces)
            assert tuple(bytes(each) for each in parts.contents) == CONTENTS
            assert parts.whole == len(CONTENTS)
            assert all(each == {"content-type": "application/dicom"} for each in parts.headers)


def test_as_the_standard_library_reads_it() -> None:
    texts = (b"one", b"two\r\n-- b1", b"")
    head = b"Content-Type: multipart/related; boundary=b1\r\n\r\n"
    expected = [
        cast(bytes, cast(Message, part).get_payload(decode=True))
        for part in message_from_bytes(head + message(*texts)).get_payload()
    ]
    assert [bytes(each) for each in read([message(*texts)]).contents] == expected


@pytest.mark.parametrize("at", [0, 3, 20, 60, 200])
def test_a_cut_message_has_no_end(at: int) -> None:
    body = message(*CONTENTS)
    with pytest.raises(MultipartError):
        read([body[:at]])


@pytest.mark.parametrize(
    ("body", "limits"),
    [
        (b"x" * 2_000, MultipartLimits(outside_bytes=1_000)),
        (message(b"a"), MultipartLimits(headers=0)),
        (b"--b1\r\nX: " + b"y" * 300 + b"\r\n\r\n", MultipartLimits(header_bytes=200)),
        (b"--b1\r\nno header\r\n\r\n", MultipartLimits()),
        (b"--b1\nX: y\n\n", MultipartLimits()),
    ],
)
def test_limits_and_malformed_headers(body: bytes, limits: MultipartLimits) -> None:
    with pytest.raises(MultipartError):
        read([body], limits)


def test_an_epilogue_has_a_limit() -> None:
    with pytest.raises(MultipartError, match="after the last boundary"):
        read([message(b"a"), b"x" * 2_000], MultipartLimits(outside_bytes=1_000))


def test_parts_are_counted() -> None:
    assert read([message(b"", b"", b"")], MultipartLimits(parts=3)).whole == 3
    with pytest.raises(TooManyPartsError):
        read([message(b"", b"", b"", b"")], MultipartLimits(parts=3))


@pytest.mark.parametrize("boundary", ["", "b" * (LONGEST_BOUNDARY + 1)])
def test_a_boundary_has_a_length(boundary: str) -> None:
    with pytest.raises(MultipartError):
        MultipartReader(boundary, Parts())
