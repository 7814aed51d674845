"""A real gateway and real peers for tests: processes on free ports of this machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from gateway.store import open_store
from gateway.store.monitoring import processes
from gateway.web.server import run as run_web

if TYPE_CHECKING:
    from web_site import Site

PATIENCE_S = 90.0
WITHOUT_LOG_IN = {"GATEWAY_WEB__AUTHENTICATION": "off"}
ON_A_FULL_DISK = {"GATEWAY_DISK__REFUSE_BELOW_BYTES": "50000000"}
"""The machine's disk may be nearly full; for tests that say nothing of the disk themselves."""
_pause = threading.Event()


def wait_until(condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """Poll until `condition` gives something true, and return that."""
    deadline = time.monotonic() + patience_s
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"waited {patience_s:.0f} s for {what}"
        _pause.wait(0.1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@dataclass
class Gateway:
    """``gateway serve`` as a process."""

    folder: Path
    config: str
    environment: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[str] | None = None
    where: dict[str, Any] = field(default_factory=dict)

    @property
    def data_dir(self) -> Path:
        return self.folder / "data"

    @property
    def dicom_port(self) -> int:
        return int(self.where["dicom_port"])

    def start(self, *, dicom_port: int = 0, http_port: int = 0) -> None:
        self.folder.mkdir(exist_ok=True)
        (self.folder / "gateway.toml").write_text(self.config)
        command = [sys.executable, "-m", "gateway.cli", "serve", "--announce"]
        command += ["--config", str(self.folder / "gateway.toml"), "--data-dir", str(self.data_dir)]
        command += ["--dicom-port", str(dicom_port), "--http-port", str(http_port)]
        if self.process is not None and self.process.stdout is not None:
            self.process.stdout.close()
        disk = {} if "[disk]" in self.config else ON_A_FULL_DISK
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, **WITHOUT_LOG_IN, **disk, **self.environment},
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.log()
        self.where = json.loads(line)

    def stop(self) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(40)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return status

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def get(self, path: str) -> Any:
        with urlopen(f"{self.where['url']}{path.lstrip('/')}", timeout=10) as answer:
            return json.load(answer)

    def is_healthy(self) -> bool:
        """Whether every process has reported; while it starts, some have not, and the answer is 503."""
        try:
            return bool(self.get("health")["status"] == "ok")
        except HTTPError:
            return False

    def text(self, path: str) -> str:
        with urlopen(f"{self.where['url']}{path.lstrip('/')}", timeout=10) as answer:
            return str(answer.read().decode())

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        request = Request(
            f"{self.where['url']}{path.lstrip('/')}",
            data=json.dumps(body or {}).encode(),
            headers={"Content-Type": "application/json", "Origin": self.where["url"].rstrip("/")},
        )
        with urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run another ``gateway`` command on the same data folder."""
        command = [sys.executable, "-m", "gateway.cli", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    def studies(self) -> list[dict[str, Any]]:
        done = self.command("studies", "--json", "--data-dir", str(self.data_dir))
        assert done.returncode == 0, done.stderr
        listed: list[dict[str, Any]] = json.loads(done.stdout)
        return listed

    def pids(self) -> dict[str, int]:
        """Process id of each of its processes, by name."""
        store = open_store("", data_dir=self.data_dir)
        try:
            return {row["name"]: row["pid"] for row in processes(store)}
        finally:
            store.close()


@contextmanager
def running_gateway(folder: Path, config: str = "", **options: Any) -> Iterator[Gateway]:
    gateway = Gateway(folder=folder, config=config, **options)
    gateway.start()
    try:
        yield gateway
    finally:
        status = gateway.stop()
    assert status == 0, gateway.log()


@contextmanager
def running_web(site: Site) -> Iterator[str]:
    """The web process, in a thread of this one, on a socket bound beforehand as the supervisor does."""
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        arguments = {"listener": listener}
        running = threading.Thread(target=run_web, args=(site.settings, site.data_dir, stop), kwargs=arguments)
        running.start()
        wait_until(lambda: processes(site.store), "the web process to report")
        yield f"http://127.0.0.1:{port}"
        stop.set()
        running.join(20)
        assert not running.is_alive()


def self_signed(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 and its key, made by openssl."""
    certificate, key = folder / "web.pem", folder / "web.key"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


def destination(name: str, ae_title: str, port: int) -> str:
    return f'[[destinations]]\nname = "{name}"\nae_title = "{ae_title}"\nhost = "127.0.0.1"\nport = {port}\n'


@dataclass
class StoreScp:
    """DCMTK's storescp as the PACS."""

    port: int
    inbox: Path

    def files(self) -> list[Path]:
        return sorted(path for path in self.inbox.iterdir() if path.is_file())


@contextmanager
def running_storescp(folder: Path, ae_title: str = "PACS", options: Sequence[str] = ()) -> Iterator[StoreScp]:
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    command = ["storescp", "--fork", "-aet", ae_title, "--accept-all", *options, "-od", str(folder), str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: listens(port), "storescp")
        yield StoreScp(port, folder)
    finally:
        process.terminate()
        process.wait()


@dataclass
class Orthanc:
    """Orthanc as the PACS."""

    dicom_port: int
    http_port: int

    def get(self, path: str) -> Any:
        with urlopen(f"http://127.0.0.1:{self.http_port}/{path}", timeout=20) as answer:
            return json.load(answer)

    def file(self, instance: str) -> bytes:
        with urlopen(f"http://127.0.0.1:{self.http_port}/instances/{instance}/file", timeout=20) as answer:
            return bytes(answer.read())

    def upload(self, content: bytes) -> dict[str, Any]:
        with urlopen(Request(f"http://127.0.0.1:{self.http_port}/instances", data=content), timeout=60) as answer:
            return dict(json.load(answer))


@contextmanager
def running_orthanc(folder: Path, *, gateway_port: int, dicom_port: int, forward: bool = True) -> Iterator[Orthanc]:
    """Orthanc with a rule that sends every image it gets, but not results, on to the gateway."""
    assert shutil.which("Orthanc"), "Orthanc is not installed; scripts/setup test does so as root"
    http_port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "route.lua").write_text(
        """
function OnStoredInstance(instanceId, tags, metadata, origin)
  if origin["RequestOrigin"] ~= "DicomProtocol" or origin["RemoteAet"] ~= "GATEWAY" then
    SendToModality(instanceId, "gateway")
  end
end
"""
    )
    configuration = {
        "Name": "PACS",
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "DicomAet": "ORTHANC",
        "DicomPort": dicom_port,
        "DicomCheckCalledAet": False,
        "DicomAlwaysAllowStore": True,
        "HttpPort": http_port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomModalities": {"gateway": ["GATEWAY", "127.0.0.1", gateway_port]},
        "LuaScripts": [str(folder / "route.lua")] if forward else [],
    }
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(["Orthanc", str(folder / "orthanc.json")], stdout=log, stderr=log)
    try:
        wait_until(lambda: listens(http_port) and listens(dicom_port), "Orthanc")
        yield Orthanc(dicom_port, http_port)
    finally:
        process.terminate()
        process.wait()


def storescu(files: Sequence[Path], port: int, *, called: str = "GATEWAY") -> subprocess.CompletedProcess[str]:
    """DCMTK's sender; proposes what each file is stored as."""
    command = ["dcmsend", "-aec", called, "127.0.0.1", str(port), "--no-halt", *map(str, files)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
