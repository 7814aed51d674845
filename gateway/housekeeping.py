"""The housekeeper: deletes what has expired.

Every `disk.interval_s` it deletes what is older than [retention] says; when the disk falls below the upper mark it does
so at once. What has not expired is never deleted, however full the disk: then receivers refuse. Objects in quarantine,
which nobody was promised, also go when there are too many.

A row is marked and committed before its file is deleted, so that a kill at any moment leaves at most a file that no row
needs; the housekeeper looks for those when it starts.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from gateway.disk import DiskGuard, expire_marks, refuse_marks
from gateway.errors import StoreError
from gateway.objects import ObjectFolder
from gateway.settings import RetentionSettings, Settings
from gateway.store import Store, open_store
from gateway.store.monitoring import report_process
from gateway.store.retention import (
    KINDS,
    ROWS_A_STEP,
    Candidates,
    Kind,
    Place,
    Removed,
    Size,
    candidates,
    files_of,
    forget_quarantined,
    marked_files,
    needed_results,
    oldest_quarantined,
    quarantined,
    remove_originals,
    remove_quarantined,
    remove_records,
    remove_results,
    shown_instances,
)

logger = logging.getLogger(__name__)

POLL_S = 1.0
REPORT_S = 5.0
NICENESS = 10
MOST_QUARANTINED_FILES = 100_000
KEY_DIGITS = 32
MARKED_LOOKED_AT = 5000
"""Rows marked last whose files are looked for at start: more than a kill or a power cut leaves."""
SETTLED_S = 3600.0
"""A file without a row that is younger may be one whose row is about to be written."""
RESERVE_NAME = "reserve"
RESERVE_BYTES = 8 << 20
"""Room kept back on the disk, so that on one that is full to the last byte rows can still be marked."""


def run(settings: Settings, data_dir: Path, stop: threading.Event) -> None:
    """The housekeeper process, until `stop` is set."""
    os.nice(NICENESS)
    store = open_store(settings.store.url, data_dir=data_dir)
    housekeeper = Housekeeper(settings=settings, data_dir=data_dir, store=store, stop=stop)
    try:
        housekeeper.run()
    finally:
        store.close()


def _now() -> datetime:
    return datetime.now(UTC)


def cut_off(kind: Kind, retention: RetentionSettings, now: datetime) -> datetime | None:
    """What had its last event before this has expired; ``None``: nothing ever does."""
    days: float = getattr(retention, f"{kind}_days")
    return now - timedelta(days=days) if days else None


def committing_destinations(settings: Settings) -> tuple[str, ...]:
    """Names of destinations that must commit before the local copy may go."""
    return tuple(each.name for each in settings.destinations if each.storage_commitment)


@dataclass(slots=True, kw_only=True)
class Housekeeper:
    """Deletes what has expired, round by round."""

    settings: Settings
    data_dir: Path
    store: Store
    stop: threading.Event
    clock: Callable[[], datetime] = _now
    guard: DiskGuard | None = None
    expired: dict[str, Size] = field(default_factory=dict)
    """What this process has deleted, by kind."""
    _objects: ObjectFolder = field(init=False)
    _disk: DiskGuard = field(init=False)
    _reported_at: float = field(init=False, default=0.0)
    _failure: str = field(init=False, default="")
    _quarantined: Size = field(init=False, default=Size(files=0, size_bytes=0))

    def __post_init__(self) -> None:
        self._objects = ObjectFolder.in_data_dir(self.data_dir)
        self._disk = self.guard or DiskGuard(self._objects.root, self.settings.disk)

    def run(self) -> None:
        """Until told to stop. A store or disk that fails is tried again."""
        interval_s = self.settings.disk.interval_s
        next_round = time.monotonic()
        swept = in_vain = False
        while not self.stop.is_set():
            try:
                self.report()
                if not swept:
                    self.sweep()
                    swept = True
                pressed = self.is_pressed()
                if time.monotonic() >= next_round or (pressed and not in_vain):
                    removed = self.round()
                    # Where a round found nothing, the next one would find nothing either until time has passed.
                    in_vain = pressed and removed == 0
                    next_round = time.monotonic() + interval_s
                    self._reported_at = 0.0
                self._keep_reserve()
                self._failure = ""
            except StoreError as error:
                self._note(str(error))
                self._give_reserve()
            except OSError as error:
                self._note(f"the disk failed: {error.strerror}")
            self.stop.wait(min(POLL_S, interval_s))

    def is_pressed(self) -> bool:
        """Whether the disk is below the upper mark, or the quarantine over its limits."""
        return self._disk.is_short() or self._is_over(self._quarantined)

    def _is_over(self, held: Size) -> bool:
        limit_bytes = self.settings.disk.quarantine_bytes
        return held.files > MOST_QUARANTINED_FILES or bool(limit_bytes and held.size_bytes > limit_bytes)

    def round(self) -> int:
        """Delete what has expired, oldest first, kind by kind; returns how many rows that were.

        Raises
        ------
        StoreError, OSError
            What was deleted stays so; the rest goes with the next round.
        """
        started, now = time.monotonic(), self.clock()
        removed: dict[str, int] = {}
        before = dict(self.expired)
        for kind in KINDS:
            limit = cut_off(kind, self.settings.retention, now)
            if limit is not None:
                removed[kind] = self._expire(kind, limit, now)
        removed["quarantine"] = removed.get("quarantine", 0) + self._limit_quarantine(now)
        if any(removed.values()):
            none = Size(files=0, size_bytes=0)
            freed = sum(size.size_bytes - before.get(kind, none).size_bytes for kind, size in self.expired.items())
            words = ", ".join(f"{count} {kind}" for kind, count in removed.items() if count)
            logger.info("expired %s: %d bytes, in %.1f s", words, freed, time.monotonic() - started)
        elif self._disk.is_short():
            self._note(f"the disk is short of room and nothing has expired: {self._disk.refusal() or 'not full yet'}")
        return sum(removed.values())

    def _expire(self, kind: Kind, before: datetime, now: datetime) -> int:
        count = 0
        for keys in self._walk(kind, before):
            removed = self._remove(kind, keys, before, now)
            self._delete(kind, removed.paths)
            count += removed.rows
        while kind == "records" and not self.stop.is_set():
            forgotten = forget_quarantined(self.store, before=before)
            count += forgotten
            if not forgotten:
                break
        return count

    def _walk(self, kind: Kind, before: datetime) -> Iterator[tuple[str, ...]]:
        place: Place | None = None
        while not self.stop.is_set():
            found: Candidates = candidates(
                self.store, kind, before=before, committing=committing_destinations(self.settings), place=place
            )
            if found.keys:
                yield found.keys
            self.report()
            place = found.place
            if place is None:
                return

    def _remove(self, kind: Kind, keys: Sequence[str], before: datetime, now: datetime) -> Removed:
        committing = committing_destinations(self.settings)
        if kind == "originals":
            return remove_originals(self.store, keys, before=before, committing=committing, now=now)
        if kind == "results":
            return remove_results(self.store, keys, before=before, committing=committing, now=now)
        if kind == "quarantine":
            return remove_quarantined(self.store, keys, now=now)
        return remove_records(self.store, keys, before=before, committing=committing)

    def _limit_quarantine(self, now: datetime) -> int:
        """The oldest quarantined files go until the rest is within its limits."""
        count = 0
        held = quarantined(self.store)
        while self._is_over(held) and not self.stop.is_set():
            going: list[str] = []
            for key, size_bytes in oldest_quarantined(self.store):
                if not self._is_over(held):
                    break
                going.append(key)
                held = Size(files=held.files - 1, size_bytes=held.size_bytes - size_bytes)
            if not going:
                break
            removed = remove_quarantined(self.store, going, now=now)
            self._delete("quarantine", removed.paths)
            count += removed.rows
            self.report()
        self._quarantined = held
        return count

    def _delete(self, kind: str, paths: Sequence[str]) -> None:
        """Delete files of rows that are marked; one that is not there costs nothing."""
        files = size_bytes = 0
        for relative in paths:
            path = self._objects.path(relative)
            try:
                size = path.stat().st_size
                path.unlink()
            except FileNotFoundError:
                continue
            files += 1
            size_bytes += size
        known = self.expired.get(kind, Size(files=0, size_bytes=0))
        self.expired[kind] = Size(files=known.files + files, size_bytes=known.size_bytes + size_bytes)

    def sweep(self) -> int:
        """Delete files that no row needs: what a kill left; returns how many.

        Received images and quarantined objects by the rows marked last; results, heat maps and pictures by what lies in
        their folders, since a worker that was killed leaves some too.
        """
        count = 0
        for relative in marked_files(self.store, limit=MARKED_LOOKED_AT):
            path = self._objects.path(relative)
            if path.is_file():
                path.unlink(missing_ok=True)
                count += 1
        for folder, needed in (("results", needed_results), ("heat", shown_instances), ("pictures", shown_instances)):
            for sub_folder in sorted((self._objects.root / folder).glob("??")):
                if self.stop.is_set():
                    return count
                count += self._sweep_folder(sub_folder, needed)
                self.report()
        if count:
            logger.info("removed %d files that no row needs", count)
        return count

    def _sweep_folder(self, folder: Path, needed: Callable[[Store, Sequence[str]], frozenset[str]]) -> int:
        names: dict[str, list[Path]] = {}
        for path in folder.iterdir():
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > SETTLED_S:
                    names.setdefault(path.name[:KEY_DIGITS], []).append(path)
        count = 0
        keys = list(names)
        for start in range(0, len(keys), ROWS_A_STEP):
            some = keys[start : start + ROWS_A_STEP]
            for key in set(some) - needed(self.store, some):
                for path in names[key]:
                    path.unlink(missing_ok=True)
                    count += 1
        return count

    def report(self) -> None:
        """A sign of life with the state of the disk, every few seconds."""
        if self._reported_at and time.monotonic() - self._reported_at < REPORT_S:
            return
        self._reported_at = time.monotonic()
        self._quarantined = quarantined(self.store)
        report_process(self.store, name="housekeeper", pid=os.getpid(), now=_now(), detail=self.detail())

    def detail(self) -> dict[str, Any]:
        """What pages and metrics show."""
        room = self._disk.room()
        disk: dict[str, Any] = {"refusing": self._disk.refusal() or "", "refusals": self._disk.refusals}
        if room is not None:
            disk |= {
                "free_bytes": room.free_bytes,
                "total_bytes": room.total_bytes,
                "expire_below_bytes": expire_marks(self.settings.disk, room).least_bytes,
                "refuse_below_bytes": refuse_marks(self.settings.disk, room).least_bytes,
            }
        return {
            "disk": disk,
            "quarantine": asdict(self._quarantined),
            "expired": {kind: asdict(size) for kind, size in self.expired.items()},
        }

    def _keep_reserve(self) -> None:
        """Take back the reserve where there is room for it."""
        room = self._disk.room()
        if self.settings.store.url or room is None or self._disk.is_short() or room.free_bytes < 8 * RESERVE_BYTES:
            return
        with suppress(FileExistsError), (self.data_dir / RESERVE_NAME).open("xb") as stream:
            os.posix_fallocate(stream.fileno(), 0, RESERVE_BYTES)

    def _give_reserve(self) -> None:
        room = self._disk.room()
        if room is not None and room.free_bytes < RESERVE_BYTES:
            with suppress(OSError):
                (self.data_dir / RESERVE_NAME).unlink(missing_ok=True)

    def _note(self, message: str) -> None:
        """Log what is wrong, once as long as it stays so."""
        if message != self._failure:
            logger.error("%s", message)
        self._failure = message


def forecast(settings: Settings, data_dir: Path, store: Store, now: datetime) -> list[dict[str, Any]]:
    """What a round would delete now: for each kind its age limit, rows, files and bytes. Changes nothing.

    Files of a study whose originals and results both go are counted under each kind; rows of the store go one round
    after the last file of their study.
    """
    objects = data_dir / "objects"
    committing = committing_destinations(settings)
    lines: list[dict[str, Any]] = []
    for kind in KINDS:
        before = cut_off(kind, settings.retention, now)
        rows = files = size_bytes = 0
        place: Place | None = None
        counted: set[str] = set()
        while before is not None:
            found = candidates(store, kind, before=before, committing=committing, place=place)
            some = dict(files_of(store, kind, found.keys))
            sizes = [
                _size_on_disk(objects / path) if size is None else size
                for path, size in some.items()
                if path not in counted
            ]
            rows += len(found.keys)
            files += sum(size is not None for size in sizes)
            size_bytes += sum(size or 0 for size in sizes)
            counted = set(some)  # results of one study follow each other
            place = found.place
            if place is None:
                break
        days = getattr(settings.retention, f"{kind}_days")
        lines.append({"kind": kind, "days": days, "rows": rows, "files": files, "size_bytes": size_bytes})
    return lines


def _size_on_disk(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None
