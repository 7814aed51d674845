"""What a version costs to run: time of a forward pass, memory of a resident session, size of the model.

Each version is measured in a process of its own, so that neither sees what the other left in memory.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gateway.comparison.versions import Version
from gateway.errors import ComparisonError

WARM_UP = 2
RUNS = 40
BATCH_RUNS = 8
PATIENCE_S = 600.0
_MIB = 1 << 20


def measure(version: Version, *, batch: int, threads: int, providers: Sequence[str] | None) -> dict[str, Any]:
    """Figures of one version, by a child process.

    Returns
    -------
    dict
        ``model_bytes``, ``providers``, ``threads``, ``load_ms``, ``resident_mib`` (what the session with its first runs
        adds to the process), ``batches``: of each size ``size``, ``runs``, ``p50_ms``, ``p95_ms`` of a whole batch.

    Raises
    ------
    ComparisonError
        The child failed.
    """
    job = {
        "folder": str(version.bundle.folder),
        "batch": batch,
        "threads": threads,
        "providers": None if providers is None else list(providers),
    }
    command = [sys.executable, "-m", "gateway.comparison.measure", json.dumps(job)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE_S)
        return dict(json.loads(done.stdout.splitlines()[-1]))
    except (subprocess.SubprocessError, OSError, IndexError, json.JSONDecodeError) as error:
        raise ComparisonError(f"{version.name} could not be measured: {type(error).__name__}") from error


def machine() -> dict[str, str]:
    """What it ran on."""
    model = ""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        pass
    return {"system": platform.system(), "processor": model or platform.machine(), "cores": str(os.cpu_count() or 1)}


def resident_mib() -> float:
    """Memory of this process that is in use (resident set), MiB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / _MIB


def _measure_here(job: dict[str, Any]) -> dict[str, Any]:
    import numpy as np

    from models.card import load_bundle
    from models.session import ModelSession

    bundle = load_bundle(Path(job["folder"]))
    contract = bundle.card.pixel_contract
    shape = (contract.channels, contract.size.rows, contract.size.columns)
    # What loading onnx to look at the head takes is no session's.
    import onnx  # noqa: F401

    before, began = resident_mib(), time.perf_counter()
    session = ModelSession(bundle, providers=job["providers"], threads=job["threads"])
    load_ms = (time.perf_counter() - began) * 1000
    batches: list[dict[str, Any]] = []
    for size, runs in {int(job["batch"]): BATCH_RUNS, 1: RUNS}.items():
        tensors = np.random.default_rng(0).standard_normal((size, *shape), dtype=np.float32)
        times = []
        for run in range(WARM_UP + runs):
            start = time.perf_counter()
            session.run(tensors)
            if run >= WARM_UP:
                times.append((time.perf_counter() - start) * 1000)
        low, high = np.quantile(times, [0.5, 0.95])
        batches.append({"size": size, "runs": runs, "p50_ms": round(float(low), 3), "p95_ms": round(float(high), 3)})
    return {
        "model_bytes": bundle.model_path.stat().st_size,
        "providers": list(session.providers_in_use),
        "threads": job["threads"],
        "load_ms": round(load_ms, 1),
        "resident_mib": round(resident_mib() - before, 1),
        "batches": sorted(batches, key=lambda each: each["size"]),
    }


if __name__ == "__main__":
    print(json.dumps(_measure_here(json.loads(sys.argv[1]))))
