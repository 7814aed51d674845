"""Processes that de-identify files, each with limits, each of which may die without harm to the others.

A worker has one file at a time, so that its death is that file's and nobody else's. What it tells its parent is JSON: a
worker that a file has taken over can lie about that file, and do nothing to the parent.

References
----------
setrlimit(2), setitimer(2), prctl(2).
"""

from __future__ import annotations

import ctypes
import json
import mmap
import multiprocessing
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.deidentification.options import DeidentificationProfile, Option
from gateway.errors import GatewayError

if TYPE_CHECKING:
    from gateway.deidentification.burned_in_text import TextFinder

_LONGEST_MESSAGE_BYTES = 64 << 20
_GRACE_S = 5.0
_PR_SET_PDEATHSIG = 1
_STOPPING = (signal.SIGINT, signal.SIGTERM)
_END_PATIENCE_S = 5.0
_FILE_MEMORY_FACTOR = 3
"""Of its size, what a file may take on top of the limit: as read, as copied, as encoded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileLimits:
    """What one file may cost."""

    time_s: float = 120.0
    """By the clock on the wall."""
    memory_bytes: int = 3 << 30
    """Address space beyond what the process holds when it starts, and beyond three times the file's size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSetup:
    """What a worker needs to know."""

    key: bytes = field(repr=False)
    profile: DeidentificationProfile
    root: Path
    """The folder that paths are below."""
    unfinished: Path
    """Where it writes: not the place where outputs end."""
    limits: FileLimits


_WORD = re.compile(r"\W")


class WorkerDiedError(Exception):
    """The process has ended; the text says how."""


class Worker:
    """A process, seen from its parent."""

    def __init__(self, setup: WorkerSetup) -> None:
        context = multiprocessing.get_context("spawn")
        self.channel, theirs = context.Pipe()
        self.path: str | None = None
        """What it is at; ``None``: nothing."""
        self.asks: tuple[str, str | None] | None = None
        """The claim that waits for an answer."""
        self.task = 0
        """Number of the file that it is at."""
        self.ready = False
        self._limits = setup.limits
        self._since_s = time.monotonic()
        self.process = context.Process(target=_serve, args=(theirs, setup, os.getpid()), daemon=True)
        # The child starts with them blocked, so that Ctrl-C, which all processes of a terminal get, does not meet it
        # before it ignores them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
        try:
            with theirs:
                self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def give(self, path: str, task: int) -> None:
        """A file to do, under a number that no other has."""
        self.path, self.task, self.asks = path, task, None
        self._send({"path": path})

    def answer(self, answer: Mapping[str, Any]) -> None:
        """To its claim."""
        self.asks = None
        self._send(dict(answer))

    def receive(self) -> dict[str, Any]:
        """What it has to say.

        Raises
        ------
        WorkerDiedError
            Nothing any more.
        """
        try:
            told = json.loads(self.channel.recv_bytes(_LONGEST_MESSAGE_BYTES))
        except (EOFError, OSError, ValueError) as error:
            raise WorkerDiedError(self._ending()) from error
        if not isinstance(told, dict):
            raise WorkerDiedError("the process gave an answer that makes no sense")
        if "broken" in told:
            raise WorkerDiedError(f"the process ended: {_WORD.sub('', str(told['broken']))[:50]}")
        return told

    def is_overdue(self) -> bool:
        """Whether its file has taken more time than a file may."""
        busy = self.path is not None and self.asks is None and self.ready
        return busy and time.monotonic() - self._since_s > self._limits.time_s

    def end(self) -> None:
        """Stop it, whatever it does."""
        self.process.kill()
        self.process.join()
        self.process.close()
        self.channel.close()

    def _send(self, message: dict[str, Any]) -> None:
        self._since_s = time.monotonic()
        with suppress(OSError):  # it has died: its end of the channel says so
            self.channel.send_bytes(json.dumps(message).encode())

    def _ending(self) -> str:
        self.process.join(_END_PATIENCE_S)
        code = self.process.exitcode
        if code is None:
            return "the process closed its end"
        return f"the process was killed (signal {-code})" if code < 0 else f"the process ended (exit status {code})"


def make_finder(profile: DeidentificationProfile) -> TextFinder | None:
    """The text finder that the profile needs, ``None`` if it needs none.

    Raises
    ------
    DeidentificationError
        Nothing here can find text.
    """
    if Option.CLEAN_PIXEL_DATA not in profile.options:
        return None
    from gateway.deidentification.burned_in_text import NetworkTextFinder

    return NetworkTextFinder()


def _serve(channel: Connection, setup: WorkerSetup, parent_pid: int) -> None:
    """A worker's life: until its parent closes the channel or is gone."""
    for number in _STOPPING:
        signal.signal(number, signal.SIG_IGN)  # whoever stops the parent lets it finish its file
    _be_silent()
    _die_with(parent_pid)
    try:
        _work(channel, setup)
    finally:
        error = sys.exc_info()[1]
        if isinstance(error, Exception):
            # A bug. The text may quote a value, and nobody sees what this process prints: its parent is told the class.
            _tell(channel, {"broken": type(error).__name__})


def _work(channel: Connection, setup: WorkerSetup) -> None:
    from gateway.bulk.names import OutputNames
    from gateway.bulk.one_file import CountingFinder, FileWork
    from gateway.deidentify import Deidentifier

    try:
        finder = make_finder(setup.profile)
        counting = None if finder is None else CountingFinder(finder)
        work = FileWork(
            Deidentifier(setup.key, setup.profile, text_finder=counting),
            OutputNames(setup.key),
            root=setup.root,
            unfinished=setup.unfinished,
            finder=counting,
        )
    except GatewayError as error:
        _tell(channel, {"cannot_start": str(error)})
        return
    _confine()
    held_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    _tell(channel, {"ready": True})

    def claim(sha256: str, instance: str | None) -> dict[str, Any]:
        _set_alarm(0)
        _tell(channel, {"claim": [sha256, instance]})
        answer = _hear(channel)
        _set_alarm(setup.limits.time_s + _GRACE_S)
        return answer

    while True:
        path = str(_hear(channel)["path"])
        # The parent keeps the time; the alarm, which kills, is for when it is stopped or hangs.
        _set_alarm(setup.limits.time_s + _GRACE_S)
        _limit_memory(held_bytes + setup.limits.memory_bytes, setup.root / path)
        row = work.do(path, claim)
        _set_alarm(0)
        _tell(channel, {"row": row})


def _be_silent() -> None:
    """Print nothing: libraries quote values in what they warn of."""
    descriptor = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(descriptor, number)
    os.close(descriptor)


def _die_with(parent_pid: int) -> None:
    """End when the parent does, however it ends: nothing is half there that a kill could leave."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        raise SystemExit(0)


def _confine() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold the key and PHI
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # the first to go when the machine is short of memory


def _limit_memory(limit_bytes: int, path: Path) -> None:
    with suppress(OSError):
        limit_bytes += _FILE_MEMORY_FACTOR * path.lstat().st_size
    # The soft limit alone: decoding children set their own.
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    soft = limit_bytes if hard == resource.RLIM_INFINITY else min(limit_bytes, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _set_alarm(seconds: float) -> None:
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _tell(channel: Connection, message: Mapping[str, Any]) -> None:
    try:
        channel.send_bytes(json.dumps(message).encode())
    except OSError:
        raise SystemExit(0) from None  # the parent has gone


def _hear(channel: Connection) -> dict[str, Any]:
    try:
        heard: dict[str, Any] = json.loads(channel.recv_bytes())
    except (EOFError, OSError):
        raise SystemExit(0) from None
    return heard
