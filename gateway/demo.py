"""``gateway demo``: a gateway, a small PACS and sample studies, over the real network path."""

from __future__ import annotations

import json
import logging
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pynetdicom import AE, AllStoragePresentationContexts, evt
from tqdm import tqdm

from gateway.accounts import FIRST_ACCOUNT
from gateway.demo_images import SampleStudy, sample_studies
from gateway.errors import GatewayError
from gateway.send import send_files
from gateway.settings import load_settings
from gateway.store import open_store
from gateway.studies_view import every_study
from gateway.study import StudyState

PACS_AE_TITLE = "DEMO-PACS"
PATIENCE_S = 120.0
_ENDED = (StudyState.JUDGED, StudyState.NOT_MATCHED, StudyState.FAILED)


@dataclass(slots=True)
class DemoPacs:
    """A storage SCP that keeps what it gets in memory: study UID -> data sets."""

    received: dict[str, list[Dataset]] = field(default_factory=lambda: defaultdict(list))

    @contextmanager
    def running(self) -> Iterator[int]:
        """Listen on a free port of this machine; gives the port."""

        def on_store(event: evt.Event) -> int:
            dataset = event.dataset
            self.received[str(dataset.StudyInstanceUID)].append(dataset)
            return 0x0000

        entity = AE(PACS_AE_TITLE)
        for context in AllStoragePresentationContexts:
            entity.add_supported_context(context.abstract_syntax)
        # Secondary Capture comes as JPEG.
        entity.add_supported_context("1.2.840.10008.5.1.4.1.1.7", ["1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.1"])
        server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, on_store)])
        try:
            yield server.socket.getsockname()[1]
        finally:
            server.shutdown()


def run_demo(
    *,
    config: Path | None,
    data_dir: Path,
    dicom_port: int | None,
    http_port: int | None,
    announce: bool,
    stay: bool,
) -> int:
    """Serve, send the sample studies, print what came back for each, then stay up until interrupted.

    Returns
    -------
    0 when every study ended as it should: judged with its results in the PACS, or refused with a reason; else 1.
    """
    logging.getLogger("pynetdicom").setLevel(logging.ERROR)
    started = time.monotonic()
    pacs = DemoPacs()
    with pacs.running() as pacs_port, tempfile.TemporaryDirectory() as scratch:
        settings_file = _settings_with_pacs(config, pacs_port, Path(scratch))
        with _gateway(settings_file, data_dir, dicom_port, http_port) as (process, where):
            if announce:
                print(json.dumps(where), flush=True)
            print(f"worklist  {where['url']}")
            print(f"DICOM     {where['ae_title']} on {where['dicom_host']}:{where['dicom_port']}")
            if where["first_password_file"] is not None:
                print(f"log in    as {FIRST_ACCOUNT}; password in {where['first_password_file']}")
            print(f"data      {data_dir}, log in gateway.log", flush=True)
            with ThreadPoolExecutor(1) as sender:
                sent: queue.SimpleQueue[SampleStudy] = queue.SimpleQueue()
                sending = sender.submit(_send, where, Path(scratch), sent)
                well = _wait_and_print(sending, sent, data_dir, settings_file, pacs, started)
                sending.result()
            if stay and process.poll() is None:
                print(f"\nstays up until Ctrl-C; the worklist is at {where['url']}", flush=True)
                process.wait()
    return 0 if well else 1


def _settings_with_pacs(config: Path | None, pacs_port: int, folder: Path) -> Path:
    """The user's configuration with the demo's PACS as one more destination."""
    text = config.read_text("utf-8") if config is not None else ""
    destination = (
        f'[[destinations]]\nname = "demo-pacs"\nae_title = "{PACS_AE_TITLE}"\nhost = "127.0.0.1"\nport = {pacs_port}\n'
    )
    path = folder / "gateway.toml"
    path.write_text(f"{text}\n{destination}", "utf-8")
    load_settings(path)
    return path


@contextmanager
def _gateway(
    settings_file: Path, data_dir: Path, dicom_port: int | None, http_port: int | None
) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """``gateway serve`` as a process of its own, stopped in the end."""
    command = [sys.executable, "-m", "gateway.cli", "serve", "--announce"]
    command += ["--config", str(settings_file), "--data-dir", str(data_dir)]
    for option, port in (("--dicom-port", dicom_port), ("--http-port", http_port)):
        if port is not None:
            command += [option, str(port)]
    data_dir.mkdir(parents=True, exist_ok=True)
    log_path = data_dir / "gateway.log"
    with log_path.open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    forward = lambda number, _: process.send_signal(number)  # noqa: E731
    before = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            process.wait()
            raise GatewayError(f"the gateway did not start:\n{log_path.read_text().strip()}")
        yield process, json.loads(line)
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def _send(where: dict[str, Any], folder: Path, sent: queue.SimpleQueue[SampleStudy]) -> None:
    """Write each sample study as files and send them, as soon as it is drawn; what went is put into `sent`.

    Raises
    ------
    GatewayError
        An image was not accepted.
    """
    for number, study in enumerate(sample_studies(datetime.now().astimezone())):
        files = [folder / f"{number}-{place}.dcm" for place in range(len(study.datasets))]
        for dataset, path in zip(study.datasets, files, strict=True):
            dataset.save_as(path, enforce_file_format=True)
        report = send_files(
            files,
            host=where["dicom_host"],
            port=where["dicom_port"],
            called_ae_title=where["ae_title"],
            calling_ae_title="DEMO-MODALITY",
        )
        refused = [each for each in report.files if not each.accepted]
        if refused:
            raise GatewayError(f"{len(refused)} sample images were not accepted: {refused[0].error}")
        sent.put(study)


def _wait_and_print(
    sending: Future[None],
    sent: queue.SimpleQueue[SampleStudy],
    data_dir: Path,
    settings_file: Path,
    pacs: DemoPacs,
    started: float,
) -> bool:
    """Print each study when it has ended and its results are in the PACS; true when all did."""
    waiting: dict[str, SampleStudy] = {}
    store = open_store(load_settings(settings_file).store.url, data_dir=data_dir)
    pause = threading.Event()
    deadline = time.monotonic() + PATIENCE_S
    well = True
    with tqdm(unit="study", disable=not sys.stderr.isatty(), leave=False) as bar:
        while time.monotonic() < deadline:
            over = sending.done()
            while not sent.empty():
                study = sent.get()
                waiting[study.study_instance_uid] = study
                bar.total = (bar.total or 0) + 1
            for row in every_study(store) if waiting else ():
                uid = row["study_instance_uid"]
                pending = any(delivery["state"] != "delivered" for delivery in row["deliveries"])
                if uid not in waiting or row["state"] not in _ENDED or pending:
                    continue
                well &= row["state"] != StudyState.FAILED
                tqdm.write("\n".join(_lines(waiting.pop(uid), row, pacs.received[uid], time.monotonic() - started)))
                bar.update()
            if over and not waiting:
                break
            pause.wait(0.25)
    store.close()
    for study in waiting.values():
        print(f"{study.title}: nothing came back in {PATIENCE_S:.0f} s")
    return well and not waiting


def _lines(study: SampleStudy, row: dict[str, Any], received: list[Dataset], after_s: float) -> list[str]:
    lines = [f"\n{study.title}: {row['state']} after {after_s:.1f} s{': ' + row['reason'] if row['reason'] else ''}"]
    for prediction in row["predictions"]:
        model = f"{prediction['model_name']} {prediction['model_version']}"
        if prediction["ungradable_reasons"]:
            lines.append(f"    {model}: ungradable: {'; '.join(prediction['ungradable_reasons'])}")
        for finding in prediction["findings"] if not prediction["ungradable_reasons"] else ():
            verdict = "present" if finding["present"] else "absent"
            lines.append(
                f"    {model}: {finding['title']}: {verdict}, score {finding['score']:.3f}, demonstration only"
            )
        lines.extend(
            f"    acquisition, {finding['severity']}: {finding['message']}"
            for finding in prediction["acquisition_findings"]
        )
    lines.extend(f"    back in the PACS: {dataset.Modality}, {dataset.SeriesDescription}" for dataset in received)
    return lines
