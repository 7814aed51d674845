from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import drift

ROOT = Path(__file__).resolve().parents[2]
FORBIDDEN = {"torch", "alibi_detect", "onnxruntime", "pydicom", "gateway", "xai"}


def test_importing_drift_loads_no_heavy_library() -> None:
    modules = [f"drift.{module.name}" for module in pkgutil.iter_modules(drift.__path__)]
    assert "drift.mmd" in modules
    program = f"import json, sys, {', '.join(modules)}; print(json.dumps(sorted(sys.modules)))"
    finished = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(json.loads(finished.stdout))
    assert set(modules) <= loaded
    assert not FORBIDDEN & loaded


def test_judging_acquisition_needs_no_scipy() -> None:
    """A worker judges every image, and starts faster without."""
    program = "import json, sys, drift.acquisition; print(json.dumps(sorted(sys.modules)))"
    finished = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"scipy", "torch", "alibi_detect"} & set(json.loads(finished.stdout))
