"""The receivers as processes of this machine: start, stop, count what they stored, measure what they use."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import IO, Any
from urllib.request import urlopen

PDU_BYTES = 131072
"""What every receiver announces; the largest that DCMTK can."""
_PATIENCE_S = 120.0

GATEWAY_CONFIG = """
# Rules as a hospital has them, which match nothing that is sent; and studies that do not become complete while the
# benchmark runs, so that the workers sleep and reception alone is measured.
[dicom]
unknown_peers = "accept"

[web]
authentication = "off"

[completion]
single_image_quiet_time_s = 86400
other_quiet_time_s = 86400
hard_cap_s = 172800

[[rules]]
name = "nothing"
when = { Modality = ["ZZ"], SOPClassUID = ["1.2.840.10008.5.1.4.1.1.77.1.5.*", "1.2.840.10008.5.1.4.1.1.7*"] }
models = ["retinopathy"]

[[rules]]
name = "nothing, by description"
when = { Modality = ["ZZ"], BodyPartExamined = "", "StudyDescription|SeriesDescription" = ["*CHEST*", "*THORAX*"] }
models = ["chest-triage"]
"""

# pynetdicom's storescp with room for more than the ten associations that its AE takes by default.
_PYNETDICOM = """
from pynetdicom.apps.storescp import storescp
class WideAE(storescp.AE):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.maximum_associations = 64
storescp.AE = WideAE
storescp.main()
"""


class Receiver:
    """One receiver, with a folder of its own."""

    name = ""
    called = "PEER"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    def command(self) -> list[str]:
        """The command line; it listens on :attr:`port`."""
        raise NotImplementedError

    def stored(self) -> int:
        """Instances that it says it holds, those of cleared files included where it keeps an index."""
        raise NotImplementedError

    def files(self) -> list[Path]:
        """Objects on its disk."""
        return [path for path in self.folder.joinpath("objects").iterdir() if path.is_file()]

    @staticmethod
    def is_available() -> bool:
        return True

    def start(self) -> None:
        self.folder.joinpath("objects").mkdir(parents=True)
        self.port = free_port()
        self._log = (self.folder / "log").open("wb")
        self._process = subprocess.Popen(
            self.command(), stdout=subprocess.PIPE, stderr=self._log, stdin=subprocess.DEVNULL
        )
        self.on_start(self._process)
        wait_for(lambda: listens(self.port), f"{self.name} to listen", self._process)
        wait_for(self._is_quiet, f"{self.name} to finish its start", self._process)

    def on_start(self, process: subprocess.Popen[bytes]) -> None:
        """Read where it listens, if it says so."""

    def stop(self) -> None:
        if self._process is None:
            return
        self.resume()
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(40)
        except subprocess.TimeoutExpired:
            for pid in [*self.tree()]:
                os.kill(pid, signal.SIGKILL)
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        if self._log is not None:
            self._log.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def clear(self) -> None:
        """Delete the objects on disk; an index keeps its rows."""
        for path in self.files():
            path.unlink()

    def tree(self) -> list[int]:
        """All its processes."""
        assert self._process is not None
        return descendants(self._process.pid)

    def receiving(self) -> list[int]:
        """The processes that receive."""
        return self.tree()

    def pause(self) -> None:
        """Take it off the processor while another is measured."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        for pid in self.tree():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _is_quiet(self) -> bool:
        before = cpu_s(self.tree())
        time.sleep(0.5)
        return cpu_s(self.tree()) - before < 0.03


class Gateway(Receiver):
    name = "gateway"
    called = "GATEWAY"

    def command(self) -> list[str]:
        (self.folder / "gateway.toml").write_text(GATEWAY_CONFIG)
        command = [sys.executable, "-m", "gateway.cli", "serve", "--announce", "--dicom-port", "0", "--http-port", "0"]
        return [*command, "--config", str(self.folder / "gateway.toml"), "--data-dir", str(self.folder / "data")]

    def on_start(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            sys.exit(f"the gateway did not start:\n{(self.folder / 'log').read_text()}")
        self.port = int(json.loads(line)["dicom_port"])
        wait_for(lambda: bool(self._rows("SELECT pid FROM process")), "the gateway's processes", process)
        time.sleep(2)

    def stored(self) -> int:
        return int(self._rows("SELECT count(*) FROM instance")[0][0])

    def files(self) -> list[Path]:
        return list((self.folder / "data" / "objects" / "instances").glob("*/*.dcm"))

    def receiving(self) -> list[int]:
        alive = set(self.tree())
        return [pid for (pid,) in self._rows("SELECT pid FROM process WHERE name LIKE 'receiver%'") if pid in alive]

    def _rows(self, query: str) -> list[Any]:
        with closing(sqlite3.connect(f"file:{self.folder / 'data' / 'gateway.db'}?mode=ro", uri=True)) as connection:
            return connection.execute(query).fetchall()


class Storescp(Receiver):
    name = "storescp --fork"

    def command(self) -> list[str]:
        command = ["storescp", "--fork", "-aet", self.called, "--accept-all", "--max-pdu", str(PDU_BYTES)]
        return [*command, "-od", str(self.folder / "objects"), str(self.port)]

    def stored(self) -> int:
        return len(self.files())

    @staticmethod
    def is_available() -> bool:
        return shutil.which("storescp") is not None


class Orthanc(Receiver):
    name = "Orthanc"

    def command(self) -> list[str]:
        self.http_port = free_port()
        configuration = {
            "Name": self.called,
            "StorageDirectory": str(self.folder / "objects"),
            "IndexDirectory": str(self.folder / "index"),
            "DicomAet": self.called,
            "DicomPort": self.port,
            "DicomCheckCalledAet": False,
            "DicomAlwaysAllowStore": True,
            "DicomThreadsCount": 16,  # one an association; the default is 4
            "MaximumPduLength": PDU_BYTES,
            "HttpPort": self.http_port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "StorageCompression": False,
            "SyncStorageArea": True,
        }
        (self.folder / "orthanc.json").write_text(json.dumps(configuration))
        return ["Orthanc", str(self.folder / "orthanc.json")]

    def stored(self) -> int:
        with urlopen(f"http://127.0.0.1:{self.http_port}/statistics", timeout=60) as answer:
            return int(json.load(answer)["CountInstances"])

    def files(self) -> list[Path]:
        return [path for path in (self.folder / "objects").glob("*/*/*") if path.is_file()]

    @staticmethod
    def is_available() -> bool:
        return shutil.which("Orthanc") is not None


class Pynetdicom(Receiver):
    name = "pynetdicom storescp"

    def command(self) -> list[str]:
        command = [sys.executable, "-c", _PYNETDICOM, str(self.port), "-q", "--max-pdu", str(PDU_BYTES)]
        return [*command, "-od", str(self.folder / "objects")]

    def stored(self) -> int:
        return len(self.files())


RECEIVERS: dict[str, type[Receiver]] = {
    "gateway": Gateway,
    "dcmtk": Storescp,
    "orthanc": Orthanc,
    "pynetdicom": Pynetdicom,
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(condition: Callable[[], bool], what: str, process: subprocess.Popen[bytes]) -> None:
    """Poll until `condition` holds; give up when `process` ended or after two minutes."""
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        if process.poll() is not None:
            sys.exit(f"waited for {what}, but it ended with exit code {process.returncode}")
        if time.monotonic() > deadline:
            sys.exit(f"waited {_PATIENCE_S:.0f} s for {what}")
        time.sleep(0.05)


def descendants(pid: int) -> list[int]:
    """A process and all that it has started."""
    found = [pid]
    for each in found:
        with suppress(OSError):
            for task in Path(f"/proc/{each}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found


def cpu_s(pids: Sequence[int]) -> float:
    """Processor time of these processes and of the children that they have waited for."""
    ticks = 0
    for pid in pids:
        with suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def reset_peak(pids: Sequence[int]) -> None:
    """Let VmHWM start anew."""
    for pid in pids:
        with suppress(OSError):
            Path(f"/proc/{pid}/clear_refs").write_text("5")


def memory_mb(pids: Sequence[int]) -> tuple[float, float]:
    """Sum of proportional set sizes, and the largest VmHWM of one process."""
    total, largest = 0.0, 0.0
    for pid in pids:
        with suppress(OSError, AttributeError):
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            status = Path(f"/proc/{pid}/status").read_text()
            total += int(re.search(r"^Pss:\s+(\d+)", rollup, re.M).group(1)) / 1024  # type: ignore[union-attr]
            largest = max(largest, int(re.search(r"VmHWM:\s+(\d+)", status).group(1)) / 1024)  # type: ignore[union-attr]
    return total, largest
