"""The last look before a result leaves: does it name the patient and the order that its image came with?

Compared are bytes, as they stand in the files, of the patient's name and ID, the ID's issuer, the Study Instance UID
and the Accession Number: with what the vault holds of the study, and with the image itself while it is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pydicom import Dataset

from gateway.errors import IdentityError
from gateway.result_header import read_identity, require_same_bytes
from gateway.store import Store
from gateway.store.deliveries import judged_sources, source_path
from gateway.vault import Vault

_MOST_IMAGES = 32
"""Of a study that are looked at where nothing says which one its identity was taken from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LastCheck:
    """What a worker asks before it queues a result, and the sender before it sends it; may be used by many threads."""

    store: Store
    objects: Path
    vault: Vault | None

    def require_right_patient(self, study_key: str, result: Path | BinaryIO) -> None:
        """Pass only a result whose identity is that of its source.

        Raises
        ------
        ResultMismatchError
            It differs; names the attributes, not their values.
        IdentityError
            The vault has no identity for the study any more, or an altered one.
        UnreadableError
            The result's file, or its source's, is not DICOM any more.
        OSError
            The result's file cannot be read now.
        VaultError
            The vault cannot be asked now.
        StoreError
            The store failed.
        """
        header = read_identity(result)
        sealed = None if self.vault is None else self.vault.known(study_key)
        if sealed is None:  # without a vault, and of a study that was judged before there was one
            paths = judged_sources(self.store, study_key, limit=_MOST_IMAGES)
            sources = self._there(paths)
            if self.vault is not None and not sources:
                raise IdentityError("neither the vault nor an image says whose this is")
            if sources:
                require_same_bytes(header, sources)
            return
        require_same_bytes(header, [sealed.header], "the vault's entry")
        path = source_path(self.store, sealed.instance_key)
        for source in self._there([] if path is None else [path]):
            require_same_bytes(header, [source])

    def _there(self, paths: list[str]) -> list[Dataset]:
        """Those of the files that have not expired, as far as they say whose they are."""
        found = []
        for path in paths:
            try:
                found.append(read_identity(self.objects / path))
            except FileNotFoundError:
                continue
        return found
