"""DCMTK's storescu as the sender, to check the replay client; it reads files, and gives no time to Success."""

from __future__ import annotations

import resource
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from ingest.objects import PLACES, SentObject
from ingest.replay import Sent, values

_PROPOSED = {"1.2.840.10008.1.2.4.50": "--propose-jpeg8", "1.2.840.10008.1.2.1": "--propose-little"}


def send(
    target: tuple[str, int, str], what: SentObject, *, associations: int, pdu_bytes: int, count: int, seconds: float,
    run: int, meanwhile: Callable[[], None] = lambda: None,
) -> Sent:  # fmt: skip
    """As :func:`ingest.replay.send`; sends all of `count`, whatever the time. Starting storescu counts too."""
    host, port, called = target
    with tempfile.TemporaryDirectory(prefix="storescu-") as scratch:
        shares = [Path(scratch) / f"{which:03d}" for which in range(associations)]
        for which, folder in enumerate(shares):
            folder.mkdir()
            for local in range(count // associations + (which < count % associations)):
                (folder / f"{local:06d}.dcm").write_bytes(_file(what, values(what, run, which, local)))
        options = [_PROPOSED[what.transfer_syntax_uid], "--max-send-pdu", str(pdu_bytes), "-aec", called]
        before, started = _children_cpu_s(), time.perf_counter()
        running = [
            subprocess.Popen(
                ["storescu", *options, "--scan-directories", host, str(port), str(folder)],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for folder in shares
        ]
        while any(process.poll() is None for process in running):
            meanwhile()
            time.sleep(0.02)
        elapsed = time.perf_counter() - started
        errors = "; ".join(process.communicate()[1].strip()[:200] for process in running if process.returncode)
    return Sent(
        seconds=elapsed,
        latencies_s=(float("nan"),) * (0 if errors else count),
        pdu_bytes=pdu_bytes,
        cpu_s=_children_cpu_s() - before,
        error=errors,
    )


def _file(what: SentObject, new: dict[str, bytes]) -> bytes:
    content = what.data_set
    for name, place in PLACES.items():
        content = content.replace(place, new[name], 1)
    meta = b"".join(
        b"\x02\x00" + number.to_bytes(2, "little") + b"UI" + len(value).to_bytes(2, "little") + value
        for number, value in (
            (0x0002, _even(what.sop_class_uid.encode())),
            (0x0003, new["instance"]),
            (0x0010, _even(what.transfer_syntax_uid.encode())),
            (0x0012, _even(b"1.2.826.0.1.3680043.8.498.9")),
        )
    )
    meta = b"\x02\x00\x01\x00OB\x00\x00\x02\x00\x00\x00\x00\x01" + meta
    return bytes(128) + b"DICM\x02\x00\x00\x00UL\x04\x00" + len(meta).to_bytes(4, "little") + meta + content


def _even(value: bytes) -> bytes:
    return value + b"\0" * (len(value) % 2)


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
