"""Decoding in processes with limits: bombs, crashes, hangs, and what is left behind afterwards.

Where a decoder has to misbehave, the process loads a module of the test's own in place of CharLS's: what it then does
(a segmentation fault, four gigabytes, an endless loop) is real.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bombs import BOMBS, deflate_bomb, described, jpeg_2000_saying, jpeg_saying
from picture_encodings import LOSSLESS, colour_scene, encoded, grey_scene, image_dataset, jpeg, jpeg_dataset, reread
from pydicom import Dataset, dcmread
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit
from running import wait_until

from models import decoding
from models.decoding import DecodingLimits, DecodingPool, DirectDecoder
from models.errors import DecoderUnavailableError, PixelError, UnsafePixelError
from models.frame import Frame
from models.pixels import read_frame

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests/fixtures/dicom"
LEAST_MEMORY_BYTES = 1 << 28


@pytest.fixture
def pool() -> Iterator[DecodingPool]:
    made = DecodingPool(size=1)
    yield made
    made.close()


def grey_in(name: str) -> Dataset:
    dataset = image_dataset(grey_scene(), photometric_interpretation="MONOCHROME2", bits_stored=12)
    return encoded(dataset, LOSSLESS[name])


def large() -> Dataset:
    """Takes JPEG 2000 some hundred milliseconds."""
    dataset = image_dataset(grey_scene(1500, 1500), photometric_interpretation="MONOCHROME2", bits_stored=12)
    return encoded(dataset, LOSSLESS["JPEG 2000 lossless"])


def same(one: Frame, other: Frame) -> bool:
    return one.pixels.dtype == other.pixels.dtype and np.array_equal(one.pixels, other.pixels)


@pytest.fixture
def misbehave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let JPEG-LS be decoded by this body of a function of `frame`, in the processes that start from now on."""

    def install(body: str) -> None:
        lines = ["import ctypes, os, resource, socket, time", "def decode_pixel_data(frame):", f"    {body}"]
        (tmp_path / "jpeg_ls.py").write_text("\n".join(lines))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return install


class TestSamePixels:
    @pytest.mark.parametrize("path", sorted(FIXTURES.glob("*.dcm")), ids=lambda path: path.stem)
    def test_as_in_this_process(self, pool: DecodingPool, path: Path) -> None:
        dataset = dcmread(path)
        assert same(read_frame(dataset, decoder=pool), read_frame(dataset, decoder=DirectDecoder()))

    def test_a_frame_outlives_the_next(self, pool: DecodingPool) -> None:
        """Samples lie in memory that the next frame uses again."""
        first = read_frame(jpeg_dataset(jpeg(colour_scene()), photometric_interpretation="RGB"), decoder=pool)
        kept = first.pixels.copy()
        read_frame(jpeg_dataset(jpeg(255 - colour_scene()), photometric_interpretation="RGB"), decoder=pool)
        np.testing.assert_array_equal(first.pixels, kept)

    def test_many_threads(self) -> None:
        pool = DecodingPool(size=3)
        names = ["RLE", "JPEG-LS lossless", "JPEG 2000 lossless", "JPEG lossless"]
        datasets = [grey_in(name) for name in names] * 8
        with ThreadPoolExecutor(6) as threads:
            frames = list(threads.map(lambda dataset: read_frame(dataset, decoder=pool), datasets))
        assert all(same(frame, frames[0]) for frame in frames)
        assert 1 <= len(pool.pids()) <= 3
        pool.close()

    def test_native_pixels_need_no_process(self, pool: DecodingPool) -> None:
        read_frame(image_dataset(grey_scene(), photometric_interpretation="MONOCHROME2"), decoder=pool)
        assert pool.pids() == ()


class TestBombs:
    @pytest.mark.parametrize("name", BOMBS)
    def test_is_refused_without_decoding(self, pool: DecodingPool, name: str) -> None:
        started = time.process_time()
        with pytest.raises(UnsafePixelError, match=r"limit|says?|cannot hold"):
            read_frame(BOMBS[name](), decoder=pool)
        assert time.process_time() - started < 1
        for pid in pool.pids():  # where it was the process that looked: it took no memory, and lives
            assert peak_bytes(pid) < 150 << 20
        assert read_frame(grey_in("RLE"), decoder=pool).source_rows == 72

    def test_native_pixels_that_are_not_there(self, pool: DecodingPool) -> None:
        dataset = image_dataset(grey_scene(), photometric_interpretation="MONOCHROME2")
        dataset.Rows = dataset.Columns = 60000
        with pytest.raises(UnsafePixelError, match="7200000000 bytes, the limit is 268435456"):
            read_frame(dataset, decoder=pool)
        dataset.Rows = dataset.Columns = 10000
        with pytest.raises(PixelError, match="13824 bytes found, 200000000 expected"):
            read_frame(dataset, decoder=pool)

    def test_deflated_frame(self, pool: DecodingPool) -> None:
        """Inflated as far as the image goes; the rest of a quarter of a gigabyte stays in its stream."""
        assert read_frame(deflate_bomb(1 << 28), decoder=pool).pixels.shape == (72, 96)
        assert peak_bytes(pool.pids()[0]) < 150 << 20

    def test_memory(self) -> None:
        """Ten thousand columns that the codestream does claim, for a decoder that may not have the memory for them."""
        pool = DecodingPool(DecodingLimits(memory_bytes=LEAST_MEMORY_BYTES))
        bomb = described(8000, 10000, jpeg_saying(8000, 10000, colour=True), JPEGBaseline8Bit, colour=True)
        with pytest.raises(UnsafePixelError, match="decoding needed more memory than 268435456 bytes"):
            read_frame(bomb, decoder=pool)
        assert read_frame(grey_in("JPEG 2000 lossless"), decoder=pool).source_rows == 72
        pool.close()

    def test_time(self) -> None:
        pool = DecodingPool(DecodingLimits(time_s=0.05))
        with pytest.raises(UnsafePixelError, match=r"decoding took more than 0\.05 s"):
            read_frame(large(), decoder=pool)
        assert read_frame(grey_in("RLE"), decoder=pool).source_rows == 72
        pool.close()

    def test_a_codestream_larger_than_a_frame(self) -> None:
        pool = DecodingPool(DecodingLimits(maximum_frame_bytes=1 << 20))
        dataset = described(64, 64, jpeg_saying(64, 64) + bytes(1 << 20), JPEGBaseline8Bit)
        with pytest.raises(UnsafePixelError, match="the codestream takes"):
            read_frame(dataset, decoder=pool)

    def test_a_header_that_says_less_is_only_wrong(self, pool: DecodingPool) -> None:
        dataset = described(64, 64, jpeg_2000_saying(16, 16), JPEG2000Lossless)
        with pytest.raises(PixelError) as caught:
            read_frame(dataset, decoder=pool)
        assert not isinstance(caught.value, UnsafePixelError)


CRASHES = {
    "ctypes.string_at(0)": r"the decoder crashed \(signal 11\)",
    "os.abort()": r"the decoder crashed \(signal 6\)",
    "os._exit(3)": r"the decoder crashed \(exit code 3\)",
    "raise ZeroDivisionError": r"the decoder crashed \(exit code 1\)",
    "while True: pass": r"decoding took more than 2 s",
    "return bytearray(1 << 32), {}": "decoding needed more memory than 268435456 bytes",
    "[bytearray(1 << 20) for _ in range(4096)]": "decoding needed more memory than 268435456 bytes",
}


class TestCrashes:
    @pytest.mark.parametrize("body", CRASHES)
    def test_costs_a_process_and_not_the_next_frame(self, misbehave: Callable[[str], None], body: str) -> None:
        misbehave(body)
        pool = DecodingPool(DecodingLimits(time_s=2, memory_bytes=LEAST_MEMORY_BYTES))
        for _ in range(2):
            with pytest.raises(UnsafePixelError, match=CRASHES[body]):
                read_frame(grey_in("JPEG-LS lossless"), decoder=pool)
            assert read_frame(grey_in("RLE"), decoder=pool).source_rows == 72
        pool.close()

    @pytest.mark.parametrize(
        "body",
        [
            "os.write(os.open(__file__ + '.made', os.O_CREAT | os.O_WRONLY), b'x' * 100)",
            "os.fork()",
            "[os.dup(0) for _ in range(100)]",
            "resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))",
        ],
    )
    def test_what_a_decoder_may_not_do(self, misbehave: Callable[[str], None], pool: DecodingPool, body: str) -> None:
        if os.geteuid() == 0 and ("fork" in body or "setrlimit" in body):
            pytest.skip("root may do that in spite of limits")
        misbehave(body)
        with pytest.raises(PixelError, match=r"OSError|FileTooLarge|BlockingIOError|ValueError|crashed"):
            read_frame(grey_in("JPEG-LS lossless"), decoder=pool)

    def test_a_decoder_sees_no_secret(
        self, misbehave: Callable[[str], None], pool: DecodingPool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("GATEWAY_STORE__URL", "postgresql://somebody:Zqx7w@host/gateway")
        misbehave("os._exit(7 if 'Zqx7w' in str(os.environ) else 8)")
        with pytest.raises(UnsafePixelError, match="exit code 8"):
            read_frame(grey_in("JPEG-LS lossless"), decoder=pool)

    def test_killed_while_decoding(self, pool: DecodingPool) -> None:
        """The frame is blameless: a new process decodes it."""
        dataset = large()
        expected = read_frame(dataset, decoder=pool)
        (first,) = pool.pids()
        os.kill(first, signal.SIGSTOP)
        with ThreadPoolExecutor(1) as threads:
            frame = threads.submit(read_frame, dataset, decoder=pool)
            while not pool._seats.empty():
                threading.Event().wait(0.01)
            os.kill(first, signal.SIGKILL)
            assert same(frame.result(60), expected)
        assert pool.pids() != (first,)

    def test_killed_while_idle(self, pool: DecodingPool) -> None:
        expected = read_frame(grey_in("RLE"), decoder=pool)
        os.kill(pool.pids()[0], signal.SIGKILL)
        assert same(read_frame(grey_in("RLE"), decoder=pool), expected)

    def test_what_stops_its_parent_leaves_it_its_frame(self, pool: DecodingPool) -> None:
        read_frame(grey_in("RLE"), decoder=pool)
        before = pool.pids()
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(before[0], number)
        read_frame(grey_in("RLE"), decoder=pool)
        assert pool.pids() == before

    def test_none_can_be_started(self, pool: DecodingPool, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "executable", "/bin/false")
        with pytest.raises(DecoderUnavailableError, match="exit code 1"):
            read_frame(grey_in("RLE"), decoder=pool)
        monkeypatch.setattr(sys, "executable", "/no/such/program")
        with pytest.raises(DecoderUnavailableError, match="No such file"):
            read_frame(grey_in("RLE"), decoder=pool)
        monkeypatch.undo()
        assert read_frame(grey_in("RLE"), decoder=pool).source_rows == 72


LIES: dict[str, Any] = {
    "no JSON": b"\xff\xfe",
    "too many rows": {"shape": [7200, 96], "bytes_a_sample": 2, "precision": 12, "is_ycbcr": False},
    "three samples": {"shape": [72, 96, 3], "bytes_a_sample": 2, "precision": 12, "is_ycbcr": False},
    "negative": {"shape": [-72, -96], "bytes_a_sample": 2, "precision": 12, "is_ycbcr": False},
    "eight bytes": {"shape": [72, 96], "bytes_a_sample": 8, "precision": 12, "is_ycbcr": False},
    "99 bits": {"shape": [72, 96], "bytes_a_sample": 2, "precision": 99, "is_ycbcr": False},
    "nothing": {},
    "a list": [],
}


class TestTrust:
    @pytest.mark.parametrize("lie", LIES)
    def test_an_answer_that_does_not_fit_is_not_believed(
        self, misbehave: Callable[[str], None], pool: DecodingPool, lie: str
    ) -> None:
        told = LIES[lie]
        content = told if isinstance(told, bytes) else json.dumps(told).encode()
        misbehave(f"import sys; socket.socket(fileno=os.dup(int(sys.argv[1]))).send({content!r}); time.sleep(60)")
        with pytest.raises(UnsafePixelError, match="does not fit"):
            read_frame(grey_in("JPEG-LS lossless"), decoder=pool)

    def test_shared_memory_cannot_be_shortened(self) -> None:
        """A shorter file under a mapping is a bus error for the parent."""
        descriptor = decoding._sealed_memory(1 << 16)
        try:
            for size in (0, 1 << 20):
                with pytest.raises(PermissionError):
                    os.ftruncate(descriptor, size)
        finally:
            os.close(descriptor)

    def test_a_refusal_is_plain_short_text(self, misbehave: Callable[[str], None], pool: DecodingPool) -> None:
        misbehave("from models.errors import PixelError; raise PixelError('a\\n\\x1b[31m' + 'b' * 999)")
        with pytest.raises(PixelError) as caught:
            read_frame(grey_in("JPEG-LS lossless"), decoder=pool)
        assert str(caught.value).startswith("a[31mbbb")
        assert len(str(caught.value)) <= 300


def test_twenty_bombs_beside_good_frames(misbehave: Callable[[str], None]) -> None:
    """Good frames come through, and nothing is left: no process, no file, no memory."""
    of_others = footprint()["children"]  # the pool that other tests of this process use by default

    def own_children() -> set[int]:
        return set(footprint()["children"] - of_others)

    misbehave("ctypes.string_at(0)")
    pool = DecodingPool(size=2)
    crasher, header_bomb = grey_in("JPEG-LS lossless"), BOMBS["JPEG of 65535 x 65535 in an image of 64 x 64"]()
    good = [grey_in("RLE"), grey_in("JPEG lossless"), reread(large())]
    expected = [read_frame(dataset, decoder=DirectDecoder()) for dataset in good]

    def one(number: int) -> bool:
        if number % 2:
            return same(read_frame(good[number // 2 % 3], decoder=pool), expected[number // 2 % 3])
        with pytest.raises(UnsafePixelError):
            read_frame(crasher if number % 4 else header_bomb, decoder=pool)
        return True

    with ThreadPoolExecutor(2) as threads:
        assert all(threads.map(one, range(40)))  # each decoder has been used once, and the heap has its size
        before = footprint()
        assert all(threads.map(one, range(40)))
    wait_until(lambda: own_children() == {*pool.pids()}, "children that crashed to be gone")
    assert len(pool.pids()) == 2
    after = footprint()
    assert after["descriptors"] == before["descriptors"]
    assert after["shared files"] == before["shared files"]
    assert after["bytes"] - before["bytes"] < 32 << 20
    pool.close()
    assert own_children() == set()


def test_a_child_does_not_outlive_its_parent() -> None:
    """Killed with its child in an endless loop, which then stops by its own clock."""
    script = (
        "import os, sys, tempfile, threading, pathlib\n"
        "folder = tempfile.mkdtemp()\n"
        "pathlib.Path(folder, 'jpeg_ls.py').write_text('def decode_pixel_data(frame):\\n    while True: pass')\n"
        "os.environ['PYTHONPATH'] = folder\n"
        "from pydicom import dcmread\n"
        "from models.decoding import DecodingLimits, DecodingPool\n"
        "from models.pixels import read_frame\n"
        "pool = DecodingPool(DecodingLimits(time_s=2))\n"
        "read_frame(dcmread(sys.argv[1]), decoder=pool)\n"
        "print(*pool.pids(), flush=True)\n"
        "read_frame(dcmread(sys.argv[2]), decoder=pool)\n"
    )
    files = [str(FIXTURES / f"{name}.dcm") for name in ("grey_rle", "grey_jpeg_ls_lossless")]
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", script, *files], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 30
    while runs(child):
        assert time.monotonic() < deadline
        threading.Event().wait(0.05)


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def peak_bytes(pid: int) -> int:
    """Most memory that a process has held, shared libraries included."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


OTHERS = ("PostgreSQL", "gateway-fuzz")
"""Who else has files in shared memory while tests run."""


def footprint() -> dict[str, Any]:
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    for thread in Path("/proc/self/task").iterdir():
        if thread.name != str(os.getpid()):
            children += (thread / "children").read_text().split()
    return {
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "children": {int(pid) for pid in children if runs(int(pid)) and is_decoder(int(pid))},
        "shared files": sorted(path.name for path in Path("/dev/shm").iterdir() if not path.name.startswith(OTHERS)),
        "bytes": int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize(),
    }


def is_decoder(pid: int) -> bool:
    """Whether it is the decoding process of this test: another pool of this process may run, too."""
    return "models.decoding_process" in Path(f"/proc/{pid}/cmdline").read_text()
