"""The two guards: when they refuse, and that they recover by themselves."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import timeit
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import insert, update

from gateway.disk import DISK_LOOK_S, PATIENCE_S, QUEUE_LOOK_S, DiskGuard, QueueGuard, Room, expire_marks, refuse_marks
from gateway.errors import StoreError
from gateway.settings import DiskSettings
from gateway.store import Store, open_store
from gateway.store.schema import study
from gateway.study import StudyState

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def pass_s(self, seconds: float) -> None:
        self.now_s += seconds


class Disk:
    """A file system of a hundred blocks of 1000 bytes, and a hundred thousand inodes."""

    def __init__(self) -> None:
        self.free_blocks = 100
        self.free_files = 100_000
        self.failure: OSError | None = None
        self.looks = 0

    def __call__(self, _: Path) -> os.statvfs_result:
        self.looks += 1
        if self.failure is not None:
            raise self.failure
        free, files = self.free_blocks, self.free_files
        # bsize, frsize, blocks, bfree, bavail, files, ffree, favail, flag, namemax
        return os.statvfs_result((4096, 1000, 100, free + 5, free, 100_000, files + 5, files, 0, 255))


def disk_settings(**changes: float) -> DiskSettings:
    values: dict[str, float] = {
        "expire_below_fraction": 0.30,
        "expire_below_bytes": 1 << 40,
        "refuse_below_fraction": 0.10,
        "refuse_below_bytes": 1 << 40,
        "interval_s": 60,
        "quarantine_bytes": 0,
    }
    return DiskSettings.model_validate({**values, **changes})


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def guard(disk: Disk, clock: Clock, tmp_path: Path) -> DiskGuard:
    return DiskGuard(tmp_path, disk_settings(), ask=disk, clock=clock)


def test_a_mark_is_the_smaller_of_its_two_settings() -> None:
    room = Room(free_bytes=0, total_bytes=1000, free_files=0, total_files=0)
    assert expire_marks(disk_settings(), room).least_bytes == 300
    assert expire_marks(disk_settings(expire_below_bytes=200, refuse_below_bytes=20), room).least_bytes == 200
    assert refuse_marks(disk_settings(expire_below_bytes=200, refuse_below_bytes=20), room).least_bytes == 20
    assert refuse_marks(disk_settings(), room).least_bytes == 100


@pytest.mark.parametrize(
    ("free_blocks", "refused", "short"), [(100, False, False), (30, False, False), (29, False, True), (9, True, True)]
)
def test_two_marks(guard: DiskGuard, disk: Disk, free_blocks: int, refused: bool, short: bool) -> None:
    disk.free_blocks = free_blocks
    assert (guard.refusal() is not None, guard.is_short()) == (refused, short)


def test_says_why(guard: DiskGuard, disk: Disk) -> None:
    disk.free_blocks = 9
    assert guard.refusal() == "the disk is full: 9000 bytes free, 10000 are the least"


def test_recovers_by_itself_and_does_not_flap(guard: DiskGuard, disk: Disk, clock: Clock) -> None:
    seen = []
    for free_blocks in (10, 9, 10, 11, 10, 9):
        disk.free_blocks = free_blocks
        clock.pass_s(DISK_LOOK_S)
        seen.append(guard.refusal() is not None)
    # Entered below 10 blocks, left at 11 (a tenth above), entered again below 10.
    assert seen == [False, True, True, False, False, True]
    assert guard.refusals == 2


def test_inodes_run_out_too(guard: DiskGuard, disk: Disk, clock: Clock) -> None:
    disk.free_files = 29_999
    assert (guard.refusal(), guard.is_short()) == (None, True)
    disk.free_files = 9_999
    clock.pass_s(DISK_LOOK_S)
    assert guard.refusal() == "the disk is full: 9999 files free, 10000 are the least"


def test_a_file_system_that_counts_no_inodes_is_not_short_of_them(tmp_path: Path) -> None:
    def ask(_: Path) -> os.statvfs_result:
        return os.statvfs_result((4096, 1000, 100, 90, 90, 0, 0, 0, 0, 255))

    guard = DiskGuard(tmp_path, disk_settings(), ask=ask)
    assert (guard.refusal(), guard.is_short()) == (None, False)


def test_marks_of_zero_never_refuse(tmp_path: Path, disk: Disk) -> None:
    disk.free_blocks = disk.free_files = 0
    guard = DiskGuard(tmp_path, disk_settings(refuse_below_bytes=0, expire_below_bytes=0), ask=disk)
    assert (guard.refusal(), guard.is_short()) == (None, False)


def test_a_disk_that_cannot_be_looked_at_is_a_refusal(guard: DiskGuard, disk: Disk, clock: Clock) -> None:
    disk.failure = OSError(errno.EIO, "Input/output error")
    assert guard.refusal() == "the disk cannot be looked at: Input/output error"
    disk.failure = None
    clock.pass_s(DISK_LOOK_S)
    assert guard.refusal() is None


def test_a_look_serves_many_askers(guard: DiskGuard, disk: Disk, clock: Clock) -> None:
    for _ in range(1000):
        guard.refusal()
        guard.is_short()
    assert disk.looks == 1
    clock.pass_s(DISK_LOOK_S)
    guard.refusal()
    assert disk.looks == 2


def test_an_answer_costs_microseconds(tmp_path: Path) -> None:
    guard = DiskGuard(tmp_path, disk_settings(refuse_below_bytes=0, expire_below_bytes=0))
    best_s = min(timeit.repeat(guard.refusal, number=1000, repeat=5)) / 1000
    assert best_s < 50e-6


def test_a_disk_that_hangs_holds_one_asker_and_is_then_a_refusal(tmp_path: Path, disk: Disk, clock: Clock) -> None:
    hangs, released = threading.Event(), threading.Event()

    def ask(folder: Path) -> os.statvfs_result:
        if disk.looks == 1:
            hangs.set()
            assert released.wait(30)
        return disk(folder)

    guard = DiskGuard(tmp_path, disk_settings(), ask=ask, clock=clock)
    assert guard.refusal() is None
    clock.pass_s(DISK_LOOK_S)
    held = threading.Thread(target=guard.refusal)
    held.start()
    assert hangs.wait(30)
    assert guard.refusal() is None  # what was known serves
    clock.pass_s(PATIENCE_S + 1)
    assert guard.refusal() == "the disk does not answer"
    released.set()
    held.join(30)
    assert guard.refusal() is None


def test_many_threads_get_the_same_answer(tmp_path: Path, disk: Disk) -> None:
    disk.free_blocks = 9
    guard = DiskGuard(tmp_path, disk_settings(), ask=disk)
    answers: list[str | None] = []
    threads = [threading.Thread(target=lambda: answers.append(guard.refusal())) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert set(answers) == {"the disk is full: 9000 bytes free, 10000 are the least"}
    assert (len(answers), disk.looks) == (16, 1)


def test_a_real_file_system(tmp_path: Path) -> None:
    usage = shutil.disk_usage(tmp_path)
    room = DiskGuard(tmp_path, disk_settings()).room()
    assert room is not None
    assert room.total_bytes == usage.total
    assert abs(room.free_bytes - usage.free) < 1 << 30  # others write meanwhile


def add_studies(store: Store, count: int, state: StudyState) -> None:
    with store.write() as connection:
        for number in range(count):
            key = f"{state}{number}"[:32]
            connection.execute(
                insert(study).values(
                    study_key=key,
                    study_instance_uid=f"1.2.{abs(hash(state))}.{number}"[:64],
                    state=state,
                    first_received_at=NOW,
                    last_received_at=NOW,
                    complete_at=NOW,
                )
            )


def test_queue_counts_what_is_not_judged(store: Store, clock: Clock) -> None:
    guard = QueueGuard(store, 20, clock=clock)
    add_studies(store, 30, StudyState.JUDGED)
    add_studies(store, 10, StudyState.RECEIVING)
    add_studies(store, 10, StudyState.QUEUED)
    assert settled(guard) is None
    add_studies(store, 1, StudyState.PROCESSING)
    clock.pass_s(QUEUE_LOOK_S)
    assert settled(guard) == "20 studies wait to be judged, no more are taken"
    # It ends a twentieth below its mark.
    finish(store, "queued0", "queued1")
    clock.pass_s(QUEUE_LOOK_S)
    assert settled(guard) is None


def test_queue_does_not_flap(store: Store, clock: Clock) -> None:
    guard = QueueGuard(store, 20, clock=clock)
    add_studies(store, 21, StudyState.QUEUED)
    assert settled(guard) is not None
    finish(store, "queued0")
    clock.pass_s(QUEUE_LOOK_S)
    assert settled(guard) is not None  # 20 wait: the mark, which a guard that had not refused would let pass


def finish(store: Store, *keys: str) -> None:
    with store.write() as connection:
        connection.execute(update(study).where(study.c.study_key.in_(keys)).values(state=StudyState.JUDGED))


def settled(guard: QueueGuard) -> str | None:
    """The answer once the count under way is done."""
    guard._count_soon().wait(30)
    return guard.refusal()


def test_a_store_that_fails_is_a_refusal(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path / 'none' / 'gateway.db'}", data_dir=tmp_path)
    with pytest.raises(StoreError), store.read():
        pass
    guard = QueueGuard(store, 10)
    answer = settled(guard)
    assert answer is not None and answer.startswith("the store failed")


def test_a_slow_store_does_not_hold_its_asker(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    def count(_: Store, *, at_most: int) -> int:
        assert released.wait(30)
        return at_most

    monkeypatch.setattr("gateway.disk.unfinished_studies", count)
    guard = QueueGuard(open_store("", data_dir=tmp_path, migrate=True), 10, clock=clock)
    assert guard.refusal() is None  # nothing is known yet; the call came back
    released.set()
    assert settled(guard) is not None
