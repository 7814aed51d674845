"""Compressed frames decoded in processes with limits, so that a frame that bombs or crashes costs such a process.

What crosses the border is small and plain: a codestream and its :class:`~models.decoders.Layout` go in, samples come
out through shared memory. Everything before (finding the frame among the fragments) and after it (LUTs, colour) is
array code of this package that allocates what *Rows* and *Columns* say, which have been held against the limit; it runs
in the caller's process, and so do native pixels, which need no decoder.

A child is blamed on a frame only if a fresh child fails with it, too: the frame before may have damaged the first one,
or somebody may have killed it. A frame that takes too long is not tried again.

References
----------
memfd_create(2), fcntl(2) on file sealing, setrlimit(2).
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import mmap
import os
import queue
import socket
import subprocess
import sys
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from models.decoders import Decoded, Layout, decode_encapsulated
from models.errors import DecoderUnavailableError, PixelError, UnsafePixelError

logger = logging.getLogger(__name__)

_TRIES = 2
_START_PATIENCE_S = 60.0
_END_PATIENCE_S = 5.0
_MESSAGE_BYTES = 4096
_REASON_CHARACTERS = 300
_KEPT_BYTES = 64 << 20
"""Of shared memory that a child's last frame used; the rest is given back to the system."""
_HIGHEST_PRECISION = 16
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONHOME", "VIRTUAL_ENV", "TZ")
"""Of the environment. The rest may hold secrets, such as the store's password."""

_ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    # Memory of one frame is kept for the next: pages that come fresh from the system cost as much as decoding.
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
    "MALLOC_TOP_PAD_": str(16 << 20),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodingLimits:
    """What one frame may cost."""

    maximum_frame_bytes: int = 256 << 20
    """Largest decoded frame that is taken: 134 megapixels of 16 bit greyscale, 89 of 8 bit colour."""
    memory_bytes: int = 3 << 30
    """Address space that decoding may take beyond what the process holds when it starts."""
    time_s: float = 30.0
    """By the clock on the wall."""


class Decoder(Protocol):
    """Decodes one encapsulated frame."""

    @property
    def limits(self) -> DecodingLimits:
        """What a frame may cost."""

    def decode(self, layout: Layout, codestream: bytes, *, least_side: int | None) -> AbstractContextManager[Decoded]:
        """The frame's samples, valid inside the ``with`` alone: what is kept has to be copied.

        Raises
        ------
        PixelError
            See :func:`models.decoders.decode_encapsulated`.
        UnsafePixelError
            The frame went over a limit or crashed the decoder.
        DecoderUnavailableError
            No decoder can be started at present.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectDecoder:
    """Decodes in the caller's process, under no limit of memory or time: for files that a script made itself."""

    limits: DecodingLimits = DecodingLimits()

    @contextmanager
    def decode(self, layout: Layout, codestream: bytes, *, least_side: int | None) -> Iterator[Decoded]:
        yield decode_encapsulated(layout, codestream, least_side=least_side)


class DecodingPool:
    """Up to `size` children that decode side by side, one frame each; any number of threads may ask.

    A child starts at the first frame that needs it, or by :meth:`start`.
    """

    def __init__(self, limits: DecodingLimits | None = None, *, size: int = 1) -> None:
        self.limits = limits or DecodingLimits()
        # The last one used comes first: its memory is warm, and children that are not needed are not started.
        self._seats: queue.LifoQueue[_Seat] = queue.LifoQueue()
        self._all = tuple(_Seat(self.limits) for _ in range(size))
        for seat in self._all:
            self._seats.put(seat)

    def start(self) -> None:
        """Start all children now, without waiting until they are ready."""
        for seat in self._all:
            seat.fill()

    def close(self) -> None:
        """End the children, as happens too when the pool is dropped. Nothing may be decoding."""
        for seat in self._all:
            seat.clear()

    @contextmanager
    def decode(self, layout: Layout, codestream: bytes, *, least_side: int | None) -> Iterator[Decoded]:
        """See :class:`Decoder`."""
        if len(codestream) > self.limits.maximum_frame_bytes:
            raise UnsafePixelError(
                f"the codestream takes {len(codestream)} bytes, the limit is {self.limits.maximum_frame_bytes}"
            )
        seat = self._seats.get()
        try:
            yield seat.decode(layout, codestream, least_side)
        finally:
            seat.trim()
            self._seats.put(seat)

    def pids(self) -> tuple[int, ...]:
        """Process ids of the children that run now."""
        return tuple(seat.child.process.pid for seat in self._all if seat.child is not None)


def default_decoder() -> DecodingPool:
    """A pool of this process's own with the default limits, so that nobody decodes unguarded by forgetting to."""
    return _default_decoder(os.getpid())


@cache
def _default_decoder(_: int) -> DecodingPool:
    return DecodingPool(size=2)


class _FailedError(Exception):
    """A child is of no more use; the text says why, for the one who sees the frame refused."""

    def __init__(self, reason: str, *, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final
        """Whether another child would not do better."""


class _Seat:
    """A place for one child, filled again when it has died."""

    def __init__(self, limits: DecodingLimits) -> None:
        self._limits = limits
        self.child: _Child | None = None

    def fill(self) -> _Child:
        if self.child is None:
            self.child = _Child(self._limits)
        return self.child

    def clear(self) -> None:
        child, self.child = self.child, None
        if child is not None:
            child.end()

    def trim(self) -> None:
        if self.child is not None:
            self.child.trim()

    def decode(self, layout: Layout, codestream: bytes, least_side: int | None) -> Decoded:
        for left in reversed(range(_TRIES)):
            child = self.fill()
            try:
                child.await_start()
                return child.decode(layout, codestream, least_side)
            except _FailedError as error:
                logger.warning("decoding process %d ended: %s", child.process.pid, error)
                self.clear()
                if error.final or not left:
                    self.fill()  # ready for the next frame
                    raise UnsafePixelError(str(error)) from error
            except (DecoderUnavailableError, OSError):
                self.clear()
                raise
        raise AssertionError("a frame is decoded or refused")


class _Child:
    """One decoding process, its socket and the memory shared with it."""

    def __init__(self, limits: DecodingLimits) -> None:
        self._limits = limits
        # Samples of 8 bits may come out of the decoder as 16; behind the result lies the codestream.
        self._result_bytes = 2 * limits.maximum_frame_bytes
        self._touched_bytes = 0
        self._started = False
        try:
            descriptor = _sealed_memory(self._result_bytes + limits.maximum_frame_bytes)
            try:
                self._memory = mmap.mmap(descriptor, 0)
                self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                with theirs:
                    self.process = self._start(theirs.fileno(), descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise DecoderUnavailableError(f"no decoding process can be started: {error.strerror}") from error
        self.end = weakref.finalize(self, _end, self._channel, self.process, self._memory)

    def _start(self, channel: int, memory: int) -> subprocess.Popen[bytes]:
        numbers = (channel, memory, self._result_bytes, self._limits.memory_bytes, self._limits.time_s)
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(
            filter(None, [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH")])
        )
        environment |= _ENVIRONMENT
        try:
            # By exec, which is safe whatever threads and GPUs this process has by now.
            return subprocess.Popen(
                [sys.executable, "-P", "-B", "-m", "models.decoding_process", *map(str, numbers)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # decoders print what they find
                env=environment,
                cwd="/",
                pass_fds=(channel, memory),
            )
        except OSError:
            self._channel.close()
            raise

    def await_start(self) -> None:
        """Wait until it is ready for its first frame."""
        if self._started:
            return
        self._channel.settimeout(_START_PATIENCE_S)
        try:
            ready = self._channel.recv(_MESSAGE_BYTES)
        except OSError as error:
            raise DecoderUnavailableError("the decoding process does not start") from error
        if ready != b"ready":
            raise DecoderUnavailableError(f"the decoding process ended at its start ({self._ending()})")
        self._started = True

    def decode(self, layout: Layout, codestream: bytes, least_side: int | None) -> Decoded:
        """One frame; the samples lie in shared memory until the next."""
        asked = {"layout": asdict(layout), "codestream_bytes": len(codestream), "least_side": least_side}
        self._memory[self._result_bytes : self._result_bytes + len(codestream)] = codestream
        self._touched_bytes = len(codestream)
        self._channel.settimeout(self._limits.time_s)
        try:
            self._channel.send(json.dumps(asked).encode())
            reply = self._channel.recv(_MESSAGE_BYTES)
        except TimeoutError as error:
            raise _FailedError(f"decoding took more than {self._limits.time_s:g} s", final=True) from error
        except (ConnectionError, BrokenPipeError):
            reply = b""
        if not reply:
            raise _FailedError(f"the decoder crashed ({self._ending()})")
        return self._read(reply, layout, least_side)

    def _read(self, reply: bytes, layout: Layout, least_side: int | None) -> Decoded:
        """Take an answer for what it must be; a decoder that was taken over could send anything."""
        try:
            told = json.loads(reply)
            for kind, error in (("refused", PixelError), ("unsafe", UnsafePixelError)):
                if kind in told:
                    raise error(_printable(str(told[kind])))
            if "out_of_memory" in told:
                raise _FailedError(f"decoding needed more memory than {self._limits.memory_bytes} bytes")
            shape, width = _shape(told["shape"], layout, least_side), {1: 1, 2: 2}[told["bytes_a_sample"]]
            size = math.prod(shape) * width
            if size > self._result_bytes or not 1 <= (precision := int(told["precision"])) <= _HIGHEST_PRECISION:
                raise ValueError
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise _FailedError("the decoder gave an answer that does not fit the frame") from error
        self._touched_bytes = max(self._touched_bytes, size)
        codes = np.frombuffer(self._memory, dtype=f"u{width}", count=math.prod(shape)).reshape(shape)
        codes.flags.writeable = False
        return Decoded(codes=codes, precision=precision, is_ycbcr=told["is_ycbcr"] is True)

    def trim(self) -> None:
        """Give back the memory of a very large frame."""
        if self._touched_bytes > _KEPT_BYTES:
            self._memory.madvise(mmap.MADV_REMOVE)
        self._touched_bytes = 0

    def _ending(self) -> str:
        try:
            code = self.process.wait(_END_PATIENCE_S)
        except subprocess.TimeoutExpired:
            return "it closed its end"
        return f"signal {-code}" if code < 0 else f"exit code {code}"


def _end(channel: socket.socket, process: subprocess.Popen[bytes], memory: mmap.mmap) -> None:
    channel.close()
    process.kill()
    process.wait()
    with suppress(BufferError):  # somebody still looks at a frame in it, and lets it go later
        memory.close()


def _sealed_memory(size: int) -> int:
    """A file without a name, of which pages exist once they are written; nobody can change its size.

    A child that shortened it would kill its parent by SIGBUS.
    """
    descriptor = os.memfd_create("frame", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size)
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _shape(told: Any, layout: Layout, least_side: int | None) -> tuple[int, ...]:
    """The shape of a result, made sure to be one that `layout` can give."""
    shape = tuple(int(side) for side in told)
    whole = (layout.rows, layout.columns)
    reduced = least_side is not None and layout.samples_per_pixel > 1
    fits = all(0 < side <= full for side, full in zip(shape, whole, strict=False)) if reduced else shape[:2] == whole
    if not fits or shape[2:] != ((layout.samples_per_pixel,) if layout.samples_per_pixel > 1 else ()):
        raise ValueError
    return shape


def _printable(text: str) -> str:
    return "".join(each for each in text[:_REASON_CHARACTERS] if each.isascii() and each.isprintable())
