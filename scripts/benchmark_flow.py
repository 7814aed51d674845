"""How fast is the whole flow, beside the limit of these cores and beside the peers?

One run prints: instances a second end to end, from the sender's first byte to the last result in the PACS; *the limit*,
a loop on the same cores that does nothing but decode, resize and a batched forward pass of the same model; their ratio;
the receive rate beside DCMTK's storescp, Orthanc and pynetdicom's storescp; the peak memory of each process.

Sender, gateway and PACS share this machine's cores. Each instance is a study of its own, and the rule's quiet time is
zero, so that the figure is throughput and not waiting. Usage:

    python scripts/benchmark_flow.py [--images DIR] [--instances N] [--json FILE]
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import pydicom
from PIL import Image
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit, OphthalmicPhotography8BitImageStorage, generate_uid
from tqdm import tqdm

from gateway.demo_images import draw_fundus
from models import bundled_folders
from models.card import load_bundle
from models.decoding import DirectDecoder
from models.pixels import read_frame
from models.preprocess import prepare
from models.session import ModelSession

ROWS, COLUMNS = 2848, 4288
"""A fundus photograph of 12 megapixels."""
BATCH = 16
ASSOCIATIONS = 4
MODEL = "retinopathy"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of JPEG fundus photographs; drawn ones without")
    parser.add_argument("--instances", type=int, default=400, help="of the flow")
    parser.add_argument("--receive-instances", type=int, default=400, help="of the receive rates")
    parser.add_argument("--no-peers", action="store_true", help="leave out the receive rates")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="benchmark-") as scratch:
        folder = Path(scratch)
        streams = photographs(options.images)
        count = max(options.instances, options.receive_instances)
        files = write_instances(streams, folder / "instances", count)
        report: dict[str, Any] = {
            "cores": len(os.sched_getaffinity(0)),
            "image": f"{COLUMNS} x {ROWS} JPEG, {np.mean([len(stream) for stream in streams]) / 1e6:.2f} MB",
            "instances": options.instances,
        }
        before = limit(files[: options.instances])
        report["flow"] = flow(files[: options.instances], folder)
        # Before and after, since the speed of shared machines drifts.
        report["limit_per_s"] = (before + limit(files[: options.instances])) / 2
        report["ratio"] = report["flow"]["instances_per_s"] / report["limit_per_s"]
        report["receive_per_s"] = {}
        if not options.no_peers:
            report["receive_per_s"] = receive_rates(files[: options.receive_instances], folder)
    print_report(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2))


# --- input ----------------------------------------------------------------------------------------------------------


def photographs(folder: Path | None) -> list[bytes]:
    """JPEG streams of 12 megapixels."""
    if folder is not None:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in {".jpg", ".jpeg"})
        if not paths:
            sys.exit(f"{folder}: no JPEG files; expected *.jpg")
        return [path.read_bytes() for path in paths]
    streams = []
    for seed, lesions in enumerate((0, 10, 30, 60)):
        drawn = Image.fromarray(draw_fundus(seed=seed, lesions=lesions, blur_pixels=0.0, eye="R"))
        wide = Image.new("RGB", (COLUMNS, ROWS))
        wide.paste(drawn.resize((ROWS, ROWS), Image.Resampling.BICUBIC), ((COLUMNS - ROWS) // 2, 0))
        stream = io.BytesIO()
        wide.save(stream, "JPEG", quality=90)
        streams.append(stream.getvalue())
    return streams


def write_instances(streams: Sequence[bytes], folder: Path, count: int) -> list[Path]:
    """`count` Ophthalmic Photography files, each a study of its own."""
    folder.mkdir()
    paths = []
    for number in range(count):
        stream = streams[number % len(streams)]
        with Image.open(io.BytesIO(stream)) as image:
            columns, rows = image.size
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = OphthalmicPhotography8BitImageStorage
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
        dataset.PatientName, dataset.PatientID = f"Benchmark^{number}", f"B{number}"
        dataset.StudyDate, dataset.StudyTime, dataset.AccessionNumber = "20260101", "120000", f"{number}"
        dataset.Modality, dataset.ImageLaterality = "OP", "RL"[number % 2]
        dataset.Manufacturer, dataset.ManufacturerModelName = "Kowa", "VX-10 alpha"
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 3, "YBR_FULL_422"
        dataset.PlanarConfiguration, dataset.Rows, dataset.Columns = 0, rows, columns
        dataset.BitsAllocated = dataset.BitsStored = 8
        dataset.HighBit, dataset.PixelRepresentation, dataset.NumberOfFrames = 7, 0, 1
        dataset.PixelData = encapsulate([stream])
        paths.append(folder / f"{number:05d}.dcm")
        dataset.save_as(paths[-1], enforce_file_format=True)
    return paths


# --- the limit ------------------------------------------------------------------------------------------------------


def limit(files: Sequence[Path]) -> float:
    """Images a second of the barest loop: read, decode at reduced scale, resize, forward pass; one process a core."""
    cores = len(os.sched_getaffinity(0))
    context = multiprocessing.get_context("spawn")
    shares = [list(files[core::cores]) for core in range(cores)]
    with context.Pool(cores) as pool:
        pool.map(_bare_loop, [share[:BATCH] for share in shares], chunksize=1)  # loads the model, warms up
        started = time.perf_counter()
        done = sum(pool.map(_bare_loop, shares, chunksize=1))
        return done / (time.perf_counter() - started)


_session: ModelSession | None = None


def _bare_loop(files: Sequence[Path]) -> int:
    global _session
    if _session is None:
        bundles = [bundle for bundle in map(load_bundle, bundled_folders()) if bundle.card.name == MODEL]
        _session = ModelSession(max(bundles, key=lambda bundle: bundle.card.version), threads=1)
    contract = _session.bundle.card.pixel_contract
    side = max(contract.size.rows, contract.size.columns)
    for start in range(0, len(files), BATCH):
        tensors = [
            prepare(read_frame(pydicom.dcmread(path), least_side=side, decoder=DirectDecoder()), contract).tensor
            for path in files[start : start + BATCH]
        ]
        _session.run(np.stack(tensors))
    return len(files)


# --- the flow -------------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def gateway(folder: Path, config: str) -> Iterator[tuple[dict[str, Any], int]]:
    """``gateway serve`` on free ports, ready; gives its announcement and its process id."""
    folder.mkdir(parents=True)
    (folder / "gateway.toml").write_text(config)
    command = [sys.executable, "-m", "gateway.cli", "serve", "--announce", "--dicom-port", "0", "--http-port", "0"]
    command += ["--config", str(folder / "gateway.toml"), "--data-dir", str(folder / "data")]
    environment = {**os.environ, "GATEWAY_WEB__AUTHENTICATION": "off"}  # it asks for pages as a stranger
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment) as process,
    ):
        assert process.stdout is not None
        where = json.loads(process.stdout.readline())
        try:
            wait_for(lambda: _healthy(where["url"]), "the gateway to be ready", 90)
            yield where, process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def _healthy(url: str) -> bool:
    try:
        with urlopen(f"{url}health", timeout=2) as answer:
            models = json.load(urlopen(f"{url}api/models", timeout=2))
            return answer.status == 200 and bool(models)
    except (URLError, TimeoutError, ConnectionError):
        return False


def wait_for(condition: Callable[[], bool], what: str, patience_s: float) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"waited {patience_s} s for {what}")
        time.sleep(0.02)


def send(files: Sequence[Path], port: int, called: str) -> None:
    """Four DCMTK storescu at once, each with its share, 128 KB PDUs."""

    def share(number: int) -> None:
        command = ["storescu", "-aec", called, "--propose-jpeg8", "--max-pdu", "131072", "127.0.0.1", str(port)]
        subprocess.run([*command, *map(str, files[number::ASSOCIATIONS])], check=True, capture_output=True)

    with ThreadPoolExecutor(ASSOCIATIONS) as pool:
        list(pool.map(share, range(ASSOCIATIONS)))


def flow(files: Sequence[Path], folder: Path) -> dict[str, Any]:
    """From the sender's first byte to the last result in the PACS; two results an instance (report, key image)."""
    inbox = folder / "pacs"
    inbox.mkdir()
    port = free_port()
    pacs = subprocess.Popen(
        ["storescp", "--fork", "-aet", "PACS", "--accept-all", "-od", str(inbox), "--max-pdu", "131072", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    config = f"""
[[destinations]]
name = "pacs"
ae_title = "PACS"
host = "127.0.0.1"
port = {port}

[[rules]]
name = "fundus photographs"
when = {{ Modality = "OP" }}
models = ["{MODEL}"]
quiet_time_s = 0
"""
    expected = 2 * len(files)
    try:
        with gateway(folder / "flow", config) as (where, pid):
            send(files[:BATCH], where["dicom_port"], where["ae_title"])  # warm
            wait_for(lambda: _count(inbox) >= 2 * BATCH, "the warm-up's results", 120)
            for path in inbox.iterdir():
                path.unlink()
            fresh = _renamed(files, folder / "fresh")
            with tqdm(total=expected, unit="result", disable=not sys.stderr.isatty()) as bar:
                pids = process_ids(where["url"], pid)
                used = {name: processor_s(each) for name, each in pids.items()}
                started = time.perf_counter()
                with ThreadPoolExecutor(1) as sender:
                    sending = sender.submit(send, fresh, where["dicom_port"], where["ae_title"])
                    while (there := _count(inbox)) < expected:
                        bar.update(there - bar.n)
                        time.sleep(0.05)
                        if time.perf_counter() - started > 900:
                            sys.exit(
                                f"{there} of {expected} results after 15 minutes; log in {folder / 'flow' / 'log'}"
                            )
                    elapsed = time.perf_counter() - started
                    sending.result()
            spent = {name: processor_s(each) - used[name] for name, each in pids.items()}
            return {
                "instances_per_s": len(files) / elapsed,
                "seconds": elapsed,
                "processor_ms_per_instance": {name: 1000 * each / len(files) for name, each in spent.items()},
                "peak_memory_mb": {name: high_water_mb(each) for name, each in pids.items()},
            }
    finally:
        pacs.terminate()
        pacs.wait()


def _count(inbox: Path) -> int:
    return sum(1 for _ in os.scandir(inbox))


def _renamed(files: Sequence[Path], folder: Path) -> list[Path]:
    """The same images as new studies."""
    folder.mkdir()
    for path in files:
        dataset = pydicom.dcmread(path)
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.save_as(folder / path.name)
    return sorted(folder.iterdir())


def process_ids(url: str, supervisor: int) -> dict[str, int]:
    """Process id of each of the gateway's processes, by name."""
    with urlopen(f"{url}health") as answer:
        processes = json.load(answer)["processes"]
    return {"supervisor": supervisor} | {process["name"]: process["pid"] for process in processes}


def high_water_mb(pid: int) -> float:
    """Largest resident set that a process has had; pages shared with others count in each."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(match.group(1)) / 1024 if match else 0.0


def processor_s(pid: int) -> float:
    """Processor time that a process and the children it has waited for have used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


# --- receive rates --------------------------------------------------------------------------------------------------


def receive_rates(files: Sequence[Path], folder: Path) -> dict[str, float]:
    """Instances a second that each receiver takes from the same four senders, nothing else going on."""
    rates = {}
    with gateway(folder / "receive", "rules = []\n") as (where, _):
        rates["gateway (fsync, validated)"] = _rate(files, where["dicom_port"], where["ae_title"])
    for name, command in _peers(folder).items():
        if shutil.which(command(0)[0]) is None:
            rates[name] = float("nan")
            continue
        port = free_port()
        process = subprocess.Popen(command(port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder)
        try:
            wait_for(lambda port=port: _listens(port), name, 60)
            rates[name] = _rate(files, port, "PEER")
        finally:
            process.terminate()
            process.wait()
    return rates


def _rate(files: Sequence[Path], port: int, called: str) -> float:
    started = time.perf_counter()
    send(files, port, called)
    return len(files) / (time.perf_counter() - started)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _peers(folder: Path) -> dict[str, Callable[[int], list[str]]]:
    for name in ("storescp", "pynetdicom", "orthanc"):
        (folder / name).mkdir()

    def orthanc(port: int) -> list[str]:
        configuration = {
            "Name": "peer",
            "StorageDirectory": str(folder / "orthanc" / "db"),
            "IndexDirectory": str(folder / "orthanc" / "db"),
            "DicomAet": "PEER",
            "DicomPort": port,
            "DicomCheckCalledAet": False,
            "DicomAlwaysAllowStore": True,
            "HttpServerEnabled": False,
            "StorageCompression": False,
            "SyncStorageArea": True,
            "ConcurrentJobs": 2,
        }
        path = folder / "orthanc" / "orthanc.json"
        path.write_text(json.dumps(configuration))
        return ["Orthanc", str(path)]

    return {
        "DCMTK storescp --fork (no fsync)": lambda port: [
            "storescp", "--fork", "-aet", "PEER", "--accept-all", "--max-pdu", "131072",
            "-od", str(folder / "storescp"), str(port),
        ],
        "Orthanc (fsync)": orthanc,
        "pynetdicom storescp (no fsync)": lambda port: [
            sys.executable, "-m", "pynetdicom", "storescp", str(port), "-od", str(folder / "pynetdicom"), "-q",
            "--max-pdu", "131072",
        ],
    }  # fmt: skip


def print_report(report: dict[str, Any]) -> None:
    flow_figures = report["flow"]
    print(f"{report['cores']} cores, {report['image']}, {report['instances']} instances")
    print(f"end to end   {flow_figures['instances_per_s']:8.1f} instances a second, with everything on")
    print(f"the limit    {report['limit_per_s']:8.1f} a second: decode, resize, forward pass")
    print(f"ratio        {report['ratio']:8.2f}")
    print("receive rate, instances a second, four associations:")
    for name, rate in report["receive_per_s"].items():
        print(f"    {name:36} {rate:8.1f}")
    print("the gateway's processes: processor ms an instance, peak resident MB:")
    for name, peak in flow_figures["peak_memory_mb"].items():
        print(f"    {name:36} {flow_figures['processor_ms_per_instance'][name]:8.1f} {peak:8.0f}")


if __name__ == "__main__":
    main()
