"""Rows of the vault: its tables, and how what they hold is sealed and opened.

What is sealed is bound to its kind, pseudonym, study and key ID (the additional data of AES-256-GCM), so that a row
does not open in another's place.
"""

from __future__ import annotations

import base64
import json
import os
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydicom import Dataset
from sqlalchemy import Column, Integer, LargeBinary, MetaData, String, Table

from gateway.errors import IdentityError
from gateway.result_header import identity_header, identity_values
from gateway.store.schema import Utc

SCHEMA_VERSION = 1
NONCE_BYTES = 12

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
    Column("data_key_id", String(16), nullable=False),
    Column("wrapped_key", LargeBinary, nullable=False),
    Column("made_at", Utc, nullable=False),
)
vault_study = Table(
    "vault_study",
    metadata,
    Column("study_key", String(32), primary_key=True),
    Column("pseudonym", String(64), nullable=False, index=True),
    Column("key_id", String(16), nullable=False),  # of the patient's data key
    Column("sealed", LargeBinary, nullable=False),  # empty: the patient was removed
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
    """Patient and study attributes, their bytes and character set as received: what :func:`copy_identity` takes."""
    sealed_at: datetime


@dataclass(frozen=True, slots=True)
class DataKey:
    key_id: str
    raw: bytes = field(repr=False)


def patient_label(pseudonym: str, data_key_id: str, key_id: str) -> bytes:
    return "\0".join(("gateway vault patient", pseudonym, data_key_id, key_id)).encode()


def study_label(pseudonym: str, study_key: str, key_id: str) -> bytes:
    return "\0".join(("gateway vault study", pseudonym, study_key, key_id)).encode()


def seal(key: bytes, plain: bytes, label: bytes) -> bytes:
    nonce = os.urandom(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plain, label)


def open_sealed(key: bytes, sealed: bytes, label: bytes, what: str) -> bytes:
    try:
        return AESGCM(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], label)
    except (InvalidTag, ValueError):
        raise IdentityError(f"the vault's row of {what} was altered, or is another's") from None


def open_identity(row: Any, key: DataKey) -> SealedIdentity:
    label = study_label(row.pseudonym, row.study_key, row.key_id)
    content = json.loads(open_sealed(key.raw, row.sealed, label, f"study {row.study_key}"))
    values = {keyword: base64.b64decode(text) for keyword, text in content["values"].items()}
    return SealedIdentity(
        pseudonym=row.pseudonym,
        study_key=row.study_key,
        instance_key=content["instance_key"],
        header=identity_header(values),
        sealed_at=row.sealed_at,
    )


def encode_identity(instance_key: str, source: Dataset) -> bytes:
    values = {keyword: base64.b64encode(value).decode("ascii") for keyword, value in identity_values(source).items()}
    return json.dumps({"instance_key": instance_key, "values": values}).encode("ascii")
