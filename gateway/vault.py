"""The way back: from a pseudonym to the patient and study it stands for, sealed.

::

    vault key -> key-encryption key -> wraps a data key per patient -> seals each of the patient's studies

Each patient has a data key of its own, random, wrapped by the key-encryption key; each study's identity is sealed with
it. So another key-encryption key costs one small row a patient, and a patient whose data key is deleted is gone, in
every copy of the sealed rows too. What is sealed is bound to its kind, pseudonym, study and key ID: a row that is put
in another's place does not open.

The vault lies in a file or database of its own, so that a dump of the store holds no way back.

References
----------
NIST SP 800-38D (AES-GCM, 96-bit random nonces); RFC 5869 (HKDF); PS3.15 E.1.1 (re-identification by who may).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydicom import Dataset
from sqlalchemy import (
    Connection,
    bindparam,
    create_engine,
    delete,
    func,
    insert,
    inspect,
    select,
    update,
)
from sqlalchemy.exc import SQLAlchemyError

from gateway.errors import IdentityError, VaultError
from gateway.result_header import identity_of
from gateway.settings import VaultSettings
from gateway.store.engine import prepare_sqlite
from gateway.vault_keys import FILE_NAME, Keyring, is_missing
from gateway.vault_rows import (
    SCHEMA_VERSION,
    DataKey,
    SealedIdentity,
    encode_identity,
    metadata,
    open_identity,
    open_sealed,
    patient_label,
    seal,
    study_label,
    vault_patient,
    vault_state,
    vault_study,
)

ROWS_A_STEP = 200
_ATTEMPTS = 2

# Statements of every study, put together once: building one costs as much as running it.
_STUDY = select(vault_study).where(vault_study.c.study_key == bindparam("key"))
_PATIENT = select(vault_patient).where(vault_patient.c.pseudonym == bindparam("key"))
_PATIENT_KEPT = _PATIENT.with_for_update(read=True)
# Shared lock: a rotation that changes the key in use waits, so that it sees what is wrapped with the one before.
_KEY_IN_USE = select(vault_state.c.key_id).with_for_update(read=True)
_ADD_PATIENT = insert(vault_patient)
_ADD_STUDY = insert(vault_study)


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
            address = url or f"sqlite:///{self._path}"
            self._engine = create_engine(address, hide_parameters=True, pool_pre_ping=bool(url))
        except (SQLAlchemyError, ImportError, OSError) as error:
            raise VaultError(f"the vault cannot be opened: {type(error).__name__}") from None
        if self._engine.dialect.name == "sqlite":
            prepare_sqlite(self._engine, "secure_delete = ON")

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
                f"the vault was sealed with key {', '.join(missing)}, which is not at hand: put the key back, or name "
                "its file in vault.former_key_files"
            )

    def close(self) -> None:
        """Give all connections back."""
        self._engine.dispose()

    # --- in and out -----------------------------------------------------------------------------------------------

    def remember(self, *, pseudonym: str, study_key: str, instance_key: str, source: Dataset, now: datetime) -> None:
        """Seal the identity of a study; durable when this returns. Written again only where it became another's.

        Parameters
        ----------
        pseudonym
            Of the patient.
        source
            An image of the study as received, of which the patient's and study's attributes are taken.

        Raises
        ------
        IdentityError
            The patient was removed since the study came, or what is there was altered.
        VaultError
            It could not be written; nothing was.
        """
        plain = encode_identity(instance_key, source)
        for attempt in range(_ATTEMPTS):
            known = self.known(study_key)
            if known is not None and known.pseudonym == pseudonym and identity_of(known.header) == identity_of(source):
                return
            try:
                with self._writing() as connection:
                    self._write(connection, pseudonym, study_key, plain, now, new=known is None)
                    return
            except VaultError:
                # Another process may have made the patient's key, or the row, at the same moment.
                if attempt + 1 == _ATTEMPTS:
                    raise

    def _write(
        self, connection: Connection, pseudonym: str, study_key: str, plain: bytes, now: datetime, *, new: bool = True
    ) -> None:
        key = self._data_key(connection, pseudonym, keep=True) or self._new_data_key(connection, pseudonym, now)
        values = {
            "pseudonym": pseudonym,
            "key_id": key.key_id,
            "sealed": seal(key.raw, plain, study_label(pseudonym, study_key, key.key_id)),
            "sealed_at": now,
        }
        if new:
            connection.execute(_ADD_STUDY, {"study_key": study_key, **values})
        else:
            connection.execute(update(vault_study).where(vault_study.c.study_key == study_key).values(values))

    def known(self, study_key: str) -> SealedIdentity | None:
        """As :meth:`recall`; ``None`` of a study that was never sealed."""
        with self._reading() as connection:
            row = connection.execute(_STUDY, {"key": study_key}).first()
            return None if row is None else self._opened(connection, row)

    def recall(self, study_key: str) -> SealedIdentity:
        """The identity of a study.

        Raises
        ------
        IdentityError
            There is none, the patient was shredded, or what is there was altered.
        VaultError
            The vault cannot be reached.
        """
        found = self.known(study_key)
        if found is None:
            raise IdentityError(f"the vault holds no identity for study {study_key}")
        return found

    def _opened(self, connection: Connection, row: Any) -> SealedIdentity:
        if not row.sealed:
            raise IdentityError(f"the patient of study {row.study_key} was removed from the vault")
        key = self._data_key(connection, row.pseudonym)
        if key is None or key.key_id != row.key_id:
            raise IdentityError(f"the vault holds no key for the patient of study {row.study_key}")
        return open_identity(row, key)

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
            return tuple(self._opened(connection, row) for row in rows)

    def studies(self, pseudonym: str) -> tuple[str, ...]:
        """The gateway's keys of a patient's studies. Raises :class:`VaultError`."""
        with self._reading() as connection:
            known = select(vault_study.c.study_key).where(vault_study.c.pseudonym == pseudonym)
            return tuple(connection.execute(known.order_by(vault_study.c.study_key)).scalars())

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
            # A study's row stays, empty: what is not sent yet then says that the patient was removed.
            studies = connection.execute(
                update(vault_study)
                .where(vault_study.c.pseudonym == pseudonym)
                .values(pseudonym="", key_id="", sealed=b"")
            ).rowcount
            connection.execute(delete(vault_patient).where(vault_patient.c.pseudonym == pseudonym))
        self._scrub()
        return studies

    def status(self) -> VaultStatus:
        """How much there is, and under which keys. Raises :class:`VaultError`."""
        with self._reading() as connection:
            by_key = connection.execute(
                select(vault_patient.c.key_id, func.count()).group_by(vault_patient.c.key_id)
            ).all()
            sealed = select(func.count()).select_from(vault_study).where(vault_study.c.pseudonym != "")
            studies = connection.execute(sealed).scalar_one()
            key_id = connection.execute(select(vault_state.c.key_id)).scalar_one()
        return VaultStatus(
            patients=sum(count for _, count in by_key),
            studies=studies,
            key_id=key_id,
            patients_by_key_id={row[0]: row[1] for row in by_key},
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
                    select(vault_patient)
                    .where(vault_patient.c.key_id != self._keyring.key_id)
                    .limit(ROWS_A_STEP)
                    .with_for_update()
                ).all()
                for row in rows:
                    wrapped = self._wrapped(row.pseudonym, self._unwrapped(row), self._keyring.key_id)
                    connection.execute(
                        update(vault_patient)
                        .where(vault_patient.c.pseudonym == row.pseudonym)
                        .values(key_id=self._keyring.key_id, wrapped_key=wrapped)
                    )
            done += len(rows)
            if not rows:
                break
            yield done
        self._scrub()

    def _data_key(self, connection: Connection, pseudonym: str, *, keep: bool = False) -> DataKey | None:
        row = connection.execute(_PATIENT_KEPT if keep else _PATIENT, {"key": pseudonym}).first()
        return None if row is None else self._unwrapped(row)

    def _new_data_key(self, connection: Connection, pseudonym: str, now: datetime) -> DataKey:
        in_use = connection.execute(_KEY_IN_USE).scalar_one()
        key = DataKey(os.urandom(8).hex(), AESGCM.generate_key(256))
        values = {
            "pseudonym": pseudonym,
            "key_id": in_use,
            "data_key_id": key.key_id,
            "wrapped_key": self._wrapped(pseudonym, key, in_use),
            "made_at": now,
        }
        connection.execute(_ADD_PATIENT, values)
        return key

    def _wrapped(self, pseudonym: str, key: DataKey, by: str) -> bytes:
        return seal(self._wrapping_key(by), key.raw, patient_label(pseudonym, key.key_id, by))

    def _unwrapped(self, row: Any) -> DataKey:
        label = patient_label(row.pseudonym, row.data_key_id, row.key_id)
        raw = open_sealed(self._wrapping_key(row.key_id), row.wrapped_key, label, "a patient's key")
        return DataKey(row.data_key_id, raw)

    def _wrapping_key(self, key_id: str) -> bytes:
        if key_id not in self._keyring.key_ids:
            self._keyring.reload()  # keys were changed since this process started
        if key_id not in self._keyring.key_ids:
            raise VaultError(f"the vault was sealed with key {key_id}, which is not at hand")
        return self._keyring.key(key_id)

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

    def check(self) -> None:
        """Make sure that the vault can be reached. Raises :class:`VaultError`."""
        with self._reading() as connection:
            connection.execute(select(vault_state.c.key_id)).scalar_one()

    def _scrub(self) -> None:
        """Leave no copy of deleted rows: in SQLite's write-ahead log, in PostgreSQL's dead tuples."""
        try:
            with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                if self._engine.dialect.name == "postgresql":
                    connection.exec_driver_sql("VACUUM (FULL) vault_patient")
                    connection.exec_driver_sql("VACUUM (FULL) vault_study")
                elif self._engine.dialect.name == "sqlite":
                    (busy, *_), *_ = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").all()
                    if busy:
                        raise VaultError(
                            "the rows are deleted, but SQLite's journal, which is in use, may still hold their bytes: "
                            "do the same again"
                        )
        except SQLAlchemyError as error:
            raise VaultError(f"the rows are deleted, but their bytes could not be: {type(error).__name__}") from None


def open_vault(settings: VaultSettings, data_dir: Path) -> Vault | None:
    """The vault that :func:`prepare_vault` made; ``None`` where the site keeps none. Raises :class:`VaultError`."""
    return Vault(settings.url, data_dir, Keyring(settings, data_dir)) if settings.enabled else None


def prepare_vault(settings: VaultSettings, data_dir: Path) -> None:
    """Make the vault ready at start-up, its key too at the first. For one process, before any other is started.

    Raises
    ------
    VaultError
        The key has gone although something was sealed with it, is weak, or is not the one in use; or the vault cannot
        be reached.
    """
    if not settings.enabled:
        return
    if is_missing(settings, data_dir) and _has_rows(settings.url, data_dir):
        raise VaultError(
            f"{data_dir / FILE_NAME} is missing, and the vault was sealed with it: put it back from its backup"
        )
    vault = Vault(settings.url, data_dir, Keyring(settings, data_dir, make=True))
    try:
        vault.prepare()
    finally:
        vault.close()


def _has_rows(url: str, data_dir: Path) -> bool:
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
    """The file, made where there is none, that no other user may read; its journal takes the mode over."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(descriptor, 0o600)  # also one that came back from a backup
    finally:
        os.close(descriptor)
