"""Rate limits, in the memory of the web process; bounded, whatever is asked under however many names."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address, ip_network

LARGEST_KEYS = 20_000


class RateLimit:
    """A bucket of tokens for each key: `per_minute` at once, filled again at that rate.

    A key that has not been seen lately has a full bucket, so that buckets long unused can be forgotten.
    """

    def __init__(
        self, per_minute: float, *, clock: Callable[[], float] = time.monotonic, largest_keys: int = LARGEST_KEYS
    ) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._largest_keys = largest_keys
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, key: str, cost: float = 1.0) -> float:
        """Take `cost` from the key's bucket; gives 0, or for how many seconds there will not be enough in it."""
        with self._lock:
            now = self._clock()
            left = self._left(key, now)
            if left < cost:
                return max(1e-3, (cost - left) * 60 / self._per_minute)
            self._buckets[key] = (left - cost, now)
            self._buckets.move_to_end(key)
            while len(self._buckets) > self._largest_keys:
                self._buckets.popitem(last=False)
            return 0.0

    def give_back(self, key: str, cost: float = 1.0) -> None:
        """What was taken was not used."""
        with self._lock:
            if key in self._buckets:
                now = self._clock()
                self._buckets[key] = (min(self._per_minute, self._left(key, now) + cost), now)

    def __len__(self) -> int:
        return len(self._buckets)

    def _left(self, key: str, now: float) -> float:
        left, at = self._buckets.get(key, (self._per_minute, now))
        return min(self._per_minute, left + (now - at) * self._per_minute / 60)


def address_key(address: str) -> str:
    """What counts as one address: of IPv6 the /64, which one machine has to itself."""
    try:
        parsed = ip_address(address.split("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ip_network((int(parsed), 64), strict=False))
    return str(parsed)


def retry_after(seconds: float) -> dict[str, str]:
    """The header of a 429 or 503 answer (RFC 9110 section 10.2.3)."""
    return {"Retry-After": str(max(1, math.ceil(seconds)))}
