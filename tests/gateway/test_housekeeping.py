"""The housekeeper: rounds, pressure, kills, and a real gateway on a real small file system that fills."""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import subprocess
import threading
import time
import timeit
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from house_rig import DAY, IMAGE_BYTES, NOW, RESULT_BYTES, SHOWN_BYTES, Sending, Shelf, house_settings, keep_house
from intake_rig import PROCESSES, dcmtk, small_dataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from running import running_gateway, wait_until
from sqlalchemy import func, insert, select, update

from gateway.disk import DiskGuard
from gateway.housekeeping import RESERVE_BYTES, RESERVE_NAME, Housekeeper, forecast
from gateway.settings import DiskSettings, Settings
from gateway.spool import sweep
from gateway.store import Store, open_store
from gateway.store.intake import new_key
from gateway.store.monitoring import processes
from gateway.store.retention import Size, quarantined
from gateway.store.schema import delivery, instance, process, result, study
from gateway.store.studies import unfinished_work

OLD = NOW - 200 * DAY


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    store = open_store("", data_dir=tmp_path, migrate=True)
    yield Shelf(store, tmp_path)
    store.close()


def housekeeper(shelf: Shelf, settings: Settings | None = None, guard: DiskGuard | None = None) -> Housekeeper:
    return Housekeeper(
        settings=settings or house_settings(),
        data_dir=shelf.data_dir,
        store=shelf.store,
        stop=threading.Event(),
        clock=lambda: NOW,
        guard=guard,
    )


def test_a_round_counts_what_it_deleted_and_says_so(shelf: Shelf, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        shelf.add(received_at=OLD, images=2, sendings=[Sending()])
    shelf.refuse(received_at=OLD, size=77)
    keeper = housekeeper(shelf)
    with caplog.at_level(logging.INFO):
        assert keeper.round() == 6 + 3 + 1
    assert keeper.expired == {
        "originals": Size(files=6, size_bytes=6 * IMAGE_BYTES),
        "results": Size(files=3 + 12, size_bytes=3 * RESULT_BYTES + 12 * SHOWN_BYTES),
        "quarantine": Size(files=1, size_bytes=77),
    }
    freed = 6 * IMAGE_BYTES + 3 * RESULT_BYTES + 12 * SHOWN_BYTES + 77
    assert f"expired 1 quarantine, 6 originals, 3 results: {freed} bytes" in caplog.text


def test_the_dry_run_says_what_the_round_then_does(shelf: Shelf) -> None:
    for number in range(450):  # more than two steps
        shelf.add(received_at=OLD - timedelta(seconds=number), images=2 if number % 50 == 0 else 1)
    shelf.add(received_at=OLD, on_hold=True)
    shelf.refuse(received_at=OLD)
    told = {line["kind"]: line for line in forecast(house_settings(), shelf.data_dir, shelf.store, NOW)}
    keeper = housekeeper(shelf)
    keeper.round()
    done = {kind: (size.files, size.size_bytes) for kind, size in keeper.expired.items()}
    done["records"] = (0, 0)
    assert {kind: (line["files"], line["size_bytes"]) for kind, line in told.items()} == done
    assert (told["originals"]["rows"], told["results"]["rows"]) == (459, 450)


def test_the_quarantine_has_a_limit_and_its_oldest_go_first(shelf: Shelf) -> None:
    keys = [shelf.refuse(received_at=NOW - timedelta(minutes=9 - number), size=100) for number in range(9)]
    keeper = housekeeper(shelf, house_settings(**{"disk.quarantine_bytes": 450}))
    keeper.report()
    assert keeper.is_pressed()
    assert keeper.round() == 5
    assert shelf.files("quarantine") == {f"quarantine/{key}.dcm" for key in keys[5:]}
    assert quarantined(shelf.store) == Size(files=4, size_bytes=400)
    assert not keeper.is_pressed()


def test_a_quarantine_of_zero_bytes_has_no_limit(shelf: Shelf) -> None:
    shelf.refuse(received_at=NOW, size=100)
    assert housekeeper(shelf, house_settings(**{"disk.quarantine_bytes": 0})).round() == 0


class SmallDisk:
    """A file system of 1000 bytes, as full as told."""

    def __init__(self) -> None:
        self.free_bytes = 1000

    def __call__(self, _: Path) -> os.statvfs_result:
        return os.statvfs_result((1, 1, 1000, self.free_bytes, self.free_bytes, 0, 0, 0, 0, 255))


def test_a_short_disk_starts_a_round_at_once_and_what_has_not_expired_stays(shelf: Shelf) -> None:
    disk = SmallDisk()
    limits = {"expire_below_bytes": 300, "refuse_below_bytes": 100}
    fractions = {"expire_below_fraction": 0.9, "refuse_below_fraction": 0.9}
    guard = DiskGuard(
        shelf.data_dir,
        DiskSettings.model_validate({**limits, **fractions, "interval_s": 3600, "quarantine_bytes": 0}),
        ask=disk,
    )
    keeper = housekeeper(shelf, house_settings(**{"disk.interval_s": 3600}), guard)
    running = threading.Thread(target=keeper.run)
    running.start()
    try:
        wait_until(lambda: reported(shelf.store), "the housekeeper")
        young, old = shelf.add(received_at=NOW), shelf.add(received_at=OLD)
        assert shelf.studies_with("instances") == {young, old}
        disk.free_bytes = 299
        wait_until(lambda: shelf.studies_with("instances") == {young}, "the old study to go")
        disk.free_bytes = 50
        wait_until(lambda: reported(shelf.store)["disk"]["refusing"], "the report of a full disk")
        assert shelf.studies_with("instances") == {young}
    finally:
        keeper.stop.set()
        running.join(30)
    assert not running.is_alive()


def reported(store: Store) -> dict[str, dict[str, object]]:
    return next((row["detail"] for row in processes(store) if row["name"] == "housekeeper"), {})


def test_it_finds_what_a_kill_left(shelf: Shelf) -> None:
    shelf.add(received_at=OLD)
    shelf.refuse(received_at=OLD)
    kept = shelf.add(received_at=NOW)
    before = {name: shelf.files(name) for name in ("instances", "results", "heat", "pictures", "quarantine")}
    housekeeper(shelf).round()
    after = {name: shelf.files(name) for name in before}
    for name, paths in before.items():
        for path in paths - after[name]:  # as if the kill had come between commit and unlink
            shelf.write(path, 10)
    half_written = shelf.write("results/ab/.half.dcm.123", 10)
    assert housekeeper(shelf).sweep() == 6
    assert {name: shelf.files(name) for name in before} == after
    assert shelf.studies_with("instances") == shelf.studies_with("results") == {kept}
    assert not shelf.objects.path(half_written).exists()


def test_it_leaves_alone_what_a_worker_may_just_be_writing(shelf: Shelf) -> None:
    path = shelf.objects.path(shelf.write(f"results/ab/ab{new_key()[2:]}.dcm", 10))
    os.utime(path)
    assert housekeeper(shelf).sweep() == 0
    assert path.is_file()


def test_the_sweep_at_start_removes_expired_files_that_are_still_there(shelf: Shelf) -> None:
    shelf.add(received_at=OLD)
    shelf.refuse(received_at=OLD)
    there = shelf.files("instances") | shelf.files("quarantine")
    housekeeper(shelf).round()
    for path in there:
        shelf.write(path, 10)
    assert sweep(shelf.store, shelf.objects.root) == 2


def test_killed_again_and_again_it_leaves_store_and_disk_consistent(shelf: Shelf) -> None:
    rounds, pause = 8, random.Random(3)
    expired = 3000
    for number in range(expired // 10):
        shelf.add(received_at=OLD - timedelta(seconds=number), images=10, judged=number % 10 == 0)
    held = {shelf.add(received_at=OLD, on_hold=True), shelf.add(received_at=OLD, sendings=[Sending(state="dead")])}
    killed_in_work = 0
    for _ in range(rounds):
        marked = marks(shelf)
        killed = PROCESSES.Process(target=keep_house, args=(house_settings(), shelf.data_dir))
        killed.start()
        deadline = time.monotonic() + 60
        while marks(shelf) == marked and not is_done(shelf):
            assert time.monotonic() < deadline, "it deletes nothing"
            time.sleep(0.002)
        time.sleep(pause.uniform(0, 0.02))
        killed.kill()
        killed.join()
        killed_in_work += not is_done(shelf)
        there = set().union(*(shelf.files(name) for name in ("instances", "results", "heat")))
        assert shelf.promised() <= there, "a row promises a file that is gone"
        assert shelf.studies_with("instances") >= held
        if is_done(shelf):
            break
    assert killed_in_work >= 3, "the kills came too late to test anything"
    keeper = housekeeper(shelf)
    keeper.sweep()
    keeper.round()
    assert shelf.studies_with("instances") == shelf.studies_with("results") == held
    there = set().union(*(shelf.files(name) for name in ("instances", "results", "heat")))
    assert there == shelf.promised()
    assert len(shelf.files("pictures")) == len(held)


def marks(shelf: Shelf) -> int:
    with shelf.store.read() as connection:
        removed = select(func.count()).select_from(instance).where(instance.c.removed_at.is_not(None))
        return connection.execute(removed).scalar_one()


def is_done(shelf: Shelf) -> bool:
    with shelf.store.read() as connection:
        left = select(func.count()).select_from(instance).where(instance.c.removed_at.is_(None))
        return connection.execute(left).scalar_one() <= 2


def test_idle_it_costs_next_to_nothing(shelf: Shelf) -> None:
    running = PROCESSES.Process(target=keep_house, args=(house_settings(), shelf.data_dir))
    running.start()
    try:
        pid = running.pid
        wait_until(lambda: reported(shelf.store), "the housekeeper")
        # Its first round and sweep are part of its start.
        first_seen = last_seen(shelf.store)
        wait_until(lambda: last_seen(shelf.store) > first_seen, "another report")
        ticks = cpu_ticks(pid)
        again = last_seen(shelf.store)
        wait_until(lambda: last_seen(shelf.store) > again, "another report")
        used_s = (cpu_ticks(pid) - ticks) / os.sysconf("SC_CLK_TCK")
    finally:
        running.terminate()
        running.join(30)
    assert running.exitcode == 0
    assert used_s < 0.5  # in five seconds


def last_seen(store: Store) -> datetime:
    with store.read() as connection:
        seen: datetime = connection.execute(
            select(process.c.seen_at).where(process.c.name == "housekeeper")
        ).scalar_one()
        return seen


def cpu_ticks(pid: int | None) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_a_round_that_finds_nothing_among_many_is_quick(shelf: Shelf) -> None:
    rows = 20_000
    with shelf.store.write() as connection:
        keys = [new_key() for _ in range(rows)]
        connection.execute(
            insert(study),
            [
                {
                    "study_key": key,
                    "study_instance_uid": f"1.2.{number}",
                    "state": "judged",
                    "first_received_at": NOW,
                    "last_received_at": NOW,
                    "complete_at": NOW,
                }
                for number, key in enumerate(keys)
            ],
        )
    keeper = housekeeper(shelf)
    keeper.round()
    assert min(timeit.repeat(keeper.round, number=1, repeat=3)) < 0.25


# ---- on a real small file system, under a real gateway


@contextmanager
def small_file_system(folder: Path, megabytes: int) -> Iterator[Path]:
    """A tmpfs of that size."""
    if os.getuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


CONFIG = """
rules = []

[dicom]
receivers = 1

[web]
authentication = "off"

[worker]
count = 1

[completion]
single_image_quiet_time_s = 0
other_quiet_time_s = 0

[disk]
expire_below_fraction = 0.99
expire_below_bytes = 25000000
refuse_below_fraction = 0.99
refuse_below_bytes = 10000000
interval_s = 1

[retention]
originals_days = 30
"""
PIXEL_BYTES = 4_000_000


def large_file(path: Path) -> Path:
    """A CT image of 4 MB that no file system makes smaller."""
    dataset = small_dataset(
        SOPInstanceUID=generate_uid(), StudyInstanceUID=generate_uid(), SeriesInstanceUID=generate_uid()
    )
    dataset.Rows, dataset.Columns = 1000, 2000
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.PixelData = np.random.default_rng(1).integers(0, 4096, PIXEL_BYTES // 2, dtype="<u2").tobytes()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dcmwrite(path, dataset, enforce_file_format=True)
    return path


def send_one(path: Path, port: int) -> str:
    """What DCMTK's storescu says of the answer."""
    command = [dcmtk("storescu"), "-v", "-aec", "GATEWAY", "127.0.0.1", str(port), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    lines = (done.stdout + done.stderr).splitlines()
    return next((line for line in lines if "Received Store Response" in line), "\n".join(lines))


def fill(gateway: object, folder: Path, port: int) -> int:
    """Send until refused; how many were accepted."""
    for accepted in range(40):
        answer = send_one(large_file(folder / f"{new_key()}.dcm"), port)
        if "Success" not in answer:
            assert "OutOfResources" in answer, answer
            return accepted
    raise AssertionError("it never refused")


def test_a_disk_that_fills_is_emptied_of_what_expired_refuses_and_recovers(tmp_path: Path) -> None:
    sent = tmp_path / "sent"
    sent.mkdir()
    with (
        small_file_system(tmp_path / "gateway" / "data" / "objects", 60) as objects,
        running_gateway(tmp_path / "gateway", CONFIG) as gateway,
    ):
        store = open_store("", data_dir=gateway.data_dir)
        shelf = Shelf(store, gateway.data_dir)
        assert "Success" in send_one(large_file(sent / "first.dcm"), gateway.dicom_port)
        assert fill(gateway, sent, gateway.dicom_port) >= 9
        assert shutil.disk_usage(objects).free < 10_000_000
        young = shelf.studies_with("instances")
        assert len(young) >= 10
        wait_until(lambda: not unfinished_work(store, datetime.now(UTC)), "all studies to be settled")
        # Full, and nothing has expired: nothing goes, and it refuses on.
        wait_until(lambda: "nothing has expired" in gateway.log(), "a round in vain")
        assert shelf.studies_with("instances") == young
        assert "OutOfResources" in send_one(large_file(sent / "again.dcm"), gateway.dicom_port)

        held, unsent, *gone = sorted(young)[:5]
        place = ["--data-dir", str(gateway.data_dir)]
        assert gateway.command("studies", "hold", held, "--reason", "a question", *place).returncode == 0
        make_unsent(store, unsent)
        for key in (held, unsent, *gone):
            make_old(store, key)
        wait_until(lambda: shelf.studies_with("instances") == young - set(gone), "the expired to go")
        # It recovers by itself, and takes what it refused.
        wait_until(lambda: "Success" in send_one(sent / "again.dcm", gateway.dicom_port), "room again")
        assert shutil.disk_usage(objects).free > 5_000_000

        fill(gateway, sent, gateway.dicom_port)
        assert young - set(gone) <= shelf.studies_with("instances")
        assert shelf.promised() == set().union(*(shelf.files(name) for name in ("instances", "quarantine")))
        wait_until(lambda: 'gateway_expired_files_total{kind="originals"}' in gateway.text("/metrics"), "a report")
        metrics = gateway.text("/metrics")
        assert 'gateway_expired_files_total{kind="originals"} 3.0' in metrics
        assert "gateway_disk_free_bytes" in metrics

        # Released, the held one expires too.
        assert gateway.command("studies", "release", held, *place).returncode == 0
        wait_until(lambda: held not in shelf.studies_with("instances"), "the released study to go")
        assert unsent in shelf.studies_with("instances")
        told = gateway.command("retention", "--dry-run", "--json", *place)
        assert {line["kind"]: line["rows"] for line in json.loads(told.stdout)}["originals"] == 0
        store.close()
    assert "Traceback" not in gateway.log()


def make_old(store: Store, study_key: str) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=60)
    with store.write() as connection:
        connection.execute(
            update(study).where(study.c.study_key == study_key).values(last_received_at=long_ago, judged_at=long_ago)
        )
        connection.execute(update(instance).where(instance.c.study_key == study_key).values(received_at=long_ago))


def make_unsent(store: Store, study_key: str) -> None:
    """A dead letter of that study."""
    long_ago, key = datetime.now(UTC) - timedelta(days=60), new_key()
    with store.write() as connection:
        connection.execute(
            insert(result).values(
                result_key=key,
                study_key=study_key,
                kind="SR",
                sop_class_uid="1.2.840.10008.5.1.4.1.1.88.34",
                sop_instance_uid=f"1.4.{int(key, 16)}",
                path="results/none",
                created_at=long_ago,
                removed_at=long_ago,
            )
        )
        connection.execute(
            insert(delivery).values(
                result_key=key,
                study_key=study_key,
                destination="gone",
                state="dead",
                next_attempt_at=long_ago,
                created_at=long_ago,
            )
        )


def test_a_reserve_is_kept_and_given_on_a_disk_that_is_full_to_the_last_byte(tmp_path: Path) -> None:
    with small_file_system(tmp_path / "data", 100) as data_dir:
        store = open_store("", data_dir=data_dir, migrate=True)
        shelf = Shelf(store, data_dir)
        for _ in range(300):
            shelf.add(received_at=OLD, judged=False)
        keeper = housekeeper(shelf)
        running = threading.Thread(target=keeper.run)
        young = shelf.add(received_at=NOW)
        keeper._keep_reserve()
        assert (data_dir / RESERVE_NAME).stat().st_size == RESERVE_BYTES
        with (data_dir / "filler").open("wb") as filler:
            free = os.statvfs(data_dir)
            os.posix_fallocate(filler.fileno(), 0, free.f_bavail * free.f_frsize)
        assert shutil.disk_usage(data_dir).free == 0
        running.start()
        try:
            wait_until(lambda: shelf.studies_with("instances") == {young}, "the expired to go from a full disk")
        finally:
            keeper.stop.set()
            running.join(30)
            store.close()
    assert not running.is_alive()
