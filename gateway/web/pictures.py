"""Pictures for pages: stored display pictures, heat in colour, thumbnails, and pixels for the viewer.

Pillow, the decoders and the colours of heat are loaded at the first picture, not with the process.
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Path, Query, Request
from fastapi.responses import Response
from sqlalchemy import select

from gateway.errors import StoreError, UnreadableError
from gateway.objects import ObjectFolder, heat_map_path, picture_path
from gateway.roles import Permission
from gateway.settings import DecodingSettings
from gateway.store import Store
from gateway.store.schema import instance, result
from gateway.web.access import require
from gateway.web.decoding import DecodedPixels, LazyDecoder, decode_pixels
from gateway.web.rollout import refuse_shadow

if TYPE_CHECKING:
    from PIL.Image import Image

CACHE_BYTES = 48 * 1024 * 1024
DECODERS = 2
DECODER_PATIENCE_S = 20.0
THUMBNAIL_LONG_SIDE = 96
THUMBNAIL_OPACITY = 0.6

SEES = [Depends(require(Permission.SEE))]
SEES_SMALL = [Depends(require(Permission.SEE, cost=0.1))]
"""A worklist has up to 200 of them."""
Key = Annotated[str, Path(pattern="^[0-9a-f]{32}$")]
Frame = Annotated[int, Path(ge=0, lt=2**31)]
Model = Annotated[str, Query(pattern="^[a-z][a-z0-9-]{0,63}$")]
Version = Annotated[int, Query(ge=1, lt=2**31)]


@dataclass(slots=True)
class ByteCache:
    """The answers last given, up to `limit` bytes."""

    limit: int = CACHE_BYTES
    _held: OrderedDict[tuple[Any, ...], DecodedPixels] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _size: int = 0

    def get(self, key: tuple[Any, ...], make: Callable[[], DecodedPixels]) -> DecodedPixels:
        """What is held under `key`, made where it is not."""
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
        made = make()
        with self._lock:
            if key not in self._held:
                self._held[key] = made
                self._size += len(made.content)
            while self._size > self.limit and self._held:
                self._size -= len(self._held.popitem(last=False)[1].content)
        return made


def pictures_router(objects: ObjectFolder, store: Store, decoding: DecodingSettings) -> APIRouter:
    """Every route that answers with a picture."""
    router = APIRouter(tags=["pictures"], prefix="/api/instances/{instance_key}/frames/{frame_index}")
    cache = ByteCache()
    decoders, decoder = threading.BoundedSemaphore(DECODERS), LazyDecoder(decoding, size=DECODERS)

    @router.get("/picture.jpg", dependencies=SEES, summary="The picture as displayed, long side at most 1152 pixels")
    def picture(instance_key: Key, frame_index: Frame) -> Response:
        _refuse_expired_picture(objects, store, instance_key, frame_index)
        return Response(_read(objects, picture_path(instance_key, frame_index)), media_type="image/jpeg")

    @router.get(
        "/heat.png", dependencies=SEES, summary="The heat map over the whole picture, in colour; cover grows with heat"
    )
    def heat(request: Request, instance_key: Key, frame_index: Frame, model: Model, version: Version) -> Response:
        refuse_shadow(request, store, instance_key, frame_index, model, version)
        _refuse_expired_picture(objects, store, instance_key, frame_index)
        grey = _read(objects, heat_map_path(instance_key, frame_index, model, version))
        return Response(_png(coloured_heat(grey)), media_type="image/png")

    @router.get("/thumbnail.jpg", dependencies=SEES_SMALL, summary="A small picture, with heat where a model is named")
    def thumbnail(
        request: Request,
        instance_key: Key,
        frame_index: Frame,
        model: Annotated[str | None, Query(pattern="^[a-z][a-z0-9-]{0,63}$")] = None,
        version: Annotated[int, Query(ge=1, lt=2**31)] = 1,
    ) -> Response:
        def make() -> DecodedPixels:
            heat_file = None if model is None else heat_map_path(instance_key, frame_index, model, version)
            return _thumbnail(objects, picture_path(instance_key, frame_index), heat_file)

        if model is not None:
            refuse_shadow(request, store, instance_key, frame_index, model, version)
        _refuse_expired_picture(objects, store, instance_key, frame_index)
        made = cache.get(("thumbnail", instance_key, frame_index, model, version), make)
        return Response(made.content, media_type=made.media_type)

    @router.get(
        "/pixels", dependencies=SEES, summary="Pixels for the viewer: grey 16 bit little endian, or a colour JPEG"
    )
    def pixels(
        instance_key: Key, frame_index: Frame, long_side: Annotated[int, Query(ge=64, le=8192)] = 2048
    ) -> Response:
        path = objects.path(_instance_path(store, instance_key))

        def make() -> DecodedPixels:
            if not decoders.acquire(timeout=DECODER_PATIENCE_S):
                raise HTTPException(503, "busy decoding other pictures; try again")
            try:
                return decode_pixels(path, frame_index, long_side, decoder.pool)
            finally:
                decoders.release()

        made = cache.get(("pixels", instance_key, frame_index, long_side), make)
        return Response(made.content, media_type=made.media_type, headers=dict(made.headers))

    return router


def _instance_path(store: Store, instance_key: str) -> str:
    with store.read() as connection:
        found = connection.execute(
            select(instance.c.path, instance.c.removed_at).where(instance.c.instance_key == instance_key)
        ).one_or_none()
    if found is None:
        raise StoreError(f"no image {instance_key}")
    if found.removed_at is not None:
        raise HTTPException(410, "image expired: the original was deleted by retention")
    return str(found.path)


def _refuse_expired_picture(objects: ObjectFolder, store: Store, instance_key: str, frame_index: int) -> None:
    """410 where there was a picture and retention has deleted it."""
    if objects.path(picture_path(instance_key, frame_index)).is_file():
        return
    of = select(result.c.result_key).join(instance, instance.c.study_key == result.c.study_key)
    with store.read() as connection:
        found = connection.execute(
            of.where(instance.c.instance_key == instance_key, result.c.removed_at.is_not(None)).limit(1)
        ).first()
    if found is not None:
        raise HTTPException(410, "image expired: the picture was deleted by retention")


def _read(objects: ObjectFolder, relative: str) -> bytes:
    try:
        return objects.path(relative).read_bytes()
    except FileNotFoundError:
        raise StoreError("no such picture") from None
    except OSError as error:
        raise UnreadableError(f"a picture cannot be read: {type(error).__name__}") from error


@lru_cache(maxsize=1)
def _heat_table() -> bytes:
    """256 levels of heat as RGBA: the colours of heat, and cover that leaves faint heat clear."""
    from xai.colour_map import COLOUR_MAP
    from xai.overlay import cover_levels

    cover = cover_levels(1.0)
    return b"".join(bytes(COLOUR_MAP[level]) + bytes([int(cover[level])]) for level in range(256))


def coloured_heat(grey_png: bytes) -> Image:
    """A stored heat map, 8-bit grey, as an RGBA picture."""
    import numpy as np
    from PIL import Image

    table = np.frombuffer(_heat_table(), dtype=np.uint8).reshape(256, 4)
    with Image.open(io.BytesIO(grey_png)) as grey:
        return Image.fromarray(table[np.asarray(grey.convert("L"))], mode="RGBA")


def _png(picture: Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def _thumbnail(objects: ObjectFolder, picture_file: str, heat_file: str | None) -> DecodedPixels:
    from PIL import Image

    with Image.open(io.BytesIO(_read(objects, picture_file))) as picture:
        picture.draft("RGB", (THUMBNAIL_LONG_SIDE, THUMBNAIL_LONG_SIDE))
        small = picture.convert("RGB")
    small.thumbnail((THUMBNAIL_LONG_SIDE, THUMBNAIL_LONG_SIDE))
    if heat_file is not None and objects.path(heat_file).is_file():
        heat = coloured_heat(_read(objects, heat_file)).resize(small.size)
        heat.putalpha(heat.getchannel("A").point([round(level * THUMBNAIL_OPACITY) for level in range(256)]))
        small.paste(heat, mask=heat.getchannel("A"))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=85)
    return DecodedPixels(content=stream.getvalue(), media_type="image/jpeg")
