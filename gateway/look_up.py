"""From a pseudonym to the patient, for a person who says why: recorded before anything is shown."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import Any

from gateway.errors import IdentityError
from gateway.result_header import identity_of, text_value
from gateway.settings import VaultSettings
from gateway.store import Store
from gateway.store.accounts import Doer
from gateway.store.audit import record
from gateway.vault import open_vault
from gateway.vault_rows import SealedIdentity

LOOK_UP = "identity look-up"
"""The action in the record."""
LONGEST_REASON = 500
_PSEUDONYM = re.compile(r"(?:PSEUDONYM\^)?([0-9A-F]{16})")


def plain_pseudonym(text: str) -> str | None:
    """A patient's pseudonym as (0010,0020) or (0010,0010) of a de-identified object has it; ``None``: it is none.

    What is none is never recorded: somebody may have typed a name.
    """
    found = _PSEUDONYM.fullmatch(text.strip().upper())
    return None if found is None else found[1]


def look_up(
    settings: VaultSettings, data_dir: Path, store: Store, pseudonym: str, *, reason: str, by: Doer, now: datetime
) -> tuple[SealedIdentity, ...]:
    """All studies of a patient. That `by` asked, and why, stands in the record even when nothing is found.

    Raises
    ------
    IdentityError
        The pseudonym or the reason is none, the site keeps no vault, or what is there was altered.
    VaultError
        The vault or its key cannot be had now.
    StoreError
        It could not be recorded, so nothing was looked up.
    """
    wanted = plain_pseudonym(pseudonym)
    if wanted is None:
        raise IdentityError("a patient's pseudonym has 16 hexadecimal digits, as Patient ID of a de-identified object")
    why = " ".join(reason.split())
    if not why or len(why) > LONGEST_REASON:
        raise IdentityError(f"a look-up needs a reason, of at most {LONGEST_REASON} characters")
    if not settings.enabled:
        raise IdentityError("this gateway keeps no vault (vault.enabled)")
    record(store, now=now, actor=by.actor, action=LOOK_UP, subject=wanted, address=by.address, detail=why)
    vault = open_vault(settings, data_dir)
    assert vault is not None
    try:
        return vault.find(wanted)
    finally:
        vault.close()


def shown(identity: SealedIdentity) -> dict[str, Any]:
    """One study's identity, as text."""
    known = identity_of(identity.header)
    return {
        "study_key": identity.study_key,
        "patient_name": known.patient_name,
        "patient_id": known.patient_id,
        "issuer_of_patient_id": known.issuer_of_patient_id,
        "patient_birth_date": text_value(identity.header, "PatientBirthDate"),
        "patient_sex": text_value(identity.header, "PatientSex"),
        "accession_number": known.accession_number,
        "study_instance_uid": known.study_instance_uid,
        "study_date": text_value(identity.header, "StudyDate"),
        "kept_at": identity.sealed_at,
    }
