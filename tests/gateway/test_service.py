"""The supervisor's own decisions; what it does with real processes is in ``tests/test_flow.py``."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest
from intake_rig import peer, small_dataset
from running import running_gateway

from gateway.service import _watch, visible_devices


@pytest.mark.parametrize(
    ("chosen", "present", "expected"),
    [
        (None, [], []),
        (None, ["nvidia10", "nvidia2", "nvidia0", "nvidiactl", "nvidia-uvm"], ["0", "2", "10"]),
        ("1, 3", ["nvidia0", "nvidia1", "nvidia3"], ["1", "3"]),
        ("", ["nvidia0"], []),
        ("GPU-4b9c", ["nvidia0"], ["GPU-4b9c"]),
    ],
)
def test_each_worker_gets_a_device_that_may_be_used(
    tmp_path: Path, chosen: str | None, present: list[str], expected: list[str]
) -> None:
    for name in present:
        (tmp_path / name).touch()
    assert visible_devices(chosen, tmp_path) == expected


def test_a_byte_on_the_lifeline_stops_at_once_even_what_drains() -> None:
    read_end, write_end = os.pipe()
    stop = threading.Event()
    os.write(write_end, b"s")
    _watch(read_end, stop, lambda: False)
    assert stop.is_set()
    os.close(write_end)
    os.close(read_end)


def test_the_end_of_the_lifeline_stops_what_drains_when_nothing_is_left() -> None:
    read_end, write_end = os.pipe()
    stop = threading.Event()
    os.close(write_end)
    looks: list[bool] = []

    def drained() -> bool:
        looks.append(stop.is_set())
        return len(looks) > 1

    _watch(read_end, stop, drained)
    assert stop.is_set()
    assert looks == [False, False]
    os.close(read_end)


def test_what_is_kept_is_closed_to_others(tmp_path: Path) -> None:
    with running_gateway(tmp_path) as gateway:
        with peer(gateway.dicom_port) as association:
            assert association.send_c_store(small_dataset()).Status == 0x0000
        kept = [path for path in gateway.data_dir.rglob("*") if path.is_file()]
        assert any(path.suffix == ".dcm" for path in kept)
        shared = [path.name for path in kept if stat.S_IMODE(path.stat().st_mode) & 0o077]
        assert shared == []
