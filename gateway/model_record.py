"""The record of the life of model versions: append-only, each entry sealed together with the one before it.

The seal is an HMAC-SHA-256 under a key that follows from the site key, so that who may write the database but does not
hold the key can neither add, change nor remove an entry unnoticed. A chain alone cannot show that its end was cut off;
so the newest entry's number and seal are also kept in a file of the data folder, and logged. Who can write both the
database and that file, and nobody else's log, can cut off the end: keep the log elsewhere (``docs/model-states.md``).

References
----------
Schneier and Kelsey, "Secure audit logs to support computer forensics", ACM TISSEC 2(2), 1999. RFC 5869 (HKDF).
21 CFR 11.10(e) and 11.50: time-stamped records, and what a signature states.
"""

from __future__ import annotations

import fcntl
import hmac
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from sqlalchemy import Connection, insert, select, text

from gateway.errors import StoreError
from gateway.settings import DeidentificationSettings
from gateway.site_key import load_site_key
from gateway.store import Store
from gateway.store.schema import model_record, model_version

logger = logging.getLogger(__name__)

HEAD_FILE = "model-record.head"
WATCH_INTERVAL_S = 600.0
SHOWN_PROBLEMS = 20
_PURPOSE = b"gateway model record seal"
_SEALED = (
    "record_id",
    "at",
    "actor",
    "action",
    "model_name",
    "version",
    "from_state",
    "to_state",
    "request_key",
    "reason",
    "detail",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordKey:
    """What seals the record, and where its head is kept beside the store."""

    secret: bytes = field(repr=False)
    """32 bytes."""
    data_dir: Path

    @property
    def head_path(self) -> Path:
        """The file that holds the number and the seal of the newest entry."""
        return self.data_dir / HEAD_FILE


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordEntry:
    """One entry: who did what with which version, and why."""

    record_id: int
    at: datetime
    actor: str
    action: str
    model_name: str
    version: int
    from_state: str
    to_state: str
    request_key: str | None
    reason: str
    detail: Mapping[str, Any]
    seal: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The newest entry, as it was written down beside the store."""

    record_id: int
    seal: str


def load_record_key(settings: DeidentificationSettings, data_dir: Path) -> RecordKey:
    """The key of the record, which follows from the site key.

    Raises
    ------
    DeidentificationError
        The site key is missing where the settings say, or weak, or others may read or write its file.
    """
    return record_key(load_site_key(settings, data_dir), data_dir)


def record_key(site_key: bytes, data_dir: Path) -> RecordKey:
    """The key of the record, from the site key (RFC 5869)."""
    secret = HKDF(algorithm=SHA256(), length=32, salt=None, info=_PURPOSE).derive(site_key)
    return RecordKey(secret=secret, data_dir=data_dir)


@contextmanager
def recording(store: Store, key: RecordKey) -> Iterator[Connection]:
    """A transaction that may :func:`append`; those of all processes follow one after the other.

    Raises
    ------
    StoreError
        The database refused, or could not be reached. Nothing was changed.
    """
    with store.write() as connection:
        take_turn(connection)
        yield connection
    keep_head(store, key)


def take_turn(connection: Connection) -> None:
    """Let no other transaction append until this one ends, so that what is read now is still so when it is written."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("LOCK TABLE model_record IN EXCLUSIVE MODE"))
    # On SQLite, Store.write() has the only turn.


def append(
    connection: Connection,
    *,
    key: RecordKey,
    at: datetime,
    actor: str,
    action: str,
    model_name: str,
    version: int,
    from_state: str = "",
    to_state: str = "",
    request_key: str | None = None,
    reason: str = "",
    detail: Mapping[str, Any] | None = None,
) -> int:
    """Add an entry, in the transaction of what it tells of; use :func:`recording` for that.

    Returns
    -------
    int
        The entry's number.
    """
    take_turn(connection)
    last = connection.execute(
        select(model_record.c.record_id, model_record.c.seal).order_by(model_record.c.record_id.desc()).limit(1)
    ).one_or_none()
    entry = {
        "record_id": 1 if last is None else last.record_id + 1,
        "at": at.astimezone(UTC),
        "actor": actor[:128],
        "action": action,
        "model_name": model_name,
        "version": version,
        "from_state": from_state,
        "to_state": to_state,
        "request_key": request_key,
        "reason": reason,
        "detail": json.loads(json.dumps(dict(detail or {}), allow_nan=False)),
    }
    seal = _seal(key, entry, "" if last is None else last.seal)
    connection.execute(insert(model_record).values(**entry, seal=seal))
    # The log may be kept where the database's administrator cannot change it.
    logger.info(
        "model record %d: %s %s@%d by %s, seal %s", entry["record_id"], action, model_name, version, actor, seal
    )
    return int(entry["record_id"])


def _seal(key: RecordKey, entry: Mapping[str, Any], before: str) -> str:
    """HMAC-SHA-256 over a canonical JSON of the entry and the seal of the one before, hexadecimal."""
    content = {name: entry[name] for name in _SEALED}
    content["at"] = entry["at"].astimezone(UTC).isoformat(timespec="microseconds")
    content["before"] = before
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hmac.digest(key.secret, canonical.encode("ascii"), "sha256").hex()


def entries(
    connection: Connection,
    *,
    model_name: str | None = None,
    version: int | None = None,
    request_key: str | None = None,
    limit: int | None = None,
) -> tuple[RecordEntry, ...]:
    """Entries, oldest first; with `limit`, the newest so many."""
    statement = select(model_record).order_by(model_record.c.record_id.desc())
    for column, wanted in (("model_name", model_name), ("version", version), ("request_key", request_key)):
        if wanted is not None:
            statement = statement.where(model_record.c[column] == wanted)
    if limit is not None:
        statement = statement.limit(limit)
    rows = connection.execute(statement).mappings()
    return tuple(RecordEntry(**{str(name): value for name, value in row.items()}) for row in rows)[::-1]


def is_sealed(connection: Connection, key: RecordKey, entry: RecordEntry) -> bool:
    """Whether this one entry is as it was sealed; :func:`verify` looks at the whole record."""
    before = ""
    if entry.record_id > 1:
        found = select(model_record.c.seal).where(model_record.c.record_id == entry.record_id - 1)
        before = connection.execute(found).scalar_one_or_none() or ""
    return hmac.compare_digest(_seal(key, _values(entry), before), entry.seal)


def _values(entry: RecordEntry) -> dict[str, Any]:
    return {name: getattr(entry, name) for name in _SEALED}


def verify(store: Store, key: RecordKey) -> list[str]:
    """What is wrong with the record, in sentences; empty where every entry is as it was sealed.

    Finds entries that were changed, deleted, inserted or put in another order, an end that was cut off, and versions
    whose state is another one than the record left them in.
    """
    problems: list[str] = []
    left: dict[tuple[str, int], str] = {}
    head = _read_head(key)
    seal_at_head: str | None = None
    before: str | None = ""
    next_id = 1
    with store.read() as connection:
        if connection.dialect.name == "postgresql":  # a move between the two readings is no tampering
            connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
        rows = connection.execute(select(model_record).order_by(model_record.c.record_id)).mappings()
        for row in rows:
            record_id = row["record_id"]
            if record_id != next_id:
                problems.append(_gap(next_id, record_id - 1))
                before = None  # the seal that this one was made with is not known
            if before is not None and not hmac.compare_digest(_seal(key, dict(row), before), row["seal"]):
                problems.append(f"entry {record_id} is not as it was sealed")
            if row["to_state"]:
                left[row["model_name"], row["version"]] = row["to_state"]
            if head is not None and record_id == head.record_id:
                seal_at_head = row["seal"]
            before, next_id = row["seal"], record_id + 1
        states = connection.execute(select(model_version.c.model_name, model_version.c.version, model_version.c.state))
        for name, version, state in states:
            recorded = left.get((name, version), "nowhere")
            if recorded != state:
                problems.append(f"{name}@{version} is {state} in the store, and the record left it {recorded}")
    problems.extend(_of_head(head, seal_at_head, last=next_id - 1))
    return problems


def _gap(first: int, last: int) -> str:
    return f"entry {first} is missing" if first == last else f"entries {first} to {last} are missing"


def _of_head(head: Head | None, seal_at_head: str | None, *, last: int) -> list[str]:
    if head is None:
        return [f"{HEAD_FILE} is missing, so that a cut-off end would not be seen"] if last else []
    if head.record_id > last:
        return [f"{_gap(last + 1, head.record_id)} at the end"]
    if seal_at_head is None or not hmac.compare_digest(head.seal, seal_at_head):
        return [f"entry {head.record_id} is another one than was written down in {HEAD_FILE}"]
    return []


def keep_head(store: Store, key: RecordKey) -> None:
    """Write down the newest entry's number and seal beside the store, where the store has gone on since.

    The head never goes back, nor on from an entry that the store does not hold any more: :func:`verify` says so then.
    A file that cannot be written costs nothing else; the next one that can catches up.
    """
    try:
        with (key.data_dir / f".{HEAD_FILE}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            head = _read_head(key)
            with store.read() as connection:
                columns = select(model_record.c.record_id, model_record.c.seal)
                last = connection.execute(columns.order_by(model_record.c.record_id.desc()).limit(1)).one_or_none()
                known = None
                if head is not None:
                    known = connection.execute(columns.where(model_record.c.record_id == head.record_id)).one_or_none()
            if head is not None and (known is None or known.seal != head.seal):
                logger.error(
                    "the model record does not hold entry %d as it was: run gateway models record --verify",
                    head.record_id,
                )
            elif last is not None and (head is None or last.record_id > head.record_id):
                _write_head(key, Head(record_id=last.record_id, seal=last.seal))
    except (OSError, StoreError) as error:
        logger.error("%s could not be written: %s", HEAD_FILE, error)


class RecordWatch:
    """Looks at the whole record now and then, so that what was tampered with is seen although nobody asks."""

    def __init__(self, store: Store, key: RecordKey) -> None:
        self._store = store
        self._key = key
        self._problems: list[str] = []
        self._due_at = 0.0

    def look(self, now_s: float) -> None:
        """Verify where it is due, by a clock that only goes on; what is wrong is logged when it changes.

        Raises
        ------
        StoreError
            The record cannot be read; it is tried again at the next look.
        """
        if now_s < self._due_at:
            return
        found = verify(self._store, self._key)
        self._due_at = now_s + WATCH_INTERVAL_S
        if found != self._problems:
            for each in found:
                logger.error("the model record is not as it was written: %s", each)
        self._problems = found

    def detail(self) -> dict[str, Any]:
        """What the monitor reports: nothing where all is as it was written."""
        return {"model_record": {"problems": self._problems[:SHOWN_PROBLEMS]}} if self._problems else {}


def _read_head(key: RecordKey) -> Head | None:
    """The head as written down; ``None`` where there is none that can be read."""
    try:
        found = json.loads(key.head_path.read_text(encoding="ascii"))
        return Head(record_id=int(found["record_id"]), seal=str(found["seal"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_head(key: RecordKey, head: Head) -> None:
    unfinished = key.head_path.with_name(f"{HEAD_FILE}.new")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as stream:
        stream.write(json.dumps({"record_id": head.record_id, "seal": head.seal}) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    unfinished.replace(key.head_path)
