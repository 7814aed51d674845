"""How a thread works round after round for one partner, and how long it waits after a failure."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import datetime, timedelta

from gateway.errors import StoreError

logger = logging.getLogger(__name__)


def keep_working(one_round: Callable[[], bool], stop: threading.Event, *, poll_s: float) -> None:
    """Do rounds until told to stop, with a pause after one that found nothing to do or met a store that fails."""
    while not stop.is_set():
        try:
            worked = one_round()
        except StoreError as error:
            logger.error("%s", error)
            worked = False
        if not worked:
            stop.wait(poll_s)


def doubling_delay(doublings: int, *, first_s: float, longest_s: float) -> timedelta:
    """A pause that doubles from the first to the longest."""
    return timedelta(seconds=min(first_s * 2 ** min(doublings, 32), longest_s))


def unless_too_late(again_at: datetime, created_at: datetime, *, give_up_after_s: float) -> datetime | None:
    """`again_at`, or ``None`` where that is later than something made at `created_at` is worth."""
    return again_at if again_at <= created_at + timedelta(seconds=give_up_after_s) else None
