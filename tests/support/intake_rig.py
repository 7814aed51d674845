"""Receivers as real processes on a free port, and peers that say what no good peer would."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import signal
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import BytesIO
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import split_dataset
from pynetdicom.transport import AssociationSocket
from running import wait_until
from sqlalchemy import select

from gateway import scp, sender
from gateway.objects import ObjectFolder
from gateway.settings import Settings, load_settings
from gateway.store import Store, open_store
from gateway.store.schema import instance, quarantine

PROCESSES = multiprocessing.get_context("forkserver")
"""Processes that hold nothing of pytest's and start quickly, since their imports are done once."""
PROCESSES.set_forkserver_preload(["gateway.scp", "gateway.sender"])


def _shut(self: AssociationSocket) -> None:
    """Close also where there is no connection to shut down: pynetdicom 3.0.4 then leaves the socket open."""
    if self.socket is not None:
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


AssociationSocket._shutdown_socket = _shut


def receive(settings: Settings, data_dir: Path, name: str, listener: socket.socket) -> None:
    """What a receiver process of the tests runs: the real one, with its log in a file."""
    logging.basicConfig(filename=data_dir / "receivers.log", level=logging.INFO)
    stop = stop_on_sigterm()
    (data_dir / f"{name}.ready").touch()
    scp.run(settings, data_dir, stop, name=name, listener=listener)


def deliver(settings: Settings, data_dir: Path) -> None:
    """The real sender process, as a process of the tests."""
    sender.run(settings, data_dir, stop_on_sigterm())


def stop_on_sigterm() -> threading.Event:
    """An event that survives its waiters' violent end, which multiprocessing's does not."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    return stop


@dataclass
class Receivers:
    """Receiver processes that share a port, without the rest of the gateway."""

    data_dir: Path
    settings: Settings
    listener: socket.socket
    processes: dict[str, BaseProcess] = field(default_factory=dict)

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    @property
    def objects(self) -> Path:
        return self.data_dir / "objects"

    def start(self, name: str) -> BaseProcess:
        ready = self.data_dir / f"{name}.ready"
        ready.unlink(missing_ok=True)
        process = PROCESSES.Process(target=receive, args=(self.settings, self.data_dir, name, self.listener))
        process.start()
        self.processes[name] = process
        wait_until(ready.exists, f"{name} to start")
        return process

    def kill(self, name: str) -> None:
        process = self.processes[name]
        process.kill()
        process.join()

    def end(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            process.join(20)
            assert not process.is_alive(), "a receiver does not stop"
        self.listener.close()

    def log(self) -> str:
        return (self.data_dir / "receivers.log").read_text()

    @contextmanager
    def store(self) -> Iterator[Store]:
        store = open_store("", data_dir=self.data_dir)
        try:
            yield store
        finally:
            store.close()

    def rows(self) -> list[Any]:
        with self.store() as store, store.read() as connection:
            return list(connection.execute(select(instance)).all())

    def quarantined(self) -> list[Any]:
        with self.store() as store, store.read() as connection:
            return list(connection.execute(select(quarantine)).all())

    def files(self, folder: str) -> list[Path]:
        return sorted(path for path in (self.objects / folder).rglob("*") if path.is_file())


DEFAULTS = {
    "vault.enabled": False,  # the supervisor, which is not here, makes it
    "dicom.require_called_ae_title": False,
    "disk.refuse_below_bytes": 100_000_000,  # the tests' disk may be nearly full
}


def start_receivers(data_dir: Path, *, count: int = 1, overrides: Mapping[str, Any] | None = None) -> Receivers:
    data_dir.mkdir(parents=True, exist_ok=True)
    settings = load_settings(environment={}, overrides={**DEFAULTS, "dicom.receivers": count, **(overrides or {})})
    store = open_store("", data_dir=data_dir, migrate=True)
    scp.sweep(store, ObjectFolder.in_data_dir(data_dir).root)
    store.close()
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)
    receivers = Receivers(data_dir=data_dir, settings=settings, listener=listener)
    for number in range(count):
        receivers.start(f"receiver-{number}")
    return receivers


def small_dataset(**attributes: Any) -> Dataset:
    """A small CT image with everything that the intake asks for."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = generate_uid()
    dataset.Modality = "CT"
    dataset.PatientName, dataset.PatientID = "Secret^Person", "SECRET-4711"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    dataset.Rows, dataset.Columns, dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 16, 12, 11
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.PixelData = bytes(range(128))
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset


def encoded(dataset: Dataset) -> bytes:
    """The data set's bytes, without file meta."""
    stream = BytesIO()
    dcmwrite(stream, dataset, enforce_file_format=True)
    stream.seek(0)
    return data_set_bytes(stream)


def data_set_bytes(source: Path | BytesIO) -> bytes:
    """What follows the file meta, found by pynetdicom's code and not the gateway's."""
    if isinstance(source, Path):
        _, offset = split_dataset(source)
        return source.read_bytes()[offset:]
    content = source.getvalue()
    length = struct.unpack("<I", content[140:144])[0]
    return content[144 + length :]


@contextmanager
def peer(
    port: int,
    *,
    sop_class_uid: str = str(CTImageStorage),
    transfer_syntax_uid: str = str(ExplicitVRLittleEndian),
    called_ae_title: str = "GATEWAY",
    calling_ae_title: str = "PEER",
) -> Iterator[Any]:
    """An established association of pynetdicom's."""
    entity = AE(ae_title=calling_ae_title)
    entity.add_requested_context(sop_class_uid, transfer_syntax_uid)
    entity.dimse_timeout = 15
    association = entity.associate("127.0.0.1", port, ae_title=called_ae_title)
    try:
        assert association.is_established
        yield association
    finally:
        if association.is_established:
            association.release()


def store_bytes(association: Any, content: bytes, *, sop_instance_uid: str, sop_class_uid: str | None = None) -> Any:
    """Send bytes as the data set of a C-STORE, whatever they are; returns the response (``None``: aborted)."""
    request = C_STORE()
    request.MessageID = 1
    request.Priority = 2
    request.AffectedSOPClassUID = sop_class_uid or str(CTImageStorage)
    request.AffectedSOPInstanceUID = sop_instance_uid
    request.DataSet = BytesIO(content)
    context = association.accepted_contexts[0]
    association._reactor_checkpoint.clear()
    wait_until(lambda: association._is_paused, "pynetdicom to pause")
    association.dimse.send_msg(request, context.context_id)
    _, response = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    return response


def dcmtk(name: str) -> str:
    """The path of one of DCMTK's programs."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"DCMTK's {name} is not installed (apt install dcmtk)")
    return found


def memory_bytes(pid: int, field_name: str = "VmRSS") -> int:
    """Of ``/proc/PID/status``."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field_name + ":"):
            return int(line.split()[1]) * 1024
    raise AssertionError(field_name)


def in_threads(*calls: Any) -> None:
    """Run all at once, and wait."""
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def environment() -> dict[str, str]:
    """For DCMTK's programs."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}
