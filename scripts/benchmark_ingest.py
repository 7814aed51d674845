"""How fast, and at what memory, do DICOM objects come in: the gateway beside its peers, on one machine in one run.

Receivers: ``gateway serve`` (validates, hashes, fsyncs, commits a row); Orthanc with fsync of its storage area; DCMTK's
``storescp --fork`` and pynetdicom's storescp, which neither check nor fsync. The gateway runs as a whole, but with
rules that match nothing and studies that stay open, so that no inference competes: reception alone is measured.

The sender is a replay client that costs next to nothing and is the same for all (`--sender dcmtk`: DCMTK's storescu, to
check it). It acknowledges answers at once, since DCMTK's and Orthanc's otherwise wait 40 ms in Nagle's algorithm, as
they do with DCMTK's sender; `--delayed-acknowledgement` lets them. Receivers take turns, in alternating order from
round to round, while the others are stopped (SIGSTOP); what is shown is the median of the rounds. After each turn the
receiver's own count must have grown by what it acknowledged, or the point is void. Sender and receiver share the
machine's cores; `others` says what else ran on them. Usage:

    python scripts/benchmark_ingest.py [--quick] [--json FILE] [--picture FILE] [--folder DIR on the disk to measure]
    python scripts/benchmark_ingest.py --flat 10000      the gateway's memory over so many instances
    python scripts/benchmark_ingest.py --giant           peak memory for one object of 1 GB
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ingest import dcmtk, limits, objects, receivers, replay
from ingest.objects import SentObject
from ingest.receivers import Receiver
from ingest.replay import Sent
from tqdm import tqdm

POINT_BYTES = 600_000_000
"""No point sends more than this, or one instance an association, so that the disk stays free."""
_runs = itertools.count(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What is measured at once."""

    object_name: str
    associations: int
    pdu_bytes: int
    receiver: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One turn of one receiver."""

    instances: int
    instances_per_s: float
    mb_per_s: float
    p50_ms: float
    p99_ms: float
    peak_pss_mb: float
    """Sum over the processes that receive, sampled."""
    largest_process_mb: float
    """Largest VmHWM of one of them."""
    receiver_cpu_ms: float
    """An instance, all processes of the receiver."""
    sender_cpu_ms: float
    others_cpu_fraction: float
    """Of the machine's processor time, what went to neither."""
    idle_fraction: float
    pdu_bytes: int
    void: str = ""
    """Why the figures do not count."""


def main() -> None:
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that the receivers are stopped too
    folder = Path(tempfile.mkdtemp(prefix="ingest-", dir=options.folder))
    file_system = subprocess.run(["stat", "-f", "-c", "%T", folder], capture_output=True, text=True, check=True).stdout
    report: dict[str, Any] = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cores": len(os.sched_getaffinity(0)),
        "file_system": file_system.strip(),
        "sender": options.sender,
    }
    print(f"{report['cores']} cores, {report['file_system']}, sender: {options.sender}")
    try:
        report["limits"] = measure_limits(folder, options)
        print_limits(report["limits"])
        if options.flat:
            report["flat"] = flat(folder, options.flat, options.objects[0])
        elif options.giant:
            report["giant"] = giant(folder, options.receivers)
        else:
            turns = measure(folder, options)
            report["points"] = [
                {**asdict(point), **asdict(median(figures)), "rounds": [asdict(each) for each in figures]}
                for point, figures in turns.items()
            ]
            print_table({point: median(figures) for point, figures in turns.items()})
            if options.picture:
                from ingest.picture import draw  # matplotlib comes with MLflow

                draw({point: median(figures) for point, figures in turns.items()}, options.picture)
    finally:
        subprocess.run(["rm", "-rf", folder], check=True)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--receivers", nargs="+", choices=receivers.RECEIVERS, default=list(receivers.RECEIVERS))
    parser.add_argument("--objects", nargs="+", choices=objects.KINDS, default=list(objects.KINDS))
    parser.add_argument("--associations", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--pdu", nargs="+", type=int, default=[16384, 131072], help="bytes")
    parser.add_argument("--seconds", type=float, default=4.0, help="of a turn, at most")
    parser.add_argument("--count", type=int, default=0, help="instances of a turn, at most; 0: as many as 600 MB hold")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="small objects, 4 associations, 128 KB, one short round")
    parser.add_argument("--sender", choices=["replay", "dcmtk"], default="replay")
    parser.add_argument(
        "--delayed-acknowledgement",
        action="store_true",
        help="do not spare peers the wait that Nagle's algorithm costs",
    )
    parser.add_argument("--flat", type=int, default=0, metavar="N", help="memory over N instances, of the first object")
    parser.add_argument("--giant", action="store_true", help="memory for one object of 1 GB")
    parser.add_argument("--folder", type=Path, help="where all write; default: the system's temporary folder")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--picture", type=Path, help="also draw them, as PNG")
    options = parser.parse_args()
    if options.quick:
        options.objects = [name for name in options.objects if name in ("fundus", "ct")]
        options.associations, options.pdu, options.rounds, options.seconds = [4], [131072], 1, 2.0
    missing = [name for name in options.receivers if not receivers.RECEIVERS[name].is_available()]
    if missing:
        sys.exit(f"not installed: {', '.join(missing)}; choose others by --receivers")
    return options


# --- the points ---


def measure(folder: Path, options: argparse.Namespace) -> dict[Point, list[Figures]]:
    """All turns, by point."""
    turns: dict[Point, list[Figures]] = {}
    total = (
        options.rounds * len(options.objects) * len(options.associations) * len(options.pdu) * len(options.receivers)
    )
    with tqdm(total=total, unit="turn", disable=not sys.stderr.isatty()) as bar:
        for number, name in itertools.product(range(options.rounds), options.objects):
            what = objects.make(name)
            running = [receivers.RECEIVERS[each](folder / f"{each}-{number}-{name}") for each in options.receivers]
            try:
                for receiver in running:
                    receiver.start()
                    receiver.pause()
                for order, (count, pdu) in enumerate(itertools.product(options.associations, options.pdu)):
                    for receiver in running[:: -1 if (number + order) % 2 else 1]:
                        point = Point(object_name=name, associations=count, pdu_bytes=pdu, receiver=receiver.name)
                        bar.set_postfix_str(f"{name} x{count} {pdu >> 10}K {receiver.name}")
                        turns.setdefault(point, []).append(turn(receiver, what, point, options))
                        bar.update()
            finally:
                for receiver in running:
                    receiver.stop()
    return turns


def turn(receiver: Receiver, what: SentObject, point: Point, options: argparse.Namespace) -> Figures:
    """Let one receiver take as much as it can."""
    count = max(point.associations, POINT_BYTES // what.size_bytes)
    count = min(count, options.count or count)
    receiver.resume()
    receiver.clear()
    os.sync()  # what the last one left unwritten is not this one's to wait for
    before = receiver.stored()
    reset_peaks(receiver)
    peaks = [0.0, 0.0]

    def sample() -> None:
        now = receivers.memory_mb(receiver.receiving())
        peaks[:] = [max(old, new) for old, new in zip(peaks, now, strict=True)]

    send = dcmtk.send
    if options.sender == "replay":
        send = functools.partial(replay.send, quick=not options.delayed_acknowledgement)
    used, machine = receivers.cpu_s(receiver.tree()), processor_times()
    sent = send(
        ("127.0.0.1", receiver.port, receiver.called), what, associations=point.associations,
        pdu_bytes=point.pdu_bytes, count=count, seconds=options.seconds, run=next(_runs), meanwhile=sample,
    )  # fmt: skip
    used, machine = receivers.cpu_s(receiver.tree()) - used, [
        after - then for after, then in zip(processor_times(), machine, strict=True)
    ]  # fmt: skip
    sample()
    stored, on_disk = receiver.stored() - before, len(receiver.files())
    receiver.clear()
    receiver.pause()
    return figures_of(sent, what, (stored, on_disk), tuple(peaks), used, machine)


def figures_of(
    sent: Sent, what: SentObject, kept: tuple[int, int], peaks: Sequence[float], used_s: float, machine: Sequence[float]
) -> Figures:
    """The figures of a turn, void where the receiver does not hold what it acknowledged."""
    done = len(sent.latencies_s)
    void = sent.error
    if not void and kept != (done, done):
        void = f"{done} acknowledged, {kept[0]} in its index, {kept[1]} files"
    milliseconds = sorted(1000 * each for each in sent.latencies_s) or [float("nan")]
    busy, idle = machine
    whole = max(busy + idle, 1e-9)
    rate = done / sent.seconds if sent.seconds else 0.0
    return Figures(
        instances=done,
        instances_per_s=rate,
        mb_per_s=rate * what.size_bytes / 1e6,
        p50_ms=statistics.median(milliseconds),
        p99_ms=milliseconds[min(len(milliseconds) - 1, int(0.99 * len(milliseconds)))],
        peak_pss_mb=peaks[0],
        largest_process_mb=peaks[1],
        receiver_cpu_ms=1000 * used_s / max(done, 1),
        sender_cpu_ms=1000 * sent.cpu_s / max(done, 1),
        others_cpu_fraction=max(0.0, busy - used_s - sent.cpu_s) / whole,
        idle_fraction=idle / whole,
        pdu_bytes=sent.pdu_bytes,
        void=void,
    )


def reset_peaks(receiver: Receiver) -> None:
    receivers.reset_peak(receiver.receiving())


def processor_times() -> list[float]:
    """Seconds that the machine's cores were busy and idle (waiting for the disk counts as idle)."""
    fields = [int(each) for each in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    tick = os.sysconf("SC_CLK_TCK")
    return [(sum(fields) - fields[3] - fields[4]) / tick, (fields[3] + fields[4]) / tick]


def median(figures: Sequence[Figures]) -> Figures:
    """The turn whose rate is the median; void if any is."""
    voids = [each for each in figures if each.void]
    return voids[0] if voids else sorted(figures, key=lambda each: each.instances_per_s)[(len(figures) - 1) // 2]


# --- the limits of the machine ---


def measure_limits(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {
        "loopback_mb_per_s": {str(pdu): limits.loopback_mb_per_s(pdu) for pdu in options.pdu},
        "sha256_mb_per_s": limits.sha256_mb_per_s(),
        "fsync_per_s": {},
    }
    for name in options.objects:
        size = objects.make(name).size_bytes
        rates = {threads: limits.fsync_per_s(folder, size, threads) for threads in (1, 4)}
        found["fsync_per_s"][name] = {str(threads): rate for threads, rate in rates.items()} | {"size_bytes": size}
    return found


def print_limits(found: dict[str, Any]) -> None:
    for pdu, rate in found["loopback_mb_per_s"].items():
        print(f"limit: loopback, one connection, {int(pdu) >> 10} KB pieces: {rate:.0f} MB/s")
    print(f"limit: SHA-256 on one core: {found['sha256_mb_per_s']:.0f} MB/s")
    for name, rates in found["fsync_per_s"].items():
        print(
            f"limit: files of {rates['size_bytes'] / 1e6:.2f} MB ({name}) written, they and their folders fsynced: "
            f"{rates['1']:.0f}/s by one thread, {rates['4']:.0f}/s by four"
        )


# --- memory ---


def flat(folder: Path, count: int, object_name: str) -> dict[str, Any]:
    """Memory of the gateway's receivers while `count` instances come in over four associations."""
    what = objects.make(object_name)
    gateway = receivers.Gateway(folder / "flat")
    gateway.start()
    course: list[dict[str, float]] = []
    try:
        with tqdm(total=count, unit="instance", disable=not sys.stderr.isatty()) as bar:
            done = 0
            while done < count:
                sent = replay.send(
                    ("127.0.0.1", gateway.port, gateway.called), what, associations=4, pdu_bytes=receivers.PDU_BYTES,
                    count=min(500, count - done), seconds=600, run=next(_runs),
                )  # fmt: skip
                if sent.error:
                    sys.exit(f"after {done} instances: {sent.error}")
                done += len(sent.latencies_s)
                bar.update(len(sent.latencies_s))
                pss, peak = receivers.memory_mb(gateway.receiving())
                course.append({"instances": done, "pss_mb": pss, "largest_process_mb": peak})
                print(f"{done:8d} instances: receivers {pss:6.1f} MB (PSS), largest ever {peak:6.1f} MB")
                gateway.clear()
    finally:
        stored = gateway.stored()
        gateway.stop()
    settled = course[min(len(course) - 1, len(course) // 10)]
    growth = course[-1]["pss_mb"] - settled["pss_mb"]
    print(f"{stored} stored; growth after the first {settled['instances']:.0f}: {growth:+.1f} MB in all receivers")
    return {"course": course, "growth_mb": growth, "stored": stored, "sent": count}


def giant(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    """Peak memory of each receiver for one object of 1 GB."""
    what = objects.make("giant")
    found: dict[str, Any] = {"size_bytes": what.size_bytes}
    print(f"one object of {what.size_bytes / 1e9:.2f} GB:")
    for name in names:
        receiver = receivers.RECEIVERS[name](folder / name)
        receiver.start()
        try:
            options = argparse.Namespace(count=1, seconds=600.0, sender="replay", delayed_acknowledgement=False)
            point = Point(object_name="giant", associations=1, pdu_bytes=receivers.PDU_BYTES, receiver=name)
            figures = turn(receiver, what, point, options)
        finally:
            receiver.stop()
        found[name] = asdict(figures)
        print(
            f"    {receiver.name:20} {figures.p50_ms / 1000:6.2f} s, {figures.mb_per_s:5.0f} MB/s, largest process "
            f"{figures.largest_process_mb:6.0f} MB, all receiving {figures.peak_pss_mb:6.0f} MB {figures.void}"
        )
    return found


# --- the table ---


def print_table(medians: dict[Point, Figures]) -> None:
    print(
        f"{'object':10} {'assoc':>5} {'PDU':>5}  {'receiver':20} {'inst/s':>8} {'MB/s':>7} {'p50 ms':>8} {'p99 ms':>8} "
        f"{'PSS MB':>7} {'largest':>7} {'CPU ms':>7} {'sender':>7} {'idle':>5} {'others':>6}  gateway is"
    )
    for point, each in medians.items():
        ours = medians.get(
            Point(
                object_name=point.object_name,
                associations=point.associations,
                pdu_bytes=point.pdu_bytes,
                receiver=receivers.Gateway.name,
            )
        )
        ratio = ours.instances_per_s / each.instances_per_s if ours and each.instances_per_s else float("nan")
        print(
            f"{point.object_name:10} {point.associations:5d} {each.pdu_bytes >> 10:4d}K  {point.receiver:20} "
            f"{each.instances_per_s:8.1f} {each.mb_per_s:7.1f} {each.p50_ms:8.1f} {each.p99_ms:8.1f} "
            f"{each.peak_pss_mb:7.0f} {each.largest_process_mb:7.0f} {each.receiver_cpu_ms:7.2f} "
            f"{each.sender_cpu_ms:7.2f} {each.idle_fraction:5.0%} {each.others_cpu_fraction:6.0%}  {ratio:.2f} times it"
            + (f"  VOID: {each.void}" if each.void else "")
        )


if __name__ == "__main__":
    main()
