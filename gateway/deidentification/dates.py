"""Dates: which are legal, and how those of a patient move into the past by whole days.

Whole days keep times of day and all intervals between a patient's dates. Dates that are incomplete (a year, a month)
are moved from their middle and cut again, so that they stay as vague as they were.

References
----------
PS3.5 Table 6.2-1 (DA, DT, TM), also the forms that it calls retired: ``yyyy.mm.dd`` and ``hh:mm:ss``; PS3.15 E.3.6.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date

_DAY = re.compile(rb"(\d{4})(\.?)(\d\d)\2(\d\d)")
_MOMENT = re.compile(
    rb"(\d{4})(?:(\d\d)(?:(\d\d)((?:[01]\d|2[0-3])(?:[0-5]\d(?:(?:[0-5]\d|60)(?:\.\d{1,6})?)?)?)?)?)?([+-]\d{4})?"
)
_TIME = re.compile(rb"(?:[01]\d|2[0-3])(?::?[0-5]\d(?::?(?:[0-5]\d|60)(?:\.\d{1,6})?)?)?")
_EARLIEST_OFFSET, _LATEST_OFFSET = -1200, 1400  # hours and minutes from UTC, PS3.5 6.2

_LONGEST_BYTES = 54
"""Of a range of two DT (PS3.5 Table 6.2-1)."""

_Part = Callable[[bytes, int], "bytes | None"]


def legal(vr: str, value: bytes) -> bytes | None:
    """The value as it is if its dates or times are legal; illegal ones among several are emptied; None if all are."""
    return shifted(vr, value, 0)


def shifted(vr: str, value: bytes, days: int) -> bytes | None:
    """A value of VR DA, DT or TM with its dates `days` earlier; times of day stay.

    Of several values the illegal ones are emptied, so that the others keep their places. A range keeps its form.
    None if no legal date is left, or a date would come before year 1.
    """
    move = {"DA": _day, "DT": _moment, "TM": _time}[vr]
    parts = value.rstrip(b"\x00 ").split(b"\\")
    moved = [_single_or_range(part.strip(b" "), days, move) if part.strip(b" ") else b"" for part in parts]
    if not any(moved):
        return None
    if not days and None not in moved:
        return value
    joined = b"\\".join(b"" if part is None else part for part in moved)
    return joined + b" " * (len(joined) % 2)


def _single_or_range(part: bytes, days: int, move: _Part) -> bytes | None:
    if len(part) > _LONGEST_BYTES:
        return None
    single = move(part, days)
    if single is not None:
        return single
    for dash in re.finditer(rb"-", part):  # a DT may have a dash in its offset too
        ends = part[: dash.start()].rstrip(b" "), part[dash.end() :].lstrip(b" ")
        moved = [move(end, days) if end else b"" for end in ends]
        if any(ends) and moved[0] is not None and moved[1] is not None:
            return moved[0] + b"-" + moved[1]
    return None


def _day(text: bytes, days: int) -> bytes | None:
    found = _DAY.fullmatch(text)
    if found is None:
        return None
    year, dot, month, day = found.groups()
    moved = _earlier(int(year), int(month), int(day), days)
    return None if moved is None else dot.join((b"%04d" % moved.year, b"%02d" % moved.month, b"%02d" % moved.day))


def _moment(text: bytes, days: int) -> bytes | None:
    found = _MOMENT.fullmatch(text)
    if found is None:
        return None
    year, month, day, time_of_day, offset = found.groups()
    if offset and not (_EARLIEST_OFFSET <= int(offset) <= _LATEST_OFFSET and int(offset[3:]) < 60):
        return None
    moved = _earlier(int(year), int(month or 7), int(day or (15 if month else 2)), days)
    if moved is None:
        return None
    pieces = [b"%04d" % moved.year, b"%02d" % moved.month if month else b"", b"%02d" % moved.day if day else b""]
    return b"".join([*pieces, time_of_day or b"", offset or b""])


def _time(text: bytes, days: int) -> bytes | None:
    return text if _TIME.fullmatch(text) else None


def _earlier(year: int, month: int, day: int, days: int) -> date | None:
    try:
        return date.fromordinal(date(year, month, day).toordinal() - days)
    except ValueError:  # no such day, or before year 1
        return None
