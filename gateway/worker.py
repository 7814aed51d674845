"""A worker: takes complete studies from the store, judges them, leaves results and deliveries behind.

It holds its studies by a lease. Killed at any moment, it loses nothing: its lease ends, another worker judges the
study again, and every identifier comes out the same.

What runs in the shadow is run when nothing else waits, and after results are recorded.
"""

from __future__ import annotations

import gc
import io
import logging
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from gateway import __version__
from gateway.deidentify import Deidentifier
from gateway.errors import (
    Disposition,
    GatewayError,
    IdentityError,
    PausedError,
    ResultMismatchError,
    StoreError,
    TransitionError,
    UnreadableError,
    VaultError,
    disposition,
)
from gateway.fuse import Fuse
from gateway.judgement import JudgedImage
from gateway.last_check import LastCheck
from gateway.objects import ObjectFolder, heat_map_path, picture_path, quarantine_path, result_path
from gateway.pipeline import judge_studies
from gateway.prediction_rows import failure_rows, prediction_row, shadow_row
from gateway.results import ResultObject
from gateway.serving import Versions
from gateway.settings import Settings
from gateway.shadow import Backlog, ShadowOutcome, ShadowWork, failures_of, run_shadow, shadow_work
from gateway.site_key import load_site_key
from gateway.stages import Engine, StudyJudgement
from gateway.store import open_store
from gateway.store.intake import new_key
from gateway.store.monitoring import report_process
from gateway.store.predictions import (
    JudgementRecord,
    QuarantinedInstance,
    ResultRow,
    record_failures,
    record_judgement,
    record_shadows,
)
from gateway.store.studies import ClaimedStudy, claim_studies, give_back, queue_complete_studies, renew_leases
from gateway.study import StudyState
from gateway.vault import open_vault
from models.decoding import DecodingLimits, DecodingPool
from models.errors import ModelError

logger = logging.getLogger(__name__)

POLL_S = 0.2
STORE_PAUSE_S = 5.0
"""Between looks at a store that fails: the disk is full, or the database away."""
REPORT_S = 5.0
HEAT_MAP_LONG_SIDE = 256
RETRY_DELAY_S = 5.0
LEAST_WAIT_S = 1.0
"""Of a study whose model is left alone by its circuit breaker; another worker may have it at once after that."""
LAST_SHADOWS_S = 3.0
"""What waits in the shadow when a worker stops may take this long."""
COLLECTION_THRESHOLDS = (50_000, 20, 20)


def run(settings: Settings, data_dir: Path, stop: threading.Event, *, name: str, threads: int) -> None:
    """The worker process, until `stop` is set. `threads`: for inference, and for studies side by side."""
    worker = Worker(settings, data_dir, name=name, threads=threads)
    # Result objects are trees of thousands of small objects without cycles; collecting less often saves a tenth.
    gc.freeze()
    gc.set_threshold(*COLLECTION_THRESHOLDS)
    try:
        while not stop.is_set():
            if not worker.work_once():
                stop.wait(worker.pause_s)
        worker.finish_shadows(LAST_SHADOWS_S)
    finally:
        worker.close()


def plan_threads(settings: Settings, *, cores: int, accelerators: int) -> tuple[int, int]:
    """Number of workers, and of threads in each.

    As set; where set to 0, one worker a GPU, else one a core, at most four; and the cores shared out among them.
    """
    workers = settings.worker.count or accelerators or min(cores, 4)
    return workers, settings.worker.threads or max(1, cores // workers)


class Worker:
    """One worker's resident parts: sessions, threads, its handle on the store."""

    def __init__(self, settings: Settings, data_dir: Path, *, name: str, threads: int) -> None:
        self._settings = settings
        self._name = name
        self._owner = f"{name}:{os.getpid()}"
        self._threads = threads
        self._lease = timedelta(seconds=settings.worker.lease_s)
        self._store = open_store(settings.store.url, data_dir=data_dir)
        self._objects = ObjectFolder.in_data_dir(data_dir)
        self._key = load_site_key(settings.deidentification, data_dir)
        self._deidentifier = Deidentifier(self._key, settings.deidentification.profile)
        self._vault = open_vault(settings.vault, data_dir)
        self._check = LastCheck(store=self._store, objects=self._objects.root, vault=self._vault)
        self._decoder = DecodingPool(DecodingLimits(**settings.decoding.model_dump()), size=threads)
        self._decoder.start()
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="study")
        self._fuse = Fuse(data_dir / f"{name}.fuse")
        self.versions = Versions(settings, self._store, threads, data_dir / "engines", self._fuse)
        self._backlog = Backlog(limit_bytes=settings.shadow.memory_bytes)
        self._profile_sha256 = settings.deidentification.profile_sha256
        self.pause_s = POLL_S
        """How long to wait when there was nothing to do, or nothing could be done."""
        self._judged = 0
        self._reported_at = 0.0
        self._reported: tuple[Any, ...] = ()
        self._closed = threading.Event()
        self._keeper = threading.Thread(target=self._keep_leases, name="lease", daemon=True)
        self._keeper.start()

    def close(self) -> None:
        """Give threads and connections back."""
        self._closed.set()
        self._keeper.join()
        self._executor.shutdown()
        self.versions.close()
        self._fuse.close()
        self._decoder.close()
        if self._vault is not None:
            self._vault.close()
        self._store.close()

    def work_once(self) -> bool:
        """Queue what is complete, judge one batch, or run one study's shadow; false when there was nothing to do."""
        try:
            now = datetime.now(UTC)
            known = self.versions.follow()
            self._report()
            queue_complete_studies(self._store, now)
            if not known:
                self.pause_s = POLL_S
                return False
            if self._vault is not None:
                self._vault.check()  # while it is away no study is begun, so none uses up its attempts
            claimed = claim_studies(
                self._store,
                owner=self._owner,
                now=now,
                lease=self._lease,
                limit=self._settings.worker.batch,
                objects=self._objects.root,
            )
        except (StoreError, VaultError) as error:
            logger.error("%s", error)
            self.pause_s = STORE_PAUSE_S
            return False
        self.pause_s = POLL_S
        worn_out = [each for each in claimed if each.attempts > self._settings.worker.attempts]
        for each in worn_out:
            self._give_back(each, f"given up after {each.attempts - 1} attempts that did not end", retry=False)
        batch = [each for each in claimed if each not in worn_out]
        if batch:
            self._judge(batch)
        return self._follow_in_the_shadow(bool(claimed))

    def _follow_in_the_shadow(self, claimed: bool) -> bool:
        """Run what waits in the shadow while nobody else waits; more only where too much waits."""
        ran = False
        while len(self._backlog) and ((full := self._backlog.is_full) or not (claimed or ran)):
            work = self._backlog.take()
            assert work is not None
            if full and self._settings.shadow.when_full == "skip":
                self._record_shadow(work, ShadowOutcome(study_key=work.study_key), "skipped: too much waited")
            else:
                self._run_shadow(work)
            ran = True
        return claimed or ran

    def finish_shadows(self, limit_s: float) -> None:
        """Run what waits in the shadow, for so long."""
        deadline = time.monotonic() + limit_s
        while len(self._backlog) and time.monotonic() < deadline:
            work = self._backlog.take()
            assert work is not None
            self._run_shadow(work)

    def _run_shadow(self, work: ShadowWork) -> None:
        outcome, reason = ShadowOutcome(study_key=work.study_key), ""
        try:
            outcome = run_shadow(work, self._engine())
        except Exception as error:
            logger.error("study %s, shadow: %s", work.study_key, type(error).__name__, exc_info=error)
            reason = f"internal error: {type(error).__name__}"
        self._record_shadow(work, outcome, reason)

    def _record_shadow(self, work: ShadowWork, outcome: ShadowOutcome, reason: str) -> None:
        failures = failures_of(work.frames, reason) if reason else tuple(outcome.failures.values())
        for failure in failures:
            logger.warning(
                "study %s, shadow: %s %d: %s", work.study_key, failure.model_name, failure.version, failure.reason
            )
        try:
            for each in outcome.images:
                self._write_heat_map(each.image)
            rows = [shadow_row(each) for each in outcome.images]
            record_shadows(self._store, work.study_key, rows, failure_rows(failures), datetime.now(UTC))
        except (StoreError, OSError) as error:
            logger.error("study %s, shadow: cannot be recorded: %s", work.study_key, type(error).__name__)

    def _judge(self, batch: Sequence[ClaimedStudy]) -> None:
        started = time.perf_counter()
        try:
            judgements = judge_studies([each.study for each in batch], self._engine(), datetime.now(UTC))
        except Exception as error:  # noqa: BLE001  the worker's loop, one of three places that catch anything
            self._isolate(batch, error)
            return
        for each, judgement in zip(batch, judgements, strict=True):
            pieces = shadow_work(judgement)
            if self._conclude(each, judgement):
                self._backlog.extend(pieces)
        self._judged += len(batch)
        logger.info("judged %d studies in %.0f ms", len(batch), (time.perf_counter() - started) * 1000)

    def _isolate(self, batch: Sequence[ClaimedStudy], error: Exception) -> None:
        """A whole batch failed: find out which study it was, by judging each alone."""
        if len(batch) > 1:
            for each in batch:
                self._judge([each])
            return
        expected = isinstance(error, (GatewayError, ModelError))
        logger.error("study %s: %s", batch[0].study.study_key, type(error).__name__, exc_info=not expected)
        reason = str(error) if expected else f"internal error: {type(error).__name__}"
        self._give_back(batch[0], reason, retry=disposition(error) is Disposition.RETRY)

    def _conclude(self, claimed: ClaimedStudy, judgement: StudyJudgement) -> bool:
        """Write down what became of one study; whether it was judged."""
        for failure in judgement.failures.values():
            logger.warning(
                "study %s: %s %d, %s, gave nothing: %s",
                claimed.study.study_key,
                failure.model_name,
                failure.version,
                failure.role,
                failure.reason,
            )
        if judgement.error is not None:
            level = logging.INFO if isinstance(judgement.error, PausedError) else logging.ERROR
            logger.log(level, "study %s: %s", claimed.study.study_key, judgement.error)
            self._put_off(claimed, judgement.error, judgement)
            return False
        try:
            record = self._record(claimed, judgement)
            for unneeded in record_judgement(self._store, record, datetime.now(UTC)):
                self._objects.remove(unneeded)
        except TransitionError as error:
            # Another worker took it after this one's lease had ended; its record stands, and is the same.
            logger.warning("study %s: %s", claimed.study.study_key, error)
        except (ResultMismatchError, IdentityError, UnreadableError) as error:
            logger.critical("study %s: results stopped, nothing is sent: %s", claimed.study.study_key, error)
            self._give_back(claimed, f"results stopped: {error}", retry=False)
        except (StoreError, VaultError, OSError) as error:
            logger.error("study %s: cannot be recorded: %s", claimed.study.study_key, type(error).__name__)
            self._give_back(claimed, f"cannot be recorded: {type(error).__name__}", retry=True)
        else:
            return True
        return False

    def _put_off(self, claimed: ClaimedStudy, error: Exception, judgement: StudyJudgement) -> None:
        """A study that could not be judged: to be tried again, to wait for a version, or for a person to see."""
        if isinstance(error, PausedError):
            wait_s = max(LEAST_WAIT_S, error.wait_s)
            self._give_back(claimed, str(error), retry=True, delay_s=wait_s, was_attempt=False)
            return
        try:
            record_failures(
                self._store, claimed.study.study_key, failure_rows(judgement.failures.values()), datetime.now(UTC)
            )
        except StoreError as failed:
            logger.error("study %s: %s", claimed.study.study_key, failed)
        self._give_back(claimed, str(error), retry=disposition(error) is Disposition.RETRY)

    def _record(self, claimed: ClaimedStudy, judgement: StudyJudgement) -> JudgementRecord:
        for image in judgement.judged:
            self._write_pictures(image)
        state, reason = conclusion(judgement)
        return JudgementRecord(
            study_key=claimed.study.study_key,
            revision=claimed.revision,
            state=state,
            reason=reason,
            priority=int(judgement.priority),
            predictions=tuple(prediction_row(image) for image in judgement.judged),
            results=tuple(self._write_result(made, judgement) for made in judgement.results),
            rules={instance.instance_key: None for instance in claimed.study.instances}
            | {image.instance.instance_key: image.rule.name for image in judgement.chosen},
            not_judged_reasons=judgement.not_judged_reasons,
            quarantined={key: self._quarantine(key, judgement) for key in judgement.quarantine_reasons},
            failures=failure_rows(judgement.failures.values()),
        )

    def _quarantine(self, instance_key: str, judgement: StudyJudgement) -> QuarantinedInstance:
        """Show an image that was refused here in the quarantine, under a name of its own: it stays in its study."""
        (path,) = (each.path for each in judgement.study.instances if each.instance_key == instance_key)
        self._objects.link(path, quarantine_path(instance_key))
        reason = judgement.quarantine_reasons[instance_key]
        logger.warning("image %s goes to quarantine: %s", instance_key, reason)
        return QuarantinedInstance(path=quarantine_path(instance_key), reason=reason)

    def _write_pictures(self, image: JudgedImage) -> None:
        """Display picture and heat map for the viewer. Not durable: they can be made again."""
        self._objects.write(picture_path(image.instance_key, image.frame_index), _jpeg(image.picture), durable=False)
        self._write_heat_map(image)

    def _write_heat_map(self, image: JudgedImage) -> None:
        if image.explanation is not None:
            path = heat_map_path(
                image.instance_key, image.frame_index, image.prediction.model_name, image.prediction.model_version
            )
            self._objects.write(path, _grey_png(image.explanation.heat), durable=False)

    def _write_result(self, made: ResultObject, judgement: StudyJudgement) -> ResultRow:
        key = new_key()
        stream = io.BytesIO()
        made.dataset.save_as(stream, enforce_file_format=True)
        stream.seek(0)
        self._check.require_right_patient(judgement.study.study_key, stream)
        self._objects.write(result_path(key), stream.getbuffer())
        names = {
            destination.name for image in judgement.chosen for destination in self._settings.destinations_of(image.rule)
        }
        return ResultRow(
            result_key=key,
            kind=made.kind,
            sop_class_uid=made.sop_class_uid,
            sop_instance_uid=made.sop_instance_uid,
            path=result_path(key),
            destinations=tuple(sorted(names)),
        )

    def _give_back(
        self, claimed: ClaimedStudy, reason: str, *, retry: bool, delay_s: float | None = None, was_attempt: bool = True
    ) -> None:
        if delay_s is None:
            delay_s = RETRY_DELAY_S * 2 ** (claimed.attempts - 1) if retry else 0.0
        try:
            give_back(
                self._store,
                claimed.study.study_key,
                to=StudyState.QUEUED if retry else StudyState.FAILED,
                reason=reason,
                now=datetime.now(UTC),
                delay=timedelta(seconds=delay_s),
                was_attempt=was_attempt,
            )
        except (StoreError, TransitionError) as error:
            logger.error("study %s: cannot be given back, its lease will end: %s", claimed.study.study_key, error)

    def _engine(self) -> Engine:
        return Engine(
            rules=self._settings.rules,
            sessions=dict(self.versions.sessions),
            deidentifier=self._deidentifier,
            decoder=self._decoder,
            key=self._key,
            gateway_version=__version__,
            threads=self._executor,
            vault=self._vault,
            beside=self.versions.beside,
            breakers=self.versions.breakers,
            fuse=self._fuse,
            paused=self._settings.breaker.policy,
            profile_sha256=self._profile_sha256,
        )

    def _report(self) -> None:
        changed = self.versions.fingerprint()
        if time.monotonic() - self._reported_at < REPORT_S and changed == self._reported:
            return
        self._reported_at, self._reported = time.monotonic(), changed
        report_process(
            self._store,
            name=self._name,
            pid=os.getpid(),
            now=datetime.now(UTC),
            detail={"judged": self._judged, "shadow_waiting": len(self._backlog), **self.versions.describe()},
        )

    def _keep_leases(self) -> None:
        """Renew while the main thread works, so that a long batch is not taken for a dead worker."""
        while not self._closed.wait(self._lease.total_seconds() / 4):
            try:
                renew_leases(self._store, owner=self._owner, now=datetime.now(UTC), lease=self._lease)
            except StoreError as error:
                logger.error("%s", error)


def conclusion(judgement: StudyJudgement) -> tuple[StudyState, str]:
    """The state that a study ends in, and why where that needs saying."""
    reasons = sorted(set(judgement.not_judged_reasons.values()))
    if judgement.judged:
        return StudyState.JUDGED, ""
    if judgement.chosen:
        return StudyState.FAILED, "; ".join(reasons)
    return StudyState.NOT_MATCHED, "; ".join(reasons)


def _jpeg(picture: npt.NDArray[np.uint8]) -> memoryview:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=85)
    return stream.getbuffer()


def _grey_png(heat: npt.NDArray[np.float32]) -> memoryview:
    """8-bit grey PNG of a heat map; it is smooth, so a fraction of the picture's size holds all of it."""
    picture = Image.fromarray((np.clip(heat, 0, 1) * 255 + 0.5).astype(np.uint8))
    picture.thumbnail((HEAT_MAP_LONG_SIDE, HEAT_MAP_LONG_SIDE), Image.Resampling.BOX)
    stream = io.BytesIO()
    picture.save(stream, "PNG", compress_level=1)
    return stream.getbuffer()
