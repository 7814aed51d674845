"""The monitor's part in performance: says when to compute anew, and lets a process of its own do it.

What computes loads scikit-learn, pandas and NannyML, some hundreds of megabytes, and gives them back by ending.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from gateway.settings import Settings
from gateway.store import Store, open_store
from gateway.store.performance import Mark, last_mark

logger = logging.getLogger(__name__)

LONGEST_S = 3600.0
"""A computation that takes longer is ended."""
QUIET = {"NML_DISABLE_USAGE_LOGGING": "1", "DO_NOT_TRACK": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""Environment of the process: it tells nobody anything, and takes one core."""


class PerformanceWatch:
    """Computes anew where readers have said something, or something was judged, since the last time."""

    def __init__(
        self, settings: Settings, data_dir: Path, store: Store, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._data_dir = data_dir
        self._store = store
        self._clock = clock
        self._started_at: float | None = None
        self._mark: Mark | None = None
        self._process: subprocess.Popen[str] | None = None

    @property
    def is_computing(self) -> bool:
        """Whether a process is at it."""
        return self._process is not None

    def look(self) -> None:
        """Start a computation where one is due; returns at once.

        Raises
        ------
        StoreError
            The store cannot be read.
        """
        if self._process is not None and not self._has_ended(self._process):
            return
        interval_s = self._settings.truth.interval_s
        now = self._clock()
        if not interval_s or (self._started_at is not None and now - self._started_at < interval_s):
            return
        mark = last_mark(self._store)
        if not mark.truth_id or mark == self._mark:
            return
        self._started_at, self._mark = now, mark
        self._process = start_computation(self._settings, self._data_dir)

    def end(self) -> None:
        """Let nothing of it outlive the monitor; what was not stored is computed the next time."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _has_ended(self, process: subprocess.Popen[str]) -> bool:
        status = process.poll()
        if status is None and self._started_at is not None and self._clock() - self._started_at > LONGEST_S:
            process.kill()
            status = process.wait()
        if status is None:
            return False
        if status != 0:
            logger.error("computing performance ended with %d; the figures stay those of before", status)
        self._process = None
        return True


def start_computation(settings: Settings, data_dir: Path) -> subprocess.Popen[str]:
    """Start the process that computes and stores everything."""
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway.performance_watch"],
        stdin=subprocess.PIPE,
        env={**os.environ, **QUIET},
        text=True,
    )
    assert process.stdin is not None
    # Not as arguments, which everybody on the machine may read: the store's URL may hold a password.
    with process.stdin as stream:
        json.dump({"settings": settings.model_dump(mode="json"), "data_dir": str(data_dir)}, stream)
    return process


def compute(stream: IO[str]) -> None:
    """What the process does."""
    from gateway.performance import refresh

    told = json.load(stream)
    settings = Settings.model_validate(told["settings"])
    store = open_store(settings.store.url, data_dir=Path(told["data_dir"]))
    try:
        rows = refresh(store, settings.truth, now=datetime.now(UTC))
        logger.info("computed the performance of %d findings of model versions", len(rows))
    finally:
        store.close()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)-7s performance %(message)s")
    compute(sys.stdin)
