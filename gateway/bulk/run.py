"""One run over a folder: files to workers, rows to the manifest, until there are no more or somebody says stop."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from gateway import __version__
from gateway.bulk.claims import Claims
from gateway.bulk.crosswalk import Crosswalk
from gateway.bulk.finish import DISK_FULL, Finisher
from gateway.bulk.manifest import FORMAT, Manifest
from gateway.bulk.names import OUTPUT_NAME, OutputNames
from gateway.bulk.places import Places
from gateway.bulk.walk import Found, walk
from gateway.bulk.workers import FileLimits, Worker, WorkerDiedError, WorkerSetup
from gateway.deidentification.options import DeidentificationProfile
from gateway.deidentification.profile import edition
from gateway.errors import DeidentificationError, SettingsError

STATES = ("done", "skipped", "refused", "failed")
_POLL_S = 0.2
_LET_FINISH_S = 10.0
_MOST_REASONS = 100
_LOST_STARTS = 3
_FINISHING = 8
_MOST_PENDING = 32
_FULL_IN_A_ROW = 20
_RESERVE_BYTES = 1 << 20
_NUMBER = re.compile(r"(?<![\w.(,])\d+(?![\w.,)])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A run, ready to start."""

    places: Places
    key: bytes = field(repr=False)
    key_fingerprint: str
    profile: DeidentificationProfile
    processes: int
    limits: FileLimits


@dataclass(slots=True, kw_only=True)
class Summary:
    """What a run did."""

    files: int = 0
    source_kib: int = 0
    duration_s: float = 0.0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STATES, 0))
    reasons: dict[str, int] = field(default_factory=dict)
    """How many files each reason met; numbers in it are written N."""
    pixel_boxes: int = 0
    """Places with text that were found in pictures; all of them are blanked."""
    stopped: str = ""
    """Why the run ended before its files did; empty: it did not."""

    def add(self, row: Mapping[str, Any]) -> None:
        """Count a file."""
        self.files += 1
        self.source_kib += row.get("source_kib", 0)
        self.counts[row["state"]] += 1
        self.pixel_boxes += row.get("pixels", {}).get("boxes", 0)
        if row["reason"]:
            reason = _NUMBER.sub("N", row["reason"])
            if reason not in self.reasons and len(self.reasons) >= _MOST_REASONS:
                reason = "other reasons"
            self.reasons[reason] = self.reasons.get(reason, 0) + 1

    @property
    def complete(self) -> bool:
        """Whether all files that were found have an output."""
        return not self.stopped and self.counts["refused"] == self.counts["failed"] == 0

    def row(self) -> dict[str, Any]:
        """For the manifest and for machines."""
        seconds = max(self.duration_s, 1e-9)
        megabytes = self.source_kib * 1024 / 1e6
        return {
            "kind": "summary",
            "files": self.files,
            **self.counts,
            "reasons": dict(sorted(self.reasons.items(), key=lambda each: -each[1])),
            "pixel_boxes": self.pixel_boxes,
            "source_megabytes": round(megabytes, 2),
            "duration_s": round(self.duration_s, 3),
            "files_per_s": round(self.files / seconds, 2),
            "megabytes_per_s": round(megabytes / seconds, 2),
            "stopped": self.stopped,
        }


def run(plan: Plan, *, progress: Callable[[Mapping[str, Any]], None], stop: Callable[[], bool]) -> Summary:
    """De-identify what the plan names.

    Parameters
    ----------
    progress
        Called with each file's row.
    stop
        Asked often; once it says yes no file is begun any more.

    Raises
    ------
    SettingsError
        Nothing was read: manifest, crosswalk or output folder are in use or of another run.
    DeidentificationError
        Workers do not start.
    """
    with _locked(plan.places.output), _unfinished_in(plan.places.output) as unfinished:
        reserve = unfinished / "reserve"
        _reserve(reserve)

        def make_room() -> bool:
            with suppress(OSError):
                reserve.unlink()
                return True
            return False

        manifest = Manifest(plan.places.manifest, header(plan), make_room=make_room)
        try:
            return _Run(plan, manifest, unfinished, progress, stop).go()
        finally:
            manifest.close()


def header(plan: Plan) -> dict[str, Any]:
    """The first row of a run: by what it was made."""
    profile = asdict(plan.profile)
    for name in ("options", "further_sop_classes"):
        profile[name] = sorted(profile[name])
    profile["safe_private"] = list(profile["safe_private"])
    profile["largest_shift_days"] = profile.pop("largest_date_shift_days")
    return {
        "kind": "run",
        "format": FORMAT,
        "gateway_version": __version__,
        "edition": edition(),
        "profile": profile,
        "key_fingerprint": plan.key_fingerprint,
    }


class _RecordError(Exception):
    """What was done cannot be written down, so that nothing more is done."""


class _Run:
    """The loop and what it holds."""

    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        unfinished: Path,
        progress: Callable[[Mapping[str, Any]], None],
        stop: Callable[[], bool],
    ) -> None:
        places = plan.places
        root = places.source if places.source.is_dir() else places.source.parent
        self._setup = WorkerSetup(
            key=plan.key,
            profile=plan.profile,
            root=root,
            unfinished=unfinished,
            limits=plan.limits,
        )
        self._plan, self._manifest, self._progress, self._stop = plan, manifest, progress, stop
        self._names = OutputNames(plan.key)
        self._made_by = {"edition": edition(), "gateway_version": __version__}
        self._claims = Claims(manifest.done, places.output)
        self._crosswalk = None if places.crosswalk is None else Crosswalk(places.crosswalk, root)
        self._workers: list[Worker] = []
        self._found: Iterator[Found] = walk(places.source)
        self._exhausted = False
        self._lost_starts = self._full = self._tasks = 0
        self._finisher = Finisher(places.output, unfinished)
        self._finishing = ThreadPoolExecutor(_FINISHING, "finish")
        self._pending: dict[Future[dict[str, Any]], tuple[str, int, str]] = {}
        """Files that are written and not yet in their places: path of the source, number, name until then."""
        self._woken, self._waker = os.pipe()
        self.summary = Summary()

    def go(self) -> Summary:
        started_s = time.monotonic()
        try:
            self._workers = [Worker(self._setup) for _ in range(self._plan.processes)]
            until_s = None
            while True:
                if not self.summary.stopped and self._stop():
                    self.summary.stopped = "interrupted"
                if self.summary.stopped and until_s is None:
                    until_s = time.monotonic() + _LET_FINISH_S
                self._hand_out()
                busy = self._pending or any(each.path is not None for each in self._workers)
                if not busy and (self._exhausted or self.summary.stopped):
                    break
                if until_s is not None and time.monotonic() > until_s:
                    break
                self._listen()
                self._note_finished()
                self._answer_claims()
        except _RecordError as error:
            self.summary.stopped = str(error)
        finally:
            for worker in self._workers:
                worker.end()
            self._finishing.shutdown()
            self.summary.duration_s = time.monotonic() - started_s
            self._finish()
            self._finisher.close()
            os.close(self._woken)
            os.close(self._waker)
        return self.summary

    def _finish(self) -> None:
        try:
            self._note_finished()
            self._manifest.write(self.summary.row())
            self._manifest.sync()
            if self._crosswalk is not None:
                self._crosswalk.close()
        except OSError as error:
            self.summary.stopped = self.summary.stopped or f"the manifest cannot be written: {error.strerror}"
        except _RecordError as error:
            self.summary.stopped = self.summary.stopped or str(error)

    def _hand_out(self) -> None:
        """A file to each worker that has none."""
        for worker in self._workers:
            while worker.ready and worker.path is None and not self._exhausted and not self.summary.stopped:
                if len(self._pending) >= _MOST_PENDING:
                    return
                found = next(self._found, None)
                if found is None:
                    self._exhausted = True
                elif found.problem:
                    state = "failed" if found.failed else "refused"
                    self._record(found.path, {"state": state, "reason": found.problem})
                else:
                    self._tasks += 1
                    worker.give(found.path, self._tasks)

    def _listen(self) -> None:
        channels = {worker.channel: worker for worker in self._workers}
        for channel in wait([*channels, self._woken], timeout=_POLL_S):
            if channel == self._woken:
                os.read(self._woken, _MOST_PENDING)
                continue
            worker = channels[channel]  # type: ignore[index]
            try:
                self._take(worker, worker.receive())
            except WorkerDiedError as error:
                self._replace(worker, str(error))
        for worker in list(self._workers):
            if worker.is_overdue():
                self._replace(worker, f"it took more than {self._plan.limits.time_s:g} s")

    def _take(self, worker: Worker, told: Mapping[str, Any]) -> None:
        if "ready" in told:
            worker.ready, self._lost_starts = True, 0
        elif "cannot_start" in told:
            raise DeidentificationError(str(told["cannot_start"]))
        elif worker.path is None:
            raise WorkerDiedError("the process spoke without being asked")
        elif "claim" in told:
            sha256, instance = told["claim"]
            worker.asks = (sha256, instance)
        else:
            self._end(worker, _checked(told.get("row")))

    def _answer_claims(self) -> None:
        for worker in self._workers:
            if worker.asks is not None:
                answer = self._claims.ask(worker.task, *worker.asks)
                if answer is not None:
                    worker.answer(answer)

    def _replace(self, worker: Worker, reason: str) -> None:
        """A worker is of no more use: its file has failed, another takes its place."""
        process_id = worker.process.pid
        worker.end()
        self._tidy_after(process_id)
        if not worker.ready:
            self._lost_starts += 1
            if self._lost_starts >= _LOST_STARTS:
                raise DeidentificationError(f"worker processes do not start: {reason}")
        self._workers[self._workers.index(worker)] = Worker(self._setup)
        if worker.path is not None:
            self._end(worker, {"state": "failed", "reason": reason})

    def _end(self, worker: Worker, row: dict[str, Any]) -> None:
        path, worker.path = worker.path, None
        assert path is not None
        if row["state"] == "done":
            future = self._finishing.submit(self._finisher.finish, row)
            self._pending[future] = path, worker.task, row["unfinished"]
            future.add_done_callback(lambda _: os.write(self._waker, b"."))
        else:
            self._claims.end(worker.task, row)
            self._record(path, row)

    def _note_finished(self) -> None:
        for future in [each for each in self._pending if each.done()]:
            path, task, _ = self._pending.pop(future)
            row = future.result()
            self._claims.end(task, row)
            self._record(path, row)

    def _tidy_after(self, process_id: int | None) -> None:
        """Delete what a dead worker was writing."""
        whole = {name for _, _, name in self._pending.values()}
        for part in self._setup.unfinished.glob(f"{process_id}-*.part"):
            if part.name not in whole:
                part.unlink(missing_ok=True)

    def _record(self, path: str, row: dict[str, Any]) -> None:
        row = {"kind": "file", "source": self._names.source(path), **row, **self._made_by}
        try:
            self._manifest.write(row)
            if self._crosswalk is not None:
                self._crosswalk.write(path, row)
        except OSError as error:
            raise _RecordError(f"manifest or crosswalk cannot be written: {error.strerror}") from error
        self.summary.add(row)
        self._full = self._full + 1 if row["reason"] == DISK_FULL else 0
        if self._full >= _FULL_IN_A_ROW:
            self.summary.stopped = "the disk is full"
        self._progress(row)


_SHA256 = re.compile(r"[0-9a-f]{64}")
_PART = re.compile(r"[0-9]+-[0-9a-f]{16}\.part")
_LONGEST_REASON = 300
_NUMBERS = ("source_kib", "output_kib", "ms")
_HASHES = ("source_sha256", "output_sha256")


def _checked(told: Any) -> dict[str, Any]:
    """A worker's row, of the form that it must have: a worker that was taken over could send anything.

    Raises
    ------
    WorkerDiedError
        It has another form: the worker is of no more use.
    """
    if not isinstance(told, dict):
        raise WorkerDiedError(_NONSENSE)
    state, output = told.get("state"), told.get("output")
    whole = (
        state in STATES
        and isinstance(told.get("reason"), str)
        and (output is None or OUTPUT_NAME.fullmatch(str(output)) is not None)
        and all(_SHA256.fullmatch(str(told[name])) for name in _HASHES if name in told)
        and all(isinstance(told[name], int | float) for name in _NUMBERS if name in told)
    )
    if state == "done":
        due = {*_HASHES, "output_kib", "output"} <= told.keys()
        whole = whole and due and _PART.fullmatch(str(told.get("unfinished"))) is not None
    if not whole:
        raise WorkerDiedError(_NONSENSE)
    return {**told, "reason": "".join(each for each in told["reason"] if each.isprintable())[:_LONGEST_REASON]}


_NONSENSE = "the process gave an answer that makes no sense"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the output folder, so that no second run works in it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SettingsError("OUT is in use: another run writes there") from error
        except OSError:
            pass  # a file system that cannot lock folders; the manifest is locked too
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _unfinished_in(output: Path) -> Iterator[Path]:
    """A folder for what is not whole yet, on the file system of the output; what a killed run left there goes."""
    folder = output / ".unfinished"
    try:
        if folder.is_symlink():
            raise SettingsError("OUT holds a link where unfinished files go: expected a new folder")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise SettingsError(f"OUT cannot be written: {error.strerror}") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _reserve(path: Path) -> None:
    """Keep back room on the disk, so that on one that is full rows can still be written."""
    with suppress(OSError), path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, _RESERVE_BYTES)
