"""Orthanc's ``/anonymize`` of whole studies, as the Orthanc Book shows. Needs the ``Orthanc`` program.

Standard library only. A study is anonymized as a whole, so that references within it hold. Timed per instance: the
upload, its share of the study's anonymization, the download. Run by ``scripts/benchmark_deidentify.py``.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any


def call(base: str, path: str, body: bytes | None = None) -> Any:
    """A request; JSON answers as values, others as bytes."""
    with urllib.request.urlopen(urllib.request.Request(base + path, data=body), timeout=60) as answer:
        content = answer.read()
        return json.loads(content) if "json" in answer.headers.get("Content-Type", "") else content


def anonymize(base: str, files: list[list[str]]) -> tuple[dict[str, float], dict[str, str]]:
    """All files, study by study: milliseconds of each, and why one failed."""
    times: dict[str, float] = {}
    failures: dict[str, str] = {}
    studies: dict[str, dict[str, str]] = {}
    targets = dict(files)
    for source in targets:
        started = time.perf_counter()
        try:
            stored = call(base, "/instances", Path(source).read_bytes())
        except urllib.error.HTTPError as error:
            failures[source] = f"upload: HTTP {error.code}"
            continue
        times[source] = (time.perf_counter() - started) * 1000
        studies.setdefault(stored["ParentStudy"], {})[stored["ID"]] = source
    for study, instances in studies.items():
        started = time.perf_counter()
        made = call(base, f"/studies/{study}/anonymize", b'{"KeepSource": true}')
        share = (time.perf_counter() - started) * 1000 / len(instances)
        for instance in call(base, f"/studies/{made['ID']}/instances"):
            origin = call(base, f"/instances/{instance['ID']}/metadata/AnonymizedFrom").decode()
            started = time.perf_counter()
            Path(targets[instances[origin]]).write_bytes(call(base, f"/instances/{instance['ID']}/file"))
            times[instances[origin]] += share + (time.perf_counter() - started) * 1000
        call_delete(base, f"/studies/{made['ID']}")
        call_delete(base, f"/studies/{study}")
    for source, target in files:
        if not Path(target).exists():
            failures.setdefault(source, "nothing written")
    return times, failures


def call_delete(base: str, path: str) -> None:
    """DELETE a resource."""
    urllib.request.urlopen(urllib.request.Request(base + path, method="DELETE"), timeout=60).close()


def main() -> None:
    """Start Orthanc on a free port, do the job, stop it."""
    job = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "HttpPort": port, "DicomServerEnabled": False, "StorageDirectory": folder, "IndexDirectory": folder,
            "AuthenticationEnabled": False, "RemoteAccessAllowed": False, "OverwriteInstances": True,
        }  # fmt: skip
        (Path(folder) / "orthanc.json").write_text(json.dumps(settings), "utf-8")
        program = shutil.which("Orthanc") or "/usr/sbin/Orthanc"
        process = subprocess.Popen(
            [program, str(Path(folder) / "orthanc.json")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            base = f"http://127.0.0.1:{port}"
            for _ in range(100):
                try:
                    call(base, "/system")
                    break
                except (urllib.error.URLError, ConnectionError):
                    time.sleep(0.1)
            least: dict[str, float] = {}
            for _ in range(job["repeats"] + 1):
                times, failures = anonymize(base, job["files"])
                least = {source: min(spent, least.get(source, spent)) for source, spent in times.items()}
        finally:
            process.terminate()
            process.wait(20)
    version = (
        "Orthanc "
        + subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout.split()[1]
    )
    kept = {source: spent for source, spent in least.items() if source not in failures}
    Path(sys.argv[2]).write_text(json.dumps({"times_ms": kept, "failures": failures, "name": version}), "utf-8")


if __name__ == "__main__":
    main()
