"""Comparisons that were made: what approvals rest on. Rows are added and never changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import insert, select

from gateway.store.audit import add_entry
from gateway.store.engine import Store
from gateway.store.schema import comparison


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonRow:
    """One comparison. The report lies in the data folder."""

    comparison_key: str
    model_name: str
    version: int
    """The one that is asked about."""
    baseline_name: str
    """Empty: compared with the truth alone."""
    baseline_version: int | None
    studies: str
    """The query or folder."""
    case_count: int
    """Units that were evaluated; of several findings, the fewest."""
    truth_count: int
    """Those with truth; of several findings, the fewest."""
    verdict: str
    """``met``, ``not met``, ``not judged``."""
    verdicts: Sequence[Mapping[str, Any]]
    """Of each criterion, as in the report."""
    bundle_sha256: str
    baseline_sha256: str
    folder: str
    """Relative to the data folder."""
    report_sha256: str
    """Of ``report.json``."""
    created_at: datetime
    created_by: str


def add_comparison(store: Store, row: ComparisonRow) -> None:
    """Take in a comparison whose report lies in its folder, and write down who made it."""
    held = f" against {row.baseline_name}@{row.baseline_version}" if row.baseline_name else ""
    with store.write() as connection:
        connection.execute(insert(comparison).values(**asdict(row)))
        add_entry(
            connection,
            now=row.created_at,
            actor=row.created_by,
            action="compare",
            subject=row.comparison_key,
            detail=f"{row.model_name}@{row.version}{held}: {row.verdict}",
        )


def find_comparison(store: Store, comparison_key: str) -> ComparisonRow | None:
    """The comparison of that key; ``None`` where there is none."""
    statement = select(comparison).where(comparison.c.comparison_key == comparison_key)
    with store.read() as connection:
        row = connection.execute(statement).mappings().one_or_none()
    return None if row is None else ComparisonRow(**row)


def list_comparisons(
    store: Store, *, model_name: str | None = None, version: int | None = None, limit: int = 200
) -> tuple[ComparisonRow, ...]:
    """Comparisons, newest first."""
    statement = select(comparison).order_by(comparison.c.created_at.desc(), comparison.c.comparison_key).limit(limit)
    if model_name is not None:
        statement = statement.where(comparison.c.model_name == model_name)
    if version is not None:
        statement = statement.where(comparison.c.version == version)
    with store.read() as connection:
        return tuple(ComparisonRow(**row) for row in connection.execute(statement).mappings())
