"""Decode compressed frames in a process with little to lose: the other end of :mod:`models.decoding`.

Started as a program, not forked, so that it holds nothing of its parent: no patient's data but the codestream at hand,
no key, no store, no socket but the one to its parent, no settings from the environment. It limits itself before it
sees the first codestream, and ends when its parent does.

Arguments: file descriptors of the socket and of the shared memory, bytes at the head of that memory that a result may
take, bytes of memory that decoding may take, seconds that a frame may take.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import resource
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np

from models.decoders import Decoded, Layout, decode_encapsulated
from models.errors import PixelError, UnsafePixelError

MESSAGE_BYTES = 4096
OPEN_FILES = 16
"""The three standard ones, the socket, and those that the import of a decoder opens."""
_GRACE_S = 1.0


def confine(memory_bytes: int) -> None:
    """Give up what decoding does not need; `memory_bytes` may be taken on top of what is held already."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # whoever stops the parent lets it finish its frame
    Path("/proc/self/oom_score_adj").write_text("1000")  # the first to go when the machine is short of memory
    held = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    for kind, limit in (
        (resource.RLIMIT_AS, held + memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
    ):
        resource.setrlimit(kind, (limit, limit))


def answer(request: bytes, memory: mmap.mmap, result_bytes: int) -> dict[str, Any]:
    """Decode what `request` names from `memory`, leave the samples at its head, and say what lies there."""
    asked = json.loads(request)
    codestream = memory[result_bytes : result_bytes + asked["codestream_bytes"]]
    try:
        decoded = decode_encapsulated(Layout(**asked["layout"]), codestream, least_side=asked["least_side"])
        return _hand_over(decoded, memory, result_bytes)
    except UnsafePixelError as error:
        return {"unsafe": str(error)}
    except PixelError as error:
        return {"refused": str(error)}
    except MemoryError:
        return {"out_of_memory": True}


def _hand_over(decoded: Decoded, memory: mmap.mmap, result_bytes: int) -> dict[str, Any]:
    codes = decoded.codes
    if codes.nbytes > result_bytes:
        raise UnsafePixelError(f"the decoded frame takes {codes.nbytes} bytes, the limit is {result_bytes}")
    place = np.frombuffer(memory, dtype=codes.dtype.newbyteorder("="), count=math.prod(codes.shape))
    place.reshape(codes.shape)[...] = codes
    return {
        "shape": codes.shape,
        "bytes_a_sample": codes.dtype.itemsize,
        "precision": decoded.precision,
        "is_ycbcr": decoded.is_ycbcr,
    }


def main() -> None:
    """Answer requests until the parent closes its end or is gone."""
    channel_descriptor, memory_descriptor, result_bytes, memory_bytes = map(int, sys.argv[1:5])
    time_s = float(sys.argv[5])
    channel = socket.socket(fileno=channel_descriptor)
    memory = mmap.mmap(memory_descriptor, 0)
    os.close(memory_descriptor)
    confine(memory_bytes)
    channel.send(b"ready")
    while request := channel.recv(MESSAGE_BYTES):
        # The parent keeps the time; the alarm, which kills, is for when it was killed itself.
        signal.setitimer(signal.ITIMER_REAL, time_s + _GRACE_S)
        reply = json.dumps(answer(request, memory, result_bytes)).encode()
        signal.setitimer(signal.ITIMER_REAL, 0)
        channel.send(reply)


if __name__ == "__main__":
    main()
