"""What outputs are called: keyed hashes alone, so that nothing of the input shows, whatever options are chosen."""

from __future__ import annotations

import re

from gateway.deidentification.keys import KeyedHash

OUTPUT_NAME = re.compile(r"[0-9a-f]{16}/[0-9a-f]{16}/[0-9a-f]{32}\.dcm")
"""Patient / study / instance."""


class OutputNames:
    """Names for one key. Each kind has a purpose of its own: none tells anything of a pseudonym or of a new UID."""

    def __init__(self, key: bytes) -> None:
        self._studies = KeyedHash(key, "output study")
        self._instances = KeyedHash(key, "output instance")
        self._sources = KeyedHash(key, "source path")

    def study(self, study_instance_uid: str) -> str:
        """16 hexadecimal digits."""
        return self._studies.hexadecimal(study_instance_uid, 16).lower()

    def instance(self, sop_instance_uid: str) -> str:
        """32 hexadecimal digits."""
        return self._instances.hexadecimal(sop_instance_uid, 32).lower()

    def again(self, sop_instance_uid: str, source_sha256: str) -> str:
        """32 hexadecimal digits for a file whose SOP Instance UID another file with other content has already."""
        return self._instances.hexadecimal(f"{sop_instance_uid} {source_sha256}", 32).lower()

    def source(self, path: str) -> str:
        """16 hexadecimal digits that stand for a path below IN: the crosswalk says for which."""
        return self._sources.hexadecimal(path, 16).lower()
