"""When the gateway must not take more in: too little room on the disk, or too many studies not yet judged.

Both guards are asked for every data set that a peer wants to send, so an answer costs microseconds and what it rests on
is looked at again a few times a second at most. Both leave a refusal a little later than they enter it, so that a disk
which hovers about its mark does not flap with every byte, and both recover by themselves.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import func, select

from gateway.errors import StoreError
from gateway.settings import DiskSettings
from gateway.store import Store
from gateway.store.schema import study
from gateway.study import UNFINISHED

DISK_LOOK_S = 0.2
"""How long one look at the file system serves."""
QUEUE_LOOK_S = 2.0
QUEUE_WAIT_S = 0.05
"""How long a caller waits for a count that is due; then the last one serves."""
PATIENCE_S = 5.0
"""How long a look may take before its silence is a refusal: a network file system that hangs."""
RECOVERY_FRACTION = 0.10
"""Above the mark by so much of it, a refusal for want of room ends."""
QUEUE_RECOVERY_FRACTION = 0.05
EXPIRE_BELOW_FILES = 100_000
REFUSE_BELOW_FILES = 10_000
"""Inodes run out as bytes do; the marks are the fractions of the settings, or these where they are smaller."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """A file system at one moment, as an unprivileged process sees it."""

    free_bytes: int
    total_bytes: int
    free_files: int
    total_files: int
    """0 where the file system makes inodes as it needs them."""

    @classmethod
    def of(cls, status: os.statvfs_result) -> Room:
        """What ``statvfs`` said."""
        return cls(
            free_bytes=status.f_bavail * status.f_frsize,
            total_bytes=status.f_blocks * status.f_frsize,
            free_files=status.f_favail,
            total_files=status.f_files,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """Below what a file system is short."""

    least_bytes: int
    least_files: int

    def shortage(self, room: Room, *, margin_fraction: float = 0.0) -> str:
        """What `room` lacks, in words; empty when it lacks nothing."""
        if room.free_bytes < self.least_bytes * (1 + margin_fraction):
            return f"{room.free_bytes} bytes free, {self.least_bytes} are the least"
        if room.free_files < self.least_files * (1 + margin_fraction):
            return f"{room.free_files} files free, {self.least_files} are the least"
        return ""


def expire_marks(settings: DiskSettings, room: Room) -> Marks:
    """The upper marks: below them, what has expired is deleted at once."""
    return _marks(settings.expire_below_fraction, settings.expire_below_bytes, EXPIRE_BELOW_FILES, room)


def refuse_marks(settings: DiskSettings, room: Room) -> Marks:
    """The lower marks: below them, nothing is taken in."""
    return _marks(settings.refuse_below_fraction, settings.refuse_below_bytes, REFUSE_BELOW_FILES, room)


def _marks(fraction: float, least_bytes: int, least_files: int, room: Room) -> Marks:
    return Marks(
        least_bytes=min(int(fraction * room.total_bytes), least_bytes),
        # A setting of 0 bytes switches the guard off, for files too.
        least_files=min(int(fraction * room.total_files), least_files) if least_bytes else 0,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    at_s: float
    room: Room | None
    refusal: str | None
    short: bool


class DiskGuard:
    """Says whether the disk has room. May be asked by many threads.

    Parameters
    ----------
    folder
        Any folder on the file system that fills.
    ask
        Stands in for ``os.statvfs`` in tests.
    clock
        Seconds that only ever grow.
    """

    def __init__(
        self,
        folder: Path,
        settings: DiskSettings,
        *,
        ask: Callable[[Path], os.statvfs_result] = os.statvfs,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._settings = settings
        self._ask = ask
        self._clock = clock
        self._looks = threading.Lock()
        self._looking_since_s: float | None = None
        self._last: _Look | None = None
        self._refusals = 0

    def refusal(self) -> str | None:
        """Why nothing may be taken in now, for the peer and the log; ``None`` when there is room."""
        return self._look().refusal

    def is_short(self) -> bool:
        """Whether less is free than the mark below which expired data goes; also where the disk does not answer."""
        return self._look().short

    def room(self) -> Room | None:
        """The file system as last looked at; ``None`` when it did not answer."""
        return self._look().room

    @property
    def refusals(self) -> int:
        """How often this guard went from room to none."""
        return self._refusals

    def _look(self) -> _Look:
        last, now_s = self._last, self._clock()
        if last is not None and now_s - last.at_s < DISK_LOOK_S:
            return last
        # One thread looks, the others go on with what is known; the very first wait for it.
        if not self._looks.acquire(blocking=last is None):
            assert last is not None
            since_s = self._looking_since_s
            if since_s is not None and now_s - since_s > PATIENCE_S:
                return _Look(at_s=now_s, room=None, refusal="the disk does not answer", short=True)
            return last
        try:
            last = self._last
            if last is not None and self._clock() - last.at_s < DISK_LOOK_S:
                return last
            self._looking_since_s = self._clock()
            self._last = found = self._look_now(last)
            if found.refusal is not None and (last is None or last.refusal is None):
                self._refusals += 1
            return found
        finally:
            self._looking_since_s = None
            self._looks.release()

    def _look_now(self, last: _Look | None) -> _Look:
        try:
            room = Room.of(self._ask(self._folder))
        except OSError as error:
            reason = f"the disk cannot be looked at: {error.strerror or type(error).__name__}"
            return _Look(at_s=self._clock(), room=None, refusal=reason, short=True)
        refused = last is not None and last.refusal is not None
        lack = refuse_marks(self._settings, room).shortage(room, margin_fraction=RECOVERY_FRACTION if refused else 0.0)
        return _Look(
            at_s=self._clock(),
            room=room,
            refusal=f"the disk is full: {lack}" if lack else None,
            short=bool(expire_marks(self._settings, room).shortage(room)),
        )


class QueueGuard:
    """Says whether too many studies wait to be judged. May be asked by many threads.

    The store is counted in a thread of its own, so that a slow store delays no peer for longer than
    :data:`QUEUE_WAIT_S`.
    """

    def __init__(self, store: Store, longest: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._longest = longest
        self._clock = clock
        self._lock = threading.Lock()
        self._counted: threading.Event | None = None
        """Set when the count under way is done; ``None`` when none is."""
        self._counted_at_s: float | None = None
        self._refusal: str | None = None

    def refusal(self) -> str | None:
        """Why no further study may come now, for the peer and the log; ``None`` when it may."""
        if self._counted_at_s is None or self._clock() - self._counted_at_s >= QUEUE_LOOK_S:
            self._count_soon().wait(QUEUE_WAIT_S)
        return self._refusal

    def _count_soon(self) -> threading.Event:
        with self._lock:
            if self._counted is None:
                self._counted = threading.Event()
                threading.Thread(target=self._count, args=(self._counted,), name="queue-count", daemon=True).start()
            return self._counted

    def _count(self, done: threading.Event) -> None:
        try:
            waiting = unfinished_studies(self._store, at_most=self._longest + 1)
            least = self._longest * (1 - QUEUE_RECOVERY_FRACTION) if self._refusal else self._longest
            refusal = f"{self._longest} studies wait to be judged, no more are taken" if waiting > least else None
        except StoreError as error:
            refusal = str(error)
        with self._lock:
            self._refusal = refusal
            self._counted_at_s = self._clock()
            self._counted = None
        done.set()


def unfinished_studies(store: Store, *, at_most: int) -> int:
    """How many studies are not judged yet; counts no further than `at_most`."""
    waiting = select(study.c.state).where(study.c.state.in_(UNFINISHED)).limit(at_most).subquery()
    with store.read() as connection:
        return connection.execute(select(func.count()).select_from(waiting)).scalar_one()
