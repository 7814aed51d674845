"""Which SOP classes the SCP takes part in.

Verification; storage commitment, in either role; and every storage class, private and future ones included: the gateway
stores what it is sent.
"""

from __future__ import annotations

from functools import lru_cache

from pynetdicom.service_class import ServiceClass
from pynetdicom.sop_class import _STORAGE_CLASSES, StorageCommitmentPushModel, Verification, uid_to_service_class

from gateway.acse import Supported

VERIFICATION_UID = str(Verification)
STORAGE_COMMITMENT_UID = str(StorageCommitmentPushModel)
STORAGE_COMMITMENT_INSTANCE_UID = "1.2.840.10008.1.20.1.1"
"""The well-known SOP instance, PS3.4 section J.3.5."""
_STORAGE_UIDS = frozenset(str(each) for each in _STORAGE_CLASSES.values())
_USER = Supported()
_EITHER = Supported(peer_may_be_scp=True)


def supports(abstract_syntax: str) -> Supported | None:
    """The roles that a peer may take, or ``None`` for an abstract syntax of another service."""
    if abstract_syntax == STORAGE_COMMITMENT_UID:
        return _EITHER
    return _USER if abstract_syntax == VERIFICATION_UID or may_be_stored(abstract_syntax) else None


@lru_cache(maxsize=1024)
def may_be_stored(abstract_syntax: str) -> bool:
    """Whether it is a storage class, or one that pynetdicom does not know as anything else."""
    if abstract_syntax in _STORAGE_UIDS:
        return True
    return uid_to_service_class(abstract_syntax) is ServiceClass
