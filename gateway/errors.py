"""Errors of the gateway, cut by what is done about them.

::

    GatewayError
    ├── SettingsError              the configuration is wrong                          (fail: does not start)
    ├── IntakeError                an object cannot be accepted                        (reject, with a DICOM status)
    │   ├── OutOfResourcesError    disk or queue says no                               (0xA700)
    │   ├── MismatchError          data set and command disagree                       (0xA900)
    │   ├── NotUnderstoodError     truncated, garbage, or not DICOM                    (0xC000)
    │   └── OtherContentError      the SOP Instance UID is stored with other content   (0xC001)
    ├── StoreError                 the store cannot be reached, or holds no such row   (retry)
    ├── UnreadableError            a stored file is gone or no longer what it was      (fail)
    ├── TransitionError            a study cannot go from its state to that one        (fail)
    ├── DeidentificationError      an object cannot be de-identified, so goes nowhere  (reject)
    ├── VaultError                 the vault cannot be reached, or its key is missing  (retry)
    ├── IdentityError              the vault holds no such identity, or an altered one (fail, loudly)
    ├── ResultError                a result object cannot be built                     (fail)
    │   └── ResultMismatchError    result and source disagree on who or what it is     (fail, loudly)
    ├── AccountError               an account or token cannot be made or changed so    (reject, with the reason)
    ├── LifecycleError             a model version may not go there, or not yet        (reject, with the reason)
    ├── TruthError                 what a reader is said to have found cannot be used   (reject, with the reason)
    │   └── TruthFileError         a table of readers' words has problems                  (reject, with all of them)
    ├── QueryError                 a query for saved studies is not understood         (reject, with the place)
    ├── SavedError                 saved studies cannot be kept, exported or read      (fail)
    ├── ComparisonError            versions cannot be compared, or not in this way      (fail)
    ├── ReplayError                a prediction cannot be made again: something is gone (fail)
    ├── PausedError                a model version is left alone after failures        (retry, which is no attempt)
    ├── BusyError                  too much of one kind is asked for at once           (retry)
    └── DeliveryError              a destination refused or could not be reached       (retry)

:data:`DISPOSITIONS` maps each leaf, those of the other rooms included, to what is done; :data:`INTAKE_STATUSES` maps
the intake's leaves to DICOM statuses (PS3.4 B.2.3). A test fails when a leaf is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from models.errors import (
    BundleError,
    DecoderUnavailableError,
    ImportRefusedError,
    InferenceError,
    PixelError,
    RegistryError,
    UnsafePixelError,
)


class GatewayError(Exception):
    """Base of all errors that the gateway raises itself."""


class SettingsError(GatewayError):
    """The configuration is wrong; says which setting, what was found and what was expected."""


class IntakeError(GatewayError):
    """An object cannot be accepted."""


class OutOfResourcesError(IntakeError):
    """The disk or the queue is full; the peer may try again later."""


class MismatchError(IntakeError):
    """The data set's SOP Class or Instance UID is not that of the C-STORE command."""


class NotUnderstoodError(IntakeError):
    """The data set is truncated, is not DICOM, or lacks what every instance needs."""


class OtherContentError(IntakeError):
    """The SOP Instance UID is stored already, with other bytes; the first stays.

    PS3.4 Table B.2-1 has no code of its own for this. Success would promise that the new content is in the study, which
    it is not, so the answer is one of the 0xC000 range.
    """


class StoreError(GatewayError):
    """The store cannot be reached, or holds no such row."""


class UnreadableError(GatewayError):
    """A file that the store refers to is gone, or no longer what was received."""


class TransitionError(GatewayError):
    """A study cannot go from the state it is in to the one asked for."""


class DeidentificationError(GatewayError):
    """An object cannot be de-identified, so that nothing else may see it."""


class VaultError(GatewayError):
    """The vault cannot be reached, or was sealed with a key that is not at hand."""


class IdentityError(GatewayError):
    """The vault holds no identity for a study, or one that was altered or is another's."""


class ResultError(GatewayError):
    """A result object cannot be built."""


class ResultMismatchError(ResultError):
    """A result and its source disagree on patient, study or accession number."""


class AccountError(GatewayError):
    """An account or token cannot be made or changed in that way; says why."""


class TruthError(GatewayError):
    """What a reader is said to have found cannot be taken in; says why."""


class TruthFileError(TruthError):
    """A table of readers' words cannot be taken in; carries all of its problems, and names the first of them."""

    def __init__(self, message: str, problems: Sequence[Problem] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong with a table. Identifiers are never quoted."""

    line: int
    column: str
    """Empty: of the whole line, or file."""
    found: str
    """Quoted; empty where nothing is or may be shown."""
    expected: str

    def __str__(self) -> str:
        place = f"line {self.line}" + (f", column {self.column}" if self.column else "")
        return f"{place}: {f'found {self.found}, ' if self.found else ''}expected {self.expected}"


class LifecycleError(GatewayError):
    """A model version may not go to the state asked for, or not yet; says what is missing."""


class QueryError(GatewayError):
    """A query for saved studies is not understood; says where, what was found and what was expected."""


class SavedError(GatewayError):
    """Saved studies cannot be kept, exported or read as they should; says why."""


class ComparisonError(GatewayError):
    """Versions cannot be compared, or not in the way that is asked for; says why."""


class ReplayError(GatewayError):
    """A prediction cannot be made again, since its input or its bundle is gone; says which."""


class PausedError(GatewayError):
    """A study waits for a model version that is left alone after failures."""

    def __init__(self, message: str = "", *, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class BusyError(GatewayError):
    """Too much of one kind is asked for at once; later it would work."""


class DeliveryError(GatewayError):
    """A destination refused a result, or could not be reached."""


class Disposition(StrEnum):
    """What is done about an error."""

    REJECT = "reject"
    """Never tried again; the reason is shown."""
    RETRY = "retry"
    """Tried again, with back-off."""
    FAIL = "fail"
    """A person is needed; the reason is shown and logged as an error."""


DISPOSITIONS: Mapping[type[Exception], Disposition] = {
    SettingsError: Disposition.FAIL,
    OutOfResourcesError: Disposition.RETRY,
    MismatchError: Disposition.REJECT,
    NotUnderstoodError: Disposition.REJECT,
    OtherContentError: Disposition.REJECT,
    StoreError: Disposition.RETRY,
    UnreadableError: Disposition.FAIL,
    TransitionError: Disposition.FAIL,
    DeidentificationError: Disposition.REJECT,
    VaultError: Disposition.RETRY,
    IdentityError: Disposition.FAIL,
    ResultMismatchError: Disposition.FAIL,
    ResultError: Disposition.FAIL,
    AccountError: Disposition.REJECT,
    LifecycleError: Disposition.REJECT,
    TruthError: Disposition.REJECT,
    TruthFileError: Disposition.REJECT,
    QueryError: Disposition.REJECT,
    SavedError: Disposition.FAIL,
    ComparisonError: Disposition.FAIL,
    ReplayError: Disposition.FAIL,
    PausedError: Disposition.RETRY,
    BusyError: Disposition.RETRY,
    DeliveryError: Disposition.RETRY,
    BundleError: Disposition.FAIL,
    ImportRefusedError: Disposition.REJECT,
    RegistryError: Disposition.RETRY,
    PixelError: Disposition.REJECT,
    UnsafePixelError: Disposition.REJECT,
    DecoderUnavailableError: Disposition.RETRY,
    InferenceError: Disposition.RETRY,
}

INTAKE_STATUSES: Mapping[type[IntakeError], int] = {
    OutOfResourcesError: 0xA700,
    MismatchError: 0xA900,
    NotUnderstoodError: 0xC000,
    OtherContentError: 0xC001,
}
"""PS3.4 Table B.2-1, C-STORE response status values."""


def disposition(error: Exception) -> Disposition:
    """What is done about `error`: the entry of its nearest class in :data:`DISPOSITIONS`, or FAIL."""
    for cls in type(error).__mro__:
        if cls in DISPOSITIONS:
            return DISPOSITIONS[cls]
    return Disposition.FAIL
