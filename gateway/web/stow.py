"""STOW-RS: DICOM objects by HTTP, into the same spool and through the same checks as C-STORE.

A body is never held in memory: pieces go through the multipart reader and past the file meta into the spool as they
come. What a request says of a part (its content type, its file meta) is held against the data set by the intake.

References
----------
PS3.18 section 10.5 (store transaction), section 8.6.1 (single and multipart payloads), Annex I.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Annotated

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import Response
from starlette.requests import ClientDisconnect

from gateway.contexts import may_be_stored
from gateway.dimse import SOP_CLASS_NOT_SUPPORTED, SUCCESS
from gateway.disk import DiskGuard, QueueGuard
from gateway.errors import INTAKE_STATUSES, IntakeError, NotUnderstoodError, OutOfResourcesError
from gateway.multipart import MediaType, MultipartError, MultipartReader, TooManyPartsError
from gateway.part10 import HeadReader
from gateway.roles import Permission
from gateway.settings import DicomSettings, Settings
from gateway.spool import Intake, Peer, Spool, make_folders
from gateway.store import Store
from gateway.validate import UID_PATTERN, encoding_of
from gateway.web.access import Caller, require
from gateway.web.limits import address_key
from gateway.web.store_response import Outcome, choose_media_type, encode, http_status

logger = logging.getLogger(__name__)

DICOM = "application/dicom"
MOST_UPLOADS = 32
MOST_UPLOADS_PER_CALLER = 8
"""So that one that stalls in all its places leaves some to the others."""
THREADS = 4
RETRY_AFTER_S = 30
CLOSE = {"Connection": "close"}
"""To a client that stalls; else its connection would stay for the rest of the body."""
COST = 0.1
"""Of the caller's rate: a sender of single instances makes many requests."""
TRANSFER_SYNTAX_NOT_SUPPORTED = 0xC122
"""PS3.18 Table I.2-2."""
_OUT_OF_RESOURCES = INTAKE_STATUSES[OutOfResourcesError]
_NOT_UNDERSTOOD = INTAKE_STATUSES[NotUnderstoodError]


MayStore = Annotated[Caller, Depends(require(Permission.STORE, cost=COST))]


class Upload:
    """Takes the parts of one request in; a :class:`gateway.multipart.PartReceiver`."""

    def __init__(self, intake: Intake, disk: DiskGuard, peer: Peer, study_instance_uid: str) -> None:
        self._intake = intake
        self._disk = disk
        self._peer = peer
        self._study_instance_uid = study_instance_uid
        self._head: HeadReader | None = None
        self._spool: Spool | None = None
        self._failure: Outcome | None = None
        self.outcomes: list[Outcome] = []

    def begin(self, headers: Mapping[str, str]) -> None:
        """A part begins."""
        self._head, self._failure = HeadReader(), None
        if MediaType.parse(headers.get("content-type", DICOM)).name != DICOM:
            self._fail(_NOT_UNDERSTOOD, "a part that is not application/dicom")

    def data(self, piece: memoryview) -> None:
        """More of the part."""
        if self._failure is not None:
            return
        if self._spool is not None:
            self._spool.write(piece)
            return
        assert self._head is not None
        try:
            found = self._head.feed(piece)
        except IntakeError as error:
            self._fail(_NOT_UNDERSTOOD, str(error))
            return
        if found is None:
            return
        head, rest = found
        names = {"sop_class_uid": head.sop_class_uid, "sop_instance_uid": head.sop_instance_uid}
        reason = self._disk.refusal()
        if reason is not None:
            self._fail(_OUT_OF_RESOURCES, reason, **names)
        elif head.sop_class_uid and not may_be_stored(head.sop_class_uid):
            self._fail(SOP_CLASS_NOT_SUPPORTED, "a SOP class of another service than storage", **names)
        elif encoding_of(head.transfer_syntax_uid) is None:
            self._fail(TRANSFER_SYNTAX_NOT_SUPPORTED, "a transfer syntax that is not known", **names)
        else:
            self._spool = self._intake.open(transfer_syntax_uid=head.transfer_syntax_uid, **names)
            self._spool.write(rest)

    def end(self) -> None:
        """The part is whole."""
        if self._failure is None and self._spool is None and self._head is not None:
            try:
                self._head.end()
            except IntakeError as error:
                self._fail(_NOT_UNDERSTOOD, str(error))
        if self._failure is not None:
            self.outcomes.append(self._failure)
        elif self._spool is not None:
            spool, self._spool = self._spool, None
            answer = self._intake.take(spool, self._peer, study_instance_uid=self._study_instance_uid)
            self.outcomes.append(
                Outcome(
                    failure_reason=0 if answer.status == SUCCESS else answer.status,
                    sop_class_uid=spool.sop_class_uid,
                    sop_instance_uid=spool.sop_instance_uid,
                    message=answer.reason,
                )
            )
        self._head, self._failure = None, None

    def cut_short(self, status: int, message: str) -> None:
        """The part that is under way, if one is, never becomes whole: it failed."""
        if self._spool is not None:
            whose = self._spool
            self._fail(status, message, sop_class_uid=whose.sop_class_uid, sop_instance_uid=whose.sop_instance_uid)
        elif self._head is not None and self._failure is None:
            self._fail(status, message)
        if self._failure is not None:
            self.outcomes.append(self._failure)
        self._head, self._failure = None, None
        self.discard()

    def discard(self) -> None:
        """Drop the part that is not whole."""
        if self._spool is not None:
            self._spool.discard()
            self._spool = None

    def _fail(self, status: int, message: str, *, sop_class_uid: str = "", sop_instance_uid: str = "") -> None:
        self._intake.count_refused()
        self._failure = Outcome(
            failure_reason=status, sop_class_uid=sop_class_uid, sop_instance_uid=sop_instance_uid, message=message
        )


class StowService:
    """What all requests share."""

    def __init__(self, settings: Settings, store: Store, objects: Path) -> None:
        make_folders(objects)
        self.intake = Intake(store=store, root=objects, rules=settings.rules, completion=settings.completion)
        self.disk = DiskGuard(objects, settings.disk)
        self.queue = QueueGuard(store, settings.dicom.longest_queue)
        self._settings = settings
        self._uploads: Counter[str] = Counter()
        self._threads: CapacityLimiter | None = None

    async def store(self, request: Request, caller: Caller, study_instance_uid: str) -> Response:
        """Answer one request."""
        media_type = choose_media_type(request.headers.get("accept", ""))
        if media_type is None:
            raise HTTPException(406, "the answer is application/dicom+json or application/dicom+xml")
        if study_instance_uid and UID_PATTERN.match(study_instance_uid) is None:
            raise HTTPException(400, "the Study Instance UID of the path is no UID")
        content = MediaType.parse(request.headers.get("content-type", ""))
        place = caller.actor if caller.kind == "token" else address_key(caller.address)
        self._may_begin(request, place)
        if self._threads is None:
            self._threads = CapacityLimiter(THREADS)  # needs a running event loop
        peer = Peer(calling_ae_title="STOW-RS", address=caller.address)
        upload = Upload(self.intake, self.disk, peer, study_instance_uid)
        self._uploads[place] += 1
        refused = 0
        try:
            refused = await self._read(request, content, upload, self._threads)
        finally:
            self._uploads -= Counter({place: 1})  # keeps no zeros
            upload.discard()
        status = http_status(upload.outcomes, refused=refused)
        failed = [each for each in upload.outcomes if not each.is_stored]
        logger.info(
            *("STOW-RS by %s at %s: %d stored, %d not, %d", caller.actor, caller.address),
            *(len(upload.outcomes) - len(failed), len(failed), status),
        )
        headers = {"Retry-After": str(RETRY_AFTER_S)} if status == 503 else {}
        if refused == 408:
            headers |= CLOSE
        if failed:
            headers["Warning"] = f'299 gateway "{failed[0].message[:200]}"'.encode("ascii", "replace").decode()
        return Response(encode(upload.outcomes, media_type), status, headers, media_type)

    def _may_begin(self, request: Request, place: str) -> None:
        """Refuse before anything is read what cannot be taken."""
        limit = self._settings.web.maximum_upload_bytes
        declared = request.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > limit:
            raise HTTPException(413, f"at most {limit} bytes a request")
        reason = self.disk.refusal() or self.queue.refusal()
        full = self._uploads.total() >= MOST_UPLOADS or self._uploads[place] >= MOST_UPLOADS_PER_CALLER
        if reason is None and full:
            reason = "too many uploads at once"
        if reason is not None:
            raise HTTPException(503, reason, {"Retry-After": str(RETRY_AFTER_S)})

    async def _read(self, request: Request, content: MediaType, upload: Upload, threads: CapacityLimiter) -> int:
        """Read the body; the status that the request as a whole deserves, 0 where nothing is wrong with it."""
        try:
            if content.name == DICOM:
                upload.begin({"content-type": DICOM})
                async for piece in self._pieces(request):
                    await to_thread.run_sync(upload.data, memoryview(piece), limiter=threads)
                await to_thread.run_sync(upload.end, limiter=threads)
                return 0
            if content.name != "multipart/related" or content.parameters.get("type", DICOM).lower() != DICOM:
                raise HTTPException(415, 'multipart/related; type="application/dicom" is taken, or application/dicom')
            reader = MultipartReader(content.parameters.get("boundary", ""), upload)
            async for piece in self._pieces(request):
                await to_thread.run_sync(reader.feed, piece, limiter=threads)
            reader.finish()
        except TooManyPartsError as error:
            return self._refuse(upload, 413, str(error))
        except MultipartError as error:
            return self._refuse(upload, 400, str(error))
        except _TooLargeError:
            return self._refuse(upload, 413, f"more than {self._settings.web.maximum_upload_bytes} bytes")
        except TimeoutError:
            return self._refuse(upload, 408, "the body came too slowly")
        except ClientDisconnect:
            return self._refuse(upload, 400, "the client went away")
        return 0

    def _refuse(self, upload: Upload, status: int, reason: str) -> int:
        logger.warning("STOW-RS: refused with %d: %s", status, reason)
        if not upload.outcomes:
            raise HTTPException(status, reason, CLOSE if status == 408 else None)
        upload.cut_short(_OUT_OF_RESOURCES if status == 413 else _NOT_UNDERSTOOD, reason)
        return status

    async def _pieces(self, request: Request) -> AsyncIterator[bytes]:
        """The body as it comes.

        Raises
        ------
        TimeoutError
            Nothing came for the network timeout, or less than the minimum rate.
        """
        dicom: DicomSettings = self._settings.dicom
        stream = request.stream()
        total, waited_s, window_bytes = 0, 0.0, 0
        while True:
            began_at = time.monotonic()
            try:
                piece = await asyncio.wait_for(anext(stream), dicom.network_timeout_s)
            except StopAsyncIteration:
                return
            waited_s += time.monotonic() - began_at  # the time for storing is not the client's
            total += len(piece)
            window_bytes += len(piece)
            if total > self._settings.web.maximum_upload_bytes:
                raise _TooLargeError
            if waited_s > dicom.minimum_rate_window_s:
                if window_bytes < dicom.minimum_bytes_per_s * waited_s:
                    raise TimeoutError
                waited_s, window_bytes = 0.0, 0
            if piece:
                yield piece


class _TooLargeError(Exception):
    """More bytes than a request may have."""


def stow_router(settings: Settings, store: Store, objects: Path) -> APIRouter:
    """``POST /dicom-web/studies`` and ``POST /dicom-web/studies/{study_instance_uid}``."""
    router = APIRouter(prefix="/dicom-web", tags=["DICOMweb"])
    service = StowService(settings, store, objects)

    @router.post("/studies", summary="Store instances (STOW-RS)")
    async def store_instances(request: Request, caller: MayStore) -> Response:
        return await service.store(request, caller, "")

    @router.post("/studies/{study_instance_uid}", summary="Store instances of one study (STOW-RS)")
    async def store_instances_of_study(request: Request, study_instance_uid: str, caller: MayStore) -> Response:
        return await service.store(request, caller, study_instance_uid)

    return router
