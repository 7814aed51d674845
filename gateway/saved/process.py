"""The saver as a process; there is one where a site's rules save studies."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from gateway.disk import DiskGuard
from gateway.errors import StoreError
from gateway.saved.saver import Saver
from gateway.settings import Settings
from gateway.store import Store, open_store
from gateway.store.monitoring import report_process
from gateway.store.saved import write_place

NAME = "saver"
POLL_S = 2.0
REPORT_S = 5.0
NICENESS = 15
"""No study waits for it, and none shall get less of the machine because of it."""


def run(settings: Settings, data_dir: Path, stop: threading.Event) -> None:
    """The saver process, until `stop` is set."""
    os.nice(NICENESS)
    store = open_store(settings.store.url, data_dir=data_dir)
    saver = Saver(settings=settings, data_dir=data_dir, store=store, disk=DiskGuard(data_dir, settings.disk))
    reported_at_s = 0.0

    def report() -> None:
        nonlocal reported_at_s
        if not reported_at_s or time.monotonic() - reported_at_s >= REPORT_S:
            reported_at_s = time.monotonic()
            detail = {"saved": asdict(saver.holdings()), "waiting": saver.waiting}
            report_process(store, name=NAME, pid=os.getpid(), now=datetime.now(UTC), detail=detail)

    saver.alive = report
    try:
        while not stop.is_set():
            try:
                report()
                saver.look()
            except StoreError as error:
                saver.note(str(error))
            stop.wait(POLL_S)
    finally:
        store.close()


def prepare_saving(settings: Settings, store: Store) -> None:
    """Where no rule saves, forget how far an earlier one came: rules are for what comes after they were made."""
    if not settings.saving:
        write_place(store, None)
