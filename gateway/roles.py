"""Who may do what: one table of roles and permissions."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class Permission(StrEnum):
    """What a route asks of its caller."""

    OPEN = "open"
    """Nothing: anyone, without log-in. No route that may show a patient."""
    OWN = "own account"
    """A log-in: one's own password and session."""
    SEE = "see"
    """Worklist, pictures, monitors, quarantine, processes."""
    STUDIES = "studies"
    """Judge now, send again, hold and release."""
    ALARMS = "alarms"
    """Acknowledge and close."""
    MODELS = "models"
    """Choose which model versions run."""
    READS = "reads"
    """Say what a study really shows: the reference that models are held against."""
    STORE = "store"
    """Give images to the gateway over HTTP (STOW-RS)."""
    IDENTITY = "identity"
    """From a pseudonym to the patient, by the vault; each look-up is recorded with its reason."""
    ADMINISTER = "administer"
    """Accounts, tokens, and the record of who did what."""


class Role(StrEnum):
    """A set of permissions, by the work of who holds it."""

    VIEWER = "viewer"
    RADIOLOGIST = "radiologist"
    ENGINEER = "engineer"
    ADMINISTRATOR = "administrator"
    SENDER = "sender"
    """A machine that only gives images; for tokens, not for people."""


PERMISSIONS: Mapping[Role, frozenset[Permission]] = {
    Role.VIEWER: frozenset({Permission.OWN, Permission.SEE}),
    Role.RADIOLOGIST: frozenset(
        {Permission.OWN, Permission.SEE, Permission.STUDIES, Permission.READS, Permission.IDENTITY}
    ),
    Role.ENGINEER: frozenset(
        {Permission.OWN, Permission.SEE, Permission.STUDIES, Permission.ALARMS, Permission.MODELS}
    ),
    Role.ADMINISTRATOR: frozenset(Permission) - {Permission.OPEN},
    Role.SENDER: frozenset({Permission.STORE}),
}

PEOPLE: tuple[Role, ...] = (Role.VIEWER, Role.RADIOLOGIST, Role.ENGINEER, Role.ADMINISTRATOR)
"""Roles that an account may have."""
