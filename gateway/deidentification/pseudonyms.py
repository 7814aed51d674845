"""What stands for a UID, a patient, a person, a code or a date: keyed hashes, the same in every process for one key."""

from __future__ import annotations

from gateway.deidentification.keys import KeyedHash

_DIGITS = 16


class Pseudonyms:
    """Everything that the site key decides.

    Parameters
    ----------
    key
        At least 32 random bytes.
    largest_date_shift_days
        Dates of a patient move into the past by 1 to this many days.

    Raises
    ------
    DeidentificationError
        If the key is weak.
    """

    def __init__(self, key: bytes, largest_date_shift_days: int) -> None:
        self._uids = KeyedHash(key, "UID")
        self._patients = KeyedHash(key, "patient")
        self._persons = KeyedHash(key, "person")
        self._codes = KeyedHash(key, "code")
        self._shifts = KeyedHash(key, "date shift")
        self._largest_date_shift_days = largest_date_shift_days

    def uid(self, original: str) -> str:
        """The UID that stands for `original` wherever it occurs; at most 44 characters, ``2.25.`` form."""
        return self._uids.uid(original.strip(" \x00"))

    def patient(self, patient_id: str) -> str:
        """16 hexadecimal digits that stand for a patient ID."""
        return self._patients.hexadecimal(patient_id.strip(" \x00"), _DIGITS)

    def person(self, name: str) -> str:
        """A name that stands for a person's, in whatever case and spacing it was written."""
        return f"PSEUDONYM^{self._persons.hexadecimal(' '.join(name.strip(' ^=').casefold().split()), _DIGITS)}"

    def local_code(self, scheme: str, value: str) -> str:
        """16 hexadecimal digits that stand for a code of a scheme that is not public."""
        return self._codes.hexadecimal(f"{scheme.strip()}\\{value.strip()}", _DIGITS)

    def date_shift_days(self, patient_id: str) -> int:
        """By how many days the dates of a patient move into the past: 1 to the largest shift, evenly spread."""
        digest = self._shifts.digest(patient_id.strip(" \x00"))
        return 1 + int.from_bytes(digest[:16], "big") % self._largest_date_shift_days
