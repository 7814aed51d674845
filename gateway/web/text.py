"""DICOM values and the store's values as a person reads them."""

from __future__ import annotations

import re
from datetime import date, datetime
from typing import Any


def person_name(value: str) -> str:
    """VR PN (PS3.5 section 6.2.1) as ``Family, Given Middle``; the first component group that is not empty."""
    group = next((group for group in value.split("=") if group.strip("^ ")), "")
    family, given, middle, *_ = [*(part.strip() for part in group.split("^")), "", "", ""]
    return ", ".join(part for part in (family, f"{given} {middle}".strip()) if part)


def dicom_date(value: str) -> str:
    """VR DA as ``2026-01-05``; anything else as it came."""
    parsed = _date(value)
    return parsed.isoformat() if parsed else value


def dicom_time(value: str) -> str:
    """VR TM as ``10:11``; anything else as it came."""
    digits = value.split(".")[0]
    if len(digits) < 4 or not digits.isdigit():
        return value
    return f"{digits[:2]}:{digits[2:4]}"


def age_years(birth_date: str, at: str) -> str:
    """Whole years between two DA values; empty where either is missing."""
    born, then = _date(birth_date), _date(at)
    if born is None or then is None or then < born:
        return ""
    return str(then.year - born.year - ((then.month, then.day) < (born.month, born.day)))


def _date(value: str) -> date | None:
    try:
        return datetime.strptime(value.strip(), "%Y%m%d").date()  # noqa: DTZ007  a date has no zone
    except ValueError:
        return None


def bytes_text(count: int) -> str:
    """A size: ``1.4 MB``."""
    size = float(count)
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def p_text(value: float | None) -> str:
    """A p-value, never as a bare 0."""
    if value is None:
        return "–"
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"


def number_text(value: Any) -> str:
    """A measured number to three figures; text as it is."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def words(name: str) -> str:
    """A snake_case name for reading: ``centre_row_fraction`` as ``centre row``, ``grade2`` as ``grade 2``."""
    return re.sub(r"(?<=[a-z])(?=\d+$)", " ", name.removesuffix("_fraction").replace("_", " "))


def drift_text(drift: Any) -> str:
    """``no drift``, ``drift``, or ``not judged: 7 of 25 studies``."""
    if drift["state"] == "not judged" and drift.get("reason"):
        return f"not judged: {drift['reason']}"
    return str(drift["state"])
