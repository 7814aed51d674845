"""Remembers which version a worker was running, so that one which takes the whole process down is not run again.

A version that crashes ONNX Runtime, or eats all memory, leaves no error behind. Its name stands in a small file while
it runs, if it is not the champion; a process that finds it there at its start knows what the one before died of. Once
may be chance (somebody killed it, the power went); after two deaths in a row without a run that ended the version is
taken to be broken. The champion is left out: there would be nothing to judge with, and a study that kills its worker is
given up after some attempts.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

DEATHS = 2


class Fuse:
    """The file of one worker; without a path, nothing is remembered."""

    def __init__(self, path: Path | None = None) -> None:
        self._descriptor: int | None = None
        self._deaths: dict[str, int] = {}
        if path is None:
            return
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        kept = _parsed(os.pread(self._descriptor, 1 << 16, 0))
        self._deaths = {str(name): int(count) for name, count in dict(kept.get("deaths", {})).items()}
        running = str(kept.get("running", ""))
        if running:
            self._deaths[running] = self._deaths.get(running, 0) + 1
            logger.error("the process before died while %s ran, %d in a row", running, self._deaths[running])
        self._write("")

    def close(self) -> None:
        """Give the file back."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def why_broken(self, model_name: str, version: int) -> str:
        """Why a version is not to be run, or nothing."""
        deaths = self._deaths.get(f"{model_name} {version}", 0)
        return f"{deaths} workers in a row died while it ran" if deaths >= DEATHS else ""

    def forgive(self, model_name: str, version: int) -> None:
        """A version runs no more; should it come back, it is tried again."""
        if self._deaths.pop(f"{model_name} {version}", None) is not None:
            self._write("")

    @contextmanager
    def around(self, model_name: str, version: int) -> Iterator[None]:
        """While a version runs that might not return."""
        name = f"{model_name} {version}"
        self._write(name)
        try:
            yield
        finally:
            self._deaths.pop(name, None)
            self._write("")

    def _write(self, running: str) -> None:
        if self._descriptor is None:
            return
        content = json.dumps({"running": running, "deaths": self._deaths}).encode()
        os.pwrite(self._descriptor, content, 0)
        os.ftruncate(self._descriptor, len(content))


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        kept = json.loads(content or b"{}")
    except ValueError:  # cut short by the power
        return {}
    return kept if isinstance(kept, dict) else {}
