"""The way back: from a pseudonym to the patient and study it stands for, sealed.

::

    site or vault key -> key-encryption key -> wraps a data key per patient -> seals each of the patient's studies

Each patient has a data key of its own, random, wrapped by the key-encryption key; each study's identity is sealed with
it. So another key-encryption key costs one small row a patient, and a patient whose data key is deleted is gone, in
every copy of the sealed rows too. What is sealed is bound to its pseudonym, study and kind: a row that is put in
another's place does not open.

The vault lies in a file or database of its own, so that a dump of the store holds no way back.

References
----------
NIST SP 800-38D (AES-GCM, 96-bit random nonces); RFC 5869 (HKDF); PS3.15 E.1.1 (re-identification by who may).
"""

from __future__ import annotations

import hashlib
import hmac
import io
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydicom import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset
from sqlalchemy import (
    Column,
    Connection,
    Engine,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    create_engine,
    delete,
    event,
    func,
    insert,
    inspect,
    select,
    update,
)
from sqlalchemy.exc import SQLAlchemyError

from gateway.errors import IdentityError, VaultError
from gateway.result_header import copy_identity
from gateway.store.schema import Utc
from gateway.vault_keys import Keyring

SCHEMA_VERSION = 1
NONCE_BYTES = 12
DATA_KEY_BYTES = 32
BUSY_TIMEOUT_S = 30
ROWS_A_STEP = 200
_KEY_HEXADECIMAL = 32

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)

vault_state = Table(
    "vault_state",
    metadata,
    Column("row", Integer, primary_key=True),  # one row
    Column("schema_version", Integer, nullable=False),
    Column("key_id", String(16), nullable=False),  # of the key that wraps what is new
)
vault_patient = Table(
    "vault_patient",
    metadata,
    Column("pseudonym", String(64), primary_key=True),
    Column("key_id", String(16), nullable=False, index=True),
    Column("wrapped_key", LargeBinary, nullable=False),
    Column("made_at", Utc, nullable=False),
)
vault_study = Table(
    "vault_study",
    metadata,
    Column("study_key", String(32), primary_key=True),
    Column("pseudonym", String(64), nullable=False, index=True),
    Column("sealed", LargeBinary, nullable=False),
    Column("digest", String(64), nullable=False),  # keyed, of what is sealed: an unchanged identity is not written again
    Column("sealed_at", Utc, nullable=False),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedIdentity:
    """Who and what a study belongs to, as received. Holds PHI."""

    pseudonym: str
    study_key: str
    instance_key: str
    """The image that it was taken from."""
    header: Dataset
    """Patient and study attributes, their bytes and character set as received: see :func:`copy_identity`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VaultStatus:
    """Counts, for ``gateway vault status``."""

    patients: int
    studies: int
    key_id: str
    patients_by_key_id: Mapping[str, int]


class Vault:
    """One process's way into the vault; its methods may be called by many threads.

    Raises
    ------
    VaultError
        The vault cannot be reached, is of a later version, or was sealed with a key that is not at hand.
    """

    def __init__(self, url: str, data_dir: Path, keyring: Keyring) -> None:
        self._keyring = keyring
        self._path = None if url else data_dir / "vault.db"
        try:
            if self._path is not None:
                _make_private(self._path)
            self._engine = create_engine(url or f"sqlite:///{self._path}", hide_parameters=True, pool_pre_ping=bool(url))
        except (SQLAlchemyError, ImportError, OSError) as error:
            raise VaultError(f"the vault cannot be opened: {type(error).__name__}") from None
        if self._engine.dialect.name == "sqlite":
            _prepare_sqlite(self._engine)

    def prepare(self) -> None:
        """Make the tables where there are none, and make sure that the key is the one in use. For one process.

        Raises
        ------
        VaultError
            See the class.
        """
        with self._writing() as connection:
            metadata.create_all(connection)
            state = connection.execute(select(vault_state)).first()
            if state is None:
                connection.execute(
                    insert(vault_state).values(row=1, schema_version=SCHEMA_VERSION, key_id=self._keyring.key_id)
                )
            elif state.schema_version != SCHEMA_VERSION:
                raise VaultError(
                    f"the vault has version {state.schema_version} of its tables, this gateway knows {SCHEMA_VERSION}"
                )
            needed = set(connection.execute(select(vault_patient.c.key_id).distinct()).scalars())
            if state is not None:
                needed.add(state.key_id)
        missing = sorted(needed - self._keyring.key_ids)
        if missing:
            raise VaultError(
                f"the vault was sealed with key {', '.join(missing)}, which is not at hand: put the key back, or name it "
                "among vault.former_key_files"
            )

    def close(self) -> None:
        """Give all connections back."""
        self._engine.dispose()

    # --- in and out -----------------------------------------------------------------------------------------------

    def remember(self, *, pseudonym: str, study_key: str, instance_key: str, source: Dataset, now: datetime) -> None:
        """Seal the identity of a study; durable when this returns. Sealed again only where it changed.

        Parameters
        ----------
        source
            An image of the study as received, of which the patient's and study's attributes are taken.

        Raises
        ------
        VaultError
            It could not be written; nothing was.
        """
        plain = instance_key.encode("ascii") + _encoded(copy_identity(source))
        digest = hmac.new(self._keyring.digest_key, study_key.encode() + plain, hashlib.sha256).hexdigest()
        with self._reading() as connection:
            if _is_known(connection, study_key, pseudonym, digest):
                return
        with self._writing() as connection:
            data_key = self._data_key(connection, pseudonym) or self._new_data_key(connection, pseudonym, now)
            values = {
                "pseudonym": pseudonym,
                "sealed": _seal(data_key, plain, _study_label(pseudonym, study_key)),
                "digest": digest,
                "sealed_at": now,
            }
            changed = connection.execute(
                update(vault_study).where(vault_study.c.study_key == study_key).values(values)
            )
            if not changed.rowcount:
                connection.execute(insert(vault_study).values(study_key=study_key, **values))

    def recall(self, study_key: str) -> SealedIdentity:
        """The identity of a study.

        Raises
        ------
        IdentityError
            There is none, the patient was shredded, or what is there was altered.
        VaultError
            The vault cannot be reached.
        """
        with self._reading() as connection:
            row = connection.execute(select(vault_study).where(vault_study.c.study_key == study_key)).first()
            if row is None:
                raise IdentityError(f"the vault holds no identity for study {study_key}: it was removed, or never there")
            data_key = self._data_key(connection, row.pseudonym)
        if data_key is None:
            raise IdentityError(f"the vault holds no key for the patient of study {study_key}: the patient was removed")
        return _opened(row, data_key)

    def find(self, pseudonym: str) -> tuple[SealedIdentity, ...]:
        """The identities of all studies of a patient, in the order in which they came. Who asks records it.

        Raises
        ------
        IdentityError
            What is there was altered.
        VaultError
            The vault cannot be reached.
        """
        with self._reading() as connection:
            rows = connection.execute(
                select(vault_study)
                .where(vault_study.c.pseudonym == pseudonym)
                .order_by(vault_study.c.sealed_at, vault_study.c.study_key)
            ).all()
            data_key = self._data_key(connection, pseudonym)
        return () if data_key is None else tuple(_opened(row, data_key) for row in rows)

    def shred(self, pseudonym: str) -> int:
        """Delete a patient for good: the data key, and all that it sealed; gives the number of studies.

        The bytes are overwritten, in SQLite's journal too. A copy of the sealed rows made before cannot be opened
        without the wrapped key; whether copies of that exist is a question of the site's backups.

        Raises
        ------
        VaultError
            The vault cannot be reached; then nothing was deleted.
        """
        with self._writing() as connection:
            studies = connection.execute(delete(vault_study).where(vault_study.c.pseudonym == pseudonym)).rowcount
            connection.execute(delete(vault_patient).where(vault_patient.c.pseudonym == pseudonym))
        self._truncate_journal()
        return studies

    def status(self) -> VaultStatus:
        """How much there is, and under which keys. Raises :class:`VaultError`."""
        with self._reading() as connection:
            by_key = connection.execute(
                select(vault_patient.c.key_id, func.count()).group_by(vault_patient.c.key_id)
            ).all()
            studies = connection.execute(select(func.count()).select_from(vault_study)).scalar_one()
            key_id = connection.execute(select(vault_state.c.key_id)).scalar_one()
        return VaultStatus(
            patients=sum(count for _, count in by_key),
            studies=studies,
            key_id=key_id,
            patients_by_key_id={each: count for each, count in by_key},
        )

    # --- keys -----------------------------------------------------------------------------------------------------

    def rotate(self) -> Iterator[int]:
        """Make the keyring's first key the one in use, then wrap every data key with it; yields how many are done.

        May be stopped at any moment and run again; a gateway that runs meanwhile follows.

        Raises
        ------
        VaultError
            The vault cannot be reached, or a data key was wrapped by a key that is not at hand.
        """
        with self._writing() as connection:
            connection.execute(update(vault_state).values(key_id=self._keyring.key_id))
        done = 0
        while True:
            with self._writing() as connection:
                rows = connection.execute(
                    select(vault_patient.c.pseudonym, vault_patient.c.key_id, vault_patient.c.wrapped_key)
                    .where(vault_patient.c.key_id != self._keyring.key_id)
                    .limit(ROWS_A_STEP)
                ).all()
                for row in rows:
                    data_key = self._unwrapped(row.pseudonym, row.key_id, row.wrapped_key)
                    connection.execute(
                        update(vault_patient)
                        .where(vault_patient.c.pseudonym == row.pseudonym)
                        .values(key_id=self._keyring.key_id, wrapped_key=self._wrapped(row.pseudonym, data_key))
                    )
            done += len(rows)
            if not rows:
                break
            yield done
        self._truncate_journal()

    def _data_key(self, connection: Connection, pseudonym: str) -> bytes | None:
        row = connection.execute(
            select(vault_patient.c.key_id, vault_patient.c.wrapped_key).where(vault_patient.c.pseudonym == pseudonym)
        ).first()
        return None if row is None else self._unwrapped(pseudonym, row.key_id, row.wrapped_key)

    def _new_data_key(self, connection: Connection, pseudonym: str, now: datetime) -> bytes:
        # Shared lock: a rotation that changes the key in use waits, so that it sees what is wrapped here.
        in_use = connection.execute(select(vault_state.c.key_id).with_for_update(read=True)).scalar_one()
        if in_use != self._keyring.key_id:
            self._keyring.reload()
        if in_use != self._keyring.key_id:
            raise VaultError(f"the vault's key in use is {in_use}, which is not the one that the settings name")
        data_key = os.urandom(DATA_KEY_BYTES)
        connection.execute(
            insert(vault_patient).values(
                pseudonym=pseudonym,
                key_id=self._keyring.key_id,
                wrapped_key=self._wrapped(pseudonym, data_key),
                made_at=now,
            )
        )
        return data_key

    def _wrapped(self, pseudonym: str, data_key: bytes) -> bytes:
        key_id = self._keyring.key_id
        return _seal(self._keyring.key(key_id), data_key, _patient_label(pseudonym, key_id))

    def _unwrapped(self, pseudonym: str, key_id: str, wrapped_key: bytes) -> bytes:
        if key_id not in self._keyring.key_ids:
            self._keyring.reload()
        if key_id not in self._keyring.key_ids:
            raise VaultError(f"the vault was sealed with key {key_id}, which is not at hand")
        return _open(self._keyring.key(key_id), wrapped_key, _patient_label(pseudonym, key_id), "a patient's key")

    # --- transactions ---------------------------------------------------------------------------------------------

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        try:
            with self._engine.connect().execution_options(writes=True) as connection, connection.begin():
                yield connection
        except SQLAlchemyError as error:
            raise VaultError(f"the vault failed: {type(error).__name__}") from None

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        try:
            with self._engine.connect() as connection, connection.begin():
                yield connection
        except SQLAlchemyError as error:
            raise VaultError(f"the vault failed: {type(error).__name__}") from None

    def _truncate_journal(self) -> None:
        """Leave nothing of deleted rows in SQLite's write-ahead log."""
        if self._engine.dialect.name != "sqlite":
            return
        try:
            with self._engine.connect() as connection:
                connection.connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").close()
        except SQLAlchemyError as error:
            raise VaultError(f"the vault failed: {type(error).__name__}") from None


def has_rows(url: str, data_dir: Path) -> bool:
    """Whether there is a vault with something in it; raises :class:`VaultError` where it cannot be asked."""
    if not url and not (data_dir / "vault.db").is_file():
        return False
    try:
        engine = create_engine(url or f"sqlite:///{data_dir / 'vault.db'}", hide_parameters=True)
        try:
            with engine.connect() as connection:
                return inspect(connection).has_table("vault_patient") and (
                    connection.execute(select(vault_patient.c.pseudonym).limit(1)).first() is not None
                )
        finally:
            engine.dispose()
    except (SQLAlchemyError, ImportError) as error:
        raise VaultError(f"the vault cannot be opened: {type(error).__name__}") from None


def _make_private(path: Path) -> None:
    """An empty file that no other user may read, before anything is in it."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def _prepare_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def on_connect(connection: sqlite3.Connection, _: Any) -> None:
        connection.isolation_level = None
        connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_S * 1000}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA secure_delete = ON")

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _is_known(connection: Connection, study_key: str, pseudonym: str, digest: str) -> bool:
    found = connection.execute(
        select(vault_study.c.digest)
        .join(vault_patient, vault_patient.c.pseudonym == vault_study.c.pseudonym)
        .where(vault_study.c.study_key == study_key, vault_study.c.pseudonym == pseudonym)
    ).scalar()
    return found is not None and hmac.compare_digest(found, digest)


def _patient_label(pseudonym: str, key_id: str) -> bytes:
    return f"gateway vault patient {pseudonym} {key_id}".encode()


def _study_label(pseudonym: str, study_key: str) -> bytes:
    return f"gateway vault study {pseudonym} {study_key}".encode()


def _seal(key: bytes, plain: bytes, label: bytes) -> bytes:
    nonce = os.urandom(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plain, label)


def _open(key: bytes, sealed: bytes, label: bytes, what: str) -> bytes:
    try:
        return AESGCM(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], label)
    except (InvalidTag, ValueError):
        raise IdentityError(f"the vault's row of {what} was altered, or is another's") from None


def _opened(row: Any, data_key: bytes) -> SealedIdentity:
    plain = _open(data_key, row.sealed, _study_label(row.pseudonym, row.study_key), f"study {row.study_key}")
    return SealedIdentity(
        pseudonym=row.pseudonym,
        study_key=row.study_key,
        instance_key=plain[:_KEY_HEXADECIMAL].decode("ascii"),
        header=_decoded(plain[_KEY_HEXADECIMAL:]),
    )


def _encoded(header: Dataset) -> bytes:
    """A data set's elements as bytes, Explicit VR Little Endian; those not decoded stay as they are."""
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = False, True
    write_dataset(buffer, header)
    return buffer.getvalue()


def _decoded(encoded: bytes) -> Dataset:
    return read_dataset(io.BytesIO(encoded), is_implicit_VR=False, is_little_endian=True)

