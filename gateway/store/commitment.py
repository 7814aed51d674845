"""Storage commitment transactions: what peers asked of the gateway, and what it asks of destinations.

A transaction is ``pending`` (the provider owes the answer; the user has not asked yet), ``asked`` (a destination has
the request), ``done`` or ``dead``. A delivery names the transaction that asks for it in ``commitment_key``, so that
each is in one at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, or_, select, update

from gateway.store.engine import Store
from gateway.store.intake import new_key
from gateway.store.schema import commitment, delivery, instance, result

PROVIDER, USER = "provider", "user"
_CHUNK = 500
MOST_OPEN = 1000
"""Requests of one peer that wait for their answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A SOP instance that is spoken of."""

    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Transaction:
    """One storage commitment transaction."""

    commitment_key: str
    transaction_uid: str
    partner: str
    references: tuple[Reference, ...]
    attempts: int
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredInstance:
    """What the store says of an instance."""

    instance_key: str
    sop_class_uid: str
    sop_instance_uid: str
    sha256: str
    size_bytes: int
    path: str
    removed: bool


class Entry(Enum):
    """What became of a peer's request."""

    ENTERED = "entered"
    OTHER_CONTENT = "other content"
    """A transaction of that UID is open, for other instances."""
    TOO_MANY = "too many"


def enter_request(
    store: Store, *, partner: str, transaction_uid: str, references: Sequence[Reference], now: datetime
) -> Entry:
    """Write down a peer's request; the same one again stays one, and is answered again if it had been."""
    instances = _as_json(references)
    with store.write() as connection:
        same = (
            commitment.c.role == PROVIDER,
            commitment.c.partner == partner,
            commitment.c.transaction_uid == transaction_uid,
        )
        known = connection.execute(
            select(commitment.c.commitment_key, commitment.c.state, commitment.c.instances).where(*same)
        ).one_or_none()
        if known is not None:
            if known.state == "pending":
                return Entry.ENTERED if known.instances == instances else Entry.OTHER_CONTENT
            connection.execute(
                update(commitment)
                .where(commitment.c.commitment_key == known.commitment_key)
                .values(
                    state="pending",
                    instances=instances,
                    attempts=0,
                    next_attempt_at=now,
                    last_error="",
                    created_at=now,
                    done_at=None,
                )
            )
            return Entry.ENTERED
        waiting = connection.execute(
            select(func.count())
            .select_from(commitment)
            .where(commitment.c.role == PROVIDER, commitment.c.partner == partner, commitment.c.state == "pending")
        ).scalar_one()
        if waiting >= MOST_OPEN:
            return Entry.TOO_MANY
        _add(connection, PROVIDER, partner, transaction_uid, instances, now, created_at=now)
    return Entry.ENTERED


def due_transactions(store: Store, now: datetime, *, role: str, partner: str, limit: int) -> tuple[Transaction, ...]:
    """Pending transactions whose time has come, longest waiting first."""
    return _transactions(store, now, role=role, partner=partner, state="pending", limit=limit)


def overdue_transactions(store: Store, now: datetime, *, partner: str, limit: int) -> tuple[Transaction, ...]:
    """Transactions that a destination was asked and has not answered in time."""
    return _transactions(store, now, role=USER, partner=partner, state="asked", limit=limit)


def _transactions(
    store: Store, now: datetime, *, role: str, partner: str, state: str, limit: int
) -> tuple[Transaction, ...]:
    with store.read() as connection:
        rows = connection.execute(
            select(commitment)
            .where(
                commitment.c.state == state,
                commitment.c.next_attempt_at <= now,
                commitment.c.role == role,
                commitment.c.partner == partner,
            )
            .order_by(commitment.c.next_attempt_at, commitment.c.commitment_key)
            .limit(limit)
        ).all()
    return tuple(_transaction(row) for row in rows)


def _transaction(row: Row[Any]) -> Transaction:
    return Transaction(
        commitment_key=row.commitment_key,
        transaction_uid=row.transaction_uid,
        partner=row.partner,
        references=tuple(
            Reference(sop_class_uid=sop_class_uid, sop_instance_uid=sop_instance_uid)
            for sop_class_uid, sop_instance_uid in row.instances
        ),
        attempts=row.attempts,
        created_at=row.created_at,
    )


def mark_done(store: Store, commitment_key: str, now: datetime) -> None:
    """The peer has the provider's answer."""
    with store.write() as connection:
        connection.execute(
            update(commitment)
            .where(commitment.c.commitment_key == commitment_key)
            .values(state="done", done_at=now, attempts=commitment.c.attempts + 1, last_error="")
        )


def mark_asked(store: Store, commitment_key: str, *, answer_by: datetime) -> None:
    """The destination has the request, and may have answered it already."""
    with store.write() as connection:
        connection.execute(
            update(commitment)
            .where(commitment.c.commitment_key == commitment_key, commitment.c.state == "pending")
            .values(state="asked", next_attempt_at=answer_by, attempts=commitment.c.attempts + 1, last_error="")
        )


def mark_failed(store: Store, commitment_key: str, *, error: str, next_attempt_at: datetime | None) -> None:
    """A try failed; ``next_attempt_at`` of ``None`` gives it up."""
    values: dict[str, object] = {"attempts": commitment.c.attempts + 1, "last_error": error[:500]}
    if next_attempt_at is None:
        values["state"] = "dead"
    else:
        values["next_attempt_at"] = next_attempt_at
    with store.write() as connection:
        connection.execute(
            update(commitment)
            .where(commitment.c.commitment_key == commitment_key, commitment.c.state.in_(("pending", "asked")))
            .values(**values)
        )


def stored_instances(store: Store, sop_instance_uids: Sequence[str]) -> dict[str, StoredInstance]:
    """What the store has of the instances named, by SOP Instance UID."""
    found: dict[str, StoredInstance] = {}
    for chunk in _chunks(sop_instance_uids):
        with store.read() as connection:
            rows = connection.execute(select(instance).where(instance.c.sop_instance_uid.in_(chunk))).all()
        for row in rows:
            found[row.sop_instance_uid] = StoredInstance(
                instance_key=row.instance_key,
                sop_class_uid=row.sop_class_uid,
                sop_instance_uid=row.sop_instance_uid,
                sha256=row.sha256,
                size_bytes=row.size_bytes,
                path=row.path,
                removed=row.removed_at is not None,
            )
    return found


# --- the gateway as user ------------------------------------------------------------------------------------------


def open_transaction(store: Store, *, destination: str, transaction_uid: str, limit: int, now: datetime) -> bool:
    """Make a transaction of delivered results that nobody has asked about yet; false when there are none."""
    with store.write() as connection:
        rows = connection.execute(
            select(delivery.c.delivery_id, result.c.sop_class_uid, result.c.sop_instance_uid)
            .join(result, result.c.result_key == delivery.c.result_key)
            .where(
                delivery.c.state == "delivered",
                delivery.c.destination == destination,
                delivery.c.committed_at.is_(None),
                delivery.c.commitment_key.is_(None),
            )
            .order_by(delivery.c.delivery_id)
            .limit(limit)
        ).all()
        if not rows:
            return False
        instances = [[row.sop_class_uid, row.sop_instance_uid] for row in rows]
        key = _add(connection, USER, destination, transaction_uid, instances, now, created_at=now)
        for chunk in _chunks([row.delivery_id for row in rows]):
            connection.execute(update(delivery).where(delivery.c.delivery_id.in_(chunk)).values(commitment_key=key))
    return True


def ask_again(store: Store, transaction: Transaction, *, transaction_uid: str, now: datetime) -> None:
    """Give up a transaction that was not answered in time for a new one about the same results.

    Its age passes on, so that asking ends at some time; an answer that comes late still counts.
    """
    with store.write() as connection:
        changed = connection.execute(
            update(commitment)
            .where(commitment.c.commitment_key == transaction.commitment_key, commitment.c.state == "asked")
            .values(state="dead", last_error="no answer in time; asked again")
        )
        if changed.rowcount == 0:
            return
        key = _add(
            connection,
            USER,
            transaction.partner,
            transaction_uid,
            _as_json(transaction.references),
            now,
            created_at=transaction.created_at,
        )
        connection.execute(
            update(delivery).where(delivery.c.commitment_key == transaction.commitment_key).values(commitment_key=key)
        )


def find_asked(store: Store, *, destinations: Sequence[str], transaction_uid: str) -> tuple[Transaction, str] | None:
    """The transaction of that UID that one of `destinations` was asked, and its state."""
    with store.read() as connection:
        row = connection.execute(
            select(commitment)
            .where(
                commitment.c.role == USER,
                commitment.c.partner.in_(destinations),
                commitment.c.transaction_uid == transaction_uid,
            )
            .limit(1)
        ).one_or_none()
    return None if row is None else (_transaction(row), str(row.state))


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """What an answer changed."""

    committed: int
    again: int
    """Results that are sent again."""
    dead: int
    """Results that are not: too much time has passed."""


def settle(
    store: Store,
    transaction: Transaction,
    *,
    committed: Sequence[str],
    failed: Sequence[tuple[str, str]],
    now: datetime,
    first_delay: timedelta,
    longest_delay: timedelta,
    give_up_after: timedelta,
) -> Settled:
    """Take a destination's answer in, once, in one transaction of the store.

    Parameters
    ----------
    committed
        SOP Instance UIDs for which it takes responsibility.
    failed
        SOP Instance UIDs for which it does not, with the reason in words. They are sent again, the pause doubling with
        each try; after `give_up_after` they are dead letters.
    """
    counts = {"committed": 0, "again": 0, "dead": 0}
    reasons = dict(failed)
    with store.write() as connection:
        closed = connection.execute(
            update(commitment)
            .where(commitment.c.commitment_key == transaction.commitment_key, commitment.c.state != "done")
            .values(state="done", done_at=now, last_error="" if not failed else f"{len(failed)} not committed")
        )
        if closed.rowcount == 0:
            return Settled(**counts)
        # A newer transaction may be about the same results by now (a late answer): the deliveries are found by UID.
        for chunk in _chunks([*committed, *reasons]):
            rows = connection.execute(
                select(
                    *(delivery.c.delivery_id, delivery.c.attempts, delivery.c.created_at, delivery.c.commitment_key),
                    result.c.sop_instance_uid,
                )
                .join(result, result.c.result_key == delivery.c.result_key)
                .where(
                    delivery.c.destination == transaction.partner,
                    delivery.c.state == "delivered",
                    delivery.c.committed_at.is_(None),
                    result.c.sop_instance_uid.in_(chunk),
                )
            ).all()
            for row in rows:
                reason = reasons.get(row.sop_instance_uid)
                values: dict[str, object]
                if reason is None:
                    values = {"committed_at": now}
                    counts["committed"] += 1
                elif row.commitment_key != transaction.commitment_key:
                    continue  # it has been sent or asked for again since
                elif now > row.created_at + give_up_after:
                    values = {"state": "dead", "last_error": reason, "commitment_key": None}
                    counts["dead"] += 1
                else:
                    delay = min(first_delay * 2 ** min(row.attempts, 32), longest_delay)
                    values = {"state": "pending", "last_error": reason, "commitment_key": None}
                    values["next_attempt_at"] = now + delay
                    counts["again"] += 1
                connection.execute(update(delivery).where(delivery.c.delivery_id == row.delivery_id).values(**values))
        _close_answered(connection, transaction.partner, now)
    return Settled(**counts)


def _close_answered(connection: Connection, destination: str, now: datetime) -> None:
    """End open transactions of which every result has been committed by the late answer to an earlier one."""
    waits = select(delivery.c.delivery_id).where(
        delivery.c.commitment_key == commitment.c.commitment_key, delivery.c.committed_at.is_(None)
    )
    connection.execute(
        update(commitment)
        .where(
            commitment.c.role == USER,
            commitment.c.partner == destination,
            commitment.c.state.in_(("pending", "asked")),
            ~waits.exists(),
        )
        .values(state="done", done_at=now)
    )


def forget_old(store: Store, before: datetime) -> int:
    """Remove transactions that ended and were made before that time; returns how many."""
    with store.write() as connection:
        gone = connection.execute(
            delete(commitment).where(
                commitment.c.created_at < before, or_(commitment.c.state == "done", commitment.c.state == "dead")
            )
        )
    return gone.rowcount


def _add(
    connection: Connection,
    role: str,
    partner: str,
    transaction_uid: str,
    instances: list[list[str]],
    now: datetime,
    *,
    created_at: datetime,
) -> str:
    key = new_key()
    connection.execute(
        insert(commitment).values(
            commitment_key=key,
            role=role,
            transaction_uid=transaction_uid,
            partner=partner,
            instances=instances,
            state="pending",
            next_attempt_at=now,
            created_at=created_at,
        )
    )
    return key


def _as_json(references: Sequence[Reference]) -> list[list[str]]:
    return [[each.sop_class_uid, each.sop_instance_uid] for each in references]


def _chunks(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), _CHUNK):
        yield values[start : start + _CHUNK]
