"""What this machine can do at most: loopback, fsync, SHA-256. No receiver can be faster."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_SECONDS = 1.5


def loopback_mb_per_s(piece_bytes: int) -> float:
    """One TCP connection from process to process, read into one buffer."""
    listener = socket.create_server(("127.0.0.1", 0))
    process = multiprocessing.get_context("fork").Process(target=_pour, args=(listener.getsockname(), piece_bytes))
    process.start()
    connection, _ = listener.accept()
    buffer, total = bytearray(piece_bytes), 0
    started = time.perf_counter()
    while received := connection.recv_into(buffer):
        total += received
    elapsed = time.perf_counter() - started
    process.join()
    connection.close()
    listener.close()
    return total / elapsed / 1e6


def _pour(address: tuple[str, int], piece_bytes: int) -> None:
    with socket.create_connection(address) as connection:
        piece, deadline = bytes(piece_bytes), time.perf_counter() + _SECONDS
        while time.perf_counter() < deadline:
            connection.sendall(piece)


def fsync_per_s(folder: Path, size_bytes: int, threads: int) -> float:
    """Files of that size written, fsynced, and their folder fsynced, a second; `threads` at once in a folder each."""
    content = os.urandom(min(size_bytes, 1 << 20)) * max(1, size_bytes >> 20)
    content = content[:size_bytes]
    stop = time.perf_counter() + _SECONDS

    def write(number: int) -> int:
        own = folder / f"fsync-{number}"
        own.mkdir(parents=True)
        count = 0
        while time.perf_counter() < stop:
            path = own / str(count)
            with path.open("wb", buffering=0) as stream:
                stream.write(content)
                os.fsync(stream.fileno())
            descriptor = os.open(own, os.O_RDONLY | os.O_DIRECTORY)
            os.fsync(descriptor)
            os.close(descriptor)
            count += 1
            if size_bytes > 1 << 22:
                path.unlink()
        return count

    started = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        done = sum(pool.map(write, range(threads)))
    rate = done / (time.perf_counter() - started)
    for path in folder.glob("fsync-*/*"):
        path.unlink()
    for path in folder.glob("fsync-*"):
        path.rmdir()
    return rate


def sha256_mb_per_s() -> float:
    """On one core."""
    piece, count, started = bytes(1 << 20), 0, time.perf_counter()
    digest = hashlib.sha256()
    while time.perf_counter() - started < _SECONDS / 2:
        digest.update(piece)
        count += 1
    return count * len(piece) / (time.perf_counter() - started) / 1e6
