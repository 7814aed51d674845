"""Server-sent events: one look at the store a second, shared by all pages that are open."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable

from anyio import to_thread
from sqlalchemy import func, select

from gateway.errors import StoreError
from gateway.store import Store
from gateway.store.schema import alarm, delivery, drift_result, prediction, study
from gateway.web.rollout import rollout_token

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
KEEP_ALIVE_S = 15.0


def worklist_token(store: Store) -> str:
    """A text that is another one after anything that the worklist shows has changed. Reads indexes and short tables."""
    by_state = select(study.c.state, func.count(), func.max(study.c.queued_at), func.sum(study.c.priority))
    deliveries = select(delivery.c.state, func.count(), func.max(delivery.c.next_attempt_at))
    alarms = select(alarm.c.state, func.count(), func.max(alarm.c.last_seen_at))
    newest = select(
        select(func.max(study.c.last_received_at)).scalar_subquery(),
        select(func.max(prediction.c.prediction_id)).scalar_subquery(),
        select(func.max(drift_result.c.drift_result_id)).scalar_subquery(),
    )
    with store.read() as connection:
        found = [
            sorted(map(str, connection.execute(by_state.group_by(study.c.state)))),
            sorted(map(str, connection.execute(deliveries.group_by(delivery.c.state)))),
            sorted(map(str, connection.execute(alarms.group_by(alarm.c.state)))),
            str(connection.execute(newest).one()),
        ]
    found.append(rollout_token(store))
    return hashlib.sha256(repr(found).encode()).hexdigest()[:16]


class Hub:
    """Tells every open page when the store has changed; looks at it only while a page is open."""

    def __init__(self, store: Store, stopping: threading.Event) -> None:
        self._store = store
        self._stopping = stopping
        self._token = ""
        self._listeners = 0
        self._changed = asyncio.Condition()

    async def watch(self) -> None:
        """Look once a second, until the process stops; then end all streams."""
        while not self._stopping.is_set():
            if self._listeners:
                await self._look()
            await asyncio.sleep(LOOK_EVERY_S)
        async with self._changed:
            self._changed.notify_all()

    async def _look(self) -> None:
        try:
            token = await to_thread.run_sync(worklist_token, self._store)
        except StoreError as error:
            logger.error("%s", error)
            return
        if token != self._token:
            async with self._changed:
                self._token = token
                self._changed.notify_all()

    async def stream(self, still_allowed: Callable[[], Awaitable[bool]]) -> AsyncIterator[str]:
        """Lines for one page: an event at once, and after each change; ends when `still_allowed` says no."""
        self._listeners += 1
        told = ""
        clock = asyncio.get_running_loop().time
        look_at = clock() + KEEP_ALIVE_S
        try:
            while not self._stopping.is_set():
                token = await self._next_token(told)
                if clock() >= look_at:
                    look_at = clock() + KEEP_ALIVE_S
                    if not await still_allowed():
                        return
                if token is None:
                    yield ": still here\n\n"
                elif token != told:
                    told = token
                    yield f"event: worklist\ndata: {told}\n\n"
        finally:
            self._listeners -= 1

    async def _next_token(self, told: str) -> str | None:
        """The first token that differs from `told`; ``None`` where none came for a while."""
        try:
            async with self._changed, asyncio.timeout(KEEP_ALIVE_S):
                await self._changed.wait_for(lambda: self._stopping.is_set() or self._token != told)
                return self._token
        except TimeoutError:
            return None
