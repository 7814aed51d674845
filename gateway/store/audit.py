"""Who did what: an append-only record."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, insert, select

from gateway.store.engine import Store
from gateway.store.schema import audit


def record(
    store: Store, *, now: datetime, actor: str, action: str, subject: str = "", address: str = "", detail: str = ""
) -> None:
    """Add one entry.

    Parameters
    ----------
    actor
        An account's name, ``token:PURPOSE``, or ``command`` for the command line.
    action
        What was done, as ``login``, ``login failed``, ``hold``, ``token made``.
    subject
        What it was done to, by the gateway's own key or name; never PHI.
    """
    with store.write() as connection:
        add_entry(connection, now=now, actor=actor, action=action, subject=subject, address=address, detail=detail)


def add_entry(
    connection: Connection,
    *,
    now: datetime,
    actor: str,
    action: str,
    subject: str = "",
    address: str = "",
    detail: str = "",
) -> None:
    """As :func:`record`, in the transaction of what was done."""
    connection.execute(
        insert(audit).values(
            at=now,
            actor=actor[:128],
            address=address[:64],
            action=action[:64],
            subject=subject[:192],
            detail=detail,
        )
    )


def entries(store: Store, *, limit: int, offset: int = 0, action: str | None = None) -> list[dict[str, Any]]:
    """The newest entries first; where `action` is given, those of it alone."""
    with store.read() as connection:
        statement = select(audit).order_by(audit.c.audit_id.desc()).limit(limit).offset(offset)
        if action is not None:
            statement = statement.where(audit.c.action == action)
        return [dict(row) for row in connection.execute(statement).mappings()]
