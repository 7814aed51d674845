"""How many connections each receiver has, told among the receivers, so that associations spread over the cores."""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path

_SLOT = struct.Struct("<q")


class LoadBoard:
    """A small shared file with one number for each receiver.

    It only advises: whoever finds itself above the others leaves a new connection to them for a moment. A number that a
    killed receiver left behind costs that moment, until its successor takes the slot.
    """

    def __init__(self, data_dir: Path, name: str, receivers: int) -> None:
        self._own = int(name.rpartition("-")[2]) % receivers
        descriptor = os.open(data_dir / "receivers.load", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, _SLOT.size * receivers)
            self._numbers = mmap.mmap(descriptor, _SLOT.size * receivers)
        finally:
            os.close(descriptor)
        self._others = [slot for slot in range(receivers) if slot != self._own]
        self.tell(0)

    def tell(self, connections: int) -> None:
        """Say how many connections this receiver has."""
        _SLOT.pack_into(self._numbers, self._own * _SLOT.size, connections)

    def is_above_others(self, connections: int) -> bool:
        """Whether another receiver has fewer."""
        return any(_SLOT.unpack_from(self._numbers, slot * _SLOT.size)[0] < connections for slot in self._others)
