"""The supervisor: binds the ports, starts the processes, restarts what dies, stops them in order.

Processes are forked from here, where the common libraries are loaded once. The supervisor runs no threads and holds no
connection to the store while it forks.

A child knows by a pipe whether its supervisor lives. A byte on it means: stop. Its end without a byte means that the
supervisor was killed: receivers, web and monitor then stop, so that a new gateway finds the ports free; workers and
sender first finish what was acknowledged.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import multiprocessing
import os
import resource
import select
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TextIO

from pydicom import config as pydicom_config

from gateway import housekeeping, monitor, scp, sender, worker
from gateway.accounts import FIRST_ACCOUNT, prepare_first_account
from gateway.errors import SettingsError, StoreError
from gateway.objects import ObjectFolder
from gateway.saved import process as saver
from gateway.settings import Settings
from gateway.site_key import prepare_site_key
from gateway.store import open_store
from gateway.store.monitoring import forget_processes
from gateway.store.studies import release_leases, unfinished_work
from gateway.vault import prepare_vault
from gateway.web import server

logger = logging.getLogger(__name__)

TAKE_OVER_PATIENCE_S = 12.0
"""How long to wait for the port and the data folder that the receivers of a killed supervisor still hold."""
STOP_PATIENCE_S = 20.0
DRAIN_LIMIT_S = 900.0
LONGEST_RESTART_DELAY_S = 30.0
STEADY_S = 10.0
"""A process that lived this long is restarted at once."""

RunProcess = Callable[[threading.Event], None]


@dataclass(slots=True)
class Child:
    """One process that the supervisor keeps alive."""

    name: str
    run: RunProcess
    drains: bool
    """Whether it finishes acknowledged work when the supervisor has been killed."""
    receives: bool = False
    """Whether it keeps the data folder's lock: nobody may sweep while a receiver of an earlier gateway lives."""
    process: BaseProcess | None = None
    lifeline: int = -1
    """Write end of the pipe by which the child knows that its supervisor lives."""
    started_at: float = 0.0
    delay_s: float = 0.0
    restart_at: float = field(default=0.0)


def serve(settings: Settings, data_dir: Path, *, announce: TextIO | None = None) -> None:
    """Run the gateway until SIGTERM or SIGINT.

    Parameters
    ----------
    announce
        Where to write one line of JSON with the ports, once they are bound.

    Raises
    ------
    SettingsError
        The data folder cannot be used or is in use, or a port is taken.
    StoreError
        The store cannot be opened.
    DeidentificationError
        The site key is missing, weak, or not the one that this store's pseudonyms were made with.
    VaultError
        The vault cannot be opened, or its key is missing, weak, or not the one in use.
    """
    server.check_certificate(settings.web)
    _allow_many_files()
    os.umask(0o077)  # what is kept holds PHI and secrets
    lock = _take_data_dir(data_dir)
    with ExitStack() as closing:
        closing.enter_context(lock)
        ports = _bind_all(settings)
        for listener in (ports.dicom, ports.dicom_tls, ports.web):
            if listener is not None:
                closing.enter_context(listener)
        store = open_store(settings.store.url, data_dir=data_dir, migrate=True)
        objects = ObjectFolder.in_data_dir(data_dir)
        swept = scp.sweep(store, objects.root)
        if swept:
            logger.info("removed %d files that were never acknowledged", swept)
        prepare_site_key(store, settings.deidentification, data_dir, now=datetime.now(UTC))
        prepare_vault(settings.vault, data_dir)
        saver.prepare_saving(settings, store)
        forget_processes(store)
        first_password_file = None
        if settings.web.authentication == "on":
            first_password_file = prepare_first_account(store, data_dir, now=datetime.now(UTC))
        store.close()
        supervisor = Supervisor(settings, data_dir, _children(settings, data_dir, ports), lock)
        supervisor.take_signals()  # whoever reads the announcement may stop the gateway at once
        if announce is not None:
            print(json.dumps(announcement(settings, data_dir, ports, first_password_file)), file=announce, flush=True)
        for listener, what in ((ports.dicom, "DICOM"), (ports.dicom_tls, "DICOM over TLS")):
            if listener is not None:
                logger.info("%s %s on %s:%d", what, settings.dicom.ae_title, *listener.getsockname()[:2])
        logger.info("pages on %s, data in %s", _url(settings, ports.web), data_dir)
        if first_password_file is not None:
            logger.info("log in as %s; password in %s", FIRST_ACCOUNT, first_password_file)
        supervisor.run()


def _allow_many_files() -> None:
    """Take as many open files as the system lets us, for all processes: every connection is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """The sockets that listen."""

    dicom: socket.socket | None
    dicom_tls: socket.socket | None
    web: socket.socket


def _bind_all(settings: Settings) -> Ports:
    dicom, tls = settings.dicom, settings.tls
    return Ports(
        dicom=_bind(dicom.host, dicom.port) if dicom.unencrypted else None,
        dicom_tls=_bind(tls.host, tls.port) if tls.enabled else None,
        web=_bind(settings.web.host, settings.web.port),
    )


def announcement(
    settings: Settings, data_dir: Path, ports: Ports, first_password_file: Path | None
) -> dict[str, object]:
    """Where the gateway is to be found."""
    host, port = ports.dicom.getsockname()[:2] if ports.dicom is not None else (None, None)
    tls_host, tls_port = ports.dicom_tls.getsockname()[:2] if ports.dicom_tls is not None else (None, None)
    return {
        "ae_title": settings.dicom.ae_title,
        "dicom_host": host,
        "dicom_port": port,
        "dicom_tls_host": tls_host,
        "dicom_tls_port": tls_port,
        "http_host": ports.web.getsockname()[0],
        "http_port": ports.web.getsockname()[1],
        "url": _url(settings, ports.web),
        "first_password_file": None if first_password_file is None else str(first_password_file),
        "data_dir": str(data_dir),
        "pid": os.getpid(),
    }


def _url(settings: Settings, web: socket.socket) -> str:
    scheme = "https" if settings.web.certificate else "http"
    host, port = web.getsockname()[:2]
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/"


def _take_data_dir(data_dir: Path) -> TextIO:
    """Lock the data folder for this gateway alone; the lock ends with the supervisor and its receivers."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        lock = (data_dir / "gateway.lock").open("a")
    except OSError as error:
        raise SettingsError(f"data folder {data_dir}: cannot be used: {error.strerror}") from error
    deadline = time.monotonic() + TAKE_OVER_PATIENCE_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if time.monotonic() < deadline:
                time.sleep(0.2)
                continue
            lock.close()
            raise SettingsError(f"data folder {data_dir}: another gateway runs on it") from error
        return lock


def _bind(host: str, port: int) -> socket.socket:
    deadline = time.monotonic() + TAKE_OVER_PATIENCE_S
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    while True:
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen(4096)
        except OSError as error:
            listener.close()
            if error.errno == errno.EADDRINUSE and time.monotonic() < deadline:
                time.sleep(0.5)
                continue
            raise SettingsError(f"cannot listen on {host}:{port}: {error.strerror}") from error
        except OverflowError as error:
            listener.close()
            raise SettingsError(f"cannot listen on {host}:{port}: {error}") from error
        return listener


def _children(settings: Settings, data_dir: Path, ports: Ports) -> list[Child]:
    """Every process of the gateway."""

    def receiver(name: str) -> RunProcess:
        return lambda stop: scp.run(
            settings, data_dir, stop, name=name, listener=ports.dicom, tls_listener=ports.dicom_tls
        )

    def judge(name: str, number: int) -> RunProcess:
        def run(stop: threading.Event) -> None:
            if devices:
                # Each worker sees one GPU, so that "device 0" is another one for each; read when CUDA starts.
                os.environ["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
            worker.run(settings, data_dir, stop, name=name, threads=threads)

        return run

    devices = visible_devices(os.environ.get("CUDA_VISIBLE_DEVICES"), Path("/dev"))
    workers, threads = worker.plan_threads(settings, cores=_cores(), accelerators=len(devices))
    receivers = [f"receiver-{number}" for number in range(settings.dicom.receivers)]
    judges = [f"worker-{number}" for number in range(workers)]
    return [
        Child("monitor", lambda stop: monitor.run(settings, data_dir, stop), drains=False),
        Child("housekeeper", lambda stop: housekeeping.run(settings, data_dir, stop), drains=False),
        *(
            [Child(saver.NAME, lambda stop: saver.run(settings, data_dir, stop), drains=False)]
            if settings.saving
            else []
        ),
        *(Child(name, receiver(name), drains=False, receives=True) for name in receivers),
        *(Child(name, judge(name, number), drains=True) for number, name in enumerate(judges)),
        Child("sender", lambda stop: sender.run(settings, data_dir, stop), drains=True),
        Child(
            "web", lambda stop: server.run(settings, data_dir, stop, listener=ports.web), drains=False, receives=True
        ),
    ]


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def visible_devices(chosen: str | None, device_folder: Path) -> list[str]:
    """NVIDIA devices that may be used: those of ``CUDA_VISIBLE_DEVICES`` where it is set, else all."""
    if chosen is not None:
        return [name.strip() for name in chosen.split(",") if name.strip()]
    numbers = (path.name.removeprefix("nvidia") for path in device_folder.glob("nvidia[0-9]*"))
    return sorted((number for number in numbers if number.isdigit()), key=int)


class Supervisor:
    """Keeps the children alive."""

    def __init__(self, settings: Settings, data_dir: Path, children: Sequence[Child], lock: TextIO) -> None:
        self._settings = settings
        self._data_dir = data_dir
        self._children = children
        self._lock = lock
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._stopping = False

    def take_signals(self) -> None:
        """From now on SIGTERM and SIGINT mean: stop in order."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def run(self) -> None:
        """Start all, restart what dies, until a signal says stop."""
        try:
            for child in self._children:
                self._start(child)
            while not self._stopping:
                self._wait()
                for child in self._children:
                    self._keep(child)
        finally:
            self._stop_all()

    def _on_signal(self, number: int, _: object) -> None:
        self._stopping = True
        os.write(self._wake_write, b"x")

    def _wait(self) -> None:
        """Sleep until a child ends, a signal arrives, or a second has passed."""
        sentinels = [child.process.sentinel for child in self._children if child.process is not None]
        select.select([self._wake_read, *sentinels], [], [], 1.0)

    def _start(self, child: Child) -> None:
        read_end, child.lifeline = os.pipe()
        context = multiprocessing.get_context("fork")
        process = context.Process(target=self._in_child, args=(child, read_end), name=child.name)
        process.start()
        os.close(read_end)
        child.process = process
        child.started_at = time.monotonic()
        logger.info("started %s, process %s", child.name, process.pid)

    def _keep(self, child: Child) -> None:
        process = child.process
        if process is None:
            if time.monotonic() >= child.restart_at:
                self._start(child)
            return
        if process.exitcode is None:
            return
        lived_s = time.monotonic() - child.started_at
        child.delay_s = 0.0 if lived_s > STEADY_S else min(max(0.5, child.delay_s * 2), LONGEST_RESTART_DELAY_S)
        child.restart_at = time.monotonic() + child.delay_s
        logger.error("%s ended after %.0f s with %s; restarting", child.name, lived_s, _exit_words(process.exitcode))
        self._release(f"{child.name}:{process.pid}")
        os.close(child.lifeline)
        child.lifeline = -1
        child.process = None

    def _release(self, owner: str) -> None:
        """Let others take at once what a dead worker had held; should the store fail, its lease ends by itself."""
        try:
            store = open_store(self._settings.store.url, data_dir=self._data_dir)
            try:
                release_leases(store, owner=owner)
            finally:
                store.close()
        except StoreError as error:
            logger.error("%s", error)

    def _stop_all(self) -> None:
        running = [child for child in self._children if child.process is not None]
        for child in running:
            try:
                os.write(child.lifeline, b"s")
            except BrokenPipeError:
                continue
        deadline = time.monotonic() + STOP_PATIENCE_S
        for child in running:
            assert child.process is not None
            child.process.join(max(0.0, deadline - time.monotonic()))
            if child.process.is_alive():
                logger.error("%s did not stop in %.0f s; killed", child.name, STOP_PATIENCE_S)
                child.process.kill()
                child.process.join()
            os.close(child.lifeline)

    def _in_child(self, child: Child, lifeline: int) -> None:
        """The first thing that runs in a new process."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor tells
        _keep_values_out_of_logs()
        for other in self._children:
            if other.lifeline >= 0:
                os.close(other.lifeline)
        os.close(self._wake_read)
        os.close(self._wake_write)
        if not child.receives:
            self._lock.close()
        stop = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
        drain = self._is_drained if child.drains else None
        threading.Thread(target=_watch, args=(lifeline, stop, drain), name="lifeline", daemon=True).start()
        child.run(stop)
        logging.shutdown()
        sys.stdout.flush()
        # Libraries leave threads behind (gRPC, MLflow's, CUDA's) that would hold the process; its work is done.
        os._exit(0)

    def _is_drained(self) -> bool:
        store = open_store(self._settings.store.url, data_dir=self._data_dir)
        try:
            return not unfinished_work(store, datetime.now(UTC))
        except StoreError:
            return False
        finally:
            store.close()


def _keep_values_out_of_logs() -> None:
    """Libraries warn of odd values by quoting them, and a value may be a patient's name; the gateway says it itself."""
    warnings.simplefilter("ignore")
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    pydicom_config.settings.reading_validation_mode = pydicom_config.IGNORE


def _watch(lifeline: int, stop: threading.Event, drained: Callable[[], bool] | None) -> None:
    """Set `stop` when the supervisor says so; or when it died, for those that drain once nothing is left to do."""
    told = os.read(lifeline, 1)
    if not told:
        logger.error("the supervisor is gone")
        deadline = time.monotonic() + DRAIN_LIMIT_S
        while drained is not None and time.monotonic() < deadline and not stop.is_set() and not drained():
            stop.wait(1.0)
    stop.set()


def _exit_words(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
